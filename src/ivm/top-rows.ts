/** ORDER BY with LIMIT. */
import { columnRef, meaningOf, NotRewritable, resTarget, type Tree } from './ast.ts';
import { outputNames } from './normalise.ts';
import { distinctOn, hasSubquery } from './query-parts.ts';
import type { Stage, StageMaker } from './stage.ts';
import { at, list, node } from './tree.ts';

/** ORDER BY .. LIMIT: everything is a stage, the first rows of it are read in order. */
export function topRows(maker: StageMaker, given: Tree): Stage {
  const { limitCount, limitOffset, limitOption, sortClause, ...rest } = given;
  const all: Tree = { ...rest, limitOption: 'LIMIT_OPTION_DEFAULT' };
  if (hasSubquery([limitCount, limitOffset])) throw new NotRewritable('a subquery in LIMIT');
  const names = outputNames(given);
  const on = distinctOn(given);
  const hidden: Tree[] = [];
  const orders = list(sortClause).map((item) => {
    const sort = node(at(item, 'SortBy'));
    const place = sortPlace(sort['node'], given, names);
    if (place !== null) return { sort, column: place };
    if (given['op'] !== 'SETOP_NONE' || on !== null) throw new NotRewritable('ORDER BY of what is not shown');
    hidden.push(resTarget(`mr$o${hidden.length + 1}`, sort['node']));
    return { sort, column: `mr$o${hidden.length}` };
  });
  const inner: Tree = hidden.length === 0 ? all : { ...all, targetList: [...list(all['targetList']), ...hidden] };
  if (on !== null && on.length > 0) inner['sortClause'] = sortClause;
  const stage = maker.compile(inner);
  const { select, alias } = maker.read(stage);
  maker.orderBy(stage, orders);
  return {
    select: {
      ...select,
      targetList: list(select['targetList']).slice(0, names.length),
      sortClause: orders.map(({ sort, column }) => ({ SortBy: { ...sort, node: columnRef(alias, column) } })),
      ...(limitOffset === undefined ? {} : { limitOffset }),
      ...(limitCount === undefined ? {} : { limitCount }),
      limitOption,
    },
    columns: names,
    way: { kind: 'whole', why: 'the first rows in an order' },
  };
}

function sortPlace(sort: unknown, given: Tree, names: readonly string[]): string | null {
  const position = at(sort, 'A_Const', 'ival')?.['ival'];
  if (typeof position === 'number') return names[position - 1] ?? null;
  if (given['op'] !== 'SETOP_NONE') {
    const name = node(list(at(sort, 'ColumnRef')?.['fields'])[0]);
    const called = at(name, 'String')?.['sval'];
    return typeof called === 'string' && names.includes(called) ? called : null;
  }
  const wanted = meaningOf(sort);
  const index = list(given['targetList']).findIndex((entry) => meaningOf(at(entry, 'ResTarget')?.['val']) === wanted);
  return names[index] ?? null;
}
