/**
 * A query as stages: each a query over live relations and earlier stages that one way of maintenance can keep.
 * Invariant: the last stage is the query; a stage that others read is stored with changes of its own, as a live relation is.
 * Where to split: under what cannot follow the changes of what is below it (aggregates over outer joins, windows over groups, set
 * operations), and so that a value computed from everything (a threshold) is compared last, over rows that are stored already.
 */

import { chooseAnchor, sidesOf } from './affected.ts';
import {
  allOf,
  columnOf,
  columnRef,
  conjuncts,
  copy,
  equal,
  NotRewritable,
  parseExpression,
  relationItem,
  replace,
  resTarget,
  selectFields,
  stageSchema,
  type Tree,
} from './ast.ts';
import { correlatedGroups } from './correlated.ts';
import { fullJoinRows, splitFullJoins } from './full-join.ts';
import { replaceGroupingSets } from './grouping-sets.ts';
import { rowsStage, splitDistinct, splitGroups } from './layers.ts';
import { cteMark, outputNames } from './normalise.ts';
import { outerGroups } from './outer-groups.ts';
import {
  commonPartition,
  distinctOn,
  type FunctionKinds,
  freeAliases,
  fromAliases,
  hasSetFunction,
  hasSubquery,
  hasSubqueryBesideAggregates,
  hasWindowCall,
  innerItems,
  isConstantRows,
  isGrouped,
  isLinear,
  isOneRow,
  isPlain,
  joined,
  relationOf,
  usedAliases,
} from './query-parts.ts';
import { setOperation } from './set-operations.ts';
import type { Stage, StageMaker, StageWay } from './stage.ts';
import { topRows } from './top-rows.ts';
import { at, type Fields, kindOf, list, node } from './tree.ts';
import type { LiveRelation } from './types.ts';
import { type Live, onlyLookedUp, uniqueMembers } from './unique-rows.ts';

/** Splits a normalised query. Throws NotRewritable. */
export function splitQuery(select: Tree, live: readonly LiveRelation[], kinds: FunctionKinds): Stage[] {
  const splitter = new Splitter(live, kinds);
  splitter.compile(select);
  return splitter.stages;
}

const mostStages = 24;

class Splitter implements StageMaker {
  readonly stages: Stage[] = [];
  readonly kinds: FunctionKinds;
  readonly live: readonly LiveRelation[];
  readonly #shared = new Map<unknown, number>();
  readonly #oneRow = new Set<string>();
  #aliases = 0;

  readonly #known: Live = (number) => this.live[number];

  constructor(live: readonly LiveRelation[], kinds: FunctionKinds) {
    this.live = live;
    this.kinds = kinds;
  }

  /** Adds the stages of a query; the number of the last. */
  compile(select: Tree): number {
    return this.add(this.#stage(select));
  }

  add(stage: Stage): number {
    if (this.stages.length >= mostStages) throw new NotRewritable(`a query of more than ${mostStages} stages`);
    this.stages.push(stage);
    return this.stages.length - 1;
  }

  orderBy(stage: number, order: NonNullable<Stage['order']>): void {
    const ordered = this.stages[stage];
    if (ordered !== undefined) this.stages[stage] = { ...ordered, order };
  }

  alias(): string {
    return `q${++this.#aliases}`;
  }

  /** An item of FROM that reads a stage. */
  item(stage: number, alias = this.alias()): Tree {
    return relationItem(stageSchema, stage, alias);
  }

  columns(stage: number): readonly string[] {
    return this.stages[stage]?.columns ?? [];
  }

  /** `SELECT all columns FROM stage`, with the fields needed to add to it. */
  read(stage: number): { readonly select: Tree; readonly alias: string } {
    const alias = this.alias();
    const targets = this.columns(stage).map((column) => resTarget(column, columnRef(alias, column)));
    return { select: selectFields(targets, [this.item(stage, alias)]), alias };
  }

  linearRows(select: Tree): Tree | null {
    if (!isPlain(select, this.kinds) || hasSubquery(select)) return null;
    const { sortClause: _, ...unsorted } = this.#from(copy(select));
    return isLinear(unsorted) ? unsorted : null;
  }

  #made(select: Tree, way: StageWay): Stage {
    return { select, columns: outputNames(select), way };
  }

