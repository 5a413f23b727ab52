/**
 * Small pieces of SQL that every way of maintenance uses.
 * Invariant: comparisons here need no operator of the search path: NULLs are equal to each other, and "same" is either the type's own
 * equality (record_eq) or the same bytes (record_image_ne), so that 1.0 and 1.00 differ.
 */
import { quoteIdentifier } from '../sql/quote.ts';
import type { NamedExpression } from './types.ts';

/** `id`: of a relation, or `<id>_<n>` of a hidden stage of a view. */
export const storageName = (id: number | string): string => `millrace_data.s${id}`;
export const deltaName = (id: number | string): string => `millrace_data.d${id}`;

/** `a.c1, a.c2` */
export function columnsOf(alias: string, names: readonly string[]): string {
  return names.map((name) => `${alias}.${quoteIdentifier(name)}`).join(', ');
}

export function nameList(names: readonly string[]): string {
  return names.map(quoteIdentifier).join(', ');
}

/** `expression AS name, ...` */
export function selectList(expressions: readonly NamedExpression[]): string {
  return expressions.map(({ name, expression }) => `${expression} AS ${quoteIdentifier(name)}`).join(', ');
}

/** Equality of rows by the types' own equality, NULL equal to NULL. */
export function sameRow(left: string, right: string): string {
  return `pg_catalog.record_eq(ROW(${left}), ROW(${right}))`;
}

/** Rows differ in any byte. */
export function imageDiffers(left: string, right: string): string {
  return `pg_catalog.record_image_ne(ROW(${left}), ROW(${right}))`;
}

/** What groups are found by. Without groups there is one, number 0. */
export function hashOf(expressions: readonly string[]): string {
  return expressions.length === 0 ? '0::bigint' : `pg_catalog.hash_record_extended(ROW(${expressions.join(', ')}), 0)`;
}

/** `a.k1 = b.k1 AND ...` for keys, which are never null. */
export function sameKey(left: string, right: string, names: readonly string[]): string {
  return names.map((name) => `${left}.${quoteIdentifier(name)} = ${right}.${quoteIdentifier(name)}`).join(' AND ');
}

/** WHERE of the conditions that there are; empty without any. */
export function whereAll(...conditions: readonly (string | null)[]): string {
  const given = conditions.filter((condition) => condition !== null && condition !== '');
  return given.length === 0 ? '' : `WHERE ${given.join(' AND ')}`;
}
