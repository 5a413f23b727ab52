/**
 * ALTER SINK.
 * Invariant: SET FROM checks everything that CREATE SINK would before anything changes, and then only says what is to be read: the engine cuts over
 * at an epoch of its own. So in one transaction with ALTER SCHEMA .. SWAP both happen or neither.
 */
import type { Backfill, SinkColumn, SinkDefinition } from '../catalog/sink-model.ts';
import { millraceError } from '../errors.ts';
import type { AlterSink, QualifiedName, RoleName, SetFrom } from '../sql/ast.ts';
import { quoteIdentifier } from '../sql/quote.ts';
import type { CallerSession, StatementResult } from './caller-session.ts';
import { registryOf } from './connections.ts';
import { type CallerRole, callerRole, firstRow, perform, requireCatalog, type StatementContext } from './context.ts';
import { creationNamespace, findNamed, type NamedObject, requireOwner, shownName, undefinedObject } from './names.ts';
import { checkRegistrySchemas } from './sink-checks.ts';
import { requireSameSink } from './sink-definition.ts';
import { countDifferences, differenceFields } from './sink-difference.ts';
import { requireReadable, requireSinkable, type SinkRelation } from './sink-relation.ts';
import { addVersion } from './sinks.ts';
import { awaitCutover, waitsForEngine } from './wait.ts';

const done: StatementResult = { kind: 'done', tag: 'ALTER SINK' };
const defaultTimeout = 60;

export async function alterSink(context: StatementContext, session: CallerSession, statement: AlterSink): Promise<StatementResult> {
  await requireCatalog(context, session);
  const role = await callerRole(session);
  const { name, action } = statement;
  const found = await findNamed(context, session, 'sink', name);
  if (found === null) {
    if (!statement.ifExists) throw undefinedObject('sink', name);
    session.notice({ severity: 'NOTICE', code: '42704', message: `sink "${shownName(name)}" does not exist, skipping` });
    return action.kind === 'set_from' && action.dryRun ? { kind: 'rows', fields: differenceFields, rows: [], tag: 'ALTER SINK' } : done;
  }
  await requireOwner(session, 'sink', shownName(name), found.owner, role);
  switch (action.kind) {
    case 'set_from':
      return await setFrom(context, session, role, { id: found.id, name: found.name }, action);
    case 'rename':
      await rename(context, session, found, action.to);
      return done;
    case 'owner':
      await changeOwner(context, session, role, found, action.to);
      return done;
    case 'pause':
    case 'resume':
      await perform(context, session, ["UPDATE millrace.sink SET paused = ($1 ->> 'paused')::boolean WHERE id = ($1 ->> 'id')::bigint"], {
        id: found.id,
        paused: action.kind === 'pause',
      });
      return done;
  }
}

interface Reads {
  readonly definition: SinkDefinition;
  /** What it reads, or is to read first. */
  readonly relation: string | null;
  readonly relationId: string;
  readonly columns: readonly SinkColumn[];
  readonly lastVersion: number;
  /** A version that has not cut over yet. */
  readonly waiting: {
    readonly version: number;
    readonly relation: string | null;
    readonly backfill: Backfill;
    readonly own: boolean;
    /** It cannot cut over as things are: what it is to read is in error, or not filled yet, or gone. */
    readonly stuck: boolean;
  } | null;
}

/** Locks out others who would alter it, not the engine. */
async function readSink(context: StatementContext, session: CallerSession, id: string): Promise<Reads> {
  return (await perform(
    context,
    session,
    [
      "SELECT to_jsonb(pg_advisory_xact_lock(1835625582, ($1 ->> 'id')::integer) IS NULL)",
      `SELECT jsonb_build_object(
                'definition', s.definition, 'relation', millrace.qualified_name(r.facade), 'relationId', v.relation_id::text, 'columns', v.columns,
                'lastVersion', (SELECT max(w.version) FROM millrace.sink_version w WHERE w.sink_id = s.id),
                'waiting', (SELECT jsonb_build_object('version', w.version, 'relation', millrace.qualified_name(x.facade), 'backfill', w.backfill,
                                                      'own', millrace.is_own_row(w.xmin),
                                                      'stuck', x.state IS DISTINCT FROM 'ready')
                              FROM millrace.sink_version w LEFT JOIN millrace.relation x ON x.id = w.relation_id
                             WHERE w.sink_id = s.id AND w.cut_ts IS NULL))
         FROM millrace.sink s
         JOIN LATERAL (SELECT i.* FROM millrace.sink_version i WHERE i.sink_id = s.id ORDER BY i.cut_ts IS NULL, i.version DESC LIMIT 1) v ON true
         LEFT JOIN millrace.relation r ON r.id = v.relation_id
        WHERE s.id = ($1 ->> 'id')::bigint`,
    ],
    { id },
  )) as Reads;
}

