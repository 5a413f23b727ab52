/**
 * The side of a session that leads to the server: a connection of its own, or the turns it gets of pooled ones.
 * Invariant: bytes go out and come in in order; after `closed` nothing comes any more.
 */
import type { Socket } from 'node:net';
import type { ErrorFields } from '../errors.ts';
import { socketWriter } from './socket-writer.ts';
import type { PeerSocket } from './static-reader.ts';

export interface LinkHandlers {
  /** True when the memory is still in use. */
  receive(bytes: Buffer): boolean;
  /** More can be written. */
  drain(): void;
  /** The server has ended its side. */
  end(): void;
  closed(): void;
  /** There is no server to be had: the client is told and let go. */
  refused(error: ErrorFields): void;
}

export interface UpstreamLink {
  listen(handlers: LinkHandlers): void;
  /** False when the client should send no more for now; see `pending`. */
  write(bytes: Buffer): boolean;
  /** Bytes that were written and not taken by the system yet. */
  readonly pending: number;
  readonly isClosed: boolean;
  /** The connection to the server; null while there is none. */
  readonly socket: Socket | null;
  pause(): void;
  resume(): void;
  /** The client will send nothing more. */
  end(): void;
  /** The client is gone; what it has sent is still delivered. */
  abandon(): void;
  destroy(): void;
  /** What the client prepared under this name (latin1), if that is kept here. */
  preparedText(name: string): string | undefined;
  /** While true the session needs the server it has, between transactions too. */
  hold(on: boolean): void;
}

/** A server connection of the session's own. */
export function directLink(peer: PeerSocket): UpstreamLink {
  const { socket, reader } = peer;
  const writer = socketWriter(peer);
  return {
    socket,
    listen(handlers) {
      if (reader === null) socket.on('data', (chunk: Buffer) => void handlers.receive(chunk));
      else reader.receive = (chunk) => handlers.receive(chunk);
      socket.on('drain', () => handlers.drain());
      socket.on('end', () => handlers.end());
      socket.on('error', () => socket.destroy());
      socket.on('close', () => handlers.closed());
    },
    write: (bytes) => writer.write(bytes),
    get pending() {
      return writer.pending;
    },
    get isClosed() {
      return socket.closed;
    },
    pause: () => void socket.pause(),
    resume: () => void socket.resume(),
    end() {
      if (!socket.writableEnded) socket.end();
    },
    abandon() {
      socket.destroySoon();
      socket.resume();
    },
    destroy: () => void socket.destroy(),
    preparedText: () => undefined,
    hold: () => undefined,
  };
}
