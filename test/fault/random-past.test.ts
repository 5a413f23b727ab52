/**
 * Tables that leave the publication and come back, other row filters, deletions left out, columns that are unpublished, written anew or of another type for a while, versions made and dropped
 * at any moment of it, also in transactions that stay open, the engine killed again and again. A version that can be read shows what the origin has;
 * one that nothing has befallen can be read; and RESYNC mends all that the origin has what they were made with.
 * MILLRACE_KILL_ROUNDS: rounds (default 4); MILLRACE_SEED: the seed.
 */
import type pg from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type Random, seeded } from '../property/ivm/random.ts';
import { type ExtendedClient, startEngine, type TestEngine, texts } from '../support/engine.ts';
import { type OriginPair, startOriginPair } from '../support/origin-pair.ts';

const rounds = Number(process.env['MILLRACE_KILL_ROUNDS'] ?? 4);
const seed = Number(process.env['MILLRACE_SEED'] ?? Date.now() % 1_000_000_000);

interface Column {
  readonly attnum: number;
  readonly name: string;
  readonly type: string;
}

interface Table {
  readonly name: string;
  readonly isKeyed: boolean;
  isPublished: boolean;
  /** A column that the publication has not. */
  unpublished: string | null;
  /** Rows of lower ids are not published. */
  from: number | null;
  /** Something has befallen it, and perhaps it is not known here yet. */
  isUnsettled: boolean;
}

interface Version {
  readonly name: string;
  readonly table: Table;
  readonly columns: readonly Column[];
  /** Something has befallen what it shows: it may say so, until the source has been resynchronised. */
  isBefallen: boolean;
}

const tables: Table[] = [
  { name: 'keyed', isKeyed: true, isPublished: true, unpublished: null, from: null, isUnsettled: false },
  { name: 'other', isKeyed: true, isPublished: true, unpublished: null, from: null, isUnsettled: false },
  { name: 'bag', isKeyed: false, isPublished: true, unpublished: null, from: null, isUnsettled: false },
];
let versions: Version[] = [];
let made = 0;
let pair: OriginPair;
let admin: pg.Client;
let extended: ExtendedClient;
let engine: TestEngine;

beforeAll(async () => {
  pair = await startOriginPair(
    `CREATE TABLE keyed (id integer PRIMARY KEY, a integer, b text); CREATE TABLE other (id integer PRIMARY KEY, a integer, b text, c integer);
     CREATE TABLE bag (id integer, a integer, b text); ALTER TABLE bag REPLICA IDENTITY FULL; CREATE PUBLICATION p FOR TABLE keyed, other, bag`,
  );
  ({ admin, extended } = pair);
  engine = startEngine(pair.upstream.address);
  await extended.run("CREATE SOURCE s FROM POSTGRES CONNECTION c (PUBLICATION 'p')");
}, 120_000);
afterAll(async () => {
  await pair?.stop(engine);
});

const columnsOf = async ({ name }: Table): Promise<Column[]> =>
  (
    await texts(
      admin,
      `SELECT attnum, attname, format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = '${name}'::regclass AND attnum > 0 AND NOT attisdropped ORDER BY 1`,
    )
  ).map(([attnum, column, type]) => ({ attnum: Number(attnum), name: column ?? '', type: type ?? '' }));

let next = 0;

async function write(random: Random, table: Table): Promise<void> {
  const columns = await columnsOf(table);
  const { name } = table;
  const value = (type: string): string => (random.chance(0.1) ? 'NULL' : type === 'text' ? `'${random.int(50)}'` : String(random.int(50)));
  const row = (): string => `(${columns.map((column) => (column.name === 'id' ? String(next++) : value(column.type))).join(', ')})`;
  const some = `ctid IN (SELECT ctid FROM ${name} ORDER BY random() LIMIT ${1 + random.int(3)})`;
  const kind = random.int(5);
  if (kind < 2) await admin.query(`INSERT INTO ${name} VALUES ${Array.from({ length: 1 + random.int(3) }, row).join(', ')}`);
  else if (kind === 2) await admin.query(`DELETE FROM ${name} WHERE ${some}`);
  else {
    const column = random.pick(columns.slice(1));
    await admin.query(`UPDATE ${name} SET ${column.name} = ${value(column.type)} WHERE ${some}`);
  }
}

const befall = (table: Table, shows: (column: Column) => boolean = () => true): void => {
  table.isUnsettled = true;
  for (const version of versions) if (version.table === table && version.columns.some(shows)) version.isBefallen = true;
};

