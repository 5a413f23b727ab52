/**
 * What is asked of an origin before a statement is accepted, each problem its own error.
 * Invariant: nothing on the origin is changed here.
 */
import type { Client } from 'pg';
import type { ServerAddress } from '../config.ts';
import { MillraceError, millraceError } from '../errors.ts';
import { connectionProblem, openOrigin } from '../replication/origin.ts';
import { checkOrigin } from '../replication/origin-check.ts';
import { type OriginTable as DescribedTable, describeTable, listPublished } from '../replication/origin-tables.ts';
import { quoteIdentifier } from '../sql/quote.ts';

export interface OriginTable extends DescribedTable {
  /** Planner's estimate of the number of rows; null when never analyzed. */
  readonly rowsEstimate: number | null;
}

async function withOrigin<T>(address: ServerAddress, connection: string, work: (client: Client) => Promise<T>): Promise<T> {
  let client: Client;
  try {
    client = await openOrigin(address, { connectTimeoutMs: 10_000 });
  } catch (error) {
    throw unreachable(error, address, connection);
  }
  try {
    return await work(client);
  } catch (error) {
    if (error instanceof MillraceError) throw error;
    throw millraceError(
      'connection_failed',
      { cause: error instanceof Error ? error.message : String(error), hint: `Check the origin behind connection "${connection}".` },
      { cause: error },
    );
  } finally {
    await client.end().catch(() => undefined);
  }
}

function unreachable(error: unknown, address: ServerAddress, connection: string): MillraceError {
  const problem = connectionProblem(error);
  const cause = problem.message;
  const where = `${address.host}:${address.port}`;
  switch (problem.kind) {
    case 'auth':
      // The client library gives up by itself when it is asked for a password and has none.
      if (address.password === undefined && problem.code === undefined) {
        return millraceError('origin_password_missing', { user: address.user, connection }, { cause: error });
      }
      return millraceError('origin_authentication_failed', { cause, connection }, { cause: error });
    case 'database':
      return millraceError('connection_failed', { cause, hint: `Correct the DATABASE of connection "${connection}".` }, { cause: error });
    case 'tls':
      return millraceError(
        'connection_failed',
        { cause, hint: `Correct the SSL MODE of connection "${connection}" or its certificates.` },
        { cause: error },
      );
    case 'dns':
    case 'refused':
    case 'timeout':
      return millraceError(
        'connection_failed',
        { cause, hint: `Check that a PostgreSQL server listens at ${where} and that this machine may reach it.` },
        { cause: error },
      );
    case 'other':
      return millraceError('connection_failed', { cause, hint: `Check connection "${connection}".` }, { cause: error });
  }
}

/** CREATE CONNECTION, VALIDATE CONNECTION: can it be reached and logged in to? */
export async function checkReachable(address: ServerAddress, connection: string): Promise<void> {
  await withOrigin(address, connection, async () => undefined);
}

/** CREATE SOURCE: is everything there that replication needs? */
export async function checkSource(
  address: ServerAddress,
  connection: string,
  publication: string,
): Promise<{ readonly systemIdentifier: string | null }> {
  return withOrigin(address, connection, async (client) => {
    const { facts, findings } = await checkOrigin(client, { publication });
    for (const finding of findings) {
      switch (finding.kind) {
        case 'version':
          throw millraceError('feature_not_supported', {
            message: `origin server runs PostgreSQL ${finding.version}; 14 or later is needed`,
          });
        case 'wal_level':
          throw millraceError('wal_level_not_logical', { wal_level: finding.walLevel, connection, host: address.host, port: address.port });
        case 'replication_right':
          throw millraceError('no_replication_right', { role: finding.role, connection, role_quoted: quoteIdentifier(finding.role) });
        case 'publication_missing':
          throw millraceError('publication_missing', {
            publication,
            publication_quoted: quoteIdentifier(publication),
            connection,
            database: address.database,
            host: address.host,
            port: address.port,
          });
        case 'no_free_slot':
          throw millraceError('no_free_slot', { max: finding.max });
        case 'no_free_wal_sender':
          throw millraceError('no_free_wal_sender', { max: finding.max });
        case 'publication_partial':
          break;
      }
    }
    return { systemIdentifier: facts.systemIdentifier ?? null };
  });
}

export interface ReferenceOptions {
  /** [table], [schema, table] or [database, schema, table]. */
  readonly reference: readonly string[];
  readonly position: number;
  readonly publication: string;
  readonly source: string;
  readonly role: string;
}

/** CREATE TABLE .. FROM SOURCE: the origin table a reference names, fit to be replicated. */
export async function describeReference(address: ServerAddress, options: ReferenceOptions): Promise<OriginTable> {
  const { publication, source } = options;
  const shown = options.reference.join('.');
  const position = { position: options.position };
  const parts = [...options.reference];
  const table = parts.pop() ?? '';
  const schema = parts.pop();
  const database = parts.pop();
  if (database !== undefined && database !== address.database) {
    throw millraceError(
      'reference_not_found',
      {
        reference: shown,
        source,
        detail: `The source reads database "${address.database}".`,
        hint: 'Leave the database out of REFERENCE.',
      },
      position,
    );
  }
  return withOrigin(address, source, async (client) => {
    const found = await describeTable(client, { ...(schema === undefined ? {} : { schema }), table }, { publication });
    if (found.ambiguous.length > 0) {
      throw millraceError(
        'ambiguous_reference',
        {
          reference: shown,
          candidates: found.ambiguous.map((inSchema) => `${quoteIdentifier(inSchema)}.${quoteIdentifier(table)}`).join(', '),
        },
        position,
      );
    }
    if (found.table === undefined) {
      const near = (await listPublished(client, publication)).filter((known) => known.name.toLowerCase() === table.toLowerCase());
      const [first] = near;
      throw millraceError(
        'reference_not_found',
        {
          reference: shown,
          source,
          detail: `Database "${address.database}" has no such table, or role "${options.role}" cannot see it.`,
          hint: first === undefined ? '' : `Perhaps you meant ${quoteIdentifier(first.schema)}.${quoteIdentifier(first.name)}.`,
        },
        position,
      );
    }
    const origin = found.table;
    const reference = `${quoteIdentifier(origin.schema)}.${quoteIdentifier(origin.name)}`;
    if (!origin.published) {
      throw millraceError('table_not_published', { reference, publication, publication_quoted: quoteIdentifier(publication) }, position);
    }
    if (!origin.canSelect) {
      throw millraceError(
        'origin_permission_denied',
        { reference, role: options.role, role_quoted: quoteIdentifier(options.role) },
        position,
      );
    }
    if (origin.replicaIdentity === 'n') throw millraceError('replica_identity_nothing', { reference }, position);
    const estimate = await client.query<{ rows: string }>('SELECT reltuples::bigint AS rows FROM pg_catalog.pg_class WHERE oid = $1', [
      origin.oid,
    ]);
    const rows = Number(estimate.rows[0]?.rows ?? -1);
    return { ...origin, rowsEstimate: rows < 0 ? null : rows };
  });
}
