/**
 * What an operator sets of the proxy: pools, limits, timeouts, TLS and authentication of clients.
 * Names are PgBouncer's in camel case (`default_pool_size` is `defaultPoolSize`), so are meanings and defaults where nothing else is said.
 * Loaded by ../../proxy-settings.ts; nothing here does IO. Plain data: it travels to the workers as a message.
 */

/**
 * session: a client has a server connection of its own, and the server itself authenticates it; with a `serverResetQuery` it has one
 * of the pool for as long as it stays. The others as in PgBouncer.
 */
export type PoolMode = 'session' | 'transaction' | 'statement';

/** How Millrace authenticates clients of a pool. In session mode the upstream does. */
export type AuthType = 'scram-sha-256' | 'md5' | 'plain' | 'trust' | 'cert';

/** How clients may or must use TLS, as PgBouncer's client_tls_sslmode; verify-* ask for a client certificate. */
export type ClientTlsMode = 'disable' | 'allow' | 'prefer' | 'require' | 'verify-ca' | 'verify-full';

export interface ClientTlsSettings {
  readonly mode: ClientTlsMode;
  /** PEM text. Both there unless the mode is 'disable'. */
  readonly cert?: string;
  readonly key?: string;
  /** Certificates that client certificates are verified against. */
  readonly ca?: string;
}

/** What may differ for one database of the upstream; undefined: the general setting. */
export interface DatabaseSettings {
  readonly poolMode?: PoolMode;
  readonly poolSize?: number;
  readonly minPoolSize?: number;
  readonly reservePoolSize?: number;
  readonly maxDbConnections?: number;
  readonly maxDbClientConnections?: number;
}

export interface UserSettings {
  readonly poolMode?: PoolMode;
  readonly poolSize?: number;
  readonly reservePoolSize?: number;
  readonly maxUserConnections?: number;
  readonly maxUserClientConnections?: number;
  /** In ms. */
  readonly clientIdleTimeout?: number;
  readonly idleTransactionTimeout?: number;
  readonly transactionTimeout?: number;
  readonly queryTimeout?: number;
}

/** Times in ms; 0 means none, as does 0 of a limit (but for poolSize, maxClientConn). Counts hold for all workers together. */
export interface ProxySettings {
  readonly poolMode: PoolMode;
  readonly maxClientConn: number;
  readonly defaultPoolSize: number;
  readonly minPoolSize: number;
  readonly reservePoolSize: number;
  readonly reservePoolTimeout: number;
  readonly maxDbConnections: number;
  readonly maxDbClientConnections: number;
  readonly maxUserConnections: number;
  readonly maxUserClientConnections: number;
  readonly queryWaitTimeout: number;
  readonly cancelWaitTimeout: number;
  readonly clientLoginTimeout: number;
  readonly clientIdleTimeout: number;
  readonly idleTransactionTimeout: number;
  readonly transactionTimeout: number;
  readonly queryTimeout: number;
  readonly serverIdleTimeout: number;
  readonly serverLifetime: number;
  readonly serverConnectTimeout: number;
  readonly serverLoginRetry: number;
  /** Makes a server connection of session mode fit for the next client; empty: it ends with its client. */
  readonly serverResetQuery: '' | 'DISCARD ALL';
  /** Prepared statements kept on a server connection; 0: named prepared statements pin the client. */
  readonly maxPreparedStatements: number;
  readonly authType: AuthType;
  /** Role name -> password, md5 hash or SCRAM verifier, of auth_file. */
  readonly users: Readonly<Record<string, string>>;
  /** Run by Millrace's own role at the upstream for a role that is not in `users`; $1 is the role name. Empty: none. */
  readonly authQuery: string;
  /** Roles that may use all of the admin console, and those that may only look. */
  readonly adminUsers: readonly string[];
  readonly statsUsers: readonly string[];
  /** The database name that is the admin console; empty: there is none. */
  readonly adminDatabase: string;
  readonly perDatabase: Readonly<Record<string, DatabaseSettings>>;
  readonly perUser: Readonly<Record<string, UserSettings>>;
  readonly tls: ClientTlsSettings;
}

/** What is set for one name. Names of roles and databases are anybody's choice: `constructor` is one too. */
export function overrideOf<T>(table: Readonly<Record<string, T>>, name: string): T | undefined {
  return Object.hasOwn(table, name) ? table[name] : undefined;
}

export const defaultProxySettings: ProxySettings = {
  poolMode: 'session',
  maxClientConn: 10_000,
  defaultPoolSize: 20,
  minPoolSize: 0,
  reservePoolSize: 0,
  reservePoolTimeout: 5_000,
  maxDbConnections: 0,
  maxDbClientConnections: 0,
  maxUserConnections: 0,
  maxUserClientConnections: 0,
  queryWaitTimeout: 120_000,
  cancelWaitTimeout: 10_000,
  clientLoginTimeout: 60_000,
  clientIdleTimeout: 0,
  idleTransactionTimeout: 0,
  transactionTimeout: 0,
  queryTimeout: 0,
  serverIdleTimeout: 600_000,
  serverLifetime: 3_600_000,
  serverConnectTimeout: 15_000,
  serverLoginRetry: 15_000,
  serverResetQuery: '',
  maxPreparedStatements: 200,
  authType: 'scram-sha-256',
  users: {},
  authQuery:
    'SELECT rolname, CASE WHEN rolvaliduntil < pg_catalog.now() THEN NULL ELSE rolpassword END FROM pg_catalog.pg_authid WHERE rolname = $1 AND rolcanlogin',
  adminUsers: [],
  statsUsers: [],
  adminDatabase: 'millrace',
  perDatabase: {},
  perUser: {},
  tls: { mode: 'disable' },
};
