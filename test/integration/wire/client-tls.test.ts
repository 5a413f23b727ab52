/** TLS towards clients: libpq in every sslmode, direct TLS, client certificates, large records, framing, slow handshakes. */
import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, connect as netConnect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Duplex } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import { type ConnectionOptions, type TLSSocket, connect as tlsConnect } from 'node:tls';
import pg from 'pg';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { createLogger } from '../../../src/log.ts';
import { authenticationOk, ClientAuthenticator } from '../../../src/wire/auth/client-authentication.ts';
import { ClientTls } from '../../../src/wire/client-tls.ts';
import { message, query, sslRequest } from '../../../src/wire/encode.ts';
import { type ClientTlsSettings, defaultProxySettings } from '../../../src/wire/pool/settings.ts';
import { type Certificate, type TestAuthority, testAuthority } from '../../support/certificates.ts';
import { havePsql, type PsqlResult, psql, startPostgres, type TestPostgres } from '../../support/postgres.ts';
import { fakeRunner, startProxy, type TestProxy } from './proxy.ts';
import { RawClient, shown, startupPacket } from './raw-client.ts';

let postgres: TestPostgres;
let direct: pg.Client;
let authority: TestAuthority;
let stranger: TestAuthority;
let server: Certificate;
let scripts: string;
const workers: TestProxy[] = [];

beforeAll(async () => {
  postgres = await startPostgres();
  direct = new pg.Client(postgres.url);
  await direct.connect();
  scripts = mkdtempSync(join(tmpdir(), 'millrace-scripts-'));
  authority = testAuthority();
  stranger = testAuthority('somebody else');
  server = authority.issue('localhost');
});
afterAll(async () => {
  await direct?.end();
  await postgres?.stop();
  authority?.remove();
  stranger?.remove();
  rmSync(scripts, { recursive: true, force: true });
});
afterEach(async () => {
  for (const worker of workers.splice(0)) await worker.stop(0);
});

async function start(tls: Partial<ClientTlsSettings> = {}, authenticationTimeout = 20_000): Promise<TestProxy> {
  const settings = { ...defaultProxySettings, tls: { mode: 'require' as const, cert: server.cert, key: server.key, ...tls } };
  const worker = await startProxy(postgres.address, fakeRunner(), { authenticationTimeout }, settings);
  workers.push(worker);
  return worker;
}

const startup = startupPacket({ user: 'postgres', database: 'postgres' });

/** A handshake over a connection; rejects when there is none. */
function handshake(socket: Duplex, options: ConnectionOptions = {}): Promise<TLSSocket> {
  return new Promise((resolve, reject) => {
    const secure = tlsConnect({ socket, ca: authority.cert, servername: 'localhost', ...options });
    secure.once('secureConnect', () => resolve(secure));
    secure.once('error', reject);
    secure.once('close', () => reject(new Error('closed')));
  });
}

async function plain(port: number): Promise<Socket> {
  const socket = netConnect({ port, host: '127.0.0.1', noDelay: true });
  socket.on('error', () => undefined);
  await new Promise((resolve) => socket.once('connect', resolve));
  return socket;
}

/** The connection, each write of which becomes many. */
function inPieces(socket: Socket, size: number): Duplex {
  const duplex = new Duplex({
    read: () => undefined,
    write: (chunk: Buffer, _encoding, done) => {
      for (let at = 0; at < chunk.length; at += size) socket.write(chunk.subarray(at, at + size));
      done();
    },
    destroy: (_error, done) => {
      socket.destroy();
      done(null);
    },
  });
  socket.on('data', (chunk: Buffer) => duplex.push(chunk)).on('close', () => duplex.push(null));
  return duplex;
}

/** As libpq: asks first. */
async function asked(port: number, options: ConnectionOptions = {}): Promise<TLSSocket> {
  const socket = await plain(port);
  socket.write(sslRequest);
  const [answer] = (await new Promise((resolve) => socket.once('data', resolve))) as Buffer;
  if (answer !== 0x53) throw new Error(`the answer is ${answer}`);
  return await handshake(socket, options);
}

