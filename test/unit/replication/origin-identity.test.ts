/** Whether an origin still is the one whose WAL was read. */
import { expect, test } from 'vitest';
import { parseLsn } from '../../../src/replication/lsn.ts';
import { type OriginIdentity, parseHistory, whyNotTheSame } from '../../../src/replication/origin-identity.ts';

const now = (more: Partial<OriginIdentity> = {}): OriginIdentity => ({
  systemIdentifier: '7',
  timeline: 1,
  flushed: parseLsn('0/5000'),
  left: [],
  ...more,
});
const before = { systemIdentifier: '7', timeline: 1, reached: parseLsn('0/4000') };

test('the same server, further on', () => expect(whyNotTheSame(before, now())).toBeNull());

test('another server', () => expect(whyNotTheSame(before, now({ systemIdentifier: '8' }))).toMatch(/^the origin is another server/));

test('restored to an earlier point', () =>
  expect(whyNotTheSame(before, now({ flushed: parseLsn('0/3000') }))).toBe(
    'the origin was restored to an earlier point: its WAL ends at 0/3000, 0/4000 has been read',
  ));

test('a standby that was promoted after all that was read goes on; before that, it lacks some of it', () => {
  expect(whyNotTheSame(before, now({ timeline: 2, left: [{ timeline: 1, at: parseLsn('0/4800') }] }))).toBeNull();
  expect(whyNotTheSame(before, now({ timeline: 2, left: [{ timeline: 1, at: parseLsn('0/3800') }] }))).toMatch(
    /^the origin left timeline 1 at 0\/3800/,
  );
});

test('a timeline that does not come from ours', () =>
  expect(whyNotTheSame({ ...before, timeline: 3 }, now({ timeline: 2, left: [{ timeline: 1, at: parseLsn('0/4800') }] }))).toMatch(
    /does not come from timeline 3/,
  ));

test('what is not known is not held against it', () =>
  expect(whyNotTheSame({ ...before, systemIdentifier: null, timeline: null }, now({ timeline: 2, left: [] }))).toBeNull());

test('a history file as Postgres writes it', () =>
  expect(parseHistory('1\t0/3000148\tno recovery target specified\n\n2\t1/A0000000\tat restore point "x"\n')).toEqual([
    { timeline: 1, at: parseLsn('0/3000148') },
    { timeline: 2, at: parseLsn('1/A0000000') },
  ]));
