/**
 * Joins that find at most one row.
 * Invariant: what is joined here adds no row and loses none: either its key is bound, or its values come once each.
 */
import { isEquality, keyColumns, sidesOf } from './affected.ts';
import {
  allOf,
  columnOf,
  columnRef,
  conjuncts,
  copy,
  equal,
  meaningOf,
  parseExpression,
  replace,
  resTarget,
  selectFields,
  type Tree,
} from './ast.ts';
import { outputNames } from './normalise.ts';
import {
  eachNode,
  type FunctionKinds,
  freeAliases,
  fromAliases,
  hasAggregate,
  hasSetFunction,
  hasSubquery,
  hasWindowCall,
  innerItems,
  relationOf,
  usedAliases,
} from './query-parts.ts';
import { at, contains, kindOf, list, node, strings } from './tree.ts';
import type { LiveRelation } from './types.ts';

/** Relations by the numbers that stand for them. */
export type Live = (number: number) => LiveRelation | undefined;

/** `x IN (query)` where each value comes at most once: what is tested, the query, and the name of its column. */
export function uniqueMembers(
  condition: unknown,
  live: Live,
  kinds: FunctionKinds,
): { readonly tested: unknown; readonly body: Tree; readonly column: string } | null {
  const { kind, fields } = kindOf(condition);
  if (kind !== 'SubLink' || fields['subLinkType'] !== 'ANY_SUBLINK') return null;
  const tested = fields['testexpr'];
  const operator = strings(fields['operName'])[0] ?? '=';
  const body = node(at(fields, 'subselect', 'SelectStmt')) as Tree;
  const [target, ...more] = list(body['targetList']);
  const value = at(target, 'ResTarget')?.['val'];
  if (operator !== '=' || kindOf(tested).kind === 'RowExpr' || hasSubquery([tested, value]) || value === undefined || more.length > 0)
    return null;
  const clauses = ['withClause', 'limitCount', 'limitOffset', 'distinctClause', 'valuesLists', 'windowClause'];
  if (
    body['op'] !== 'SETOP_NONE' ||
    clauses.some((clause) => list(body[clause]).length > 0 || (body[clause] !== undefined && !Array.isArray(body[clause])))
  )
    return null;
  if (freeAliases(body).size > 0 || hasSetFunction(value, kinds) || hasWindowCall(value) || hasAggregate(value, kinds)) return null;
  const groups = list(body['groupClause']);
  const [item, ...others] = list(body['fromClause']);
  const once =
    groups.length > 0
      ? groups.length === 1 && !contains(groups, new Set(['GroupingSet'])) && meaningOf(groups[0]) === meaningOf(value)
      : body['havingClause'] === undefined && others.length === 0 && isKey(item, [value], live);
  const [column = ''] = outputNames(body);
  return once ? { tested, body, column } : null;
}

/** The values are, or contain, the key of the relation. */
function isKey(item: unknown, values: readonly unknown[], live: Live): boolean {
  const relation = relationOf(item);
  if (relation === null || relation.stage) return false;
  const key = keyColumns(live(relation.number));
  const columns = values.map(columnOf);
  return key.length > 0 && key.every((name) => columns.some((column) => column?.alias === relation.alias && column.column === name));
}

interface Leaf {
  readonly alias: string;
  readonly item: unknown;
  /** The leaves by which it is found. */
  readonly by: ReadonlySet<string>;
}

/** Items of which there is at most one for the rows of those in `start`, found by their keys, in the order in which they are found. */
function foundByKey(items: readonly unknown[], conditions: readonly unknown[], start: ReadonlySet<string>, live: Live): Leaf[] {
  const chosen: Leaf[] = [];
  const known = new Set(start);
  for (let more = true; more; ) {
    more = false;
    for (const item of items) {
      const alias = fromAliases(item)[0] ?? '';
      if (known.has(alias)) continue;
      const bound = conditions.flatMap((condition) => {
        const sides = isEquality(condition) ? sidesOf(condition) : null;
        return (sides ?? []).flatMap((side, i) => {
          const used = [...usedAliases(sides?.[1 - i])];
          return columnOf(side)?.alias === alias && used.length > 0 && used.every((other) => known.has(other)) ? [{ side, used }] : [];
        });
      });
      const values = bound.map(({ side }) => side);
      if (!isKey(item, values, live)) continue;
      chosen.push({ alias, item, by: new Set(bound.flatMap(({ used }) => used)) });
      known.add(alias);
      more = true;
    }
  }
  return chosen;
}

/** A condition is about the relation alone. */
function isFiltered(alias: string, conditions: readonly unknown[]): boolean {
  return conditions.some((condition) => {
    const used = usedAliases(condition);
    return used.size === 1 && used.has(alias);
  });
}

