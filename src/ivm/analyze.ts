/**
 * First step of planning: what a query is made of.
 * Invariant: nothing here depends on types; whatever does is asked for in the probes.
 */
import { quoteIdentifier } from '../sql/quote.ts';
import { type AggregateCall, groupTexts, knownAggregate, type TargetPiece, takeApart } from './aggregate-calls.ts';
import { functionsIn, hasWindow, type JoinReading, readJoin } from './join-source.ts';
import { renderFrom } from './relation-sql.ts';
import { applyEdits, occurrencesOf, type ResolvedQuery, resolveQuery } from './relations.ts';
import { type SelectParts, selectParts, textOrNull } from './select-parts.ts';
import { textOf } from './source-text.ts';
import { at, contains, type Fields, kindOf, list, strings, walk } from './tree.ts';
import type { Analysis, JoinSource, Occurrence, RelationLookup, TableName, Template } from './types.ts';

export interface ShapeTarget {
  readonly name: string;
  readonly text: string;
  /** Null: it cannot be put together from group expressions and aggregates. */
  readonly pieces: readonly TargetPiece[] | null;
  /** The relation and the place of the key column that this target is, if it is just that. */
  readonly key: { readonly relation: number; readonly index: number } | null;
}

/** A query whose FROM is a join of live relations. */
export interface JoinShape {
  readonly source: JoinSource;
  readonly targets: readonly ShapeTarget[];
  readonly distinct: boolean;
  readonly groups: readonly string[];
  readonly having: string | null;
  readonly calls: readonly AggregateCall[];
  /** Something asks for groups: GROUP BY, HAVING, or one of the known aggregates. */
  readonly grouped: boolean;
  /** Functions in the target list and HAVING, which may turn out to be aggregates or to return sets. */
  readonly outerFunctions: readonly string[];
  /** Functions elsewhere, which must be plain. */
  readonly innerFunctions: readonly string[];
  /** Columns named in arguments of numeric aggregates: probed behind groups and arguments. */
  readonly argumentColumns: readonly string[];
}

export interface Shape {
  readonly whole: Template;
  readonly occurrences: readonly Occurrence[];
  readonly columns: readonly string[];
  /** Null with the reason in `notJoined`. */
  readonly join: JoinShape | null;
  readonly notJoined: string;
}

/** `Analysis` with its shape known. */
export interface ReadAnalysis extends Analysis {
  readonly shape: Shape;
}

/**
 * Reads the defining query (as pg_get_viewdef prints it) over the relations that `lookup` finds. Throws feature_not_supported for queries
 * without a defined answer. `loadViewParser()` must have finished before. Probes read `storage` of the inputs.
 */
export function analyzeView(query: string, lookup: RelationLookup, storage: TableName = (id) => `millrace_data.s${id}`): ReadAnalysis {
  const resolved = resolveQuery(query, lookup);
  const { source, mentions } = resolved;
  const edits = mentions.map(({ place }, relation) => ({ place, piece: { relation } }));
  const all = occurrencesOf(resolved).map((occurrence) => ({ ...occurrence, used: null }));
  const read = readShape(resolved);
  const join = typeof read === 'string' ? null : read;
  const shape: Shape = {
    whole: applyEdits(source.text, { start: 0, end: source.text.length }, edits),
    occurrences: all,
    columns: columnNames(source.select),
    join,
    notJoined: typeof read === 'string' ? read : '',
  };
  return {
    inputs: [...new Set(mentions.map((mention) => mention.relation.id))].sort((a, b) => a - b),
    functions: functionsIn(source.select),
    probeSql: join === null ? null : probeSql(join, storage),
    hashableSql: join === null ? null : hashableSql(join, storage),
    shape,
  };
}

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

/** A column reference as SQL; also a key to find it by. */
export function columnText(fields: Fields): string {
  return strings(fields['fields']).map(quoteIdentifier).join('.');
}

function probeSql(join: JoinShape, storage: TableName): string | null {
  const expressions = probedExpressions(join);
  if (expressions.length === 0) return null;
  return `SELECT ${expressions.map((text, i) => `${text} AS p${i + 1}`).join(', ')}\n${fromWhere(join.source, storage)}\nLIMIT 0`;
}

/** What the columns of the probe are: groups, then arguments of the aggregates that have one, then columns in those. */
export function probedExpressions(join: JoinShape): string[] {
  return [...join.groups, ...join.calls.flatMap((call) => (call.argument === null ? [] : [call.argument])), ...join.argumentColumns];
}

/**
 * The outer join gives typed NULLs, so that the hash functions are looked up without a row being read. Row hashes use the default
 * collation of a type, so a key under a collation that takes different texts for equal cannot be found by them.
 */
function hashableSql(join: JoinShape, storage: TableName): string | null {
  if (join.groups.length === 0) return null;
  const names = join.groups.map((_, i) => `k${i + 1}`);
  const keys = join.groups.map((text, i) => `${text} AS k${i + 1}`).join(', ');
  const deterministic = names.map(
    (name) => `
  AND CASE WHEN (SELECT t.typcollation FROM pg_catalog.pg_type t WHERE t.oid = pg_catalog.pg_typeof(q.${name})) <> 0 THEN
    (SELECT c.collisdeterministic FROM pg_catalog.pg_collation c WHERE c.oid = pg_catalog.pg_collation_for(q.${name})::regcollation)
  END IS NOT FALSE`,
  );
  return `SELECT pg_catalog.hash_record_extended(ROW(q.*), 0) IS NOT NULL${deterministic.join('')}
FROM (SELECT) one LEFT JOIN (SELECT ${keys} ${fromWhere(join.source, storage)} LIMIT 0) q ON true`;
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
