/**
 * Outboxes are cleared of what is out, and kept from growing without end.
 * Invariant: a row goes only when every sink that has to deliver it, and every subscription that may ask for it, has recorded a position past
 * it, or has been declared overrun; what an outbox still has (millrace.outbox.since) changes with it.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { Client } from 'pg';
import { type OutboxSegment, outboxIndex, outboxSegmentTable, outboxTable } from '../catalog/sink-model.ts';

/** Sinks whose changes in this outbox are thrown away: those that are furthest behind, or equally far. */
const overrunSql = `
UPDATE millrace.sink_progress p SET overrun = true
  FROM millrace.sink s, millrace.sink_version v
 WHERE p.sink_id = s.id AND v.sink_id = s.id AND v.version = p.version AND v.relation_id = $1::bigint AND s.status <> 'dropped' AND NOT p.overrun
   AND p.ts = (SELECT min(q.ts) FROM millrace.sink_progress q JOIN millrace.sink_version w ON w.sink_id = q.sink_id AND w.version = q.version
                JOIN millrace.sink z ON z.id = q.sink_id AND z.status <> 'dropped' AND NOT q.overrun
               WHERE w.relation_id = $1::bigint)
RETURNING s.id::integer AS id`;

/** The same of subscriptions, of one that lags further than any sink still read. */
const overrunSubscriptionsSql = `
WITH behind AS (SELECT min(coalesce(s.ts, s.cut_ts)) AS ts FROM millrace.subscription s WHERE s.relation_id = $1::bigint AND NOT s.overrun)
UPDATE millrace.subscription s SET overrun = true
  FROM behind
 WHERE s.relation_id = $1::bigint AND NOT s.overrun AND coalesce(s.ts, s.cut_ts) = behind.ts
   AND behind.ts <= coalesce((SELECT min(p.ts) FROM millrace.sink_progress p JOIN millrace.sink_version v ON v.sink_id = p.sink_id AND v.version = p.version
                                JOIN millrace.sink z ON z.id = p.sink_id AND z.status <> 'dropped' AND NOT p.overrun
                               WHERE v.relation_id = $1::bigint), behind.ts)
RETURNING s.id::integer AS id`;

/**
 * Subscriptions without a name end with the session that reads them; what they would have read is kept a while longer, so that a reader that
 * has lost its connection goes on with AS OF where it was. One with a name waits for its next reader.
 */
const sessionGone =
  'NOT EXISTS (SELECT FROM pg_catalog.pg_stat_activity a WHERE a.pid = s.pid AND a.backend_start IS NOT DISTINCT FROM s.backend_start)';
const endSql = [
  `UPDATE millrace.subscription s SET pid = NULL, backend_start = NULL, ended_at = CASE WHEN s.name IS NULL THEN now() END WHERE s.pid IS NOT NULL AND ${sessionGone}`,
  "DELETE FROM millrace.subscription s WHERE s.name IS NULL AND s.ended_at < now() - interval '60 seconds'",
];

/** Ends the subscriptions whose sessions are gone. */
export async function endSubscriptions(client: Client): Promise<void> {
  for (const sql of endSql) await client.query(sql);
}

interface Outbox {
  readonly id: number;
  /** Where epochs write; the other is the older one. */
  readonly active: OutboxSegment;
  readonly older: OutboxSegment;
  /** Bytes of both, and of the one that is written to. */
  readonly bytes: number;
  readonly activeBytes: number;
  /** Whether they have had rows since they were emptied. */
  readonly activeIsUsed: boolean;
  readonly olderIsUsed: boolean;
  readonly isStale: boolean;
}

const outboxesSql = `
SELECT b.relation_id::integer AS id, b.segment AS active, x.older,
       (pg_catalog.pg_total_relation_size(a.oid) + pg_catalog.pg_total_relation_size(o.oid))::float8 AS bytes,
       pg_catalog.pg_total_relation_size(a.oid)::float8 AS "activeBytes",
       pg_catalog.pg_relation_size(a.oid) > 0 AS "activeIsUsed", pg_catalog.pg_relation_size(o.oid) > 0 AS "olderIsUsed",
       b.turned_at < now() - interval '5 minutes' AS "isStale"
  FROM millrace.outbox b
  CROSS JOIN LATERAL (SELECT CASE b.segment WHEN 'a' THEN 'b' ELSE 'a' END AS older) x
  JOIN pg_catalog.pg_class a ON a.oid = to_regclass('millrace_data.o' || b.relation_id || b.segment)
  JOIN pg_catalog.pg_class o ON o.oid = to_regclass('millrace_data.o' || b.relation_id || x.older)`;

