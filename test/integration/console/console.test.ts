/** The admin console of a running Millrace with two workers, through node-postgres and psql. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { startMillrace, type TestMillrace } from '../../support/millrace.ts';
import { havePsql, psql, startPostgres, type TestPostgres } from '../../support/postgres.ts';

const directory = mkdtempSync(join(tmpdir(), 'millrace-console-'));
const configFile = join(directory, 'millrace.ini');
const usersFile = join(directory, 'users.txt');
const baseConfig = `[millrace]\nadmin_users = postgres, boss\nstats_users = looker\nauth_file = ${usersFile}\n`;

let postgres: TestPostgres;
let millrace: TestMillrace;
const open: pg.Client[] = [];

beforeAll(async () => {
  postgres = await startPostgres();
  const direct = new pg.Client({ connectionString: postgres.url });
  await direct.connect();
  await direct.query(`CREATE ROLE boss LOGIN PASSWORD 'bóss'; CREATE ROLE looker LOGIN PASSWORD 'look'; CREATE ROLE stranger LOGIN;
    CREATE ROLE sleeper NOLOGIN`);
  await direct.query('CREATE DATABASE shop');
  const [{ hba_file: hba }] = (await direct.query<{ hba_file: string }>('SHOW hba_file')).rows as [{ hba_file: string }];
  writeFileSync(hba, `host all boss,looker all scram-sha-256\n${readFileSync(hba, 'utf8')}`);
  await direct.query('SELECT pg_reload_conf()');
  await direct.end();
  writeFileSync(configFile, baseConfig);
  writeFileSync(usersFile, '"from_file" "secret"\n');
  millrace = await startMillrace({ upstream: postgres.address, args: ['--config', configFile, '--workers', '2'] });
});

afterEach(async () => {
  await Promise.all(open.splice(0).map((client) => client.end().catch(() => undefined)));
});
afterAll(async () => {
  await millrace?.stop();
  await postgres?.stop();
  rmSync(directory, { recursive: true, force: true });
});

async function connect(options: pg.ClientConfig = {}): Promise<pg.Client & { ended?: string }> {
  const client: pg.Client & { ended?: string } = new pg.Client({
    host: millrace.host,
    port: millrace.port,
    user: 'postgres',
    database: 'postgres',
    connectionTimeoutMillis: 20_000,
    ...options,
  });
  client.on('error', (error: Error & { code?: string }) => {
    client.ended ??= error.code ?? error.message;
  });
  await client.connect();
  open.push(client);
  return client;
}

const admin = (options: pg.ClientConfig = {}): Promise<pg.Client> => connect({ database: 'millrace', ...options });

type Row = Readonly<Record<string, string | number | null>>;
async function show(console: pg.Client, what: string): Promise<readonly Row[]> {
  return (await console.query<Row>(`SHOW ${what}`)).rows;
}

/** Two clients of the upstream, one on each worker, by their applications' names. */
async function oneOnEach(
  console: pg.Client,
  database = 'postgres',
): Promise<readonly { client: pg.Client & { ended?: string }; row: Row }[]> {
  const found = new Map<unknown, { client: pg.Client; row: Row }>();
  for (let n = 0; found.size < 2 && n < 20; n++) {
    const name = `one ${database} ${n}`;
    const client = await connect({ database, application_name: name });
    const row = (await show(console, 'CLIENTS')).find((one) => one['application_name'] === name);
    if (row !== undefined) found.set(row['worker'], { client, row });
  }
  expect(found.size).toBe(2);
  return [...found.values()];
}

async function eventually(check: () => Promise<boolean> | boolean, what: string): Promise<void> {
  for (const end = Date.now() + 10_000; !(await check()); await sleep(20))
    if (Date.now() > end) throw new Error(`not within 10 s: ${what}`);
}

