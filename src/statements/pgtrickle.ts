/**
 * Statements that call functions of schema pgtrickle.
 * Invariant: the statement itself runs upstream, whatever it is made of; Millrace first does what its calls ask for, in the same
 * transaction, and leaves the answers where the functions find them (millrace.carried_out). Arguments are what Postgres says they are.
 */
import { millraceError } from '../errors.ts';
import { type PgtrickleCall, type PgtrickleUse, pgtrickleUse } from '../sql/pgtrickle.ts';
import { loadPostgresParser } from '../sql/postgres-parser.ts';
import type { CallerSession, Question, StatementResult } from './caller-session.ts';
import { firstRow, requireCatalog, type StatementContext } from './context.ts';
import { explainDeltas, explainStreamTable, validateQuery } from './pgtrickle-explain.ts';
import { awaitRefreshes } from './refresh-wait.ts';
import { type Arguments, invalidArgument, requiredText } from './stream-table-options.ts';
import { alterStreamTable, createStreamTable, planAgain } from './stream-tables.ts';
import { isWaiting } from './wait.ts';

type Work = (context: StatementContext, session: CallerSession, given: Arguments) => Promise<unknown>;

interface Carried {
  readonly writes: boolean;
  readonly work: Work;
}

/** What Millrace carries out. A function that writes is one only where it runs exactly once. */
const carried: ReadonlyMap<string, Carried> = new Map<string, Carried>([
  ['create_stream_table', { writes: true, work: (context, session, given) => createStreamTable(context, session, given, 'raise') }],
  [
    'create_stream_table_if_not_exists',
    { writes: true, work: (context, session, given) => createStreamTable(context, session, given, 'skip') },
  ],
  [
    'create_or_replace_stream_table',
    { writes: true, work: (context, session, given) => createStreamTable(context, session, given, 'replace') },
  ],
  ['alter_stream_table', { writes: true, work: alterStreamTable }],
  ['reinitialize_stream_table', { writes: true, work: planAgain }],
  ['bulk_create', { writes: true, work: bulkCreate }],
  ['bulk_alter_stream_tables', { writes: true, work: bulkAlter }],
  ['exec_stream_ddl', { writes: true, work: streamDdl }],
  ['validate_query', { writes: false, work: validateQuery }],
  ['explain_st', { writes: false, work: explainStreamTable }],
  [
    'explain_stream_table',
    {
      writes: false,
      work: async (context, session, given) =>
        (await explainStreamTable(context, session, given)).map(({ property, value }) => `${property}: ${value}`).join('\n'),
    },
  ],
  ['explain_diff_sql', { writes: false, work: explainDeltas }],
]);

/** Functions that ask for a refresh, which the statement then waits for. */
const refreshing = /\b(?:refresh_stream_table|refresh_if_stale|write_and_refresh|reinitialize_stream_table|repair_stream_table)\b/i;

/** Whether Millrace has a part in the statement. Sees to it that there is a catalog when the statement names anything of pgtrickle. */
export async function claimsPgtrickle(context: StatementContext, session: CallerSession, text: string): Promise<boolean> {
  await loadPostgresParser();
  const use = pgtrickleUse(text);
  if (!use.uses) return false;
  if (!context.ownPgtrickle.has(session.database)) {
    if (await belongsToOthers(session)) return false;
    await requireCatalog(context, session);
    context.ownPgtrickle.add(session.database);
  }
  return use.isCall || callsOf(use).length > 0 || refreshing.test(text);
}

/** The extension pg_trickle is there: its functions answer. */
async function belongsToOthers(session: CallerSession): Promise<boolean> {
  const row = await firstRow(
    session,
    "SELECT pg_catalog.to_regnamespace('pgtrickle') IS NOT NULL AND pg_catalog.to_regproc('millrace.carried_out') IS NULL",
  );
  return row?.[0] === 't';
}

function callsOf(use: PgtrickleUse): readonly PgtrickleCall[] {
  return use.calls.filter((call) => {
    const known = carried.get(call.name);
    return known !== undefined && (call.once || !known.writes);
  });
}

/** What the upstream is to run. A call of validate_query alone shows its columns, as pg_trickle's documentation does; CALL becomes SELECT. */
export function upstreamText(text: string): string {
  const { single, isCall } = pgtrickleUse(text);
  if (single !== null && single.name === 'validate_query') return `SELECT * FROM ${single.text}`;
  return isCall && single !== null ? `SELECT ${single.text}` : text;
}

export async function runPgtrickle(context: StatementContext, session: CallerSession, text: string): Promise<StatementResult> {
  await loadPostgresParser();
  const answers: Record<string, unknown> = {};
  for (const call of callsOf(pgtrickleUse(text))) {
    const known = carried.get(call.name);
    if (known === undefined) continue;
    if (known.writes) await requireWritable(session, call.name);
    for (const asked of await argumentsOf(session, call)) {
      // A call among the arguments of another one has had its turn.
      if (asked.called !== call.name || asked.key in answers) continue;
      answers[asked.key] = (await known.work(context, session, asked.arguments)) ?? null;
    }
    await leave(session, { answers });
  }
  return { kind: 'forward', text: upstreamText(text), behind: finish(session) };
}

