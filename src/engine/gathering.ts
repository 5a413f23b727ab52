/**
 * How long a busy engine waits before the next epoch, so that it takes more transactions at once: an epoch of ten costs little more than one of one,
 * and what it saves goes to the servers that share the machine.
 * Invariant: a lone transaction, or a client that waits for each of its transactions to arrive before it makes the next, never waits.
 */

/** From one epoch's begin to the next while many transactions come. */
const gatherMs = 3;
/** Transactions that have to be expected within that time. */
const worthwhile = 4;
/** Weight of the last epoch in the rate. */
const weight = 0.3;

export class Gathering {
  #perMs = 0;
  #last = Number.NEGATIVE_INFINITY;

  /** Milliseconds to wait before taking what there is; 0: take it now. */
  wait(now: number): number {
    if (this.#perMs * gatherMs < worthwhile) return 0;
    return Math.max(0, this.#last + gatherMs - now);
  }

  /** An epoch begins with this many transactions. */
  took(now: number, transactions: number): void {
    const elapsed = Math.max(now - this.#last, 0.1);
    this.#perMs += weight * (transactions / elapsed - this.#perMs);
    this.#last = now;
  }
}
