/**
 * Plain SQL sessions on an origin, for inspection, and what a failure to connect means.
 * Invariant: no question to an origin waits for ever: connecting, statements and locks have limits.
 */
import type pg from 'pg';
import type { ServerAddress } from '../config.ts';
import { connectPg } from './server-address.ts';

export interface OpenOriginOptions {
  /** Default: the address's database. */
  readonly database?: string;
  /** Default 'millrace'. */
  readonly applicationName?: string;
  readonly connectTimeoutMs?: number;
  /** Per statement. Default 30 000. */
  readonly statementTimeoutMs?: number;
}

/** Rejects with what connectionProblem explains. The client reports a later loss of the connection to `on('error')` listeners and by failing queries. */
export async function openOrigin(address: ServerAddress, options: OpenOriginOptions = {}): Promise<pg.Client> {
  const statementTimeout = options.statementTimeoutMs ?? 30_000;
  const client = await connectPg(address, {
    ...(options.database === undefined ? {} : { database: options.database }),
    ...(options.applicationName === undefined ? {} : { applicationName: options.applicationName }),
    ...(options.connectTimeoutMs === undefined ? {} : { connectTimeoutMs: options.connectTimeoutMs }),
    // The server enforces its limit; the client's own is for a server that is gone.
    extra: { query_timeout: statementTimeout + 5_000 },
  });
  try {
    await client.query(
      "SELECT pg_catalog.set_config('search_path', '', false), pg_catalog.set_config('statement_timeout', $1, false), pg_catalog.set_config('lock_timeout', $1, false)",
      [String(statementTimeout)],
    );
  } catch (error) {
    await client.end().catch(() => {});
    throw error;
  }
  return client;
}

export interface ConnectionProblem {
  readonly kind: 'refused' | 'timeout' | 'dns' | 'auth' | 'database' | 'tls' | 'other';
  /** One line; from the server where it said something. */
  readonly message: string;
  /** SQLSTATE, or the system's error code. */
  readonly code: string | undefined;
}

/** What went wrong while connecting (connectPg, connectRaw, openOrigin, startStream, openSnapshot). */
export function connectionProblem(error: unknown): ConnectionProblem {
  const parts = error instanceof AggregateError && error.errors.length > 0 ? error.errors : [error];
  const first: unknown = parts[0];
  const message = first instanceof Error && first.message !== '' ? first.message : String(first);
  const code = first instanceof Error && 'code' in first && typeof first.code === 'string' ? first.code : undefined;
  return { kind: problemKind(code, message), message, code };
}

function problemKind(code: string | undefined, message: string): ConnectionProblem['kind'] {
  switch (code) {
    case 'ECONNREFUSED':
    case 'ENOENT':
    case 'ECONNRESET':
    case 'EPIPE':
    case 'EACCES':
      return 'refused';
    case 'ETIMEDOUT':
    case 'EHOSTUNREACH':
    case 'ENETUNREACH':
      return 'timeout';
    case 'ENOTFOUND':
    case 'EAI_AGAIN':
      return 'dns';
    case '28P01':
    case '28000':
      return 'auth';
    case '3D000':
      return 'database';
  }
  if (/timeout expired|timed? ?out/i.test(message)) return 'timeout';
  if (/SASL|SCRAM|password/i.test(message)) return 'auth';
  if (/does not support SSL|SSL connection|certificate|self.signed|altnames|Hostname\/IP/i.test(message)) return 'tls';
  if (code !== undefined && /^(ERR_TLS|ERR_SSL|EPROTO|CERT_|DEPTH_ZERO|SELF_SIGNED|UNABLE_TO)/.test(code)) return 'tls';
  if (/terminated unexpectedly/.test(message)) return 'refused';
  return 'other';
}
