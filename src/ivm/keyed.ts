/**
 * Queries whose touched keys are computed again.
 * Invariant: what the storage has for a key is what the query gives for it; keys that no change can have touched stay as they are.
 */
import { type Pairing, withImageHash, writeDifference } from './difference.ts';
import type { KeyedPlan } from './plans.ts';
import { renderFrom, renderTemplate } from './relation-sql.ts';
import { columnsOf, hashOf, nameList, rowNumbers, sameRow, whereAll } from './sql-text.ts';
import { touchingTerms } from './terms.ts';
import type { TableName } from './types.ts';

export function keyedDdl(plan: KeyedPlan, table: string, storage: TableName): string[] {
  // A B-tree takes no entry of more than a third of a page.
  const index = plan.short ? nameList(plan.key) : `(${hashOf(plan.key.map((name) => nameList([name])))})`;
  return [
    `CREATE TABLE ${table} WITH (fillfactor = 80) AS\n${keyedSelect(plan, storage)}\nWITH NO DATA`,
    rowNumbers(table),
    `CREATE INDEX ON ${table} (${index})`,
  ];
}

export function keyedColumns(plan: KeyedPlan): string[] {
  return plan.unique.length > 0 ? [...plan.columns] : [...plan.columns, 'h'];
}

export function keyedPairing(plan: KeyedPlan): Pairing {
  return plan.unique.length > 0 ? { kind: 'key', columns: plan.unique } : { kind: 'image' };
}

/** All rows of the storage, columns as in `keyedColumns`. */
export function keyedSelect(plan: KeyedPlan, storage: TableName): string {
  return hashed(plan, query(plan, 'all', storage));
}

export function keyedMaintain(
  plan: KeyedPlan,
  table: string,
  changed: ReadonlySet<number>,
  delta: TableName,
  storage: TableName,
): string[] {
  const touched = touchedKeys(plan, changed, delta, storage);
  if (touched.length === 0) return [];
  const keys = plan.key.map((_, i) => `k${i + 1}`);
  const fresh = [query(plan, 'touched', storage), ...(plan.nullable ? [query(plan, 'touchedNull', storage)] : [])];
  return [
    writeDifference(
      table,
      keyedColumns(plan),
      hashed(plan, fresh.map((text) => `(${text})`).join('\n  UNION ALL\n  ')),
      keyedPairing(plan),
      {
        ctes: `"mr$touched" AS MATERIALIZED (
  SELECT DISTINCT ${columnsOf('t', keys)}
  FROM (
    ${touched.join('\n    UNION ALL\n    ')}
  ) t(${keys.join(', ')})
)`,
        stored: (item, list) => storedRows(plan, item, list),
        holds: `EXISTS (SELECT FROM "mr$touched" t WHERE ${sameHash(plan)})`,
      },
    ),
  ];
}

/** Stored rows of the touched keys. */
function storedRows(plan: KeyedPlan, item: string, list: string): string {
  const keys = plan.key.map((_, i) => `k${i + 1}`);
  const found = (on: string): string => `SELECT ${list} FROM "mr$touched" t JOIN ${item} ON ${on}`;
  if (!plan.short) return found(sameHash(plan));
  const all = found(plan.key.map((name, i) => `${columnsOf('s', [name])} = t.${keys[i]}`).join(' AND '));
  if (!plan.nullable) return all;
  const alike = plan.key.map((name, i) => `${columnsOf('s', [name])} IS NOT DISTINCT FROM t.${keys[i]}`).join(' AND ');
  const someNull = (alias: string, names: readonly string[]): string =>
    names.map((name) => `${columnsOf(alias, [name])} IS NULL`).join(' OR ');
  return `${all}
    UNION ALL
    ${found(`(${someNull('s', plan.key)}) AND ${alike} WHERE ${someNull('t', keys)}`)}`;
}

/** Equal keys, NULL equal to NULL. */
function sameHash(plan: KeyedPlan): string {
  const stored = columnsOf('s', plan.key);
  const touched = columnsOf(
    't',
    plan.key.map((_, i) => `k${i + 1}`),
  );
  return `${hashOf([stored])} = ${hashOf([touched])} AND ${sameRow(stored, touched)}`;
}

function query(plan: KeyedPlan, which: 'all' | 'touched' | 'touchedNull', storage: TableName): string {
  return renderTemplate(plan.queries[which], plan.occurrences, { storage, keysOf: plan.keysOf });
}

function hashed(plan: KeyedPlan, select: string): string {
  return plan.unique.length > 0 ? select : withImageHash(select, plan.columns);
}

function touchedKeys(plan: KeyedPlan, changed: ReadonlySet<number>, delta: TableName, storage: TableName): string[] {
  switch (plan.touch.kind) {
    case 'paths':
      return plan.touch.paths
        .filter((path) => changed.has(path.occurrences[path.trigger]?.input ?? 0))
        .map((path) => {
          const query = renderTemplate(path.query, path.occurrences, {
            storage,
            delta,
            states: path.occurrences.map((_, i) => (i === path.trigger ? 'moved' : 'new')),
            keysOf: path.keysOf,
          });
          const needs = path.needs
            .filter(({ occurrences }) => !occurrences.some(({ input }) => changed.has(input)))
            .map(({ condition, occurrences }) => ` AND ${renderTemplate(condition, occurrences, { storage })}`);
          return query + needs.join('');
        });
    case 'terms': {
      const { source, keys } = plan.touch;
      const where = whereAll(source.where === null ? null : `(${source.where})`);
      const isChanged = source.occurrences.map((occurrence) => changed.has(occurrence.input));
      return touchingTerms(isChanged).map(
        ({ states }) =>
          `SELECT ${keys.join(', ')} FROM ${renderFrom(source, {
            storage,
            delta,
            states: states.map((state) => (state === 'changes' ? 'moved' : state)),
            // Rows that change places change what tells them apart.
            keysOf: plan.keysOf,
          })} ${where}`,
      );
    }
  }
}
