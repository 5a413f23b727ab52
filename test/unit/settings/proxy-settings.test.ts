/** From a config file and flags to the settings of the proxy. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll, describe, expect, it } from 'vitest';
import { readPairs, readUserList } from '../../../src/ini.ts';
import { foreignSettings, parseSetting, settings, showSetting } from '../../../src/proxy-setting-names.ts';
import { loadProxy } from '../../../src/proxy-settings.ts';
import { LiveSettings } from '../../../src/server/live-settings.ts';
import { defaultProxySettings, type ProxySettings } from '../../../src/wire/pool/settings.ts';
import { ca, serverCert, serverKey } from '../../integration/replication/certificates.ts';

const directory = mkdtempSync(join(tmpdir(), 'millrace-settings-'));
afterAll(() => rmSync(directory, { recursive: true, force: true }));

let files = 0;
function file(text: string, name = `${++files}.ini`): string {
  const path = join(directory, name);
  writeFileSync(path, text);
  return path;
}

/** The error of a file, without the directory in front. */
function problem(text: string): string {
  try {
    loadProxy({ file: file(text, 'm.ini'), flags: {} });
  } catch (error) {
    return (error as Error).message.replaceAll(`${directory}/`, '');
  }
  return 'no error';
}

describe('the config file', () => {
  it('changes nothing when there is none', () => {
    expect(loadProxy({ flags: {} })).toEqual({ settings: defaultProxySettings, listen: undefined, given: {}, warnings: [] });
  });

  it('is read in the units of PgBouncer', () => {
    const users = file('"a" "secret"\n', 'users.txt');
    const { settings: found, listen } = loadProxy({
      file: file(`
; a comment
[millrace]
pool_mode = transaction
default_pool_size=7
query_wait_timeout = 1.5
server_lifetime = 0
admin_users = a, b ,c
auth_file = ${users}
auth_query = SELECT rolname, rolpassword FROM x WHERE a = $1; -- all of it
listen_addr = *
listen_port = 6432
[databases]
shop = pool_size=3 pool_mode=session max_db_connections=9
"odd name" = reserve_pool=1
* = pool_size=11
[users]
bob = max_user_connections=4 query_timeout=2.25
`),
      flags: { max_client_conn: '12' },
    });
    expect(found).toEqual({
      ...defaultProxySettings,
      poolMode: 'transaction',
      defaultPoolSize: 11,
      queryWaitTimeout: 1_500,
      serverLifetime: 0,
      adminUsers: ['a', 'b', 'c'],
      users: { a: 'secret' },
      authQuery: 'SELECT rolname, rolpassword FROM x WHERE a = $1; -- all of it',
      maxClientConn: 12,
      perDatabase: { shop: { poolSize: 3, poolMode: 'session', maxDbConnections: 9 }, 'odd name': { reservePoolSize: 1 } },
      perUser: { bob: { maxUserConnections: 4, queryTimeout: 2_250 } },
    } satisfies ProxySettings);
    expect(listen).toEqual({ host: '0.0.0.0', port: 6432 });
  });

  it('gives way to flags', () => {
    const { settings: found } = loadProxy({ file: file('[pgbouncer]\npool_mode = statement\n'), flags: { pool_mode: 'transaction' } });
    expect(found.poolMode).toBe('transaction');
  });

  it('of PgBouncer is taken as it is, with warnings', () => {
    const all = [...foreignSettings].map((name) => `${name} = x`).join('\n');
    const { warnings } = loadProxy({
      file: file(`[pgbouncer]\n${all}\n[databases]\na = host=h port=1 dbname=b user=u\n[peers]\n1 = host=x\n`),
      flags: {},
    });
    expect(warnings).toHaveLength(foreignSettings.size + 2);
    expect(warnings[0]).toMatch(/\.ini:2: application_name_add_host is a setting of PgBouncer that has no meaning here$/);
    expect(warnings.join()).toContain('host, port, dbname, user of "a" have no meaning here');
  });

  it('follows %include', () => {
    const inner = file('[millrace]\npool_mode = statement\nbad = 1\n', 'inner.ini');
    expect(problem(`%include ${inner}\n`)).toBe('inner.ini:3: there is no setting "bad" (docs/configuration.md lists them)');
    expect(problem(`\n%include ${directory}/none.ini\n`)).toBe('m.ini:2: cannot read "none.ini": no such file or directory');
  });

  it.each([
    ['[millrace]\npool_mode = sesion', 'm.ini:2: pool_mode = "sesion": allowed are session, transaction, statement'],
    ['[millrace]\n\ndefault_pool_size = 0', 'm.ini:3: default_pool_size = "0": allowed is a whole number from 1'],
    ['[millrace]\nmin_pool_size = -1', 'm.ini:2: min_pool_size = "-1": allowed is a whole number from 0'],
    [
      '[millrace]\nquery_timeout = 5s',
      'm.ini:2: query_timeout = "5s": allowed is a number of seconds from 0 (none) to 2147483, fractions too',
    ],
    [
      '[millrace]\nquery_timeout = 1e9',
      'm.ini:2: query_timeout = "1e9": allowed is a number of seconds from 0 (none) to 2147483, fractions too',
    ],
    ['[millrace]\nauth_type = hba', 'm.ini:2: auth_type = "hba": allowed are scram-sha-256, md5, plain, trust, cert'],
    ['[millrace]\npoolmode = session', 'm.ini:2: there is no setting "poolmode": did you mean pool_mode?'],
    ['[millrace]\nconstructor = x', 'm.ini:2: there is no setting "constructor" (docs/configuration.md lists them)'],
    ['[millrace]\npool_mode', 'm.ini:2: "pool_mode" is neither [section] nor name = value'],
    ['pool_mode = session', 'm.ini:1: pool_mode stands in front of the first [section]'],
    ['[server]\na = b', 'm.ini:2: section [server] is not one of [millrace], [pgbouncer], [databases], [users]'],
    ['[databases]\na = pool_size=x', 'm.ini:2: pool_size = "x": allowed is a whole number from 1'],
    ['[databases]\na = host', 'm.ini:2: "host" is not name=value'],
    [
      '[users]\na = host=x',
      'm.ini:2: host is not a setting of [users]: allowed are pool_mode, pool_size, reserve_pool_size, max_user_connections, max_user_client_connections, client_idle_timeout, idle_transaction_timeout, transaction_timeout, query_timeout',
    ],
    ['[millrace]\nlisten_port = 70000', 'm.ini:2: listen_port = "70000": allowed is a port from 0 to 65535'],
    ['[millrace]\nlisten_addr = a, b', 'm.ini:2: listen_addr = "a, b": allowed is one address, or *'],
    ['[millrace]\nauth_file = /none', 'm.ini:2: auth_file: cannot read "/none": no such file or directory'],
    [
      '[millrace]\nclient_tls_sslmode = require',
      'm.ini:2: client_tls_sslmode = "require": client_tls_cert_file and client_tls_key_file are needed too',
    ],
  ])('%j is refused in one line', (text, expected) => {
    expect(problem(text)).toBe(expected);
    expect(expected).not.toContain('\n');
  });

  it('names the flag that is wrong', () => {
    expect(() => loadProxy({ flags: { pool_mode: 'x' } })).toThrow(
      '--pool-mode: pool_mode = "x": allowed are session, transaction, statement',
    );
    expect(() => loadProxy({ file: '/none', flags: {} })).toThrow('--config: cannot read "/none": no such file or directory');
  });

  it('refuses a certificate that does not belong to its key', () => {
    const pem = file('no certificate', 'x.pem');
    const flags = { client_tls_sslmode: 'require', client_tls_cert_file: pem, client_tls_key_file: pem };
    expect(() => loadProxy({ flags })).toThrow(/^--tls-mode: the certificate, its key or the CA cannot be used: /);
  });
});

