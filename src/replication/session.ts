/**
 * A session on a Postgres server in which every call is pipelined: sent at once, answered in order.
 * Invariant: each ReadyForQuery ends exactly the oldest unanswered call, so a reply can never reach another call.
 */
import type { Socket } from 'node:net';
import { Announcements } from './announcements.ts';
import { openCopyBoth } from './copy-both.ts';
import { openCopyIn } from './copy-in.ts';
import { FrameReader } from './frame-reader.ts';
import { Outbox, type Param } from './outbox.ts';
import { ConnectionLostError, PostgresError, parseServerMessage, type ServerMessageFields } from './postgres-error.ts';
import { parseDataRow, parseRowDescription, readCString } from './reply-parts.ts';
import type { Call, Mode, Prepared } from './session-call.ts';
import type { CopyBoth, CopyIn, Execution, FramesHandler, RawConnection, StatementResult } from './session-contract.ts';

/** Bytes waiting in the socket from which a COPY should wait. */
const highWater = 512 * 1024;
/** A corked batch larger than this goes out in parts. */
const corkLimit = 4 * 1024 * 1024;

/** Takes over the socket of a session that is authenticated and idle. */
export class Session implements RawConnection {
  readonly backendPid: number;
  readonly #announcements = new Announcements();
  transactionStatus = 'I';
  readonly #socket: Socket;
  readonly #outbox = new Outbox();
  readonly #reader = new FrameReader((buffer, start, end) => this.#consume(buffer, start, end));
  readonly #calls: Call[] = [];
  readonly #statements = new Map<string, Prepared>();
  readonly #readListeners: ((bytes: number) => void)[] = [];
  readonly #closeListeners: ((error: Error | undefined) => void)[] = [];
  #drainWaiters: (() => void)[] = [];
  #corked = 0;
  #flushDue = false;
  #resumeDue = false;
  #readingPaused = false;
  #copyInOpen = false;
  #closing = false;
  #closed = false;
  #cause: Error | undefined;

