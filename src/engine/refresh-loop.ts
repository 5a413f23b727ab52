/**
 * When refresh epochs are run.
 * Invariant: nothing here polls: an epoch is run because something is due, or because transactions have waited long enough; with neither, it sleeps
 * until the next schedule. Transactions that have come are not held for ever: the slot would keep the WAL since.
 */
import { type BaseTable, pendingDeltaTable } from '../catalog/model.ts';
import { quoteLiteral } from '../sql/quote.ts';
import type { BaseCapture } from './base/capture.ts';
import type { BaseRunner } from './base/runner.ts';
import type { EngineContext } from './context.ts';
import { emptyTable } from './delta-tables.ts';
import { Epoch } from './epoch.ts';
import { type RefreshRequest, type RefreshResult, refreshEpoch } from './refresh-epoch.ts';
import { type Due, dueViews, isImmediate } from './streams/due.ts';
import { StreamMemory } from './streams/memory.ts';

/** How long transactions may wait for a view to become due, and how many bytes of them. */
const longestWaitMs = 10_000;
const mostBytes = 8 * 1024 * 1024;
/**
 * With nothing to do, how often an epoch is run all the same, so that the snapshot it records stays near: transactions are compared with it
 * by their numbers, which come round after two thousand million.
 */
const longestIdleMs = 3_600_000;
/** Pauses between attempts while a transaction is in the WAL and not yet visible, or a table is locked. */
const shortestPauseMs = 1;
const longestPauseMs = 250;

/** Bytes of changes set aside for one view, beyond which it is cheaper to compute it again. */
const mostAsideBytes = 1024 ** 3;

export class RefreshLoop {
  readonly memory = new StreamMemory();
  readonly #engine: EngineContext;
  readonly #capture: BaseCapture;
  #notBefore = 0;
  /** When changes of base tables were last taken in. */
  #lastEpochAt = 0;
  #pauseMs = shortestPauseMs;
  /** Views over a table that could not be locked, and until when they are left alone. */
  readonly #locked = new Map<number, number>();

  constructor(engine: EngineContext, capture: BaseCapture) {
    this.#engine = engine;
    this.#capture = capture;
  }

  /** Takes a request from its notification (millrace.request_refresh). False: the catalog has to be read. */
  asked(payload: string | undefined): boolean {
    const [, id, request] = /^refresh (\d+) (\d+)$/.exec(payload ?? '') ?? [];
    const { state } = this.#engine;
    if (isImmediate(state, Number(id))) return false;
    // One that is not populated, or stands still, is not refreshed as it is.
    if (state.views.get(Number(id))?.state !== 'ready' || state.streams.get(Number(id))?.status !== 'ACTIVE') return false;
    this.memory.asked(Number(id), Number(request));
    return true;
  }

