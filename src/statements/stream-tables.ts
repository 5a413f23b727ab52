/**
 * Creating and altering stream tables.
 * Invariant: a stream table is a live view whose definition is text and recorded sources, so that nothing of it stands in the way of a
 * user's DDL; its facade is the caller's own view with exactly the columns of the query.
 */
import { gateView, storageTable } from '../catalog/model.ts';
import { gateSql } from '../catalog/storage-ddl.ts';
import { MillraceError, millraceError } from '../errors.ts';
import { storageDdl, visibleColumns } from '../ivm/view-plan.ts';
import type { QualifiedName } from '../sql/ast.ts';
import { quoteIdentifier, quoteQualified } from '../sql/quote.ts';
import type { CallerSession } from './caller-session.ts';
import { type CallerRole, callerRole, firstRow, perform, requireCatalog, type StatementContext } from './context.ts';
import { sinksReading } from './dependents.ts';
import { facadeTriggers } from './facades.ts';
import { requireSameTypes } from './materialized-views.ts';
import { creationNamespace, findLive, type LiveObject, requireOwner } from './names.ts';
import { dropFailed, dropLive } from './removal.ts';
import {
  type Arguments,
  checkedOptions,
  checkedSchedule,
  invalidArgument,
  isGiven,
  type RefreshMode,
  refreshMode,
  requiredText,
  requireImmediateOptions,
} from './stream-table-options.ts';
import {
  type Chosen,
  chooseImmediate,
  choosePlan,
  createScratch,
  type Definition,
  dropScratch,
  fullPlan,
  readDefinition,
  requireDifferential,
  scratch,
} from './stream-table-plan.ts';
import { baseRows, insertSources, registerBases, sourceRows } from './stream-table-sources.ts';
import { attachFacade } from './tables.ts';
import { awaitReady, waitsForEngine } from './wait.ts';

export type IfThere = 'raise' | 'skip' | 'replace';

interface Wanted {
  readonly query: string;
  /** Null: it is never behind (IMMEDIATE). */
  readonly schedule: string | null;
  readonly mode: RefreshMode;
  readonly options: Readonly<Record<string, unknown>>;
}

/** create_stream_table, create_stream_table_if_not_exists, create_or_replace_stream_table. */
export async function createStreamTable(
  context: StatementContext,
  session: CallerSession,
  given: Arguments,
  ifThere: IfThere,
): Promise<{ readonly id: number | null }> {
  await requireCatalog(context, session);
  const role = await callerRole(session);
  const name = await parsedName(session, requiredText(given, 'name'));
  const mode = refreshMode(given['refresh_mode']);
  if (mode === 'IMMEDIATE') requireImmediateOptions(given);
  const wanted: Wanted = {
    query: requiredText(given, 'query'),
    schedule: checkedSchedule(given['schedule'], mode),
    mode,
    options: { ...checkedOptions(given), ...(given['initialize'] === false ? { initialize: false } : {}) },
  };
  const namespace = await unplaced(creationNamespace(session, name));
  const shown = `${namespace.name}.${name.name}`;
  const there = await firstRow(
    session,
    `SELECT s.pgt_id, s.original_query, coalesce(s.schedule, 'calculated'), s.requested_mode
       FROM pg_catalog.pg_class c LEFT JOIN pgtrickle.pgt_stream_tables s ON s.pgt_relid = c.oid
      WHERE c.relnamespace = $1::oid AND c.relname = $2`,
    [namespace.oid, name.name],
  );
  if (there !== null) {
    const [id, query, schedule, oldMode] = there;
    if (id === null || id === undefined) throw millraceError('duplicate_relation', { name: name.name });
    if (ifThere === 'raise') throw millraceError('stream_table_exists', { name: shown });
    if (ifThere === 'skip') {
      session.notice({ severity: 'NOTICE', code: '42P07', message: `stream table "${shown}" already exists, skipping` });
      return { id: null };
    }
    const same = spaced(query ?? '') === spaced(wanted.query);
    if (same && (schedule === wanted.schedule || mode === 'IMMEDIATE') && oldMode === wanted.mode) return { id: null };
    const changes = { name: given['name'], query: wanted.query, schedule: wanted.schedule, refresh_mode: wanted.mode };
    await alterStreamTable(context, session, same ? { ...changes, query: null } : changes);
    return { id: Number(id) };
  }
  const facade = quoteQualified(namespace.name, name.name);
  const id = await makeStreamTable(context, session, role, wanted, null);
  await session.query(`CREATE VIEW ${facade} AS SELECT * FROM ${gateView(id)}`, [], { quiet: true });
  await facadeTriggers(session, facade);
  await attachFacade(context, session, id, facade);
  await waitForIt(context, session, id, wanted);
  return { id };
}

