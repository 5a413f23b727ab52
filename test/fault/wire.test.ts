/** What goes wrong around a proxy: servers die, clients vanish, cancels come in crowds, readers are slow or greedy. */
import { spawn } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { message, query } from '../../src/wire/encode.ts';
import { startProxy, type TestProxy } from '../integration/wire/proxy.ts';
import { RawClient, shown } from '../integration/wire/raw-client.ts';
import { havePsql, startPostgres, type TestPostgres } from '../support/postgres.ts';

const bulkMegabytes = Number(process.env['MILLRACE_BULK_MEGABYTES'] ?? 200);

let postgres: TestPostgres;
let proxy: TestProxy;
const open: RawClient[] = [];

beforeAll(async () => {
  postgres = await startPostgres({ settings: { max_connections: '300' } });
  proxy = await startProxy(postgres.address);
});
afterAll(async () => {
  await proxy?.stop(0);
  await postgres?.stop();
});
afterEach(() => {
  for (const client of open.splice(0)) client.destroy();
});

const q = (sql: string): Buffer => query(sql, 'utf8');

async function client(port = proxy.port): Promise<RawClient> {
  const one = await RawClient.open(port);
  open.push(one);
  return one;
}

async function ask(one: RawClient, sql: string): Promise<string[]> {
  one.write(q(sql));
  return shown(await one.until('Z'));
}

async function directly(sql: string): Promise<Record<string, unknown>[]> {
  const one = new pg.Client(postgres.url);
  await one.connect();
  try {
    return (await one.query(sql)).rows;
  } finally {
    await one.end();
  }
}

async function eventually(check: () => Promise<boolean>): Promise<void> {
  for (const end = Date.now() + 10_000; Date.now() < end; await sleep(20)) if (await check()) return;
  throw new Error('it did not come to be');
}

const others = "FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
const noneLeft = async (): Promise<boolean> => (await directly(`SELECT 1 ${others}`)).length === 0;

describe('an upstream that dies', () => {
  it('restarted in order: each client is told, and the next is served', async () => {
    const idle = await client();
    const busy = await client();
    busy.write(q('SELECT pg_sleep(30)'));
    const ours = await client();
    ours.write(q("CREATE SECRET s AS 'SELECT pg_sleep(30)'"));
    await sleep(100);
    await postgres.restart();
    for (const one of [idle, busy, ours]) {
      expect(shown(await one.until('never')).at(-1)).toBe('E FATAL 57P01 terminating connection due to administrator command');
    }
    expect(await ask(await client(), 'SELECT 1')).toContain('D 1');
  });

  it('killed, all of it: every client notices, those who come meanwhile hear why, and the next is served', async () => {
    const idle = await client();
    const busy = await client();
    busy.write(q('BEGIN; SELECT pg_sleep(30)'));
    const ours = await client();
    ours.write(q("CREATE SECRET s AS 'SELECT pg_sleep(30)'"));
    await sleep(100);
    await postgres.kill9();
    for (const one of [idle, busy, ours]) await one.until('never');
    const meanwhile = await RawClient.connect(proxy.port);
    meanwhile.write(Buffer.from('\0\0\0\x17\0\x03\0\0user\0postgres\0\0', 'latin1'));
    expect(shown(await meanwhile.until('never'))).toEqual(['E FATAL 08006 could not connect to the upstream server']);
    await postgres.restart();
    expect(await ask(await client(), 'SELECT 1')).toContain('D 1');
  });

  it('one backend killed: the server ends all sessions and comes back, and the proxy with it', async () => {
    const one = await client();
    const pid = Number((await ask(one, 'SELECT pg_backend_pid()'))[1]?.slice(2));
    const other = await client();
    process.kill(pid, 'SIGKILL');
    await one.until('never');
    expect(shown(await other.until('never')).filter((line) => line.includes('57P02')).length).toBeLessThanOrEqual(1);
    await eventually(
      async () =>
        await RawClient.open(proxy.port).then(async (next) => {
          open.push(next);
          return !next.ended;
        }),
    );
  });
});

