/**
 * Copies of origin tables, from their beginning to the storage that is live.
 * Invariant: everything here starts from the catalog alone; a copy whose table has got wider types meanwhile is begun again with those.
 */
import { type Storage, storageTable } from '../catalog/model.ts';
import type { Lsn } from '../replication/lsn.ts';
import { type OriginTable, shapeOf } from '../replication/origin-tables.ts';
import { PostgresError } from '../replication/postgres-error.ts';
import type { ReadCatalog } from './catalog-reader.ts';
import type { EngineContext } from './context.ts';
import { followEnums } from './enum-labels.ts';
import { Epoch } from './epoch.ts';
import { finishResync } from './resync.ts';
import { type BrokenVersion, lostColumns } from './schema-change.ts';
import type { SourceManager } from './source-manager.ts';
import type { SourceRunner } from './source-runner.ts';
import { copyStorage, goLive, restartCopy } from './table-copy.ts';
import { widenedColumns, widenStorage } from './widen.ts';

export class Copies {
  readonly #engine: EngineContext;
  readonly #sources: SourceManager;
  readonly #reload: () => Promise<void>;
  readonly #fail: (broken: readonly BrokenVersion[]) => Promise<void>;
  readonly #copying = new Map<number, AbortController>();

  constructor(
    engine: EngineContext,
    sources: SourceManager,
    reload: () => Promise<void>,
    fail: (broken: readonly BrokenVersion[]) => Promise<void>,
  ) {
    this.#engine = engine;
    this.#sources = sources;
    this.#reload = reload;
    this.#fail = fail;
  }

  /** Something is being done with it. */
  has(storageId: number): boolean {
    return this.#copying.has(storageId);
  }

  /** Copies of tables that nobody wants any more end. */
  abortUnwanted(catalog: ReadCatalog): void {
    for (const [id, controller] of this.#copying) {
      const storage = catalog.storages.get(id);
      if (storage === undefined || !isWanted(catalog, storage)) controller.abort(new Error('the table was dropped'));
    }
  }

