/**
 * Which keys of a query a change can touch, found without old states.
 * Invariant: take any combination of rows that the query looked at for a key, before or after the change, with a changed row in it. The
 * changed row nearest to the key's own relation has only unchanged rows between, so joining changes to the present rows of the relations on
 * the path, on conditions that hold for every such combination, finds the key. A condition is used for a step only where it must hold:
 * that of an outer join for the rows it adds, that of a subquery for the rows the subquery reads.
 * Source: the keyed rule of the prototype; compare the affected-tuple queries of Griffin and Kumar 1998 for outer joins.
 */
import { columnOf, columnRef, conjuncts, equal, meaningOf, parseExpression, replace, type Tree } from './ast.ts';
import { eachNode, fromAliases, hasSubquery, isConstantRows, relationOf, usedAliases } from './query-parts.ts';
import { at, type Fields, kindOf, list, node, strings } from './tree.ts';
import type { LiveRelation } from './types.ts';

/** A relation (or constant rows) anywhere in the query. */
interface Source {
  readonly alias: string;
  readonly item: Tree;
  /** Outer joins that can leave it out. */
  readonly optional: readonly number[];
  /** Part of the FROM of the query itself. */
  readonly top: boolean;
  /** Null for constant rows. */
  readonly relation: { readonly stage: boolean; readonly number: number } | null;
}

interface Condition {
  /** Any of these holds; the first is the one that joins. */
  readonly alternatives: readonly unknown[];
  readonly aliases: ReadonlySet<string>;
  /** Sources whose rows are looked at only where it holds. */
  readonly reach: ReadonlySet<string>;
  /** Outer joins below the place of the condition. */
  readonly below: ReadonlySet<number>;
}

interface Graph {
  readonly sources: ReadonlyMap<string, Source>;
  readonly conditions: readonly Condition[];
}

/** How a change of one relation reaches keys. */
export interface TouchPath {
  readonly trigger: string;
  /** Items of FROM, the trigger first and the anchor last; relations that are none of these are not needed. */
  readonly items: readonly Tree[];
  readonly where: readonly unknown[];
  /** Nothing joins the trigger to the anchor: any change of it touches all keys. `gate`: conditions on the trigger alone. */
  readonly gate: readonly unknown[] | null;
}

/** The item of FROM whose rows are recomputed, and by which columns; null key: its own. `among`: expressions the key may be made of. */
export function chooseAnchor(
  select: Tree,
  live: readonly LiveRelation[],
  among: readonly unknown[] | null,
): { readonly alias: string; readonly key: readonly unknown[] | null } | null {
  const graph = readGraph(select);
  let best: { alias: string; key: readonly unknown[] | null; cost: readonly number[] } | null = null;
  for (const source of graph.sources.values()) {
    if (!source.top || source.optional.length > 0) continue;
    const own = (among ?? []).filter((item) => columnOf(item)?.alias === source.alias);
    // Groups by anything else may be few and large: better rows, and groups over them.
    if (among !== null && !holdsKey(source, own, live)) continue;
    const key = among === null ? anchorKey(source, graph, select, live) : own;
    if (key !== null && key.length === 0) continue;
    const reached = reach(graph, source.alias);
    const unreached = [...graph.sources.values()].filter((other) => other.relation !== null && !reached.has(other.alias)).length;
    const depth = [...reached.values()].reduce((sum, step) => sum + step.depth, 0);
    const cost = [unreached, manySteps(graph, reached, live), depth];
    if (best === null || less(cost, best.cost)) best = { alias: source.alias, key, cost };
  }
  return best;
}

function less(a: readonly number[], b: readonly number[]): boolean {
  const place = a.findIndex((value, i) => value !== b[i]);
  return place >= 0 && (a[place] ?? 0) < (b[place] ?? 0);
}

/** The columns tell the rows of the relation apart. */
function holdsKey(source: Source, columns: readonly unknown[], live: readonly LiveRelation[]): boolean {
  if (source.relation === null) return true;
  const key = source.relation.stage ? [] : keyColumns(live[source.relation.number]);
  return key.length > 0 && key.every((name) => name !== undefined && columns.some((column) => columnOf(column)?.column === name));
}

/** Names of the key columns of a relation; undefined where the key is hidden. */
export function keyColumns(relation: LiveRelation | undefined): (string | undefined)[] {
  return relation?.key.map((name) => relation.columns.find((column) => column.expression === `s.${name}`)?.name) ?? [];
}