/** The publication as the tables say. */
async function publish(): Promise<void> {
  const members: string[] = [];
  for (const table of tables.filter(({ isPublished }) => isPublished)) {
    const shown = (await columnsOf(table)).filter(({ name }) => name !== table.unpublished).map(({ name }) => name);
    const columns = table.unpublished === null ? '' : ` (${shown.join(', ')})`;
    members.push(`${table.name}${columns}${table.from === null ? '' : ` WHERE (id >= ${table.from})`}`);
  }
  await admin.query(
    members.length === 0
      ? `ALTER PUBLICATION p DROP TABLE ${tables.map(({ name }) => name).join(', ')}`
      : `ALTER PUBLICATION p SET TABLE ${members.join(', ')}`,
  );
}

async function befallOne(random: Random): Promise<void> {
  const table = random.pick(tables);
  const { name } = table;
  const columns = await columnsOf(table);
  // Postgres lets nobody write a column anew that a publication names.
  const column = columns.find((one) => one.name === table.unpublished) ?? random.pick(columns.slice(1));
  const isOut = table.unpublished !== null;
  switch (
    random.pick(['out', 'out', 'hide', 'hide', 'rewrite', 'rewrite', 'type', 'type', 'drop', 'key', 'filter', 'filter', 'partial'] as const)
  ) {
    case 'out':
      if (table.isPublished && tables.filter(({ isPublished }) => isPublished).length === 1) return;
      table.isPublished = !table.isPublished;
      befall(table);
      await publish();
      return;
    case 'hide':
      if (!table.isKeyed || !table.isPublished) return;
      table.unpublished = isOut ? null : column.name;
      befall(table, ({ attnum }) => attnum === column.attnum);
      await publish();
      return;
    case 'rewrite':
      befall(table, ({ attnum }) => attnum === column.attnum);
      await admin.query(
        `ALTER TABLE ${name} ALTER ${column.name} TYPE ${column.type} USING ${column.type === 'text' ? `${column.name} || '!'` : `${column.name} + 1`}`,
      );
      return;
    case 'type':
      befall(table, ({ attnum }) => attnum === column.attnum);
      await admin.query(
        column.type === 'text'
          ? `ALTER TABLE ${name} ALTER ${column.name} TYPE integer USING length(${column.name})`
          : `ALTER TABLE ${name} ALTER ${column.name} TYPE text`,
      );
      return;
    case 'drop':
      if (isOut || columns.length < 4) {
        await admin.query(`ALTER TABLE ${name} ADD COLUMN n${next++} ${random.pick(['integer', 'text'])} DEFAULT '7'`);
        await admin.query(`ALTER TABLE ${name} ALTER ${(await columnsOf(table)).at(-1)?.name} DROP DEFAULT`);
        if (isOut) await publish();
        return;
      }
      befall(table, ({ attnum }) => attnum === column.attnum);
      await admin.query(`ALTER TABLE ${name} DROP COLUMN ${column.name}`);
      return;
    case 'filter':
      if (!table.isKeyed || !table.isPublished) return;
      table.from = table.from === null || random.chance(0.5) ? random.int(60) : null;
      befall(table);
      await publish();
      return;
    case 'partial':
      // Deletions meanwhile are lost; what is published afterwards is what was before.
      for (const each of tables) befall(each);
      await admin.query("ALTER PUBLICATION p SET (publish = 'insert, update')");
      await admin.query(`DELETE FROM ${name} WHERE ctid IN (SELECT ctid FROM ${name} LIMIT 1)`);
      await admin.query("ALTER PUBLICATION p SET (publish = 'insert, update, delete, truncate')");
      return;
    case 'key':
      if (isOut || table.from !== null) return;
      befall(table, ({ name: shown }) => table.isKeyed || shown === 'id');
      await admin.query(`ALTER TABLE ${name} ALTER id TYPE integer USING id + 100000`);
      return;
  }
}

async function makeVersion(random: Random): Promise<void> {
  const table = random.pick(tables.filter(({ isPublished }) => isPublished));
  const columns = (await columnsOf(table)).filter(({ name }) => name !== table.unpublished);
  const excluded = random.chance(0.5) ? random.some(columns, 1) : [];
  const shown = columns.filter((column) => !excluded.includes(column));
  if (shown.length === 0) return;
  const version: Version = { name: `v${made++}`, table, columns: shown, isBefallen: table.isUnsettled };
  const without = excluded.length === 0 ? '' : ` WITH (EXCLUDE COLUMNS (${excluded.map(({ name }) => name).join(', ')}))`;
  const sql = `CREATE TABLE ${version.name} FROM SOURCE s (REFERENCE ${table.name})${without}`;
  const commit = await extended.open(sql);
  versions.push(version);
  for (let steps = random.chance(0.6) ? 0 : 1 + random.int(3); steps > 0; steps--)
    await (random.chance(0.6) ? befallOne(random) : write(random, random.pick(tables)));
  // It may be told now of what befell the table a moment ago; then it is not made.
  await commit().catch((error: Error) => {
    if (!version.isBefallen) throw error;
  });
  const there = await texts(extended.client, `SELECT to_regclass('${version.name}') IS NOT NULL`);
  if (there[0]?.[0] !== 't') versions = versions.filter((one) => one !== version);
}

