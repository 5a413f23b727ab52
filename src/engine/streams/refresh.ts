/**
 * One deferred view brought up to date within an epoch.
 * Invariant: afterwards its storage is its query at the epoch's snapshot and nothing is set aside for it; or, when that failed,
 * everything about it is as before but for the note of the failure. Never TRUNCATE: readers see the old rows until the epoch commits.
 */
import { deltaTable, type LiveView, pendingDeltaTable, type StreamTable, storageColumn, storageTable } from '../../catalog/model.ts';
import { nextTime } from '../../catalog/schedule.ts';
import { expirySql, longestMs } from '../../ivm/expiry.ts';
import type { ViewPlan } from '../../ivm/plans.ts';
import type { InputFacts, TableName } from '../../ivm/types.ts';
import { boundedDelta, maintainSql, rebuildSql, smallDelta } from '../../ivm/view-plan.ts';
import { PostgresError } from '../../replication/postgres-error.ts';
import type { Execution } from '../../replication/session-contract.ts';
import type { EpochChanges, Turn } from '../base/epoch-changes.ts';
import { type EngineContext, storageOf } from '../context.ts';
import { type Epoch, requireStatementError } from '../epoch.ts';
import { fewRows } from '../row-arrays.ts';
import { settingAside } from '../view-statements.ts';
import { alert, errorsAllowed, type Outcome, refreshed, refreshFailed } from './bookkeeping.ts';
import { worthCounting } from './costs.ts';
import { computedWhole, type DueReason, scheduleOf } from './due.ts';
import type { StreamMemory } from './memory.ts';

/** A result that changes with the time is computed for its sake no more often than this. */
const shortestMs = 1000;

export interface RefreshFacts {
  readonly engine: EngineContext;
  readonly epoch: Epoch;
  readonly memory: StreamMemory;
  /** FROM items of inputs, as of the epoch. */
  readonly storage: TableName;
  /** Time of the epoch's snapshot. */
  readonly dataAt: number;
  /** Stream tables that lost changes within this epoch, and why. */
  readonly lost: ReadonlyMap<number, string>;
  /** Changes of base tables. */
  readonly changes: EpochChanges;
  /** Nothing was set aside for the view: inputs with deltas in this epoch. Null: all deltas are among those set aside. */
  readonly fresh: readonly number[] | null;
  /** Sets changes of this epoch aside that the view has not taken after all. */
  readonly keep: (bases: readonly number[]) => void;
}

export interface Refreshed extends Turn {
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
  const { engine, epoch, memory } = facts;
  const stream = engine.state.streams.get(view.id);
  const startedAt = Date.now();
  const begun = performance.now();
  const pending = await pendingRows(facts, view, stream);
  const deltaRows = [...pending.values()].reduce((sum, rows) => sum + rows, 0);
  const choice = await choose(facts, view, stream, due, deltaRows);
  let { action, reason } = choice;
  const limitMs = choice.action === 'DIFFERENTIAL' ? limitFor(memory.fullMs(view.id)) : 0;
  let result = await attempt(engine, view.id, statements(facts, view, stream, choice, pending), limitMs);
  if (result instanceof PostgresError && choice.action === 'DIFFERENTIAL') {
    // Delta terms may fail where the query does not; then the whole query decides.
    engine.log.info(
      { view: view.id, code: result.code, reason: result.message },
      'a view is computed as a whole: its changes could not be applied',
    );
    action = 'FULL';
    const late = result.code === '57014';
    if (late) {
      memory.tookDelta(view.id, deltaRows, limitMs);
      memory.gaveUp(view.id, deltaRows);
    }
    reason = late ? `cost: ${deltaRows} changes took more than ${limitMs} ms` : `changes could not be applied: ${result.message}`;
    result = await attempt(engine, view.id, statements(facts, view, stream, { action, reason }, pending));
  }
  const took = performance.now() - begun;
  const requested = Math.max(stream?.refreshRequested ?? 0, memory.requested(view.id));
  const failure = result instanceof PostgresError ? result : null;
  const { inserted, deleted } = result instanceof PostgresError ? { inserted: 0, deleted: 0 } : result;
  const outcome: Outcome = { action, reason, startedAt, tookMs: took, inserted, deleted, deltaRows, failure };
  if (failure !== null) return failed(facts, view, stream, outcome, requested);

