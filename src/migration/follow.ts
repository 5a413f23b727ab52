/**
 * The steps by which one table follows the other: apply what was touched, copy a piece, verify a piece, repair everything.
 * Invariant: each step is one transaction whose snapshot sees every transaction it takes from the feed. Steps of a migration never run side by side.
 */
import type { Logger } from '../log.ts';
import { PostgresError } from '../replication/postgres-error.ts';
import { isVisible } from '../replication/snapshot-visibility.ts';
import { noteProgress } from './catalog.ts';
import type { ChangeFeed } from './change-feed.ts';
import type { Migration } from './model.ts';
import type { Truth } from './places.ts';
import {
  applyKeys,
  asOwner,
  begin,
  catchUp,
  type Isolation,
  keySql,
  type MigrationSessions,
  rollback,
  snapshotBehind,
} from './sessions.ts';
import type { SyncSql } from './sync-sql.ts';
import type { Key, TouchingTransaction } from './touched.ts';

export interface Following {
  readonly migration: Migration;
  readonly truth: Truth;
  readonly sync: SyncSql;
  readonly sessions: MigrationSessions;
  readonly feed: ChangeFeed;
  readonly log: Logger;
}

/** Keys of one transaction of ours. */
const mostKeys = 20_000;
/** Where users write the same rows, who wants one waits for that transaction to end. */
const mostSharedKeys = 500;
/** Differences that one statement brings. */
const mostDifferences = 5_000;
/** Rows that users write, too, are waited for no longer than this: shorter than any deadlock_timeout, so that it is us who give way. */
const rowLockMs = 100;

/** What is left of a source after a move is written by users, too. Elsewhere nobody else writes the table that follows. */
const isShared = ({ migration, truth }: Pick<Following, 'migration' | 'truth'>): boolean =>
  migration.definition.kind === 'move' && truth === 'target';

/** Rows that users write, too, are waited for. */
const isolation = (f: Following): Isolation => (isShared(f) ? 'READ COMMITTED' : 'REPEATABLE READ');

/** Applies what waits. Answers how many transactions were taken: 0 means that nothing waits, or that nothing that waits can be seen yet. */
export async function applyWaiting(f: Following): Promise<number> {
  if (f.feed.touched.count === 0) return 0;
  if (f.feed.touched.all().some(({ keys }) => keys === null)) return await applyEverything(f);
  try {
    return await applyOnce(f, false);
  } catch (error) {
    await rollback(f.sessions.work);
    if (!(error instanceof PostgresError)) throw error;
    // Somebody has locked a row: it is us who give way, and come back.
    if (error.code === '55P03' || error.code === '40P01') return 0;
    if (error.code !== '23505') throw error;
    // Unique values have changed places: at one point in time, and with every row out of the way, there is room for all of them.
    return await applyOnce(f, true);
  }
}

async function applyOnce(f: Following, exactly: boolean): Promise<number> {
  const { sessions, feed, migration, sync } = f;
  const snapshot = await begin(sessions.work, isolation(f), rowLockMs);
  if (exactly) await catchUp(sessions.beside, feed);
  const taken = exactly
    ? feed.touched.visible(snapshot)
    : upTo(feed.touched.visible(snapshot), isolation(f) === 'READ COMMITTED' ? mostSharedKeys : mostKeys);
  if (taken.length === 0) {
    await sessions.work.query('COMMIT');
    return 0;
  }
  const keys = keysOf(taken);
  await applyKeys(sessions.work, migration.source.owner.name, sync, exactly ? sync.applyAnew : sync.apply, keys);
  await noteProgress(sessions.work, migration.id, `applied_keys = applied_keys + ${keys.length}`);
  await sessions.work.query('COMMIT');
  feed.taken(taken);
  return taken.length;
}

/**
 * Applies what waits before the locks are asked for, in the transaction that is to have them: a millisecond or two less of them. Not where users write
 * the same rows: those would be kept from them. `taken` is what has been applied: it is to be taken from the feed when all of it commits.
 */
export async function applyEarly(f: Following, taken: Set<TouchingTransaction>): Promise<void> {
  const { migration, sessions, feed, sync } = f;
  if (isShared(f)) return;
  const snapshot = await snapshotBehind(sessions.work, 'SAVEPOINT early');
  const visible = feed.touched.visible(snapshot).filter((transaction) => !taken.has(transaction));
  if (visible.length === 0 || visible.some(({ keys }) => keys === null)) return;
  try {
    await applyKeys(sessions.work, migration.source.owner.name, sync, sync.applyAnew, keysOf(visible));
  } catch (error) {
    if (!(error instanceof PostgresError)) throw error;
    // Unique values may have changed places meanwhile: under the locks there is room for them.
    await sessions.work.query('ROLLBACK TO early');
    return;
  }
  for (const transaction of visible) taken.add(transaction);
}

