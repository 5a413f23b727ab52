/**
 * One deferred view brought up to date within an epoch.
 * Invariant: afterwards its storage is its query at the epoch's snapshot and nothing is set aside for it; or, when that failed,
 * everything about it is as before but for the note of the failure. Never TRUNCATE: readers see the old rows until the epoch commits.
 */
import { type LiveView, pendingDeltaTable, type StreamTable, storageTable } from '../../catalog/model.ts';
import { nextTime } from '../../catalog/schedule.ts';
import type { ViewPlan } from '../../ivm/plans.ts';
import type { TableName } from '../../ivm/types.ts';
import { boundedDelta, maintainSql, rebuildSql } from '../../ivm/view-plan.ts';
import type { PostgresError } from '../../replication/postgres-error.ts';
import type { EngineContext } from '../context.ts';
import { requireStatementError } from '../epoch.ts';
import { fewRows } from '../row-arrays.ts';
import { alert, errorsAllowed, type Outcome, refreshed, refreshFailed } from './bookkeeping.ts';
import { type DueReason, scheduleOf } from './due.ts';
import type { StreamMemory } from './memory.ts';

export interface RefreshFacts {
  readonly engine: EngineContext;
  readonly memory: StreamMemory;
  /** FROM items of inputs, as of the epoch. */
  readonly storage: TableName;
  /** Time of the epoch's snapshot. */
  readonly dataAt: number;
  /** Stream tables that lost changes within this epoch, and why. */
  readonly lost: ReadonlyMap<number, string>;
}

export interface Refreshed {
  /** Its storage has other rows. */
  readonly changed: boolean;
  /** The catalog says something else of it than the engine knows. */
  readonly catalogChanged: boolean;
  /** To be remembered once the epoch has committed. */
  readonly committed: () => void;
}

interface Choice {
  readonly action: 'DIFFERENTIAL' | 'FULL' | 'REINITIALIZE' | 'NO_DATA';
  readonly reason: string;
}

export async function refreshView(facts: RefreshFacts, view: LiveView<ViewPlan>, due: DueReason): Promise<Refreshed> {
  const { engine, memory } = facts;
  const { session, log } = engine;
  const stream = engine.state.streams.get(view.id);
  const startedAt = Date.now();
  const begun = performance.now();
  const pending = await pendingRows(facts, view, stream);
  const deltaRows = [...pending.values()].reduce((sum, rows) => sum + rows, 0);
  const choice = await choose(facts, view, stream, due, deltaRows);
  const before = await counters(engine, view.id);
  let action: Outcome['action'] = choice.action;
  let reason = choice.reason;
  let failure = await attempt(engine, () => runChoice(facts, view, stream, choice, pending));
  if (failure !== null && choice.action === 'DIFFERENTIAL') {
    // Delta terms may fail where the query does not; then the whole query decides.
    log.info(
      { view: view.id, code: failure.code, reason: failure.message },
      'a view is computed as a whole: its changes could not be applied',
    );
    action = 'FULL';
    reason = `changes could not be applied: ${failure.message}`;
    failure = await attempt(engine, () => runChoice(facts, view, stream, { action: 'FULL', reason }, pending));
  }
  const after = await counters(engine, view.id);
  const [inserted, deleted] = failure === null ? [after.written - before.written, after.deleted - before.deleted] : [0, 0];
  const took = performance.now() - begun;
  const requested = stream?.refreshRequested ?? 0;
  const outcome: Outcome = { action, reason, startedAt, inserted, deleted, deltaRows, failure };
  if (failure !== null) return await failed(facts, view, stream, outcome, requested);

  const rebuilt = action === 'FULL' || action === 'REINITIALIZE';
  const nextAt = stream === undefined ? null : nextAfter(stream, startedAt, took, rebuilt);
  if (stream !== undefined) await session.executeAll(refreshed(stream, outcome, facts.dataAt, requested, nextAt, rebuilt));
  return {
    changed: inserted + deleted > 0,
    catalogChanged: stream !== undefined && (rebuilt || stream.consecutiveErrors > 0 || stream.status !== 'ACTIVE'),
    committed: () => {
      engine.clean.add(view.id);
      memory.set(view.id, { done: requested, nextAt });
      if (rebuilt) memory.tookFull(view.id, took);
      else memory.tookDelta(view.id, deltaRows, took);
    },
  };
}

/** After a failure it is tried again soon, then less soon, then no more. */
async function failed(
  { engine, memory, lost }: RefreshFacts,
  view: LiveView<ViewPlan>,
  stream: StreamTable | undefined,
  outcome: Outcome,
  requested: number,
): Promise<Refreshed> {
  const errors = (stream?.consecutiveErrors ?? 0) + 1;
  const nextAt = Date.now() + 1000 * 4 ** Math.min(errors - 1, 5);
  engine.log.warn({ view: view.id, name: stream?.name, errors, ...outcome.failure }, 'a stream table could not be refreshed');
  if (stream !== undefined) {
    await engine.session.executeAll(refreshFailed(stream, outcome, errors, requested, nextAt));
    const reason = lost.get(view.id);
    if (reason !== undefined) await engine.session.executeAll([alert(stream, 'reinitialize_needed', { reason })]);
  }
  return {
    changed: false,
    catalogChanged: true,
    committed: () => {
      memory.set(view.id, { done: requested, nextAt });
      if (errors >= errorsAllowed) engine.log.error({ view: view.id, name: stream?.name }, 'a stream table is suspended');
    },
  };
}

