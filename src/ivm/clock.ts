/**
 * The time as a relation.
 * Invariant: the query with its calls of the time replaced gives, at every state of the clock, what the query gives at that time; the clock has
 * one row always. So a view over it is kept by changes of the clock like by any others, in whatever way it is kept.
 */
import {
  allOf,
  call,
  castTo,
  columnRef,
  conjuncts,
  copy,
  liveSchema,
  meaningOf,
  relationItem,
  replace,
  selectFields,
  selectText,
  type Tree,
} from './ast.ts';
import { timeColumn } from './clock-relation.ts';
import { hasClock, isClock, mzArgument } from './expiry.ts';
import { cteMark } from './normalise.ts';
import { type FunctionKinds, isAggregate, isGrouped } from './query-parts.ts';
import { type Fields, isFields, kindOf, list, node } from './tree.ts';

const clockAlias = 'mr$clock';

/** The query, in normal form, over the clock, which is the relation of this number. */
export function overClock(select: Fields, number: number, kinds: FunctionKinds): string {
  return selectText(new Rewriting(number, kinds).query(unmarked(select) as Tree));
}

/** A copy that can be written: without the marks of what was a common table expression. */
function unmarked(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(unmarked);
  if (!isFields(value)) return value;
  return Object.fromEntries(Object.entries(value).flatMap(([key, inner]) => (key === cteMark ? [] : [[key, unmarked(inner)]])));
}

class Rewriting {
  readonly #number: number;
  readonly #kinds: FunctionKinds;

  constructor(number: number, kinds: FunctionKinds) {
    this.#number = number;
    this.#kinds = kinds;
  }

  query(given: Tree): Tree {
    if (given['op'] !== 'SETOP_NONE') {
      const { larg, rarg, ...rest } = given;
      return { ...(this.#asked(rest) as Tree), larg: this.query(node(larg) as Tree), rarg: this.query(node(rarg) as Tree) };
    }
    const select = lifted(given);
    const { whereClause, fromClause, groupClause, ...shown } = select;
    let joins = false;
    // Where it can be it is joined: changes of rows are then found without anything else being read.
    const join = (): Tree => {
      joins = true;
      return columnRef(clockAlias, timeColumn);
    };
    const grouped = isGrouped(select, this.#kinds);
    const groups = new Set(list(groupClause).map(meaningOf));
    const apart = (value: unknown): unknown =>
      replace(value, (kind, fields, whole) => {
        const joined = groups.has(meaningOf(whole)) || (kind === 'FuncCall' && isAggregate(fields, this.#kinds));
        if (joined) return this.#times(whole, join);
        return this.#replaced(kind, fields, this.#subquery());
      });
    const made: Tree = {
      ...((grouped ? apart(shown) : this.#times(shown, join)) as Tree),
      ...(groupClause === undefined ? {} : { groupClause: this.#times(groupClause, join) }),
      ...(whereClause === undefined ? {} : { whereClause: this.#times(whereClause, join) }),
    };
    const items = list(this.#asked(fromClause));
    return { ...made, fromClause: joins ? [...items, relationItem(liveSchema, this.#number, clockAlias)] : items };
  }

  #asked(value: unknown): unknown {
    return this.#times(value, this.#subquery());
  }

  #subquery(): () => Tree {
    const selected = { ResTarget: { val: columnRef(clockAlias, timeColumn) } };
    const subselect = { SelectStmt: selectFields([selected], [relationItem(liveSchema, this.#number, clockAlias)]) };
    return () => ({ SubLink: { subLinkType: 'EXPR_SUBLINK', subselect: copy(subselect) } });
  }

  #times(value: unknown, time: () => Tree): unknown {
    return replace(value, (kind, fields) => this.#replaced(kind, fields, time));
  }

  #replaced(kind: string, fields: Tree, time: () => Tree): unknown {
    if (kind === 'SelectStmt') return { SelectStmt: this.query(fields) };
    const compared = kind === 'A_Expr' ? mzComparison(fields) : null;
    if (compared !== null) return this.#times(compared, time);
    return isClock(kind, fields) ? called(kind, fields, time()) : undefined;
  }
}

/** Conditions on the time of inner joins are conditions of WHERE. */
function lifted(select: Tree): Tree {
  const conditions: unknown[] = [];
  const visit = (item: unknown): unknown => {
    const { kind, fields } = kindOf(item);
    if (kind !== 'JoinExpr' || fields['jointype'] !== 'JOIN_INNER') return item;
    const { quals, ...rest } = fields;
    const all = conjuncts(quals);
    conditions.push(...all.filter(hasClock));
    const stays = allOf(all.filter((condition) => !hasClock(condition)));
    return {
      JoinExpr: { ...rest, larg: visit(fields['larg']), rarg: visit(fields['rarg']), ...(stays === undefined ? {} : { quals: stays }) },
    };
  };
  const fromClause = list(select['fromClause']).map(visit);
  const whereClause = allOf([...conjuncts(select['whereClause']), ...conditions]);
  return { ...select, fromClause, ...(whereClause === undefined ? {} : { whereClause }) };
}

/** A call of the time, over the time. */
function called(kind: string, fields: Fields, time: Tree): Tree {
  if (kind !== 'SQLValueFunction') return time;
  switch (String(fields['op'])) {
    case 'SVFOP_CURRENT_DATE':
      return castTo('date', time);
    case 'SVFOP_LOCALTIMESTAMP':
      return castTo('timestamp', time);
    default:
      return time;
  }
}

/** Both sides of a comparison with mz_now() as instants. */
function mzComparison(fields: Fields): Tree | null {
  const [left, right] = [mzArgument(fields['lexpr']), mzArgument(fields['rexpr'])];
  const compared = left ?? right;
  if (compared === null || compared === undefined) return null;
  const time = call(['pg_catalog', 'date_trunc'], [{ A_Const: { sval: { sval: 'milliseconds' } } }, call(['now'], [])]);
  const instant = call(['millrace', 'mz_instant'], [compared]);
  return { A_Expr: { ...fields, lexpr: left === null ? instant : time, rexpr: left === null ? time : instant } };
}