async function setFrom(
  context: StatementContext,
  session: CallerSession,
  role: CallerRole,
  sink: { readonly id: string; readonly name: string },
  action: SetFrom,
): Promise<StatementResult> {
  const seconds = await timeoutOf(session, action.timeout);
  const deadline = Date.now() + seconds * 1000;
  const { definition, columns: before } = await readSink(context, session, sink.id);
  let relation = await requireSinkable(context, session, action.from, role);
  await requireSameSink(context, session, role, definition, before, relation);
  if (!action.dryRun) await checkRegistrySchemas(definition, relation.columns, (id) => registryOf(context, session, id));
  relation = await readable(context, session, role, sink.name, action.from, relation, deadline, seconds);
  // Looked at again: the wait may have been long. Another cutover of the sink comes first.
  let reads = await readSink(context, session, sink.id);
  while (
    reads.waiting?.own === false &&
    !reads.waiting.stuck &&
    !action.dryRun &&
    Date.now() < deadline &&
    (await waitsForEngine(session))
  ) {
    await session.query('SELECT pg_catalog.pg_sleep(0.05)', [], { quiet: true });
    reads = await readSink(context, session, sink.id);
  }
  if (action.dryRun) {
    if (reads.relation === null) throw undefinedRelation(sink.name);
    const row = await countDifferences(session, { name: reads.relation, columns: reads.columns }, relation, definition.key);
    return { kind: 'rows', fields: differenceFields, rows: [row], tag: 'ALTER SINK' };
  }
  if (action.backfill === 'diff' && reads.relation === null) {
    throw millraceError('sink_relation_failed', {
      sink: sink.name,
      relation: 'its present relation',
      cause: 'It has been dropped: there is nothing to compare with.',
      hint: 'Take BACKFILL = snapshot.',
    });
  }
  const { waiting } = reads;
  if (waiting !== null && !waiting.own && waiting.version > 1 && relation.id === reads.relationId && action.backfill === 'none') {
    await giveUp(context, session, sink, waiting);
    session.notice({
      severity: 'NOTICE',
      code: '00000',
      message: `sink "${sink.name}" goes on reading ${shownName(action.from)}: the cutover to ${waiting.relation ?? 'a relation that is gone'} is given up`,
    });
    return done;
  }
  const version = await nextVersion(context, session, sink, reads, relation, action.backfill);
  if (await waitsForEngine(session)) {
    const awaited = { id: sink.id, name: sink.name, relation: shownName(action.from), version };
    // The time until the commit is the client's.
    session.onCommit((after) => awaitCutover(after, awaited, Date.now() + seconds * 1000));
  }
  return done;
}

function undefinedRelation(sink: string): Error {
  return millraceError('sink_relation_failed', {
    sink,
    relation: 'its present relation',
    cause: 'It has been dropped.',
    hint: 'Leave DRY RUN out: there is nothing to compare with.',
  });
}

async function timeoutOf(session: CallerSession, timeout: string | null): Promise<number> {
  if (timeout === null) return defaultTimeout;
  const row = await firstRow(session, 'SELECT extract(epoch FROM $1::pg_catalog.interval)', [timeout]);
  const seconds = Number(row?.[0] ?? Number.NaN);
  if (seconds >= 0) return seconds;
  throw millraceError('invalid_option', { message: `invalid TIMEOUT: "${timeout}"`, hint: "Give an interval: '10s'." });
}

/** Waits until the relation can be read: in short statements, so that it can be cancelled. One made by this transaction is waited for after it. */
async function readable(
  context: StatementContext,
  session: CallerSession,
  role: CallerRole,
  sink: string,
  name: QualifiedName,
  given: SinkRelation,
  deadline: number,
  seconds: number,
): Promise<SinkRelation> {
  requireReadable(given, sink);
  if (given.state === 'ready' || given.isNew || !(await waitsForEngine(session))) return given;
  for (let pause = 0.005; ; pause = Math.min(pause * 1.5, 0.2)) {
    const row = await firstRow(
      session,
      'SELECT s.state FROM pg_catalog.pg_sleep($1) AS slept, LATERAL millrace.state_of(ARRAY[$2::bigint]) AS s',
      [String(pause), given.id],
    );
    const state = row?.[0] ?? 'dropped';
    if (state !== 'pending' && state !== 'populating') break;
    if (Date.now() >= deadline) throw millraceError('sink_relation_not_ready', { seconds, relation: given.name, state });
  }
  const relation = await requireSinkable(context, session, name, role);
  requireReadable(relation, sink);
  return relation;
}

