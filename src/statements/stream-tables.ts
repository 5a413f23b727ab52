/**
 * Creating and altering stream tables.
 * Invariant: a stream table is a live view whose definition is text and recorded sources, so that nothing of it stands in the way of a
 * user's DDL; its facade is the caller's own view with exactly the columns of the query.
 */
import { gateView } from '../catalog/model.ts';
import { MillraceError, millraceError } from '../errors.ts';
import type { QualifiedName } from '../sql/ast.ts';
import { quoteQualified } from '../sql/quote.ts';
import type { CallerSession } from './caller-session.ts';
import { callerRole, firstRow, perform, requireCatalog, type StatementContext } from './context.ts';
import { facadeTriggers } from './facades.ts';
import { creationNamespace, findLive, requireOwner } from './names.ts';
import { makeStreamTable, type Wanted, waitForIt } from './stream-table-making.ts';
import {
  type Arguments,
  checkedOptions,
  checkedSchedule,
  invalidArgument,
  isGiven,
  refreshMode,
  requiredText,
  requireImmediateOptions,
} from './stream-table-options.ts';
import { replaceQuery } from './stream-table-replacement.ts';
import { attachFacade } from './tables.ts';

export type IfThere = 'raise' | 'skip' | 'replace';

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
  await replaceQuery(context, session, role, { ...found, shown }, { query: newQuery, schedule, mode, options }, oldMode ?? '');
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
