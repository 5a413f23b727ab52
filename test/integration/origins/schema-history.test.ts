/** Versions of origin tables, in the order of the origin's WAL, and what they mean for the tables made from them. */
import type pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type ExtendedClient, startEngine, type TestEngine, texts } from '../../support/engine.ts';
import { type OriginPair, startOriginPair } from '../../support/origin-pair.ts';
import type { TestPostgres } from '../../support/postgres.ts';

let pair: OriginPair;
let upstream: TestPostgres;
let admin: pg.Client;
let extended: ExtendedClient;
let engine: TestEngine;

/** `role`: as whom Millrace reads; a plain one may not create event triggers. */
const stage = async (role: string): Promise<void> => {
  pair = await startOriginPair(
    `CREATE ROLE reader LOGIN REPLICATION;
    CREATE TABLE t (id integer PRIMARY KEY, a text, b text);
    INSERT INTO t VALUES (1, 'a1', 'b1');
    CREATE TABLE parent (id integer PRIMARY KEY, x integer); CREATE TABLE child () INHERITS (parent); ALTER TABLE child REPLICA IDENTITY FULL;
    GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader;
    ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO reader;
    CREATE PUBLICATION p FOR ALL TABLES`,
    role,
  );
  ({ upstream, admin, extended } = pair);
  engine = startEngine(upstream.address);
  await extended.run("CREATE SOURCE s FROM POSTGRES CONNECTION c (PUBLICATION 'p')");
  await extended.run('CREATE SCHEMA v1; CREATE TABLE v1.t FROM SOURCE s (REFERENCE t)');
};
const clear = async (): Promise<void> => {
  await pair?.stop(engine);
};

const rows = (sql: string): Promise<string[]> => texts(extended.client, sql).then((found) => found.map((row) => row.join('|')));
const shows = (sql: string, wanted: readonly string[]): Promise<void> =>
  expect.poll(() => rows(sql).catch((error: Error) => [error.message]), { timeout: 10_000 }).toEqual(wanted);
const changesOf = (table: string): string =>
  `SELECT array_to_string(changes, '; '), learned, command, session_role FROM millrace.origin_table_versions WHERE table_name IN ('${table}') ORDER BY commit_lsn, ordinal`;

