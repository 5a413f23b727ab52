/**
 * Filling a new live view, beside epochs.
 * Invariant: the view's storage is filled from one snapshot taken between two epochs, or from the snapshot of one; deltas of the epochs after it are set
 * aside. A view that is kept at once takes them as one batch before it is readable: the algebra allows any batch, so the result is the query
 * over the state then. A deferred one is readable as of that snapshot, and takes them when it is due.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { deltaTable, type LiveView, pendingDeltaTable, storageTable } from '../catalog/model.ts';
import { nextTime } from '../catalog/schedule.ts';
import { captureDdl } from '../ivm/capture.ts';
import type { ViewPlan } from '../ivm/plans.ts';
import { maintainSql, populateSql, storageTables } from '../ivm/view-plan.ts';
import { PostgresError } from '../replication/postgres-error.ts';
import { connectRaw } from '../replication/raw-connection.ts';
import type { RawConnection } from '../replication/session-contract.ts';
import { pinnedSettings } from '../replication/settings.ts';
import type { BaseCapture } from './base/capture.ts';
import { startsSql } from './base/change-logs.ts';
import { type EngineContext, storageOf } from './context.ts';
import { Epoch } from './epoch.ts';
import { reach } from './fault-points.ts';
import { openView } from './open-view.ts';
import type { RefreshLoop } from './refresh-loop.ts';
import { relationGate } from './relation-errors.ts';
import { freePlanner } from './session-settings.ts';
import { populationRefused, refreshed } from './streams/bookkeeping.ts';
import { scheduleOf } from './streams/due.ts';
import { isDeferred } from './view-upkeep.ts';

/** Pause before a gate is asked for again that someone reads. */
const openPauseMs = 300;

/** Those who know about ordinary tables. */
export interface Deferral {
  readonly capture: BaseCapture;
  readonly refreshes: RefreshLoop;
}

/** What a view is filled from. */
interface Filling {
  readonly storage: (input: number) => string;
  /** Time of the snapshot, in milliseconds. */
  readonly dataAt: number;
  /** Refresh that had been asked for by then. */
  readonly requested: number;
}

/** Populates a pending view whose inputs are ready. Errors of its query become the view's error; others are thrown. */
export async function populateView(engine: EngineContext, deferral: Deferral, viewId: number, reload: () => Promise<void>): Promise<void> {
  const filler = await connectRaw(engine.config.upstream, {
    database: engine.config.database,
    applicationName: 'millrace populate',
    settings: { ...pinnedSettings, search_path: '', statement_timeout: '0' },
  });
  try {
    reach('fill.began');
    const filling = await engine.exclusively(async () => {
      const view = engine.state.views.get(viewId);
      if (view === undefined || view.state !== 'pending') return null;
      const begun = isDeferred(engine.state, view)
        ? await beginDeferred(engine, deferral, view, filler)
        : await beginAtOnce(engine, view, filler);
      await reload();
      return begun;
    });
    if (filling === null) return;
    const view = engine.state.views.get(viewId);
    if (view === undefined) return;
    reach('fill.snapshot-taken');
    const begun = performance.now();
    let rows = 0;
    try {
      for (const sql of populateSql(view.plan, viewId, filling.storage)) {
        const [filled] = await filler.query(sql);
        // The last statement fills what users see.
        rows = Number(/(\d+)$/.exec(filled?.tag ?? '')?.[1] ?? 0);
      }
      await filler.query(`ANALYZE ${storageTable(viewId)}`);
      await filler.query('COMMIT');
      reach('fill.filled');
    } catch (error) {
      if (!(error instanceof PostgresError)) throw error;
      await engine.exclusively(() => populationFailed(engine, viewId, error));
      return;
    }
    if (isDeferred(engine.state, view)) {
      deferral.refreshes.memory.tookFull(viewId, performance.now() - begun);
      while (!(await engine.exclusively(() => finishDeferred(engine, viewId, filling, rows, reload)))) await sleep(openPauseMs);
    } else await engine.exclusively(() => finish(engine, viewId, reload));
  } finally {
    await filler.close().catch(() => undefined);
  }
}

