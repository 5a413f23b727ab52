/**
 * What a plain socket of Node has beneath its stream: the handle that reads and writes without a stream's bookkeeping (buffering, ticks,
 * timers), which costs more than the rest of forwarding a small message.
 * Invariant: used only where Node has all of it as expected; elsewhere sockets are used by their public face, which is slower and no less
 * right.
 */
import type { Socket } from 'node:net';

/** A write that libuv could not finish at once. */
export interface WriteRequest {
  /** Kept from being collected while the system reads it. */
  buffer: Buffer | null;
  /** `status`: 0, or an error number (negative). */
  oncomplete: (status: number) => void;
}

/** A connected TCP or Unix socket of libuv. */
export interface SocketHandle {
  /** Called for every read; its length is `lengthRead()`. A buffer that it returns is what is read into from then on. */
  onread: (this: SocketHandle, array: unknown) => Buffer | undefined;
  reading: boolean;
  readStop(): number;
  /** Tries to write at once. 0, or an error number (negative); for the rest see `isWriteUnfinished`. */
  writeBuffer(request: WriteRequest, bytes: Buffer): number;
}

/** Node's own binding, as `process.binding` shows it. */
interface StreamBinding {
  readonly WriteWrap: new () => WriteRequest;
  readonly streamBaseState: Int32Array;
  readonly kReadBytesOrError: number;
  readonly kLastWriteWasAsync: number;
}

/** The means to go beneath a stream. */
export interface HandleAccess {
  newRequest(): WriteRequest;
  /** Within `onread`: how many bytes came, negative at the end or after an error. */
  lengthRead(): number;
  /** Right behind `writeBuffer`: whether some of it is left to libuv, which will call `oncomplete`. */
  isWriteUnfinished(): boolean;
}

/** Null where this Node has it otherwise. */
export const handleAccess: HandleAccess | null = access();

function access(): HandleAccess | null {
  try {
    const { binding } = process as unknown as { binding(name: string): StreamBinding };
    const { WriteWrap, streamBaseState: state, kReadBytesOrError: read, kLastWriteWasAsync: unfinished } = binding('stream_wrap');
    if (typeof WriteWrap !== 'function' || !(state instanceof Int32Array) || !(read >= 0) || !(unfinished >= 0)) return null;
    return {
      newRequest: () => new WriteWrap(),
      lengthRead: () => state[read] ?? 0,
      isWriteUnfinished: () => state[unfinished] !== 0,
    };
  } catch {
    return null;
  }
}

/** The handle of an open socket; null where Node does not have it as expected. */
export function handleOf(socket: Socket): SocketHandle | null {
  const handle = (socket as unknown as { _handle?: Partial<SocketHandle> | null })._handle;
  if (typeof handle?.readStop !== 'function' || typeof handle.writeBuffer !== 'function' || typeof handle.onread !== 'function')
    return null;
  return handle as SocketHandle;
}
