/** How many server connections and clients there may be, and who waits for how long. */
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { query } from '../../../src/wire/encode.ts';
import type { TestProxy } from '../wire/proxy.ts';
import { eventually, lines, type PoolClient, type PoolStage, startPoolStage } from './stage.ts';

let stage: PoolStage;
beforeAll(async () => {
  stage = await startPoolStage();
  await stage.direct.query('CREATE DATABASE shop');
  await stage.direct.query('CREATE ROLE clerk LOGIN; CREATE ROLE boss LOGIN');
});
afterEach(() => stage.clear());
afterAll(() => stage?.stop());

const waiting = (proxy: TestProxy): number => proxy.report().clients.filter((one) => one.state === 'waiting').length;
const many = (proxy: TestProxy, count: number): Promise<PoolClient[]> =>
  Promise.all(Array.from({ length: count }, () => stage.connect(proxy)));

describe('pool_size', () => {
  it('bounds the server connections of a pool; the clients beyond it are served in their turn', async () => {
    const proxy = await stage.proxy({ defaultPoolSize: 3 });
    const clients = await many(proxy, 12);
    const pids = await Promise.all(clients.map((client) => client.value('SELECT pg_backend_pid() FROM pg_sleep(0.05)')));
    expect(new Set(pids).size).toBeLessThanOrEqual(3);
    expect(proxy.report().pools).toMatchObject([{ clActive: 12, clWaiting: 0, svActive: 0, poolMode: 'transaction' }]);
    expect(proxy.report().servers.length).toBeLessThanOrEqual(3);
  });

  it('of a database or a role wins over the general one', async () => {
    const proxy = await stage.proxy({ defaultPoolSize: 5, perDatabase: { shop: { poolSize: 1 } }, perUser: { clerk: { poolSize: 2 } } });
    const busy = async (user: string, database: string): Promise<number> => {
      const clients = await Promise.all(Array.from({ length: 4 }, () => stage.connect(proxy, { user, database })));
      const pids = await Promise.all(clients.map((client) => client.value('SELECT pg_backend_pid() FROM pg_sleep(0.1)')));
      return new Set(pids).size;
    };
    expect(await busy('boss', 'shop')).toBe(1);
    expect(await busy('clerk', 'postgres')).toBe(2);
  });

  it('reserve_pool opens further ones for those who have waited reserve_pool_timeout', async () => {
    const proxy = await stage.proxy({ defaultPoolSize: 1, reservePoolSize: 1, reservePoolTimeout: 300 });
    const [one, two, three] = (await many(proxy, 3)) as [PoolClient, PoolClient, PoolClient];
    await one.query('BEGIN');
    const begun = performance.now();
    await two.query('BEGIN');
    expect(performance.now() - begun).toBeGreaterThan(300);
    const third = three.value('SELECT 3');
    await eventually(() => waiting(proxy) === 1, 'the third one waits: the reserve is used up');
    await one.query('COMMIT');
    expect(await third).toBe(3);
    await two.query('COMMIT');
  });
});

describe('query_wait_timeout', () => {
  it('ends a client that has waited that long, and it alone', async () => {
    const proxy = await stage.proxy({ defaultPoolSize: 1, queryWaitTimeout: 300 });
    const [holder, client] = (await many(proxy, 2)) as [PoolClient, PoolClient];
    await holder.query('BEGIN');
    expect(await client.failure('SELECT 1')).toBe('08P01 query_wait_timeout');
    await holder.query('COMMIT');
  });
});

describe('clients', () => {
  it.each(['session', 'transaction'] as const)(
    'beyond max_client_conn are turned away in %s mode, those who log in at once too',
    async (poolMode) => {
      const proxy = await stage.proxy({ poolMode, maxClientConn: 3 });
      const attempts = await Promise.all(
        Array.from(
          { length: 8 },
          async () =>
            await stage.connect(proxy).then(
              () => 'let in',
              (error: Error) => error.message,
            ),
        ),
      );
      expect(attempts.filter((one) => one === 'let in')).toHaveLength(3);
      expect(new Set(attempts.filter((one) => one !== 'let in'))).toEqual(new Set(['no more connections allowed (max_client_conn = 3)']));
    },
  );

  it.each(['session', 'transaction'] as const)('of a database or a role have limits of their own in %s mode', async (poolMode) => {
    const proxy = await stage.proxy({
      poolMode,
      maxDbClientConnections: 5,
      perDatabase: { shop: { maxDbClientConnections: 1 } },
      perUser: { clerk: { maxUserClientConnections: 1 } },
    });
    await stage.connect(proxy, { database: 'shop' });
    expect(await stage.refusal(proxy, { database: 'shop' })).toBe('53300 no more connections allowed (max_db_client_connections = 1)');
    const clerk = await stage.connect(proxy, { user: 'clerk' });
    expect(await stage.refusal(proxy, { user: 'clerk' })).toBe('53300 no more connections allowed (max_user_client_connections = 1)');
    await clerk.end();
    await eventually(async () => (await stage.refusal(proxy, { user: 'clerk' })) === 'let in', 'there is room again');
  });
});

