/**
 * The stream of this database's own WAL.
 * Invariant: a transaction waits here from its commit in the WAL until an epoch whose snapshot sees it has committed; the slot is acknowledged
 * only up to the first one that waits, and only what is on disk. So after a crash every transaction that is not in comes again,
 * and those that come again although they are in are told by the snapshot of the last epoch.
 */
import type { ServerAddress } from '../../config.ts';
import type { Lsn } from '../../replication/lsn.ts';
import { PgoutputDecoder, type RelationMessage } from '../../replication/pgoutput.ts';
import { isVisible, type Snapshot } from '../../replication/snapshot-visibility.ts';
import { type ReplicationStream, startStream } from '../../replication/stream.ts';
import { addCounts, allColumns, concerning, type MaskCounts } from './masks.ts';
import { ReadPacing } from './pacing.ts';
import { type BaseTarget, type BaseTransaction, requestMessage, transactionHandler } from './transactions.ts';

export interface BaseRunnerHooks {
  /** Where a relation's rows go; null: they are of no concern. `xid`: the transaction it came in. */
  readonly resolve: (message: RelationMessage, xid: number) => Promise<BaseTarget | null>;
  /** A transaction has come. */
  readonly ready: () => void;
  /** How long transactions may be left unread where many come, in ms. */
  readonly patience: () => number;
  readonly failed: (error: unknown) => void;
}

export interface BaseRunnerOptions {
  readonly address: ServerAddress;
  readonly database: string;
  readonly slot: string;
  readonly publication: string;
  /** Of the last epoch that took changes in: what it sees is in. */
  readonly taken: Snapshot | null;
}

/** From what can be acknowledged to its acknowledgement. */
const acknowledgeMs = 100;

/** Bytes decoded ahead of an upstream that is busy with an epoch. */
const aheadBytes = 64 * 1024 * 1024;

const unknownChange: MaskCounts = new Map([[allColumns, 1]]);

/** The stream ended while something waited for it. */
export class StreamLostError extends Error {}

/** Requests for refreshes that are remembered. */
const mostRequests = 1000;

interface Waiter {
  readonly resolve: () => void;
  readonly reject: (error: Error) => void;
}

export class BaseRunner {
  readonly #options: BaseRunnerOptions;
  readonly #hooks: BaseRunnerHooks;
  readonly #targets = new Map<number, BaseTarget>();
  readonly #messages = new Map<number, { readonly message: RelationMessage; readonly xid: number }>();
  readonly #handler: ReturnType<typeof transactionHandler>;
  readonly #markers = new Map<string, Waiter>();
  /** When transactions that asked for refreshes committed, by their number, and who waits for one. */
  readonly #requests = new Map<number, number>();
  readonly #awaited = new Map<number, Set<(committedAt: number) => void>>();
  #waiting: BaseTransaction[] = [];
  /** What they change, by base table. */
  #changed = new Map<number, Map<bigint, number>>();
  #stream: ReplicationStream | null = null;
  /** End of the last transaction, or of what the server says it has sent. */
  #reached: Lsn = 0n;
  #unflushed = 0;
  /** The server may forget what is before. */
  #safe: Lsn = 0n;
  #acknowledging: NodeJS.Timeout | null = null;
  #resolving = 0;
  #lookups: Promise<void> = Promise.resolve();
  #stopped = false;
  #announced = false;
  /** Since they were last announced. */
  #arrived = 0;
  readonly #pacing = new ReadPacing();
  #nap: NodeJS.Timeout | null = null;
  #bytes = 0;
  #pausedForBytes = false;
  /** When the server was last known to have sent everything. */
  heardAt = 0;

