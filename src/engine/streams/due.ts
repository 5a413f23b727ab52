/**
 * Which deferred views are to be refreshed now. Pure.
 * Invariant: a view that is due by its schedule, or by request, is in the answer; with it come those of its inputs that are refreshed for the sake of
 * what reads them, and those that meet in it again (a diamond), so that it never combines two states of one table.
 */
import type { LiveView, StreamTable } from '../../catalog/model.ts';
import { nextTime, parseSchedule, type Schedule, ScheduleError } from '../../catalog/schedule.ts';
import type { ViewPlan } from '../../ivm/plans.ts';
import type { CatalogState } from '../context.ts';
import { remembering } from '../remembering.ts';
import { isDeferred } from '../view-upkeep.ts';

export type DueReason = 'manual' | 'schedule' | 'reinitialize' | 'changes' | 'time' | 'with dependents' | 'diamond';

/** What the scheduler remembers of a view beside the catalog. */
export interface Remembered {
  /** Request that the last refresh answered. */
  readonly done: number;
  /** Earliest next refresh by schedule; null: as the catalog says. */
  readonly nextAt: number | null;
  /** It is not computed again before, however much changes: the last time took a tenth of the time until then. */
  readonly restUntil?: number;
}

export interface DueFacts {
  readonly now: number;
  /** Changes are set aside for the view, or wait in the stream of base tables. */
  readonly hasChanges: (view: LiveView<ViewPlan>) => boolean;
  readonly remembered: (viewId: number) => Remembered | undefined;
  /** Last request heard of, beside the catalog. */
  readonly requested: (viewId: number) => number;
}

export interface Due {
  readonly views: ReadonlyMap<number, DueReason>;
  /** When the next becomes due by itself; null: none does. */
  readonly nextAt: number | null;
}

const known = remembering<CatalogState, 'deferred', readonly LiveView<ViewPlan>[]>();

/** They are asked about twice in every turn of the engine's loop. */
const deferredViews = (state: CatalogState): readonly LiveView<ViewPlan>[] =>
  known(state, 'deferred', () =>
    [...state.views.values()].filter((view) => view.state === 'ready' && isDeferred(state, view) && !isImmediate(state, view.id)),
  );

const nothingDue: Due = { views: new Map(), nextAt: null };

export function dueViews(state: CatalogState, facts: DueFacts): Due {
  const deferred = deferredViews(state);
  if (deferred.length === 0) return nothingDue;
  const active = deferred.filter((view) => isActive(state.streams.get(view.id)));
  const views = new Map<number, DueReason>();
  let nextAt: number | null = null;
  const later = (time: number): void => {
    if (nextAt === null || time < nextAt) nextAt = time;
  };
  const readers = new Map<number, LiveView<ViewPlan>[]>();
  for (const view of active) for (const input of view.inputs) readers.set(input, [...(readers.get(input) ?? []), view]);

  for (const view of active) {
    const stream = state.streams.get(view.id);
    const remembered = facts.remembered(view.id);
    const requested = Math.max(stream?.refreshRequested ?? 0, facts.requested(view.id));
    if (stream !== undefined && requested > Math.max(stream.refreshDone, remembered?.done ?? 0)) {
      views.set(view.id, 'manual');
      continue;
    }
    if (view.inputs.some((input) => state.bases.get(input)?.gated === true)) continue;
    // After a failure it waits, whatever its schedule.
    const failing = stream !== undefined && stream.consecutiveErrors > 0;
    const retryAt = (view.plan.expiry == null || failing ? remembered?.nextAt : null) ?? (failing ? (stream.nextRefreshAt ?? 0) : 0);
    if (stream?.reinitialize === true) {
      if (retryAt > facts.now) later(retryAt);
      else views.set(view.id, 'reinitialize');
      continue;
    }
    const schedule = scheduleOf(stream);
    if (schedule.kind === 'calculated' && !computedWhole(view, stream)) {
      // For the sake of those that read it, when there are any.
      const changesAt = expiresAt(view, stream, remembered);
      if (changesAt !== null) {
        const at = Math.max(changesAt, remembered?.restUntil ?? 0);
        if (at <= facts.now) {
          views.set(view.id, 'time');
          continue;
        }
        later(at);
      }
      if ((readers.get(view.id) ?? []).length > 0) continue;
      if (stream?.deltaLost == null && !changesBelow(state, view, facts)) continue;
      const notBefore = Math.max(retryAt, remembered?.restUntil ?? 0);
      if (notBefore > facts.now) later(notBefore);
      else views.set(view.id, 'changes');
      continue;
    }
    const at =
      remembered?.nextAt ?? stream?.nextRefreshAt ?? (stream?.lastRefreshAt == null ? 0 : (nextTime(schedule, stream.lastRefreshAt) ?? 0));
    if (at <= facts.now) views.set(view.id, 'schedule');
    else later(at);
  }

  // Last first: what is due brings its inputs with it.
  for (const view of [...active].reverse()) {
    if (!views.has(view.id)) continue;
    for (const id of companions(state, view)) {
      const input = state.views.get(id);
      if (input === undefined || views.has(id) || !active.includes(input)) continue;
      const stream = state.streams.get(id);
      if (scheduleOf(stream).kind === 'calculated') views.set(id, 'with dependents');
    }
    for (const id of diamondMembers(state, view)) {
      const member = state.views.get(id);
      if (member !== undefined && !views.has(id) && active.includes(member)) views.set(id, 'diamond');
    }
  }
  return {
    views: new Map([...state.views.keys()].flatMap((id) => (views.has(id) ? [[id, views.get(id) ?? 'schedule'] as const] : []))),
    nextAt,
  };
}

