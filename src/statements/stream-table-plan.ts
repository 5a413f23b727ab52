/**
 * A stream table's query, from its text to the way it is kept.
 * Invariant: Postgres resolves names and checks the caller's rights (a view of the caller's own that lives for a moment);
 * what is kept afterwards refers to relations by id and columns by attnum.
 */
import { MillraceError, millraceError } from '../errors.ts';
import { analyzeView, type ReadAnalysis, viewFunctions } from '../ivm/analyze.ts';
import { expirySql } from '../ivm/expiry.ts';
import { planView } from '../ivm/plan-view.ts';
import type { ViewPlan } from '../ivm/plans.ts';
import { loadViewParser } from '../ivm/source-text.ts';
import type { ProbeResult } from '../ivm/types.ts';
import { namedWithOnly } from '../sql/postgres-parser.ts';
import { quoteIdentifier, quoteLiteral, quoteQualified } from '../sql/quote.ts';
import { type CallerSession, GivenQueryError, UpstreamError } from './caller-session.ts';
import { type CallerRole, firstRow, perform, type StatementContext } from './context.ts';
import { probe } from './materialized-views.ts';
import { facadeOid } from './sources.ts';
import { asOneTable, notCapturable, notTriggerable, readSources, type Sources, type SourceTable } from './stream-table-sources.ts';
import { functionKinds, functionsOfView, timely, type UnstableFunction } from './view-functions.ts';

export const scratch = 'pg_temp.millrace_new_view';
const scratchPrefix = 'CREATE TEMPORARY VIEW millrace_new_view AS ';

export interface Definition {
  /** The query as Postgres prints it, every relation named in full. */
  readonly text: string;
  readonly sources: Sources;
  readonly analysis: ReadAnalysis;
  readonly functions: ProbeResult['functions'];
  /** A function in it whose result changes although no row does. */
  readonly unstable: UnstableFunction | null;
}

/** The statement that makes the view, for those who want to make it themselves. */
export function scratchView(query: string): string {
  return scratchPrefix + trimmed(query);
}

/** The query without the semicolons behind it, which a view cannot have. */
function trimmed(query: string): string {
  return query.replace(/[\s;]+$/, '');
}

/** Makes the scratch view. A fault of the query is shown in the query's own text, as Postgres shows it for texts inside a function. */
export async function createScratch(session: CallerSession, query: string): Promise<void> {
  try {
    await session.query('DROP VIEW IF EXISTS pg_temp.millrace_new_view', [], { quiet: true });
    await session.query(scratchView(query), [], { quiet: true });
    await session.query(`SELECT * FROM ${scratch} LIMIT 0`, [], { quiet: true });
  } catch (error) {
    if (!(error instanceof UpstreamError)) throw error;
    const { P: position, ...fields } = error.fields;
    const inner = Number(position) - scratchPrefix.length;
    throw position === undefined || inner < 1 ? error : new GivenQueryError({ ...fields, p: String(inner), q: trimmed(query) });
  }
}

export async function dropScratch(session: CallerSession): Promise<void> {
  await session.query(`DROP VIEW ${scratch}`, [], { quiet: true });
}

/** Reads the scratch view. Raises for what no refresh mode can keep. */
export async function readDefinition(context: StatementContext, session: CallerSession, role: CallerRole): Promise<Definition> {
  await loadViewParser();
  const text = (await firstRow(session, `SELECT millrace.definition_of('${scratch}'::regclass)`))?.[0] ?? '';
  const sources = await readSources(context, session, scratch, role);
  const plain = sources.read.filter((relation) => relation.kind === 'plain view');
  const functions = await functionKinds(context, session, viewFunctions(text, sources.lookup));
  requireWholeTables(
    [text, ...plain.map((relation) => relation.query ?? '')],
    sources.tables.filter((table) => table.kind === 'p' || table.hasChildren),
  );
  await requireNoRowTypes(session, sources);
  const analysis = analyzeView(text, sources.lookup, sources.storage, functions);
  const unstable = await functionsOfView(
    context,
    session,
    [await facadeOid(session, scratch), ...plain.map((relation) => relation.oid)],
    [text, ...plain.map((relation) => relation.query ?? '')],
    role,
  );
  return { text, sources, analysis, functions, unstable };
}

/** Rows are read from a table with all below it. */
function requireWholeTables(queries: readonly string[], parents: readonly SourceTable[]): void {
  const named = queries.flatMap((query) => (parents.length === 0 ? [] : namedWithOnly(query)));
  const table = parents.find((parent) => named.some(({ schema, name }) => schema === parent.schema && name === parent.name));
  if (table === undefined) return;
  const shown = quoteQualified(table.schema, table.name);
  throw millraceError('feature_not_supported', { message: `ONLY ${shown} in a stream table: it is read with the tables below it` });
}

/** A column kept with the row type of a table would keep the table from being altered or dropped. */
async function requireNoRowTypes(session: CallerSession, { tables }: Sources): Promise<void> {
  const row = await firstRow(
    session,
    `SELECT a.attname, t.typrelid::pg_catalog.regclass
       FROM pg_catalog.pg_attribute a
       JOIN pg_catalog.pg_type shown ON shown.oid = a.atttypid
       JOIN pg_catalog.pg_type t ON t.oid IN (shown.oid, shown.typelem)
      WHERE a.attrelid = $1::pg_catalog.regclass AND a.attnum > 0 AND t.typrelid = ANY ($2::oid[])`,
    [scratch, `{${tables.map((table) => table.oid).join(',')}}`],
  );
  if (row === null) return;
  throw millraceError('feature_not_supported', {
    message: `column ${quoteIdentifier(row[0] ?? '')} of the stream table would have the row type of table ${row[1]}: name its columns instead`,
  });
}

