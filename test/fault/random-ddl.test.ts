/**
 * Random DDL and DML at an origin, versions made of its tables at random moments, the engine killed again and again: when it is quiet each version
 * shows the columns it was made with as the origin has them, or says that one of them is gone or has changed.
 * MILLRACE_KILL_ROUNDS: rounds (default 4); MILLRACE_SEED: the seed.
 */
import type pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { quoteIdentifier } from '../../src/sql/quote.ts';
import { type Random, seeded } from '../property/ivm/random.ts';
import { type ExtendedClient, startEngine, type TestEngine, texts } from '../support/engine.ts';
import { type OriginPair, startOriginPair } from '../support/origin-pair.ts';

const rounds = Number(process.env['MILLRACE_KILL_ROUNDS'] ?? 4);
const seed = Number(process.env['MILLRACE_SEED'] ?? Date.now() % 1_000_000_000);

interface Table {
  oid: string;
  /** It was dropped and made again since the source was resynchronised. */
  isReplaced: boolean;
}

interface Version {
  readonly name: string;
  readonly table: Table;
  /** The table that it was made from, or that has taken its place. */
  oid: string;
  readonly columns: readonly { readonly attnum: number; readonly name: string }[];
  /** A column of it was dropped, or has got another type. */
  ended: boolean;
  /** A column of it was written anew, by an origin that does not say how: it says so, until a RESYNC that mends it. */
  isRewritten: boolean;
}

