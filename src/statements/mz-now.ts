/**
 * mz_now() in a query, as Materialize has it.
 * Invariant: it is what a number of milliseconds or a time is compared with, by <, <=, > or >=; the types are Postgres's business, which picks
 * millrace.mz_now(what it is compared with) by them. Anything else is refused.
 */
import { millraceError } from '../errors.ts';
import { call, castTo, operation, replace } from '../ivm/ast.ts';
import { at, type Fields, kindOf, list, strings } from '../ivm/tree.ts';
import { deparseSql } from '../sql/deparse.ts';
import { type Node, parseSql } from '../sql/postgres-parser.ts';

const comparisons = new Set(['<', '<=', '>', '>=']);

/** The query with its calls of mz_now() written for Postgres; the same text when there are none. */
export function withMzNow(query: string): string {
  if (!/mz_now/i.test(query)) return query;
  const statements = parseSql(query).stmts ?? [];
  const written = rewrite(statements);
  if (JSON.stringify(written) === JSON.stringify(statements)) return query;
  const [first] = written as readonly { readonly stmt: Node }[];
  return first === undefined ? query : deparseSql(first.stmt);
}

function rewrite(value: unknown): unknown {
  return replace(value, (kind, fields, whole) => {
    const compared = kind === 'A_Expr' ? comparison(fields) : undefined;
    if (compared === undefined && isMzNow(whole)) throw millraceError('time_not_compared', { function: 'mz_now' });
    return compared;
  });
}

/** A comparison with mz_now(), undefined when it is none. */
function comparison(expression: Fields): unknown {
  const [left, right] = [expression['lexpr'], expression['rexpr']];
  if (expression['kind'] === 'AEXPR_BETWEEN') {
    const [low, high] = list(at(right, 'List')?.['items']);
    if (![left, low, high].some(isMzNow)) return undefined;
    const sides = [operation('>=', left, low), operation('<=', left, high)];
    return { BoolExpr: { boolop: 'AND_EXPR', args: rewrite(sides) } };
  }
  const [operator = ''] = strings(expression['name']);
  if (expression['kind'] !== 'AEXPR_OP' || !comparisons.has(operator) || isMzNow(left) === isMzNow(right)) return undefined;
  const other = rewrite(plain(isMzNow(left) ? right : left));
  const time = call(['millrace', 'mz_now'], [other]);
  return { A_Expr: { ...expression, lexpr: isMzNow(left) ? time : other, rexpr: isMzNow(left) ? other : time } };
}

function isMzNow(value: unknown): boolean {
  const { kind, fields } = kindOf(value);
  if (kind === 'TypeCast') return isMzTimestamp(fields) && isMzNow(fields['arg']);
  const names = strings(fields['funcname']);
  return kind === 'FuncCall' && /^(mz_catalog\.)?mz_now$/.test(names.join('.')) && fields['args'] === undefined;
}

/** A value without its cast to mz_timestamp. */
function plain(value: unknown): unknown {
  const { kind, fields } = kindOf(value);
  if (kind !== 'TypeCast' || !isMzTimestamp(fields)) return value;
  const text = at(fields['arg'], 'A_Const', 'sval')?.['sval'];
  if (typeof text !== 'string') return fields['arg'];
  return castTo(/^\s*\d+\s*$/.test(text) ? 'numeric' : 'timestamptz', fields['arg']);
}

function isMzTimestamp(cast: Fields): boolean {
  return strings(at(cast, 'typeName')?.['names']).at(-1) === 'mz_timestamp';
}