/** After TRUNCATE, or a transaction too large to be told key by key: every row is compared. */
async function applyEverything(f: Following): Promise<number> {
  const taken = f.feed.touched.all().filter(({ keys }) => keys === null);
  for (;;) {
    const snapshot = await begin(f.sessions.work, 'REPEATABLE READ', rowLockMs);
    await f.sessions.work.query('COMMIT');
    if (taken.every(({ xid }) => isVisible(snapshot, xid))) break;
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  await repairAll(f);
  f.feed.taken(taken);
  return taken.length;
}

/** Compares every row, and repairs. For when it is not known what changed. */
export async function repairAll(f: Following): Promise<number> {
  let repaired = 0;
  for (let after: Key | null = null; ; ) {
    const found: { differences: readonly Key[]; end: Key | null } = await compare(f, after, 50_000);
    if (found.differences.length > 0) repaired += await repair(f, found.differences);
    if (found.differences.length >= mostDifferences) continue;
    if (found.end === null) break;
    after = found.end;
  }
  f.log.info({ migration: f.migration.name, repaired }, 'every row was compared');
  return repaired;
}

/** A piece of the first copy. Null: nothing is left. */
export async function copyPiece(f: Following, after: Key | null, rows: number): Promise<Key | null> {
  try {
    return await copyOnce(f, after, rows, false);
  } catch (error) {
    await rollback(f.sessions.work);
    if (!(error instanceof PostgresError) || error.code !== '23505') throw error;
    // A unique value has come to a row of this piece from one that was copied earlier, and is still there.
    return await copyOnce(f, after, rows, true);
  }
}

/** `exactly`: everything that the snapshot sees is applied before, so that what is there already is as the piece finds it. */
async function copyOnce(f: Following, after: Key | null, rows: number, exactly: boolean): Promise<Key | null> {
  const { sessions, feed, sync, migration } = f;
  const { work } = sessions;
  const snapshot = await begin(work, 'REPEATABLE READ', 0);
  if (exactly) await catchUp(sessions.beside, feed);
  const taken = exactly ? feed.touched.visible(snapshot) : [];
  if (taken.length > 0) await applyKeys(work, migration.source.owner.name, sync, sync.applyAnew, keysOf(taken));
  const { border, made } = await asOwner(work, migration.source.owner.name, async () => {
    const [found] = (await work.query(sync.border(after, rows)))[0]?.rows ?? [];
    const upTo = found === undefined ? null : (found as Key);
    const [copied] = await work.query(sync.copy({ after, upTo }));
    return { border: upTo, made: Number(copied?.tag.split(' ').at(-1) ?? 0) };
  });
  // Of the last piece it is not known how many rows of the source were looked at, but how many there are in the target.
  const counted = border === null ? `greatest(coalesce(rows_total, 0), rows_copied + ${made})` : `rows_copied + ${rows}`;
  await noteProgress(work, migration.id, `copied_to = ${keySql(border)}, rows_copied = ${counted}`);
  await work.query('COMMIT');
  feed.taken(taken);
  return border;
}

export interface Verified {
  /** Where the piece ended; null: it was the last. */
  readonly end: Key | null;
  readonly found: number;
}

/** Compares a piece at one point in time, rows that still wait to be brought up to date left out, and repairs what differs. */
export async function verifyPiece(f: Following, after: Key | null, rows: number): Promise<Verified> {
  const { sessions, feed, migration } = f;
  const snapshot = await begin(sessions.work, 'REPEATABLE READ', 0);
  await catchUp(sessions.beside, feed);
  const waiting = feed.touched.visible(snapshot);
  const pending = new Set(waiting.flatMap(({ keys }) => (keys === null ? [] : [...keys.keys()])));
  const everything = waiting.some(({ keys }) => keys === null);
  const { differences, end } = await compared(f, after, rows);
  await sessions.work.query('COMMIT');
  const wrong = everything ? [] : differences.filter((key) => !pending.has(key.join('\u0000')));
  if (wrong.length > 0) {
    f.log.warn({ migration: migration.name, rows: wrong.length, first: wrong[0] }, 'rows were not as they should be, and are repaired');
    await repair(f, wrong);
  }
  // More differences than one look brings: the same piece again.
  const next = differences.length >= mostDifferences ? after : end;
  await noteProgress(
    sessions.work,
    migration.id,
    `verified_to = ${keySql(next)}, found = found + ${wrong.length}, repaired = repaired + ${wrong.length}`,
  );
  return { end: next, found: wrong.length };
}

async function compare(f: Following, after: Key | null, rows: number): Promise<{ differences: readonly Key[]; end: Key | null }> {
  await begin(f.sessions.work, 'REPEATABLE READ', 0);
  const found = await compared(f, after, rows);
  await f.sessions.work.query('COMMIT');
  return found;
}

async function compared(f: Following, after: Key | null, rows: number): Promise<{ differences: readonly Key[]; end: Key | null }> {
  const { work } = f.sessions;
  return await asOwner(work, f.migration.source.owner.name, async () => {
    const [found] = (await work.query(f.sync.border(after, rows)))[0]?.rows ?? [];
    const end = found === undefined ? null : (found as Key);
    const [differences] = await work.query(f.sync.differences({ after, upTo: end }, mostDifferences));
    return { differences: (differences?.rows ?? []) as readonly Key[], end };
  });
}

async function repair(f: Following, keys: readonly Key[]): Promise<number> {
  const { work } = f.sessions;
  await begin(work, isolation(f), rowLockMs);
  const changed = await applyKeys(work, f.migration.source.owner.name, f.sync, f.sync.applyAnew, keys);
  await work.query('COMMIT');
  return changed;
}

/** The first of these that together touch about so many keys, at least one. */
function upTo(transactions: readonly TouchingTransaction[], most: number): readonly TouchingTransaction[] {
  let keys = 0;
  const end = transactions.findIndex((transaction) => {
    const isFull = keys >= most;
    keys += transaction.keys?.size ?? 0;
    return isFull;
  });
  return end < 0 ? transactions : transactions.slice(0, end);
}

export function keysOf(transactions: readonly TouchingTransaction[]): readonly Key[] {
  const all = new Map<string, Key>();
  for (const { keys } of transactions) for (const [name, key] of keys ?? []) all.set(name, key);
  return [...all.values()];
}
