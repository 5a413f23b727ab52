/**
 * What is written about a refresh: the stream table's row, its history, the alert.
 * Invariant: written in the epoch of the refresh itself, so it says exactly what was done.
 */
import type { Client } from 'pg';
import type { StreamTable } from '../../catalog/model.ts';
import type { Execution } from '../../replication/session-contract.ts';

export type Action = 'INITIALIZE' | 'DIFFERENTIAL' | 'FULL' | 'REINITIALIZE' | 'NO_DATA' | 'SKIP';

export interface Outcome {
  readonly action: Action;
  readonly reason: string;
  /** Milliseconds of the epoch. */
  readonly startedAt: number;
  /** How long the work took; left out: until it is written down. */
  readonly tookMs?: number;
  readonly inserted: number;
  readonly deleted: number;
  readonly deltaRows: number;
  readonly failure: { readonly message: string; readonly code: string } | null;
}

/** Failed refreshes in a row after which a stream table is suspended. */
export const errorsAllowed = 3;

const time = (ms: number | null): string | null => (ms === null ? null : String(ms / 1000));

/** The stream table after a refresh that went well. */
export function refreshed(
  stream: StreamTable,
  outcome: Outcome,
  dataAt: number,
  requested: number,
  nextAt: number | null,
  rebuilt: boolean,
): Execution[] {
  const rows = outcome.inserted + outcome.deleted;
  return [
    {
      name: 'stream_refreshed',
      sql: `UPDATE millrace.stream_table
   SET status = CASE WHEN status IN ('INITIALIZING', 'ERROR') THEN 'ACTIVE' ELSE status END, is_populated = true,
       consecutive_errors = 0, status_reason = CASE WHEN status IN ('INITIALIZING', 'ERROR', 'ACTIVE') THEN NULL ELSE status_reason END,
       refresh_done = greatest(refresh_done, $2::bigint), last_refresh_at = clock_timestamp(), data_timestamp = greatest(data_timestamp, to_timestamp($3::float8)),
       rows_in_last_refresh = $4::bigint, next_refresh_at = to_timestamp($5::float8),
       delta_lost = CASE WHEN $6::boolean THEN NULL ELSE delta_lost END, reinitialize = reinitialize AND NOT $6::boolean
 WHERE relation_id = $1::bigint`,
      params: [String(stream.relationId), String(requested), time(dataAt), String(rows), time(nextAt), String(rebuilt)],
    },
    ...(outcome.action === 'NO_DATA' && outcome.reason !== 'manual' ? [] : [history(stream, outcome)]),
    ...(outcome.action === 'NO_DATA'
      ? []
      : [
          alert(stream, 'refresh_completed', {
            action: outcome.action,
            rows_inserted: outcome.inserted,
            rows_deleted: outcome.deleted,
            duration_ms: Date.now() - outcome.startedAt,
          }),
        ]),
  ];
}

/** The stream table after a refresh that failed. */
export function refreshFailed(stream: StreamTable, outcome: Outcome, errors: number, requested: number, nextAt: number): Execution[] {
  const message = outcome.failure?.message ?? '';
  const suspended = errors >= errorsAllowed;
  return [
    {
      name: 'stream_failed',
      sql: `UPDATE millrace.stream_table
   SET consecutive_errors = $2::integer, status_reason = $3, next_refresh_at = to_timestamp($4::float8), refresh_done = greatest(refresh_done, $5::bigint),
       status = CASE WHEN $6::boolean THEN 'SUSPENDED' ELSE status END,
       delta_lost = CASE WHEN $6::boolean THEN coalesce(delta_lost, 'it was suspended') ELSE delta_lost END
 WHERE relation_id = $1::bigint`,
      params: [String(stream.relationId), String(errors), message, time(nextAt), String(requested), String(suspended)],
    },
    history(stream, outcome),
    alert(stream, 'refresh_failed', { action: outcome.action, error: message }),
    ...(suspended ? [alert(stream, 'auto_suspended', { consecutive_errors: errors })] : []),
  ];
}

/** The stream table whose query failed when it was to be filled: it is tried again when that is asked for. */
export function populationRefused(stream: StreamTable, outcome: Outcome): Execution[] {
  const message = outcome.failure?.message ?? '';
  return [
    {
      name: 'stream_unfilled',
      sql: `UPDATE millrace.stream_table SET status = 'ERROR', status_reason = $2, refresh_done = greatest(refresh_done, $3::bigint)
 WHERE relation_id = $1::bigint`,
      params: [String(stream.relationId), message, String(stream.refreshRequested)],
    },
    history(stream, outcome),
    alert(stream, 'refresh_failed', { action: outcome.action, error: message }),
  ];
}

export function history(stream: Pick<StreamTable, 'relationId'>, outcome: Outcome): Execution {
  return {
    name: 'refresh_history',
    sql: `INSERT INTO millrace.refresh_history
       (relation_id, started_at, ended_at, action, status, reason, rows_inserted, rows_deleted, delta_rows, error, sqlstate)
VALUES ($1::bigint, to_timestamp($2::float8), coalesce(to_timestamp($11::float8), clock_timestamp()), $3, $4, $5, $6::bigint, $7::bigint, $8::bigint, $9, $10)`,
    params: [
      String(stream.relationId),
      time(outcome.startedAt),
      outcome.action,
      outcome.failure === null ? 'COMPLETED' : 'FAILED',
      outcome.reason,
      String(outcome.inserted),
      String(outcome.deleted),
      String(outcome.deltaRows),
      outcome.failure?.message ?? null,
      outcome.failure?.code ?? null,
      outcome.tookMs === undefined ? null : time(outcome.startedAt + outcome.tookMs),
    ],
  };
}

/** Both spellings of the channel: pg_trickle itself uses one for refreshes and documents the other. */
export function alert(stream: Pick<StreamTable, 'schema' | 'name'>, event: string, facts: Readonly<Record<string, unknown>>): Execution {
  const payload = { event, pgt_schema: stream.schema, pgt_name: stream.name, st: `${stream.schema}.${stream.name}`, ...facts };
  let text = JSON.stringify(payload);
  // The server takes less than 8000 bytes.
  if (Buffer.byteLength(text) > 7900) text = JSON.stringify({ ...payload, error: String(facts['error'] ?? '').slice(0, 1000) });
  return {
    name: 'stream_alert',
    sql: "SELECT pg_notify(channel, $1) FROM unnest('{pg_trickle_alert,pgtrickle_alert}'::text[]) channel",
    params: [text],
  };
}

/** How long each stream table took when it was last computed as a whole, in milliseconds. */
export async function lastFullMs(client: Client): Promise<ReadonlyMap<number, number>> {
  const found = await client.query<{ id: string; ms: number }>(
    `SELECT DISTINCT ON (relation_id) relation_id::text AS id, (extract(epoch FROM ended_at - started_at) * 1000)::float8 AS ms
       FROM millrace.refresh_history
      WHERE action IN ('INITIALIZE', 'FULL', 'REINITIALIZE') AND status = 'COMPLETED' AND ended_at IS NOT NULL
      ORDER BY relation_id, refresh_id DESC`,
  );
  return new Map(found.rows.map(({ id, ms }) => [Number(id), ms]));
}