describe.skipIf(!havePsql)('libpq (needs psql)', () => {
  const ask = (port: number, sslmode: string, env: Record<string, string> = {}): Promise<PsqlResult> =>
    psql({ host: 'localhost', port, user: 'postgres', database: 'postgres' }, ['-c', '\\conninfo'], {
      env: { PGSSLMODE: sslmode, PGHOSTADDR: '127.0.0.1', PGSSLROOTCERT: authority.certFile, ...env },
    });

  it.each([
    ['disable', { disable: false, prefer: false, require: null }],
    ['allow', { disable: false, allow: false, prefer: true, require: true, 'verify-ca': true, 'verify-full': true }],
    ['prefer', { disable: false, allow: false, prefer: true, require: true, 'verify-ca': true, 'verify-full': true }],
    ['require', { disable: null, allow: true, prefer: true, require: true, 'verify-ca': true, 'verify-full': true }],
  ] as const)('in every sslmode, Millrace in mode %s', async (mode, outcomes) => {
    const { port } = await start({ mode });
    for (const [sslmode, encrypted] of Object.entries(outcomes)) {
      const answer = await ask(port, sslmode);
      if (encrypted === null) expect(answer.stderr).toMatch(/FATAL: {2}SSL required|server does not support SSL/);
      else
        expect([sslmode, answer.stdout, answer.stderr]).toEqual([
          sslmode,
          expect.stringMatching(encrypted ? /SSL connection \(/ : /^((?!SSL).)*$/s),
          '',
        ]);
    }
  });

  it('does not trust a server nobody vouches for, nor another name', async () => {
    const { port } = await start();
    expect((await ask(port, 'verify-ca', { PGSSLROOTCERT: stranger.certFile })).stderr).toMatch(/certificate verify failed/);
    const other = await psql({ host: 'elsewhere', port, user: 'postgres', database: 'postgres' }, ['-c', 'SELECT 1'], {
      env: { PGSSLMODE: 'verify-full', PGHOSTADDR: '127.0.0.1', PGSSLROOTCERT: authority.certFile },
    });
    expect(other.stderr).toMatch(/does not match host name/);
  });

  it.each(['verify-ca', 'verify-full'] as const)('%s wants a certificate of the authority', async (mode) => {
    const { port } = await start({ mode, ca: authority.cert });
    const own = authority.issue('postgres');
    const foreign = stranger.issue('postgres');
    const show = ({ certFile, keyFile }: Certificate): Record<string, string> => ({ PGSSLCERT: certFile, PGSSLKEY: keyFile });
    expect((await ask(port, 'verify-full', show(own))).stdout).toMatch(/SSL connection/);
    const none = await ask(port, 'require', { PGSSLCERT: '/none', PGSSLKEY: '/none' });
    expect(none.stderr).toMatch(/FATAL: {2}connection requires a valid client certificate/);
    expect((await ask(port, 'require', show(foreign))).stderr).toMatch(
      /FATAL: {2}connection requires a valid client certificate\nDETAIL: {2}\w+/,
    );
    expect((await ask(port, 'disable')).stderr).toMatch(/SSL required/);
  });

  it('keeps large rows flowing to asynchronous clients', async () => {
    const { port } = await start();
    // Results of 100 kB that come at once, in rows of less and of more than a record: what is left of the last record is what may hang.
    await direct.query("CREATE TABLE big AS SELECT n, repeat('x', n * 50) AS text FROM generate_series(1, 1000) n");
    const script = join(scripts, 'big.sql');
    writeFileSync(
      script,
      '\\set k random(1, 900)\nSELECT * FROM big WHERE n > :k ORDER BY n LIMIT 20;\nSELECT n, n FROM generate_series(1, :k * 20) n;\n',
    );
    const child = spawn('pgbench', ['-n', '-M', 'prepared', '-c', '4', '-t', '100', '-f', script, 'postgres'], {
      env: { ...process.env, PGHOST: '127.0.0.1', PGPORT: String(port), PGUSER: 'postgres', PGSSLMODE: 'require' },
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    let output = '';
    for (const stream of [child.stdout, child.stderr])
      stream.setEncoding('utf8').on('data', (text: string) => {
        output += text;
      });
    const timer = setTimeout(() => child.kill('SIGKILL'), 40_000);
    await new Promise((resolve) => child.once('close', resolve));
    clearTimeout(timer);
    expect(output).toMatch(/processed: 400\/400/);
  });

  it('cancels over TLS and beside it', async () => {
    const { port } = await start();
    const child = spawn('psql', ['-X', '-c', 'SELECT pg_sleep(30)'], {
      env: { ...process.env, PGHOST: '127.0.0.1', PGPORT: String(port), PGUSER: 'postgres', PGDATABASE: 'postgres', PGSSLMODE: 'require' },
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    let output = '';
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      output += text;
    });
    const ended = new Promise((resolve) => child.once('close', resolve));
    for (let i = 0; i < 200; i++) {
      const { rows } = await direct.query("SELECT 1 FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(30)' AND state = 'active'");
      if (rows.length > 0) break;
      await sleep(20);
    }
    // libpq before 17 sends the request unencrypted.
    child.kill('SIGINT');
    await ended;
    expect(output).toMatch(/canceling statement due to user request/);

    const busy = RawClient.over(await asked(port));
    busy.write(startup);
    const key = (await busy.until('Z')).find((one) => one.tag === 'K')?.body ?? Buffer.alloc(0);
    busy.write(query('SELECT pg_sleep(30)', 'utf8'));
    await sleep(100);
    const canceller = await asked(port);
    canceller.write(Buffer.concat([Buffer.from([0, 0, 0, 8 + key.length, 0x04, 0xd2, 0x16, 0x2e]), key]));
    // The connection ends as TLS has it, not torn down.
    const failures: Error[] = [];
    canceller.on('error', (error) => failures.push(error)).resume();
    await new Promise((resolve) => canceller.once('end', resolve));
    expect(failures).toEqual([]);
    expect(shown(await busy.until('Z')).filter((line) => line.startsWith('E'))).toEqual([
      'E ERROR 57014 canceling statement due to user request',
    ]);
    busy.destroy();
    canceller.destroy();
  });
});

describe('a session over TLS', () => {
  const client = async (port: number): Promise<pg.Client> => {
    const c = new pg.Client({ host: 'localhost', port, user: 'postgres', database: 'postgres', ssl: { ca: authority.cert } });
    await c.connect();
    return c;
  };

  it('carries 20,000 rows and a large COPY', async () => {
    const { port } = await start();
    const c = await client(port);
    const text = 'SELECT n, repeat(md5(n::text), 4) AS x FROM generate_series(1, 20000) n';
    const { rows } = await c.query(text);
    expect(rows).toHaveLength(20_000);
    expect(rows).toEqual((await direct.query(text)).rows);
    expect((await c.query("SELECT repeat('y', 30000000) AS y")).rows[0].y).toHaveLength(30_000_000);
    expect((await c.query('SELECT length($1) AS l', ['z'.repeat(5_000_000)])).rows).toEqual([{ l: 5_000_000 }]);
    await c.end();
  });

  it('keeps memory bounded for a reader that does not read, and loses nothing', async () => {
    const { port } = await start();
    const c = RawClient.over(await asked(port));
    c.write(startup);
    await c.until('Z');
    c.pause();
    const before = process.memoryUsage();
    c.write(query("SELECT repeat('x', 1000) FROM generate_series(1, 100000)", 'utf8'));
    await sleep(1000);
    const after = process.memoryUsage();
    expect(after.external - before.external).toBeLessThan(30_000_000);
    c.resume();
    expect(await c.until('Z')).toHaveLength(100_003);
    c.destroy();
  });

  it('ends on both sides, whoever ends it', async () => {
    const worker = await start();
    const c = await client(worker.port);
    const { rows } = await c.query('SELECT pg_backend_pid() AS pid');
    await c.end();
    for (let i = 0; ; i++) {
      const left = await direct.query('SELECT 1 FROM pg_stat_activity WHERE pid = $1', [rows[0].pid]);
      if (left.rows.length === 0 && worker.metrics()['millrace_client_connections'] === 0) break;
      if (i > 100) throw new Error('the upstream session goes on');
      await sleep(20);
    }
    const other = RawClient.over(await asked(worker.port));
    other.write(startup);
    await other.until('Z');
    other.write(query('SELECT pg_terminate_backend(pg_backend_pid())', 'utf8'));
    expect(shown(await other.until('none')).at(-1)).toMatch(/^E FATAL 57P01/);
    expect(other.ended).toBe(true);
    // A half-closed client still gets its answer.
    const half = RawClient.over(await asked(worker.port));
    half.write(startup);
    await half.until('Z');
    half.write(query('SELECT 1', 'utf8'), message(0x58, []));
    half.end();
    expect(shown(await half.until('none'))).toContain('D 1');
    expect(half.ended).toBe(true);
  });

  it('drains', async () => {
    const worker = await start();
    const c = RawClient.over(await asked(worker.port));
    c.write(startup);
    await c.until('Z');
    const waiting = await plain(worker.port);
    await worker.stop(5000);
    expect(shown(await c.until('none'))).toEqual(['E FATAL 57P01 terminating connection due to administrator command']);
    waiting.destroy();
  });

  it('takes new certificates while old connections go on', async () => {
    const worker = await start();
    const old = RawClient.over(await asked(worker.port));
    old.write(startup);
    await old.until('Z');
    const reload = async (tls: ClientTlsSettings): Promise<unknown> =>
      await worker.command({ command: 'reload', settings: { ...defaultProxySettings, tls } });
    await expect(reload({ mode: 'require', cert: 'none', key: 'none' })).rejects.toThrow();
    const replacement = stranger.issue('localhost');
    await reload({ mode: 'require', cert: replacement.cert, key: replacement.key });
    await expect(asked(worker.port)).rejects.toThrow();
    (await asked(worker.port, { ca: stranger.cert })).destroy();
    old.write(query('SELECT 1', 'utf8'));
    expect(shown(await old.until('Z'))).toContain('D 1');
    old.destroy();
  });
});

describe('authentication by certificate', () => {
  it('takes the common name for the role, if the certificate is verified', async () => {
    const tls = new ClientTls({ mode: 'verify-full', cert: server.cert, key: server.key, ca: authority.cert }, createLogger('test'));
    const log = createLogger('test');
    log.level = 'silent';
    const authenticator = new ClientAuthenticator({
      secretOf: async () => 'stored',
      isCertain: async () => true,
      forget: () => undefined,
      mockKey: Buffer.alloc(32),
      log,
    });
    const results: unknown[] = [];
    const listening = createServer({ allowHalfOpen: true }, (socket) => {
      socket.on('error', () => undefined).pause();
      tls.handshake(socket, true, (secure) => {
        void authenticator.authenticate({ socket: secure, reader: null }, 'joe', 'cert', Buffer.alloc(0)).then((found) => {
          results.push(found?.credentials ?? null);
          if (found !== null) secure.end(authenticationOk);
        });
      });
    });
    await new Promise<void>((resolve) => listening.listen(0, '127.0.0.1', resolve));
    const address = listening.address();
    const port = typeof address === 'object' ? (address?.port ?? 0) : 0;
    const joe = authority.issue('joe');
    for (const [certificate, expected] of [
      [joe, []],
      [authority.issue('jim'), ['E FATAL 28000 certificate authentication failed for user "joe"']],
      [stranger.issue('joe'), ['E FATAL 28000 certificate authentication failed for user "joe"']],
      [null, ['E FATAL 28000 certificate authentication failed for user "joe"']],
    ] as const) {
      const options = certificate === null ? {} : { cert: certificate.cert, key: certificate.key };
      const c = RawClient.over(await handshake(await plain(port), { ALPNProtocols: ['postgresql'], ...options }));
      expect(shown(await c.until('none')).filter((line) => line !== 'R')).toEqual(expected);
    }
    expect(results).toEqual([{ kind: 'password', password: 'stored' }, null, null, null]);
    listening.close();
  });
});

describe('the handshake', () => {
  it('may come without being asked for, with ALPN', async () => {
    const { port } = await start();
    const secure = await handshake(await plain(port), { ALPNProtocols: ['postgresql'] });
    expect(secure.alpnProtocol).toBe('postgresql');
    const c = RawClient.over(secure);
    c.write(startup);
    expect(shown(await c.until('Z')).at(-1)).toBe('Z I');
    c.destroy();
  });

  it('is refused without ALPN when nobody asked for it, and with another protocol always', async () => {
    const { port } = await start();
    const silent = await handshake(await plain(port)).catch(() => null);
    if (silent !== null && !silent.destroyed) {
      const c = RawClient.over(silent);
      c.write(startup);
      expect(await c.until('Z')).toEqual([]);
      expect(c.ended).toBe(true);
    }
    await expect(handshake(await plain(port), { ALPNProtocols: ['http/1.1'] })).rejects.toThrow();
    await expect(asked(port, { ALPNProtocols: ['http/1.1'] })).rejects.toThrow();
    const named = await asked(port, { ALPNProtocols: ['http/1.1', 'postgresql'] });
    expect(named.alpnProtocol).toBe('postgresql');
    named.destroy();
  });

  it('is not for old versions of TLS', async () => {
    const { port } = await start();
    await expect(asked(port, { maxVersion: 'TLSv1.1', minVersion: 'TLSv1', ciphers: 'DEFAULT@SECLEVEL=0' })).rejects.toThrow();
    const old = await asked(port, { maxVersion: 'TLSv1.2' });
    expect(old.getProtocol()).toBe('TLSv1.2');
    old.destroy();
  });

  it('is not begun over bytes that came before it', async () => {
    const { port } = await start();
    const c = await RawClient.connect(port);
    c.write(sslRequest, startup);
    expect(shown(await c.until('E'))).toEqual(['E FATAL 08P01 received unencrypted data after SSL request']);
    // What follows the answer is taken for a part of the handshake, never for a message.
    const later = await plain(port);
    const bytes: Buffer[] = [];
    later.on('data', (chunk: Buffer) => bytes.push(chunk));
    later.write(sslRequest);
    await sleep(50);
    later.write(startup);
    await new Promise((resolve) => later.once('close', resolve));
    expect(Buffer.concat(bytes)[0]).toBe(0x53);
    expect(Buffer.concat(bytes).toString('latin1')).not.toContain('server_version');
  });

  it('happens once', async () => {
    const { port } = await start();
    for (const request of [sslRequest, Buffer.from([0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x30])]) {
      const c = RawClient.over(await asked(port));
      c.write(request);
      expect(shown(await c.until('E'))[0]).toMatch(/^E FATAL 08P01 .* inside SSL$/);
    }
    const nested = RawClient.over(await asked(port));
    nested.write(Buffer.from([0x16, 3, 1, 0, 0]));
    await nested.until('E');
    expect(nested.ended).toBe(true);
  });

  it('follows a refused GSS encryption request', async () => {
    const { port } = await start();
    const socket = await plain(port);
    socket.write(Buffer.from([0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x30]));
    expect(String(await new Promise((resolve) => socket.once('data', resolve)))).toBe('N');
    socket.write(sslRequest);
    expect(String(await new Promise((resolve) => socket.once('data', resolve)))).toBe('S');
    const c = RawClient.over(await handshake(socket));
    c.write(startup);
    expect(shown(await c.until('Z')).at(-1)).toBe('Z I');
    c.destroy();
  });

  it('does not wait for ever', async () => {
    const { port } = await start({}, 300);
    for (const bytes of [sslRequest, Buffer.from([0x16, 3, 1, 0, 200])]) {
      const socket = await plain(port);
      socket.resume();
      const begun = Date.now();
      socket.write(bytes);
      await new Promise((resolve) => socket.once('close', resolve));
      expect(Date.now() - begun).toBeLessThan(3000);
    }
    // Nor for the startup packet behind it.
    const secure = await asked(port);
    secure.resume();
    await new Promise((resolve) => secure.once('close', resolve));
  });

  it('does not depend on how TCP cuts the stream, nor on how TLS does', async () => {
    const { port } = await start();
    const text = query('SELECT 1', 'utf8');
    for (let at = 1; at < startup.length; at++) {
      const c = RawClient.over(await asked(port));
      for (const bytes of [startup, text]) {
        c.write(bytes.subarray(0, at));
        await sleep(1);
        c.write(bytes.subarray(at));
        expect(shown(await c.until('Z')).at(-1)).toBe('Z I');
      }
      c.destroy();
    }
    // The ClientHello in small pieces.
    for (const size of [1, 7, 100]) {
      const socket = await plain(port);
      const c = RawClient.over(await handshake(inPieces(socket, size), { ALPNProtocols: ['postgresql'] }));
      c.write(startup);
      expect(shown(await c.until('Z')).at(-1)).toBe('Z I');
      c.destroy();
    }
  });
});
