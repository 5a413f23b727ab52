/**
 * First step of planning: what a query is made of.
 * Invariant: nothing here depends on types; whatever does is asked for in the probes.
 */
import { MillraceError } from '../errors.ts';
import { quoteIdentifier } from '../sql/quote.ts';
import { type AggregateCall, groupTexts, knownAggregate, takeApart } from './aggregate-calls.ts';
import { NotRewritable } from './ast.ts';
import { overClock } from './clock.ts';
import { type Expiry, expiryOf, hasClock } from './expiry.ts';
import { functionsIn, hasWindow, type JoinReading, readJoin } from './join-source.ts';
import { normalise, refuseUnknown } from './normalise.ts';
import type { FunctionKinds } from './query-parts.ts';
import { renderFrom, renderTemplate } from './relation-sql.ts';
import { applyEdits, occurrencesOf, type ResolvedQuery, resolvedText, resolveQuery } from './relations.ts';
import { type SelectParts, selectParts, textOrNull } from './select-parts.ts';
import { columnText, type JoinShape, type Shape, type ShapeTarget } from './shape.ts';
import { textOf } from './source-text.ts';
import { splitQuery } from './split.ts';
import { draftRelation, type ReadStage, readStage } from './staged.ts';
import { at, contains, type Fields, kindOf, list, strings, walk } from './tree.ts';
import type { Analysis, JoinSource, LiveRelation, RelationLookup, TableName } from './types.ts';

/** The query as stages; or why it cannot be. */
export interface StagedReading {
  readonly stages: readonly ReadStage[];
  readonly live: readonly LiveRelation[];
  readonly problem: string | null;
}

/** `Analysis` with its shape known. */
export interface ReadAnalysis extends Analysis {
  readonly shape: { readonly single: Shape; readonly staged: StagedReading; readonly clock: boolean; readonly expiry: Expiry | null };
}

/** Names of the functions that the query calls, plain views looked through: what `analyzeView` wants to know more of. */
export function viewFunctions(query: string, lookup: RelationLookup): string[] {
  return functionsIn(resolveQuery(query, lookup).source.select);
}

/**
 * Reads the defining query (as pg_get_viewdef prints it) over the relations that `lookup` finds. Throws feature_not_supported for queries
 * without a defined answer. `loadViewParser()` must have finished before. Probes read `storage` of the inputs. `functions`: what is known of
 * those that `viewFunctions` names. `clock`: the time as a relation, which a query that only compares it reads then.
 */
export function analyzeView(
  query: string,
  lookup: RelationLookup,
  storage: TableName = (id) => `millrace_data.s${id}`,
  functions: FunctionKinds = {},
  clock: LiveRelation | null = null,
): ReadAnalysis {
  const given = resolveQuery(query, lookup);
  const expiry = readsClock(given.source.select) ? readExpiry(given, functions) : null;
  const resolved = clock === null || expiry === null ? given : overClockOf(given, clock, functions);
  const { source, mentions } = resolved;
  const edits = mentions.map(({ place }, relation) => ({ place, piece: { relation } }));
  const all = occurrencesOf(resolved).map((occurrence) => ({ ...occurrence, used: null }));
  const read = readShape(resolved);
  const join = typeof read === 'string' ? null : read;
  const single: Shape = {
    whole: applyEdits(source.text, { start: 0, end: source.text.length }, edits),
    occurrences: all,
    columns: columnNames(source.select),
    join,
    notJoined: typeof read === 'string' ? read : '',
  };
  const staged = readStages(resolved, functions);
  const probe = probeSql(single, staged, storage);
  return {
    inputs: [...new Set(mentions.map((mention) => mention.relation.id))].sort((a, b) => a - b),
    functions: functionsIn(source.select),
    probeSql: probe,
    singleProbeSql: probeSql(single, { ...staged, stages: [] }, storage),
    stagesSql: staged.stages.length === 0 ? null : stagesSql(single, probe),
    hashableSql: [
      ...(join === null || join.groups.length === 0 ? [] : [hashableSql(join.groups, fromWhere(join.source, storage))]),
      ...staged.stages.flatMap((stage) => {
        const groups = stage.shape.join?.groups ?? [];
        return groups.length === 0 ? [] : [withStages(staged, storage) + hashableSql(groups, stageFrom(stage, storage))];
      }),
    ],
    shape: { single, staged, clock: readsClock(source.select), expiry },
  };
}

