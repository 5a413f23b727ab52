/** A whole Millrace with two workers and transaction pooling: extended statements, the console, limits and cancels across workers. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { connect as dial } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type pg from 'pg';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { cancelPacket } from '../../../src/wire/encode.ts';
import { eventually as eventuallyRows, leadsTo, type Stage, startStage } from '../statements/stage.ts';
import { errorText, eventually, PoolClient } from './stage.ts';

const directory = mkdtempSync(join(tmpdir(), 'millrace-pool-'));
const configFile = join(directory, 'pgbouncer.ini');
let stage: Stage;
const open: pg.Client[] = [];

beforeAll(async () => {
  writeFileSync(
    configFile,
    `[pgbouncer]
pool_mode = transaction
auth_type = trust
default_pool_size = 4
admin_users = postgres
[databases]
sessions = pool_mode=session
`,
  );
  stage = await startStage({ args: ['--config', configFile, '--workers', '2'] });
});
afterEach(async () => {
  await Promise.all(open.splice(0).map((client) => client.end().catch(() => undefined)));
});
afterAll(async () => {
  await stage?.stop();
  rmSync(directory, { recursive: true, force: true });
});

async function connect(config: pg.ClientConfig = {}): Promise<PoolClient> {
  const client = new PoolClient({ host: '127.0.0.1', port: stage.millrace.port, user: 'postgres', database: 'postgres', ...config });
  client.on('error', (error) => {
    client.end_ ??= errorText(error);
  });
  await client.connect();
  open.push(client);
  return client;
}

type Row = Readonly<Record<string, unknown>>;
const show = async (console: PoolClient, what: string): Promise<readonly Row[]> => (await console.query<Row>(`SHOW ${what}`)).rows;

/** Clients, at least one on each worker. */
async function onBothWorkers(console: PoolClient): Promise<{ client: PoolClient; row: Row }[]> {
  const found = new Map<unknown, { client: PoolClient; row: Row }>();
  for (let n = 0; found.size < 2 && n < 20; n++) {
    const client = await connect({ application_name: `number ${n}` });
    const row = (await show(console, 'CLIENTS')).find((one) => one['application_name'] === `number ${n}`);
    if (row !== undefined) found.set(row['worker'], { client, row });
  }
  expect(found.size).toBe(2);
  return [...found.values()];
}

describe('extended statements through a transaction pool', () => {
  it('make a source, versions and views, in any statement’s own transaction', async () => {
    const origin = await stage.direct(stage.origin);
    await origin.query('CREATE TABLE t (a int PRIMARY KEY, b text); CREATE PUBLICATION mz_source FOR ALL TABLES');
    await origin.query("INSERT INTO t VALUES (1, 'one'), (2, 'two')");
    const client = await connect();
    const other = await connect();
    await client.query("CREATE SECRET pw AS 'x'");
    await client.query(`CREATE CONNECTION c TO POSTGRES (${leadsTo(stage.origin)})`);
    await client.query("CREATE SOURCE s FROM POSTGRES CONNECTION c (PUBLICATION 'mz_source')");
    await client.query('CREATE TABLE v FROM SOURCE s (REFERENCE public.t)');
    await client.query('CREATE MATERIALIZED VIEW m AS SELECT count(*)::int AS n, sum(a)::int AS total FROM v');
    expect(await other.rows('SELECT * FROM m')).toEqual([[2, 3]]);
    expect((await other.rows('SHOW SOURCES')).map(([name]) => name)).toEqual(['s']);
    await origin.query("INSERT INTO t VALUES (3, 'three')");
    await eventuallyRows(other as never, 'SELECT total FROM m', [[6]]);
  });

  it('work inside BEGIN .. COMMIT and roll back with it, with parameters and prepared by name', async () => {
    const client = await connect();
    const other = await connect();
    await client.query('BEGIN');
    await client.query("CREATE SECRET in_block AS 'x'");
    await client.query('CREATE SCHEMA v9');
    await client.query('CREATE TABLE v9.t FROM SOURCE s (REFERENCE public.t) WITH (EXCLUDE COLUMNS (b))');
    expect((await other.rows('SHOW SECRETS')).map(([name]) => name)).toEqual(['pw']);
    await client.query('ROLLBACK');
    expect((await other.rows('SHOW SECRETS')).map(([name]) => name)).toEqual(['pw']);
    await client.query("BEGIN; CREATE SECRET in_block AS 'x'; COMMIT");
    for (let n = 0; n < 3; n++) {
      const { rows } = await other.query({ name: 'listing', text: "SHOW SECRETS LIKE 'in_%'" });
      expect(rows.map((row: Row) => row['name'])).toEqual(['in_block']);
    }
    await client.query('DROP SECRET in_block');
    expect(await client.failure('CREATE SORCE x')).toMatch(/^42601/);
  });

  it('a failing one leaves the client and the pool in order', async () => {
    const client = await connect();
    expect(await client.failure('DROP SOURCE nothing')).toMatch(/^42704/);
    await client.query('BEGIN');
    expect(await client.failure('DROP SOURCE nothing')).toMatch(/^42704/);
    expect(await client.failure('SELECT 1')).toMatch(/^25P02/);
    await client.query('ROLLBACK');
    expect(await client.value('SELECT 1')).toBe(1);
  });

  it('SET millrace.wait pins its client, and the next one waits as ever', async () => {
    const client = await connect();
    await client.query('SET millrace.wait = off');
    const console = await connect({ database: 'millrace' });
    expect((await show(console, 'CLIENTS')).map((row) => row['pinned'])).toContain('SET millrace.wait');
    await client.end();
    const others = await Promise.all(Array.from({ length: 6 }, () => connect()));
    const waits = await Promise.all(others.map((one) => one.value("SELECT coalesce(current_setting('millrace.wait', true), '')")));
    expect(waits.filter((wait) => wait === 'off')).toEqual([]);
  });
});

