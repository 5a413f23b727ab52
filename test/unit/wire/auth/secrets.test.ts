/** What is known of the roles: precedence, caching, failures. */
import { describe, expect, it } from 'vitest';
import { createLogger } from '../../../../src/log.ts';
import { type AuthQuery, Secrets } from '../../../../src/wire/auth/secrets.ts';

function secrets(run: AuthQuery, users: Record<string, string> = {}): { secrets: Secrets; clock: { now: number } } {
  const clock = { now: 0 };
  const log = createLogger('test');
  log.level = 'silent';
  return { secrets: new Secrets({ users, authQuery: 'SELECT', run, log, lifetime: 1000, now: () => clock.now }), clock };
}

describe('secrets', () => {
  it('come from the file first, and only from what it really has', async () => {
    const asked: string[] = [];
    const { secrets: known } = secrets(
      async (_, user) => {
        asked.push(user);
        return [];
      },
      { joe: 'x' },
    );
    expect(await known.of('joe')).toBe('x');
    expect(await known.of('toString')).toBeNull();
    expect(await known.of('__proto__')).toBeNull();
    expect(await known.of('')).toBeNull();
    expect(asked).toEqual(['toString', '__proto__']);
  });

  it('are asked for once while they are fresh', async () => {
    let count = 0;
    const { secrets: known, clock } = secrets(async (_, user) => [[user, `secret ${++count}`]]);
    expect(await Promise.all([known.of('a'), known.of('a')])).toEqual(['secret 1', 'secret 1']);
    clock.now = 999;
    expect(await known.of('a')).toBe('secret 1');
    clock.now = 1000;
    expect(await known.of('a')).toBe('secret 2');
    known.forget('a');
    expect(await known.of('a')).toBe('secret 3');
  });

  it('are those of the role that was asked for', async () => {
    expect(await secrets(async () => [['b', 'x']]).secrets.of('a')).toBeNull();
    expect(await secrets(async () => [['a', null]]).secrets.of('a')).toBeNull();
    const { secrets: none } = secrets(async () => []);
    expect([await none.of('a'), await none.isCertain('a'), await none.isCertain('')]).toEqual([null, true, false]);
  });

  it('cannot be had when the query fails, and are asked for again later', async () => {
    let fails = true;
    const { secrets: known, clock } = secrets(async (_, user) => {
      if (fails) throw new Error('permission denied');
      return [[user, 'x']];
    });
    expect(await known.of('a')).toBeNull();
    fails = false;
    expect([await known.of('a'), await known.isCertain('a')]).toEqual([null, false]);
    clock.now = 1000;
    expect(await known.of('a')).toBe('x');
  });
});
