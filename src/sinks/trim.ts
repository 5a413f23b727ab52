/**
 * Outboxes are cleared of what is out, and kept from growing without end.
 * Invariant: a row goes only when every sink that has to deliver it has recorded a position past it, or has been declared overrun.
 */
import type { Client } from 'pg';
import { outboxTable } from '../catalog/sink-model.ts';

/** What every reader of an outbox has taken; NULL: nobody reads it any more. In the snapshot of the statement it is part of. */
const takenSql = `SELECT min(CASE WHEN p.version = v.version THEN p.ts ELSE coalesce(v.cut_ts, s.hold_ts) END)
   FROM millrace.sink_version v JOIN millrace.sink s ON s.id = v.sink_id AND s.status <> 'dropped' LEFT JOIN millrace.sink_progress p ON p.sink_id = s.id
  WHERE v.relation_id = $1::bigint AND (p.version IS NULL OR p.version <= v.version) AND NOT (p.overrun AND p.version = v.version)`;

/** Sinks whose changes in this outbox are thrown away: those that are furthest behind, or equally far. */
const overrunSql = `
UPDATE millrace.sink_progress p SET overrun = true
  FROM millrace.sink s, millrace.sink_version v
 WHERE p.sink_id = s.id AND v.sink_id = s.id AND v.version = p.version AND v.relation_id = $1::bigint AND s.status <> 'dropped' AND NOT p.overrun
   AND p.ts = (SELECT min(q.ts) FROM millrace.sink_progress q JOIN millrace.sink_version w ON w.sink_id = q.sink_id AND w.version = q.version
                JOIN millrace.sink z ON z.id = q.sink_id AND z.status <> 'dropped' AND NOT q.overrun
               WHERE w.relation_id = $1::bigint)
RETURNING s.id::integer AS id`;

/** Clears the outboxes; answers sinks that are overrun by now. `limit`: bytes an outbox may take. */
export async function trimOutboxes(client: Client, limit: number): Promise<number[]> {
  const { rows } = await client.query<{ id: number; bytes: string }>(
    `SELECT substr(c.relname, 2)::integer AS id, pg_catalog.pg_total_relation_size(c.oid) AS bytes
       FROM pg_catalog.pg_class c WHERE c.relnamespace = 'millrace_data'::regnamespace AND c.relkind = 'r' AND c.relname ~ '^o[0-9]+$'`,
  );
  const overrun: number[] = [];
  for (const { id, bytes } of rows) {
    const deleted = await client.query(
      `DELETE FROM ${outboxTable(id)} o WHERE o.ts <= coalesce((${takenSql}), (SELECT e.ts FROM millrace.epoch e))`,
      [id],
    );
    if (Number(bytes) <= limit || (deleted.rowCount ?? 0) > 0) continue;
    const found = await client.query<{ id: number }>(overrunSql, [id]);
    overrun.push(...found.rows.map((row) => row.id));
  }
  return overrun;
}
