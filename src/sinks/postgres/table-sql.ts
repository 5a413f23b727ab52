/**
 * SQL of a table that a sink writes to. Pure.
 * Invariant: values travel as text arrays, one for each column, and are read by the column's own type; a change is found by the key, or where there is
 * none by the whole row as it looks, one copy for one deletion.
 */
import type { SinkColumn } from '../../catalog/sink-model.ts';
import { quoteIdentifier } from '../../sql/quote.ts';

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

export function createTable(table: string, columns: readonly SinkColumn[], key: readonly string[] | null): string {
  const definitions = columns.map(({ name, type }) => `${quoteIdentifier(name)} ${type}`);
  if (key !== null) definitions.push(`PRIMARY KEY (${key.map(quoteIdentifier).join(', ')})`);
  return `CREATE TABLE ${table} (\n  ${definitions.join(',\n  ')}\n)`;
}

const arrays = (count: number): string => Array.from({ length: count }, (_, index) => `$${index + 1}::text[]`).join(', ');
const names = (columns: readonly SinkColumn[]): string => columns.map(({ name }) => quoteIdentifier(name)).join(', ');
const typed = (columns: readonly SinkColumn[]): string => columns.map(({ type }, index) => `r.v${index + 1}::${type}`).join(', ');
const places = (count: number): string => Array.from({ length: count }, (_, index) => `v${index + 1}`).join(', ');

/** Parameters: one array for each column. */
export function insertSql(table: string, columns: readonly SinkColumn[], key: readonly string[] | null): string {
  const insert = `INSERT INTO ${table} (${names(columns)}) OVERRIDING SYSTEM VALUE\nSELECT ${typed(columns)} FROM unnest(${arrays(columns.length)}) r(${places(columns.length)})`;
  if (key === null) return insert;
  const others = columns.filter(({ name }) => !key.includes(name)).map(({ name }) => quoteIdentifier(name));
  const action = others.length === 0 ? 'NOTHING' : `UPDATE SET ${others.map((name) => `${name} = excluded.${name}`).join(', ')}`;
  return `${insert}\nON CONFLICT (${key.map(quoteIdentifier).join(', ')}) DO ${action}`;
}

/** Parameters: one array for each column of the key. */
export function deleteByKeySql(table: string, keyColumns: readonly SinkColumn[]): string {
  const matches = keyColumns.map(({ name, type }, index) => `t.${quoteIdentifier(name)} = r.v${index + 1}::${type}`);
  return `DELETE FROM ${table} t USING unnest(${arrays(keyColumns.length)}) r(${places(keyColumns.length)}) WHERE ${matches.join(' AND ')}`;
}

/** Parameters: one array for each column. */
export function deleteRowsSql(table: string, columns: readonly SinkColumn[]): string {
  const image = (alias: string, list: readonly string[]): string =>
    `ROW(${list.map((item) => `${alias}.${item}`).join(', ')})::text COLLATE "C"`;
  const own = image(
    't',
    columns.map(({ name }) => quoteIdentifier(name)),
  );
  return `WITH gone AS (
  SELECT x.image, count(*) AS copies
  FROM (SELECT ROW(${typed(columns)})::text COLLATE "C" AS image FROM unnest(${arrays(columns.length)}) r(${places(columns.length)})) x
  GROUP BY x.image
)
DELETE FROM ${table} d USING (
  SELECT t.ctid AS row, gone.copies, row_number() OVER (PARTITION BY gone.image) AS copy
  FROM gone JOIN ${table} t ON ${own} = gone.image
) o WHERE d.ctid = o.row AND o.copy <= o.copies`;
}
