/**
 * Subscriptions in the catalog: who reads, and from where on changes are kept.
 * Invariant: a row is written before the engine is asked for anything on its behalf, over Millrace's own connection: it is there for the engine
 * while the client's transaction is still open. Whether the caller may is decided before, by the caller's role.
 */
import type { CallerSession } from './caller-session.ts';
import { firstRow, type StatementContext } from './context.ts';

/** When the server process began, as far as Millrace's role may know; a process id alone comes again. */
const startOf = (parameter: string): string => `(SELECT a.backend_start FROM pg_catalog.pg_stat_activity a WHERE a.pid = ${parameter})`;

/** The server process of the session. */
export async function backendPid(session: CallerSession): Promise<string> {
  return (await firstRow(session, 'SELECT pg_catalog.pg_backend_pid()'))?.[0] ?? '';
}

/** Writes one down that ends with this session. `relationId` null: of a query; then it keeps nothing but time going. `from`: changes after it are wanted. Answers its id; null: the relation is not to be seen yet. */
export async function beginSubscription(
  context: StatementContext,
  database: string,
  pid: string,
  wanted: { readonly relationId: string | null; readonly owner: string; readonly from: number | null },
): Promise<string | null> {
  return await context.catalogs.with(database, async (client) => {
    const made = await client.query<{ id: string }>(
      `INSERT INTO millrace.subscription (relation_id, owner, ts, pid, backend_start)
       SELECT x.id, $2::oid, $3::bigint, $4::integer, ${startOf('$4::integer')}
         FROM (SELECT r.id FROM millrace.relation r WHERE r.id = $1::bigint AND r.state <> 'dropped' UNION ALL SELECT 0 WHERE $1::bigint IS NULL) x
       RETURNING id::text`,
      [wanted.relationId, wanted.owner, wanted.from, pid],
    );
    await client.query("SELECT pg_catalog.pg_notify('millrace', '')");
    return made.rows[0]?.id ?? null;
  });
}

/** From now on this session reads it, and nobody else does. Answers the position that was acknowledged; null: none was. */
export async function holdSubscription(context: StatementContext, database: string, pid: string, id: string): Promise<number | null> {
  return await context.catalogs.with(database, async (client) => {
    const held = await client.query<{ ts: string | null }>(
      `UPDATE millrace.subscription SET pid = $2::integer, backend_start = ${startOf('$2::integer')} WHERE id = $1::bigint RETURNING ts::text`,
      [id, pid],
    );
    const ts = held.rows[0]?.ts ?? null;
    return ts === null ? null : Number(ts);
  });
}

/** Changes up to `ts` are not wanted any more. */
export async function advanceSubscription(context: StatementContext, database: string, id: string, ts: number): Promise<void> {
  await context.catalogs.with(database, (client) =>
    client.query(
      'UPDATE millrace.subscription SET ts = $2::bigint WHERE id = $1::bigint AND name IS NULL AND (ts IS NULL OR ts < $2::bigint)',
      [id, ts],
    ),
  );
}

/** Nobody reads it any more, unless another session has taken it over. */
export async function endSubscription(context: StatementContext, database: string, id: string, backendPid: string): Promise<void> {
  await context.catalogs.with(database, (client) =>
    client.query(
      `UPDATE millrace.subscription SET pid = NULL, backend_start = NULL, ended_at = CASE WHEN name IS NULL THEN now() END
        WHERE id = $1::bigint AND pid = $2::integer`,
      [id, backendPid],
    ),
  );
}

/** Whether a relation changes in its writers' transactions. */
export async function isImmediate(context: StatementContext, database: string, relationId: string): Promise<boolean> {
  return await context.catalogs.with(database, async (client) => {
    const found = await client.query(
      "SELECT 1 FROM millrace.stream_table s WHERE s.relation_id = $1::bigint AND s.refresh_mode = 'IMMEDIATE'",
      [relationId],
    );
    return found.rows.length > 0;
  });
}

export interface DurableSubscription {
  readonly id: string;
  readonly owner: string;
  readonly facade: string | null;
  readonly ts: string | null;
}

/** One by its name, along search_path. */
export async function findDurable(
  context: StatementContext,
  session: CallerSession,
  name: { readonly schema: string | null; readonly name: string },
): Promise<DurableSubscription | null> {
  const path = await firstRow(session, 'SELECT pg_catalog.to_json(pg_catalog.current_schemas(false))');
  const schemas: unknown = name.schema === null ? JSON.parse(path?.[0] ?? '[]') : [name.schema];
  return await context.catalogs.with(session.database, async (client) => {
    const found = await client.query<DurableSubscription>(
      `SELECT s.id::text, s.owner::text, r.facade::text, s.ts::text
         FROM json_array_elements_text($1::json) WITH ORDINALITY AS path(schema, place)
         JOIN pg_catalog.pg_namespace n ON n.nspname = path.schema
         JOIN millrace.subscription s ON s.namespace = n.oid AND s.name = $2
         LEFT JOIN millrace.relation r ON r.id = s.relation_id AND r.state <> 'dropped'
        ORDER BY path.place LIMIT 1`,
      [JSON.stringify(schemas), name.name],
    );
    return found.rows[0] ?? null;
  });
}