async function requireWritable(session: CallerSession, name: string): Promise<void> {
  const row = await firstRow(session, "SELECT pg_catalog.current_setting('transaction_read_only')");
  if (row?.[0] === 'on') throw millraceError('read_only_transaction', { tag: `pgtrickle.${name}()` });
}

interface Asked {
  readonly called: string;
  readonly arguments: Arguments;
  readonly key: string;
}

/** What the call is called with: Postgres evaluates it, and the function tells. */
async function argumentsOf(session: CallerSession, call: PgtrickleCall): Promise<readonly Asked[]> {
  const before = (await firstRow(session, "SELECT pg_catalog.current_setting('millrace.call', true)"))?.[0];
  const answers: unknown = before === '' || before === null || before === undefined ? {} : (JSON.parse(before) as Arguments)['answers'];
  await leave(session, { asked: [], answers: answers ?? {} });
  await session.query(`SELECT ${call.text}`, [], { quiet: true, bound: true });
  const state = (await firstRow(session, "SELECT pg_catalog.current_setting('millrace.call', true)"))?.[0] ?? '{}';
  return ((JSON.parse(state) as { asked?: readonly Asked[] }).asked ?? []) as readonly Asked[];
}

/** For the functions to find, until the transaction ends. */
async function leave(session: CallerSession, state: Readonly<Record<string, unknown>> | null): Promise<void> {
  await session.query("SELECT pg_catalog.set_config('millrace.call', $1, true)", [state === null ? '' : JSON.stringify(state)], {
    quiet: true,
  });
}

/** The statement has run: answers are for nobody else, and refreshes it has asked for are waited for. */
const finish = (session: CallerSession): Question => ({
  sql: `SELECT pg_catalog.current_setting('millrace.awaited', true), pg_catalog.current_setting('millrace.wait', true),
            pg_catalog.set_config('millrace.call', '', true), pg_catalog.set_config('millrace.awaited', '', true)`,
  answered: ([awaited, wait]) => {
    if (awaited !== null && awaited !== undefined && awaited !== '' && isWaiting(wait))
      awaitRefreshes(session, JSON.parse(awaited) as Record<string, number>);
  },
});

/** All or none: an element that cannot be created fails the statement. */
async function bulkCreate(context: StatementContext, session: CallerSession, given: Arguments): Promise<unknown> {
  const { definitions } = given;
  if (!Array.isArray(definitions)) throw invalidArgument('bulk_create() expects a JSONB array of stream table definitions');
  if (definitions.length === 0) throw invalidArgument('bulk_create() definitions array is empty');
  const created: unknown[] = [];
  for (const [index, element] of (definitions as unknown[]).entries()) {
    if (typeof element !== 'object' || element === null || Array.isArray(element)) {
      throw invalidArgument(`bulk_create() element [${index}] is not a JSON object`);
    }
    const one = element as Arguments;
    for (const required of ['name', 'query']) {
      if (typeof one[required] !== 'string') throw invalidArgument(`bulk_create() element [${index}] missing required '${required}'`);
    }
    const { id } = await createStreamTable(context, session, { schedule: 'calculated', ...one }, 'raise');
    created.push({ name: one['name'], status: 'created', pgt_id: id });
  }
  return created;
}

async function bulkAlter(context: StatementContext, session: CallerSession, given: Arguments): Promise<unknown> {
  const { names, params } = given;
  if (!Array.isArray(names)) throw invalidArgument('names must not be null');
  if (typeof params !== 'object' || params === null || Array.isArray(params)) throw invalidArgument('params must be a JSON object');
  for (const name of names as unknown[]) await alterStreamTable(context, session, { ...(params as Arguments), name });
  return names.length;
}

/** `CREATE [OR REPLACE] STREAM TABLE n AS SELECT ..` and `DROP STREAM TABLE n` as a text. */
async function streamDdl(context: StatementContext, session: CallerSession, given: Arguments): Promise<unknown> {
  const command = requiredText(given, 'cmd').trim();
  const created = /^create\s+(or\s+replace\s+)?stream\s+table\s+(\S+)(\s+as\s+([\s\S]+))?/i.exec(command);
  if (created !== null) {
    const [, replace, name, , query] = created;
    if (query === undefined) {
      throw millraceError('syntax_error', { message: 'missing AS keyword. Syntax: CREATE STREAM TABLE name AS SELECT ...' });
    }
    await createStreamTable(context, session, { name, query, schedule: 'calculated' }, replace === undefined ? 'raise' : 'replace');
    return true;
  }
  const dropped = /^drop\s+stream\s+table\s+(if\s+exists\s+)?([^\s;]+)\s*;?$/i.exec(command);
  if (dropped === null) {
    throw millraceError('syntax_error', {
      message:
        'exec_stream_ddl: unrecognised syntax. Expected CREATE [OR REPLACE] STREAM TABLE name AS SELECT ... or DROP STREAM TABLE name',
    });
  }
  const [, ifExists, name = ''] = dropped;
  const row = await firstRow(
    session,
    'SELECT s.pgt_id FROM pgtrickle.pgt_stream_tables s WHERE s.pgt_relid = pg_catalog.to_regclass($1)::oid',
    [name],
  );
  if (row === null && ifExists !== undefined) return true;
  await session.query('SELECT pgtrickle.drop_stream_table($1)', [name], { quiet: true });
  return true;
}
