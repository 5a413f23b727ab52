/** Authentication of clients by Millrace and logins upstream in their name, against real servers and with real clients. */
import { readFileSync, writeFileSync } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import { join } from 'node:path';
import pg from 'pg';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { createLogger } from '../../../src/log.ts';
import { upstreamAuthQuery } from '../../../src/wire/auth/auth-query.ts';
import { authenticationOk, ClientAuthenticator } from '../../../src/wire/auth/client-authentication.ts';
import type { ServerCredentials } from '../../../src/wire/auth/credentials.ts';
import { md5Hash } from '../../../src/wire/auth/md5.ts';
import { verifierOf, verifierText } from '../../../src/wire/auth/scram-keys.ts';
import { Secrets } from '../../../src/wire/auth/secrets.ts';
import { LoginRefused, logIn, protocol32 } from '../../../src/wire/auth/server-login.ts';
import { message, query, readyForQuery } from '../../../src/wire/encode.ts';
import { type AuthType, defaultProxySettings } from '../../../src/wire/pool/settings.ts';
import { readStartupPacket } from '../../../src/wire/startup.ts';
import { connectUpstream } from '../../../src/wire/upstream.ts';
import { havePsql, psql, startPostgres, type TestPostgres } from '../../support/postgres.ts';
import { RawClient, shown, startupPacket } from './raw-client.ts';

const log = createLogger('test');
log.level = 'silent';
const mockKey = Buffer.alloc(32, 7);

/** Prepared, or not to be prepared, in all the ways there are. */
const passwords = ['secret', 'pässword', 'I\u00adX', 'a\u00a0b', '\u2168', '\u06271', '\u0221', '日本語', '\u00ad', "quote'\\", ' x '];

