/**
 * SQL of a table that a sink writes to. Pure.
 * Invariant: values travel as text arrays, one for each column, and are read by the column's own type; a change is found by the key, or where there is
 * none by the whole row as it looks, one copy for one deletion.
 */
import { quoteIdentifier } from '../../sql/quote.ts';

/** A column of the target table. */
export interface TableColumn {
  readonly name: string;
  /** As the target knows it, typmod included. */
  readonly type: string;
}

/** Where each sink is, at the target: in the transaction of its data. `owner` rises with each takeover. */
export const progressDdl = [
  'CREATE SCHEMA IF NOT EXISTS millrace_sink',
  `CREATE TABLE IF NOT EXISTS millrace_sink.progress (
  sink text PRIMARY KEY, owner bigint NOT NULL, version integer, ts bigint, backfill_seq bigint, columns jsonb, updated_at timestamptz NOT NULL DEFAULT now()
)`,
];

export const takeOverSql = `INSERT INTO millrace_sink.progress AS p (sink, owner) VALUES ($1::text, 1)
ON CONFLICT (sink) DO UPDATE SET owner = p.owner + 1 RETURNING owner, version, ts, backfill_seq, columns`;

/** Nothing is updated when another process has taken over. */
export const recordSql = `UPDATE millrace_sink.progress
   SET version = $3::integer, ts = $4::bigint, backfill_seq = $5::bigint, columns = $6::jsonb, updated_at = clock_timestamp()
 WHERE sink = $1::text AND owner = $2::bigint`;

/** Which of these types the target does not know, and its columns of these names. Parameters: the table, names and types. */
export const columnTypesSql = `SELECT x.name, pg_catalog.to_regtype(x.type) IS NOT NULL,
       (SELECT pg_catalog.format_type(a.atttypid, a.atttypmod) FROM pg_catalog.pg_attribute a
         WHERE a.attrelid = pg_catalog.to_regclass($1::text) AND a.attname = x.name AND a.attnum > 0 AND NOT a.attisdropped)
  FROM unnest($2::text[], $3::text[]) WITH ORDINALITY x(name, type, place) ORDER BY x.place`;

/** `nullable`: the key may have nulls, which a primary key must not have. */
export function createTable(table: string, columns: readonly TableColumn[], key: readonly string[] | null, nullable: boolean): string {
  const definitions = columns.map(({ name, type }) => `${quoteIdentifier(name)} ${type}`);
  if (key !== null) definitions.push(`${nullable ? 'UNIQUE' : 'PRIMARY KEY'} (${key.map(quoteIdentifier).join(', ')})`);
  return `CREATE TABLE ${table} (\n  ${definitions.join(',\n  ')}\n)`;
}

const places = (count: number): string[] => Array.from({ length: count }, (_, index) => `v${index + 1}`);
const names = (columns: readonly TableColumn[]): string => columns.map(({ name }) => quoteIdentifier(name)).join(', ');
const typed = (columns: readonly TableColumn[]): string => columns.map(({ type }, index) => `r.v${index + 1}::${type}`).join(', ');
/** Rows of as many text arrays. */
const rowsOf = (columns: readonly TableColumn[]): string =>
  `unnest(${columns.map((_, index) => `$${index + 1}::text[]`).join(', ')}) r(${places(columns.length).join(', ')})`;

/** Parameters: one array for each column. */
export function insertSql(table: string, columns: readonly TableColumn[], key: readonly string[] | null): string {
  return inserting(table, columns, key, `SELECT ${typed(columns)} FROM ${rowsOf(columns)}`);
}

function inserting(table: string, columns: readonly TableColumn[], key: readonly string[] | null, rows: string): string {
  const insert = `INSERT INTO ${table} (${names(columns)}) OVERRIDING SYSTEM VALUE\n${rows}`;
  if (key === null) return insert;
  const others = columns.filter(({ name }) => !key.includes(name)).map(({ name }) => quoteIdentifier(name));
  const action = others.length === 0 ? 'NOTHING' : `UPDATE SET ${others.map((name) => `${name} = excluded.${name}`).join(', ')}`;
  return `${insert}\nON CONFLICT (${key.map(quoteIdentifier).join(', ')}) DO ${action}`;
}

/**
 * Statements that do nothing and that the target refuses if it would refuse those of a delivery: columns that are not there or of another type, no
 * unique index on the key, no right. `columns`: with the types of the relation, null: one the target does not know.
 */
export function trialSql(
  table: string,
  columns: readonly { readonly name: string; readonly type: string | null }[],
  key: readonly string[] | null,
): string[] {
  const nulls = columns.map(({ type }) => (type === null ? 'NULL' : `NULL::${type}`)).join(', ');
  const named = columns.map(({ name, type }) => ({ name, type: type ?? 'text' }));
  return [
    `EXPLAIN ${inserting(table, named, key, columns.some(({ type }) => type === null) ? `VALUES (${nulls})` : `SELECT ${nulls} WHERE false`)}`,
    `EXPLAIN DELETE FROM ${table} t WHERE ${key === null ? 't.ctid IS NULL' : key.map((name) => `t.${quoteIdentifier(name)} IS NULL`).join(' AND ')}`,
  ];
}

/** Parameters: one array for each column of the key. */
export function deleteByKeySql(table: string, keyColumns: readonly (TableColumn & { readonly nullable: boolean })[]): string {
  const matches = keyColumns.map(({ name, type, nullable }, index) => {
    const own = `t.${quoteIdentifier(name)}`;
    const given = `r.v${index + 1}`;
    const equal = `${own} = ${given}::${type}`;
    return nullable ? `(${equal} OR (${own} IS NULL AND ${given} IS NULL))` : equal;
  });
  return `DELETE FROM ${table} t USING ${rowsOf(keyColumns)} WHERE ${matches.join(' AND ')}`;
}

/** Parameters: one array for each column. */
export function deleteRowsSql(table: string, columns: readonly TableColumn[]): string {
  const image = (alias: string, list: readonly string[]): string =>
    `ROW(${list.map((item) => `${alias}.${item}`).join(', ')})::text COLLATE "C"`;
  const own = image(
    't',
    columns.map(({ name }) => quoteIdentifier(name)),
  );
  return `WITH gone AS (
  SELECT x.image, count(*) AS copies
  FROM (SELECT ROW(${typed(columns)})::text COLLATE "C" AS image FROM ${rowsOf(columns)}) x
  GROUP BY x.image
)
DELETE FROM ${table} d USING (
  SELECT t.ctid AS row, gone.copies, row_number() OVER (PARTITION BY gone.image) AS copy
  FROM gone JOIN ${table} t ON ${own} = gone.image
) o WHERE d.ctid = o.row AND o.copy <= o.copies`;
}
