/**
 * When refresh epochs are run.
 * Invariant: nothing here polls: an epoch is run because something is due, or because transactions have waited long enough; with neither, it sleeps
 * until the next schedule. Transactions that have come are not held for ever: the slot would keep the WAL since.
 */
import type { BaseTable } from '../catalog/model.ts';
import type { BaseCapture } from './base/capture.ts';
import { maskOf } from './base/change-logs.ts';
import type { BaseRunner } from './base/runner.ts';
import type { EngineContext } from './context.ts';
import { type RefreshRequest, type RefreshResult, refreshEpoch } from './refresh-epoch.ts';
import { type Due, type DueReason, dueViews, isImmediate } from './streams/due.ts';
import { StreamMemory } from './streams/memory.ts';
import { letGoOfMost, trimLogs, vacuumLogs } from './streams/tidying.ts';
import { answerUnchanged } from './streams/unchanged.ts';

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

/**
 * While many transactions come, the time from one epoch that follows them to the next: an epoch of a hundred costs little more than one of one,
 * and what it saves goes to those who write.
 */
const gatherMs = 20;
/** Nor do they take more than a fifth of the time, as long as that is not much. */
const share = 5;
const longestGatherMs = 200;
/** Transactions in an epoch from which they are many. */
const many = 4;

/** Nobody waits for these, and no time was set for them. */
const following: ReadonlySet<DueReason> = new Set<DueReason>(['changes', 'with dependents', 'diamond']);

export class RefreshLoop {
  readonly memory = new StreamMemory();
  readonly #engine: EngineContext;
  readonly #capture: BaseCapture;
  #notBefore = 0;
  /** Earliest next epoch that only follows changes. */
  #followAt = 0;
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
    const [, id, request, xid] = /^refresh (\d+) (\d+) (\d+)$/.exec(payload ?? '') ?? [];
    const { state } = this.#engine;
    if (isImmediate(state, Number(id))) return false;
    // One that is not populated, or stands still, is not refreshed as it is.
    if (state.views.get(Number(id))?.state !== 'ready' || state.streams.get(Number(id))?.status !== 'ACTIVE') return false;
    this.memory.asked(Number(id), { number: Number(request), xid: Number(BigInt(xid ?? 0) & 0xffffffffn) });
    return true;
  }

  /** Refreshes what is due. False when nothing was done. */
  async work(): Promise<boolean> {
    const now = Date.now();
    if (now < this.#notBefore) return false;
    const due = this.#due(now);
    const { runner } = this.#capture;
    const drains = runner !== null && this.#drains(runner, now);
    if (due.views.size === 0 && !drains) return await trimLogs(this.#engine);
    const views = new Map([...due.views].filter(([id]) => this.#possible(id)));
    if (views.size === 0 && !drains) return false;
    if (!drains && this.#gathers(views, now)) return false;
    if (runner !== null && (await answerUnchanged(this.#engine, this.memory, runner, views)) && views.size === 0 && !drains) return true;
    const readsBase = drains || [...views.keys()].some((id) => this.#readsCaptured(id));
    const begun = performance.now();
    const result = await refreshEpoch(this.#engine, this.memory, {
      due: views,
      triggers: this.#capture.touched,
      capture: runner !== null && readsBase ? { capture: this.#capture, runner } : null,
    });
    this.#after(result);
    const gathers = Math.min(Math.max(gatherMs, share * (performance.now() - begun)), longestGatherMs);
    this.#followAt = result.kind === 'done' && result.taken >= many ? now + gathers : 0;
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
    const views = [...due.views].filter(([id]) => this.#possible(id));
    if (views.length > 0) times.push(Math.max(now, this.#notBefore, this.#gathers(new Map(views), now) ? this.#followAt : 0));
    for (const [id, until] of this.#locked) {
      // One that is not due any more, or gone, is not asked about again.
      if (until <= now) this.#locked.delete(id);
      else times.push(until);
    }
    const [first] = runner?.waiting ?? [];
    if (first !== undefined) times.push(Math.max(first.arrivedAt + longestWaitMs, this.#notBefore));
    return times.length === 0 ? null : Math.max(0, Math.min(...times) - now);
  }

  /** Called now and then. Changes set aside that grew beyond bounds are let go; history that is old is removed. */
  async tidy(): Promise<void> {
    const { state, admin } = this.#engine;
    if (state.streams.size === 0) return;
    await this.#engine.exclusively(async () => {
      if (await letGoOfMost(this.#engine)) this.#engine.wake();
      await admin.query("DELETE FROM millrace.refresh_history WHERE started_at < now() - interval '7 days'");
    });
    await vacuumLogs(this.#engine);
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

  #gathers(views: ReadonlyMap<number, DueReason>, now: number): boolean {
    return now < this.#followAt && [...views.values()].every((reason) => following.has(reason));
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
          (input) =>
            runner?.waitingFor(input, maskOf(view, input)) === true ||
            this.#capture.touched.has(input) ||
            otherPartitions(state.bases.get(input)),
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