describe('certificates', () => {
  it('are read with the settings, and again by a reload', () => {
    const cert = file(serverCert, 'cert.pem');
    const key = file(serverKey, 'key.pem');
    const flags = { client_tls_sslmode: 'verify-full', client_tls_cert_file: cert, client_tls_key_file: key };
    expect(() => loadProxy({ flags })).toThrow('--tls-mode: client_tls_sslmode = "verify-full": client_tls_ca_file is needed too');
    const source = { flags: { ...flags, client_tls_ca_file: file(ca, 'ca.pem') } };
    const live = new LiveSettings(loadProxy(source), source);
    const before = { mode: 'verify-full', cert: serverCert, key: serverKey, ca };
    expect(live.current.tls).toEqual(before);
    writeFileSync(key, 'half a ke');
    expect(() => live.reload()).toThrow('the certificate, its key or the CA cannot be used');
    expect(live.current.tls).toEqual(before);
    writeFileSync(key, `${serverKey}\n`);
    expect(live.reload()).toEqual([]);
    expect(live.current.tls.key).toBe(`${serverKey}\n`);
  });
});

describe('settings', () => {
  it('read back what is shown of them', () => {
    const count = fc.integer({ min: 1, max: 2_147_483_647 });
    const seconds = fc.integer({ min: 0, max: 2_147_483_647 });
    const name = fc.stringMatching(/^[^\s,]+$/);
    fc.assert(
      fc.property(
        fc.constantFrom(...settings),
        count,
        seconds,
        fc.array(name),
        fc.string(),
        fc.nat(),
        (setting, n, ms, names, text, pick) => {
          const value =
            setting.kind === 'count'
              ? n
              : setting.kind === 'seconds'
                ? ms
                : setting.kind === 'names'
                  ? names
                  : setting.kind === 'choice'
                    ? setting.choices[pick % setting.choices.length]
                    : `x${text}`;
          const given = { ...defaultProxySettings, [setting.key]: value };
          expect(parseSetting(defaultProxySettings, setting, showSetting(given, setting))).toEqual(given);
        },
      ),
      { numRuns: 1_000 },
    );
  });

  it('cover every field but those of files and lists', () => {
    const others = ['users', 'perDatabase', 'perUser', 'tls'];
    expect([...settings.map(({ key }) => key), ...others].sort()).toEqual(Object.keys(defaultProxySettings).sort());
  });
});

