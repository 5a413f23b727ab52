/**
 * Select-project-join views.
 * Invariant: a storage row stands for one combination of input rows and carries their keys. A row can only come, go or change when one of
 * its input rows does, so the present combinations with a changed key are all there is to write, and stored ones with a changed key that
 * are no longer present are all there is to delete. Old values are never needed, so changes need not be netted.
 * Of one relation, the changes alone say it all: the signs of a key's rows add up to what becomes of its row, and its last image is the
 * one that came more often than it went.
 */
import type { RowsPlan } from './plans.ts';
import { changedKeys, keyName, renderFrom, weightName } from './relation-sql.ts';
import { columnsOf, imageDiffers, nameList, sameKey, selectList, whereAll } from './sql-text.ts';
import { presentTerms, type Term } from './terms.ts';
import type { Occurrence, TableName } from './types.ts';

export function rowsDdl(plan: RowsPlan, table: string, storage: TableName): string[] {
  // The primary key serves look-ups by the first relation's key.
  const others = plan.keys.slice(1).map((key) => `CREATE INDEX ON ${table} (${nameList(key)})`);
  return [
    `CREATE TABLE ${table} WITH (fillfactor = 80) AS\n${rowsSelect(plan, storage)}\nWITH NO DATA`,
    `ALTER TABLE ${table} ADD PRIMARY KEY (${nameList(plan.keys.flat())})`,
    ...others,
  ];
}

/** All rows of the storage. */
export function rowsSelect(plan: RowsPlan, storage: TableName): string {
  return termSelect(plan, storage, { sign: 1, states: plan.source.occurrences.map(() => 'new') });
}

export function rowsMaintain(plan: RowsPlan, table: string, changed: ReadonlySet<number>, delta: TableName, storage: TableName): string[] {
  const names = plan.columns.map((column) => column.name);
  const key = plan.keys.flat();
  const isChanged = plan.source.occurrences.map((occurrence) => changed.has(occurrence.input));
  const inputs = new Map(plan.source.occurrences.filter((o) => changed.has(o.input)).map((o) => [o.input, o]));
  if (inputs.size === 0) return [];
  if (plan.source.occurrences.length === 1) return [oneRelation(plan, table, delta, storage)];
  const ctes = [...inputs.values()].map(
    (occurrence) => `${changedKeys(occurrence.input)} AS MATERIALIZED (
  ${relevantKeys(plan, occurrence, delta(occurrence.input))}
)`,
  );
  const present = presentTerms(isChanged).map((term) => termSelect(plan, storage, term));
  const stale = isChanged.flatMap((is, i) => (is ? [staleRows(plan, i, table)] : []));
  return [
    `
WITH ${ctes.join(', ')}, "mr$present" AS MATERIALIZED (
  ${present.join('\n  UNION ALL\n  ')}
), ${stale.join(', ')}
MERGE INTO ${table} s
USING "mr$present" n ON ${sameKey('s', 'n', key)}
WHEN MATCHED AND ${imageDiffers(columnsOf('s', names), columnsOf('n', names))} THEN
  UPDATE SET ${names.map((name) => `${nameList([name])} = ${columnsOf('n', [name])}`).join(', ')}
WHEN NOT MATCHED THEN
  INSERT (${nameList(names)}) VALUES (${columnsOf('n', names)})`.trim(),
  ];
}