/** The same query but for its blanks. */
function spaced(query: string): string {
  return query.replace(/\s+/g, ' ').trim();
}

/** Everything of a stream table but its facade. `replaced`: the one whose place it takes. Answers its id. */
async function makeStreamTable(
  context: StatementContext,
  session: CallerSession,
  role: CallerRole,
  wanted: Wanted,
  replaced: { readonly id: string; readonly facade: string; readonly name: string } | null,
): Promise<number> {
  await createScratch(session, wanted.query);
  const definition = await readDefinition(context, session, role);
  if (wanted.options['cdc_mode'] === 'wal' && !definition.sources.streams) {
    throw invalidArgument("cdc_mode = 'wal' requires wal_level = logical and an available replication slot");
  }
  if (replaced !== null && definition.sources.read.some((relation) => relation.oid === replaced.facade)) {
    throw millraceError('stream_table_cycle', { path: `${replaced.name} -> ${replaced.name}` });
  }
  const id = Number(await perform(context, session, ["SELECT to_jsonb(nextval('millrace.object_id'))"]));
  const chosen = await choose(context, session, definition, id, wanted.mode);
  tell(session, wanted.mode, chosen, definition);
  const { plan } = chosen;
  const { sources } = definition;
  const list = visibleColumns(plan).map((column) => `${column.expression} AS ${quoteIdentifier(column.name)}`);
  await perform(
    context,
    session,
    [
      ...registerBases,
      ...storageDdl(plan, id, sources.storage),
      gateSql(id, list, `${storageTable(id)} s`, 'pending'),
      `GRANT SELECT ON ${gateView(id)} TO ${quoteIdentifier(role.name)}`,
      `INSERT INTO millrace.relation (id, kind, gate) VALUES (($1 ->> 'id')::bigint, 'view', ($1 ->> 'gate')::regclass)`,
      `INSERT INTO millrace.live_view (relation_id, definition, plan) VALUES (($1 ->> 'id')::bigint, NULL, $1 -> 'plan')`,
      `INSERT INTO millrace.live_view_input (relation_id, input_id)
       SELECT ($1 ->> 'id')::bigint, value::bigint FROM jsonb_array_elements_text($1 -> 'inputs')`,
      `INSERT INTO millrace.stream_table (relation_id, query, definition, schedule, requested_mode, refresh_mode, downgrade_reason, options, pgt_id)
       VALUES (($1 ->> 'id')::bigint, $1 ->> 'query', $1 ->> 'text', $1 ->> 'schedule', $1 ->> 'requested', $1 ->> 'mode', $1 ->> 'downgrade', $1 -> 'options',
               (SELECT coalesce(t.pgt_id, t.relation_id) FROM millrace.stream_table t WHERE t.relation_id = ($1 ->> 'replaced')::bigint))`,
      insertSources,
    ],
    {
      id,
      gate: gateView(id),
      bases: baseRows(sources.tables),
      plan,
      inputs: definition.analysis.inputs.map(String),
      query: wanted.query,
      text: definition.text,
      schedule: wanted.schedule,
      requested: wanted.mode,
      mode: chosen.mode,
      downgrade: chosen.mode === 'FULL' && wanted.mode !== 'FULL' ? chosen.reason : null,
      options: wanted.options,
      replaced: replaced?.id ?? null,
      sources: sourceRows(sources),
    },
  );
  await requireSameTypes(session, id, plan, scratch);
  await dropScratch(session);
  return id;
}

async function choose(
  context: StatementContext,
  session: CallerSession,
  definition: Definition,
  id: number,
  mode: RefreshMode,
): Promise<Chosen> {
  if (mode === 'FULL') {
    const reason = 'refresh_mode FULL was asked for';
    return { mode: 'FULL', plan: fullPlan(definition, reason), reason, possible: false };
  }
  if (mode === 'IMMEDIATE') return await chooseImmediate(context, session, definition, id);
  const chosen = await choosePlan(context, session, definition, id);
  if (mode === 'DIFFERENTIAL') requireDifferential(chosen);
  return chosen;
}

