/**
 * Where a sink delivers to.
 * Invariant: what is written between `begin` and `commit` is there as a whole, together with the position, or not at all (webhooks: at least once).
 */
import type { SinkColumn } from '../catalog/sink-model.ts';
import type { Change, Pairing } from './changes.ts';
import type { Position } from './positions.ts';

export interface Target {
  /** How rows of a key are put together. */
  readonly pairing: Pairing;
  /**
   * Takes over: whoever delivered for this sink before can no longer commit. Answers what has been delivered, null: nothing is known of it.
   * Throws TargetError.
   */
  open(): Promise<Position | null>;
  /** What follows are rows of these columns. Raises what keeps them from being written. */
  describe(columns: readonly SinkColumn[]): Promise<void>;
  begin(): Promise<void>;
  /** In order. Resolves when there is room for more. Answers bytes written. */
  write(changes: readonly Change[]): Promise<number>;
  /**
   * Of a target that is known to take what it is given only when it has: proves it where nothing was taken since `open`. It is said to run after that.
   * Throws TargetError.
   */
  prove?(): Promise<void>;
  /** Throws TargetError; the outcome may then be unknown: only `open` tells. */
  commit(position: Position): Promise<void>;
  /** Never throws. */
  close(): Promise<void>;
}

/** Something at the target that keeps the sink from going on. */
export class TargetError extends Error {
  /**
   * `retriable`: may pass by itself; `fenced`: another Millrace process delivers for this sink; `permanent`: somebody has to do something.
   * All are tried again, with growing pauses.
   */
  readonly kind: 'retriable' | 'fenced' | 'permanent';
  readonly hint: string | null;

  constructor(kind: TargetError['kind'], message: string, options: { readonly hint?: string; readonly cause?: unknown } = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = 'TargetError';
    this.kind = kind;
    this.hint = options.hint ?? null;
  }
}
