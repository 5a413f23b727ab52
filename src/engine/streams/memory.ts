/**
 * What the engine remembers of stream tables beside the catalog: costs that were measured, retries.
 * Invariant: nothing here is needed for a right result; an engine that starts anew begins without it.
 */
import type { Remembered } from './due.ts';

/** Changed rows from which it is asked whether computing everything again would be cheaper. */
const worthAsking = 1000;

interface Costs {
  msPerRow: number | null;
  fullMs: number | null;
}

export class StreamMemory {
  readonly #remembered = new Map<number, Remembered>();
  readonly #costs = new Map<number, Costs>();
  readonly #requested = new Map<number, number>();

  /** A refresh was asked for since the catalog was read. */
  asked(viewId: number, request: number): void {
    this.#requested.set(viewId, Math.max(request, this.requested(viewId)));
  }

  /** The last request heard of; 0: none. */
  requested(viewId: number): number {
    return this.#requested.get(viewId) ?? 0;
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

  tookDelta(viewId: number, rows: number, ms: number): void {
    // A few rows cost what any refresh costs, and say nothing of many.
    if (rows < worthAsking) return;
    const costs = this.#of(viewId);
    const perRow = ms / rows;
    costs.msPerRow = costs.msPerRow === null ? perRow : 0.5 * (costs.msPerRow + perRow);
  }

  tookFull(viewId: number, ms: number): void {
    this.#of(viewId).fullMs = ms;
  }

  fullMs(viewId: number): number | null {
    return this.#costs.get(viewId)?.fullMs ?? null;
  }

  /** Why the view had better be computed as a whole than from so many changed rows of so many that there are; null: it had not. */
  reasonForFull(viewId: number, rows: number, total: number | null): string | null {
    if (rows < worthAsking) return null;
    const { msPerRow = null, fullMs = null } = this.#costs.get(viewId) ?? {};
    if (msPerRow !== null && fullMs !== null) {
      const expected = rows * msPerRow;
      return expected > 1.2 * fullMs
        ? `cost: ${rows} changes would take about ${Math.round(expected)} ms, all of it ${Math.round(fullMs)} ms`
        : null;
    }
    return total !== null && rows > total / 2 ? `cost: ${rows} changes of about ${total} rows` : null;
  }

  #of(viewId: number): Costs {
    let costs = this.#costs.get(viewId);
    if (costs === undefined) {
      costs = { msPerRow: null, fullMs: null };
      this.#costs.set(viewId, costs);
    }
    return costs;
  }
}
