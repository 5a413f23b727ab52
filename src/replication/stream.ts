/**
 * One logical replication stream (START_REPLICATION .. LOGICAL, pgoutput version 1).
 * Invariant: the position reported as flushed is never beyond what `acknowledge` was told, so an origin never discards WAL that is not durable here.
 */
import type { ServerAddress } from '../config.ts';
import { createLogger } from '../log.ts';
import { formatLsn, type Lsn } from './lsn.ts';
import { ConnectionLostError, PostgresError, type ServerMessageFields } from './postgres-error.ts';
import { connectRaw } from './raw-connection.ts';
import { ReadPacer } from './read-pacer.ts';
import type { CopyBoth, RawConnection } from './session-contract.ts';
import { originSettings } from './settings.ts';
import { type StreamTimers, systemTimers } from './stream-timers.ts';

export interface StreamOptions {
  readonly address: ServerAddress;
  /** Default: the address's database. */
  readonly database?: string;
  readonly slot: string;
  readonly publication: string;
  /** Where to begin; 0n or anything before the slot's confirmed position begins there. Taken as acknowledged. */
  readonly startLsn: Lsn;
  /** Also logical messages (pg_logical_emit_message). Default true. */
  readonly messages?: boolean;
  /** Called before the first message can come, so that a handler can pause the stream from its first message on. */
  readonly onOpen?: (stream: ReplicationStream) => void;
  /** One pgoutput message, `buffer[start .. end)`, valid during the call. Never called between pause and resume. An exception ends the stream. */
  readonly onMessage: (walStart: Lsn, buffer: Buffer, start: number, end: number) => void;
  /**
   * The server has sent everything up to walEnd. Only when nothing received is waiting to become durable may the caller acknowledge it.
   * `replyRequested` was answered already.
   */
  readonly onKeepalive?: (walEnd: Lsn, replyRequested: boolean) => void;
  readonly timers?: StreamTimers;
}

export interface ReplicationStream {
  /** Everything up to here is durable. Never moves back. Sent at once. */
  acknowledge(lsn: Lsn): void;
  readonly acknowledged: Lsn;
  /** The furthest position known from keepalives and acknowledgements; not below `acknowledged`. */
  readonly received: Lsn;
  /** Process of the origin that streams. */
  readonly backendPid: number;
  /** Milliseconds since the origin was heard of; 0 while the stream is paused, or what it said is waiting. */
  silence(): number;
  /** Ends the stream because the connection is known to be dead; `closed` rejects with this. */
  abandon(reason: Error): void;
  /** No message is handed over until `resume`; status updates go on. */
  pause(): void;
  resume(): void;
  /** Leaves what comes in the kernel until `resumeReading`, a few milliseconds later. */
  pauseReading(): void;
  resumeReading(): void;
  /** Asks the server for a keepalive, which tells how far it has read. */
  requestKeepalive(): void;
  /** Ends the stream; `closed` resolves. */
  close(): Promise<void>;
  /** Resolves after `close`, rejects once with the reason otherwise: PostgresError, ConnectionLostError, PgoutputError or what onMessage threw. */
  readonly closed: Promise<void>;
}

/** Status updates are sent at least this often. */
const statusEveryMs = 1_000;

const log = createLogger('replication');