  const rebuilt = action === 'FULL' || action === 'REINITIALIZE';
  // Computed as a whole each time: nothing was made good by it.
  const regular = view.plan.clock && stream?.deltaLost === null && !stream.reinitialize;
  const expiry = failure === null ? await nextExpiry(facts, view, startedAt) : null;
  const nextAt = stream === undefined ? null : (expiry ?? nextAfter(view, stream, startedAt, took, rebuilt));
  if (stream !== undefined) epoch.sendAll(refreshed(stream, outcome, facts.dataAt, requested, nextAt, rebuilt));
  return {
    viewId: view.id,
    taken: stream?.refreshMode !== 'FULL',
    fresh: facts.fresh !== null && !rebuilt,
    changed: inserted + deleted > 0,
    catalogChanged: stream !== undefined && ((rebuilt && !regular) || stream.consecutiveErrors > 0 || stream.status !== 'ACTIVE'),
    committed: () => {
      const metric = `millrace_refreshes_total{action=${JSON.stringify(action)}}`;
      engine.metrics[metric] = (engine.metrics[metric] ?? 0) + 1;
      engine.clean.add(view.id);
      memory.set(view.id, { done: requested, nextAt, ...(view.plan.clock ? { restUntil: startedAt + 10 * took } : {}) });
      if (rebuilt) memory.tookFull(view.id, took);
      else memory.tookDelta(view.id, deltaRows, took);
    },
  };
}

/** After a failure it is tried again soon, then less soon, then no more. */
function failed(
  facts: RefreshFacts,
  view: LiveView<ViewPlan>,
  stream: StreamTable | undefined,
  outcome: Outcome,
  requested: number,
): Refreshed {
  const { engine, epoch, memory, lost, fresh } = facts;
  const errors = (stream?.consecutiveErrors ?? 0) + 1;
  const nextAt = Date.now() + 1000 * 4 ** Math.min(errors - 1, 5);
  engine.log.warn({ view: view.id, name: stream?.name, errors, err: outcome.failure }, 'a stream table could not be refreshed');
  // The changes of this epoch are still wanted.
  if (fresh !== null) {
    const isBase = (input: number): boolean => engine.state.bases.has(input);
    facts.keep(fresh.filter(isBase));
    epoch.sendAll(
      settingAside(
        engine.state,
        view.id,
        fresh.filter((input) => !isBase(input)),
      ),
    );
  }
  if (stream !== undefined) {
    epoch.sendAll(refreshFailed(stream, outcome, errors, requested, nextAt));
    const reason = lost.get(view.id);
    if (reason !== undefined) epoch.sendAll([alert(stream, 'reinitialize_needed', { reason })]);
  }
  return {
    viewId: view.id,
    taken: false,
    fresh: fresh !== null,
    changed: false,
    catalogChanged: true,
    committed: () => {
      engine.clean.delete(view.id);
      memory.set(view.id, { done: requested, nextAt });
      if (errors >= errorsAllowed) engine.log.error({ view: view.id, name: stream?.name }, 'a stream table is suspended');
    },
  };
}

interface Work {
  readonly statements: readonly Execution[];
  /** Few changes: plans made for few are kept. Else each statement is planned for what there is. */
  readonly prepared: boolean;
}

const savepoint: Execution = { name: 'savepoint', sql: 'SAVEPOINT refresh' };
const release: Execution = { name: 'release', sql: 'RELEASE SAVEPOINT refresh' };
/** Of each statement; 0: none. It ends with the savepoint, too. */
const limited = (ms: number): Execution[] => [{ name: `limit${ms}`, sql: `SET LOCAL statement_timeout = ${ms}` }];

/**
 * How long a statement that applies changes may take: many times what computing everything takes. Terms of a join grow with the product of its
 * changes, and many changes of few rows can be far more work than the rows. A power of two, so that there are few texts.
 */
function limitFor(fullMs: number | null): number {
  return 2 ** Math.ceil(Math.log2(Math.max(500, 10 * (fullMs ?? 3000))));
}

/** Runs statements that may fail without harm to the epoch, in one write. Answers what they did to the view's storage, or why they failed. */
async function attempt(
  { session }: EngineContext,
  viewId: number,
  { statements: work, prepared }: Work,
  limitMs = 0,
): Promise<{ readonly inserted: number; readonly deleted: number } | PostgresError> {
  if (work.length === 0) return { inserted: 0, deleted: 0 };
  session.cork();
  const sent = [
    session.executeAll([counters(viewId), savepoint, ...limited(limitMs)]),
    ...(prepared ? [session.executeAll(work)] : work.map(({ sql }) => session.query(sql))),
    session.executeAll([...(limitMs === 0 ? [] : limited(0)), release, counters(viewId)]),
  ] as const;
  session.uncork();
  const outcomes = await Promise.allSettled(sent);
  const failure = outcomes.find((outcome) => outcome.status === 'rejected');
  if (failure === undefined) {
    const was = (await sent[0])[0]?.rows[0] ?? [];
    const is = (await sent.at(-1))?.at(-1)?.rows[0] ?? [];
    return { inserted: Number(is[0]) - Number(was[0]), deleted: Number(is[1]) - Number(was[1]) };
  }
  const reason = requireStatementError(failure.reason);
  // A conflict with a change of the catalog made meanwhile, or a failure of what was sent before: the epoch is begun again.
  if (reason.code === '40001' || reason.code === '40P01' || outcomes[0]?.status === 'rejected') throw reason;
  await session.query('ROLLBACK TO SAVEPOINT refresh; RELEASE SAVEPOINT refresh');
  return reason;
}

