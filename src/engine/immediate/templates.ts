/**
 * What the triggers of a stream table in IMMEDIATE mode run, as texts with places for names. Pure.
 * Invariant: no name of a user's table or column is in a text: `millrace.immediate_resolve` puts them where the marks stand, by what they are
 * called then. Marks carry a nonce, so that nothing a query says can be taken for one.
 */
import type { BaseTable } from '../../catalog/model.ts';
import { pendingDeltaTable, storageColumn } from '../../catalog/model.ts';
import type { ViewPlan } from '../../ivm/plans.ts';
import { maintainSql, rebuildSql } from '../../ivm/view-plan.ts';
import { usedAttnums } from '../base/shapes.ts';

export interface ImmediateTexts {
  readonly bases: readonly number[];
  readonly oids: readonly number[];
  /** Columns that the view uses, one entry for each; attnum 0 is the table itself. */
  readonly columns: readonly { readonly base: number; readonly oid: number; readonly attnum: number; readonly type: string }[];
  /** Bodies of trigger functions by name. */
  readonly functions: Readonly<Record<string, string>>;
  /** Statements that take in what is set aside, by the one input that changed or `all`. */
  readonly catchUp: Readonly<Record<string, readonly string[]>>;
  readonly rebuild: readonly string[];
}

type Event = 'INSERT' | 'UPDATE' | 'DELETE';

/** Rows of transition tables up to which statements are prepared for few; `millrace.immediate_turn` goes by the same number. */
const few = 32;

export const fromMark = (nonce: string, base: number): string => `@${nonce}:from:${base}@`;
const listMark = (nonce: string, base: number): string => `@${nonce}:list:${base}@`;
const imageMark = (nonce: string, base: number): string => `@${nonce}:image:${base}@`;

/** `bases`: all inputs of the view. */
export function immediateTexts(plan: ViewPlan, id: number, bases: readonly BaseTable[], nonce: string): ImmediateTexts {
  const columns = bases.flatMap((base) => {
    const used = usedAttnums(plan, base.id);
    const own = base.columns.filter((column) => used.has(column.attnum));
    return [
      { base: base.id, oid: base.tableOid, attnum: 0, type: '' },
      ...own.map(({ attnum, type }) => ({ base: base.id, oid: base.tableOid, attnum, type })),
    ];
  });
  const attnums = (base: number): number[] =>
    columns.filter((column) => column.base === base && column.attnum > 0).map(({ attnum }) => attnum);
  const storage = (input: number): string => fromMark(nonce, input);
  const aside = (input: number): string => pendingDeltaTable(id, input);
  const inputs = bases.map((base) => base.id);
  return {
    bases: inputs,
    oids: bases.map((base) => base.tableOid),
    columns,
    functions: Object.fromEntries(
      inputs.map((base) => [`i${id}_${base}`, functionBody({ plan, id, base, nonce, attnums: attnums(base), storage })]),
    ),
    catchUp: Object.fromEntries([
      ...inputs.map((base) => [String(base), maintainSql(plan, id, new Set([base]), aside, storage)] as const),
      ['all', maintainSql(plan, id, new Set(inputs), aside, storage)] as const,
    ]),
    rebuild: rebuildSql(plan, id, storage),
  };
}

interface FunctionFacts {
  readonly plan: ViewPlan;
  readonly id: number;
  readonly base: number;
  readonly nonce: string;
  readonly attnums: readonly number[];
  readonly storage: (input: number) => string;
}

