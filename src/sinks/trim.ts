/**
 * Outboxes are cleared of what is out, and kept from growing without end.
 * Invariant: a row goes only when every sink that has to deliver it, and every subscription that may ask for it, has recorded a position past
 * it, or has been declared overrun; what an outbox still has (millrace.outbox.since) changes with it.
 */
import type { Client } from 'pg';
import { outboxTable } from '../catalog/sink-model.ts';

/** What every reader of an outbox has taken; NULL: nobody reads it any more. In the snapshot of the statement it is part of. */
const takenSql = `SELECT min(x.ts) FROM (SELECT CASE WHEN p.version = v.version THEN p.ts ELSE coalesce(v.cut_ts, s.hold_ts) END AS ts
   FROM millrace.sink_version v JOIN millrace.sink s ON s.id = v.sink_id AND s.status <> 'dropped' LEFT JOIN millrace.sink_progress p ON p.sink_id = s.id
  WHERE v.relation_id = $1::bigint AND (p.version IS NULL OR p.version <= v.version) AND (p.overrun AND p.version = v.version) IS NOT TRUE
  UNION ALL SELECT coalesce(s.ts, s.cut_ts) FROM millrace.subscription s WHERE s.relation_id = $1::bigint AND NOT s.overrun) x`;

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

/** Clears the outboxes; answers sinks that are overrun by now. `limit`: bytes an outbox may take. */
export async function trimOutboxes(client: Client, limit: number): Promise<number[]> {
  const { rows } = await client.query<{ id: number; bytes: string }>(
    `SELECT substr(c.relname, 2)::integer AS id, pg_catalog.pg_total_relation_size(c.oid) AS bytes
       FROM pg_catalog.pg_class c WHERE c.relnamespace = 'millrace_data'::regnamespace AND c.relkind = 'r' AND c.relname ~ '^o[0-9]+$'`,
  );
  const overrun: number[] = [];
  for (const { id, bytes } of rows) {
    const deleted = await client.query(
      `WITH gone AS (DELETE FROM ${outboxTable(id)} o WHERE o.ts <= coalesce((${takenSql}), (SELECT e.ts FROM millrace.epoch e)) RETURNING o.ts)
       UPDATE millrace.outbox b SET since = x.ts FROM (SELECT max(gone.ts) AS ts FROM gone) x WHERE b.relation_id = $1::bigint AND x.ts > b.since`,
      [id],
    );
    if (Number(bytes) <= limit) continue;
    // What was deleted still takes its place: others are not to pay for it.
    await client.query(`VACUUM ${outboxTable(id)}`);
    if ((deleted.rowCount ?? 0) > 0) continue;
    const left = await client.query<{ bytes: string }>(
      `SELECT coalesce(sum(pg_catalog.pg_column_size(o.*)), 0) AS bytes FROM ${outboxTable(id)} o`,
    );
    if (Number(left.rows[0]?.bytes) <= limit) continue;
    if (((await client.query(overrunSubscriptionsSql, [id])).rowCount ?? 0) > 0) continue;
    const found = await client.query<{ id: number }>(overrunSql, [id]);
    overrun.push(...found.rows.map((row) => row.id));
  }
  return overrun;
}