/** What the caller should know of the choice. */
function tell(session: CallerSession, mode: RefreshMode, chosen: Chosen, { sources }: Definition): void {
  if (mode === 'FULL' || chosen.mode === 'IMMEDIATE') return;
  if (chosen.mode === 'FULL') {
    session.notice({ severity: 'WARNING', code: '01000', message: `Falling back to FULL refresh: ${chosen.reason}` });
    return;
  }
  for (const table of sources.tables) {
    if (table.holds !== null || (sources.streams ? table.identity === 'f' : table.registered)) continue;
    const shown = quoteQualified(table.schema, table.name);
    if (!sources.streams) {
      session.notice({
        severity: 'NOTICE',
        code: '00000',
        message: `table ${shown} is given triggers that tell of its changes`,
        detail: 'Millrace cannot read the WAL here.',
        hint: 'ALTER SYSTEM SET wal_level = logical; restart the server, and give the role that Millrace connects as REPLICATION.',
      });
      continue;
    }
    session.notice({
      severity: 'NOTICE',
      code: '00000',
      message: `table ${shown} is given REPLICA IDENTITY FULL`,
      detail: 'Changes are taken from the WAL, which then holds the old rows of updates and deletes.',
      hint: 'It is put back when no stream table reads the table any more.',
    });
  }
}

async function waitForIt(context: StatementContext, session: CallerSession, id: number, wanted: Wanted): Promise<void> {
  if (wanted.options['initialize'] === false || !(await waitsForEngine(session))) return;
  session.onCommit((after) => awaitReady(after, [String(id)], ({ name }) => dropFailed(context, after, id, name)));
}

/** alter_stream_table: NULL means unchanged. */
export async function alterStreamTable(context: StatementContext, session: CallerSession, given: Arguments): Promise<void> {
  await requireCatalog(context, session);
  const role = await callerRole(session);
  const typed = requiredText(given, 'name');
  const found = await findLive(session, await parsedName(session, typed));
  const row = await firstRow(
    session,
    "SELECT s.pgt_id, s.original_query, coalesce(s.schedule, 'calculated'), s.requested_mode, s.status FROM pgtrickle.pgt_stream_tables s WHERE s.pgt_relid = $1::oid",
    [found?.facade ?? '0'],
  );
  if (found === null || row === null) throw millraceError('stream_table_not_found', { name: typed });
  const shown = `${found.schema}.${found.name}`;
  await requireOwner(session, 'stream table', shown, found.owner, role);
  const [, query, oldSchedule, oldMode] = row;
  const options = checkedOptions(given);
  const mode = isGiven(given['refresh_mode']) ? refreshMode(given['refresh_mode']) : refreshMode(oldMode);
  if (mode === 'IMMEDIATE') requireImmediateOptions(given);
  const kept = mode === 'IMMEDIATE' ? null : (oldSchedule ?? 'calculated');
  const schedule = isGiven(given['schedule']) ? checkedSchedule(given['schedule'], mode) : kept;
  await perform(
    context,
    session,
    [
      `UPDATE millrace.stream_table SET schedule = $1 ->> 'schedule', options = options || ($1 -> 'options'),
              next_refresh_at = CASE WHEN schedule IS DISTINCT FROM $1 ->> 'schedule' THEN NULL ELSE next_refresh_at END
        WHERE relation_id = ($1 ->> 'id')::bigint`,
    ],
    { id: found.id, schedule, options },
  );
  await alterStatus(session, typed, given['status']);
  const newQuery = isGiven(given['query']) ? requiredText(given, 'query') : (query ?? '');
  if (newQuery === query && mode === oldMode) return;
  await replaceQuery(context, session, role, { ...found, shown }, { query: newQuery, schedule, mode, options });
}

async function alterStatus(session: CallerSession, name: string, status: unknown): Promise<void> {
  if (!isGiven(status)) return;
  switch (String(status).toUpperCase()) {
    case 'ACTIVE':
      await session.query('SELECT pgtrickle.resume_stream_table($1)', [name], { quiet: true });
      return;
    case 'SUSPENDED':
    case 'PAUSED':
      await session.query('SELECT pgtrickle.pause_stream_table($1)', [name], { quiet: true });
      return;
    default:
      throw invalidArgument(`invalid status value: '${String(status)}' (expected 'ACTIVE' or 'SUSPENDED')`);
  }
}

