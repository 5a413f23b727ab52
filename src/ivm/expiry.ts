/**
 * When the result of a query over the time changes although no row does.
 * Invariant: a query that has an `Expiry` shows the same rows from one time it was computed until the next of its instants, or a change of
 * its inputs: all it does with the time is to compare it, and a comparison turns at one instant for each row. Where an interval of months
 * makes that instant uncertain, it is asked for again within `longestMs`.
 */
import { call, liveSchema, NotRewritable, operation, relationItem, replace, selectFields, type Tree } from './ast.ts';
import { eachNode, type FunctionKinds, hasSubquery, hasWindowCall, isAggregate } from './query-parts.ts';
import { renderTemplate } from './relation-sql.ts';
import { stageText } from './stage-text.ts';
import { type Fields, functionName, kindOf, list, node, strings } from './tree.ts';
import type { LiveRelation, Occurrence, TableName, Template } from './types.ts';

export interface Expiry {
  /** Each answers one instant after now, or null. */
  readonly queries: readonly { readonly template: Template; readonly occurrences: readonly Occurrence[] }[];
  /** The date is compared: it turns at midnight. */
  readonly daily: boolean;
}

/** An answer is trusted for so long. */
export const longestMs = 3_600_000;

const clockFunctions = new Set(['now', 'transaction_timestamp', 'statement_timestamp', 'clock_timestamp', 'timeofday']);
const comparisons = new Set(['<', '<=', '>', '>=']);
/** The time as Materialize has it; its one argument is what it is compared with. See millrace.mz_now(). */
const mzNow = 'millrace.mz_now';
/** How a side of a comparison moves with the time: with it, against it, not at all, or by days. */
type Pace = 1 | -1 | 0 | 'daily';

/** Of a query in normal form; null: it does more with the time than to compare it. */
export function expiryOf(select: Fields, live: readonly LiveRelation[], kinds: FunctionKinds): Expiry | null {
  const aliases = new Map<string, number>();
  let clocks = 0;
  let compared = 0;
  let daily = false;
  const turns: { readonly alias: string | null; readonly at: Tree }[] = [];
  let readable = true;
  eachNode(select, (kind, fields) => {
    if (kind === 'RangeVar') {
      const alias = node(fields['alias'])['aliasname'];
      if (fields['schemaname'] === liveSchema && typeof alias === 'string') aliases.set(alias, Number(fields['relname']));
    }
    if (isClock(kind, fields)) clocks += 1;
    if (kind !== 'A_Expr' || !comparisons.has(strings(fields['name']).join('.')) || !hasClock(fields)) return undefined;
    const row = rowByRow(fields, kinds);
    if (row === null) {
      readable = false;
      return undefined;
    }
    const mz = mzArgument(row['lexpr']) ?? mzArgument(row['rexpr']);
    if (mz !== null) {
      const of = columnsAliases(mz);
      if (of.size > 1 || countClocks(fields) > 1) readable = false;
      compared += 1;
      turns.push({ alias: [...of][0] ?? null, at: call(['millrace', 'mz_instant'], [mz]) });
      return undefined;
    }
    const [left, right] = [paceOf(row['lexpr']), paceOf(row['rexpr'])];
    if (left === null || right === null) {
      readable = false;
      return undefined;
    }
    compared += countClocks(fields);
    if (left === 'daily' || right === 'daily') {
      daily = true;
      return undefined;
    }
    const pace = left - right;
    if (pace === 0) return undefined;
    if (pace !== 1 && pace !== -1) {
      readable = false;
      return undefined;
    }
    const of = columnsAliases(row);
    if (of.size > 1) readable = false;
    // The difference of both sides is nothing when they meet.
    const [behind, ahead] = pace === 1 ? [row['lexpr'], row['rexpr']] : [row['rexpr'], row['lexpr']];
    if (mayJump(row['lexpr']) || mayJump(row['rexpr'])) daily = true;
    const solved =
      left === 1 && right === 0 ? solve(row['lexpr'], row['rexpr']) : left === 0 && right === 1 ? solve(row['rexpr'], row['lexpr']) : null;
    turns.push({ alias: [...of][0] ?? null, at: solved ?? operation('+', now(), operation('-', ahead, behind)) });
    return undefined;
  });
  if (!readable || clocks === 0 || clocks !== compared) return null;
  const queries: { template: Template; occurrences: readonly Occurrence[] }[] = [];
  for (const { alias, at } of turns) {
    const number = alias === null ? null : aliases.get(alias);
    if (number === undefined) return null;
    const relation = number === null ? null : relationItem(liveSchema, number, alias ?? '');
    // Where an outer join, or a group, has no row of it, it may be at another time than with any row.
    const froms = relation === null ? [[]] : isStrict(at) ? [[relation]] : [[relation], [withoutRow(relation)]];
    for (const from of froms) {
      const { template, occurrences } = stageText(selectFields([{ ResTarget: { name: 't', val: at } }], from), (_, of) => {
        const relation = live[of];
        if (relation === undefined) throw new NotRewritable('a relation that is not known');
        return relation;
      });
      const query = { template, occurrences };
      // GROUP BY repeats what is selected.
      if (!queries.some((other) => JSON.stringify(other) === JSON.stringify(query))) queries.push(query);
    }
  }
  return { queries, daily };
}

