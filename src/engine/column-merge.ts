/**
 * The SQL by which a storage gets the columns of one that extends it. Pure.
 * Invariant: both take every change of the stream, in the same epochs, so the extension says at any time what the values are: rows that the storage had
 * before the columns came get them piece by piece in the order of the key, what comes behind has them from the stream.
 * The exception is a row that an update moves to another key with values left out (unchanged TOAST): it takes what the storage has with it, which may
 * be nothing yet, perhaps to where the pieces have been. Such rows get their values in the epoch that moves them.
 */
import { type Storage, type StorageColumn, storageColumn, storageTable } from '../catalog/model.ts';
import { storageKey } from '../catalog/storage-ddl.ts';
import { capturedAgain, uncaptured } from '../ivm/capture.ts';
import { quoteLiteral } from '../sql/quote.ts';
import { isShapeStep, type PlainStep } from './apply-steps.ts';
import type { Step } from './change-batch.ts';

/** Columns that an extension brings. */
export function broughtColumns({ columns, keyAttnums }: Pick<Storage, 'columns' | 'keyAttnums'>): StorageColumn[] {
  return columns.filter(({ attnum, elsewhere }) => elsewhere !== true && !keyAttnums.includes(attnum));
}

/** By the storage that they extend: those that take changes of the stream themselves. */
export function extensionsOf({ storages }: { readonly storages: ReadonlyMap<number, Storage> }): ReadonlyMap<number, readonly Storage[]> {
  const found = new Map<number, Storage[]>();
  for (const storage of storages.values()) {
    if (storage.extends === null || storage.state !== 'live') continue;
    found.set(storage.extends, [...(found.get(storage.extends) ?? []), storage]);
  }
  return found;
}

/** Keys between two others, as texts; null: no border. */
export interface KeyedRange {
  readonly after: readonly string[] | null;
  readonly upTo: readonly string[] | null;
}

/** Finds the key that ends the next piece; no row when fewer rows are left. One column a key column, as text. */
export function pieceEndSql(extension: Storage, after: readonly string[] | null, rows: number): string {
  const key = storageKey(extension);
  const condition = after === null ? '' : ` WHERE ${compared(extension, 's', '>', after)}`;
  return `SELECT ${key.map((column) => `k.${column}::text`).join(', ')}
  FROM (SELECT ${key.join(', ')} FROM ${storageTable(extension.id)} s${condition} ORDER BY ${key.join(', ')} OFFSET ${rows - 1} LIMIT 1) k`;
}

/** Gives the rows of a piece their values; null: all rows have them. Rows that have the values that the columns came with are not written. */
export function mergeSql(extension: Storage, base: Storage, { after, upTo }: KeyedRange): string | null {
  return mergedWhere(extension, base, [
    ...(after === null ? [] : [compared(extension, 's', '>', after)]),
    ...(upTo === null ? [] : [compared(extension, 's', '<=', upTo)]),
  ]);
}

function mergedWhere(extension: Storage, base: Storage, conditions: readonly string[]): string | null {
  const brought = new Set(broughtColumns(extension).map(({ attnum }) => attnum));
  const missing = base.columns.filter(({ attnum, filling }) => filling !== undefined && brought.has(attnum));
  if (missing.length === 0) return null;
  const same = storageKey(extension).map((column) => `b.${column} = s.${column}`);
  // By their texts: not every type has equality.
  const differs = missing.map(({ attnum, filling }) => {
    const initial = filling?.initial ?? null;
    const value = `s.${storageColumn(attnum)}`;
    return initial === null ? `num_nulls(${value}) = 0` : `${value}::text IS DISTINCT FROM ${quoteLiteral(initial)}`;
  });
  const assignments = missing.map(({ attnum }) => `${storageColumn(attnum)} = s.${storageColumn(attnum)}`);
  return `UPDATE ${storageTable(base.id)} b SET ${assignments.join(', ')}
  FROM ${storageTable(extension.id)} s WHERE ${[...same, ...conditions, `(${differs.join(' OR ')})`].join(' AND ')}`;
}

function compared(storage: Storage, row: string, operator: string, value: readonly string[]): string {
  const columns = storageKey(storage).map((column) => `${row}.${column}`);
  return `(${columns.join(', ')}) ${operator} (${literals(storage, value)})`;
}

function literals({ columns, keyAttnums }: Storage, value: readonly string[]): string {
  return keyAttnums
    .map((attnum, i) => `${quoteLiteral(value[i] ?? '')}::${columns.find((column) => column.attnum === attnum)?.type ?? 'text'}`)
    .join(', ');
}

type Rekey = Extract<Step, { kind: 'rekey' }>;
type Extensions = ReadonlyMap<number, readonly Storage[]>;

/** Whether some step moves a row of a storage that is extended, with values left out. */
export const takesMending = (extensions: Extensions, step: PlainStep): boolean => step.kind === 'rekey' && extensions.has(step.storageId);

/** Statements behind the steps of an epoch that give such rows their values. `storage`: as it is by then. */
export function mendMoved(storage: (id: number) => Storage | undefined, extensions: Extensions, steps: readonly Step[]): string[] {
  if (extensions.size === 0) return [];
  const moves = steps.flatMap((step): Rekey[] => (!isShapeStep(step) && step.kind === 'rekey' ? [step] : []));
  const mends = moves.flatMap((step) => {
    const base = storage(step.storageId);
    if (base === undefined) return [];
    return (extensions.get(base.id) ?? []).flatMap(({ id }) => {
      const extension = storage(id);
      const mended =
        extension?.state === 'live' ? mergedWhere(extension, base, [compared(extension, 's', '=', movedTo(base, step))]) : null;
      return mended === null ? [] : [mended];
    });
  });
  return mends.length === 0 ? [] : [uncaptured, ...mends, capturedAgain];
}

function movedTo({ columns, keyAttnums }: Storage, { values, oldKey }: Rekey): string[] {
  return keyAttnums.map((attnum, i) => values[columns.findIndex((column) => column.attnum === attnum)] ?? oldKey[i] ?? '');
}
