/**
 * CREATE SINK, and what becomes of a sink that is dropped.
 * Invariant: the caller's transaction writes what the sink is; the engine cuts it in and delivers after the commit, so that a rolled back
 * CREATE SINK leaves nothing at the target.
 */
import type { Backfill } from '../catalog/sink-model.ts';
import { millraceError } from '../errors.ts';
import type { CreateSink } from '../sql/ast.ts';
import type { CallerSession, StatementResult } from './caller-session.ts';
import { registryOf } from './connections.ts';
import { callerRole, perform, requireCatalog, type StatementContext } from './context.ts';
import { creationNamespace, findNamed, shownName } from './names.ts';
import { checkRegistrySchemas } from './sink-checks.ts';
import { planSink } from './sink-definition.ts';
import { requireReadable, requireSinkable, type SinkRelation } from './sink-relation.ts';
import { awaitSink, waitsForEngine } from './wait.ts';

const done: StatementResult = { kind: 'done', tag: 'CREATE SINK' };

export async function createSink(context: StatementContext, session: CallerSession, statement: CreateSink): Promise<StatementResult> {
  await requireCatalog(context, session);
  const { name } = statement;
  const role = await callerRole(session);
  const namespace = await creationNamespace(session, name);
  if ((await findNamed(context, session, 'sink', { ...name, schema: namespace.name })) !== null) {
    if (!statement.ifNotExists) throw millraceError('duplicate_object', { kind: 'sink', name: name.name }, { position: name.at + 1 });
    session.notice({ severity: 'NOTICE', code: '42710', message: `sink "${name.name}" already exists, skipping` });
    return done;
  }
  const relation = await requireSinkable(context, session, statement.from, role);
  requireReadable(relation, name.name);
  const { definition, connectionId } = await planSink(context, session, role, statement, relation);
  const waits = await waitsForEngine(session);
  // What the registry has to say is found out now where the statement would wait to hear it.
  if (waits) await checkRegistrySchemas(definition, relation.columns, (registry) => registryOf(context, session, registry));
  const id = String(await perform(context, session, ["SELECT to_jsonb(nextval('millrace.object_id'))"]));
  await perform(
    context,
    session,
    [
      `INSERT INTO millrace.sink (id, namespace, name, owner, connection_id, definition)
       VALUES (($1 ->> 'id')::bigint, ($1 ->> 'namespace')::oid, $1 ->> 'name', ($1 ->> 'owner')::oid, ($1 ->> 'connection')::bigint, $1 -> 'definition')`,
    ],
    { id, namespace: namespace.oid, name: name.name, owner: role.oid, connection: connectionId, definition },
  );
  await addVersion(context, session, id, 1, relation, statement.snapshot === false ? 'none' : 'snapshot');
  if (waits) {
    const awaited = { id, name: name.name, relation: shownName(statement.from) };
    session.onCommit((after) => awaitSink(after, awaited, () => dropSinks(context, after, [id])));
  }
  return done;
}

/** What a sink is to read from its next cutover on. */
export async function addVersion(
  context: StatementContext,
  session: CallerSession,
  sinkId: string,
  version: number,
  relation: SinkRelation,
  backfill: Backfill,
): Promise<void> {
  await perform(
    context,
    session,
    [
      `INSERT INTO millrace.sink_version (sink_id, version, relation_id, columns, backfill)
       VALUES (($1 ->> 'sink')::bigint, ($1 ->> 'version')::integer, ($1 ->> 'relation')::bigint, $1 -> 'columns', $1 ->> 'backfill')`,
    ],
    { sink: sinkId, version, relation: relation.id, columns: relation.columns, backfill },
  );
}

/** Marks sinks dropped; the engine clears away what they kept, after the commit. Topics stay. */
export async function dropSinks(context: StatementContext, session: CallerSession, ids: readonly string[]): Promise<void> {
  if (ids.length === 0) return;
  await perform(
    context,
    session,
    [
      `UPDATE millrace.sink SET status = 'dropped', status_since = now()
        WHERE id IN (SELECT value::bigint FROM jsonb_array_elements_text($1 -> 'ids'))`,
    ],
    { ids },
  );
}