function functionBody(facts: FunctionFacts): string {
  const { id, base, nonce } = facts;
  const branches = (texts: (event: Event) => readonly string[]): string =>
    `IF TG_OP = 'INSERT' THEN
${lines(texts('INSERT'))}
    ELSIF TG_OP = 'UPDATE' THEN
${lines(texts('UPDATE'))}
    ELSE
${lines(texts('DELETE'))}
    END IF;`;
  const image = `ROW(${imageMark(nonce, base)})::text`;
  const setAside = `INSERT INTO ${pendingDeltaTable(id, base)} (w${facts.attnums.map((attnum) => `, ${storageColumn(attnum)}`).join('')})`;
  // Few rows: prepared by plpgsql. Many: planned for as many as there are.
  return `
#variable_conflict use_column
DECLARE
  mr_changes integer := 0;
  mr_turn text;
  mr_event text;
  mr_context text;
  mr_detail text;
BEGIN
  IF TG_OP = 'INSERT' THEN
    mr_changes := (SELECT count(*) FROM (SELECT FROM new_rows LIMIT ${few + 1}) x);
  ELSIF TG_OP = 'DELETE' THEN
    mr_changes := (SELECT count(*) FROM (SELECT FROM old_rows LIMIT ${few + 1}) x);
  ELSIF TG_OP = 'UPDATE' THEN
    mr_changes := 2 * (SELECT count(*) FROM (SELECT FROM new_rows LIMIT ${few + 1}) x);
  END IF;
  mr_event := TG_OP;
  IF TG_OP = 'UPDATE' AND (SELECT c.relkind = 'p' FROM pg_class c WHERE c.oid = TG_RELID) THEN
    -- The rows that a MERGE moves to another partition are in no transition table that anybody is shown.
    GET DIAGNOSTICS mr_context = PG_CONTEXT;
    IF concat_ws(' ', current_query(), mr_context) ~* '\\m(merge|execute)\\M|SQL function' THEN
      mr_event := 'TRUNCATE';
    END IF;
  END IF;
  mr_turn := millrace.immediate_turn(${id}, mr_event, mr_changes, TG_RELID);
  IF mr_turn = 'nothing' THEN
    RETURN NULL;
  END IF;
  IF mr_turn = 'maintain' THEN
    -- Many an update of a wide table is nothing to the view.
    IF TG_OP = 'UPDATE' THEN
      IF NOT EXISTS (SELECT ${image} FROM old_rows x EXCEPT ALL SELECT ${image} FROM new_rows x) THEN
        RETURN NULL;
      END IF;
    END IF;
    ${branches((event) => maintenance(facts, event, few).map((sql) => prepared(sql, nonce)))}
  ELSIF mr_turn = 'maintain many' THEN
    ${branches((event) => maintenance(facts, event, null).map((sql) => executed(sql, nonce)))}
  ELSIF mr_turn LIKE 'set aside%' THEN
    ${branches((event) => [`${setAside} ${changes(facts, event)};`])}
  END IF;
  IF mr_turn LIKE '%catch up' THEN
    PERFORM millrace.immediate_catch_up(${id});
  ELSIF mr_turn = 'rebuild' THEN
    PERFORM millrace.immediate_rebuild(${id});
  END IF;
  RETURN NULL;
EXCEPTION WHEN OTHERS THEN
  -- One that is kept over this one has said which it is.
  IF SQLSTATE ~ '^(40|57|53|55P03)' OR SQLERRM LIKE 'stream table % cannot take this change: %' THEN
    RAISE;
  END IF;
  GET STACKED DIAGNOSTICS mr_detail = PG_EXCEPTION_DETAIL;
  PERFORM millrace.immediate_failed(${id}, SQLSTATE, SQLERRM, mr_detail);
  RETURN NULL;
END`;
}

const lines = (texts: readonly string[]): string => (texts.length === 0 ? '      NULL;' : texts.map((text) => `      ${text}`).join('\n'));

/** Statements for one event of the table, its changes being transition tables. */
function maintenance(facts: FunctionFacts, event: Event, limit: number | null): string[] {
  const { plan, id, base, storage } = facts;
  const delta = limit === null ? `(${changes(facts, event)})` : `(SELECT * FROM (${changes(facts, event)}) "mr$d" LIMIT ${limit})`;
  return maintainSql(plan, id, new Set([base]), () => delta, storage);
}

/** SELECT of the changes of one event as rows of a delta table. */
function changes({ base, nonce }: FunctionFacts, event: Event): string {
  const rows = (weight: number, table: string): string => `SELECT (${weight})::smallint AS w${listMark(nonce, base)} FROM ${table} x`;
  switch (event) {
    case 'INSERT':
      return rows(1, 'new_rows');
    case 'DELETE':
      return rows(-1, 'old_rows');
    case 'UPDATE':
      return `${rows(-1, 'old_rows')} UNION ALL ${rows(1, 'new_rows')}`;
  }
}

/** A statement of plpgsql, planned once a session. */
function prepared(sql: string, nonce: string): string {
  // plpgsql wants to be told that rows of a SELECT are not wanted.
  return /^\s*DO\b/.test(sql) ? executed(sql, nonce) : `${sql.replace(/^\s*SELECT\b/, 'PERFORM')};`;
}

/** Quoted by a tag that no name can hold: names are put in later. */
function executed(sql: string, nonce: string): string {
  const tag = `$mr${nonce}$`;
  return `EXECUTE ${tag}${sql}${tag};`;
}
