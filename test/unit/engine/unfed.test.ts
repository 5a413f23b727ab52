/** What it means that rows of the stream have no values for columns of a storage. */
import { expect, test } from 'vitest';
import type { Storage, StorageColumn } from '../../../src/catalog/model.ts';
import type { OriginShape } from '../../../src/engine/schema-change.ts';
import { type Unfed, unfed } from '../../../src/engine/unfed.ts';
import { testColumn, testStorage } from '../../support/storages.ts';

const column = (attnum: number, more: Partial<StorageColumn> = {}): StorageColumn => testColumn(attnum, 'integer', more);
const storage = (more: Partial<Storage> = {}): Storage => testStorage({ columns: [column(1), column(2), column(3)], ...more });
/** A table with these columns; those of the publication are fewer where it says so. */
const table = (attnums: readonly number[], publishedColumns: readonly number[] | null = null): OriginShape => ({
  schema: 'public',
  name: 't',
  columns: attnums.map((attnum) => ({ attnum, name: `c${attnum}`, formattedType: 'integer' })),
  publishedColumns,
});
const found = (one: Storage, places: readonly number[], origin: OriginShape): Unfed =>
  unfed({ storages: new Map([[one.id, one]]) }, one, places, origin, 's');
const nothing = { steps: [], broken: [] };

test('a column that is not published any more is written down, once, and by the storages that have it', () => {
  const missed = { steps: [{ kind: 'missed', storageId: 5, attnums: [3] }], broken: [] };
  expect(found(storage(), [0, 1, -1], table([1, 2, 3], [1, 2]))).toEqual(missed);
  expect(
    found(storage({ columns: [column(1), column(2), column(3, { filling: { initial: null } })] }), [0, 1, -1], table([1, 2, 3], [1, 2])),
  ).toEqual(nothing);
  expect(found(storage(), [0, 1, 2], table([1, 2, 3]))).toEqual(nothing);
});

test('so is one whose values are of another type; one that was dropped never comes back', () => {
  expect(found(storage(), [0, 1, -1], table([1, 2, 3])).steps).toEqual([{ kind: 'missed', storageId: 5, attnums: [3] }]);
  expect(found(storage(), [0, 1, -1], table([1, 2]))).toEqual(nothing);
});

test('a storage that is stale is compared later, one without key loses its columns otherwise', () => {
  for (const more of [{ stale: true }, { keyAttnums: [] }])
    expect(found(storage(more), [0, 1, -1], table([1, 2, 3], [1, 2]))).toEqual(nothing);
});

test('what is being copied begins again, but not for rows from before a column came', () => {
  expect(found(storage({ state: 'copying' }), [0, 1, -1], table([1, 2, 3], [1, 2])).steps).toEqual([{ kind: 'copy again', storageId: 5 }]);
  expect(found(storage({ state: 'copying' }), [0, 1, -1], table([1, 2, 3]))).toEqual(nothing);
});

test('an extension that lacks values of a column that it brings is of no use', () => {
  const extension = storage({ extends: 4, columns: [column(1), column(2, { elsewhere: true }), column(3)] });
  expect(found(extension, [0, -1, 2], table([1, 2, 3], [1, 3]))).toEqual(nothing);
  const { steps, broken } = found(extension, [0, 1, -1], table([1, 2, 3], [1, 2]));
  expect(steps).toEqual([]);
  expect(broken).toMatchObject([{ storageId: 5, error: { resync: true } }]);
  expect(broken[0]?.error.message).toBe('source table schema has been altered: column "c3" of public.t is no longer published');
});
