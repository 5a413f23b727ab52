import { describe, expect, test } from 'vitest';
import { afterChanges, afterFull, type Costs, unknownCosts, whyFull } from '../../../src/engine/streams/costs.ts';

const rows = 10_000;

/** Refreshes as they would be chosen, each way at its true cost. Answers which way each went. */
function refreshes(costs: Costs, count: number, ms: { readonly changes: number; readonly full: number }): { costs: Costs; ways: string } {
  let now = costs;
  let ways = '';
  for (let i = 0; i < count; i++) {
    const full = whyFull(now, rows, 100_000) !== null;
    now = full ? afterFull(now, ms.full) : afterChanges(now, rows, ms.changes);
    ways += full ? 'F' : 'c';
  }
  return { costs: now, ways };
}

const measured = (ms: { readonly changes: number; readonly full: number }): Costs =>
  afterChanges(afterFull(unknownCosts, ms.full), rows, ms.changes);

describe('costs of refreshes', () => {
  test('few changes are always applied', () => {
    expect(whyFull(measured({ changes: 5000, full: 1 }), 999, 1000)).toBeNull();
  });

  test('before anything is measured, more than half of the rows are a reason', () => {
    expect(whyFull(unknownCosts, rows, 15_000)).toBe('cost: 10000 changes of about 15000 rows');
    expect(whyFull(unknownCosts, rows, 25_000)).toBeNull();
    expect(whyFull(unknownCosts, rows, null)).toBeNull();
  });

  test('the cheaper way is taken', () => {
    expect(refreshes(measured({ changes: 100, full: 1000 }), 20, { changes: 100, full: 1000 }).ways).toMatch(/^c+$/);
    expect(whyFull(measured({ changes: 300, full: 100 }), rows, null)).toBe(
      'cost: 10000 changes would take about 300 ms, all of it 100 ms',
    );
  });

  test('changes are tried again now and then, less often while they stay dearer', () => {
    const { ways } = refreshes(measured({ changes: 300, full: 100 }), 60, { changes: 300, full: 100 });
    expect(ways.split('c').map((part) => part.length)).toEqual([8, 16, 32, 1]);
  });

  test('changes that have become cheap are found out and kept to', () => {
    const { costs } = refreshes(measured({ changes: 300, full: 100 }), 3, { changes: 300, full: 100 });
    expect(refreshes(costs, 20, { changes: 10, full: 100 }).ways).toBe('FFFFFccccccccccccccc');
  });

  test('what is many times as dear is not tried', () => {
    expect(refreshes(measured({ changes: 600, full: 100 }), 300, { changes: 600, full: 100 }).ways).toMatch(/^F+$/);
  });

  test('the whole is measured again where it was close', () => {
    const { ways } = refreshes(measured({ changes: 100, full: 150 }), 12, { changes: 100, full: 40 });
    expect(ways).toMatch(/^c+F+$/);
    expect(refreshes(measured({ changes: 100, full: 1000 }), 50, { changes: 100, full: 10 }).ways).toMatch(/^c+$/);
  });
});
