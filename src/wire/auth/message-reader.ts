/**
 * Reads one message at a time from a connection that has no session yet, or not any more.
 * Invariant: a message longer than allowed is refused before memory is taken for it, and no byte behind the last message is lost:
 * `release` gives what was read and not taken.
 */
import type { PeerSocket } from '../static-reader.ts';

/** The other side is gone, or what it says cannot be read. */
export class ConversationEnded extends Error {
  override readonly name = 'ConversationEnded';
  /** The message that came is longer than allowed. */
  readonly tooLong: boolean;
  constructor(message: string, options: { readonly tooLong?: boolean } = {}) {
    super(message);
    this.tooLong = options.tooLong ?? false;
  }
}

export class MessageReader {
  readonly #peer: PeerSocket;
  readonly #formerReceive: ((chunk: Buffer) => boolean) | null;
  #bytes: Buffer;
  #ended: ConversationEnded | null = null;
  #wake: (() => void) | null = null;
  readonly #onData = (chunk: Buffer): void => {
    this.#bytes = this.#bytes.length === 0 ? chunk : Buffer.concat([this.#bytes, chunk]);
    this.#peer.socket.pause();
    this.#stir();
  };
  readonly #onEnd = (): void => {
    this.#ended ??= new ConversationEnded('the connection was closed');
    this.#stir();
  };
  readonly #onError = (error: Error): void => {
    this.#ended ??= new ConversationEnded(error.message);
    this.#stir();
  };

  /** Takes over a paused connection; `initial` was read from it before. */
  constructor(peer: PeerSocket, initial: Buffer = Buffer.alloc(0)) {
    this.#peer = peer;
    this.#bytes = initial;
    const { socket, reader } = peer;
    this.#formerReceive = reader?.receive ?? null;
    if (reader === null) socket.on('data', this.#onData).pause();
    else {
      reader.receive = (chunk) => {
        // Copied: the memory is read into again.
        this.#onData(Buffer.from(chunk));
        return false;
      };
    }
    socket.on('end', this.#onEnd).on('close', this.#onEnd).on('error', this.#onError);
    if (socket.destroyed || socket.readableEnded) this.#onEnd();
  }

  /** The next message, header included, of at most `longest` bytes behind its tag. Rejects with ConversationEnded. */
  async next(longest: number): Promise<Buffer> {
    for (;;) {
      const bytes = this.#bytes;
      if (bytes.length >= 5) {
        const length = bytes.readUInt32BE(1);
        if (length < 4 || length > longest) throw new ConversationEnded('invalid message length', { tooLong: true });
        if (bytes.length > length) {
          this.#bytes = bytes.subarray(1 + length);
          return bytes.subarray(0, 1 + length);
        }
      }
      if (this.#ended !== null) throw this.#ended;
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
        this.#peer.socket.resume();
      });
    }
  }

  /** Gives the connection back, paused, with what was read and not taken. */
  release(): Buffer {
    const { socket, reader } = this.#peer;
    socket.pause();
    socket.off('data', this.#onData).off('end', this.#onEnd).off('close', this.#onEnd).off('error', this.#onError);
    if (reader !== null && this.#formerReceive !== null) reader.receive = this.#formerReceive;
    const rest = this.#bytes;
    this.#bytes = Buffer.alloc(0);
    return rest;
  }

  #stir(): void {
    this.#wake?.();
    this.#wake = null;
  }
}
