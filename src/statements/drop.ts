/**
 * DROP TABLE, VIEW, MATERIALIZED VIEW and SCHEMA where they concern live relations.
 * Invariant: as in Postgres, what the user names needs the user's rights, and what hangs on it goes with CASCADE only.
 */
import { millraceError } from '../errors.ts';
import type { DropRelation, DropSchema, QualifiedName } from '../sql/ast.ts';
import type { CallerSession, StatementResult } from './caller-session.ts';
import { callerRole, firstRow, type StatementContext } from './context.ts';
import { announceCascade, dependentObjects, dependentsOf, droppable, droppedSinks, sinkLines, sinksReading } from './dependents.ts';
import { dropLinks } from './drop-named.ts';
import { findLive, isStreamTable, type LiveObject, liveByFacade, quotedName, requireOwner, shownName } from './names.ts';
import { removeRelations } from './removal.ts';
import { dropSinks } from './sinks.ts';

/** DROP TABLE, VIEW, MATERIALIZED VIEW that concern live relations. */
export async function dropRelation(context: StatementContext, session: CallerSession, statement: DropRelation): Promise<StatementResult> {
  const tag = `DROP ${statement.kind.toUpperCase()}`;
  const live: LiveObject[] = [];
  const ordinary: QualifiedName[] = [];
  for (const name of statement.names) {
    const found = await findLive(session, name);
    if (found === null) ordinary.push(name);
    else {
      await requireKind(session, statement, name, found);
      if (!live.some((known) => known.id === found.id)) live.push(found);
    }
  }
  const oids = [...live.map((object) => object.facade), ...(await oidsOf(session, ordinary))];
  const dropped = new Set(oids);
  const dependents = await dependentsOf(session, oids);
  // Nearest first: views among the named ones are dropped before what they read, in the same order as those reached.
  const depth = new Map(dependents.map((view, index) => [view.oid, index]));
  const reached = dependents.filter((view) => !dropped.has(view.oid));
  const roots = live.map(droppable);
  const going = [...roots, ...reached];
  const sinks = await sinksReading(
    session,
    going.map((object) => object.id),
  );
  if (reached.length + sinks.length > 0 && !statement.cascade) {
    const [first] = statement.names;
    const target = { kind: statement.kind, name: first === undefined ? '' : shownName(first) };
    throw dependentObjects(target, roots, reached, sinkLines(sinks, going));
  }
  const goneSinks = droppedSinks(sinks, going);
  announceCascade(session, [...goneSinks, ...reached]);
  await dropSinks(
    context,
    session,
    goneSinks.map((sink) => sink.id),
  );
  await removeRelations(context, session, [...reached].reverse(), { named: false, cascade: true });
  const ordered = [...roots].sort((a, b) => (depth.get(b.oid) ?? -1) - (depth.get(a.oid) ?? -1));
  await removeRelations(context, session, ordered, { named: true, cascade: statement.cascade });
  if (ordinary.length > 0) {
    await session.query(
      `DROP ${statement.kind.toUpperCase()} ${statement.ifExists ? 'IF EXISTS ' : ''}${ordinary.map(quotedName).join(', ')}${statement.cascade ? ' CASCADE' : ''}`,
    );
  }
  return { kind: 'done', tag };
}

/** As Postgres: DROP TABLE of a view is refused, with the statement to use. A stream table goes by whatever users take it for. */
async function requireKind(session: CallerSession, statement: DropRelation, name: QualifiedName, found: LiveObject): Promise<void> {
  const { kind } = droppable(found);
  if (kind === statement.kind || (await isStreamTable(session, found.id))) return;
  throw millraceError(
    'wrong_object_type_drop',
    { name: shownName(name), kind: statement.kind, actual_upper: kind.toUpperCase(), name_quoted: quotedName(name) },
    { position: name.at + 1 },
  );
}

async function oidsOf(session: CallerSession, names: readonly QualifiedName[]): Promise<string[]> {
  const oids: string[] = [];
  for (const name of names) {
    const row = await firstRow(session, 'SELECT pg_catalog.to_regclass($1)::oid', [quotedName(name)]);
    if (row?.[0] !== null && row?.[0] !== undefined) oids.push(row[0]);
  }
  return oids;
}

