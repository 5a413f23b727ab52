/**
 * The settings of the proxy by name: how each is written, read and shown.
 * Invariant: what `showSetting` writes, `parseSetting` reads as the same value. Units are PgBouncer's: times in seconds.
 */
import type { ProxySettings } from './wire/pool/settings.ts';

type KeysOf<T> = { [K in keyof ProxySettings]-?: ProxySettings[K] extends T ? K : never }[keyof ProxySettings];
type NumberKey = KeysOf<number>;

export type Setting = { readonly name: string } & (
  | { readonly kind: 'count'; readonly key: NumberKey; readonly least: number }
  | { readonly kind: 'seconds'; readonly key: NumberKey }
  | { readonly kind: 'choice'; readonly key: 'poolMode' | 'authType' | 'serverResetQuery'; readonly choices: readonly string[] }
  | { readonly kind: 'names'; readonly key: 'adminUsers' | 'statsUsers' }
  | { readonly kind: 'text'; readonly key: 'authQuery' | 'adminDatabase' }
);

export const poolModes = ['session', 'transaction', 'statement'] as const;
export const authTypes = ['scram-sha-256', 'md5', 'plain', 'trust', 'cert'] as const;
/** What leaves nothing behind; empty: a server connection ends with its session. */
export const resetQueries = ['', 'DISCARD ALL'] as const;
export const tlsModes = ['disable', 'allow', 'prefer', 'require', 'verify-ca', 'verify-full'] as const;

const camel = (name: string): string => name.replace(/_(\w)/g, (_, letter: string) => letter.toUpperCase());
const count = (name: string, least = 0): Setting => ({ name, kind: 'count', key: camel(name) as NumberKey, least });
const seconds = (name: string): Setting => ({ name, kind: 'seconds', key: camel(name) as NumberKey });

/** Those that are one field of ProxySettings, in alphabetical order. */
export const settings: readonly Setting[] = [
  { name: 'admin_database', kind: 'text', key: 'adminDatabase' },
  { name: 'admin_users', kind: 'names', key: 'adminUsers' },
  { name: 'auth_query', kind: 'text', key: 'authQuery' },
  { name: 'auth_type', kind: 'choice', key: 'authType', choices: authTypes },
  seconds('cancel_wait_timeout'),
  seconds('client_idle_timeout'),
  seconds('client_login_timeout'),
  count('default_pool_size', 1),
  seconds('idle_transaction_timeout'),
  count('max_client_conn', 1),
  count('max_db_client_connections'),
  count('max_db_connections'),
  count('max_prepared_statements'),
  count('max_user_client_connections'),
  count('max_user_connections'),
  count('min_pool_size'),
  { name: 'pool_mode', kind: 'choice', key: 'poolMode', choices: poolModes },
  seconds('query_timeout'),
  seconds('query_wait_timeout'),
  count('reserve_pool_size'),
  seconds('reserve_pool_timeout'),
  seconds('server_connect_timeout'),
  seconds('server_idle_timeout'),
  seconds('server_lifetime'),
  seconds('server_login_retry'),
  { name: 'server_reset_query', kind: 'choice', key: 'serverResetQuery', choices: resetQueries },
  { name: 'stats_users', kind: 'names', key: 'statsUsers' },
  seconds('transaction_timeout'),
];

const byName = new Map(settings.map((one) => [one.name, one]));

export function findSetting(name: string): Setting | undefined {
  return byName.get(name);
}

/** Those that name files or places. They are read by the main process only, so SET does not know them. */
export const fileSettings = [
  'auth_file',
  'client_tls_sslmode',
  'client_tls_cert_file',
  'client_tls_key_file',
  'client_tls_ca_file',
  'listen_addr',
  'listen_port',
] as const;
export type FileSetting = (typeof fileSettings)[number];

/** Read at start only. */
export const fixedSettings: ReadonlySet<string> = new Set(['admin_database', 'listen_addr', 'listen_port']);

/** Of one database, as they stand in its line of [databases]. */
export const databaseSettings: Readonly<Record<string, 'mode' | 'count'>> = {
  pool_mode: 'mode',
  pool_size: 'count',
  min_pool_size: 'count',
  reserve_pool_size: 'count',
  max_db_connections: 'count',
  max_db_client_connections: 'count',
};

