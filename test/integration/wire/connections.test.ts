/** How connections begin and end: startup, authentication, TLS to the upstream, cancel, disconnects, drain, back-pressure. */
import { execFileSync } from 'node:child_process';
import { appendFileSync, chownSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import pg from 'pg';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import type { SslOptions } from '../../../src/config.ts';
import { message, query, sslRequest, sync } from '../../../src/wire/encode.ts';
import { havePsql, psql, startPostgres, type TestPostgres } from '../../support/postgres.ts';
import { fakeRunner, startProxy, type TestProxy } from './proxy.ts';
import { RawClient, shown, startupPacket } from './raw-client.ts';

let postgres: TestPostgres;
let direct: pg.Client;
const workers: TestProxy[] = [];
let certificates: string;

beforeAll(async () => {
  postgres = await startPostgres();
  direct = new pg.Client(postgres.url);
  await direct.connect();
  await direct.query(`SET password_encryption = 'scram-sha-256'; CREATE ROLE scram LOGIN PASSWORD 'pässword';
    SET password_encryption = 'md5'; CREATE ROLE md LOGIN PASSWORD 'secret'; CREATE ROLE clear LOGIN PASSWORD 'secret'`);
  certificates = mkdtempSync(join(tmpdir(), 'millrace-certificates-'));
  execFileSync(
    'openssl',
    ['req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-keyout', 'server.key', '-out', 'server.crt', '-days', '2'].concat([
      ...['-subj', '/CN=localhost', '-addext', 'subjectAltName=DNS:localhost'],
    ]),
    { cwd: certificates, stdio: 'ignore' },
  );
  const owner = statSync(postgres.dataDir);
  for (const name of ['server.key', 'server.crt']) {
    const path = join(postgres.dataDir, name);
    writeFileSync(path, readFileSync(join(certificates, name)), { mode: 0o600 });
    chownSync(path, owner.uid, owner.gid);
  }
  const hba = join(postgres.dataDir, 'pg_hba.conf');
  writeFileSync(
    hba,
    `host all scram all scram-sha-256\nhost all md all md5\nhost all clear all password\nhostssl all all all trust\n${readFileSync(hba, 'utf8')}`,
  );
  appendFileSync(join(postgres.dataDir, 'postgresql.auto.conf'), 'ssl = on\n');
  await direct.query('SELECT pg_reload_conf()');
});
afterAll(async () => {
  await direct?.end();
  await postgres?.stop();
  rmSync(certificates, { recursive: true, force: true });
});
afterEach(async () => {
  for (const worker of workers.splice(0)) await worker.stop(0);
});

async function start(options: { ssl?: SslOptions; host?: string; port?: number; authenticationTimeout?: number } = {}): Promise<TestProxy> {
  const address = {
    ...postgres.address,
    ...(options.ssl === undefined ? {} : { ssl: options.ssl }),
    ...(options.host === undefined ? {} : { host: options.host }),
    ...(options.port === undefined ? {} : { port: options.port }),
  };
  const timeout = options.authenticationTimeout;
  const worker = await startProxy(address, fakeRunner(), timeout === undefined ? {} : { authenticationTimeout: timeout });
  workers.push(worker);
  return worker;
}

async function backends(): Promise<number> {
  const found = await direct.query("SELECT count(*)::int AS n FROM pg_stat_activity WHERE backend_type = 'client backend'");
  return found.rows[0].n - 1;
}

async function eventually(check: () => Promise<boolean>): Promise<void> {
  for (const end = Date.now() + 5000; Date.now() < end; ) {
    if (await check()) return;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  throw new Error('it did not come to be');
}

const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

describe('startup', () => {
  it('refuses SSL and GSS encryption, then goes on', async () => {
    const { port } = await start();
    const c = await RawClient.connect(port);
    const gss = Buffer.from([0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x30]);
    // The two answers have no length, so they are read together with what follows.
    c.write(gss, sslRequest, startupPacket({ user: 'nobody-such' }));
    await eventually(async () => c.ended);
  });

  it('turns away what is no startup packet', async () => {
    const { port } = await start();
    for (const bytes of [
      Buffer.from('GET / HTTP/1.1\r\n\r\n'),
      Buffer.from([0, 0, 0x27, 0x11, 0, 3, 0, 0]),
      Buffer.from([0x16, 3, 1, 0, 0]),
    ]) {
      const c = await RawClient.connect(port);
      c.write(bytes);
      const answer = shown(await c.until('E'));
      if (bytes[0] === 0) expect(answer).toEqual(['E FATAL 08P01 invalid length of startup packet']);
      await eventually(async () => c.ended);
    }
  });

  it('does not wait for ever', async () => {
    const { port } = await start({ authenticationTimeout: 200 });
    const c = await RawClient.connect(port);
    c.write(Buffer.from([0, 0]));
    await eventually(async () => c.ended);
    const asked = await RawClient.connect(port);
    asked.write(startupPacket({ user: 'scram', database: 'postgres' }));
    await asked.until('R');
    await eventually(async () => asked.ended);
    await eventually(async () => (await backends()) === 0);
  });

  it('takes nothing but answers before authentication', async () => {
    const { port } = await start();
    for (const bytes of [query('SELECT 1', 'utf8'), Buffer.from([0x70, 0, 2, 0, 0])]) {
      const c = await RawClient.connect(port);
      c.write(startupPacket({ user: 'scram', database: 'postgres' }));
      await c.until('R');
      c.write(bytes);
      expect(shown(await c.until('E'))).toEqual(['E FATAL 08P01 expected a password response']);
      await eventually(async () => c.ended);
    }
  });

  it('says when the upstream cannot be reached', async () => {
    const { port } = await start({ port: 1 });
    const c = await RawClient.connect(port);
    c.write(startupPacket({ user: 'postgres' }));
    expect(shown(await c.until('E'))).toEqual(['E FATAL 08006 could not connect to the upstream server']);
    await eventually(async () => c.ended);
  });
});

describe('authentication', () => {
  it.each([
    ['scram', 'pässword'],
    ['md', 'secret'],
    ['clear', 'secret'],
  ])('is relayed: %s', async (user, password) => {
    const { port } = await start();
    const connect = async (word: string): Promise<string> => {
      const c = new pg.Client({ host: '127.0.0.1', port, user, password: word, database: 'postgres' });
      await c.connect();
      const { rows } = await c.query('SELECT session_user::text AS u');
      await c.end();
      return rows[0].u;
    };
    expect(await connect(password)).toBe(user);
    await expect(connect('wrong')).rejects.toMatchObject({ code: '28P01' });
  });

  it.skipIf(!havePsql)('works for libpq over an encrypted upstream', async () => {
    const { port } = await start({ ssl: { mode: 'require' } });
    const address = { host: '127.0.0.1', port, user: 'scram', password: 'pässword', database: 'postgres' };
    const answer = await psql(address, ['-c', 'SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()']);
    expect(answer).toEqual({ stdout: 't\n', stderr: '', code: 0 });
  });
});

describe('TLS to the upstream', () => {
  const ask = async (ssl: SslOptions, host = 'localhost'): Promise<string> => {
    const { port } = await start({ ssl, host });
    const c = new pg.Client({ host: '127.0.0.1', port, user: 'postgres', database: 'postgres' });
    c.on('error', () => undefined);
    try {
      await c.connect();
      const { rows } = await c.query("SELECT ssl::text, repeat('x', 3000000) FROM pg_stat_ssl WHERE pid = pg_backend_pid()");
      return rows[0].ssl;
    } catch (error) {
      return String((error as { detail?: string }).detail);
    } finally {
      await c.end();
    }
  };
  it('follows the mode', async () => {
    const ca = readFileSync(join(certificates, 'server.crt'), 'utf8');
    expect(await ask({ mode: 'disable' })).toBe('false');
    expect(await ask({ mode: 'prefer' })).toBe('true');
    expect(await ask({ mode: 'require' })).toBe('true');
    expect(await ask({ mode: 'verify-ca' })).toMatch(/self-signed/);
    expect(await ask({ mode: 'verify-ca', ca })).toBe('true');
    expect(await ask({ mode: 'verify-ca', ca }, '127.0.0.1')).toBe('true');
    expect(await ask({ mode: 'verify-full', ca })).toBe('true');
    expect(await ask({ mode: 'verify-full', ca }, '127.0.0.1')).toMatch(/altnames/);
  });
});

describe('the end of connections', () => {
  it('takes the upstream connection along', async () => {
    const { port } = await start();
    const c = await RawClient.open(port);
    expect(await backends()).toBe(1);
    c.destroy();
    await eventually(async () => (await backends()) === 0);
    const polite = await RawClient.open(port);
    polite.write(message(0x58, []));
    polite.end();
    await eventually(async () => (await backends()) === 0);
    await eventually(async () => workers[0]?.metrics()['millrace_client_connections'] === 0);
  });

  it('takes the client along, with everything that was said', async () => {
    const { port } = await start();
    const c = await RawClient.open(port);
    c.write(query('SELECT pg_terminate_backend(pg_backend_pid())', 'utf8'));
    expect(shown(await c.until('E')).at(-1)).toMatch(/^E FATAL 57P01/);
    await eventually(async () => c.ended);
  });

  it('does not commit a statement whose client is gone', async () => {
    const { port } = await start();
    await direct.query('CREATE TABLE gone (a int)');
    const c = await RawClient.open(port);
    c.write(query("CREATE SECRET s AS 'INSERT INTO gone VALUES (1); SELECT pg_sleep(0.5)'", 'utf8'));
    await pause(100);
    c.destroy();
    await eventually(async () => (await backends()) === 0);
    expect((await direct.query('SELECT count(*)::int AS n FROM gone')).rows).toEqual([{ n: 0 }]);
    const polite = await RawClient.open(port);
    polite.write(query("CREATE SECRET s AS 'INSERT INTO gone VALUES (1); SELECT pg_sleep(0.2)'", 'utf8'), message(0x58, []));
    polite.end();
    await eventually(async () => (await backends()) === 0);
    expect((await direct.query('SELECT count(*)::int AS n FROM gone')).rows).toEqual([{ n: 1 }]);
  });

  it('survives the death of the upstream session in the middle of a statement of ours', async () => {
    const { port } = await start();
    const c = await RawClient.open(port);
    c.write(query("CREATE SECRET s AS 'SELECT pg_sleep(20)'", 'utf8'));
    await pause(100);
    await direct.query(
      "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(20)%' AND pid <> pg_backend_pid()",
    );
    expect(shown(await c.until('E')).at(-1)).toMatch(/^E FATAL 57P01/);
    await eventually(async () => c.ended);
  });

  it.each([
    [0, 8],
    [2, 36],
  ])('cancels a statement of ours, protocol 3.%i', async (minor, keyLength) => {
    const { port } = await start();
    const c = await RawClient.connect(port);
    const startup = startupPacket({ user: 'postgres', database: 'postgres' });
    startup.writeInt32BE(196608 + minor, 4);
    c.write(startup);
    const key = (await c.until('Z')).find((one) => one.tag === 'K')?.body ?? Buffer.alloc(0);
    expect(key).toHaveLength(keyLength);
    c.write(query("CREATE SECRET s AS 'SELECT pg_sleep(20)'", 'utf8'));
    await pause(100);
    const canceller = await RawClient.connect(port);
    const head = Buffer.from([0, 0, 0, 8 + key.length, 0x04, 0xd2, 0x16, 0x2e]);
    canceller.write(head, key);
    expect(shown(await c.until('Z'))).toEqual(['E ERROR 57014 canceling statement due to user request', 'Z I']);
    await eventually(async () => canceller.ended);
  });
});

describe('a Unix socket to the upstream', () => {
  it('is used when the host is a directory', async () => {
    const [found] = (await direct.query("SELECT current_setting('unix_socket_directories') AS dir")).rows;
    const { port } = await start({ host: found.dir.split(',')[0].trim() });
    const c = await RawClient.open(port);
    c.write(query('SELECT inet_server_addr() IS NULL, repeat(chr(120), 300000)', 'utf8'));
    const row = (await c.until('Z')).find((one) => one.tag === 'D');
    expect(row?.body.length).toBeGreaterThan(300_000);
    expect(row?.body.toString('latin1', 6, 7)).toBe('t');
    c.destroy();
  });
});

describe('drain', () => {
  it('ends idle sessions at once and lets transactions finish', async () => {
    const worker = await start();
    const idle = await RawClient.open(worker.port);
    const busy = await RawClient.open(worker.port);
    busy.write(query('BEGIN', 'utf8'));
    await busy.until('Z');
    const stopped = worker.stop(5000);
    expect(shown(await idle.until('E'))).toEqual(['E FATAL 57P01 terminating connection due to administrator command']);
    busy.write(query('SELECT 1', 'utf8'));
    expect(shown(await busy.until('Z')).at(-1)).toBe('Z T');
    busy.write(query('COMMIT', 'utf8'));
    expect(shown(await busy.until('E'))).toEqual(['C COMMIT', 'Z I', 'E FATAL 57P01 terminating connection due to administrator command']);
    await stopped;
    await expect(RawClient.connect(worker.port)).rejects.toMatchObject({ code: 'ECONNREFUSED' });
  });

  it('cuts what does not end in time', async () => {
    const worker = await start();
    const busy = await RawClient.open(worker.port);
    busy.write(query('BEGIN', 'utf8'));
    await busy.until('Z');
    await worker.stop(100);
    expect(shown(await busy.until('E'))).toEqual(['E FATAL 57P01 terminating connection due to administrator command']);
    await eventually(async () => (await backends()) === 0);
  });
});

describe('back-pressure', () => {
  it('keeps memory bounded for a reader that does not read, and loses nothing', async () => {
    const { port } = await start();
    const c = await RawClient.open(port);
    c.pause();
    const before = process.memoryUsage();
    c.write(query("SELECT repeat('x', 1000) FROM generate_series(1, 100000)", 'utf8'));
    await pause(1000);
    const after = process.memoryUsage();
    expect(after.external - before.external).toBeLessThan(20_000_000);
    c.resume();
    const messages = await c.until('Z');
    expect(messages).toHaveLength(100_003);
  });

  it('takes a large COPY while notices come the other way', async () => {
    const { port } = await start();
    const c = await RawClient.open(port);
    c.write(query('CREATE TEMP TABLE big (a text)', 'utf8'), query('COPY big FROM STDIN', 'utf8'));
    await c.until('G');
    const line = message(0x64, [Buffer.from(`${'y'.repeat(5000)}\n`)]);
    for (let i = 0; i < 2000; i++) c.write(line);
    c.write(message(0x63, []));
    expect(shown(await c.until('Z'))).toEqual(['C COPY 2000', 'Z I']);
    c.write(sync);
    await c.until('Z');
  });
});
