/**
 * A query with nothing left to guess: every column reference qualified, every alias used once in the whole query, every output named,
 * USING written as ON, and common table expressions put where they are used.
 * Invariant: it means the same as the query it was made from.
 */
import { allOf, columnRef, copy, equal, liveSchema, NotRewritable, relationItem, replace, type Tree } from './ast.ts';
import { at, contains, type Fields, isFields, kindOf, list, node, strings } from './tree.ts';
import type { LiveRelation } from './types.ts';

/** Marks a subquery in FROM that is a common table expression: those with one number are the same query. */
export const cteMark = 'mr$cte';

interface Item {
  readonly alias: string;
  readonly unique: string;
  /** Names as the query says them -> as the relation has them. */
  readonly columns: ReadonlyMap<string, string>;
}

interface Scope {
  readonly items: Item[];
  /** Columns that USING merged. */
  readonly merged: Map<string, unknown>;
  readonly parent: Scope | null;
}

interface Cte {
  readonly body: Tree;
  readonly columns: readonly string[];
  readonly number: number;
  readonly ctes: Ctes;
}
type Ctes = ReadonlyMap<string, Cte>;

/** Fields of the SELECT, made plain. `live`: relations by the numbers in its text. */
export function normalise(select: Fields, live: readonly LiveRelation[]): Tree {
  return new Normaliser(live).select(copy(select) as Tree, null, new Map());
}

/** Names of the columns of a normalised SELECT. */
export function outputNames(select: Fields): string[] {
  const left = at(select, 'larg');
  if (left !== undefined) return outputNames(left);
  if (list(select['valuesLists']).length > 0) return rowOf(select).map((_, i) => `column${i + 1}`);
  return list(select['targetList']).map((entry, i) => {
    const { name, val } = node(at(entry, 'ResTarget'));
    if (typeof name === 'string') return name;
    return strings(at(val, 'ColumnRef')?.['fields']).at(-1) ?? `column${i + 1}`;
  });
}

function rowOf(select: Fields): readonly unknown[] {
  return list(at(list(select['valuesLists'])[0], 'List')?.['items']);
}

class Normaliser {
  readonly #live: readonly LiveRelation[];
  #aliases = 0;
  #ctes = 0;

  constructor(live: readonly LiveRelation[]) {
    this.#live = live;
  }

