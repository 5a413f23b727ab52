/** What a new shape of an origin's table asks of a storage. */
import { beforeAll, expect, test } from 'vitest';
import type { Storage } from '../../../src/catalog/model.ts';
import type { EngineContext } from '../../../src/engine/context.ts';
import { changesOf, followShape, type NewShape, reshaped, StoragesAhead } from '../../../src/engine/follow-shape.ts';
import { ordered } from '../../../src/engine/relabel.ts';
import type { SourceRow } from '../../../src/engine/source-row.ts';
import type { OriginColumn, TableShape } from '../../../src/replication/origin-tables.ts';
import { loadPostgresParser } from '../../../src/sql/postgres-parser.ts';
import { testColumn, testStorage } from '../../support/storages.ts';

beforeAll(loadPostgresParser);

const storage = (keyAttnums: number[], ...types: string[]): Storage =>
  testStorage({ columns: types.map((type, i) => testColumn(i + 1, type)), keyAttnums });
/** Types stand for their own OIDs by their text. */
const column = (attnum: number, formattedType: string, more: Partial<OriginColumn> = {}): OriginColumn => ({
  attnum,
  name: `c${attnum}`,
  typeOid: [...formattedType].reduce((sum, letter) => sum * 31 + letter.charCodeAt(0), 7),
  typmod: -1,
  formattedType,
  typeSchema: 'pg_catalog',
  typeName: formattedType,
  baseIsBuiltin: true,
  baseType: formattedType,
  notNull: false,
  generated: '',
  identity: '',
  hasDefault: false,
  default: null,
  collation: null,
  ...more,
});
const table = (filenode: number, ...columns: OriginColumn[]): TableShape => ({
  oid: 100,
  schema: 'public',
  name: 't',
  relkind: 'r',
  isPartition: false,
  natts: columns.length,
  filenode,
  replicaIdentity: 'd',
  columns,
  primaryKey: [1],
  identityKey: [1],
});
const was = table(1, column(1, 'integer'), column(2, 'integer'));
const now = table(2, column(1, 'integer'), column(2, 'bigint'));
const change = (rewriting: NewShape['rewriting'], after = now): NewShape => ({ before: was, after, rewriting, addsEmpty: true });
const widened = [{ attnum: 2, originType: 'bigint' }];

test('a wider type is followed where a cast has made the values', () => {
  const keyed = storage([1], 'integer', 'integer');
  expect(changesOf(keyed, change(null)).widened).toEqual(widened);
  expect(changesOf(keyed, change({ query: 'ALTER TABLE t ALTER c2 TYPE bigint' })).widened).toEqual(widened);
  expect(changesOf(keyed, change('unknown', { ...now, filenode: 1 })).widened).toEqual(widened);
});

test('and not where an expression may have: with a key a copy mends it', () => {
  for (const rewriting of [{ query: 'ALTER TABLE t ALTER c2 TYPE bigint USING c2 * 2' }, { query: null }, 'unknown'] as const) {
    const found = changesOf(storage([1], 'integer', 'integer'), change(rewriting));
    expect(found.widened).toEqual([]);
    expect(found.rewritten).toEqual([{ attnum: 2, name: 'c2', type: 'bigint', isMendable: true }]);
    expect(changesOf(storage([], 'integer', 'integer'), change(rewriting)).rewritten[0]?.isMendable).toBe(false);
  }
});

test('a column that keeps its type is suspected where the text says so, or nothing else explains that the table was written anew', () => {
  const same = { ...was, filenode: 3 };
  const suspected = (rewriting: NewShape['rewriting'], after: TableShape): number[] =>
    changesOf(storage([1], 'integer', 'integer'), change(rewriting, after)).rewritten.map(({ attnum }) => attnum);
  expect(suspected({ query: 'ALTER TABLE t ALTER c1 TYPE integer USING c1 + 1' }, same)).toEqual([1]);
  expect(suspected({ query: 'DO $$ $$' }, same)).toEqual([1, 2]);
  expect(suspected({ query: 'DO $$ $$' }, now)).toEqual([2]);
  expect(suspected('unknown', same)).toEqual([]);
});

test('what is being copied begins again where rows have become others untold of', () => {
  const steps = (state: Storage['state'], shape: NewShape): string[] => {
    const engine = { state: { storages: new Map([[5, { ...storage([1], 'integer', 'integer'), state }]]), tables: new Map() } };
    const source = { id: 1, name: 's' } as SourceRow;
    return followShape(engine as unknown as EngineContext, source, new StoragesAhead(), shape, () => undefined).map(({ kind }) => kind);
  };
  const rewritten = change({ query: 'ALTER TABLE t ALTER c2 TYPE bigint USING c2 * 2' });
  expect(steps('copying', rewritten)).toEqual(['copy again']);
  expect(steps('copied', rewritten)).toEqual(['copy again']);
  expect(steps('live', rewritten)).toEqual(['missed']);
  const parted = (...parts: { oid: number; isEmpty: boolean }[]): TableShape => ({ ...was, relkind: 'p', parts });
  const attached = { ...change(null, parted({ oid: 7, isEmpty: false })), before: parted(), addsEmpty: false };
  expect(steps('copying', attached)).toEqual(['copy again']);
  expect(steps('live', attached)).toEqual([]);
});

