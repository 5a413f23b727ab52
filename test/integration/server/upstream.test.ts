/** `millrace serve --upstream` and `millrace check` against servers that can and cannot be used. */
import { rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { ServerAddress } from '../../../src/config.ts';
import { newDataDir, runMillrace, startMillrace, upstreamUrl } from '../../support/millrace.ts';
import { startPostgres, type TestPostgres } from '../../support/postgres.ts';

let server: TestPostgres;
let replica: TestPostgres;
let directory: string;
beforeAll(async () => {
  directory = newDataDir();
  [server, replica] = await Promise.all([startPostgres(), startPostgres({ version: 15, settings: { wal_level: 'replica' } })]);
  const client = new pg.Client(server.url);
  await client.connect();
  await client.query("CREATE ROLE app LOGIN PASSWORD 'right-secret'; CREATE ROLE poor LOGIN");
  await client.query('CREATE DATABASE app OWNER app');
  await client.end();
  writeFileSync(
    join(server.dataDir, 'pg_hba.conf'),
    'host all app 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\nlocal all all trust\n',
  );
  await server.restart();
});
afterAll(async () => {
  await Promise.all([server?.stop(), replica?.stop()]);
  rmSync(directory, { recursive: true, force: true });
});

const as = (user: string, password?: string, database = user): ServerAddress => ({
  ...server.address,
  user,
  database,
  ...(password === undefined ? {} : { password }),
});

async function run(args: readonly string[], env: Record<string, string> = {}): Promise<{ status: number; output: string }> {
  const program = runMillrace(args, env);
  const status = await program.ended;
  return { status, output: program.output() };
}

async function refusal(url: string, env: Record<string, string> = {}): Promise<string> {
  const { status, output } = await run(
    ['serve', '--listen', '127.0.0.1:0', '--http', '127.0.0.1:0', '--data-dir', directory, '--upstream', url],
    env,
  );
  expect(status).toBe(1);
  expect(output.trimEnd()).not.toContain('\n');
  return output;
}

describe('millrace serve --upstream', () => {
  it('serves a server with passwords, as its own role, with the client asked for its password', async () => {
    const millrace = await startMillrace({ upstream: as('app', 'right-secret'), dataDir: directory });
    try {
      expect(millrace.log()).toContain(`psql -h 127.0.0.1 -p ${millrace.port} -U app app`);
      expect(millrace.log()).not.toContain('right-secret');
      const client = new pg.Client(millrace.url());
      await client.connect();
      expect((await client.query('SELECT current_user')).rows).toEqual([{ current_user: 'app' }]);
      await client.end();
      await expect(new pg.Client(millrace.url().replace('right-secret', 'wrong')).connect()).rejects.toMatchObject({ code: '28P01' });
    } finally {
      expect(await millrace.stop()).toBe(0);
    }
  });

  it('starts an engine with the first extended statement, again after a crash and a restart, and ends it with its database', async () => {
    const admin = new pg.Client(server.url);
    await admin.connect();
    await admin.query('CREATE DATABASE live');
    const first = await startMillrace({ upstream: server.address, dataDir: directory });
    try {
      await first.waitReady();
      expect(first.enginePids()).toEqual([]);
      const client = new pg.Client(first.url('live'));
      await client.connect();
      await client.query("CREATE SECRET token AS 'x'");
      await expect.poll(() => first.enginePids().length, { timeout: 20_000 }).toBe(1);
      await first.waitReady();
      const [engine = 0] = first.enginePids();
      process.kill(engine, 'SIGKILL');
      await expect.poll(() => first.enginePids().filter((pid) => pid !== engine).length, { timeout: 20_000 }).toBe(1);
      await first.waitReady();
      // Clients of the proxy did not notice.
      expect((await client.query('SELECT 1 AS one')).rows).toEqual([{ one: 1 }]);
      await client.end();
    } finally {
      await first.stop();
    }
    const second = await startMillrace({ upstream: server.address, dataDir: directory });
    try {
      await expect.poll(() => second.enginePids().length, { timeout: 20_000 }).toBe(1);
      await second.waitReady();
      await admin.query('DROP DATABASE live WITH (FORCE)');
      await expect.poll(() => second.enginePids().length, { timeout: 40_000, interval: 200 }).toBe(0);
      await second.waitReady();
    } finally {
      await second.stop();
      await admin.end();
    }
  }, 120_000);

  it('serves a server that does not stream, with a warning: stream tables by triggers, sources from others, none from itself', async () => {
    const limited = await startMillrace({ upstream: replica.address });
    const client = new pg.Client({ connectionString: limited.url() });
    await client.connect();
    try {
      expect(limited.log().match(/has wal_level = replica: stream tables over its tables are kept by triggers/g)).toHaveLength(1);
      await client.query('CREATE TABLE counted (id integer PRIMARY KEY); INSERT INTO counted VALUES (1)');
      await client.query("SELECT pgtrickle.create_stream_table('counts', 'SELECT count(*) AS n FROM counted')");
      await client.query("INSERT INTO counted VALUES (2); SELECT pgtrickle.refresh_stream_table('counts')");
      expect((await client.query('SELECT * FROM counts')).rows).toEqual([{ n: '2' }]);
      const origin = new pg.Client({ connectionString: server.url });
      await origin.connect();
      await origin.query(
        'CREATE TABLE streamed (id integer PRIMARY KEY); INSERT INTO streamed VALUES (7); CREATE PUBLICATION streamed FOR TABLE streamed',
      );
      await origin.end();
      const { host, port, user, password } = server.address;
      await client.query(`CREATE SECRET pw AS '${password ?? ''}'`);
      await client.query(
        `CREATE CONNECTION other TO POSTGRES (HOST '${host}', PORT ${port}, USER '${user}', PASSWORD SECRET pw, DATABASE 'postgres')`,
      );
      await client.query("CREATE SOURCE s FROM POSTGRES CONNECTION other (PUBLICATION 'streamed')");
      await client.query('CREATE TABLE streamed FROM SOURCE s (REFERENCE public.streamed)');
      expect((await client.query('SELECT * FROM streamed')).rows).toEqual([{ id: 7 }]);
      await client.query(
        `CREATE CONNECTION itself TO POSTGRES (HOST '${replica.address.host}', PORT ${replica.address.port}, USER '${replica.address.user}', PASSWORD SECRET pw, DATABASE 'postgres')`,
      );
      await expect(client.query("CREATE SOURCE mine FROM POSTGRES CONNECTION itself (PUBLICATION 'streamed')")).rejects.toThrow(
        'origin server must have wal_level = logical, but has replica',
      );
      await client.query('DROP SOURCE s CASCADE');
    } finally {
      await client.end();
      await limited.stop();
    }
  }, 60_000);

  it('says in one line why it cannot start', async () => {
    expect(await refusal('postgres://u:top-secret@127.0.0.1:1/d')).toBe(
      'millrace: cannot reach the upstream at 127.0.0.1:1: nothing listens there (is the server running, and is --upstream right?)\n',
    );
    expect(await refusal('postgres://u@/d?host=/nowhere')).toContain('cannot reach the upstream at /nowhere (port 5432)');
    expect(await refusal(upstreamUrl(as('app')), { PGPASSWORD: 'wrong-secret' })).toMatch(
      /^millrace: the upstream at 127\.0\.0\.1:\d+ refuses role "app": password authentication failed for user "app"/,
    );
    expect(await refusal(upstreamUrl(as('postgres', undefined, 'nope')))).toContain('database "nope" does not exist');
    expect(await refusal('nonsense')).toContain('--upstream');
  });
});

describe('millrace check', () => {
  it('finds a good server good', async () => {
    const { status, output } = await run(['check', '--upstream', upstreamUrl(server.address)]);
    expect(output).toMatch(/^ok {7}reachable: 127\.0\.0\.1:\d+, database "postgres", role "postgres"\nok {7}version: PostgreSQL 18\./);
    expect(output).toContain('ok       wal_level: logical\n');
    expect(output).not.toContain('missing');
    expect(status).toBe(0);
  });
  it('says what is missing and what to do', async () => {
    const poor = await run(['check', '--upstream', upstreamUrl(as('poor', undefined, 'postgres'))]);
    expect(poor.status).toBe(1);
    expect(poor.output).toContain('run GRANT CREATE ON DATABASE "postgres" TO "poor";');
    expect(poor.output).toContain('run ALTER ROLE "poor" REPLICATION;');
    const old = await run(['check', '--upstream', upstreamUrl(replica.address)]);
    expect(old.output).toMatch(/^note {5}wal_level: replica: .*run ALTER SYSTEM SET wal_level = logical; and restart the server$/m);
    const off = await run(['check', '--upstream', 'postgres://127.0.0.1:1/x']);
    expect(off).toMatchObject({ status: 1, output: expect.stringContaining('missing  cannot reach the upstream at 127.0.0.1:1') });
  });
});
