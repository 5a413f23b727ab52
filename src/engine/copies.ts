/**
 * Copies of origin tables, from their beginning to the storage that is live.
 * Invariant: everything here starts from the catalog alone. A copy that was cut short goes on where it was; one whose table has got wider types
 * meanwhile is begun again with those.
 */
import type { Storage } from '../catalog/model.ts';
import type { Lsn } from '../replication/lsn.ts';
import { type OriginTable, shapeOf } from '../replication/origin-tables.ts';
import { quoteLiteral } from '../sql/quote.ts';
import type { ReadCatalog } from './catalog-reader.ts';
import { analyzeBrought, extendable, firstPieceRows, joinStream, mergePiece, nextPieceRows, showMerged } from './column-backfill.ts';
import type { EngineContext } from './context.ts';
import { CopyFailures } from './copy-failures.ts';
import { Epoch } from './epoch.ts';
import { reach } from './fault-points.ts';
import { goLive } from './go-live.ts';
import { fitsKey } from './key-change.ts';
import { withoutValues } from './left-out.ts';
import type { Broken } from './missed-rows.ts';
import { finishResync } from './resync.ts';
import { comparedColumns, findDifference } from './resync-difference.ts';
import { lostColumns } from './schema-change.ts';
import type { SourceManager } from './source-manager.ts';
import type { SourceRunner } from './source-runner.ts';
import { copyStorage, isResumable, restartCopy } from './table-copy.ts';
import { unpublishedColumns, unpublishedError } from './unfed.ts';
import { unsent } from './unpublished.ts';
import { columnsSql, widenedColumns, widenStorage } from './widen.ts';

/** After an attempt that somebody's long transaction was in the way of. */
const joinPauseMs = 2000;

interface Work {
  readonly controller: AbortController;
  /** Its storage is in state 'copying', or was. */
  isUnderWay: boolean;
}

export class Copies {
  readonly #engine: EngineContext;
  readonly #sources: SourceManager;
  readonly #reload: () => Promise<void>;
  readonly #failures: CopyFailures;
  readonly #fail: (broken: readonly Broken[]) => Promise<void>;
  readonly #copying = new Map<number, Work>();
  /** Copies that have been compared with the storage that they are made for: what that holds for; '': nothing. */
  readonly #compared = new Map<number, string>();
  /** Extensions that could not join the stream, by when it is tried again. */
  readonly #inTheWay = new Map<number, number>();

  constructor(
    engine: EngineContext,
    sources: SourceManager,
    reload: () => Promise<void>,
    fail: (broken: readonly Broken[]) => Promise<void>,
  ) {
    this.#engine = engine;
    this.#sources = sources;
    this.#reload = reload;
    this.#fail = fail;
    this.#failures = new CopyFailures(engine, { fail, isOutgrown: (storage) => this.#isOutgrown(storage) });
  }

  /** Something is being done with it. */
  has(storageId: number): boolean {
    return this.#copying.has(storageId);
  }

  /** Copies that nobody wants any more end: of tables that were dropped, and those that are to begin again. */
  abortUnwanted(catalog: ReadCatalog): void {
    for (const [id, { controller, isUnderWay }] of this.#copying) {
      const storage = this.#engine.state.storages.get(id);
      if (storage === undefined || !isWanted(catalog, storage)) controller.abort(new Error('the table was dropped'));
      else if (isUnderWay && storage.state === 'new') controller.abort(new Error('the table has changed'));
    }
  }

