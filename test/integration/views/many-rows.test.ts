/**
 * Live views under transactions of many rows. Those that are sums over one relation take the rows from the statement that writes them, with no
 * delta table in between; a view that cannot makes its relation's changes be captured, and both give what the query gives.
 */
import fc from 'fast-check';
import type pg from 'pg';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { type ExtendedClient, startEngine, type TestEngine, texts } from '../../support/engine.ts';
import { type OriginPair, startOriginPair } from '../../support/origin-pair.ts';
import type { PostgresMajor } from '../../support/postgres.ts';

let pair: OriginPair;
let admin: pg.Client;
let extended: ExtendedClient;
let engine: TestEngine;
let marks = 0;

/** More than an epoch writes by arrays. */
const many = 2500;

/** What a transaction of the origin may do, to a table with a key (k) or one without (b). */
const writes = (from: number, rows: number, to: number): Record<string, string> => ({
  insert: `INSERT INTO k SELECT n, n % 7, n % 100, n / 8.0 FROM generate_series(${from}, ${from + rows}) n ON CONFLICT DO NOTHING`,
  update: `UPDATE k SET a = a + 1, c = -c WHERE id BETWEEN ${from} AND ${from + rows}`,
  regroup: `UPDATE k SET g = ${to}, a = NULLIF(a, 5) WHERE id BETWEEN ${from} AND ${from + rows}`,
  rekey: `UPDATE k SET id = id + 100000 WHERE id BETWEEN ${from} AND ${from + rows} AND NOT EXISTS (SELECT FROM k o WHERE o.id = k.id + 100000)`,
  delete: `DELETE FROM k WHERE id BETWEEN ${from} AND ${from + rows}`,
  empty: 'TRUNCATE k',
  again: `DELETE FROM k WHERE g = ${to}; INSERT INTO k SELECT n, ${to}, 1, 2 FROM generate_series(${from}, ${from + rows}) n ON CONFLICT (id) DO UPDATE SET a = 7`,
  bag: `INSERT INTO b SELECT n % 5, n % 3 FROM generate_series(1, ${rows}) n`,
  unbag: `DELETE FROM b WHERE g = ${to % 5}`,
  rebag: `UPDATE b SET a = a + 1 WHERE g <> ${to % 5}`,
});
const kinds = Object.keys(writes(0, 0, 0));

const sums = (table: string): Record<string, string> => ({
  grouped: `SELECT g, count(*) AS n, sum(a) AS total, avg(a) AS mean FROM ${table} GROUP BY g`,
  filtered: `SELECT a % 3 AS r, count(*) FILTER (WHERE g > 2) AS n, sum(g) AS total FROM ${table} WHERE a IS NOT NULL GROUP BY 1`,
  extremes: `SELECT g, min(a) AS least, max(a) AS most FROM ${table} GROUP BY g`,
  whole: `SELECT count(*) AS n, avg(g) AS mean, sum(a) AS total FROM ${table}`,
});

/** Notes from now on how many rows are captured of the table with a key; answers how many. */
async function noteCaptured(): Promise<() => Promise<number>> {
  await extended.client.query(`DROP TABLE IF EXISTS noted; CREATE TABLE noted (n bigint);
    CREATE OR REPLACE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO public.noted SELECT count(*) FROM rows; RETURN NULL; END';
    DO $$DECLARE delta text := (SELECT 'millrace_data.d' || max(id) FROM millrace.storage WHERE origin_name = 'k'); BEGIN
      EXECUTE format('CREATE OR REPLACE TRIGGER note AFTER INSERT ON %s REFERENCING NEW TABLE AS rows FOR EACH STATEMENT EXECUTE FUNCTION note()', delta);
      EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER note', delta);
    END$$`);
  return async () => Number((await texts(extended.client, 'SELECT coalesce(sum(n), 0) FROM noted'))[0]?.[0]);
}

/** Runs one transaction at the origin and waits until it is there. */
async function transact(...statements: readonly string[]): Promise<void> {
  marks += 1;
  await admin.query(['BEGIN', ...statements, `UPDATE mark SET n = ${marks}`, 'COMMIT'].join(';'));
  await expect.poll(() => texts(extended.client, 'SELECT n FROM v.mark'), { timeout: 30_000, interval: 5 }).toEqual([[String(marks)]]);
}