function readStages(resolved: ResolvedQuery, functions: FunctionKinds): StagedReading {
  const { live } = resolved;
  try {
    const select = normalise(resolved.source.select, live);
    refuseUnknown(select);
    const stages = splitQuery(select, live, functions);
    const relations = (stage: boolean, number: number): LiveRelation => {
      const relation = stage ? draftRelation(number, stages[number]?.columns ?? []) : live[number];
      if (relation === undefined) throw new NotRewritable('a relation that is not known');
      return relation;
    };
    return { stages: stages.map((stage) => readStage(stage, relations, functions)), live, problem: null };
  } catch (error) {
    // Whatever is not understood is kept as a whole; parts of queries are parsed, too.
    if (!(error instanceof NotRewritable || error instanceof MillraceError)) throw error;
    return { stages: [], live, problem: error.message };
  }
}

function overClockOf({ source, live }: ResolvedQuery, clock: LiveRelation, functions: FunctionKinds): ResolvedQuery {
  return resolvedText(overClock(normalise(source.select, live), live.length, functions), [...live, clock]);
}

function readExpiry({ source, live }: ResolvedQuery, functions: FunctionKinds): Expiry | null {
  try {
    return expiryOf(normalise(source.select, live), live, functions);
  } catch (error) {
    if (!(error instanceof NotRewritable || error instanceof MillraceError)) throw error;
    return null;
  }
}

/** It calls the time, or another SQL value function. */
const readsClock = (select: Fields): boolean => contains(select, new Set(['SQLValueFunction'])) || hasClock(select);

/** The reading, or why the query cannot be taken apart. */
function readShape(resolved: ResolvedQuery): JoinShape | string {
  const { source } = resolved;
  const { select } = source;
  const problem = outerProblem(select);
  if (problem !== null) return problem;
  const parts = selectParts(source, select, 0, source.tokens.length);
  if (parts === null) return 'a layout of the query that is not known';
  const reading = readJoin(resolved, parts);
  return typeof reading === 'string' ? reading : readTargets(resolved, parts, reading);
}

function outerProblem(select: Fields): string | null {
  if (select['op'] !== 'SETOP_NONE') return 'a set operation';
  // Relations get hidden columns, which a whole row would show.
  if (contains(select, new Set(['A_Star']))) return 'a whole row';
  if (select['withClause'] !== undefined) return 'a common table expression';
  if (list(select['fromClause']).length === 0) return 'no FROM';
  if (select['limitCount'] !== undefined || select['limitOffset'] !== undefined) return 'LIMIT';
  if (list(select['windowClause']).length > 0 || hasWindow(select['targetList'])) return 'a window function';
  const distinct = list(select['distinctClause']);
  if (distinct.some((item) => kindOf(item).kind !== '')) return 'DISTINCT ON';
  const groups = list(select['groupClause']);
  if (select['groupDistinct'] === true || contains(groups, new Set(['GroupingSet']))) return 'grouping sets';
  if (distinct.length > 0 && (groups.length > 0 || select['havingClause'] !== undefined)) return 'DISTINCT over groups';
  return null;
}

function readTargets(resolved: ResolvedQuery, parts: SelectParts, reading: JoinReading): JoinShape | string {
  const { source } = resolved;
  const { select } = source;
  const distinct = list(select['distinctClause']).length > 0;
  const groupSpans = distinct
    ? parts.targets.map((target) => target.span)
    : parts.groups.map((group, i) => positional(list(select['groupClause'])[i], parts) ?? group);
  const calls: AggregateCall[] = [];
  const targets = parts.targets.map(
    (target, i): ShapeTarget => ({
      name: target.name,
      text: textOf(source, target.span),
      pieces: distinct ? [{ group: i }] : takeApart(source, target, groupSpans, calls),
      key: keyTarget(resolved, target.value),
    }),
  );
  const outer = [select['targetList'], select['havingClause']];
  const outerFunctions = functionsIn(outer);
  return {
    source: reading.source,
    targets,
    distinct,
    groups: groupTexts(source, groupSpans),
    having: textOrNull(source, parts.having),
    calls,
    grouped: groupSpans.length > 0 || parts.having !== null || outerFunctions.some((name) => knownAggregate(name) !== null),
    outerFunctions,
    innerFunctions: reading.functions,
    argumentColumns: argumentColumns(calls),
  };
}