/** Most keys have one row that came, one that went, or one of each; images are compared where more versions came within an epoch. */
function oneRelation(plan: RowsPlan, table: string, delta: TableName, storage: TableName): string {
  const names = plan.columns.map((column) => column.name);
  const key = plan.keys.flat();
  const list = columnsOf('v', names);
  const from = renderFrom(plan.source, { storage, delta, states: ['changes'], keysOf: [0] });
  const { where } = plan.source;
  return `
WITH "mr$version" AS MATERIALIZED (
  SELECT v.*, row_number() OVER same AS "mr$first", sum(v."mr$w") OVER same AS "mr$net", count(*) FILTER (WHERE v."mr$w" > 0) OVER same AS "mr$came"
  FROM (
    SELECT ${selectList(plan.columns)}, ${weightName(0)} AS "mr$w" FROM ${from} ${whereAll(where === null ? null : `(${where})`)}
  ) v
  WINDOW same AS (PARTITION BY ${columnsOf('v', key)} ORDER BY v."mr$w" DESC ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)
)
MERGE INTO ${table} s
USING (
  SELECT ${list}, v."mr$net" FROM "mr$version" v WHERE v."mr$first" = 1 AND v."mr$came" <= 1
  UNION ALL
  SELECT ${list}, v."mr$net"
  FROM (
    SELECT v.*, row_number() OVER (PARTITION BY ${columnsOf('v', key)} ORDER BY v."mr$more" DESC) AS "mr$last"
    FROM (
      SELECT v.*, sum(v."mr$w") OVER (PARTITION BY ${columnsOf('v', key)}, ROW(${list})::text) AS "mr$more" FROM "mr$version" v WHERE v."mr$came" > 1
    ) v
  ) v
  WHERE v."mr$last" = 1 AND (v."mr$more" > 0 OR v."mr$net" < 0)
) n ON ${sameKey('s', 'n', key)}
WHEN MATCHED AND n."mr$net" < 0 THEN DELETE
WHEN MATCHED AND ${imageDiffers(columnsOf('s', names), columnsOf('n', names))} THEN
  UPDATE SET ${names.map((name) => `${nameList([name])} = ${columnsOf('n', [name])}`).join(', ')}
WHEN NOT MATCHED AND n."mr$net" > 0 THEN
  INSERT (${nameList(names)}) VALUES (${columnsOf('n', names)})`.trim();
}

function termSelect(plan: RowsPlan, storage: TableName, term: Term): string {
  const from = renderFrom(plan.source, { storage, states: term.states, keysOf: plan.source.occurrences.map((_, i) => i) });
  const { where } = plan.source;
  return `SELECT ${selectList(plan.columns)} FROM ${from} ${whereAll(where === null ? null : `(${where})`)}`;
}

/** Keys of the rows whose used columns changed in effect. In a join one such row may stand in very many results. */
function relevantKeys(plan: RowsPlan, occurrence: Occurrence, delta: string): string {
  const mentions = plan.source.occurrences.filter((other) => other.input === occurrence.input);
  const used = occurrence.columns.filter((column) => mentions.some((other) => other.used === null || other.used.includes(column.name)));
  const key = columnsOf('s', occurrence.key);
  const image = [key, ...used.map((column) => column.expression)].join(', ');
  return `SELECT DISTINCT ${columnsOf('x', occurrence.key)}
  FROM (SELECT ${key}, ROW(${image})::text AS "mr$image", s.w AS "mr$w" FROM ${delta} s) x
  GROUP BY ${columnsOf('x', occurrence.key)}, x."mr$image"
  HAVING sum(x."mr$w") <> 0`;
}

/** Deletes stored rows with a changed key of one relation that are not among the present ones. Several may meet in a row: the first does it. */
function staleRows(plan: RowsPlan, relation: number, table: string): string {
  const occurrence = plan.source.occurrences[relation];
  const columns = plan.keys[relation] ?? [];
  if (occurrence === undefined) throw new RangeError('a plan has keys for each of its relations');
  const on = occurrence.key.map((name, i) => `${columnsOf('k', [name])} = ${columnsOf('s', [columns[i] ?? ''])}`).join(' AND ');
  return `"mr$gone${relation + 1}" AS (
  DELETE FROM ${table} s USING ${changedKeys(occurrence.input)} k
  WHERE ${on} AND NOT EXISTS (SELECT FROM "mr$present" n WHERE ${sameKey('n', 's', plan.keys.flat())})
)`;
}

/** Hidden storage column for a key column of a relation. */
export function hiddenKey(relation: number, index: number): { readonly name: string; readonly expression: string } {
  return { name: `k${relation + 1}_${index + 1}`, expression: keyName(relation, index) };
}
