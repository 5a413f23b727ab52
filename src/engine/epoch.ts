/**
 * One epoch: whole origin transactions go into storage, every live view that depends on them is maintained, positions are recorded,
 * all in one upstream transaction.
 * Invariant: storage, views and source_progress change together or not at all; a failing table or view is put aside by a savepoint
 * and marked, and the epoch goes on without it.
 */
import { deltaTable, type LiveView, type RelationError, type Storage, storageTable } from '../catalog/model.ts';
import { clockId } from '../ivm/clock-relation.ts';
import type { ViewPlan } from '../ivm/plans.ts';
import { rebuildSql } from '../ivm/view-plan.ts';
import type { Lsn } from '../replication/lsn.ts';
import { ConnectionLostError, PostgresError } from '../replication/postgres-error.ts';
import type { Execution, StatementResult } from '../replication/session-contract.ts';
import { parseSnapshot, type Snapshot } from '../replication/snapshot-visibility.ts';
import { quoteLiteral } from '../sql/quote.ts';
import { forgetColumns } from './apply-sql.ts';
import { isOfManyRows, isShapeStep, type PlainStep, sendStep } from './apply-steps.ts';
import type { Batch, ShapeStep } from './change-batch.ts';
import { extensionsOf, mendMoved } from './column-merge.ts';
import { type EngineContext, storageOf } from './context.ts';
import { type Direct, directUpkeep } from './direct-upkeep.ts';
import { followEnums } from './enum-labels.ts';
import { countEpoch, fence, progress } from './epoch-ends.ts';
import { reach, reachSoon } from './fault-points.ts';
import { reshaped } from './follow-shape.ts';
import { type Broken, brokenSql, versionsEnded } from './missed-rows.ts';
import { recordVersions } from './origin-history.ts';
import { outboxExecutions } from './outbox.ts';
import { fitOutboxes } from './outbox-types.ts';
import { relabel } from './relabel.ts';
import { fewRows } from './row-arrays.ts';
import { versionsOf } from './schema-change.ts';
import { freePlanner } from './session-settings.ts';
import { maintenance, settingAside } from './view-statements.ts';
import { upkeepOf } from './view-upkeep.ts';
import { columnsSql, spoolTypes, widenStorage, withTypes } from './widen.ts';

/** How long an epoch waits for a table that someone else has locked exclusively. */
const lockTimeout = '500ms';

/** The snapshot of an epoch that reads ordinary tables. */
export interface EpochSnapshot {
  /** As pg_current_snapshot() prints it. */
  readonly text: string;
  readonly visible: Snapshot;
  /** Position of the WAL, no earlier than the end of anything the snapshot sees. */
  readonly lsn: string;
  /** Milliseconds of the Unix epoch. */
  readonly takenAt: number;
  /** Number of the epoch, greater than any before. */
  readonly number: bigint;
}

const takenNow: Execution = {
  name: 'snapshot',
  sql: 'SELECT pg_current_snapshot(), pg_current_wal_insert_lsn(), floor(extract(epoch FROM clock_timestamp()) * 1000)',
};

/** An ordinary table could not be locked; nothing is open. */
export class LockRefusedError extends Error {
  readonly table: string;
  /** There is no table of that name. */
  readonly isMissing: boolean;
  constructor(table: string, cause: PostgresError) {
    super(`${table} cannot be locked: ${cause.message}`, { cause });
    this.table = table;
    this.isMissing = cause.code === '42P01' || cause.code === '3F000';
  }
}

/** What the caller does with views in their turn. */
export interface Turns {
  /** Deltas of its inputs are not set aside in this epoch: `take` works on the delta tables themselves. */
  readonly takesAtOnce: (view: LiveView<ViewPlan>) => boolean;
  /** `changed`: inputs with deltas in this epoch. True when the view's storage may have changed. */
  readonly take: (view: LiveView<ViewPlan>, changed: readonly number[]) => Promise<boolean>;
  /** What is to be recorded when all had theirs. */
  readonly ending: () => readonly Execution[];
}

export class Epoch {
  readonly #engine: EngineContext;
  /** Storages whose delta table may hold rows. */
  readonly #changed = new Set<number>();
  /** Views that may have been written already. */
  readonly #direct = new Set<number>();
  readonly #failedStorages = new Set<number>();
  readonly #failedViews = new Set<number>();
  /** Storages whose columns have changed in this epoch. */
  readonly #reshaped = new Map<number, Storage>();
  readonly #copiedAgain = new Set<number>();
  /** Answers not looked at yet. */
  readonly #sent: Promise<unknown>[] = [];
  #rows = 0;
  #catalogChanged = false;