describe('SHOW', () => {
  it('shows clients and servers of all workers, with the pids of their backends', async () => {
    const console = await admin();
    const clients = await oneOnEach(console);
    const rows = await show(console, 'CLIENTS');
    expect(new Set(rows.map((row) => row['worker']))).toEqual(new Set([1, 2]));
    expect(rows.some((row) => row['database'] === 'millrace' && row['user'] === 'postgres')).toBe(true);
    const servers = await show(console, 'SERVERS');
    for (const { client, row } of clients) {
      const [{ pid }] = (await client.query('SELECT pg_backend_pid() AS pid')).rows as [{ pid: number }];
      expect(servers.find((server) => server['link'] === row['id'])).toMatchObject({ remote_pid: pid, ptr: row['link'], state: 'active' });
      expect(row).toMatchObject({ type: 'C', addr: '127.0.0.1', local_port: millrace.port, state: 'idle' });
    }
    const [first] = clients;
    await first?.client.query('BEGIN');
    expect((await show(console, 'CLIENTS')).find((row) => row['id'] === first?.row['id'])).toMatchObject({ state: 'active' });
    expect((await show(console, 'POOLS')).find((row) => row['database'] === 'postgres')).toMatchObject({
      cl_active: 2,
      sv_active: 2,
      pool_mode: 'session',
    });
  });

  it('counts what clients do', async () => {
    const console = await admin();
    const client = await connect({ database: 'shop' });
    const before = (await show(console, 'STATS')).find((row) => row['database'] === 'shop');
    await client.query('BEGIN');
    await client.query('SELECT 1');
    await client.query('COMMIT');
    const after = (await show(console, 'STATS')).find((row) => row['database'] === 'shop');
    const grown = (name: string): number => Number(after?.[name]) - Number(before?.[name]);
    expect([grown('total_query_count'), grown('total_xact_count')]).toEqual([3, 1]);
    expect(grown('total_received')).toBeGreaterThan(20);
    await client.end();
    await eventually(async () => (await show(console, 'CLIENTS')).every((row) => row['database'] !== 'shop'), 'the client is gone');
    const kept = (await show(console, 'STATS')).find((row) => row['database'] === 'shop');
    expect(Number(kept?.['total_query_count'])).toBeGreaterThanOrEqual(Number(after?.['total_query_count']));
  });

  it('answers the extended protocol, limits and binary values too', async () => {
    const console = await admin();
    expect((await console.query({ text: 'SHOW LISTS', name: 'lists', rowMode: 'array' })).rows).toContainEqual(['workers', 2]);
    expect((await console.query({ text: 'SHOW LISTS', name: 'lists', binary: true } as pg.QueryConfig)).rows).toContainEqual({
      list: 'workers',
      items: 2,
    });
    const several = (await console.query(
      'SHOW VERSION; SELECT 1 AS one; SET application_name = x; SHOW STATE',
    )) as unknown as pg.QueryResult[];
    expect(several.map(({ command, rows }) => [command, rows.length])).toEqual([
      ['SHOW', 1],
      ['SELECT', 1],
      ['SET', 0],
      ['SHOW', 3],
    ]);
    await expect(console.query({ text: 'SHOW nope', name: 'bad' })).rejects.toMatchObject({ code: '42601', hint: 'SHOW HELP' });
    await expect(console.query('SHOW POOLS; nope')).rejects.toMatchObject({ code: '42601' });
    expect((await console.query('')).rows).toEqual([]);
    expect((await show(console, 'VERSION'))[0]?.['version']).toMatch(/^Millrace \d/);
  });

  it('is in /metrics as well', async () => {
    await connect({ database: 'shop' });
    const line = /^millrace_pool_servers\{worker="\d",database="shop",user="postgres",state="active"\} 1$/m;
    const text = async (): Promise<string> => (await fetch(`http://127.0.0.1:${millrace.httpPort}/metrics`)).text();
    await eventually(async () => line.test(await text()), 'the pool is in /metrics');
    expect(await text()).toMatch(/^millrace_database_queries_total\{worker="\d",database="postgres"\} \d+$/m);
  });
});

