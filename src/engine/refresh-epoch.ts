/**
 * An epoch that takes in changes of ordinary tables and refreshes deferred views.
 * Invariant: it reads ordinary tables at one snapshot, and their deltas are exactly the transactions that this snapshot sees and no
 * earlier one of these epochs saw; which they are is recorded (the snapshot) together with what was made of them.
 */
import { type BaseTable, type LiveView, type RelationError, storageTable, triggerTable } from '../catalog/model.ts';
import type { ViewPlan } from '../ivm/plans.ts';
import type { Lsn } from '../replication/lsn.ts';
import { PostgresError } from '../replication/postgres-error.ts';
import { quoteLiteral } from '../sql/quote.ts';
import type { BaseCapture } from './base/capture.ts';
import { insertDeltas } from './base/delta-rows.ts';
import { loseDeltas } from './base/facts.ts';
import { type BaseRunner, StreamLostError } from './base/runner.ts';
import {
  type BaseShape,
  baseError,
  baseProblem,
  baseStorage,
  notedColumns,
  sameColumns,
  shapesSql,
  usedAttnums,
  usedByAny,
} from './base/shapes.ts';
import { type EngineContext, storageOf } from './context.ts';
import { Epoch, type EpochSnapshot, LockRefusedError, requireStatementError } from './epoch.ts';
import { alert } from './streams/bookkeeping.ts';
import type { DueReason } from './streams/due.ts';
import type { StreamMemory } from './streams/memory.ts';
import { type Refreshed, refreshView } from './streams/refresh.ts';

export interface RefreshRequest {
  readonly due: ReadonlyMap<number, DueReason>;
  /** Takes in changes of base tables; null: there is no stream, or none is needed. */
  readonly capture: { readonly capture: BaseCapture; readonly runner: BaseRunner } | null;
  /** Base tables whose triggers have written down changes; those that are taken in are removed. */
  readonly triggers: Set<number>;
  /** A view that begins to be populated at this epoch's snapshot: called within the epoch. */
  readonly beginPopulation?: {
    readonly view: LiveView<ViewPlan>;
    readonly begin: (
      snapshotId: string,
      tables: readonly string[],
      storage: (input: number) => string,
      snapshot: EpochSnapshot,
    ) => Promise<readonly string[]>;
  };
}

export type RefreshResult =
  | { readonly kind: 'done'; readonly taken: number; readonly rows: number; readonly left: number }
  /** Nothing was changed; to be tried again, without these views when there are some. */
  | { readonly kind: 'again'; readonly without: readonly number[]; readonly reason: string };

export async function refreshEpoch(engine: EngineContext, memory: StreamMemory, request: RefreshRequest): Promise<RefreshResult> {
  const { session, state } = engine;
  const reading = [...request.due.keys(), ...(request.beginPopulation === undefined ? [] : [request.beginPopulation.view.id])].flatMap(
    (id) => {
      const view = state.views.get(id);
      return view === undefined ? [] : [view];
    },
  );
  const read = new Set(reading.flatMap((view) => view.inputs.filter((input) => state.bases.has(input))));
  // What is told from here on may be later than the snapshot.
  const told = [...request.triggers];
  request.triggers.clear();
  const logged = new Set([...told, ...read].filter((id) => isLogged(state.bases.get(id))));
  const tables = [...read].flatMap((id) => {
    const base = state.bases.get(id);
    return base?.lockable === true ? (base.name ?? []) : [];
  });
  let epoch: Epoch | null = null;
  try {
    const begun = await Epoch.beginAtSnapshot(engine, tables);
    epoch = begun.epoch;
    return await new RefreshRun(engine, memory, request, begun.epoch, begun.snapshot, read, logged).run(tables);
  } catch (thrown) {
    const error: unknown = (await epoch?.failure(thrown)) ?? thrown;
    for (const id of told) request.triggers.add(id);
    if (error instanceof LockRefusedError) {
      const base = [...state.bases.values()].find((one) => one.name === error.table);
      // Renamed or dropped since the catalog was read.
      if (error.isMissing) engine.wake();
      const without = reading.filter((view) => base !== undefined && view.inputs.includes(base.id)).map((view) => view.id);
      return { kind: 'again', without, reason: error.message };
    }
    // The capture of a table may end, with its delta table, while a view over it begins: the catalog says so by now.
    const passing = request.beginPopulation === undefined ? /^(40001|40P01)$/ : /^(40001|40P01|42P01)$/;
    if (error instanceof StreamLostError || (error instanceof PostgresError && passing.test(error.code))) {
      await session.query('ROLLBACK');
      engine.wake();
      return { kind: 'again', without: [], reason: error.message };
    }
    throw error;
  }
}

class RefreshRun {
  readonly #engine: EngineContext;
  readonly #memory: StreamMemory;
  readonly #request: RefreshRequest;
  readonly #epoch: Epoch;
  readonly #snapshot: EpochSnapshot;
  readonly #read: ReadonlySet<number>;
  /** Base tables whose changes triggers have written down. */
  readonly #logged: ReadonlySet<number>;
  readonly #shapes = new Map<number, BaseShape>();
  readonly #lost = new Map<number, string>();
  readonly #broken = new Set<number>();
  /** Rows that came into the delta tables of base tables. */
  readonly #counts = new Map<number, number>();
  #catalogChanged = false;