export type Chosen =
  | { readonly mode: 'IMMEDIATE'; readonly plan: ViewPlan }
  | { readonly mode: 'DIFFERENTIAL'; readonly plan: ViewPlan }
  /** `reason`: why not DIFFERENTIAL. `possible`: the compiler keeps it by changes, only that each of them makes it compute the whole again. */
  | { readonly mode: 'FULL'; readonly plan: ViewPlan; readonly reason: string; readonly possible: boolean };

/** The best way to keep it. */
export async function choosePlan(context: StatementContext, session: CallerSession, definition: Definition, id: number): Promise<Chosen> {
  const reason = notDifferential(definition);
  if (reason !== null) return { mode: 'FULL', plan: fullPlan(definition, reason), reason, possible: false };
  const { analysis, functions } = definition;
  let plan: ViewPlan;
  try {
    plan = planView(analysis, await probe(context, session, analysis, functions, id));
  } catch (error) {
    if (!(error instanceof MillraceError) || error.condition !== 'feature_not_supported') throw error;
    return { mode: 'FULL', plan: fullPlan(definition, error.message), reason: error.message, possible: false };
  }
  if (plan.clock) return await chooseByTime(context, session, definition, plan);
  if (plan.body.kind === 'rows' && plan.body.source.occurrences.some((occurrence) => occurrence.key.length === 0)) {
    const why = 'rows of a relation without a key cannot be found again';
    return { mode: 'FULL', plan: fullPlan(definition, why), reason: why, possible: true };
  }
  return plan.reason.way === 'full' ? { mode: 'FULL', plan, reason: plan.reason.reason, possible: true } : { mode: 'DIFFERENTIAL', plan };
}

/** The plan for a refresh by the whole query, whatever else would be possible. */
export function fullPlan({ analysis }: Definition, reason: string): ViewPlan {
  const { single: shape, clock } = analysis.shape;
  const way = { way: 'full', reason } as const;
  const columns = shape.columns.map((_, i) => `c${i + 1}`);
  return {
    version: 2,
    inputs: analysis.inputs,
    reason: way,
    last: way,
    stages: [],
    clock,
    columns: shape.columns.map((name, i) => ({ name, expression: `s.${quoteIdentifier(columns[i] ?? '')}` })),
    key: ['rid'],
    body: { kind: 'whole', query: shape.whole, occurrences: shape.occurrences, columns },
  };
}

function notDifferential({ sources, unstable, analysis }: Definition): string | null {
  if (unstable !== null && !(timely.has(unstable.name) && analysis.shape.expiry !== null)) {
    return unstable.volatile
      ? `Defining query contains volatile expressions (e.g., ${unstable.name}()), whose result no change tells of`
      : `The result of ${unstable.name}() changes although no row changes`;
  }
  for (const table of sources.tables) {
    const why = notCapturable(table, sources.streams);
    if (why !== null) return why;
  }
  return null;
}

/** A result that changes with the time: computed again when its inputs change, and when the next of its instants has come. */
async function chooseByTime(context: StatementContext, session: CallerSession, { sources }: Definition, plan: ViewPlan): Promise<Chosen> {
  const asked = plan.expiry == null ? null : `SELECT count(*) >= 0 FROM (${expirySql(plan.expiry, sources.storage)}) x`;
  const told = asked !== null && (await perform(context, session, [`SELECT to_jsonb(millrace.holds(${quoteLiteral(asked)}))`])) === true;
  if (told) return { mode: 'DIFFERENTIAL', plan };
  const reason = 'its result changes with the time, and when cannot be told';
  return { mode: 'FULL', plan, reason, possible: false };
}

/** The way to keep it within the statements that write to its tables. Raises when there is none. */
export async function chooseImmediate(
  context: StatementContext,
  session: CallerSession,
  definition: Definition,
  id: number,
): Promise<Chosen> {
  const { sources } = definition;
  const live = sources.read.find(
    (relation) => relation.kind === 'table' || (relation.kind === 'view' && !sources.tables.some(({ holds }) => holds === relation)),
  );
  const problem =
    live === undefined
      ? (sources.tables.map(notTriggerable).find((why) => why !== null) ?? null)
      : `${quoteQualified(live.schema, live.name)} is kept by Millrace itself, not within the statements of those who write`;
  if (problem !== null) throw notImmediate(problem);
  const tables = sources.tables.map(asOneTable);
  const chosen = await choosePlan(context, session, { ...definition, sources: { ...sources, tables, streams: false } }, id);
  if (chosen.mode === 'FULL') throw notImmediate(chosen.reason);
  if (chosen.plan.clock === true) throw notImmediate('its result changes with the time, when nobody writes');
  return { mode: 'IMMEDIATE', plan: chosen.plan };
}

function notImmediate(reason: string): MillraceError {
  return millraceError('feature_not_supported', { message: `refresh_mode 'IMMEDIATE' cannot keep this query: ${reason}` });
}

/** Raises unless it can be kept by changes. */
export function requireDifferential(chosen: Chosen): void {
  if (chosen.mode === 'FULL' && !chosen.possible) throw millraceError('unsupported_operator', { message: chosen.reason });
}
