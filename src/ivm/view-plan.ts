/**
 * What the engine runs for a view. Every function is pure and takes the plan from the catalog.
 * Invariant: after `storageDdl` and `populateSql`, and after the statements of `maintainSql` in every epoch in which an input changed, the
 * facade over `visibleColumns` shows exactly the rows of the defining query.
 *
 * Session settings that these statements want:
 * - search_path as it was when pg_get_viewdef printed the query, because the names in it were printed for that path;
 * - extra_float_digits at its default (1) or more, so that the text of a float tells all values apart, and other settings of
 *   how values look always the same: rows without a key are found by the hash of their text;
 * - no autovacuum on delta tables (captureDdl turns it off), and ANALYZE of large ones only, each time: statistics of a small delta are worse than
 *   none when a large one comes, because without any the planner goes by the length of the file;
 * - small epochs: the same text gives the same statement, so it can be prepared under its text; emptying a delta table by TRUNCATE
 *   invalidates prepared plans, DELETE does not (but leaves dead rows: TRUNCATE after large epochs, DELETE after small ones);
 * - a view with hidden stages: its statements in order, one after the other, in one transaction;
 * - jit off: expressions are many and rows few; from_collapse_limit and join_collapse_limit at least as large as the widest join.
 */

import { quoteLiteral } from '../sql/quote.ts';
import { aggregateColumns, aggregateDdl, aggregateMaintain, aggregateSelect } from './aggregate.ts';
import { bagColumns, bagDdl, bagMaintain, bagSelect } from './bag.ts';
import { captureDdl, withoutCapture } from './capture.ts';
import { type Pairing, writeDifference } from './difference.ts';
import { groupsColumns, groupsDdl, groupsMaintain, groupsSelect } from './groups.ts';
import { keyedColumns, keyedDdl, keyedMaintain, keyedPairing, keyedSelect } from './keyed.ts';
import type { PlanBody, StagePlan, ViewPlan } from './plans.ts';
import { rowsDdl, rowsMaintain, rowsSelect } from './rows.ts';
import { deltaName, nameList, storageName } from './sql-text.ts';
import { type InputFacts, type LiveRelation, nothingKnown, type TableName, type VisibleColumn } from './types.ts';
import { wholeColumns, wholeDdl, wholeMaintain, wholeSelect } from './whole.ts';

/**
 * Statements that create the empty storage `millrace_data.s<id>`, and those of hidden stages (`millrace_data.s<id>_<n>`) with capture of
 * their changes. Columns have the types, typmods and collations of the query's own.
 */
export function storageDdl(plan: ViewPlan, id: number, storage: TableName = storageName): string[] {
  const names = tables(plan, id, storage, deltaName);
  return [
    ...plan.stages.flatMap((stage, i) => [
      ...ddl(stage.body, stageTable(id, i), names.storage),
      ...order(stage, stageTable(id, i)),
      ...captureDdl(stageId(id, i), isLookedUp(plan, i)),
    ]),
    ...ddl(plan.body, storageName(id), names.storage),
    ...emptyDdl(plan, id),
  ];
}

/** The tables that `populateSql` fills, to be emptied before it, in one TRUNCATE. */
export function storageTables(plan: ViewPlan, id: number): string[] {
  return [...plan.stages.flatMap((_, i) => [stageTable(id, i), deltaName(stageId(id, i))]), storageName(id)];
}

/** Columns of the facade: `SELECT <expression> AS <name>, .. FROM millrace_data.s<id> s`. */
export function visibleColumns(plan: ViewPlan): readonly VisibleColumn[] {
  return plan.columns;
}

/** The view as input of another one. */
export function asLiveRelation(plan: ViewPlan, id: number): LiveRelation {
  return { kind: 'live', id, key: plan.key, columns: plan.columns };
}

/** Statements that fill the empty storage from the present state of the inputs. */
export function populateSql(plan: ViewPlan, id: number, storage: TableName = storageName): string[] {
  const names = tables(plan, id, storage, deltaName);
  const fill = (body: PlanBody, table: string): string => {
    const { columns, select } = content(body, names.storage);
    return `INSERT INTO ${table} (${nameList(columns)})\n${select}`;
  };
  return [
    ...plan.stages.flatMap((stage, i) => [
      ...withoutCapture(stageId(id, i), fill(stage.body, stageTable(id, i))),
      `ANALYZE ${stageTable(id, i)}`,
    ]),
    fill(plan.body, storageName(id)),
  ];
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
  facts: InputFacts = nothingKnown,
): string[] {
  const names = tables(plan, id, storage, delta);
  const present = new Set(plan.inputs.filter((input) => changed.has(input)));
  const statements: string[] = [];
  plan.stages.forEach((stage, i) => {
    const made = maintain(stage.body, stageTable(id, i), present, names.delta, names.storage, facts);
    if (made.length === 0) return;
    statements.push(...made);
    present.add(-1 - i);
  });
  statements.push(...maintain(plan.body, storageName(id), present, names.delta, names.storage, facts));
  return statements.length === 0 ? [] : [...statements, ...emptied(plan, id)];
}