  #stage(given: Tree): Stage {
    if (given['withClause'] !== undefined) return this.#made(given, { kind: 'whole', why: 'a recursive query' });
    if (given['limitCount'] !== undefined || given['limitOffset'] !== undefined) return topRows(this, given);
    const { sortClause, ...unsorted } = given;
    if (given['op'] !== 'SETOP_NONE') return setOperation(this, unsorted);
    if (list(given['valuesLists']).length > 0) return this.#made(given, { kind: 'whole', why: 'a list of constant rows' });
    if (list(given['fromClause']).length === 0 && !hasSubquery(given)) return this.#made(given, { kind: 'whole', why: 'a constant row' });
    const full = fullJoinRows(this, unsorted);
    return full ?? this.#block(distinctOn(given)?.length ? given : unsorted);
  }

  #block(given: Tree): Stage {
    const grouped = isGrouped(given, this.kinds);
    const windows = hasWindowCall([given['targetList'], given['sortClause']]);
    const distinct = distinctOn(given);
    const shown = [given['targetList'], given['havingClause'], given['sortClause'], distinct];
    if (grouped) {
      const above = windows || distinct !== null || hasSetFunction(given['targetList'], this.kinds);
      const alone = list(given['groupClause']).length === 0 && given['havingClause'] !== undefined;
      if (above || alone || hasSubqueryBesideAggregates(shown, this.kinds)) return this.#stage(splitGroups(this, given));
      if (hasSubquery([given['groupClause'], shown])) return this.#stage(this.#splitRows(given));
      const sets = replaceGroupingSets(this, given, (grouped) => splitGroups(this, grouped));
      if (sets !== null) return this.#stage(sets);
    } else if (windows && distinct !== null) return this.#stage(splitDistinct(this, given));
    const select = this.#from(copy(given));
    const prepared = this.#subqueries(select, !grouped);
    return this.#decide(prepared, grouped, windows, distinctOn(prepared));
  }

  #decide(select: Tree, grouped: boolean, windows: boolean, distinct: readonly unknown[] | null): Stage {
    const linear = isLinear(select) && !hasSubquery(select);
    if (windows || (distinct !== null && distinct.length > 0)) {
      const key = distinct !== null && distinct.length > 0 ? distinct : commonPartition(select);
      if (!linear) return this.#stage(this.#splitRows(select));
      if (key.length === 0) return this.#made(select, { kind: 'whole', why: 'a window over all rows' });
      const what = distinct === null ? 'touched partitions of its windows' : 'touched values of DISTINCT ON';
      return this.#made(select, { kind: 'keyed', anchor: null, key, what });
    }
    if (linear) return this.#made(select, { kind: 'linear' });
    if (distinct !== null) return this.#stage(splitDistinct(this, select));
    if (this.#thresholds(select).length > 0) return this.#stage(this.#splitRows(select));
    if (grouped) {
      const groups = list(select['groupClause']);
      const found = groups.length === 0 ? null : chooseAnchor(select, this.live, groups);
      if (found === null) return this.#stage(this.#splitRows(select));
      return this.#made(select, {
        kind: 'keyed',
        anchor: found.alias,
        key: found.key,
        what: 'touched groups',
        sums: outerGroups(select, this.kinds),
      });
    }
    const found = chooseAnchor(select, this.live, null);
    if (found === null) return this.#made(select, { kind: 'whole', why: 'a query without a relation whose rows it follows' });
    return this.#made(select, { kind: 'keyed', anchor: found.alias, key: found.key, what: 'rows whose own or joined rows changed' });
  }

  /** One-row stages in FROM beside something that is not linear: compared above it. */
  #thresholds(select: Tree): string[] {
    const items = list(select['fromClause']);
    const up = items.flatMap(fromAliases).filter((alias) => this.#oneRow.has(alias));
    return up.length < items.length ? up : [];
  }

  /** The query over a stage with its FROM and WHERE. One-row stages stay above. */
  #splitRows(select: Tree): Tree {
    const up = new Set(this.#thresholds(select));
    const stays = (value: unknown): boolean => [...usedAliases(value)].some((alias) => up.has(alias));
    const { fromClause, whereClause, ...rest } = select;
    const items = list(fromClause);
    const conditions = conjuncts(whereClause);
    const above: Tree = { ...rest, whereClause: allOf(conditions.filter(stays)) };
    const below = items.filter((item) => !fromAliases(item).some((alias) => up.has(alias)));
    const made = rowsStage(this, below, allOf(conditions.filter((condition) => !stays(condition))), above, true);
    return { ...made.above, fromClause: [made.item, ...items.filter((item) => !below.includes(item))] };
  }

  /** `x IN (query)` whose values come once each is a join. */
  #members(select: Tree): Tree {
    const items: Tree[] = [];
    const from = list(select['fromClause']);
    if (from.length === 0) return select;
    const conditions = conjuncts(select['whereClause']).map((condition) => {
      const found = uniqueMembers(condition, this.#known, this.kinds);
      if (found === null) return condition;
      const aliasname = this.alias();
      items.push({ RangeSubselect: { subquery: { SelectStmt: found.body }, alias: { aliasname } } });
      return equal(found.tested, columnRef(aliasname, found.column));
    });
    return items.length === 0 ? select : { ...select, fromClause: [...from, ...items], whereClause: allOf(conditions) };
  }

  /** Subqueries in FROM pulled up or made stages, full joins made stages. */
  #from(given: Tree): Tree {
    const select = this.#members(given);
    let { whereClause } = select;
    const pulled = new Map<string, ReadonlyMap<string, unknown>>();
    const visit = (item: unknown, inner: boolean): unknown[] => {
      const { kind, fields } = kindOf(item);
      if (kind === 'RangeSubselect') return pullUp(item as Tree, fields, inner);
      if (kind !== 'JoinExpr') return [item];
      const type = fields['jointype'];
      const all = inner && type === 'JOIN_INNER';
      const side = (item: unknown, optional: boolean, below: boolean): { readonly item: unknown; readonly where: unknown } => {
        const one = optional ? this.#columnsOnly(item, type === 'JOIN_FULL') : null;
        if (one === null) return { item: joined(visit(item, below)), where: undefined };
        pulled.set(one.alias, one.columns);
        return one;
      };
      const left = side(fields['larg'], type === 'JOIN_RIGHT' || type === 'JOIN_FULL', all || (inner && type === 'JOIN_LEFT'));
      const right = side(fields['rarg'], type === 'JOIN_LEFT' || type === 'JOIN_FULL', all || (inner && type === 'JOIN_RIGHT'));
      const { quals: on, ...rest } = fields;
      const quals = allOf([on, left.where, right.where].flatMap(conjuncts));
      return [{ JoinExpr: { ...rest, larg: left.item, rarg: right.item, ...(quals === undefined ? {} : { quals }) } }];
    };
    const pullUp = (item: Tree, fields: Fields, inner: boolean): unknown[] => {
      const body = node(at(fields, 'subquery', 'SelectStmt')) as Tree;
      const alias = fromAliases(item)[0] ?? '';
      if (isConstantRows(item)) return [item];
      if (body['withClause'] === undefined && freeAliases(body).size > 0) {
        return [{ RangeSubselect: { ...fields, subquery: { SelectStmt: this.#inside(body) } } }];
      }
      if (inner && isPlain(body, this.kinds)) {
        const flat = this.#from(copy(body));
        whereClause = allOf([...conjuncts(whereClause), ...conjuncts(flat['whereClause'])]);
        const targets = list(flat['targetList']).map((entry) => node(at(entry, 'ResTarget')));
        pulled.set(alias, new Map(targets.map((target) => [String(target['name']), target['val']])));
        return [...list(flat['fromClause'])];
      }
      return [this.item(this.#sharedStage(fields, body), alias)];
    };
    const items = list(select['fromClause']).flatMap((item) => visit(item, true));
    const substitute = (value: unknown): unknown =>
      replace(value, (kind, fields) => {
        const column = kind === 'ColumnRef' ? columnOf({ ColumnRef: fields }) : null;
        const found = column === null ? undefined : pulled.get(column.alias)?.get(column.column);
        return found === undefined ? undefined : copy(found);
      });
    return splitFullJoins(this, substitute({ ...select, fromClause: items, whereClause }) as Tree);
  }

  /** The optional side of a join, when it is some columns of one relation: the relation itself, its filter to be part of the condition. */
  #columnsOnly(
    item: unknown,
    unfiltered: boolean,
  ): { readonly item: unknown; readonly alias: string; readonly columns: ReadonlyMap<string, unknown>; readonly where: unknown } | null {
    const { kind, fields } = kindOf(item);
    const body = node(at(fields, 'subquery', 'SelectStmt')) as Tree;
    const [relation, ...more] = list(body['fromClause']);
    if (kind !== 'RangeSubselect' || more.length > 0 || relationOf(relation) === null || !isPlain(body, this.kinds) || hasSubquery(body))
      return null;
    const targets = list(body['targetList']).map((entry) => node(at(entry, 'ResTarget')));
    const where = body['whereClause'];
    if (freeAliases(body).size > 0 || (unfiltered && where !== undefined) || !targets.every(({ val }) => columnOf(val) !== null))
      return null;
    const columns = new Map(targets.map((target) => [String(target['name']), target['val']]));
    return { item: relation, alias: fromAliases(item)[0] ?? '', columns, where };
  }

  #sharedStage(fields: Fields, body: Tree): number {
    const shared = fields[cteMark];
    const known = shared === undefined ? undefined : this.#shared.get(shared);
    if (known !== undefined) return known;
    const stage = this.compile(body);
    if (shared !== undefined) this.#shared.set(shared, stage);
    return stage;
  }

  /** Subqueries in expressions. `join`: single values may become one-row items of FROM. */
  #subqueries(select: Tree, join: boolean): Tree {
    const added: Added = { items: [], conditions: [], optional: [] };
    const own = new Set(list(select['fromClause']).flatMap(fromAliases));
    const clause = (value: unknown, here: boolean): unknown =>
      replace(value, (kind, fields) => {
        if (kind !== 'SubLink') return undefined;
        return (here ? this.#lookedUp(fields, own, added, select) : null) ?? this.#subLink(fields, here ? added.items : null);
      });
    const { fromClause, whereClause, targetList, ...rest } = select;
    const made: Tree = {
      ...(clause(rest, false) as Tree),
      fromClause: clause(fromClause, false),
      whereClause: allOf(conjuncts(whereClause).map((condition) => clause(this.#compared(condition, own, added, select), true))),
      targetList: clause(targetList, join),
    };
    const items = [...list(made['fromClause']), ...added.items];
    const from = added.optional.reduce<unknown[]>(
      (before, { item, quals }) => [{ JoinExpr: { jointype: 'JOIN_LEFT', larg: joined(before), rarg: item, quals } }],
      items,
    );
    return { ...made, fromClause: from, whereClause: allOf([...conjuncts(made['whereClause']), ...added.conditions]) };
  }

  /** `x < (SELECT avg(..) .. WHERE inner = outer)`: a join with groups, as no group means no result. */
  #compared(condition: unknown, own: ReadonlySet<string>, added: Added, select: Tree): unknown {
    const sides = sidesOf(condition);
    const place = sides?.findIndex((side) => kindOf(side).kind === 'SubLink') ?? -1;
    const found = sides === null || place < 0 ? null : correlatedGroups(kindOf(sides[place]).fields, own, this.kinds);
    if (found === null || found.empty !== 'null') return condition;
    const alias = this.alias();
    const stage = this.compile(onlyLookedUp(found, select, this.#known, () => this.alias()) ?? found.select);
    added.items.push(this.item(stage, alias));
    added.conditions.push(...found.outer.map((value, i) => equal(columnRef(alias, `k${i + 1}`), value)));
    const { fields } = kindOf(condition);
    return { A_Expr: { ...fields, [place === 0 ? 'lexpr' : 'rexpr']: columnRef(alias, 'v') } };
  }

  /** Elsewhere: an outer join with groups. */
  #lookedUp(fields: Fields, own: ReadonlySet<string>, added: Added, select: Tree): unknown {
    const found = correlatedGroups(fields, own, this.kinds);
    if (found === null) return null;
    const alias = this.alias();
    const item = this.item(this.compile(onlyLookedUp(found, select, this.#known, () => this.alias()) ?? found.select), alias);
    added.optional.push({ item, quals: allOf(found.outer.map((value, i) => equal(columnRef(alias, `k${i + 1}`), value))) });
    if (found.empty === 'null') return columnRef(alias, 'v');
    return replace(parseExpression('COALESCE(x.v, 0::bigint)'), (kind) => (kind === 'ColumnRef' ? columnRef(alias, 'v') : undefined));
  }

  #subLink(fields: Fields, added: Tree[] | null): unknown {
    const given = node(at(fields, 'subselect', 'SelectStmt')) as Tree;
    const type = fields['subLinkType'];
    const body = type === 'EXISTS_SUBLINK' ? rowsOnly(withoutLimit(given), this.kinds) : given;
    const tested = fields['testexpr'] === undefined ? {} : { testexpr: fields['testexpr'] };
    const put = (select: Tree): Tree => ({ SubLink: { ...fields, ...tested, subselect: { SelectStmt: select } } });
    if (freeAliases(body).size > 0) return put(this.#inside(body));
    if (type === 'EXPR_SUBLINK' && isOneRow(body, this.kinds) && added !== null) {
      const alias = this.alias();
      const stage = this.compile(body);
      added.push(this.item(stage, alias));
      this.#oneRow.add(alias);
      return columnRef(alias, this.columns(stage)[0] ?? '');
    }
    const plain = isPlain(body, this.kinds) && !hasSubquery(body) && innerItems(list(body['fromClause'])) !== null;
    if (plain || (type === 'ARRAY_SUBLINK' && body['sortClause'] !== undefined)) return put(this.#inside(body));
    if (list(body['fromClause']).length === 0 && body['op'] === 'SETOP_NONE') return put(this.#inside(body));
    return put(this.read(this.compile(body)).select);
  }

  /** A query that stays where it is: what is independent inside of it is made stages. */
  #inside(body: Tree): Tree {
    if (body['withClause'] !== undefined) throw new NotRewritable('a recursive query inside an expression');
    if (body['op'] !== 'SETOP_NONE') {
      return { ...body, larg: this.#inside(node(body['larg']) as Tree), rarg: this.#inside(node(body['rarg']) as Tree) };
    }
    const prepared = this.#from(copy(body));
    return replace(prepared, (kind, fields) => (kind === 'SubLink' ? this.#subLink(fields, null) : undefined)) as Tree;
  }
}

interface Added {
  /** Items of FROM with one row, or at most one for each of the others by `conditions`. */
  readonly items: Tree[];
  readonly conditions: unknown[];
  readonly optional: { readonly item: Tree; readonly quals: unknown }[];
}

/** EXISTS looks at no column: what is shown matters only where it decides how many rows there are. */
function rowsOnly(body: Tree, kinds: FunctionKinds): Tree {
  return isPlain(body, kinds) ? { ...body, targetList: [resTarget('x1', parseExpression('1'))] } : body;
}

/** EXISTS asks for one row at most. */
function withoutLimit(body: Tree): Tree {
  const count =
    at(body['limitCount'], 'A_Const', 'ival')?.['ival'] ?? at(body['limitCount'], 'TypeCast', 'arg', 'A_Const', 'ival')?.['ival'];
  if (typeof count !== 'number' || count < 1 || body['limitOffset'] !== undefined) return body;
  const { limitCount: _, sortClause: __, ...rest } = body;
  return { ...rest, limitOption: 'LIMIT_OPTION_DEFAULT' };
}
