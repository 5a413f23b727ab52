import { appendFileSync, chownSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { SslOptions } from '../../../src/config.ts';
import { connectionProblem } from '../../../src/replication/origin.ts';
import { connectRaw } from '../../../src/replication/raw-connection.ts';
import { startPostgres, type TestPostgres } from '../../support/postgres.ts';
import { ca, clientCert, clientKey, otherCa, serverCert, serverKey } from './certificates.ts';

/** 'tls' or 'plain' when connected, else 'no: ' and the kind of problem. */
async function attempt(
  server: TestPostgres,
  ssl: SslOptions,
  more: { host?: string; user?: string; password?: string } = {},
): Promise<string> {
  try {
    const connection = await connectRaw({ ...server.address, ssl, ...more }, { connectTimeoutMs: 5_000 });
    const [result] = await connection.query('SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()');
    // Larger than a TLS record, both ways.
    const text = 'é'.repeat(100_000);
    expect((await connection.execute('echo', 'SELECT $1::text', [text])).rows).toEqual([[text]]);
    await connection.close();
    return result?.rows[0]?.[0] === 't' ? 'tls' : 'plain';
  } catch (error) {
    return `no: ${connectionProblem(error).kind}`;
  }
}

describe('a server without TLS', () => {
  let server: TestPostgres;
  beforeAll(async () => {
    server = await startPostgres();
  });
  afterAll(() => server?.stop());

  it('is reached only where plain text is allowed', async () => {
    expect(await attempt(server, { mode: 'disable' })).toBe('plain');
    expect(await attempt(server, { mode: 'prefer' })).toBe('plain');
    for (const mode of ['require', 'verify-ca', 'verify-full'] as const) expect(await attempt(server, { mode, ca })).toBe('no: tls');
  });

  it('gives the reason of the last attempt when prefer falls back', async () => {
    expect(await attempt(server, { mode: 'prefer' }, { user: 'missing' })).toBe('no: auth');
  });
});

describe('a server with TLS', () => {
  let server: TestPostgres;
  beforeAll(async () => {
    server = await startPostgres();
    const owner = statSync(server.dataDir);
    for (const [name, text] of [
      ['server.crt', serverCert],
      ['server.key', serverKey],
      ['root.crt', ca],
    ] as const) {
      const path = join(server.dataDir, name);
      writeFileSync(path, text, { mode: 0o600 });
      chownSync(path, owner.uid, owner.gid);
    }
    const hba = join(server.dataDir, 'pg_hba.conf');
    const rules = readFileSync(hba, 'utf8');
    writeFileSync(
      hba,
      'hostssl all certified all cert\nhostnossl all plainonly all trust\nhostssl all plainonly all reject\nhost all secret all scram-sha-256\nhost all hashed all md5\nhost all cleartext all password\n',
    );
    appendFileSync(hba, rules);
    const client = new pg.Client(server.url);
    await client.connect();
    await client.query(`CREATE ROLE certified LOGIN; CREATE ROLE plainonly LOGIN; CREATE ROLE secret LOGIN PASSWORD 'pä ss''word';
      SET password_encryption = 'md5'; CREATE ROLE hashed LOGIN PASSWORD 'old'; CREATE ROLE cleartext LOGIN PASSWORD 'clear'`);
    await client.query("ALTER SYSTEM SET ssl_ca_file = 'root.crt'");
    await client.query('ALTER SYSTEM SET ssl = on');
    await client.query('SELECT pg_reload_conf()');
    await client.end();
    await server.restart();
  });
  afterAll(() => server?.stop());

  it('is used encrypted unless that is disabled', async () => {
    expect(await attempt(server, { mode: 'disable' })).toBe('plain');
    expect(await attempt(server, { mode: 'prefer' })).toBe('tls');
    expect(await attempt(server, { mode: 'require' })).toBe('tls');
  });

  it('is verified as far as asked', async () => {
    const localhost = { host: 'localhost' };
    expect(await attempt(server, { mode: 'verify-ca', ca })).toBe('tls');
    expect(await attempt(server, { mode: 'verify-full', ca }, localhost)).toBe('tls');
    // The certificate does not name the address.
    expect(await attempt(server, { mode: 'verify-full', ca })).toBe('no: tls');
    await expect(connectRaw({ ...server.address, ssl: { mode: 'verify-full', ca } })).rejects.toThrow(/IP|altnames/);
    // Another CA, or the machine's own ones.
    for (const mode of ['require', 'verify-ca', 'verify-full'] as const) {
      await expect(connectRaw({ ...server.address, ...localhost, ssl: { mode, ca: otherCa } }), mode).rejects.toThrow(/certificate/);
    }
    await expect(connectRaw({ ...server.address, ...localhost, ssl: { mode: 'verify-full' } })).rejects.toThrow(/certificate/);
  });

  it('takes a client certificate instead of a password', async () => {
    expect(await attempt(server, { mode: 'require', cert: clientCert, key: clientKey }, { user: 'certified' })).toBe('tls');
    expect(await attempt(server, { mode: 'require' }, { user: 'certified' })).toBe('no: auth');
  });

  it('is used in plain text where prefer meets a rule against TLS', async () => {
    expect(await attempt(server, { mode: 'prefer' }, { user: 'plainonly' })).toBe('plain');
    expect(await attempt(server, { mode: 'require' }, { user: 'plainonly' })).toBe('no: auth');
  });

  it('checks passwords in every way, and nothing from the environment helps', async () => {
    process.env['PGPASSWORD'] = "pä ss'word";
    try {
      expect(await attempt(server, { mode: 'require' }, { user: 'secret', password: "pä ss'word" })).toBe('tls');
      expect(await attempt(server, { mode: 'require' }, { user: 'hashed', password: 'old' })).toBe('tls');
      expect(await attempt(server, { mode: 'require' }, { user: 'cleartext', password: 'clear' })).toBe('tls');
      for (const user of ['secret', 'hashed', 'cleartext']) {
        expect(await attempt(server, { mode: 'require' }, { user, password: 'wrong' }), user).toBe('no: auth');
        expect(await attempt(server, { mode: 'require' }, { user }), user).toBe('no: auth');
      }
    } finally {
      delete process.env['PGPASSWORD'];
    }
  });

  it('streams over TLS as well', async () => {
    const connection = await connectRaw({ ...server.address, ssl: { mode: 'require' } }, { replication: true });
    expect((await connection.query('IDENTIFY_SYSTEM'))[0]?.fields.map((field) => field.name)).toEqual([
      'systemid',
      'timeline',
      'xlogpos',
      'dbname',
    ]);
    await connection.close();
  });
});
