/**
 * Brings what runs in line with what the catalog says.
 * Invariant: everything here starts from the catalog alone, so it is the same after a crash, in another process, or when two things happen at once.
 */
import {
  type BaseTable,
  definitionView,
  deltaTable,
  gateView,
  type LiveView,
  type RelationError,
  type Storage,
  spoolTable,
  stagingTable,
  storageTable,
} from '../catalog/model.ts';
import { dropCaptureDdl } from '../ivm/capture.ts';
import type { ViewPlan } from '../ivm/plans.ts';
import type { Lsn } from '../replication/lsn.ts';
import type { OriginTable } from '../replication/origin-tables.ts';
import { PostgresError } from '../replication/postgres-error.ts';
import type { BaseCapture } from './base/capture.ts';
import { baseError, baseProblem, sameColumns, usedAttnums } from './base/shapes.ts';
import type { ReadCatalog } from './catalog-reader.ts';
import type { EngineContext } from './context.ts';
import { CopyFailures } from './copy-failures.ts';
import { Epoch } from './epoch.ts';
import { goLive } from './go-live.ts';
import { fillImmediate, rebuildImmediate, wantsRebuild } from './immediate/fill.ts';
import { leftWaiting, openWaiting } from './open-view.ts';
import { suspend } from './refresh-epoch.ts';
import type { RefreshLoop } from './refresh-loop.ts';
import { failRelation, heldView, relationGate } from './relation-errors.ts';
import { finishResync } from './resync.ts';
import { lostColumns } from './schema-change.ts';
import type { SourceManager } from './source-manager.ts';
import type { SourceRunner } from './source-runner.ts';
import { isImmediate } from './streams/due.ts';
import { copyStorage, isResumable, restartCopy } from './table-copy.ts';
import { populateView } from './view-populate.ts';

export class Reconciler {
  readonly #engine: EngineContext;
  readonly #sources: SourceManager;
  readonly #capture: BaseCapture;
  readonly #refreshes: RefreshLoop;
  readonly #reload: () => Promise<void>;
  readonly #copying = new Map<number, AbortController>();
  readonly #failures: CopyFailures;
  readonly #populating = new Set<number>();

  constructor(engine: EngineContext, sources: SourceManager, capture: BaseCapture, refreshes: RefreshLoop, reload: () => Promise<void>) {
    this.#engine = engine;
    this.#failures = new CopyFailures(engine);
    this.#sources = sources;
    this.#capture = capture;
    this.#refreshes = refreshes;
    this.#reload = reload;
  }

  /** After the engine has become leader: whatever a former leader left half done begins again. */
  async recover(): Promise<void> {
    await this.#engine.session.query("UPDATE millrace.relation SET state = 'pending' WHERE kind = 'view' AND state = 'populating'");
    await this.#reload();
  }

