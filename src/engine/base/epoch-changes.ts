/**
 * Changes of base tables within one epoch: what came, whom it concerns, what is kept for later.
 * Invariant: a change that concerns a view is in the delta table while the view takes its turn at once, or in the log with a number greater
 * than the view's position; one that concerns no view is nowhere.
 */
import { changeLogTable, deltaTable, type LiveView } from '../../catalog/model.ts';
import type { ViewPlan } from '../../ivm/plans.ts';
import { boundedDelta } from '../../ivm/view-plan.ts';
import type { Execution, StatementResult } from '../../replication/session-contract.ts';
import type { EngineContext } from '../context.ts';
import { emptyTable } from '../delta-tables.ts';
import { upkeepOf } from '../view-upkeep.ts';
import { logging, maskOf, positionSql, takenSql } from './change-logs.ts';
import { concerning, type MaskCounts } from './masks.ts';
import { usedAttnums } from './shapes.ts';
import type { BaseRows } from './transactions.ts';

/** Share of a log from which a view reads the whole of it rather than by index. */
const wholeLog = 0.1;

/** A view had its turn. */
export interface Turn {
  readonly viewId: number;
  /** It has everything up to this epoch; false: what it had before. */
  readonly taken: boolean;
  /** Taken from the delta tables alone, so that its position in the logs need not change unless they did. */
  readonly fresh: boolean;
}

export class EpochChanges {
  readonly #engine: EngineContext;
  readonly #asked: readonly number[];
  /** What came into the delta tables. */
  readonly #came = new Map<number, MaskCounts>();
  /** Columns of which changes are in the log by now. */
  readonly #kept = new Map<number, bigint>();
  #taken: readonly number[] = [];
  readonly #emptied: number[] = [];

  constructor(engine: EngineContext, read: Iterable<number>) {
    this.#engine = engine;
    this.#asked = [...read].filter((baseId) => this.#isCaptured(baseId) && engine.changes.question(baseId) !== null);
  }

  /** What has to be asked for within the epoch, for `learn`. */
  get questions(): readonly Execution[] {
    return this.#questions(this.#asked);
  }