  /** Refreshes what is due. False when nothing was done. */
  async work(): Promise<boolean> {
    const now = Date.now();
    if (now < this.#notBefore) return false;
    const due = this.#due(now);
    const { runner } = this.#capture;
    const drains = runner !== null && this.#drains(runner, now);
    if (due.views.size === 0 && !drains) return false;
    const views = new Map([...due.views].filter(([id]) => this.#possible(id)));
    if (views.size === 0 && !drains) return false;
    const readsBase = drains || [...views.keys()].some((id) => this.#readsCaptured(id));
    const result = await refreshEpoch(this.#engine, this.memory, {
      due: views,
      triggers: this.#capture.touched,
      capture: runner !== null && readsBase ? { capture: this.#capture, runner } : null,
    });
    this.#after(result);
    if (result.kind === 'done' && readsBase) this.#lastEpochAt = now;
    return result.kind === 'done';
  }

  /** Milliseconds until `work` has something to do by itself; null: not before something happens. */
  pauseMs(): number | null {
    const now = Date.now();
    const due = this.#due(now);
    const { runner } = this.#capture;
    const times: number[] = [];
    if (due.nextAt !== null) times.push(due.nextAt);
    if ([...due.views.keys()].some((id) => this.#possible(id))) times.push(Math.max(now, this.#notBefore));
    for (const until of this.#locked.values()) times.push(until);
    const [first] = runner?.waiting ?? [];
    if (first !== undefined) times.push(Math.max(first.arrivedAt + longestWaitMs, this.#notBefore));
    return times.length === 0 ? null : Math.max(0, Math.min(...times) - now);
  }

  /**
   * Called now and then. Changes that were set aside and grew beyond bounds are let go: their view will be rebuilt by difference.
   * History that is old is removed.
   */
  async tidy(): Promise<void> {
    const { state, admin } = this.#engine;
    if (state.streams.size === 0) return;
    await this.#engine.exclusively(async () => {
      const sizes = await admin.query<{ view: string; bytes: string }>(
        `SELECT substring(c.relname FROM '^w(\\d+)_') AS view, sum(pg_catalog.pg_relation_size(c.oid)) AS bytes
           FROM pg_catalog.pg_class c WHERE c.relnamespace = 'millrace_data'::regnamespace AND c.relkind = 'r' AND c.relname ~ '^w\\d+_\\d+$'
          GROUP BY 1 HAVING sum(pg_catalog.pg_relation_size(c.oid)) > $1`,
        [mostAsideBytes],
      );
      for (const { view, bytes } of sizes.rows) await this.#letGo(Number(view), Number(bytes));
      await admin.query("DELETE FROM millrace.refresh_history WHERE started_at < now() - interval '7 days'");
    });
  }

  async #letGo(viewId: number, bytes: number): Promise<void> {
    const { state, log } = this.#engine;
    const view = state.views.get(viewId);
    const stream = state.streams.get(viewId);
    if (view === undefined || stream === undefined || view.state !== 'ready') return;
    const reason = `${Math.round(bytes / 1024)} kB of changes were set aside, more than are kept`;
    log.warn({ view: viewId, name: stream.name, bytes }, 'changes set aside for a stream table are let go; it will be rebuilt');
    const epoch = await Epoch.begin(this.#engine);
    await epoch.run([
      `UPDATE millrace.stream_table SET delta_lost = coalesce(delta_lost, ${quoteLiteral(reason)}) WHERE relation_id = ${viewId}`,
      ...view.inputs.map((input) => emptyTable(pendingDeltaTable(viewId, input))),
    ]);
    await epoch.commit(new Map());
    this.#engine.wake();
  }

  /** An epoch for a view that begins to be populated. Other views are not refreshed in it. False: to be tried again later. */
  async beginPopulation(population: NonNullable<RefreshRequest['beginPopulation']>): Promise<boolean> {
    const { runner } = this.#capture;
    if (!this.#possible(population.view.id)) return false;
    const result = await refreshEpoch(this.#engine, this.memory, {
      due: new Map(),
      triggers: this.#capture.touched,
      capture: runner === null ? null : { capture: this.#capture, runner },
      beginPopulation: population,
    });
    this.#after(result);
    return result.kind === 'done';
  }

  #after(result: RefreshResult): void {
    const { log } = this.#engine;
    const now = Date.now();
    if (result.kind === 'done' && (result.taken > 0 || result.left === 0)) {
      this.#pauseMs = shortestPauseMs;
      this.#notBefore = 0;
      return;
    }
    if (result.kind === 'again') {
      log.debug({ reason: result.reason }, 'a refresh epoch is done again');
      for (const id of result.without) this.#locked.set(id, now + longestPauseMs);
      if (result.without.length > 0) return;
    }
    this.#notBefore = now + this.#pauseMs;
    this.#pauseMs = Math.min(this.#pauseMs * 2, longestPauseMs);
  }

  #due(now: number): Due {
    const { runner } = this.#capture;
    const { state, clean } = this.#engine;
    return dueViews(state, {
      now,
      hasChanges: (view) =>
        !clean.has(view.id) ||
        view.inputs.some(
          (input) => runner?.waitingFor(input) === true || this.#capture.touched.has(input) || otherPartitions(state.bases.get(input)),
        ),
      remembered: (viewId) => this.memory.get(viewId),
      requested: (viewId) => this.memory.requested(viewId),
    });
  }

  #drains(runner: BaseRunner, now: number): boolean {
    const [first] = runner.waiting;
    if (now > this.#lastEpochAt + longestIdleMs) return true;
    return first !== undefined && (first.arrivedAt + longestWaitMs <= now || runner.waitingBytes > mostBytes);
  }

  /** Whether what the view reads is at hand. */
  #possible(viewId: number): boolean {
    const { state } = this.#engine;
    const until = this.#locked.get(viewId);
    if (until !== undefined) {
      if (until > Date.now()) return false;
      this.#locked.delete(viewId);
    }
    const view = state.views.get(viewId);
    if (view === undefined) return false;
    if (state.streams.get(viewId)?.refreshMode === 'FULL') return true;
    const bases = view.inputs.flatMap((input) => state.bases.get(input) ?? []);
    return bases.every((base) => this.#capture.serves(base));
  }

  #readsCaptured(viewId: number): boolean {
    const { state } = this.#engine;
    if (state.streams.get(viewId)?.refreshMode === 'FULL') return false;
    return state.views.get(viewId)?.inputs.some((input) => state.bases.has(input)) === true;
  }
}

/** Partitions came, went or were truncated, which no stream tells. */
const otherPartitions = (base: BaseTable | undefined): boolean => base !== undefined && base.parts !== null && base.parts !== base.partsNow;
