/** A version that needs columns which the storage of its table does not have: only they are copied, and nothing that is there notices. */
import pg from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type ExtendedClient, startEngine, type TestEngine, texts } from '../../support/engine.ts';
import { type OriginPair, startOriginPair } from '../../support/origin-pair.ts';
import type { TestPostgres } from '../../support/postgres.ts';

let pair: OriginPair;
let upstream: TestPostgres;
let admin: pg.Client;
let extended: ExtendedClient;
let engine: TestEngine;

beforeAll(async () => {
  pair = await startOriginPair('CREATE PUBLICATION p FOR ALL TABLES');
  ({ upstream, admin, extended } = pair);
  engine = startEngine(upstream.address, { sessions: 2, chunkBytes: 256 * 1024 });
  await extended.run("CREATE SOURCE s FROM POSTGRES CONNECTION c (PUBLICATION 'p'); CREATE SCHEMA v1; CREATE SCHEMA v2; CREATE SCHEMA v3");
}, 120_000);

afterAll(async () => {
  await pair?.stop(engine);
});

const rows = (sql: string, client: pg.Client = extended.client): Promise<string[]> =>
  texts(client, sql).then((found) => found.map((row) => row.join('|')));
const shows = (sql: string, wanted: readonly string[]): Promise<void> =>
  expect.poll(() => rows(sql).catch((error: Error) => [error.message]), { timeout: 30_000 }).toEqual(wanted);
const shared = (table: string): string => `SELECT DISTINCT storage_id FROM millrace.relations WHERE origin_name = '${table}'`;
const alike = async (table: string, columns: string): Promise<void> => {
  const digest = (of: string): string => `SELECT count(*), sum(hashtextextended(ROW(${columns})::text, 0)) FROM ${of}`;
  await shows(digest(table), await rows(digest(table.replace(/^v\d\./, 'public.')), admin));
};
const stateOf = async (schema: string, table: string): Promise<string | undefined> =>
  (await rows(`SELECT state FROM millrace.relations WHERE schema = '${schema}' AND name = '${table}'`))[0];
const progress = (schema: string): string =>
  `SELECT state, rows_copied, bytes_copied FROM millrace.snapshot_progress WHERE schema = '${schema}'`;
/** Makes a version without waiting for it. */
const begin = (statement: string): Promise<unknown> => extended.run(`SET millrace.wait = off; ${statement}; SET millrace.wait = on`);

test('only the new column is read, the storage stays the file it was, and what shows the table sees nothing of it', async () => {
  await admin.query(`CREATE TABLE t (id integer PRIMARY KEY, n integer NOT NULL, filler text);
    INSERT INTO t SELECT g, g % 10, repeat(md5(g::text), 10) FROM generate_series(1, 12000) g; ANALYZE t`);
  await extended.run(`CREATE TABLE v1.t FROM SOURCE s (REFERENCE t); CREATE MATERIALIZED VIEW v1.sums AS SELECT n, count(*) AS c FROM v1.t GROUP BY n;
    CREATE DURABLE SUBSCRIPTION d FOR v1.t`);
  const [storage = ''] = await rows(shared('t'));
  const file = `SELECT pg_relation_filenode('millrace_data.s${storage}')`;
  const before = await rows(file);
  await admin.query(
    `ALTER TABLE t ADD COLUMN later integer, ADD COLUMN given text DEFAULT $$a "given" one$$; UPDATE t SET later = id * 2, given = CASE WHEN id > 6 THEN given END WHERE id % 3 = 0`,
  );
  const [sums] = await rows("SELECT id FROM millrace.relations WHERE name = 'sums'");
  const [table] = await rows("SELECT id FROM millrace.relations WHERE name = 't'");
  await shows(`SELECT count(*) FROM millrace_data.o${table}`, ['8000']);
  await extended.client.query(`CREATE TEMPORARY TABLE was AS SELECT c1, xmin::text AS x FROM millrace_data.s${storage}`);
  const seen = `SELECT (SELECT count(*) FROM millrace_data.o${table}), (SELECT sum(xmin::text::bigint) FROM millrace_data.s${sums})`;
  const seenBefore = await rows(seen);
  // Somebody who has read the table keeps columns from being added to it, and nothing else.
  const reader = new pg.Client({ connectionString: upstream.url });
  await reader.connect();
  await reader.query('BEGIN; SELECT FROM v1.t LIMIT 1');
  await begin('CREATE TABLE v2.t FROM SOURCE s (REFERENCE t)');
  await shows(`SELECT state FROM millrace.snapshot_progress WHERE schema = 'v2'`, ['copied']);
  const [[, copied = '', bytes = ''] = []] = (await rows(progress('v2'))).map((row) => row.split('|'));
  expect(Number(copied)).toBe(12_000);
  // A key and the two columns, where a row of the table has 330 bytes more.
  expect(Number(bytes)).toBeLessThan(12_000 * 48);
  await admin.query('UPDATE t SET later = 1 WHERE id = 3');
  await reader.query('COMMIT');
  await reader.end();
  while ((await stateOf('v2', 't')) !== 'ready') {
    expect(await rows('SELECT count(*), sum(n), sum(length(filler)) FROM v1.t')).toEqual(['12000|54000|3840000']);
  }
  await alike('v2.t', 'id, n, filler, later, given');
  expect(await rows(shared('t'))).toEqual([storage]);
  expect(await rows(file)).toEqual(before);
  // Those that have other values than most.
  expect(await rows(`SELECT count(*) FROM millrace_data.s${storage} s JOIN pg_temp.was w USING (c1) WHERE s.xmin::text <> w.x`)).toEqual([
    '4000',
  ]);
  // The one change that was made meanwhile, as an old and a new row.
  const [[outboxed = '', summed = ''] = []] = seenBefore.map((row) => row.split('|'));
  expect(await rows(seen)).toEqual([`${Number(outboxed) + 2}|${summed}`]);
  await admin.query('UPDATE t SET later = -1, n = 5 WHERE id = 1; DELETE FROM t WHERE id = 2; INSERT INTO t VALUES (20000, 1, NULL, 7)');
  await alike('v2.t', 'id, n, filler, later, given');
  await shows('SELECT c FROM v1.sums WHERE n = 2', ['1199']);
  // What the next version needs is there.
  await extended.run('CREATE TABLE v3.t FROM SOURCE s (REFERENCE t) WITH (EXCLUDE COLUMNS (filler))');
  expect(await rows(shared('t'))).toEqual([storage]);
  await shows("SELECT count(*) FROM millrace.storage WHERE origin_name = 't'", ['1']);
  await extended.run('DROP DURABLE SUBSCRIPTION d; DROP TABLE v1.t CASCADE; DROP TABLE v2.t; DROP TABLE v3.t');
}, 60_000);

