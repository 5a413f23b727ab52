import type { Client } from 'pg';
import { describe, expect, it } from 'vitest';
import { FlushWatch } from '../../../src/engine/flush-watch.ts';

/** An upstream that answers how far its WAL is written and flushed, and counts how often it is asked. */
class Upstream {
  inserted = 0;
  flushed = 0;
  asked = 0;
  /** What an answer waits for. */
  gate: Promise<void> = Promise.resolve();

  watch(): FlushWatch {
    const query = async (): Promise<unknown> => {
      this.asked++;
      const answer = { inserted: `0/${this.inserted.toString(16)}`, flushed: `0/${this.flushed.toString(16)}` };
      await this.gate;
      return { rows: [answer] };
    };
    return new FlushWatch({ query } as unknown as Client);
  }
}

describe('what has been flushed', () => {
  it('is told once the WAL is flushed to where it was when it was committed, and not before', async () => {
    const upstream = new Upstream();
    const watch = upstream.watch();
    const told: string[] = [];
    upstream.inserted = 100;
    watch.call(() => told.push('one'));
    await watch.look();
    expect(told).toEqual([]);
    upstream.inserted = 200;
    watch.call(() => told.push('two'));
    upstream.flushed = 99;
    await watch.look();
    expect(told).toEqual([]);
    upstream.flushed = 150;
    await watch.look();
    expect(told).toEqual(['one']);
    upstream.flushed = 200;
    await watch.look();
    expect(told).toEqual(['one', 'two']);
  });

  it('costs no question when there is nothing to know, and one at a time otherwise', async () => {
    const upstream = new Upstream();
    const watch = upstream.watch();
    await watch.look();
    expect(upstream.asked).toBe(0);
    let open: () => void = () => undefined;
    upstream.gate = new Promise((resolve) => {
      open = resolve;
    });
    const told: string[] = [];
    watch.call(() => told.push('one'));
    const first = watch.look();
    // Committed behind the question: the answer does not speak of it.
    watch.call(() => told.push('two'));
    await watch.look();
    expect(upstream.asked).toBe(1);
    open();
    await first;
    expect(told).toEqual(['one']);
    await watch.look();
    expect(told).toEqual(['one', 'two']);
  });
});
