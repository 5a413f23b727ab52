/**
 * Which keys transactions have touched, from the stream of the database's own WAL.
 * Invariant: a transaction waits in `touched`, with the keys of all rows it touched (before and after), until `taken`; the slot is acknowledged only up to the
 * first one that waits. Values are not kept: the rows are read again (sync-sql.ts).
 */
import type { ServerAddress } from '../config.ts';
import type { Lsn } from '../replication/lsn.ts';
import { type ChangeHandler, PgoutputDecoder, type RelationMessage, type TupleView, unixMs, valueKind } from '../replication/pgoutput.ts';
import { type ReplicationStream, startStream } from '../replication/stream.ts';
import { type Key, Touched, type TouchingTransaction } from './touched.ts';

export interface FeedOptions {
  readonly address: ServerAddress;
  readonly database: string;
  readonly slot: string;
  readonly publication: string;
}

/** The table that is followed. */
export interface FollowedTable {
  readonly oid: number;
  readonly keyNames: readonly string[];
}

/** Keys of one transaction that are remembered one by one. */
const mostKeys = 500_000;
/** Keys that wait before the stream is left alone for a while. */
const aheadKeys = 1_000_000;
const acknowledgeMs = 200;

export const markerPrefix = 'millrace_migration';

/** The stream ended. */
export class FeedLostError extends Error {}

/** What the stream brought cannot be understood: a column of the key is not in it. */
export class FeedUnusableError extends Error {}

interface Waiter {
  readonly resolve: () => void;
  readonly reject: (error: Error) => void;
}

export class ChangeFeed {
  readonly #options: FeedOptions;
  readonly #arrived: () => void;
  readonly #lost: (error: Error) => void;
  #tables: readonly FollowedTable[];
  #stream: ReplicationStream | null = null;
  readonly touched = new Touched();
  readonly #markers = new Map<string, Waiter>();
  #reached: Lsn = 0n;
  #acknowledging: NodeJS.Timeout | null = null;
  #stopped = false;
  #isOpen = false;
  #paused = false;

  /** `arrived`: a transaction has come. `lost`: the stream has ended, though nobody asked it to. */
  constructor(
    options: FeedOptions,
    tables: readonly FollowedTable[],
    hooks: { readonly arrived: () => void; readonly lost: (error: Error) => void },
  ) {
    this.#options = options;
    this.#tables = tables;
    this.#arrived = hooks.arrived;
    this.#lost = hooks.lost;
  }