/** Null: the relation's own key will do. Without one (rows that may come twice, constants): columns it is joined by, or all that are used. */
function anchorKey(source: Source, graph: Graph, select: Tree, live: readonly LiveRelation[]): readonly unknown[] | null {
  const keyed = source.relation !== null && (source.relation.stage || (live[source.relation.number]?.key.length ?? 0) > 0);
  if (keyed) return null;
  const joined = graph.conditions.flatMap(({ alternatives, aliases }) =>
    aliases.size > 1
      ? [sidesOf(alternatives[0])].flatMap((sides) => sides ?? []).filter((side) => columnOf(side)?.alias === source.alias)
      : [],
  );
  const used: unknown[] = [];
  eachNode(select, (kind, fields) => {
    if (kind === 'ColumnRef' && columnOf({ ColumnRef: fields })?.alias === source.alias) used.push({ ColumnRef: fields });
    return undefined;
  });
  const columns = joined.length > 0 ? joined : used;
  return [...new Map(columns.map((column) => [meaningOf(column), column])).values()];
}

/** Relations of FROM that have many rows for one of the anchor: recomputing the anchor's key computes all of them. */
function manySteps(graph: Graph, reached: ReadonlyMap<string, Step>, live: readonly LiveRelation[]): number {
  return [...reached.entries()].filter(([alias, step]) => {
    const source = graph.sources.get(alias);
    if (source === undefined || !source.top || step.condition === null || source.optional.length > 0) return false;
    if (source.relation === null || source.relation.stage) return false;
    const before = new Set([...reached.keys()].slice(0, step.order));
    const bound = graph.conditions.flatMap((condition) => {
      const sides =
        condition.alternatives.length === 1 && isEquality(condition.alternatives[0]) ? sidesOf(condition.alternatives[0]) : null;
      if (sides === null || ![...condition.aliases].every((other) => other === alias || before.has(other))) return [];
      return sides.flatMap((side) => (columnOf(side)?.alias === alias ? [columnOf(side)?.column] : []));
    });
    const key = keyColumns(live[source.relation.number]);
    return key.length === 0 || !key.every((name) => name !== undefined && bound.includes(name));
  }).length;
}

/** Paths by which changes reach the keys of `anchor`: one or more for each other relation of the query. */
export function touchPaths(select: Tree, anchor: string, live: readonly LiveRelation[]): TouchPath[] {
  const graph = readGraph(select);
  const reached = reach(graph, anchor);
  const paths: TouchPath[] = [];
  for (const source of graph.sources.values()) {
    if (source.relation === null) continue;
    const step = reached.get(source.alias);
    if (step === undefined) {
      const item = graph.sources.get(anchor)?.item;
      const own = filters(graph, source.alias);
      if (item !== undefined) paths.push({ trigger: source.alias, items: [item], where: filters(graph, anchor), gate: own });
      continue;
    }
    paths.push(...pathsOf(graph, reached, source, anchor));
  }
  return paths.filter(
    (path, i) => !paths.some((other, j) => j !== i && covers(other, path, live) && (j < i || !covers(path, other, live))),
  );
}

/** Every key that `other` finds is found by `path`: the same relation triggers both, on the same way to the anchor, with fewer conditions. */
function covers(path: TouchPath, other: TouchPath, live: readonly LiveRelation[]): boolean {
  const [trigger, ...way] = path.items;
  const [otherTrigger, ...otherWay] = other.items;
  const [a, b] = [relationOf(trigger), relationOf(otherTrigger)];
  // Each mention of a relation has a number of its own.
  const same =
    a !== null && b !== null && a.stage === b.stage && (a.stage ? a.number === b.number : live[a.number]?.id === live[b.number]?.id);
  if (!same || path.gate !== null || other.gate !== null) return false;
  if (path.items.length === 1 || other.items.length === 1 || meaningOf(way) !== meaningOf(otherWay)) return false;
  const named = (condition: unknown): string =>
    meaningOf(
      replace(condition, (kind, fields) => {
        const column = kind === 'ColumnRef' ? columnOf({ ColumnRef: fields }) : null;
        return column?.alias === path.trigger ? columnRef(other.trigger, column.column) : undefined;
      }),
    );
  const conditions = new Set(other.where.map(meaningOf));
  const joins = (condition: unknown): boolean => usedAliases(condition).has(path.trigger) && usedAliases(condition).size > 1;
  // What `distinctTrigger` does not ask.
  const unasked = path.where.some((condition) => isEquality(condition) && joins(condition));
  return path.where.every((condition) => conditions.has(named(condition)) || (unasked && isInequality(condition) && joins(condition)));
}

