/**
 * Correlated values as groups.
 * Invariant: a group holds what the subquery gives for its key; without a group the subquery sees no rows.
 */
import { isEquality, sidesOf } from './affected.ts';
import { knownAggregate } from './aggregate-calls.ts';
import { allOf, conjuncts, resTarget, type Tree } from './ast.ts';
import { type FunctionKinds, freeAliases, hasSubquery, isOneRow, usedAliases } from './query-parts.ts';
import { at, type Fields, functionName, kindOf, list, node, strings } from './tree.ts';

/** A correlated value as groups by what it is correlated by, each computed once; null when it cannot be. */
export function correlatedGroups(
  fields: Fields,
  own: ReadonlySet<string>,
  kinds: FunctionKinds,
): { readonly select: Tree; readonly outer: readonly unknown[]; readonly empty: 'null' | 'zero' } | null {
  const body = node(at(fields, 'subselect', 'SelectStmt')) as Tree;
  if (fields['subLinkType'] !== 'EXPR_SUBLINK' || !isOneRow(body, kinds) || list(body['targetList']).length !== 1) return null;
  const free = freeAliases(body);
  const value = at(list(body['targetList'])[0], 'ResTarget')?.['val'];
  const empty = valueOfNothing(value);
  if (free.size === 0 || empty === null || ![...free].every((alias) => own.has(alias))) return null;
  const outer: unknown[] = [];
  const groups: unknown[] = [];
  const rest = conjuncts(body['whereClause']).filter((condition) => {
    const sides = isEquality(condition) ? sidesOf(condition) : null;
    const isOuter = sides?.map((side) => usedAliases(side).size > 0 && [...usedAliases(side)].every((alias) => free.has(alias)));
    const isInner = sides?.map((side) => usedAliases(side).size > 0 && [...usedAliases(side)].every((alias) => !free.has(alias)));
    const place = isOuter?.findIndex((is, i) => is && isInner?.[1 - i] === true) ?? -1;
    if (sides === null || place < 0 || hasSubquery(condition)) return true;
    outer.push(sides[place]);
    groups.push(sides[1 - place]);
    return false;
  });
  const select: Tree = {
    ...body,
    targetList: [...groups.map((group, i) => resTarget(`k${i + 1}`, group)), resTarget('v', value)],
    whereClause: allOf(rest),
    groupClause: groups,
  };
  return groups.length === 0 || freeAliases(select).size > 0 ? null : { select, outer, empty };
}

/** What an output of aggregates is without rows: NULL, 0 (a count), or null when that is not known. */
function valueOfNothing(value: unknown): 'null' | 'zero' | null {
  const { kind, fields } = kindOf(value);
  if (kind === 'FuncCall') {
    const name = fields['over'] === undefined ? knownAggregate(functionName(fields)) : null;
    return name === null ? null : name === 'count' ? 'zero' : 'null';
  }
  const inner = (side: unknown): 'null' | 'zero' | null => valueOfNothing(side);
  if (kind === 'TypeCast') return inner(fields['arg']) === 'null' ? 'null' : null;
  const operator = strings(fields['name']);
  const arithmetic =
    kind === 'A_Expr' && fields['kind'] === 'AEXPR_OP' && operator.length === 1 && ['+', '-', '*', '/'].includes(operator[0] ?? '');
  // These give NULL for NULL.
  return arithmetic && (inner(fields['lexpr']) === 'null' || inner(fields['rexpr']) === 'null') ? 'null' : null;
}
