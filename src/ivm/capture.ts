/**
 * Capture of changes of a storage into its delta table.
 * Invariant: within a transaction the delta table holds, for each row version that a statement removed, that row with weight -1, and for
 * each it made, that row with weight +1; so new state minus delta is the old state. Versions that came and went both remain: not netted.
 * Statement triggers with transition tables see INSERT, UPDATE, DELETE, MERGE, COPY and ON CONFLICT alike (PostgreSQL 15-18, "CREATE
 * TRIGGER"); TRUNCATE has none and is captured before it happens. ENABLE ALWAYS: the engine's session runs as a replica.
 */
import { quoteLiteral } from '../sql/quote.ts';
import { deltaName, storageName } from './sql-text.ts';

/** On within a transaction whose statements change nothing that anybody is shown: they are not captured. */
const uncapturedSetting = 'millrace.uncaptured';
/** Said within such a transaction, and where what comes is captured again. */
export const [uncaptured, capturedAgain] = [`SET LOCAL ${uncapturedSetting} = 'on'`, `SET LOCAL ${uncapturedSetting} = 'off'`];

const newestSetting = 'millrace.newest_only';
/** Said within a transaction that updates rows of these storages of which nobody wants to know what they were: only what they are is captured. */
export const newestOnly = (ids: readonly number[]): string => `SET LOCAL ${newestSetting} = ',${ids.join()},'`;

/**
 * Said within a transaction, for one statement: the views over the storage take its changes from what the statement has changed, and no
 * delta is written. The value is of `DirectUpkeep`, as JSON.
 */
export const directSetting = (id: number | string): string => `millrace.direct_s${id}`;

/** Statements that bring all readers of a storage up to date with one statement that changes it, by what the statement is. */
export interface DirectUpkeep extends Readonly<Record<ChangingEvent, readonly string[]>> {
  /** The storages they write. Once one of them has grown the changes are captured after all. */
  readonly tables: readonly string[];
}

export type ChangingEvent = 'INSERT' | 'UPDATE' | 'DELETE';

/** What such a statement reads in place of the delta table. */
export function changedRows(event: ChangingEvent): string {
  const [came, went] = ['SELECT 1::smallint AS w, n.* FROM new_rows n', 'SELECT -1::smallint AS w, o.* FROM old_rows o'];
  return { INSERT: `(${came})`, UPDATE: `(${went} UNION ALL ${came})`, DELETE: `(${went})` }[event];
}

/**
 * Bytes of a view up to which it is written by each statement, not once an epoch: then a group costs next to nothing, and one that every
 * statement of the epoch touches may be written each time.
 */
const directBytes = 1024 * 1024;

const events = [
  { event: 'INSERT', referencing: 'REFERENCING NEW TABLE AS new_rows' },
  { event: 'UPDATE', referencing: 'REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows' },
  { event: 'DELETE', referencing: 'REFERENCING OLD TABLE AS old_rows' },
] as const satisfies readonly { readonly event: ChangingEvent; readonly referencing: string }[];

/**
 * Statements that create `millrace_data.d<id>` (w, then the storage's columns) and the triggers that fill it. The trigger function names
 * no columns: when the storage gets another column, add it to the delta table too, last. `lookedUp`: rows are read by their numbers.
 */
