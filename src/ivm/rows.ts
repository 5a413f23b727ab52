/**
 * Select-project-join views.
 * Invariant: a storage row stands for one combination of input rows and carries their keys. A row can only come, go or change when one of
 * its input rows does, so the present combinations with a changed key are all there is to write, and stored ones with a changed key that
 * are no longer present are all there is to delete. Old values are never needed, so changes need not be netted.
 * Of one relation, the changes alone say it all: the signs of a key's rows add up to what becomes of its row, and its last image is the
 * one that came more often than it went.
 */

import { clockId } from './clock-relation.ts';
import { findsAll, type InputColumn } from './known-keys.ts';
import type { RowsPlan } from './plans.ts';
import { changedKeys, keyName, onlyTurned, renderFrom, type State, weightName, weightProduct, whereOf } from './relation-sql.ts';
import { assignments, columnsOf, imageDiffers, nameList, sameKey, selectList, whereAll } from './sql-text.ts';
import { presentTerms, type Term } from './terms.ts';
import { type InputFacts, nothingKnown, type Occurrence, type TableName } from './types.ts';

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

export function rowsMaintain(
  plan: RowsPlan,
  table: string,
  changed: ReadonlySet<number>,
  delta: TableName,
  storage: TableName,
  facts: InputFacts = nothingKnown,
): string[] {
  const names = plan.columns.map((column) => column.name);
  const key = plan.keys.flat();
  const isChanged = plan.source.occurrences.map((occurrence) => changed.has(occurrence.input));
  const inputs = new Map(plan.source.occurrences.filter((o) => changed.has(o.input)).map((o) => [o.input, o]));
  if (inputs.size === 0) return [];
  if (plan.source.occurrences.length === 1) return [oneRelation(plan, table, delta, storage)];
  const turned = clockTurns(plan, table, changed, delta, storage);
  if (turned !== null) return [turned];
  const ctes = [...inputs.values()].map(
    (occurrence) => `${changedKeys(occurrence.input)} AS MATERIALIZED (
  ${facts.isExact(occurrence.input) ? allKeys(occurrence, delta(occurrence.input)) : relevantKeys(plan, occurrence, delta(occurrence.input))}
)`,
  );
  const present = presentTerms(isChanged).map((term) => termSelect(plan, storage, term));
  const [relation = -1, ...others] = isChanged.flatMap((is, i) => (is ? [i] : []));
  if (others.length === 0 && findsAll(plan.source, relation, (one, other) => areAlike(facts, one, other)))
    return [oneRowEach(plan, table, relation, [...ctes, `"mr$present" AS MATERIALIZED (\n  ${present.join('')}\n)`])];
  const stored = storedRows(plan, isChanged, table);
  return [
    `
WITH ${ctes.join(', ')}, "mr$present" AS MATERIALIZED (
  ${present.join('\n  UNION ALL\n  ')}
)
MERGE INTO ${table} s
USING (
  SELECT o."mr$row", ${columnsOf('n', key.slice(0, 1))} IS NULL AS "mr$none", ${columnsOf('n', names)}
  FROM (
    ${stored.join('\n    UNION ALL\n    ')}
  ) o FULL JOIN "mr$present" n ON ${sameKey('o', 'n', key)}
  WHERE o."mr$row" IS NULL OR ${columnsOf('n', key.slice(0, 1))} IS NULL OR ${imageDiffers(columnsOf('o', names), columnsOf('n', names))}
) x ON s.ctid = x."mr$row"
WHEN MATCHED AND x."mr$none" THEN DELETE
WHEN MATCHED THEN
  UPDATE SET ${assignments(names, 'x')}
WHEN NOT MATCHED THEN
  INSERT (${nameList(names)}) VALUES (${columnsOf('x', names)})`.trim(),
  ];
}

/**
 * Only rows of one relation have changed, and each finds all others by their keys: it stands in one row of the result at most, and what is stored
 * under its key is that row.
 */
function oneRowEach(plan: RowsPlan, table: string, relation: number, ctes: readonly string[]): string {
  const names = plan.columns.map((column) => column.name);
  const occurrence = plan.source.occurrences[relation];
  const stored = plan.keys[relation] ?? [];
  const pairs = (occurrence?.key ?? []).map((name, i) => ({ name, stored: stored[i] ?? '', found: `mr$key${i + 1}` }));
  return `
WITH ${ctes.join(', ')}
MERGE INTO ${table} s
USING (
  SELECT ${pairs.map(({ name, found }) => `${columnsOf('k', [name])} AS ${nameList([found])}`).join(', ')}, ${columnsOf('n', stored.slice(0, 1))} IS NULL AS "mr$none", ${columnsOf('n', names)}
  FROM ${changedKeys(occurrence?.input ?? 0)} k LEFT JOIN "mr$present" n ON ${pairs.map(({ name, stored }) => `${columnsOf('n', [stored])} = ${columnsOf('k', [name])}`).join(' AND ')}
) x ON ${pairs.map(({ stored, found }) => `${columnsOf('s', [stored])} = ${columnsOf('x', [found])}`).join(' AND ')}
WHEN MATCHED AND x."mr$none" THEN DELETE
WHEN MATCHED AND ${imageDiffers(columnsOf('s', names), columnsOf('x', names))} THEN
  UPDATE SET ${assignments(names, 'x')}
WHEN NOT MATCHED AND NOT x."mr$none" THEN
  INSERT (${nameList(names)}) VALUES (${columnsOf('x', names)})`.trim();
}

