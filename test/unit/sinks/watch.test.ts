/** What a watch does with a session of a target that does not answer. */
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import type { RawConnection } from '../../../src/replication/session-contract.ts';
import { type Look, type Watch, watchOf } from '../../../src/sinks/postgres/watch.ts';
import type { TargetError } from '../../../src/sinks/target.ts';

type Found = Awaited<ReturnType<Look>>;

const works: Found = { kind: 'works' };
const locked: Found = { kind: 'waits', what: 'a lock' };
const silent: Found = { kind: 'silent', what: 'nobody knows' };

let told: string[];
let looks: { at: number; end: boolean }[];
let cut: string | null;

/** A watch that finds these one after the other, and the last ever after. */
function watching(...found: readonly [Found, ...Found[]]): { watch: Watch; work: Promise<string>; answer(): void } {
  const start = performance.now();
  let nth = 0;
  const look: Look = async (_address, _pid, _patience, end) => {
    looks.push({ at: (performance.now() - start) / 1000, end });
    return found[Math.min(nth++, found.length - 1)] as Found;
  };
  const address = { host: 'h', port: 1, user: 'u', database: 'd', ssl: { mode: 'disable' } } as const;
  const watch = watchOf(address, (what: TargetError) => told.push(what.message), undefined, look);
  let answer = (): void => undefined;
  const answered = new Promise<string>((resolve, reject) => {
    answer = () => resolve('done');
    const session = {
      destroy: (reason?: Error) => {
        cut = reason?.message ?? '';
        reject(reason);
      },
    } as unknown as RawConnection;
    lost = session;
  });
  const work = watch.over({ session: lost as RawConnection, pid: () => 7 }, () => answered);
  work.catch(() => undefined);
  return { watch, work, answer: () => answer() };
}
let lost: RawConnection | null = null;

beforeEach(() => {
  vi.useFakeTimers();
  told = [];
  looks = [];
  cut = null;
});
afterEach(() => vi.useRealTimers());

describe('a session that does not answer', () => {
  it('is not asked after when it answers soon', async () => {
    const { work, answer } = watching(silent);
    await vi.advanceTimersByTimeAsync(7900);
    answer();
    expect(await work).toBe('done');
    await vi.advanceTimersByTimeAsync(60_000);
    expect(looks).toEqual([]);
  });

  it('is left alone while it works, however long', async () => {
    const { work, answer } = watching(works);
    await vi.advanceTimersByTimeAsync(600_000);
    expect(looks.length).toBeGreaterThan(100);
    answer();
    expect(await work).toBe('done');
    expect([told, cut]).toEqual([[], null]);
  });

  it('is told of, and left alone, while it waits for somebody', async () => {
    const { watch, work, answer } = watching(locked);
    await vi.advanceTimersByTimeAsync(600_000);
    expect(new Set(told)).toEqual(new Set(['the target does not answer: a lock']));
    expect(cut).toBeNull();
    expect(watch.last?.message).toBe('the target does not answer: a lock');
    answer();
    expect(await work).toBe('done');
  });

  it('is cut after 30 s when nobody works for it, and ended over there', async () => {
    const { work } = watching(silent);
    await vi.advanceTimersByTimeAsync(28_500);
    expect(cut).toBeNull();
    await vi.advanceTimersByTimeAsync(5000);
    await expect(work).rejects.toThrow('the target does not answer: nobody knows');
    expect(looks.map(({ at, end }) => `${at} ${end}`)).toEqual([
      '8 false',
      '13 false',
      '18 false',
      '23 false',
      '28 false',
      '33 false',
      '33 true',
    ]);
  });

  it('is not cut when it was seen at work, or waiting, in between', async () => {
    watching(silent, silent, silent, silent, locked, silent, silent);
    await vi.advanceTimersByTimeAsync(57_000);
    expect(cut).toBeNull();
    await vi.advanceTimersByTimeAsync(10_000);
    expect(cut).toBe('the target does not answer: nobody knows');
  });

  it('is looked at no more when its sink is stopped', async () => {
    const { watch } = watching(silent);
    await vi.advanceTimersByTimeAsync(9000);
    watch.stop();
    await vi.advanceTimersByTimeAsync(60_000);
    expect([looks.length, cut]).toEqual([1, null]);
  });
});
