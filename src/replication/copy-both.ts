/**
 * The CopyBoth phase of START_REPLICATION.
 * Invariant: `begun` settles once, and `ended` settles once after it.
 */
import type { Outbox } from './outbox.ts';
import { ConnectionLostError } from './postgres-error.ts';
import type { CopyBoth } from './session-contract.ts';

/** The caller's side, and the two events the session reports: CopyBothResponse, and the end of the command. `send` writes at once. */
export function openCopyBoth(send: (put: (outbox: Outbox) => void) => void): {
  readonly begun: Promise<CopyBoth>;
  started(): void;
  settle(error: Error | undefined): void;
} {
  let resolveEnd: () => void;
  let rejectEnd: (error: Error) => void;
  const ended = new Promise<void>((resolve, reject) => {
    resolveEnd = resolve;
    rejectEnd = reject;
  });
  // A command that never begins fails by `begun` alone.
  ended.catch(() => {});
  let resolveBegin: (phase: CopyBoth) => void;
  let rejectBegin: (error: Error) => void;
  const begun = new Promise<CopyBoth>((resolve, reject) => {
    resolveBegin = resolve;
    rejectBegin = reject;
  });
  return {
    begun,
    started: () =>
      resolveBegin({
        write: (payload) => send((outbox) => outbox.copyData(payload)),
        finish: () => send((outbox) => outbox.copyDone()),
        ended,
      }),
    settle: (error) => {
      if (error === undefined) resolveEnd();
      else rejectEnd(error);
      // Without effect once it has begun.
      rejectBegin(error ?? new ConnectionLostError('the server did not begin to replicate'));
    },
  };
}