/** Writes what is to be read next, and answers its version. */
async function nextVersion(
  context: StatementContext,
  session: CallerSession,
  sink: { readonly id: string; readonly name: string },
  { lastVersion, waiting }: Reads,
  relation: SinkRelation,
  backfill: Backfill,
): Promise<number> {
  if (waiting === null) {
    await addVersion(context, session, sink.id, lastVersion + 1, relation, backfill);
    return lastVersion + 1;
  }
  await giveUp(context, session, sink, waiting);
  // Of a sink that has not begun, the first version still has to emit what CREATE SINK says.
  await addVersion(context, session, sink.id, waiting.version, relation, waiting.version === 1 ? waiting.backfill : backfill);
  return waiting.version;
}

/** Takes back a version that has not cut over. One of another transaction only where it cannot. */
async function giveUp(
  context: StatementContext,
  session: CallerSession,
  sink: { readonly id: string; readonly name: string },
  waiting: NonNullable<Reads['waiting']>,
): Promise<void> {
  const taken = await perform(
    context,
    session,
    [
      `WITH gone AS (DELETE FROM millrace.sink_version WHERE sink_id = ($1 ->> 'id')::bigint AND version = ($1 ->> 'version')::integer AND cut_ts IS NULL
                       AND ($1 ->> 'may')::boolean RETURNING 1)
       SELECT to_jsonb(count(*)) FROM gone`,
    ],
    { id: sink.id, version: waiting.version, may: waiting.own || waiting.stuck },
  );
  if (taken === 1) return;
  throw millraceError('sink_altered_concurrently', { name: sink.name, relation: waiting.relation ?? 'a relation that is gone' });
}

async function rename(
  context: StatementContext,
  session: CallerSession,
  found: NamedObject,
  to: { readonly name: string; readonly at: number },
): Promise<void> {
  await creationNamespace(session, { schema: found.schema, name: to.name, at: to.at });
  if (to.name !== found.name && (await findNamed(context, session, 'sink', { schema: found.schema, name: to.name, at: to.at })) !== null) {
    throw millraceError('duplicate_object', { kind: 'sink', name: to.name }, { position: to.at + 1 });
  }
  await perform(context, session, ["UPDATE millrace.sink SET name = $1 ->> 'name' WHERE id = ($1 ->> 'id')::bigint"], {
    id: found.id,
    name: to.name,
  });
}

/** As ALTER TABLE .. OWNER TO: the caller must be able to act as the new owner, who must be able to create in the schema. */
async function changeOwner(
  context: StatementContext,
  session: CallerSession,
  role: CallerRole,
  found: NamedObject,
  to: RoleName,
): Promise<void> {
  const row = await firstRow(
    session,
    `SELECT r.oid, r.rolname, pg_catalog.pg_has_role($2::oid, r.oid, 'MEMBER'), pg_catalog.has_schema_privilege(r.oid, n.oid, 'CREATE')
       FROM pg_catalog.pg_roles r, pg_catalog.pg_namespace n
      WHERE r.rolname = coalesce($1, CASE WHEN $4 = 'session_user' THEN session_user ELSE current_user END) AND n.nspname = $3`,
    [to.name, role.oid, found.schema, to.keyword],
  );
  const [oid, name, isMember, mayCreate] = row ?? [];
  if (oid === null || oid === undefined) throw millraceError('undefined_role', { name: to.name ?? '' }, { position: to.at + 1 });
  if (isMember !== 't') throw millraceError('role_permission_denied', { name: name ?? '', name_quoted: quoteIdentifier(name ?? '') });
  if (mayCreate !== 't') {
    throw millraceError('schema_permission_denied', { schema: found.schema, schema_quoted: quoteIdentifier(found.schema) });
  }
  await perform(context, session, ["UPDATE millrace.sink SET owner = ($1 ->> 'owner')::oid WHERE id = ($1 ->> 'id')::bigint"], {
    id: found.id,
    owner: oid,
  });
}
