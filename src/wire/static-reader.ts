/**
 * Reading again and again into the same memory: saves an allocation, a stream object's work and a tick a read (about 6 µs of CPU a
 * transaction on both sides together).
 * Invariant: memory that a write or a held message still needs is never read into again.
 */
import { Socket } from 'node:net';
import { handleAccess, handleOf } from './socket-handle.ts';

/** A connection to a client or to the upstream. */
export interface PeerSocket {
  readonly socket: Socket;
  /** When there is one, what is read goes to `reader.receive`, and there are no 'data' events. */
  readonly reader: StaticReader | null;
}

/** Reading starts with little memory a connection, for there may be thousands of idle ones, and goes on with more once it is filled. */
const growth = 8;
const smallestRead = 1_024;
const largestRead = 65_536;

/** The `onread` option of a socket. */
export class StaticReader {
  /** Takes what was read; true when the memory is still in use afterwards. */
  receive: (chunk: Buffer) => boolean = () => true;
  #memory = Buffer.allocUnsafeSlow(smallestRead);
  /** Of the last read: small messages often have the length of the last one, and a view costs more than to look at them. */
  #view = this.#memory;

  readonly buffer = (): Buffer => this.#memory;
  readonly callback = (length: number): boolean => {
    this.take(length);
    return true;
  };

  /** Hands on what was read. Answers the memory to read into from now on where it is another. */
  take(length: number): Buffer | undefined {
    const memory = this.#memory;
    if (this.#view.length !== length) this.#view = length === memory.length ? memory : memory.subarray(0, length);
    const used = this.receive(this.#view);
    const filled = length === memory.length && length < largestRead;
    if (!used && !filled) return undefined;
    this.#memory = Buffer.allocUnsafeSlow(filled ? growth * length : memory.length);
    this.#view = this.#memory;
    return this.#memory;
  }
}

/**
 * Has a connected socket made with the reader as its `onread` call the reader itself, and no longer by way of the stream, which has a
 * timer to look after and asks for memory at every read. The end, and errors, go the old way.
 */
export function readDirectly(socket: Socket, reader: StaticReader): void {
  const handle = handleOf(socket);
  if (handle === null || handleAccess === null) return;
  const { lengthRead } = handleAccess;
  const { onread } = handle;
  handle.onread = function (array) {
    const length = lengthRead();
    return length > 0 && !socket.destroyed ? reader.take(length) : onread.call(this, array);
  };
}

/** What an accepted socket has besides its public face. */
interface Accepted {
  _handle: unknown;
  _server: unknown;
  server: unknown;
}

/**
 * A paused, unencrypted, accepted socket as one that reads into static memory; `accepted` is not to be used any more.
 * Node offers `onread` for outgoing connections only, so the handle is moved to a new socket. Where Node does not have it as expected,
 * the socket is returned as it was, and works as well but for the speed.
 */
export function withStaticReader(accepted: Socket): PeerSocket {
  const old = accepted as unknown as Accepted;
  const handle = handleOf(accepted);
  if (handle === null || accepted.readableLength > 0) return { socket: accepted, reader: null };
  handle.readStop();
  handle.reading = false;
  const reader = new StaticReader();
  const socket = new Socket({ handle, onread: reader, allowHalfOpen: true } as ConstructorParameters<typeof Socket>[0]);
  // The server counts its connections by them.
  const fresh = socket as unknown as Accepted;
  fresh.server = old.server;
  fresh._server = old._server;
  old._server = null;
  old._handle = null;
  readDirectly(socket, reader);
  return { socket, reader };
}
