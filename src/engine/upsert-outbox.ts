/**
 * Outboxes whose readers all take upserts by the key of the table: of a key that is still there nobody wants to know the row that was.
 * Invariant: what is left out of an epoch is the row before of a key that is there after it, and whose row after it is among what is written. That
 * cannot be seen from the delta alone: a row that came and went leaves the same there as one that was written anew. So it is told from how
 * the storage was written, and where that is not known nothing is left out.
 */
import { storageColumn } from '../catalog/model.ts';
import { newestOnly } from '../ivm/capture.ts';
import type { PlainStep } from './apply-steps.ts';
import { type CatalogState, storageOf } from './context.ts';

/** Values of a row's key, each as SQL that gives equal values for what looks the same, and for nothing else. */
type RowKey = (row: string) => string[];

/** Types of which equal values look the same. */
const plainTypes = /^(smallint|integer|bigint|oid|uuid|boolean|date|bytea|timestamp(\(\d\))? with(out)? time zone)$/;

/** The key of a table, when every sink that reads it takes upserts by that key and nobody else reads it; null: somebody wants to know all. */
export function upsertKey(state: Pick<CatalogState, 'tables' | 'storages' | 'sinks' | 'subscriptions'>, relationId: number): RowKey | null {
  const table = state.tables.get(relationId);
  const storage = table === undefined ? undefined : state.storages.get(table.storageId);
  if (table === undefined || storage === undefined || storage.keyAttnums.length === 0) return null;
  const names = new Set(storage.keyAttnums.map((attnum) => table.columns.find((column) => column.attnum === attnum)?.name));
  for (const subscription of state.subscriptions.values()) if (subscription.relationId === relationId) return null;
  for (const { upserts, key, versions } of state.sinks.values()) {
    if (versions.every((version) => version.relationId !== relationId)) continue;
    if (!upserts || key?.length !== names.size || !key.every((name) => names.has(name))) return null;
  }
  const columns = storage.columns.filter(({ attnum }) => storage.keyAttnums.includes(attnum));
  return (row) =>
    columns.map(({ attnum, type }) => {
      const value = `${row}.${storageColumn(attnum)}`;
      return plainTypes.test(type) ? value : `${value}::text COLLATE "C"`;
    });
}

/** The same while the outbox need not have what rows were before. */
export function leanKey(state: CatalogState, relationId: number): RowKey | null {
  return state.upsertOutboxes.has(relationId) ? upsertKey(state, relationId) : null;
}

/**
 * How an epoch has written to a storage with a key. 'updated': rows were updated whose keys stay, or inserted, no key twice. 'once': by one statement,
 * which does one thing to each key.
 */
export type Written = 'updated' | 'once' | 'anyhow';

/** How these steps write to each storage, when nothing else does in their epoch. */
export function writtenBy(steps: readonly PlainStep[]): Map<number, Written> {
  const written = new Map<number, Written>();
  for (const step of steps) written.set(step.storageId, written.has(step.storageId) ? 'anyhow' : writing(step));
  return written;
}

function writing(step: PlainStep): Written {
  if (step.kind !== 'rows') return 'anyhow';
  if (step.changeRows === 0) return 'updated';
  if (step.insertRows > 0) return 'anyhow';
  const { inserts, updates, deletes, repeats } = step.shape;
  return updates && !inserts && !deletes && !repeats ? 'updated' : 'once';
}

/** Condition on a row `s` of the delta; null: all are wanted. */
export function wantedRows(written: Written, key: RowKey, delta: string): string | null {
  switch (written) {
    case 'updated':
      return 's.w > 0';
    case 'once': {
      const [ours, others] = [key('s'), key('n')];
      const isSame = ours.map((value, place) => `${others[place]} = ${value}`).join(' AND ');
      return `s.w > 0 OR NOT EXISTS (SELECT FROM ${delta} n WHERE n.w > 0 AND ${isSame})`;
    }
    case 'anyhow':
      return null;
  }
}

/** Statements that keep what nobody wants from being captured: of storages that are `updated` and that only such outboxes read. */
export function leaveOutFormer(state: CatalogState, written: ReadonlyMap<number, Written>): string[] {
  const lean = [...written].flatMap(([storageId, how]) => (how === 'updated' && isReadByKey(state, storageId) ? [storageId] : []));
  return lean.length === 0 ? [] : [newestOnly(lean)];
}

function isReadByKey(state: CatalogState, storageId: number): boolean {
  const isOfIt = (relationId: number): boolean => storageOf(state, relationId) === storageId;
  for (const { inputs } of state.views.values()) if (inputs.some(isOfIt)) return false;
  const read = [...state.outboxes].filter(isOfIt);
  return read.length > 0 && read.every((id) => leanKey(state, id) !== null);
}