  /** Begins the copy of a storage in state 'new'. */
  start(storage: Storage): void {
    const runner = this.#sources.runner(storage.sourceId);
    if (runner === null || this.#copying.has(storage.id)) return;
    if (!isWanted(this.#engine.state, storage)) return;
    const controller = new AbortController();
    this.#copying.set(storage.id, controller);
    const work = async (): Promise<void> => {
      await this.#engine.exclusively(async () => {
        // Of a copy that is begun again because the table has changed, rows may be there.
        await this.#engine.session.query(
          `BEGIN; TRUNCATE ${storageTable(storage.id)}; UPDATE millrace.storage SET state = 'copying' WHERE id = ${storage.id} AND state = 'new'; COMMIT`,
        );
        await this.#reload();
      });
      await runner.retarget();
      const origin = await this.#sources.describe(runner.source, storage.originOid);
      if (origin === null) {
        await this.#leave(storage);
        return;
      }
      const current = await this.#engine.exclusively(() => this.#widened(storage, origin));
      if (current?.state !== 'copying') return;
      await copyStorage(
        this.#engine,
        runner,
        current,
        {
          schema: origin.schema,
          name: origin.name,
          names: copiedNames(current, origin),
          only: origin.relkind === 'r',
          filter: origin.rowFilter,
        },
        controller.signal,
      );
    };
    work()
      .catch((error: unknown) => this.#copyFailed(storage, error, controller.signal.aborted))
      .finally(() => {
        this.#copying.delete(storage.id);
        this.#engine.wake();
      });
  }

  /** The table is gone: a resynchronisation goes on without it, and its versions say so. */
  async #leave({ id, resyncs }: Storage): Promise<void> {
    if (resyncs === null) return;
    await this.#engine.exclusively(async () => {
      await this.#engine.session.query(
        `BEGIN; UPDATE millrace.storage SET state = 'dropped' WHERE id = ${id}; UPDATE millrace.storage SET stale = false WHERE id = ${resyncs}; COMMIT`,
      );
      await this.#reload();
    });
  }

  /** A storage with types as wide as its origin's, by an epoch of its own. To be called exclusively. */
  async #widened(storage: Storage, origin: OriginTable | null): Promise<Storage | undefined> {
    const current = (): Storage | undefined => this.#engine.state.storages.get(storage.id);
    const widened = widenedColumns(current() ?? storage, origin);
    const stored = current();
    if (widened.length === 0 || stored === undefined) return stored;
    const epoch = await Epoch.begin(this.#engine);
    await widenStorage(this.#engine, epoch, stored, widened);
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

  async #copyFailed(storage: Storage, error: unknown, aborted: boolean): Promise<void> {
    const { log } = this.#engine;
    if (aborted) return;
    log.warn({ storage: storage.id, table: `${storage.originSchema}.${storage.originName}`, err: error }, 'a table could not be copied');
    const followed = error instanceof PostgresError && (await followEnums(this.#engine, storage, error));
    const outgrown = error instanceof PostgresError && (await this.#isOutgrown(storage));
    const data = !followed && !outgrown && error instanceof PostgresError && /^(22|23|42)/.test(error.code);
    if (!data && !followed) await new Promise((resolve) => setTimeout(resolve, 500));
    await this.#engine.exclusively(async () => {
      if (!data) {
        // The connection, the origin or the time was the problem: from the start, after a pause.
        await restartCopy(this.#engine, storage);
        return;
      }
      // What a resynchronisation was to mend stays as it is, and is not chosen for new versions.
      const failed = storage.resyncs ?? storage.id;
      await this.#engine.session.query(
        `UPDATE millrace.storage SET state = 'failed', stale = false WHERE id = ${failed}${storage.resyncs === null ? '' : `; UPDATE millrace.storage SET state = 'dropped' WHERE id = ${storage.id}`}`,
      );
      await this.#fail(
        [...this.#engine.state.tables.values()]
          .filter((table) => table.storageId === failed)
          .map((table) => ({
            relationId: table.id,
            error: {
              code: error.code,
              message: `${storage.resyncs === null ? 'initial copy' : 'resynchronisation'} failed: ${error.message}`,
              ...(error.fields.detail === undefined ? {} : { detail: error.fields.detail }),
            },
          })),
      );
    });
  }

  /** Makes a storage in state 'copied' live, once the stream has passed its copy. */
  finish(storage: Storage): void {
    const runner = this.#sources.runner(storage.sourceId);
    if (runner === null || this.#copying.has(storage.id)) return;
    // Its versions move to it as they are: what they show now has to be mended first.
    if (storage.supersedes !== null && this.#engine.state.storages.get(storage.supersedes)?.stale === true) return;
    this.#whileHeld(runner, [storage], async ([current]) => {
      if (current === undefined) return null;
      const shape = await this.#sources.describe(runner.source, current.originOid);
      const wide = await this.#widened(current, shape);
      // Changes from here on are told by comparing with this, where the origin does not tell.
      if (shape !== null) runner.looked(shapeOf(shape));
      return wide === undefined ? null : await goLive(this.#engine, wide, runner, lostColumns(wide, shape));
    });
  }

  /** When all copies of a source are in, what differs is written. */
  finishResyncOf(sourceId: number): void {
    const runner = this.#sources.runner(sourceId);
    const copies = [...this.#engine.state.storages.values()].filter(
      (storage) => storage.sourceId === sourceId && storage.resyncs !== null && storage.state !== 'dropped',
    );
    if (runner === null || copies.length === 0 || !copies.every((copy) => copy.state === 'copied' && !this.#copying.has(copy.id))) return;
    const shapes = new Map<number, OriginTable>();
    const describe = async (): Promise<void> => {
      for (const { originOid } of copies) {
        const shape = await this.#sources.describe(runner.source, originOid);
        if (shape?.published === true) shapes.set(originOid, shape);
      }
    };
    this.#whileHeld(runner, copies, (current) => finishResync(this.#engine, current, runner, shapes), describe);
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
    for (const copy of copies) this.#copying.set(copy.id, new AbortController());
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

/** Names of the columns that can be copied, by attnum: the others are of a type that the storage does not have, and no version that can be read shows them. */
function copiedNames({ columns }: Storage, origin: OriginTable): ReadonlyMap<number, string> {
  const types = new Map(columns.filter(({ lost }) => lost !== true).map((column) => [column.attnum, column]));
  return new Map(
    origin.columns.flatMap(({ attnum, name, formattedType }) => {
      const column = types.get(attnum);
      return column !== undefined && (column.originType === formattedType || column.type === 'text') ? [[attnum, name]] : [];
    }),
  );
}

/** Versions show the storage, or the one it is a copy for. */
function isWanted({ tables }: Pick<ReadCatalog, 'tables'>, storage: Storage): boolean {
  return [...tables.values()].some((table) => table.storageId === (storage.resyncs ?? storage.id));
}
