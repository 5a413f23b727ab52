/**
 * Opens an authenticated npm `pg` client for a ServerAddress.
 * Invariant: only what the address says is used; environment variables (PGPASSWORD, PGSSLMODE) and ~/.pgpass never leak in.
 */
import { isIP } from 'node:net';
import type { ConnectionOptions } from 'node:tls';
import pg from 'pg';
import type { ServerAddress } from '../config.ts';

export interface ConnectOptions {
  /** Default: the address's database. */
  readonly database?: string;
  /** Logical replication connection (`replication=database`). */
  readonly replication?: boolean;
  /** Default 'millrace'. */
  readonly applicationName?: string;
  /** TCP, TLS and authentication together. Default 10 000. */
  readonly connectTimeoutMs?: number;
}

/** How TLS is tried, in order, for one address. `false` is plain text. */
export function tlsAttempts(address: ServerAddress): readonly (ConnectionOptions | false)[] {
  const { mode, ca, cert, key } = address.ssl;
  // As libpq: sslmode has no meaning on a Unix socket.
  if (mode === 'disable' || address.host.startsWith('/')) return [false];
  const options: ConnectionOptions = {
    ...(ca === undefined ? {} : { ca }),
    ...(cert === undefined ? {} : { cert }),
    ...(key === undefined ? {} : { key }),
  };
  const anyName = (): undefined => undefined;
  switch (mode) {
    case 'prefer':
      return [{ ...options, rejectUnauthorized: false }, false];
    case 'require':
      // As libpq: with a root certificate at hand, require behaves as verify-ca.
      return [
        ca === undefined
          ? { ...options, rejectUnauthorized: false }
          : { ...options, rejectUnauthorized: true, checkServerIdentity: anyName },
      ];
    case 'verify-ca':
      return [{ ...options, rejectUnauthorized: true, checkServerIdentity: anyName }];
    case 'verify-full':
      return [{ ...options, rejectUnauthorized: true, ...(isIP(address.host) === 0 ? { servername: address.host } : {}) }];
  }
}

/** The pg configuration for one attempt, without timeouts and names. */
function attemptConfig(address: ServerAddress, database: string, ssl: ConnectionOptions | false): pg.ClientConfig {
  return {
    host: address.host,
    port: address.port,
    user: address.user,
    // A function, because pg replaces an absent or empty password by PGPASSWORD or ~/.pgpass.
    password: () => address.password ?? '',
    database,
    ssl,
    client_encoding: 'UTF8',
  };
}

/** One connected client. Rejects with pg's DatabaseError, a system error (`code` ECONNREFUSED, ...) or a TLS error; see connectionProblem. */
export async function connectPg(
  address: ServerAddress,
  options: ConnectOptions & { readonly extra?: pg.ClientConfig } = {},
): Promise<pg.Client> {
  let refused: unknown;
  for (const ssl of tlsAttempts(address)) {
    const config: pg.ClientConfig & { replication?: string } = {
      ...attemptConfig(address, options.database ?? address.database, ssl),
      application_name: options.applicationName ?? 'millrace',
      keepAlive: true,
      // Ten probes a second apart follow.
      keepAliveInitialDelayMillis: 10_000,
      connectionTimeoutMillis: options.connectTimeoutMs ?? 10_000,
      ...options.extra,
      ...(options.replication === true ? { replication: 'database' } : {}),
    };
    const client = new pg.Client(config);
    // Without a listener an error after connecting would end the process; callers add their own.
    client.on('error', () => {});
    try {
      await client.connect();
      return client;
    } catch (error) {
      await client.end().catch(() => {});
      if (ssl === false || address.ssl.mode !== 'prefer' || !mayRetryInPlainText(error)) throw refused ?? error;
      // That the server has no TLS says nothing once plain text was tried; that it refused the user over TLS does.
      if (errorCode(error) === '28000') refused = error;
    }
  }
  throw refused;
}

function errorCode(error: Error): string | undefined {
  return 'code' in error && typeof error.code === 'string' ? error.code : undefined;
}

/** libpq's prefer falls back when the server has no TLS, the handshake fails, or pg_hba.conf refuses the encrypted connection. */
function mayRetryInPlainText(error: unknown): error is Error {
  if (!(error instanceof Error)) return false;
  if (/does not support SSL|establishing an SSL connection/.test(error.message)) return true;
  const code = errorCode(error) ?? '';
  return code === '28000' || code === 'EPROTO' || code.startsWith('ERR_SSL') || code.startsWith('ERR_TLS');
}
