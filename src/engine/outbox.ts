/**
 * The outboxes: changes of live relations that sinks and subscriptions have still to take, written once for all of them.
 * Invariant: `millrace_data.o<relation>` holds, from the epoch after the one that made it, every change of what the relation shows, under the
 * timestamp of its epoch, as that epoch's delta has it: not netted, w first, then the shown columns by place. It is written in that epoch.
 * Where every reader takes upserts by the table's own key, a row that was changed need not be there as it was before (millrace.outbox.whole_since).
 * Rows are in its two segments; all of one epoch in one of them, and those of the segment that is not written to any more are the older ones.
 */
import { deltaTable, storageColumn, storageTable } from '../catalog/model.ts';
import { type OutboxSegment, outboxIndex, outboxSegments, outboxSegmentTable, outboxTable } from '../catalog/sink-model.ts';
import { captureDdl } from '../ivm/capture.ts';
import { visibleColumns } from '../ivm/view-plan.ts';
import type { Execution } from '../replication/session-contract.ts';
import { type CatalogState, storageOf } from './context.ts';
import { leanKey, type Written, wantedRows } from './upsert-outbox.ts';

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
    ...outboxSegments.flatMap((segment) => segmentDdl(relationId, segment)),
    `INSERT INTO millrace.outbox (relation_id, since, whole_since) SELECT ${relationId}, e.ts, e.ts FROM millrace.epoch e
     ON CONFLICT (relation_id)
     DO UPDATE SET since = excluded.since, whole_since = excluded.whole_since, segment = excluded.segment, turned_at = excluded.turned_at`,
  ];
}

/** Rows only come, until the table is emptied: there is nothing to vacuum. Its index says in which pages the rows of an epoch may be. */
export function segmentDdl(relationId: number, segment: OutboxSegment): string[] {
  const table = outboxSegmentTable(relationId, segment);
  const index = outboxIndex(relationId, segment).replace('millrace_data.', '');
  return [
    `CREATE TABLE ${table} () INHERITS (${outboxTable(relationId)}) WITH (autovacuum_enabled = off, toast.autovacuum_enabled = off)`,
    `CREATE INDEX ${index} ON ${table} USING brin (ts) WITH (pages_per_range = 32)`,
  ];
}

/** Takes away what `outboxDdl` made. */
export const dropOutbox = (relationId: number): string =>
  `DROP TABLE IF EXISTS ${[...outboxSegments.map((segment) => outboxSegmentTable(relationId, segment)), outboxTable(relationId)].join(', ')}`;

/** From the epoch of the caller on the outboxes of these relations have again what changed rows were before. */
export const keepWhole = (relationIds: readonly number[]): string =>
  `UPDATE millrace.outbox b SET whole_since = e.ts FROM millrace.epoch e WHERE b.whole_since IS NULL AND b.relation_id IN (${relationIds.join(', ')})`;

/** They no longer need have that. */
export const needsNoFormer = (relationIds: readonly number[]): string =>
  `UPDATE millrace.outbox SET whole_since = NULL WHERE relation_id IN (${relationIds.join(', ')})`;

/**
 * Puts the changes of this epoch into the outboxes. `changed`: storages whose delta tables may have rows; `written`: how, of those of which it is
 * known.
 */
export function outboxExecutions(
  state: CatalogState,
  changed: ReadonlySet<number>,
  written: ReadonlyMap<number, Written> = new Map(),
): (Execution & { readonly relationId: number })[] {
  const executions: (Execution & { readonly relationId: number })[] = [];
  for (const relationId of state.outboxes) {
    const relation = state.tables.get(relationId) ?? state.views.get(relationId);
    // One that has just been filled again is not known to be ready yet; before that nothing of it changes.
    if (relation === undefined || (relation.state !== 'ready' && relation.state !== 'populating')) continue;
    const storageId = storageOf(state, relationId);
    if (!changed.has(storageId)) continue;
    const key = leanKey(state, relationId);
    const how = key === null ? 'anyhow' : (written.get(storageId) ?? 'anyhow');
    const wanted = key === null ? null : wantedRows(how, key, deltaTable(storageId));
    executions.push({ relationId, name: `o${relationId}_${how.replace(' ', '_')}`, sql: outboxInsert(state, relationId, wanted) });
  }
  return executions;
}

/** One statement, so that one snapshot says which segment it is: all rows of an epoch are in the same, whoever turns them meanwhile. */
function outboxInsert(state: CatalogState, relationId: number, wanted: string | null): string {
  const columns = places(shownExpressions(state, relationId) ?? []);
  const rest = wanted === null ? '' : ` AND (${wanted})`;
  const into = (segment: OutboxSegment): string =>
    `INSERT INTO ${outboxSegmentTable(relationId, segment)} SELECT (SELECT e.ts FROM millrace.epoch e), s.w${columns}
  FROM ${deltaTable(storageOf(state, relationId))} s WHERE (SELECT turn.segment FROM turn) = '${segment}'${rest}`;
  return `WITH turn AS (SELECT b.segment FROM millrace.outbox b WHERE b.relation_id = ${relationId}), a AS (${into('a')}) ${into('b')}`;
}

/** Outboxes that nothing takes from: of what no sink still has to deliver, and no subscription of a relation that is there may ask for. */
export function unusedOutboxes(state: Pick<CatalogState, 'outboxes' | 'sinks' | 'subscriptions' | 'tables' | 'views'>): number[] {
  const used = new Set([...state.sinks.values()].flatMap((sink) => sink.versions.map(({ relationId }) => relationId)));
  for (const { relationId } of state.subscriptions.values()) {
    if (state.tables.has(relationId) || state.views.has(relationId)) used.add(relationId);
  }
  return [...state.outboxes].filter((relationId) => !used.has(relationId));
}
