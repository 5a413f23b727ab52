import pg from 'pg';
import { describe, expect, it } from 'vitest';
import { havePsql, type PostgresMajor, psql, startPostgres } from '../../support/postgres.ts';

async function ask(url: string, sql: string): Promise<unknown> {
  const client = new pg.Client(url);
  client.on('error', () => {});
  await client.connect();
  try {
    return (await client.query({ text: sql, rowMode: 'array' })).rows[0]?.[0];
  } finally {
    await client.end();
  }
}

describe.each<PostgresMajor>([15, 16, 17, 18])('embedded PostgreSQL %i', (version) => {
  it('starts with logical decoding, keeps its data over a restart and a kill -9, and has its own identity', async () => {
    const [server, other] = await Promise.all([startPostgres({ version, database: 'Shop "1"' }), startPostgres({ version })]);
    try {
      expect(await ask(server.url, "SELECT current_setting('server_version_num')::int / 10000")).toBe(version);
      expect(await ask(server.url, 'SHOW wal_level')).toBe('logical');
      expect(await ask(server.url, 'SELECT current_database()')).toBe('Shop "1"');
      const identity = 'SELECT system_identifier::text FROM pg_control_system()';
      expect(await ask(server.url, identity)).not.toBe(await ask(other.url, identity));
      await ask(server.url, 'CREATE TABLE kept AS SELECT 1 AS a');
      await server.restart();
      await ask(server.url, 'INSERT INTO kept VALUES (2)');
      await server.kill9();
      await expect(ask(server.url, 'SELECT 1')).rejects.toThrow();
      await server.restart();
      expect(await ask(server.url, 'SELECT sum(a)::int FROM kept')).toBe(3);
      expect(server.log()).toContain('database system was not properly shut down');
    } finally {
      await Promise.all([server.stop(), other.stop()]);
    }
  });
});

describe.skipIf(!havePsql)('psql helper (needs psql)', () => {
  it('runs a script and arguments', async () => {
    const server = await startPostgres();
    try {
      expect(await psql(server.address, 'SELECT 1;\nSELECT 2;')).toEqual({ stdout: '1\n2\n', stderr: '', code: 0 });
      expect((await psql(server.address, ['-c', 'SELECT nope'])).code).toBe(1);
    } finally {
      await server.stop();
    }
  });
});