describe('an origin that tells of its DDL', () => {
  beforeAll(() => stage('postgres'), 120_000);
  afterAll(clear);

  test('names swapped around rows of one transaction: each value stays with its column', async () => {
    await admin.query(`BEGIN; INSERT INTO t VALUES (2, 'a2', 'b2');
      ALTER TABLE t RENAME a TO tmp; ALTER TABLE t RENAME b TO a; ALTER TABLE t RENAME tmp TO b;
      INSERT INTO t (id, a, b) VALUES (3, 'b3', 'a3'); COMMIT`);
    await shows('SELECT * FROM v1.t ORDER BY id', ['1|a1|b1', '2|a2|b2', '3|a3|b3']);
    await shows(changesOf('t'), [
      '|start||',
      'RENAME COLUMN a TO tmp|message|ALTER TABLE|postgres',
      'RENAME COLUMN b TO a|message|ALTER TABLE|postgres',
      'RENAME COLUMN tmp TO b|message|ALTER TABLE|postgres',
    ]);
  });

  test('swapped back while nobody listens: the rows are read by the names of their time', async () => {
    await engine.restart();
    await admin.query(`INSERT INTO t (id, a, b) VALUES (4, 'b4', 'a4');
      BEGIN; ALTER TABLE t RENAME a TO tmp; ALTER TABLE t RENAME b TO a; ALTER TABLE t RENAME tmp TO b; COMMIT;
      INSERT INTO t (id, a, b) VALUES (5, 'a5', 'b5')`);
    await shows('SELECT * FROM v1.t WHERE id > 3 ORDER BY id', ['4|a4|b4', '5|a5|b5']);
  });

  test('a change with no write after it is known; one that is rolled back, or hidden by the setting, is not told', async () => {
    const before = (await rows(changesOf('t'))).length;
    await admin.query('BEGIN; ALTER TABLE t ADD COLUMN never integer; ROLLBACK');
    await admin.query(
      'SET millrace.skip_ddl = on; ALTER TABLE t ALTER b SET DEFAULT 1; RESET millrace.skip_ddl; ALTER TABLE t ADD COLUMN c integer NOT NULL DEFAULT 7, DROP COLUMN b',
    );
    await expect
      .poll(async () => (await rows(changesOf('t'))).slice(before), { timeout: 10_000 })
      .toEqual(['DROP COLUMN b; ADD COLUMN c integer NOT NULL DEFAULT 7|message|ALTER TABLE|postgres']);
    await shows('SELECT * FROM v1.t', ['source table schema has been altered: column "b" of public.t was dropped']);
    expect(
      await rows(
        "SELECT version, is_current, primary_key FROM millrace.origin_table_versions WHERE table_name = 't' ORDER BY version DESC LIMIT 1",
      ),
    ).toEqual([`${before + 1}|t|[1]`]);
  });

  test('children change with their parent; schemas are renamed; a type takes its columns along; tables come and go', async () => {
    await admin.query(`CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE SCHEMA old; CREATE TABLE old.felt (id integer PRIMARY KEY, m mood);
      ALTER TABLE parent ADD COLUMN y integer; ALTER SCHEMA old RENAME TO new; DROP TYPE mood CASCADE; DROP TABLE new.felt`);
    await shows(changesOf("parent', 'child"), [
      '|start||',
      '|start||',
      'ADD COLUMN y integer|message|ALTER TABLE|postgres',
      'ADD COLUMN y integer|message|ALTER TABLE|postgres',
    ]);
    await shows(changesOf('felt'), [
      '|message|CREATE TABLE|postgres',
      'SET SCHEMA new|message|ALTER SCHEMA|postgres',
      'DROP COLUMN m|message|DROP TYPE|postgres',
      'DROP TABLE|message|DROP TABLE|postgres',
    ]);
  });

  test('a failure of the telling does not fail the statement', async () => {
    await admin.query('CREATE OR REPLACE FUNCTION pg_temp.nothing() RETURNS void LANGUAGE sql AS $$$$');
    await admin.query('BEGIN; ALTER SCHEMA millrace_origin RENAME TO elsewhere; ALTER TABLE parent ADD COLUMN z integer; ROLLBACK');
    await admin.query('ALTER TABLE parent ADD COLUMN z integer');
    await shows(`${changesOf('parent')} OFFSET 2`, ['ADD COLUMN z integer|message|ALTER TABLE|postgres']);
  });

  test('rows without a key are found by what is left, once the origin has dropped a column that another version of the table shows', async () => {
    await admin.query(
      "CREATE TABLE bag (a integer, b text, c integer); ALTER TABLE bag REPLICA IDENTITY FULL; INSERT INTO bag SELECT g % 4, 'b' || g, g % 2 FROM generate_series(1, 12) g",
    );
    await extended.run(`CREATE TABLE v1.bag FROM SOURCE s (REFERENCE bag); CREATE TABLE v1.less FROM SOURCE s (REFERENCE bag) WITH (EXCLUDE COLUMNS (b));
      CREATE MATERIALIZED VIEW v1.sums AS SELECT a, count(*) AS n, sum(c) AS s FROM v1.less GROUP BY a`);
    const same = async (): Promise<void> => {
      await shows(
        'SELECT a, c FROM v1.less ORDER BY a, c',
        (await texts(admin, 'SELECT a, c FROM bag ORDER BY a, c')).map((row) => row.join('|')),
      );
      await shows(
        'SELECT * FROM v1.sums ORDER BY a',
        (await texts(admin, 'SELECT a, count(*), sum(c) FROM bag GROUP BY a ORDER BY a')).map((row) => row.join('|')),
      );
    };
    await admin.query(`BEGIN; DELETE FROM bag WHERE b = 'b1'; ALTER TABLE bag DROP COLUMN b; DELETE FROM bag WHERE ctid IN (SELECT ctid FROM bag WHERE a = 2 LIMIT 1);
      UPDATE bag SET a = 30 WHERE a = 3; INSERT INTO bag VALUES (0, 0), (7, 7); COMMIT`);
    await same();
    await engine.restart();
    await admin.query(
      'DELETE FROM bag WHERE a = 0; INSERT INTO bag SELECT 5, g FROM generate_series(1, 2000) g; UPDATE bag SET c = 9 WHERE a = 30',
    );
    await admin.query('DELETE FROM bag WHERE a = 5 AND c > 3');
    await same();
    await extended.run('ALTER SOURCE s RESYNC');
    await admin.query('DELETE FROM bag WHERE a = 5');
    await same();
    await extended.run('DROP TABLE v1.bag CASCADE; DROP TABLE v1.less CASCADE');
  });

  test('an enum gets the values that it gets at the origin, by the stream, by a copy, and in arrays', async () => {
    await admin.query(
      `CREATE TYPE tone AS ENUM ('low', 'high'); CREATE TABLE song (id integer PRIMARY KEY, t tone, ts tone[]); INSERT INTO song VALUES (1, 'low', '{high}')`,
    );
    await extended.client.query("CREATE TYPE public.tone AS ENUM ('low', 'high')");
    await extended.run('CREATE TABLE v1.song FROM SOURCE s (REFERENCE song)');
    await admin.query("ALTER TYPE tone ADD VALUE 'mid' BEFORE 'high'");
    await admin.query("ALTER TYPE tone ADD VALUE 'it''s low' BEFORE 'low'");
    await admin.query(`INSERT INTO song VALUES (2, 'mid', '{}'), (3, 'high', '{"it''s low",mid}')`);
    await shows('SELECT * FROM v1.song ORDER BY t, id', ['1|low|{high}', '2|mid|{}', `3|high|{"it's low",mid}`]);
    expect(await rows('SELECT unnest(enum_range(NULL::public.tone))')).toEqual(["it's low", 'low', 'mid', 'high']);
    await admin.query("ALTER TYPE tone ADD VALUE 'loud'");
    await admin.query("CREATE TABLE album (id integer PRIMARY KEY, t tone); INSERT INTO album VALUES (1, 'loud')");
    await extended.run('CREATE TABLE v1.album FROM SOURCE s (REFERENCE album)');
    await shows('SELECT * FROM v1.album', ['1|loud']);
  });

  test('a value of an enum that is renamed at the origin is renamed here, in the order of the rows; values change their names round in a circle', async () => {
    await admin.query(`CREATE TYPE pace AS ENUM ('slow', 'fast', 'idle');
      CREATE TABLE walk (id integer PRIMARY KEY, p pace, ps pace[]); CREATE TABLE steps (p pace, n integer); ALTER TABLE steps REPLICA IDENTITY FULL;
      INSERT INTO walk VALUES (1, 'slow', '{slow,fast}'), (2, 'fast', NULL); INSERT INTO steps VALUES ('slow', 1), ('slow', 1), ('fast', 2)`);
    await extended.client.query("CREATE TYPE public.pace AS ENUM ('slow', 'fast', 'idle')");
    await extended.run(`CREATE TABLE v1.walk FROM SOURCE s (REFERENCE walk); CREATE TABLE v1.steps FROM SOURCE s (REFERENCE steps);
      CREATE TABLE v1.walk_text FROM SOURCE s (REFERENCE walk) WITH (TEXT COLUMNS (p), EXCLUDE COLUMNS (ps));
      CREATE MATERIALIZED VIEW v1.slow AS SELECT n, p::text AS p FROM v1.steps WHERE p = 'slow'`);
    const same = async (): Promise<void> => {
      for (const [there, here] of [
        ['SELECT * FROM walk ORDER BY id', 'SELECT * FROM v1.walk ORDER BY id'],
        ['SELECT id, p FROM walk ORDER BY id', 'SELECT * FROM v1.walk_text ORDER BY id'],
        ['SELECT p::text, n FROM steps ORDER BY 1, 2', 'SELECT p::text, n FROM v1.steps ORDER BY 1, 2'],
        ["SELECT n, p FROM steps WHERE p = 'SLOW' ORDER BY 1", 'SELECT * FROM v1.slow ORDER BY 1'],
      ] as const)
        await shows(
          here,
          (await texts(admin, there)).map((row) => row.join('|')),
        );
    };
    await admin.query(
      `BEGIN; INSERT INTO steps VALUES ('slow', 3); ALTER TYPE pace RENAME VALUE 'slow' TO 'SLOW'; INSERT INTO steps VALUES ('SLOW', 4); INSERT INTO walk VALUES (3, 'SLOW', '{SLOW}'); COMMIT`,
    );
    await same();
    await engine.restart();
    await admin.query(`ALTER TYPE pace RENAME VALUE 'fast' TO 'tmp'; ALTER TYPE pace RENAME VALUE 'idle' TO 'fast'; ALTER TYPE pace RENAME VALUE 'tmp' TO 'idle';
      INSERT INTO walk VALUES (4, 'fast', '{idle}'); DELETE FROM steps WHERE p = 'idle'; DELETE FROM steps WHERE ctid IN (SELECT ctid FROM steps LIMIT 1)`);
    await same();
    expect(await rows('SELECT unnest(enum_range(NULL::public.pace))')).toEqual(['SLOW', 'idle', 'fast']);
    await admin.query(
      'CREATE SCHEMA moved; ALTER TYPE pace SET SCHEMA moved; ALTER TYPE moved.pace RENAME TO tempo; INSERT INTO walk VALUES (5, NULL, NULL)',
    );
    await same();
    await shows(
      `SELECT changes[1] FROM millrace.origin_table_versions WHERE table_name = 'steps' AND command = 'ALTER TYPE' ORDER BY commit_lsn LIMIT 1`,
      ["ALTER TYPE public.pace RENAME VALUE 'slow' TO 'SLOW'"],
    );
  });

  test('DROP SOURCE of the last source takes the event triggers along', async () => {
    await extended.run('DROP SCHEMA v1 CASCADE; DROP SOURCE s');
    await expect
      .poll(async () => (await admin.query("SELECT FROM pg_event_trigger WHERE evtname LIKE 'millrace%'")).rowCount, { timeout: 10_000 })
      .toBe(0);
  });
});