/** Milliseconds until the result changes by itself, one row; null when it does not. To be asked in the transaction that has computed it. */
export function expirySql(expiry: Expiry, storage: TableName): string {
  return `SELECT ceil(extract(epoch FROM ${instantSql(expiry, storage, 'now()')} - clock_timestamp()) * 1000)`;
}

/**
 * The first instant after a time, an expression, at which the result changes by itself; null when it does not. What turns at an instant has done so a
 * millisecond later at the latest (`>=` does behind it, and mz_now() counts whole ones), so one that has just passed is told once more.
 */
export function instantSql(expiry: Expiry, storage: TableName, since: string): string {
  const instants = [
    ...expiry.queries.map(
      ({ template, occurrences }) =>
        `(SELECT min(x.t)::timestamptz FROM (${renderTemplate(template, occurrences, { storage })}) x WHERE x.t >= ${since} - interval '1 millisecond')`,
    ),
    ...(expiry.daily ? [`(date_trunc('day', ${since}) + interval '1 day')`] : []),
  ];
  return `least(${instants.join(', ')})`;
}

/**
 * A comparison as one of rows: a group's maximum, or minimum, is the value of one of its rows, so the instants of all rows are more than enough. Null:
 * it is about something else than rows.
 */
function rowByRow(fields: Fields, kinds: FunctionKinds): Fields | null {
  if (hasSubquery(fields) || hasWindowCall(fields)) return null;
  let aggregates = 0;
  let readable = true;
  const row = replace(fields, (kind, called) => {
    if (kind !== 'FuncCall' || !isAggregate(called, kinds)) return undefined;
    aggregates += 1;
    const [argument] = list(called['args']);
    if (['min', 'max'].includes(functionName(called)) && argument !== undefined) return argument;
    readable = false;
    return undefined;
  });
  return readable && aggregates <= 1 ? (row as Fields) : null;
}

/** An interval that says of itself that it has no months. */
function isPlainInterval(expression: unknown): boolean {
  const { kind, fields } = kindOf(expression);
  const type = strings(node(fields['typeName'])['names']).at(-1);
  const text = node(node(kindOf(fields['arg']).fields['sval']))['sval'];
  return kind === 'TypeCast' && type === 'interval' && typeof text === 'string' && /^[-+\d\s:.]*(days?)?[-+\d\s:.]*$/.test(text);
}

/** With months the time jumps where months have fewer days: at midnight. */
function mayJump(side: unknown): boolean {
  if (!hasClock(side)) return false;
  const { kind, fields } = kindOf(side);
  if (kind === 'TypeCast') return mayJump(fields['arg']);
  if (kind !== 'A_Expr') return false;
  return [fields['lexpr'], fields['rexpr']].some((part) => (hasClock(part) ? mayJump(part) : !isPlainInterval(part)));
}

/** The time as the side of a comparison has it alone on its side: what the other side is then. Null: it is not as simple as that. */
function solve(side: unknown, other: unknown): Tree | null {
  const { kind, fields } = kindOf(side);
  if (isClock(kind, fields)) return other as Tree;
  if (kind !== 'A_Expr') return null;
  const [operator, left, right] = [strings(fields['name']).join('.'), fields['lexpr'], fields['rexpr']];
  if (hasClock(left) && isPlainInterval(right)) return solve(left, operation(operator === '+' ? '-' : '+', other, right));
  return operator === '+' && hasClock(right) && isPlainInterval(left) ? solve(right, operation('-', other, left)) : null;
}

