/**
 * When refresh epochs are run.
 * Invariant: nothing here polls: an epoch is run because something is due, or because transactions have waited long enough; with neither, it sleeps
 * until the next schedule. Transactions that have come are not held for ever: the slot would keep the WAL since.
 */
import type { BaseTable } from '../catalog/model.ts';
import type { BaseCapture } from './base/capture.ts';
import type { BaseRunner } from './base/runner.ts';
import type { EngineContext } from './context.ts';
import { type RefreshRequest, type RefreshResult, refreshEpoch } from './refresh-epoch.ts';
import { type Due, dueViews } from './streams/due.ts';
import { StreamMemory } from './streams/memory.ts';

/** How long transactions may wait for a view to become due, and how many bytes of them. */
const longestWaitMs = 10_000;
const mostBytes = 8 * 1024 * 1024;
/** Pauses between attempts while a transaction is in the WAL and not yet visible, or a table is locked. */
const shortestPauseMs = 1;
const longestPauseMs = 250;

export class RefreshLoop {
  readonly memory = new StreamMemory();
  readonly #engine: EngineContext;
  readonly #capture: BaseCapture;
  #notBefore = 0;
  #pauseMs = shortestPauseMs;
  /** Views over a table that could not be locked, and until when they are left alone. */
  readonly #locked = new Map<number, number>();

  constructor(engine: EngineContext, capture: BaseCapture) {
    this.#engine = engine;
    this.#capture = capture;
  }

  /** Refreshes what is due. False when nothing was done. */
  async work(): Promise<boolean> {
    const now = Date.now();
    if (now < this.#notBefore) return false;
    const due = this.#due(now);
    const { runner } = this.#capture;
    const drains = runner !== null && this.#drains(runner, now);
    if (due.views.size === 0 && !drains) return false;
    const views = new Map([...due.views].filter(([id]) => this.#possible(id, runner)));
    if (views.size === 0 && !drains) return false;
    const readsBase = drains || [...views.keys()].some((id) => this.#readsCaptured(id));
    const result = await refreshEpoch(this.#engine, this.memory, {
      due: views,
      capture: runner !== null && readsBase ? { capture: this.#capture, runner } : null,
    });
    this.#after(result);
    return result.kind === 'done';
  }

  /** Milliseconds until `work` has something to do by itself; null: not before something happens. */
  pauseMs(): number | null {
    const now = Date.now();
    const due = this.#due(now);
    const { runner } = this.#capture;
    const times: number[] = [];
    if (due.nextAt !== null) times.push(due.nextAt);
    if ([...due.views.keys()].some((id) => this.#possible(id, runner))) times.push(Math.max(now, this.#notBefore));
    for (const until of this.#locked.values()) times.push(until);
    const [first] = runner?.waiting ?? [];
    if (first !== undefined) times.push(Math.max(first.arrivedAt + longestWaitMs, this.#notBefore));
    return times.length === 0 ? null : Math.max(0, Math.min(...times) - now);
  }

  /** An epoch for a view that begins to be populated. Other views are not refreshed in it. False: to be tried again later. */
  async beginPopulation(population: NonNullable<RefreshRequest['beginPopulation']>): Promise<boolean> {
    const { runner } = this.#capture;
    const readsCaptured = population.view.inputs.some((input) => this.#engine.state.bases.get(input)?.state === 'captured');
    if (readsCaptured && runner === null) return false;
    const result = await refreshEpoch(this.#engine, this.memory, {
      due: new Map(),
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
        !clean.has(view.id) || view.inputs.some((input) => runner?.waitingFor(input) === true || otherPartitions(state.bases.get(input))),
      remembered: (viewId) => this.memory.get(viewId),
    });
  }

  #drains(runner: BaseRunner, now: number): boolean {
    const [first] = runner.waiting;
    return first !== undefined && (first.arrivedAt + longestWaitMs <= now || runner.waitingBytes > mostBytes);
  }

  /** Whether what the view reads is at hand. */
  #possible(viewId: number, runner: BaseRunner | null): boolean {
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
    return bases.length === 0 || (runner !== null && bases.every((base) => base.state === 'captured'));
  }

  #readsCaptured(viewId: number): boolean {
    const { state } = this.#engine;
    if (state.streams.get(viewId)?.refreshMode === 'FULL') return false;
    return state.views.get(viewId)?.inputs.some((input) => state.bases.has(input)) === true;
  }
}

/** Partitions came, went or were truncated, which no stream tells. */
const otherPartitions = (base: BaseTable | undefined): boolean => base !== undefined && base.parts !== null && base.parts !== base.partsNow;
