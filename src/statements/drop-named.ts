/** DROP SECRET, CONNECTION, SOURCE, SINK. Invariant: nothing goes that something else still needs, unless CASCADE says so. */
import { millraceError } from '../errors.ts';
import type { DropObject } from '../sql/ast.ts';
import type { CallerSession, StatementResult } from './caller-session.ts';
import { callerRole, perform, requireCatalog, type StatementContext } from './context.ts';
import { announceCascade, type Droppable, dependentObjects, dependentsOf, droppedSinks, sinkLines, sinksReading } from './dependents.ts';
import { findLive, findNamed, quotedName, relationExists, requireOwner, shownName, undefinedObject } from './names.ts';
import { dropSources, removeRelations } from './removal.ts';
import { dropSinks } from './sinks.ts';

type Kind = DropObject['kind'];

/** A secret, connection, source or sink that is to be dropped, or hangs on one. */
interface Link {
  readonly id: string;
  readonly kind: Kind;
  readonly name: string;
  /** What it uses, for the refusal. */
  readonly uses: string;
}

/** DROP SECRET, CONNECTION, SOURCE, SINK. */
export async function dropObject(context: StatementContext, session: CallerSession, statement: DropObject): Promise<StatementResult> {
  await requireCatalog(context, session);
  const role = await callerRole(session);
  const { kind } = statement;
  for (const name of statement.names) {
    const found = kind === 'source' ? await findSource(session, statement, name) : await findNamed(context, session, kind, name);
    if (found === null) {
      if (!statement.ifExists) throw undefinedObject(kind, name);
      session.notice({ severity: 'NOTICE', code: '42704', message: `${kind} "${shownName(name)}" does not exist, skipping` });
      continue;
    }
    await requireOwner(session, kind, shownName(name), found.owner, role);
    await dropLinks(context, session, [{ id: found.id, kind, name: shownName(name), uses: '' }], statement.cascade);
  }
  return { kind: 'done', tag: `DROP ${kind.toUpperCase()}` };
}

async function findSource(
  session: CallerSession,
  statement: DropObject,
  name: DropObject['names'][number],
): Promise<{ readonly id: string; readonly owner: string } | null> {
  const found = await findLive(session, name);
  if (found?.type === 'source') return found;
  if (found !== null) {
    const actual = found.type === 'view' ? 'materialized view' : found.type;
    throw millraceError(
      'wrong_object_type_drop',
      { name: shownName(name), kind: statement.kind, actual_upper: actual.toUpperCase(), name_quoted: quotedName(name) },
      { position: name.at + 1 },
    );
  }
  if (await relationExists(session, name)) {
    throw millraceError('wrong_object_type', { name: shownName(name), kind: 'source' }, { position: name.at + 1 });
  }
  return null;
}

/** Drops secrets, connections, sources and sinks with all that hangs on them; without `cascade` raises when something does. */
export async function dropLinks(
  context: StatementContext,
  session: CallerSession,
  roots: readonly Link[],
  cascade: boolean,
  announced = false,
): Promise<void> {
  const known = new Set(roots.map((link) => link.id));
  const links = [...roots];
  for (const link of links) {
    for (const next of await usersOf(context, session, link)) {
      if (known.has(next.id)) continue;
      known.add(next.id);
      links.push(next);
    }
  }
  const sources = links.filter((link) => link.kind === 'source');
  const tables = await tablesOfSources(context, session, sources);
  const views = await dependentsOf(
    session,
    tables.map((table) => table.oid),
  );
  const going = [...tables, ...views];
  const reading = await sinksReading(
    session,
    going.map((object) => object.id),
  );
  const readers = reading.filter((sink) => !known.has(sink.id));
  const reached = links.slice(roots.length);
  const [root] = roots;
  if (!cascade && root !== undefined && reached.length + tables.length > 0) {
    throw dependentObjects({ kind: root.kind, name: root.name }, tables, views, [
      ...reached.map((link) => `${link.kind} ${link.name} depends on ${link.uses}`),
      ...tables.map((table) => `table ${table.name} depends on source ${table.source}`),
      ...sinkLines(readers, going),
    ]);
  }
  const sinks = droppedSinks(readers, going);
  if (!announced) announceCascade(session, [...reached, ...tables, ...sinks, ...views]);
  await dropSinks(
    context,
    session,
    [...links.filter((link) => link.kind === 'sink'), ...sinks].map(({ id }) => id),
  );
  await removeRelations(context, session, [...views].reverse(), { named: false, cascade: true });
  await removeRelations(context, session, tables, { named: false, cascade: true });
  await dropSources(
    context,
    session,
    sources.map((source) => source.id),
  );
  for (const kind of ['connection', 'secret'] as const) {
    const ids = links.filter((link) => link.kind === kind).map((link) => link.id);
    if (ids.length === 0) continue;
    const remove = `DELETE FROM millrace.${kind} WHERE id IN (SELECT value::bigint FROM jsonb_array_elements_text($1 -> 'ids'))`;
    await perform(context, session, [remove], { ids });
  }
}