describe('the console with a pool', () => {
  it('SHOW POOLS adds up both workers, SHOW CLIENTS and SERVERS name them', async () => {
    const console = await connect({ database: 'millrace' });
    const clients = await onBothWorkers(console);
    for (const { client } of clients) await client.query('BEGIN');
    const pool = (await show(console, 'POOLS')).find((row) => row['database'] === 'postgres');
    expect(pool).toMatchObject({ pool_mode: 'transaction', cl_waiting: 0, sv_active: 2 });
    expect(Number(pool?.['cl_active'])).toBeGreaterThanOrEqual(2);
    const active = (await show(console, 'SERVERS')).filter((row) => row['state'] === 'active');
    expect(new Set(active.map((row) => row['worker'])).size).toBe(2);
    const rows = await show(console, 'CLIENTS');
    for (const { row } of clients) {
      const now = rows.find((one) => one['id'] === row['id']);
      expect(active.map((server) => server['ptr'])).toContain(now?.['link']);
    }
    for (const { client } of clients) await client.query('COMMIT');
    expect((await show(console, 'POOLS')).find((row) => row['database'] === 'postgres')).toMatchObject({ sv_active: 0 });
  });

  it('PAUSE lets transactions end and holds the rest, RESUME lets them go on', async () => {
    const console = await connect({ database: 'millrace' });
    const [one, two] = [await connect(), await connect()];
    await one.query('BEGIN');
    let paused = false;
    const pausing = console.query('PAUSE postgres').then(() => {
      paused = true;
    });
    const watcher = await connect({ database: 'millrace' });
    await eventually(async () => (await show(watcher, 'POOLS')).some((row) => row['paused'] === 1), 'it is being paused');
    let answered = false;
    const held = two.value('SELECT 2').then((value) => {
      answered = true;
      return value;
    });
    expect(await one.value('SELECT 1')).toBe(1);
    expect([paused, answered]).toEqual([false, false]);
    await one.query('COMMIT');
    await pausing;
    await eventually(async () => (await show(watcher, 'SERVERS')).length === 0, 'the server connections are closed');
    expect(answered).toBe(false);
    await console.query('RESUME postgres');
    expect(await held).toBe(2);
    expect(await one.value('SELECT 1')).toBe(1);
  });

  it('RECONNECT replaces server connections when they are free, WAIT_CLOSE waits for that', async () => {
    const console = await connect({ database: 'millrace' });
    const client = await connect();
    await client.query('BEGIN');
    const pid = await client.value('SELECT pg_backend_pid()');
    await console.query('RECONNECT postgres');
    let closed = false;
    const closing = console.query('WAIT_CLOSE postgres').then(() => {
      closed = true;
    });
    expect(await client.value('SELECT pg_backend_pid()')).toBe(pid);
    expect(closed).toBe(false);
    await client.query('COMMIT');
    await closing;
    expect(await client.value('SELECT pg_backend_pid()')).not.toBe(pid);
  });

  it('KILL_CLIENT ends one client and what it had running, KILL all of a database', async () => {
    const console = await connect({ database: 'millrace' });
    const direct = await stage.direct(stage.upstream);
    const sleepers =
      "SELECT count(*)::int FROM pg_stat_activity WHERE query LIKE '%pg_sleep(77)%' AND pid <> pg_backend_pid() AND state = 'active'";
    const victim = await connect({ application_name: 'victim' });
    const bystander = await connect();
    const sleeping = victim.failure('SELECT pg_sleep(77)');
    await eventually(async () => (await direct.rows(sleepers))[0]?.[0] === 1, 'it sleeps');
    const id = (await show(console, 'CLIENTS')).find((row) => row['application_name'] === 'victim')?.['id'];
    await console.query(`KILL_CLIENT "${String(id)}"`);
    expect(await sleeping).toBe('57P01 terminating connection due to administrator command');
    await eventually(async () => (await direct.rows(sleepers))[0]?.[0] === 0, 'its query has ended too');
    expect(await bystander.value('SELECT 1')).toBe(1);

    const busy = bystander.failure('SELECT pg_sleep(77)');
    await eventually(async () => (await direct.rows(sleepers))[0]?.[0] === 1, 'it sleeps');
    await console.query('KILL postgres');
    expect(await busy).toBe('57P01 terminating connection due to administrator command');
    await console.query('RESUME postgres');
    expect(await (await connect()).value('SELECT 1')).toBe(1);
  });

  it('SET and RELOAD change pools that run', async () => {
    const console = await connect({ database: 'millrace' });
    await console.query('SET query_timeout = 0.3');
    const client = await connect();
    expect(await client.failure('SELECT pg_sleep(60)')).toMatch(/^57014 terminating connection due to query timeout/);
    await console.query('RELOAD');
    expect(await (await connect()).rows('SELECT 1 FROM pg_sleep(0.6)')).toEqual([[1]]);
  });
});