async function beginAtOnce(engine: EngineContext, view: LiveView<ViewPlan>, filler: RawConnection): Promise<Filling> {
  const { session } = engine;
  const statements = ['BEGIN', ...emptied(engine, view), ...tablesAside(engine, view), beginsSql(view.id), 'COMMIT'];
  await Promise.all(statements.map((sql) => session.query(sql)));
  await filler.query('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1');
  return { storage: (input) => storageTable(storageOf(engine.state, input)), dataAt: Date.now(), requested: 0 };
}

/**
 * The filler takes the snapshot of an epoch that takes in what it sees of base tables, changes no storage, and begins to set aside:
 * so what is set aside later is exactly what the filler does not see.
 */
async function beginDeferred(
  engine: EngineContext,
  { capture, refreshes }: Deferral,
  view: LiveView<ViewPlan>,
  filler: RawConnection,
): Promise<Filling | null> {
  const { session, state } = engine;
  const stream = state.streams.get(view.id);
  const full = stream?.refreshMode === 'FULL';
  if (!full) await capture.followColumns(view.inputs.flatMap((input) => state.bases.get(input) ?? []));
  await Promise.all(['BEGIN', ...emptied(engine, view), 'COMMIT'].map((sql) => session.query(sql)));
  let filling: Filling | null = null;
  const begun = await refreshes.beginPopulation({
    view,
    begin: async (snapshotId, tables, storage, snapshot) => {
      const statements = [
        'BEGIN ISOLATION LEVEL REPEATABLE READ',
        "SET LOCAL lock_timeout = '5s'",
        ...tables.map((table) => `LOCK TABLE ${table} IN ACCESS SHARE MODE`),
        `SET TRANSACTION SNAPSHOT '${snapshotId}'`,
        'SET LOCAL lock_timeout = 0',
      ];
      await Promise.all(statements.map((sql) => filler.query(sql)));
      const texts = new Map(view.inputs.map((input) => [input, storage(input)]));
      filling = {
        storage: (input) => texts.get(input) ?? storage(input),
        dataAt: snapshot.takenAt,
        requested: stream?.refreshRequested ?? 0,
      };
      return [
        ...(full ? [] : tablesAside(engine, view)),
        beginsSql(view.id),
        startsSql(view.id, snapshot.number),
        // What was missed before this snapshot no longer matters.
        `UPDATE millrace.stream_table SET delta_lost = NULL, reinitialize = false WHERE relation_id = ${view.id}`,
      ];
    },
  });
  if (begun) return filling;
  await filler.query('ROLLBACK');
  return null;
}

/** Capture on every storage it reads, an empty storage of its own. */
function emptied({ state }: EngineContext, view: LiveView<ViewPlan>): string[] {
  const captures = new Set(
    view.inputs
      .filter((input) => !state.bases.has(input))
      .map((input) => storageOf(state, input))
      .filter((storageId) => !state.captured.has(storageId)),
  );
  const wanted = state.streams.get(view.id)?.refreshMode === 'FULL' ? [] : [...captures];
  return [...wanted.flatMap((storageId) => captureDdl(storageId)), `TRUNCATE ${storageTables(view.plan, view.id).join(', ')}`];
}

/** Tables for deltas set aside, of inputs that have no log of changes. */
function tablesAside({ state }: EngineContext, view: LiveView<ViewPlan>): string[] {
  const stored = view.inputs.filter((input) => !state.bases.has(input));
  return stored.flatMap((input) => [
    `DROP TABLE IF EXISTS ${pendingDeltaTable(view.id, input)}`,
    `CREATE TABLE ${pendingDeltaTable(view.id, input)} (LIKE ${deltaTable(storageOf(state, input))}) WITH (autovacuum_enabled = off)`,
  ]);
}

