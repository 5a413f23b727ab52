import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { defaultProxySettings } from '../../../src/wire/pool/settings.ts';
import { type Observation, Stopwatch, shortestLimit, type TimeLimits, timeoutError } from '../../../src/wire/timeouts.ts';

const none: TimeLimits = { clientIdle: 0, idleTransaction: 0, transaction: 0, query: 0 };
const idle: Observation = { state: 'idle', transactions: 0, answered: 0, received: 0 };

/** Looks at one observation after the other, each `every` ms; the limit exceeded and when. */
function run(observations: readonly Observation[], every: number, limits: TimeLimits): [string, number] | null {
  const watch = new Stopwatch();
  for (const [at, seen] of observations.entries()) {
    const limit = watch.look(seen, at * every, limits);
    if (limit !== null) return [limit, at * every];
  }
  return null;
}

describe('the stopwatch of a session', () => {
  it('begins anew when a client has said something, although it looks idle at each look', () => {
    const speaking = Array.from({ length: 20 }, (_, received) => ({ ...idle, received }));
    expect(run(speaking, 100, { ...none, clientIdle: 150 })).toBeNull();
    expect(run(Array(20).fill(idle), 100, { ...none, clientIdle: 150 })).toEqual(['clientIdle', 200]);
  });

  it('begins anew with each transaction, although every look sees one', () => {
    const active: Observation = { ...idle, state: 'active' };
    const short = Array.from({ length: 20 }, (_, n) => ({ ...active, transactions: n >> 1, answered: n }));
    expect(run(short, 100, { ...none, transaction: 150 })).toBeNull();
    expect(
      run(
        short.map((one) => ({ ...one, transactions: 0 })),
        100,
        { ...none, transaction: 150 },
      ),
    ).toEqual(['transaction', 200]);
  });

  it('takes the idle time within a transaction from its last answer, and the transaction from its beginning', () => {
    const block = Array.from(
      { length: 20 },
      (_, n): Observation => ({ ...idle, state: n % 2 === 0 ? 'active' : 'idle in transaction', answered: n }),
    );
    expect(run(block, 100, { ...none, idleTransaction: 150, query: 150 })).toBeNull();
    expect(run(block, 100, { ...none, idleTransaction: 150, query: 150, transaction: 1_000 })).toEqual(['transaction', 1_100]);
  });

  it('never ends anybody before a limit has passed, whatever happens', () => {
    const observation = fc.record({
      state: fc.constantFrom<Observation['state']>('idle', 'idle in transaction', 'active', 'waiting'),
      transactions: fc.integer({ min: 0, max: 1 }),
      answered: fc.integer({ min: 0, max: 1 }),
      received: fc.integer({ min: 0, max: 1 }),
    });
    fc.assert(
      fc.property(fc.array(observation, { maxLength: 40 }), fc.integer({ min: 1, max: 2_000 }), (observations, limit) => {
        const limits: TimeLimits = { clientIdle: limit, idleTransaction: limit, transaction: limit, query: limit };
        const found = run(observations, 100, limits);
        if (found === null) return;
        const [which, at] = found;
        expect(at).toBeGreaterThan(limit);
        // All looks of that time saw one and the same period.
        const seen = observations.slice(Math.max(0, Math.floor((at - limit) / 100)), at / 100 + 1);
        if (which === 'transaction') expect(new Set(seen.map((one) => one.transactions)).size).toBe(1);
        else expect(new Set(seen.map((one) => JSON.stringify([one.state, one.answered, one.received]))).size).toBe(1);
      }),
    );
  });

  it('finds the shortest limit of all roles', () => {
    expect(shortestLimit(defaultProxySettings)).toBe(0);
    expect(
      shortestLimit({ ...defaultProxySettings, queryTimeout: 5_000, perUser: { a: { queryTimeout: 0, clientIdleTimeout: 300 } } }),
    ).toBe(300);
  });

  it('speaks as Postgres does, and names the setting', () => {
    expect(timeoutError('query', { ...none, query: 1_500 })).toMatchObject({
      code: '57014',
      message: 'terminating connection due to query timeout',
      hint: 'The limit is 1.5 s; an operator can change query_timeout.',
    });
  });
});
