/**
 * mz_now() in a query, as Materialize has it.
 * Invariant: it is what a number of milliseconds or a time is compared with, by <, <=, > or >=; the types are Postgres's business, which picks
 * millrace.mz_now(what it is compared with) by them. Anything else is refused.
 */
import { millraceError } from '../errors.ts';
import { deparseSql } from '../sql/deparse.ts';
import { type Node, parseSql } from '../sql/postgres-parser.ts';

type Tree = Readonly<Record<string, unknown>>;

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
  if (Array.isArray(value)) return value.map(rewrite);
  if (!isTree(value)) return value;
  const expression = fieldsOf(value, 'A_Expr');
  const compared = expression === null ? null : comparison(expression);
  if (compared !== null) return compared;
  if (isMzNow(value)) throw millraceError('time_not_compared', { function: 'mz_now' });
  return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, rewrite(inner)]));
}

/** A comparison with mz_now(), null when it is none. */
function comparison(expression: Tree): unknown {
  const kind = expression['kind'];
  const [left, right] = [expression['lexpr'], expression['rexpr']];
  if (kind === 'AEXPR_BETWEEN') {
    const [low, high] = listOf(fieldsOf(right, 'List')?.['items']);
    if (![left, low, high].some(isMzNow)) return null;
    const sides = [compare('>=', left, low), compare('<=', left, high)].map(rewrite);
    return { BoolExpr: { boolop: 'AND_EXPR', args: sides } };
  }
  const [operator] = listOf(expression['name']).map((item) => fieldsOf(item, 'String')?.['sval']);
  if (kind !== 'AEXPR_OP' || !comparisons.has(String(operator)) || isMzNow(left) === isMzNow(right)) return null;
  const other = rewrite(plain(isMzNow(left) ? right : left));
  const names = ['millrace', 'mz_now'].map((sval) => ({ String: { sval } }));
  const time = { FuncCall: { funcname: names, args: [other], funcformat: 'COERCE_EXPLICIT_CALL' } };
  return { A_Expr: { ...expression, lexpr: isMzNow(left) ? time : other, rexpr: isMzNow(left) ? other : time } };
}

function compare(operator: string, lexpr: unknown, rexpr: unknown): Tree {
  return { A_Expr: { kind: 'AEXPR_OP', name: [{ String: { sval: operator } }], lexpr, rexpr } };
}

function isMzNow(value: unknown): boolean {
  const cast = fieldsOf(value, 'TypeCast');
  if (cast !== null) return isMzTimestamp(cast) && isMzNow(cast['arg']);
  const called = fieldsOf(value, 'FuncCall');
  const names = listOf(called?.['funcname']).map((item) => fieldsOf(item, 'String')?.['sval']);
  return called !== null && names.at(-1) === 'mz_now' && (names.length === 1 || names[0] === 'mz_catalog') && called['args'] === undefined;
}

/** A value without its cast to mz_timestamp. */
function plain(value: unknown): unknown {
  const cast = fieldsOf(value, 'TypeCast');
  if (cast === null || !isMzTimestamp(cast)) return value;
  const text = fieldsOf(fieldsOf(cast['arg'], 'A_Const'), 'sval')?.['sval'];
  if (typeof text !== 'string') return cast['arg'];
  const type = /^\s*\d+\s*$/.test(text) ? 'numeric' : 'timestamptz';
  const names = ['pg_catalog', type].map((sval) => ({ String: { sval } }));
  return { TypeCast: { arg: cast['arg'], typeName: { names, typemod: -1 } } };
}

function isMzTimestamp(cast: Tree): boolean {
  const names = listOf(isTree(cast['typeName']) ? cast['typeName']['names'] : null).map((item) => fieldsOf(item, 'String')?.['sval']);
  return names.at(-1) === 'mz_timestamp';
}

function isTree(value: unknown): value is Tree {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** The fields of a node of this kind. */
function fieldsOf(value: unknown, kind: string): Tree | null {
  const inner = isTree(value) ? value[kind] : undefined;
  return isTree(inner) ? inner : null;
}

function listOf(value: unknown): readonly unknown[] {
  return Array.isArray(value) ? value : [];
}