const beginsSql = (viewId: number): string =>
  `UPDATE millrace.relation SET state = 'populating', state_since = now() WHERE id = ${viewId} AND state = 'pending'`;

/** Opens the gate of a deferred view: what was set aside meanwhile stays so until it is due. False: someone reads the one it replaces; later. */
async function finishDeferred(
  engine: EngineContext,
  viewId: number,
  filling: Filling,
  rows: number,
  reload: () => Promise<void>,
): Promise<boolean> {
  const { session, state } = engine;
  const view = state.views.get(viewId);
  if (view === undefined || view.state !== 'populating') return true;
  const stream = state.streams.get(viewId);
  const epoch = await Epoch.begin(engine);
  const result = await openView(engine, epoch, viewId);
  if (result === 'gone') await reload();
  if (result !== 'opened') return result === 'gone';
  if (stream !== undefined) {
    const outcome = {
      action: 'INITIALIZE',
      reason: 'initial',
      startedAt: filling.dataAt,
      inserted: rows,
      deleted: 0,
      deltaRows: 0,
      failure: null,
    } as const;
    const nextAt = nextTime(scheduleOf(stream), Date.now());
    await session.executeAll(refreshed(stream, outcome, filling.dataAt, filling.requested, nextAt, false));
  }
  // Filled again, it has changed by the difference: what reads it takes that now, not with its next change.
  epoch.touch(viewId);
  await epoch.commit(new Map());
  engine.clean.delete(viewId);
  await reload();
  return true;
}

/** Applies what was set aside and opens the gate. */
async function finish(engine: EngineContext, viewId: number, reload: () => Promise<void>): Promise<void> {
  const { session, state } = engine;
  const view = state.views.get(viewId);
  if (view === undefined || view.state !== 'populating') return;
  const epoch = await Epoch.begin(engine);
  const changed = new Set<number>();
  for (const input of view.inputs) {
    const [found] = await session.query(`SELECT EXISTS (SELECT FROM ${pendingDeltaTable(viewId, input)})`);
    if (found?.rows[0]?.[0] === 't') changed.add(input);
  }
  if (changed.size > 0) {
    try {
      await session.query(freePlanner);
      await epoch.run(
        maintainSql(
          view.plan,
          viewId,
          changed,
          (input) => pendingDeltaTable(viewId, input),
          (input) => storageTable(storageOf(state, input)),
        ),
      );
    } catch (error) {
      if (!(error instanceof PostgresError)) throw error;
      await session.query('ROLLBACK');
      await populationFailed(engine, viewId, error);
      return;
    }
  }
  reach('fill.caught-up');
  await epoch.run([
    relationGate(state, viewId, 'ready'),
    ...view.inputs.map((input) => `DROP TABLE ${pendingDeltaTable(viewId, input)}`),
    `UPDATE millrace.relation SET state = 'ready', state_since = now() WHERE id = ${viewId} AND state = 'populating'`,
  ]);
  await epoch.commit(new Map());
  reach('fill.ready');
  await reload();
}

async function populationFailed(engine: EngineContext, viewId: number, error: PostgresError): Promise<void> {
  const stream = engine.state.streams.get(viewId);
  const epoch = await Epoch.begin(engine);
  await epoch.fail(viewId, {
    code: error.code,
    message: error.message,
    ...(error.fields.detail === undefined ? {} : { detail: error.fields.detail }),
    ...(error.fields.hint === undefined ? {} : { hint: error.fields.hint }),
  });
  if (stream !== undefined) {
    const failure = { message: error.message, code: error.code };
    const outcome = {
      action: 'INITIALIZE',
      reason: 'initial',
      startedAt: Date.now(),
      inserted: 0,
      deleted: 0,
      deltaRows: 0,
      failure,
    } as const;
    epoch.sendAll(populationRefused(stream, outcome));
  }
  await epoch.commit(new Map());
}
