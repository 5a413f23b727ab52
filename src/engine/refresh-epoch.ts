/**
 * An epoch that takes in changes of ordinary tables and refreshes deferred views.
 * Invariant: it reads ordinary tables at one snapshot, and their deltas are exactly the transactions that this snapshot sees and no
 * earlier one of these epochs saw; which they are is recorded (the snapshot) together with what was made of them.
 */
import { type BaseTable, deltaTable, type LiveView, storageTable, triggerTable } from '../catalog/model.ts';
import type { ViewPlan } from '../ivm/plans.ts';
import type { Lsn } from '../replication/lsn.ts';
import { PostgresError } from '../replication/postgres-error.ts';
import type { Execution, StatementResult } from '../replication/session-contract.ts';
import { quoteLiteral } from '../sql/quote.ts';
import type { BaseCapture } from './base/capture.ts';
import { insertDeltas } from './base/delta-rows.ts';
import { EpochChanges } from './base/epoch-changes.ts';
import { loseDeltas } from './base/facts.ts';
import { addCounts, allColumns, type MaskCounts } from './base/masks.ts';
import { type BaseRunner, StreamLostError } from './base/runner.ts';
import { type BaseShape, baseError, baseProblem, baseStorage, notedColumns, sameColumns, shapesOf, usedByAny } from './base/shapes.ts';
import type { BaseRows, BaseTransaction } from './base/transactions.ts';
import { type EngineContext, storageOf } from './context.ts';
import { statisticsFor } from './delta-tables.ts';
import { Epoch, type EpochSnapshot, LockRefusedError, requireStatementError } from './epoch.ts';
import { reach } from './fault-points.ts';
import type { DueReason } from './streams/due.ts';
import type { StreamMemory } from './streams/memory.ts';
import { type Refreshed, refreshView } from './streams/refresh.ts';
import { suspend } from './streams/suspend.ts';

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
  const log = new EpochChanges(engine, read);
  try {
    const marker = request.capture?.capture.marker(request.capture.runner);
    const shapes = read.size === 0 ? [] : [shapesOf([...read])];
    const asked = [...request.due].flatMap(([id, reason]) => (reason === 'manual' ? [id] : []));
    const before = [...(marker?.statement == null ? [] : [marker.statement]), ...(asked.length === 0 ? [] : [underWay(asked)])];
    const begun = await Epoch.beginAtSnapshot(engine, tables, [...before, ...shapes, ...log.questions]);
    epoch = begun.epoch;
    const answers = begun.answers.slice(before.length);
    const run = new RefreshRun(engine, memory, request, begun.epoch, begun.snapshot, { logged, log });
    if (marker?.statement === null) await marker.write();
    const looked = run.saw(answers.slice(0, shapes.length));
    log.learn(answers.slice(shapes.length));
    await Promise.all([looked, marker?.passed]);
    const gated = run.gated();
    if (gated.length > 0) throw new GatedError(gated);
    return await run.run(tables);
  } catch (thrown) {
    const error: unknown = (await epoch?.failure(thrown)) ?? thrown;
    log.undone();
    for (const id of told) request.triggers.add(id);
    if (error instanceof LockRefusedError) {
      const base = [...state.bases.values()].find((one) => one.name === error.table);
      // Renamed or dropped since the catalog was read.
      if (error.isMissing) engine.wake();
      const without = reading.filter((view) => base !== undefined && view.inputs.includes(base.id)).map((view) => view.id);
      return { kind: 'again', without, reason: error.message };
    }
    if (error instanceof GatedError) {
      await session.query('ROLLBACK');
      engine.wake();
      return { kind: 'again', without: error.views, reason: error.message };
    }
    // The capture of a table may end, with its tables of changes, at any time: the catalog says so by now.
    const passing = /^(40001|40P01|42P01)$/;
    if (error instanceof StreamLostError || (error instanceof PostgresError && passing.test(error.code))) {
      await session.query('ROLLBACK');
      engine.wake();
      return { kind: 'again', without: [], reason: error.message };
    }
    throw error;
  }
}

/** A table that some of the views read has been gated since the catalog was read: the snapshot may have a part of what is being loaded. */
class GatedError extends Error {
  readonly views: readonly number[];
  constructor(views: readonly number[]) {
    super('a source is gated');
    this.views = views;
  }
}