for (const version of [18, 15] as const) {
  describe(`with PostgreSQL ${version}`, () => {
    let postgres: TestPostgres;
    let direct: pg.Client;
    const servers: Server[] = [];

    beforeAll(async () => {
      postgres = await startPostgres({ version });
      direct = new pg.Client(postgres.url);
      await direct.connect();
      const verifier = verifierText(await verifierOf('nobody knows', Buffer.from('0123456789abcdef'), 4096));
      await direct.query(`SET password_encryption = 'scram-sha-256';
        CREATE ROLE scram LOGIN PASSWORD 'pässword';
        CREATE ROLE unknown_password LOGIN PASSWORD '${verifier}';
        CREATE ROLE clear LOGIN PASSWORD 'secret';
        CREATE ROLE old LOGIN PASSWORD 'secret' VALID UNTIL '2020-01-01';
        CREATE ROLE nologin PASSWORD 'secret';
        CREATE ROLE passwordless LOGIN;
        SET password_encryption = 'md5'; CREATE ROLE md LOGIN PASSWORD 'secret'`);
      const hba = join(postgres.dataDir, 'pg_hba.conf');
      writeFileSync(
        hba,
        `host all md all md5\nhost all clear all password\nhost all passwordless,postgres all trust\nhost all all all scram-sha-256\n${readFileSync(hba, 'utf8')}`,
      );
      await direct.query('SELECT pg_reload_conf()');
    });
    afterAll(async () => {
      await direct?.end();
      await postgres?.stop();
    });
    afterEach(() => {
      for (const server of servers.splice(0)) server.close();
    });

    /** Logs in and asks who it is. */
    async function whoAmI(user: string, credentials: ServerCredentials, protocol?: number): Promise<string> {
      const peer = await connectUpstream(postgres.address);
      const parameters = { user, database: 'postgres', application_name: 'wörk' };
      const login = await logIn(peer, { parameters, ...(protocol === undefined ? {} : { protocol }) }, credentials);
      expect(login.parameters.get('server_version')).toMatch(new RegExp(`^${version}`));
      expect(login.parameters.get('application_name')).toMatch(/^w(\?\?|\\xc3\\xb6)rk$/);
      expect(login.pid).toBeGreaterThan(0);
      expect(login.key).toHaveLength(login.protocol === protocol32 ? 32 : 4);
      expect(login.rest).toHaveLength(0);
      const answer = new Promise<string>((resolve) => {
        const take = (chunk: Buffer): boolean => {
          resolve(chunk.toString('latin1'));
          return false;
        };
        if (peer.reader === null) peer.socket.on('data', take);
        else peer.reader.receive = take;
      });
      peer.socket.resume();
      peer.socket.write(query("SELECT '<' || session_user || '>'", 'utf8'));
      const name = /<(.*)>/.exec(await answer)?.[1] ?? '';
      peer.socket.destroy();
      return name;
    }

    describe('a login upstream', () => {
      it('answers what the server asks', async () => {
        expect(await whoAmI('scram', { kind: 'password', password: 'pässword' })).toBe('scram');
        expect(await whoAmI('md', { kind: 'password', password: 'secret' })).toBe('md');
        expect(await whoAmI('md', { kind: 'md5', hash: md5Hash('md', 'secret') })).toBe('md');
        expect(await whoAmI('clear', { kind: 'password', password: 'secret' })).toBe('clear');
        expect(await whoAmI('passwordless', { kind: 'none' })).toBe('passwordless');
        expect(await whoAmI('scram', { kind: 'password', password: 'pässword' }, protocol32)).toBe('scram');
      });

      it('tells what the server said when it refuses', async () => {
        const refused = await whoAmI('scram', { kind: 'password', password: 'wrong' }).catch((error: unknown) => error);
        expect(refused).toBeInstanceOf(LoginRefused);
        expect(refused).toMatchObject({ fields: { C: '28P01', M: 'password authentication failed for user "scram"' } });
      });

      it('says what is missing', async () => {
        const clientKey = Buffer.alloc(32);
        await expect(whoAmI('scram', { kind: 'none' })).rejects.toMatchObject({
          fields: { code: '28000', detail: 'The upstream asks for SCRAM-SHA-256, and Millrace has no secret.' },
        });
        await expect(whoAmI('md', { kind: 'scram', clientKey, serverKey: clientKey })).rejects.toMatchObject({ fields: { code: '28000' } });
        await expect(whoAmI('clear', { kind: 'md5', hash: md5Hash('clear', 'secret') })).rejects.toMatchObject({
          fields: { code: '28000' },
        });
      });

      it('prepares passwords as the server does', async () => {
        for (const [index, password] of passwords.entries()) {
          await direct.query(`CREATE ROLE prepared_${index} LOGIN PASSWORD ${direct.escapeLiteral(password)}`);
          await direct.query('SET password_encryption = DEFAULT');
          await direct.query(`ALTER ROLE prepared_${index} PASSWORD ${direct.escapeLiteral(password)}`);
          expect([password, await whoAmI(`prepared_${index}`, { kind: 'password', password })]).toEqual([password, `prepared_${index}`]);
        }
      });
    });

    /** A small proxy: authenticates as Millrace does in pooled modes, logs in with what came of it, then only copies. */
    async function proxy(
      authType: AuthType,
      users: Record<string, string> = {},
      authQuery = defaultProxySettings.authQuery,
    ): Promise<{ port: number; kinds: string[] }> {
      const kinds: string[] = [];
      const secrets = new Secrets({ users, authQuery, run: upstreamAuthQuery(postgres.address), log });
      const authenticator = new ClientAuthenticator({
        secretOf: secrets.of,
        isCertain: secrets.isCertain,
        forget: secrets.forget,
        mockKey,
        log,
      });
      const serve = async (client: Socket, startup: Buffer): Promise<void> => {
        const packet = readStartupPacket(startup);
        if (packet.kind !== 'startup') return void client.destroy();
        const found = await authenticator.authenticate(
          { socket: client, reader: null },
          packet.user,
          authType,
          startup.subarray(packet.length),
        );
        if (found === null) return;
        kinds.push(found.credentials.kind);
        const upstream = await connectUpstream(postgres.address);
        try {
          const { rest } = await logIn(upstream, { parameters: { user: packet.user, database: 'postgres' } }, found.credentials);
          client.write(Buffer.concat([authenticationOk, readyForQuery(0x49), rest]));
        } catch (error) {
          client.end((error as LoginRefused).response);
          return;
        }
        upstream.socket.on('error', () => client.destroy()).on('end', () => client.end());
        client
          .on('error', () => undefined)
          .on('end', () => client.end())
          .on('close', () => upstream.socket.destroy());
        if (upstream.reader !== null) upstream.reader.receive = (chunk) => client.write(Buffer.from(chunk));
        client.on('data', (chunk: Buffer) => upstream.socket.write(chunk));
        upstream.socket.resume();
        client.resume();
        upstream.socket.write(found.rest);
      };
      const server = createServer({ allowHalfOpen: true, noDelay: true }, (client) => {
        client.once('data', (startup: Buffer) => {
          client.pause();
          void serve(client, startup);
        });
      });
      await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
      servers.push(server);
      const address = server.address();
      return { port: typeof address === 'object' ? (address?.port ?? 0) : 0, kinds };
    }

    async function connect(port: number, user: string, password: string): Promise<string> {
      const client = new pg.Client({ host: '127.0.0.1', port, user, password, database: 'postgres' });
      client.on('error', () => undefined);
      try {
        await client.connect();
        return (await client.query('SELECT session_user::text AS u')).rows[0].u;
      } catch (error) {
        return (error as { code: string }).code;
      } finally {
        await client.end().catch(() => undefined);
      }
    }

    describe('a client', () => {
      it('uses SCRAM, and the keys recovered from its proof open the upstream', async () => {
        const { port, kinds } = await proxy('scram-sha-256');
        expect(await connect(port, 'scram', 'pässword')).toBe('scram');
        expect(await connect(port, 'unknown_password', 'nobody knows')).toBe('unknown_password');
        expect(kinds).toEqual(['scram', 'scram']);
        for (const [user, password] of [
          ['scram', 'wrong'],
          ['old', 'secret'],
          ['nologin', 'secret'],
          ['passwordless', ''],
          ['passwordless', 'secret'],
          ['nobody', 'secret'],
          ['md', 'secret'],
          ["x'; DROP ROLE md; --", 'secret'],
        ] as const) {
          expect([user, await connect(port, user, password || ' ')]).toEqual([user, '28P01']);
        }
        expect(kinds).toHaveLength(2);
      });

      it('has its secret in the file', async () => {
        const [row] = (await direct.query("SELECT rolpassword FROM pg_authid WHERE rolname = 'scram'")).rows;
        const { port, kinds } = await proxy('scram-sha-256', { scram: row.rolpassword, clear: 'secret', md: 'wrong' }, '');
        expect(await connect(port, 'scram', 'pässword')).toBe('scram');
        expect(await connect(port, 'clear', 'secret')).toBe('clear');
        expect(await connect(port, 'clear', 'secret')).toBe('clear');
        // Millrace's own file lets it in, the upstream does not, and says so.
        expect(await connect(port, 'md', 'wrong')).toBe('28P01');
        expect(await connect(port, 'unknown_password', 'nobody knows')).toBe('28P01');
        expect(kinds).toEqual(['scram', 'password', 'password', 'password']);
      });

      it('uses md5 where that is stored, and SCRAM otherwise', async () => {
        const { port, kinds } = await proxy('md5');
        expect(await connect(port, 'md', 'secret')).toBe('md');
        expect(await connect(port, 'scram', 'pässword')).toBe('scram');
        for (const user of ['md', 'scram', 'nobody']) expect(await connect(port, user, 'wrong')).toBe('28P01');
        expect(kinds).toEqual(['md5', 'scram']);
        const file = await proxy('md5', { md: 'secret' }, '');
        expect(await connect(file.port, 'md', 'secret')).toBe('md');
        expect(await connect(file.port, 'md', 'wrong')).toBe('28P01');
      });

      it('sends its password in clear', async () => {
        const { port, kinds } = await proxy('plain', { clear: 'secret' });
        for (const [user, password] of [
          ['scram', 'pässword'],
          ['md', 'secret'],
          ['clear', 'secret'],
        ] as const) {
          expect(await connect(port, user, password)).toBe(user);
          expect(await connect(port, user, 'wrong')).toBe('28P01');
          expect(await connect(port, user, '')).not.toBe(user);
        }
        expect(kinds).toEqual(['password', 'password', 'password']);
      });

      it('is trusted', async () => {
        const { port, kinds } = await proxy('trust', { clear: 'secret' });
        expect(await connect(port, 'clear', '')).toBe('clear');
        expect(await connect(port, 'passwordless', '')).toBe('passwordless');
        expect(await connect(port, 'md', '')).toBe('md');
        expect(kinds).toEqual(['password', 'none', 'md5']);
      });

      it('without TLS has no certificate', async () => {
        const { port } = await proxy('cert');
        expect(await connect(port, 'postgres', '')).toBe('28000');
      });

      it.skipIf(!havePsql)('may be libpq (needs psql)', async () => {
        const { port } = await proxy('scram-sha-256');
        const ask = (password: string): ReturnType<typeof psql> =>
          psql({ host: '127.0.0.1', port, user: 'scram', password, database: 'postgres' }, ['-c', 'SELECT session_user'], {
            env: { PGSSLMODE: 'disable' },
          });
        expect(await ask('pässword')).toEqual({ stdout: 'scram\n', stderr: '', code: 0 });
        expect((await ask('wrong')).stderr).toMatch(/FATAL: {2}password authentication failed for user "scram"\n$/);
      });

      it('is cut short when it says something else, too much, or the wrong thing', async () => {
        const { port } = await proxy('scram-sha-256', { scram: 'x' });
        const initial = (mechanism: string, text: string, length = text.length): Buffer => {
          const size = Buffer.alloc(4);
          size.writeInt32BE(length);
          return message(0x70, [Buffer.from(`${mechanism}\0`), size, Buffer.from(text)]);
        };
        for (const [bytes, problem] of [
          [query('SELECT 1', 'utf8'), 'expected a password response'],
          [Buffer.from([0x70, 0x7f, 0xff, 0xff, 0xff]), 'expected a password response'],
          [Buffer.from([0x70, 0xff, 0xff, 0xff, 0xff]), 'expected a password response'],
          [Buffer.from([0x70, 0, 0, 4, 2]), 'expected a password response'],
          [initial('SCRAM-SHA-256-PLUS', 'p=tls-server-end-point,,n=,r=abc'), 'client selected an invalid SASL authentication mechanism'],
          [initial('SCRAM-SHA-256', 'p=tls-server-end-point,,n=,r=abc'), 'malformed SCRAM message'],
          [initial('SCRAM-SHA-256', 'n,,n=,r=abc', 5), 'malformed SCRAM message'],
          [message(0x70, [Buffer.from('secret\0')]), 'client selected an invalid SASL authentication mechanism'],
          [message(0x70, []), 'client selected an invalid SASL authentication mechanism'],
        ] as const) {
          const c = await RawClient.connect(port);
          c.write(startupPacket({ user: 'scram' }));
          await c.until('R');
          c.write(bytes);
          expect(shown(await c.until('E'))).toEqual([`E FATAL 08P01 ${problem}`]);
          await c.until('none');
          expect(c.ended).toBe(true);
        }
        // Everything at once, and cut anywhere.
        const c = await RawClient.connect(port);
        c.write(startupPacket({ user: 'scram' }), initial('SCRAM-SHA-256', '', -1));
        const asked = (await c.until('R', 2)).map(({ body }) => body.readInt32BE(0));
        expect(asked).toEqual([10, 11]);
        const first = message(0x70, [Buffer.from('y,,n=,r=abc')]);
        for (const byte of first) {
          c.write(Buffer.from([byte]));
          await new Promise((resolve) => setTimeout(resolve, 2));
        }
        expect((await c.until('R'))[0]?.body.toString('latin1', 4)).toMatch(/^r=abc.*,s=.*,i=4096$/);
        c.destroy();
      });

      it('cannot tell a role that does not exist from one that does', async () => {
        const { port } = await proxy('scram-sha-256', { known: 'x' });
        const salts: string[] = [];
        for (const user of ['known', 'known', 'unknown', 'unknown', 'unknown-2']) {
          const c = await RawClient.connect(port);
          c.write(startupPacket({ user }));
          await c.until('R');
          c.write(message(0x70, [Buffer.from('SCRAM-SHA-256\0\0\0\0\x0bn,,n=,r=abc', 'latin1')]));
          const [answer] = await c.until('R');
          salts.push(/,s=(.{24}),i=4096$/.exec(answer?.body.toString('latin1') ?? '')?.[1] ?? '?');
          c.destroy();
        }
        expect(salts[0]).toBe(salts[1]);
        expect(salts[2]).toBe(salts[3]);
        expect(new Set(salts).size).toBe(3);
        expect(salts).not.toContain('?');
      });
    });

    it('asks auth_query over one connection, which may end any time', async () => {
      const ask = upstreamAuthQuery({ ...postgres.address });
      const who = 'SELECT $1::text, pg_backend_pid()::text';
      const [[, first] = []] = await ask(who, 'a');
      const all = await Promise.all(["it's", 'b', 'c'].map((user) => ask(who, user)));
      expect(all).toEqual([[["it's", first]], [['b', first]], [['c', first]]]);
      await direct.query('SELECT pg_terminate_backend($1, 5000)', [first]);
      const [[, second] = []] = await ask(who, 'a');
      expect(second).not.toBe(first);
      await expect(ask('SELECT $1::text FROM no_such_table', 'a')).rejects.toThrow('relation "no_such_table" does not exist');
      expect(await ask("SELECT $1::text, current_setting('search_path')", 'a')).toEqual([['a', 'pg_catalog']]);
      await expect(upstreamAuthQuery({ ...postgres.address, user: 'clear', password: 'wrong' })(who, 'a')).rejects.toThrow(/password/);
    });

    it('keeps what comes behind ReadyForQuery', async () => {
      const peer = await connectUpstream(postgres.address);
      const login = logIn(peer, { parameters: { user: 'postgres', database: 'postgres' } }, { kind: 'none' });
      peer.socket.write(query("SELECT 'first'", 'utf8'));
      const { rest } = await login;
      let text = rest.toString('latin1');
      await new Promise<void>((resolve) => {
        const take = (chunk: Buffer): boolean => {
          text += chunk.toString('latin1');
          if (text.includes('SELECT 1')) resolve();
          return false;
        };
        if (peer.reader !== null) peer.reader.receive = take;
        take(Buffer.alloc(0));
        peer.socket.resume();
      });
      expect(text).toContain('first');
      peer.socket.destroy();
    });
  });
}
