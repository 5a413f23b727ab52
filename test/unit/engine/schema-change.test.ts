/** What a change of an origin table means for the versions made from it. */
import { expect, test } from 'vitest';
import type { TableVersion } from '../../../src/catalog/model.ts';
import { brokenVersions, columnPlaces } from '../../../src/engine/schema-change.ts';
import { testColumn, testStorage } from '../../support/storages.ts';

const storage = testStorage({
  columns: [testColumn(1, 'integer', { name: 'id' }), testColumn(2, 'integer', { name: 'a' }), testColumn(3, 'boolean', { name: 'b' })],
});
const version = (id: number, attnums: number[]): TableVersion => ({
  id,
  kind: 'table',
  facade: 1,
  gate: 2,
  state: 'ready',
  error: null,
  sourceId: 1,
  storageId: 5,
  columns: attnums.map((attnum) => ({ attnum, name: `x${attnum}` })),
});
const now = (...columns: [number, string, string][]) => ({
  schema: 'public',
  name: 't',
  columns: columns.map(([attnum, name, formattedType]) => ({ attnum, name, formattedType })),
});
const unchanged: [number, string, string][] = [
  [1, 'id', 'integer'],
  [2, 'a', 'integer'],
  [3, 'b', 'boolean'],
];

test('an added column and a renamed one break nothing', () => {
  const origin = now([1, 'id', 'integer'], [2, 'renamed', 'integer'], [3, 'b', 'boolean'], [4, 'added', 'text']);
  expect(brokenVersions(storage, [version(7, [1, 2, 3])], origin, 'public.s')).toEqual([]);
});

test('a dropped column ends the versions that show it, and only those', () => {
  const broken = brokenVersions(storage, [version(7, [1, 2, 3]), version(8, [1, 2])], now(...unchanged.slice(0, 2)), 'public.s');
  expect(broken.map(({ relationId }) => relationId)).toEqual([7]);
  expect(broken[0]?.error.message).toBe('source table schema has been altered: column "b" of public.t was dropped');
  expect(broken[0]?.error.hint).toBe('DROP TABLE {relation} CASCADE; CREATE TABLE {relation} FROM SOURCE public.s (REFERENCE public.t);');
});

test('a column dropped and added again under its name is another column', () => {
  const origin = now([1, 'id', 'integer'], [2, 'a', 'integer'], [4, 'b', 'boolean']);
  expect(brokenVersions(storage, [version(7, [3])], origin, 'public.s')).toHaveLength(1);
});

test('another type, a lost key and a dropped table are said as what they are', () => {
  const messages = (origin: Parameters<typeof brokenVersions>[2], attnums: number[]) =>
    brokenVersions(storage, [version(7, attnums)], origin, 'public.s').map(({ error }) => error.message);
  expect(messages(now([1, 'id', 'integer'], [2, 'a', 'text'], [3, 'b', 'boolean']), [2])).toEqual([
    'source table schema has been altered: column "a" of public.t changed from type integer to text',
  ]);
  expect(messages(now([2, 'a', 'integer'], [3, 'b', 'boolean']), [2])).toEqual([
    'source table schema has been altered: column "id" of public.t was dropped',
  ]);
  expect(messages(null, [2])).toEqual(['source table schema has been altered: table public.t was dropped']);
});

test('columns of a message are found by attnum, whatever their order; what is missing or of another type is -1', () => {
  const attnums = new Map([
    ['b', 3],
    ['id', 1],
    ['a', 2],
  ]);
  expect(columnPlaces(storage, [{ name: 'b' }, { name: 'id' }], attnums, new Set())).toEqual([1, -1, 0]);
  expect(columnPlaces(storage, [{ name: 'b' }, { name: 'id' }], attnums, new Set([3]))).toEqual([1, -1, -1]);
});