const strictKinds = new Set(['A_Expr', 'ColumnRef', 'A_Const', 'String', 'Integer', 'TypeCast', 'TypeName', 'SQLValueFunction']);

/** Of nothing it makes nothing. */
function isStrict(expression: unknown): boolean {
  let strict = true;
  eachNode([expression], (kind, fields) => {
    const known = kind === 'FuncCall' && (isClock(kind, fields) || strings(fields['funcname']).join('.') === 'millrace.mz_instant');
    if (/^[A-Z]/.test(kind) && !known && !strictKinds.has(kind)) strict = false;
    if (kind === 'A_Expr' && fields['kind'] !== 'AEXPR_OP') strict = false;
    return strict;
  });
  return strict;
}

/** One row without a value. */
function withoutRow(relation: Tree): Tree {
  const one = {
    RangeSubselect: {
      subquery: { SelectStmt: selectFields([{ ResTarget: { name: 'x', val: { A_Const: { ival: { ival: 1 } } } } }], []) },
      alias: { aliasname: 'mr$one' },
    },
  };
  return { JoinExpr: { jointype: 'JOIN_LEFT', larg: one, rarg: relation, quals: { A_Const: { boolval: {} } } } };
}

/** What mz_now() is compared with; null: the expression is something else. */
export function mzArgument(expression: unknown): unknown {
  const { kind, fields } = kindOf(expression);
  return kind === 'FuncCall' && strings(fields['funcname']).join('.') === mzNow ? (list(fields['args'])[0] ?? null) : null;
}

function paceOf(expression: unknown): Pace | null {
  if (!hasClock(expression)) return 0;
  const { kind, fields } = kindOf(expression);
  switch (kind) {
    case 'SQLValueFunction': {
      const op = String(fields['op']);
      if (op === 'SVFOP_CURRENT_DATE') return 'daily';
      // Rounded, it turns elsewhere.
      return /^SVFOP_(CURRENT|LOCAL)_?TIMESTAMP$/.test(op) ? 1 : null;
    }
    case 'FuncCall': {
      const name = strings(fields['funcname']).at(-1) ?? '';
      return (name === 'now' || name === 'transaction_timestamp') && list(fields['args']).length === 0 ? 1 : null;
    }
    case 'TypeCast': {
      const type = strings(node(fields['typeName'])['names']).at(-1) ?? '';
      const inner = paceOf(fields['arg']);
      if (list(node(fields['typeName'])['typmods']).length > 0) return null;
      if (type === 'date') return inner === 1 || inner === 'daily' ? 'daily' : null;
      return type === 'timestamptz' || type === 'timestamp' ? inner : null;
    }
    case 'A_Expr': {
      if (fields['kind'] !== 'AEXPR_OP' || fields['lexpr'] === undefined) return null;
      const [left, right] = [paceOf(fields['lexpr']), paceOf(fields['rexpr'])];
      if (left === null || right === null) return null;
      const operator = strings(fields['name']).join('.');
      if (operator !== '+' && operator !== '-') return null;
      // With the date a column may be added: what matters is that it turns at midnight.
      if (left === 'daily' || right === 'daily') return left === 0 || right === 0 ? 'daily' : null;
      const pace = operator === '+' ? left + right : left - right;
      return pace === 1 || pace === -1 || pace === 0 ? pace : null;
    }
    default:
      return null;
  }
}

export function isClock(kind: string, fields: Fields): boolean {
  if (kind === 'SQLValueFunction') return /TIME|DATE/.test(String(fields['op']));
  if (kind !== 'FuncCall') return false;
  const called = strings(fields['funcname']);
  return called.join('.') === mzNow || clockFunctions.has(called.at(-1) ?? '');
}

function countClocks(value: unknown): number {
  let count = 0;
  eachNode([value], (kind, fields) => {
    if (isClock(kind, fields)) count += 1;
    return undefined;
  });
  return count;
}

export const hasClock = (value: unknown): boolean => countClocks(value) > 0;

function columnsAliases(value: unknown): ReadonlySet<string> {
  const found = new Set<string>();
  eachNode([value], (kind, fields) => {
    if (kind === 'ColumnRef') found.add(strings(fields['fields'])[0] ?? '');
    return undefined;
  });
  return found;
}

const now = (): Tree => call(['now'], []);
