/** Who may use a pool: every way a client can prove who it is, and what its server connections are opened with. */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { md5Hash } from '../../../src/wire/auth/md5.ts';
import { type TestAuthority, testAuthority } from '../../support/certificates.ts';
import { eventually, type PoolStage, startPoolStage } from './stage.ts';

let stage: PoolStage;
let authority: TestAuthority;
let verifier: string;

beforeAll(async () => {
  stage = await startPoolStage();
  authority = testAuthority();
  const { direct, postgres } = stage;
  await direct.query(`CREATE ROLE scram LOGIN PASSWORD 'pässword'; CREATE ROLE scram2 LOGIN PASSWORD 'other';
    CREATE ROLE gone LOGIN PASSWORD 'x' VALID UNTIL '2020-01-01'; CREATE ROLE nologin PASSWORD 'x'; CREATE ROLE free LOGIN;
    CREATE ROLE clear LOGIN PASSWORD 'secret'; SET password_encryption = md5; CREATE ROLE md LOGIN PASSWORD 'secret'; RESET password_encryption`);
  verifier = String(await direct.value("SELECT rolpassword FROM pg_authid WHERE rolname = 'scram'"));
  const hba = join(postgres.dataDir, 'pg_hba.conf');
  const lines = [
    'host all md all md5',
    'host all clear all password',
    'host all postgres,free all trust',
    'host all all all scram-sha-256',
  ];
  writeFileSync(hba, `${lines.join('\n')}\n${readFileSync(hba, 'utf8')}`);
  await direct.query('SELECT pg_reload_conf()');
});
afterEach(() => stage.clear());
afterAll(async () => {
  await stage?.stop();
  authority?.remove();
});

const who = "SELECT current_user || ' ' || pg_backend_pid()";

describe('scram-sha-256', () => {
  it('logs in upstream with the keys of the client’s own proof: nobody else knows the password', async () => {
    const proxy = await stage.proxy({ authType: 'scram-sha-256', defaultPoolSize: 1 });
    const clients = await Promise.all([1, 2].map(() => stage.connect(proxy, { user: 'scram', password: 'pässword' })));
    const answers = await Promise.all(clients.map((client) => client.value(who)));
    expect(answers[0]).toMatch(/^scram \d+$/);
    expect(new Set(answers).size).toBe(1);
  });

  it('with a verifier in auth_file, and no auth_query at all', async () => {
    const proxy = await stage.proxy({ authType: 'scram-sha-256', authQuery: '', users: { scram: verifier } });
    const client = await stage.connect(proxy, { user: 'scram', password: 'pässword' });
    expect(await client.value('SELECT current_user::text')).toBe('scram');
    expect(await stage.refusal(proxy, { user: 'scram2', password: 'other' })).toBe(
      '28P01 password authentication failed for user "scram2"',
    );
  });

  it('a password in clear in auth_file opens an upstream that asks for md5, or for the password', async () => {
    const proxy = await stage.proxy({ authType: 'scram-sha-256', users: { md: 'secret', clear: 'secret' } });
    for (const user of ['md', 'clear']) {
      expect(await (await stage.connect(proxy, { user, password: 'secret' })).value('SELECT current_user::text')).toBe(user);
    }
  });

  it('refuses as Postgres does, word for word, whatever is wrong', async () => {
    const proxy = await stage.proxy({ authType: 'scram-sha-256' });
    for (const [user, password] of [
      ['scram', 'wrong'],
      ['nobody_of_this_name', 'x'],
      ['gone', 'x'],
      ['nologin', 'wrong'],
      ['free', 'x'],
    ] as const) {
      const there = await stage.refusal({ port: stage.postgres.port } as never, { user, password });
      const here = await stage.refusal(proxy, { user, password });
      expect(here).toBe(`28P01 password authentication failed for user "${user}"`);
      // The upstream itself trusts this one.
      if (user !== 'free') expect(here).toBe(there);
    }
  });

  it('a changed password holds at once, and the pool goes on with the new one', async () => {
    const proxy = await stage.proxy({ authType: 'scram-sha-256', serverIdleTimeout: 50 });
    await stage.connect(proxy, { user: 'scram2', password: 'other' });
    await stage.direct.query("ALTER ROLE scram2 PASSWORD 'newer'");
    await eventually(() => proxy.report().servers.length === 0, 'no server connection is left');
    // Asked for anew after a login has failed.
    await stage.refusal(proxy, { user: 'scram2', password: 'newer' });
    await eventually(async () => (await stage.refusal(proxy, { user: 'scram2', password: 'newer' })) === 'let in', 'the new one is good');
    expect(await stage.refusal(proxy, { user: 'scram2', password: 'other' })).toMatch(/^28P01/);
    await stage.direct.query("ALTER ROLE scram2 PASSWORD 'other'");
  });
});