describe('who may', () => {
  it('is asked for the password that the upstream knows', async () => {
    await expect(admin({ user: 'boss', password: 'wrong' })).rejects.toMatchObject({ code: '28P01' });
    const console = await admin({ user: 'boss', password: 'bóss' });
    await console.query('RESUME').catch((error: { code?: string }) => expect(error.code).toBe('55000'));
    await expect(admin({ user: 'nobody' })).rejects.toMatchObject({ code: '28000' });
    await expect(admin({ user: 'sleeper' })).rejects.toMatchObject({ code: '28000', message: 'role "sleeper" is not permitted to log in' });
  });

  it('see without being let do, or not even that', async () => {
    const console = await admin({ user: 'looker', password: 'look' });
    expect(await show(console, 'POOLS')).not.toEqual([]);
    await console.query("SET application_name = 'x'; BEGIN; COMMIT");
    for (const command of ['PAUSE', 'RELOAD', 'SHUTDOWN', 'KILL_CLIENT c1', 'SET query_timeout = 1', 'KILL', 'DISABLE shop']) {
      await expect(console.query(command)).rejects.toMatchObject({ code: '42501', message: 'admin access needed' });
    }
    await expect(admin({ user: 'stranger' })).rejects.toMatchObject({ code: '28000', message: 'not allowed' });
  });
});

describe('commands', () => {
  it('KILL_CLIENT reaches a client of the other worker', async () => {
    const console = await admin();
    const clients = await oneOnEach(console);
    for (const { client, row } of clients) {
      await console.query(`KILL_CLIENT ${row['id']}`);
      await eventually(() => client.ended !== undefined, 'the client is told');
      expect(client.ended).toBe('57P01');
    }
    await expect(console.query('KILL_CLIENT c0_0')).rejects.toMatchObject({ code: '55000', message: 'client c0_0 not found' });
  });

  it('PAUSE waits for transactions and holds what comes after, RESUME lets it go on', async () => {
    const console = await admin();
    const [one, two] = await oneOnEach(console, 'shop');
    if (one === undefined || two === undefined) throw new Error('two are needed');
    await one.client.query('BEGIN');
    let paused = false;
    const pause = console.query('PAUSE shop').then(() => {
      paused = true;
    });
    await sleep(200);
    expect(paused).toBe(false);
    await one.client.query('SELECT 1');
    let late = '';
    const commit = one.client.query('COMMIT');
    await Promise.all([pause, commit]);
    const held = [two.client.query('SELECT 2'), connect({ database: 'shop' })].map((work, index) => work.then(() => (late += index)));
    const other = await connect();
    expect((await other.query('SELECT 3')).rowCount).toBe(1);
    await sleep(300);
    expect(late).toBe('');
    expect((await show(console, 'DATABASES')).find((row) => row['name'] === 'shop')).toMatchObject({ paused: 1 });
    expect((await show(console, 'POOLS')).find((row) => row['database'] === 'shop')).toMatchObject({ cl_waiting: 1, paused: 1 });
    await expect(console.query('PAUSE shop')).rejects.toMatchObject({ code: '55000', message: 'database "shop" is paused already' });
    await console.query('RESUME shop');
    await Promise.all(held);
    await expect(console.query('RESUME shop')).rejects.toMatchObject({ message: 'database "shop" is not paused' });
  });

  it('a PAUSE that is cancelled, or whose client leaves, is undone', async () => {
    const watcher = await admin();
    const busy = await connect({ database: 'shop' });
    await busy.query('BEGIN');
    const state = async (): Promise<unknown> => (await show(watcher, 'STATE')).find((row) => row['key'] === 'paused')?.['value'];
    // The cancel request goes to whichever worker takes it.
    for (let n = 0; n < 3; n++) {
      const console = await admin();
      const pause = console.query('PAUSE');
      const refused = expect(pause).rejects.toMatchObject({ code: '57014' });
      await eventually(async () => (await state()) === 'yes', 'it is paused');
      await cancel(console);
      await refused;
      await eventually(async () => (await state()) === 'no', 'it is resumed');
    }
    const leaver = await admin();
    leaver.query('PAUSE').catch(() => undefined);
    await eventually(async () => (await state()) === 'yes', 'it is paused');
    (leaver as unknown as { connection: { stream: { destroy(): void } } }).connection.stream.destroy();
    await eventually(async () => (await state()) === 'no', 'it is resumed');
    await busy.query('COMMIT');
  });

  it('DISABLE refuses new clients, ENABLE lets them in; a worker that is started again knows', async () => {
    const console = await admin();
    const inside = await connect({ database: 'shop' });
    await console.query('DISABLE shop');
    const code = (): Promise<string> =>
      connect({ database: 'shop' }).then(
        () => 'in',
        (error: { code: string }) => error.code,
      );
    expect([await code(), await code()]).toEqual(['55000', '55000']);
    expect((await inside.query('SELECT 1')).rowCount).toBe(1);
    for (const pid of millrace.workerPids()) process.kill(pid, 'SIGKILL');
    const again = await retried(() => admin({ connectionTimeoutMillis: 1_000 }));
    await eventually(async () => (await show(again, 'WORKERS')).every((row) => row['state'] === 'ready'), 'both workers are back');
    expect((await show(again, 'WORKERS')).map((row) => row['restarts'])).toEqual([1, 1]);
    expect([await code(), await code()]).toEqual(['55000', '55000']);
    await again.query('ENABLE shop');
    expect([await code(), await code()]).toEqual(['in', 'in']);
  });

  it('KILL ends all clients of a database and pauses it', async () => {
    const console = await admin();
    const clients = await oneOnEach(console, 'shop');
    await console.query('KILL shop');
    for (const { client } of clients) await eventually(() => client.ended === '57P01', 'clients are told');
    expect((await show(console, 'DATABASES')).find((row) => row['name'] === 'shop')).toMatchObject({ paused: 1 });
    await console.query('RESUME shop');
    await connect({ database: 'shop' });
  });

  it('WAIT_CLOSE returns when the clients of before RECONNECT are gone', async () => {
    const console = await admin();
    const client = await connect({ database: 'shop' });
    await console.query('RECONNECT shop');
    const stays = await connect({ database: 'shop' });
    let over = false;
    const wait = console.query('WAIT_CLOSE shop').then(() => {
      over = true;
    });
    await sleep(200);
    expect(over).toBe(false);
    await client.end();
    await wait;
    expect((await stays.query('SELECT 1')).rowCount).toBe(1);
  });

  it.skipIf(!havePsql)('psql shows it all, and Ctrl-C works as ever', async () => {
    const address = { ...millrace.address('millrace') };
    const script = 'SHOW HELP;\nSHOW DATABASES;\n\\conninfo\nPAUSE nope;RESUME nope;\nFOO;\nSHOW STATE\\gdesc\n\\bind \\g\n';
    const { stdout, stderr, code } = await psql(address, script, { raw: true });
    expect(code).toBe(0);
    expect(stderr).toContain('NOTICE:  Console usage');
    expect(stderr).toContain('ERROR:  invalid command "FOO"\nHINT:  SHOW HELP');
    expect(stdout).toMatch(/name +\| +host/);
    expect(stdout).toContain('PAUSE\nRESUME');
  });
});