/** Resolves when the server has begun to stream. Rejects with PostgresError: 55006 slot in use, 42704 slot missing, 55000 slot lost, ... */
export async function startStream(options: StreamOptions): Promise<ReplicationStream> {
  const { address, slot, startLsn } = options;
  const connection = await connectRaw(address, {
    replication: true,
    gatherReads: true,
    applicationName: `millrace ${slot}`,
    settings: { ...originSettings, client_min_messages: 'warning' },
    ...(options.database === undefined ? {} : { database: options.database }),
  });
  try {
    const timeoutMs = await walSenderTimeout(connection);
    const stream = new Stream(connection, options, timeoutMs);
    options.onOpen?.(stream);
    const identifier = (name: string): string => `"${name.replaceAll('"', '""')}"`;
    const publications = identifier(options.publication).replaceAll("'", "''");
    const messages = options.messages === false ? '' : ", messages 'true'";
    const sql = `START_REPLICATION SLOT ${identifier(slot)} LOGICAL ${formatLsn(startLsn)} (proto_version '1', publication_names '${publications}'${messages})`;
    stream.started(await connection.copyBoth(sql, (buffer, start, end) => stream.payload(buffer, start, end)));
    log.debug({ slot, startLsn: formatLsn(startLsn), walSenderTimeoutMs: timeoutMs }, 'stream started');
    return stream;
  } catch (error) {
    connection.destroy();
    throw error;
  }
}

/** In ms, 0 when disabled. */
async function walSenderTimeout(connection: RawConnection): Promise<number> {
  const [result] = await connection.query("SELECT setting FROM pg_catalog.pg_settings WHERE name = 'wal_sender_timeout'");
  return Number(result?.rows[0]?.[0] ?? 0);
}

class Stream implements ReplicationStream {
  readonly closed: Promise<void>;
  acknowledged: Lsn;
  received: Lsn;
  readonly #connection: RawConnection;
  readonly #options: StreamOptions;
  readonly #timers: StreamTimers;
  readonly #timeoutMs: number;
  readonly #pacer: ReadPacer;
  #copy: CopyBoth | undefined;
  #stopTimer = (): void => {};
  #paused = false;
  #heardAt: number;
  #askedAt: number;
  #sentAt = 0;
  /** More was acknowledged than the server was told. */
  #isDue = false;
  #settle: { resolve(): void; reject(error: unknown): void };

