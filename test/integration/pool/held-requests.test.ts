/** Requests on tables that are about to change wait in Millrace, for as long as that takes and not longer, and nothing else does. */
import { connect } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { cancelPacket, query } from '../../../src/wire/encode.ts';
import { havePsql, psql } from '../../support/psql.ts';
import type { TestProxy } from '../wire/proxy.ts';
import { RawClient } from '../wire/raw-client.ts';
import { eventually, hello, lines, type PoolClient, type PoolStage, startPoolStage } from './stage.ts';

let stage: PoolStage;
beforeAll(async () => {
  stage = await startPoolStage();
});
afterEach(() => stage.clear());
afterAll(() => stage.stop());

const begin = async (
  proxy: TestProxy,
  order: { readonly unknown?: boolean; readonly ms?: number; readonly database?: string } = {},
): Promise<void> => {
  const { unknown = true, ms = 60_000, database = 'postgres' } = order;
  await proxy.command({ command: 'hold', order: { id: '1', database, names: ['users', 'user_emails'], unknown, ms } });
};
const end = (proxy: TestProxy): Promise<unknown> => proxy.command({ command: 'let_go', database: 'postgres', id: '1', changed: [] });
const waiting = async (proxy: TestProxy, count: number): Promise<void> =>
  await eventually(() => proxy.metrics()['millrace_held_requests_total'] === count, `${count} were held`);