describe('settings', () => {
  const value = async (console: pg.Client, key: string): Promise<unknown> =>
    (await show(console, 'CONFIG')).find((row) => row['key'] === key)?.['value'];
  /** Of both workers: each console is on one of them. */
  const everywhere = async (key: string): Promise<unknown[]> => {
    const consoles = [await admin(), await admin(), await admin()];
    const values = await Promise.all(consoles.map((console) => value(console, key)));
    return [...new Set(values)];
  };

  it('are read again by RELOAD and by SIGHUP, a broken file changes nothing', async () => {
    const console = await admin();
    writeFileSync(configFile, `${baseConfig}default_pool_size = 33\nlisten_port = 1\n`);
    const notices: string[] = [];
    console.on('notice', (notice) => notices.push(notice.message ?? ''));
    await console.query('RELOAD');
    expect(notices).toEqual(['listen_port was changed and takes effect when Millrace is started again']);
    expect(await everywhere('default_pool_size')).toEqual(['33']);

    writeFileSync(configFile, `${baseConfig}default_pool_size = many\n`);
    await expect(console.query('RELOAD')).rejects.toMatchObject({
      code: '55000',
      message: `${configFile}:5: default_pool_size = "many": allowed is a whole number from 1`,
    });
    process.kill(millrace.pid, 'SIGHUP');
    await eventually(() => millrace.log().split('settings stay as they were').length === 3, 'the log says so');
    expect(await everywhere('default_pool_size')).toEqual(['33']);

    writeFileSync(usersFile, '"other" "secret"\n');
    writeFileSync(configFile, `${baseConfig}default_pool_size = 34\n`);
    process.kill(millrace.pid, 'SIGHUP');
    await eventually(async () => (await value(console, 'default_pool_size')) === '34', 'SIGHUP has worked');
    expect((await show(console, 'USERS')).map((row) => row['name'])).toContain('other');
    expect(JSON.stringify([await show(console, 'CONFIG'), await show(console, 'USERS'), millrace.log()])).not.toContain('secret"');
  });

  it('are set until the next reload', async () => {
    const console = await admin();
    writeFileSync(configFile, baseConfig);
    await console.query("SET query_wait_timeout = '1.5'; SET admin_users = postgres");
    expect(await everywhere('query_wait_timeout')).toEqual(['1.5']);
    await expect(admin({ user: 'boss', password: 'bóss' })).rejects.toMatchObject({ message: 'not allowed' });
    await expect(console.query('SET query_wait_timeout = soon')).rejects.toMatchObject({ code: '22023' });
    await expect(console.query('SET admin_database = x')).rejects.toMatchObject({ code: '22023' });
    await console.query('PAUSE shop');
    await expect(connect({ database: 'shop' })).rejects.toMatchObject({ code: '57P03' });
    await console.query('RESUME shop');
    await console.query('RELOAD');
    expect(await everywhere('query_wait_timeout')).toEqual(['120']);
    await admin({ user: 'boss', password: 'bóss' });
  });
});

