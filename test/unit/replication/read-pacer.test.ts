import { describe, expect, it } from 'vitest';
import { ReadPacer } from '../../../src/replication/read-pacer.ts';
import type { StreamTimers } from '../../../src/replication/stream-timers.ts';

function setup(): { calls: string[]; pacer: ReadPacer; timers: (() => void)[]; io: (() => void)[] } {
  const calls: string[] = [];
  const timers: (() => void)[] = [];
  const io: (() => void)[] = [];
  const clock: StreamTimers = {
    now: () => 0,
    every: () => () => {},
    after: (ms, work) => {
      calls.push(`after ${ms}`);
      timers.push(work);
      return () => calls.push('cancel');
    },
    afterIo: (work) => io.push(work),
  };
  const connection = { pauseReading: () => calls.push('pause'), resumeReading: () => calls.push('resume') };
  return { calls, timers, io, pacer: new ReadPacer(connection as never, clock) };
}

const [begin, commit, insert] = [66, 67, 73];

describe('ReadPacer', () => {
  it('never delays small transactions, however many', () => {
    const { calls, pacer, io } = setup();
    for (let i = 0; i < 100; i++) {
      pacer.message(begin);
      for (let row = 0; row < 2000; row++) pacer.message(insert);
      pacer.read(60_000);
      pacer.message(commit);
      pacer.read(60_000);
    }
    expect(io).toEqual([]);
    expect(calls).toEqual([]);
  });

  it('pauses 10 ms within a large one, after all that was ready has been read', () => {
    const { calls, pacer, io, timers } = setup();
    pacer.message(begin);
    for (let row = 0; row < 2001; row++) pacer.message(insert);
    pacer.read(60_000);
    pacer.read(60_000);
    expect(calls).toEqual([]);
    io.shift()?.();
    expect(calls).toEqual(['pause', 'after 10']);
    timers.shift()?.();
    expect(calls.at(-1)).toBe('resume');
  });

  it('does not pause when the transaction ended, nor while there is a backlog', () => {
    const { calls, pacer, io } = setup();
    pacer.message(begin);
    for (let row = 0; row < 2400; row++) pacer.message(insert);
    pacer.read(60_000);
    pacer.message(commit);
    io.shift()?.();
    pacer.message(begin);
    for (let row = 0; row < 2400; row++) pacer.message(insert);
    pacer.read(2_000_000);
    io.shift()?.();
    expect(calls).toEqual([]);
  });
});