/** Another query, or another way of keeping it: a new stream table takes the place of the old one behind the same facade. */
async function replaceQuery(
  context: StatementContext,
  session: CallerSession,
  role: CallerRole,
  old: Pick<LiveObject, 'id' | 'facade' | 'state' | 'schema' | 'name'> & { readonly shown: string },
  wanted: Wanted,
): Promise<void> {
  const readers = await firstRow(
    session,
    `SELECT pg_catalog.string_agg(s.pgt_schema || '.' || s.pgt_name, ', ' ORDER BY s.pgt_id)
       FROM pgtrickle.pgt_dependencies d JOIN pgtrickle.pgt_stream_tables s USING (pgt_id) WHERE d.source_relid = $1::oid`,
    [old.facade],
  );
  if (isGiven(readers?.[0])) {
    throw invalidArgument(
      `stream table ${old.shown} has dependent stream tables: ${readers?.[0]}. Drop them, alter it, and create them again.`,
    );
  }
  const sinks = await sinksReading(session, [old.id]);
  if (sinks.length > 0) {
    const names = sinks.map(({ name }) => name).join(', ');
    throw invalidArgument(
      `stream table ${old.shown} has dependent sinks: ${names}. Create another stream table and give it to them: ALTER SINK .. SET FROM.`,
    );
  }
  // One that was to take its place, and has not yet, is not wanted any more.
  const others = (await perform(
    context,
    session,
    [
      `SELECT coalesce(jsonb_agg(t.relation_id::text), '[]') FROM millrace.stream_table t JOIN millrace.relation r ON r.id = t.relation_id
        WHERE t.replaces = ($1 ->> 'id')::bigint AND r.state <> 'dropped'`,
    ],
    { id: old.id },
  )) as string[];
  await dropLive(context, session, others);
  const id = await makeStreamTable(context, session, role, wanted, { id: old.id, facade: old.facade, name: old.shown });
  const facade = quoteQualified(old.schema, old.name);
  const different = await session.query(
    `SELECT n.attname FROM pg_catalog.pg_attribute o
       LEFT JOIN pg_catalog.pg_attribute n ON n.attrelid = $2::pg_catalog.regclass AND n.attnum = o.attnum
      WHERE o.attrelid = $1::pg_catalog.regclass AND o.attnum > 0
        AND (o.attname, o.atttypid, o.atttypmod, o.attcollation) IS DISTINCT FROM (n.attname, n.atttypid, n.atttypmod, n.attcollation)
      UNION ALL
     SELECT n.attname FROM pg_catalog.pg_attribute n WHERE n.attrelid = $2::pg_catalog.regclass
        AND n.attnum > (SELECT max(o.attnum) FROM pg_catalog.pg_attribute o WHERE o.attrelid = $1::pg_catalog.regclass)`,
    [gateView(Number(old.id)), gateView(id)],
    { quiet: true },
  );
  if (different.rows.length === 0 && old.state === 'ready' && wanted.options['initialize'] !== false) {
    // Filled beside the old one, which is read until then.
    await perform(
      context,
      session,
      ["UPDATE millrace.stream_table SET replaces = ($1 ->> 'old')::bigint WHERE relation_id = ($1 ->> 'id')::bigint"],
      {
        id,
        old: old.id,
      },
    );
    if (!(await waitsForEngine(session))) return;
    session.onCommit((after) => awaitReady(after, [String(id)], () => dropFailed(context, after, id, '')));
    return;
  }
  await perform(
    context,
    session,
    [
      "UPDATE millrace.relation SET facade = NULL WHERE id = ($1 ->> 'old')::bigint",
      "UPDATE millrace.refresh_history SET relation_id = ($1 ->> 'id')::bigint WHERE relation_id = ($1 ->> 'old')::bigint",
    ],
    { id, old: old.id },
  );
  if (different.rows.length === 0) {
    await session.query(`CREATE OR REPLACE VIEW ${facade} AS SELECT * FROM ${gateView(id)}`, [], { quiet: true });
  } else {
    // Other columns: what reads the facade has to go first, as Postgres says.
    await session.query(`DROP VIEW ${facade}`, [], { quiet: true });
    await session.query(`CREATE VIEW ${facade} AS SELECT * FROM ${gateView(id)}`, [], { quiet: true });
    await facadeTriggers(session, facade);
  }
  await attachFacade(context, session, id, facade);
  await dropLive(context, session, [old.id]);
  await waitForIt(context, session, id, wanted);
}

/** `t` or `schema.t`, by Postgres's rules for names. */
export async function parsedName(session: CallerSession, text: string): Promise<QualifiedName> {
  const row = await firstRow(session, 'SELECT pg_catalog.to_json(pg_catalog.parse_ident($1))', [text]);
  const parts = JSON.parse(row?.[0] ?? '[]') as string[];
  const [first = '', second, ...more] = parts;
  if (more.length > 0) throw invalidArgument(`improper qualified name (too many dotted names): ${text}`);
  return second === undefined ? { schema: null, name: first, at: 0 } : { schema: first, name: second, at: 0 };
}

/** Errors about names in arguments have no place in the statement. */
async function unplaced<T>(work: Promise<T>): Promise<T> {
  try {
    return await work;
  } catch (error) {
    if (!(error instanceof MillraceError)) throw error;
    const { position: _, ...fields } = error.fields;
    throw new MillraceError(error.condition, fields);
  }
}
