/**
 * A logged-in connection to the upstream that clients take turns with.
 * Invariant: it serves one client at a time, and is given to the next only when every answer has come, no transaction is open and it holds
 * nothing of the last client; a connection of which that is not certain is closed.
 */
import type { Socket } from 'node:net';
import type { ErrorFields } from '../../errors.ts';
import { errorFields } from '../decode.ts';
import { query } from '../encode.ts';
import { type SocketWriter, socketWriter } from '../socket-writer.ts';
import type { PeerSocket } from '../static-reader.ts';
import { Status } from '../tags.ts';
import { Answers } from './answers.ts';
import { Expect, ExpectedReplies } from './expected.ts';
import { type Settings, type SettingsTable, spelling } from './parameters.ts';
import { ServerStatements } from './prepared.ts';

/** The client a server connection is lent to. */
export interface Borrower {
  /** True when the memory is still in use. */
  receive(bytes: Buffer): boolean;
  /** The server has changed one of the client's settings. */
  settingsChanged(settings: Settings): void;
  /** DISCARD ALL or DEALLOCATE ALL of the client was carried out. */
  forgotten(tag: 'DISCARD ALL' | 'DEALLOCATE ALL'): void;
  /** ReadyForQuery is about to be passed on: the settings that were reset have their defaults again, as far as they are the server's. */
  settingsReset(): void;
  /** Some answers came. */
  answered(): void;
  /** ReadyForQuery came. */
  ready(status: number): void;
  drain(): void;
  /** The connection is gone. */
  lost(): void;
}

export interface LoggedIn {
  readonly peer: PeerSocket;
  readonly parameters: ReadonlyMap<string, string>;
  readonly pid: number;
  /** The cancel key, without the process id. */
  readonly key: Buffer;
}

let lastId = 0;

export class ServerConnection {
  readonly id = ++lastId;
  readonly socket: Socket;
  readonly pid: number;
  readonly key: Buffer;
  readonly connectTime = Date.now();
  readonly expected = new ExpectedReplies();
  readonly statements = new ServerStatements();
  unnamed: Buffer | null = null;
  settings: Settings;
  status: number = Status.idle;
  /** Why it is not to be used again after this client; null when it may. */
  retired: string | null = null;
  /** When it was last given back, or a request was sent on it; ms since the epoch. */
  usedAt = Date.now();
  /** Number of cancel requests under way for it: until they are answered it may not go to another client. */
  cancels = 0;
  readonly #parameters: Map<string, string>;
  readonly #defaults: Settings;
  readonly #table: SettingsTable;
  readonly #answers: Answers;
  readonly #writer: SocketWriter;
  #borrower: Borrower | null = null;
  #keeps = false;
  #own: { resolve(error: ErrorFields | null): void; error: ErrorFields | null } | null = null;
  #closed: () => void;

  constructor(login: LoggedIn, table: SettingsTable, closed: () => void) {
    this.socket = login.peer.socket;
    this.#writer = socketWriter(login.peer);
    this.pid = login.pid;
    this.key = login.key;
    this.#parameters = new Map(login.parameters);
    this.#table = table;
    this.settings = table.of(this.#parameters);
    this.#defaults = this.settings;
    this.#closed = closed;
    this.#answers = new Answers(this.expected, {
      forward: (bytes) => {
        if (this.#borrower?.receive(bytes) === true) this.#keeps = true;
      },
      parameterStatus: (name, value, hidden) => this.#parameterStatus(name, value, hidden),
      forgotten: (tag) => {
        this.statements.clear();
        if (tag === 'DISCARD ALL') this.unnamed = null;
        this.#borrower?.forgotten(tag);
      },
      error: (message, hidden) => this.#error(message, hidden),
      beforeReady: () => this.#borrower?.settingsReset(),
      ready: (status, hidden) => this.#ready(status, hidden),
    });
    this.#listen(login.peer);
  }

  /** All that the server has reported. */
  get parameters(): ReadonlyMap<string, string> {
    return this.#parameters;
  }

  get borrower(): Borrower | null {
    return this.#borrower;
  }

  /** Bytes that were sent and not taken by the system yet. */
  get pending(): number {
    return this.#writer.pending;
  }

  get isGone(): boolean {
    return this.socket.destroyed || !this.socket.writable;
  }

