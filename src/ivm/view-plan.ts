/**
 * What the engine runs for a view. Every function is pure and takes the plan from the catalog.
 * Invariant: after `storageDdl` and `populateSql`, and after the statements of `maintainSql` in every epoch in which an input changed, the
 * facade over `visibleColumns` shows exactly the rows of the defining query.
 *
 * Session settings that these statements want:
 * - search_path as it was when pg_get_viewdef printed the query, because the names in it were printed for that path;
 * - extra_float_digits at its default (1) or more, so that the text of a float tells all values apart; the plan compares images by text;
 * - no ANALYZE and no autovacuum on delta tables (captureDdl turns it off): statistics of a small delta are worse than none when a large
 *   one comes, because without any the planner goes by the length of the file;
 * - small epochs: the same text gives the same statement, so it can be prepared under its text; emptying a delta table by TRUNCATE
 *   invalidates prepared plans, DELETE does not (but leaves dead rows: TRUNCATE after large epochs, DELETE after small ones);
 * - jit off: expressions are many and rows few; from_collapse_limit and join_collapse_limit at least as large as the widest join.
 */
import { aggregateColumns, aggregateDdl, aggregateMaintain, aggregateSelect } from './aggregate.ts';
import { groupsColumns, groupsDdl, groupsMaintain, groupsSelect } from './groups.ts';
import type { ViewPlan } from './plans.ts';
import { rowsDdl, rowsMaintain, rowsSelect } from './rows.ts';
import { deltaName, nameList, storageName, writeDifference } from './sql-text.ts';
import type { LiveRelation, TableName, VisibleColumn } from './types.ts';
import { wholeDdl, wholeMaintain, wholeSelect } from './whole.ts';

/** Statements that create the empty storage `millrace_data.s<id>`. Columns have the types, typmods and collations of the query's own. */
export function storageDdl(plan: ViewPlan, id: number, storage: TableName = storageName): string[] {
  switch (plan.body.kind) {
    case 'rows':
      return rowsDdl(plan.body, id, storage);
    case 'aggregate':
      return aggregateDdl(plan.body, id, storage);
    case 'groups':
      return groupsDdl(plan.body, id, storage);
    case 'whole':
      return wholeDdl(plan.body, id, storage);
  }
}

/** Columns of the facade: `SELECT <expression> AS <name>, .. FROM millrace_data.s<id> s`. */
export function visibleColumns(plan: ViewPlan): readonly VisibleColumn[] {
  return plan.columns;
}

/** The view as input of another one. */
export function asLiveRelation(plan: ViewPlan, id: number): LiveRelation {
  return { kind: 'live', id, key: plan.key, columns: plan.columns };
}

/** Fills the empty storage from the present state of the inputs. */
export function populateSql(plan: ViewPlan, id: number, storage: TableName = storageName): string {
  const { columns, select } = content(plan, storage);
  return `INSERT INTO ${storageName(id)} (${nameList(columns)})\n${select}`;
}

/**
 * Statements for an epoch in which the inputs in `changed` have new rows in their delta tables; inputs are in their new state. No
 * statement for an epoch that does not touch the view. A change without effect on the result writes no row.
 */
export function maintainSql(
  plan: ViewPlan,
  id: number,
  changed: ReadonlySet<number>,
  delta: TableName = deltaName,
  storage: TableName = storageName,
): string[] {
  const relevant = new Set(plan.inputs.filter((input) => changed.has(input)));
  if (relevant.size === 0) return [];
  switch (plan.body.kind) {
    case 'rows':
      return rowsMaintain(plan.body, id, relevant, delta, storage);
    case 'aggregate':
      return aggregateMaintain(plan.body, id, relevant, delta, storage);
    case 'groups':
      return groupsMaintain(plan.body, id, relevant, delta, storage);
    case 'whole':
      return wholeMaintain(plan.body, id, storage);
  }
}

/**
 * A small delta as a relation the planner knows to be small, to be returned from `maintainSql`'s `delta`. Without it the planner takes a
 * delta table for ten pages of rows, and reads whole storages for an epoch of one row. `rows`: how many rows the table has, or more; the
 * text is the same for all numbers up to 4, 32 and 256, so that statements can be prepared, and the bare table beyond.
 * A number that is too small loses changes: count what is there, `SELECT count(*) FROM (SELECT FROM <table> LIMIT 257) x`.
 */
export function boundedDelta(table: string, rows: number): string {
  const bound = [4, 32, 256].find((limit) => rows <= limit);
  return bound === undefined ? table : `(SELECT * FROM ${table} LIMIT ${bound})`;
}

/**
 * Makes the storage right whatever is in it, writing only what differs, without looking at deltas. For repair, and for an epoch whose
 * maintenance fails: delta terms of joins evaluate expressions on pairs of rows that never stood side by side, so one that can fail (a
 * division) may fail there although the query does not.
 */
export function rebuildSql(plan: ViewPlan, id: number, storage: TableName = storageName): string {
  const { columns, select } = content(plan, storage);
  return writeDifference(storageName(id), columns, select);
}

/** The way chosen and why, for users. */
export function explainPlan(plan: ViewPlan): string {
  const { way, reason } = plan.reason;
  return `${way}: ${reason}`;
}

function content(plan: ViewPlan, storage: TableName): { readonly columns: readonly string[]; readonly select: string } {
  const { body } = plan;
  switch (body.kind) {
    case 'rows':
      return { columns: body.columns.map(({ name }) => name), select: rowsSelect(body, storage) };
    case 'aggregate':
      return { columns: aggregateColumns(body), select: aggregateSelect(body, storage) };
    case 'groups':
      return { columns: groupsColumns(body), select: groupsSelect(body, storage) };
    case 'whole':
      return { columns: body.columns, select: wholeSelect(body, storage) };
  }
}
