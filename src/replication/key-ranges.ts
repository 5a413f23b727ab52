/**
 * Ranges of a table's key, as SQL for its origin. Pure.
 * Invariant: the ranges (nothing, a], (a, b], .. (z, nothing) hold every key once. Only the origin compares keys, with the column's own collation
 * and by the type's own order, so that no other idea of order is needed anywhere.
 */
import { quoteIdentifier, quoteLiteral } from '../sql/quote.ts';

/** A column of a key: its name, and its type as format_type prints it (schema-qualified). */
export interface KeyColumn {
  readonly name: string;
  readonly type: string;
}

/** A key, as texts of its columns. */
export type KeyValue = readonly string[];

/** Keys after one and up to another; null: no border. */
export interface KeyRange {
  readonly after: KeyValue | null;
  readonly upTo: KeyValue | null;
}

/** What a row's key fulfils when it is within the range; '' when all do. */
export function rangeCondition(key: readonly KeyColumn[], { after, upTo }: KeyRange): string {
  return [...(after === null ? [] : [compared(key, '>', after)]), ...(upTo === null ? [] : [compared(key, '<=', upTo)])].join(' AND ');
}

/** Finds the key that so many rows later ends a range; no row when fewer are left. One column a key column, as text. */
export function borderSql(table: string, key: readonly KeyColumn[], after: KeyValue | null, rows: number): string {
  const columns = key.map(({ name }) => quoteIdentifier(name));
  const condition = after === null ? '' : ` WHERE ${compared(key, '>', after)}`;
  // The text is made of one row, outside: below the LIMIT it would be made of every row that is passed over.
  return `SELECT ${key.map((_, i) => `k.k${i}::text`).join(', ')}
  FROM (SELECT ${columns.map((column, i) => `${column} AS k${i}`).join(', ')} FROM ${table}${condition} ORDER BY ${columns.join(', ')} OFFSET ${rows - 1} LIMIT 1) k`;
}

/** Rows that have one of these keys. */
export function keysCondition(key: readonly KeyColumn[], keys: readonly KeyValue[]): string {
  return `(${key.map(({ name }) => quoteIdentifier(name)).join(', ')}) IN (${keys.map((value) => `(${literals(key, value)})`).join(', ')})`;
}

function compared(key: readonly KeyColumn[], operator: '>' | '<=', value: KeyValue): string {
  const columns = key.map(({ name }) => quoteIdentifier(name)).join(', ');
  return key.length === 1 ? `${columns} ${operator} ${literals(key, value)}` : `(${columns}) ${operator} (${literals(key, value)})`;
}

const literals = (key: readonly KeyColumn[], value: KeyValue): string =>
  key.map(({ type }, i) => `${quoteLiteral(value[i] ?? '')}::${type}`).join(', ');