  private constructor(engine: EngineContext) {
    this.#engine = engine;
  }

  /**
   * Opens the transaction at one snapshot for all of it, with these tables (qualified, quoted) locked against what a snapshot cannot see
   * through: TRUNCATE, DROP, ALTER. Throws LockRefusedError when one cannot be had soon; nothing is open then. `first` is run at once.
   */
  static async beginAtSnapshot(
    engine: EngineContext,
    tables: readonly string[],
    first: readonly Execution[],
  ): Promise<{ epoch: Epoch; snapshot: EpochSnapshot; answers: readonly StatementResult[] }> {
    const { session } = engine;
    session.cork();
    const begun = session.query('BEGIN ISOLATION LEVEL REPEATABLE READ');
    // Neither SET nor LOCK takes a snapshot, so the one that follows is taken under the locks.
    const limited = session.query(`SET LOCAL lock_timeout = '${lockTimeout}'`);
    const locks = tables.map((table) => session.query(`LOCK TABLE ${table} IN ACCESS SHARE MODE`));
    const rest = session.executeAll([takenNow, { name: 'unlimited', sql: 'SET LOCAL lock_timeout = 0' }, fence(engine.token), ...first]);
    session.uncork();
    const outcomes = await Promise.allSettled([begun, limited, ...locks, rest]);
    const failed = outcomes.findIndex((outcome) => outcome.status === 'rejected');
    const outcome = outcomes[failed];
    if (outcome?.status === 'rejected') {
      const table = tables[failed - 2];
      if (table === undefined) throw outcome.reason;
      const reason = requireStatementError(outcome.reason);
      await session.query('ROLLBACK');
      throw new LockRefusedError(table, reason);
    }
    const [taken, , fenced, ...answers] = await rest;
    const [text = '', lsn = '', at = ''] = taken?.rows[0] ?? [];
    const number = BigInt(fenced?.rows[0]?.[0] ?? '0');
    const snapshot = { text: text ?? '', visible: parseSnapshot(text ?? ''), lsn: lsn ?? '', takenAt: Number(at), number };
    return { epoch: new Epoch(engine), snapshot, answers };
  }

  /** Opens the transaction. Throws when another process has become leader. */
  static async begin(engine: EngineContext): Promise<Epoch> {
    const { session } = engine;
    session.cork();
    const begun = session.query('BEGIN');
    const fenced = session.executeAll([fence(engine.token)]);
    session.uncork();
    await Promise.all([begun, fenced]);
    reach('steps.begun');
    return new Epoch(engine);
  }

