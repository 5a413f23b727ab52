/**
 * What the engine remembers of stream tables beside the catalog: costs that were measured, retries.
 * Invariant: nothing here is needed for a right result; an engine that starts anew begins without it.
 */
import { afterChanges, afterFull, type Costs, unknownCosts, whyFull } from './costs.ts';
import type { Remembered } from './due.ts';

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
    this.#costs.set(viewId, afterChanges(this.#of(viewId), rows, ms));
  }

  tookFull(viewId: number, ms: number): void {
    this.#costs.set(viewId, afterFull(this.#of(viewId), ms));
  }

  fullMs(viewId: number): number | null {
    return this.#costs.get(viewId)?.fullMs ?? null;
  }

  /** Why the view had better be computed as a whole than from so many changed rows of so many that there are; null: it had not. */
  reasonForFull(viewId: number, rows: number, total: number | null): string | null {
    return whyFull(this.#of(viewId), rows, total);
  }

  #of(viewId: number): Costs {
    return this.#costs.get(viewId) ?? unknownCosts;
  }
}
