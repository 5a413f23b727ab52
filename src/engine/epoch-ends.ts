/** How every epoch begins and ends, whichever way it is sent. */
import { formatLsn, type Lsn } from '../replication/lsn.ts';
import type { Execution } from '../replication/session-contract.ts';
import type { EngineContext } from './context.ts';

/**
 * Begins it as that of the leader with this token, and answers its number; raises when another process leads: the one row is looked at again once
 * whoever has changed it has committed. A plain statement, as every epoch has one: no function to enter, with settings to be set and taken back.
 */
export const fence = (token: bigint): Execution => ({
  name: 'fence',
  sql: `UPDATE millrace.epoch
   SET epoch = epoch + 1, committed_at = clock_timestamp(), ts = greatest(ts + 1, floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint)
 WHERE token = ${token} OR millrace.leadership_lost() RETURNING epoch`,
});

/** Raised by millrace.leadership_lost: another process leads. */
export const leadershipLost = '55P04';

/** Records how far each source is, within the epoch. */
export function progress(positions: ReadonlyMap<number, Lsn>): Execution[] {
  return [...positions].map(([sourceId, lsn]) => ({
    name: 'progress',
    sql: 'UPDATE millrace.source_progress SET lsn = $2::pg_lsn, committed_at = clock_timestamp() WHERE source_id = $1::bigint',
    params: [String(sourceId), formatLsn(lsn)],
  }));
}

/** Counts an epoch that has committed. */
export function countEpoch({ metrics }: EngineContext, rows: number): void {
  metrics['millrace_epochs_total'] = (metrics['millrace_epochs_total'] ?? 0) + 1;
  metrics['millrace_rows_applied_total'] = (metrics['millrace_rows_applied_total'] ?? 0) + rows;
}