describe('user lists and pairs', () => {
  it('are read with their quotes doubled', () => {
    const quoted = (one: string): string => `"${one.replaceAll('"', '""')}"`;
    const word = fc.string().filter((one) => !/[\r\n]/.test(one));
    fc.assert(
      fc.property(fc.dictionary(word, word), (users) => {
        const text = Object.entries(users).map(([name, secret]) => `${quoted(name)} ${quoted(secret)} ignored`);
        expect(Object.entries(readUserList(`; comment\n${text.join('\n')}\n`, 'f')).sort()).toEqual(Object.entries(users).sort());
      }),
    );
    expect(() => readUserList('"a" "b"\n"c" secret', 'users.txt')).toThrow(/^users.txt:2: not "role" "secret"$/);
  });

  it('keep every value', () => {
    const key = fc.stringMatching(/^[a-z_]+$/);
    const value = fc.string().filter((one) => !/[\r\n]/.test(one));
    fc.assert(
      fc.property(fc.array(fc.tuple(key, value)), (pairs) => {
        const text = pairs.map(([name, one]) => `${name}='${one.replaceAll("'", "''")}'`).join(' ');
        expect(readPairs(text, 'f:1')).toEqual(pairs);
      }),
    );
  });
});

describe('settings of a running Millrace', () => {
  it('change by a reload, stay with a broken file, and name what a restart needs', () => {
    const path = file('[millrace]\npool_mode = session\nlisten_port = 6000\n');
    const source = { file: path, flags: {} };
    const live = new LiveSettings(loadProxy(source), source);
    live.set('default_pool_size', '3');
    expect(live.current.defaultPoolSize).toBe(3);
    writeFileSync(path, '[millrace]\npool_mode = nonsense\n');
    expect(() => live.reload()).toThrow(/:2: pool_mode = "nonsense"/);
    expect(live.current).toMatchObject({ defaultPoolSize: 3, poolMode: 'session' });
    writeFileSync(path, '[millrace]\npool_mode = transaction\nlisten_port = 6001\nadmin_database = other\n');
    expect(live.reload()).toEqual([
      'listen_port was changed and takes effect when Millrace is started again',
      'admin_database was changed and takes effect when Millrace is started again',
    ]);
    expect(live.current).toMatchObject({ defaultPoolSize: 20, poolMode: 'transaction', adminDatabase: 'millrace' });
    expect(live.given['listen_port']).toBe('6000');
  });

  it('refuse what SET cannot set', () => {
    const live = new LiveSettings(loadProxy({ flags: {} }), { flags: {} });
    expect(() => live.set('admin_database', 'x')).toThrow('cannot be changed while Millrace runs');
    expect(() => live.set('nope', 'x')).toThrow('"nope" is not a setting that SET knows');
    expect(() => live.set('query_timeout', 'x')).toThrow('query_timeout = "x": allowed is a number of seconds');
  });
});
