/**
 * Reads origin tables, each piece as of one moment.
 * Invariant: everything read from `begin` to `end` is the state that the snapshot describes; `lsn` was read after the snapshot was taken,
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
  /** 'COPY (SELECT ..) TO STDOUT' or 'COPY public.t (..) TO STDOUT'. Names are schema-qualified: search_path is empty there. */
  readonly sourceSql: string;
  /** 'COPY millrace_data.s1 (..) FROM STDIN'. With `withRowHash` its first column is the hash (int4). */
  readonly targetSql: string;
  /** Text format only. */
  readonly withRowHash?: boolean;
  /** Both statements say FORMAT binary; default: text. */
  readonly binary?: boolean;
  /** About once per megabyte, and at the end: totals so far, bytes as received. */
  readonly onProgress?: (rows: number, bytes: number) => void;
  /** Told the bytes of every run of rows: how long to rest before the next, in ms. */
  readonly rest?: (bytes: number) => number;
  /** Cuts the origin session and makes the COPY upstream fail; the promise rejects with the signal's reason. */
  readonly signal?: AbortSignal;
}

/** What a session reads as of. */
export interface TakenSnapshot {
  readonly snapshot: Snapshot;
  /** As pg_current_snapshot() prints it. */
  readonly text: string;
  readonly lsn: Lsn;
}

/** A session on the origin that reads at one snapshot after the other. */
export interface OriginReader {
  /**
   * Begins to read at a new snapshot. `table` (qualified, quoted) is locked ACCESS SHARE before it is taken: no snapshot sees through TRUNCATE and
   * rewriting ALTER TABLE, to which the table would look empty. What anybody else does with it but these and DROP goes on.
   */
  begin(table?: string): Promise<TakenSnapshot>;
  /** At the snapshot, if one is open. */
  query(sql: string): Promise<readonly (readonly (string | null)[])[]>;
  /**
   * Copies one table. Rejects with the origin's or the upstream's PostgresError, whichever failed first; the upstream session is usable afterwards
   * (its transaction, if any, is aborted).
   */
  copy(options: CopyOptions): Promise<{ readonly rows: number; readonly bytes: number }>;
  /** Gives the snapshot up: from here on the origin keeps nothing for it. */
  end(): Promise<void>;
  /**
   * Outside a snapshot: has the origin write out its WAL, so that a stream gets as far as an `lsn` soon. That is where the WAL was inserted to, and
   * on an idle origin what a reader has added (pruning) is otherwise not written before its next checkpoint or running-xacts record.
   */
  flush(): Promise<void>;
  /** Ends the origin session. */
  close(): Promise<void>;
  /** Cuts it; what is under way rejects with the reason. */
  destroy(reason: Error): void;
}

export interface OpenReaderOptions {
  /** Default: the address's database. */
  readonly database?: string;
  readonly applicationName?: string;
  /** Further settings of the session. */
  readonly settings?: Readonly<Record<string, string>>;
}

/** Rejects as connectRaw does. */
export async function openReader(address: ServerAddress, options: OpenReaderOptions = {}): Promise<OriginReader> {
  const origin = await connectRaw(address, {
    applicationName: options.applicationName ?? 'millrace copy',
    // A copy takes as long as it takes: limits meant for interactive use do not apply.
    settings: {
      ...originSettings,
      statement_timeout: '0',
      lock_timeout: '0',
      idle_in_transaction_session_timeout: '0',
      ...options.settings,
    },
    ...(options.database === undefined ? {} : { database: options.database }),
  });
  try {
    // Settings that not every server has.
    await origin.query(
      "SELECT pg_catalog.set_config(name, '0', false) FROM pg_catalog.pg_settings WHERE name IN ('transaction_timeout', 'idle_session_timeout')",
    );
  } catch (error) {
    origin.destroy();
    throw error;
  }
  return {
    begin: (table) => takeSnapshot(origin, table),
    query: async (sql) => (await origin.query(sql)).at(-1)?.rows ?? [],
    copy: (copyOptions) => copyRelay(origin, copyOptions),
    end: async () => void (await origin.query('COMMIT')),
    flush: () => flushWal(origin),
    close: () => origin.close(),
    destroy: (reason) => origin.destroy(reason),
  };
}

async function takeSnapshot(origin: RawConnection, table: string | undefined): Promise<TakenSnapshot> {
  // Calls of their own, not one string: the isolation level cannot be set in a string that has run a query. Still one round trip. LOCK takes no snapshot.
  const [, , taken] = await Promise.all([
    origin.query('BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY'),
    table === undefined ? null : origin.query(`LOCK TABLE ${table} IN ACCESS SHARE MODE`),
    origin.query(
      `SELECT pg_catalog.pg_current_snapshot()::text,
              CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn() ELSE pg_catalog.pg_current_wal_insert_lsn() END`,
    ),
  ]);
  const [text, lsn] = taken[0]?.rows[0] ?? [];
  return { snapshot: parseSnapshot(text ?? ''), text: text ?? '', lsn: parseLsn(lsn ?? '') };
}

/** A commit, if only of a logical message that nobody reads. On a standby, or where the role may not, time does it. */
async function flushWal(origin: RawConnection): Promise<void> {
  try {
    await origin.query("SET synchronous_commit = 'local'");
    await origin.query("SELECT pg_catalog.pg_logical_emit_message(true, 'millrace', '')");
  } catch (error) {
    if (!(error instanceof PostgresError) || !['42501', '25006', '55000'].includes(error.code)) throw error;
  }
}
