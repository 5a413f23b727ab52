/**
 * What a pipelined Postgres session offers.
 * Invariant: calls are sent at once and answered in order; an error rejects the call it belongs to, and no other.
 */
import type { Param } from './outbox.ts';
import type { ServerMessageFields } from './postgres-error.ts';
import type { Column } from './reply-parts.ts';

/** What one statement gave. Values are text; `fields` is empty for executed prepared statements. */
export interface StatementResult {
  readonly rows: readonly (readonly (string | null)[])[];
  readonly fields: readonly Column[];
  /** Command tag, e.g. 'INSERT 0 3'; '' for an empty statement. */
  readonly tag: string;
}

/** A prepared statement to run: created on the first use of its name. */
export interface Execution {
  readonly name: string;
  readonly sql: string;
  readonly params?: readonly Param[];
}

/** A COPY .. FROM STDIN under way. No other call may be made on the connection before finish or fail. */
export interface CopyIn {
  /** Why the server refused the COPY, as soon as it is known. Writes are then ignored. */
  readonly error: Error | undefined;
  /** One CopyData message. The chunk must not change any more. False: wait for `drain` before writing much more. */
  write(chunk: Buffer): boolean;
  /** Bytes that already are CopyData messages. */
  writeFrames(frames: Buffer): boolean;
  /** Resolves when little is waiting to be sent. Resolves also when the COPY failed (see `error`). */
  drain(): Promise<void>;
  /** Ends the COPY. Resolves with the command tag. */
  finish(): Promise<string>;
  /** Makes the COPY fail on the server (57014). Resolves when the server has answered; never rejects. */
  fail(reason: string): Promise<void>;
}

/** A run of whole CopyData messages, headers included: `buffer[start .. end)` holds `count` of them. Valid during the call. */
export type FramesHandler = (buffer: Buffer, start: number, end: number, count: number) => void;

/** The CopyBoth phase of START_REPLICATION. */
export interface CopyBoth {
  /** One CopyData message, sent at once. */
  write(payload: Buffer): void;
  /** Ends our side of the phase. */
  finish(): void;
  /** Resolves when the server has ended the phase, rejects with its error. */
  readonly ended: Promise<void>;
}

export interface RawConnection {
  /** Process id of the server's backend. */
  readonly backendPid: number;
  /** 'I' idle, 'T' in a transaction, 'E' in a failed one; as of the last reply. */
  readonly transactionStatus: string;
  /** Reported parameters (server_version, ...) that changed since connecting. */
  readonly parameters: ReadonlyMap<string, string>;
  /** Simple protocol; may hold several statements. */
  query(sql: string): Promise<StatementResult[]>;
  /** Extended protocol, its own Sync. The statement is prepared under `name` on first use, and again when the SQL differs. */
  execute(name: string, sql: string, params?: readonly Param[]): Promise<StatementResult>;
  /** Several executions under one Sync: outside BEGIN they are one transaction. After a failure the rest is skipped; the error has `statementIndex`. */
  executeAll(executions: readonly Execution[]): Promise<StatementResult[]>;
  /** Drops a prepared statement; the next `execute` of that name prepares it anew. */
  forget(name: string): void;
  /** Sent without waiting for CopyInResponse. */
  copyIn(sql: string): CopyIn;
  /** Resolves with the command tag when all data has been handed over. An exception of the handler destroys the connection. */
  copyOut(sql: string, onFrames: FramesHandler): Promise<string>;
  /** START_REPLICATION. The handler is called per CopyData payload `[start, end)`. */
  copyBoth(sql: string, onPayload: (buffer: Buffer, start: number, end: number) => void): Promise<CopyBoth>;
  /** Calls until the matching `uncork` are sent as one write. Calls made in one turn of the event loop are anyway. */
  cork(): void;
  uncork(): void;
  /** Stops handing over replies, and reading from the socket. */
  pause(): void;
  resume(): void;
  /** Stops reading from the socket only; what has been read is still handed over. */
  pauseReading(): void;
  resumeReading(): void;
  onNotice(listener: (fields: ServerMessageFields) => void): void;
  onNotification(listener: (channel: string, payload: string) => void): void;
  /** After each chunk read from the socket: its size. */
  onRead(listener: (bytes: number) => void): void;
  /** Called once when the connection is gone; without error after `close`. */
  onClose(listener: (error: Error | undefined) => void): void;
  /** Terminates the session after the calls already sent. Resolves when the socket is closed. */
  close(): Promise<void>;
  /** Cuts the connection; open calls reject with `reason` or ConnectionLostError. */
  destroy(reason?: Error): void;
}