class RefreshRun {
  readonly #engine: EngineContext;
  readonly #memory: StreamMemory;
  readonly #request: RefreshRequest;
  readonly #epoch: Epoch;
  readonly #snapshot: EpochSnapshot;
  /** Base tables whose changes triggers have written down. */
  readonly #logged: ReadonlySet<number>;
  readonly #log: EpochChanges;
  readonly #shapes = new Map<number, BaseShape>();
  readonly #storages = new Map<number, string>();
  readonly #lost = new Map<number, string>();
  readonly #broken = new Set<number>();
  #catalogChanged = false;

  constructor(
    engine: EngineContext,
    memory: StreamMemory,
    request: RefreshRequest,
    epoch: Epoch,
    snapshot: EpochSnapshot,
    tables: { readonly logged: ReadonlySet<number>; readonly log: EpochChanges },
  ) {
    this.#engine = engine;
    this.#memory = memory;
    this.#request = request;
    this.#epoch = epoch;
    this.#snapshot = snapshot;
    this.#logged = tables.logged;
    this.#log = tables.log;
  }

  /** To be called when every transaction that the snapshot sees has been decoded. */
  async run(tables: readonly string[]): Promise<RefreshResult> {
    const { capture, due } = this.#request;
    reach('refresh.snapshot-taken');
    const transactions = capture === null ? [] : capture.runner.visible(this.#snapshot.visible);
    await this.#takeIn(transactions);
    for (const baseId of this.#logged) await this.#takeLogged(baseId);
    const rows = this.#log.rows;
    reach('refresh.changes-in');
    if (capture !== null) this.#epoch.sendAll([progressSql(this.#snapshot)]);
    const population = await this.#beginPopulation(tables);
    const finished: Refreshed[] = [];
    // Nothing is set aside for these, so the deltas of this epoch are all there are.
    const atOnce = new Set([...due.keys()].filter((id) => this.#engine.clean.has(id) && !this.#broken.has(id)));
    this.#epoch.sendAll(this.#log.keepForOthers(this.#snapshot.number, atOnce));
    await this.#epoch.commit(
      new Map(),
      {
        takesAtOnce: (view) => atOnce.has(view.id),
        take: async (view, changed) => {
          const reason = due.get(view.id);
          if (reason === undefined || this.#broken.has(view.id)) return false;
          const outcome = await refreshView(
            {
              engine: this.#engine,
              epoch: this.#epoch,
              memory: this.#memory,
              storage: (input) => this.#storage(input),
              dataAt: this.#snapshot.takenAt,
              lost: this.#lost,
              changes: this.#log,
              fresh: atOnce.has(view.id) ? changed : null,
              keep: (inputs) => this.#epoch.sendAll(this.#log.keep(this.#snapshot.number, view, inputs)),
            },
            view,
            reason,
          );
          finished.push(outcome);
          return outcome.changed;
        },
        ending: () => this.#log.ending(this.#snapshot.number, finished),
      },
      population,
    );
    reach('refresh.committed');
    this.#log.committed(this.#snapshot.number);
    for (const outcome of finished) {
      outcome.committed();
      this.#catalogChanged ||= outcome.catalogChanged;
    }
    if (capture !== null) this.#acknowledge(capture.runner, transactions);
    if (this.#catalogChanged) this.#engine.wake();
    return { kind: 'done', taken: transactions.length, rows, left: capture?.runner.waiting.length ?? 0 };
  }

  /** Brings the changes that concern some view into the delta tables. */
  async #takeIn(transactions: readonly BaseTransaction[]): Promise<void> {
    const { state, session, log } = this.#engine;
    const partsOf = new Map<number, BaseRows[]>();
    const unknown = new Map<number, string>();
    for (const transaction of transactions) {
      for (const part of transaction.rows) {
        const parts = partsOf.get(part.baseId);
        if (parts !== undefined) parts.push(part);
        else if (state.bases.has(part.baseId)) partsOf.set(part.baseId, [part]);
      }
      for (const [baseId, reason] of transaction.unknown) if (state.bases.has(baseId)) unknown.set(baseId, reason);
    }
    const unseen = [...new Set([...partsOf.keys(), ...unknown.keys()])].filter((id) => !this.#shapes.has(id));
    if (unseen.length > 0) await this.saw(await session.executeAll([shapesOf(unseen)]));
    for (const [baseId, reason] of unknown) await this.#lose(baseId, reason);
    const wanted = new Map([...partsOf].filter(([baseId, parts]) => this.#log.isWanted(baseId, parts)));
    for (const [baseId, parts] of wanted) {
      for (const view of this.#log.notCovered(baseId, parts)) await this.#loseOf(view, 'changes were read before it was there');
    }
    if (wanted.size === 0) return;
    await this.#log.ask(wanted.keys());
    this.#epoch.send(this.#log.emptying(wanted.keys()));
    if ((await insertDeltas(session, wanted)) === null) {
      for (const [baseId, parts] of wanted) this.#tookIn(baseId, countsOf(parts));
      return;
    }
    for (const [baseId, parts] of wanted) {
      const failure = await insertDeltas(session, new Map([[baseId, parts]]));
      if (failure === null) {
        this.#tookIn(baseId, countsOf(parts));
        continue;
      }
      log.warn({ table: state.bases.get(baseId)?.name, err: failure }, 'changes of a base table do not fit its delta table');
      await this.#lose(baseId, `its changes could not be read: ${failure.message}`);
    }
  }

  #tookIn(baseId: number, counts: MaskCounts): void {
    this.#log.took(baseId, counts);
    const rows = [...counts.values()].reduce((sum, each) => sum + each, 0);
    this.#epoch.wrote(baseId, rows);
    const base = this.#engine.state.bases.get(baseId);
    if (base !== undefined) this.#epoch.send(statisticsFor(deltaTable(baseId), rows, base.tableOid));
  }

  /** Takes in what triggers wrote and the snapshot sees. */
  async #takeLogged(baseId: number): Promise<void> {
    const { session } = this.#engine;
    await this.#log.ask([baseId]);
    this.#epoch.send(this.#log.emptying([baseId]));
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
      return;
    }
    const [count, truncated] = (taken.status === 'fulfilled' ? taken.value[0]?.rows[0] : undefined) ?? [];
    const rows = Number(count ?? 0);
    if (rows > 0) this.#tookIn(baseId, new Map([[allColumns, rows]]));
    if (truncated === 't') await this.#lose(baseId, 'TRUNCATE');
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
    return this.#storages.get(input) ?? storageTable(storageOf(this.#engine.state, input));
  }

  /** The base tables as the snapshot has them (answers to shapesOf); views that lost a column they use are put aside, other changes are noted. */
  async saw(answers: readonly StatementResult[]): Promise<void> {
    const { state } = this.#engine;
    for (const shape of answers.flatMap((answer) => JSON.parse(answer.rows[0]?.[0] ?? '[]') as BaseShape[])) {
      this.#shapes.set(shape.id, shape);
      this.#storages.set(shape.id, baseStorage(shape));
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
        const problem = baseProblem(base, shape, view, state.streams);
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

  /** Views that are due by themselves and read a table that is gated as of the snapshot. */
  gated(): readonly number[] {
    return [...this.#request.due].flatMap(([id, reason]) => {
      const inputs = this.#engine.state.views.get(id)?.inputs ?? [];
      return reason !== 'manual' && inputs.some((input) => this.#shapes.get(input)?.gated === true) ? [id] : [];
    });
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

  /** For one view some of the changes have not all that it wants. */
  async #loseOf(view: LiveView<ViewPlan>, reason: string): Promise<void> {
    this.#lost.set(view.id, reason);
    await this.#epoch.run([
      `UPDATE millrace.stream_table SET delta_lost = coalesce(delta_lost, ${quoteLiteral(reason)}) WHERE relation_id = ${view.id}`,
    ]);
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

/** Those who have asked for these refreshes wait for the end of this epoch (millrace.refresh_outcomes). */
const underWay = (viewIds: readonly number[]): Execution => ({
  name: 'under_way',
  sql: 'SELECT pg_try_advisory_xact_lock(1835625581, (v % 2147483647)::integer) FROM unnest($1::bigint[]) v',
  params: [`{${viewIds.join(',')}}`],
});

const progressSql = (snapshot: EpochSnapshot): Execution => ({
  name: 'base_progress',
  sql: 'UPDATE millrace.base_progress SET snapshot = $1, lsn = $2::pg_lsn, committed_at = clock_timestamp()',
  params: [snapshot.text, snapshot.lsn],
});

function countsOf(parts: readonly BaseRows[]): MaskCounts {
  const counts = new Map<bigint, number>();
  for (const part of parts) addCounts(counts, part.masks);
  return counts;
}
