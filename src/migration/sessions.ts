/**
 * The two sessions of a migration: one that works, one that asks and writes markers beside it.
 * Invariant: rows are read and written as the source's owner, with triggers and foreign keys off where the role may turn them off; only names and the
 * catalog are changed as Millrace's own role.
 */
import type { Client } from 'pg';
import type { ServerAddress } from '../config.ts';
import { writeMarker } from '../replication/markers.ts';
import { openOrigin } from '../replication/origin.ts';
import { connectRaw } from '../replication/raw-connection.ts';
import type { RawConnection } from '../replication/session-contract.ts';
import { pinnedSettings } from '../replication/settings.ts';
import { parseSnapshot, type Snapshot } from '../replication/snapshot-visibility.ts';
import { quoteIdentifier, quoteLiteral } from '../sql/quote.ts';
import { arrayText, type ChangeFeed, markerPrefix } from './change-feed.ts';
import { type Holding, type HoldStatements, holding } from './hold.ts';
import type { SyncSql } from './sync-sql.ts';
import type { Key } from './touched.ts';

export interface MigrationSessions {
  readonly work: RawConnection;
  readonly beside: Client;
  /** What waits in the proxy while `work` seeks and has its locks. */
  readonly holding: Holding;
  /** pg_logical_emit_message has a fourth argument. */
  readonly putsMessagesOnDisk: boolean;
  close(): Promise<void>;
}

export async function openSessions(
  address: ServerAddress,
  database: string,
  id: number,
  hold: HoldStatements | null,
): Promise<MigrationSessions> {
  const work = await connectRaw(address, {
    database,
    applicationName: `millrace migration ${id}`,
    settings: { ...pinnedSettings, search_path: '', statement_timeout: '0', idle_in_transaction_session_timeout: '0', jit: 'off' },
  });
  try {
    // Not every role may; triggers of the user fire then when the source follows the target.
    await work.query('SET session_replication_role = replica').catch(() => undefined);
    const beside = await openOrigin(address, { database, applicationName: `millrace migration ${id} beside` });
    beside.on('error', () => undefined);
    await endFormer(beside, id, work.backendPid);
    const { rows } = await beside.query<{ can: boolean }>(
      "SELECT pg_catalog.current_setting('server_version_num')::integer >= 170000 AS can",
    );
    return {
      work,
      beside,
      holding: holding(hold, work),
      putsMessagesOnDisk: rows[0]?.can ?? false,
      close: async () => {
        await work.close().catch(() => undefined);
        await beside.end().catch(() => undefined);
      },
    };
  } catch (error) {
    work.destroy();
    throw error;
  }
}