  select(given: Tree, parent: Scope | null, outer: Ctes): Tree {
    const { withClause, ...select } = given;
    const ctes = withClause === undefined ? outer : this.#with(node(withClause), select, outer);
    if (ctes === null) throw new NotRewritable('a recursive query inside an expression');
    if (select['op'] !== 'SETOP_NONE') {
      return {
        ...select,
        larg: this.select(node(select['larg']) as Tree, parent, ctes),
        rarg: this.select(node(select['rarg']) as Tree, parent, ctes),
      };
    }
    const scope: Scope = { items: [], merged: new Map(), parent };
    if (list(select['valuesLists']).length > 0) return this.#expressions(select, scope, ctes) as Tree;
    const from = list(select['fromClause']).map((item) => this.#item(item, scope, ctes));
    const names = outputNames(select);
    const targets = list(select['targetList']).map((entry, i) => ({
      ResTarget: { name: names[i], val: this.#expressions(at(entry, 'ResTarget')?.['val'], scope, ctes) },
    }));
    const ordinal = (value: unknown, byName: boolean): unknown => {
      const position = at(value, 'A_Const', 'ival')?.['ival'];
      const called = strings(at(value, 'ColumnRef')?.['fields']);
      const index = typeof position === 'number' ? position - 1 : byName && called.length === 1 ? names.indexOf(called[0] ?? '') : -1;
      const found = targets[index];
      return found === undefined ? this.#expressions(value, scope, ctes) : copy(found.ResTarget.val);
    };
    return {
      ...select,
      ...optional(
        'distinctClause',
        list(select['distinctClause']).map((item) => (kindOf(item).kind === '' ? item : ordinal(item, true))),
      ),
      targetList: targets,
      fromClause: from,
      ...optional(
        'groupClause',
        list(select['groupClause']).map((item) => ordinal(item, false)),
      ),
      ...optional(
        'sortClause',
        list(select['sortClause']).map((item) => {
          const sort = node(at(item, 'SortBy'));
          return { SortBy: { ...sort, node: ordinal(sort['node'], true) } };
        }),
      ),
      ...Object.fromEntries(
        ['whereClause', 'havingClause', 'windowClause', 'limitOffset', 'limitCount'].flatMap((clause) =>
          select[clause] === undefined ? [] : [[clause, this.#expressions(select[clause], scope, ctes)]],
        ),
      ),
    };
  }

  /** The common table expressions in scope. A recursive one stays as it is, with all that it may need. */
  #with(clause: Fields, _select: Tree, outer: Ctes): Ctes | null {
    const all = new Map(outer);
    for (const item of list(clause['ctes'])) {
      const cte = node(at(item, 'CommonTableExpr'));
      const called = String(cte['ctename']);
      const query = at(cte['ctequery'], 'SelectStmt');
      if (query === undefined || cte['search_clause'] !== undefined || cte['cycle_clause'] !== undefined)
        throw new NotRewritable('a common table expression of an unusual kind');
      const recursive = clause['recursive'] === true && mentions(query, called);
      if (recursive && outer.size > 0) throw new NotRewritable('a recursive query that uses another common table expression');
      const renamed = strings(cte['aliascolnames']);
      const columns = outputNames(query).map((name, i) => renamed[i] ?? name);
      const body: Tree = recursive
        ? {
            targetList: columns.map((sval) => ({ ResTarget: { name: sval, val: { ColumnRef: { fields: [{ String: { sval } }] } } } })),
            fromClause: [{ RangeVar: { relname: called, inh: true, relpersistence: 'p' } }],
            limitOption: 'LIMIT_OPTION_DEFAULT',
            withClause: clause,
            op: 'SETOP_NONE',
          }
        : (query as Tree);
      all.set(called, { body, columns, number: ++this.#ctes, ctes: new Map(all) });
    }
    return all;
  }

  #item(item: unknown, scope: Scope, ctes: Ctes): Tree {
    const { kind, fields } = kindOf(item);
    switch (kind) {
      case 'RangeVar':
        return this.#rangeVar(fields, scope, ctes);
      case 'RangeSubselect':
        return this.#subselect(fields, scope, ctes);
      case 'RangeFunction': {
        const functions = this.#expressions(fields['functions'], scope, ctes);
        const alias = this.#add(fields, scope, strings(at(fields, 'alias')?.['colnames']));
        if (list(fields['coldeflist']).length === 0 && strings(at(fields, 'alias')?.['colnames']).length === 0)
          throw new NotRewritable('a function in FROM whose columns are not named');
        return { RangeFunction: { ...fields, functions, alias: { ...at(fields, 'alias'), aliasname: alias } } };
      }
      case 'JoinExpr':
        return this.#join(fields, scope, ctes);
      default:
        throw new NotRewritable('an item of FROM that is neither a table nor a join');
    }
  }

  #add(fields: Fields, scope: Scope, columns: readonly string[], real: readonly string[] = columns): string {
    const alias = String(at(fields, 'alias')?.['aliasname'] ?? fields['relname']);
    const unique = `r${++this.#aliases}`;
    scope.items.push({ alias, unique, columns: new Map(columns.map((column, i) => [column, real[i] ?? column])) });
    return unique;
  }

  #rangeVar(fields: Fields, scope: Scope, ctes: Ctes): Tree {
    const renamed = strings(at(fields, 'alias')?.['colnames']);
    const cte = fields['schemaname'] === undefined ? ctes.get(String(fields['relname'])) : undefined;
    if (cte !== undefined) {
      const raw = cte.body['withClause'] !== undefined;
      if (raw && scope.parent !== null) throw new NotRewritable('a recursive query inside an expression');
      const body = raw ? copy(cte.body) : this.select(copy(cte.body), null, cte.ctes);
      const columns = cte.columns.map((name, i) => renamed[i] ?? name);
      if (!raw) nameOutputs(body, cte.columns);
      const alias = this.#add(fields, scope, columns, cte.columns);
      const values = list(body['valuesLists']).length > 0;
      return {
        RangeSubselect: {
          subquery: { SelectStmt: body },
          alias: values ? named(alias, cte.columns) : { aliasname: alias },
          [cteMark]: cte.number,
        },
      };
    }
    const relation = fields['schemaname'] === liveSchema ? this.#live[Number(fields['relname'])] : undefined;
    if (relation === undefined) throw new NotRewritable('a relation that is not known');
    const real = relation.columns.map((column) => column.name);
    const alias = this.#add(
      fields,
      scope,
      real.map((name, i) => renamed[i] ?? name),
      real,
    );
    return relationItem(liveSchema, Number(fields['relname']), alias);
  }

  #subselect(fields: Fields, scope: Scope, ctes: Ctes): Tree {
    const lateral = fields['lateral'] === true;
    // Earlier items of the same FROM are seen by LATERAL only; expressions around the whole query by all.
    const body = this.select(node(at(fields, 'subquery', 'SelectStmt')) as Tree, lateral ? scope : scope.parent, ctes);
    const renamed = strings(at(fields, 'alias')?.['colnames']);
    const columns = outputNames(body).map((name, i) => renamed[i] ?? name);
    if (new Set(columns).size < columns.length) throw new NotRewritable('a subquery with two columns of the same name');
    const values = list(body['valuesLists']).length > 0;
    if (!values) nameOutputs(body, columns);
    const alias = this.#add(fields, scope, columns);
    return {
      RangeSubselect: {
        ...(lateral ? { lateral } : {}),
        subquery: { SelectStmt: body },
        alias: values ? named(alias, columns) : { aliasname: alias },
      },
    };
  }