/**
 * A small delta as a relation the planner knows to be small, to be returned from `maintainSql`'s `delta`. Without it the planner takes a
 * delta table for ten pages of rows, and reads whole storages for an epoch of one row. `rows`: how many rows the table has, or more; the
 * text is the same for all numbers up to 4, 32, 256 and 1024, so that statements can be prepared, and the bare table beyond.
 * A number that is too small loses changes: count what is there, `SELECT count(*) FROM (SELECT FROM <table> LIMIT 1025) x`.
 * `where`: a condition on its rows, of which there are so many; null: all of them.
 */
export function boundedDelta(table: string, rows: number, where: string | null = null): string {
  const rest = where === null ? '' : ` WHERE ${where}`;
  const bound = smallDelta(rows);
  if (bound !== null) return `(SELECT * FROM ${table}${rest} LIMIT ${bound})`;
  return where === null ? table : `(SELECT * FROM ${table}${rest})`;
}

/** The bound in the text for a delta of so many rows; null: it has none. */
export function smallDelta(rows: number): number | null {
  return [4, 32, 256, 1024].find((limit) => rows <= limit) ?? null;
}

/**
 * Statements that make the storage right whatever is in it, writing only what differs, without looking at deltas. For repair, and for an
 * epoch whose maintenance fails: delta terms of joins evaluate expressions on pairs of rows that never stood side by side, so one that can
 * fail (a division) may fail there although the query does not.
 */
export function rebuildSql(plan: ViewPlan, id: number, storage: TableName = storageName): string[] {
  const names = tables(plan, id, storage, deltaName);
  const again = (body: PlanBody, table: string): string => {
    const { columns, select, pairing } = content(body, names.storage);
    return writeDifference(table, columns, select, pairing);
  };
  return [...plan.stages.map((stage, i) => again(stage.body, stageTable(id, i))), ...emptied(plan, id), again(plan.body, storageName(id))];
}

/** The way chosen and why, for users. */
export function explainPlan(plan: ViewPlan): string {
  const { way, reason } = plan.reason;
  return `${way}: ${reason}`;
}

/** The steps of a plan, each with its way and why, and the statements of an epoch in which all inputs change. */
export function explainSteps(plan: ViewPlan, id: number): { readonly lines: readonly string[]; readonly sql: readonly string[] } {
  const line = (stage: StagePlan, name: string): string => `${name}: ${stage.body.kind}, ${stage.reason.way}: ${stage.reason.reason}`;
  return {
    lines: [...plan.stages.map((stage, i) => line(stage, `stage ${i + 1}`)), line({ ...plan, reason: plan.last }, 'result')],
    sql: maintainSql(plan, id, new Set(plan.inputs)),
  };
}

const stageId = (id: number, stage: number): string => `${id}_${stage + 1}`;
const stageTable = (id: number, stage: number): string => storageName(stageId(id, stage));

/** Names of the tables of inputs, hidden stages among them. */
function tables(
  plan: ViewPlan,
  id: number,
  storage: TableName,
  delta: TableName,
): { readonly storage: TableName; readonly delta: TableName } {
  const named =
    (outer: TableName, hidden: (id: string) => string): TableName =>
    (input) => {
      if (input < -plan.stages.length) throw new RangeError('a plan reads a stage that it does not have');
      return input < 0 ? hidden(stageId(id, -1 - input)) : outer(input);
    };
  return { storage: named(storage, storageName), delta: named(delta, deltaName) };
}

/** Named as functions that capture changes of stages are, and dropped with them. */
const emptyRoutine = (id: number): string => `millrace_data.capture_s${id}_emptied`;

/**
 * The function by which changes of hidden stages are used up; its plans are kept. Dead rows of small ones are left for a TRUNCATE now and
 * then, which never waits.
 */
