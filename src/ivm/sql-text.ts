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

/**
 * Makes the storage hold exactly the rows of `select` (whose columns are `columns`, in order) as a multiset of row images, writing only
 * what differs. Rows are compared by their text, which tells apart whatever a reader can tell apart and exists for every type.
 * `part`: only for a part of the storage, `stored` (ctid AS "mr$row", columns); `ctes` are there for both queries.
 */
export function writeDifference(
  storage: string,
  columns: readonly string[],
  select: string,
  part: { readonly ctes: string; readonly stored: string } | null = null,
): string {
  const list = columns.map(quoteIdentifier).join(', ');
  const stored = part?.stored ?? `SELECT s.ctid AS "mr$row", ${columnsOf('s', columns)} FROM ${storage} s`;
  return `
WITH ${part === null || part.ctes === '' ? '' : `${part.ctes}, `}fresh AS MATERIALIZED (
  SELECT f.*, row_number() OVER (PARTITION BY f."mr$image") AS "mr$copy"
  FROM (SELECT q.*, ROW(q.*)::text AS "mr$image" FROM (${select}) q(${list})) f
), stored AS MATERIALIZED (
  SELECT f.*, row_number() OVER (PARTITION BY f."mr$image") AS "mr$copy"
  FROM (SELECT s."mr$row", ROW(${columnsOf('s', columns)})::text AS "mr$image" FROM (${stored}) s) f
), gone AS (
  DELETE FROM ${storage} s
  USING stored o
  WHERE s.ctid = o."mr$row"
    AND NOT EXISTS (SELECT FROM fresh n WHERE n."mr$image" = o."mr$image" AND n."mr$copy" = o."mr$copy")
  RETURNING 1
)
INSERT INTO ${storage} (${list})
SELECT ${columnsOf('n', columns)}
-- Counted so that rows go before others with the same key come.
FROM (SELECT count(*) FROM gone) first, fresh n
WHERE NOT EXISTS (SELECT FROM stored o WHERE o."mr$image" = n."mr$image" AND o."mr$copy" = n."mr$copy")`.trim();
}