/** Runs statements that may fail without harm to the epoch. */
async function attempt({ session }: EngineContext, work: () => Promise<void>): Promise<PostgresError | null> {
  await session.query('SAVEPOINT refresh');
  try {
    await work();
    await session.query('RELEASE SAVEPOINT refresh');
    return null;
  } catch (error) {
    const reason = requireStatementError(error);
    // A conflict with a change of the catalog made meanwhile: the epoch is begun again.
    if (reason.code === '40001' || reason.code === '40P01') throw reason;
    await session.query('ROLLBACK TO SAVEPOINT refresh; RELEASE SAVEPOINT refresh');
    return reason;
  }
}

async function choose(
  { engine, memory, lost }: RefreshFacts,
  view: LiveView<ViewPlan>,
  stream: StreamTable | undefined,
  due: DueReason,
  deltaRows: number,
): Promise<Choice> {
  if (stream?.reinitialize === true) return { action: 'REINITIALIZE', reason: 'reinitialize' };
  if (stream?.refreshMode === 'FULL') return { action: 'FULL', reason: due };
  const missing = lost.get(view.id) ?? stream?.deltaLost ?? null;
  if (missing !== null) return { action: 'FULL', reason: missing };
  if (deltaRows === 0) return { action: 'NO_DATA', reason: due };
  const total = deltaRows < 10_000 ? null : await totalRows(engine, view);
  const full = memory.reasonForFull(view.id, deltaRows, total);
  return full === null ? { action: 'DIFFERENTIAL', reason: due } : { action: 'FULL', reason: full };
}

async function runChoice(
  { engine, storage }: RefreshFacts,
  view: LiveView<ViewPlan>,
  stream: StreamTable | undefined,
  choice: Choice,
  pending: ReadonlyMap<number, number>,
): Promise<void> {
  const { session, deltas } = engine;
  switch (choice.action) {
    case 'NO_DATA':
      return;
    case 'DIFFERENTIAL': {
      const changed = new Set([...pending].flatMap(([input, rows]) => (rows > 0 ? [input] : [])));
      const delta: TableName = (input) => boundedDelta(pendingDeltaTable(view.id, input), pending.get(input) ?? Number.POSITIVE_INFINITY);
      for (const sql of maintainSql(view.plan, view.id, changed, delta, storage)) await session.query(sql);
      break;
    }
    case 'FULL':
    case 'REINITIALIZE':
      await session.query(rebuildSql(view.plan, view.id, storage));
      break;
  }
  if (stream?.refreshMode === 'FULL') return;
  for (const input of view.inputs) {
    const table = pendingDeltaTable(view.id, input);
    const rows = pending.get(input) ?? 0;
    if (rows === 0 && choice.action === 'DIFFERENTIAL') continue;
    const { name, sql } = deltas.empty(table, rows <= fewRows);
    deltas.unknown(table);
    const { tag } = await session.execute(name, sql);
    // Should the epoch be rolled back, fewer rows are dead than thought, which does no harm.
    deltas.emptied(table, tag);
  }
}

/** Rows set aside for each input. */
async function pendingRows(
  { engine }: RefreshFacts,
  view: LiveView<ViewPlan>,
  stream: StreamTable | undefined,
): Promise<ReadonlyMap<number, number>> {
  if (stream?.refreshMode === 'FULL') return new Map();
  const [result] = await engine.session.query(
    `SELECT ${view.inputs.map((input) => `(SELECT count(*) FROM ${pendingDeltaTable(view.id, input)})`).join(', ')}`,
  );
  const row = result?.rows[0] ?? [];
  return new Map(view.inputs.map((input, index) => [input, Number(row[index] ?? 0)]));
}

/** Rows of the inputs, as far as statistics tell. */
async function totalRows({ session, state }: EngineContext, view: LiveView<ViewPlan>): Promise<number | null> {
  const oids = view.inputs.map((input) => {
    const base = state.bases.get(input);
    return base === undefined ? `'${storageTable(state.tables.get(input)?.storageId ?? input)}'::regclass` : String(base.tableOid);
  });
  const [result] = await session.query(
    `SELECT sum(greatest(reltuples, 0)), min(reltuples) FROM pg_catalog.pg_class WHERE oid IN (${oids.join(', ')})`,
  );
  const [total, least] = result?.rows[0] ?? [];
  // Not analyzed yet: unknown.
  return total == null || Number(least) < 0 ? null : Number(total);
}

/** Rows written and deleted in the storage by this transaction so far. */
async function counters({ session }: EngineContext, viewId: number): Promise<{ readonly written: number; readonly deleted: number }> {
  const result = await session.execute(
    `counters${viewId}`,
    `SELECT pg_catalog.pg_stat_get_xact_tuples_inserted(c) + pg_catalog.pg_stat_get_xact_tuples_updated(c), pg_catalog.pg_stat_get_xact_tuples_deleted(c)
  FROM (SELECT '${storageTable(viewId)}'::regclass::oid AS c) x`,
  );
  const [written, deleted] = result.rows[0] ?? [];
  return { written: Number(written ?? 0), deleted: Number(deleted ?? 0) };
}

/** When it is due next, by its schedule. One without, that has to be computed as a whole each time, is due when that has become a tenth of the time. */
function nextAfter(stream: StreamTable, startedAt: number, tookMs: number, rebuilt: boolean): number | null {
  const schedule = scheduleOf(stream);
  if (schedule.kind !== 'calculated') return nextTime(schedule, startedAt);
  return stream.refreshMode === 'FULL' && rebuilt ? startedAt + Math.max(1000, 10 * tookMs) : null;
}