function areAlike({ typeOf }: InputFacts, one: InputColumn, other: InputColumn): boolean {
  const type = typeOf(one.input, one.column);
  return type !== undefined && type === typeOf(other.input, other.column);
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
  UPDATE SET ${assignments(names, 'n')}
WHEN NOT MATCHED AND n."mr$net" > 0 THEN
  INSERT (${nameList(names)}) VALUES (${columnsOf('n', names)})`.trim();
}

/** The clock alone has changed, and rows pass by it or do not: few do so who did not before, and what they look like is all there is to know. */
function clockTurns(plan: RowsPlan, table: string, changed: ReadonlySet<number>, delta: TableName, storage: TableName): string | null {
  const { occurrences } = plan.source;
  if (occurrences.some(({ input }) => changed.has(input) && input !== clockId)) return null;
  const states = occurrences.map(({ input }): State => (input === clockId ? 'changes' : 'new'));
  const weight = weightProduct(states);
  const turned = onlyTurned(plan.source, states, selectList(plan.columns));
  if (turned === null || weight === null) return null;
  const names = plan.columns.map((column) => column.name);
  const key = plan.keys.flat();
  const from = renderFrom(plan.source, { storage, delta, states, keysOf: occurrences.map((_, i) => i) });
  return `
MERGE INTO ${table} s
USING (
  SELECT v.*
  FROM (
    SELECT v.*, row_number() OVER same AS "mr$first", sum(v."mr$w") OVER same AS "mr$net"
    FROM (SELECT ${selectList(plan.columns)}, ${weight} AS "mr$w" FROM ${from} ${whereOf(plan.source, states, new Map(), new Set(), turned)}) v
    WINDOW same AS (PARTITION BY ${columnsOf('v', key)})
  ) v
  WHERE v."mr$first" = 1 AND v."mr$net" <> 0
) n ON ${sameKey('s', 'n', key)}
WHEN MATCHED AND n."mr$net" < 0 THEN DELETE
WHEN NOT MATCHED AND n."mr$net" > 0 THEN
  INSERT (${nameList(names)}) VALUES (${columnsOf('n', names)})`.trim();
}

function termSelect(plan: RowsPlan, storage: TableName, term: Term): string {
  const from = renderFrom(plan.source, { storage, states: term.states, keysOf: plan.source.occurrences.map((_, i) => i) });
  const { where } = plan.source;
  return `SELECT ${selectList(plan.columns)} FROM ${from} ${whereAll(where === null ? null : `(${where})`)}`;
}

const allKeys = (occurrence: Occurrence, delta: string): string => `SELECT DISTINCT ${columnsOf('s', occurrence.key)} FROM ${delta} s`;

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

/** Queries for the stored rows with a changed key: each row is in one of them, that of the first of its relations that changed. */
function storedRows(plan: RowsPlan, isChanged: readonly boolean[], table: string): string[] {
  const names = plan.columns.map((column) => column.name);
  const on = (relation: number): string => {
    const occurrence = plan.source.occurrences[relation];
    const columns = plan.keys[relation] ?? [];
    if (occurrence === undefined) throw new RangeError('a plan has keys for each of its relations');
    return occurrence.key.map((name, i) => `${columnsOf('k', [name])} = ${columnsOf('s', [columns[i] ?? ''])}`).join(' AND ');
  };
  const keysOf = (relation: number): string => changedKeys(plan.source.occurrences[relation]?.input ?? 0);
  const relations = isChanged.flatMap((is, relation) => (is ? [relation] : []));
  return relations.map((relation, i) => {
    const earlier = relations.slice(0, i).map((other) => ` AND NOT EXISTS (SELECT FROM ${keysOf(other)} k WHERE ${on(other)})`);
    return `SELECT s.ctid AS "mr$row", ${columnsOf('s', names)} FROM ${table} s JOIN ${keysOf(relation)} k ON ${on(relation)}${
      earlier.length === 0 ? '' : ` WHERE true${earlier.join('')}`
    }`;
  });
}

/** Hidden storage column for a key column of a relation. */
export function hiddenKey(relation: number, index: number): { readonly name: string; readonly expression: string } {
  return { name: `k${relation + 1}_${index + 1}`, expression: keyName(relation, index) };
}