  constructor(
    engine: EngineContext,
    memory: StreamMemory,
    request: RefreshRequest,
    epoch: Epoch,
    snapshot: EpochSnapshot,
    read: ReadonlySet<number>,
    logged: ReadonlySet<number>,
  ) {
    this.#engine = engine;
    this.#memory = memory;
    this.#request = request;
    this.#epoch = epoch;
    this.#snapshot = snapshot;
    this.#read = read;
    this.#logged = logged;
  }

  async run(tables: readonly string[]): Promise<RefreshResult> {
    const { capture } = this.#request;
    const looked = this.#look(this.#read);
    if (capture !== null) await Promise.all([capture.capture.passed(capture.runner), looked]);
    await looked;
    const transactions = capture === null ? [] : capture.runner.visible(this.#snapshot.visible);
    const bases = this.#engine.state.bases;
    const changed = new Set(
      transactions.flatMap((one) => [...one.unknown.keys(), ...one.rows.map((rows) => rows.baseId)]).filter((id) => bases.has(id)),
    );
    await this.#look(new Set([...changed].filter((id) => !this.#shapes.has(id))));
    for (const { unknown } of transactions) for (const [baseId, reason] of unknown) await this.#lose(baseId, reason);
    let rows = 0;
    for (const baseId of changed) {
      const parts = transactions.flatMap((one) => one.rows.filter((part) => part.baseId === baseId));
      const count = parts.reduce((sum, part) => sum + part.count, 0);
      if (count === 0) continue;
      const failure = await insertDeltas(this.#engine.session, baseId, parts);
      if (failure === null) {
        this.#epoch.wrote(baseId, count);
        this.#counts.set(baseId, count);
        rows += count;
      } else {
        this.#engine.log.warn({ table: bases.get(baseId)?.name, err: failure }, 'changes of a base table do not fit its delta table');
        await this.#lose(baseId, `its changes could not be read: ${failure.message}`);
      }
    }
    for (const baseId of this.#logged) rows += await this.#takeLogged(baseId);
    if (capture !== null) this.#epoch.send([progressSql(this.#snapshot)]);
    const population = await this.#beginPopulation(tables);
    const { due } = this.#request;
    const finished: Refreshed[] = [];
    // Nothing is set aside for these, so the deltas of this epoch are all there are.
    const atOnce = new Set([...due.keys()].filter((id) => this.#engine.clean.has(id) && !this.#broken.has(id)));
    await this.#epoch.commit(
      new Map(),
      {
        takesAtOnce: (view) => atOnce.has(view.id),
        take: async (view, changed) => {
          const reason = due.get(view.id);
          if (reason === undefined || this.#broken.has(view.id)) return false;
          const fresh = atOnce.has(view.id) ? new Map(changed.map((input) => [input, this.#counts.get(input) ?? null])) : null;
          const outcome = await refreshView(
            {
              engine: this.#engine,
              epoch: this.#epoch,
              memory: this.#memory,
              storage: (input) => this.#storage(input),
              dataAt: this.#snapshot.takenAt,
              lost: this.#lost,
              fresh,
            },
            view,
            reason,
          );
          finished.push(outcome);
          return outcome.changed;
        },
      },
      population,
    );
    for (const outcome of finished) {
      outcome.committed();
      this.#catalogChanged ||= outcome.catalogChanged;
    }
    if (capture !== null) this.#acknowledge(capture.runner, transactions);
    if (this.#catalogChanged) this.#engine.wake();
    return { kind: 'done', taken: transactions.length, rows, left: capture?.runner.waiting.length ?? 0 };
  }

  /** Takes in what triggers wrote and the snapshot sees: as many rows as came. */
  async #takeLogged(baseId: number): Promise<number> {
    const { session } = this.#engine;
    const outcomes = await Promise.allSettled([
      session.query('SAVEPOINT logged'),
      session.query(`SELECT taken, truncated FROM millrace.take_base_changes(${baseId})`),
      session.query('RELEASE SAVEPOINT logged'),
    ]);
    const [, taken] = outcomes;
    const failure = outcomes.find((outcome) => outcome.status === 'rejected');
    if (failure !== undefined) {
      const reason = requireStatementError(failure.reason);
      if (reason.code === '40001') throw reason;
      await session.query(`ROLLBACK TO SAVEPOINT logged; RELEASE SAVEPOINT logged; DELETE FROM ${triggerTable(baseId)}`);
      await this.#lose(baseId, `its changes could not be read: ${reason.message}`);
      return 0;
    }
    const [count, truncated] = (taken.status === 'fulfilled' ? taken.value[0]?.rows[0] : undefined) ?? [];
    const rows = Number(count ?? 0);
    if (rows > 0) {
      this.#epoch.wrote(baseId, rows);
      this.#counts.set(baseId, rows);
    }
    if (truncated === 't') await this.#lose(baseId, 'TRUNCATE');
    return rows;
  }

  #acknowledge(runner: BaseRunner, transactions: Parameters<BaseRunner['taken']>[0]): void {
    const lsn: Lsn = runner.taken(transactions);
    this.#engine.whenFlushed(() => runner.flushed(lsn));
    const { metrics } = this.#engine;
    metrics['millrace_base_transactions_total'] = (metrics['millrace_base_transactions_total'] ?? 0) + transactions.length;
    if (runner.waiting.length > 0)
      metrics['millrace_base_waits_total'] = (metrics['millrace_base_waits_total'] ?? 0) + runner.waiting.length;
  }

  #storage(input: number): string {
    const shape = this.#shapes.get(input);
    return shape === undefined ? storageTable(storageOf(this.#engine.state, input)) : baseStorage(shape);
  }

  /** The base tables as the snapshot has them; views that lost a column they use are put aside, other changes are noted. */
  async #look(ids: ReadonlySet<number>): Promise<void> {
    if (ids.size === 0) return;
    const { session, state } = this.#engine;
    const [result] = await session.query(shapesSql([...ids]));
    for (const shape of JSON.parse(result?.rows[0]?.[0] ?? '[]') as BaseShape[]) {
      this.#shapes.set(shape.id, shape);
      const base = state.bases.get(shape.id);
      if (base !== undefined && base.parts !== shape.parts) {
        this.#epoch.send([
          `UPDATE millrace.base_table SET parts = ${shape.parts === null ? 'NULL' : quoteLiteral(shape.parts)} WHERE relation_id = ${shape.id}`,
        ]);
        if (base.parts !== null) await this.#lose(shape.id, 'partitions came, went or were truncated');
        this.#catalogChanged = true;
      }
      if (base === undefined) continue;
      const noted = notedColumns(base, shape.columns, usedByAny(state.views.values(), shape.id));
      if (sameColumns(base.columns, noted) && noted.length === shape.columns.length) continue;
      for (const view of state.views.values()) {
        if (!view.inputs.includes(shape.id) || view.state === 'error' || this.#broken.has(view.id)) continue;
        const problem = baseProblem(base, shape, usedAttnums(view.plan, shape.id));
        if (problem !== null) await this.#suspend(view, problem);
      }
      if (shape.name !== null && !sameColumns(base.columns, noted)) {
        this.#catalogChanged = true;
        await this.#epoch.run([
          `UPDATE millrace.base_table SET columns = ${quoteLiteral(JSON.stringify(noted))}::jsonb WHERE relation_id = ${shape.id}`,
        ]);
      }
    }
  }

  async #suspend(view: LiveView<ViewPlan>, problem: string): Promise<void> {
    const stream = this.#engine.state.streams.get(view.id);
    this.#broken.add(view.id);
    this.#catalogChanged = true;
    this.#engine.log.error({ view: view.id, name: stream?.name, problem }, 'a stream table is suspended');
    await suspend(this.#engine, this.#epoch, view.id, baseError(problem, `${stream?.schema}.${stream?.name}`));
  }

  /** What changed in a base table is not known: those who read it are to be computed as a whole. */
  async #lose(baseId: number, reason: string): Promise<void> {
    const { state } = this.#engine;
    await this.#epoch.run([loseDeltas([baseId], reason)]);
    for (const view of state.views.values()) {
      const stream = state.streams.get(view.id);
      if (!view.inputs.includes(baseId) || stream === undefined || stream.refreshMode !== 'DIFFERENTIAL') continue;
      if (view.state === 'ready') this.#lost.set(view.id, reason);
    }
    this.#catalogChanged = true;
  }

  async #beginPopulation(tables: readonly string[]): Promise<readonly string[]> {
    const { beginPopulation } = this.#request;
    if (beginPopulation === undefined) return [];
    const [exported] = await this.#engine.session.query('SELECT pg_export_snapshot()');
    return await beginPopulation.begin(exported?.rows[0]?.[0] ?? '', tables, (input) => this.#storage(input), this.#snapshot);
  }
}

const isLogged = (base: BaseTable | undefined): boolean => base?.state === 'captured' && base.method === 'trigger';

/** Puts a stream table aside, with the error that says why, within an epoch. */
export async function suspend(engine: EngineContext, epoch: Epoch, viewId: number, error: RelationError): Promise<void> {
  const stream = engine.state.streams.get(viewId);
  await epoch.fail(viewId, error);
  await epoch.run([
    `UPDATE millrace.stream_table SET status = 'SUSPENDED', status_reason = ${quoteLiteral(error.message)}, delta_lost = coalesce(delta_lost, 'it was suspended')
      WHERE relation_id = ${viewId}`,
    ...(stream?.triggered === true ? [`UPDATE millrace.immediate SET mode = 'off' WHERE relation_id = ${viewId}`] : []),
  ]);
  if (stream !== undefined) await engine.session.executeAll([alert(stream, 'auto_suspended', { reason: error.message })]);
}

function progressSql(snapshot: EpochSnapshot): string {
  return `UPDATE millrace.base_progress SET snapshot = ${quoteLiteral(snapshot.text)}, lsn = ${quoteLiteral(snapshot.lsn)}, committed_at = clock_timestamp()`;
}
