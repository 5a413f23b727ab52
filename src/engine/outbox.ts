/**
 * The outboxes: changes of live relations that sinks and subscriptions have still to take, written once for all of them.
 * Invariant: `millrace_data.o<relation>` holds, from the epoch after the one that made it, every change of what the relation shows, under the
 * timestamp of its epoch, as that epoch's delta has it: not netted, w first, then the shown columns by place. It is written in that epoch.
 */
import { deltaTable, storageColumn, storageTable } from '../catalog/model.ts';
import { outboxTable } from '../catalog/sink-model.ts';
import { captureDdl } from '../ivm/capture.ts';
import { visibleColumns } from '../ivm/view-plan.ts';
import type { Execution } from '../replication/session-contract.ts';
import { type CatalogState, storageOf } from './context.ts';

type Relations = Pick<CatalogState, 'tables' | 'views'>;

/** What a relation shows, by place, as SQL over a row `s` of its storage or of its delta; null: there is no such relation. */
export function shownExpressions({ tables, views }: Relations, relationId: number): readonly string[] | null {
  const table = tables.get(relationId);
  if (table !== undefined) return table.columns.map(({ attnum }) => `s.${storageColumn(attnum)}`);
  const view = views.get(relationId);
  return view === undefined ? null : visibleColumns(view.plan).map(({ expression }) => expression);
}

/** v1, v2, .. */
export const placeNames = (count: number): string[] => Array.from({ length: count }, (_, index) => `v${index + 1}`);

const places = (expressions: readonly string[]): string =>
  expressions.map((expression, index) => `, ${expression} AS v${index + 1}`).join('');

/** Rows of a relation by place, as a FROM item's text. */
export function shownRows(state: CatalogState, relationId: number): string {
  const expressions = shownExpressions(state, relationId) ?? [];
  return `SELECT ${places(expressions).slice(2)} FROM ${storageTable(storageOf(state, relationId))} s`;
}

/** Makes the outbox of a relation, and has its changes captured; in an epoch. */
export function outboxDdl(state: CatalogState, relationId: number): string[] {
  const storageId = storageOf(state, relationId);
  const table = outboxTable(relationId);
  return [
    ...(state.captured.has(storageId) ? [] : captureDdl(storageId)),
    `CREATE TABLE ${table} AS SELECT 0::bigint AS ts, 0::smallint AS w${places(shownExpressions(state, relationId) ?? [])} FROM ${storageTable(storageId)} s WITH NO DATA`,
    `CREATE INDEX ON ${table} (ts)`,
    `INSERT INTO millrace.outbox SELECT ${relationId}, e.ts FROM millrace.epoch e ON CONFLICT (relation_id) DO UPDATE SET since = excluded.since`,
  ];
}

/** Puts the changes of this epoch into the outboxes. `changed`: storages whose delta tables may have rows. */
export function outboxExecutions(state: CatalogState, changed: ReadonlySet<number>): (Execution & { readonly relationId: number })[] {
  const executions: (Execution & { readonly relationId: number })[] = [];
  for (const relationId of state.outboxes) {
    const relation = state.tables.get(relationId) ?? state.views.get(relationId);
    // One that has just been filled again is not known to be ready yet; before that nothing of it changes.
    if (relation === undefined || (relation.state !== 'ready' && relation.state !== 'populating')) continue;
    const storageId = storageOf(state, relationId);
    if (!changed.has(storageId)) continue;
    const columns = places(shownExpressions(state, relationId) ?? []);
    executions.push({
      relationId,
      name: `o${relationId}`,
      sql: `INSERT INTO ${outboxTable(relationId)} SELECT (SELECT e.ts FROM millrace.epoch e), s.w${columns} FROM ${deltaTable(storageId)} s`,
    });
  }
  return executions;
}

/** Outboxes that nothing takes from: of what no sink still has to deliver, and no subscription of a relation that is there may ask for. */
export function unusedOutboxes(state: Pick<CatalogState, 'outboxes' | 'sinks' | 'subscriptions' | 'tables' | 'views'>): number[] {
  const used = new Set([...state.sinks.values()].flatMap((sink) => sink.versions.map(({ relationId }) => relationId)));
  for (const { relationId } of state.subscriptions.values()) {
    if (state.tables.has(relationId) || state.views.has(relationId)) used.add(relationId);
  }
  return [...state.outboxes].filter((relationId) => !used.has(relationId));
}
