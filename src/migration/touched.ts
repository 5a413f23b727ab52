/**
 * Transactions whose keys have still to be looked at, in the order in which they committed. Pure.
 * Invariant: what was handed out does not change any more. Whoever says that it is taken has seen all of it; what came meanwhile goes on waiting.
 */
import type { Lsn } from '../replication/lsn.ts';
import { isVisible, type Snapshot } from '../replication/snapshot-visibility.ts';

export type Key = readonly string[];

export interface TouchingTransaction {
  /** Of the top level, 32 bits. */
  readonly xid: number;
  readonly commitLsn: Lsn;
  readonly endLsn: Lsn;
  /** Milliseconds of the Unix epoch. */
  readonly committedAt: number;
  /** By their text, so that each is there once. Null: too many to be told, or a TRUNCATE. Every key has to be looked at. */
  readonly keys: ReadonlyMap<string, Key> | null;
}

export class Touched {
  #waiting: TouchingTransaction[] = [];
  #keys = 0;

  add(transaction: TouchingTransaction): void {
    this.#waiting.push(transaction);
    this.#keys += transaction.keys?.size ?? 0;
  }

  /** Those that wait now, oldest first. */
  all(): readonly TouchingTransaction[] {
    return [...this.#waiting];
  }

  /** Those that a snapshot sees, oldest first. */
  visible(snapshot: Snapshot): readonly TouchingTransaction[] {
    return this.#waiting.filter(({ xid }) => isVisible(snapshot, xid));
  }

  get oldest(): TouchingTransaction | undefined {
    return this.#waiting[0];
  }

  get count(): number {
    return this.#waiting.length;
  }

  /** Of all of them together. */
  get keys(): number {
    return this.#keys;
  }

  /** These have been looked at. */
  taken(transactions: readonly TouchingTransaction[]): void {
    const gone = new Set(transactions);
    this.#waiting = this.#waiting.filter((transaction) => !gone.has(transaction));
    this.#keys = this.#waiting.reduce((sum, { keys }) => sum + (keys?.size ?? 0), 0);
  }
}