describe.each([
  ['that tells of its DDL', 'postgres'],
  ['that does not tell', 'reader'],
] as const)('an origin %s', (_, role) => {
  const tells = role === 'postgres';
  const tables: Table[] = [];
  const versions: Version[] = [];
  let pair: OriginPair;
  let admin: pg.Client;
  let extended: ExtendedClient;
  let engine: TestEngine;

  beforeAll(async () => {
    pair = await startOriginPair(
      `CREATE ROLE reader LOGIN REPLICATION IN ROLE pg_read_all_data; CREATE SCHEMA other;
      CREATE TYPE mood AS ENUM ('sad', 'ok', 'glad');
      CREATE TABLE keyed (id integer PRIMARY KEY, a integer, b text, c numeric(8,2), m mood, s smallint);
      CREATE TABLE bag (a integer, b text, c text, m mood, v character varying(20), n numeric(6,2)); ALTER TABLE bag REPLICA IDENTITY FULL;
      CREATE TABLE again (id integer PRIMARY KEY, a integer);
      CREATE PUBLICATION p FOR ALL TABLES`,
      role,
    );
    ({ admin, extended } = pair);
    for (const name of ['keyed', 'bag', 'again']) {
      const [row] = await texts(admin, `SELECT '${name}'::regclass::oid`);
      tables.push({ oid: row?.[0] ?? '', isReplaced: false });
    }
    await extended.client.query("CREATE TYPE public.mood AS ENUM ('sad', 'ok', 'glad')");
    engine = startEngine(pair.upstream.address);
    await extended.run("CREATE SOURCE s FROM POSTGRES CONNECTION c (PUBLICATION 'p')");
  }, 120_000);
  afterAll(async () => {
    await pair?.stop(engine);
  });

  const nameOf = async ({ oid }: Table): Promise<string> => (await texts(admin, `SELECT ${oid}::regclass`))[0]?.[0] ?? '';
  const columnsOf = async ({ oid }: Table): Promise<{ attnum: number; name: string; type: string }[]> =>
    (
      await texts(
        admin,
        `SELECT attnum, attname, format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = ${oid} AND attnum > 0 AND NOT attisdropped ORDER BY 1`,
      )
    ).map(([attnum, name, type]) => ({ attnum: Number(attnum), name: name ?? '', type: type ?? '' }));

  let next = 0;

  async function write(random: Random, table: Table): Promise<void> {
    const name = await nameOf(table);
    const columns = await columnsOf(table);
    const hasKey = table !== tables[1];
    const labels = (await texts(admin, "SELECT enumlabel FROM pg_enum WHERE enumtypid = 'mood'::regtype ORDER BY enumsortorder")).map(
      ([label]) => label ?? '',
    );
    const value = (type: string): string =>
      random.chance(0.15)
        ? 'NULL'
        : type === 'mood'
          ? `'${random.pick(labels)}'`
          : /^(smallint|integer|bigint|numeric)/.test(type)
            ? String(random.int(100))
            : `'${random.pick(['x', 'yy', '', 'z'.repeat(random.chance(0.1) && !type.startsWith('character') ? 5000 : 3)])}${random.int(5)}'`;
    const list = columns.map((column) => quoteIdentifier(column.name)).join(', ');
    const row = (): string =>
      `(${columns.map((column) => (column.attnum === 1 && hasKey ? String(next++) : value(column.type))).join(', ')})`;
    const [some] = [`ctid IN (SELECT ctid FROM ${name} ORDER BY random() LIMIT ${1 + random.int(3)})`];
    const free = columns.filter(({ attnum }) => attnum !== 1 || !hasKey);
    const column = free.length === 0 ? undefined : random.pick(free);
    const kind = random.int(6);
    if (kind < 3 || column === undefined)
      await admin.query(`INSERT INTO ${name} (${list}) VALUES ${Array.from({ length: 1 + random.int(3) }, row).join(', ')}`);
    else if (kind === 3) await admin.query(`UPDATE ${name} SET ${quoteIdentifier(column.name)} = ${value(column.type)} WHERE ${some}`);
    else if (kind === 4) await admin.query(`DELETE FROM ${name} WHERE ${some}`);
    else if (random.chance(0.2)) await admin.query(`TRUNCATE ${name}`);
    else await admin.query(`UPDATE ${name} SET ${quoteIdentifier(column.name)} = ${quoteIdentifier(column.name)}`);
  }

  /** Columns that lose what they were. */
  async function alter(random: Random, table: Table): Promise<number[]> {
    const name = await nameOf(table);
    if (table === tables[2]) {
      await admin.query(
        `DROP TABLE ${name}; CREATE TABLE ${name} (id integer PRIMARY KEY, a integer); INSERT INTO ${name} VALUES (-1, ${random.int(9)})`,
      );
      table.oid = (await texts(admin, `SELECT '${name}'::regclass::oid`))[0]?.[0] ?? '';
      table.isReplaced = true;
      return [];
    }
    const free = (await columnsOf(table)).filter(({ attnum }) => attnum !== 1 || table !== tables[0]);
    const added = `n${next++}`;
    if (free.length < 3) {
      await admin.query(`ALTER TABLE ${name} ADD COLUMN ${added} ${random.pick(['integer', 'text', "text DEFAULT 'old'"])}`);
      return [];
    }
    const [x, y] = random.some(free, 2);
    if (x === undefined || y === undefined) return [];
    const [nx, ny] = [quoteIdentifier(x.name), quoteIdentifier(y.name)];
    switch (
      random.pick([
        'add',
        'add',
        'add',
        'rename',
        'rename',
        'swap',
        'swap',
        'swap',
        'schema',
        'table',
        'drop',
        'replace',
        'type',
        'widen',
        'widen',
        'relabel',
        'relabel',
      ])
    ) {
      case 'add':
        await admin.query(`ALTER TABLE ${name} ADD COLUMN ${added} ${random.pick(['integer', 'text', 'integer DEFAULT 7'])}`);
        return [];
      case 'rename':
        await admin.query(`ALTER TABLE ${name} RENAME ${nx} TO "R ${added}"`);
        return [];
      case 'swap':
        await admin.query(
          `ALTER TABLE ${name} RENAME ${nx} TO tmp; ALTER TABLE ${name} RENAME ${ny} TO ${nx}; ALTER TABLE ${name} RENAME tmp TO ${ny}`,
        );
        return [];
      case 'drop':
        await admin.query(`ALTER TABLE ${name} DROP COLUMN ${nx}`);
        return [x.attnum];
      case 'replace':
        // The same name, another column.
        await admin.query(`ALTER TABLE ${name} DROP COLUMN ${nx}, ADD COLUMN ${nx} text`);
        return [x.attnum];
      case 'type':
        if (x.type === 'text') return [];
        await admin.query(`ALTER TABLE ${name} ALTER COLUMN ${nx} TYPE text`);
        // That is only longer, and followed.
        return x.type.startsWith('character varying') ? [] : [x.attnum];
      case 'widen': {
        const wider = widerTypes[x.type];
        if (wider === undefined) return [];
        await admin.query(`ALTER TABLE ${name} ALTER COLUMN ${nx} TYPE ${wider.type}`);
        // Who does not tell does not say either what was made of values that were written anew.
        if (wider.isRewriting && !tells)
          for (const version of versions)
            if (version.table === table && version.columns.some(({ attnum }) => attnum === x.attnum)) version.isRewritten = true;
        return [];
      }
      case 'relabel': {
        const [label] = random.some(
          (await texts(admin, "SELECT enumlabel FROM pg_enum WHERE enumtypid = 'mood'::regtype")).map(([one]) => one ?? ''),
          1,
        );
        await admin.query(`ALTER TYPE mood RENAME VALUE '${label}' TO 'm${next++}'`);
        return [];
      }
      case 'schema':
        await admin.query(`ALTER TABLE ${name} SET SCHEMA ${name.startsWith('other.') ? 'public' : 'other'}`);
        return [];
      default:
        await admin.query(`ALTER TABLE ${name} RENAME TO t${next++}`);
        await admin.query(`ALTER TABLE ${await nameOf(table)} ALTER COLUMN ${nx} SET DEFAULT NULL`);
        return [];
    }
  }

  const widerTypes: Readonly<Record<string, { readonly type: string; readonly isRewriting: boolean }>> = {
    smallint: { type: 'integer', isRewriting: true },
    integer: { type: 'bigint', isRewriting: true },
    'character varying(20)': { type: 'character varying(30)', isRewriting: false },
    'character varying(30)': { type: 'text', isRewriting: false },
    'numeric(8,2)': { type: 'numeric(12,2)', isRewriting: false },
    'numeric(12,2)': { type: 'numeric', isRewriting: false },
    'numeric(6,2)': { type: 'numeric(9,3)', isRewriting: true },
  };

  function ended(table: Table, attnums: readonly number[]): void {
    for (const version of versions)
      if (version.table === table && version.columns.some(({ attnum }) => attnums.includes(attnum))) version.ended = true;
  }

  async function transaction(random: Random): Promise<void> {
    const lost: [Table, number[]][] = [];
    const before = tables.map((table) => ({ ...table }));
    await admin.query('BEGIN');
    for (let statements = 1 + random.int(5); statements > 0; statements--) {
      const table = random.pick(tables);
      if (random.chance(tells ? 0.3 : 0)) lost.push([table, await alter(random, table)]);
      else await write(random, table);
    }
    if (random.chance(0.15)) {
      await admin.query('ROLLBACK');
      tables.forEach((table, i) => {
        Object.assign(table, before[i]);
      });
      return;
    }
    await admin.query('COMMIT');
    for (const [table, attnums] of lost) ended(table, attnums);
  }

  async function makeVersion(random: Random): Promise<void> {
    const table = random.pick(tables);
    const reference = await nameOf(table);
    const columns = await columnsOf(table);
    const free = columns.filter(({ attnum }) => attnum !== 1 || table === tables[1]);
    const excluded = random.chance(0.4) && free.length > 1 ? random.some(free, 1) : [];
    const name = `v${versions.length}`;
    const without =
      excluded.length === 0 ? '' : ` WITH (EXCLUDE COLUMNS (${excluded.map((column) => quoteIdentifier(column.name)).join(', ')}))`;
    await extended.run(`CREATE TABLE ${name} FROM SOURCE s (REFERENCE ${reference})${without}`);
    versions.push({
      name,
      table,
      oid: table.oid,
      columns: columns.filter((column) => !excluded.includes(column)),
      ended: false,
      isRewritten: false,
    });
  }

  /** What is wrong with a version; null: nothing. */
  async function problem({ name, table, columns, ended: isBroken, isRewritten }: Version): Promise<string | null> {
    const found = await texts(
      extended.client,
      `SELECT ${columns.map((column) => quoteIdentifier(column.name)).join(', ')} FROM ${name}`,
    ).catch((error: Error) => error.message);
    if (typeof found === 'string')
      return (isBroken || isRewritten) && found.startsWith('source table schema has been altered') ? null : `${name}: ${found}`;
    if (isBroken) return `${name} can be read, although a column of it has changed`;
    const now = new Map((await columnsOf(table)).map((column) => [column.attnum, column.name]));
    const wanted = await texts(
      admin,
      `SELECT ${columns.map(({ attnum }) => quoteIdentifier(now.get(attnum) ?? '')).join(', ')} FROM ${await nameOf(table)}`,
    );
    const sorted = (rows: readonly unknown[]): string[] => rows.map((row) => JSON.stringify(row)).sort();
    const [shown, there] = [sorted(found), sorted(wanted)];
    if (JSON.stringify(shown) === JSON.stringify(there)) return null;
    return `${name} shows ${shown.filter((row) => !there.includes(row)).slice(0, 3)} in place of ${there.filter((row) => !shown.includes(row)).slice(0, 3)} (${shown.length}, ${there.length} rows)`;
  }

  test(`versions show what they were made with (seed ${seed}, ${rounds} rounds)`, { timeout: 120_000 + rounds * 60_000 }, async () => {
    const random = seeded(seed);
    for (const table of tables) for (let i = 0; i < 10; i++) await write(random, table);
    for (let round = 0; round < rounds; round++) {
      for (let steps = 0; steps < 12; steps++) {
        if (random.chance(0.2)) engine.kill();
        if (random.chance(0.25) && versions.length < 24) await makeVersion(random);
        for (let transactions = 1 + random.int(4); transactions > 0; transactions--) {
          await transaction(random);
          // What does not tell is asked when rows come: a change and the next one are apart, or it is a matter of luck which of them is seen.
          if (!tells && random.chance(0.3)) {
            expect(await settled(), `MILLRACE_SEED=${seed}, round ${round}`).toEqual([]);
            const table = random.pick(tables);
            ended(table, await alter(random, table));
            await write(random, table);
            expect(await settled(), `MILLRACE_SEED=${seed}, round ${round}`).toEqual([]);
          }
        }
      }
      expect(await settled(), `MILLRACE_SEED=${seed}, round ${round}`).toEqual([]);
    }
    const broken = versions.filter((version) => version.ended).length;
    console.log(
      `${versions.length} versions, ${broken} of them ended by a change; ${(await texts(extended.client, 'SELECT count(*) FROM millrace.origin_table_versions'))[0]?.[0]} versions of origin tables`,
    );
  });

  async function settled(): Promise<string[]> {
    let wrong: string[] = [];
    if (tables.some(({ isReplaced }) => isReplaced)) {
      // It has to be noticed before it can be mended.
      const lost = versions.filter(({ table, oid }) => oid !== table.oid);
      await expect
        .poll(
          () =>
            Promise.all(
              lost.map(({ name }) =>
                texts(extended.client, `SELECT * FROM ${name}`).then(
                  () => name,
                  () => '',
                ),
              ),
            ),
          { timeout: 20_000 },
        )
        .toEqual(lost.map(() => ''));
      await extended.run('ALTER SOURCE s RESYNC');
      for (const table of tables) table.isReplaced = false;
      for (const version of versions) version.oid = version.table.oid;
    }
    for (const end = performance.now() + 20_000; performance.now() < end; await new Promise((resolve) => setTimeout(resolve, 30))) {
      wrong = [];
      for (const version of versions) wrong.push(...[await problem(version)].filter((one) => one !== null));
      if (wrong.length === 0) return [];
    }
    return wrong;
  }
});
