/**
 * What the database says of base tables and of itself, and what it is told of changes that were missed.
 * Invariant: asked of the catalog as it is now; nothing is remembered here.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { Client } from 'pg';
import type { BaseTable } from '../../catalog/model.ts';
import type { RelationMessage } from '../../replication/pgoutput.ts';
import type { Execution } from '../../replication/session-contract.ts';
import { isVisible, parseSnapshot } from '../../replication/snapshot-visibility.ts';
import { quoteLiteral } from '../../sql/quote.ts';
import { type TargetFacts, targetOf } from './shapes.ts';
import { type BaseTarget, markerPrefix } from './transactions.ts';

/** Pause between two looks for a transaction that is in the WAL and not yet visible. */
const visiblePauseMs = 2;

/**
 * Where rows of a relation of the stream go; null: it is no captured base table. `xid`: the transaction that the message came in. It is in
 * the WAL before the catalog shows what it did: a column renamed in it would not be found by its new name, so its turn is waited for.
 */
export async function findTarget(client: Client, message: RelationMessage, xid: number): Promise<BaseTarget | null> {
  for (;;) {
    const seen = await client.query<{ snapshot: string }>('SELECT pg_catalog.pg_current_snapshot()::text AS snapshot');
    if (isVisible(parseSnapshot(seen.rows[0]?.snapshot ?? ''), xid)) break;
    await sleep(visiblePauseMs);
  }
  const types = JSON.stringify(message.columns.map((column) => ({ type: column.typeOid, typmod: column.typmod })));
  const result = await client.query<{ facts: TargetFacts; types: string[] }>(
    `SELECT jsonb_build_object('id', b.relation_id, 'known', b.columns,
              'now', (SELECT coalesce(jsonb_agg(jsonb_build_object('attnum', a.attnum, 'name', a.attname) ORDER BY a.attnum), '[]')
                        FROM pg_catalog.pg_attribute a WHERE a.attrelid = b.table_oid AND a.attnum > 0 AND NOT a.attisdropped),
              'delta', (SELECT coalesce(jsonb_agg(jsonb_build_object('attnum', substr(a.attname, 2)::integer,
                                 'type', pg_catalog.format_type(a.atttypid, a.atttypmod)) ORDER BY a.attnum), '[]')
                          FROM pg_catalog.pg_attribute a
                         WHERE a.attrelid = to_regclass('millrace_data.d' || b.relation_id) AND a.attname ~ '^c' AND a.attnum > 0
                           AND NOT a.attisdropped AND a.attgenerated = ''),
              'computed', (SELECT coalesce(jsonb_agg(substr(a.attname, 2)::integer), '[]')
                             FROM pg_catalog.pg_attribute a
                            WHERE a.attrelid = to_regclass('millrace_data.d' || b.relation_id) AND a.attnum > 0 AND NOT a.attisdropped
                              AND a.attgenerated <> '')) AS facts,
            ARRAY(SELECT pg_catalog.format_type((c.value ->> 'type')::oid, (c.value ->> 'typmod')::integer)
                    FROM jsonb_array_elements($2::jsonb) WITH ORDINALITY c(value, place) ORDER BY c.place) AS types
       FROM millrace.base_table b WHERE b.table_oid = $1 AND b.state = 'captured' AND b.method = 'wal'`,
    [message.oid, types],
  );
  const [row] = result.rows;
  return row === undefined ? null : targetOf(row.facts, message, row.types);
}

/** Statement that tells the stream tables over these bases that changes were missed. */
export function loseDeltas(inputs: readonly number[], reason: string): string {
  return `UPDATE millrace.stream_table s SET delta_lost = ${quoteLiteral(reason)}
   WHERE s.refresh_mode = 'DIFFERENTIAL' AND s.delta_lost IS NULL
     AND EXISTS (SELECT FROM millrace.live_view_input i WHERE i.relation_id = s.relation_id AND i.input_id IN (${inputs.join(', ')}))`;
}

/** How changes can be had here: the server has to write them to its WAL, and the role has to be allowed to read it. */
export async function methodOf(client: Client): Promise<BaseTable['method']> {
  const found = await client.query<{ streams: boolean }>(
    `SELECT current_setting('wal_level') = 'logical'
            AND (r.rolsuper OR r.rolreplication
                 OR EXISTS (SELECT FROM pg_catalog.pg_roles x WHERE x.rolname = 'rds_replication' AND pg_catalog.pg_has_role(r.oid, x.oid, 'MEMBER')))
            AND has_database_privilege(current_database(), 'CREATE') AS streams
       FROM pg_catalog.pg_roles r WHERE r.rolname = current_user`,
  );
  return found.rows[0]?.streams === true ? 'wal' : 'trigger';
}

/** From this version on a message can be put on disk by the call itself. */
export const flushedMessages = 170000;

/** A logical message that is on disk, with everything before it, when the statement returns: whatever becomes of its transaction. */
export const flushedMarker = (content: string): Execution => ({
  name: 'marker',
  sql: 'SELECT pg_catalog.pg_logical_emit_message(false, $1, $2::text, true)',
  params: [markerPrefix, content],
});