  #join(fields: Fields, scope: Scope, ctes: Ctes): Tree {
    if (fields['alias'] !== undefined || fields['join_using_alias'] !== undefined || fields['isNatural'] === true)
      throw new NotRewritable('an alias on a join');
    const before = scope.items.length;
    const larg = this.#item(fields['larg'], scope, ctes);
    const middle = scope.items.length;
    const rarg = this.#item(fields['rarg'], scope, ctes);
    const type = String(fields['jointype']);
    const conditions = strings(fields['usingClause']).map((column) => {
      const side = (items: readonly Item[]): unknown => {
        const found = items.filter((item) => item.columns.has(column));
        const [one] = found;
        if (one === undefined || (found.length > 1 && !scope.merged.has(column))) throw new NotRewritable('USING of a merged column');
        return found.length > 1 ? copy(scope.merged.get(column)) : columnRef(one.unique, one.columns.get(column) ?? column);
      };
      const left = side(scope.items.slice(before, middle));
      const right = side(scope.items.slice(middle));
      if (type === 'JOIN_FULL') scope.merged.set(column, { CoalesceExpr: { args: [copy(left), copy(right)] } });
      else scope.merged.set(column, copy(type === 'JOIN_RIGHT' ? right : left));
      return equal(left, right);
    });
    const on = this.#expressions(fields['quals'], scope, ctes);
    const quals = allOf([...conditions, ...(on === undefined ? [] : [on])]);
    return { JoinExpr: { jointype: type, larg, rarg, ...(quals === undefined ? {} : { quals }) } };
  }

  #expressions(value: unknown, scope: Scope, ctes: Ctes): unknown {
    return replace(value, (kind, fields) => {
      if (kind === 'ColumnRef') return resolve(fields, scope);
      if (kind !== 'SubLink') return undefined;
      const body = this.select(node(at(fields, 'subselect', 'SelectStmt')) as Tree, scope, ctes);
      const tested = fields['testexpr'];
      return {
        SubLink: {
          ...fields,
          ...(tested === undefined ? {} : { testexpr: this.#expressions(tested, scope, ctes) }),
          subselect: { SelectStmt: body },
        },
      };
    });
  }
}

function resolve(fields: Fields, scope: Scope): unknown {
  const names = strings(fields['fields']);
  if (names.length !== list(fields['fields']).length || names.length > 2) throw new NotRewritable('a whole row');
  const column = names.at(-1) ?? '';
  for (let here: Scope | null = scope; here !== null; here = here.parent) {
    if (names.length === 1 && here.merged.has(column)) return copy(here.merged.get(column));
    const found = here.items.filter((item) => (names.length === 1 || item.alias === names[0]) && item.columns.has(column));
    const [one] = found;
    if (found.length > 1) throw new NotRewritable('a column that several relations have');
    if (one !== undefined) return columnRef(one.unique, one.columns.get(column) ?? column);
  }
  throw new NotRewritable('a column that is not known');
}

/** Gives the outputs these names; of a set operation, those of its first arm. */
function nameOutputs(select: Tree, names: readonly string[]): void {
  if (isFields(select['larg'])) {
    nameOutputs(select['larg'] as Tree, names);
    return;
  }
  select['targetList'] = list(select['targetList']).map((entry, i) => ({
    ResTarget: { name: names[i], val: at(entry, 'ResTarget')?.['val'] },
  }));
}

function named(alias: string, columns: readonly string[]): Tree {
  return { aliasname: alias, colnames: columns.map((sval) => ({ String: { sval } })) };
}

function mentions(query: Fields, cte: string): boolean {
  let found = false;
  replace(query, (kind, fields) => {
    if (kind === 'RangeVar' && fields['schemaname'] === undefined && fields['relname'] === cte) found = true;
    return undefined;
  });
  return found;
}

function optional(clause: string, items: readonly unknown[]): Tree {
  return items.length === 0 ? {} : { [clause]: items };
}

/** A construct whose insides this does not follow. */
export function refuseUnknown(select: Fields): void {
  if (contains(select, new Set(['JsonTable', 'RangeTableFunc', 'JsonObjectAgg', 'JsonArrayAgg', 'CurrentOfExpr', 'ParamRef'])))
    throw new NotRewritable('a construct that is not taken apart');
}