test('two versions that want further columns at the same time, with views over them; one is dropped on the way', async () => {
  await admin.query(`CREATE TABLE u (a text, b integer, n integer, PRIMARY KEY (b, a));
    INSERT INTO u SELECT 'k' || g, g % 7, g FROM generate_series(1, 9000) g; ANALYZE u`);
  await extended.run('CREATE TABLE v1.u FROM SOURCE s (REFERENCE u)');
  await admin.query(
    'ALTER TABLE u ADD COLUMN x jsonb DEFAULT \'{"x": 1}\', ADD COLUMN y text COLLATE "C"; UPDATE u SET y = a WHERE n % 2 = 0',
  );
  const reader = new pg.Client({ connectionString: upstream.url });
  await reader.connect();
  await reader.query('BEGIN; SELECT FROM v1.u LIMIT 1');
  await begin(`CREATE TABLE v2.u FROM SOURCE s (REFERENCE u) WITH (EXCLUDE COLUMNS (y)); CREATE TABLE v2.same FROM SOURCE s (REFERENCE u) WITH (EXCLUDE COLUMNS (n, y));
    CREATE TABLE v3.u FROM SOURCE s (REFERENCE u); CREATE TABLE v3.text FROM SOURCE s (REFERENCE u) WITH (TEXT COLUMNS (x));
    CREATE MATERIALIZED VIEW v3.ys AS SELECT b, count(y) AS ys, sum(n) AS ns FROM v3.u GROUP BY b`);
  await shows(
    "SELECT count(DISTINCT storage_id), count(DISTINCT storage_id) FILTER (WHERE schema = 'v2') FROM millrace.relations WHERE origin_name = 'u'",
    ['4|1'],
  );
  await shows("SELECT state FROM millrace.relations WHERE schema = 'v3' AND name = 'text'", ['ready']);
  await expect(extended.client.query('SELECT FROM v3.u')).rejects.toThrow('relation v3.u is not ready');
  await extended.run('DROP TABLE v2.u');
  await reader.query('COMMIT');
  await reader.end();
  for (const name of ['v3.u', 'v3.ys', 'v2.same']) await shows(`SELECT count(*) > 0 FROM ${name}`, ['t']);
  await admin.query("UPDATE u SET y = 'late', b = b + 10 WHERE n < 100; UPDATE u SET x = NULL WHERE n < 50");
  await alike('v3.u', 'a COLLATE "C", b, n, x, y');
  await shows('SELECT b, ys, ns FROM v3.ys ORDER BY b', await rows('SELECT b, count(y), sum(n) FROM u GROUP BY b ORDER BY b', admin));
  await shows("SELECT count(DISTINCT storage_id) FROM millrace.relations WHERE origin_name = 'u'", ['2']);
  await shows("SELECT count(*) FROM millrace.storage WHERE origin_name = 'u'", ['2']);
  await extended.run('DROP TABLE v1.u; DROP TABLE v2.same; DROP TABLE v3.u CASCADE; DROP TABLE v3.text');
}, 60_000);

