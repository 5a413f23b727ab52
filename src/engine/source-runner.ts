/**
 * One source: its stream, decoded into batches that end at commits.
 * Invariant: changes are handed over in commit order, each exactly once; nothing is acknowledged to the origin before the epoch that holds it is durable.
 */
import type { Storage } from '../catalog/model.ts';
import { ddlPrefix, type Publication, parseDdlMessage, type Rewriting } from '../replication/ddl-messages.ts';
import type { Lsn } from '../replication/lsn.ts';
import type { TableShape } from '../replication/origin-tables.ts';
import { type ChangeHandler, PgoutputDecoder, type TupleView, unixMs } from '../replication/pgoutput.ts';
import { ConnectionLostError } from '../replication/postgres-error.ts';
import { type ReplicationStream, startStream } from '../replication/stream.ts';
import { type Batch, BatchBuilder, type ShapeStep, type Target } from './change-batch.ts';
import { reach } from './fault-points.ts';
import type { NewShape } from './follow-shape.ts';
import { GivingWay } from './giving-way.ts';
import { leftOutColumns } from './left-out.ts';
import type { Learned, OriginHistory, OriginVersion } from './origin-history.ts';
import { RecentXids } from './recent-xids.ts';
import type { SourceRow } from './source-row.ts';
import { type ResolveRelation, StreamTargets } from './stream-targets.ts';

/** Rows of one open transaction after which it is sent in parts. */
const partRows = 20_000;
/** Bytes decoded ahead of a busy upstream before the origin is made to wait. */
const aheadBytes = 16 * 1024 * 1024;
/** The origin is asked every second how far it is: silence of so long, with other questions not answered either, is a connection that is dead. */
const silenceMs = 5_000;
/** Looks, a second apart, at a slot that nobody streams from. */
const unseenLooks = 3;

export interface RunnerHooks {
  readonly resolve: ResolveRelation;
  /** A batch is waiting (`take`). */
  readonly ready: () => void;
  /** The position moved although no change came. */
  readonly idle: () => void;
  readonly failed: (error: unknown) => void;
  /** A table has changed, in the order of the stream; `shape` null: it was dropped. */
  readonly changed: (oid: number, shape: TableShape | null) => void;
  /** What the new shape of a table asks of its storages. */
  readonly reshaped: (shape: NewShape) => readonly ShapeStep[];
  /** The source's publication has a table no longer, because of what became of the table. Answers what that asks of its storages. */
  readonly unpublished: (oid: number) => readonly ShapeStep[];
  /** What the source's publication publishes from here on; undefined: it is gone. Answers as `unpublished`. */
  readonly published: (publication: Publication | undefined) => readonly ShapeStep[];
  /** A row of a storage came without values of these columns (attnums). Answers those of the columns of which it has still to be written down. */
  readonly leftOut: (storage: Storage, attnums: readonly number[]) => readonly number[];
}

export class SourceRunner {
  readonly source: SourceRow;
  readonly #hooks: RunnerHooks;
  readonly #builder = new BatchBuilder();
  readonly #targets: StreamTargets;
  readonly #recent = new RecentXids();
  readonly #handler: ChangeHandler;
  #stream: ReplicationStream | null = null;
  #sealed: Batch | null = null;
  #wanted = false;
  #inTransaction = false;
  #lastEnd: Lsn;
  /** What a copy of one of its tables leaves to it. */
  readonly givingWay = new GivingWay();
  /** When the first transaction that waits, and the first that was taken, was committed: ms of the origin's clock. */
  #oldest: number | null = null;
  #oldestTaken: number | null = null;
  #applied: Lsn;
  #skipTo: Lsn;
  #skipping = false;
  #pausedForBytes = false;
  #boundaryWaiters: (() => void)[] = [];
  #partial = false;
  /** Batches taken whose epoch has not committed. */
  #outstanding = 0;
  /** Committed upstream, perhaps not on disk yet. */
  #unflushed: Lsn | null = null;
  /** Holds not yet released: several tables may be going live. */
  #held = 0;
  /** Looks in a row by which nobody streamed from the slot. */
  #unseen = 0;
  #stopped = false;
  #announced = false;
  readonly #history: OriginHistory;
  /** Of the transaction that is open: its commit record, and how many versions of tables have begun in it. */
  #commitLsn: Lsn = 0n;
  #ordinal = 0;

