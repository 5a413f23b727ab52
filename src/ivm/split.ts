/**
 * A query as stages: each a query over live relations and earlier stages that one way of maintenance can keep.
 * Invariant: the last stage is the query; a stage that others read is stored with changes of its own, as a live relation is.
 * Where to split: under what cannot follow the changes of what is below it (aggregates over outer joins, windows over groups, set
 * operations), and so that a value computed from everything (a threshold) is compared last, over rows that are stored already.
 */

import { chooseAnchor } from './affected.ts';
import {
  allOf,
  columnOf,
  columnRef,
  conjuncts,
  copy,
  meaningOf,
  NotRewritable,
  parseExpression,
  relationItem,
  replace,
  resTarget,
  selectFields,
  stageSchema,
  type Tree,
} from './ast.ts';
import { groupMembers, replaceGroupingSets } from './grouping-sets.ts';
import { cteMark, outputNames } from './normalise.ts';
import {
  distinctOn,
  eachNode,
  type FunctionKinds,
  freeAliases,
  fromAliases,
  hasAggregate,
  hasSetFunction,
  hasSubquery,
  hasSubqueryBesideAggregates,
  hasWindowCall,
  innerItems,
  isAggregate,
  isConstantRows,
  isGrouped,
  isLinear,
  usedAliases,
} from './query-parts.ts';
import { setOperation, unionStage } from './set-operations.ts';
import type { Stage, StageMaker, StageWay } from './stage.ts';
import { at, type Fields, kindOf, list, node } from './tree.ts';
import type { LiveRelation } from './types.ts';

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
    if (!this.#isPlain(select) || hasSubquery(select)) return null;
    const { sortClause: _, ...unsorted } = this.#from(copy(select));
    return isLinear(unsorted) ? unsorted : null;
  }

  #made(select: Tree, way: StageWay): Stage {
    return { select, columns: outputNames(select), way };
  }

  #stage(given: Tree): Stage {
    if (given['withClause'] !== undefined) return this.#made(given, { kind: 'whole', why: 'a recursive query' });
    if (given['limitCount'] !== undefined || given['limitOffset'] !== undefined) return this.#top(given);
    const { sortClause, ...unsorted } = given;
    if (given['op'] !== 'SETOP_NONE') return setOperation(this, unsorted);
    if (list(given['valuesLists']).length > 0) return this.#made(given, { kind: 'whole', why: 'a list of constant rows' });
    if (list(given['fromClause']).length === 0 && !hasSubquery(given)) return this.#made(given, { kind: 'whole', why: 'a constant row' });
    const full = this.#fullJoin(unsorted);
    return full ?? this.#block(distinctOn(given)?.length ? given : unsorted);
  }

  /** ORDER BY .. LIMIT: everything is a stage, the first rows of it are read in order. */
  #top(given: Tree): Stage {
    const { limitCount, limitOffset, limitOption, sortClause, ...rest } = given;
    const all: Tree = { ...rest, limitOption: 'LIMIT_OPTION_DEFAULT' };
    if (hasSubquery([limitCount, limitOffset])) throw new NotRewritable('a subquery in LIMIT');
    const names = outputNames(given);
    const on = distinctOn(given);
    const hidden: Tree[] = [];
    const orders = list(sortClause).map((item) => {
      const sort = node(at(item, 'SortBy'));
      const place = this.#sortPlace(sort['node'], given, names);
      if (place !== null) return { sort, column: place };
      if (given['op'] !== 'SETOP_NONE' || on !== null) throw new NotRewritable('ORDER BY of what is not shown');
      hidden.push(resTarget(`mr$o${hidden.length + 1}`, sort['node']));
      return { sort, column: `mr$o${hidden.length}` };
    });
    const inner: Tree = hidden.length === 0 ? all : { ...all, targetList: [...list(all['targetList']), ...hidden] };
    if (on !== null && on.length > 0) inner['sortClause'] = sortClause;
    const stage = this.compile(inner);
    const { select, alias } = this.read(stage);
    const ordered = this.stages[stage];
    if (ordered !== undefined) this.stages[stage] = { ...ordered, order: orders };
    return this.#made(
      {
        ...select,
        targetList: list(select['targetList']).slice(0, names.length),
        sortClause: orders.map(({ sort, column }) => ({ SortBy: { ...sort, node: columnRef(alias, column) } })),
        ...(limitOffset === undefined ? {} : { limitOffset }),
        ...(limitCount === undefined ? {} : { limitCount }),
        limitOption,
      },
      { kind: 'whole', why: 'the first rows in an order' },
    );
  }

  #sortPlace(sort: unknown, given: Tree, names: readonly string[]): string | null {
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

  #block(given: Tree): Stage {
    const grouped = isGrouped(given, this.kinds);
    const windows = hasWindowCall([given['targetList'], given['sortClause']]);
    const distinct = distinctOn(given);
    const shown = [given['targetList'], given['havingClause'], given['sortClause'], distinct];
    if (grouped) {
      const above = windows || distinct !== null || hasSetFunction(given['targetList'], this.kinds);
      const alone = list(given['groupClause']).length === 0 && given['havingClause'] !== undefined;
      if (above || alone || hasSubqueryBesideAggregates(shown, this.kinds)) return this.#stage(this.splitGroups(given));
      if (hasSubquery([given['groupClause'], shown])) return this.#stage(this.#splitRows(given));
      const sets = replaceGroupingSets(this, given);
      if (sets !== null) return this.#stage(sets);
    } else if (windows && distinct !== null) return this.#stage(this.#splitDistinct(given));
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
    if (distinct !== null) return this.#stage(this.#splitDistinct(select));
    if (this.#thresholds(select).length > 0) return this.#stage(this.#splitRows(select));
    if (grouped) {
      const groups = list(select['groupClause']);
      const found = groups.length === 0 ? null : chooseAnchor(select, this.live, groups);
      if (found === null) return this.#stage(this.#splitRows(select));
      return this.#made(select, { kind: 'keyed', anchor: found.alias, key: found.key, what: 'touched groups' });
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
    const made = this.#rowsStage(below, allOf(conditions.filter((condition) => !stays(condition))), above);
    return { ...made.above, fromClause: [made.item, ...items.filter((item) => !below.includes(item))] };
  }

  /** A stage of the rows of `items`, with what `above` needs of them, and `above` over it. */
  #rowsStage(items: readonly unknown[], where: unknown, above: Tree): { readonly item: Tree; readonly above: Tree } {
    const own = new Set(items.flatMap(fromAliases));
    const alias = this.alias();
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
        return used.size > 0 && [...used].every((name) => own.has(name));
      };
      // A correlated subquery belongs to the rows; one over columns alone goes up with the rest.
      if (kind === 'SubLink' && isOwn(whole)) return place(whole);
      return kind === 'ColumnRef' && own.has(columnOf({ ColumnRef: fields })?.alias ?? '') ? place(whole) : undefined;
    });
    if (targets.length === 0) targets.push(resTarget('x1', parseExpression('1')));
    const stage = this.compile(selectFields(targets, items, where));
    return { item: this.item(stage, alias), above: changed as Tree };
  }

  splitGroups(select: Tree): Tree {
    const alias = this.alias();
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
      return kind === 'FuncCall' && isAggregate(fields, this.kinds) ? place(whole, `a${places.size + 1}`) : group(kind, fields, whole);
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
    const stage = this.compile(lower);
    return { ...defined(above), fromClause: [this.item(stage, alias)], limitOption: 'LIMIT_OPTION_DEFAULT', op: 'SETOP_NONE' };
  }

  /** DISTINCT [ON] over a stage with everything else. */
  #splitDistinct(select: Tree): Tree {
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
    const stage = this.compile({ ...rest, targetList: [...targets, ...unique] });
    const { select: read, alias } = this.read(stage);
    const column = (value: unknown): Tree => columnRef(alias, known.get(meaningOf(value)) ?? '');
    return {
      ...read,
      targetList: list(read['targetList']).slice(0, targets.length),
      distinctClause: list(distinctClause).map((item) => (kindOf(item).kind === '' ? item : column(item))),
      sortClause: list(sortClause).map((item) => ({ SortBy: { ...at(item, 'SortBy'), node: column(at(item, 'SortBy')?.['node']) } })),
    };
  }

  /** Subqueries in FROM pulled up or made stages, full joins made stages. */
  #from(select: Tree): Tree {
    let { whereClause } = select;
    const pulled = new Map<string, ReadonlyMap<string, unknown>>();
    const visit = (item: unknown, inner: boolean): unknown[] => {
      const { kind, fields } = kindOf(item);
      if (kind === 'RangeSubselect') return pullUp(item as Tree, fields, inner);
      if (kind !== 'JoinExpr') return [item];
      const type = fields['jointype'];
      const all = inner && type === 'JOIN_INNER';
      const left = visit(fields['larg'], all || (inner && type === 'JOIN_LEFT'));
      const right = visit(fields['rarg'], all || (inner && type === 'JOIN_RIGHT'));
      return [{ JoinExpr: { ...fields, larg: joined(left), rarg: joined(right) } }];
    };
    const pullUp = (item: Tree, fields: Fields, inner: boolean): unknown[] => {
      const body = node(at(fields, 'subquery', 'SelectStmt')) as Tree;
      const alias = fromAliases(item)[0] ?? '';
      if (isConstantRows(item)) return [item];
      if (body['withClause'] === undefined && freeAliases(body).size > 0) {
        return [{ RangeSubselect: { ...fields, subquery: { SelectStmt: this.#inside(body) } } }];
      }
      if (inner && this.#isPlain(body)) {
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
    return this.#fullJoins(substitute({ ...select, fromClause: items, whereClause }) as Tree);
  }

  #sharedStage(fields: Fields, body: Tree): number {
    const shared = fields[cteMark];
    const known = shared === undefined ? undefined : this.#shared.get(shared);
    if (known !== undefined) return known;
    const stage = this.compile(body);
    if (shared !== undefined) this.#shared.set(shared, stage);
    return stage;
  }

  /** FROM and WHERE with one output row for each row: can be moved into the FROM of the query that reads it. */
  #isPlain(body: Tree): boolean {
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
      !hasAggregate(body['targetList'], this.kinds) &&
      !hasWindowCall(body['targetList']) &&
      !hasSetFunction(body['targetList'], this.kinds) &&
      !hasSubquery(body['targetList'])
    );
  }

  /** Rows of one full join and nothing else. */
  #fullJoin(select: Tree): Stage | null {
    const [item, ...more] = list(select['fromClause']);
    const { kind, fields } = kindOf(item);
    if (kind !== 'JoinExpr' || fields['jointype'] !== 'JOIN_FULL' || more.length > 0) return null;
    if (!this.#isPlain(select) || select['whereClause'] !== undefined) return null;
    const { larg, rarg, quals } = fields;
    const join = (left: unknown, right: unknown, on: unknown): Tree => ({
      JoinExpr: { jointype: 'JOIN_LEFT', larg: left, rarg: right, quals: on },
    });
    const [other, on] = this.#renamed([larg, quals], fromAliases(larg)) as [unknown, unknown];
    const none = parseExpression('NOT EXISTS (SELECT 1)');
    const match = selectFields([resTarget('x1', parseExpression('1'))], [other], on);
    const unmatched = replace(none, (name, inside) =>
      name === 'SubLink' ? { SubLink: { ...inside, subselect: { SelectStmt: match } } } : undefined,
    );
    return unionStage(
      this,
      [
        { ...select, fromClause: [join(larg, rarg, quals)] },
        { ...select, fromClause: [join(rarg, larg, parseExpression('false'))], whereClause: unmatched },
      ],
      outputNames(select),
      false,
    );
  }

  /** A copy in which these aliases are others. */
  #renamed(value: unknown, aliases: readonly string[]): unknown {
    const names = new Map(aliases.map((alias) => [alias, this.alias()]));
    return replace(copy(value), (kind, fields) => {
      const column = kind === 'ColumnRef' ? columnOf({ ColumnRef: fields }) : null;
      const name = column === null ? undefined : names.get(column.alias);
      if (column !== null) return name === undefined ? undefined : columnRef(name, column.column);
      const alias = kind.startsWith('Range') ? at(fields, 'alias') : undefined;
      const other = alias === undefined ? undefined : names.get(String(alias['aliasname']));
      if (alias === undefined || other === undefined) return undefined;
      return {
        [kind]: {
          ...(this.#renamed(
            fields,
            aliases.filter(() => false),
          ) as Tree),
          alias: { ...alias, aliasname: other },
        },
      };
    });
  }

  /** `a FULL JOIN b` is `a LEFT JOIN b` and the rows of b that match none of a: a stage of two arms. */
  #fullJoins(select: Tree): Tree {
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
      const made = this.#rowsStage([full], undefined, above);
      changed = replace(made.above, (kind, fields) =>
        kind === 'RangeVar' && fields['schemaname'] === 'mr$here' ? made.item : undefined,
      ) as Tree;
    }
  }

  /** Subqueries in expressions. `join`: single values may become one-row items of FROM. */
  #subqueries(select: Tree, join: boolean): Tree {
    const added: Tree[] = [];
    const clause = (value: unknown, here: boolean): unknown =>
      replace(value, (kind, fields) => (kind === 'SubLink' ? this.#subLink(fields, here ? added : null) : undefined));
    const { fromClause, whereClause, targetList, ...rest } = select;
    const made: Tree = {
      ...(clause(rest, false) as Tree),
      fromClause: clause(fromClause, false),
      whereClause: clause(whereClause, true),
      targetList: clause(targetList, join),
    };
    return { ...made, fromClause: [...list(made['fromClause']), ...added] };
  }

  #subLink(fields: Fields, added: Tree[] | null): unknown {
    const given = node(at(fields, 'subselect', 'SelectStmt')) as Tree;
    const type = fields['subLinkType'];
    const body = type === 'EXISTS_SUBLINK' ? withoutLimit(given) : given;
    const tested = fields['testexpr'] === undefined ? {} : { testexpr: fields['testexpr'] };
    const put = (select: Tree): Tree => ({ SubLink: { ...fields, ...tested, subselect: { SelectStmt: select } } });
    if (freeAliases(body).size > 0) return put(this.#inside(body));
    if (type === 'EXPR_SUBLINK' && this.#isOneRow(body) && added !== null) {
      const alias = this.alias();
      const stage = this.compile(body);
      added.push(this.item(stage, alias));
      this.#oneRow.add(alias);
      return columnRef(alias, this.columns(stage)[0] ?? '');
    }
    const plain = this.#isPlain(body) && !hasSubquery(body) && innerItems(list(body['fromClause'])) !== null;
    if (plain || (type === 'ARRAY_SUBLINK' && body['sortClause'] !== undefined)) return put(this.#inside(body));
    if (list(body['fromClause']).length === 0 && body['op'] === 'SETOP_NONE') return put(this.#inside(body));
    return put(this.read(this.compile(body)).select);
  }

  /** Exactly one row, whatever there is. */
  #isOneRow(body: Tree): boolean {
    const clauses = ['withClause', 'groupClause', 'havingClause', 'limitCount', 'limitOffset', 'distinctClause', 'valuesLists'];
    return (
      body['op'] === 'SETOP_NONE' &&
      clauses.every((clause) => body[clause] === undefined) &&
      hasAggregate(body['targetList'], this.kinds) &&
      !hasSetFunction(body['targetList'], this.kinds)
    );
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

/** Expressions that all windows partition by. */
function commonPartition(select: Tree): unknown[] {
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

function joined(items: readonly unknown[]): unknown {
  return items.reduce((larg, rarg) => ({ JoinExpr: { jointype: 'JOIN_INNER', larg, rarg } }));
}

/** EXISTS asks for one row at most. */
function withoutLimit(body: Tree): Tree {
  const count =
    at(body['limitCount'], 'A_Const', 'ival')?.['ival'] ?? at(body['limitCount'], 'TypeCast', 'arg', 'A_Const', 'ival')?.['ival'];
  if (typeof count !== 'number' || count < 1 || body['limitOffset'] !== undefined) return body;
  const { limitCount: _, sortClause: __, ...rest } = body;
  return { ...rest, limitOption: 'LIMIT_OPTION_DEFAULT' };
}

function defined(tree: Tree): Tree {
  return Object.fromEntries(Object.entries(tree).filter(([, value]) => value !== undefined));
}
