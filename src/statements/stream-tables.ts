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
import { type CallerRole, callerRole, firstRow, perform, requireCatalog, type StatementContext } from './context.ts';
import { facadeTriggers } from './facades.ts';
import { creationNamespace, findLive, type LiveObject, requireOwner } from './names.ts';
import { makeStreamTable, type Wanted, waitForIt } from './stream-table-making.ts';
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

interface OwnStreamTable {
  readonly role: CallerRole;
  readonly found: LiveObject & { readonly shown: string };
  /** As its user has typed it, and as Postgres prints it with every relation named in full. */
  readonly query: string;
  readonly definition: string;
  readonly schedule: string;
  readonly mode: RefreshMode;
}

/** One of the caller's, by the name in argument `name`. Raises when it is not there or another's. */
async function ownStreamTable(context: StatementContext, session: CallerSession, given: Arguments): Promise<OwnStreamTable> {
  await requireCatalog(context, session);
  const role = await callerRole(session);
  const typed = requiredText(given, 'name');
  const found = await findLive(session, await parsedName(session, typed));
  const row = await firstRow(
    session,
    "SELECT s.original_query, s.defining_query, coalesce(s.schedule, 'calculated'), s.requested_mode FROM pgtrickle.pgt_stream_tables s WHERE s.pgt_relid = $1::oid",
    [found?.facade ?? '0'],
  );
  if (found === null || row === null) throw millraceError('stream_table_not_found', { name: typed });
  const shown = `${found.schema}.${found.name}`;
  await requireOwner(session, 'stream table', shown, found.owner, role);
  const [query, definition, schedule, mode] = row;
  return {
    role,
    found: { ...found, shown },
    query: query ?? '',
    definition: definition ?? '',
    schedule: schedule ?? 'calculated',
    mode: refreshMode(mode),
  };
}

/** alter_stream_table: NULL means unchanged. */
export async function alterStreamTable(context: StatementContext, session: CallerSession, given: Arguments): Promise<void> {
  const { role, found, query, ...old } = await ownStreamTable(context, session, given);
  const mode = isGiven(given['refresh_mode']) ? refreshMode(given['refresh_mode']) : old.mode;
  if (mode === 'IMMEDIATE') requireImmediateOptions(given);
  const kept = mode === 'IMMEDIATE' ? null : old.schedule;
  const schedule = isGiven(given['schedule']) ? checkedSchedule(given['schedule'], mode) : kept;
  const options = (await perform(
    context,
    session,
    [
      `UPDATE millrace.stream_table SET schedule = $1 ->> 'schedule', options = options || ($1 -> 'options'),
              next_refresh_at = CASE WHEN schedule IS DISTINCT FROM $1 ->> 'schedule' THEN NULL ELSE next_refresh_at END
        WHERE relation_id = ($1 ->> 'id')::bigint`,
      optionsSql,
    ],
    { id: found.id, schedule, options: checkedOptions(given) },
  )) as Arguments;
  await alterStatus(session, requiredText(given, 'name'), given['status']);
  const newQuery = isGiven(given['query']) ? requiredText(given, 'query') : query;
  // The query that it has, said again, is asked for anew when it could not be kept for what its tables had become.
  const isSame = newQuery === query && (found.state !== 'error' || !isGiven(given['query']));
  if (isSame && mode === old.mode) return;
  await replaceQuery(context, session, role, found, { query: newQuery, schedule, mode, options }, old.mode);
}

/** As they were given when it was made, or later. That it was not to be filled at first is no matter any more. */
const optionsSql = "SELECT options - 'initialize' FROM millrace.stream_table WHERE relation_id = ($1 ->> 'id')::bigint";

/** reinitialize_stream_table of one whose sources are no longer what it was planned for: the same query, planned for what they are now. */
export async function planAgain(context: StatementContext, session: CallerSession, given: Arguments): Promise<boolean> {
  const { role, found, query, definition, schedule, mode } = await ownStreamTable(context, session, given);
  const options = (await perform(context, session, [optionsSql], { id: found.id })) as Arguments;
  const wanted: Wanted = { query: definition, typed: query, schedule: mode === 'IMMEDIATE' ? null : schedule, mode, options };
  await replaceQuery(context, session, role, found, wanted, mode);
  return true;
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
