/** When copying rests. */
import { expect, test } from 'vitest';
import { behind, type Load, type WalMark, whyRest } from '../../../src/migration/throttle.ts';
import { Touched } from '../../../src/migration/touched.ts';

const load = (written: bigint, replayed: bigint, lagMs = 0): Load => ({
  ...{ active: 0, written, endangered: null },
  standby: { name: 'b', replayed, lagMs },
});

/** Looks at these in turn; answers how far behind the standby was each time. */
function watched(looks: readonly (readonly [at: number, written: bigint, replayed: bigint, lagMs?: number])[]): readonly number[] {
  let marks: readonly WalMark[] = [];
  return looks.map(([at, written, replayed, lagMs]) => {
    const seen = behind(marks, at, load(written, replayed, lagMs));
    marks = seen.marks;
    return seen.ms;
  });
}

test('a silent standby is behind since the WAL was seen to go past it', () => {
  expect(
    watched([
      [0, 100n, 100n],
      [1_000, 200n, 100n],
      [1_500, 300n, 100n],
      [3_000, 300n, 100n],
    ]),
  ).toEqual([0, 0, 500, 2_000]);
});

test('one that follows is behind by what it has not replayed yet, and then not at all', () => {
  expect(
    watched([
      [0, 200n, 100n],
      [1_000, 300n, 199n],
      [2_000, 400n, 250n],
      [3_000, 400n, 300n],
      [4_000, 400n, 400n],
    ]),
  ).toEqual([0, 1_000, 1_000, 1_000, 0]);
});

test('what a standby says of itself counts when that is more', () => {
  expect(watched([[0, 200n, 100n, 700]])).toEqual([700]);
  expect(behind([{ at: 0, position: 5n }], 9, { written: 5n, standby: null })).toEqual({ ms: 0, marks: [] });
});

test('marks are few, however long it lasts', () => {
  let marks: readonly WalMark[] = [];
  for (let at = 0; at < 300_000; at += 20) ({ marks } = behind(marks, at, load(BigInt(at + 1), 0n)));
  expect(marks.length).toBe(1_000);
  expect(behind(marks, 300_000, load(300_000n, 0n)).ms).toBe(300_000);
});

test('the reason is told', () => {
  const touched = new Touched();
  const late = load(2n, 1n);
  expect(whyRest({ touched }, late, 2_000, 2_000, 0)).toBeNull();
  expect(whyRest({ touched }, late, 2_001, 2_000, 0)).toBe('standby "b" is 2001 ms behind');
  expect(whyRest({ touched }, { ...late, endangered: { slot: 's', room: 7n } }, 0, 2_000, 0)).toBe(
    'replication slot "s" would be lost after 7 more bytes of WAL',
  );
  expect(whyRest({ touched }, { ...late, endangered: { slot: 's', room: -1n } }, 0, 2_000, 0)).toBe(
    'replication slot "s" is lost with the next checkpoint',
  );
});