/** GROUP BY 2 means the second target. */
function positional(group: unknown, parts: SelectParts): SelectParts['from'] | null {
  const position = at(group, 'A_Const', 'ival')?.['ival'];
  return typeof position === 'number' ? (parts.targets[position - 1]?.span ?? null) : null;
}

/** A target that is a bare key column of a relation at the top of FROM need not be stored twice. */
function keyTarget(resolved: ResolvedQuery, value: unknown): ShapeTarget['key'] {
  const names = strings(at(value, 'ColumnRef')?.['fields']);
  const column = names.at(-1);
  if (column === undefined || names.length > 2) return null;
  const top = new Set<unknown>();
  const collect = (item: unknown): void => {
    const { kind, fields } = kindOf(item);
    if (kind === 'RangeVar') top.add(fields);
    if (kind === 'JoinExpr') for (const side of [fields['larg'], fields['rarg']]) collect(side);
  };
  const items = list(resolved.source.select['fromClause']);
  for (const item of items) collect(item);
  const single = items.length === 1 && kindOf(items[0]).kind === 'RangeVar';
  const relation = resolved.mentions.findIndex((mention) => {
    const called = at(mention.fields, 'alias')?.['aliasname'] ?? mention.fields['relname'];
    return top.has(mention.fields) && !mention.renames && (names.length === 1 ? single : called === names[0]);
  });
  const found = resolved.mentions[relation]?.relation;
  const expression = found?.columns.find((candidate) => candidate.name === column)?.expression;
  const index = found?.key.findIndex((key) => expression === `s.${key}`) ?? -1;
  return index < 0 ? null : { relation, index };
}

function argumentColumns(calls: readonly AggregateCall[]): string[] {
  const names = new Set<string>();
  for (const call of calls) for (const name of columnsIn(call.argumentNode)) names.add(name);
  return [...names];
}

/** References to columns below a node, written as SQL. */
function columnsIn(value: unknown): string[] {
  const found: string[] = [];
  walk(value, (kind, fields) => {
    if (kind === 'ColumnRef') found.push(columnText(fields));
    return undefined;
  });
  return found;
}

/**
 * Types of what the single query asks for, then of what each stage asks for, then of what stages are ordered by, then of the outputs of the query and of its last stage.
 * Null when there is nothing to ask.
 */
function probeSql(single: Shape, staged: StagedReading, storage: TableName): string | null {
  const expressions = single.join === null ? [] : probedExpressions(single.join);
  const parts = single.join === null || expressions.length === 0 ? [] : [{ expressions, from: fromWhere(single.join.source, storage) }];
  for (const stage of staged.stages) {
    if (stage.probed.length > 0) parts.push({ expressions: [...stage.probed], from: stageFrom(stage, storage) });
  }
  staged.stages.forEach(({ stage }, i) => {
    if (stage.order === undefined || stage.order.length === 0) return;
    parts.push({ expressions: stage.order.map(({ column }) => `t.${quoteIdentifier(column)}`), from: `FROM "mr$stage${i + 1}" t` });
  });
  let count = 0;
  const items = parts.map(
    ({ expressions: list, from }, i) => `(SELECT ${list.map((text) => `${text} AS p${++count}`).join(', ')}\n${from}) a${i}`,
  );
  if (staged.stages.length > 0) {
    const whole = renderTemplate(single.whole, single.occurrences, { storage });
    const outputs = (letter: string): string => single.columns.map((_, i) => `${letter}${i + 1}`).join(', ');
    items.push(`(${whole}) o(${outputs('o')})`, `"mr$stage${staged.stages.length}" f(${outputs('f')})`);
  }
  return items.length === 0 ? null : `${withStages(staged, storage)}SELECT *\nFROM ${items.join(', ')}\nLIMIT 0`;
}