/** DROP SCHEMA over live relations, sinks, secrets and connections: they and what hangs on them go first, then Postgres drops the schema. */
export async function dropSchema(
  context: StatementContext,
  session: CallerSession,
  statement: DropSchema,
  text: string,
): Promise<StatementResult> {
  const schemas = await schemasOf(session, statement);
  const role = await callerRole(session);
  for (const schema of schemas) await requireOwner(session, 'schema', schema.name, schema.owner, role);
  const live = await liveInSchemas(session, schemas);
  const named = await namedInSchemas(session, schemas);
  const relations = live.filter((object) => object.type !== 'source').map(droppable);
  const links = [
    ...named,
    ...live.filter((object) => object.type === 'source').map((object) => ({ ...droppable(object), kind: 'source' as const })),
  ];
  const [first] = schemas;
  if (!statement.cascade && first !== undefined) {
    const lines = [...links, ...relations].map((object) => `${object.kind} ${object.name} depends on schema ${first.name}`);
    throw dependentObjects({ kind: 'schema', name: first.name }, [], [], lines);
  }
  const dependents = await dependentsOf(
    session,
    relations.map((object) => object.oid),
  );
  const views = new Map([...relations.filter((object) => object.kind !== 'table'), ...dependents].map((view) => [view.oid, view]));
  const depth = new Map(dependents.map((view, index) => [view.oid, index]));
  const ordered = [...views.values()].sort((a, b) => (depth.get(b.oid) ?? -1) - (depth.get(a.oid) ?? -1));
  const tables = relations.filter((object) => object.kind === 'table');
  const going = [...ordered, ...tables];
  const inside = new Set(links.filter((link) => link.kind === 'sink').map((link) => link.id));
  const reading = await sinksReading(
    session,
    going.map((object) => object.id),
  );
  const sinks = droppedSinks(
    reading.filter((sink) => !inside.has(sink.id)),
    going,
  );
  announceCascade(session, [...links, ...sinks, ...tables, ...[...ordered].reverse()]);
  await dropSinks(
    context,
    session,
    sinks.map((sink) => sink.id),
  );
  await removeRelations(context, session, [...ordered, ...tables], { named: false, cascade: true });
  await dropLinks(
    context,
    session,
    links.map((link) => ({ id: link.id ?? '', kind: link.kind, name: link.name, uses: '' })),
    true,
  );
  await session.query(text);
  return { kind: 'done', tag: 'DROP SCHEMA' };
}

interface Schema {
  readonly oid: string;
  readonly name: string;
  readonly owner: string;
}

async function schemasOf(session: CallerSession, statement: DropSchema): Promise<Schema[]> {
  const found = await session.query(
    `SELECT n.oid, n.nspname, n.nspowner FROM pg_catalog.pg_namespace n
      WHERE n.nspname OPERATOR(pg_catalog.=) ANY (ARRAY(SELECT pg_catalog.json_array_elements_text($1::json)))`,
    [JSON.stringify(statement.names.map((name) => name.name))],
    { quiet: true },
  );
  return found.rows.map(([oid, name, owner]) => ({ oid: oid ?? '', name: name ?? '', owner: owner ?? '' }));
}

async function liveInSchemas(session: CallerSession, schemas: readonly Schema[]): Promise<LiveObject[]> {
  const rows = await session.query(
    "SELECT c.oid FROM pg_catalog.pg_class c WHERE c.relkind = 'v' AND c.relnamespace = ANY ($1::oid[])",
    [`{${schemas.map((schema) => schema.oid).join(',')}}`],
    { quiet: true },
  );
  return liveByFacade(
    session,
    rows.rows.map((row) => row[0] ?? '0'),
  );
}

/** Secrets, connections and sinks in schemas. */
async function namedInSchemas(
  session: CallerSession,
  schemas: readonly Schema[],
): Promise<{ id: string; kind: 'connection' | 'secret' | 'sink'; name: string }[]> {
  const found = await session.query(
    `SELECT o.id, o.kind, pg_catalog.format('%I.%I', o.schema, o.name)
       FROM (SELECT id, 'connection' AS kind, schema, name FROM millrace.connections
             UNION ALL SELECT id, 'secret', schema, name FROM millrace.secrets
             UNION ALL SELECT id, 'sink', schema, name FROM millrace.sinks) o
      WHERE o.schema = ANY ($1::text[]) ORDER BY o.id`,
    [`{${schemas.map((schema) => `"${schema.name.replace(/["\\]/g, '\\$&')}"`).join(',')}}`],
    { quiet: true },
  );
  return found.rows.map(([id, kind, name]) => ({
    id: id ?? '',
    kind: kind === 'secret' || kind === 'sink' ? kind : 'connection',
    name: name ?? '',
  }));
}

/** Whether a DROP concerns Millrace: a name is live, or a live view hangs on it. */
export async function dropConcerns(session: CallerSession, statement: DropRelation | DropSchema): Promise<boolean> {
  if (statement.type === 'drop_schema') {
    const schemas = await schemasOf(session, statement);
    return (await liveInSchemas(session, schemas)).length > 0 || (await namedInSchemas(session, schemas)).length > 0;
  }
  const oids = await oidsOf(session, statement.names);
  if ((await liveByFacade(session, oids)).length > 0) return true;
  return (await dependentsOf(session, oids)).some((view) => view.id !== null);
}