function emptyDdl(plan: ViewPlan, id: number): string[] {
  if (plan.stages.length === 0) return [];
  const parts = plan.stages.map((_, stage) => {
    const table = deltaName(stageId(id, stage));
    return `
  IF pg_catalog.pg_relation_size('${table}') > 163840 THEN
    BEGIN
      LOCK TABLE ${table} IN ACCESS EXCLUSIVE MODE NOWAIT;
      TRUNCATE ${table};
    EXCEPTION WHEN lock_not_available THEN
      DELETE FROM ${table};
    END;
  ELSE
    DELETE FROM ${table};
  END IF;`;
  });
  return [`CREATE FUNCTION ${emptyRoutine(id)}() RETURNS void LANGUAGE plpgsql AS ${quoteLiteral(`BEGIN${parts.join('')}\nEND`)}`];
}

/** Changes of hidden stages are used up. */
function emptied(plan: ViewPlan, id: number): string[] {
  return plan.stages.length === 0 ? [] : [`SELECT ${emptyRoutine(id)}()`];
}

function order(stage: StagePlan, table: string): string[] {
  return stage.index === undefined ? [] : [`CREATE INDEX ON ${table} (${stage.index.join(', ')})`];
}

function ddl(body: PlanBody, table: string, storage: TableName): string[] {
  switch (body.kind) {
    case 'rows':
      return rowsDdl(body, table, storage);
    case 'aggregate':
      return aggregateDdl(body, table, storage);
    case 'groups':
      return groupsDdl(body, table, storage);
    case 'bag':
      return bagDdl(body, table, storage);
    case 'keyed':
      return keyedDdl(body, table, storage);
    case 'whole':
      return wholeDdl(body, table, storage);
  }
}

function maintain(
  body: PlanBody,
  table: string,
  present: ReadonlySet<number>,
  delta: TableName,
  storage: TableName,
  facts: InputFacts,
): string[] {
  const changed = new Set(inputsOf(body).filter((input) => present.has(input)));
  if (changed.size === 0) return [];
  switch (body.kind) {
    case 'rows':
      return rowsMaintain(body, table, changed, delta, storage, facts);
    case 'aggregate':
      return aggregateMaintain(body, table, changed, delta, storage);
    case 'groups':
      return groupsMaintain(body, table, changed, delta, storage);
    case 'bag':
      return bagMaintain(body, table, changed, delta, storage);
    case 'keyed':
      return keyedMaintain(body, table, changed, delta, storage);
    case 'whole':
      return wholeMaintain(body, table, delta, storage);
  }
}

/** Inputs that a step reads; hidden stages are negative. */
export function inputsOf(body: PlanBody): number[] {
  switch (body.kind) {
    case 'rows':
    case 'aggregate':
    case 'groups':
      return body.source.occurrences.map(({ input }) => input);
    case 'bag':
      return body.arms.flatMap(({ source }) => source.occurrences.map(({ input }) => input));
    case 'keyed':
    case 'whole':
      return body.occurrences.map(({ input }) => input);
  }
}

/** Whether later steps read a hidden stage by the keys of its rows. */
function isLookedUp(plan: ViewPlan, stage: number): boolean {
  return [...plan.stages, plan].some(({ body }) => (body.kind === 'rows' || body.kind === 'keyed') && inputsOf(body).includes(-1 - stage));
}

interface Content {
  readonly columns: readonly string[];
  readonly select: string;
  readonly pairing: Pairing;
}

function content(body: PlanBody, storage: TableName): Content {
  const groups = (plan: { readonly groups: readonly { readonly name: string }[] }): Pairing => ({
    kind: 'group',
    columns: plan.groups.map(({ name }) => name),
  });
  switch (body.kind) {
    case 'rows':
      return {
        columns: body.columns.map(({ name }) => name),
        select: rowsSelect(body, storage),
        pairing: { kind: 'key', columns: body.keys.flat() },
      };
    case 'aggregate':
      return { columns: aggregateColumns(body), select: aggregateSelect(body, storage), pairing: groups(body) };
    case 'groups':
      return { columns: groupsColumns(body), select: groupsSelect(body, storage), pairing: groups(body) };
    case 'bag':
      return { columns: bagColumns(body), select: bagSelect(body, storage), pairing: { kind: 'image' } };
    case 'keyed':
      return { columns: keyedColumns(body), select: keyedSelect(body, storage), pairing: keyedPairing(body) };
    case 'whole':
      return { columns: wholeColumns(body), select: wholeSelect(body, storage), pairing: { kind: 'image' } };
  }
}
