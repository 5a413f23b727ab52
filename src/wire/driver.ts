/**
 * Conversations of Millrace's own with the upstream, over the client's connection, while the client waits.
 * Invariant: one exchange at a time, and every byte of its answer is consumed before the next; what the upstream says on its own
 * (notices, notifications, parameters) reaches the client in order.
 */
import { UpstreamError } from '../statements/caller-session.ts';
import { errorFields } from './decode.ts';
import { bind, type Charset, flush, query, sync } from './encode.ts';
import type { Ledger } from './ledger.ts';
import { Disposition, type ReplySink } from './replies.ts';
import { Reply, Status } from './tags.ts';

export interface ReplyHandler {
  disposition(tag: number): number;
  /** True when this was the last message of the answer. Throwing ends the exchange with that error. */
  message(tag: number, message: Buffer): boolean;
}

/** What the driver needs of the session. */
export interface DriverPort {
  readonly ledger: Ledger;
  readonly charset: Charset;
  toClient(bytes: Buffer): void;
  toUpstream(bytes: Buffer): void;
  /** The client has taken nearly all it was sent. Rejects with ConnectionLost when it is gone. */
  drained(): Promise<void>;
  /** The upstream is listened to until the client takes what it was sent, although it does not. */
  hearsAlways(): void;
  parameterStatus(message: Buffer): void;
}

export class ConnectionLost extends Error {
  constructor() {
    super('the connection was closed');
    this.name = 'ConnectionLost';
  }
}

export class Driver implements ReplySink {
  /** Notices of the upstream are not shown. */
  quiet = false;
  /** The upstream discards what comes before the next Sync. */
  failed = false;
  /** Something was carried out since the last Sync, so that there may be something to abort. */
  dirty = false;
  readonly #port: DriverPort;
  #handler: ReplyHandler | null = null;
  #settle: { resolve(): void; reject(error: Error): void } | null = null;
  #lost = false;
  /** A FATAL error of the upstream: the client hears it as it came. */
  #lastWords: Buffer | null = null;

  constructor(port: DriverPort) {
    this.#port = port;
  }

  get charset(): Charset {
    return this.#port.charset;
  }

  get ledger(): Ledger {
    return this.#port.ledger;
  }

  toClient(bytes: Buffer): void {
    this.#port.toClient(bytes);
  }

  toUpstream(bytes: Buffer): void {
    this.#port.toUpstream(bytes);
  }

  async drained(): Promise<void> {
    await this.#port.drained();
    if (this.#lost) throw new ConnectionLost();
  }

  /** For what is asked of the upstream while the client does not read: answers that are small. */
  hearsAlways(): void {
    this.#port.hearsAlways();
  }

  disposition(tag: number): number {
    switch (tag) {
      case Reply.notice:
        return this.quiet ? Disposition.drop : Disposition.pass;
      case Reply.notification:
        return Disposition.pass;
      case Reply.parameterStatus:
      case Reply.error:
        return Disposition.collect;
      default:
        return this.#handler === null ? Disposition.pass : this.#handler.disposition(tag);
    }
  }

  message(tag: number, message: Buffer): void {
    if (tag === Reply.parameterStatus) {
      this.#port.toClient(Buffer.from(message));
      this.#port.parameterStatus(message);
      return;
    }
    if (tag === Reply.error && errorFields(message, 'latin1')['V'] !== 'ERROR') {
      this.#lastWords = Buffer.from(message);
      // Behind what the client is about to hear of the exchange before.
      if (this.#handler === null) setImmediate(() => this.#sayLastWords());
      else this.#sayLastWords();
      this.lost();
      return;
    }
    if (this.#handler === null) {
      this.#port.toClient(Buffer.from(message));
      return;
    }
    if (tag === Reply.error) {
      const wanted = this.#handler.disposition(tag);
      if (wanted === Disposition.pass) this.#port.toClient(Buffer.from(message));
      if (wanted !== Disposition.collect) return;
    }
    let done: boolean;
    try {
      done = this.#handler.message(tag, message);
    } catch (error) {
      this.#finish()?.reject(error instanceof Error ? error : new Error(String(error)));
      return;
    }
    if (done) this.#finish()?.resolve();
  }

  /** A message was taken over: what is remembered is about this conversation. */
  begin(): void {
    this.failed = false;
    this.dirty = false;
  }

  /** Sends `bytes` and hands the answer to `handler` until that has seen its end. */
  exchange(bytes: Buffer, handler: ReplyHandler): Promise<void> {
    if (this.#lost) {
      this.#sayLastWords();
      return Promise.reject(new ConnectionLost());
    }
    if (this.#handler !== null) return Promise.reject(new Error('two exchanges at once on one session'));
    return new Promise((resolve, reject) => {
      this.#handler = handler;
      this.#settle = { resolve, reject };
      this.#port.toUpstream(bytes);
    });
  }

  /** The connection is gone: whoever waits learns it. */
  lost(): void {
    this.#lost = true;
    this.#finish()?.reject(new ConnectionLost());
  }

  /**
   * Sync: ends the transaction unless it is an explicit one. The ReadyForQuery is not shown; its status is in the ledger.
   * Rejects with UpstreamError when the commit fails. `before` is sent in front of it; its answers are not shown.
   */
  async sync(before: readonly Buffer[] = []): Promise<void> {
    this.ledger.synced();
    await this.#end([...before, sync]);
  }

  /**
   * An empty Query: ends what a Query of the client would end at this place. Behind an Execute without Sync that is nothing from
   * PostgreSQL 18 on, and the transaction before. Otherwise as `sync`.
   */
  async endQuery(before: readonly Buffer[]): Promise<void> {
    this.ledger.batchOpen = false;
    await this.#end([...before, query('', 'latin1')]);
    if (this.ledger.status === Status.idle) this.ledger.synced();
  }

  async #end(bytes: readonly Buffer[]): Promise<void> {
    let error: UpstreamError | null = null;
    this.failed = false;
    this.dirty = false;
    await this.exchange(Buffer.concat(bytes), {
      disposition: (tag) => (tag === Reply.readyForQuery || tag === Reply.error ? Disposition.collect : Disposition.drop),
      message: (tag, message) => {
        if (tag === Reply.error) {
          error ??= new UpstreamError(errorFields(message, this.charset));
          return false;
        }
        this.ledger.status = message[5] ?? Status.idle;
        return true;
      },
    });
    if (error !== null) throw error;
  }

  /** Makes the upstream's transaction fail, as an error of its own would. Its error is not shown. */
  async abort(): Promise<void> {
    if (this.failed) return;
    this.failed = true;
    const bytes = Buffer.concat([bind('__millrace_abort', '__millrace_abort', [], this.charset), flush]);
    await this.exchange(bytes, {
      disposition: (tag) => (tag === Reply.error ? Disposition.collect : Disposition.drop),
      message: () => true,
    });
  }

  #sayLastWords(): void {
    if (this.#lastWords !== null) this.#port.toClient(this.#lastWords);
    this.#lastWords = null;
  }

  #finish(): { resolve(): void; reject(error: Error): void } | null {
    const settle = this.#settle;
    this.#handler = null;
    this.#settle = null;
    return settle;
  }
}
