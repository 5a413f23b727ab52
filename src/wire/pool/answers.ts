/**
 * What a pooled server connection says, on its way to the client it is lent to.
 * Invariant: the client sees the answers to its own messages and what the server says unasked, in order, whole, each once; answers to
 * messages of Millrace's own stay here; answers that Millrace gives come in their turn.
 */
import { parameter } from '../decode.ts';
import { Reply } from '../tags.ts';
import { Expect, type ExpectedReplies } from './expected.ts';

export interface AnswerTarget {
  /** Bytes for the client; views of memory that is used again. */
  forward(bytes: Buffer): void;
  /** A parameter has changed. `hidden`: by a statement of Millrace's own. */
  parameterStatus(name: string, value: string, hidden: boolean): void;
  /** CommandComplete of DISCARD ALL or DEALLOCATE ALL. */
  forgotten(tag: 'DISCARD ALL' | 'DEALLOCATE ALL'): void;
  /** ErrorResponse, whole. */
  error(message: Buffer, hidden: boolean): void;
  /** ReadyForQuery comes next for the client. Called when it was announced by `announce`. */
  beforeReady(): void;
  /** ReadyForQuery was passed on. `hidden`: it answers Millrace. */
  ready(status: number, hidden: boolean): void;
}

export class Answers {
  readonly #expected: ExpectedReplies;
  readonly #target: AnswerTarget;
  /** Bytes still to come of a message whose beginning was dealt with, and whether they are for nobody. */
  #remaining = 0;
  #dropping = false;
  #carry: Buffer | null = null;
  /** The target has something to say in front of the client's next ReadyForQuery. */
  announce = false;

  constructor(expected: ExpectedReplies, target: AnswerTarget) {
    this.#expected = expected;
    this.#target = target;
  }

  /** Whether a message is half received. */
  get midMessage(): boolean {
    return this.#remaining > 0 || this.#carry !== null;
  }

  /** Gives the answers of Millrace's own whose turn it is already. */
  pump(): void {
    if (this.#remaining > 0 || this.#carry !== null) return;
    for (let reply = this.#expected.takeLocal(); reply !== undefined; reply = this.#expected.takeLocal()) this.#target.forward(reply);
  }

  /** Throws when the server sends what is no message. */
  receive(chunk: Buffer): void {
    const expected = this.#expected;
    const bytes = this.#carry === null ? chunk : Buffer.concat([this.#carry, chunk]);
    this.#carry = null;
    const end = bytes.length;
    let at = this.#remaining;
    let from = this.#dropping ? Math.min(at, end) : 0;
    this.#remaining = 0;
    while (at < end) {
      const next = end - at < 5 ? 0 : at + 1 + bytes.readInt32BE(at + 1);
      const tag = bytes[at] ?? 0;
      if (next === 0 || (next > end && this.#isWantedWhole(tag))) {
        this.#pass(bytes, from, at);
        this.#carry = Buffer.from(bytes.subarray(at));
        this.#dropping = false;
        return;
      }
      if (next < at + 5) throw new Error('the upstream sent a message of impossible length');
      const hidden = expected.frontHidden && tag !== Reply.notice && tag !== Reply.notification;
      if (hidden) {
        this.#pass(bytes, from, at);
        from = next;
      }
      if (tag !== Reply.dataRow && tag !== Reply.copyData) {
        if (tag === Reply.readyForQuery) {
          if (expected.front >= Expect.query && expected.front <= Expect.sync) expected.pop();
          else expected.doubtful = true;
          if (this.announce && !hidden) {
            this.announce = false;
            this.#pass(bytes, from, at);
            from = at;
            this.#target.beforeReady();
          }
          if (!hidden) this.#pass(bytes, from, next);
          from = next;
          this.#target.ready(bytes[at + 5] ?? 0, hidden);
        } else from = this.#take(tag, bytes, at, next, from, hidden);
        if (expected.edits > 0 && expected.front === Expect.local) {
          this.#pass(bytes, from, next);
          from = next;
          this.pump();
        }
      }
      at = next;
    }
    this.#remaining = at - end;
    this.#dropping = from > end;
    this.#pass(bytes, from, end);
  }

  /** Books a message other than rows and ReadyForQuery. Returns where the bytes begin that were not passed on yet. */
  #take(tag: number, bytes: Buffer, at: number, next: number, from: number, hidden: boolean): number {
    const expected = this.#expected;
    switch (tag) {
      case Reply.parseComplete:
        this.#popIf(Expect.parse);
        break;
      case Reply.bindComplete:
        this.#popIf(Expect.bind);
        break;
      case Reply.closeComplete:
        this.#popIf(Expect.close);
        break;
      case Reply.rowDescription:
      case Reply.noData:
        if (expected.front === Expect.describe) expected.pop();
        break;
      case Reply.commandComplete:
        if (bytes[at + 5] === 0x44) this.#noteForgotten(bytes, at, next);
        if (expected.front === Expect.execute) expected.pop();
        break;
      case Reply.emptyQuery:
      case Reply.portalSuspended:
        if (expected.front === Expect.execute) expected.pop();
        break;
      case Reply.copyIn:
        expected.copyStarted();
        break;
      case Reply.error: {
        const hiddenQuery = hidden && expected.front === Expect.query;
        // The error of a statement prepared again in the client's stead is the client's.
        if (hidden && !hiddenQuery && !expected.frontSilent) this.#target.forward(bytes.subarray(at, next));
        this.#target.error(bytes.subarray(at, next), hiddenQuery);
        expected.error();
        break;
      }
      case Reply.parameterStatus: {
        const { name, value } = parameter(bytes.subarray(at, next));
        this.#target.parameterStatus(name, value, hidden);
        break;
      }
    }
    return from;
  }

  #popIf(kind: number): void {
    if (this.#expected.front === kind) this.#expected.pop();
    else this.#expected.doubtful = true;
  }

  #noteForgotten(bytes: Buffer, at: number, next: number): void {
    const tag = bytes.toString('latin1', at + 5, next - 1);
    if (tag === 'DISCARD ALL' || tag === 'DEALLOCATE ALL') this.#target.forgotten(tag);
  }

  #isWantedWhole(tag: number): boolean {
    switch (tag) {
      case Reply.readyForQuery:
      case Reply.parameterStatus:
      case Reply.error:
      case Reply.commandComplete:
        return true;
      case Reply.dataRow:
      case Reply.copyData:
        return false;
      default:
        // What Millrace answers itself goes between whole messages.
        return this.#expected.edits > 0;
    }
  }

  #pass(bytes: Buffer, from: number, to: number): void {
    if (to <= from) return;
    this.#target.forward(from === 0 && to === bytes.length ? bytes : bytes.subarray(from, to));
  }
}
