/**
 * The turns a client gets of a pool's server connections.
 * Invariant: a client has a server from its first byte of a transaction to the ReadyForQuery that ends it, and longer only while it keeps
 * state there or its turn is a whole session; whatever server it gets has the client's settings and prepared statements.
 */
import type { Socket } from 'node:net';
import type { ErrorFields } from '../../errors.ts';
import { millraceError } from '../../errors.ts';
import { message, parameterStatus } from '../encode.ts';
import { Request, Status } from '../tags.ts';
import type { LinkHandlers, UpstreamLink } from '../upstream-link.ts';
import { isTracked, type Settings, settingStatements } from './parameters.ts';
import type { SessionEffect } from './pin.ts';
import { type ClientStatements, RequestRewriter } from './rewriting.ts';
import type { Borrower, ServerConnection } from './server.ts';

/** Who waits for a server. */
export interface Waiter {
  /** performance.now() */
  readonly waitingSince: number;
  attach(server: ServerConnection): void;
  /** There is none to be had. */
  refuse(error: ErrorFields): void;
}

/** What a link needs of its pool. */
export interface Lender {
  /** Gives a server by `attach`, now or later. */
  acquire(waiter: Waiter): void;
  cancelWait(waiter: Waiter): void;
  /** `dirty`: it holds state of the client that has to be discarded first. */
  release(server: ServerConnection, dirty: boolean): void;
  readonly maxPreparedStatements: number;
  /** Transactions of several requests are not allowed. */
  readonly statementMode: boolean;
  readonly stats: { xacts: number; queries: number; xactMs: number; waitMs: number; assignments: number };
}

const terminate = message(Request.terminate, []);
const nothing = Buffer.alloc(0);

export class PooledLink implements UpstreamLink, Borrower, Waiter {
  readonly statements: ClientStatements = { named: new Map(), unnamed: null, forgets: false };
  settings: Settings;
  /** When the client began to wait for a server; 0 when it does not. performance.now(). */
  waitingSince = 0;
  /** When it got its server, and when the server last answered or was asked; 0 when it has none. */
  attachedAt = 0;
  requestAt = 0;
  /** Why the client keeps its server; '' when it does not. */
  pinned = '';
  /** What RESET brings back. */
  readonly #startSettings: Settings;
  /** Parameters that are being reset, `all` among them or not. */
  readonly #resets = new Set<string>();
  /** The server has not been told of all settings yet. */
  #unsettled = false;
  readonly #pool: Lender;
  readonly #turn: 'transaction' | 'session';
  readonly #rewriter: RequestRewriter;
  readonly #forget: () => void;
  #handlers: LinkHandlers | null = null;
  #server: ServerConnection | null = null;
  #waiting: Buffer[] = [];
  #waitingBytes = 0;
  #held = false;
  #ended = false;
  #closed = false;

  /** `turn`: how long the client keeps a server at least. `forget` is called when the client is gone. */
  constructor(pool: Lender, settings: Settings, turn: 'transaction' | 'session', forget: () => void) {
    this.#pool = pool;
    this.#turn = turn;
    if (turn === 'session') this.pinned = 'session';
    this.#forget = forget;
    this.settings = settings;
    this.#startSettings = settings;
    this.#rewriter = new RequestRewriter(
      this.statements,
      { effect: (effect) => this.#effect(effect), terminate: () => undefined },
      () => pool.maxPreparedStatements,
    );
  }

  get server(): ServerConnection | null {
    return this.#server;
  }

  get socket(): Socket | null {
    return this.#server?.socket ?? null;
  }

  get isClosed(): boolean {
    return this.#closed;
  }

  get pending(): number {
    return this.#waitingBytes + this.#rewriter.held + (this.#server?.pending ?? 0);
  }

  listen(handlers: LinkHandlers): void {
    this.#handlers = handlers;
  }

