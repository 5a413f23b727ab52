/**
 * Parse trees that are taken apart, changed and written back.
 * Invariant: trees are copied before they are changed, and what is written back parses to the same tree (`deparseSql` checks it), so a
 * rewriting can refuse a query but not misprint it.
 */
import { deparseSql } from '../sql/deparse.ts';
import { type Node, parseSql } from '../sql/postgres-parser.ts';
import { type Fields, isFields, kindOf, list, node, strings } from './tree.ts';

/** A node or the fields of one, which may be changed. */
export type Tree = Record<string, unknown>;

/** The query cannot be rewritten; `message` says what stands in the way, as "<message> needs the whole query". */
export class NotRewritable extends Error {}

/** Schemas of the numbers that stand for relations while a query is rewritten: live ones, hidden stages. */
export const liveSchema = 'mr$live';
export const stageSchema = 'mr$stage';

/** The parser's order of fields: trees are compared as text. */
const selectOrder = [
  ...['distinctClause', 'intoClause', 'targetList', 'fromClause', 'whereClause', 'groupClause', 'groupDistinct', 'havingClause'],
  ...['windowClause', 'valuesLists', 'sortClause', 'limitOffset', 'limitCount', 'limitOption', 'lockingClause', 'withClause'],
  ...['op', 'all', 'larg', 'rarg'],
];

export function copy<T>(tree: T): T {
  return structuredClone(tree);
}

const name = (sval: string): Tree => ({ String: { sval } });

export function columnRef(alias: string, column: string): Tree {
  return { ColumnRef: { fields: [name(alias), name(column)] } };
}

export function resTarget(called: string, val: unknown): Tree {
  return { ResTarget: { name: called, val } };
}

export function relationItem(schema: string, relation: number | string, alias: string): Tree {
  return {
    RangeVar: { schemaname: schema, relname: String(relation), inh: true, relpersistence: 'p', alias: { aliasname: alias } },
  };
}

/** `called(args)`; a name with its schema has two parts. */
export function call(called: readonly string[], args: readonly unknown[]): Tree {
  return { FuncCall: { funcname: called.map(name), ...(args.length === 0 ? {} : { args }), funcformat: 'COERCE_EXPLICIT_CALL' } };
}

/** `lexpr operator rexpr` */
export function operation(operator: string, lexpr: unknown, rexpr: unknown): Tree {
  return { A_Expr: { kind: 'AEXPR_OP', name: [name(operator)], lexpr, rexpr } };
}

/** A cast to a type of the core, as the parser reads what the deparser prints: of date only the name. */
export function castTo(type: 'date' | 'numeric' | 'timestamp' | 'timestamptz', arg: unknown): Tree {
  const names = type === 'date' ? [name(type)] : [name('pg_catalog'), name(type)];
  return { TypeCast: { arg, typeName: { names, typemod: -1 } } };
}

/** The fields of `SELECT .. FROM ..`. */
export function selectFields(targetList: readonly unknown[], fromClause: readonly unknown[], whereClause?: unknown): Tree {
  return {
    targetList: [...targetList],
    fromClause: [...fromClause],
    ...(whereClause === undefined ? {} : { whereClause }),
    limitOption: 'LIMIT_OPTION_DEFAULT',
    op: 'SETOP_NONE',
  };
}

/** The conditions that must all hold. */
export function conjuncts(condition: unknown): unknown[] {
  if (condition === undefined || condition === null) return [];
  const { kind, fields } = kindOf(condition);
  return kind === 'BoolExpr' && fields['boolop'] === 'AND_EXPR' ? list(fields['args']).flatMap(conjuncts) : [condition];
}

/** All of the conditions; undefined without any. */
export function allOf(conditions: readonly unknown[]): unknown {
  const flat = conditions.flatMap(conjuncts);
  return flat.length > 1 ? { BoolExpr: { boolop: 'AND_EXPR', args: flat } } : flat[0];
}

export function equal(left: unknown, right: unknown): Tree {
  return { A_Expr: { kind: 'AEXPR_OP', name: [name('=')], lexpr: left, rexpr: right } };
}

/** Fields of the SELECT that a text is. */
export function parseSelect(text: string): Tree {
  const select = node(node(list(node(parseSql(text))['stmts'])[0])['stmt'])['SelectStmt'];
  if (!isFields(select)) throw new NotRewritable('a statement that is no SELECT');
  return copy(select) as Tree;
}

/** The expression that a text is. */
export function parseExpression(text: string): unknown {
  return node(node(list(parseSelect(`SELECT ${text}`)['targetList'])[0])['ResTarget'])['val'];
}

export function selectText(select: Fields): string {
  return deparse({ SelectStmt: select });
}

export function expressionText(expression: unknown): string {
  return deparse({ SelectStmt: selectFields([{ ResTarget: { val: expression } }], []) }).slice('SELECT '.length);
}

function deparse(tree: Fields): string {
  try {
    return deparseSql(ordered(tree) as Node);
  } catch (error) {
    throw new NotRewritable('a construct that cannot be written back', { cause: error });
  }
}

/** Fields of every SELECT in the parser's order, without empty lists. */
function ordered(value: unknown, inSelect = false): unknown {
  if (Array.isArray(value)) return value.map((item) => ordered(item));
  if (!isFields(value)) return value;
  const entries = Object.entries(value).map(([key, inner]): [string, unknown] => [
    key,
    ordered(inner, key === 'SelectStmt' || (inSelect && (key === 'larg' || key === 'rarg'))),
  ]);
  if (!inSelect) return Object.fromEntries(entries.filter(([, inner]) => inner !== undefined));
  return Object.fromEntries(
    entries
      .filter(([, inner]) => inner !== undefined && !(Array.isArray(inner) && inner.length === 0))
      .sort(([a], [b]) => selectOrder.indexOf(a) - selectOrder.indexOf(b)),
  );
}

/** The same tree with other nodes in place of some. `change` returns a node to put there, or undefined to go on inside. */
export function replace(value: unknown, change: (kind: string, fields: Tree, whole: Tree) => unknown): unknown {
  if (Array.isArray(value)) return value.map((item) => replace(item, change));
  if (!isFields(value)) return value;
  const { kind, fields } = kindOf(value);
  if (kind !== '' && Object.keys(value).length === 1) {
    const changed = change(kind, fields as Tree, value as Tree);
    if (changed !== undefined) return changed;
  }
  return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, replace(inner, change)]));
}

/** Alias and name of a qualified column reference. */
export function columnOf(value: unknown): { readonly alias: string; readonly column: string } | null {
  const names = strings(kindOf(value).kind === 'ColumnRef' ? kindOf(value).fields['fields'] : []);
  const [alias, column] = names;
  return names.length === 2 && alias !== undefined && column !== undefined ? { alias, column } : null;
}

/** Text that is equal for trees that mean the same. */
export function meaningOf(value: unknown): string {
  return JSON.stringify(value, (key, inner: unknown) => (/location$|^list_(start|end)$|^funcformat$/.test(key) ? undefined : inner));
}
