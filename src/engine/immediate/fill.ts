/**
 * Filling a stream table in IMMEDIATE mode, and computing it anew.
 * Invariant: from the moment its triggers are there, what a transaction writes is either set aside or taken in by the transaction itself. It is
 * filled at one snapshot, by a transaction that removes what that snapshot sees of the changes set aside; the rest is taken in under the
 * view's lock, in the epoch that makes it readable. Writers wait for that, and for the triggers to be made, and for nothing else.
 */
import { randomBytes } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { type BaseTable, type LiveView, pendingDeltaTable, type StreamTable, storageTable } from '../../catalog/model.ts';
import type { ViewPlan } from '../../ivm/plans.ts';
import { populateSql, storageTables } from '../../ivm/view-plan.ts';
import { PostgresError } from '../../replication/postgres-error.ts';
import { connectRaw } from '../../replication/raw-connection.ts';
import type { RawConnection } from '../../replication/session-contract.ts';
import { pinnedSettings } from '../../replication/settings.ts';
import { quoteLiteral } from '../../sql/quote.ts';
import type { EngineContext } from '../context.ts';
import { Epoch, requireStatementError } from '../epoch.ts';
import { openView } from '../open-view.ts';
import { dependentViews } from '../relation-errors.ts';
import { freePlanner } from '../session-settings.ts';
import { type Outcome, populationRefused, refreshed, refreshFailed } from '../streams/bookkeeping.ts';
import { fromMark, immediateTexts } from './templates.ts';

/** How long writers are made to wait behind the lock that triggers are made under, and the pause before it is asked for again. */
const lockTimeout = '500ms';
const lockPauseMs = 500;
/** How long an epoch waits for the lock of a view. */
const viewLockTimeout = '100ms';

/** Fills a pending view. Errors of its query become the view's error; others are thrown. */
export async function fillImmediate(engine: EngineContext, viewId: number, reload: () => Promise<void>): Promise<void> {
  const view = engine.state.views.get(viewId);
  const stream = engine.state.streams.get(viewId);
  if (view?.state !== 'pending' || stream === undefined) return;
  const bases = view.inputs.flatMap((input) => asPlanned(engine.state.bases.get(input), stream.plannedTypes));
  const filler = await connectRaw(engine.config.upstream, {
    database: engine.config.database,
    applicationName: 'millrace populate',
    settings: { ...pinnedSettings, search_path: '', statement_timeout: '0' },
  });
  try {
    const nonce = randomBytes(8).toString('hex');
    if (!(await installed(engine, filler, view, bases, nonce))) return;
    await engine.exclusively(reload);
    const startedAt = Date.now();
    const rows = await filled(filler, view, bases, nonce);
    while (!(await engine.exclusively(() => open(engine, viewId, rows, startedAt, reload)))) await sleep(lockPauseMs);
  } catch (error) {
    if (!(error instanceof PostgresError)) throw error;
    requireStatementError(error);
    await engine.exclusively(() => refused(engine, viewId, error));
  } finally {
    await filler.close().catch(() => undefined);
  }
}

/** The table with the columns that the query was planned for: what has been noted of it may be older, and so may what it is now. */
function asPlanned(base: BaseTable | undefined, planned: StreamTable['plannedTypes']): BaseTable[] {
  if (base === undefined) return [];
  const types = planned[base.id] ?? {};
  const gone = base.columns.filter(({ attnum }) => !base.columnsNow.some((column) => column.attnum === attnum));
  return [{ ...base, columns: [...base.columnsNow, ...gone].map((column) => ({ ...column, type: types[column.attnum] ?? column.type })) }];
}

/** Triggers and what they go by, while nobody has written to the tables and not ended. False: to be tried again. */
async function installed(
  engine: EngineContext,
  filler: RawConnection,
  view: LiveView<ViewPlan>,
  bases: readonly BaseTable[],
  nonce: string,
): Promise<boolean> {
  const texts = immediateTexts(view.plan, view.id, bases, nonce);
  const list = (items: readonly (string | number)[], type: string): string =>
    `ARRAY[${items.map((item) => (typeof item === 'number' ? item : quoteLiteral(item))).join(', ')}]::${type}[]`;
  const json = (value: unknown): string => `${quoteLiteral(JSON.stringify(value))}::jsonb`;
  const { columns } = texts;
  const values = [
    view.id,
    "'collect'",
    'NULL',
    quoteLiteral(nonce),
    list(texts.bases, 'bigint'),
    list(texts.oids, 'oid'),
    list(
      columns.map(({ base }) => base),
      'bigint',
    ),
    list(
      columns.map(({ oid }) => oid),
      'oid',
    ),
    list(
      columns.map(({ attnum }) => attnum),
      'integer',
    ),
    list(
      columns.map(({ type }) => type),
      'text',
    ),
    'NULL',
    json(texts.functions),
    json(texts.catchUp),
    json(texts.rebuild),
  ];
  const statements = [
    'BEGIN',
    `SET LOCAL lock_timeout = '${lockTimeout}'`,
    ...locks(bases, 'SHARE ROW EXCLUSIVE'),
    `TRUNCATE ${storageTables(view.plan, view.id).join(', ')}`,
    `DELETE FROM millrace.immediate WHERE relation_id = ${view.id}`,
    `INSERT INTO millrace.immediate (relation_id, mode, lost, nonce, bases, oids, column_bases, column_oids, column_attnums, column_types, print, functions, catch_up, rebuild)
     VALUES (${values.join(', ')})`,
    `SELECT millrace.immediate_install(${view.id})`,
    `UPDATE millrace.relation SET state = 'populating', state_since = now() WHERE id = ${view.id} AND state = 'pending'`,
    'COMMIT',
  ];
  try {
    for (const sql of statements) await filler.query(sql);
    return true;
  } catch (error) {
    // Someone writes to the table, has locked it, or has just renamed it.
    if (!(error instanceof PostgresError) || !/^(55P03|40P01|42P01)$/.test(error.code)) throw error;
    await filler.query('ROLLBACK');
    engine.log.debug({ view: view.id, err: error }, 'triggers of a stream table cannot be made yet');
    await sleep(lockPauseMs);
    return false;
  }
}

