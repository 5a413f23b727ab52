import { describe, expect, it } from 'vitest';
import { LeaderWatch, silenceMs } from '../../../src/engine/leadership.ts';

describe('a leader', () => {
  it('that says something now and then is left alone', () => {
    const watch = new LeaderWatch();
    for (let now = 0; now < 10 * silenceMs; now += 250) expect(watch.isGone('7', now % 500, now)).toBe(false);
  });

  it('that has been silent for too long is gone', () => {
    expect(new LeaderWatch().isGone('7', silenceMs, 0)).toBe(false);
    expect(new LeaderWatch().isGone('7', silenceMs + 1, 0)).toBe(true);
  });

  it('without the session in which it speaks has as long to open one', () => {
    const watch = new LeaderWatch();
    expect(watch.isGone('7', null, 1000)).toBe(false);
    expect(watch.isGone('7', null, 1000 + silenceMs)).toBe(false);
    expect(watch.isGone('7', null, 1001 + silenceMs)).toBe(true);
  });

  it('is not taken for the one before it', () => {
    const watch = new LeaderWatch();
    expect(watch.isGone('7', null, 0)).toBe(false);
    expect(watch.isGone('8', null, silenceMs + 1)).toBe(false);
    expect(watch.isGone('8', 10, silenceMs + 2)).toBe(false);
    expect(watch.isGone('8', null, 2 * silenceMs + 3)).toBe(false);
    expect(watch.isGone('8', null, 3 * silenceMs + 4)).toBe(true);
  });
});