/** Kept by triggers, within the transactions of writers. */
export const isImmediate = (state: Pick<CatalogState, 'streams'>, viewId: number): boolean =>
  state.streams.get(viewId)?.refreshMode === 'IMMEDIATE';

const isActive = (stream: StreamTable | undefined): boolean =>
  stream === undefined || stream.status === 'ACTIVE' || stream.status === 'INITIALIZING';

/** Changes of its inputs do not tell when its result changes, or are not known. */
export function computedWhole(view: LiveView<ViewPlan>, stream: StreamTable | undefined): boolean {
  return stream?.refreshMode === 'FULL' || ('clock' in view.plan && view.plan.clock === true && view.plan.expiry == null);
}

/** When the result changes although no row does, as was found when it was last computed; null: that is not known, or it does not. */
function expiresAt(view: LiveView<ViewPlan>, stream: StreamTable | undefined, remembered: Remembered | undefined): number | null {
  if (view.plan.expiry == null) return null;
  return remembered === undefined ? (stream?.nextRefreshAt ?? 0) : remembered.nextAt;
}

const read = new Map<string | null, Schedule>();

/** One that cannot be read was refused when it was given; should one be there, hourly does no harm. */
export function scheduleOf(stream: StreamTable | undefined): Schedule {
  const text = stream?.schedule ?? null;
  let schedule = read.get(text);
  if (schedule === undefined) {
    try {
      schedule = parseSchedule(text);
    } catch (error) {
      if (!(error instanceof ScheduleError)) throw error;
      schedule = { kind: 'every', ms: 3_600_000 };
    }
    read.set(text, schedule);
  }
  return schedule;
}

/** Changes wait for the view or for one of the calculated views it reads. */
function changesBelow(state: CatalogState, view: LiveView<ViewPlan>, facts: DueFacts): boolean {
  if (facts.hasChanges(view)) return true;
  return view.inputs.some((input) => {
    const read = state.views.get(input);
    if (
      read === undefined ||
      !isDeferred(state, read) ||
      isImmediate(state, input) ||
      scheduleOf(state.streams.get(input)).kind !== 'calculated'
    )
      return false;
    return changesBelow(state, read, facts);
  });
}

/** Deferred views that a view reads at first hand. */
function companions(state: CatalogState, view: LiveView<ViewPlan>): number[] {
  return view.inputs.filter((input) => {
    const read = state.views.get(input);
    return read !== undefined && isDeferred(state, read);
  });
}

/** Everything a relation is made of, itself included. */
function ancestry(state: CatalogState, id: number, known = new Map<number, Set<number>>()): Set<number> {
  const before = known.get(id);
  if (before !== undefined) return before;
  const all = new Set([id]);
  known.set(id, all);
  for (const input of state.views.get(id)?.inputs ?? []) for (const one of ancestry(state, input, known)) all.add(one);
  return all;
}

/** Deferred views between a view and something that reaches it on more than one way. */
function diamondMembers(state: CatalogState, view: LiveView<ViewPlan>): number[] {
  const known = new Map<number, Set<number>>();
  const ways = view.inputs.map((input) => ancestry(state, input, known));
  const shared = new Set<number>();
  for (const [i, way] of ways.entries()) {
    for (const one of way) if (ways.some((other, j) => j !== i && other.has(one))) shared.add(one);
  }
  if (shared.size === 0) return [];
  const members = new Set<number>();
  for (const way of ways) {
    for (const id of way) {
      const read = state.views.get(id);
      if (read === undefined || !isDeferred(state, read)) continue;
      if ([...ancestry(state, id, known)].some((one) => shared.has(one))) members.add(id);
    }
  }
  return [...members];
}
