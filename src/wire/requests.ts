/**
 * Walks over what the client sends, message by message, without copying.
 * Invariant: where it stops depends on the messages only, never on how TCP cut them into chunks; everything in front of the stop is
 * counted in the ledger and may be forwarded as it is.
 *
 * A Query or Parse whose text is not wholly there is asked for in full when it has up to 1 MB; of a longer one the first 64 KB decide,
 * so an extended statement behind 64 KB of ordinary SQL in a text beyond 1 MB goes to the upstream (which refuses it).
 */
import type { Ledger } from './ledger.ts';
import type { LocalNames } from './local-names.ts';
import { Request } from './tags.ts';

/** Why the walk ended. */
export const Stop = {
  /** Everything can be forwarded. */
  none: 0,
  /** What follows is incomplete; `need` bytes of it are wanted before it is looked at again. */
  incomplete: 1,
  /** A complete message that is not simply forwarded; it ends at `messageEnd`. */
  takeOver: 2,
  /** A request ended and the next may not be forwarded before it is answered. */
  oneAtATime: 3,
} as const;

const wholeText = 1_048_576;
const prefixOfLongText = 65_536;
const longestTakenText = 268_435_456;

export type Gate = (text: Uint8Array, start: number, end: number) => boolean;

export class RequestWalker {
  /** Of the last walk. */
  stop: number = Stop.none;
  need = 0;
  messageEnd = 0;
  /** Stop behind every request that is answered by ReadyForQuery. */
  oneAtATime = false;
  /** No look at SQL at all: replication connections. */
  gateOpen = false;
  readonly #ledger: Ledger;
  readonly #gate: Gate;
  readonly #names: LocalNames;
  #remaining = 0;
  #blind = false;

  constructor(ledger: Ledger, gate: Gate, names: LocalNames) {
    this.#ledger = ledger;
    this.#gate = gate;
    this.#names = names;
  }

  /** The index in `chunk` up to which bytes may be forwarded; see `stop` for what comes behind. */
  walk(chunk: Buffer): number {
    this.stop = Stop.none;
    const end = chunk.length;
    if (this.#blind) return end;
    let at = this.#remaining;
    this.#remaining = 0;
    while (at < end) {
      if (end - at < 5) return this.#incomplete(at, 5);
      const tag = chunk[at] ?? 0;
      const next = at + 1 + chunk.readInt32BE(at + 1);
      if (next < at + 5) {
        // Not a message: the upstream will say so and hang up.
        this.#blind = true;
        return end;
      }
      const verdict = this.#verdict(tag, chunk, at, next);
      if (verdict === 2 || (verdict === 1 && next > end)) return this.#incomplete(at, verdict === 1 ? next - at : this.need);
      if (verdict === 1) return this.#takeOver(at, next);
      this.forwarded(tag);
      at = next;
      if (this.oneAtATime && (tag === Request.query || tag === Request.sync || tag === Request.functionCall) && at <= end) {
        this.stop = Stop.oneAtATime;
        return at;
      }
    }
    this.#remaining = at - end;
    return end;
  }

  /** Books a message that is forwarded although the walk stopped there. */
  forwarded(tag: number): void {
    const ledger = this.#ledger;
    switch (tag) {
      case Request.query:
        // A server that skips to Sync does not look at it.
        if (!ledger.skipping) this.#names.forgetUnnamed();
        ledger.query();
        break;
      case Request.functionCall:
        ledger.query();
        break;
      case Request.sync:
        ledger.sync();
        break;
      case Request.parse:
      case Request.describe:
      case Request.close:
      case Request.flush:
        if (!ledger.copyIn) ledger.extended();
        break;
      case Request.bind:
        if (ledger.copyIn) break;
        ledger.extended();
        ledger.bound = true;
        break;
      case Request.execute:
        ledger.execute();
        break;
      case Request.copyData:
        ledger.copyData();
        break;
      case Request.copyDone:
      case Request.copyFail:
        ledger.copyEnd();
        break;
    }
  }

  /** Whether a message is taken over: 0 no, 1 yes, 2 not enough of it there to tell (`need` is set). */
  #verdict(tag: number, chunk: Buffer, at: number, next: number): number {
    switch (tag) {
      case Request.query:
        if (this.gateOpen) return 0;
        return this.#hangsOn() ? 1 : this.#mayBeExtended(tag, chunk, at, next);
      case Request.functionCall:
        return this.#hangsOn() && !this.gateOpen ? 1 : 0;
      case Request.parse: {
        if (this.gateOpen) return 0;
        const known = this.#mentionsLocal(tag, chunk, at, next);
        return known === 0 ? this.#mayBeExtended(tag, chunk, at, next) : known;
      }
      case Request.bind:
      case Request.describe:
      case Request.execute:
      case Request.close:
        return this.#mentionsLocal(tag, chunk, at, next);
      default:
        return 0;
    }
  }

  /** Behind an unfinished batch: whether the upstream answers a request or skips it has to be known before it is booked. */
  #hangsOn(): boolean {
    return this.#ledger.batchOpen && !this.#ledger.skipping;
  }

  #incomplete(at: number, need: number): number {
    this.stop = Stop.incomplete;
    this.need = need;
    return at;
  }

  #takeOver(at: number, next: number): number {
    this.stop = Stop.takeOver;
    this.messageEnd = next;
    return at;
  }

  /** 0 no, 1 yes (or to be parsed), 2 not enough there (`need` is set). */
  #mayBeExtended(tag: number, chunk: Buffer, at: number, next: number): number {
    const complete = next <= chunk.length;
    const length = next - at;
    const there = complete ? next : chunk.length;
    if (!complete) {
      if (length <= wholeText) return this.#want(length);
      if (there - at < prefixOfLongText) return this.#want(prefixOfLongText);
      if (length > longestTakenText) return 0;
    }
    let start = at + 5;
    if (tag === Request.parse) {
      const nameEnd = chunk.indexOf(0, start);
      if (nameEnd === -1 || nameEnd >= there) return 0;
      start = nameEnd + 1;
    }
    let end = there;
    if (complete) {
      // The text ends at its NUL: of a Query that is the last byte, behind a Parse come parameter types.
      end = tag === Request.query ? next - 1 : chunk.indexOf(0, start);
      if (end < start || end > next) return 0;
    }
    // FETCH or MOVE of a cursor over a subscription has no word of its own.
    if (this.#names.cursors.size === 0 && !this.#gate(chunk, start, end)) return 0;
    return complete ? 1 : this.#want(length);
  }

  /** As above: whether the names in the message are among the session's local ones. */
  #mentionsLocal(tag: number, chunk: Buffer, at: number, next: number): number {
    if (!this.#names.any) return 0;
    const there = Math.min(next, chunk.length);
    const found = this.#names.mentions(tag, chunk, at + 5, there);
    if (found !== 2) return found;
    return there === next ? 0 : this.#want(Math.min(next - at, Math.max(1024, 2 * (there - at))));
  }

  #want(need: number): number {
    this.need = need;
    return 2;
  }
}
