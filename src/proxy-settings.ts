/**
 * From a config file and flags to the settings of the proxy.
 * Invariant: what is returned is complete and checked, flags before file before defaults; everything that is wrong is an error of one
 * line that names the place, the setting and what is allowed. No secret is ever part of such a line.
 */
import { readFileSync } from 'node:fs';
import { createSecureContext } from 'node:tls';
import { type HostPort, parseHostPort, reason } from './config-loading.ts';
import { type IniEntry, readIni, readPairs, readUserList, SettingError } from './ini.ts';
import {
  databaseSettings,
  type FileSetting,
  fileSettings,
  findSetting,
  foreignDatabaseSettings,
  foreignSettings,
  settings as knownSettings,
  parseChoice,
  parseCount,
  parseSeconds,
  parseSetting,
  poolModes,
  tlsModes,
  userSettings,
} from './proxy-setting-names.ts';
import {
  type ClientTlsSettings,
  type DatabaseSettings,
  defaultProxySettings,
  type ProxySettings,
  type UserSettings,
} from './wire/pool/settings.ts';

/** Where settings come from: kept, because a reload reads them again. */
export interface ProxySource {
  readonly file?: string;
  /** Setting name -> what the flag of this name was given. */
  readonly flags: Readonly<Record<string, string>>;
}

export interface LoadedProxy {
  readonly settings: ProxySettings;
  /** Where the file wants clients to connect; undefined when it says nothing of it. */
  readonly listen: HostPort | undefined;
  /** Files and places as given, for SHOW CONFIG. */
  readonly given: Readonly<Record<string, string>>;
  /** One line each. */
  readonly warnings: readonly string[];
}

/** The flag that gives a setting. */
export const flagOf: Readonly<Record<string, string>> = {
  pool_mode: '--pool-mode',
  default_pool_size: '--default-pool-size',
  max_client_conn: '--max-client-conn',
  auth_type: '--auth-type',
  auth_file: '--auth-file',
  client_tls_sslmode: '--tls-mode',
  client_tls_cert_file: '--tls-cert',
  client_tls_key_file: '--tls-key',
  client_tls_ca_file: '--tls-ca',
  admin_users: '--admin-users',
};

interface Given {
  readonly value: string;
  readonly place: string;
}

/** Reads the file, and the files it names. Throws a SettingError. */
export function loadProxy(source: ProxySource): LoadedProxy {
  const warnings: string[] = [];
  const entries = source.file === undefined ? [] : readIni(readText(source.file, '--config'), source.file, (path) => readText(path));
  const general = new Map<string, Given>();
  for (const { section, name, value, place } of entries) {
    if (section === 'databases' || section === 'users') continue;
    if (section === 'peers') warnings.push(`${place}: [peers] has no meaning here: workers of one Millrace pass cancels on by themselves`);
    else if (section !== 'millrace' && section !== 'pgbouncer')
      throw new SettingError(place, `section [${section}] is not one of [millrace], [pgbouncer], [databases], [users]`);
    else if (isKnown(name)) general.set(name, { value, place });
    else if (foreignSettings.has(name)) warnings.push(`${place}: ${name} is a setting of PgBouncer that has no meaning here`);
    else throw new SettingError(place, `there is no setting "${name}"${nearest(name)}`);
  }
  for (const [name, value] of Object.entries(source.flags)) general.set(name, { value, place: flagOf[name] ?? name });

  let settings = defaultProxySettings;
  for (const setting of knownSettings) {
    const given = general.get(setting.name);
    if (given !== undefined) settings = checked(given, setting.name, () => parseSetting(settings, setting, given.value));
  }
  const databases = entries.filter(({ section }) => section === 'databases');
  const star = databases.findLast(({ name }) => name === '*');
  if (star !== undefined) settings = withStar(settings, databaseLine(star, warnings));
  const file = general.get('auth_file');
  settings = {
    ...settings,
    users: file === undefined || file.value === '' ? {} : readUserList(readText(file.value, `${file.place}: auth_file`), file.value),
    perDatabase: Object.fromEntries(
      databases.filter(({ name }) => name !== '*').map((entry) => [entry.name, databaseLine(entry, warnings)] as const),
    ),
    perUser: Object.fromEntries(
      entries.filter(({ section }) => section === 'users').map((entry) => [entry.name, line(entry, userSettings, undefined, warnings)]),
    ),
    tls: tlsSettings(general),
  };
  const given = Object.fromEntries(
    fileSettings.flatMap((name) => {
      const one = general.get(name);
      return one === undefined ? [] : [[name, one.value]];
    }),
  );
  return {
    settings,
    listen: listenAddress(general),
    given: { ...(source.file === undefined ? {} : { conffile: source.file }), ...given },
    warnings,
  };
}

function isKnown(name: string): boolean {
  return findSetting(name) !== undefined || fileSettings.some((one) => one === name);
}

/** A hint for a name that is nearly one. */
function nearest(name: string): string {
  const plain = (text: string): string => text.toLowerCase().replaceAll(/[^a-z]/g, '');
  const all = [...knownSettings.map((one) => one.name), ...fileSettings];
  const same = all.find((one) => plain(one) === plain(name)) ?? all.find((one) => one.startsWith(name) || name.startsWith(one));
  return same === undefined ? ' (docs/configuration.md lists them)' : `: did you mean ${same}?`;
}

