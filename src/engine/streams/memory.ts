/**
 * What the engine remembers of stream tables beside the catalog: costs that were measured, retries.
 * Invariant: nothing here is needed for a right result; an engine that starts anew begins with what the history of refreshes tells.
 */
import { afterChanges, afterFull, type Costs, unknownCosts, whyFull } from './costs.ts';
import type { Remembered } from './due.ts';

const totalsLastMs = 10_000;

/** A refresh that someone has asked for. */
export interface Request {
  readonly number: number;
  /** Transaction it was asked for in, 32 bits. */
  readonly xid: number;
}

export class StreamMemory {
  readonly #remembered = new Map<number, Remembered>();
  readonly #costs = new Map<number, Costs>();
  readonly #requested = new Map<number, Request>();
  /** So many changes took longer than they may. */
  readonly #tooMany = new Map<number, number>();
  readonly #totals = new Map<number, { readonly rows: number | null; readonly at: number }>();

  /** A refresh was asked for since the catalog was read. */
  asked(viewId: number, request: Request): void {
    if (request.number > this.requested(viewId)) this.#requested.set(viewId, request);
  }

  /** The last request heard of; 0: none. */
  requested(viewId: number): number {
    return this.#requested.get(viewId)?.number ?? 0;
  }

  request(viewId: number): Request | undefined {
    return this.#requested.get(viewId);
  }

  get(viewId: number): Remembered | undefined {
    return this.#remembered.get(viewId);
  }

  set(viewId: number, remembered: Remembered): void {
    this.#remembered.set(viewId, remembered);
  }

  /** The catalog was read again: what it says counts. */
  reloaded(): void {
    this.#remembered.clear();
  }

  /** Rows of what the view reads, asked again when that was long ago. `now` in milliseconds. */
  async total(viewId: number, now: number, ask: () => Promise<number | null>): Promise<number | null> {
    const known = this.#totals.get(viewId);
    if (known !== undefined && now - known.at < totalsLastMs) return known.rows;
    const rows = await ask();
    this.#totals.set(viewId, { rows, at: now });
    return rows;
  }

  /** How long it took at last to compute views as a whole, in milliseconds, from what an earlier engine wrote down. */
  recall(fullMs: ReadonlyMap<number, number>): void {
    for (const [viewId, ms] of fullMs) if (!this.#costs.has(viewId)) this.tookFull(viewId, ms);
  }

  tookDelta(viewId: number, rows: number, ms: number): void {
    this.#costs.set(viewId, afterChanges(this.#of(viewId), rows, ms));
  }

  /** Applying so many changes was given up. */
  gaveUp(viewId: number, rows: number): void {
    this.#tooMany.set(viewId, rows);
  }

  tookFull(viewId: number, ms: number): void {
    this.#costs.set(viewId, afterFull(this.#of(viewId), ms));
  }

  fullMs(viewId: number): number | null {
    return this.#costs.get(viewId)?.fullMs ?? null;
  }

  /** Why the view had better be computed as a whole than from so many changed rows of so many that there are; null: it had not. */
  reasonForFull(viewId: number, rows: number, total: number | null): string | null {
    const tooMany = this.#tooMany.get(viewId);
    if (tooMany !== undefined && rows >= tooMany) {
      // A little more each time, until it is tried again: what there is of it may have become less.
      this.#tooMany.set(viewId, Math.ceil(tooMany * 1.25));
      return `cost: ${tooMany} changes took too long`;
    }
    return whyFull(this.#of(viewId), rows, total);
  }

  #of(viewId: number): Costs {
    return this.#costs.get(viewId) ?? unknownCosts;
  }
}