describe('a client that vanishes', () => {
  it.each(['in the middle of COPY data', 'in the middle of a message'])('%s: nothing is committed, its backend is gone', async (when) => {
    await directly('CREATE TABLE IF NOT EXISTS copied (a int)');
    const one = await client();
    one.write(q('COPY copied FROM STDIN'));
    await one.until('G');
    const data = message(0x64, [Buffer.from('1\n2\n3\n')]);
    for (let i = 0; i < 1000; i++) one.write(data);
    if (when === 'in the middle of a message') one.write(data.subarray(0, 7));
    await sleep(20);
    one.destroy();
    await eventually(noneLeft);
    expect(await directly('SELECT count(*)::int AS n FROM copied')).toEqual([{ n: 0 }]);
  });

  it('while its COPY is part of a text with a statement of ours', async () => {
    await directly('CREATE TABLE IF NOT EXISTS copied (a int)');
    const one = await client();
    one.write(q('SHOW SOURCES; COPY copied FROM STDIN; SHOW SOURCES'));
    await one.until('G');
    one.write(message(0x64, [Buffer.from('1\n')]));
    await sleep(20);
    one.destroy();
    await eventually(noneLeft);
    expect(await directly('SELECT count(*)::int AS n FROM copied')).toEqual([{ n: 0 }]);
  });

  it.skipIf(!existsSync('/proc/net/tcp'))(
    'without a word: probes are sent after a minute, on both sides (reads /proc/net/tcp)',
    async () => {
      const one = await client();
      expect(await ask(one, 'SELECT 1')).toContain('D 1');
      // local, remote, state, queues, timer (2: keepalive) : when, in hundredths of a second
      const port = (number: number): string => number.toString(16).toUpperCase().padStart(4, '0');
      // local, remote, state, queues, timer (2: keepalive) : when, in hundredths of a second
      const probed = (): number =>
        readFileSync('/proc/net/tcp', 'latin1')
          .split('\n')
          .map((row) => row.trim().split(/\s+/))
          .filter(
            ([, local, remote, state]) => state === '01' && (local?.endsWith(port(proxy.port)) || remote?.endsWith(port(postgres.port))),
          )
          .map((row) => row[5]?.split(':').map((part) => Number.parseInt(part, 16)) ?? [])
          .filter(([kind = 0, when = 0]) => kind === 2 && when <= 6_000).length;
      // For a moment the timer is that of the last packet.
      await eventually(async () => probed() >= 2);
    },
  );

  it('while the server does not answer any more: both connections go, and nobody else is held up', async () => {
    let stopped = false;
    const pairs: Socket[] = [];
    const relay: Server = createServer({ allowHalfOpen: true }, (near) => {
      const far = connect(postgres.port, '127.0.0.1');
      pairs.push(near, far);
      near.on('data', (bytes) => stopped || far.write(bytes)).on('error', () => undefined);
      far.on('data', (bytes) => stopped || near.write(bytes)).on('error', () => undefined);
    });
    await new Promise<void>((resolve) => relay.listen(0, '127.0.0.1', resolve));
    const address = relay.address();
    const worker = await startProxy({ ...postgres.address, port: typeof address === 'object' ? (address?.port ?? 0) : 0 });
    const one = await client(worker.port);
    const ours = await client(worker.port);
    stopped = true;
    one.write(q('SELECT 1'));
    ours.write(q('SHOW SOURCES'));
    await sleep(50);
    one.destroy();
    ours.destroy();
    expect(await ask(await client(), 'SELECT 1')).toContain('D 1');
    for (const socket of pairs) socket.destroy();
    await eventually(async () => worker.metrics()['millrace_client_connections'] === 0);
    await worker.stop(0);
    relay.close();
  });
});