describe('md5', () => {
  it('with a hash or a password in auth_file, or of auth_query', async () => {
    for (const users of [{ md: md5Hash('md', 'secret') }, { md: 'secret' }, {}]) {
      const proxy = await stage.proxy({ authType: 'md5', users });
      const client = await stage.connect(proxy, { user: 'md', password: 'secret' });
      expect(await client.value('SELECT current_user::text')).toBe('md');
      expect(await stage.refusal(proxy, { user: 'md', password: 'wrong' })).toBe('28P01 password authentication failed for user "md"');
    }
  });
});

describe('plain', () => {
  it('takes the password, checks it against what is stored, and opens any upstream with it', async () => {
    const proxy = await stage.proxy({ authType: 'plain' });
    for (const [user, password] of [
      ['scram', 'pässword'],
      ['md', 'secret'],
      ['clear', 'secret'],
    ] as const) {
      expect(await (await stage.connect(proxy, { user, password })).value('SELECT current_user::text')).toBe(user);
      expect(await stage.refusal(proxy, { user, password: 'wrong' })).toBe(`28P01 password authentication failed for user "${user}"`);
    }
  });
});

describe('trust', () => {
  it('asks nothing, and is as good as what the upstream then says', async () => {
    const proxy = await stage.proxy({ authType: 'trust' });
    expect(await (await stage.connect(proxy, { user: 'free' })).value('SELECT current_user::text')).toBe('free');
    expect(await stage.refusal(proxy, { user: 'nobody_of_this_name' })).toMatch(/^28000 /);
    expect(await stage.refusal(proxy, { user: 'scram' })).toMatch(/^28000 cannot log in to the upstream as role "scram"/);
    const known = await stage.proxy({ authType: 'trust', users: { scram: 'pässword' } });
    expect(await (await stage.connect(known, { user: 'scram' })).value('SELECT current_user::text')).toBe('scram');
  });
});

describe('cert', () => {
  it('lets in the role that the certificate names, and no other', async () => {
    const own = authority.issue('localhost');
    const theirs = authority.issue('free');
    const tls = { mode: 'verify-full', cert: own.cert, key: own.key, ca: authority.cert } as const;
    const proxy = await stage.proxy({ authType: 'cert', tls });
    const ssl = { ca: authority.cert, cert: theirs.cert, key: theirs.key, servername: 'localhost' };
    const client = await stage.connect(proxy, { host: 'localhost', user: 'free', ssl });
    expect(await client.value('SELECT current_user::text')).toBe('free');
    expect(await stage.refusal(proxy, { host: 'localhost', user: 'postgres', ssl })).toBe(
      '28000 certificate authentication failed for user "postgres"',
    );
    // TLS serves a pool as it serves a session: large results too.
    expect(await client.value("SELECT length(repeat('x', 5000000))")).toBe(5_000_000);
    expect(String(await client.value("SELECT repeat('x', 500000)")).length).toBe(500_000);
  });
});

describe('auth_query', () => {
  it('may be a function of the operator’s own, and what it does not know is refused', async () => {
    await stage.direct.query(`CREATE FUNCTION public.lookup(name text) RETURNS TABLE (u name, p text) LANGUAGE sql SECURITY DEFINER AS
      $$ SELECT rolname, rolpassword FROM pg_authid WHERE rolname = name AND name <> 'scram2' $$`);
    const proxy = await stage.proxy({ authType: 'scram-sha-256', authQuery: 'SELECT u, p FROM public.lookup($1)' });
    expect(await stage.refusal(proxy, { user: 'scram', password: 'pässword' })).toBe('let in');
    expect(await stage.refusal(proxy, { user: 'scram2', password: 'other' })).toMatch(/^28P01/);
  });
});

it('a database that does not exist is refused as Postgres refuses it', async () => {
  const proxy = await stage.proxy();
  const options = { user: 'postgres', database: 'no_such_place' };
  expect(await stage.refusal(proxy, options)).toBe('3D000 database "no_such_place" does not exist');
  expect(await stage.refusal(proxy, options)).toBe(await stage.refusal({ port: stage.postgres.port } as never, options));
});