describe.each(['session', 'transaction'] as const)('in %s mode', (poolMode) => {
  let proxy: TestProxy;
  beforeEach(async () => {
    await stage.direct.query('DROP TABLE IF EXISTS users, orders; CREATE TABLE users (id int, a int); CREATE TABLE orders (id int)');
    proxy = await stage.proxy({ poolMode });
  });

  /** Whoever has the table for himself. */
  const locked = async (work: () => Promise<void>): Promise<void> => {
    await stage.direct.query('BEGIN; LOCK TABLE users IN ACCESS EXCLUSIVE MODE');
    try {
      await work();
    } finally {
      await stage.direct.query('COMMIT');
    }
  };

  it('a statement on the table waits outside of the server, and others go on', async () => {
    const [one, two] = [await stage.connect(proxy), await stage.connect(proxy)];
    await begin(proxy);
    const inserted = one.query('INSERT INTO users VALUES (1)');
    await waiting(proxy, 1);
    expect(await two.value('SELECT count(*)::int FROM orders')).toBe(0);
    expect(await stage.direct.value('SELECT count(*)::int FROM users')).toBe(0);
    expect(await stage.backends("wait_event_type = 'Lock'")).toBe(0);
    await end(proxy);
    await inserted;
    expect(await stage.direct.value('SELECT count(*)::int FROM users')).toBe(1);
    expect(proxy.metrics()['millrace_held_request_seconds_total']).toBeGreaterThan(0);
  });

  it('no writer with a lock_timeout of its own hears of a lock that is held meanwhile', async () => {
    const writers = await Promise.all(Array.from({ length: 4 }, () => stage.connect(proxy)));
    const write = (one: PoolClient): Promise<string> =>
      one.failure("SELECT set_config('lock_timeout', '3ms', false); INSERT INTO users VALUES (1)");
    await begin(proxy);
    let written: Promise<string[]> = Promise.resolve([]);
    await locked(async () => {
      written = Promise.all(writers.map(write));
      await waiting(proxy, 4);
      await sleep(50);
    });
    await end(proxy);
    expect(await written).toEqual(Array(4).fill('success'));
    await locked(async () => {
      expect(await write(writers[0] as PoolClient)).toMatch(/^55P03/);
    });
  });

  it('a statement with parameters is held whole', async () => {
    const one = await stage.connect(proxy);
    await begin(proxy);
    const counted = one.value('SELECT $1::int FROM (SELECT count(*) FROM users) u', [5]);
    await waiting(proxy, 1);
    await end(proxy);
    expect(await counted).toBe(5);
  });

  it('what is inside a transaction goes on: its end is what everybody waits for', async () => {
    const one = await stage.connect(proxy);
    await one.query('BEGIN; UPDATE users SET a = 1');
    await begin(proxy);
    await one.query('INSERT INTO users VALUES (1, 1)');
    await one.query('INSERT INTO users VALUES ($1, 1)', [2]);
    await one.query('COMMIT');
    expect(proxy.metrics()['millrace_held_requests_total']).toBe(0);
    const next = one.query('BEGIN');
    await waiting(proxy, 1);
    await end(proxy);
    await next;
    await one.query('ROLLBACK');
  });

  it('a statement prepared earlier waits when its text is not known here, or names the table', async () => {
    const one = await stage.connect(proxy);
    const users = { name: 'u', text: 'SELECT count(*)::int AS n FROM users WHERE id = $1', values: [1] };
    const orders = { name: 'o', text: 'SELECT count(*)::int AS n FROM orders WHERE id = $1', values: [1] };
    await one.query(users);
    await one.query(orders);
    await begin(proxy);
    const both = [one.query(orders).then(() => 'orders')];
    if (poolMode === 'session') await waiting(proxy, 1);
    else await both[0];
    await end(proxy);
    await both[0];
    const before = proxy.metrics()['millrace_held_requests_total'] ?? 0;
    await begin(proxy);
    const counted = one.query(users);
    await waiting(proxy, before + 1);
    await end(proxy);
    expect((await counted).rows).toEqual([{ n: 0 }]);
  });

  it('what does not say what it touches goes on while only names are held', async () => {
    const one = await stage.connect(proxy);
    await one.query({ name: 'o', text: 'SELECT 1 FROM orders' });
    await begin(proxy, { unknown: false });
    await one.query('BEGIN');
    await one.query('COMMIT');
    await one.query({ name: 'o', text: 'SELECT 1 FROM orders' });
    expect(proxy.metrics()['millrace_held_requests_total']).toBe(0);
    const held = one.query('SELECT FROM users');
    await waiting(proxy, 1);
    await end(proxy);
    await held;
  });

  it('nobody is held for longer than was asked for, though nobody ends it', async () => {
    const one = await stage.connect(proxy);
    await begin(proxy, { ms: 30 });
    const counted = one.query('SELECT FROM users');
    await waiting(proxy, 1);
    await counted;
  });

  it('nobody is held for longer than a second, whatever is asked for', async () => {
    const one = await stage.connect(proxy);
    await begin(proxy, { ms: 3_600_000 });
    await one.query('SELECT FROM users');
    expect(proxy.metrics()['millrace_held_requests_total']).toBe(1);
  });

  it('who asked for holds is gone: all of the database go on', async () => {
    const one = await stage.connect(proxy);
    await begin(proxy);
    const counted = one.query('SELECT FROM users');
    await waiting(proxy, 1);
    await proxy.command({ command: 'let_go', database: 'another', id: null, changed: [] });
    expect(await Promise.race([counted.then(() => 'done'), sleep(50).then(() => 'waits')])).toBe('waits');
    await proxy.command({ command: 'let_go', database: 'postgres', id: null, changed: [] });
    await counted;
  });

  it('holds in another database are none', async () => {
    const one = await stage.connect(proxy);
    await begin(proxy, { database: 'another' });
    await one.query('SELECT FROM users');
    expect(proxy.metrics()['millrace_held_requests_total']).toBe(0);
  });

  it('a cancel request ends a statement that is held', async () => {
    const client = await RawClient.connect(proxy.port);
    client.write(hello());
    const key = (await client.until('Z')).find(({ tag }) => tag === 'K')?.body ?? Buffer.alloc(0);
    await begin(proxy);
    await locked(async () => {
      client.write(query('SELECT FROM users', 'utf8'));
      await waiting(proxy, 1);
      await new Promise<void>((resolve) => {
        const socket = connect(proxy.port, '127.0.0.1', () => socket.write(cancelPacket(key.readInt32BE(0), key.subarray(4))));
        socket.on('close', () => resolve()).resume();
      });
      expect(lines(await client.until('Z'))).toContain('E ERROR 57014 canceling statement due to user request');
    });
    client.write(query("SELECT 'well'", 'utf8'));
    expect(lines(await client.until('Z'))).toContain('D well');
    client.destroy();
  });

  it('a client that says goodbye behind its statement has it carried out', async () => {
    const client = await stage.raw(proxy);
    await begin(proxy);
    client.write(query('INSERT INTO users VALUES (7)', 'utf8'), Buffer.from([0x58, 0, 0, 0, 4]));
    client.end();
    await eventually(async () => (await stage.direct.value('SELECT count(*)::int FROM users WHERE id = 7')) === 1, 'the row is there');
  });

  it('a client that breaks off while it is held leaves nothing behind', async () => {
    const client = await stage.raw(proxy);
    await begin(proxy);
    client.write(query('SELECT FROM users', 'utf8'));
    await waiting(proxy, 1);
    client.destroy();
    await eventually(() => proxy.metrics()['millrace_client_connections'] === 0, 'it is gone');
    await end(proxy);
    expect(await (await stage.connect(proxy)).value('SELECT 1')).toBe(1);
  });

  it('what a client sends behind a held statement is answered in order', async () => {
    const client = await stage.raw(proxy);
    await begin(proxy);
    client.write(query('INSERT INTO users VALUES (1)', 'utf8'));
    await waiting(proxy, 1);
    for (let n = 0; n < 5; n++) client.write(query(`SELECT ${n}, count(*) FROM users`, 'utf8'));
    await sleep(20);
    await end(proxy);
    expect(lines(await client.until('Z', 6)).filter((line) => line.startsWith('D'))).toEqual(['D 0|1', 'D 1|1', 'D 2|1', 'D 3|1', 'D 4|1']);
    expect(proxy.metrics()['millrace_held_requests_total']).toBe(1);
  });

  it('PAUSE and a shutdown wait for what is held, and it for nobody', async () => {
    const one = await stage.connect(proxy);
    await begin(proxy);
    const counted = one.query('SELECT FROM users');
    await waiting(proxy, 1);
    const paused = proxy.command({ command: 'pause', database: 'postgres' });
    await end(proxy);
    await counted;
    await paused;
    await proxy.command({ command: 'resume', database: 'postgres' });
    await begin(proxy);
    const last = one.query('SELECT FROM users');
    await waiting(proxy, 2);
    const stopped = proxy.stop();
    await end(proxy);
    await last;
    await stopped;
  });

  it.skipIf(!havePsql)('psql does not notice (needs psql)', async () => {
    await begin(proxy);
    const done = psql(
      { host: '127.0.0.1', port: proxy.port, user: 'postgres', database: 'postgres' },
      "INSERT INTO users VALUES (3);\nSELECT 'three', count(*) FROM users;\n",
    );
    await waiting(proxy, 1);
    await end(proxy);
    expect(await done).toMatchObject({ stdout: 'three|1\n', stderr: '', code: 0 });
  });
});
