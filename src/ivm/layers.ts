/**
 * Queries cut in two: a stage below, and the rest of the query over it.
 * Invariant: the rest mentions nothing of what is below but columns of the stage.
 */
import {
  allOf,
  columnOf,
  columnRef,
  conjuncts,
  copy,
  meaningOf,
  NotRewritable,
  parseExpression,
  replace,
  resTarget,
  selectFields,
  type Tree,
} from './ast.ts';
import { groupMembers } from './grouping-sets.ts';
import { freeAliases, fromAliases, hasSubquery, isAggregate } from './query-parts.ts';
import type { StageMaker } from './stage.ts';
import { at, kindOf, list } from './tree.ts';

/**
 * A stage of the rows of `items`, with what `above` needs of them, and `above` over it. `subqueries`: those that need nothing else are
 * computed with the rows.
 */
export function rowsStage(
  maker: StageMaker,
  items: readonly unknown[],
  where: unknown,
  above: Tree,
  subqueries: boolean,
): { readonly item: Tree; readonly above: Tree } {
  const own = new Set(items.flatMap(fromAliases));
  const alias = maker.alias();
  const targets: Tree[] = [];
  const places = new Map<string, string>();
  const place = (value: unknown): Tree => {
    const meaning = meaningOf(value);
    const known = places.get(meaning) ?? `x${places.size + 1}`;
    if (!places.has(meaning)) targets.push(resTarget(known, copy(value)));
    places.set(meaning, known);
    return columnRef(alias, known);
  };
  const changed = replace(above, (kind, fields, whole) => {
    const isOwn = (value: unknown): boolean => {
      const used = freeAliases(value);
      return [...used].every((name) => own.has(name));
    };
    if (subqueries && kind === 'SubLink' && isOwn(whole)) return place(whole);
    return kind === 'ColumnRef' && own.has(columnOf({ ColumnRef: fields })?.alias ?? '') ? place(whole) : undefined;
  });
  if (targets.length === 0) targets.push(resTarget('x1', parseExpression('1')));
  const stage = maker.compile(selectFields(targets, items, where));
  return { item: maker.item(stage, alias), above: changed as Tree };
}

/** The query over a stage with its groups. */
export function splitGroups(maker: StageMaker, select: Tree): Tree {
  const alias = maker.alias();
  const { distinctClause, targetList, fromClause, whereClause, groupClause, havingClause, windowClause, sortClause } = select;
  const having = conjuncts(havingClause);
  const groups = groupMembers(list(groupClause));
  // Without groups there is always one row: whether it is shown is asked above.
  const below = groups.length === 0 ? [] : having.filter((condition) => !hasSubquery(condition));
  const targets: Tree[] = [];
  const places = new Map<string, string>();
  const place = (value: unknown, name: string): Tree => {
    const meaning = meaningOf(value);
    const known = places.get(meaning) ?? name;
    if (!places.has(meaning)) targets.push(resTarget(known, copy(value)));
    places.set(meaning, known);
    return columnRef(alias, known);
  };
  groups.forEach((group, i) => {
    place(group, `k${i + 1}`);
  });
  const isGroup = new Set(groups.map(meaningOf));
  const group = (_kind: string, _fields: Tree, whole: Tree): unknown => (isGroup.has(meaningOf(whole)) ? place(whole, '') : undefined);
  const change = (kind: string, fields: Tree, whole: Tree): unknown => {
    // Aggregates in a subquery are its own.
    if (kind === 'SubLink') {
      const tested = fields['testexpr'] === undefined ? {} : { testexpr: replace(fields['testexpr'], change) };
      return { SubLink: { ...fields, ...tested, subselect: replace(fields['subselect'], group) } };
    }
    if (kind === 'GroupingFunc') return place(whole, `a${places.size + 1}`);
    return kind === 'FuncCall' && isAggregate(fields, maker.kinds) ? place(whole, `a${places.size + 1}`) : group(kind, fields, whole);
  };
  const above = replace(
    {
      distinctClause,
      targetList,
      windowClause,
      sortClause,
      whereClause: allOf(having.filter((condition) => !below.includes(condition))),
    },
    change,
  ) as Tree;
  if (targets.length === 0) targets.push(resTarget('x1', parseExpression('1')));
  const rest = freeAliases(above);
  rest.delete(alias);
  if (rest.size > 0) throw new NotRewritable('a column beside groups');
  const lower: Tree = { ...selectFields(targets, list(fromClause), whereClause), groupClause, havingClause: allOf(below) };
  const stage = maker.compile(lower);
  return { ...defined(above), fromClause: [maker.item(stage, alias)], limitOption: 'LIMIT_OPTION_DEFAULT', op: 'SETOP_NONE' };
}

/** DISTINCT [ON] over a stage with everything else. */
export function splitDistinct(maker: StageMaker, select: Tree): Tree {
  const { distinctClause, sortClause, ...rest } = select;
  const extra = [
    ...list(distinctClause).filter((item) => kindOf(item).kind !== ''),
    ...list(sortClause).map((item) => at(item, 'SortBy')?.['node']),
  ];
  const targets = list(rest['targetList']);
  const known = new Map(targets.map((entry) => [meaningOf(at(entry, 'ResTarget')?.['val']), String(at(entry, 'ResTarget')?.['name'])]));
  for (const value of extra) if (!known.has(meaningOf(value))) known.set(meaningOf(value), `mr$o${known.size + 1}`);
  const hidden = extra.flatMap((value) => {
    const name = known.get(meaningOf(value)) ?? '';
    return name.startsWith('mr$o') ? [resTarget(name, value)] : [];
  });
  const unique = [...new Map(hidden.map((entry) => [meaningOf(entry), entry])).values()];
  const stage = maker.compile({ ...rest, targetList: [...targets, ...unique] });
  const { select: read, alias } = maker.read(stage);
  const column = (value: unknown): Tree => columnRef(alias, known.get(meaningOf(value)) ?? '');
  return {
    ...read,
    targetList: list(read['targetList']).slice(0, targets.length),
    distinctClause: list(distinctClause).map((item) => (kindOf(item).kind === '' ? item : column(item))),
    sortClause: list(sortClause).map((item) => ({ SortBy: { ...at(item, 'SortBy'), node: column(at(item, 'SortBy')?.['node']) } })),
  };
}

function defined(tree: Tree): Tree {
  return Object.fromEntries(Object.entries(tree).filter(([, value]) => value !== undefined));
}
