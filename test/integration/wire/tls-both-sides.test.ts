/** TLS towards the client and towards the upstream: authentication where channel binding cannot hold. */
import pg from 'pg';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import type { SslMode } from '../../../src/config.ts';
import { verifierOf, verifierText } from '../../../src/wire/auth/scram-keys.ts';
import { defaultProxySettings, type ProxySettings } from '../../../src/wire/pool/settings.ts';
import { type TestAuthority, testAuthority } from '../../support/certificates.ts';
import { havePsql, type PsqlResult, psql, startPostgres, type TestPostgres } from '../../support/postgres.ts';
import { serveTls } from '../../support/server-tls.ts';
import { fakeRunner, startProxy, type TestProxy } from './proxy.ts';

const password = 'pässword';

for (const version of [18, 15] as const) {
  describe(`with PostgreSQL ${version}`, () => {
    let postgres: TestPostgres;
    let direct: pg.Client;
    let authority: TestAuthority;
    const workers: TestProxy[] = [];

    beforeAll(async () => {
      postgres = await startPostgres({ version });
      direct = new pg.Client(postgres.url);
      await direct.connect();
      await direct.query(`SET password_encryption = 'scram-sha-256'; CREATE ROLE scram LOGIN PASSWORD '${password}';
        SET password_encryption = 'md5'; CREATE ROLE md LOGIN PASSWORD 'secret'`);
      authority = testAuthority();
      await serveTls(postgres, direct, authority.issue('localhost'), [
        'host all md all md5',
        'host all postgres all trust',
        'host all all all scram-sha-256',
      ]);
    });
    afterAll(async () => {
      await direct?.end();
      await postgres?.stop();
      authority?.remove();
    });
    afterEach(async () => {
      for (const worker of workers.splice(0)) await worker.stop(0);
    });

    async function start(changes: Partial<ProxySettings> = {}, mode: SslMode = 'require'): Promise<number> {
      const { cert, key } = authority.issue('localhost');
      const settings = { ...defaultProxySettings, ...changes, tls: { mode: 'prefer' as const, cert, key } };
      const upstream = { ...postgres.address, ssl: { mode } };
      const worker = await startProxy(upstream, fakeRunner(), {}, settings);
      workers.push(worker);
      return worker.port;
    }

    async function node(port: number, user: string, word: string): Promise<string> {
      const ssl = { ca: authority.cert };
      const client = new pg.Client({ host: 'localhost', port, user, password: word, database: 'postgres', ssl });
      client.on('error', () => undefined);
      try {
        await client.connect();
        const { rows } = await client.query(
          "SELECT session_user || ' ' || ssl AS u, length(repeat('x', 300000)) FROM pg_stat_ssl WHERE pid = pg_backend_pid()",
        );
        return rows[0].u;
      } catch (error) {
        return (error as { code: string }).code;
      } finally {
        await client.end().catch(() => undefined);
      }
    }

    const libpq = (port: number, user: string, word: string, env: Record<string, string> = {}): Promise<PsqlResult> =>
      psql({ host: 'localhost', port, user, password: word, database: 'postgres' }, ['-c', 'SELECT session_user'], {
        env: { PGSSLMODE: 'verify-full', PGSSLROOTCERT: authority.certFile, PGHOSTADDR: '127.0.0.1', ...env },
      });

    it('authenticates with the verifier of the upstream', async () => {
      const port = await start();
      expect(await node(port, 'scram', password)).toBe('scram true');
      expect(await node(port, 'scram', 'wrong')).toBe('28P01');
      expect(await node(port, 'nobody', 'wrong')).toBe('28P01');
      expect(await node(port, 'postgres', '')).toBe('postgres true');
      expect(await node(port, 'md', 'secret')).toBe('md true');
      // The verifier is kept for seconds, until a login with it fails.
      expect(await node(port, 'scram', password)).toBe('scram true');
      await direct.query("SET password_encryption = 'scram-sha-256'; ALTER ROLE scram PASSWORD 'other'");
      expect(await node(port, 'scram', password)).toBe('28P01');
      expect(await node(port, 'scram', 'other')).toBe('scram true');
      await direct.query(`ALTER ROLE scram PASSWORD '${password}'`);
    });

    describe.skipIf(!havePsql)('libpq (needs psql)', () => {
      it('is authenticated by Millrace where there is a verifier', async () => {
        const port = await start();
        expect(await libpq(port, 'scram', password)).toEqual({ stdout: 'scram\n', stderr: '', code: 0 });
        expect((await libpq(port, 'scram', 'wrong')).stderr).toMatch(/FATAL: {2}password authentication failed for user "scram"/);
        expect((await libpq(port, 'nobody', 'wrong')).stderr).toMatch(/FATAL: {2}password authentication failed for user "nobody"/);
        expect(await libpq(port, 'md', 'secret')).toMatchObject({ stdout: 'md\n' });
        expect(await libpq(port, 'postgres', '')).toMatchObject({ stdout: 'postgres\n' });
        expect(await libpq(port, 'scram', password, { PGSSLMODE: 'disable' })).toMatchObject({ stdout: 'scram\n' });
      });

      it('is never promised what cannot hold', async () => {
        const port = await start();
        const bound = await libpq(port, 'scram', password, { PGCHANNELBINDING: 'require' });
        expect(bound.stderr).toMatch(/channel binding is required/);
      });

      it('is told what to do where there is none', async () => {
        const port = await start({ authQuery: '' });
        const refused = await libpq(port, 'scram', password);
        expect(refused.stderr).toMatch(
          /FATAL: {2}SCRAM channel binding cannot hold through Millrace\nDETAIL: .*\nHINT: {2}Connect with channel_binding=disable/,
        );
        expect(await libpq(port, 'scram', password, { PGCHANNELBINDING: 'disable' })).toMatchObject({ stdout: 'scram\n' });
        const wrong = await libpq(port, 'scram', 'wrong', { PGCHANNELBINDING: 'disable' });
        expect(wrong.stderr).toMatch(/FATAL: {2}password authentication failed for user "scram"/);
        expect(await node(port, 'scram', password)).toBe('scram true');
        expect(await libpq(port, 'md', 'secret')).toMatchObject({ stdout: 'md\n' });
      });

      it('is relayed to an upstream without TLS', async () => {
        const port = await start({ authQuery: '' }, 'disable');
        expect(await libpq(port, 'scram', password)).toEqual({ stdout: 'scram\n', stderr: '', code: 0 });
        expect((await libpq(port, 'scram', 'wrong')).stderr).toMatch(/password authentication failed/);
      });

      it('may be known from a file', async () => {
        const stale = verifierText(await verifierOf('stale', Buffer.from('0123456789abcdef')));
        const port = await start({ authQuery: '', users: { scram: password, nobody: stale } });
        expect(await libpq(port, 'scram', password)).toMatchObject({ stdout: 'scram\n' });
        expect((await libpq(port, 'scram', 'wrong')).stderr).toMatch(/password authentication failed/);
        // What the file says and the upstream does not: its refusal is passed on.
        expect((await libpq(port, 'nobody', 'stale')).stderr).toMatch(/FATAL: {2}password authentication failed for user "nobody"/);
      });
    });
  });
}
