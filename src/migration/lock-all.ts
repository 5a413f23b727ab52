/**
 * The locks of a cutover.
 * Invariant: all of them are had at once, or none; nobody waits behind a try that waits for others for longer than that try.
 */
import { setTimeout as wait } from 'node:timers/promises';
import { PostgresError } from '../replication/postgres-error.ts';
import { type Blocker, watchBlockers } from './blockers.ts';
import { lockSql } from './flip-sql.ts';
import type { MigrationOptions } from './model.ts';
import type { MigrationSessions } from './sessions.ts';

export type Lock = { readonly had: true; readonly since: string } | { readonly had: false; readonly blockers: readonly Blocker[] };

export const isLockTimeout = (error: unknown): boolean => error instanceof PostgresError && error.code === '55P03';

const timeouts: readonly string[] = ['55P03', '57014', '40P01'];

/** Waited too long for a lock, or for a statement, or for each other. */
export const isTimeout = (error: unknown): boolean => error instanceof PostgresError && timeouts.includes(error.code);

/** With all locks that tables are known by, there is little left to be waited for: a sequence that somebody has drawn from, a row of the catalog. */
export const heldLockMs = 20;
/** More than MAX HOLD: this process notices that by itself, unless it hangs. */
const hungMs = 1_000;

/** While locks are held nobody waits for what we wait for, nor for a process that hangs: the server ends its session then. */
const limitsSql = (maxHoldMs: number, statementMs: number): string =>
  `SET LOCAL statement_timeout = ${statementMs}; SET LOCAL lock_timeout = ${heldLockMs}; SET LOCAL idle_in_transaction_session_timeout = ${maxHoldMs + hungMs}`;

/** Before the locks are asked for. */
const settleMs = 10;
/** How long each try waits, in ms; none waits longer than the user said. */
const tries = [5, 10, 10, 20, 20, 40, 40, 100, 100, 1000];

export interface LockOptions {
  /** The limit of each statement that comes after; 0: none. */
  readonly statementMs: number;
  /** Done ahead of each try. */
  readonly before: () => Promise<void>;
  /** Said as soon as the locks are had, along with them. */
  readonly along: readonly string[];
}

/**
 * Gets all locks, or none. Statements lock a view and then what it reads, transactions one relation and then another: whatever order we take, somebody
 * may hold the one that we want while he wants one that we hold. So tries are short, in another order each time, and after each everybody goes on.
 */
export async function lockAll(
  sessions: MigrationSessions,
  tables: readonly string[],
  { lockTimeoutMs, maxHoldMs }: MigrationOptions,
  { statementMs, before, along }: LockOptions,
): Promise<Lock> {
  const { work } = sessions;
  let blockers: readonly Blocker[] = [];
  await sessions.holding.prepare(tables);
  // What was done until here has kept others from the processors: they catch up first, and so the locks are had sooner.
  await wait(settleMs);
  for (const [i, ms] of tries.entries()) {
    const waitMs = Math.min(ms, lockTimeoutMs);
    const order = i % 2 === 0 ? tables : [...tables].reverse();
    await before();
    // One limit for all of them together.
    const limited = work.query(`SAVEPOINT locks; SET LOCAL lock_timeout = 0; SET LOCAL statement_timeout = ${waitMs}`);
    await Promise.all([sessions.holding.begin(waitMs), limited]);
    const watch = watchBlockers(sessions, waitMs * 0.6);
    try {
      const results = await work.query(
        [lockSql(order), limitsSql(maxHoldMs, statementMs), ...along, 'SELECT pg_catalog.clock_timestamp()'].join('; '),
      );
      return { had: true, since: results.at(-1)?.rows[0]?.[0] ?? '' };
    } catch (error) {
      if (!isTimeout(error)) throw error;
      watch.end();
      const found = await watch.found();
      if (found.length > 0) blockers = found;
      await work.query('ROLLBACK TO locks; RELEASE locks');
      sessions.holding.end(false);
      await wait(5 + Math.random() * 20);
    } finally {
      watch.end();
    }
  }
  return { had: false, blockers };
}
