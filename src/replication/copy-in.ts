/**
 * The sending side of COPY .. FROM STDIN, pipelined: data follows the statement without waiting for CopyInResponse.
 * Invariant: exactly one of CopyDone and CopyFail is sent, so the session is usable afterwards whatever happened.
 * (A server that refused the COPY ignores the data that is still under way; protocol, 53.2.6.)
 */
import type { Outbox } from './outbox.ts';
import type { CopyIn } from './session-contract.ts';

/** What the session gives to a COPY. */
export interface CopyInHost {
  readonly outbox: Outbox;
  /** Sends what is due; false when much is waiting in the socket. */
  flush(): boolean;
  flushSoon(): void;
  whenDrained(wake: () => void): void;
  /** The caller will send no more data. */
  ended(): void;
}

/** The caller's side, and the two events the session reports: the COPY was sent, and it was answered. */
export function openCopyIn(host: CopyInHost): { copyIn: CopyIn; begin(): void; settle(error: Error | undefined, tag: string): void } {
  let open = false;
  let failure: Error | undefined;
  let resolveTag: (tag: string) => void;
  let rejectTag: (error: Error) => void;
  const done = new Promise<string>((resolve, reject) => {
    resolveTag = resolve;
    rejectTag = reject;
  });
  // The caller may learn of the failure from `error` alone.
  done.catch(() => {});
  const send = (put: () => void): boolean => {
    if (!open || failure !== undefined) return true;
    put();
    return host.flush();
  };
  const end = (put: () => void): void => {
    if (!open) return;
    open = false;
    put();
    host.ended();
    host.flushSoon();
  };
  return {
    begin: () => {
      open = true;
    },
    settle: (error, tag) => {
      failure = error;
      if (error === undefined) resolveTag(tag);
      else rejectTag(error);
    },
    copyIn: {
      get error() {
        return failure;
      },
      write: (chunk) => send(() => host.outbox.copyData(chunk)),
      writeFrames: (frames) => send(() => host.outbox.raw(frames)),
      drain: () => new Promise((resolve) => (failure === undefined ? host.whenDrained(resolve) : resolve())),
      finish: () => {
        end(() => host.outbox.copyDone());
        return done;
      },
      fail: (reason) => {
        end(() => host.outbox.copyFail(reason));
        return done.then(
          () => {},
          () => {},
        );
      },
    },
  };
}