async function differences(views: Record<string, string>): Promise<string[]> {
  const wrong: string[] = [];
  for (const [name, query] of Object.entries(views)) {
    const found = await texts(extended.client, `(TABLE v.${name} EXCEPT ALL (${query})) UNION ALL ((${query}) EXCEPT ALL TABLE v.${name})`);
    if (found.length > 0) wrong.push(`${name}: ${JSON.stringify(found)}`);
  }
  return wrong;
}

async function show(views: Record<string, string>): Promise<void> {
  await extended.run(
    Object.entries(views)
      .map(([name, query]) => `CREATE MATERIALIZED VIEW v.${name} AS ${query}`)
      .join(';'),
  );
  for (const name of Object.keys(views)) {
    await expect
      .poll(() =>
        texts(extended.client, `SELECT FROM v.${name}`).then(
          () => '',
          (error: Error) => error.message,
        ),
      )
      .toBe('');
  }
}

describe.each<PostgresMajor>([15, 18])('PostgreSQL %i', (version) => {
  beforeAll(async () => {
    pair = await startOriginPair('CREATE PUBLICATION p FOR ALL TABLES', 'postgres', version);
    ({ admin, extended } = pair);
    engine = startEngine(pair.upstream.address);
    await admin.query(`CREATE TABLE k (id bigint PRIMARY KEY, g integer, a integer, c numeric, note text); CREATE TABLE b (g integer, a integer);
      ALTER TABLE b REPLICA IDENTITY FULL; CREATE TABLE mark (n integer); ALTER TABLE mark REPLICA IDENTITY FULL; INSERT INTO mark VALUES (0)`);
    await extended.run("CREATE SOURCE s FROM POSTGRES CONNECTION c (PUBLICATION 'p')");
    marks = 0;
  }, 120_000);
  afterAll(() => pair?.stop(engine));

  beforeEach(async () => {
    await extended.run('DROP SCHEMA IF EXISTS v CASCADE; CREATE SCHEMA v');
    await admin.query('TRUNCATE k, b');
    for (const table of ['k', 'b', 'mark']) await extended.run(`CREATE TABLE v.${table} FROM SOURCE s (REFERENCE ${table})`);
    await transact();
  });

  test('sums need no delta, also below other views', async () => {
    const over = { over: 'SELECT n % 2 AS odd, count(*) AS groups, sum(total) AS total FROM v.grouped GROUP BY 1' };
    const { grouped = '', filtered = '' } = sums('v.k');
    const views = { grouped, filtered, ...over };
    await show(views);
    const captured = await noteCaptured();
    const { insert = '', update = '', regroup = '', delete: remove = '' } = writes(1, many, 3);
    for (const transaction of [[insert], [update], [regroup, update], [remove, insert], [remove], [insert]]) {
      await transact(...transaction);
      expect(await differences(views)).toEqual([]);
    }
    expect(await captured()).toBe(0);
    await transact('UPDATE k SET a = 0 WHERE id = 2');
    expect(await captured()).toBe(2);
  });

  test('a view with many groups has its changes captured: none of them is to be written by every statement', async () => {
    const views = { wide: 'SELECT id / 2 AS pair, count(*) AS n FROM v.k GROUP BY 1' };
    await show(views);
    const captured = await noteCaptured();
    await transact(writes(1, 40_000, 0)['insert'] ?? '');
    expect(await differences(views)).toEqual([]);
    await transact(writes(1, many, 0)['delete'] ?? '');
    expect(await differences(views)).toEqual([]);
    // The view was small before the first.
    expect(await captured()).toBe(many + 1);
  });

  test('few rows before many, in one epoch: what came and went leaves nothing', async () => {
    const { extremes: _, ...views } = sums('v.k');
    await show(views);
    await transact(
      `INSERT INTO k SELECT n, 51, 1, 1 FROM generate_series(1, ${many}) n`,
      "INSERT INTO k SELECT -2, 51, 1, 1, string_agg(md5(n::text), '') FROM generate_series(1, 3000) n",
    );
    // Of group 50 the row comes among few: a key that changes without the long value beside it is a statement of its own. It goes among many.
    await transact(
      'INSERT INTO k VALUES (-1, 50, 1, 1)',
      'UPDATE k SET id = -3 WHERE id = -2',
      'DELETE FROM k WHERE id BETWEEN -1 AND 2000',
    );
    expect(await differences(views)).toEqual([]);
    expect(await texts(extended.client, 'SELECT g, n FROM v.grouped')).toEqual([['51', String(many - 2000 + 1)]]);
  });

  test('many rows, and then a wider type of a column, in one transaction', async () => {
    const { grouped = '', filtered = '' } = sums('v.k');
    const views = { grouped, filtered, over: 'SELECT sum(total) AS total, count(*) AS n FROM v.grouped' };
    await show(views);
    // A view whose own types change is filled anew.
    const wrong = (): Promise<string[]> => differences(views).catch((error: Error) => [error.message]);
    const { insert = '', update = '' } = writes(1, many, 3);
    await transact(insert, 'ALTER TABLE k ALTER a TYPE bigint', update, 'UPDATE k SET a = 5000000000 WHERE id = 7');
    await expect.poll(wrong, { timeout: 10_000 }).toEqual([]);
    await transact('DELETE FROM k WHERE id < 2000', 'ALTER TABLE k ALTER g TYPE bigint', insert);
    await expect.poll(wrong, { timeout: 10_000 }).toEqual([]);
    expect(await texts(extended.client, 'SELECT pg_typeof(a), pg_typeof(g) FROM v.k LIMIT 1')).toEqual([['bigint', 'bigint']]);
  });

  test('a view that cannot take the rows is in error, its table and its siblings go on', async () => {
    const { grouped = '', whole = '' } = sums('v.k');
    await show({ grouped, whole, inverse: 'SELECT sum(100 / a) AS total FROM v.k' });
    await transact(`INSERT INTO k SELECT n, n % 7, 1 + n % 9, 1 FROM generate_series(1, ${many}) n`);
    expect(await differences({ grouped, whole, inverse: 'SELECT sum(100 / a) AS total FROM v.k' })).toEqual([]);
    await transact('UPDATE k SET a = 0 WHERE id > 10');
    expect(await differences({ grouped, whole })).toEqual([]);
    await expect(extended.client.query('TABLE v.inverse')).rejects.toThrow('division by zero');
    await transact('UPDATE k SET a = 2');
    expect(await differences({ grouped, whole })).toEqual([]);
  });

  test('NaN comes and goes', async () => {
    const views = { odd: 'SELECT g, sum(c) AS total, avg(c) AS mean FROM v.k GROUP BY g' };
    await show(views);
    for (const c of ['n / 8.0', "'NaN'::numeric", "CASE WHEN n % 2 = 0 THEN 'NaN'::numeric ELSE 1 END", '1', "'infinity'::numeric", '2']) {
      await transact('DELETE FROM k', `INSERT INTO k SELECT n, n % 4, 1, ${c} FROM generate_series(1, ${many}) n`);
      expect(await differences(views)).toEqual([]);
    }
  });

  test('whatever a transaction does, in whatever order, every view is its query', async () => {
    const { grouped = '', filtered = '', extremes = '', whole = '' } = sums('v.k');
    const bag = Object.fromEntries(Object.entries(sums('v.b')).map(([name, query]) => [`${name}_b`, query]));
    const { grouped_b = '', filtered_b = '', whole_b = '' } = bag;
    const views = {
      grouped,
      filtered,
      whole,
      grouped_b,
      filtered_b,
      whole_b,
      over: 'SELECT max(total) AS most, count(*) AS n FROM v.grouped',
    };
    await show(views);
    const statement = fc
      .tuple(fc.constantFrom(...kinds), fc.integer({ min: 1, max: 6000 }), fc.constantFrom(3, many), fc.integer({ min: 0, max: 8 }))
      .map(([kind, from, rows, to]) => writes(from, rows, to)[kind] ?? '');
    const transactions = fc.array(fc.array(statement, { minLength: 1, maxLength: 5 }), { minLength: 4, maxLength: 8 });
    await fc.assert(
      fc.asyncProperty(transactions, async (all) => {
        for (const transaction of all) {
          await transact(...transaction);
          expect(await differences(views)).toEqual([]);
        }
        // One view more, which reads all of the table: now everything is captured.
        await show({ extremes, rows: 'SELECT * FROM v.k WHERE a > 50' });
        await transact(...all.flat());
        expect(await differences({ ...views, extremes })).toEqual([]);
        await extended.run('DROP MATERIALIZED VIEW v.extremes; DROP MATERIALIZED VIEW v.rows');
      }),
      { numRuns: 8, endOnFailure: true },
    );
  }, 240_000);
});
