/**
 * Time for the live views that compare with it.
 * Invariant: the clock is a relation of one row, and every view over it is its query at the clock's time: an epoch of its own sets it, and all of them
 * follow in that epoch. It is set when the first of the instants has come at which one of them changes; while rows change, which may bring instants
 * of their own, it is looked at again soon. Nothing of this is kept: whoever becomes leader looks anew, and what came due meanwhile is taken in.
 */
import type { LiveView } from '../catalog/model.ts';
import { storageTable } from '../catalog/model.ts';
import { clockId } from '../ivm/clock-relation.ts';
import { instantSql } from '../ivm/expiry.ts';
import type { ViewPlan } from '../ivm/plans.ts';
import type { Execution } from '../replication/session-contract.ts';
import { type CatalogState, type EngineContext, storageOf } from './context.ts';
import { Epoch, requireStatementError } from './epoch.ts';
import { freePlanner } from './session-settings.ts';

/** After changes it is looked at again so soon, or when four times as long has passed as the last look took. */
const afterChangesMs = 250;
const share = 4;
/** An answer is trusted for so long; one that could not be had is asked for again after a second. */
const longestMs = 3_600_000;
const unknownMs = 1000;

/** What is known since the clock was last looked at. */
interface Look {
  /** Views whose instants are known. */
  readonly views: ReadonlySet<number>;
  /** The first of them, as text; null: none is near. */
  readonly until: string | null;
  /** When it is there, by the clock of this process. */
  readonly at: number;
  /** Every instant could be told. */
  readonly isWhole: boolean;
}

export class ViewClock {
  #look: Look | null = null;
  /** Rows that views over the clock read have changed since. */
  #changed = false;
  /** No look before. */
  #restUntil = 0;

  /** Statements with which an epoch begins that changes such rows, so that they are judged by the time it is: none of the views changes by it. */
  followed(state: CatalogState): Execution[] {
    const look = this.#look;
    if (look === null || this.#changed || !look.isWhole || !follows(state)) return [];
    if (timely(state).some((view) => view.state !== 'pending' && !look.views.has(view.id))) return [];
    return [
      { name: 'clock_still', sql: "SELECT set_config('millrace.uncaptured', 'on', true)" },
      {
        name: 'clock',
        sql: `UPDATE ${storageTable(clockId)} SET c2 = now() WHERE c2 < now() AND now() < coalesce($1::timestamptz, 'infinity')`,
        params: [look.until],
      },
      { name: 'clock_told', sql: "SELECT set_config('millrace.uncaptured', 'off', true)" },
    ];
  }

  /** An epoch has changed these storages. */
  changed(state: CatalogState, storages: ReadonlySet<number>): void {
    if (this.#changed || !follows(state)) return;
    this.#changed = timely(state).some((view) => view.inputs.some((input) => input !== clockId && storages.has(storageOf(state, input))));
  }

  /** Sets the clock when it is time. False when nothing was done. To be called between epochs. */
  async work(engine: EngineContext): Promise<boolean> {
    if (this.#due(engine.state) > Date.now()) return false;
    const begun = performance.now();
    const views = timely(engine.state).filter((view) => view.state === 'ready');
    const isDue = this.#known(views) && (this.#look?.at ?? 0) <= Date.now();
    this.#changed = false;
    let look = isDue ? null : await lookAt(engine, views);
    if (look === null || look.at <= Date.now()) {
      await tick(engine);
      // What has changed by it was judged by the time there is.
      this.#changed = false;
      look = await lookAt(engine, views);
    }
    this.#look = look;
    this.#restUntil = Date.now() + Math.max(afterChangesMs, share * (performance.now() - begun));
    return true;
  }

  /** Milliseconds until `work` has something to do; null: nothing, for now. */
  pauseMs(state: CatalogState): number | null {
    const due = this.#due(state);
    return due === Number.POSITIVE_INFINITY ? null : Math.max(0, due - Date.now());
  }

  #due(state: CatalogState): number {
    if (!follows(state)) return Number.POSITIVE_INFINITY;
    const views = timely(state).filter((view) => view.state === 'ready');
    return Math.max(this.#restUntil, this.#known(views) ? (this.#look?.at ?? 0) : 0);
  }

  /** The instants of all these views are known. */
  #known(views: readonly LiveView<ViewPlan>[]): boolean {
    const look = this.#look;
    return look !== null && !this.#changed && views.every((view) => look.views.has(view.id));
  }
}

/** Views over the clock. */
function timely(state: CatalogState): LiveView<ViewPlan>[] {
  return [...state.views.values()].filter((view) => view.state !== 'error' && view.state !== 'dropped' && view.inputs.includes(clockId));
}

const follows = (state: CatalogState): boolean => state.captured.has(clockId) && timely(state).length > 0;

/** An epoch that sets the clock: its delta is that row's, and views take it like any other. */
async function tick(engine: EngineContext): Promise<void> {
  const epoch = await Epoch.begin(engine);
  epoch.send([`UPDATE ${storageTable(clockId)} SET c2 = now() WHERE c2 < now()`]);
  epoch.touch(clockId);
  await epoch.commit(new Map());
}

/** The first instant after the clock at which one of the views changes. */
async function lookAt(engine: EngineContext, views: readonly LiveView<ViewPlan>[]): Promise<Look> {
  const { session, state } = engine;
  const since = `(SELECT c2 FROM ${storageTable(clockId)})`;
  await session.query(`BEGIN; ${freePlanner}`);
  let first: { readonly until: string; readonly ms: number } | null = null;
  let isWhole = true;
  for (const { plan, id } of views) {
    if (plan.expiry == null) continue;
    const instant = instantSql(plan.expiry, (input) => storageTable(storageOf(state, input)), since);
    try {
      await session.query('SAVEPOINT instant');
      const [answer] = await session.query(
        `SELECT x.t::text, ceil(extract(epoch FROM x.t - clock_timestamp()) * 1000) FROM (SELECT ${instant} AS t) x WHERE isfinite(x.t)`,
      );
      const [until = null, ms = null] = answer?.rows[0] ?? [];
      if (until !== null && ms !== null && (first === null || Number(ms) < first.ms)) first = { until, ms: Number(ms) };
    } catch (error) {
      // A time without end cannot be subtracted from in every version: then the query itself is asked, every second.
      engine.log.debug({ view: id, reason: requireStatementError(error).message }, 'when a view changes by itself cannot be told');
      await session.query('ROLLBACK TO SAVEPOINT instant');
      isWhole = false;
    }
  }
  await session.query('COMMIT');
  const ms = Math.min(first === null ? longestMs : first.ms + 1, isWhole ? longestMs : unknownMs);
  return { views: new Set(views.map(({ id }) => id)), until: first?.until ?? null, at: Date.now() + ms, isWhole };
}
