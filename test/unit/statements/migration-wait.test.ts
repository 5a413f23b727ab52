/** What a client is told while it waits for a migration, and in the end. */
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import type { CallerSession, NoticeFields } from '../../../src/statements/caller-session.ts';
import { awaitMigration, awaitRequest } from '../../../src/statements/migration-wait.ts';

beforeEach(() => {
  vi.useFakeTimers();
});
afterEach(() => {
  vi.useRealTimers();
});

interface Look {
  readonly phase: string;
  readonly request?: string;
  readonly paused?: boolean;
  readonly error?: object;
  readonly copied?: number;
  readonly attempts?: number;
  readonly blockedBy?: object;
  readonly holdMs?: number;
}

/** Every look takes a second; the last state stays. */
function session(looks: readonly (Look | null)[]): { readonly caller: CallerSession; readonly told: string[] } {
  const told: string[] = [];
  let next = 0;
  const caller: CallerSession = {
    database: 'd',
    user: 'u',
    inTransactionBlock: false,
    isOneTransaction: false,
    cursors: new Map(),
    onCommit: () => undefined,
    notice: ({ severity, message, detail, hint }: NoticeFields) =>
      told.push([`${severity}: ${message}`, ...(detail === undefined ? [] : [detail]), ...(hint === undefined ? [] : [hint])].join(' | ')),
    query: async (sql) => {
      if (sql.includes('m.differences')) return { fields: [], rows: [['3', '4']], tag: '' };
      vi.setSystemTime(Date.now() + 1000);
      const look = looks[Math.min(next++, looks.length - 1)] ?? null;
      if (look === null) return { fields: [], rows: [[null, null, null, null, null, null, null, null, null]], tag: '' };
      const { phase, request, paused, error, copied, attempts, blockedBy, holdMs } = look;
      const text = (value: object | number | undefined): string | null => (value === undefined ? null : JSON.stringify(value));
      const row = [
        phase,
        request ?? null,
        paused === true ? 't' : 'f',
        text(error),
        text(copied ?? 0),
        '100',
        text(attempts ?? 0),
        text(blockedBy),
        text(holdMs),
      ];
      return { fields: [], rows: [row], tag: '' };
    },
  };
  return { caller, told };
}

const awaited = { id: '7', name: 'm' };
const blockedBy = [{ pid: 123, query: 'SELECT 1', age_ms: 4500 }];

test('CREATE tells how far it is every two seconds, and returns when the migration is ready', async () => {
  const { caller, told } = session([
    { phase: 'creating' },
    { phase: 'copying', copied: 40 },
    { phase: 'verifying' },
    { phase: 'verifying' },
    { phase: 'ready', copied: 100 },
  ]);
  await awaitMigration(caller, awaited, 'manual');
  expect(told).toEqual([
    'NOTICE: migration "m": 40 of about 100 rows copied',
    'NOTICE: migration "m": verifying',
    'NOTICE: migration "m" is ready: 100 rows copied, and verified | ALTER MIGRATION m CUTOVER;',
  ]);
});

test('with CUTOVER = AUTO it waits for the cutover, and names who is in the way', async () => {
  const { caller, told } = session([
    { phase: 'ready' },
    { phase: 'ready', attempts: 2, blockedBy },
    { phase: 'cut_over', attempts: 3, holdMs: 12.34 },
  ]);
  await awaitMigration(caller, awaited, 'auto');
  expect(told).toEqual([
    'NOTICE: migration "m": 2 attempts so far; blocked by pid 123 (4.5 s, SELECT 1)',
    'NOTICE: migration "m" cut over: locks were held for 12.3 ms, 3 attempts | ALTER MIGRATION m FINALIZE; ends it, REVERT goes back.',
  ]);
});

test('what stops it for long is a warning: the migration stays', async () => {
  const { caller, told } = session([{ phase: 'copying', error: { message: 'the disk is full', hint: 'Make room.' } }]);
  await awaitMigration(caller, awaited, 'auto');
  expect(told[0]).toBe('NOTICE: migration "m": copying, held up: the disk is full');
  expect(told.at(-1)).toBe('WARNING: migration "m" cannot go on: the disk is full | Make room. To give it up: ALTER MIGRATION m CANCEL;');
});

test('an error that passes is waited out', async () => {
  const { caller, told } = session([
    { phase: 'copying' },
    { phase: 'copying', error: { message: 'the connection was lost' } },
    { phase: 'ready' },
  ]);
  await awaitMigration(caller, awaited, 'manual');
  expect(told).toEqual([
    'NOTICE: migration "m": copying, held up: the connection was lost',
    'NOTICE: migration "m" is ready: 0 rows copied, and verified | ALTER MIGRATION m CUTOVER;',
  ]);
});

test('nothing is told of one that was rolled back, paused ones are not waited for', async () => {
  const gone = session([null]);
  await awaitMigration(gone.caller, awaited, 'auto');
  expect(gone.told).toEqual([]);
  const paused = session([{ phase: 'copying', paused: true }]);
  await awaitMigration(paused.caller, awaited, 'auto');
  expect(paused.told).toEqual(['NOTICE: migration "m" is paused | ALTER MIGRATION m RESUME;']);
});

test.each([
  ['cutover', { phase: 'cut_over', attempts: 1, holdMs: 2 }, 'migration "m" cut over: locks were held for 2.0 ms, 1 attempt'],
  [
    'revert',
    { phase: 'ready', attempts: 2, holdMs: 3 },
    'migration "m" went back to the old shape: locks were held for 3.0 ms, 2 attempts',
  ],
  ['finalize', { phase: 'finished' }, 'migration "m" is finished'],
  ['cancel', { phase: 'cancelled' }, 'migration "m" is cancelled: nothing of it is left'],
  ['verify', { phase: 'ready' }, 'migration "m" was verified: 3 differences, 4 rows ever repaired'],
] as const)('ALTER MIGRATION .. %s returns when it is done', async (request, state, message) => {
  const { caller, told } = session([{ phase: 'ready', request }, state]);
  await awaitRequest(caller, awaited, request);
  expect(told).toEqual([`NOTICE: ${message}`]);
});

test('an attempt that failed is not the end', async () => {
  const { caller, told } = session([
    { phase: 'ready', request: 'cutover', error: { message: 'the lock was not had' } },
    { phase: 'cut_over', attempts: 2, holdMs: 1 },
  ]);
  await awaitRequest(caller, awaited, 'cutover');
  expect(told).toEqual(['NOTICE: migration "m" cut over: locks were held for 1.0 ms, 2 attempts']);
});

test('what cannot be done within a minute is a warning, and goes on', async () => {
  const { caller, told } = session([{ phase: 'ready', request: 'cutover', attempts: 9, blockedBy }]);
  await awaitRequest(caller, awaited, 'cutover');
  expect(told.at(-1)).toBe(
    'WARNING: migration "m" has not cut over yet | 9 attempts so far. It is blocked by pid 123 (4.5 s, SELECT 1). Millrace goes on trying. | SHOW MIGRATIONS; says how far it is.',
  );
});
