/** How far a copy is, written down now and then. Invariant: what is said only grows while the copy runs, and nothing is said after `stop`. */
import type { EngineContext } from './context.ts';

const everyMs = 500;

export class CopyProgress {
  readonly #engine: EngineContext;
  readonly #storageId: number;
  readonly #pieces = new Map<number, { readonly rows: number; readonly bytes: number }>();
  #told = 0;
  #stopped = false;

  constructor(engine: EngineContext, storageId: number) {
    this.#engine = engine;
    this.#storageId = storageId;
  }

  /** So much of a piece is here. */
  set(piece: number, rows: number, bytes: number): void {
    this.#pieces.set(piece, { rows, bytes });
    if (this.#stopped || Date.now() - this.#told < everyMs) return;
    this.#told = Date.now();
    const sum = (part: 'rows' | 'bytes'): number => [...this.#pieces.values()].reduce((total, one) => total + one[part], 0);
    this.#engine.admin
      .query("UPDATE millrace.storage SET rows_copied = $2, bytes_copied = $3 WHERE id = $1 AND state = 'copying'", [
        this.#storageId,
        sum('rows'),
        sum('bytes'),
      ])
      .catch(() => undefined);
  }

  stop(): void {
    this.#stopped = true;
  }
}
