/**
 * How far a source is, as the catalog has it.
 * Invariant: nothing beyond what is written down here durably has been acknowledged to the origin.
 */
import { formatLsn, type Lsn } from '../replication/lsn.ts';
import type { EngineContext } from './context.ts';
import { reach } from './fault-points.ts';
import type { SourceRow } from './source-row.ts';
import type { SourceRunner } from './source-runner.ts';

/** The position that its storages are at; null: it has none yet. */
export async function recordedLsn({ admin }: EngineContext, sourceId: number): Promise<Lsn | null> {
  const result = await admin.query<{ lsn: string | null }>(
    "SELECT (lsn - '0/0'::pg_lsn)::text AS lsn FROM millrace.source_progress WHERE source_id = $1",
    [sourceId],
  );
  const lsn = result.rows[0]?.lsn;
  return lsn === undefined || lsn === null ? null : BigInt(lsn);
}

/** The furthest position that may have been acknowledged. */
export async function reachedLsn({ admin }: EngineContext, sourceId: number, recorded: Lsn): Promise<Lsn> {
  const result = await admin.query<{ lsn: string }>(
    "SELECT (reached_lsn - '0/0'::pg_lsn)::text AS lsn FROM millrace.source_position WHERE source_id = $1",
    [sourceId],
  );
  const lsn = BigInt(result.rows[0]?.lsn ?? '0');
  return lsn > recorded ? lsn : recorded;
}

/** Writes down how far the stream is, and lets it acknowledge that. */
export async function savePosition({ admin, metrics }: EngineContext, source: SourceRow, runner: SourceRunner): Promise<void> {
  runner.requestPosition();
  const { received, applied } = runner;
  metrics[`millrace_replication_lag_bytes{source=${JSON.stringify(source.name)}}`] = Number(received - applied);
  reach('position.not-saved');
  // Durable before it is acknowledged, and not by way of Millrace's own settings: this row says whether the slot is still ours.
  await admin.query(
    `WITH durable AS (SELECT set_config('synchronous_commit', 'on', true))
     INSERT INTO millrace.source_position (source_id, origin_lsn, reached_lsn) SELECT $1, $2, $3 FROM durable
     ON CONFLICT (source_id) DO UPDATE SET origin_lsn = excluded.origin_lsn, reached_lsn = excluded.reached_lsn, heard_at = now()
     WHERE (source_position.origin_lsn, source_position.reached_lsn) IS DISTINCT FROM (excluded.origin_lsn, excluded.reached_lsn)`,
    [source.id, formatLsn(received), formatLsn(applied)],
  );
  reach('position.saved-not-sent');
  runner.saved(applied);
}
