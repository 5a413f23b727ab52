/**
 * Names to identities, by Postgres's own rules: search_path, schema privileges, case.
 * Invariant: what is found here is identified by OID or catalog id from then on.
 */
import { type MillraceError, millraceError } from '../errors.ts';
import type { QualifiedName } from '../sql/ast.ts';
import { quoteIdentifier } from '../sql/quote.ts';
import type { CallerSession } from './caller-session.ts';
import { type CallerRole, firstRow, perform, type StatementContext } from './context.ts';

/** A name as it was typed, for messages. */
export function shownName(name: QualifiedName): string {
  return name.schema === null ? name.name : `${name.schema}.${name.name}`;
}

/** A name as SQL, quoted where needed. */
export function quotedName(name: QualifiedName): string {
  return name.schema === null ? quoteIdentifier(name.name) : `${quoteIdentifier(name.schema)}.${quoteIdentifier(name.name)}`;
}

/** The schema a new object goes to. Raises what Postgres raises: 3F000 for none, 42501 without CREATE on it. */
export async function creationNamespace(session: CallerSession, name: QualifiedName): Promise<{ oid: string; name: string }> {
  const row = await firstRow(
    session,
    `SELECT n.oid, n.nspname, pg_catalog.has_schema_privilege(n.oid, 'CREATE')
       FROM pg_catalog.pg_namespace n
      WHERE n.nspname = coalesce($1, pg_catalog.current_schema())`,
    [name.schema],
  );
  if (row === null) {
    throw name.schema === null
      ? millraceError('no_schema_selected', {}, { position: name.at + 1 })
      : millraceError('undefined_schema', { name: name.schema, name_quoted: quoteIdentifier(name.schema) }, { position: name.at + 1 });
  }
  const [oid, nspname, may] = row;
  if (may !== 't')
    throw millraceError('schema_permission_denied', { schema: nspname ?? '', schema_quoted: quoteIdentifier(nspname ?? '') });
  return { oid: oid ?? '', name: nspname ?? '' };
}

/** Secrets, connections and sinks: what is found along search_path. */
export interface NamedObject {
  readonly id: string;
  readonly owner: string;
  readonly schema: string;
  readonly name: string;
}

/** Finds a secret, connection or sink; null when there is none. */
export async function findNamed(
  context: StatementContext,
  session: CallerSession,
  kind: 'secret' | 'connection' | 'sink' | 'subscription',
  name: QualifiedName,
): Promise<NamedObject | null> {
  const path = await firstRow(session, 'SELECT pg_catalog.to_json(pg_catalog.current_schemas(false))');
  const schemas: unknown = name.schema === null ? JSON.parse(path?.[0] ?? '[]') : [name.schema];
  const found = await perform(
    context,
    session,
    [
      `SELECT to_jsonb(x) FROM (
         SELECT o.id::text, o.owner::text, n.nspname AS schema, o.name
           FROM jsonb_array_elements_text($1 -> 'schemas') WITH ORDINALITY AS path(schema, place)
           JOIN pg_namespace n ON n.nspname = path.schema
           JOIN millrace.${kind} o ON o.namespace = n.oid AND o.name = $1 ->> 'name'${kind === 'sink' ? " AND o.status <> 'dropped'" : ''}
          ORDER BY path.place
          LIMIT 1) x`,
    ],
    { schemas, name: name.name },
  );
  return found as NamedObject | null;
}

/** As findNamed; raises undefined_object, and not_owner when the caller does not own it. */
export async function requireNamed(
  context: StatementContext,
  session: CallerSession,
  kind: 'secret' | 'connection' | 'sink' | 'subscription',
  name: QualifiedName,
  role: CallerRole,
): Promise<NamedObject> {
  const found = await findNamed(context, session, kind, name);
  const called = kind === 'subscription' ? 'durable subscription' : kind;
  if (found === null) throw undefinedObject(called, name);
  await requireOwner(session, called, shownName(name), found.owner, role);
  return found;
}

export function undefinedObject(
  kind: 'secret' | 'connection' | 'source' | 'sink' | 'table' | 'materialized view' | 'durable subscription' | 'migration',
  name: QualifiedName,
): MillraceError {
  if (kind === 'durable subscription')
    return millraceError('durable_subscription_unknown', { name: shownName(name) }, { position: name.at + 1 });
  return millraceError(
    'undefined_object',
    { kind, name: shownName(name), kinds_upper: `${kind.toUpperCase()}S` },
    { position: name.at + 1 },
  );
}

/** Raises not_owner unless the caller's role has the owner's rights (superusers have). */
export async function requireOwner(session: CallerSession, kind: string, name: string, owner: string, role: CallerRole): Promise<void> {
  const row = await firstRow(session, "SELECT pg_catalog.pg_has_role($1::oid, $2::oid, 'USAGE'), pg_catalog.pg_get_userbyid($2::oid)", [
    role.oid,
    owner,
  ]);
  if (row?.[0] === 't') return;
  throw millraceError('not_owner', {
    kind,
    name,
    owner: row?.[1] ?? owner,
    role: role.name,
    owner_quoted: quoteIdentifier(row?.[1] ?? owner),
  });
}

/** A live relation or source, as the catalog knows it. */
export interface LiveObject {
  readonly id: string;
  readonly type: 'table' | 'view' | 'source';
  readonly facade: string;
  readonly state: string;
  readonly schema: string;
  readonly name: string;
  readonly owner: string;
}

/** What kind of live object a name stands for: null when the name is unknown or an ordinary relation. */
export async function findLive(session: CallerSession, name: QualifiedName): Promise<LiveObject | null> {
  const row = await firstRow(session, 'SELECT pg_catalog.to_regclass($1)::oid', [quotedName(name)]);
  const oid = row?.[0];
  if (oid === null || oid === undefined) return null;
  return (await liveByFacade(session, [oid]))[0] ?? null;
}

/** Whether a name stands for any relation at all. */
export async function relationExists(session: CallerSession, name: QualifiedName): Promise<boolean> {
  const row = await firstRow(session, 'SELECT pg_catalog.to_regclass($1)', [quotedName(name)]);
  return row?.[0] !== null && row?.[0] !== undefined;
}

/** The live objects among facades given by OID. */
export async function liveByFacade(session: CallerSession, facades: readonly string[]): Promise<LiveObject[]> {
  if (facades.length === 0) return [];
  const found = await session.query(
    'SELECT l.id, l.type, l.facade, l.state, l.schema, l.name, l.owner FROM millrace.live_among($1::oid[]) l ORDER BY l.id',
    [`{${facades.join(',')}}`],
    { quiet: true },
  );
  return found.rows.map(([id, type, facade, state, schema, name, owner]) => ({
    id: id ?? '',
    type: type === 'source' || type === 'view' ? type : 'table',
    facade: facade ?? '',
    state: state ?? '',
    schema: schema ?? '',
    name: name ?? '',
    owner: owner ?? '',
  }));
}

/** Whether a live relation is a stream table. */
export async function isStreamTable(session: CallerSession, relationId: string): Promise<boolean> {
  return (await firstRow(session, 'SELECT millrace.is_stream_table($1::bigint)', [relationId]))?.[0] === 't';
}
