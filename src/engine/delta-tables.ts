/**
 * The tables an epoch fills and empties again: deltas, and staging of bulk changes.
 * Invariant: they are empty between epochs, and do not grow with the number of epochs. DELETE leaves dead rows that nobody vacuums,
 * and every later epoch would read past them, so now and then they are truncated; but never by waiting for a reader's lock:
 * a pg_dump of the database holds one on every table until it ends.
 */
import { deltaTable } from '../catalog/model.ts';
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

export class DeltaTables {
  /** Dead rows by storage id; unknown: left by an earlier engine, perhaps many. */
  readonly #dead = new Map<number, number>();

  /** The statement that empties the delta table of a storage; to be followed by `emptied` or `unknown`. */
  empty(storageId: number, few: boolean): Execution {
    return few && (this.#dead.get(storageId) ?? Number.POSITIVE_INFINITY) < bearable
      ? { name: `d${storageId}`, sql: `DELETE FROM ${deltaTable(storageId)}` }
      : { name: `t${storageId}`, sql: emptyTable(deltaTable(storageId)) };
  }

  /** It committed with this command tag. */
  emptied(storageId: number, tag: string): void {
    const deleted = /^DELETE (\d+)$/.exec(tag);
    this.#dead.set(storageId, deleted === null ? 0 : (this.#dead.get(storageId) ?? 0) + Number(deleted[1]));
  }

  /** It was rolled back, or removed rows in a way that was not counted. */
  unknown(storageId: number): void {
    this.#dead.delete(storageId);
  }
}
