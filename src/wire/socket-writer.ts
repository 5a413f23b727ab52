/**
 * Writing to a peer.
 * Invariant: bytes reach the system in the order of the calls, whichever of the two ways each took; memory that libuv has not written yet
 * is neither reused nor collected, and counts as pending.
 */
import type { Socket } from 'node:net';
import { getSystemErrorName } from 'node:util';
import { type HandleAccess, handleAccess, handleOf, type SocketHandle, type WriteRequest } from './socket-handle.ts';
import type { PeerSocket } from './static-reader.ts';

export interface SocketWriter {
  /** False when enough is pending: the socket's 'drain' tells when to go on. */
  write(bytes: Buffer): boolean;
  /** Bytes that were written and not taken by the system yet. */
  readonly pending: number;
  /** `write` said false, and 'drain' is still to come. */
  readonly isFull: boolean;
}

/** For the connected socket of a peer. Nothing else may write to the socket afterwards, but `end` may be called with last words. */
export function socketWriter({ socket, reader }: PeerSocket): SocketWriter {
  const handle = reader === null ? null : handleOf(socket);
  return handle === null || handleAccess === null ? streamWriter(socket) : new HandleWriter(socket, handle, handleAccess);
}

function streamWriter(socket: Socket): SocketWriter {
  return {
    write: (bytes) => socket.write(bytes),
    get pending() {
      return socket.writableLength;
    },
    get isFull() {
      return socket.writableNeedDrain;
    },
  };
}

/**
 * Writes to the handle: about 1 us less of CPU a write than through the stream, which makes a request object and a tick for each.
 * What the stream still has from earlier goes first, and so through the stream does all that comes until then.
 */
class HandleWriter implements SocketWriter {
  readonly #socket: Socket;
  readonly #handle: SocketHandle;
  readonly #access: HandleAccess;
  /** The stream has nothing left. */
  #direct = false;
  /** A request is used up only by a write that libuv could not finish at once. */
  #spare: WriteRequest;
  #unfinished = 0;
  #full = false;

  constructor(socket: Socket, handle: SocketHandle, access: HandleAccess) {
    this.#socket = socket;
    this.#handle = handle;
    this.#access = access;
    this.#spare = access.newRequest();
  }

  get pending(): number {
    return this.#direct ? this.#unfinished : this.#socket.writableLength;
  }

  get isFull(): boolean {
    return this.#full || (!this.#direct && this.#socket.writableNeedDrain);
  }

  write(bytes: Buffer): boolean {
    // Said to nobody. A handle that is closed has nothing beneath it, and answers not even an error.
    if (this.#socket.destroyed) return true;
    if (!this.#direct && !this.#goDirect()) return this.#socket.write(bytes);
    const request = this.#spare;
    const status = this.#handle.writeBuffer(request, bytes);
    if (status !== 0) {
      this.#socket.destroy(writeError(status));
      return true;
    }
    return this.#access.isWriteUnfinished() ? this.#wait(request, bytes) : true;
  }

  #goDirect(): boolean {
    const socket = this.#socket;
    this.#direct = socket.writableLength === 0 && !socket.writableNeedDrain && socket.writable;
    return this.#direct;
  }

  #wait(request: WriteRequest, bytes: Buffer): boolean {
    const socket = this.#socket;
    this.#spare = this.#access.newRequest();
    this.#unfinished += bytes.length;
    request.buffer = bytes;
    request.oncomplete = (status) => {
      request.buffer = null;
      this.#unfinished -= bytes.length;
      if (socket.destroyed) return;
      if (status < 0) socket.destroy(writeError(status));
      else if (this.#full && this.#unfinished === 0) {
        this.#full = false;
        socket.emit('drain');
      }
    };
    if (this.#unfinished >= socket.writableHighWaterMark) this.#full = true;
    return !this.#full;
  }
}

function writeError(status: number): NodeJS.ErrnoException {
  const code = getSystemErrorName(status);
  return Object.assign(new Error(`write ${code}`), { errno: status, code, syscall: 'write' });
}
