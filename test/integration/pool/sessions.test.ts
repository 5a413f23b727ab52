/** Session mode with a server_reset_query: a client has a server connection of the pool from its first statement until it leaves. */
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import type { ProxySettings } from '../../../src/wire/pool/settings.ts';
import type { TestProxy } from '../wire/proxy.ts';
import { eventually, type PoolClient, type PoolStage, startPoolStage } from './stage.ts';

let stage: PoolStage;
beforeAll(async () => {
  stage = await startPoolStage();
});
afterEach(() => stage.clear());
afterAll(() => stage?.stop());

const sessions = (settings: Partial<ProxySettings> = {}): Promise<TestProxy> =>
  stage.proxy({ poolMode: 'session', serverResetQuery: 'DISCARD ALL', defaultPoolSize: 1, ...settings });
const backend = (client: PoolClient): Promise<unknown> => client.value('SELECT pg_backend_pid()');

describe('pooled sessions', () => {
  it('have one server connection, with all that is left there between transactions', async () => {
    const proxy = await sessions({ defaultPoolSize: 3 });
    const [one, two] = [await stage.connect(proxy), await stage.connect(proxy)];
    const pid = await backend(one);
    await one.query(
      "CREATE TEMP TABLE mine (a int); SET statement_timeout = '7s'; PREPARE p AS SELECT 42 AS a; SELECT pg_advisory_lock(7)",
    );
    for (let i = 0; i < 5; i++) {
      await two.query('SELECT 1');
      await one.query('INSERT INTO mine VALUES (1)');
      expect(await one.value('EXECUTE p')).toBe(42);
    }
    expect(await one.value('SHOW statement_timeout')).toBe('7s');
    expect(await one.value('SELECT count(*)::int FROM mine')).toBe(5);
    expect(await two.value('SELECT pg_try_advisory_lock(7)')).toBe(false);
    expect(await backend(one)).toBe(pid);
    expect(await backend(two)).not.toBe(pid);
  });

  it('leave nothing to the next client of the connection', async () => {
    const proxy = await sessions();
    const one = await stage.connect(proxy);
    const pid = await backend(one);
    await one.query(
      "CREATE TEMP TABLE mine (a int); SET statement_timeout = '7s'; PREPARE p AS SELECT 42; SELECT pg_advisory_lock(7); LISTEN c",
    );
    await one.query({ name: 'named', text: 'SELECT 1' });
    await one.query("SET application_name = 'first'");
    await one.end();
    const two = await stage.connect(proxy);
    expect(await backend(two)).toBe(pid);
    expect(await two.value("SELECT to_regclass('pg_temp.mine')")).toBeNull();
    expect(await two.value('SHOW statement_timeout')).toBe('0');
    expect(await two.value('SHOW application_name')).toBe('');
    expect(await two.value('SELECT count(*)::int FROM pg_prepared_statements')).toBe(0);
    expect(await two.value('SELECT count(*)::int FROM pg_listening_channels()')).toBe(0);
    expect(await stage.direct.value('SELECT pg_try_advisory_lock(7)')).toBe(true);
    await stage.direct.query('SELECT pg_advisory_unlock(7)');
  });

  it('keep others waiting once the pool is empty, until one leaves; DISCARD ALL is not leaving', async () => {
    const proxy = await sessions();
    const one = await stage.connect(proxy);
    const pid = await backend(one);
    const two = await stage.connect(proxy);
    let answered = false;
    const answer = backend(two).finally(() => {
      answered = true;
    });
    await eventually(() => proxy.report().clients.some(({ state }) => state === 'waiting'), 'the second waits');
    await one.query('DISCARD ALL');
    expect(await backend(one)).toBe(pid);
    expect(answered).toBe(false);
    await one.end();
    expect(await answer).toBe(pid);
  });

  it('that end in the middle of a transaction take their connection with them', async () => {
    const proxy = await sessions();
    await stage.direct.query('CREATE TABLE IF NOT EXISTS kept (a int)');
    const one = await stage.connect(proxy);
    const pid = await backend(one);
    await one.query('BEGIN; INSERT INTO kept VALUES (1)');
    await one.end();
    const two = await stage.connect(proxy);
    expect(await backend(two)).not.toBe(pid);
    expect(await two.value('SELECT count(*)::int FROM kept')).toBe(0);
  });

  it('cost no server connection before they ask for something', async () => {
    const proxy = await sessions();
    const idle = await stage.connect(proxy);
    const busy = await stage.connect(proxy);
    expect(await busy.value('SELECT 1')).toBe(1);
    await busy.end();
    expect(await idle.value('SELECT 2')).toBe(2);
  });
});
