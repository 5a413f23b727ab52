/**
 * Groups over an outer join, as sums.
 * Invariant: groups are made of the preserved side alone, and every aggregate passes over rows that the other side adds nothing to. Then a
 * group is there while the preserved side has rows of it, and what is aggregated are the rows of the inner join.
 */

import { knownAggregate } from './aggregate-calls.ts';
import { columnOf, conjuncts, type Tree } from './ast.ts';
import { eachOwnNode, type FunctionKinds, fromAliases, hasSubquery, isAggregate, isLinear, usedAliases } from './query-parts.ts';
import { type Fields, functionName, kindOf, list, strings } from './tree.ts';

export interface OuterGroups {
  /** The query with an inner join. */
  readonly inner: Tree;
  /** The query over the preserved side alone. */
  readonly preserved: Tree;
}

/** The two parts of a grouped query over one outer join; null when it is none, or cannot be had as sums. */
export function outerGroups(select: Tree, kinds: FunctionKinds): OuterGroups | null {
  const [item, ...more] = list(select['fromClause']);
  const { kind, fields } = kindOf(item);
  const type = fields['jointype'];
  if (more.length > 0 || kind !== 'JoinExpr' || (type !== 'JOIN_LEFT' && type !== 'JOIN_RIGHT')) return null;
  const [kept, added] = type === 'JOIN_LEFT' ? [fields['larg'], fields['rarg']] : [fields['rarg'], fields['larg']];
  const optional = new Set(fromAliases(added));
  const untouched = (value: unknown): boolean => [...usedAliases(value)].every((alias) => !optional.has(alias));
  if (select['havingClause'] !== undefined || hasSubquery(select) || !untouched([select['groupClause'], select['whereClause']]))
    return null;
  const inner: Tree = { ...select, fromClause: [{ JoinExpr: { ...fields, jointype: 'JOIN_INNER' } }] };
  const preserved: Tree = { ...select, fromClause: [kept] };
  if (!isLinear(inner) || !isLinear(preserved) || conjuncts(fields['quals']).length === 0) return null;
  let possible = true;
  eachOwnNode(select['targetList'], (name, call) => {
    if (name !== 'FuncCall' || !isAggregate(call, kinds)) return undefined;
    const known = knownAggregate(functionName(call));
    const [argument] = list(call['args']);
    if (known === null || known === 'min' || known === 'max' || !isNullWithout(argument, optional)) possible = false;
    return false;
  });
  return possible ? { inner, preserved } : null;
}

/** NULL where the columns of these relations are. */
function isNullWithout(value: unknown, aliases: ReadonlySet<string>): boolean {
  const { kind, fields } = kindOf(value);
  if (kind === 'ColumnRef') return aliases.has(columnOf(value)?.alias ?? '');
  if (kind === 'TypeCast') return isNullWithout(fields['arg'], aliases);
  return isArithmetic(kind, fields) && (isNullWithout(fields['lexpr'], aliases) || isNullWithout(fields['rexpr'], aliases));
}

/** Arithmetic of Postgres's own gives NULL for NULL. */
function isArithmetic(kind: string, fields: Fields): boolean {
  const operator = strings(fields['name']);
  return kind === 'A_Expr' && fields['kind'] === 'AEXPR_OP' && operator.length === 1 && ['+', '-', '*', '/'].includes(operator[0] ?? '');
}
