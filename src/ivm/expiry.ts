/**
 * When the result of a query over the time changes although no row does.
 * Invariant: a query that has an `Expiry` shows the same rows from one time it was computed until the next of its instants, or a change of
 * its inputs: all it does with the time is to compare it, and a comparison turns at one instant for each row. Where an interval of months
 * makes that instant uncertain, it is asked for again within `longestMs`.
 */
import { liveSchema, NotRewritable, relationItem, selectFields, type Tree } from './ast.ts';
import { eachNode, hasSubquery } from './query-parts.ts';
import { renderTemplate } from './relation-sql.ts';
import { stageText } from './stage-text.ts';
import { type Fields, kindOf, list, node, strings } from './tree.ts';
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
/** How a side of a comparison moves with the time: with it, against it, not at all, or by days. */
type Pace = 1 | -1 | 0 | 'daily';

/** Of a query in normal form; null: it does more with the time than to compare it. */
export function expiryOf(select: Fields, live: readonly LiveRelation[]): Expiry | null {
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
    const [left, right] = [paceOf(fields['lexpr']), paceOf(fields['rexpr'])];
    if (left === null || right === null || hasSubquery(fields)) {
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
    const of = columnsAliases(fields);
    if (of.size > 1) readable = false;
    // The difference of both sides is nothing when they meet.
    const [behind, ahead] = pace === 1 ? [fields['lexpr'], fields['rexpr']] : [fields['rexpr'], fields['lexpr']];
    turns.push({ alias: [...of][0] ?? null, at: operation('+', now(), operation('-', ahead, behind)) });
    return undefined;
  });
  if (!readable || clocks === 0 || clocks !== compared) return null;
  const queries: { template: Template; occurrences: readonly Occurrence[] }[] = [];
  for (const { alias, at } of turns) {
    const number = alias === null ? null : aliases.get(alias);
    if (number === undefined) return null;
    const from = number === null ? [] : [relationItem(liveSchema, number, alias ?? '')];
    const inner = selectFields([{ ResTarget: { name: 't', val: at } }], from);
    const { template, occurrences } = stageText(inner, (_, of) => {
      const relation = live[of];
      if (relation === undefined) throw new NotRewritable('a relation that is not known');
      return relation;
    });
    const query = { template, occurrences };
    // GROUP BY repeats what is selected.
    if (!queries.some((other) => JSON.stringify(other) === JSON.stringify(query))) queries.push(query);
  }
  return { queries, daily };
}

/** Milliseconds until the result changes by itself, one row; null when it does not. To be asked in the transaction that has computed it. */
export function expirySql(expiry: Expiry, storage: TableName): string {
  const instants = [
    ...expiry.queries.map(
      ({ template, occurrences }) =>
        `(SELECT min(x.t)::timestamptz FROM (${renderTemplate(template, occurrences, { storage })}) x WHERE x.t > now())`,
    ),
    ...(expiry.daily ? ["(date_trunc('day', now()) + interval '1 day')"] : []),
  ];
  return `SELECT ceil(extract(epoch FROM least(${instants.join(', ')}) - clock_timestamp()) * 1000)`;
}

function paceOf(expression: unknown): Pace | null {
  if (!hasClock(expression)) return 0;
  const { kind, fields } = kindOf(expression);
  switch (kind) {
    case 'SQLValueFunction': {
      const op = String(fields['op']);
      if (op === 'SVFOP_CURRENT_DATE') return 'daily';
      return /^SVFOP_(CURRENT|LOCAL)_?TIMESTAMP/.test(op) ? 1 : null;
    }
    case 'FuncCall': {
      const name = strings(fields['funcname']).at(-1) ?? '';
      return (name === 'now' || name === 'transaction_timestamp') && list(fields['args']).length === 0 ? 1 : null;
    }
    case 'TypeCast': {
      const type = strings(node(fields['typeName'])['names']).at(-1) ?? '';
      const inner = paceOf(fields['arg']);
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

function isClock(kind: string, fields: Fields): boolean {
  if (kind === 'SQLValueFunction') return /TIME|DATE/.test(String(fields['op']));
  return kind === 'FuncCall' && clockFunctions.has(strings(fields['funcname']).at(-1) ?? '');
}

function countClocks(value: unknown): number {
  let count = 0;
  eachNode([value], (kind, fields) => {
    if (isClock(kind, fields)) count += 1;
    return undefined;
  });
  return count;
}

const hasClock = (value: unknown): boolean => countClocks(value) > 0;

function columnsAliases(value: unknown): ReadonlySet<string> {
  const found = new Set<string>();
  eachNode([value], (kind, fields) => {
    if (kind === 'ColumnRef') found.add(strings(fields['fields'])[0] ?? '');
    return undefined;
  });
  return found;
}

const now = (): Tree => ({ FuncCall: { funcname: [{ String: { sval: 'now' } }], funcformat: 'COERCE_EXPLICIT_CALL' } });

function operation(operator: string, lexpr: unknown, rexpr: unknown): Tree {
  return { A_Expr: { kind: 'AEXPR_OP', name: [{ String: { sval: operator } }], lexpr, rexpr } };
}