/** Rows written and deleted in the storage by this transaction so far, as a prepared statement. */
const counters = (viewId: number): Execution => ({
  name: `counters${viewId}`,
  sql: `SELECT pg_catalog.pg_stat_get_xact_tuples_inserted(c) + pg_catalog.pg_stat_get_xact_tuples_updated(c), pg_catalog.pg_stat_get_xact_tuples_deleted(c)
  FROM (SELECT '${storageTable(viewId)}'::regclass::oid AS c) x`,
});

async function choose(
  { engine, memory, lost }: RefreshFacts,
  view: LiveView<ViewPlan>,
  stream: StreamTable | undefined,
  due: DueReason,
  deltaRows: number,
): Promise<Choice> {
  if (stream?.reinitialize === true) return { action: 'REINITIALIZE', reason: 'reinitialize' };
  if (stream?.refreshMode === 'FULL') return { action: 'FULL', reason: due };
  // What it shows depends on the time, too.
  if ('clock' in view.plan && view.plan.clock === true) return { action: 'FULL', reason: 'time' };
  const missing = lost.get(view.id) ?? stream?.deltaLost ?? null;
  if (missing !== null) return { action: 'FULL', reason: missing };
  if (deltaRows === 0) return { action: 'NO_DATA', reason: due };
  const total = deltaRows < worthCounting ? null : await memory.total(view.id, Date.now(), () => totalRows(engine, view));
  const full = memory.reasonForFull(view.id, deltaRows, total);
  return full === null ? { action: 'DIFFERENTIAL', reason: due } : { action: 'FULL', reason: full };
}

function statements(
  facts: RefreshFacts,
  view: LiveView<ViewPlan>,
  stream: StreamTable | undefined,
  choice: Choice,
  pending: ReadonlyMap<number, number>,
): Work {
  const { engine, storage, fresh } = facts;
  const work: Execution[] = [];
  let prepared = false;
  switch (choice.action) {
    case 'NO_DATA':
      return { statements: work, prepared };
    case 'DIFFERENTIAL': {
      const changed = [...pending].flatMap(([input, rows]) => (rows > 0 ? [input] : [])).sort((a, b) => a - b);
      // One bound for all of them: fewer texts.
      const most = Math.max(...pending.values());
      prepared = smallDelta(most) !== null;
      const delta: TableName = (input) => deltaOf(facts, view, input, most, prepared);
      if (prepared) work.push(...engine.refreshes.of(view, changed, delta, storage));
      else work.push(...maintainSql(view.plan, view.id, new Set(changed), delta, storage, inputFacts(engine)).map(unnamed));
      break;
    }
    case 'FULL':
    case 'REINITIALIZE':
      work.push(...rebuildSql(view.plan, view.id, storage).map(unnamed));
      break;
  }
  if (stream?.refreshMode === 'FULL' || fresh !== null) return { statements: work, prepared };
  for (const input of view.inputs) {
    if (engine.state.bases.has(input)) continue;
    const rows = pending.get(input) ?? 0;
    if (rows === 0 && choice.action === 'DIFFERENTIAL') continue;
    const table = pendingDeltaTable(view.id, input);
    work.push(engine.deltas.empty(table, rows <= fewRows));
    // Counted as if all of it went well; should it not, fewer rows are dead than thought, which does no harm.
    engine.deltas.emptied(table, rows <= fewRows ? `DELETE ${rows}` : '');
  }
  return { statements: work, prepared };
}

/** The WAL tells the columns that an update changes, and views take only the updates that concern them. Triggers do not tell. */
const inputFacts = ({ state }: EngineContext): InputFacts => ({
  isExact: (input) => state.bases.get(input)?.method === 'wal',
  typeOf: (input, column) => {
    const found = state.bases.get(input)?.columnsNow.find(({ attnum }) => storageColumn(attnum) === column);
    return found === undefined ? undefined : `${found.type} ${found.collation ?? ''}`;
  },
});

const unnamed = (sql: string): Execution => ({ name: '', sql });

