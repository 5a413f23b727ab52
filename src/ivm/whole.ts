/**
 * Queries that are computed again as a whole.
 * Invariant: the storage is never emptied; only rows that differ are written.
 */
import { withImageHash, writeDifference } from './difference.ts';
import type { WholePlan } from './plans.ts';
import { renderTemplate } from './relation-sql.ts';
import { rowNumbers } from './sql-text.ts';
import type { TableName } from './types.ts';

export function wholeDdl(plan: WholePlan, table: string, storage: TableName): string[] {
  return [`CREATE TABLE ${table} WITH (fillfactor = 80) AS\n${wholeSelect(plan, storage)}\nWITH NO DATA`, rowNumbers(table)];
}

export function wholeColumns(plan: WholePlan): string[] {
  return [...plan.columns, 'h'];
}

/** All rows of the storage, columns as in `wholeColumns`. */
export function wholeSelect(plan: WholePlan, storage: TableName): string {
  return withImageHash(`\n${renderTemplate(plan.query, plan.occurrences, { storage })}\n`, plan.columns);
}

export function wholeMaintain(plan: WholePlan, table: string, delta: TableName, storage: TableName): string[] {
  const columns = wholeColumns(plan);
  const select = wholeSelect(plan, storage);
  const inputs = [...new Set(plan.occurrences.map(({ input }) => input))];
  // Whether a hidden stage changed is known to the server alone.
  if (!inputs.every((input) => input < 0)) return [writeDifference(table, columns, select, { kind: 'image' })];
  const changed = inputs.map((input) => `EXISTS (SELECT FROM ${delta(input)})`).join(' OR ');
  return [
    writeDifference(
      table,
      columns,
      `SELECT * FROM (${select}) g WHERE ${changed}`,
      { kind: 'image' },
      {
        ctes: '',
        stored: (item, list) => `SELECT ${list} FROM ${item} WHERE ${changed}`,
        holds: `(${changed})`,
      },
    ),
  ];
}
