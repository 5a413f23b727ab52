/**
 * Moves one COPY from an origin session to an upstream session.
 * Invariant: memory is bounded by the sockets' buffers: the origin is not read while the upstream has not taken what was read.
 */
import { setTimeout as wait } from 'node:timers/promises';
import { writeHash } from './copy-rows.ts';
import { hashLine } from './row-hash.ts';
import type { FramesHandler, RawConnection } from './session-contract.ts';
import type { CopyOptions } from './snapshot.ts';

const progressBytes = 1024 * 1024;
const frameHeader = 5;
/** Hash field and its tab. */
const hashField = 12;

/** See OriginSnapshot.copy. */
export async function copyRelay(origin: RawConnection, options: CopyOptions): Promise<{ rows: number; bytes: number }> {
  const { upstream, signal } = options;
  signal?.throwIfAborted();
  const target = upstream.copyIn(options.targetSql);
  // The binary format ends with a message of its own; its header comes with the first row.
  let rows = options.binary === true ? -1 : 0;
  let bytes = 0;
  let reported = 0;
  /** The origin is not read: until the upstream has taken what it has, or a rest is over. */
  let paused = false;
  const pauseFor = (over: Promise<void>): void => {
    paused = true;
    origin.pause();
    void over.then(() => {
      paused = false;
      origin.resume();
    });
  };
  const onFrames: FramesHandler = (buffer, start, end, count) => {
    // Refused upstream: thrown, it ends the origin session and comes back as the copy's error.
    if (target.error !== undefined) throw target.error;
    rows += count;
    const length = end - start - count * frameHeader;
    bytes += length;
    // The chunk is handed on as it is: the reader allocates a new one for each read.
    const keepGoing = target.writeFrames(
      options.withRowHash === true ? withHashes(buffer, start, end, count) : buffer.subarray(start, end),
    );
    const restMs = options.rest?.(length) ?? 0;
    if (!paused) {
      if (restMs > 0) pauseFor(wait(restMs).then(() => target.drain()));
      else if (!keepGoing) pauseFor(target.drain());
    }
    if (bytes - reported >= progressBytes) {
      reported = bytes;
      options.onProgress?.(Math.max(rows, 0), bytes);
    }
  };
  const abort = (): void => origin.destroy(asError(signal?.reason));
  signal?.addEventListener('abort', abort, { once: true });
  try {
    await origin.copyOut(options.sourceSql, onFrames);
  } catch (error) {
    const refusal = target.error;
    await target.fail('the copy was given up');
    if (signal?.aborted) throw signal.reason;
    // Thrown by onFrames, the upstream's refusal came back wrapped in the loss of the origin session.
    throw refusal ?? error;
  } finally {
    signal?.removeEventListener('abort', abort);
  }
  await target.finish();
  options.onProgress?.(rows, bytes);
  return { rows, bytes };
}

function asError(reason: unknown): Error {
  return reason instanceof Error ? reason : new Error(String(reason));
}

/** The same messages with the hash of each row as its first field. COPY TO sends one row per message, newline included. */
function withHashes(buffer: Buffer, start: number, end: number, count: number): Buffer {
  const out = Buffer.allocUnsafeSlow(end - start + count * hashField);
  let to = 0;
  for (let at = start; at < end; ) {
    const length = buffer.readInt32BE(at + 1);
    const from = at + frameHeader;
    at += 1 + length;
    out[to] = 0x64;
    out.writeInt32BE(length + hashField, to + 1);
    to += frameHeader;
    writeHash(out, to, hashLine(buffer, from, at - 1));
    out[to + hashField - 1] = 0x09;
    to += hashField;
    to += buffer.copy(out, to, from, at);
  }
  return out;
}