  constructor(connection: RawConnection, options: StreamOptions, timeoutMs: number) {
    this.#connection = connection;
    this.#options = options;
    this.#timers = options.timers ?? systemTimers;
    this.#timeoutMs = timeoutMs;
    this.acknowledged = options.startLsn;
    this.received = options.startLsn;
    this.#heardAt = this.#timers.now();
    this.#askedAt = this.#heardAt;
    let settle: { resolve(): void; reject(error: unknown): void } | undefined;
    this.closed = new Promise<void>((resolve, reject) => {
      settle = { resolve, reject };
    });
    this.closed.catch(() => {});
    this.#settle = settle ?? { resolve: () => {}, reject: () => {} };
    this.#pacer = new ReadPacer(connection, this.#timers);
    connection.onRead((bytes) => {
      this.#heardAt = this.#timers.now();
      this.#pacer.read(bytes);
    });
    connection.onNotice((fields) => this.#notice(fields));
    connection.onClose((error) => this.#end(error));
  }

  started(copy: CopyBoth): void {
    this.#copy = copy;
    copy.ended.then(
      () => this.#connection.destroy(new ConnectionLostError('the origin ended the replication stream')),
      (error: unknown) => this.#connection.destroy(error instanceof Error ? error : new Error(String(error))),
    );
    this.#stopTimer = this.#timers.every(statusEveryMs / 2, () => this.#tick());
    this.#send(false);
  }

  /** One CopyData payload: XLogData ('w') or primary keepalive ('k') (protocol, 53.4). */
  payload(buffer: Buffer, start: number, end: number): void {
    const kind = buffer[start];
    if (kind === 0x77 && end - start > 25) {
      this.#pacer.message(buffer[start + 25] ?? 0);
      this.#options.onMessage(buffer.readBigUInt64BE(start + 1), buffer, start + 25, end);
    } else if (kind === 0x6b && end - start === 18) {
      const walEnd = buffer.readBigUInt64BE(start + 1);
      const replyRequested = buffer[start + 17] === 1;
      if (walEnd > this.received) this.received = walEnd;
      this.#options.onKeepalive?.(walEnd, replyRequested);
      // After the handler, so that the answer has what it acknowledged.
      if (replyRequested) this.#send(false);
    } else {
      throw new Error(`unexpected replication message type ${kind ?? 'none'} of ${end - start} bytes`);
    }
  }

  get backendPid(): number {
    return this.#connection.backendPid;
  }

  silence(): number {
    return this.#paused ? 0 : this.#timers.now() - this.#heardAt;
  }

  abandon(reason: Error): void {
    this.#connection.destroy(reason);
  }

  acknowledge(lsn: Lsn): void {
    if (lsn <= this.acknowledged) return;
    this.acknowledged = lsn;
    if (lsn > this.received) this.received = lsn;
    // What is flushed at once was many epochs: a message for each of them took half a millisecond, and woke the server as often.
    if (this.#isDue) return;
    this.#isDue = true;
    this.#timers.afterIo(() => {
      if (this.#isDue) this.#send(false);
    });
  }

  pause(): void {
    this.#paused = true;
    this.#connection.pause();
  }

  resume(): void {
    if (!this.#paused) return;
    this.#paused = false;
    // What was said meanwhile is still in the socket: the silence was ours.
    this.#heardAt = this.#timers.now();
    this.#askedAt = this.#heardAt;
    this.#connection.resume();
  }

  pauseReading(): void {
    this.#connection.pauseReading();
  }

  resumeReading(): void {
    this.#connection.resumeReading();
  }

  requestKeepalive(): void {
    this.#send(true);
  }

  async close(): Promise<void> {
    // Not CopyDone: a server in the middle of a large transaction would send the rest of it first.
    this.#send(false);
    this.#connection.destroy();
    await this.closed;
  }

  /**
   * Where the publication does not exist, servers before 18 end the stream (42704); from 18 on they warn and leave the changes out,
   * which would lose them silently. Here it ends the stream always.
   */
  #notice(fields: ServerMessageFields): void {
    if (fields.routine !== undefined && /publication/i.test(fields.routine) && fields.severity === 'WARNING') {
      const message = `publication "${this.#options.publication}" does not exist`;
      this.#connection.destroy(new PostgresError({ ...fields, severity: 'ERROR', code: '42704', message }));
      return;
    }
    log.warn({ slot: this.#options.slot, code: fields.code }, fields.message);
  }

  #end(error: Error | undefined): void {
    this.#stopTimer();
    this.#pacer.stop();
    this.#isDue = false;
    if (error === undefined) this.#settle.resolve();
    else this.#settle.reject(error);
  }

  #tick(): void {
    const now = this.#timers.now();
    const silence = this.silence();
    if (this.#timeoutMs > 0 && !this.#paused) {
      if (silence > 2 * this.#timeoutMs) {
        this.#connection.destroy(new ConnectionLostError(`nothing heard from the origin for ${Math.round(silence / 1000)} s`));
        return;
      }
      // Our own regular updates keep the server from ever having to speak, so it is asked.
      if (silence > this.#timeoutMs / 2 && now - this.#askedAt > this.#timeoutMs / 4) {
        this.#askedAt = now;
        this.#send(true);
        return;
      }
    }
    if (now - this.#sentAt >= statusEveryMs - statusEveryMs / 4) this.#send(false);
  }

  /** Standby status update. "Written" is what was received, so that an idle server does not repeat its keepalives; flushed and applied are what is durable. */
  #send(replyRequested: boolean): void {
    this.#isDue = false;
    if (this.#copy === undefined) return;
    const message = Buffer.allocUnsafe(34);
    message[0] = 0x72;
    message.writeBigUInt64BE(this.received, 1);
    message.writeBigUInt64BE(this.acknowledged, 9);
    message.writeBigUInt64BE(this.acknowledged, 17);
    message.writeBigInt64BE(BigInt(Date.now() - Date.UTC(2000, 0, 1)) * 1000n, 25);
    message[33] = replyRequested ? 1 : 0;
    this.#copy.write(message);
    this.#sentAt = this.#timers.now();
  }
}
