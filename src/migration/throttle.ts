/** When copying rests. Invariant: applying what was touched never rests: WAL would pile up. */
import type { Client } from 'pg';
import type { ChangeFeed } from './change-feed.ts';

export interface Load {
  /** Client backends at work besides ours. */
  readonly active: number;
  /** Where the WAL ends, in bytes. */
  readonly written: bigint;
  /** The standby that has replayed least; null: there is none. */
  readonly standby: {
    readonly name: string;
    readonly replayed: bigint /** As it says itself, while it says anything. */;
    readonly lagMs: number;
  } | null;
  /** The slot that is next to be lost (max_slot_wal_keep_size), when it is so near that copying could cost it. */
  readonly endangered: { readonly slot: string; readonly room: bigint } | null;
}

/** What a slot is left, in bytes, where it may keep far more. */
const leastRoom = 64 * 1024 * 1024;

/** Who reads changes (a logical slot) acknowledges when it likes, and is no standby. */
const loadSql = `SELECT (SELECT count(*)::integer FROM pg_stat_activity WHERE state = 'active' AND backend_type = 'client backend' AND application_name !~ '^millrace') AS active,
       w.written::text, s.name, s.replayed::text, s.lag, e.slot_name AS slot, e.safe_wal_size::text AS room
  FROM (SELECT pg_current_wal_lsn() - '0/0'::pg_lsn AS written) w
  LEFT JOIN LATERAL (SELECT r.application_name AS name, r.replay_lsn - '0/0'::pg_lsn AS replayed,
                            coalesce(CASE WHEN r.replay_lsn < pg_current_wal_lsn() THEN extract(epoch FROM r.replay_lag) * 1000 END, 0)::float8 AS lag
                       FROM pg_stat_replication r LEFT JOIN pg_replication_slots l ON l.active_pid = r.pid
                      WHERE r.replay_lsn IS NOT NULL AND l.slot_type IS DISTINCT FROM 'logical' ORDER BY r.replay_lsn LIMIT 1) s ON true
  LEFT JOIN LATERAL (SELECT l.slot_name, l.safe_wal_size FROM pg_replication_slots l, pg_settings k
                      WHERE k.name = 'max_slot_wal_keep_size' AND l.safe_wal_size < least($1::bigint, k.setting::bigint * 1024 * 1024 / 2) ORDER BY l.safe_wal_size LIMIT 1) e ON true`;

export async function readLoad(client: Client): Promise<Load> {
  const { rows } = await client.query<{
    active: number;
    written: string;
    name: string | null;
    replayed: string | null;
    lag: number | null;
    slot: string | null;
    room: string | null;
  }>(loadSql, [leastRoom]);
  const [row] = rows;
  return {
    active: row?.active ?? 0,
    written: BigInt(row?.written ?? 0),
    standby: row?.replayed == null ? null : { name: row.name ?? '', replayed: BigInt(row.replayed), lagMs: row.lag ?? 0 },
    endangered: row?.slot == null ? null : { slot: row.slot, room: BigInt(row.room ?? 0) },
  };
}

/** Where the WAL ended at a time. */
export interface WalMark {
  readonly at: number;
  readonly position: bigint;
}

/** Between marks, in ms; and how many there are at most. */
const markEveryMs = 100;
const mostMarks = 1_000;

/**
 * For how long a standby has been behind, by what was seen here: one that has fallen silent says nothing of it. `marks`: of former calls, oldest first.
 * Answers those to be kept, too.
 */
export function behind(
  marks: readonly WalMark[],
  now: number,
  { written, standby }: Pick<Load, 'written' | 'standby'>,
): { readonly ms: number; readonly marks: readonly WalMark[] } {
  if (standby === null) return { ms: 0, marks: [] };
  const missed = marks.filter(({ position }) => position > standby.replayed);
  const last = missed.at(-1);
  const isNew = written > standby.replayed && (last === undefined || (now - last.at >= markEveryMs && missed.length < mostMarks));
  return {
    ms: Math.max(standby.lagMs, now - (missed[0]?.at ?? now)),
    marks: isNew ? [...missed, { at: now, position: written }] : missed,
  };
}

/** Why copying rests; null: it need not. `standbyMs`: how far a standby is behind. */
export function whyRest(
  { touched }: Pick<ChangeFeed, 'touched'>,
  load: Load,
  standbyMs: number,
  maxLagMs: number,
  now: number,
): string | null {
  const { oldest } = touched;
  const lagMs = oldest === undefined ? 0 : now - oldest.committedAt;
  if (lagMs > maxLagMs) return `changes are applied ${Math.round(lagMs)} ms late`;
  if (load.standby !== null && standbyMs > maxLagMs) return `standby "${load.standby.name}" is ${Math.round(standbyMs)} ms behind`;
  if (load.endangered === null) return null;
  const { slot, room } = load.endangered;
  return room > 0n
    ? `replication slot "${slot}" would be lost after ${room} more bytes of WAL`
    : `replication slot "${slot}" is lost with the next checkpoint`;
}

/** For how long to rest after a piece that took so long: as long again while others work, so that they get at least half of what there is. */
export const restMs = (tookMs: number, load: Pick<Load, 'active'>): number => (load.active === 0 ? 0 : Math.min(tookMs, 1000));

/** Rows of the next piece: a piece takes about so long, and is never longer than what was asked for in bytes. */
export function nextRows(rows: number, tookMs: number, most: number): number {
  const wished = tookMs < 50 ? rows * 2 : tookMs > 250 ? rows / 2 : rows;
  return Math.max(100, Math.min(Math.round(wished), most));
}