/** The probe can be run, and the outputs of the last stage have the collations of the query's own. */
function stagesSql(single: Shape, probe: string | null): string {
  const same = single.columns.map(
    (_, i) => `
  AND CASE WHEN (SELECT t.typcollation FROM pg_catalog.pg_type t WHERE t.oid = pg_catalog.pg_typeof(q.o${i + 1})) <> 0 THEN
    pg_catalog.pg_collation_for(q.o${i + 1}) IS NOT DISTINCT FROM pg_catalog.pg_collation_for(q.f${i + 1})
  ELSE true END`,
  );
  return `SELECT true${same.join('')}\nFROM (SELECT) one LEFT JOIN (${probe}) q ON true`;
}

/** Stages as common table expressions, for probes. */
function withStages(staged: StagedReading, storage: TableName): string {
  const ctes = staged.stages.map(
    ({ stage, text }, i) =>
      `"mr$stage${i + 1}"(${stage.columns.map(quoteIdentifier).join(', ')}) AS (${renderTemplate(text.template, text.occurrences, { storage: stageStorage(storage) })})`,
  );
  return ctes.length === 0 ? '' : `WITH ${ctes.join(', ')}\n`;
}

const stageStorage =
  (storage: TableName): TableName =>
  (input) =>
    input < 0 ? `"mr$stage${-input}"` : storage(input);

/** FROM of a stage, for probes. */
function stageFrom(stage: ReadStage, storage: TableName): string {
  if (stage.over === null) return '';
  return renderTemplate(stage.over.template, stage.over.occurrences, { storage: stageStorage(storage) }).slice('SELECT 1 '.length);
}

/** What the columns of the probe are: groups, then arguments of the aggregates that have one, then columns in those. */
export function probedExpressions(join: JoinShape): string[] {
  return [...join.groups, ...join.calls.flatMap((call) => (call.argument === null ? [] : [call.argument])), ...join.argumentColumns];
}

/**
 * The outer join gives typed NULLs, so that the hash functions are looked up without a row being read. Row hashes use the default
 * collation of a type, so a key under a collation that takes different texts for equal cannot be found by them.
 */
function hashableSql(groups: readonly string[], from: string): string {
  const names = groups.map((_, i) => `k${i + 1}`);
  const keys = groups.map((text, i) => `${text} AS k${i + 1}`).join(', ');
  const deterministic = names.map(
    (name) => `
  AND CASE WHEN (SELECT t.typcollation FROM pg_catalog.pg_type t WHERE t.oid = pg_catalog.pg_typeof(q.${name})) <> 0 THEN
    (SELECT c.collisdeterministic FROM pg_catalog.pg_collation c WHERE c.oid = pg_catalog.pg_collation_for(q.${name})::regcollation)
  END IS NOT FALSE`,
  );
  return `SELECT pg_catalog.hash_record_extended(ROW(q.*), 0) IS NOT NULL${deterministic.join('')}
FROM (SELECT) one LEFT JOIN (SELECT ${keys} ${from} LIMIT 0) q ON true`;
}

function fromWhere(source: JoinSource, storage: TableName): string {
  return `FROM ${renderFrom(source, { storage })}`;
}

/** Output names: of the first arm of a set operation, as in Postgres. */
function columnNames(select: Fields): string[] {
  const left = at(select, 'larg');
  if (left !== undefined) return columnNames(left);
  if (list(select['valuesLists']).length > 0) {
    const row = at(list(select['valuesLists'])[0], 'List');
    return list(row?.['items']).map((_, i) => `column${i + 1}`);
  }
  return list(select['targetList']).map((entry) => {
    const fields = at(entry, 'ResTarget') ?? {};
    if (typeof fields['name'] === 'string') return fields['name'];
    return strings(at(fields['val'], 'ColumnRef')?.['fields']).at(-1) ?? '?column?';
  });
}