  /** Begins the copy of a storage in state 'new', or goes on with one in state 'copying'. */
  start(storage: Storage): void {
    const runner = this.#sources.runner(storage.sourceId);
    if (runner === null || this.#copying.has(storage.id) || waitsForResync(storage)) return;
    if (!isWanted(this.#engine.state, storage)) return;
    const work: Work = { controller: new AbortController(), isUnderWay: false };
    this.#copying.set(storage.id, work);
    this.#compared.delete(storage.id);
    const { signal } = work.controller;
    this.#copy(storage, runner, work)
      .then(() => this.#failures.passed(storage.id))
      .catch((error: unknown) => this.#failures.failed(storage, error, signal))
      .catch((error: unknown) => this.#engine.fail(error))
      .finally(() => {
        this.#copying.delete(storage.id);
        this.#engine.wake();
      });
  }

  async #copy(storage: Storage, runner: SourceRunner, work: Work): Promise<void> {
    const describe = (): Promise<OriginTable | null> => this.#sources.describe(runner.source, storage.originOid);
    // What is in of a copy that was cut short is of no use once the table has wider types.
    const goesOn = isResumable(storage) && widenedColumns(storage, await describe()).length === 0;
    await this.#engine.exclusively(async () => {
      if (!goesOn) {
        const state = this.#engine.state.storages.get(storage.id)?.state;
        if (state !== 'new' && state !== 'copying') return;
        await restartCopy(this.#engine, storage.id);
        await this.#engine.session.query(`UPDATE millrace.storage SET state = 'copying' WHERE id = ${storage.id} AND state = 'new'`);
        await this.#reload();
      }
      work.isUnderWay = true;
    });
    if (!goesOn) await runner.retarget();
    const origin = await describe();
    if (origin === null && storage.resyncs !== null) {
      await this.#leave(storage.id);
      return;
    }
    const current = await this.#engine.exclusively(() => this.#fitted(storage, origin));
    if (current?.state !== 'copying' || waitsForResync(current)) return;
    const source = { runner: () => this.#sources.runner(storage.sourceId), describe };
    await copyStorage(this.#engine, current, source, work.controller.signal);
  }

  /** The pause after a failure is over. */
  retry(storage: Storage): void {
    if (this.#copying.has(storage.id) || !isWanted(this.#engine.state, storage)) return;
    this.#engine
      .exclusively(() => restartCopy(this.#engine, storage.id))
      .then(
        () => this.#engine.wake(),
        (error: unknown) => this.#engine.fail(error),
      );
  }

  /**
   * The table is gone: a resynchronisation goes on without it, and its versions say so. The storage, which has the rows of an earlier table,
   * goes on without those that the stream may still have of this one.
   */
  async #leave(copy: number): Promise<void> {
    await this.#engine.exclusively(async () => {
      await this.#engine.session.query(`UPDATE millrace.storage SET state = 'dropped' WHERE id = ${copy}`);
      await this.#reload();
    });
  }

  /**
   * A storage, without rows, with types as wide as its origin's, by an epoch of its own, in which it is also written down what it is copied by (sentAs)
   * and what the stream does not bring: of a table, or columns, that are not published now. To be called exclusively.
   */
  async #fitted(storage: Storage, origin: OriginTable | null): Promise<Storage | undefined> {
    const current = (): Storage | undefined => this.#engine.state.storages.get(storage.id);
    const stored = current();
    if (stored?.state !== 'copying') return stored;
    const source = this.#engine.state.sources.get(storage.sourceId);
    const widened = widenedColumns(stored, origin);
    const columns = origin === null ? [] : unpublishedColumns(stored, origin);
    const sentAs = origin?.sentAs ?? stored.sentAs;
    const missed = source === undefined || origin === null ? null : unsent({ ...stored, sentAs }, origin, source);
    const isFitted = widened.length === 0 && columns.length === 0 && missed === null && sentAs === stored.sentAs;
    if (source === undefined || isFitted) return stored;
    const epoch = await Epoch.begin(this.#engine);
    const wide = await widenStorage(this.#engine, epoch, stored, widened);
    await epoch.run([`UPDATE millrace.storage SET sent_as = ${quoteLiteral(sentAs)} WHERE id = ${stored.id}`]);
    const [first] = columns;
    // It may be back before anybody looks again: what is taken out from here on is told, or seen.
    if (missed !== null) await epoch.failAll(missed);
    else if (origin !== null && first !== undefined) {
      // Nothing is merged from an extension that lacks values.
      if (storage.extends === null) await epoch.run([columnsSql(withoutValues(wide, columns))]);
      else await epoch.failAll({ storageId: storage.id, error: unpublishedError(stored, first, origin, source.name) });
    }
    await epoch.commit(new Map());
    await this.#reload();
    return current();
  }

  /** The origin's table has got wider types since the copy began. */
  async #isOutgrown(storage: Storage): Promise<boolean> {
    const source = this.#sources.runner(storage.sourceId)?.source;
    if (source === undefined) return false;
    const origin = await this.#sources.describe(source, storage.originOid).catch(() => null);
    return widenedColumns(this.#engine.state.storages.get(storage.id) ?? storage, origin).length > 0;
  }

  /** Makes a storage in state 'copied' live, once the stream has passed its copy. */
  finish(storage: Storage): void {
    const runner = this.#sources.runner(storage.sourceId);
    if (runner === null || this.#copying.has(storage.id) || waitsForResync(storage)) return;
    // Its versions move to it as they are: what they show now has to be mended first.
    if (storage.supersedes !== null && this.#engine.state.storages.get(storage.supersedes)?.stale === true) return;
    if (
      storage.extends !== null &&
      (extendable(this.#engine.state, storage) === null || Date.now() < (this.#inTheWay.get(storage.id) ?? 0))
    )
      return;
    this.#whileHeld(runner, [storage], async ([current]) => {
      if (current === undefined) return null;
      // The stream is held: the origin is not asked for what need not be known.
      const asks = current.keyAttnums.length === 0 || !runner.tells;
      const shape = asks ? await this.#sources.describe(runner.source, current.originOid) : null;
      if (await this.#begunAgain([current], () => shape)) return null;
      const missed = shape === null ? null : unsent(current, shape, runner.source);
      if (missed !== null) {
        await this.#fail([missed]);
        return null;
      }
      // Changes from here on are told by comparing with this, where the origin does not tell.
      if (shape !== null) runner.looked(shapeOf(shape));
      if (current.extends !== null) {
        const { reached, joined } = await joinStream(this.#engine, current, runner);
        if (joined) this.#inTheWay.delete(current.id);
        else this.#inTheWay.set(current.id, Date.now() + joinPauseMs);
        return reached;
      }
      return await goLive(this.#engine, current, runner, lostColumns(current, shape));
    });
  }

  /** Gives the storage that a live one extends its columns, from where it was, piece by piece between epochs; then versions show them. */
  merge(storage: Storage): void {
    if (this.#copying.has(storage.id) || !isWanted(this.#engine.state, storage) || extendable(this.#engine.state, storage) === null) return;
    const work: Work = { controller: new AbortController(), isUnderWay: true };
    this.#copying.set(storage.id, work);
    this.#merge(storage, work.controller.signal)
      .catch((error: unknown) => this.#engine.fail(error))
      .finally(() => {
        this.#copying.delete(storage.id);
        this.#engine.wake();
      });
  }

  async #merge(storage: Storage, signal: AbortSignal): Promise<void> {
    const { id, sourceId } = storage;
    let after = storage.mergedTo;
    let rows = firstPieceRows;
    while (!signal.aborted) {
      const piece = await this.#engine.exclusively(async () => {
        const begun = performance.now();
        const done = await mergePiece(this.#engine, id, after, rows);
        rows = nextPieceRows(rows, performance.now() - begun);
        return done;
      });
      after = piece.mergedTo;
      if (piece.next === 'more') continue;
      if (piece.next === 'all merged') {
        await analyzeBrought(this.#engine, storage);
        await this.#engine.exclusively(async () => {
          await showMerged(this.#engine, id);
          await this.#reload();
        });
        // The stream has no more to do with the extension.
        await this.#sources.runner(sourceId)?.retarget();
      }
      return;
    }
  }

  /**
   * Copies that were taken while their table got wider types are made again, as they may have been cut to the old ones, and those whose table was not
   * published for a while and is now. True when there was one.
   */
  async #begunAgain(copies: readonly Storage[], shape: (copy: Storage) => OriginTable | null): Promise<boolean> {
    const again = copies.filter((copy) => {
      const now = shape(copy);
      return widenedColumns(copy, now).length > 0 || (copy.missed !== null && now !== null);
    });
    for (const { id } of again) await restartCopy(this.#engine, id);
    return again.length > 0;
  }

  /** Finds what a copy that is in has otherwise than the storage that it is made for. */
  compare(copy: Storage): void {
    const storage = this.#engine.state.storages.get(copy.resyncs ?? 0);
    if (storage === undefined || this.#copying.has(copy.id) || this.#compared.has(copy.id)) return;
    this.#copying.set(copy.id, { controller: new AbortController(), isUnderWay: false });
    findDifference(this.#engine, copy, storage)
      .then(
        (isFound) => {
          reach('resync.compared');
          this.#compared.set(copy.id, isFound ? comparedColumns(copy, storage) : '');
        },
        (error: unknown) => {
          // The epoch that ends it compares all rows then.
          this.#engine.log.warn({ storage: storage.id, err: error }, 'a copy could not be compared beside the epochs');
          this.#compared.set(copy.id, '');
        },
      )
      .finally(() => {
        this.#copying.delete(copy.id);
        this.#engine.wake();
      });
  }

  /** When all copies of a source are in, what differs is written. */
  finishResyncOf(sourceId: number): void {
    const runner = this.#sources.runner(sourceId);
    const copies = [...this.#engine.state.storages.values()].filter(
      (storage) => storage.sourceId === sourceId && storage.resyncs !== null && storage.state !== 'dropped',
    );
    const isReady = ({ id, state }: Storage): boolean => state === 'copied' && this.#compared.has(id) && !this.#copying.has(id);
    if (runner === null || copies.length === 0 || !copies.every(isReady)) return;
    const shapes = new Map<number, OriginTable>();
    const describe = async (): Promise<void> => {
      for (const copy of copies) {
        const shape = await this.#sources.describe(runner.source, copy.originOid);
        if (shape?.published === true && fitsKey(copy, shape)) shapes.set(copy.originOid, shape);
      }
    };
    const finish = async (current: readonly Storage[]): Promise<Lsn | null> => {
      if (await this.#begunAgain(current, ({ originOid }) => shapes.get(originOid) ?? null)) return null;
      const reached = await finishResync(this.#engine, current, runner, { shapes, compared: this.#compared });
      for (const { id } of current) this.#compared.delete(id);
      return reached;
    };
    this.#whileHeld(runner, copies, finish, describe);
  }

  /**
   * Finishes copies that are in, once the stream has passed them. It stands still between two transactions meanwhile, so that what it has decoded
   * goes to the spools and what comes next to the storages. `finish` answers the position reached; it is not called when the stream or a copy has
   * become another by then. `before`: what can be asked while the stream still runs.
   */
  #whileHeld(
    runner: SourceRunner,
    copies: readonly Storage[],
    finish: (current: readonly Storage[]) => Promise<Lsn | null>,
    before: () => Promise<void> = async () => undefined,
  ): void {
    if (copies.some((copy) => copy.copyLsn !== null && runner.applied < copy.copyLsn)) {
      runner.requestPosition();
      return;
    }
    for (const copy of copies) this.#copying.set(copy.id, { controller: new AbortController(), isUnderWay: false });
    const work = async (): Promise<void> => {
      await before();
      await runner.hold();
      try {
        await this.#engine.exclusively(async () => {
          const current = copies.flatMap(({ id }) => this.#engine.state.storages.get(id) ?? []);
          const areIn = current.length === copies.length && current.every(({ state }) => state === 'copied');
          if (!areIn || this.#sources.runner(runner.source.id) !== runner) return;
          const reached = await finish(current);
          if (reached !== null) this.#engine.reached(runner, reached);
          await this.#reload();
        });
      } finally {
        await runner.release();
      }
    };
    work()
      .catch((error: unknown) => this.#engine.fail(error))
      .finally(() => {
        for (const copy of copies) this.#copying.delete(copy.id);
        this.#engine.wake();
      });
  }
}

/** It lacks rows that came while the table was not published: a RESYNC begins it again. */
const waitsForResync = ({ missed, resyncs }: Storage): boolean => missed !== null && resyncs === null;

/** Versions show the storage, or the one it is a copy for. */
function isWanted({ tables }: Pick<ReadCatalog, 'tables'>, storage: Storage): boolean {
  return [...tables.values()].some((table) => table.storageId === (storage.resyncs ?? storage.id));
}
