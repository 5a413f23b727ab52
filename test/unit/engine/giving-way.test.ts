import { describe, expect, it } from 'vitest';
import { GivingWay } from '../../../src/engine/giving-way.ts';

const piece = 65_536;

/** A copy at full speed would move so much a millisecond. */
const fullSpeed = 40_000;

/** Copies for so long, while a change every 5 ms comes `delay(share)` ms after its commit, `share` being the part of the full speed just now. Answers the end. */
function copyFor(way: GivingWay, from: number, ms: number, delay: ((share: number) => number) | null): number {
  let now = from;
  let nextChange = from;
  while (now < from + ms) {
    const rest = way.rest(piece, now);
    now += piece / fullSpeed + rest;
    for (; delay !== null && nextChange < now; nextChange += 5) way.applied(delay(Math.min(1, way.rate / (1000 * fullSpeed))), nextChange);
  }
  return now;
}

/** Changes without a copy: now and then one is 12 ms late. */
function quietFor(way: GivingWay, from: number, ms: number): number {
  for (let now = from; now < from + ms; now += 5) way.applied(now % 100 < 5 ? 15 : 3, now);
  return from + ms;
}

describe('a copy and the changes beside it', () => {
  it('goes as fast as it can when nothing changes', () => {
    const way = new GivingWay();
    copyFor(way, 0, 3_000, null);
    expect(way.rate).toBe(Number.POSITIVE_INFINITY);
    expect(way.rest(piece, 10_000)).toBe(0);
  });

  it('goes as fast as it can when changes come as late as ever', () => {
    const way = new GivingWay();
    const now = quietFor(way, 0, 10_000);
    let n = 0;
    copyFor(way, now, 3_000, () => (n++ % 20 === 0 ? 15 : 3));
    expect(way.rate).toBe(Number.POSITIVE_INFINITY);
  });

  it('slows down until changes are no later than usual, and not further', () => {
    const way = new GivingWay();
    let now = quietFor(way, 0, 10_000);
    const delay = (share: number): number => (share > 0.5 ? 60 : 3);
    now = copyFor(way, now, 5_000, delay);
    const rates: number[] = [];
    for (let i = 0; i < 50; i++) {
      now = copyFor(way, now, 200, delay);
      rates.push(way.rate / (1000 * fullSpeed));
    }
    expect(Math.max(...rates)).toBeLessThan(0.7);
    expect(Math.min(...rates)).toBeGreaterThan(0.2);
  });

  it('always goes on, whatever becomes of others', () => {
    const way = new GivingWay();
    copyFor(way, quietFor(way, 0, 1_000), 30_000, () => 500);
    expect(way.rate).toBe(4_000_000);
  });

  it('takes no notice of how the clocks of two hosts differ', () => {
    for (const skew of [-3_600_000, 3_600_000]) {
      const way = new GivingWay();
      way.applied(skew + 3, 0);
      copyFor(way, 100, 3_000, () => skew + 4);
      expect(way.rate).toBe(Number.POSITIVE_INFINITY);
    }
  });

  it('is fast again soon after the changes have ended', () => {
    const way = new GivingWay();
    const now = copyFor(way, quietFor(way, 0, 1_000), 10_000, () => 500);
    copyFor(way, now, 3_000, null);
    expect(way.rate).toBeGreaterThan(1000 * fullSpeed);
  });

  it('begins fast again when an earlier copy, which had to be slow, is long over', () => {
    const way = new GivingWay();
    const now = copyFor(way, quietFor(way, 0, 1_000), 10_000, () => 500);
    expect(way.rate).toBe(4_000_000);
    expect(way.rest(piece, quietFor(way, now, 60_000))).toBe(0);
    expect(way.rate).toBe(Number.POSITIVE_INFINITY);
  });
});