/** Between tries to have the older segment for a moment: somebody may be reading in it. */
const tries = 20;
const betweenTriesMs = 10;

/** In bytes: what an outbox may take, and how far a segment of it grows before it goes on in the other one. */
export interface OutboxBounds {
  readonly limit: number;
  readonly segment: number;
}

/** Clears the outboxes; answers sinks that are overrun by now. */
export async function trimOutboxes(client: Client, { limit, segment: segmentBytes }: OutboxBounds): Promise<number[]> {
  const { rows } = await client.query<Outbox>(outboxesSql);
  const overrun: number[] = [];
  for (const outbox of rows) {
    const { id, active, older } = outbox;
    const isFull = outbox.activeBytes > Math.min(segmentBytes, limit / 8);
    const isEmpty = !outbox.olderIsUsed || (await empty(client, outbox, isFull));
    if (isEmpty && outbox.activeIsUsed && (isFull || (outbox.isStale && !(await isWanted(client, id, active))))) {
      await client.query('UPDATE millrace.outbox SET segment = $2, turned_at = now() WHERE relation_id = $1', [id, older]);
    }
    if (outbox.bytes <= limit) continue;
    // What everybody has still takes its place: others are not to pay for it.
    const left = await client.query<{ bytes: string }>(
      `SELECT coalesce(sum(pg_catalog.pg_column_size(o.*)), 0) AS bytes FROM ${outboxTable(id)} o WHERE o.ts > millrace.outbox_taken($1)`,
      [id],
    );
    if (Number(left.rows[0]?.bytes) <= limit) continue;
    if (((await client.query(overrunSubscriptionsSql, [id])).rowCount ?? 0) > 0) continue;
    const found = await client.query<{ id: number }>(overrunSql, [id]);
    overrun.push(...found.rows.map((row) => row.id));
  }
  return overrun;
}

/**
 * The indexes take in what was written since the last time. Until then a reader looks at all of that, at every look; to take in each page as it
 * comes is what an index of rows would cost.
 */
export async function summarizeOutboxes(client: Client): Promise<void> {
  await client.query(
    `SELECT pg_catalog.brin_summarize_new_values(c.oid) FROM pg_catalog.pg_class c
      WHERE c.relnamespace = 'millrace_data'::regnamespace AND c.relkind = 'i' AND c.relname ~ '^o[0-9]+[ab]_ts$'`,
  );
}

/** Whether a segment has rows that somebody is still to take. */
async function isWanted(client: Client, id: number, segment: OutboxSegment): Promise<boolean> {
  const { rows } = await client.query<{ wanted: boolean }>('SELECT millrace.outbox_wanted($1, $2) AS wanted', [id, segment]);
  return rows[0]?.wanted ?? true;
}

/** Empties the older segment once everybody has taken what is in it; answers whether it is empty. `isUrgent`: the other one is large. */
async function empty(client: Client, { id, older }: Outbox, isUrgent: boolean): Promise<boolean> {
  if (await isWanted(client, id, older)) return false;
  for (let attempt = 0; attempt < tries; attempt++) {
    if (attempt > 0) await sleep(betweenTriesMs);
    const { rows } = await client.query<{ emptied: boolean }>('SELECT millrace.empty_outbox($1, $2) AS emptied', [id, older]);
    if (rows[0]?.emptied === true) return true;
  }
  if (!isUrgent) return false;
  // A cursor of a transaction that stays open, say, has read in it. It takes its place for as long as that lasts, but rows may come again.
  const table = outboxSegmentTable(id, older);
  await client.query(
    `WITH gone AS (DELETE FROM ${table} o WHERE o.ts <= millrace.outbox_taken($1) RETURNING o.ts)
     UPDATE millrace.outbox b SET since = x.ts FROM (SELECT max(gone.ts) AS ts FROM gone) x WHERE b.relation_id = $1 AND x.ts > b.since`,
    [id],
  );
  await client.query(`VACUUM (TRUNCATE off) ${table}`);
  await client.query(
    `SELECT pg_catalog.brin_desummarize_range($1, g)
       FROM pg_catalog.generate_series(0, pg_catalog.pg_relation_size($2) / pg_catalog.current_setting('block_size')::bigint, 32) g`,
    [outboxIndex(id, older), table],
  );
  const { rows } = await client.query<{ empty: boolean }>(`SELECT NOT EXISTS (SELECT FROM ${table}) AS empty`);
  return rows[0]?.empty ?? false;
}