describe('a worker that hangs', () => {
  it('is missing, and the console says so', async () => {
    const console = await admin();
    const own = (await show(console, 'CLIENTS')).find((row) => row['database'] === 'millrace')?.['worker'];
    const workers = await show(console, 'WORKERS');
    const other = workers.find((row) => row['worker'] !== own);
    const notices: string[] = [];
    console.on('notice', (notice) => notices.push(notice.message ?? ''));
    process.kill(Number(other?.['pid']), 'SIGSTOP');
    try {
      const begun = Date.now();
      const rows = await show(console, 'WORKERS');
      expect(Date.now() - begun).toBeLessThan(6_000);
      expect(rows.map((row) => row['state']).sort()).toEqual(['no answer', 'ready']);
      await console.query('PAUSE');
      await console.query('RESUME');
      expect(notices).toEqual(Array.from({ length: 3 }, () => `worker ${other?.['worker']} has not answered in time`));
    } finally {
      process.kill(Number(other?.['pid']), 'SIGCONT');
    }
  });
});

describe('SHUTDOWN', () => {
  const start = (): Promise<TestMillrace> =>
    startMillrace({ upstream: postgres.address, args: ['--workers', '2', '--pool-mode', 'session'] });

  it('WAIT_FOR_CLIENTS ends Millrace when the last client has left', async () => {
    const other = await start();
    const client = await connect({ port: other.port });
    const console = await connect({ port: other.port, database: 'millrace' });
    await console.query('SHUTDOWN WAIT_FOR_CLIENTS');
    await sleep(300);
    expect((await client.query('SELECT 1')).rowCount).toBe(1);
    await expect(connect({ port: other.port })).rejects.toThrow();
    expect(await show(console, 'VERSION')).toHaveLength(1);
    await client.end();
    await eventually(() => other.log().includes('stopping'), 'it stops');
    expect(await other.stop()).toBe(0);
  });

  it('ends it as SIGTERM does', async () => {
    const other = await start();
    const client = await connect({ port: other.port });
    const console = await connect({ port: other.port, database: 'millrace' });
    await console.query('SHUTDOWN');
    await eventually(() => client.ended === '57P01', 'clients are told');
    expect(await other.stop()).toBe(0);
  });
});

/** A cancel request, as psql's Ctrl-C sends it. */
async function cancel(client: pg.Client): Promise<void> {
  const { processID, secretKey } = client as unknown as { processID: number; secretKey: number };
  const packet = Buffer.alloc(16);
  packet.writeInt32BE(16, 0);
  packet.writeInt32BE(80877102, 4);
  packet.writeInt32BE(processID, 8);
  packet.writeInt32BE(secretKey, 12);
  const { connect: dial } = await import('node:net');
  const socket = dial(millrace.port, millrace.host);
  socket.on('error', () => undefined);
  socket.end(packet);
  await new Promise((resolve) => socket.once('close', resolve));
}

async function retried<T>(work: () => Promise<T>): Promise<T> {
  for (let left = 100; ; left--) {
    try {
      return await work();
    } catch (error) {
      if (left === 0) throw error;
      await sleep(100);
    }
  }
}
