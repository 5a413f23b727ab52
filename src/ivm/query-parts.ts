/** Questions about the parts of a normalised SELECT. */
import { knownAggregate } from './aggregate-calls.ts';
import { columnOf, liveSchema, meaningOf, stageSchema, type Tree } from './ast.ts';
import { at, type Fields, functionName, isFields, kindOf, list, node } from './tree.ts';
import type { FunctionKind } from './types.ts';

export type FunctionKinds = Readonly<Record<string, FunctionKind>>;

/** Calls `visit` on every node below; when it returns false, what is inside is left out. */
export function eachNode(value: unknown, visit: (kind: string, fields: Fields) => boolean | undefined): void {
  if (Array.isArray(value)) {
    for (const item of value) eachNode(item, visit);
    return;
  }
  if (!isFields(value)) return;
  for (const [key, inner] of Object.entries(value)) {
    if (/^[A-Z]/.test(key) && visit(key, node(inner)) === false) continue;
    eachNode(inner, visit);
  }
}

/** As `eachNode`, without what is inside of subqueries. */
export function eachOwnNode(value: unknown, visit: (kind: string, fields: Fields) => boolean | undefined): void {
  eachNode(value, (kind, fields) => {
    if (kind === 'SubLink') {
      visit(kind, fields);
      eachOwnNode(fields['testexpr'], visit);
      return false;
    }
    return visit(kind, fields);
  });
}

export function isAggregate(fields: Fields, kinds: FunctionKinds): boolean {
  if (fields['over'] !== undefined) return false;
  const marked = ['agg_order', 'agg_filter', 'agg_within_group', 'agg_star', 'agg_distinct'].some((mark) => fields[mark] !== undefined);
  const called = functionName(fields);
  return marked || knownAggregate(called) !== null || kinds[called]?.aggregate === true;
}

export function hasAggregate(value: unknown, kinds: FunctionKinds): boolean {
  let found = false;
  eachOwnNode(value, (kind, fields) => {
    if (kind === 'GroupingFunc' || (kind === 'FuncCall' && isAggregate(fields, kinds))) found = true;
    return undefined;
  });
  return found;
}

export function hasWindowCall(value: unknown): boolean {
  let found = false;
  eachOwnNode(value, (kind, fields) => {
    if (kind === 'FuncCall' && fields['over'] !== undefined) found = true;
    return undefined;
  });
  return found;
}

export function hasSetFunction(value: unknown, kinds: FunctionKinds): boolean {
  let found = false;
  eachOwnNode(value, (kind, fields) => {
    if (kind === 'FuncCall' && kinds[functionName(fields)]?.setReturning === true) found = true;
    return undefined;
  });
  return found;
}

export function hasSubquery(value: unknown): boolean {
  let found = false;
  eachNode(value, (kind) => {
    if (kind === 'SubLink') found = true;
    return !found;
  });
  return found;
}

/** Subqueries outside of the arguments of aggregates. */
export function hasSubqueryBesideAggregates(value: unknown, kinds: FunctionKinds): boolean {
  let found = false;
  eachNode(value, (kind, fields) => {
    if (kind === 'SubLink') found = true;
    return kind === 'FuncCall' && isAggregate(fields, kinds) ? false : !found;
  });
  return found;
}

export function isGrouped(select: Fields, kinds: FunctionKinds): boolean {
  return (
    list(select['groupClause']).length > 0 ||
    select['havingClause'] !== undefined ||
    hasAggregate([select['targetList'], select['sortClause'], select['windowClause']], kinds)
  );
}

/** DISTINCT: the expressions of DISTINCT ON; empty for plain DISTINCT; null without. */
export function distinctOn(select: Fields): readonly unknown[] | null {
  const items = list(select['distinctClause']);
  if (items.length === 0) return null;
  return items.filter((item) => kindOf(item).kind !== '');
}

/** Aliases that the FROM of a SELECT makes, not those inside of its subqueries. */
export function fromAliases(item: unknown): string[] {
  const { kind, fields } = kindOf(item);
  if (kind === 'JoinExpr') return [...fromAliases(fields['larg']), ...fromAliases(fields['rarg'])];
  const alias = at(fields, 'alias')?.['aliasname'];
  return typeof alias === 'string' ? [alias] : [];
}

/** Aliases mentioned below that are not made below. */
export function freeAliases(value: unknown): Set<string> {
  const used = new Set<string>();
  const made = new Set<string>();
  eachNode(value, (kind, fields) => {
    if (kind === 'ColumnRef') {
      const column = columnOf({ ColumnRef: fields });
      if (column !== null) used.add(column.alias);
    }
    const alias = kind.startsWith('Range') ? (at(fields, 'alias')?.['aliasname'] ?? fields['relname']) : undefined;
    if (typeof alias === 'string') made.add(alias);
    return undefined;
  });
  return new Set([...used].filter((alias) => !made.has(alias)));
}

