/** Full joins as two arms. */
import { columnOf, columnRef, copy, meaningOf, parseExpression, replace, resTarget, selectFields, type Tree } from './ast.ts';
import { rowsStage } from './layers.ts';
import { outputNames } from './normalise.ts';
import { fromAliases, isPlain } from './query-parts.ts';
import { unionStage } from './set-operations.ts';
import type { Stage, StageMaker } from './stage.ts';
import { at, kindOf, list } from './tree.ts';

/** Rows of one full join and nothing else. */
export function fullJoinRows(maker: StageMaker, select: Tree): Stage | null {
  const [item, ...more] = list(select['fromClause']);
  const { kind, fields } = kindOf(item);
  if (kind !== 'JoinExpr' || fields['jointype'] !== 'JOIN_FULL' || more.length > 0) return null;
  if (!isPlain(select, maker.kinds) || select['whereClause'] !== undefined) return null;
  const { larg, rarg, quals } = fields;
  const join = (left: unknown, right: unknown, on: unknown): Tree => ({
    JoinExpr: { jointype: 'JOIN_LEFT', larg: left, rarg: right, quals: on },
  });
  const [other, on] = renamed(maker, [larg, quals], fromAliases(larg)) as [unknown, unknown];
  const none = parseExpression('NOT EXISTS (SELECT 1)');
  const match = selectFields([resTarget('x1', parseExpression('1'))], [other], on);
  const unmatched = replace(none, (name, inside) =>
    name === 'SubLink' ? { SubLink: { ...inside, subselect: { SelectStmt: match } } } : undefined,
  );
  return unionStage(
    maker,
    [
      { ...select, fromClause: [join(larg, rarg, quals)] },
      { ...select, fromClause: [join(rarg, larg, parseExpression('false'))], whereClause: unmatched },
    ],
    outputNames(select),
    false,
  );
}

/** A copy in which these aliases are others. */
function renamed(maker: StageMaker, value: unknown, aliases: readonly string[]): unknown {
  const names = new Map(aliases.map((alias) => [alias, maker.alias()]));
  const rename = (tree: unknown): unknown =>
    replace(tree, (kind, fields) => {
      const column = kind === 'ColumnRef' ? columnOf({ ColumnRef: fields }) : null;
      const name = column === null ? undefined : names.get(column.alias);
      if (column !== null) return name === undefined ? undefined : columnRef(name, column.column);
      const alias = kind.startsWith('Range') ? at(fields, 'alias') : undefined;
      const other = alias === undefined ? undefined : names.get(String(alias['aliasname']));
      if (alias === undefined || other === undefined) return undefined;
      return { [kind]: { ...(rename(fields) as Tree), alias: { ...alias, aliasname: other } } };
    });
  return rename(copy(value));
}

/** `a FULL JOIN b` is `a LEFT JOIN b` and the rows of b that match none of a: a stage of two arms. */
export function splitFullJoins(maker: StageMaker, select: Tree): Tree {
  let changed = select;
  const find = (item: unknown): unknown => {
    const { kind, fields } = kindOf(item);
    if (kind !== 'JoinExpr') return undefined;
    return find(fields['larg']) ?? find(fields['rarg']) ?? (fields['jointype'] === 'JOIN_FULL' ? item : undefined);
  };
  for (;;) {
    const full = list(changed['fromClause'])
      .map(find)
      .find((item) => item !== undefined);
    if (full === undefined) return changed;
    const marker: Tree = { RangeVar: { schemaname: 'mr$here', relname: '0' } };
    const text = meaningOf(full);
    const above = replace(changed, (kind, _, whole) => (kind === 'JoinExpr' && meaningOf(whole) === text ? marker : undefined)) as Tree;
    const made = rowsStage(maker, [full], undefined, above, false);
    changed = replace(made.above, (kind, fields) =>
      kind === 'RangeVar' && fields['schemaname'] === 'mr$here' ? made.item : undefined,
    ) as Tree;
  }
}
