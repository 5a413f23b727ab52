/** Clients that vanish, servers that die, readers that do not read: the others notice nothing, and new work succeeds at once. */
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { bind, execute, flush, message, parse, query, sync } from '../../../src/wire/encode.ts';
import type { TestProxy } from '../wire/proxy.ts';
import type { RawClient } from '../wire/raw-client.ts';
import { eventually, lines, type PoolClient, type PoolStage, startPoolStage } from './stage.ts';

let stage: PoolStage;
beforeAll(async () => {
  stage = await startPoolStage();
  await stage.direct.query('CREATE TABLE t (a int)');
});
afterEach(() => stage.clear());
afterAll(() => stage?.stop());

const ask = (client: RawClient, sql: string): void => client.write(query(sql, 'utf8'));

describe('a client that vanishes', () => {
  const vanishings: Readonly<Record<string, (client: RawClient) => Promise<void>>> = {
    async 'in a transaction'(client) {
      ask(client, 'BEGIN; INSERT INTO t VALUES (1)');
      await client.until('Z');
    },
    async 'in a failed transaction'(client) {
      ask(client, 'BEGIN; INSERT INTO t VALUES (1); SELECT 1/0');
      await client.until('Z');
    },
    async 'amid COPY from it'(client) {
      ask(client, 'COPY t FROM STDIN');
      await client.until('G');
      client.write(message(0x64, [Buffer.from('1\n2\n')]));
    },
    async 'amid a message'(client) {
      ask(client, 'BEGIN; INSERT INTO t VALUES (1)');
      await client.until('Z');
      client.write(query(`INSERT INTO t VALUES (${' '.repeat(5_000)}2)`, 'utf8').subarray(0, 100));
    },
    async 'amid a result'(client) {
      ask(client, 'SELECT repeat(md5(n::text), 100) FROM generate_series(1, 100000) n');
      await client.until('D');
    },
    async 'amid COPY to it'(client) {
      ask(client, 'COPY (SELECT repeat(md5(n::text), 100) FROM generate_series(1, 100000) n) TO STDOUT');
      await client.until('d');
    },
    async 'in a batch without a Sync'(client) {
      client.write(parse('', 'INSERT INTO t VALUES (1)', 'utf8'), bind('', '', [], 'utf8'), execute('', 'utf8'), flush);
      await client.until('C');
    },
    async 'in a batch that was not even flushed'(client) {
      client.write(parse('', 'INSERT INTO t VALUES (1)', 'utf8'), bind('', '', [], 'utf8'), execute('', 'utf8'));
      await eventually(async () => (await stage.backends()) > 0, 'it has a server');
      await sleep(50);
    },
    async 'amid a message that is sent on before it is whole'(client) {
      const whole = bind('', '', ['x'.repeat(3_000_000)], 'utf8');
      client.write(parse('', 'INSERT INTO t SELECT length($1)', 'utf8'), whole.subarray(0, 2_000_000));
      await eventually(async () => (await stage.backends()) > 0, 'it has a server');
      await sleep(50);
    },
    async 'when COPY is about to read from it'(client) {
      ask(client, 'SELECT pg_sleep(0.1); COPY t FROM STDIN');
      await sleep(20);
    },
    async 'while it waits for a server'(client) {
      ask(client, 'SELECT 1');
      await sleep(20);
    },
  };

  it.each(Object.keys(vanishings))('%s leaves nothing, and its place to others', async (when) => {
    const waits = when.includes('waits');
    const proxy = await stage.proxy({ defaultPoolSize: 1 });
    const holder = await stage.connect(proxy);
    if (waits) await holder.query('BEGIN');
    const client = await stage.raw(proxy);
    await vanishings[when]?.(client);
    client.destroy();
    if (waits) await holder.query('COMMIT');
    const next = await stage.connect(proxy);
    expect(await next.value('SELECT count(*)::int FROM t')).toBe(0);
    await next.query('BEGIN; ROLLBACK');
    await eventually(async () => (await stage.backends("state <> 'idle'")) === 0, 'no backend is left in the middle of something');
    await eventually(() => proxy.report().clients.length === 2, 'it is gone');
    expect(proxy.report().pools).toMatchObject([{ clActive: 2, clWaiting: 0, svActive: 0, svIdle: 1 }]);
  });

  it('behind its last word and Terminate: what it asked for is carried out', async () => {
    const proxy = await stage.proxy({ defaultPoolSize: 1 });
    const client = await stage.raw(proxy);
    client.write(query('CREATE TABLE made_in_parting (a int)', 'utf8'), message(0x58, []));
    client.end();
    await eventually(async () => (await stage.direct.value("SELECT to_regclass('made_in_parting') IS NOT NULL")) === true, 'it is made');
    await stage.direct.query('DROP TABLE made_in_parting');
  });
});

describe('a client that leaves in good order', () => {
  it('while what it sent is still held back for an answer: all of it is carried out', async () => {
    const proxy = await stage.proxy({ defaultPoolSize: 1 });
    await stage.direct.query('CREATE TABLE parting (a int)');
    const client = await stage.raw(proxy);
    const last = [parse('one', 'INSERT INTO parting VALUES (1)', 'utf8'), bind('', 'one', [], 'utf8'), execute('', 'utf8'), sync];
    client.write(query('DEALLOCATE ALL', 'utf8'), ...last, query('DEALLOCATE ALL', 'utf8'), ...last, message(0x58, []));
    client.end();
    await eventually(async () => (await stage.direct.value('SELECT count(*)::int FROM parting')) === 2, 'both are there');
    await eventually(() => proxy.report().clients.length === 0, 'it is gone');
    await stage.direct.query('DROP TABLE parting');
  });
});

