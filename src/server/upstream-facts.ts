/**
 * What an upstream server is and allows.
 * Invariant: reads only; a server that cannot be used is described in one line that says what to do, without its password.
 */
import type pg from 'pg';
import type { ServerAddress } from '../config.ts';
import { reason, showHostPort } from '../config-loading.ts';
import { connectPg } from '../replication/server-address.ts';

export interface UpstreamFacts {
  /** "18.4" */
  readonly version: string;
  readonly major: number;
  readonly walLevel: string;
  readonly maxSlots: number;
  readonly usedSlots: number;
  readonly maxSenders: number;
  readonly usedSenders: number;
  readonly superuser: boolean;
  readonly replication: boolean;
  readonly createDatabase: boolean;
  /** CREATE on the database of the address. */
  readonly createInDatabase: boolean;
  readonly inRecovery: boolean;
}

/** A server as it is named in messages: `127.0.0.1:5432`, or the socket. */
export function showServer(address: ServerAddress): string {
  return address.host.startsWith('/') ? `${address.host} (port ${address.port})` : showHostPort(address);
}

/** Connects and looks. Rejects with an error of one line. */
export async function readUpstreamFacts(address: ServerAddress): Promise<UpstreamFacts> {
  let client: pg.Client;
  try {
    client = await connectPg(address, { applicationName: 'millrace check', connectTimeoutMs: 10_000 });
  } catch (error) {
    throw new Error(describeConnectError(address, error), { cause: error });
  }
  try {
    const { rows } = await client.query<Record<string, string>>(`
      SELECT split_part(current_setting('server_version'), ' ', 1) AS version, current_setting('server_version_num') AS number,
        current_setting('wal_level') AS wal_level, current_setting('max_replication_slots') AS max_slots,
        (SELECT count(*) FROM pg_catalog.pg_replication_slots)::text AS used_slots, current_setting('max_wal_senders') AS max_senders,
        (SELECT count(*) FROM pg_catalog.pg_stat_replication)::text AS used_senders, r.rolsuper::text AS superuser,
        r.rolreplication::text AS replication, r.rolcreatedb::text AS create_database,
        pg_catalog.has_database_privilege(current_database(), 'CREATE')::text AS create_in, pg_catalog.pg_is_in_recovery()::text AS recovery
      FROM pg_catalog.pg_roles r WHERE r.rolname = current_user`);
    const row = rows[0] ?? {};
    return {
      version: row['version'] ?? '',
      major: Math.floor(Number(row['number']) / 10_000),
      walLevel: row['wal_level'] ?? '',
      maxSlots: Number(row['max_slots']),
      usedSlots: Number(row['used_slots']),
      maxSenders: Number(row['max_senders']),
      usedSenders: Number(row['used_senders']),
      superuser: row['superuser'] === 'true',
      replication: row['replication'] === 'true',
      createDatabase: row['create_database'] === 'true',
      createInDatabase: row['create_in'] === 'true',
      inRecovery: row['recovery'] === 'true',
    };
  } catch (error) {
    throw new Error(`the upstream at ${showServer(address)} does not answer as PostgreSQL does: ${reason(error)}`, { cause: error });
  } finally {
    await client.end().catch(() => undefined);
  }
}

/** Why Millrace cannot start on this server, undefined when it can. */
export function unusable(address: ServerAddress, facts: UpstreamFacts): string | undefined {
  const server = showServer(address);
  if (facts.major < 15) return `the upstream at ${server} is PostgreSQL ${facts.version}: Millrace needs 15 or later`;
  if (facts.inRecovery) return `the upstream at ${server} is a standby: give the primary with --upstream`;
  return undefined;
}

/** What works otherwise than it should on this server, undefined when nothing does. */
export function limited(address: ServerAddress, facts: UpstreamFacts): string | undefined {
  if (facts.walLevel === 'logical') return undefined;
  return (
    `the upstream at ${showServer(address)} has wal_level = ${facts.walLevel}: stream tables over its tables are kept by triggers, and it cannot be the origin of a source. ` +
    'Run ALTER SYSTEM SET wal_level = logical; there, and restart it'
  );
}

function describeConnectError(address: ServerAddress, error: unknown): string {
  const server = showServer(address);
  const code = (error as { code?: string }).code ?? '';
  const said = reason(error instanceof AggregateError ? (error.errors[0] ?? error) : error).replaceAll('\n', ' ');
  switch (code) {
    case 'ECONNREFUSED':
    case 'ENOENT':
      return `cannot reach the upstream at ${server}: nothing listens there (is the server running, and is --upstream right?)`;
    case 'ENOTFOUND':
    case 'EAI_AGAIN':
      return `cannot reach the upstream at ${server}: there is no host of this name`;
    case 'ETIMEDOUT':
    case 'EHOSTUNREACH':
    case 'ENETUNREACH':
      return `cannot reach the upstream at ${server}: no answer (a firewall, or a wrong address?)`;
    case '28P01':
    case '28000':
      return `the upstream at ${server} refuses role "${address.user}": ${said} (put the password into --upstream or PGPASSWORD)`;
    case '3D000':
      return `the upstream at ${server} has no such database: ${said}`;
    default:
      return `cannot connect to the upstream at ${server}: ${said}`;
  }
}
