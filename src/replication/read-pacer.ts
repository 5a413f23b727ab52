/**
 * Slows reading of a large transaction down: an eager reader makes the walsender send one TCP segment per row,
 * a slower one lets the kernel gather them, which takes a third of its CPU time away.
 * Invariant: small transactions are never delayed.
 */
import type { RawConnection } from './session-contract.ts';
import type { StreamTimers } from './stream-timers.ts';

/** Rows of the same open transaction from which reading is paced. */
const bulkRows = 2000;
const pauseMs = 10;
/** A pause only helps while the socket is drained faster than filled; with this much read in one turn there is a backlog anyway. */
const backlogBytes = 1024 * 1024;

/** pgoutput message types that begin, end and make up a transaction. */
const [begin, commit, insert, update, remove] = [66, 67, 73, 85, 68];

export class ReadPacer {
  readonly #connection: Pick<RawConnection, 'pauseReading' | 'resumeReading'>;
  readonly #timers: StreamTimers;
  #rows = 0;
  #bytes = 0;
  #due = false;
  #cancel = (): void => {};

  constructor(connection: Pick<RawConnection, 'pauseReading' | 'resumeReading'>, timers: StreamTimers) {
    this.#connection = connection;
    this.#timers = timers;
  }

  /** A pgoutput message of this type was handed over. */
  message(type: number): void {
    if (type === insert || type === update || type === remove) this.#rows++;
    else if (type === begin || type === commit) this.#rows = 0;
  }

  /** A chunk was read and its messages handed over. */
  read(bytes: number): void {
    this.#bytes += bytes;
    if (this.#rows <= bulkRows || this.#due) return;
    this.#due = true;
    this.#timers.afterIo(() => {
      this.#due = false;
      const drained = this.#bytes < backlogBytes;
      this.#bytes = 0;
      if (!drained || this.#rows <= bulkRows) return;
      this.#connection.pauseReading();
      this.#cancel = this.#timers.after(pauseMs, () => this.#connection.resumeReading());
    });
  }

  stop(): void {
    this.#cancel();
  }
}