  constructor(options: BaseRunnerOptions, hooks: BaseRunnerHooks) {
    this.#options = options;
    this.#hooks = hooks;
    this.#handler = transactionHandler({
      targets: this.#targets,
      relation: (message, xid) => this.#relation(message, xid),
      wanted: (xid) => options.taken === null || !isVisible(options.taken, xid),
      committed: (transaction) => {
        this.#waiting.push(transaction);
        this.#count(transaction);
        this.#bytes += transaction.bytes;
        // While an epoch waits for a marker the stream must come to it; a busy one takes its time.
        if (this.#bytes > aheadBytes && this.#markers.size === 0) this.#pauseForBytes();
        this.#announce();
      },
      marker: (content, transaction) => {
        if (content === requestMessage) {
          if (transaction !== null) this.#asked(transaction.xid, transaction.committedAt);
          return;
        }
        this.#markers.get(content)?.resolve();
        this.#markers.delete(content);
      },
      ended: (endLsn) => {
        this.#reached = endLsn;
        this.#acknowledgeIdle();
      },
    });
  }

  async start(): Promise<void> {
    const decoder = new PgoutputDecoder(this.#handler);
    const { address, database, slot, publication } = this.#options;
    await startStream({
      address,
      database,
      slot,
      publication,
      // From where the slot was acknowledged.
      startLsn: 0n,
      messages: true,
      onOpen: (stream) => {
        this.#stream = stream;
      },
      onMessage: (walStart, buffer, start, end) => decoder.decode(walStart, buffer, start, end),
      onKeepalive: (walEnd) => {
        this.heardAt = Date.now();
        if (this.#handler.isOpen() || walEnd <= this.#reached) return;
        this.#reached = walEnd;
        this.#acknowledgeIdle();
      },
    });
    this.#stream?.closed.then(
      () => this.#lost(new StreamLostError('the stream of base tables was closed')),
      (error: unknown) => {
        this.#lost(new StreamLostError('the stream of base tables broke', { cause: error }));
        if (!this.#stopped) this.#hooks.failed(error);
      },
    );
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    this.#awaken();
    if (this.#acknowledging !== null) clearTimeout(this.#acknowledging);
    await this.#stream?.close().catch(() => undefined);
  }

  /** No epoch will ask for what waits here. */
  discard(): void {
    for (const transaction of this.#waiting.splice(0)) transaction.release();
  }

  get stopped(): boolean {
    return this.#stopped;
  }

  /** Transactions that wait, in commit order. */
  get waiting(): readonly BaseTransaction[] {
    return this.#waiting;
  }

  get waitingBytes(): number {
    return this.#bytes;
  }

  /** Whether changes wait that concern who looks at these columns of a base table. */
  waitingFor(baseId: number, mask: bigint): boolean {
    const changed = this.#changed.get(baseId);
    return changed !== undefined && concerning(changed, mask) > 0;
  }

  /** WAL that has been heard of and is not in. */
  get lagBytes(): number {
    const received = this.#stream?.received ?? this.#reached;
    const [first] = this.#waiting;
    const done = first === undefined ? received : first.commitLsn;
    return Number(received - done);
  }

  /** Transactions that a snapshot sees. To be called after `passed` of a marker written after the snapshot was taken. */
  visible(snapshot: Snapshot): BaseTransaction[] {
    return this.#waiting.filter((transaction) => isVisible(snapshot, transaction.xid));
  }

  /** Resolves when the stream has come to this marker: every transaction before it in the WAL is here then. Rejects with StreamLostError. */
  passed(marker: string): Promise<void> {
    if (this.#stopped || this.#stream === null) return Promise.reject(new StreamLostError('the stream of base tables is not open'));
    return new Promise((resolve, reject) => {
      this.#markers.set(marker, { resolve, reject });
      this.#awaken();
      this.#resumeIfFree();
    });
  }

  /**
   * When this transaction, which has asked for a refresh, committed; null: the stream does not come to it within so many ms. Else every
   * transaction that committed before is here.
   */
  async askedAt(xid: number, ms: number): Promise<number | null> {
    const known = this.#requests.get(xid);
    if (known !== undefined || this.#stopped) return known ?? null;
    this.#awaken();
    return await new Promise((resolve) => {
      const waiting = this.#awaited.get(xid) ?? new Set();
      const end = (at: number | null): void => {
        clearTimeout(timer);
        waiting.delete(end);
        if (waiting.size === 0) this.#awaited.delete(xid);
        resolve(at);
      };
      const timer = setTimeout(() => end(null), ms);
      this.#awaited.set(xid, waiting.add(end));
    });
  }

  /** An epoch that took these in has committed. To be followed by `flushed`. Answers the position to give it. */
  taken(transactions: readonly BaseTransaction[]): Lsn {
    const gone = new Set(transactions);
    for (const transaction of transactions) transaction.release();
    this.#waiting = this.#waiting.filter((transaction) => !gone.has(transaction));
    this.#bytes = this.#waiting.reduce((sum, transaction) => sum + transaction.bytes, 0);
    this.#changed = new Map();
    for (const transaction of this.#waiting) this.#count(transaction);
    this.#unflushed++;
    this.#resumeIfFree();
    return this.#waiting[0]?.commitLsn ?? this.#reached;
  }

  /** That epoch is on disk. */
  flushed(lsn: Lsn): void {
    this.#unflushed--;
    this.#acknowledge(lsn);
  }

  requestPosition(): void {
    this.#stream?.requestKeepalive();
  }

  /** Tables were added or left, or their columns changed: relations seen so far are resolved again. */
  retarget(): Promise<void> {
    return this.#resolveAll([...this.#messages.values()]);
  }

  #acknowledgeIdle(): void {
    if (this.#waiting.length > 0 || this.#unflushed > 0 || this.#handler.isOpen()) return;
    this.#acknowledge(this.#reached);
  }

  /** Now and then is enough: it only frees WAL. */
  #acknowledge(lsn: Lsn): void {
    this.#safe = lsn;
    if (this.#acknowledging !== null || this.#stopped) return;
    this.#acknowledging = setTimeout(() => {
      this.#acknowledging = null;
      if (!this.#stopped) this.#stream?.acknowledge(this.#safe);
    }, acknowledgeMs);
  }

  #asked(xid: number, committedAt: number): void {
    const [oldest] = this.#requests.keys();
    if (oldest !== undefined && this.#requests.size >= mostRequests) this.#requests.delete(oldest);
    this.#requests.set(xid, committedAt);
    for (const end of [...(this.#awaited.get(xid) ?? [])]) end(committedAt);
  }

  #relation(message: RelationMessage, xid: number): void {
    this.#messages.set(message.oid, { message, xid });
    void this.#resolveAll([{ message, xid }]);
  }

  #resolveAll(messages: readonly { readonly message: RelationMessage; readonly xid: number }[]): Promise<void> {
    this.#resolving++;
    this.#stream?.pause();
    this.#lookups = this.#lookups.then(async () => {
      try {
        for (const { message, xid } of messages) {
          const target = await this.#hooks.resolve(message, xid);
          if (target === null) this.#targets.delete(message.oid);
          else this.#targets.set(message.oid, target);
        }
      } catch (error) {
        if (!this.#stopped) this.#hooks.failed(error);
        return;
      }
      this.#resolving--;
      this.#resumeIfFree();
    });
    return this.#lookups;
  }

  #count(transaction: BaseTransaction): void {
    for (const { baseId, masks } of transaction.rows) this.#countOf(baseId, masks);
    for (const baseId of transaction.unknown.keys()) this.#countOf(baseId, unknownChange);
  }

  #countOf(baseId: number, masks: MaskCounts): void {
    let changed = this.#changed.get(baseId);
    if (changed === undefined) {
      changed = new Map();
      this.#changed.set(baseId, changed);
    }
    addCounts(changed, masks);
  }

  #pauseForBytes(): void {
    this.#pausedForBytes = true;
    this.#stream?.pause();
  }

  #resumeIfFree(): void {
    if (this.#pausedForBytes && (this.#markers.size > 0 || this.#bytes <= aheadBytes)) this.#pausedForBytes = false;
    if (this.#resolving === 0 && !this.#pausedForBytes) this.#stream?.resume();
  }

  #announce(): void {
    this.#arrived++;
    if (this.#announced) return;
    this.#announced = true;
    setImmediate(() => {
      this.#announced = false;
      this.#hooks.ready();
      const ms = this.#pacing.came(performance.now(), this.#arrived, this.#hooks.patience());
      this.#arrived = 0;
      if (ms > 0 && this.#markers.size === 0) this.#sleep(ms);
    });
  }

  #sleep(ms: number): void {
    if (this.#nap !== null || this.#stopped) return;
    this.#stream?.pauseReading();
    this.#nap = setTimeout(() => this.#awaken(), ms);
  }

  #awaken(): void {
    if (this.#nap === null) return;
    clearTimeout(this.#nap);
    this.#nap = null;
    this.#stream?.resumeReading();
  }

  #lost(error: StreamLostError): void {
    this.#stopped = true;
    for (const waiter of this.#markers.values()) waiter.reject(error);
    this.#markers.clear();
    this.#handler.discard();
  }
}