/** Where the deltas of an input are: no more than so many rows. */
function deltaOf({ engine, changes, fresh }: RefreshFacts, view: LiveView<ViewPlan>, input: number, rows: number, stable: boolean): string {
  if (engine.state.bases.has(input)) return changes.delta(view, input, fresh !== null, rows, stable);
  return boundedDelta(storedDelta(engine, view, input, fresh !== null), rows);
}

/** The table with the deltas of a storage. */
function storedDelta({ state }: EngineContext, view: LiveView<ViewPlan>, input: number, fresh: boolean): string {
  return fresh ? deltaTable(storageOf(state, input)) : pendingDeltaTable(view.id, input);
}

/** Changed rows of each input, as far as they concern the view. */
async function pendingRows(
  { engine, changes, fresh }: RefreshFacts,
  view: LiveView<ViewPlan>,
  stream: StreamTable | undefined,
): Promise<ReadonlyMap<number, number>> {
  if (stream?.refreshMode === 'FULL') return new Map();
  const known = new Map<number, number>();
  const unknown: number[] = [];
  for (const input of fresh ?? view.inputs) {
    if (engine.state.bases.has(input)) known.set(input, changes.pending(view, input, fresh !== null));
    else unknown.push(input);
  }
  if (unknown.length === 0) return known;
  const counts = unknown.map((input) => `(SELECT count(*) FROM ${storedDelta(engine, view, input, fresh !== null)})`);
  const [result] = await engine.session.query(`SELECT ${counts.join(', ')}`);
  const row = result?.rows[0] ?? [];
  unknown.forEach((input, index) => {
    known.set(input, Number(row[index] ?? 0));
  });
  return known;
}

/** A row takes more than this, so a table that was not analyzed yet has no more rows than its bytes divided by it. */
const leastRowBytes = 36;

/** Rows of the inputs, as far as statistics tell: at most so many where there are none. */
async function totalRows({ session, state }: EngineContext, view: LiveView<ViewPlan>): Promise<number | null> {
  const oids = view.inputs.map((input) => {
    const base = state.bases.get(input);
    return base === undefined ? `'${storageTable(state.tables.get(input)?.storageId ?? input)}'::regclass` : String(base.tableOid);
  });
  const [result] = await session.query(
    `SELECT sum(CASE WHEN reltuples >= 0 THEN reltuples WHEN relkind = 'r' THEN pg_catalog.pg_relation_size(oid) / ${leastRowBytes} END),
            bool_and(reltuples >= 0 OR relkind = 'r')
       FROM pg_catalog.pg_class WHERE oid IN (${oids.join(', ')})`,
  );
  const [total, isKnown] = result?.rows[0] ?? [];
  // A partitioned table that was not analyzed yet.
  return total == null || isKnown !== 't' ? null : Number(total);
}

/** When it is due next, by its schedule. One without, that has to be computed as a whole each time, is due when that has become a tenth of the time. */
export function nextAfter(
  view: LiveView<ViewPlan>,
  stream: StreamTable,
  startedAt: number,
  tookMs: number,
  rebuilt: boolean,
): number | null {
  const schedule = scheduleOf(stream);
  if (schedule.kind !== 'calculated') return nextTime(schedule, startedAt);
  return computedWhole(view, stream) && rebuilt ? startedAt + Math.max(1000, 10 * tookMs) : null;
}

/** When its result changes by itself. Asked in the epoch that computed it: the time is that of the transaction. */
async function nextExpiry({ engine, storage }: RefreshFacts, view: LiveView<ViewPlan>, startedAt: number): Promise<number | null> {
  const stream = engine.state.streams.get(view.id);
  if (view.plan.expiry == null || stream === undefined || scheduleOf(stream).kind !== 'calculated') return null;
  const { session } = engine;
  const outcomes = await Promise.allSettled([
    session.query('SAVEPOINT expiry'),
    session.query(expirySql(view.plan.expiry, storage)),
    session.query('RELEASE SAVEPOINT expiry'),
  ]);
  const [, asked] = outcomes;
  const failure = outcomes.find((outcome) => outcome.status === 'rejected');
  if (failure !== undefined) {
    // A time without end cannot be subtracted from in every version: then it is asked of the query itself, now and then.
    const reason = requireStatementError(failure.reason);
    if (reason.code === '40001' || reason.code === '40P01') throw reason;
    await session.query('ROLLBACK TO SAVEPOINT expiry; RELEASE SAVEPOINT expiry');
    return startedAt + 10 * shortestMs;
  }
  const ms = asked.status === 'fulfilled' ? asked.value[0]?.rows[0]?.[0] : null;
  const at = ms === null || ms === undefined ? longestMs : Math.min(Number(ms) + 1, longestMs);
  return Math.max(startedAt + shortestMs, Date.now() + at);
}