/** Connections and sinks that use a secret; sources and sinks that use a connection. */
async function usersOf(context: StatementContext, session: CallerSession, link: Link): Promise<Link[]> {
  if (link.kind === 'source' || link.kind === 'sink') return [];
  const found = (await perform(context, session, [usersSql[link.kind]], { id: link.id })) as { id: string; kind: Kind; name: string }[];
  return found.map(({ id, kind, name }) => ({ id, kind, name, uses: `${link.kind} ${link.name}` }));
}

const sinksUsing = (condition: string): string => `
SELECT s.id, 'sink', coalesce(format('%I.%I', n.nspname, s.name), s.name)
  FROM millrace.sink s LEFT JOIN pg_namespace n ON n.oid = s.namespace
 WHERE s.status <> 'dropped' AND (${condition})`;

const usersSql = {
  secret: `
SELECT coalesce(jsonb_agg(jsonb_build_object('id', x.id::text, 'kind', x.kind, 'name', x.name) ORDER BY x.id), '[]')
  FROM (SELECT c.id, 'connection' AS kind, coalesce(format('%I.%I', n.nspname, c.name), c.name) AS name
          FROM millrace.connection c LEFT JOIN pg_namespace n ON n.oid = c.namespace
         WHERE EXISTS (SELECT FROM jsonb_each(c.options) AS o WHERE o.value ->> 'secret' = $1 ->> 'id')
        UNION ALL ${sinksUsing("s.definition #>> '{target,secretId}' = $1 ->> 'id'")}) x`,
  connection: `
SELECT coalesce(jsonb_agg(jsonb_build_object('id', x.id::text, 'kind', x.kind, 'name', x.name) ORDER BY x.id), '[]')
  FROM (SELECT s.id, 'source' AS kind, millrace.qualified_name(s.facade) AS name
          FROM millrace.source s
         WHERE s.status <> 'dropped' AND s.connection_id = ($1 ->> 'id')::bigint
        UNION ALL ${sinksUsing(`s.connection_id = ($1 ->> 'id')::bigint OR s.definition #>> '{target,keyFormat,registryId}' = $1 ->> 'id'
                  OR s.definition #>> '{target,valueFormat,registryId}' = $1 ->> 'id'`)}) x`,
};

async function tablesOfSources(
  context: StatementContext,
  session: CallerSession,
  sources: readonly Link[],
): Promise<(Droppable & { readonly source: string })[]> {
  if (sources.length === 0) return [];
  const found = (await perform(
    context,
    session,
    [
      `SELECT coalesce(jsonb_agg(jsonb_build_object('id', r.id::text, 'oid', r.facade::text, 'name', millrace.qualified_name(r.facade),
                                                    'source', v.source_id::text) ORDER BY r.id), '[]')
         FROM millrace.table_version v JOIN millrace.relation r ON r.id = v.relation_id
        WHERE v.source_id IN (SELECT value::bigint FROM jsonb_array_elements_text($1 -> 'ids'))
          AND r.state <> 'dropped' AND EXISTS (SELECT FROM pg_class c WHERE c.oid = r.facade)`,
    ],
    { ids: sources.map((source) => source.id) },
  )) as { id: string; oid: string; name: string; source: string }[];
  return found.map((table) => ({ ...table, kind: 'table', source: sources.find((source) => source.id === table.source)?.name ?? '' }));
}