  constructor(source: SourceRow, startLsn: Lsn, history: OriginHistory, hooks: RunnerHooks) {
    this.source = source;
    this.#history = history;
    this.#hooks = hooks;
    this.#lastEnd = startLsn;
    this.#applied = startLsn;
    this.#skipTo = startLsn;
    this.#handler = this.#changeHandler();
    this.#targets = new StreamTargets({
      resolve: hooks.resolve,
      place: (message, fresh) => ({
        shape: fresh && !history.tells ? null : history.shapeFor(message),
        last: history.shape(message.oid),
        // Between transactions only our side has changed.
        mayLearn: this.#inTransaction && !this.#skipping,
      }),
      take: (steps) => {
        for (const step of steps) this.#builder.shape(step);
      },
      learn: (shape) => this.#record(history.learn(shape, this.#here(), { from: 'catalog', tag: null, by: null, at: null })),
      settled: () => this.#resumeIfFree(),
      failed: (error) => {
        if (!this.#stopped) hooks.failed(error);
      },
    });
  }

  /** Position up to which everything is in storage. */
  get applied(): Lsn {
    return this.#applied;
  }

  /** The origin tells of its DDL in the stream. */
  get tells(): boolean {
    return this.#history.tells;
  }

  /** What is known of a table as of the stream's position. */
  lastShape(oid: number): TableShape | undefined {
    return this.#history.shape(oid);
  }

  /** Furthest position heard of. */
  get received(): Lsn {
    return this.#stream?.received ?? this.#applied;
  }

  async start(): Promise<void> {
    const { source } = this;
    if (source.address === null) throw new Error(source.addressProblem ?? 'no address');
    const decoder = new PgoutputDecoder(this.#handler);
    await startStream({
      address: source.address,
      slot: source.slot,
      publication: source.publication,
      startLsn: this.#applied,
      onOpen: (stream) => {
        this.#stream = stream;
      },
      onMessage: (walStart, buffer, start, end) => decoder.decode(walStart, buffer, start, end),
      onKeepalive: (walEnd) => this.#keepalive(walEnd),
    });
    this.#stream?.closed.then(
      () => undefined,
      (error: unknown) => {
        if (!this.#stopped) this.#hooks.failed(error);
      },
    );
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    await this.#stream?.close();
    // The end of the transaction that they wait for will not come, not to this runner.
    for (const waiter of this.#boundaryWaiters.splice(0)) waiter();
  }

  /**
   * Storages came, went live or went away: the relations seen so far are resolved again, between two transactions of the stream.
   * Resolves when the next transaction will use the new targets.
   */
  retarget(): Promise<void> {
    return new Promise((resolve) => {
      const again = (): void => {
        // In the same turn of the event loop as the commit: no row of the next transaction may come before.
        void this.#lookUpAgain().then(resolve);
      };
      if (this.#inTransaction) this.#boundaryWaiters.push(again);
      else again();
    });
  }

  /**
   * Stops the stream between two transactions. What was decoded until then is handed over by `take`, to its end.
   * To be followed by `release`.
   */
  hold(): Promise<void> {
    return new Promise((resolve) => {
      const stop = (): void => {
        this.#held++;
        this.#stream?.pause();
        resolve();
      };
      if (this.#inTransaction) this.#boundaryWaiters.push(stop);
      else stop();
    });
  }

  /** Resolves the relations seen so far again and lets the stream go on. */
  async release(): Promise<void> {
    await this.#lookUpAgain();
    this.#held--;
    this.#resumeIfFree();
  }

  /** Whether a transaction of this xid was decoded lately. */
  sawRecently(xid: number): boolean {
    return this.#recent.has(xid);
  }

  /** Reads nothing until `awaken`, so that what comes meanwhile is read at once. */
  doze(): void {
    this.#stream?.pauseReading();
  }

  awaken(): void {
    this.#stream?.resumeReading();
  }

  /** The table as the origin's catalog has it, for an origin that does not tell: a change that no row follows is known by this alone. */
  looked(shape: TableShape): void {
    if (this.#inTransaction || this.#history.tells) return;
    const position = { commitLsn: this.#lastEnd, ordinal: this.#ordinal };
    const before = this.#history.shape(shape.oid);
    const version = this.#history.learn(shape, position, { from: 'catalog', tag: null, by: null, at: null });
    if (version === null) return;
    this.#reshape(shape.oid, this.#hooks.reshaped({ before, after: shape, rewriting: 'unknown', addsEmpty: true }));
    this.#record(version);
    if (this.#wanted) this.#announce();
  }

  /** Whether the origin says that somebody streams from the slot: as nobody else may, that is us. */
  seen(active: boolean): void {
    this.#unseen = active ? 0 : this.#unseen + 1;
    if (this.#unseen >= unseenLooks) this.#stream?.abandon(new ConnectionLostError('the origin has ended its side of the stream'));
  }

  /** The origin has not answered a question that it is asked every second. */
  unanswered(): void {
    const silence = this.#stream?.silence() ?? 0;
    if (silence > silenceMs)
      this.#stream?.abandon(new ConnectionLostError(`nothing heard from the origin for ${Math.round(silence / 1000)} s`));
  }

  /** Asks the origin to say how far it is; the answer moves `applied` when nothing is waiting. */
  requestPosition(): void {
    this.#stream?.requestKeepalive();
  }

  /**
   * The next batch, or null. With `null` the runner remembers that one is wanted and calls `ready` when there is.
   * A batch with endLsn null is followed by the rest of its transaction: the epoch stays open for it.
   */
  take(): Batch | null {
    // The rest of a transaction sent in parts may be nothing but its end, and that is waited for all the same.
    if (this.#sealed === null && !this.#inTransaction && (this.#partial || !this.#builder.empty))
      this.#sealed = this.#builder.seal(this.#lastEnd);
    const batch = this.#sealed;
    this.#sealed = null;
    this.#wanted = batch === null;
    if (batch !== null) {
      this.#oldestTaken ??= this.#oldest;
      this.#oldest = null;
      this.#outstanding++;
      if (batch.endLsn !== null) this.#partial = false;
    }
    if (this.#pausedForBytes) {
      this.#pausedForBytes = false;
      this.#resumeIfFree();
    }
    return batch;
  }

  /** Called after the epoch with everything up to `lsn` has committed; `flushed` follows. */
  committed(lsn: Lsn): void {
    if (lsn > this.#applied) this.#applied = lsn;
    if (this.#oldestTaken !== null) this.givingWay.applied(Date.now() - this.#oldestTaken, performance.now());
    this.#oldestTaken = null;
    this.#outstanding = 0;
    this.#unflushed = lsn;
  }

  /** The epoch that `committed` told of is on disk: the origin may forget it. */
  flushed(lsn: Lsn): void {
    if (this.#unflushed !== null && lsn >= this.#unflushed) this.#unflushed = null;
    this.#stream?.acknowledge(lsn);
  }

  /** A position reached without an epoch is on disk here: the origin may forget what is before it. */
  saved(lsn: Lsn): void {
    if (this.#unflushed === null && lsn <= this.#applied) this.#stream?.acknowledge(lsn);
  }

  /**
   * The origin has sent everything up to walEnd. When nothing waits here that position is reached, without an epoch. It is acknowledged once it
   * has been written down: a slot that is further than what is written here has been moved by someone else.
   */
  #keepalive(walEnd: Lsn): void {
    if (this.#inTransaction || this.#sealed !== null || !this.#builder.empty || this.#partial || this.#outstanding > 0) return;
    if (walEnd <= this.#applied) return;
    this.#lastEnd = walEnd;
    this.#applied = walEnd;
    this.#hooks.idle();
  }

  #changeHandler(): ChangeHandler {
    const each = (oid: number, work: (target: Target) => void): void => {
      if (this.#skipping) return;
      for (const target of this.#targets.of(oid)) work(target);
      this.#afterRow();
    };
    return {
      begin: (finalLsn, time, xid) => {
        this.#inTransaction = true;
        this.#oldest ??= unixMs(time);
        this.#commitLsn = finalLsn;
        this.#ordinal = 0;
        // A restart may send again what is in storage already: the slot trails behind what was recorded.
        this.#skipping = finalLsn < this.#skipTo;
        this.#builder.begin(xid);
        this.#recent.add(xid);
      },
      commit: (_commitLsn, endLsn) => {
        this.#inTransaction = false;
        if (!this.#skipping) {
          this.#builder.commit();
          this.#lastEnd = endLsn;
        }
        this.#skipping = false;
        const waiters = this.#boundaryWaiters;
        this.#boundaryWaiters = [];
        for (const waiter of waiters) waiter();
        if (this.#partial) {
          if (this.#sealed === null) {
            this.#sealed = this.#builder.seal(endLsn);
            this.#wanted = false;
            this.#hooks.ready();
          }
        } else if (this.#builder.empty) {
          this.#oldest = null;
          this.#keepalive(endLsn);
        } else if (this.#wanted) this.#announce();
      },
      origin: () => undefined,
      type: () => undefined,
      message: (transactional, _lsn, prefix, buffer, start, end) => {
        if (transactional && prefix === ddlPrefix && !this.#skipping) this.#ddl(buffer.toString('utf8', start, end));
      },
      relation: (message) => {
        // Where nothing else tells of a change of the table, this does, and the origin is asked. The stream stands still until that has ended.
        this.#stream?.pause();
        this.#targets.relation(message);
      },
      insert: (oid, row) =>
        each(oid, (target) => {
          if (row.leavesOut) this.#leftOut(target, row);
          this.#builder.insert(target, row);
        }),
      update: (oid, oldKind, oldRow, newRow) => each(oid, (target) => this.#builder.update(target, oldRow, oldKind, newRow)),
      delete: (oid, _oldKind, oldRow) => each(oid, (target) => this.#builder.delete(target, oldRow)),
      truncate: (oids) => {
        for (const oid of oids) each(oid, (target) => this.#builder.truncate(target));
      },
    };
  }

  /** A copy can still get the values: it begins again. */
  #leftOut(target: Target, row: TupleView): void {
    const attnums = leftOutColumns(target, row);
    if (attnums.length === 0) return;
    const { id: storageId } = target.storage;
    if (target.spool) {
      this.#builder.shape({ kind: 'copy again', storageId });
      return;
    }
    const missed = this.#hooks.leftOut(target.storage, attnums);
    if (missed.length > 0) this.#builder.missed({ kind: 'missed', storageId, attnums: missed });
  }

  /**
   * Says that there is something to take, once what was read together with this commit is decoded: one epoch for all of it.
   * Should a transaction be open then, `take` finds nothing and its commit says so again; it is either small and nearly here, or soon sent in parts.
   */
  #announce(): void {
    if (this.#announced) return;
    this.#announced = true;
    setImmediate(() => {
      this.#announced = false;
      this.#hooks.ready();
    });
  }

  #afterRow(): void {
    const builder = this.#builder;
    // Adding up bytes for every row would cost more than it is worth; a few large rows are noticed soon enough.
    const large = builder.rows >= partRows || (builder.rows % 32 === 0 && builder.bytes + builder.pendingBytes > aheadBytes);
    if (!large) return;
    if (this.#sealed === null && this.#wanted && this.#inTransaction) {
      this.#sealed = builder.seal(null);
      this.#partial = true;
      this.#wanted = false;
      this.#hooks.ready();
    } else if (!this.#wanted && !this.#pausedForBytes && builder.bytes + builder.pendingBytes > aheadBytes) {
      this.#pausedForBytes = true;
      this.#stream?.pause();
    }
  }

  #ddl(content: string): void {
    const message = parseDdlMessage(content);
    if (message === null) return;
    const learned: Learned = { from: 'message', tag: message.tag, by: message.by, at: message.at };
    switch (message.kind) {
      case 'table':
        this.#told(message.table, message.rewriting, learned, message.tag === 'CREATE TABLE');
        if (!message.published.includes(this.source.publication))
          this.#reshape(message.table.oid, this.#hooks.unpublished(message.table.oid));
        return;
      case 'dropped':
        for (const parent of this.#history.parentsOf(message.dropped.oid)) this.#told(parent, null, learned, false);
        this.#record(this.#history.drop(message.dropped, this.#here(), learned));
        this.#hooks.changed(message.dropped.oid, null);
        return;
      case 'publications':
        for (const step of this.#hooks.published(message.publications[this.source.publication])) this.#builder.shape(step);
        return;
    }
  }

  #told(table: TableShape, rewriting: Rewriting | null, learned: Learned, isNew: boolean): void {
    this.#reshape(table.oid, this.#hooks.reshaped({ before: this.#history.shape(table.oid), after: table, rewriting, addsEmpty: isNew }));
    this.#record(this.#history.learn(table, this.#here(), learned));
    this.#hooks.changed(table.oid, table);
  }

  /** Before the rows that follow. The origin says nothing more of the table where only labels of an enum, or values, have changed. */
  #reshape(oid: number, steps: readonly ShapeStep[]): void {
    for (const step of steps) this.#builder.shape(step);
    const rehashed = steps.flatMap((step) => (step.kind === 'relabel' || step.kind === 'missed' ? [step.storageId] : []));
    if (rehashed.length > 0) this.#targets.rehash(oid, rehashed);
  }

  #here(): { readonly commitLsn: Lsn; readonly ordinal: number } {
    return { commitLsn: this.#commitLsn, ordinal: this.#ordinal };
  }

  #record(version: OriginVersion | null): void {
    if (version === null) return;
    this.#ordinal++;
    reach('ddl.learned');
    this.#builder.version(version);
  }

  /** The stream stands still until it has ended. */
  #lookUpAgain(): Promise<void> {
    this.#stream?.pause();
    return this.#targets.again();
  }

  #resumeIfFree(): void {
    if (!this.#targets.pending && !this.#pausedForBytes && this.#held === 0) this.#stream?.resume();
  }
}
