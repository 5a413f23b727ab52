/**
 * GROUPING SETS, ROLLUP and CUBE as one GROUP BY over rows that come once for each set.
 * Invariant: the empty set has a row even without input, so it is an arm of its own, without GROUP BY.
 */
import { meaningOf, NotRewritable, parseExpression, parseSelect, replace, resTarget, type Tree } from './ast.ts';
import { isAggregate } from './query-parts.ts';
import type { StageMaker } from './stage.ts';
import { at, contains, isFields, kindOf, list, node } from './tree.ts';

const mostSets = 32;

/** The query without grouping sets; null when it has none. `overStage`: a query over a stage with its groups. */
export function replaceGroupingSets(maker: StageMaker, select: Tree, overStage: (grouped: Tree) => Tree): Tree | null {
  const clause = list(select['groupClause']);
  if (select['groupDistinct'] === true) throw new NotRewritable('GROUP BY DISTINCT');
  if (!contains(clause, new Set(['GroupingSet']))) return null;
  const sets = product(clause.map(setsOf));
  if (sets.length > mostSets) throw new NotRewritable(`more than ${mostSets} grouping sets`);
  const groups = [...new Map(sets.flat().map((item) => [meaningOf(item), item])).values()];
  const wide = sets.filter((set) => set.length > 0);
  const empty = sets.filter((set) => set.length === 0);
  const arms: Tree[] = [];
  if (wide.length > 0) {
    const alias = maker.alias();
    const id = `${alias}.id`;
    const has = (set: readonly unknown[], item: unknown): boolean => set.some((other) => meaningOf(other) === meaningOf(item));
    const numbers = (item: unknown, inside: boolean): string[] =>
      wide.flatMap((set, i) => (has(set, item) === inside ? [String(i + 1)] : []));
    const shown = groups.map((item): unknown => {
      const inside = numbers(item, true);
      if (inside.length === wide.length) return item;
      const made = parseExpression(`CASE WHEN ${id} IN (${inside.join(', ')}) THEN 1 END`);
      return replace(made, (kind, fields) => (kind === 'CaseWhen' ? { CaseWhen: { ...fields, result: item } } : undefined));
    });
    const bit = (item: unknown): string => {
      const outside = numbers(item, false);
      return outside.length === 0 ? '0' : `CASE WHEN ${id} IN (${outside.join(', ')}) THEN 1 ELSE 0 END`;
    };
    const rows = wide.map((_, i) => `(${i + 1})`).join(', ');
    const item = list(parseSelect(`SELECT 1 FROM (VALUES ${rows}) ${alias}(id)`)['fromClause'])[0];
    arms.push({
      ...put(maker, select, groups, shown, bit),
      fromClause: [...list(select['fromClause']), item],
      groupClause: [parseExpression(id), ...shown],
    });
  }
  for (const _ of empty) {
    const nulls = groups.map(() => parseExpression('NULL'));
    const { groupClause: __, ...rest } = put(maker, select, groups, nulls, () => '1');
    // Over a stage, so that the NULLs take their types from the other arms.
    arms.push(overStage(rest));
  }
  return arms.reduce((larg, rarg) => ({ limitOption: 'LIMIT_OPTION_DEFAULT', op: 'SETOP_UNION', all: true, larg, rarg }));
}

/** The expressions of a GROUP BY, each once, sets or not. */
export function groupMembers(clause: readonly unknown[]): unknown[] {
  return contains(clause, new Set(['GroupingSet'])) ? unique(product(clause.map(setsOf)).flat()) : [...clause];
}

/** The query with what it shows of groups in place of them, outside of aggregates, and GROUPING() as a number. */
function put(maker: StageMaker, select: Tree, groups: readonly unknown[], shown: readonly unknown[], bit: (item: unknown) => string): Tree {
  const places = new Map(groups.map((item, i) => [meaningOf(item), shown[i]]));
  const change = (value: unknown): unknown =>
    replace(value, (kind, fields, whole) => {
      const place = places.get(meaningOf(whole));
      if (place !== undefined) return structuredClone(place);
      if (kind === 'FuncCall' && isAggregate(fields, maker.kinds)) return whole;
      if (kind !== 'GroupingFunc') return undefined;
      const bits = list(fields['args']).map(bit);
      return parseExpression(bits.reduce((sum, one) => `(${sum} * 2 + ${one})`, '0'));
    });
  const targets = list(select['targetList']).map((entry) =>
    resTarget(String(at(entry, 'ResTarget')?.['name']), change(at(entry, 'ResTarget')?.['val'])),
  );
  const having = select['havingClause'] === undefined ? {} : { havingClause: change(select['havingClause']) };
  return { ...select, targetList: targets, ...having };
}

/** The sets that one item of GROUP BY stands for. */
function setsOf(item: unknown): unknown[][] {
  const { kind, fields } = kindOf(item);
  if (kind !== 'GroupingSet') return [members(item)];
  const content = list(fields['content']);
  switch (fields['kind']) {
    case 'GROUPING_SET_EMPTY':
      return [[]];
    case 'GROUPING_SET_ROLLUP':
      return Array.from({ length: content.length + 1 }, (_, i) => content.slice(0, content.length - i).flatMap(members));
    case 'GROUPING_SET_CUBE':
      return Array.from({ length: 1 << content.length }, (_, bits) =>
        content.filter((_item, i) => (bits & (1 << i)) === 0).flatMap(members),
      );
    case 'GROUPING_SET_SETS':
      return content.flatMap(setsOf);
    default:
      throw new NotRewritable('grouping sets of an unusual kind');
  }
}

/** (a, b) inside of sets is both. */
function members(item: unknown): unknown[] {
  const { kind, fields } = kindOf(item);
  if (kind === 'RowExpr') return [...list(fields['args'])];
  if (kind === 'List') return [...list(fields['items'])];
  if (kind === 'GroupingSet') return setsOf(item).flat();
  return isFields(item) && Object.keys(node(item)).length === 0 ? [] : [item];
}

function product(sets: readonly unknown[][][]): unknown[][] {
  return sets.reduce<unknown[][]>((all, some) => all.flatMap((left) => some.map((right) => unique([...left, ...right]))), [[]]);
}

function unique(items: readonly unknown[]): unknown[] {
  return [...new Map(items.map((item) => [meaningOf(item), item])).values()];
}
