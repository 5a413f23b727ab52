/**
 * Logical replication slots on an origin.
 * Invariant: nothing here waits without a limit that the server enforces, so a client that gives up leaves no half-made slot holding WAL.
 */
import type pg from 'pg';
import type { ServerAddress } from '../config.ts';
import { type Lsn, parseLsn } from './lsn.ts';
import { connectRaw } from './raw-connection.ts';

export interface CreateSlotOptions {
  /** Default: the address's database. */
  readonly database?: string;
  /** How long the server waits for running transactions to end. Default 30 000. */
  readonly lockTimeoutMs?: number;
  /** Standbys that synchronize slots get it, too, so that a promoted one can go on with it (17 and later). Default false. */
  readonly failover?: boolean;
}

/**
 * Creates a slot for pgoutput. Changes committed after the returned consistent point are streamed by it.
 * PostgresError: 42710 exists already, 53400 no free slot, 55P03 a transaction on the origin stayed open longer than the limit,
 * 55000 wal_level, 42501 no right.
 */
export async function createSlot(address: ServerAddress, name: string, options: CreateSlotOptions = {}): Promise<{ consistentPoint: Lsn }> {
  const connection = await connectRaw(address, {
    replication: true,
    applicationName: `millrace ${name}`,
    settings: { lock_timeout: String(options.lockTimeoutMs ?? 30_000), statement_timeout: '0', idle_in_transaction_session_timeout: '0' },
    ...(options.database === undefined ? {} : { database: options.database }),
  });
  try {
    const [shown] = await connection.query("SELECT pg_catalog.current_setting('server_version_num'), pg_catalog.pg_is_in_recovery()");
    const [version, isStandby] = shown?.rows[0] ?? [];
    // The option list came with 15. A standby cannot make slots that it gets from its primary.
    const failover = options.failover === true && Number(version) >= 170000 && isStandby === 'f' ? ', FAILOVER true' : '';
    const snapshot = Number(version) >= 150000 ? `(SNAPSHOT 'nothing'${failover})` : 'NOEXPORT_SNAPSHOT';
    const [result] = await connection.query(`CREATE_REPLICATION_SLOT "${name.replaceAll('"', '""')}" LOGICAL pgoutput ${snapshot}`);
    return { consistentPoint: parseLsn(result?.rows[0]?.[1] ?? '') };
  } finally {
    await connection.close();
  }
}

export interface SlotInfo {
  readonly name: string;
  readonly database: string;
  readonly plugin: string;
  /** Process that streams from it. */
  readonly activePid: number | undefined;
  readonly confirmedFlush: Lsn | undefined;
  readonly restartLsn: Lsn | undefined;
  /** 'reserved', 'extended', 'unreserved' or 'lost'. */
  readonly walStatus: string | undefined;
  /** Bytes of WAL that may still be written before the slot is lost; undefined when there is no limit. */
  readonly safeWalBytes: bigint | undefined;
  /** Why a lost slot is lost (16 and later). */
  readonly invalidationReason: string | undefined;
}

/** What the origin says about a slot, or undefined when it has none of that name. */
export async function lookUpSlot(client: pg.Client, name: string): Promise<SlotInfo | undefined> {
  // Through jsonb, because the view's columns differ between versions.
  const result = await client.query<{ slot: Record<string, string | number | boolean | null> }>(
    'SELECT pg_catalog.to_jsonb(s) AS slot FROM pg_catalog.pg_replication_slots s WHERE slot_name = $1',
    [name],
  );
  const slot = result.rows[0]?.slot;
  if (slot === undefined) return undefined;
  const text = (key: string): string | undefined => (slot[key] === null || slot[key] === undefined ? undefined : String(slot[key]));
  const lsn = (key: string): Lsn | undefined => {
    const value = text(key);
    return value === undefined ? undefined : parseLsn(value);
  };
  const pid = text('active_pid');
  const safe = text('safe_wal_size');
  return {
    name,
    database: text('database') ?? '',
    plugin: text('plugin') ?? '',
    activePid: pid === undefined ? undefined : Number(pid),
    confirmedFlush: lsn('confirmed_flush_lsn'),
    restartLsn: lsn('restart_lsn'),
    walStatus: text('wal_status'),
    safeWalBytes: safe === undefined ? undefined : BigInt(safe),
    invalidationReason: text('invalidation_reason'),
  };
}

