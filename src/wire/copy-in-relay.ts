/**
 * COPY data of the client, on its way to a COPY that Millrace runs as one part of a longer text.
 * Invariant: as in the server, Sync and Flush mean nothing while the data comes. Any other message goes to the upstream as it is, which
 * ends the connection over it.
 */
import { copyDone, flush } from './encode.ts';
import { Request } from './tags.ts';

/**
 * A function that takes the client's bytes. It returns null while the data goes on, and what follows it (maybe nothing) at its end.
 */
export function copyInRelay(toUpstream: (bytes: Buffer) => void): (bytes: Buffer) => Buffer | null {
  let remaining = 0;
  let header = Buffer.alloc(0);
  return (chunk) => {
    const bytes = header.length === 0 ? chunk : Buffer.concat([header, chunk]);
    header = Buffer.alloc(0);
    const pass = (from: number, to: number): void => {
      if (to > from) toUpstream(bytes.subarray(from, to));
    };
    let from = 0;
    let at = remaining;
    while (at < bytes.length) {
      if (bytes.length - at < 5) {
        pass(from, at);
        header = Buffer.from(bytes.subarray(at));
        remaining = 0;
        return null;
      }
      const tag = bytes[at];
      const next = at + 1 + Math.max(4, bytes.readInt32BE(at + 1));
      if (tag === Request.copyDone) {
        pass(from, at);
        // The Flush that was sent with Execute is lost in the COPY.
        toUpstream(Buffer.concat([copyDone, flush]));
        return bytes.subarray(next);
      }
      if (tag === Request.sync || tag === Request.flush) {
        pass(from, at);
        from = Math.min(next, bytes.length);
      } else if (tag === Request.copyFail) {
        if (next > bytes.length) {
          pass(from, at);
          header = Buffer.from(bytes.subarray(at));
          remaining = 0;
          return null;
        }
        pass(from, next);
        return bytes.subarray(next);
      }
      at = next;
    }
    remaining = at - bytes.length;
    pass(from, bytes.length);
    return null;
  };
}
