/** Clients that do nothing, or go on, for longer than an operator allows. */
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { query } from '../../../src/wire/encode.ts';
import type { ProxySettings } from '../../../src/wire/pool/settings.ts';
import { errorText, eventually, lines, type PoolClient, type PoolStage, startPoolStage } from './stage.ts';

let stage: PoolStage;
beforeAll(async () => {
  stage = await startPoolStage();
  await stage.direct.query('CREATE ROLE patient LOGIN SUPERUSER; CREATE TABLE t (a int)');
});
afterEach(() => stage.clear());
afterAll(() => stage?.stop());

const ended = (client: PoolClient): Promise<void> => eventually(() => client.end_ !== null, 'the client is told why it has to go');

describe.each(['session', 'transaction'] as const)('in %s mode', (poolMode) => {
  const start = async (limits: Partial<ProxySettings>): Promise<{ client: PoolClient; patient: PoolClient }> => {
    const perUser = { patient: { clientIdleTimeout: 0, idleTransactionTimeout: 0, transactionTimeout: 0, queryTimeout: 0 } };
    const proxy = await stage.proxy({ poolMode, defaultPoolSize: 3, perUser, ...limits });
    return { client: await stage.connect(proxy), patient: await stage.connect(proxy, { user: 'patient' }) };
  };

  it('client_idle_timeout ends a client that says nothing, and none whose role has no limit', async () => {
    const { client, patient } = await start({ clientIdleTimeout: 150 });
    await client.query('SELECT 1');
    await ended(client);
    expect(client.end_).toBe('57P05 terminating connection due to idle-session timeout');
    expect(await patient.value('SELECT 1')).toBe(1);
  });

  it('client_idle_timeout does not end a client that is busy, in a transaction, or says something in time', async () => {
    const { client } = await start({ clientIdleTimeout: 400 });
    await client.query('SELECT pg_sleep(1)');
    for (let i = 0; i < 4; i++) {
      await client.query('SELECT 1');
      await sleep(150);
    }
    await client.query('BEGIN');
    await sleep(1_000);
    await client.query('COMMIT');
    expect(client.end_).toBeNull();
  });

  it('idle_transaction_timeout rolls the transaction back, and its server serves nobody else', async () => {
    const { client, patient } = await start({ idleTransactionTimeout: 150 });
    await client.query('BEGIN');
    await client.query('INSERT INTO t VALUES (1)');
    const pid = await client.value('SELECT pg_backend_pid()');
    await patient.query('BEGIN');
    await ended(client);
    expect(client.end_).toBe('25P03 terminating connection due to idle-in-transaction timeout');
    await eventually(async () => (await stage.backends(`pid = ${pid}`)) === 0, 'its backend is gone');
    expect(await stage.direct.value('SELECT count(*)::int FROM t')).toBe(0);
    await patient.query('COMMIT');
    expect(await patient.value('SELECT count(*)::int FROM t')).toBe(0);
  });

  it('transaction_timeout ends a transaction that goes on, however busy', async () => {
    const { client } = await start({ transactionTimeout: 300 });
    for (let i = 0; i < 10; i++) await client.query('SELECT pg_sleep(0.05)');
    expect(client.end_).toBeNull();
    await client.query('BEGIN');
    const error = await (async () => {
      for (;;) await client.query('SELECT pg_sleep(0.02)');
    })().catch((reason: unknown) => reason);
    // Whether it came amid a statement or between two is chance.
    await ended(client);
    expect([errorText(error), client.end_]).toContain('25P04 terminating connection due to transaction timeout');
  });

  it('query_timeout ends the query at the server too', async () => {
    const { client } = await start({ queryTimeout: 200 });
    await client.query('BEGIN');
    const pid = await client.value('SELECT pg_backend_pid()');
    await sleep(500);
    const sleeping = client.failure('SELECT pg_sleep(100)');
    expect(await sleeping).toBe('57014 terminating connection due to query timeout');
    await eventually(async () => (await stage.backends(`pid = ${pid}`)) === 0, 'its backend is gone');
  });

  it('a client that is ended amid a row is not sent what it would take for a part of it', async () => {
    const proxy = await stage.proxy({ poolMode });
    const client = await stage.raw(proxy);
    client.write(query("SELECT repeat('x', 20000000)", 'utf8'));
    client.pause();
    await eventually(() => Number(proxy.metrics()['millrace_client_sent_bytes_total']) > 50_000, 'the row has begun');
    await proxy.command({ command: 'kill_client', id: proxy.report().clients[0]?.id ?? '' });
    client.resume();
    expect(lines(await client.until('Z')).filter((line) => line.startsWith('E'))).toEqual([]);
    expect(client.ended).toBe(true);
  });
});

it('a limit that a reload brings holds for clients that are there', async () => {
  const proxy = await stage.proxy();
  const client = await stage.connect(proxy);
  await client.query('SELECT 1');
  const { defaultProxySettings } = await import('../../../src/wire/pool/settings.ts');
  await proxy.command({
    command: 'reload',
    settings: { ...defaultProxySettings, poolMode: 'transaction', authType: 'trust', clientIdleTimeout: 100 },
  });
  await ended(client);
  expect(client.end_).toMatch(/^57P05/);
});