  /** Whether another client may have it as it is. */
  get isClean(): boolean {
    return this.expected.quiet && this.status === Status.idle && !this.#answers.midMessage && this.retired === null && !this.isGone;
  }

  /** The borrower's settings are being reset: it is told when that is done. */
  expectReset(): void {
    this.#answers.announce = true;
  }

  /**
   * The settings as they are now, those reset that the server has reset to its own defaults being the client's.
   * `isReset` is asked for lower-case names.
   */
  resetTo(client: Settings, isReset: (parameter: string) => boolean): Settings {
    let settings = this.settings;
    for (const [name, value] of this.settings.values) {
      const wanted = client.values.get(name);
      if (wanted === undefined || value !== this.#defaults.values.get(name) || !isReset(name.toLowerCase())) continue;
      settings = this.#table.with(settings, name, wanted);
    }
    return settings;
  }

  lend(borrower: Borrower): void {
    this.#borrower = borrower;
  }

  takeBack(): void {
    this.#borrower = null;
    this.#answers.announce = false;
    this.usedAt = Date.now();
    if (this.socket.isPaused()) this.socket.resume();
  }

  /** Sends what the expected answers were booked for. False when the system's buffers are full. */
  send(pieces: readonly Buffer[]): boolean {
    const [first] = pieces;
    let taken = true;
    if (first !== undefined) taken = this.#writer.write(pieces.length === 1 ? first : Buffer.concat(pieces));
    if (this.expected.edits > 0) this.#answers.pump();
    return taken;
  }

  /** A statement of Millrace's own whose answer no client sees, in front of what the client sends next. */
  sendHidden(sql: string): Buffer {
    this.expected.query(Expect.query, true);
    return query(sql, 'utf8');
  }

  /** Carries out SQL while no client has the connection. Resolves with the error it met, or null. */
  run(sql: string): Promise<ErrorFields | null> {
    return new Promise((resolve) => {
      this.#own = { resolve, error: null };
      this.send([this.sendHidden(sql)]);
    });
  }

  destroy(): void {
    this.socket.destroy();
  }

  #listen(peer: PeerSocket): void {
    const { socket, reader } = peer;
    if (reader === null) socket.on('data', (chunk: Buffer) => void this.#receive(chunk));
    else reader.receive = (chunk) => this.#receive(chunk);
    socket.on('drain', () => this.#borrower?.drain());
    socket.on('end', () => socket.destroy());
    socket.on('error', () => socket.destroy());
    socket.on('close', () => {
      this.#own?.resolve({ severity: 'ERROR', code: '08006', message: 'the connection to the upstream was lost' });
      this.#own = null;
      const borrower = this.#borrower;
      this.#borrower = null;
      this.#closed();
      borrower?.lost();
    });
    socket.resume();
  }

  #receive(chunk: Buffer): boolean {
    this.#keeps = false;
    try {
      this.#answers.receive(chunk);
      this.#borrower?.answered();
    } catch {
      this.socket.destroy();
    }
    return this.#keeps;
  }

  #parameterStatus(name: string, bytes: string, hidden: boolean): void {
    const value = Buffer.from(bytes, 'latin1').toString('utf8');
    this.#parameters.set(name, value);
    if (spelling(name) === undefined) return;
    this.settings = this.#table.with(this.settings, name, value);
    if (!hidden) this.#borrower?.settingsChanged(this.settings);
  }

  #error(message: Buffer, hidden: boolean): void {
    const fields = errorFields(message, 'utf8');
    // A plan that an ALTER TABLE has outdated: on another connection the statement is prepared anew.
    if (fields['C'] === '0A000' && /cached plan/.test(fields['M'] ?? '')) this.retired ??= 'a cached plan is outdated';
    if (fields['S'] === 'FATAL' || fields['V'] === 'FATAL') this.retired ??= 'the server ends the connection';
    if (hidden && this.#own !== null) {
      this.#own.error = { severity: 'ERROR', code: fields['C'] ?? 'XX000', message: fields['M'] ?? 'error' };
    }
  }

  #ready(status: number, hidden: boolean): void {
    this.status = status;
    if (!hidden) {
      this.#borrower?.ready(status);
      return;
    }
    const own = this.#own;
    if (own === null || this.#borrower !== null) return;
    this.#own = null;
    own.resolve(own.error);
  }
}
