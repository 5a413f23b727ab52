/**
 * Brings what runs in line with what the catalog says.
 * Invariant: everything here starts from the catalog alone, so it is the same after a crash, in another process, or when two things happen at once.
 */
import { clockId } from '../ivm/clock-relation.ts';
import type { BaseCapture } from './base/capture.ts';
import type { ReadCatalog } from './catalog-reader.ts';
import { clearRelations, clearStorages, endUndefined, suspendUncaptured } from './clear-away.ts';
import type { EngineContext } from './context.ts';
import { Copies } from './copies.ts';
import { Epoch } from './epoch.ts';
import { hasLate, openLate } from './go-live.ts';
import { fillImmediate } from './immediate/fill.ts';
import { shownIncomplete } from './left-out.ts';
import { type Broken, brokenSql, madeMeanwhile } from './missed-rows.ts';
import { leftWaiting, openWaiting } from './open-view.ts';
import type { RefreshLoop } from './refresh-loop.ts';
import { heldView } from './relation-errors.ts';
import type { SourceManager } from './source-manager.ts';
import { isImmediate } from './streams/due.ts';
import { followBases, keepImmediate, resumeStreams } from './streams/recovery.ts';
import { populateView } from './view-populate.ts';

export class Reconciler {
  readonly #engine: EngineContext;
  readonly #sources: SourceManager;
  readonly #capture: BaseCapture;
  readonly #refreshes: RefreshLoop;
  readonly #reload: () => Promise<void>;
  readonly #copies: Copies;
  readonly #populating = new Set<number>();

  constructor(engine: EngineContext, sources: SourceManager, capture: BaseCapture, refreshes: RefreshLoop, reload: () => Promise<void>) {
    this.#engine = engine;
    this.#sources = sources;
    this.#capture = capture;
    this.#refreshes = refreshes;
    this.#reload = reload;
    this.#copies = new Copies(engine, sources, reload, (broken) => this.fail(broken));
  }

  /** After the engine has become leader: views that a former leader was filling begin again. Copies go on where they are. */
  async recover(): Promise<void> {
    await this.#engine.session.query("UPDATE millrace.relation SET state = 'pending' WHERE kind = 'view' AND state = 'populating'");
    await this.#reload();
  }

  run(catalog: ReadCatalog): void {
    this.#sources.reconcile();
    this.#capture.reconcile(catalog);
    for (const storage of catalog.storages.values()) {
      if (storage.state === 'new' || storage.state === 'copying') this.#copies.start(storage);
      else if (storage.retryInMs !== null && storage.retryInMs <= 0) this.#copies.retry(storage);
      else if (storage.state === 'copied' && storage.resyncs === null) this.#copies.finish(storage);
      else if (storage.state === 'copied') this.#copies.compare(storage);
      else if (storage.state === 'live' && storage.extends !== null) this.#copies.merge(storage);
    }
    for (const source of catalog.sources.values()) this.#copies.finishResyncOf(source.id);
    this.#copies.abortUnwanted(catalog);
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
        if (input === clockId) return true;
        return (catalog.tables.get(input) ?? catalog.views.get(input))?.state === 'ready';
      });
      if (ready) this.#startPopulating(view.id);
    }
    if (hasLate(catalog)) {
      this.#engine
        .exclusively(async () => {
          await openLate(this.#engine);
          await this.#reload();
        })
        .catch((error: unknown) => this.#engine.fail(error));
    }
    if (leftWaiting(catalog) !== null) {
      this.#engine
        .exclusively(async () => (await openWaiting(this.#engine)) && this.#engine.wake())
        .catch((error: unknown) => this.#engine.fail(error));
    }
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

  /** Relations that can no longer be kept, in a transaction of their own. To be called exclusively. */
  async fail(broken: readonly Broken[]): Promise<void> {
    const statements = broken.flatMap((one) => brokenSql(this.#engine.state, one));
    if (statements.length === 0) return;
    const epoch = await Epoch.begin(this.#engine);
    await epoch.run(["SET LOCAL lock_timeout = '5s'", ...statements, 'SET LOCAL lock_timeout = 0']);
    await epoch.commit(new Map());
    await this.#reload();
  }

  /** Clears away what was dropped, and sees to what can no longer be kept, or can be again. To be called exclusively. */
  async clear(catalog: ReadCatalog): Promise<void> {
    const done = [
      await clearRelations(this.#engine, catalog),
      await suspendUncaptured(this.#engine, catalog, this.#reload),
      await followBases(this.#engine, catalog, this.#reload),
      await resumeStreams(this.#engine, catalog, this.#reload),
    ];
    await keepImmediate(this.#engine, catalog, this.#reload);
    done.push(await endUndefined(this.#engine, catalog, this.#reload, (broken) => this.fail(broken)));
    done.push(await clearStorages(this.#engine, catalog, this.#copies, this.#sources));
    if (done.includes(true)) await this.#reload();
    const incomplete = [...madeMeanwhile(this.#engine.state), ...shownIncomplete(this.#engine)];
    if (incomplete.length > 0) await this.fail(incomplete);
  }
}