/** Aliases mentioned below. */
export function usedAliases(value: unknown): Set<string> {
  const used = new Set<string>();
  eachNode(value, (kind, fields) => {
    const column = kind === 'ColumnRef' ? columnOf({ ColumnRef: fields }) : null;
    if (column !== null) used.add(column.alias);
    return undefined;
  });
  return used;
}

/** The items of FROM with the join conditions between them; null when a join is not an inner one. */
export function innerItems(
  items: readonly unknown[],
): { readonly leaves: readonly unknown[]; readonly conditions: readonly unknown[] } | null {
  const leaves: unknown[] = [];
  const conditions: unknown[] = [];
  const visit = (item: unknown): boolean => {
    const { kind, fields } = kindOf(item);
    if (kind !== 'JoinExpr') {
      leaves.push(item);
      return true;
    }
    if (fields['jointype'] !== 'JOIN_INNER') return false;
    if (fields['quals'] !== undefined) conditions.push(fields['quals']);
    return visit(fields['larg']) && visit(fields['rarg']);
  };
  return items.every(visit) ? { leaves, conditions } : null;
}

/** A relation of the catalog or a stage, by schema and number. */
export function relationOf(item: unknown): { readonly stage: boolean; readonly number: number; readonly alias: string } | null {
  const { kind, fields } = kindOf(item);
  const schema = fields['schemaname'];
  if (kind !== 'RangeVar' || (schema !== liveSchema && schema !== stageSchema)) return null;
  return { stage: schema === stageSchema, number: Number(fields['relname']), alias: fromAliases(item)[0] ?? '' };
}

/** Constant rows: VALUES without a reference to anything. */
export function isConstantRows(item: unknown): boolean {
  const { kind, fields } = kindOf(item);
  const body = at(fields, 'subquery', 'SelectStmt');
  return kind === 'RangeSubselect' && list(body?.['valuesLists']).length > 0 && !hasSubquery(body) && usedAliases(body).size === 0;
}

/** FROM and WHERE are sums and products of relations: inner joins, constants, functions of rows. Changes are then sums of terms. */
export function isLinear(select: Tree): boolean {
  const from = innerItems(list(select['fromClause']));
  if (from === null || from.leaves.length === 0) return false;
  if (hasSubquery([select['whereClause'], from.conditions])) return false;
  return from.leaves.every(
    (leaf) => relationOf(leaf) !== null || isConstantRows(leaf) || (kindOf(leaf).kind === 'RangeFunction' && !hasSubquery(leaf)),
  );
}

/** FROM and WHERE with one output row for each row: can be moved into the FROM of the query that reads it. */
export function isPlain(body: Fields, kinds: FunctionKinds): boolean {
  const clauses = [
    'withClause',
    'distinctClause',
    'groupClause',
    'havingClause',
    'windowClause',
    'limitCount',
    'limitOffset',
    'valuesLists',
  ];
  return (
    body['op'] === 'SETOP_NONE' &&
    clauses.every((clause) => body[clause] === undefined) &&
    list(body['fromClause']).length > 0 &&
    !hasAggregate(body['targetList'], kinds) &&
    !hasWindowCall(body['targetList']) &&
    !hasSetFunction(body['targetList'], kinds) &&
    !hasSubquery(body['targetList'])
  );
}

/** Exactly one row, whatever there is. */
export function isOneRow(body: Fields, kinds: FunctionKinds): boolean {
  const clauses = ['withClause', 'groupClause', 'havingClause', 'limitCount', 'limitOffset', 'distinctClause', 'valuesLists'];
  return (
    body['op'] === 'SETOP_NONE' &&
    clauses.every((clause) => body[clause] === undefined) &&
    hasAggregate(body['targetList'], kinds) &&
    !hasSetFunction(body['targetList'], kinds)
  );
}

/** Expressions that all windows partition by. */
export function commonPartition(select: Fields): unknown[] {
  const named = new Map(list(select['windowClause']).map((item) => [at(item, 'WindowDef')?.['name'], node(at(item, 'WindowDef'))]));
  const partitions: (readonly unknown[])[] = [];
  eachNode([select['targetList'], select['sortClause']], (kind, fields) => {
    const over = kind === 'FuncCall' ? at(fields, 'over') : undefined;
    if (over === undefined) return undefined;
    let definition: Fields | undefined = over;
    let found = list(over['partitionClause']);
    for (let depth = 0; found.length === 0 && definition !== undefined && depth < 8; depth++) {
      definition = named.get(definition['refname'] ?? definition['name']);
      found = list(definition?.['partitionClause']);
    }
    partitions.push(found);
    return undefined;
  });
  const [first = [], ...others] = partitions;
  return first.filter((item) => others.every((other) => other.some((candidate) => meaningOf(candidate) === meaningOf(item))));
}

/** Items joined without a condition. */
export function joined(items: readonly unknown[]): unknown {
  return items.reduce((larg, rarg) => ({ JoinExpr: { jointype: 'JOIN_INNER', larg, rarg } }));
}