export function captureDdl(id: number | string, lookedUp = true): string[] {
  const storage = storageName(id);
  const delta = deltaName(id);
  const routine = routineName(id);
  const body = `
DECLARE
  direct jsonb := nullif(current_setting('${directSetting(id)}', true), '');
  statement text;
BEGIN
  IF current_setting('${uncapturedSetting}', true) = 'on' THEN
    RETURN NULL;
  END IF;
  -- What is captured already comes first, so what comes after it is captured too.
  IF direct IS NOT NULL AND TG_OP <> 'TRUNCATE' AND NOT EXISTS (SELECT FROM ${delta}) AND NOT EXISTS (
    SELECT FROM jsonb_array_elements_text(direct -> 'tables') t WHERE pg_relation_size(t::regclass) > ${directBytes}
  ) THEN
    FOR statement IN SELECT jsonb_array_elements_text(direct -> TG_OP) LOOP
      EXECUTE statement;
    END LOOP;
    RETURN NULL;
  END IF;
  IF TG_OP = 'TRUNCATE' THEN
    INSERT INTO ${delta} SELECT -1, o.* FROM ${storage} o;
  END IF;
  IF TG_OP = 'DELETE' OR TG_OP = 'UPDATE' AND strpos(coalesce(current_setting('${newestSetting}', true), ''), ',${id},') = 0 THEN
    INSERT INTO ${delta} SELECT -1, o.* FROM old_rows o;
  END IF;
  IF TG_OP IN ('INSERT', 'UPDATE') THEN
    INSERT INTO ${delta} SELECT 1, n.* FROM new_rows n;
  END IF;
  RETURN NULL;
END`;
  return [
    ...(lookedUp ? [numbersIndex(id)] : []),
    `CREATE UNLOGGED TABLE ${delta} WITH (autovacuum_enabled = off) AS SELECT 0::smallint AS w, s.* FROM ${storage} s WITH NO DATA`,
    `CREATE FUNCTION ${routine}() RETURNS trigger LANGUAGE plpgsql AS ${quoteLiteral(body)}`,
    ...events.map(
      ({ event, referencing }) =>
        `CREATE TRIGGER ${triggerName(event)} AFTER ${event} ON ${storage} ${referencing} FOR EACH STATEMENT EXECUTE FUNCTION ${routine}()`,
    ),
    `CREATE TRIGGER ${triggerName('TRUNCATE')} BEFORE TRUNCATE ON ${storage} FOR EACH STATEMENT EXECUTE FUNCTION ${routine}()`,
    ...[...events.map(({ event }) => event), 'TRUNCATE'].map(
      (event) => `ALTER TABLE ${storage} ENABLE ALWAYS TRIGGER ${triggerName(event)}`,
    ),
  ];
}

/** A statement that writes to the storage, uncaptured. */
export function withoutCapture(id: number | string, statement: string): string[] {
  const storage = storageName(id);
  return [
    `ALTER TABLE ${storage} DISABLE TRIGGER USER`,
    statement,
    ...[...events.map(({ event }) => event), 'TRUNCATE'].map(
      (event) => `ALTER TABLE ${storage} ENABLE ALWAYS TRIGGER ${triggerName(event)}`,
    ),
  ];
}

/** Undoes `captureDdl`; also when only part of it is there. */
export function dropCaptureDdl(id: number | string): string[] {
  return [
    `DROP INDEX IF EXISTS ${indexName(id)}`,
    `DROP FUNCTION IF EXISTS ${routineName(id)}() CASCADE`,
    `DROP TABLE IF EXISTS ${deltaName(id)}`,
  ];
}

/** An index on row numbers, where the storage has them without one. */
function numbersIndex(id: number | string): string {
  const table = quoteLiteral(storageName(id));
  return `DO $$BEGIN
  IF EXISTS (SELECT FROM pg_catalog.pg_attribute WHERE attrelid = ${table}::regclass AND attname = 'rid' AND NOT attisdropped)
    AND NOT EXISTS (SELECT FROM pg_catalog.pg_index WHERE indrelid = ${table}::regclass AND indisprimary)
  THEN
    CREATE UNIQUE INDEX ${indexName(id).replace('millrace_data.', '')} ON ${storageName(id)} (rid);
  END IF;
END$$`;
}

const indexName = (id: number | string): string => `millrace_data.s${id}_rid`;
const routineName = (id: number | string): string => `millrace_data.capture_s${id}`;
const triggerName = (event: string): string => `millrace_capture_${event.toLowerCase()}`;
