/**
 * What a sink emits at a cutover besides the changes after it. Pure: text out.
 * Invariant: rows with equal seq concern one key and are to go out together; seq begins at 1 and has no order that means anything else.
 * Rows are compared as they look: by their text, so types without equality are compared too, and what looks the same to a consumer is the same.
 */
import type { CatalogState, SinkVersion } from './context.ts';
import { placeNames, shownRows } from './outbox.ts';

export interface BackfillParts {
  readonly version: SinkVersion;
  /** The version whose relation is compared with; null: a snapshot of the new one. */
  readonly former: SinkVersion | null;
  readonly key: readonly string[] | null;
  /** To be made. */
  readonly table: string;
}

/** Statements that make and fill `table` (seq, place, w, v1, v2, ..): every row of the new relation with w 1, or the difference old -> new. */
export function backfillSql(state: CatalogState, { version, former, key, table }: BackfillParts): string[] {
  const names = placeNames(version.columns.length);
  const list = names.map((name) => `r.${name}`).join(', ');
  const fresh = shownRows(state, version.relationId);
  if (former === null) {
    return [`CREATE TABLE ${table} AS SELECT row_number() OVER () AS seq, 1::bigint AS place, 1::smallint AS w, ${list} FROM (${fresh}) r`];
  }
  const image = `ROW(${list})::text COLLATE "C"`;
  // Which copy of equal rows it is: so that the difference is one of multisets.
  const numbered = (rows: string): string =>
    `SELECT r.*, ${image} AS "mr$image", row_number() OVER (PARTITION BY ${image}) AS "mr$copy" FROM (${rows}) r`;
  const same = sameColumns(version, former);
  const old = shownRows(state, former.relationId);
  const of = places(version, key);
  const group = of === null ? '"mr$image", "mr$copy", d.w' : of.map((place) => `d.v${place}::text COLLATE "C"`).join(', ');
  const difference = same
    ? `SELECT (CASE WHEN n."mr$image" IS NULL THEN -1 ELSE 1 END)::smallint AS w, coalesce(n."mr$image", o."mr$image") AS "mr$image",
              coalesce(n."mr$copy", o."mr$copy") AS "mr$copy", ${names.map((name) => `CASE WHEN n."mr$image" IS NULL THEN o.${name} ELSE n.${name} END AS ${name}`).join(', ')}
         FROM (${numbered(old)}) o
         FULL JOIN (${numbered(fresh)}) n ON n."mr$image" = o."mr$image" AND n."mr$copy" = o."mr$copy"
        WHERE n."mr$image" IS NULL OR o."mr$image" IS NULL`
    : // Rows of another shape: every one of them has changed.
      `SELECT -1::smallint AS w, r.* FROM (${numbered(projected(version, former, old))}) r
        UNION ALL
       SELECT 1::smallint, r.* FROM (${numbered(fresh)}) r`;
  return [
    `CREATE TABLE ${table} AS
SELECT dense_rank() OVER (ORDER BY ${group}) AS seq, row_number() OVER (PARTITION BY ${group} ORDER BY d.w) AS place, d.w, ${names.map((name) => `d.${name}`).join(', ')}
  FROM (${difference}) d`,
  ];
}

/** Names, types and order are the same. */
export function sameColumns(a: Pick<SinkVersion, 'columns'>, b: Pick<SinkVersion, 'columns'>): boolean {
  return (
    a.columns.length === b.columns.length &&
    a.columns.every((column, index) => column.name === b.columns[index]?.name && column.type === b.columns[index]?.type)
  );
}

/** Places of the key's columns; null: it has none. */
function places(version: Pick<SinkVersion, 'columns'>, key: readonly string[] | null): number[] | null {
  return key === null ? null : key.map((name) => version.columns.findIndex((column) => column.name === name) + 1);
}

/** Old rows in the shape of new ones: columns of the same name and type, NULL for the others. */
function projected(version: Pick<SinkVersion, 'columns'>, former: Pick<SinkVersion, 'columns'>, old: string): string {
  const list = version.columns.map(({ name, type }, index) => {
    const at = former.columns.findIndex((column) => column.name === name && column.type === type);
    return `${at === -1 ? 'NULL' : `r.v${at + 1}`}::${type} AS v${index + 1}`;
  });
  return `SELECT ${list.join(', ')} FROM (${old}) r`;
}