const slotUseSql = `SELECT pg_catalog.pg_wal_lsn_diff(
              CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn() ELSE pg_catalog.pg_current_wal_lsn() END, s.restart_lsn)::text AS bytes,
            s.active
       FROM pg_catalog.pg_replication_slots s WHERE s.slot_name = $1`;

/** Bytes of WAL that the server keeps for a slot (0 when there is none of that name), and whether anybody streams from it. Asked once a second, so it is prepared. */
export async function slotUse(client: pg.Client, name: string): Promise<{ readonly retained: number; readonly active: boolean }> {
  const result = await client.query<{ bytes: string | null; active: boolean }>({ name: 'slot use', text: slotUseSql, values: [name] });
  const [slot] = result.rows;
  return { retained: Number(slot?.bytes ?? 0), active: slot?.active ?? false };
}

/**
 * Drops a slot; true when there was one. With `terminate`, whoever streams from it is terminated first
 * (needs the same role or pg_signal_backend); otherwise 55006 when it is in use.
 */
export async function dropSlot(client: pg.Client, name: string, options: { readonly terminate?: boolean } = {}): Promise<boolean> {
  for (let attempt = 0; ; attempt++) {
    if (options.terminate === true) {
      await client.query(
        'SELECT pg_catalog.pg_terminate_backend(active_pid) FROM pg_catalog.pg_replication_slots WHERE slot_name = $1 AND active_pid IS NOT NULL',
        [name],
      );
    }
    try {
      const dropped = await client.query(
        'SELECT pg_catalog.pg_drop_replication_slot(slot_name) FROM pg_catalog.pg_replication_slots WHERE slot_name = $1',
        [name],
      );
      return dropped.rowCount === 1;
    } catch (error) {
      const code = error instanceof Error && 'code' in error ? error.code : undefined;
      if (code === '42704') return false;
      // The terminated process needs a moment to let go.
      if (code !== '55006' || options.terminate !== true || attempt === 50) throw error;
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  }
}

/** Someone who is no Millrace streams from a slot. */
export class SlotTakenError extends Error {
  readonly code = '55006';
}

/**
 * Ends a stream of Millrace's own that still has the slot: of a process that no longer leads, or of a connection that only the server still believes in.
 * Resolves when the slot is free. Rejects with SlotTakenError when somebody else has it: that is not ours to end.
 */
export async function freeSlot(client: pg.Client, name: string, waitMs = 5_000): Promise<void> {
  for (const until = performance.now() + waitMs; ; ) {
    const { rows } = await client.query<{ pid: number; ours: boolean | null; who: string | null }>(
      `SELECT s.active_pid AS pid, o.ours, pg_catalog.concat_ws(', ', pg_catalog.concat_ws(' ', NULLIF(a.application_name, ''), 'of role', a.usename), 'from ' || pg_catalog.host(a.client_addr)) AS who,
              CASE WHEN o.ours THEN pg_catalog.pg_terminate_backend(s.active_pid) END
         FROM pg_catalog.pg_replication_slots s
         LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = s.active_pid,
              LATERAL (SELECT a.application_name = pg_catalog.left('millrace ' || s.slot_name, 63) AS ours) o
        WHERE s.slot_name = $1 AND s.active_pid IS NOT NULL`,
      [name],
    );
    const [holder] = rows;
    if (holder === undefined) return;
    const taken = `replication slot "${name}" is in use by process ${holder.pid} of the origin`;
    if (holder.ours === false) {
      throw new SlotTakenError(`${taken} (${holder.who}), which is no Millrace; it is tried again until that has ended`);
    }
    if (performance.now() > until) throw new SlotTakenError(`${taken}, which does not end; it is tried again`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}