test('values that may no longer be the origin’s: written anew, of another type, of their type again', () => {
  const unknown = (types: string[], shape: NewShape): readonly number[] => changesOf(storage([1], ...types), shape).unknown;
  const other = table(2, column(1, 'integer'), column(2, 'text'));
  expect(unknown(['integer', 'integer'], change({ query: 'ALTER TABLE t ALTER c2 TYPE bigint USING c2 * 2' }))).toEqual([2]);
  expect(unknown(['integer', 'integer'], change(null))).toEqual([]);
  expect(unknown(['integer', 'integer'], change(null, other))).toEqual([2]);
  expect(unknown(['integer', 'integer'], { ...change(null, was), before: other })).toEqual([2]);
  expect(unknown(['integer', 'integer'], { ...change(null, was), before: was })).toEqual([]);
});

test('a column taken as text has any type; one that writes its values otherwise is written anew', () => {
  const taken = (from: string, to: string): string => {
    const mixed = storage([1], 'integer', 'text');
    const asText = { ...mixed, columns: mixed.columns.map((one) => (one.attnum === 2 ? { ...one, originType: from } : one)) };
    const [before, after] = [from, to].map((type) => table(1, column(1, 'integer'), column(2, type)));
    const found = changesOf(asText, { before, after: after as TableShape, rewriting: null, addsEmpty: true });
    return [...found.widened.map(() => 'followed'), ...found.rewritten.map(({ isMendable }) => `written anew ${isMendable}`)].join();
  };
  expect(taken('integer', 'bigint')).toBe('followed');
  expect(taken('public.mood', 'text')).toBe('followed');
  expect(taken('date', 'character varying')).toBe('followed');
  for (const [from, to] of [
    ['numeric(6,2)', 'numeric(9,3)'],
    ['boolean', 'text'],
    ['character(4)', 'text'],
    ['timestamp without time zone', 'date'],
    ['text[]', 'text'],
  ] as const)
    expect(taken(from, to)).toBe('written anew true');
});

test('a key that is written anew concerns who does not show it, a column without which rows are found does not', () => {
  const told = (shape: NewShape, keyAttnums: number[]): unknown[] => {
    const engine = { state: { storages: new Map([[5, storage(keyAttnums, 'integer', 'integer')]]), tables: new Map() } };
    const found: unknown[] = [];
    followShape(engine as unknown as EngineContext, { id: 1, name: 's' } as SourceRow, new StoragesAhead(), shape, (broken) =>
      found.push(...broken),
    );
    return found;
  };
  const of = (name: string): NewShape =>
    change({ query: `ALTER TABLE t ALTER ${name} TYPE integer USING ${name} + 1` }, { ...was, filenode: 3 });
  expect(told(of('c1'), [1])).toMatchObject([
    { storageId: 5, error: { resync: true, message: expect.stringContaining(`"c1" of public.t was written anew`) } },
  ]);
  expect(told(of('c2'), [1])).toEqual([]);
  expect(told(of('c1'), [])).toEqual([]);
});

test('a type under another name is the type that it was', () => {
  const before = table(1, column(1, 'public.mood', { typeOid: 9000 }));
  const after = table(1, column(1, 'app.tempo', { typeOid: 9000 }));
  const mood = storage([1], 'public.mood');
  const found = changesOf(mood, { before, after, rewriting: null, addsEmpty: true });
  expect(found.widened).toEqual([{ attnum: 1, originType: 'app.tempo', renamed: true }]);
  const next = reshaped(mood, { kind: 'widen', storageId: 5, columns: found.widened });
  expect(next.columns[0]).toMatchObject({ type: 'public.mood', originType: 'app.tempo' });
  expect(reshaped(next, { kind: 'widen', storageId: 5, columns: found.widened })).toEqual(next);
});

test('labels are given one after the other, and round a circle by a detour', () => {
  const run = (labels: { from: string; to: string }[], values: string[]): string[] => {
    let held = values;
    for (const { from, to } of ordered(labels)) {
      expect(held).not.toContain(to);
      held = held.map((value) => (value === from ? to : value));
    }
    return held;
  };
  expect(
    run(
      [
        { from: 'a', to: 'b' },
        { from: 'b', to: 'c' },
      ],
      ['a', 'b'],
    ),
  ).toEqual(['b', 'c']);
  expect(
    run(
      [
        { from: 'a', to: 'b' },
        { from: 'b', to: 'a' },
        { from: 'x', to: 'y' },
      ],
      ['a', 'b', 'x'],
    ),
  ).toEqual(['b', 'a', 'y']);
});