/** In the order of their OIDs, as everyone. */
function locks(bases: readonly BaseTable[], mode: string): string[] {
  return [...bases]
    .sort((a, b) => a.tableOid - b.tableOid)
    .flatMap((base) => (base.name === null ? [] : [`LOCK TABLE ${base.name} IN ${mode} MODE`]));
}

/** Answers how many rows users will see. */
async function filled(filler: RawConnection, view: LiveView<ViewPlan>, bases: readonly BaseTable[], nonce: string): Promise<number> {
  const run = async (sql: string): Promise<readonly (string | null)[]> => (await filler.query(sql)).at(-1)?.rows[0] ?? [];
  for (const sql of ['BEGIN ISOLATION LEVEL REPEATABLE READ', "SET LOCAL lock_timeout = '5s'", ...locks(bases, 'ACCESS SHARE')])
    await run(sql);
  await run('SET LOCAL lock_timeout = 0');
  const texts = new Map<number, string>();
  for (const { id } of bases) {
    const [text] = await run(`SELECT millrace.immediate_resolve(${view.id}, ${quoteLiteral(fromMark(nonce, id))})`);
    texts.set(id, text ?? '');
  }
  // What this snapshot sees of the changes is in the tables, too.
  for (const { id } of bases) await run(`DELETE FROM ${pendingDeltaTable(view.id, id)}`);
  let rows = 0;
  for (const sql of populateSql(view.plan, view.id, (input) => texts.get(input) ?? storageTable(input))) {
    const result = (await filler.query(sql)).at(-1);
    // The last statement fills what users see.
    rows = Number(/(\d+)$/.exec(result?.tag ?? '')?.[1] ?? 0);
  }
  await run(`ANALYZE ${storageTable(view.id)}`);
  await run('COMMIT');
  return rows;
}

/**
 * An epoch that has the view's lock, and those of the views that are kept over it: its triggers would wait for them without end. In the order of
 * those who write to tables. Null: someone holds one for longer; nothing is open then.
 */
async function locked(engine: EngineContext, viewId: number): Promise<Epoch | null> {
  const { session, state } = engine;
  const above = dependentViews(state, [viewId]).filter((id) => state.streams.get(id)?.triggered === true);
  const epoch = await Epoch.begin(engine);
  try {
    await session.query(`SET LOCAL lock_timeout = '${viewLockTimeout}'`);
    for (const id of [viewId, ...above.sort((a, b) => a - b)])
      await session.query(`LOCK TABLE millrace_data.l${id} IN SHARE ROW EXCLUSIVE MODE`);
    await session.query('SET LOCAL lock_timeout = 0');
    await session.query(freePlanner);
    return epoch;
  } catch (error) {
    requireStatementError(error);
    await session.query('ROLLBACK');
    return null;
  }
}

/** Takes in what was set aside and opens the gate; from here on triggers keep it. False: to be tried again. */
async function open(engine: EngineContext, viewId: number, rows: number, startedAt: number, reload: () => Promise<void>): Promise<boolean> {
  const { session, state } = engine;
  const view = state.views.get(viewId);
  const stream = state.streams.get(viewId);
  if (view?.state !== 'populating' || stream === undefined) return true;
  const epoch = await locked(engine, viewId);
  if (epoch === null) return false;
  try {
    // What was written while names changed, or a TRUNCATE, is not among what was set aside.
    const [known] = await session.query(
      `SELECT millrace.immediate_follow(${viewId}) IS NULL AND i.lost IS NULL FROM millrace.immediate i WHERE i.relation_id = ${viewId}`,
    );
    await session.query(`SELECT millrace.immediate_${known?.rows[0]?.[0] === 't' ? 'catch_up' : 'rebuild'}(${viewId})`);
  } catch (error) {
    const reason = requireStatementError(error);
    await session.query('ROLLBACK');
    await refused(engine, viewId, reason);
    return true;
  }
  const result = await openView(engine, epoch, viewId);
  if (result === 'gone') await reload();
  if (result !== 'opened') return result === 'gone';
  await epoch.run([
    `UPDATE millrace.immediate SET mode = 'on', lost = NULL WHERE relation_id = ${viewId}`,
    `SELECT setval('millrace_data.x${viewId}', pg_current_xact_id()::text::bigint)`,
    `UPDATE millrace.stream_table SET delta_lost = NULL, reinitialize = false WHERE relation_id = ${viewId}`,
  ]);
  const outcome: Outcome = { action: 'INITIALIZE', reason: 'initial', startedAt, inserted: rows, deleted: 0, deltaRows: 0, failure: null };
  epoch.sendAll(refreshed(stream, outcome, Date.now(), stream.refreshRequested, null, true));
  await epoch.commit(new Map());
  await reload();
  return true;
}

