/** Ordinary SQL through the proxy, with real clients. */
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { havePsql, psql, startPostgres, type TestPostgres } from '../../support/postgres.ts';
import { startProxy, type TestProxy } from './proxy.ts';

let postgres: TestPostgres;
let proxy: TestProxy;

beforeAll(async () => {
  postgres = await startPostgres();
  proxy = await startProxy(postgres.address);
});
afterAll(async () => {
  await proxy?.stop(0);
  await postgres?.stop();
});

async function client(): Promise<pg.Client> {
  const one = new pg.Client({ host: '127.0.0.1', port: proxy.port, user: 'postgres', database: 'postgres' });
  await one.connect();
  return one;
}

describe('ordinary SQL', () => {
  it('answers simple and prepared statements', async () => {
    const c = await client();
    expect((await c.query('SELECT 1 AS one')).rows).toEqual([{ one: 1 }]);
    expect((await c.query({ name: 'p', text: 'SELECT $1::int + 1 AS two', values: [1] })).rows).toEqual([{ two: 2 }]);
    await expect(c.query('SELEC 1')).rejects.toMatchObject({ code: '42601', position: '1' });
    await c.end();
  });

  it('carries notifications', async () => {
    const c = await client();
    const heard = new Promise((resolve) => c.on('notification', (n) => resolve(n.payload)));
    await c.query('LISTEN x');
    await c.query("NOTIFY x, 'hello'");
    expect(await heard).toBe('hello');
    await c.end();
  });

  it('cancels by the key of the upstream', async () => {
    const c = await client();
    const slow = c.query('SELECT pg_sleep(30)');
    const { processID, secretKey } = c as unknown as { processID: number; secretKey: number };
    await new Promise((resolve) => setTimeout(resolve, 100));
    const canceller = new pg.Client({ host: '127.0.0.1', port: proxy.port }) as unknown as {
      connection: { connect(port: number, host: string): void; on(event: string, f: () => void): void; cancel(a: number, b: number): void };
    };
    canceller.connection.on('connect', () => canceller.connection.cancel(processID, secretKey));
    canceller.connection.connect(proxy.port, '127.0.0.1');
    await expect(slow).rejects.toMatchObject({ code: '57014' });
    await c.end();
  });

  it('forwards candidates that are not claimed byte for byte', async () => {
    const c = await client();
    await c.query('CREATE TABLE plain (a int)');
    expect((await c.query('DROP TABLE plain')).command).toBe('DROP');
    await expect(c.query('DROP TABLE plain')).rejects.toMatchObject({ code: '42P01' });
    await c.end();
  });

  it.skipIf(!havePsql)('serves psql: COPY both ways', async () => {
    const address = { host: '127.0.0.1', port: proxy.port, user: 'postgres', database: 'postgres' };
    const script =
      'CREATE TEMP TABLE c (a int, b text);\nCOPY c FROM STDIN;\n1\tx\n2\ty\n\\.\nCOPY c TO STDOUT;\nSELECT count(*) FROM c;\n';
    expect(await psql(address, script)).toEqual({ stdout: '1\tx\n2\ty\n2\n', stderr: '', code: 0 });
  });
});
