/**
 * The guide "Handle upstream schema changes with zero downtime", statement by statement, as a user types it:
 * against another server and against another database of the same server, on every supported PostgreSQL.
 */
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { startMillrace, type TestMillrace } from '../support/millrace.ts';
import { runOnce } from '../support/one-client.ts';
import { havePsql, type PostgresMajor, psql, startPostgres, type TestPostgres } from '../support/postgres.ts';

const majors: readonly PostgresMajor[] = [18, 17, 16, 15];

interface Place {
  readonly name: string;
  readonly major: PostgresMajor;
  readonly origin: 'another server' | 'another database';
}
const places: readonly Place[] = [
  ...majors.map((major) => ({ name: `PostgreSQL ${major}, another server`, major, origin: 'another server' as const })),
  { name: 'PostgreSQL 18, another database of the same server', major: 18, origin: 'another database' },
];

describe.each(places)('the guide on $name', ({ major, origin: where }) => {
  let upstream: TestPostgres;
  let originServer: TestPostgres;
  let millrace: TestMillrace;
  let client: pg.Client;
  let origin: pg.Client;

  beforeAll(async () => {
    upstream = await startPostgres({ version: major, settings: { wal_level: 'logical' } });
    originServer = where === 'another server' ? await startPostgres({ version: major, settings: { wal_level: 'logical' } }) : upstream;
    millrace = await startMillrace({ upstream: upstream.address });
    client = new pg.Client({ connectionString: millrace.url() });
    await client.connect();
    await runOnce(originServer.url, 'CREATE DATABASE shop');
    origin = new pg.Client({ connectionString: originServer.url.replace(/\/[^/]*$/, '/shop') });
    await origin.connect();
  }, 120_000);

  afterAll(async () => {
    await client?.end().catch(() => undefined);
    await origin?.end().catch(() => undefined);
    await millrace?.stop();
    await Promise.all([...new Set([upstream, originServer])].map((server) => server?.stop()));
  });

  const rows = async (sql: string): Promise<unknown[][]> => (await client.query({ text: sql, rowMode: 'array' })).rows;
  const problem = (sql: string): Promise<pg.DatabaseError> =>
    client.query(sql).then(
      () => Promise.reject(new Error(`no error: ${sql}`)),
      (error: pg.DatabaseError) => error,
    );

  test('connect: secret, connection, source, first version, first view', async () => {
    await origin.query('CREATE TABLE T (\n    A INT\n)');
    await origin.query('INSERT INTO T (A) VALUES\n    (10)');
    await origin.query('CREATE PUBLICATION mz_source FOR ALL TABLES');
    await client.query("CREATE SECRET my_password AS 'not needed here'");
    await client.query(
      `CREATE CONNECTION my_connection TO POSTGRES (HOST '${originServer.host}', PORT ${originServer.port}, USER postgres, PASSWORD SECRET my_password, DATABASE shop, SSL MODE disable)`,
    );
    await client.query("CREATE SOURCE IF NOT EXISTS my_source\n    FROM POSTGRES CONNECTION my_connection (PUBLICATION 'mz_source');");
    await client.query('CREATE SCHEMA v1;');
    await client.query('CREATE TABLE v1.T\n    FROM SOURCE my_source(REFERENCE public.T);');
    await client.query('CREATE MATERIALIZED VIEW v1.matview AS\n    SELECT SUM(A) from v1.T;');
    expect(await rows('SELECT * FROM v1.matview')).toEqual([['10']]);
  });

  test('a column added upstream has no effect on v1 and is there in v2', async () => {
    await origin.query('ALTER TABLE T\n    ADD COLUMN B BOOLEAN DEFAULT false');
    await origin.query('INSERT INTO T (A, B) VALUES\n    (20, true)');
    await expect.poll(() => rows('SELECT * FROM v1.matview')).toEqual([['30']]);
    expect(await rows('SELECT * FROM v1.T ORDER BY 1')).toEqual([[10], [20]]);
    await client.query('CREATE SCHEMA v2;');
    await client.query('CREATE TABLE v2.T\n    FROM SOURCE my_source(REFERENCE public.T);');
    await client.query('CREATE MATERIALIZED VIEW v2.matview AS\n    SELECT SUM(A)\n    FROM v2.T\n    WHERE B = true;');
    expect(await rows('SELECT * FROM v2.T ORDER BY 1')).toEqual([
      [10, false],
      [20, true],
    ]);
    expect(await rows('SELECT * FROM v2.matview')).toEqual([['20']]);
  });

  test('a version that excludes the column is made at once, from what is stored already', async () => {
    const before = await rows('SELECT count(*) FROM millrace.storage');
    await client.query('CREATE SCHEMA v3;');
    await client.query('CREATE TABLE v3.T\n    FROM SOURCE my_source(REFERENCE public.T) WITH (EXCLUDE COLUMNS (B));');
    expect(await rows('SELECT * FROM v3.T ORDER BY 1')).toEqual([[10], [20]]);
    expect(await rows('SELECT count(*) FROM millrace.storage')).toEqual(before);
  });

  test('the column dropped upstream, no write after it: v3 goes on, v2 says what happened and how to mend it', async () => {
    await origin.query('ALTER TABLE T DROP COLUMN B');
    await expect
      .poll(async () => (await client.query('SELECT * FROM v2.T').catch((error: Error) => error)) instanceof Error, { timeout: 5_000 })
      .toBe(true);
    for (const relation of ['v2.T', 'v2.matview']) {
      const error = await problem(`SELECT * FROM ${relation}`);
      expect(error.message).toBe('source table schema has been altered: column "b" of public.t was dropped');
      expect(error.hint).toContain('CREATE TABLE v2.t FROM SOURCE public.my_source (REFERENCE public.t)');
    }
    // Also for those who read the server directly.
    await expect(runOnce(upstream.url, 'SELECT * FROM v2.matview')).rejects.toThrow('source table schema has been altered');
    await origin.query('INSERT INTO T (A) VALUES (5)');
    await expect.poll(() => rows('SELECT * FROM v3.T ORDER BY 1')).toEqual([[5], [10], [20]]);
    expect(await rows('SELECT * FROM v1.matview')).toEqual([['35']]);
  });

  test('the hint of the error mends the version', async () => {
    const { hint } = await problem('SELECT * FROM v2.T');
    await client.query(hint ?? '');
    expect(await rows('SELECT * FROM v2.T ORDER BY 1')).toEqual([[5], [10], [20]]);
  });

  test('schemas swap and the old one goes', async () => {
    await client.query('ALTER SCHEMA v1 SWAP WITH v3;');
    await client.query('DROP SCHEMA v3 CASCADE;');
    expect(await rows('SELECT * FROM v1.T ORDER BY 1')).toEqual([[5], [10], [20]]);
    await origin.query('INSERT INTO T VALUES (1)');
    await expect.poll(() => rows('SELECT * FROM v1.T ORDER BY 1')).toEqual([[1], [5], [10], [20]]);
    expect((await problem('SELECT * FROM v1.matview')).code).toBe('42P01');
  });

  test.runIf(havePsql)('the same from a psql script, several statements in one -c, and a transaction rolled back', async () => {
    const script = await psql(
      millrace.address(),
      'CREATE SCHEMA s1;\nCREATE TABLE s1.t FROM SOURCE my_source (REFERENCE public.t);\nCREATE MATERIALIZED VIEW s1.m AS SELECT count(*) FROM s1.t;\nTABLE s1.m;\n',
    );
    expect(script.stderr).toBe('');
    expect(script.stdout).toContain('4');
    const one = await psql(millrace.address(), [
      '-c',
      'CREATE SCHEMA s2; CREATE TABLE s2.t FROM SOURCE my_source (REFERENCE public.t); CREATE MATERIALIZED VIEW s2.m AS SELECT sum(a) FROM s2.t',
      '-c',
      'TABLE s2.m',
    ]);
    expect(one.stdout.trim().endsWith('36')).toBe(true);
    const undone = await psql(millrace.address(), [
      '-c',
      'BEGIN',
      '-c',
      'CREATE TABLE s2.u FROM SOURCE my_source (REFERENCE public.t)',
      '-c',
      'ROLLBACK',
      '-c',
      "SELECT to_regclass('s2.u') IS NULL",
    ]);
    expect(undone.stdout.trim().split('\n').at(-1)).toBe('t');
  });
});
