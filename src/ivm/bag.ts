/**
 * Rows without an identity: of relations without a key, of several arms, of functions that return sets.
 * Invariant: the storage holds each row, as it looks, as often as the query gives it. The signed terms of the change of all arms are summed
 * for each image; so many copies are deleted or inserted. Types of arms are settled by putting an empty select from the storage first.
 */
import type { BagPlan } from './plans.ts';
import { onlyTurned, renderFrom, type State, weightProduct } from './relation-sql.ts';
import { columnsOf, nameList, rowNumbers, whereAll } from './sql-text.ts';
import { signedTerms } from './terms.ts';
import type { TableName } from './types.ts';

const image = (alias: string, columns: readonly string[]): string => `ROW(${columnsOf(alias, columns)})::text`;
const hash = (text: string): string => `pg_catalog.hashtextextended(${text}, 0)`;

export function bagDdl(plan: BagPlan, table: string, storage: TableName): string[] {
  return [
    `CREATE TABLE ${table} WITH (fillfactor = 80) AS\n${bagSelect(plan, storage)}\nWITH NO DATA`,
    rowNumbers(table),
    `CREATE INDEX ON ${table} (h)`,
  ];
}

export function bagColumns(plan: BagPlan): string[] {
  return [...plan.columns, 'h'];
}

/** All rows of the storage. */
export function bagSelect(plan: BagPlan, storage: TableName): string {
  const arms = plan.arms.map((_, arm) => armSelect(plan, arm, storage, undefined, null));
  const rows = `SELECT * FROM (\n  ${arms.join('\n  UNION ALL\n  ')}\n) q(${nameList(plan.columns)})`;
  return `SELECT q.*, ${hash(image('q', plan.columns))} AS h FROM (${rows}) q`;
}

/** Images are compared by a function, not an operator, so that no plan looks at those of rows with another hash. */
export function bagMaintain(plan: BagPlan, table: string, changed: ReadonlySet<number>, delta: TableName, storage: TableName): string[] {
  const terms = plan.arms.flatMap((arm, i) => {
    const isChanged = arm.source.occurrences.map((occurrence) => changed.has(occurrence.input));
    return signedTerms(isChanged).map((term) => armSelect(plan, i, storage, delta, term));
  });
  const names = nameList(plan.columns);
  return [
    `
WITH "mr$change" AS MATERIALIZED (
  SELECT x.*
  FROM (
    SELECT t.*, sum(t."mr$w") OVER same AS "mr$net", row_number() OVER same AS "mr$first"
    FROM (
      SELECT t.*, ${hash('t."mr$image"')} AS h
      FROM (
        SELECT t.*, ${image('t', plan.columns)} AS "mr$image"
        FROM (
          SELECT ${columnsOf('s', plan.columns)}, 0 AS "mr$w" FROM ${table} s WHERE false
          UNION ALL
          ${terms.join('\n          UNION ALL\n          ')}
        ) t(${names}, "mr$w")
      ) t
    ) t
    -- Texts are compared, byte by byte, only where hashes are equal.
    WINDOW same AS (PARTITION BY t.h, t."mr$image" COLLATE "C")
  ) x
  WHERE x."mr$first" = 1 AND x."mr$net" <> 0
), "mr$gone" AS (
  DELETE FROM ${table} s
  USING (
    SELECT o.ctid AS "mr$row", x."mr$net", row_number() OVER (PARTITION BY x.h, x."mr$image" COLLATE "C") AS "mr$copy"
    FROM "mr$change" x JOIN ${table} o ON o.h = x.h AND pg_catalog.texteq(${image('o', plan.columns)}, x."mr$image")
    WHERE x."mr$net" < 0
  ) o
  WHERE s.ctid = o."mr$row" AND o."mr$copy" <= - o."mr$net"
)
INSERT INTO ${table} (${names}, h)
SELECT ${columnsOf('x', plan.columns)}, x.h
FROM "mr$change" x, generate_series(1, x."mr$net"::bigint)
WHERE x."mr$net" > 0`.trim(),
  ];
}

function armSelect(
  plan: BagPlan,
  index: number,
  storage: TableName,
  delta: TableName | undefined,
  term: { readonly sign: 1 | -1; readonly states: readonly State[] } | null,
): string {
  const arm = plan.arms[index];
  if (arm === undefined) throw new RangeError('an arm that is not there');
  const { source, outputs } = arm;
  const weight = term === null ? null : (weightProduct(term.states) ?? '1');
  const from = renderFrom(source, {
    storage,
    ...(delta === undefined ? {} : { delta }),
    ...(term === null ? {} : { states: term.states }),
  });
  const list = [...outputs, ...(weight === null ? [] : [term?.sign === -1 ? `(- (${weight}))` : `(${weight})`])];
  const turned = term === null ? null : onlyTurned(source, term.states, list.join(' '));
  return `SELECT ${list.join(', ')} FROM ${from} ${whereAll(source.where === null ? null : `(${source.where})`, turned)}`;
}