function pathsOf(graph: Graph, reached: ReadonlyMap<string, Step>, source: Source, anchor: string): TouchPath[] {
  const needed = new Set<string>();
  const steps = new Set<Condition>();
  const collect = (alias: string): void => {
    if (needed.has(alias)) return;
    needed.add(alias);
    const condition = reached.get(alias)?.condition ?? null;
    if (condition === null) return;
    steps.add(condition);
    for (const other of condition.aliases) if (other !== alias) collect(other);
  };
  collect(source.alias);
  for (const condition of graph.conditions) {
    if (
      condition.alternatives.length > 1 ||
      condition.aliases.size === 0 ||
      steps.has(condition) ||
      ![...condition.aliases].every((alias) => needed.has(alias))
    )
      continue;
    const order = (alias: string): number => reached.get(alias)?.order ?? 0;
    const last = [...condition.aliases].reduce((a, b) => (order(b) > order(a) ? b : a));
    if (condition.reach.has(last) && usable(graph, condition)) steps.add(condition);
  }
  const items = [...needed]
    .sort((a, b) => (reached.get(b)?.order ?? 0) - (reached.get(a)?.order ?? 0))
    .flatMap((alias) => (alias === source.alias || alias === anchor ? [] : [graph.sources.get(alias)?.item ?? {}]));
  const ends = source.alias === anchor ? [source.item] : [source.item, ...items, graph.sources.get(anchor)?.item ?? {}];
  const choices = [...steps].reduce<unknown[][]>(
    (all, condition) => all.flatMap((chosen) => condition.alternatives.map((alternative) => [...chosen, alternative])),
    [[]],
  );
  return choices.map((where) => ({ trigger: source.alias, items: ends, where, gate: null }));
}

interface Step {
  readonly condition: Condition | null;
  readonly order: number;
  readonly depth: number;
}

/** Relations that conditions join to the anchor, in the order they are found. */
function reach(graph: Graph, anchor: string): ReadonlyMap<string, Step> {
  const reached = new Map<string, Step>([[anchor, { condition: null, order: 0, depth: 0 }]]);
  const joins = graph.conditions.filter((condition) => condition.aliases.size > 1 && usable(graph, condition));
  const ordered = [...joins.filter(({ alternatives }) => isEquality(alternatives[0])), ...joins];
  for (let found = true; found; ) {
    found = false;
    // Breadth first: what hangs on the earliest.
    let best: { alias: string; condition: Condition; depth: number } | null = null;
    for (const condition of ordered) {
      const missing = [...condition.aliases].filter((alias) => !reached.has(alias));
      const [alias] = missing;
      if (missing.length !== 1 || alias === undefined || !condition.reach.has(alias)) continue;
      const depth = 1 + Math.max(...[...condition.aliases].map((other) => reached.get(other)?.depth ?? 0));
      if (best === null || depth < best.depth) best = { alias, condition, depth };
    }
    if (best !== null) {
      reached.set(best.alias, { condition: best.condition, order: reached.size, depth: best.depth });
      found = true;
    }
  }
  return reached;
}

function filters(graph: Graph, alias: string): unknown[] {
  return graph.conditions
    .filter(
      (condition) =>
        condition.aliases.size === 1 &&
        condition.aliases.has(alias) &&
        condition.reach.has(alias) &&
        condition.alternatives.length === 1 &&
        usable(graph, condition),
    )
    .map((condition) => condition.alternatives[0]);
}

/** An optional relation may be absent where the condition stands; then only a comparison that is false for NULL says something of its rows. */
function usable(graph: Graph, condition: Condition): boolean {
  return [...condition.aliases].every((alias) => {
    const source = graph.sources.get(alias);
    if (source === undefined) return false;
    if (!source.optional.some((join) => condition.below.has(join))) return true;
    const sides = sidesOf(condition.alternatives[0]);
    return sides?.some((side) => columnOf(side)?.alias === alias) === true && condition.alternatives.length === 1;
  });
}

const comparisons = new Set(['=', '<', '>', '<=', '>=', '<>']);

/** The two sides of a comparison that is false for NULL. */
export function sidesOf(condition: unknown): readonly [unknown, unknown] | null {
  const { kind, fields } = kindOf(condition);
  if (kind !== 'A_Expr' || fields['kind'] !== 'AEXPR_OP' || fields['lexpr'] === undefined) return null;
  const [operator, ...more] = strings(fields['name']);
  return operator !== undefined && more.length === 0 && comparisons.has(operator) ? [fields['lexpr'], fields['rexpr']] : null;
}

export function isEquality(condition: unknown): boolean {
  return sidesOf(condition) !== null && strings(kindOf(condition).fields['name'])[0] === '=';
}

export function isInequality(condition: unknown): boolean {
  return sidesOf(condition) !== null && strings(kindOf(condition).fields['name'])[0] === '<>';
}