/** Of the relation, the condition mentions none but known columns. */
function isKnown(condition: unknown, alias: string, known: ReadonlyMap<string, unknown>): boolean {
  let all = true;
  eachNode(condition, (kind, fields) => {
    const column = kind === 'ColumnRef' ? columnOf({ ColumnRef: fields }) : null;
    if (column?.alias === alias && !known.has(column.column)) all = false;
    return undefined;
  });
  return all;
}

/** Those with a condition of their own, and those by which such are found. */
function filtering(leaves: readonly Leaf[], conditions: readonly unknown[]): Leaf[] {
  const kept: Leaf[] = [];
  for (const leaf of leaves.toReversed())
    if (isFiltered(leaf.alias, conditions) || kept.some(({ by }) => by.has(leaf.alias))) kept.push(leaf);
  return kept;
}

/**
 * What rows of `aliases` need of other relations of the same inner joins to be in the result: for each relation that they refer to by its
 * key, a query that finds it, and what it refers to in turn, if they pass their filters.
 */
export function needed(select: Tree, aliases: ReadonlySet<string>, live: Live): Tree[] {
  const from = innerItems(list(select['fromClause']));
  if (from === null) return [];
  const conditions = [select['whereClause'], ...from.conditions].flatMap(conjuncts).filter((condition) => !hasSubquery(condition));
  const kept = filtering(foundByKey(from.leaves, conditions, aliases, live), conditions);
  const roots = kept.filter(({ by }) => [...by].every((alias) => aliases.has(alias)));
  return roots.map((root) => {
    const branch = new Map([[root.alias, root]]);
    for (const leaf of kept.toReversed()) {
      if ([...leaf.by].some((alias) => branch.has(alias)) && [...leaf.by].every((alias) => branch.has(alias) || aliases.has(alias)))
        branch.set(leaf.alias, leaf);
    }
    const where = conditions.filter((condition) => {
      const used = [...usedAliases(condition)];
      return used.some((alias) => branch.has(alias)) && used.every((alias) => branch.has(alias) || aliases.has(alias));
    });
    return selectFields(
      [resTarget('x1', parseExpression('1'))],
      [...branch.values()].map(({ item }) => item),
      allOf(where),
    );
  });
}

/**
 * Groups that are looked up by `outer`, values of rows of `select`: only those that rows can look up which pass the filters of the
 * relation whose key they hold, and of those it refers to. Null: nothing says so.
 */
export function onlyLookedUp(
  found: { readonly select: Tree; readonly outer: readonly unknown[] },
  select: Tree,
  live: Live,
  newAlias: () => string,
): Tree | null {
  const from = innerItems(list(select['fromClause']));
  const columns = found.outer.map(columnOf);
  if (from === null || columns.includes(null)) return null;
  const conditions = [select['whereClause'], ...from.conditions].flatMap(conjuncts).filter((condition) => !hasSubquery(condition));
  const root = from.leaves.find((leaf) => isKey(leaf, found.outer, live));
  if (root === undefined) return null;
  const first: Leaf = { alias: fromAliases(root)[0] ?? '', item: root, by: new Set() };
  const chosen = [first, ...foundByKey(from.leaves, conditions, new Set([first.alias]), live)];
  const kept = filtering(chosen, conditions);
  if (kept.length === 0) return null;
  const groups = list(found.select['groupClause']);
  const inside = new Set(kept.map(({ alias }) => alias));
  const own = conditions.filter((condition) => {
    const used = [...usedAliases(condition)];
    return used.length > 0 && used.every((alias) => inside.has(alias));
  });
  // Columns of the relation whose key is held are those of the groups; it is not read for these alone.
  const known = new Map(columns.flatMap((column, i) => (column?.alias === first.alias ? [[column.column, groups[i]] as const] : [])));
  const spared = !isFiltered(first.alias, conditions) && own.every((condition) => isKnown(condition, first.alias, known));
  const read = kept.filter(({ alias }) => !(spared && alias === first.alias));
  const renamed = new Map(read.map(({ alias }) => [alias, newAlias()]));
  const rename = (value: unknown): unknown =>
    replace(copy(value), (kind, fields) => {
      if (kind === 'ColumnRef') {
        const column = columnOf({ ColumnRef: fields });
        if (spared && column?.alias === first.alias) return copy(known.get(column.column));
        const alias = renamed.get(column?.alias ?? '');
        return column === null || alias === undefined ? undefined : columnRef(alias, column.column);
      }
      const alias = kind === 'RangeVar' ? renamed.get(fromAliases({ RangeVar: fields })[0] ?? '') : undefined;
      return alias === undefined ? undefined : { RangeVar: { ...fields, alias: { aliasname: alias } } };
    });
  const lookups = found.outer.flatMap((value, i) => (renamed.has(columns[i]?.alias ?? '') ? [equal(rename(value), copy(groups[i]))] : []));
  return {
    ...found.select,
    fromClause: [...list(found.select['fromClause']), ...read.map(({ item }) => rename(item))],
    whereClause: allOf([...conjuncts(found.select['whereClause']), ...lookups, ...own.map(rename)]),
  };
}
