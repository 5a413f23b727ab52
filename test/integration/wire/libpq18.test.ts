/** What libpq 17 and 18 can ask of a server: TLS without a question before it, channel binding, protocol 3.2. */
import { spawn } from 'node:child_process';
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { defaultProxySettings, type PoolMode } from '../../../src/wire/pool/settings.ts';
import { type TestAuthority, testAuthority } from '../../support/certificates.ts';
import { libpq18 } from '../../support/libpq.ts';
import { type PsqlResult, psql, startPostgres, type TestPostgres } from '../../support/postgres.ts';
import { serveTls } from '../../support/server-tls.ts';
import { fakeRunner, startProxy, type TestProxy } from './proxy.ts';

let postgres: TestPostgres;
let direct: pg.Client;
let authority: TestAuthority;
const workers: TestProxy[] = [];

describe.skipIf(libpq18 === null)('libpq 18 (needs psql)', () => {
  beforeAll(async () => {
    postgres = await startPostgres();
    direct = new pg.Client(postgres.url);
    await direct.connect();
    await direct.query("CREATE ROLE joe LOGIN PASSWORD 'secret'");
    authority = testAuthority();
    await serveTls(postgres, direct, authority.issue('localhost'), ['host all joe all scram-sha-256']);
  });
  afterAll(async () => {
    await direct?.end();
    await postgres?.stop();
    authority?.remove();
  });
  afterEach(async () => {
    for (const worker of workers.splice(0)) await worker.stop(0);
  });

  async function start(poolMode: PoolMode, tls: 'disable' | 'prefer' | 'require' = 'require'): Promise<number> {
    const { cert, key } = authority.issue('localhost');
    const settings = { ...defaultProxySettings, poolMode, tls: { mode: tls, cert, key } };
    const worker = await startProxy({ ...postgres.address, ssl: { mode: 'require' } }, fakeRunner(), {}, settings);
    workers.push(worker);
    return worker.port;
  }

  /** `options` as libpq's environment names them. */
  function environment(options: Readonly<Record<string, string>>): Readonly<Record<string, string>> {
    return { ...libpq18, PGHOSTADDR: '127.0.0.1', PGSSLROOTCERT: authority.certFile, ...options };
  }

  function connect(port: number, options: Readonly<Record<string, string>>, host = 'localhost'): Promise<PsqlResult> {
    return psql({ host, port, user: 'joe', password: 'secret', database: 'postgres' }, ['-c', '\\conninfo'], { env: environment(options) });
  }

  describe.each(['session', 'transaction'] as const)('pool mode %s', (mode) => {
    it.each(['require', 'verify-ca', 'verify-full'])('TLS at once, sslmode %s', async (sslmode) => {
      const port = await start(mode);
      const answer = await connect(port, { PGSSLMODE: sslmode, PGSSLNEGOTIATION: 'direct' });
      expect(answer).toMatchObject({ stdout: expect.stringMatching(/SSL connection \(protocol: TLSv1\.3/), stderr: '', code: 0 });
    });

    it('TLS at once, to a server of another name', async () => {
      const port = await start(mode);
      const { stderr } = await connect(port, { PGSSLMODE: 'verify-full', PGSSLNEGOTIATION: 'direct' }, 'elsewhere');
      expect(stderr).toMatch(/does not match host name "elsewhere"/);
    });

    it('TLS at once, where there is none', async () => {
      const port = await start(mode, 'disable');
      const { stderr, code } = await connect(port, { PGSSLMODE: 'require', PGSSLNEGOTIATION: 'direct' });
      // As of Postgres without TLS.
      expect([code, stderr]).toEqual([2, expect.stringMatching(/SSL error|server closed the connection unexpectedly|SSL SYSCALL error/)]);
    });

    it.each([
      ['disable', null],
      ['allow', /SSL connection/],
      ['prefer', /SSL connection/],
      ['require', /SSL connection/],
      ['verify-ca', /SSL connection/],
      ['verify-full', /SSL connection/],
    ] as const)('sslmode %s', async (sslmode, expected) => {
      const answer = await connect(await start(mode), { PGSSLMODE: sslmode });
      if (expected === null) expect(answer.stderr).toMatch(/FATAL: {2}SSL required/);
      else expect(answer).toMatchObject({ stdout: expect.stringMatching(expected), stderr: '' });
    });

    it('channel binding is not offered: who prefers it goes without, who requires it is told', async () => {
      const port = await start(mode, 'prefer');
      for (const sslmode of ['disable', 'require'])
        expect(await connect(port, { PGSSLMODE: sslmode, PGCHANNELBINDING: 'prefer' })).toMatchObject({ stderr: '', code: 0 });
      expect((await connect(port, { PGSSLMODE: 'require', PGCHANNELBINDING: 'require' })).stderr).toMatch(
        /channel binding is required, but server did not offer an authentication method that supports channel binding/,
      );
    });

    it('protocol 3.2: the long cancel key works, in clear and encrypted', async () => {
      const port = await start(mode, 'prefer');
      for (const [sslmode, version] of [
        ['disable', '3.2'],
        ['require', '3.2'],
        ['require', '3.0'],
      ] as const) {
        const text = `SELECT pg_sleep(30), '${sslmode} ${version}'`;
        const child = spawn('psql', ['-X', '-c', text], {
          env: {
            ...process.env,
            ...environment({ PGSSLMODE: sslmode, PGMAXPROTOCOLVERSION: version, PGMINPROTOCOLVERSION: version }),
            ...{ PGHOST: 'localhost', PGPORT: String(port), PGUSER: 'joe', PGPASSWORD: 'secret', PGDATABASE: 'postgres' },
          },
          stdio: ['ignore', 'ignore', 'pipe'],
        });
        let output = '';
        child.stderr.setEncoding('utf8').on('data', (chunk: string) => {
          output += chunk;
        });
        const ended = new Promise((resolve) => child.once('close', resolve));
        for (let i = 0; i < 500 && child.exitCode === null; i++) {
          const { rowCount } = await direct.query("SELECT 1 FROM pg_stat_activity WHERE query = $1 AND state = 'active'", [text]);
          if (rowCount !== 0) break;
          await sleep(20);
        }
        child.kill('SIGINT');
        await ended;
        expect(output).toMatch(/ERROR: {2}canceling statement due to user request/);
      }
    });
  });
});