describe('server connections', () => {
  it('max_db_connections holds for all pools of a database together: one that is idle makes room', async () => {
    const proxy = await stage.proxy({ perDatabase: { shop: { maxDbConnections: 1 } } });
    const clerk = await stage.connect(proxy, { user: 'clerk', database: 'shop' });
    const boss = await stage.connect(proxy, { user: 'boss', database: 'shop' });
    for (let n = 0; n < 2; n++) {
      expect(await clerk.value('SELECT current_user::text')).toBe('clerk');
      expect(await boss.value('SELECT current_user::text')).toBe('boss');
      expect(await stage.backends("datname = 'shop'")).toBe(1);
    }
    await clerk.query('BEGIN');
    const late = boss.value('SELECT 1');
    await eventually(() => waiting(proxy) === 1, 'the other role waits');
    await clerk.query('COMMIT');
    expect(await late).toBe(1);
  });

  it.each(['max_db_connections', 'max_user_connections'])('%s makes clients of session mode wait at the door', async (limit) => {
    const limits = limit === 'max_db_connections' ? { maxDbConnections: 2 } : { maxUserConnections: 2 };
    const proxy = await stage.proxy({ poolMode: 'session', ...limits });
    const [one] = (await many(proxy, 2)) as [PoolClient, PoolClient];
    let third: PoolClient | undefined;
    const coming = stage.connect(proxy).then((client) => {
      third = client;
    });
    await eventually(() => waiting(proxy) === 1, 'the third one waits');
    expect(third).toBeUndefined();
    await one.end();
    await coming;
    expect(await third?.value('SELECT 1')).toBe(1);
  });

  it('a client of session mode that waits longer than query_wait_timeout is turned away', async () => {
    const proxy = await stage.proxy({ poolMode: 'session', maxDbConnections: 1, queryWaitTimeout: 200 });
    await stage.connect(proxy);
    expect(await stage.refusal(proxy)).toBe('08P01 query_wait_timeout');
    // Others are not concerned.
    expect(await stage.refusal(proxy, { database: 'shop' })).toBe('let in');
  });

  it('many that wait at once in session mode never exceed the limit', async () => {
    const proxy = await stage.proxy({ poolMode: 'session', maxDbConnections: 3, perDatabase: { shop: { maxDbConnections: 2 } } });
    let most = 0;
    const visit = async (database: string): Promise<void> => {
      const client = await stage.connect(proxy, { database });
      most = Math.max(most, proxy.report().servers.filter((server) => server.database === 'shop').length);
      await client.query('SELECT pg_sleep(0.02)');
      await client.end();
    };
    await Promise.all(Array.from({ length: 20 }, (_, n) => visit(n % 2 === 0 ? 'shop' : 'postgres')));
    expect(most).toBeGreaterThan(0);
    expect(most).toBeLessThanOrEqual(2);
  });

  it('session clients and pools of a database share max_db_connections', async () => {
    const proxy = await stage.proxy({ maxDbConnections: 1, perUser: { clerk: { poolMode: 'session' } } });
    const clerk = await stage.connect(proxy, { user: 'clerk' });
    const pooled = stage.connect(proxy);
    await eventually(() => proxy.report().pools.some((pool) => pool.poolMode === 'transaction'), 'the pool is there');
    expect(proxy.report().servers.map(({ user }) => user)).toEqual(['clerk']);
    expect(proxy.report().pools.map(({ svLogin }) => svLogin)).toEqual([0, 0]);
    await clerk.end();
    const client = await pooled;
    expect(await client.value('SELECT 1')).toBe(1);
    // And the idle one makes room for the next client of session mode.
    expect(await (await stage.connect(proxy, { user: 'clerk' })).value('SELECT current_user::text')).toBe('clerk');
  });

  it('idle ones are closed after server_idle_timeout, old ones after server_lifetime', async () => {
    const idle = await stage.proxy({ serverIdleTimeout: 100 });
    await (await stage.connect(idle)).query('SELECT 1');
    await eventually(() => idle.report().servers.length === 0, 'it is closed');
    const old = await stage.proxy({ serverLifetime: 200 });
    const client = await stage.connect(old);
    const pid = await client.value('SELECT pg_backend_pid()');
    await eventually(async () => (await client.value('SELECT pg_backend_pid()')) !== pid, 'it is replaced');
  });
});

describe('pool modes', () => {
  it('a database and a role may have one of their own, the role wins', async () => {
    const proxy = await stage.proxy({
      poolMode: 'session',
      defaultPoolSize: 1,
      perDatabase: { shop: { poolMode: 'transaction' } },
      perUser: { boss: { poolMode: 'session' } },
    });
    const shop = await Promise.all([1, 2].map(() => stage.connect(proxy, { database: 'shop', user: 'clerk' })));
    const pids = async (clients: readonly PoolClient[]): Promise<number> =>
      new Set(await Promise.all(clients.map((client) => client.value('SELECT pg_backend_pid()')))).size;
    expect(await pids(shop)).toBe(1);
    expect(await pids(await many(proxy, 2))).toBe(2);
    expect(await pids(await Promise.all([1, 2].map(() => stage.connect(proxy, { database: 'shop', user: 'boss' }))))).toBe(2);
  });

  it('statement mode refuses transaction blocks as PgBouncer does, and serves single statements', async () => {
    const proxy = await stage.proxy({ poolMode: 'statement', defaultPoolSize: 1 });
    const client = await stage.raw(proxy);
    client.write(query('SELECT 1', 'utf8'));
    expect(lines(await client.until('Z'))).toContain('D 1');
    client.write(query('BEGIN', 'utf8'));
    expect(lines(await client.until('E'))).toContain('E FATAL 08P01 transaction blocks not allowed in statement pooling mode');
    await client.until('Z');
    expect(client.ended).toBe(true);
    const next = await stage.connect(proxy);
    expect(await next.value('SELECT 1')).toBe(1);
    expect((await next.query({ name: 'x', text: 'SELECT $1::int AS n', values: [5] })).rows).toEqual([{ n: 5 }]);
  });
});
