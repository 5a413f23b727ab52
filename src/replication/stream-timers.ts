/** The clock of a stream. Invariant: code that waits takes it as a parameter, so that tests decide what time it is. */

export interface StreamTimers {
  /** Milliseconds, monotonic. */
  now(): number;
  /** Runs `work` regularly; returns how to stop it. */
  every(ms: number, work: () => void): () => void;
  /** Runs `work` once; returns how to cancel it. */
  after(ms: number, work: () => void): () => void;
  /** Runs `work` after the IO that is ready now. */
  afterIo(work: () => void): void;
}

export const systemTimers: StreamTimers = {
  now: () => performance.now(),
  every(ms, work) {
    const timer = setInterval(work, ms);
    return () => clearInterval(timer);
  },
  after(ms, work) {
    const timer = setTimeout(work, ms);
    return () => clearTimeout(timer);
  },
  afterIo(work) {
    setImmediate(work);
  },
};