describe('cancels', () => {
  it('a hundred at once hit their own queries only, never the next one and never another client', async () => {
    const keyed = async (): Promise<{ one: RawClient; key: Buffer }> => {
      const one = await RawClient.connect(proxy.port);
      open.push(one);
      one.write(Buffer.from('\0\0\0\x17\0\x03\0\0user\0postgres\0\0', 'latin1'));
      return { one, key: (await one.until('Z')).find(({ tag }) => tag === 'K')?.body ?? Buffer.alloc(0) };
    };
    const cancel = async (key: Buffer): Promise<void> => {
      const canceller = await RawClient.connect(proxy.port);
      canceller.write(Buffer.from([0, 0, 0, 8 + key.length, 0x04, 0xd2, 0x16, 0x2e]), key);
      // As libpq: the server hangs up when it has passed the signal on.
      await canceller.until('never');
    };
    const clients = await Promise.all(Array.from({ length: 50 }, keyed));
    const bystanders = await Promise.all(Array.from({ length: 5 }, () => client()));
    let over = false;
    const undisturbed = Promise.all(
      bystanders.map(async (one) => {
        while (!over) expect((await ask(one, 'SELECT 1 FROM pg_sleep(0.005)')).at(1)).toBe('D 1');
      }),
    );
    for (const sql of ['SELECT pg_sleep(30)', "CREATE SECRET s AS 'SELECT pg_sleep(30)'"]) {
      for (const { one } of clients) one.write(q(sql));
      await eventually(async () => Number((await directly(`SELECT count(*) AS n ${others} AND wait_event = 'PgSleep'`))[0]?.['n']) >= 50);
      await Promise.all(clients.map(({ key }) => cancel(key)));
      await Promise.all(
        clients.map(async ({ one }) => {
          expect(shown(await one.until('Z')).slice(-2)).toEqual(['E ERROR 57014 canceling statement due to user request', 'Z I']);
          for (let i = 0; i < 3; i++) expect(await ask(one, i === 1 ? 'SHOW SOURCES' : 'SELECT 5')).toHaveLength(i === 1 ? 6 : 4);
        }),
      );
    }
    over = true;
    await undisturbed;
  });
});

describe('readers', () => {
  it('that do not read, thirty of them, cost bounded memory', async () => {
    const slow = await Promise.all(Array.from({ length: 30 }, () => client()));
    const used = (): number => process.memoryUsage().arrayBuffers + process.memoryUsage().external;
    const before = used();
    for (const one of slow) {
      one.pause();
      one.write(q("SELECT repeat('x', 1000) FROM generate_series(1, 1000) a, generate_series(1, 10000) b"));
    }
    await sleep(1500);
    expect(used() - before).toBeLessThan(30 * 1_000_000);
    expect(await ask(await client(), 'SELECT 1')).toContain('D 1');
    for (const one of open.splice(0)) one.destroy();
    // Their backends do not go on for nobody.
    await eventually(noneLeft);
  });

  it.skipIf(!havePsql)('of a large result leave small queries quick (needs psql)', async () => {
    const bulk = `COPY (SELECT repeat('x', 1000) FROM generate_series(1, ${bulkMegabytes * 1000})) TO STDOUT`;
    const reader = spawn('psql', ['-X', '-h', '127.0.0.1', '-p', String(proxy.port), '-U', 'postgres', '-c', bulk, 'postgres'], {
      stdio: ['ignore', 'ignore', 'inherit'],
    });
    let reading = true;
    const ended = new Promise<number>((resolve) => {
      reader.on('close', (code) => {
        reading = false;
        resolve(code ?? -1);
      });
    });
    const one = await client();
    const times: number[] = [];
    while (reading) {
      const began = performance.now();
      await ask(one, 'SELECT 1');
      times.push(performance.now() - began);
      await sleep(1);
    }
    expect(await ended).toBe(0);
    times.sort((a, b) => a - b);
    const p99 = times[Math.floor(times.length * 0.99)] ?? 0;
    expect(times.length).toBeGreaterThan(50);
    if (process.env['MILLRACE_SHOW_TIMES'] !== undefined) console.log({ n: times.length, p50: times[times.length >> 1], p99 });
    expect(p99).toBeLessThan(100);
  });
});