describe('an origin where the role may not create event triggers', () => {
  beforeAll(() => stage('reader'), 120_000);
  afterAll(clear);

  test('changes are learned with the first row after them', async () => {
    await admin.query("ALTER TABLE t ADD COLUMN c integer; INSERT INTO t VALUES (2, 'a2', 'b2', 3)");
    await shows('SELECT * FROM v1.t ORDER BY id', ['1|a1|b1', '2|a2|b2']);
    await shows(changesOf('t'), ['|start||', 'ADD COLUMN c integer|catalog||']);
  });

  test('labels that change round in a circle between two looks', async () => {
    await admin.query(
      `CREATE TYPE pace AS ENUM ('slow', 'fast'); CREATE TABLE walk (p pace); ALTER TABLE walk REPLICA IDENTITY FULL; INSERT INTO walk VALUES ('slow'), ('fast'), ('fast')`,
    );
    await extended.client.query("CREATE TYPE public.pace AS ENUM ('slow', 'fast')");
    await extended.run('CREATE TABLE v1.walk FROM SOURCE s (REFERENCE walk)');
    await admin.query(
      `BEGIN; ALTER TYPE pace RENAME VALUE 'fast' TO 'tmp'; ALTER TYPE pace RENAME VALUE 'slow' TO 'fast'; ALTER TYPE pace RENAME VALUE 'tmp' TO 'slow'; COMMIT`,
    );
    await shows('SELECT * FROM v1.walk ORDER BY 1', ['fast', 'slow', 'slow']);
    await admin.query("DELETE FROM walk WHERE p = 'fast'");
    await shows('SELECT * FROM v1.walk ORDER BY 1', ['slow', 'slow']);
  });

  test('and, with no row, from the catalog', async () => {
    await admin.query('ALTER TABLE t DROP COLUMN a');
    await shows('SELECT * FROM v1.t', ['source table schema has been altered: column "a" of public.t was dropped']);
    await shows(changesOf('t'), ['|start||', 'ADD COLUMN c integer|catalog||', 'DROP COLUMN a|catalog||']);
  });
});