  /** Brings the steps of a batch into storage. */
  async apply(batch: Pick<Batch, 'steps' | 'versions' | 'rows'>): Promise<void> {
    this.#rows += batch.rows;
    this.sendAll(recordVersions(batch.versions));
    let byStorage = new Map<number, PlainStep[]>();
    const flush = async (): Promise<void> => {
      for (const [storageId, steps] of byStorage) await this.#applyTo(storageId, steps);
      byStorage = new Map();
    };
    for (const step of batch.steps) {
      if (isShapeStep(step)) {
        await flush();
        await this.#reshape(step);
        continue;
      }
      const list = byStorage.get(step.storageId);
      if (list === undefined) byStorage.set(step.storageId, [step]);
      else list.push(step);
    }
    await flush();
    this.send(mendMoved((id) => this.storage(id), extensionsOf(this.#engine.state), batch.steps));
    if (batch.steps.length > 0) reach('steps.applied');
  }

  /** The table of a storage has got another shape. What is being copied is copied again. */
  async #reshape(step: ShapeStep): Promise<void> {
    const storage = this.storage(step.storageId);
    if (storage === undefined || this.#failedStorages.has(storage.id)) return;
    this.#catalogChanged = true;
    const now = reshaped(storage, step);
    if (storage.state === 'live') {
      if (step.kind === 'missed')
        await this.run(storage.keyAttnums.length === 0 ? forgetColumns(storage, step.attnums) : [columnsSql(now)]);
      else if (step.kind === 'relabel') await relabel(this.#engine, this, now, step);
      else if (step.kind === 'widen' && !storage.stale) await widenStorage(this.#engine, this, storage, step.columns);
      else return;
      this.#reshaped.set(storage.id, now);
      this.touch(storage.id);
    } else if (storage.state === 'new' || storage.state === 'copying' || storage.state === 'copied') {
      this.#copiedAgain.add(storage.id);
      const renamed = step.kind === 'widen' ? step.columns.filter((column) => column.renamed === true) : [];
      await this.run([
        ...spoolTypes(storage, now),
        // Wider types are given to it when its copy begins again; what a type is called is known only here.
        ...(renamed.length === 0 ? [] : [columnsSql(withTypes(storage, renamed))]),
        `UPDATE millrace.storage SET state = 'new', rows_copied = 0, bytes_copied = 0, copy_snapshot = NULL, copy_lsn = NULL
          WHERE id = ${storage.id} AND state IN ('copying', 'copied')`,
      ]);
    }
  }

  /** Whether what was copied is of no use, because the table has changed since. */
  isCopiedAgain(storageId: number): boolean {
    return this.#copiedAgain.has(storageId);
  }

  /** Whether a change of it could not be stored. */
  hasFailed(storageId: number): boolean {
    return this.#failedStorages.has(storageId);
  }

  /** A storage as this epoch has made it. */
  storage(id: number): Storage | undefined {
    return this.#reshaped.get(id) ?? this.#engine.state.storages.get(id);
  }

  async #applyTo(storageId: number, steps: readonly PlainStep[], again = true, direct = this.#directOf(storageId, steps)): Promise<void> {
    const { session, log } = this.#engine;
    const storage = this.storage(storageId);
    if (storage === undefined || this.#failedStorages.has(storageId)) return;
    const sent: Promise<unknown>[] = [session.query('SAVEPOINT apply')];
    for (const step of steps) sendStep(session, storage, step, sent, direct);
    sent.push(session.query('RELEASE SAVEPOINT apply'));
    const outcomes = await Promise.allSettled(sent);
    const failure = outcomes.find((outcome) => outcome.status === 'rejected');
    if (failure === undefined) {
      this.touch(storageId);
      for (const viewId of direct?.viewIds ?? []) this.#direct.add(viewId);
      return;
    }
    const reason = requireStatementError(failure.reason);
    if (direct !== null) {
      // It may be a view that cannot take the change: then it is that view's error, found when views are maintained.
      await session.query('ROLLBACK TO SAVEPOINT apply; RELEASE SAVEPOINT apply');
      return await this.#applyTo(storageId, steps, again, null);
    }
    if (again && reason.code === '22P02') {
      await session.query('ROLLBACK TO SAVEPOINT apply; RELEASE SAVEPOINT apply');
      if (await followEnums(this.#engine, storage, reason)) return await this.#applyTo(storageId, steps, false, null);
      await session.query('SAVEPOINT apply');
    }
    log.error({ storage: storageId, table: `${storage.originSchema}.${storage.originName}`, err: reason }, 'a table cannot take a change');
    await session.query('ROLLBACK TO SAVEPOINT apply; RELEASE SAVEPOINT apply');
    this.#failedStorages.add(storageId);
    await this.#storageFailed(storage, reason);
  }

  /** How views take these changes of a storage without its delta; null: they do not. */
  #directOf(storageId: number, steps: readonly PlainStep[]): Direct | null {
    if (this.#reshaped.has(storageId) || !steps.some(isOfManyRows)) return null;
    const direct = directUpkeep(this.#engine.state, storageId);
    return direct?.viewIds.some((id) => this.#failedViews.has(id)) === true ? null : direct;
  }

  async #storageFailed(storage: Storage, reason: PostgresError): Promise<void> {
    await this.run([
      `UPDATE millrace.storage SET state = 'failed', error = jsonb_build_object('message', ${quoteLiteral(reason.message)}) WHERE id = ${storage.id}`,
    ]);
    for (const version of versionsOf(this.#engine.state, storage)) {
      await this.fail(version.id, {
        code: reason.code,
        message: `table cannot be kept up to date: ${reason.message}`,
        detail: `A change of ${storage.originSchema}.${storage.originName} could not be stored.`,
        hint: `ALTER SOURCE ${this.#engine.state.sources.get(storage.sourceId)?.name} RESYNC; once nothing stands in its way, or DROP TABLE {relation} CASCADE; and create it again, with TEXT COLUMNS for the column named above if its values do not fit.`,
      });
    }
  }

  /** Puts a relation and what reads it into the error state, within this epoch. */
  async fail(relationId: number, error: RelationError): Promise<void> {
    await this.failAll({ relationId, error });
  }

  /** As `fail`, of all that can no longer be kept because of it. */
  async failAll(broken: Broken): Promise<void> {
    const { state } = this.#engine;
    await this.run(["SET LOCAL lock_timeout = '5s'", ...brokenSql(state, broken), 'SET LOCAL lock_timeout = 0']);
    for (const { relationId } of versionsEnded(state, broken)) this.#failedViews.add(relationId);
    this.#catalogChanged = true;
  }

  /** A view that is not maintained in this epoch: it is filled anew after it. */
  leaveOut(viewId: number): void {
    this.#failedViews.add(viewId);
  }

  /** Takes back what the caller ran; nothing is open then. */
  async abandon(): Promise<void> {
    await this.#engine.session.query('ROLLBACK');
  }

  /** Statements of the caller, in this epoch. */
  async run(statements: readonly string[]): Promise<void> {
    await Promise.all(statements.map((sql) => this.#engine.session.query(sql)));
  }

  /** As `run`, without waiting: a failure is the epoch's. */
  send(statements: readonly string[]): void {
    for (const sql of statements) this.#later(this.#engine.session.query(sql));
  }

  /** As `send`, for prepared statements. */
  sendAll(executions: readonly Execution[]): void {
    if (executions.length > 0) this.#later(this.#engine.session.executeAll(executions));
  }

  /** Why the transaction failed, when it was something sent without waiting; else `otherwise`. */
  async failure(otherwise: unknown): Promise<unknown> {
    const failed = (await Promise.allSettled(this.#sent)).find((outcome) => outcome.status === 'rejected');
    return failed === undefined ? otherwise : failed.reason;
  }

  #later(sent: Promise<unknown>): void {
    sent.catch(() => undefined);
    this.#sent.push(sent);
  }

  /** Storages whose capture has rows because of what the caller ran. */
  touch(storageId: number): void {
    if (this.#engine.state.captured.has(storageId)) this.#changed.add(storageId);
  }

  /** The caller has put so many rows into the delta table of a base table. */
  wrote(baseId: number, rows: number): void {
    this.#rows += rows;
    this.#changed.add(baseId);
  }

  /** Maintains the views, gives each its turn, runs what the caller wants last, records positions, commits. */
  async commit(positions: ReadonlyMap<number, Lsn>, turns?: Turns, ending: readonly string[] = []): Promise<void> {
    const { session, state, deltas, clock } = this.#engine;
    if (this.#changed.size > 0 || turns !== undefined) {
      if (this.#changed.size > 0 && !this.#changed.has(clockId)) this.sendAll(clock.followed(state));
      this.sendAll([{ name: 'free', sql: freePlanner }]);
      for (const view of state.views.values()) {
        if (view.state === 'error' || this.#failedViews.has(view.id)) continue;
        if (this.#direct.has(view.id)) this.touch(view.id);
        const inputs = view.inputs.filter((input) => this.#changed.has(storageOf(state, input)));
        if (inputs.length > 0) {
          const upkeep = upkeepOf(state, view);
          if (upkeep.atOnce) await this.#maintain(view.id, new Set(inputs));
          else if (upkeep.aside && turns?.takesAtOnce(view) !== true) this.#setAside(view.id, inputs);
        }
        if (turns !== undefined && (await turns.take(view, inputs))) this.touch(view.id);
      }
    }
    clock.changed(state, this.#changed);
    reach('steps.views-kept');
    if (turns !== undefined) this.sendAll(turns.ending());
    this.send(ending);
    if (state.outboxes.size > 0 && (await fitOutboxes(session, state))) this.#catalogChanged = true;
    const outboxes = outboxExecutions(state, this.#changed).filter(({ relationId }) => !this.#failedViews.has(relationId));
    this.sendAll(outboxes);
    const few = this.#rows <= fewRows;
    session.cork();
    // Those who wait for the epoch need not wait for this.
    const late = [...this.#changed].filter((id) => state.bases.has(id) && !deltas.deletes(deltaTable(id), few));
    const now = [...this.#changed].filter((id) => !late.includes(id)).map(deltaTable);
    const emptied = now.map((table) => {
      const { name, sql } = deltas.empty(table, few);
      deltas.unknown(table);
      return { table, result: session.execute(name, sql) };
    });
    const last: Promise<unknown>[] = [...this.#sent, ...emptied.map(({ result }) => result)];
    for (const { name, sql, params } of progress(positions)) last.push(session.execute(name, sql, params));
    last.push(session.query('COMMIT'));
    session.uncork();
    reachSoon('steps.commit-sent');
    await Promise.all(last);
    reach('steps.committed');
    for (const { table, result } of emptied) deltas.emptied(table, (await result).tag);
    for (const baseId of late) this.#engine.changes.filled.add(baseId);
    countEpoch(this.#engine, this.#rows);
    if (outboxes.length > 0) this.#engine.outboxed();
    if (this.#catalogChanged) this.#engine.wake();
  }

  /** A view that is being populated, or is not due, takes these deltas in one piece later. Those of base tables are in the caller's hands. */
  #setAside(viewId: number, inputs: readonly number[]): void {
    const { state, clean } = this.#engine;
    const own = inputs.filter((input) => !state.bases.has(input));
    if (own.length === 0) return;
    clean.delete(viewId);
    this.sendAll(settingAside(state, viewId, own));
  }

  async #maintain(viewId: number, inputs: ReadonlySet<number>): Promise<void> {
    const { session, state } = this.#engine;
    const statements = maintenance(state, viewId, inputs);
    const small = this.#rows <= fewRows;
    const sent: Promise<{ readonly tag: string } | undefined>[] = [];
    session.cork();
    const savepoint = session.query('SAVEPOINT maintain');
    for (const { name, sql } of statements) {
      sent.push(small ? session.execute(name, sql) : session.query(sql).then((results) => results.at(-1)));
    }
    const release = session.query('RELEASE SAVEPOINT maintain');
    session.uncork();
    const outcomes = await Promise.allSettled([savepoint, ...sent, release]);
    const failure = outcomes.find((outcome) => outcome.status === 'rejected');
    if (failure !== undefined) {
      requireStatementError(failure.reason);
      await session.query('ROLLBACK TO SAVEPOINT maintain; RELEASE SAVEPOINT maintain');
      await this.#rebuild(viewId);
      return;
    }
    let rows = 0;
    for (const result of await Promise.all(sent)) rows += affected(result?.tag);
    if (rows > 0) this.touch(viewId);
  }

  /** Delta terms evaluate expressions on pairs of rows that never stood side by side and may fail where the query does not: then the whole query decides. */
  async #rebuild(viewId: number): Promise<void> {
    const { session, state, log } = this.#engine;
    const view = state.views.get(viewId);
    if (view === undefined) return;
    const outcomes = await Promise.allSettled([
      session.query('SAVEPOINT rebuild'),
      ...rebuildSql(view.plan, viewId, (input) => storageTable(storageOf(state, input))).map((sql) => session.query(sql)),
      session.query('RELEASE SAVEPOINT rebuild'),
    ]);
    const failure = outcomes.find((outcome) => outcome.status === 'rejected');
    if (failure !== undefined) {
      const reason = requireStatementError(failure.reason);
      log.error({ view: viewId, err: reason }, 'a live view cannot be maintained');
      await session.query('ROLLBACK TO SAVEPOINT rebuild; RELEASE SAVEPOINT rebuild');
      await this.fail(viewId, {
        code: reason.code,
        message: `materialized view cannot be kept up to date: ${reason.message}`,
        detail: 'Its query fails on the rows there are now.',
        hint: 'DROP MATERIALIZED VIEW {relation}; and create it with a query that accepts these rows.',
      });
      return;
    }
    this.touch(viewId);
  }
}

/** Rows a command tag speaks of. */
function affected(tag: string | undefined): number {
  return Number(/(\d+)$/.exec(tag ?? '')?.[1] ?? 0);
}

/** Anything but an error of a statement (a lost connection, a bug) ends the engine. */
export function requireStatementError(reason: unknown): PostgresError {
  if (reason instanceof PostgresError && !(reason instanceof ConnectionLostError) && !reason.code.startsWith('57P')) return reason;
  throw reason;
}