  constructor(socket: Socket, backendPid: number) {
    this.#socket = socket;
    this.backendPid = backendPid;
    // pg's parser listens for data; its error and close listeners stay, they only mark the abandoned client as ended.
    socket.removeAllListeners('data');
    socket.on('data', (chunk: Buffer) => this.#onData(chunk));
    socket.on('drain', () => this.#wakeDrained());
    socket.on('error', (error) => {
      this.#cause ??= error;
    });
    socket.on('close', () => this.#onClosed());
    socket.resume();
  }

  get parameters(): ReadonlyMap<string, string> {
    return this.#announcements.parameters;
  }

  query(sql: string): Promise<StatementResult[]> {
    return new Promise((resolve, reject) => {
      if (!this.#add('query', (call) => (call.error === undefined ? resolve(call.results) : reject(call.error)))) return;
      this.#outbox.query(sql);
      this.#flushSoon();
    });
  }

  async execute(name: string, sql: string, params: readonly Param[] = []): Promise<StatementResult> {
    const [result] = await this.executeAll([{ name, sql, params }]);
    return result ?? { rows: [], fields: [], tag: '' };
  }

  executeAll(executions: readonly Execution[]): Promise<StatementResult[]> {
    return new Promise((resolve, reject) => {
      const prepares: { name: string; statement: Prepared }[] = [];
      if (!this.#add('execute', (call) => (call.error === undefined ? resolve(call.results) : reject(call.error)), { prepares })) return;
      for (const { name, sql, params } of executions) {
        const known = this.#statements.get(name);
        // One whose Parse is unanswered in an earlier call may turn out not to exist: prepared again, so that this call does not depend on that one.
        const usable = known !== undefined && known.sql === sql && (known.created || prepares.some((one) => one.statement === known));
        if (!usable) {
          // Where a Parse failed or was skipped there may be none, or a former one: no error to close it either way.
          if (known !== undefined) this.#outbox.closeStatement(name);
          const statement: Prepared = { sql, created: false };
          this.#statements.set(name, statement);
          prepares.push({ name, statement });
          this.#outbox.parse(name, sql);
        }
        this.#outbox.bind(name, params ?? []);
        this.#outbox.execute();
      }
      this.#outbox.sync();
      this.#flushSoon();
    });
  }

  forget(name: string): void {
    if (!this.#statements.delete(name) || this.#closed) return;
    this.#add('execute', () => {});
    this.#outbox.closeStatement(name);
    this.#outbox.sync();
    this.#flushSoon();
  }

  copyIn(sql: string): CopyIn {
    const copy = openCopyIn({
      outbox: this.#outbox,
      flush: () => {
        if (this.#corked === 0 || this.#outbox.pending > corkLimit) this.#outbox.flush(this.#socket);
        return this.#socket.writableLength < highWater;
      },
      flushSoon: () => this.#flushSoon(),
      whenDrained: (wake) => {
        if (this.#closed || this.#socket.writableLength < highWater) wake();
        else this.#drainWaiters.push(wake);
      },
      ended: () => {
        this.#copyInOpen = false;
      },
    });
    const settle = (call: Call): void => {
      copy.settle(call.error, call.results.at(-1)?.tag ?? '');
      this.#wakeDrained();
    };
    if (this.#add('copyIn', settle)) {
      this.#copyInOpen = true;
      copy.begin();
      this.#outbox.query(sql);
      this.#flushSoon();
    }
    return copy.copyIn;
  }

  copyOut(sql: string, onFrames: FramesHandler): Promise<string> {
    return new Promise((resolve, reject) => {
      const settle = (call: Call): void => (call.error === undefined ? resolve(call.results.at(-1)?.tag ?? '') : reject(call.error));
      if (!this.#add('copyOut', settle, { onFrames })) return;
      this.#outbox.query(sql);
      this.#flushSoon();
    });
  }

  copyBoth(sql: string, onPayload: (buffer: Buffer, start: number, end: number) => void): Promise<CopyBoth> {
    const phase = openCopyBoth((put) => {
      if (this.#closed) return;
      put(this.#outbox);
      this.#outbox.flush(this.#socket);
    });
    if (this.#add('copyBoth', (call) => phase.settle(call.error), { onPayload, onStarted: phase.started })) {
      this.#outbox.query(sql);
      this.#flushSoon();
    }
    return phase.begun;
  }

  cork(): void {
    this.#corked++;
  }

  uncork(): void {
    if (this.#corked > 0 && --this.#corked === 0) this.#outbox.flush(this.#socket);
  }

  pause(): void {
    this.#resumeDue = false;
    this.#reader.pause();
    this.#socket.pause();
  }

  resume(): void {
    if (!this.#reader.paused || this.#resumeDue) return;
    this.#resumeDue = true;
    // Not from within the caller, which may be a handler; and it may pause again before this runs.
    process.nextTick(() => {
      if (!this.#resumeDue) return;
      this.#resumeDue = false;
      this.#guard(() => this.#reader.resume());
      if (!this.#reader.paused && !this.#readingPaused) this.#socket.resume();
    });
  }

  pauseReading(): void {
    this.#readingPaused = true;
    this.#socket.pause();
  }

  resumeReading(): void {
    this.#readingPaused = false;
    if (!this.#reader.paused) this.#socket.resume();
  }

  onNotice(listener: (fields: ServerMessageFields) => void): void {
    this.#announcements.noticeListeners.push(listener);
  }

  onNotification(listener: (channel: string, payload: string) => void): void {
    this.#announcements.notificationListeners.push(listener);
  }

  onRead(listener: (bytes: number) => void): void {
    this.#readListeners.push(listener);
  }

  onClose(listener: (error: Error | undefined) => void): void {
    if (this.#closed) listener(this.#closing ? undefined : this.#cause);
    else this.#closeListeners.push(listener);
  }

  close(): Promise<void> {
    return new Promise((resolve) => {
      this.onClose(() => resolve());
      if (this.#closed) return;
      this.#closing = true;
      this.resume();
      this.resumeReading();
      this.#outbox.terminate();
      this.#outbox.flush(this.#socket);
      this.#socket.end();
    });
  }

  destroy(reason?: Error): void {
    if (reason === undefined) this.#closing = true;
    this.#cause = reason ?? this.#cause;
    this.#socket.destroy();
  }

  #add(mode: Mode, settle: (call: Call) => void, more: Partial<Call> = {}): boolean {
    const call: Call = { mode, results: [], rows: [], fields: [], error: undefined, prepares: [], parsed: 0, settle, ...more };
    if (this.#closed || this.#closing) call.error = this.#lost();
    else if (this.#copyInOpen) call.error = new Error('a COPY is under way on this connection');
    else {
      this.#calls.push(call);
      return true;
    }
    settle(call);
    return false;
  }

  #flushSoon(): void {
    if (this.#corked > 0 || this.#flushDue) return;
    this.#flushDue = true;
    process.nextTick(() => {
      this.#flushDue = false;
      if (this.#corked === 0 && !this.#closed) this.#outbox.flush(this.#socket);
    });
  }

  #onData(chunk: Buffer): void {
    this.#guard(() => this.#reader.push(chunk));
    for (const listener of this.#readListeners) listener(chunk.length);
  }

  /** An exception while handing over replies leaves the session in an unknown state: it ends here, and the error reaches the open calls. */
  #guard(work: () => void): void {
    if (this.#closed) return;
    try {
      work();
    } catch (error) {
      this.destroy(error instanceof Error ? error : new Error(String(error)));
    }
  }

  #consume(buffer: Buffer, start: number, end: number): number {
    let at = start;
    while (end - at >= 5 && !this.#reader.paused) {
      const size = 1 + buffer.readInt32BE(at + 1);
      if (size < 5) throw new Error(`invalid message length ${size - 1} from the server`);
      if (end - at < size) break;
      const call = this.#calls[0];
      if (buffer[at] !== 0x64 || call === undefined) {
        this.#message(buffer[at] ?? 0, buffer, at + 5, at + size);
        at += size;
      } else if (call.onFrames !== undefined) {
        const from = at;
        let count = 0;
        do {
          const length = buffer.readInt32BE(at + 1);
          if (length < 4 || end - at < 1 + length) break;
          at += 1 + length;
          count++;
        } while (end - at >= 5 && buffer[at] === 0x64);
        if (count === 0) break;
        call.onFrames(buffer, from, at, count);
      } else {
        at += size;
        call.onPayload?.(buffer, at - size + 5, at);
      }
    }
    return at;
  }

  #message(type: number, buffer: Buffer, start: number, end: number): void {
    const call = this.#calls[0];
    switch (String.fromCharCode(type)) {
      case 'D':
        call?.rows.push(parseDataRow(buffer, start));
        return;
      case 'T':
        if (call !== undefined) call.fields = parseRowDescription(buffer, start);
        return;
      case 'C':
        this.#complete(call, readCString(buffer, start));
        return;
      case 'I':
        this.#complete(call, '');
        return;
      case 'Z':
        this.#ready(String.fromCharCode(buffer[start] ?? 0));
        return;
      case 'E': {
        const fields = parseServerMessage(buffer, start, end);
        const error = new PostgresError(fields, call?.mode === 'execute' ? call.results.length : undefined);
        if (fields.severity === 'FATAL' || fields.severity === 'PANIC' || call === undefined) this.#cause ??= error;
        if (call !== undefined) call.error ??= error;
        return;
      }
      case '1': {
        const prepare = call?.prepares[call.parsed];
        if (call === undefined || prepare === undefined) return;
        prepare.statement.created = true;
        call.parsed++;
        return;
      }
      case 'N':
      case 'S':
      case 'A':
        this.#announcements.take(type, buffer, start, end);
        return;
      case 'G':
        // COPY FROM STDIN by plain query: nobody will send data.
        if (call !== undefined && call.mode !== 'copyIn') {
          this.#outbox.copyFail('no data: use copyIn');
          this.#flushSoon();
        }
        return;
      case 'W':
        call?.onStarted?.();
        return;
      default:
        return;
    }
  }

  #complete(call: Call | undefined, tag: string): void {
    if (call === undefined) return;
    call.results.push({ rows: call.rows, fields: call.fields, tag });
    call.rows = [];
    call.fields = [];
  }

  #ready(status: string): void {
    this.transactionStatus = status;
    const call = this.#calls.shift();
    if (call === undefined) return;
    call.settle(call);
  }

  #wakeDrained(): void {
    const waiters = this.#drainWaiters;
    this.#drainWaiters = [];
    for (const wake of waiters) wake();
  }

  #lost(): Error {
    const reason = this.#cause?.message;
    return new ConnectionLostError(
      reason === undefined ? 'the connection is closed' : `the connection was lost: ${reason}`,
      this.#cause === undefined ? undefined : { cause: this.#cause },
    );
  }

  #onClosed(): void {
    if (this.#closed) return;
    this.#closed = true;
    if (!this.#closing) this.#cause ??= new ConnectionLostError('the server closed the connection');
    for (const call of this.#calls.splice(0)) {
      call.error ??= this.#cause instanceof PostgresError ? this.#cause : this.#lost();
      call.settle(call);
    }
    this.#wakeDrained();
    for (const listener of this.#closeListeners.splice(0)) listener(this.#closing ? undefined : this.#cause);
  }
}
