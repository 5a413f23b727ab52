import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { allColumns, changedColumns, concerning, viewMask } from '../../../src/engine/base/masks.ts';
import { ReadPacing } from '../../../src/engine/base/pacing.ts';
import { type TupleView, valueKind } from '../../../src/replication/pgoutput.ts';

type Value = string | null | undefined;

/** null: SQL NULL; undefined: unchanged TOAST. `before` moves the values away from the beginning of the buffer. */
function row(values: readonly Value[], before = ''): TupleView {
  const buffer = Buffer.from(before + values.map((value) => value ?? '').join(''));
  const ends: number[] = [];
  for (const value of values) ends.push((ends.at(-1) ?? before.length) + Buffer.byteLength(value ?? ''));
  return {
    buffer,
    count: values.length,
    kinds: Uint8Array.from(
      values.map((value) => (value === null ? valueKind.null : value === undefined ? valueKind.unchangedToast : valueKind.text)),
    ),
    starts: Uint32Array.from([before.length, ...ends.slice(0, -1)]),
    ends: Uint32Array.from(ends),
    leavesOut: values.includes(undefined),
  };
}

const text = fc.oneof(fc.constantFrom('', 'a', 'b'), fc.string({ minLength: 45, maxLength: 52 }), fc.constant('x'.repeat(50)));
const oldValue = fc.oneof(text, fc.constant(null));

describe('masks of changed columns', () => {
  test('a bit for each column whose bytes differ, and no others', () => {
    const columns = fc.uniqueArray(fc.integer({ min: 1, max: 62 }), { minLength: 1, maxLength: 20 });
    fc.assert(
      fc.property(
        columns,
        fc.infiniteStream(oldValue),
        fc.infiniteStream(fc.oneof(oldValue, fc.constant(undefined))),
        (attnums, olds, news) => {
          attnums.sort((a, b) => a - b);
          const before = attnums.map(() => olds.next().value as Value);
          const after = before.map((value, i) => (i % 3 === 0 ? value : (news.next().value as Value)));
          const expected = attnums.filter((_, i) => after[i] !== undefined && after[i] !== before[i]);
          const compared = { attnums, places: attnums.map((_, i) => i), computed: [] };
          const mask = changedColumns(compared, row(before), row(after, 'moved'))?.value ?? 0n;
          expect(mask).toBe(expected.reduce((sum, attnum) => sum | (1n << BigInt(attnum - 1)), 0n));
        },
      ),
    );
  });

  test('columns beyond the last bit, and those computed from others, are told by more bits rather than fewer', () => {
    const [before, after] = [row(['1', 'a']), row(['1', 'b'])];
    expect(changedColumns({ attnums: [1, 63], places: [0, 1], computed: [] }, before, after)?.value).toBe(allColumns);
    expect(changedColumns({ attnums: [1, 2], places: [0, 1], computed: [40] }, before, after)?.value).toBe(2n | (1n << 39n));
    expect(changedColumns({ attnums: [1, 2], places: [0, 1], computed: [70] }, before, after)?.value).toBe(allColumns);
    expect(changedColumns({ attnums: [1, 2], places: [0, -1], computed: [70] }, before, after)).toBeNull();
  });

  test('a view is concerned by the columns it uses, and by rows that come and go even if it uses none', () => {
    const counts = new Map([
      [allColumns, 1],
      [0b10n, 20],
      [0b101n, 300],
    ]);
    expect(concerning(counts, viewMask([]))).toBe(1);
    expect(concerning(counts, viewMask([2]))).toBe(21);
    expect(concerning(counts, viewMask([3, 62]))).toBe(301);
    expect(concerning(counts, viewMask([4, 63]))).toBe(321);
  });
});

describe('reading of a busy stream', () => {
  test('lone transactions never wait, many do', () => {
    const pacing = new ReadPacing();
    for (let at = 0; at < 1000; at += 10) expect(pacing.came(at, 1, 20)).toBe(0);
    let ms = 0;
    for (let at = 1000; at < 1100; at += 2) ms = pacing.came(at, 5, 20);
    expect(ms).toBe(20);
    for (let at = 2000; at < 3000; at += 50) ms = pacing.came(at, 1, 20);
    expect(ms).toBe(0);
  });
});
