/**
 * The tables an epoch fills and empties again: deltas, and staging of bulk changes.
 * Invariant: they are empty between epochs, and do not grow with the number of epochs. DELETE leaves dead rows that nobody vacuums,
 * and every later epoch would read past them, so now and then they are truncated; but never by waiting for a reader's lock:
 * a pg_dump of the database holds one on every table until it ends.
 */
import type { Execution } from '../replication/session-contract.ts';

/** Dead rows (about 20 pages of them) that cost less to read past than a TRUNCATE does. */
const bearable = 5000;

/** Truncates where that can be done at once, else deletes. */
export function emptyTable(table: string): string {
  return `DO $$BEGIN
  LOCK TABLE ${table} IN ACCESS EXCLUSIVE MODE NOWAIT;
  TRUNCATE ${table};
EXCEPTION WHEN lock_not_available THEN
  DELETE FROM ${table};
END$$`;
}

/** Rows of a delta from which it pays to ask how many of them concern the same row, if they are this part of the table, too. */
const manyRows = 5000;
const largePart = 0.1;

/**
 * The statement that tells the planner of a delta that is a large part of its table, once it is filled: without statistics it takes it for one of 200
 * keys, and looks up each of thousands in tables that had better be read as a whole. Few rows are looked at (300 for each unit of the target),
 * which is exact enough. Of a smaller part looking up is right, whatever it is taken for. `tableOid`: pg_class.oid.
 */
export function statisticsFor(table: string, rows: number, tableOid: number): string[] {
  if (rows < manyRows) return [];
  return [
    `DO $$BEGIN
  IF (SELECT reltuples BETWEEN 0 AND ${rows / largePart} FROM pg_catalog.pg_class WHERE oid = ${tableOid}) THEN
    SET LOCAL default_statistics_target = 1;
    ANALYZE ${table};
  END IF;
END$$`,
  ];
}

export class DeltaTables {
  /** Dead rows by table; unknown: left by an earlier engine, perhaps many. */
  readonly #dead = new Map<string, number>();

  /** Whether a table is emptied by DELETE; else with its file, which makes the COMMIT that follows take some milliseconds. */
  deletes(table: string, few: boolean): boolean {
    return few && (this.#dead.get(table) ?? Number.POSITIVE_INFINITY) < bearable;
  }

  /** The statement that empties a table; to be followed by `emptied` or `unknown`. */
  empty(table: string, few: boolean): Execution {
    return this.deletes(table, few) ? { name: `d_${table}`, sql: `DELETE FROM ${table}` } : { name: `t_${table}`, sql: emptyTable(table) };
  }

  /** It committed with this command tag. */
  emptied(table: string, tag: string): void {
    const deleted = /^DELETE (\d+)$/.exec(tag);
    this.#dead.set(table, deleted === null ? 0 : (this.#dead.get(table) ?? 0) + Number(deleted[1]));
  }

  /** It was rolled back, or removed rows in a way that was not counted. */
  unknown(table: string): void {
    this.#dead.delete(table);
  }
}