  run(catalog: ReadCatalog): void {
    this.#sources.reconcile();
    this.#capture.reconcile(catalog);
    for (const storage of catalog.storages.values()) {
      if (storage.state === 'new' || storage.state === 'copying') this.#startCopy(storage);
      else if (storage.retryInMs !== null && storage.retryInMs <= 0) this.#retryCopy(storage);
      else if (storage.state === 'copied' && storage.resyncs === null) this.#finishCopy(storage);
    }
    for (const source of catalog.sources.values()) this.#finishResync(source.id);
    for (const [id, controller] of this.#copying) {
      const storage = catalog.storages.get(id);
      if (storage === undefined || !isWanted(catalog, storage)) controller.abort(new Error('the table was dropped'));
    }
    for (const view of catalog.views.values()) {
      if (view.state !== 'pending') continue;
      const stream = catalog.streams.get(view.id);
      if (stream !== undefined && !stream.initialize && stream.refreshRequested <= stream.refreshDone) continue;
      const captures = stream === undefined || stream.refreshMode === 'DIFFERENTIAL';
      const ready = view.inputs.every((input) => {
        const base = catalog.bases.get(input);
        const held = heldView(catalog, input);
        if (held !== null && catalog.views.get(held)?.state !== 'ready') return false;
        if (base !== undefined) return !captures || this.#capture.serves(base);
        return (catalog.tables.get(input) ?? catalog.views.get(input))?.state === 'ready';
      });
      if (ready) this.#startPopulating(view.id);
    }
    if (leftWaiting(catalog) !== null) {
      this.#engine
        .exclusively(async () => (await openWaiting(this.#engine)) && this.#engine.wake())
        .catch((error: unknown) => this.#engine.fail(error));
    }
  }

  #startCopy(storage: Storage): void {
    const runner = this.#sources.runner(storage.sourceId);
    if (runner === null || this.#copying.has(storage.id)) return;
    if (!isWanted(this.#engine.state, storage)) return;
    const controller = new AbortController();
    this.#copying.set(storage.id, controller);
    const work = async (): Promise<void> => {
      if (!isResumable(storage)) {
        await this.#engine.exclusively(async () => {
          await restartCopy(this.#engine, storage.id);
          await this.#engine.session.query(`UPDATE millrace.storage SET state = 'copying' WHERE id = ${storage.id} AND state = 'new'`);
          await this.#reload();
        });
        await runner.retarget();
      }
      const source = {
        runner: () => this.#sources.runner(storage.sourceId),
        describe: () => this.#sources.describe(runner.source, storage.originOid),
      };
      await copyStorage(this.#engine, storage, source, controller.signal);
      this.#failures.passed(storage.id);
    };
    work()
      .catch((error: unknown) => this.#failures.failed(storage, error, controller.signal, (broken) => this.fail(broken)))
      .catch((error: unknown) => this.#engine.fail(error))
      .finally(() => {
        this.#copying.delete(storage.id);
        this.#engine.wake();
      });
  }

  /** The pause after a failure is over. */
  #retryCopy(storage: Storage): void {
    if (this.#copying.has(storage.id) || !isWanted(this.#engine.state, storage)) return;
    this.#engine
      .exclusively(() => restartCopy(this.#engine, storage.id))
      .then(
        () => this.#engine.wake(),
        (error: unknown) => this.#engine.fail(error),
      );
  }

  #finishCopy(storage: Storage): void {
    const runner = this.#sources.runner(storage.sourceId);
    if (runner === null || this.#copying.has(storage.id)) return;
    // Its versions move to it as they are: what they show now has to be mended first.
    if (storage.supersedes !== null && this.#engine.state.storages.get(storage.supersedes)?.stale === true) return;
    this.#whileHeld(runner, [storage], async ([current]) => {
      if (current === undefined) return null;
      // The stream is held: the origin is not asked for what need not be known.
      const isKeyed = current.keyAttnums.length > 0;
      const lost = isKeyed ? [] : lostColumns(current, await this.#sources.describe(runner.source, current.originOid));
      return await goLive(this.#engine, current, runner, lost);
    });
  }

  /** When all copies of a source are in, what differs is written. */
  #finishResync(sourceId: number): void {
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

  #startPopulating(viewId: number): void {
    if (this.#populating.has(viewId)) return;
    this.#populating.add(viewId);
    const filled = isImmediate(this.#engine.state, viewId)
      ? fillImmediate(this.#engine, viewId, this.#reload)
      : populateView(this.#engine, { capture: this.#capture, refreshes: this.#refreshes }, viewId, this.#reload);
    filled
      .catch((error: unknown) => this.#engine.fail(error))
      .finally(() => {
        this.#populating.delete(viewId);
        this.#engine.wake();
      });
  }

  async #suspend(viewId: number, error: RelationError): Promise<void> {
    const epoch = await Epoch.begin(this.#engine);
    await suspend(this.#engine, epoch, viewId, error);
    await epoch.commit(new Map());
    await this.#reload();
  }

  /**
   * Stream tables in error that were told to go on, or that depended on one that has recovered: populated anew.
   * Where the cause is still there they are suspended for it again.
   */
  async #resume(catalog: ReadCatalog): Promise<boolean> {
    let resumed = false;
    for (const view of catalog.views.values()) {
      const stream = catalog.streams.get(view.id);
      if (view.state !== 'error' || stream === undefined) continue;
      const asked = stream.status === 'ERROR' && stream.refreshRequested > stream.refreshDone;
      if (!asked && stream.status !== 'ACTIVE' && stream.status !== 'INITIALIZING') continue;
      const inputsReady = view.inputs.every((input) => {
        // A user's table is what it is; one that holds a stream table's rows is as good as that.
        const held = heldView(catalog, input);
        if (held === null && catalog.bases.has(input)) return true;
        const read = held ?? input;
        return (catalog.tables.get(read) ?? catalog.views.get(read))?.state === 'ready';
      });
      if (!inputsReady) continue;
      resumed = true;
      const bases = view.inputs.flatMap((input) => catalog.bases.get(input) ?? []);
      const problem = bases.map((base) => problemNow(base, view)).find((found) => found !== null);
      if (problem !== undefined) {
        await this.#suspend(view.id, baseError(problem, `${stream.schema}.${stream.name}`));
        continue;
      }
      const epoch = await Epoch.begin(this.#engine);
      await epoch.run([
        relationGate(this.#engine.state, view.id, 'pending'),
        `UPDATE millrace.relation SET state = 'pending', error = NULL, state_since = now() WHERE id = ${view.id} AND state = 'error'`,
        `UPDATE millrace.stream_table SET status = 'INITIALIZING' WHERE relation_id = ${view.id} AND status = 'ERROR'`,
        `UPDATE millrace.base_table SET state = 'new', error = NULL
          WHERE state = 'failed' AND relation_id IN (SELECT i.input_id FROM millrace.live_view_input i WHERE i.relation_id = ${view.id})`,
      ]);
      await epoch.commit(new Map());
    }
    return resumed;
  }

  /** Deferred views whose base tables lost what they use. A change that harms nobody is noted by the next epoch that reads the table. */
  async #followBases(catalog: ReadCatalog): Promise<boolean> {
    let suspended = false;
    for (const base of catalog.bases.values()) {
      if (base.name !== null && sameColumns(base.columns, base.columnsNow)) continue;
      for (const view of catalog.views.values()) {
        if (!view.inputs.includes(base.id) || view.state === 'error') continue;
        const problem = problemNow(base, view);
        if (problem === null) continue;
        const stream = catalog.streams.get(view.id);
        this.#engine.log.error({ view: view.id, name: stream?.name, problem }, 'a stream table is suspended');
        await this.#suspend(view.id, baseError(problem, `${stream?.schema}.${stream?.name}`));
        suspended = true;
      }
    }
    return suspended;
  }

  /** Stream tables that triggers keep: those to be computed anew, and triggers of those that cannot be kept. */
  async #keepImmediate(catalog: ReadCatalog): Promise<void> {
    for (const view of catalog.views.values()) {
      const stream = catalog.streams.get(view.id);
      if (stream?.refreshMode !== 'IMMEDIATE') continue;
      const reason = wantsRebuild(view, stream, Date.now());
      if (reason !== null) await rebuildImmediate(this.#engine, view.id, reason);
      if (view.state === 'error' && stream.triggered) {
        await this.#transaction([`SELECT millrace.immediate_remove(${view.id})`], `triggers of stream table ${view.id}`);
      }
    }
  }

  /** Relations that can no longer be kept, in a transaction of their own. To be called exclusively. */
  async fail(broken: readonly { readonly relationId: number; readonly error: Parameters<typeof failRelation>[2] }[]): Promise<void> {
    const statements = broken.flatMap(({ relationId, error }) => failRelation(this.#engine.state, relationId, error));
    if (statements.length === 0) return;
    const epoch = await Epoch.begin(this.#engine);
    await epoch.run(["SET LOCAL lock_timeout = '5s'", ...statements, 'SET LOCAL lock_timeout = 0']);
    await epoch.commit(new Map());
    await this.#reload();
  }

  /** Clears away what was dropped. To be called exclusively. */
  async clear(catalog: ReadCatalog): Promise<void> {
    const { log } = this.#engine;
    let cleared = false;
    await this.#transaction(['SELECT millrace.follow_owners()'], 'grants of gates');
    for (const relation of catalog.gone) {
      const statements = [
        // Triggers first: a write meanwhile would find no storage.
        ...(relation.kind === 'view' ? [`SELECT millrace.immediate_remove(${relation.id})`] : []),
        `DROP VIEW IF EXISTS ${definitionView(relation.id)}`,
        `DROP VIEW IF EXISTS ${gateView(relation.id)}`,
        ...(relation.kind === 'view' ? [`DROP TABLE IF EXISTS ${storageTable(relation.id)} CASCADE`, ...dropCaptureDdl(relation.id)] : []),
        `DO $$ DECLARE t regclass; BEGIN FOR t IN SELECT c.oid FROM pg_class c WHERE c.relnamespace = 'millrace_data'::regnamespace AND c.relkind = 'r' AND c.relname ~ '^[wsd]${relation.id}_' LOOP EXECUTE format('DROP TABLE %s CASCADE', t); END LOOP; END $$`,
        `DO $$ DECLARE f regprocedure; BEGIN FOR f IN SELECT p.oid FROM pg_proc p WHERE p.pronamespace = 'millrace_data'::regnamespace AND p.proname ~ '^capture_s${relation.id}_' LOOP EXECUTE format('DROP FUNCTION %s', f); END LOOP; END $$`,
        `DELETE FROM millrace.live_view_input WHERE relation_id = ${relation.id}`,
        `DELETE FROM millrace.relation WHERE id = ${relation.id} AND NOT EXISTS (SELECT FROM millrace.live_view_input i WHERE i.input_id = ${relation.id})`,
      ];
      cleared = (await this.#transaction(statements, `relation ${relation.id}`)) || cleared;
    }
    for (const base of catalog.bases.values()) {
      const { error } = base;
      if (base.state !== 'failed' || error === null) continue;
      for (const view of catalog.views.values()) {
        if (!view.inputs.includes(base.id) || view.state === 'error' || catalog.streams.get(view.id)?.refreshMode === 'FULL') continue;
        await this.#suspend(view.id, error);
        cleared = true;
      }
    }
    cleared = (await this.#followBases(catalog)) || cleared;
    cleared = (await this.#resume(catalog)) || cleared;
    await this.#keepImmediate(catalog);
    for (const viewId of catalog.undefinedViews) {
      const stream = catalog.streams.get(viewId);
      if (stream !== undefined) {
        // A column or table that it names is known by now to be the cause, if it is.
        if (this.#engine.state.views.get(viewId)?.state === 'error') continue;
        await this.#suspend(viewId, baseError('something it reads was dropped with CASCADE', `${stream.schema}.${stream.name}`));
        cleared = true;
        continue;
      }
      await this.fail([
        {
          relationId: viewId,
          error: {
            code: '55000',
            message: 'materialized view has lost its definition: something it reads was dropped with CASCADE',
            hint: 'DROP MATERIALIZED VIEW {relation}; and create it again.',
          },
        },
      ]);
    }
    const used = new Set([...catalog.tables.values()].map((table) => table.storageId));
    const waiting = new Set(
      [...catalog.storages.values()].filter((storage) => storage.state !== 'live').map((storage) => storage.supersedes),
    );
    const removed = new Set<number>();
    for (const storage of catalog.storages.values()) {
      if (
        used.has(storage.id) ||
        (storage.resyncs !== null && storage.state !== 'dropped' && used.has(storage.resyncs)) ||
        waiting.has(storage.id) ||
        this.#copying.has(storage.id)
      )
        continue;
      const done = await this.#transaction(
        [
          // A CREATE TABLE under way may just be choosing this storage: its foreign key lock makes this wait, and then fail.
          `DELETE FROM millrace.storage WHERE id = ${storage.id}`,
          `DROP TABLE IF EXISTS ${storageTable(storage.id)} CASCADE`,
          `DROP TABLE IF EXISTS ${stagingTable(storage.id)}, ${spoolTable(storage.id)}`,
          `DROP TABLE IF EXISTS ${deltaTable(storage.id)}`,
          ...dropCaptureDdl(storage.id),
        ],
        `storage ${storage.id}`,
      );
      if (done) removed.add(storage.id);
      cleared ||= done;
    }
    for (const source of catalog.goneSources) {
      try {
        await this.#sources.dropSlotOf(source);
      } catch (error) {
        log.warn(
          { source: source.id, slot: source.slot, err: error },
          'the slot of a dropped source could not be dropped; drop it on the origin',
        );
      }
      if ([...catalog.storages.values()].some((storage) => storage.sourceId === source.id && !removed.has(storage.id))) continue;
      await this.#transaction(
        [`DROP VIEW IF EXISTS ${gateView(source.id)}`, `DELETE FROM millrace.source WHERE id = ${source.id}`],
        `source ${source.id}`,
      );
    }
    if (cleared) await this.#reload();
  }

  /** True when it was done; false when something holds a lock, and it is tried again later. */
  async #transaction(statements: readonly string[], what: string): Promise<boolean> {
    const { session, log } = this.#engine;
    try {
      await session.query(`BEGIN; SET LOCAL lock_timeout = '200ms'; ${statements.join('; ')}; COMMIT`);
      return true;
    } catch (error) {
      await session.query('ROLLBACK').catch(() => undefined);
      if (!(error instanceof PostgresError)) throw error;
      log.debug({ what, err: error }, 'not cleared away yet');
      return false;
    }
  }
}

/** Versions show the storage, or the one it is a copy for. */
function isWanted({ tables }: Pick<ReadCatalog, 'tables'>, storage: Storage): boolean {
  return [...tables.values()].some((table) => table.storageId === (storage.resyncs ?? storage.id));
}

/** Why a view over this table, as it is now, cannot be kept; null: it can. */
function problemNow(base: BaseTable, view: LiveView<ViewPlan>): string | null {
  return baseProblem(base, { id: base.id, name: base.name, columns: base.columnsNow, parts: null }, usedAttnums(view.plan, base.id));
}
