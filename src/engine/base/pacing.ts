/**
 * How long the reader of a busy stream sleeps between two reads. What comes meanwhile gathers in the kernel: an eager reader is woken for every message,
 * and makes the server send every message by itself, which costs those who write.
 * Invariant: a lone transaction never waits.
 */

/** Transactions that have to be expected within a pause. */
const worthwhile = 4;
/** Weight of the last interval in the rate. */
const weight = 0.3;
/** The rate is taken over no less than this, in ms: what gathered during a pause is read at once. */
const shortest = 1;

export class ReadPacing {
  #perMs = 0;
  #last = Number.NEGATIVE_INFINITY;

  /** So many transactions have come since the last call. Answers for how long to read nothing, at most `pauseMs`; 0: go on. */
  came(now: number, transactions: number, pauseMs: number): number {
    const elapsed = Math.max(now - this.#last, shortest);
    this.#perMs += weight * (transactions / elapsed - this.#perMs);
    this.#last = now;
    return this.#perMs * pauseMs < worthwhile ? 0 : pauseMs;
  }
}