/** Of one user, as they stand in its line of [users]. */
export const userSettings: Readonly<Record<string, 'mode' | 'count' | 'seconds'>> = {
  pool_mode: 'mode',
  pool_size: 'count',
  reserve_pool_size: 'count',
  max_user_connections: 'count',
  max_user_client_connections: 'count',
  client_idle_timeout: 'seconds',
  idle_transaction_timeout: 'seconds',
  transaction_timeout: 'seconds',
  query_timeout: 'seconds',
};

/** Settings of PgBouncer that mean nothing here: named in a warning, so that a file of PgBouncer's can be used as it is. */
export const foreignSettings: ReadonlySet<string> = new Set(
  `application_name_add_host auth_dbname auth_hba_file auth_ident_file auth_ldap_options auth_user autodb_idle_timeout
  client_tls13_ciphers client_tls_ciphers client_tls_dheparams client_tls_ecdhcurve client_tls_protocols conffile disable_pqexec
  dns_max_ttl dns_nxdomain_ttl dns_zone_check_period ignore_startup_parameters job_name listen_backlog log_connections
  log_disconnections log_pooler_errors log_stats logfile max_packet_size peer_id pidfile pkt_buf query_wait_notify resolv_conf
  sbuf_loopcnt scram_iterations server_check_delay server_check_query server_fast_close
  server_reset_query_always server_round_robin server_tls13_ciphers server_tls_ca_file server_tls_cert_file server_tls_ciphers
  server_tls_key_file server_tls_protocols server_tls_sslmode service_name so_reuseport stats_period suspend_timeout syslog
  syslog_facility syslog_ident tcp_defer_accept tcp_keepalive tcp_keepcnt tcp_keepidle tcp_keepintvl tcp_socket_buffer
  tcp_user_timeout track_extra_parameters unix_socket_dir unix_socket_group unix_socket_mode user verbose`.split(/\s+/),
);

/** The same in a line of [databases]: where Millrace connects is --upstream's, and clients log in as themselves. */
export const foreignDatabaseSettings: ReadonlySet<string> = new Set(
  `host port dbname user password auth_dbname auth_query auth_user application_name client_encoding connect_query datestyle
  load_balance_hosts server_lifetime timezone`.split(/\s+/),
);

const longestTimer = 2_147_483_647;

/** Throws an Error that says what is allowed. */
export function parseCount(text: string, least: number): number {
  const value = /^\d+$/.test(text) ? Number(text) : Number.NaN;
  if (Number.isSafeInteger(value) && value >= least && value <= 2_147_483_647) return value;
  throw new Error(`allowed is a whole number from ${least}`);
}

/** From seconds to ms. */
export function parseSeconds(text: string): number {
  const value = /^(\d+(\.\d*)?|\.\d+)$/.test(text) ? Math.round(Number(text) * 1000) : Number.NaN;
  if (value >= 0 && value <= longestTimer) return value;
  throw new Error('allowed is a number of seconds from 0 (none) to 2147483, fractions too');
}

export function parseChoice<T extends string>(text: string, choices: readonly T[]): T {
  const found = choices.find((choice) => choice === text);
  if (found === undefined) throw new Error(`allowed are ${choices.map((choice) => (choice === '' ? 'nothing' : choice)).join(', ')}`);
  return found;
}

/** `base` with one setting changed. Throws an Error that says what is allowed. */
export function parseSetting(base: ProxySettings, setting: Setting, text: string): ProxySettings {
  switch (setting.kind) {
    case 'count':
      return { ...base, [setting.key]: parseCount(text, setting.least) };
    case 'seconds':
      return { ...base, [setting.key]: parseSeconds(text) };
    case 'choice':
      return { ...base, [setting.key]: parseChoice(text, setting.choices) };
    case 'names':
      return { ...base, [setting.key]: text.split(',').flatMap((name) => (name.trim() === '' ? [] : [name.trim()])) };
    case 'text':
      return { ...base, [setting.key]: text };
  }
}

/** As it is written in a file. */
export function showSetting(values: ProxySettings, setting: Setting): string {
  const value = values[setting.key];
  if (setting.kind === 'seconds') return String(Number(value) / 1000);
  return Array.isArray(value) ? value.join(',') : String(value);
}