  async start(): Promise<void> {
    const decoder = new PgoutputDecoder(this.#handler());
    await startStream({
      ...this.#options,
      startLsn: 0n,
      messages: true,
      onOpen: (stream) => {
        this.#stream = stream;
      },
      onMessage: (walStart, buffer, start, end) => decoder.decode(walStart, buffer, start, end),
      onKeepalive: (walEnd) => {
        if (this.#isOpen || walEnd <= this.#reached) return;
        this.#reached = walEnd;
        this.#acknowledge();
      },
    });
    this.#stream?.closed.then(
      () => this.#end(new FeedLostError('the stream of changes was closed')),
      (error: unknown) =>
        this.#end(error instanceof FeedUnusableError ? error : new FeedLostError('the stream of changes broke', { cause: error })),
    );
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    if (this.#acknowledging !== null) clearTimeout(this.#acknowledging);
    this.#end(new FeedLostError('the stream of changes was stopped'));
    await this.#stream?.close().catch(() => undefined);
  }

  /** From now on these tables are followed. */
  follow(tables: readonly FollowedTable[]): void {
    this.#tables = tables;
  }

  /** WAL between what the server was heard of and what is done here. */
  get backlogBytes(): number {
    const received = this.#stream?.received ?? this.#reached;
    const done = this.touched.oldest?.commitLsn ?? received;
    return Math.max(0, Number(received - done));
  }

  /** Resolves when the stream has come to this marker: every transaction before it in the WAL waits here then. Rejects with FeedLostError. */
  passed(marker: string): Promise<void> {
    if (this.#stopped || this.#stream === null) return Promise.reject(new FeedLostError('the stream of changes is not open'));
    return new Promise((resolve, reject) => {
      this.#markers.set(marker, { resolve, reject });
      this.#resume();
    });
  }

  /** Nobody waits for this marker any more. */
  forget(marker: string): void {
    this.#markers.delete(marker);
  }

  /** What these touched has been looked at, and that is on disk. */
  taken(transactions: readonly TouchingTransaction[]): void {
    this.touched.taken(transactions);
    if (this.touched.keys <= aheadKeys) this.#resume();
    this.#acknowledge();
  }

  #resume(): void {
    if (!this.#paused) return;
    this.#paused = false;
    this.#stream?.resume();
  }

  /** Now and then is enough: it only frees WAL. */
  #acknowledge(): void {
    if (this.#acknowledging !== null || this.#stopped) return;
    this.#acknowledging = setTimeout(() => {
      this.#acknowledging = null;
      if (!this.#stopped) this.#stream?.acknowledge(this.touched.oldest?.commitLsn ?? this.#reached);
    }, acknowledgeMs);
  }

  #end(error: Error): void {
    for (const waiter of this.#markers.values()) waiter.reject(error);
    this.#markers.clear();
    if (this.#stopped) return;
    this.#stopped = true;
    this.#lost(error);
  }

  #handler(): ChangeHandler {
    /** Places of the key's columns in rows of a relation; null: it is not followed. */
    const places = new Map<number, readonly number[]>();
    let xid = 0;
    let keys: Map<string, Key> | null = new Map();
    const markers: string[] = [];
    const touch = (oid: number, row: TupleView | undefined): void => {
      const of = places.get(oid);
      if (of === undefined || row === undefined || keys === null) return;
      const key = of.map((place) => text(row, place));
      // What is not in the old row of an update has not changed.
      if (key.some((value) => value === null)) return;
      keys.set(key.join('\u0000'), key as Key);
      if (keys.size > mostKeys) keys = null;
    };
    const settle = (content: string): void => {
      this.#markers.get(content)?.resolve();
      this.#markers.delete(content);
    };
    return {
      begin: (_finalLsn, _time, topXid) => {
        this.#isOpen = true;
        xid = topXid;
        keys = new Map();
      },
      commit: (commitLsn, endLsn, time) => {
        this.#isOpen = false;
        if (keys === null || keys.size > 0) {
          this.touched.add({ xid, commitLsn, endLsn, committedAt: unixMs(time), keys });
          if (this.touched.keys > aheadKeys && this.#markers.size === 0 && !this.#paused) {
            this.#paused = true;
            this.#stream?.pause();
          }
          this.#arrived();
        }
        this.#reached = endLsn;
        for (const content of markers.splice(0)) settle(content);
        if (this.touched.count === 0) this.#acknowledge();
      },
      origin: () => undefined,
      type: () => undefined,
      relation: (message) => {
        const table = this.#tables.find(({ oid }) => oid === message.oid);
        if (table === undefined) places.delete(message.oid);
        else places.set(message.oid, placesOf(message, table));
      },
      message: (transactional, _lsn, prefix, buffer, start, end) => {
        if (prefix !== markerPrefix) return;
        const content = buffer.toString('utf8', start, end);
        if (transactional) markers.push(content);
        else settle(content);
      },
      insert: (oid, row) => touch(oid, row),
      update: (oid, _oldKind, oldRow, newRow) => {
        touch(oid, oldRow);
        touch(oid, newRow);
      },
      delete: (oid, _oldKind, oldRow) => touch(oid, oldRow),
      truncate: (oids) => {
        if (oids.some((oid) => places.has(oid))) keys = null;
      },
    };
  }
}

function placesOf(message: RelationMessage, { keyNames }: FollowedTable): readonly number[] {
  return keyNames.map((name) => {
    const place = message.columns.findIndex((column) => column.name === name);
    if (place < 0) throw new FeedUnusableError(`column "${name}" of the key is no longer in ${message.schema}.${message.name}`);
    return place;
  });
}

/** Null: NULL, or left out. A key's value is never either in a row that has it. */
function text(row: TupleView, place: number): string | null {
  return row.kinds[place] === valueKind.text ? row.buffer.toString('utf8', row.starts[place], row.ends[place]) : null;
}

/** An array of texts as Postgres reads it. */
export const arrayText = (values: readonly string[]): string =>
  `{${values.map((value) => `"${value.replaceAll('\\', '\\\\').replaceAll('"', '\\"')}"`).join(',')}}`;
