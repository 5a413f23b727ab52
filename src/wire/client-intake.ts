/**
 * What the client sends, on its way to the upstream.
 * Invariant: every byte leaves once and in order: to the upstream, to whoever takes its message over, or to the COPY that reads it. While
 * anything is held nothing leaves, except COPY data to the statement that asked for it.
 */
import { copyInRelay } from './copy-in-relay.ts';
import { type RequestWalker, Stop } from './requests.ts';
import { Request } from './tags.ts';

/** What the intake needs of the session. */
export interface IntakePort {
  toUpstream(bytes: Buffer): void;
  /** Called with a complete message; what follows is held until `release`. */
  takeOver(message: Buffer): void;
  /** More is held than a client has to say while it waits. */
  pauseClient(): void;
}

/** While the client waits for a statement of ours it has nothing to say; beyond this it is no longer read. */
const longestHeld = 262_144;

export class ClientIntake {
  /** The client has said goodbye while its bytes were held. */
  terminated = false;
  readonly #requests: RequestWalker;
  readonly #port: IntakePort;
  /** Bytes that may not be looked at yet; null when nothing is held. */
  #held: Buffer[] | null = null;
  #heldBytes = 0;
  /** Takes the client's bytes while it sends COPY data to a statement we run for it. */
  #tap: ((bytes: Buffer) => Buffer | null) | null = null;
  /** The beginning of a message that is wanted complete. */
  #pieces: Buffer[] = [];
  #gathered = 0;
  #need = 0;

  constructor(requests: RequestWalker, port: IntakePort) {
    this.#requests = requests;
    this.#port = port;
  }

  /** A message is taken over, or a request has to be answered before the next goes on. */
  get holding(): boolean {
    return this.#held !== null;
  }

  /** A message is wanted complete. */
  get gathering(): boolean {
    return this.#need > 0;
  }

  /** The client is not to be read. */
  get full(): boolean {
    return this.#heldBytes > longestHeld;
  }

  push(chunk: Buffer): void {
    if (this.#held !== null) this.#keep(this.#tap === null ? chunk : this.#tap(chunk));
    else this.#feed(chunk);
  }

  /** From now on bytes are held. */
  hold(): void {
    this.#held ??= [];
  }

  /** Goes on with what was held, up to the next message that is taken over. */
  release(): void {
    const held = this.#held;
    this.#held = null;
    this.#heldBytes = 0;
    if (held !== null && held.length > 0) this.#feed(held.length === 1 ? (held[0] ?? Buffer.alloc(0)) : Buffer.concat(held));
  }

  /** Sends a message that was taken over, and books it as the client's. */
  forward(message: Buffer): void {
    this.#port.toUpstream(message);
    this.#requests.forwarded(message[0] ?? 0);
  }

  /** From now on COPY data goes to the upstream, up to its end. */
  relayCopyIn(): void {
    const relay = copyInRelay((bytes) => this.#port.toUpstream(bytes));
    this.#tap = (bytes) => {
      const rest = relay(bytes);
      if (rest !== null) this.#tap = null;
      return rest;
    };
    const held = this.#held ?? [];
    this.#held = [];
    this.#heldBytes = 0;
    if (held.length > 0) this.#keep(this.#tap(Buffer.concat(held)));
  }

  endCopyIn(): void {
    this.#tap = null;
  }

  /** Forwards what can be, and has a message taken over where that is due. */
  #feed(chunk: Buffer): void {
    let bytes = chunk;
    if (this.#need > 0) {
      this.#pieces.push(bytes);
      this.#gathered += bytes.length;
      if (this.#gathered < this.#need) return;
      bytes = Buffer.concat(this.#pieces);
      this.#pieces = [];
      this.#need = 0;
    }
    const requests = this.#requests;
    const to = requests.walk(bytes);
    if (to > 0) this.#port.toUpstream(to === bytes.length ? bytes : bytes.subarray(0, to));
    if (requests.stop === Stop.none) return;
    if (requests.stop === Stop.incomplete) {
      this.#pieces = [bytes.subarray(to)];
      this.#gathered = bytes.length - to;
      this.#need = requests.need;
    } else if (requests.stop === Stop.oneAtATime) {
      this.hold();
      this.#keep(bytes.subarray(to));
    } else {
      const message = bytes.subarray(to, requests.messageEnd);
      this.hold();
      this.#keep(bytes.subarray(requests.messageEnd));
      this.#port.takeOver(message);
    }
  }

  #keep(bytes: Buffer | null): void {
    if (bytes === null || bytes.length === 0) return;
    this.#held?.push(bytes);
    this.#heldBytes += bytes.length;
    // Terminate comes last, so it shows at the end: the client leaves in good order and its statement is finished.
    if (bytes.length >= 5 && bytes[bytes.length - 5] === Request.terminate) this.terminated = true;
    if (this.full) this.#port.pauseClient();
  }
}