describe('two workers', () => {
  it('a cancel request that reaches the other worker ends the right query', async () => {
    const console = await connect({ database: 'millrace' });
    const clients = await onBothWorkers(console);
    // Connections go round: of several requests some reach the other worker.
    for (const { client } of [...clients, ...clients]) {
      const others = clients.filter((one) => one.client !== client).map((one) => one.client.value('SELECT 1 FROM pg_sleep(0.3)'));
      const sleeping = client.failure('SELECT pg_sleep(60)');
      await new Promise((resolve) => setTimeout(resolve, 100));
      await cancel(client);
      expect(await sleeping).toBe('57014 canceling statement due to user request');
      expect(await Promise.all(others)).toEqual([1]);
    }
  });

  it('share the pool: half of it each', async () => {
    const clients = await Promise.all(Array.from({ length: 16 }, () => connect()));
    const pids = await Promise.all(clients.map((client) => client.value('SELECT pg_backend_pid() FROM pg_sleep(0.05)')));
    expect(new Set(pids).size).toBeLessThanOrEqual(4);
    expect(new Set(pids).size).toBeGreaterThanOrEqual(2);
  });

  it('a database with a pool mode of its own', async () => {
    await (await connect()).query('CREATE DATABASE sessions');
    const clients = await Promise.all(Array.from({ length: 6 }, () => connect({ database: 'sessions' })));
    const pids = await Promise.all(clients.map((client) => client.value('SELECT pg_backend_pid()')));
    expect(new Set(pids).size).toBe(6);
    const console = await connect({ database: 'millrace' });
    expect((await show(console, 'POOLS')).find((row) => row['database'] === 'sessions')).toMatchObject({
      pool_mode: 'session',
      cl_active: 6,
    });
  });
});

async function cancel(client: PoolClient): Promise<void> {
  const { processID, secretKey } = client as unknown as { processID: number; secretKey: number };
  await new Promise<void>((resolve) => {
    const key = Buffer.alloc(4);
    key.writeInt32BE(secretKey);
    const packet = cancelPacket(processID, key);
    const socket = dial(stage.millrace.port, '127.0.0.1', () => socket.write(packet));
    socket.on('close', () => resolve()).resume();
  });
}