function readGraph(select: Tree): Graph {
  const sources = new Map<string, Source>();
  const conditions: Condition[] = [];
  let joins = 0;

  const add = (condition: unknown, reachable: ReadonlySet<string>, below: ReadonlySet<number>): void => {
    const { kind, fields } = kindOf(condition);
    if (kind === 'SubLink') subLink(fields, below, true);
    else if (hasSubquery(condition)) subqueries(condition, below);
    else conditions.push({ alternatives: [condition], aliases: usedAliases(condition), reach: reachable, below });
  };
  const subqueries = (value: unknown, below: ReadonlySet<number>): void => {
    eachNode(value, (kind, fields) => {
      if (kind === 'SubLink') subLink(fields, below, false);
      return kind !== 'SubLink';
    });
  };
  /** `holds`: rows count only where it is true. */
  const subLink = (fields: Fields, below: ReadonlySet<number>, holds: boolean): void => {
    const body = node(at(fields, 'subselect', 'SelectStmt')) as Tree;
    const inner = block(body, below, false);
    subqueries(fields['testexpr'], below);
    const tested = fields['testexpr'];
    const value = at(list(body['targetList'])[0], 'ResTarget')?.['val'];
    if (tested === undefined || body['op'] !== 'SETOP_NONE' || hasSubquery([tested, value])) return;
    const operator = strings(fields['operName'])[0] ?? '=';
    const single = list(body['targetList']).length === 1 && kindOf(tested).kind !== 'RowExpr';
    const any = fields['subLinkType'] === 'ANY_SUBLINK';
    if (
      !single ||
      !(any ? operator === '=' : operator === '<>') ||
      body['havingClause'] !== undefined ||
      list(body['groupClause']).length > 0
    )
      return;
    if (!isRowValue(value)) return;
    const matches = equal(tested, value);
    // Elsewhere NULL on either side changes the answer, too.
    const alternatives = holds && any ? [matches] : [matches, isNull(tested), isNull(value)];
    conditions.push({ alternatives, aliases: usedAliases([tested, value]), reach: new Set(inner), below });
  };
  /** Aliases of the relations in the FROM of a SELECT. */
  const block = (body: Tree, outer: ReadonlySet<number>, top: boolean): string[] => {
    if (body['op'] !== 'SETOP_NONE') {
      return [body['larg'], body['rarg']].flatMap((side) => block(node(side) as Tree, outer, false));
    }
    const own = new Set(outer);
    const visit = (item: unknown, optional: readonly number[]): { readonly aliases: string[]; readonly below: ReadonlySet<number> } => {
      const { kind, fields } = kindOf(item);
      const found = relationOf(item);
      if (found !== null || isConstantRows(item)) {
        const alias = fromAliases(item)[0] ?? '';
        sources.set(alias, { alias, item: item as Tree, optional, top, relation: found });
        return { aliases: [alias], below: new Set() };
      }
      if (kind === 'RangeSubselect') {
        block(node(at(fields, 'subquery', 'SelectStmt')) as Tree, own, false);
        return { aliases: [], below: new Set() };
      }
      if (kind !== 'JoinExpr') {
        subqueries(item, own);
        return { aliases: [], below: new Set() };
      }
      const id = joins++;
      const type = fields['jointype'];
      const outerJoin = type !== 'JOIN_INNER';
      if (outerJoin) own.add(id);
      const left = visit(fields['larg'], type === 'JOIN_LEFT' || !outerJoin ? optional : [...optional, id]);
      const right = visit(fields['rarg'], type === 'JOIN_RIGHT' || !outerJoin ? optional : [...optional, id]);
      const below = new Set([...left.below, ...right.below, ...outer]);
      const both = [...left.aliases, ...right.aliases];
      const reachable = new Set(type === 'JOIN_LEFT' ? right.aliases : type === 'JOIN_RIGHT' ? left.aliases : outerJoin ? [] : both);
      for (const condition of conjuncts(fields['quals'])) add(condition, reachable, below);
      return { aliases: both, below: outerJoin ? new Set([...below, id]) : below };
    };
    const aliases = list(body['fromClause']).flatMap((item) => visit(item, []).aliases);
    for (const condition of conjuncts(body['whereClause'])) add(condition, new Set(aliases), own);
    const { fromClause: _, whereClause: __, ...rest } = body;
    subqueries(rest, own);
    return aliases;
  };
  block(select, new Set(), true);
  return { sources, conditions };
}

/** Computed from one row, so that it is the same for the rows of the subquery and for its result. */
function isRowValue(value: unknown): boolean {
  let plain = true;
  eachNode(value, (kind) => {
    if (kind === 'FuncCall') plain = false;
    return undefined;
  });
  return plain;
}

function isNull(value: unknown): unknown {
  const test = parseExpression('x IS NULL');
  return { NullTest: { ...node(kindOf(test).fields), arg: value } };
}
