/**
 * Copies origin tables as of one moment.
 * Invariant: everything copied through one OriginSnapshot is the state that `snapshot` describes; `lsn` was read after the snapshot was taken,
 * so every transaction the snapshot sees is before it.
 */
import type { ServerAddress } from '../config.ts';
import { copyRelay } from './copy-relay.ts';
import { type Lsn, parseLsn } from './lsn.ts';
import { PostgresError } from './postgres-error.ts';
import { connectRaw } from './raw-connection.ts';
import type { RawConnection } from './session-contract.ts';
import { originSettings } from './settings.ts';
import { parseSnapshot, type Snapshot } from './snapshot-visibility.ts';

export interface CopyOptions {
  /** An idle session, or one in a transaction of the caller's. Not used for anything else meanwhile. */
  readonly upstream: RawConnection;
  /** 'COPY (SELECT ..) TO STDOUT' or 'COPY public.t (..) TO STDOUT': text format. Names are schema-qualified: search_path is empty there. */
  readonly sourceSql: string;
  /** 'COPY millrace_data.s1 (..) FROM STDIN': text format. With `withRowHash` its first column is the hash (int4). */
  readonly targetSql: string;
  readonly withRowHash?: boolean;
  /** About once per megabyte, and at the end: totals so far, bytes as received. */
  readonly onProgress?: (rows: number, bytes: number) => void;
  /** Cuts the origin session and makes the COPY upstream fail; the promise rejects with the signal's reason. */
  readonly signal?: AbortSignal;
}

export interface OriginSnapshot {
  readonly snapshot: Snapshot;
  readonly lsn: Lsn;
  /**
   * Copies one table. Rejects with the origin's or the upstream's PostgresError, whichever failed first; the upstream session is usable afterwards
   * (its transaction, if any, is aborted).
   */
  copy(options: CopyOptions): Promise<{ readonly rows: number; readonly bytes: number }>;
  /**
   * To be called after the last copy: has the origin write out its WAL, so that a stream gets as far as `lsn` soon. That is where the WAL was
   * inserted to, and on an idle origin what a reader has added (pruning) is otherwise not written before its next checkpoint or running-xacts record.
   */
  flush(): Promise<void>;
  /** Ends the origin session. */
  close(): Promise<void>;
}

export interface OpenSnapshotOptions {
  /** Default: the address's database. */
  readonly database?: string;
  readonly applicationName?: string;
}

/** Rejects as connectRaw does. */
export async function openSnapshot(address: ServerAddress, options: OpenSnapshotOptions = {}): Promise<OriginSnapshot> {
  const origin = await connectRaw(address, {
    applicationName: options.applicationName ?? 'millrace copy',
    // A copy takes as long as it takes: limits meant for interactive use do not apply.
    settings: { ...originSettings, statement_timeout: '0', idle_in_transaction_session_timeout: '0' },
    ...(options.database === undefined ? {} : { database: options.database }),
  });
  try {
    // On its own: in one message with BEGIN it would be a query of the same transaction, and the isolation level comes too late then.
    await origin.query(
      "SELECT pg_catalog.set_config(name, '0', false) FROM pg_catalog.pg_settings WHERE name IN ('transaction_timeout', 'idle_session_timeout')",
    );
    // Three calls, not one string: the isolation level cannot be set in a string that has run a query. Still one round trip.
    const [, , taken] = await Promise.all([
      origin.query(
        `SELECT pg_catalog.set_config(name, '0', false) FROM pg_catalog.pg_settings WHERE name IN ('transaction_timeout', 'idle_session_timeout')`,
      ),
      origin.query('BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY'),
      origin.query(
        `SELECT pg_catalog.pg_current_snapshot()::text,
                CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn() ELSE pg_catalog.pg_current_wal_insert_lsn() END`,
      ),
    ]);
    const [snapshot, lsn] = taken[0]?.rows[0] ?? [];
    return {
      snapshot: parseSnapshot(snapshot ?? ''),
      lsn: parseLsn(lsn ?? ''),
      copy: (copyOptions) => copyRelay(origin, copyOptions),
      flush: () => flushWal(origin),
      close: () => origin.close(),
    };
  } catch (error) {
    origin.destroy();
    throw error;
  }
}

/** A commit of its own, if only of a logical message that nobody reads. On a standby, or where the role may not, time does it. */
async function flushWal(origin: RawConnection): Promise<void> {
  try {
    await origin.query('COMMIT');
    await origin.query("SET synchronous_commit = 'local'");
    await origin.query("SELECT pg_catalog.pg_logical_emit_message(true, 'millrace', '')");
  } catch (error) {
    if (!(error instanceof PostgresError) || !['42501', '25006', '55000'].includes(error.code)) throw error;
  }
}