function checked<T>({ value, place }: Given, name: string, parse: () => T): T {
  try {
    return parse();
  } catch (error) {
    throw new SettingError(place, `${name} = "${value}": ${error instanceof Error ? error.message : String(error)}`);
  }
}

function databaseLine(entry: IniEntry, warnings: string[]): DatabaseSettings {
  return line(entry, databaseSettings, foreignDatabaseSettings, warnings);
}

/** The settings of one database or user. */
function line(
  { section, name: subject, value, place }: IniEntry,
  known: Readonly<Record<string, 'mode' | 'count' | 'seconds'>>,
  foreign: ReadonlySet<string> | undefined,
  warnings: string[],
): DatabaseSettings & UserSettings {
  const found: Record<string, string | number> = {};
  const meaningless: string[] = [];
  for (const [given, text] of readPairs(value, place)) {
    // PgBouncer's older name.
    const name = section === 'databases' && given === 'reserve_pool' ? 'reserve_pool_size' : given;
    const kind = Object.hasOwn(known, name) ? known[name] : undefined;
    if (kind === undefined) {
      if (!foreign?.has(name))
        throw new SettingError(place, `${name} is not a setting of [${section}]: allowed are ${Object.keys(known).join(', ')}`);
      meaningless.push(name);
      continue;
    }
    const key = name.replace(/_(\w)/g, (_, letter: string) => letter.toUpperCase());
    found[key] = checked({ value: text, place }, name, () =>
      kind === 'mode'
        ? parseChoice(text, poolModes)
        : kind === 'seconds'
          ? parseSeconds(text)
          : parseCount(text, name === 'pool_size' ? 1 : 0),
    );
  }
  if (meaningless.length > 0) {
    warnings.push(
      `${place}: ${meaningless.join(', ')} of "${subject}" ${meaningless.length > 1 ? 'have' : 'has'} no meaning here: --upstream names the server`,
    );
  }
  return found as DatabaseSettings & UserSettings;
}

/** `*` in [databases]: what it says holds wherever a database does not say otherwise. */
function withStar(settings: ProxySettings, star: DatabaseSettings): ProxySettings {
  const { poolMode, poolSize, minPoolSize, reservePoolSize, maxDbConnections, maxDbClientConnections } = star;
  return {
    ...settings,
    ...(poolMode === undefined ? {} : { poolMode }),
    ...(poolSize === undefined ? {} : { defaultPoolSize: poolSize }),
    ...(minPoolSize === undefined ? {} : { minPoolSize }),
    ...(reservePoolSize === undefined ? {} : { reservePoolSize }),
    ...(maxDbConnections === undefined ? {} : { maxDbConnections }),
    ...(maxDbClientConnections === undefined ? {} : { maxDbClientConnections }),
  };
}

function tlsSettings(general: ReadonlyMap<string, Given>): ClientTlsSettings {
  const asked = general.get('client_tls_sslmode');
  const mode = asked === undefined ? 'disable' : checked(asked, 'client_tls_sslmode', () => parseChoice(asked.value, tlsModes));
  if (mode === 'disable') return { mode };
  const place = asked?.place ?? '';
  const pem = (name: FileSetting): string | undefined => {
    const file = general.get(name);
    return file === undefined || file.value === '' ? undefined : readText(file.value, `${file.place}: ${name}`);
  };
  const cert = pem('client_tls_cert_file');
  const key = pem('client_tls_key_file');
  const ca = pem('client_tls_ca_file');
  if (cert === undefined || key === undefined) {
    throw new SettingError(place, `client_tls_sslmode = "${mode}": client_tls_cert_file and client_tls_key_file are needed too`);
  }
  if (ca === undefined && mode.startsWith('verify')) {
    throw new SettingError(place, `client_tls_sslmode = "${mode}": client_tls_ca_file is needed too`);
  }
  try {
    createSecureContext({ cert, key, ...(ca === undefined ? {} : { ca }) });
  } catch (error) {
    throw new SettingError(
      place,
      `the certificate, its key or the CA cannot be used: ${error instanceof Error ? error.message : String(error)}`,
    );
  }
  return { mode, cert, key, ...(ca === undefined ? {} : { ca }) };
}

function listenAddress(general: ReadonlyMap<string, Given>): HostPort | undefined {
  const address = general.get('listen_addr');
  const port = general.get('listen_port');
  if (address === undefined && port === undefined) return undefined;
  const host = address?.value.trim() ?? '';
  if (address !== undefined && /[,\s]/.test(host))
    throw new SettingError(address.place, `listen_addr = "${host}": allowed is one address, or *`);
  const place = port ?? address;
  const number = port === undefined ? '6875' : port.value;
  if (place === undefined) return undefined;
  return checked(place, port === undefined ? 'listen_addr' : 'listen_port', () => {
    if (!/^\d+$/.test(number) || Number(number) > 65_535) throw new Error('allowed is a port from 0 to 65535');
    const written = host === '' || host === '*' ? host : host.includes(':') ? `[${host}]` : host;
    return parseHostPort(written === '' ? number : `${written}:${number}`, 'listen_addr');
  });
}

function readText(path: string, what = ''): string {
  try {
    return readFileSync(path, 'utf8');
  } catch (error) {
    throw new Error(`${what === '' ? '' : `${what}: `}cannot read "${path}": ${reason(error)}`, { cause: error });
  }
}
