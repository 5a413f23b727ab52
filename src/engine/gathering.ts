/**
 * How long a busy engine waits before the next epoch, so that it takes more transactions at once: an epoch of ten costs little more than one of one,
 * and what it saves goes to the servers that share the machine.
 * Invariant: a lone transaction, or a client that waits for each of its transactions to arrive before it makes the next, never waits.
 */
import type { SourceRunner } from './source-runner.ts';

/** From one epoch's begin to the next while many transactions come. */
const gatherMs = 3;
/** Transactions that have to be expected within that time. */
const worthwhile = 4;
/** Weight of the last epoch in the rate. */
const weight = 0.3;

export class Gathering {
  #perMs = 0;
  #last = Number.NEGATIVE_INFINITY;

  /** Waits if it is worth while. What the origins send meanwhile stays in the kernel and is read at once afterwards: fewer wake-ups on either side. */
  async pause(runners: readonly SourceRunner[]): Promise<void> {
    if (this.#perMs * gatherMs < worthwhile) return;
    const ms = this.#last + gatherMs - performance.now();
    if (ms <= 0) return;
    for (const runner of runners) runner.doze();
    await new Promise((resolve) => setTimeout(resolve, ms));
    for (const runner of runners) runner.awaken();
    // Sockets are read between timers and immediates.
    await new Promise((resolve) => setImmediate(resolve));
  }

  /** An epoch begins with this many transactions. */
  took(now: number, transactions: number): void {
    const elapsed = Math.max(now - this.#last, 0.1);
    this.#perMs += weight * (transactions / elapsed - this.#perMs);
    this.#last = now;
  }
}