describe('a backend that is terminated', () => {
  const kill = async (pid: unknown): Promise<void> => {
    await stage.direct.query('SELECT pg_terminate_backend($1)', [pid]);
    await eventually(async () => (await stage.backends(`pid = ${Number(pid)}`)) === 0, 'the backend is gone');
  };

  it('while its client is in a transaction: that client hears why, the next one is served', async () => {
    const proxy = await stage.proxy({ defaultPoolSize: 1 });
    const client = await stage.connect(proxy);
    await client.query('BEGIN');
    await kill(await client.value('SELECT pg_backend_pid()'));
    await eventually(() => client.end_ !== null, 'it is told');
    expect(client.end_).toBe('57P01 terminating connection due to administrator command');
    const next = await stage.connect(proxy);
    expect(await next.value('SELECT 1')).toBe(1);
  });

  it('while its client waits for an answer', async () => {
    const proxy = await stage.proxy({ defaultPoolSize: 1 });
    const client = await stage.connect(proxy);
    const pid = await client.value('SELECT pg_backend_pid()');
    const sleeping = client.failure('SELECT pg_sleep(60)');
    await eventually(async () => (await stage.backends("state = 'active'")) === 1, 'it runs');
    await kill(pid);
    expect(await sleeping).toBe('57P01 terminating connection due to administrator command');
  });

  it('while it is idle in the pool: nobody notices', async () => {
    const proxy = await stage.proxy({ defaultPoolSize: 2 });
    const client = await stage.connect(proxy);
    for (let n = 0; n < 5; n++) {
      await kill(await client.value('SELECT pg_backend_pid()'));
      expect(await client.value('SELECT 1')).toBe(1);
    }
    expect(client.end_).toBeNull();
  });
});

describe('a slow reader', () => {
  async function served(proxy: TestProxy, other: PoolClient): Promise<number> {
    let count = 0;
    for (const end = performance.now() + 1_000; performance.now() < end; count++) expect(await other.value('SELECT 1')).toBe(1);
    expect(proxy.report().clients).toHaveLength(2);
    return count;
  }

  it('of a huge result takes little memory and stalls nobody', async () => {
    const proxy = await stage.proxy({ defaultPoolSize: 2 });
    const reader = await stage.raw(proxy);
    const other = await stage.connect(proxy);
    ask(reader, 'SELECT repeat(md5(n::text), 300) FROM generate_series(1, 100000) n');
    reader.pause();
    const before = process.memoryUsage().rss;
    expect(await served(proxy, other)).toBeGreaterThan(20);
    // The result has a gigabyte.
    expect(process.memoryUsage().rss - before).toBeLessThan(100 * 1024 * 1024);
    reader.destroy();
    await eventually(() => proxy.report().clients.length === 1, 'it is gone');
    expect(await other.value('SELECT 1')).toBe(1);
  });

  it('of a result gets all of it in the end', async () => {
    const proxy = await stage.proxy({ defaultPoolSize: 1 });
    const reader = await stage.raw(proxy);
    ask(reader, 'SELECT n, repeat(md5(n::text), 30) FROM generate_series(1, 20000) n');
    for (let n = 0; n < 10; n++) {
      reader.pause();
      await sleep(10);
      reader.resume();
      await sleep(5);
    }
    const all = lines(await reader.until('Z'));
    expect(all.filter((line) => line.startsWith('D')).map((line) => Number(/^D (\d+)/.exec(line)?.[1]))).toEqual(
      Array.from({ length: 20_000 }, (_, n) => n + 1),
    );
    expect(all.at(-1)).toBe('Z I');
  });

  it('a COPY of many megabytes at once from a client arrives whole', async () => {
    const proxy = await stage.proxy({ defaultPoolSize: 1 });
    const client = await stage.raw(proxy);
    ask(client, 'CREATE TEMP TABLE big (a text)');
    await client.until('Z');
    ask(client, 'COPY big FROM STDIN');
    await client.until('G');
    const row = message(0x64, [Buffer.from(`${'x'.repeat(60_000)}\n`)]);
    for (let n = 0; n < 200; n++) client.write(row);
    client.write(message(0x63, []));
    expect(lines(await client.until('Z'))).toEqual(['C COPY 200', 'Z I']);
  });
});

// Last: `direct` ends with the server.
describe('the whole server', () => {
  it('is restarted: clients without a transaction notice nothing', async () => {
    const proxy = await stage.proxy({ defaultPoolSize: 2 });
    const [quiet, inTransaction] = [await stage.connect(proxy), await stage.connect(proxy)];
    await quiet.query({ name: 'kept', text: 'SELECT $1::int AS n', values: [1] });
    await inTransaction.query('BEGIN');
    const lost = inTransaction.failure('SELECT pg_sleep(60)');
    await stage.direct.end();
    await stage.postgres.restart();
    expect(await lost).toMatch(/^57P01 |^Connection terminated/);
    expect((await quiet.query({ name: 'kept', text: 'SELECT $1::int AS n', values: [2] })).rows).toEqual([{ n: 2 }]);
    expect(quiet.end_).toBeNull();
  });

  it('is away: those who wait are served when it is back, or hear 08006 after server_login_retry', async () => {
    const patient = await stage.proxy({ serverLoginRetry: 60_000 });
    const impatient = await stage.proxy({ serverLoginRetry: 300 });
    const [one, two] = [await stage.connect(patient), await stage.connect(impatient)];
    await one.query('SELECT 1');
    await two.query('SELECT 1');
    await stage.postgres.kill9();
    const [served, refused] = [one.value('SELECT 5'), two.failure('SELECT 1')];
    expect(await refused).toMatch(/^08006 could not connect to the upstream server/);
    await stage.postgres.restart();
    expect(await served).toBe(5);
    expect(await (await stage.connect(impatient)).value('SELECT 1')).toBe(1);
  });
});
