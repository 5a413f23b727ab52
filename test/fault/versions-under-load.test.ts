/**
 * New versions and views of tables that are being written, with the engine killed while copies and populations run:
 * every version ends up equal to the origin's columns it shows.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type ExtendedClient, startEngine, type TestEngine, texts } from '../support/engine.ts';
import { type OriginPair, startOriginPair } from '../support/origin-pair.ts';
import type { TestPostgres } from '../support/postgres.ts';

const rounds = Number(process.env['MILLRACE_VERSION_ROUNDS'] ?? 4);

let pair: OriginPair;
let origin: TestPostgres;
let admin: pg.Client;
let extended: ExtendedClient;
let engine: TestEngine;

beforeAll(async () => {
  pair = await startOriginPair(`
    CREATE TABLE item (id integer PRIMARY KEY, n integer);
    INSERT INTO item SELECT g, g % 10 FROM generate_series(1, 20000) g;
    CREATE TABLE entry (n integer, label text);
    ALTER TABLE entry REPLICA IDENTITY FULL;
    INSERT INTO entry SELECT g % 50, 'x' || g % 7 FROM generate_series(1, 5000) g;
    CREATE PUBLICATION p FOR ALL TABLES`);
  ({ origin, admin, extended } = pair);
  engine = startEngine(pair.upstream.address);
  await extended.run("CREATE SOURCE s FROM POSTGRES CONNECTION c (PUBLICATION 'p')");
}, 120_000);

afterAll(async () => {
  await pair?.stop(engine);
});

let next = 100_000;

function startWriter(): { stop(): Promise<number> } {
  let going = true;
  let transactions = 0;
  const work = (async () => {
    const client = new pg.Client({ connectionString: origin.url });
    await client.connect();
    while (going) {
      transactions++;
      const pick = transactions % 7;
      await client.query(
        [
          `INSERT INTO item (id, n) VALUES (${next++}, ${transactions % 10})`,
          `UPDATE item SET n = n + 1 WHERE id = ${1 + (transactions % 20000)}`,
          `DELETE FROM item WHERE id = ${next - 50}`,
          `UPDATE item SET id = id + 1000000 WHERE id = ${next - 20}`,
          `INSERT INTO entry (n, label) SELECT ${transactions % 50}, 'x' FROM generate_series(1, 2)`,
          `DELETE FROM entry WHERE ctid IN (SELECT ctid FROM entry WHERE n = ${transactions % 50} LIMIT 1)`,
          `UPDATE entry SET label = label || 'y' WHERE ctid IN (SELECT ctid FROM entry WHERE n = ${transactions % 50} AND length(label) < 5 LIMIT 1)`,
        ][pick] ?? 'SELECT 1',
      );
      // As fast as it goes, a busy machine would be measured: each change of an entry meets dozens of items.
      await sleep(2);
    }
    await client.end();
    return transactions;
  })();
  return {
    stop: () => {
      going = false;
      return work;
    },
  };
}

const sorted = async (client: pg.Client, sql: string): Promise<string[]> => (await texts(client, sql)).map((row) => row.join('|')).sort();

/** Rows that only one of two sorted lists has, a few of them. */
function difference(found: readonly string[], wanted: readonly string[]): string[] {
  const count = new Map<string, number>();
  for (const row of found) count.set(row, (count.get(row) ?? 0) + 1);
  for (const row of wanted) count.set(row, (count.get(row) ?? 0) - 1);
  return [...count].flatMap(([row, n]) => (n === 0 ? [] : [`${n > 0 ? '+' : '-'} ${row}`])).slice(0, 5);
}

async function readable(name: string): Promise<void> {
  await expect
    .poll(
      () =>
        extended.client.query(`SELECT 1 FROM ${name} LIMIT 1`).then(
          () => 'ready',
          (error: Error) => error.message,
        ),
      { timeout: 60_000 },
    )
    .toBe('ready');
}

test('versions and views made while writes go on and the engine dies', async () => {
  await extended.run(
    'CREATE SCHEMA v0; CREATE TABLE v0.item FROM SOURCE s (REFERENCE item); CREATE TABLE v0.entry FROM SOURCE s (REFERENCE entry)',
  );
  await extended.run(
    'CREATE MATERIALIZED VIEW v0.both AS SELECT i.id, e.label FROM v0.item i JOIN v0.entry e ON e.n = i.n WHERE i.id < 300',
  );
  const shown: { schema: string; item: string; entry: string }[] = [{ schema: 'v0', item: 'id, n', entry: 'n, label' }];
  await extended.run('SET millrace.wait = off');
  for (let round = 1; round <= rounds; round++) {
    const writer = startWriter();
    await admin.query(`ALTER TABLE item ADD COLUMN extra${round} integer DEFAULT ${round}`);
    await admin.query(`ALTER TABLE entry ADD COLUMN extra${round} text DEFAULT 'e${round}'`);
    const schema = `v${round}`;
    await extended.run(
      `CREATE SCHEMA ${schema}; CREATE TABLE ${schema}.item FROM SOURCE s (REFERENCE item); CREATE TABLE ${schema}.entry FROM SOURCE s (REFERENCE entry)`,
    );
    await extended.run(
      `CREATE MATERIALIZED VIEW ${schema}.sums AS SELECT n, count(*) AS c, sum(extra${round}) AS x FROM ${schema}.item GROUP BY n`,
    );
    await sleep(37 * round * round);
    await engine.restart();
    for (const name of ['item', 'entry', 'sums']) await readable(`${schema}.${name}`);
    expect(await writer.stop()).toBeGreaterThan(10);
    const extras = Array.from({ length: round }, (_, i) => `extra${i + 1}`).join(', ');
    shown.push({ schema, item: `id, n, ${extras}`, entry: `n, label, ${extras}` });
    for (const version of shown) {
      for (const table of ['item', 'entry'] as const) {
        const wanted = await sorted(admin, `SELECT ${version[table]} FROM ${table}`);
        await expect
          .poll(async () => difference(await sorted(extended.client, `SELECT * FROM ${version.schema}.${table}`), wanted), {
            timeout: 20_000,
            message: `${version.schema}.${table}`,
          })
          .toEqual([]);
      }
    }
    expect(await sorted(extended.client, `SELECT * FROM ${schema}.sums`)).toEqual(
      await sorted(admin, `SELECT n, count(*), sum(extra${round}) FROM item GROUP BY n`),
    );
    expect(await sorted(extended.client, 'SELECT * FROM v0.both')).toEqual(
      await sorted(admin, 'SELECT i.id, e.label FROM item i JOIN entry e ON e.n = i.n WHERE i.id < 300'),
    );
  }
  // One storage per origin table is left: each new version's took the place of the one before.
  await expect
    .poll(async () => (await texts(extended.client, 'SELECT count(*) FROM millrace.storage'))[0]?.[0], { timeout: 15_000 })
    .toBe('2');
}, 240_000);
