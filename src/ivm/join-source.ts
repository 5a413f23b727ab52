/**
 * FROM and WHERE as a join of live relations, where they are one.
 * Invariant: what passes is multilinear in its relations: inner joins, filters and projections, nested ones too, with duplicates kept.
 * Then a change of the result is a sum of terms with changes in place of relations (Gupta, Mumick, Subrahmanian 1993).
 */

import { equalities } from './linear-source.ts';
import { fromAliases, innerItems } from './query-parts.ts';
import { applyEdits, type Edit, occurrencesOf, type ResolvedQuery } from './relations.ts';
import { type SelectParts, selectParts, textOrNull } from './select-parts.ts';
import type { Source } from './source-text.ts';
import { at, contains, type Fields, functionName, kindOf, list, node, walk } from './tree.ts';
import type { JoinSource } from './types.ts';

/** Expressions that look beyond one row. */
const beyondRow: ReadonlySet<string> = new Set(['SubLink', 'GroupingFunc', 'JsonObjectAgg', 'JsonArrayAgg', 'SetToDefault']);

export interface JoinReading {
  readonly source: JoinSource;
  /** Functions called in FROM, WHERE and nested target lists: none may be an aggregate or return a set. */
  readonly functions: readonly string[];
}

/** The reading, or why there is none (a phrase for "... needs the whole query"). */
export function readJoin(resolved: ResolvedQuery, parts: SelectParts): JoinReading | string {
  const { source, mentions } = resolved;
  const { select } = source;
  const edits: Edit[] = mentions.map(({ place }, relation) => ({ place, piece: { relation } }));
  const problem = list(select['fromClause']).map((item) => readItem(resolved, item, edits));
  for (const found of problem) if (found !== null) return found;
  if (contains([select['whereClause'], select['targetList'], select['groupClause'], select['havingClause']], beyondRow)) {
    return 'a subquery in an expression';
  }
  if (mentions.some(({ place }) => place.start < parts.from.start || place.end > parts.from.end)) return 'a subquery outside of FROM';
  const joined = mentions.length > 1 ? equalities(select, placesOf(resolved)) : [];
  return {
    source: {
      from: applyEdits(source.text, parts.from, edits),
      where: textOrNull(source, parts.where),
      occurrences: occurrencesOf(resolved),
      ...(joined.length > 0 ? { joined } : {}),
    },
    functions: functionsIn([select['fromClause'], select['whereClause']]),
  };
}

/** Relations that stand in FROM themselves, by alias. */
function placesOf({ source, mentions }: ResolvedQuery): ReadonlyMap<string, number> {
  const leaves = innerItems(list(source.select['fromClause']))?.leaves ?? [];
  return new Map(
    leaves.flatMap((leaf) => {
      const relation = mentions.findIndex((mention) => mention.fields === kindOf(leaf).fields && !mention.renames);
      const [alias] = fromAliases(leaf);
      return relation < 0 || alias === undefined ? [] : [[alias, relation] as const];
    }),
  );
}

/** Names of the functions called below a node, each once. */
export function functionsIn(value: unknown): string[] {
  const names = new Set<string>();
  walk(value, (kind, fields) => {
    if (kind === 'FuncCall') names.add(functionName(fields));
    return undefined;
  });
  return [...names];
}

function readItem(resolved: ResolvedQuery, item: unknown, edits: Edit[]): string | null {
  const { kind, fields } = kindOf(item);
  switch (kind) {
    case 'RangeVar':
      return resolved.mentions.some((mention) => mention.fields === fields) ? null : 'a common table expression';
    case 'JoinExpr':
      return readJoinItem(resolved, fields, edits);
    case 'RangeSubselect':
      return readSubselect(resolved, fields, edits);
    case 'RangeFunction':
      return 'a function in FROM';
    default:
      return 'an item of FROM that is neither a table nor a join';
  }
}

function readJoinItem(resolved: ResolvedQuery, fields: Fields, edits: Edit[]): string | null {
  if (fields['jointype'] !== 'JOIN_INNER') return 'an outer join';
  // An alias on a join names its columns by position, where hidden columns would be in the way.
  if (fields['alias'] !== undefined || fields['join_using_alias'] !== undefined || fields['isNatural'] === true)
    return 'an alias on a join';
  if (contains(fields['quals'], beyondRow)) return 'a subquery in an expression';
  return readItem(resolved, fields['larg'], edits) ?? readItem(resolved, fields['rarg'], edits);
}

function readSubselect(resolved: ResolvedQuery, fields: Fields, edits: Edit[]): string | null {
  const { source } = resolved;
  const select = at(fields, 'subquery', 'SelectStmt');
  if (fields['lateral'] === true || select === undefined) return 'LATERAL';
  const problem = nestedProblem(select);
  if (problem !== null) return problem;
  const first = selectKeyword(source, select);
  const opening = first === null ? -1 : first - 1;
  const end = source.tokens[opening]?.partner ?? -1;
  const parts = first === null || end < 0 ? null : selectParts(source, select, first, end);
  if (parts === null || first === null) return 'a subquery in FROM of unknown layout';
  for (const item of list(select['fromClause'])) {
    const inner = readItem(resolved, item, edits);
    if (inner !== null) return inner;
  }
  const start = source.tokens[first]?.start ?? 0;
  const stop = source.tokens[end]?.start ?? 0;
  const pass = resolved.mentions.flatMap(({ place }, i) => (place.start > start && place.end < stop ? [i] : []));
  edits.push({ place: { start: parts.targetsEnd, end: parts.targetsEnd }, piece: { pass } });
  return null;
}

/** Why a subquery in FROM is not a plain select-project-join. */
function nestedProblem(select: Fields): string | null {
  if (select['op'] !== 'SETOP_NONE') return 'a set operation in FROM';
  if (list(select['valuesLists']).length > 0) return 'VALUES in FROM';
  if (select['withClause'] !== undefined) return 'a common table expression';
  if (list(select['distinctClause']).length > 0) return 'DISTINCT in FROM';
  if (list(select['groupClause']).length > 0 || select['havingClause'] !== undefined) return 'an aggregate in FROM';
  if (select['limitCount'] !== undefined || select['limitOffset'] !== undefined) return 'LIMIT in FROM';
  if (list(select['windowClause']).length > 0 || hasWindow(select['targetList'])) return 'a window function in FROM';
  if (contains([select['targetList'], select['whereClause']], beyondRow)) return 'a subquery in an expression';
  return null;
}

/** True when a function is called with OVER. */
export function hasWindow(value: unknown): boolean {
  let found = false;
  walk(value, (kind, fields) => {
    if (kind === 'FuncCall' && fields['over'] !== undefined) found = true;
    return undefined;
  });
  return found;
}

/** Index of the SELECT keyword: the last one before the first target. */
function selectKeyword(source: Source, select: Fields): number | null {
  const target = at(list(select['targetList'])[0], 'ResTarget');
  if (target === undefined) return null;
  for (let i = source.tokenOf(node(target)); i >= 0; i--) if (source.tokens[i]?.keyword === 'SELECT') return i;
  return null;
}