  write(bytes: Buffer): boolean {
    if (this.#closed) return true;
    const server = this.#server;
    if (server !== null) {
      this.requestAt = performance.now();
      if (this.#unsettled) this.#settle(server);
      return server.send(this.#rewriter.rewrite(bytes, server)) && this.#rewriter.held === 0;
    }
    // A client without a transaction that takes its leave needs no server for that.
    if (this.#waitingBytes === 0 && bytes.length === 5 && bytes[0] === Request.terminate && !this.#rewriter.midMessage) return true;
    this.#waiting.push(bytes);
    this.#waitingBytes += bytes.length;
    if (this.waitingSince === 0) {
      this.waitingSince = performance.now();
      this.#pool.acquire(this);
    }
    return this.pending === 0;
  }

  /** The pool's answer to `acquire`. */
  attach(server: ServerConnection): void {
    const now = performance.now();
    this.#pool.stats.waitMs += now - this.waitingSince;
    this.#pool.stats.assignments++;
    this.waitingSince = 0;
    this.attachedAt = now;
    this.requestAt = now;
    this.#server = server;
    this.#unsettled = false;
    server.lend(this);
    const waiting = this.#waiting;
    this.#waiting = [];
    this.#waitingBytes = 0;
    const pieces: Buffer[] = [];
    if (server.settings !== this.settings) {
      const sql = settingStatements(server.settings, this.settings);
      if (sql !== '') pieces.push(server.sendHidden(sql));
    }
    for (const bytes of waiting) pieces.push(...this.#rewriter.rewrite(bytes, server));
    if (server.send(pieces)) this.#handlers?.drain();
  }

  /** The pool has no server to give. */
  refuse(error: ErrorFields): void {
    this.waitingSince = 0;
    this.#handlers?.refused(error);
  }

  pause(): void {
    this.#server?.socket.pause();
  }

  resume(): void {
    this.#server?.socket.resume();
  }

  preparedText(name: string): string | undefined {
    return name === '' ? this.statements.unnamed?.toString('latin1') : this.statements.named.get(name)?.key;
  }

  hold(on: boolean): void {
    this.#held = on;
    if (!on) this.#releaseIfDone();
  }

  end(): void {
    if (this.#ended || this.#closed) return;
    this.#ended = true;
    this.#endWhenAnswered();
  }

  abandon(): void {
    this.destroy();
  }

  destroy(): void {
    if (this.#closed) return;
    this.#closed = true;
    const server = this.#server;
    this.#server = null;
    if (server !== null) this.#giveBack(server, this.#isDone(server));
    else if (this.waitingSince !== 0) this.#pool.cancelWait(this);
    this.#waiting = [];
    this.#waitingBytes = 0;
    this.#forget();
    // Not at once: the caller is in the middle of ending.
    setImmediate(() => this.#handlers?.closed());
  }

  // Of the server that is lent to this client:

  receive(bytes: Buffer): boolean {
    const keeps = this.#handlers?.receive(bytes) ?? false;
    // A COPY that waits for data of a client that will send none.
    if (this.#ended && this.#server?.expected.copyIn === true) this.#endWhenAnswered();
    return keeps;
  }

  settingsChanged(settings: Settings): void {
    this.settings = settings;
  }

  settingsReset(): void {
    const server = this.#server;
    if (server === null) return;
    const resets = this.#resets;
    const settings = server.resetTo(this.#startSettings, (parameter) => resets.has('all') || resets.has(parameter));
    resets.clear();
    for (const [name, value] of settings.values) {
      if (server.settings.values.get(name) !== value) this.#handlers?.receive(parameterStatus(name, value));
    }
    this.settings = settings;
    this.#unsettled = settings !== server.settings;
  }

  forgotten(tag: 'DISCARD ALL' | 'DEALLOCATE ALL'): void {
    this.statements.named.clear();
    // What was sent behind it may leave something again.
    if (tag === 'DISCARD ALL' && this.#turn === 'transaction' && this.#server?.expected.isLast === true) this.pinned = '';
  }

  answered(): void {
    if (this.#rewriter.held === 0) return;
    this.#goOn();
    if (this.#ended) this.#endWhenAnswered();
  }

  ready(status: number): void {
    this.answered();
    const { stats, statementMode } = this.#pool;
    stats.queries++;
    if (status === Status.idle) {
      const now = performance.now();
      stats.xacts++;
      stats.xactMs += now - this.attachedAt;
      this.requestAt = now;
      this.attachedAt = now;
      this.#releaseIfDone();
    } else if (this.#ended) this.#endWhenAnswered();
    else if (statementMode) {
      this.#handlers?.refused(millraceError('transaction_in_statement_pool').fields);
    } else this.requestAt = performance.now();
  }

  drain(): void {
    this.#handlers?.drain();
  }

  lost(): void {
    this.#server = null;
    this.#closed = true;
    this.#forget();
    this.#handlers?.end();
    this.#handlers?.closed();
  }

  /** What a held message waited for may have come. */
  #goOn(): void {
    const server = this.#server;
    if (server === null) return;
    server.send(this.#rewriter.rewrite(nothing, server));
    if (this.#rewriter.held === 0) this.#handlers?.drain();
  }

  /** Behind the client's last word: everything it asked for is still answered. */
  #endWhenAnswered(): void {
    const server = this.#server;
    if (server === null ? this.waitingSince === 0 : this.#isDone(server)) this.destroy();
    else if (server !== null && this.#rewriter.held === 0 && (server.expected.unfinished || this.#rewriter.midMessage)) {
      // It left in the middle of something, which ends with the connection.
      server.retired ??= 'a client left it in the middle of something';
      if (server.socket.writableEnded) return;
      if (this.#rewriter.midMessage) server.socket.end();
      else server.socket.end(terminate);
    }
  }

  #isDone(server: ServerConnection): boolean {
    return server.expected.quiet && server.status === Status.idle && !this.#rewriter.midMessage;
  }

  #releaseIfDone(): void {
    const server = this.#server;
    if (server === null || this.#held) return;
    if (this.#ended) this.#endWhenAnswered();
    else if (this.pinned === '' && this.#isDone(server)) {
      this.#server = null;
      this.#giveBack(server, true);
    }
  }

  #giveBack(server: ServerConnection, done: boolean): void {
    this.attachedAt = 0;
    this.requestAt = 0;
    server.takeBack();
    if (!done) server.retired ??= 'a client left it in the middle of something';
    this.#pool.release(server, this.pinned !== '');
  }

  /** Makes up for a RESET, where the client goes on with the same server. */
  #settle(server: ServerConnection): void {
    if (!server.expected.quiet || server.status === Status.failed || this.#rewriter.midMessage) return;
    this.#unsettled = false;
    const sql = settingStatements(server.settings, this.settings);
    if (sql !== '') server.send([server.sendHidden(sql)]);
  }

  #effect(effect: SessionEffect): void {
    if (effect.kind === 'reset') {
      this.#resets.add(effect.parameter);
      this.#server?.expectReset();
    } else if (effect.kind === 'set') this.#resets.delete(effect.parameter);
    if (this.pinned !== '') return;
    if (effect.kind === 'pin') this.pinned = effect.reason;
    else if (effect.kind === 'set' && !isTracked(effect.parameter, this.settings.values)) this.pinned = `SET ${effect.parameter}`;
  }
}
