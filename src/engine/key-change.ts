/**
 * The key of an origin's table becomes another one. Pure.
 * Invariant: rows are found by what the origin sends of old ones. With the key that a storage was made with that is its key, or all of the row; else an update
 * that moves a row, or a deletion, does not say which row it was, and two rows may have the same key here.
 */
import type { Storage } from '../catalog/model.ts';
import type { OriginTable, TableShape } from '../replication/origin-tables.ts';
import type { RelationMessage } from '../replication/pgoutput.ts';
import { quoteIdentifier, quoteQualified } from '../sql/quote.ts';
import type { MissedRows } from './missed-rows.ts';
import { alteredError } from './relation-errors.ts';

interface KeyedTable {
  readonly identityKey: readonly number[];
  /** As TableShape has it. */
  readonly replicaIdentity: string;
}

/** Whether changes of the table find the rows of the storage. Without key whole old rows do, or there are none, because nothing tells rows apart. */
export function fitsKey({ keyAttnums }: Pick<Storage, 'keyAttnums'>, { identityKey, replicaIdentity }: KeyedTable): boolean {
  if (keyAttnums.length === 0) return replicaIdentity === 'f' || identityKey.length === 0;
  return [...keyAttnums].sort().join() === [...identityKey].sort().join();
}

/** What it means for a storage that rows come with this message; null: nothing. `table`: as of them. */
export function keyChange(
  storage: Storage,
  message: Pick<RelationMessage, 'replicaIdentity' | 'columns'>,
  table: TableShape | OriginTable,
  source: string,
): MissedRows | null {
  const { identityKey } = table;
  // Of a key that can be deferred the origin sends nothing, and refuses to update and to delete.
  const sent = storage.keyAttnums.length > 0 || message.columns.some(({ key }) => key) ? identityKey : [];
  if (fitsKey(storage, { identityKey: sent, replicaIdentity: message.replicaIdentity })) return null;
  const reference = quoteQualified(table.schema, table.name);
  return { storageId: storage.id, error: alteredError({ reference, problem: keyProblem(storage, table), source }) };
}

/** In words. */
export function keyProblem(
  { keyAttnums, columns }: Storage,
  table: Pick<TableShape, 'schema' | 'name' | 'identityKey' | 'columns'>,
): string {
  const listed = (attnums: readonly number[], named: readonly { readonly attnum: number; readonly name: string }[]): string =>
    attnums.length === 0
      ? 'none'
      : `(${attnums.map((attnum) => quoteIdentifier(named.find((column) => column.attnum === attnum)?.name ?? '?')).join(', ')})`;
  return `the key of ${table.schema}.${table.name} was ${listed(keyAttnums, columns)}, and is ${listed(table.identityKey, table.columns)}`;
}