/** A session of a process that was killed may still be at work: with what it was last told, which may be to change names. */
async function endFormer(beside: Client, id: number, own: number): Promise<void> {
  for (;;) {
    const { rowCount } = await beside.query(
      'SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity WHERE application_name = $1 AND pid <> $2 AND datname = current_database()',
      [`millrace migration ${id}`, own],
    );
    if (rowCount === 0) return;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

export type Isolation = 'REPEATABLE READ' | 'READ COMMITTED';

/** Begins a transaction, and says what it sees (or, READ COMMITTED: what every statement of it sees at least). */
export const begin = (work: RawConnection, isolation: Isolation, lockTimeoutMs: number): Promise<Snapshot> =>
  snapshotBehind(work, `BEGIN ISOLATION LEVEL ${isolation}; SET LOCAL lock_timeout = ${lockTimeoutMs}`);

/** Runs this, and says what is seen then. */
export async function snapshotBehind(work: RawConnection, sql: string): Promise<Snapshot> {
  const results = await work.query(`${sql}; SELECT pg_catalog.pg_current_snapshot()`);
  return parseSnapshot(results.at(-1)?.rows[0]?.[0] ?? '');
}

export async function rollback(work: RawConnection): Promise<void> {
  if (work.transactionStatus !== 'I') await work.query('ROLLBACK').catch(() => undefined);
}

/** Runs work of the user's table as its owner, within a transaction. */
export async function asOwner<T>(work: RawConnection, owner: string, task: () => Promise<T>): Promise<T> {
  await work.query(`SET LOCAL ROLE ${quoteIdentifier(owner)}`);
  const result = await task();
  await work.query('RESET ROLE');
  return result;
}

/** Keys that one statement looks at. */
const keysAtOnce = 2_000;

/** Joins of few keys go by index: nothing is known of how many they are. */
const byIndex = 'SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off; SET LOCAL enable_seqscan = off';
const byAny = 'SET LOCAL enable_hashjoin = DEFAULT; SET LOCAL enable_mergejoin = DEFAULT; SET LOCAL enable_seqscan = DEFAULT';

/** A place where statements run: a session, or a test. */
export type ApplyingSession = Pick<RawConnection, 'query' | 'execute'>;

/**
 * Runs statements of SyncSql for keys, as the owner, within a transaction: the first for all keys, then the next. So every row that is in the way of
 * another is out of it before the first comes. Answers how many rows they changed. All is sent at once. Without keys they are only planned.
 */
export async function applyKeys(
  work: ApplyingSession,
  owner: string,
  { width }: Pick<SyncSql, 'width'>,
  statements: readonly string[],
  keys: readonly Key[],
): Promise<number> {
  const pieces = Array.from({ length: Math.max(1, Math.ceil(keys.length / keysAtOnce)) }, (_, i) => {
    const some = keys.slice(i * keysAtOnce, (i + 1) * keysAtOnce);
    return Array.from({ length: width }, (_, column) => arrayText(some.map((key) => key[column] ?? '')));
  });
  const begun = work.query(`${byIndex}; SET LOCAL ROLE ${quoteIdentifier(owner)}`);
  const executed = statements.flatMap((sql, i) => pieces.map((params) => work.execute(`apply${i}`, sql, params)));
  const ended = work.query(`RESET ROLE; ${byAny}`);
  // Of several errors the first is raised: those behind it only say that there was one.
  const settled = await Promise.allSettled([begun, ...executed, ended]);
  for (const one of settled) if (one.status === 'rejected') throw one.reason;
  const results = await Promise.all(executed);
  return results.reduce((changed, { tag }) => changed + Number(tag.split(' ').at(-1) ?? 0), 0);
}

let markers = 0;

/** A marker that is going to be written, and when the feed has come to it. */
function awaitedMarker(feed: ChangeFeed): { readonly content: string; readonly passed: Promise<void> } {
  const content = `${process.pid}-${++markers}`;
  const passed = feed.passed(content);
  // A rejection before the marker is written has nobody waiting yet.
  passed.catch(() => undefined);
  return { content, passed };
}

/** Resolves when every transaction that had committed at the call is known to the feed. */
export async function catchUp(beside: Client, feed: ChangeFeed): Promise<void> {
  const { content, passed } = awaitedMarker(feed);
  await writeMarker(beside, markerPrefix, content);
  await passed;
}

export interface MarkerWithin {
  /** To be said by `work`. */
  readonly sql: readonly string[];
  /** To be called once that was said. Resolves when every transaction that had committed then is known to the feed. */
  passed(): Promise<void>;
  /** Nobody waits for it any more. */
  forget(): void;
}

/** As `catchUp`, by statements that can be sent along with others where the server can put such a message on disk at once (Postgres 17 and later). */
export function markerWithin({ beside, putsMessagesOnDisk }: MigrationSessions, feed: ChangeFeed): MarkerWithin {
  if (!putsMessagesOnDisk) return { sql: [], passed: () => catchUp(beside, feed), forget: () => undefined };
  const { content, passed } = awaitedMarker(feed);
  return {
    sql: [`SELECT pg_catalog.pg_logical_emit_message(false, ${quoteLiteral(markerPrefix)}, ${quoteLiteral(content)}, true)`],
    passed: () => passed,
    forget: () => feed.forget(content),
  };
}

/** A key as a text[] literal. */
export const keySql = (key: Key | null): string => (key === null ? 'NULL' : `${quoteLiteral(arrayText(key))}::text[]`);