  learn(answers: readonly StatementResult[]): void {
    this.#asked.forEach((baseId, i) => {
      this.#engine.changes.learn(baseId, answers[i]?.rows ?? []);
    });
  }

  /** Asks at once for what is not known of these. */
  async ask(bases: Iterable<number>): Promise<void> {
    const unknown = [...bases].filter((baseId) => this.#isCaptured(baseId) && this.#engine.changes.question(baseId) !== null);
    if (unknown.length === 0) return;
    const answers = await this.#engine.session.executeAll(this.#questions(unknown));
    unknown.forEach((baseId, i) => {
      this.#engine.changes.learn(baseId, answers[i]?.rows ?? []);
    });
  }

  #questions(bases: readonly number[]): Execution[] {
    return bases.map((baseId) => ({ name: `l${baseId}`, sql: this.#engine.changes.question(baseId) ?? '' }));
  }

  #isCaptured(baseId: number): boolean {
    return this.#engine.state.bases.get(baseId)?.state === 'captured';
  }

  /** Statements that empty the delta tables of these where a former epoch has left that for later. */
  emptying(bases: Iterable<number>): string[] {
    const filled = [...bases].filter((baseId) => this.#engine.changes.filled.has(baseId));
    this.#emptied.push(...filled);
    for (const baseId of filled) this.#engine.changes.filled.delete(baseId);
    return filled.map((baseId) => emptyTable(deltaTable(baseId)));
  }

  /** Changed rows that came in. */
  get rows(): number {
    let sum = 0;
    for (const counts of this.#came.values()) for (const rows of counts.values()) sum += rows;
    return sum;
  }

  /** Whether these changes concern any view that wants to know. */
  isWanted(baseId: number, parts: readonly BaseRows[]): boolean {
    return this.#takers(baseId).some((view) => parts.some((part) => concerning(part.masks, maskOf(view, baseId)) > 0));
  }

  /** Views that use a column which some of these changes do not have: they were read when nobody used it. */
  notCovered(baseId: number, parts: readonly BaseRows[]): LiveView<ViewPlan>[] {
    const targets = [...new Set(parts.map((part) => part.target))];
    return this.#takers(baseId).filter((view) => {
      const used = usedAttnums(view.plan, baseId);
      return targets.some(({ attnums, computed }) => [...used].some((attnum) => !attnums.includes(attnum) && !computed.includes(attnum)));
    });
  }

  /** These are in the delta table. */
  took(baseId: number, counts: MaskCounts): void {
    this.#came.set(baseId, counts);
  }

  /** Statements that put into the logs what concerns views that do not take it at once. */
  keepForOthers(e: bigint, atOnce: ReadonlySet<number>): Execution[] {
    return [...this.#came.keys()].flatMap((baseId) =>
      this.#takers(baseId).flatMap((view) => (atOnce.has(view.id) ? [] : this.#mark(view, baseId))).length === 0
        ? []
        : this.#log(e, baseId, 0n),
    );
  }

  /** Statements that put into the logs what a view could not take after all. */
  keep(e: bigint, view: LiveView<ViewPlan>, inputs: readonly number[]): Execution[] {
    return inputs.flatMap((baseId) => {
      const before = this.#kept.get(baseId) ?? 0n;
      this.#mark(view, baseId);
      return this.#kept.get(baseId) === before || !this.#came.has(baseId) ? [] : this.#log(e, baseId, before);
    });
  }

  /** The view finds its changes in the log from here on. Answers it if there are any. */
  #mark(view: LiveView<ViewPlan>, baseId: number): readonly LiveView<ViewPlan>[] {
    const mask = maskOf(view, baseId);
    if (concerning(this.#came.get(baseId) ?? new Map(), mask) === 0) return [];
    this.#engine.clean.delete(view.id);
    this.#kept.set(baseId, (this.#kept.get(baseId) ?? 0n) | mask);
    return [view];
  }

  #log(e: bigint, baseId: number, before: bigint): Execution[] {
    const base = this.#engine.state.bases.get(baseId);
    return base === undefined ? [] : [logging(baseId, base.deltaAttnums, e, this.#kept.get(baseId) ?? 0n, before)];
  }

  /** Rows that a view has to take of a base table. */
  pending(view: LiveView<ViewPlan>, baseId: number, fresh: boolean): number {
    if (fresh) return concerning(this.#came.get(baseId) ?? new Map(), maskOf(view, baseId));
    return this.#engine.changes.pending(view, baseId, this.#keptCounts(baseId)).rows;
  }

  /**
   * FROM item of so many rows that a view has to take; `stable`: the text is to be the same in other epochs, as far as it can be.
   */
  delta(view: LiveView<ViewPlan>, baseId: number, fresh: boolean, rows: number, stable: boolean): string {
    const mask = maskOf(view, baseId);
    const concerns = `m & ${mask} <> 0`;
    if (fresh) {
      const all = [...(this.#came.get(baseId) ?? new Map<bigint, number>()).keys()].every((changed) => (changed & mask) !== 0n);
      return boundedDelta(deltaTable(baseId), rows, all ? null : concerns);
    }
    const { changes } = this.#engine;
    const { share, mixed } = changes.pending(view, baseId, this.#keptCounts(baseId));
    const after = stable ? positionSql(view.id) : String(changes.position(view));
    // The upper bound makes the planner expect few rows, and go by index.
    const later = share === 1 ? [] : [share < wholeLog ? `e > ${after} AND e < ${2n ** 63n - 1n}` : `e > ${after}`];
    const where = [...later, ...(mixed ? [concerns] : [])];
    return boundedDelta(changeLogTable(baseId), rows, where.length === 0 ? null : where.join(' AND '));
  }

  /** What is to be recorded: how far views are in the logs. */
  ending(e: bigint, turns: readonly Turn[]): Execution[] {
    const { state } = this.#engine;
    this.#taken = turns
      .filter(({ viewId, taken, fresh }) => {
        const bases = (state.views.get(viewId)?.inputs ?? []).filter((input) => state.bases.has(input));
        return taken && bases.length > 0 && (!fresh || bases.some((baseId) => this.#kept.has(baseId)));
      })
      .map(({ viewId }) => viewId);
    return this.#taken.length === 0 ? [] : [takenSql(this.#taken, e)];
  }

  /** The epoch was rolled back. */
  undone(): void {
    for (const baseId of this.#emptied) this.#engine.changes.filled.add(baseId);
  }

  committed(e: bigint): void {
    const { changes } = this.#engine;
    for (const baseId of this.#kept.keys()) changes.wrote(baseId, e, this.#keptCounts(baseId) ?? new Map());
    changes.took(this.#taken, e);
  }

  #keptCounts(baseId: number): MaskCounts | undefined {
    const kept = this.#kept.get(baseId);
    if (kept === undefined) return undefined;
    return new Map([...(this.#came.get(baseId) ?? [])].filter(([changed]) => (changed & kept) !== 0n));
  }

  /** Views that changes of a base table are kept for. */
  #takers(baseId: number): LiveView<ViewPlan>[] {
    const { state } = this.#engine;
    return [...state.views.values()].filter((view) => view.inputs.includes(baseId) && upkeepOf(state, view).aside);
  }
}
