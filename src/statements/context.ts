/**
 * What every extended statement has at hand, and the one way it writes to the catalog.
 * Invariant: catalog writes travel over the client's own session, signed for its current transaction (millrace.perform),
 * so they commit and roll back with it; whether the caller may is decided here, by the caller's role, before signing.
 */
import type { Client } from 'pg';
import { signStatements } from '../catalog/encryption.ts';
import { ensureCatalog } from '../catalog/install.ts';
import type { ServerAddress } from '../config.ts';
import { millraceError } from '../errors.ts';
import { connectPg } from '../replication/server-address.ts';
import type { CallerSession } from './caller-session.ts';
import type { CatalogClients } from './catalog-client.ts';

export interface StatementServices {
  readonly secretKey: string;
  readonly upstream: ServerAddress;
  /** Told once per database whose catalog was installed or found by this process. */
  readonly onCatalog: (database: string) => void;
}

export interface StatementContext extends StatementServices {
  /** Databases whose catalog is known to be there and current. */
  readonly installed: Set<string>;
  readonly catalogs: CatalogClients;
  /** Databases in which schema pgtrickle is known to be Millrace's. */
  readonly ownPgtrickle: Set<string>;
}

export interface CallerRole {
  readonly oid: string;
  readonly name: string;
  readonly superuser: boolean;
}

/** The role the caller acts as right now (SET ROLE included). */
export async function callerRole(session: CallerSession): Promise<CallerRole> {
  // The operator by its schema: rights are decided by this answer, and search_path is the caller's.
  const result = await session.query(
    'SELECT oid, rolname, rolsuper FROM pg_catalog.pg_roles WHERE rolname OPERATOR(pg_catalog.=) current_user',
    [],
    { quiet: true },
  );
  const [oid, name, superuser] = result.rows[0] ?? [];
  return { oid: oid ?? '0', name: name ?? '', superuser: superuser === 't' };
}

/**
 * Whether the caller's database has a catalog, without installing one.
 * Asked of the session, which also sees a catalog installed by another process.
 */
export async function catalogPresent(context: StatementContext, session: CallerSession): Promise<boolean> {
  if (context.installed.has(session.database)) return true;
  const found = await session.query("SELECT pg_catalog.to_regclass('millrace.catalog_version') IS NOT NULL", [], { quiet: true });
  if (found.rows[0]?.[0] !== 't') return false;
  await installCatalog(context, session.database);
  return true;
}

/** Installs or upgrades the catalog of the caller's database, over Millrace's own connection. */
export async function requireCatalog(context: StatementContext, session: CallerSession): Promise<void> {
  if (!context.installed.has(session.database)) await installCatalog(context, session.database);
}

async function installCatalog(context: StatementContext, database: string): Promise<void> {
  let client: Client;
  try {
    client = await connectPg(context.upstream, { database, applicationName: 'millrace catalog' });
  } catch (error) {
    throw millraceError('upstream_unreachable', { cause: error instanceof Error ? error.message : String(error) }, { cause: error });
  }
  try {
    await ensureCatalog(client, context.secretKey);
  } finally {
    await client.end().catch(() => undefined);
  }
  context.installed.add(database);
  context.onCatalog(database);
}

/**
 * Runs statements as the owner of the catalog in the caller's transaction. `parameters` is what they see as $1 (jsonb).
 * Answers what the last statement that returns something returned: one jsonb value, or null.
 */
export async function perform(
  context: StatementContext,
  session: CallerSession,
  statements: readonly string[],
  parameters: Readonly<Record<string, unknown>> = {},
): Promise<unknown> {
  const xid = (await session.query('SELECT pg_catalog.pg_current_xact_id()::text', [], { quiet: true })).rows[0]?.[0] ?? '';
  const text = JSON.stringify(parameters);
  const signature = signStatements(context.secretKey, xid, statements, text);
  const result = await session.query(
    'SELECT millrace.perform(ARRAY(SELECT pg_catalog.json_array_elements_text($1::json)), $2, $3)',
    [JSON.stringify(statements), text, signature],
    { quiet: true },
  );
  const value = result.rows[0]?.[0];
  return value === null || value === undefined ? null : JSON.parse(value);
}

/** A row of the caller's session as an object of text values. */
export async function firstRow(
  session: CallerSession,
  sql: string,
  parameters: readonly (string | null)[] = [],
): Promise<(string | null)[] | null> {
  const result = await session.query(sql, parameters, { quiet: true });
  const row = result.rows[0];
  return row === undefined ? null : [...row];
}