test('dropped while its rows get their values: what is half there is made good for the version that wants it next', async () => {
  await admin.query('CREATE TABLE w (id integer PRIMARY KEY); INSERT INTO w SELECT generate_series(1, 100000); ANALYZE w');
  await extended.run('CREATE TABLE v1.w FROM SOURCE s (REFERENCE w)');
  await admin.query('ALTER TABLE w ADD COLUMN late text; UPDATE w SET late = md5(id::text)');
  await shows('SELECT count(*) FROM v1.w', ['100000']);
  await begin('CREATE TABLE v2.w FROM SOURCE s (REFERENCE w)');
  await expect
    .poll(() => rows(`${progress('v2')} AND name = 'w'`), { timeout: 30_000, interval: 5 })
    .toEqual([expect.stringMatching(/^merging/)]);
  await extended.run('DROP TABLE v2.w');
  await admin.query("UPDATE w SET late = 'other' WHERE id % 5000 = 0");
  await shows("SELECT count(*) FROM millrace.storage WHERE origin_name = 'w'", ['1']);
  await extended.run('CREATE TABLE v2.w FROM SOURCE s (REFERENCE w)');
  await alike('v2.w', 'id, late');
  await extended.run('DROP TABLE v1.w; DROP TABLE v2.w');
}, 60_000);

test('what becomes of the columns meanwhile: wider types are followed, a column dropped ends the version, a resynchronisation begins it again', async () => {
  await admin.query(
    'CREATE TABLE z (id integer PRIMARY KEY, n integer); INSERT INTO z SELECT g, g FROM generate_series(1, 5000) g; ANALYZE z',
  );
  await extended.run('CREATE TABLE v1.z FROM SOURCE s (REFERENCE z)');
  await admin.query('ALTER TABLE z ADD COLUMN m integer DEFAULT 7, ADD COLUMN gone integer');
  const reader = new pg.Client({ connectionString: upstream.url });
  await reader.connect();
  await reader.query('BEGIN; SELECT FROM v1.z LIMIT 1');
  await begin('CREATE TABLE v2.z FROM SOURCE s (REFERENCE z) WITH (EXCLUDE COLUMNS (gone)); CREATE TABLE v3.z FROM SOURCE s (REFERENCE z)');
  await shows("SELECT DISTINCT state FROM millrace.snapshot_progress WHERE name = 'z' AND schema <> 'v1'", ['copied']);
  await admin.query('ALTER TABLE z DROP COLUMN gone');
  await shows('SELECT * FROM v3.z', ['source table schema has been altered: column "gone" of public.z was dropped']);
  await reader.query('COMMIT');
  await admin.query('ALTER TABLE z ALTER n TYPE bigint, ALTER m TYPE bigint; UPDATE z SET n = 5000000000, m = 6000000000 WHERE id = 5');
  await admin.query('ALTER TABLE z RENAME COLUMN m TO em');
  await shows('SELECT n, m FROM v2.z WHERE id BETWEEN 5 AND 6 ORDER BY id', ['5000000000|6000000000', '6|7']);
  await shows('SELECT n FROM v1.z WHERE id = 5', ['5000000000']);
  await admin.query('ALTER TABLE z ADD COLUMN more integer DEFAULT 1');
  // Of the storage alone: the version itself has to be closed.
  const [storage] = await rows("SELECT storage_id FROM millrace.relations WHERE schema = 'v1' AND name = 'z'");
  await reader.query(`BEGIN; SELECT FROM millrace_data.s${storage} LIMIT 1`);
  await begin('DROP TABLE v3.z; CREATE TABLE v3.z FROM SOURCE s (REFERENCE z)');
  await shows("SELECT state FROM millrace.snapshot_progress WHERE name = 'z' AND schema = 'v3'", ['copied']);
  // What the storage has of it is no good any more: the version that waits for more of its columns says so, too.
  await admin.query('ALTER TABLE z ALTER n TYPE bigint USING n + 1');
  const rewritten = 'source table schema has been altered: column "n" of public.z was written anew';
  for (const version of ['v1.z', 'v2.z', 'v3.z']) await shows(`SELECT id FROM ${version} LIMIT 1`, [rewritten]);
  await reader.query('COMMIT');
  await reader.end();
  await extended.run('ALTER SOURCE s RESYNC');
  const wanted = await rows('SELECT count(*), sum(n), sum(em), sum(more) FROM z', admin);
  await shows('SELECT count(*), sum(n), sum(em), sum(more) FROM v3.z', wanted);
  await shows("SELECT count(DISTINCT storage_id) FROM millrace.relations WHERE origin_name = 'z'", ['1']);
}, 60_000);
