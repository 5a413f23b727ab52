/**
 * Writing the rows that a query gives now over those that the storage has, only where they differ.
 * Invariant: afterwards the storage (or the given part of it) holds exactly the rows of the query, as a multiset of row images, whatever
 * was in it. Rows are paired one to one and a pair of the same bytes is left alone: any pairing is right, a good one writes little.
 * Never TRUNCATE: readers see the old rows until the epoch commits.
 */
import { quoteLiteral } from '../sql/quote.ts';
import { assignments, columnsOf, imageDiffers, nameList, sameKey, sameRow } from './sql-text.ts';

/** How a stored row finds the new one. */
export type Pairing =
  /** By columns that are unique and never null, in the storage and in the query. */
  | { readonly kind: 'key'; readonly columns: readonly string[] }
  /** By `h`, the hash of columns that are unique but may be null or of types whose `=` is not in reach. */
  | { readonly kind: 'group'; readonly columns: readonly string[] }
  /** By `h`, the hash of the row's image: nothing else tells rows apart, and some may be equal. */
  | { readonly kind: 'image' };

/** A part of the storage. */
export interface Part {
  /** Common table expressions that both sides may use. */
  readonly ctes: string;
  /** Query for the stored rows of the part: `list` from the storage as `s`, which is named by `item`. */
  readonly stored: (item: string, list: string) => string;
  /** Condition that holds for the rows `s` of the storage that belong to it, cheap for all of them together. */
  readonly holds: string;
}

/** Hash of a row as it looks: the text tells apart whatever a reader can tell apart, and exists for every type. */
export function imageHash(columns: string): string {
  return `pg_catalog.hashtextextended(ROW(${columns})::text, 0)`;
}

/** The query with the hash of its rows as another column, `h`. */
export function withImageHash(select: string, columns: readonly string[]): string {
  return `SELECT q.*, ${imageHash(columnsOf('q', columns))} AS h FROM (${select}) q(${nameList(columns)})`;
}

/** Share of the storage's pages, in percent, from which it is told whether most rows differ, and the fewest rows that tell. */
const sampled = 1;
const fewestSampled = 64;
/** New rows below which it is not asked, and, for larger storages, below how many for each of their pages. */
const fewestNew = 2000;
const fewestNewPerPage = 2;

/**
 * The statement. `columns`: those of `select`, in order. When a sample of the stored rows says that most of them are not among the new
 * ones, all are replaced, which costs less than a third of finding out which.
 */
export function writeDifference(
  table: string,
  columns: readonly string[],
  select: string,
  pairing: Pairing,
  part: Part | null = null,
): string {
  const stored = part?.stored ?? ((item: string, wanted: string): string => `SELECT ${wanted} FROM ${item}`);
  const list = nameList(columns);
  const same = paired(pairing, 'o', 'n');
  const differs = imageDiffers(columnsOf('o', columns), columnsOf('n', columns));
  const many = `(SELECT count(*) > greatest(${fewestNew}, pg_catalog.pg_relation_size(${quoteLiteral(table)}) * ${fewestNewPerPage} / 8192) FROM "mr$fresh")`;
  const mostly = '(SELECT m."mr$differ" FROM "mr$mostly" m)';
  const rows = stored(`${table} s`, `s.ctid AS "mr$row", ${columnsOf('s', columns)}`);
  const { ctes, pairs } = differing(columns, pairing, rows, `NOT ${mostly}`);
  return `
WITH ${part === null || part.ctes === '' ? '' : `${part.ctes}, `}"mr$fresh" AS MATERIALIZED (
  SELECT * FROM (${select}) q(${list})
), "mr$sample" AS MATERIALIZED (
  SELECT * FROM (${stored(`${table} s TABLESAMPLE SYSTEM (${sampled})`, columnsOf('s', columns))}) p
  WHERE ${many}
), "mr$mostly" AS MATERIALIZED (
  SELECT (SELECT count(*) FROM "mr$sample") > greatest(${fewestSampled}, 2 * count(*)) AS "mr$differ"
  -- The few are looked for by the many, so that these need not be hashed.
  FROM "mr$fresh" n
  WHERE EXISTS (SELECT FROM "mr$sample" o WHERE ${same} AND NOT ${differs})
), "mr$gone" AS (
  DELETE FROM ${table} s WHERE ${mostly}${part === null ? '' : ` AND ${part.holds}`}
  RETURNING 1
), "mr$put" AS (
  INSERT INTO ${table} (${list})
  SELECT ${columnsOf('n', columns)}
  -- Counted so that rows go before others with the same key come.
  FROM (SELECT count(*) FROM "mr$gone") first, "mr$fresh" n
  WHERE ${mostly}
)${ctes}
MERGE INTO ${table} s
USING (
  ${pairs.join('\n  UNION ALL\n  ')}
) x ON s.ctid = x."mr$row"
WHEN MATCHED AND x."mr$none" THEN DELETE
WHEN MATCHED THEN UPDATE SET ${assignments(columns, 'x')}
WHEN NOT MATCHED THEN INSERT (${list}) VALUES (${columnsOf('x', columns)})`.trim();
}

/** Queries for what is to be written, with the place of the stored row, and the common table expressions they need. */
function differing(
  columns: readonly string[],
  pairing: Pairing,
  rows: string,
  condition: string,
): { readonly ctes: string; readonly pairs: readonly string[] } {
  const [mark = ''] = pairing.kind === 'key' ? pairing.columns : ['h'];
  const differs = imageDiffers(columnsOf('o', columns), columnsOf('n', columns));
  const joined = (before: string, now: string, on: string): string =>
    `SELECT o."mr$row", n.${nameList([mark])} IS NULL AS "mr$none", ${columnsOf('n', columns)}
  FROM ${before} o FULL JOIN ${now} n ON ${on}
  WHERE ${condition} AND (o."mr$row" IS NULL OR n.${nameList([mark])} IS NULL OR ${differs})`;
  const same = paired(pairing, 'o', 'n');
  if (pairing.kind !== 'image') return { ctes: '', pairs: [joined(`(${rows})`, '"mr$fresh"', same)] };
  const once = (from: string): string => `(SELECT * FROM ${from} WHERE h NOT IN (SELECT h FROM "mr$twice"))`;
  const copies = (from: string): string =>
    `(SELECT *, row_number() OVER (PARTITION BY h) AS "mr$copy" FROM ${from} WHERE h IN (SELECT h FROM "mr$twice"))`;
  return {
    ctes: `, "mr$stored" AS MATERIALIZED (
  ${rows}
), "mr$twice" AS MATERIALIZED (
  SELECT h FROM "mr$stored" GROUP BY h HAVING count(*) > 1
  UNION
  SELECT h FROM "mr$fresh" GROUP BY h HAVING count(*) > 1
)`,
    // Copies are numbered only where there are some: most rows have none.
    pairs: [
      joined(once('"mr$stored"'), once('"mr$fresh"'), same),
      joined(copies('"mr$stored"'), copies('"mr$fresh"'), `${same} AND o."mr$copy" = n."mr$copy"`),
    ],
  };
}

function paired(pairing: Pairing, left: string, right: string): string {
  switch (pairing.kind) {
    case 'key':
      return sameKey(left, right, pairing.columns);
    case 'group':
      return pairing.columns.length === 0
        ? `${left}.h = ${right}.h`
        : `${left}.h = ${right}.h AND ${sameRow(columnsOf(left, pairing.columns), columnsOf(right, pairing.columns))}`;
    case 'image':
      return `${left}.h = ${right}.h`;
  }
}