async function refused(engine: EngineContext, viewId: number, error: PostgresError): Promise<void> {
  const stream = engine.state.streams.get(viewId);
  if (!engine.state.views.has(viewId)) return;
  const { detail, hint } = error.fields;
  const epoch = await Epoch.begin(engine);
  await epoch.fail(viewId, {
    code: error.code,
    message: error.message,
    ...(detail === undefined ? {} : { detail }),
    ...(hint === undefined ? {} : { hint }),
  });
  await epoch.run([`UPDATE millrace.immediate SET mode = 'off' WHERE relation_id = ${viewId}`]);
  const failure = { message: error.message, code: error.code };
  const outcome: Outcome = {
    action: 'INITIALIZE',
    reason: 'initial',
    startedAt: Date.now(),
    inserted: 0,
    deleted: 0,
    deltaRows: 0,
    failure,
  };
  if (stream !== undefined) epoch.sendAll(populationRefused(stream, outcome));
  await epoch.commit(new Map());
}

/** Why a view that can be read is to be computed anew now; null: it is not. */
export function wantsRebuild(view: LiveView<ViewPlan>, stream: StreamTable, now: number): string | null {
  if (stream.refreshMode !== 'IMMEDIATE' || view.state !== 'ready' || stream.status !== 'ACTIVE') return null;
  if (stream.refreshRequested > stream.refreshDone) return stream.reinitialize ? 'reinitialize' : 'manual';
  if (stream.consecutiveErrors > 0 && (stream.nextRefreshAt ?? 0) > now) return null;
  return stream.reinitialize ? 'reinitialize' : stream.deltaLost;
}

/** Computes a view anew from its query, writing what differs; later, when someone holds its lock. To be called exclusively. */
export async function rebuildImmediate(engine: EngineContext, viewId: number, reason: string): Promise<void> {
  const { session, state, log } = engine;
  const stream = state.streams.get(viewId);
  if (stream === undefined) return;
  const startedAt = Date.now();
  const epoch = await locked(engine, viewId);
  if (epoch === null) {
    setTimeout(() => engine.wake(), lockPauseMs).unref();
    return;
  }
  const counters = async (): Promise<number[]> =>
    (
      (
        await session.query(
          `SELECT pg_catalog.pg_stat_get_xact_tuples_inserted(c) + pg_catalog.pg_stat_get_xact_tuples_updated(c), pg_catalog.pg_stat_get_xact_tuples_deleted(c)
             FROM (SELECT '${storageTable(viewId)}'::regclass::oid AS c) x`,
        )
      )[0]?.rows[0] ?? []
    ).map(Number);
  const [insertedBefore = 0, deletedBefore = 0] = await counters();
  await session.query('SAVEPOINT rebuild');
  let failure: PostgresError | null = null;
  try {
    const followed = await session.query(`SELECT millrace.immediate_follow(${viewId})`);
    if (followed[0]?.rows[0]?.[0] != null) {
      // What it lost is told where all stream tables are told so.
      await session.query('COMMIT');
      engine.wake();
      return;
    }
    await session.query(`SELECT millrace.immediate_rebuild(${viewId}); RELEASE SAVEPOINT rebuild`);
  } catch (error) {
    failure = requireStatementError(error);
    await session.query('ROLLBACK TO SAVEPOINT rebuild; RELEASE SAVEPOINT rebuild');
  }
  const [inserted = 0, deleted = 0] = await counters();
  const outcome: Outcome = {
    action: stream.reinitialize ? 'REINITIALIZE' : 'FULL',
    reason,
    startedAt,
    inserted: inserted - insertedBefore,
    deleted: deleted - deletedBefore,
    deltaRows: 0,
    failure: failure === null ? null : { message: failure.message, code: failure.code },
  };
  if (failure === null) epoch.sendAll(refreshed(stream, outcome, Date.now(), stream.refreshRequested, null, true));
  else {
    const errors = stream.consecutiveErrors + 1;
    log.warn({ view: viewId, name: stream.name, errors, err: failure }, 'a stream table could not be computed anew');
    await epoch.run([
      `UPDATE millrace.immediate SET lost = coalesce(lost, ${quoteLiteral(failure.message)}) WHERE relation_id = ${viewId}`,
    ]);
    epoch.sendAll(refreshFailed(stream, outcome, errors, stream.refreshRequested, Date.now() + 1000 * 4 ** Math.min(errors - 1, 5)));
  }
  await epoch.commit(new Map());
  engine.wake();
}
