/**
 * Statements that wait in a worker while tables they may touch are about to change: a migration cuts over.
 * Invariant: nobody is held longer than `longestHold`, whatever becomes of who asked for it, and nobody twice in a row: what was let go goes to the
 * upstream. Holding is a courtesy: that nothing is lost and nothing seen half done is up to Postgres's locks.
 */
import type { Counters } from './counters.ts';
import { type HeldText, heldText, mayTouch } from './held-text.ts';

export interface HoldOrder {
  readonly id: string;
  readonly database: string;
  /** Of the relations, as in the catalog, without schema. */
  readonly names: readonly string[];
  /** What does not say what it touches is held, too. */
  readonly unknown: boolean;
  readonly ms: number;
}

/** A request that waits. */
export interface HeldRequest {
  letGo(): void;
}

/** In ms. A cutover that takes longer has its statements wait at its locks. */
export const longestHold = 1_000;

interface Hold {
  readonly database: string;
  readonly text: HeldText;
  readonly requests: Set<HeldRequest>;
  readonly timer: NodeJS.Timeout;
}

export class StatementHolds {
  /** Whether there is any. Asked for every chunk that a client sends. */
  on = false;
  readonly #holds = new Map<string, Hold>();
  readonly #counters: Counters;
  readonly #now: () => number;

  constructor(counters: Counters, now: () => number = () => performance.now()) {
    this.#counters = counters;
    this.#now = now;
  }

  begin({ id, database, names, unknown, ms }: HoldOrder): void {
    this.end(id);
    const timer = setTimeout(() => this.end(id), Math.min(ms, longestHold));
    this.#holds.set(id, { database, text: heldText(names, unknown), requests: new Set(), timer });
    this.on = true;
  }

  /** Those that it holds go on. */
  end(id: string): void {
    const hold = this.#holds.get(id);
    if (hold === undefined) return;
    clearTimeout(hold.timer);
    this.#holds.delete(id);
    this.on = this.#holds.size > 0;
    for (const request of [...hold.requests]) request.letGo();
  }

  /** Whoever asked for holds in the database is gone. */
  endAll(database: string): void {
    for (const [id, hold] of this.#holds) if (hold.database === database) this.end(id);
  }

  /** Null when `chunk` may go on at once. Else `go` is called when it may. The client is between two transactions. */
  keep(database: string, chunk: Buffer, textOf: (name: string) => string | undefined, go: () => void): HeldRequest | null {
    for (const hold of this.#holds.values()) {
      if (hold.database !== database || !mayTouch(chunk, hold.text, textOf)) continue;
      const since = this.#now();
      const request: HeldRequest = {
        letGo: () => {
          if (!hold.requests.delete(request)) return;
          this.#counters.heldMs += this.#now() - since;
          go();
        },
      };
      hold.requests.add(request);
      this.#counters.heldRequests++;
      return request;
    }
    return null;
  }
}
