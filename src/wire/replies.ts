/**
 * Walks over what the upstream sends.
 * Invariant: bytes leave in the order they came, each once; what a sink sees does not depend on how TCP cut the stream.
 * Without a sink (nearly always) chunks are forwarded whole and only headers are read; with a sink each message is passed, dropped or
 * handed over complete.
 */
import type { Ledger } from './ledger.ts';
import { Reply } from './tags.ts';

/** What a sink wants done with a message. */
export const Disposition = { pass: 0, drop: 1, collect: 2 } as const;

export interface ReplySink {
  disposition(tag: number): number;
  /** A message asked for with `collect`: header and body. Only valid during the call. */
  message(tag: number, message: Buffer): void;
}

export interface ReplyTarget {
  /** Bytes for the client. */
  forward(bytes: Buffer): void;
  /** ParameterStatus, header and body. */
  parameterStatus(message: Buffer): void;
  /** ReadyForQuery was forwarded and `alert` is set. */
  readyForQuery(): void;
}

export class ReplyWalker {
  sink: ReplySink | null = null;
  /** Tell the target about every ReadyForQuery. */
  alert = false;
  readonly #ledger: Ledger;
  readonly #target: ReplyTarget;
  /** Bytes of the current message still to come; they share its fate. */
  #remaining = 0;
  #dropping = false;
  /** The beginning of a message that is wanted complete, and how much of it is needed. */
  #pieces: Buffer[] = [];
  #gathered = 0;
  #need = 0;
  #blind = false;

  constructor(ledger: Ledger, target: ReplyTarget) {
    this.#ledger = ledger;
    this.#target = target;
  }

  /** Whether the client has a message in part. */
  get midMessage(): boolean {
    return this.#remaining > 0 && !this.#dropping;
  }

  /** Takes the next chunk. The buffer is not kept, except by `forward`. */
  push(chunk: Buffer): void {
    let bytes = chunk;
    if (this.#need > 0) {
      this.#gathered += chunk.length;
      // Copied, because the caller may read into the same memory again.
      this.#pieces.push(Buffer.from(chunk));
      if (this.#gathered < this.#need) return;
      bytes = Buffer.concat(this.#pieces);
      this.#pieces = [];
      this.#need = 0;
    }
    let at = 0;
    while (at < bytes.length) at = this.sink === null ? this.#splice(bytes, at) : this.#serve(bytes, at, this.sink);
  }

  /** The fast path: up to the end of the chunk, or to where a sink was put in. */
  #splice(chunk: Buffer, from: number): number {
    const ledger = this.#ledger;
    const end = chunk.length;
    let at = from + this.#remaining;
    this.#remaining = 0;
    if (this.#blind) at = end;
    while (at < end) {
      if (end - at < 5) return this.#hold(chunk, from, at, 5);
      const tag = chunk[at];
      const next = at + 1 + chunk.readInt32BE(at + 1);
      if (tag !== Reply.dataRow) {
        if (next < at + 5) {
          this.#blind = true;
          at = end;
          break;
        }
        switch (tag) {
          case Reply.readyForQuery:
            if (next > end) return this.#hold(chunk, from, at, next - at);
            ledger.ready(chunk[at + 5] ?? 0);
            if (this.alert) {
              this.#pass(chunk, from, next);
              this.#target.readyForQuery();
              return next;
            }
            break;
          case Reply.error:
            ledger.error();
            break;
          case Reply.copyIn:
            ledger.copyStarted();
            break;
          case Reply.parameterStatus:
            if (next > end) return this.#hold(chunk, from, at, next - at);
            this.#target.parameterStatus(chunk.subarray(at, next));
            break;
        }
      }
      at = next;
    }
    this.#remaining = at - end;
    this.#dropping = false;
    this.#pass(chunk, from, end);
    return end;
  }

  /** The slow path, until the chunk ends or the sink changes. */
  #serve(chunk: Buffer, from: number, sink: ReplySink): number {
    const end = chunk.length;
    let passFrom = from;
    let at = from;
    if (this.#remaining > 0) {
      const stop = Math.min(end, from + this.#remaining);
      this.#remaining -= stop - from;
      if (this.#dropping) passFrom = stop;
      at = stop;
    }
    while (at < end) {
      if (end - at < 5) return this.#hold(chunk, passFrom, at, 5);
      const tag = chunk[at] ?? 0;
      const next = at + 1 + chunk.readInt32BE(at + 1);
      if (next < at + 5) throw new Error('the upstream sent a message of impossible length');
      const wanted = sink.disposition(tag);
      if (wanted === Disposition.collect) {
        if (next > end) return this.#hold(chunk, passFrom, at, next - at);
        this.#pass(chunk, passFrom, at);
        passFrom = next;
        sink.message(tag, chunk.subarray(at, next));
        if (this.sink !== sink) return next;
      } else if (wanted === Disposition.drop) {
        this.#pass(chunk, passFrom, at);
        passFrom = next;
      }
      if (next > end) {
        this.#remaining = next - end;
        this.#dropping = wanted === Disposition.drop;
        if (this.#dropping) return end;
      }
      at = next;
    }
    this.#pass(chunk, passFrom, end);
    return end;
  }

  #pass(chunk: Buffer, from: number, to: number): void {
    if (to <= from) return;
    this.#target.forward(from === 0 && to === chunk.length ? chunk : chunk.subarray(from, to));
  }

  #hold(chunk: Buffer, passFrom: number, at: number, need: number): number {
    this.#pass(chunk, passFrom, at);
    this.#need = need;
    this.#gathered = chunk.length - at;
    this.#pieces = [Buffer.from(chunk.subarray(at))];
    return chunk.length;
  }
}
