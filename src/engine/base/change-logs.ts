/**
 * The logs of changes of base tables: what some view has still to take, written once for all of them.
 * Invariant: a row of `millrace_data.w<base>` with epoch e is still to be taken by exactly the views whose position is less than e and that
 * look at a column its mask names. What is known here of the logs is what has been committed.
 */
import { changeLogTable, deltaTable, type LiveView, storageColumn } from '../../catalog/model.ts';
import type { ViewPlan } from '../../ivm/plans.ts';
import type { Execution } from '../../replication/session-contract.ts';
import { remembering } from '../remembering.ts';
import { addCounts, concerning, type MaskCounts, viewMask } from './masks.ts';
import { usedAttnums } from './shapes.ts';

interface Entry {
  readonly e: bigint;
  readonly masks: MaskCounts;
}

interface Log {
  /** In order of epochs. */
  entries: readonly Entry[];
  /** Rows deleted since the file was emptied or vacuumed. */
  dead: number;
}

/** Whether, and where, there is something for a view in a log. */
export interface Pending {
  readonly rows: number;
  /** Share of the log's rows that came after the view's position. */
  readonly share: number;
  /** Among those are rows of no concern. */
  readonly mixed: boolean;
}

const masks = remembering<ViewPlan, number, bigint>();

/** The columns of a base table that a view looks at. */
export const maskOf = ({ plan }: Pick<LiveView<ViewPlan>, 'plan'>, baseId: number): bigint =>
  masks(plan, baseId, () => viewMask(usedAttnums(plan, baseId)));

/** Says that these views have taken everything up to an epoch. */
export const takenSql = (viewIds: readonly number[], e: bigint): Execution => ({
  name: 'taken',
  sql: `INSERT INTO millrace.change_position (relation_id, e) SELECT unnest($1::bigint[]), $2::bigint
ON CONFLICT (relation_id) DO UPDATE SET e = excluded.e`,
  params: [`{${viewIds.join(',')}}`, String(e)],
});

/** The same, of a view that begins. */
export const startsSql = (viewId: number, e: bigint): string =>
  `INSERT INTO millrace.change_position (relation_id, e) VALUES (${viewId}, ${e}) ON CONFLICT (relation_id) DO UPDATE SET e = excluded.e`;

/** SQL expression of a view's position. */
export const positionSql = (viewId: number): string => `(SELECT p.e FROM millrace.change_position p WHERE p.relation_id = ${viewId})`;

/** Puts what is in the delta table and concerns who looks at `mask`, but not who looks at `before`, into the log. */
export function logging(baseId: number, attnums: readonly number[], e: bigint, mask: bigint, before: bigint): Execution {
  const columns = ['w', 'm', ...attnums.map(storageColumn)].join(', ');
  return {
    name: `w${baseId}`,
    sql: `INSERT INTO ${changeLogTable(baseId)} (e, ${columns}) SELECT $1::bigint, ${columns} FROM ${deltaTable(baseId)} WHERE m & $2::bigint <> 0 AND m & $3::bigint = 0`,
    params: [String(e), String(mask), String(before)],
  };
}

export class ChangeLogs {
  readonly #logs = new Map<number, Log>();
  /** Base tables whose delta table may hold changes of a former epoch: to be emptied before it is used. */
  readonly filled = new Set<number>();
  /** Of views that have taken something since the catalog was read. */
  readonly #positions = new Map<number, bigint>();

  /** Query for what a log holds; null: it is known. To be followed by `learn`. */
  question(baseId: number): string | null {
    return this.#logs.has(baseId) ? null : `SELECT e, m, count(*) FROM ${changeLogTable(baseId)} GROUP BY e, m ORDER BY e`;
  }

  learn(baseId: number, rows: readonly (readonly (string | null)[])[]): void {
    // A former engine may have ended before it emptied the delta table.
    this.filled.add(baseId);
    const entries = new Map<bigint, Map<bigint, number>>();
    for (const [e, mask, count] of rows) {
      const of = entries.get(BigInt(e ?? 0)) ?? new Map<bigint, number>();
      of.set(BigInt(mask ?? 0), Number(count));
      entries.set(BigInt(e ?? 0), of);
    }
    this.#logs.set(baseId, { entries: [...entries].map(([e, of]) => ({ e, masks: of })), dead: 0 });
  }

  /** The log was made anew, or something else is not known of it. */
  forget(baseId: number): void {
    this.#logs.delete(baseId);
  }

  position(view: Pick<LiveView<ViewPlan>, 'id' | 'position'>): bigint {
    const recorded = view.position ?? 0n;
    const later = this.#positions.get(view.id) ?? 0n;
    return later > recorded ? later : recorded;
  }

  /** An epoch has committed in which these views took everything. */
  took(viewIds: Iterable<number>, e: bigint): void {
    for (const id of viewIds) this.#positions.set(id, e);
  }

  /** An epoch has committed that wrote these rows. */
  wrote(baseId: number, e: bigint, counts: MaskCounts): void {
    const log = this.#logs.get(baseId);
    if (log !== undefined) log.entries = [...log.entries, { e, masks: counts }];
  }

  /** What a log has for a view. `more`: rows that the epoch under way has added. */
  pending(view: LiveView<ViewPlan>, baseId: number, more: MaskCounts | undefined): Pending {
    const mask = maskOf(view, baseId);
    const after = this.position(view);
    const later = new Map(more ?? []);
    let before = 0;
    for (const entry of this.#logs.get(baseId)?.entries ?? []) {
      if (entry.e > after) addCounts(later, entry.masks);
      else before += total(entry.masks);
    }
    const rows = concerning(later, mask);
    const all = total(later);
    return { rows, share: all / Math.max(all + before, 1), mixed: rows < all };
  }

  /** Logs of which something is known. */
  get known(): readonly number[] {
    return [...this.#logs.keys()];
  }

  rows(baseId: number): number {
    return this.upTo(baseId, null);
  }

  /** How many rows came up to an epoch; null: up to the last. */
  upTo(baseId: number, e: bigint | null): number {
    const entries = this.#logs.get(baseId)?.entries ?? [];
    return entries.reduce((sum, entry) => sum + (e === null || entry.e <= e ? total(entry.masks) : 0), 0);
  }

  /** Epoch of the last rows; null: there are none. */
  last(baseId: number): bigint | null {
    return this.#logs.get(baseId)?.entries.at(-1)?.e ?? null;
  }

  /** Rows deleted, and not yet vacuumed away. */
  dead(baseId: number): number {
    return this.#logs.get(baseId)?.dead ?? 0;
  }

  /** What came up to an epoch was removed. */
  removed(baseId: number, e: bigint, truncated: boolean): void {
    const log = this.#logs.get(baseId);
    if (log === undefined) return;
    log.dead = truncated ? 0 : log.dead + this.upTo(baseId, e);
    log.entries = log.entries.filter((entry) => entry.e > e);
  }

  vacuumed(baseId: number): void {
    const log = this.#logs.get(baseId);
    if (log !== undefined) log.dead = 0;
  }
}

const total = (counts: MaskCounts): number => [...counts.values()].reduce((sum, rows) => sum + rows, 0);
