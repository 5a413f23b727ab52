/**
 * Grouped views whose touched groups are computed again.
 * Invariant: a storage row is what the query itself gives for its group; groups that HAVING drops have no row.
 */
import { groupName, presentGroups, touchedGroups } from './group-recompute.ts';
import type { GroupsPlan } from './plans.ts';
import { renderFrom } from './relation-sql.ts';
import { assignments, columnsOf, hashOf, imageDiffers, nameList, rowNumbers, sameRow, selectList, whereAll } from './sql-text.ts';
import type { TableName } from './types.ts';

export function groupsDdl(plan: GroupsPlan, table: string, storage: TableName): string[] {
  return [
    `CREATE TABLE ${table} WITH (fillfactor = 80) AS\n${groupsSelect(plan, storage)}\nWITH NO DATA`,
    rowNumbers(table),
    `CREATE INDEX ON ${table} (h)`,
  ];
}

export function groupsColumns(plan: GroupsPlan): string[] {
  return ['h', ...hiddenGroups(plan).map(({ name }) => name), ...plan.outputs.map(({ name }) => name)];
}

/** All rows of the storage, columns as in `groupsColumns`. */
export function groupsSelect(plan: GroupsPlan, storage: TableName): string {
  const groups = plan.groups.map(({ expression }) => expression);
  const list = selectList([{ name: 'h', expression: hashOf(groups) }, ...hiddenGroups(plan), ...plan.outputs]);
  const { where } = plan.source;
  return `SELECT ${list}
FROM ${renderFrom(plan.source, { storage })}
${whereAll(where === null ? null : `(${where})`)}
GROUP BY ${groups.join(', ')}${plan.having === null ? '' : `\nHAVING ${plan.having}`}`;
}

export function groupsMaintain(
  plan: GroupsPlan,
  table: string,
  changed: ReadonlySet<number>,
  delta: TableName,
  storage: TableName,
): string[] {
  const groups = plan.groups.map(({ expression }) => expression);
  const keys = plan.groups.map(({ name }) => name);
  const hidden = hiddenGroups(plan).map(({ name }) => name);
  const outputs = plan.outputs.map(({ name }) => name);
  const written = [...hidden, ...outputs];
  const found = groups.map((_, i) => groupName(i));
  const newValues = written.map((name) => `n.${nameList([newName(plan, name)])} AS ${nameList([name])}`);
  const present = presentGroups({
    source: plan.source,
    groups,
    comparable: plan.comparable,
    storage,
    keys: '"mr$touched"',
    select: selectList(plan.outputs),
    having: plan.having,
  });
  return [
    `
WITH "mr$touched" AS MATERIALIZED (
  ${touchedGroups(plan.source, groups, changed, delta, storage)}
), "mr$present" AS MATERIALIZED (
  ${present}
)
MERGE INTO ${table} s
USING (
  SELECT t."mr$h", ${columnsOf('t', unquoted(found))}, n."mr$h" IS NOT NULL AS "mr$is", ${newValues.join(', ')}
  FROM "mr$touched" t
  LEFT JOIN "mr$present" n ON n."mr$h" = t."mr$h" AND ${sameRow(columnsOf('n', unquoted(found)), columnsOf('t', unquoted(found)))}
) x ON s.h = x."mr$h" AND ${sameRow(columnsOf('s', keys), columnsOf('x', unquoted(found)))}
WHEN MATCHED AND NOT x."mr$is" THEN DELETE
WHEN MATCHED AND ${imageDiffers(columnsOf('s', written), columnsOf('x', written))} THEN
  UPDATE SET ${assignments(written, 'x')}
WHEN NOT MATCHED AND x."mr$is" THEN
  INSERT (h, ${nameList(written)}) VALUES (x."mr$h", ${columnsOf('x', written)})`.trim(),
  ];
}

/** Group columns that no output shows. */
function hiddenGroups(plan: GroupsPlan): GroupsPlan['groups'] {
  return plan.groups.filter(({ name }) => !plan.outputs.some((output) => output.name === name));
}

/** Name under which the recomputed groups have a storage column. */
function newName(plan: GroupsPlan, name: string): string {
  const group = plan.groups.findIndex((candidate) => candidate.name === name);
  return plan.outputs.some((output) => output.name === name) ? name : `mr$g${group + 1}`;
}

function unquoted(names: readonly string[]): string[] {
  return names.map((name) => name.slice(1, -1));
}