/** What is wrong with a version; null: nothing. */
async function problem(version: Version): Promise<string | null> {
  const { name, table, columns } = version;
  const shown = await texts(extended.client, `SELECT ${columns.map((column) => `"${column.name}"`).join(', ')} FROM ${name}`).catch(
    (error: Error) => error.message,
  );
  const now = new Map((await columnsOf(table)).map((column) => [column.attnum, column]));
  const isEnded =
    !table.isPublished ||
    columns.some((column) => now.get(column.attnum)?.type !== column.type || now.get(column.attnum)?.name === table.unpublished);
  if (typeof shown === 'string')
    return (version.isBefallen || isEnded) && /^(source table|publication "p") /.test(shown) ? null : `${name}: ${shown}`;
  if (isEnded) return `${name} can be read, although the origin has no longer what it shows`;
  const rows = `${table.name}${table.from === null ? '' : ` WHERE id >= ${table.from}`}`;
  const wanted = await texts(admin, `SELECT ${columns.map(({ attnum }) => `"${now.get(attnum)?.name}"`).join(', ')} FROM ${rows}`);
  const sorted = (rows: readonly unknown[]): string[] => rows.map((row) => JSON.stringify(row)).sort();
  const [has, there] = [sorted(shown), sorted(wanted)];
  if (JSON.stringify(has) === JSON.stringify(there)) return null;
  return `${name} of ${table.name} (${columns.map((column) => column.name).join()}) shows ${has.filter((row) => !there.includes(row)).slice(0, 3)} in place of ${there.filter((row) => !has.includes(row)).slice(0, 3)} (${has.length}, ${there.length} rows)`;
}

async function settled(): Promise<string[]> {
  const [here] = await texts(admin, 'SELECT pg_current_wal_lsn()');
  const reached = `SELECT greatest(p.lsn, r.reached_lsn) >= '${here?.[0]}' FROM millrace.source_progress p JOIN millrace.source_position r USING (source_id)`;
  await expect.poll(() => texts(extended.client, reached), { timeout: 20_000 }).toEqual([['t']]);
  let wrong: string[] = [];
  for (const end = performance.now() + 20_000; performance.now() < end; await new Promise((resolve) => setTimeout(resolve, 30))) {
    wrong = [];
    for (const version of versions) wrong.push(...[await problem(version)].filter((one) => one !== null));
    if (wrong.length > 0) continue;
    for (const table of tables) table.isUnsettled = false;
    return [];
  }
  return wrong;
}

test(`versions of tables with a past (seed ${seed}, ${rounds} rounds)`, { timeout: 120_000 + rounds * 60_000 }, async () => {
  const random = seeded(seed);
  for (const table of tables) for (let i = 0; i < 10; i++) await write(random, table);
  let read = 0;
  for (let round = 0; round < rounds; round++) {
    const where = `MILLRACE_SEED=${seed}, round ${round}`;
    for (let steps = 0; steps < 16; steps++) {
      if (random.chance(0.1)) engine.kill();
      if (random.chance(0.5)) await befallOne(random);
      if (random.chance(0.4) && versions.length < 12) await makeVersion(random);
      if (random.chance(0.2) && versions.length > 3) {
        const [gone] = random.some(versions, 1);
        versions = versions.filter((version) => version !== gone);
        await extended.run(`DROP TABLE ${gone?.name} CASCADE`);
      }
      if (random.chance(0.1)) await extended.run('ALTER SOURCE s RESYNC');
      for (let writes = random.int(4); writes > 0; writes--) await write(random, random.pick(tables));
      if (random.chance(0.3)) expect(await settled(), where).toEqual([]);
    }
    for (const table of tables) {
      if (table.from !== null) befall(table);
      Object.assign(table, { isPublished: true, unpublished: null, from: null });
    }
    await publish();
    expect(await settled(), where).toEqual([]);
    await extended.run('ALTER SOURCE s RESYNC');
    for (const version of versions) version.isBefallen = false;
    expect(await settled(), `${where}, resynchronised`).toEqual([]);
    for (const { name } of versions)
      read += await texts(extended.client, `SELECT FROM ${name}`).then(
        () => 1,
        () => 0,
      );
  }
  console.log(`${made} versions made, ${read} could be read at the end of a round`);
  expect(read).toBeGreaterThan(rounds);
});
