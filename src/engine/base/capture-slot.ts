/**
 * The slot and the publication of base tables, and what the catalog says of them.
 * Invariant: a slot is gone on with only where the snapshot of the last epoch is known, its publication was never away, and the server has kept its
 * WAL. Else the views that wanted its changes are told in the catalog, before there is another slot.
 */
import type { Client } from 'pg';
import type { BaseTable } from '../../catalog/model.ts';
import { createSlot, dropSlot, freeSlot, lookUpSlot } from '../../replication/slots.ts';
import { parseSnapshot, type Snapshot } from '../../replication/snapshot-visibility.ts';
import { quoteIdentifier } from '../../sql/quote.ts';
import type { EngineContext } from '../context.ts';
import { Epoch } from '../epoch.ts';
import { loseDeltas } from './facts.ts';

export function slotNames({ databaseOid }: EngineContext): { readonly slot: string; readonly publication: string } {
  const name = `millrace_base_${databaseOid}`;
  return { slot: name, publication: name };
}

/**
 * Sees to it that slot and publication are there. Answers the snapshot of the last epoch that took changes in; null: there was none.
 * `discard` is called between epochs: what a former stream had under way is recorded by then.
 */
export async function prepareSlot(
  engine: EngineContext,
  client: Client,
  bases: readonly BaseTable[],
  discard: () => void,
): Promise<Snapshot | null> {
  const { config, admin } = engine;
  const { slot, publication } = slotNames(engine);
  await admin.query(
    'INSERT INTO millrace.base_capture (slot, publication) VALUES ($1, $2) ON CONFLICT (only_row) DO UPDATE SET slot = excluded.slot, publication = excluded.publication',
    [slot, publication],
  );
  const created = await ensurePublication(client, publication);
  const recorded = await engine.exclusively(() => {
    discard();
    return recordedSnapshot(engine);
  });
  const found = await lookUpSlot(client, slot);
  if (found !== undefined && found.walStatus !== 'lost' && recorded !== undefined && !created) {
    if (found.activePid !== undefined) await freeSlot(client, slot);
    return recorded;
  }
  const reason = created ? 'the publication of base tables was gone' : 'the replication slot of base tables was gone';
  await engine.exclusively(() => changesLost(engine, bases, recorded === undefined ? null : reason));
  if (found !== undefined) await dropSlot(client, slot, { terminate: true });
  await createSlot(config.upstream, slot, { database: config.database });
  await admin.query('INSERT INTO millrace.base_progress (snapshot) VALUES (NULL) ON CONFLICT (only_row) DO NOTHING');
  return null;
}

/** The last table has left. */
export async function removeSlot(engine: EngineContext, client: Client): Promise<void> {
  const { slot, publication } = slotNames(engine);
  await dropSlot(client, slot, { terminate: true });
  await client.query(`DROP PUBLICATION IF EXISTS ${quoteIdentifier(publication)}`);
  await client.query('DELETE FROM millrace.base_progress; DELETE FROM millrace.base_capture');
  engine.log.info({ slot }, 'no base table is captured any more');
  engine.wake();
}

export async function noteStatus({ admin }: EngineContext, status: string, error: string | null): Promise<void> {
  await admin.query(
    'UPDATE millrace.base_capture SET status = $1, error = $2, status_since = now() WHERE (status, error) IS DISTINCT FROM ($1::text, $2::text)',
    [status, error],
  );
}

/** True when it had to be created. */
async function ensurePublication(client: Client, publication: string): Promise<boolean> {
  const found = await client.query('SELECT FROM pg_catalog.pg_publication WHERE pubname = $1', [publication]);
  if (found.rowCount !== 0) return false;
  const version = await client.query<{ number: number }>("SELECT current_setting('server_version_num')::integer AS number");
  // From 18 on a replica identity must not hold generated columns that are not published.
  const generated = (version.rows[0]?.number ?? 0) >= 180000 ? ', publish_generated_columns = stored' : '';
  await client.query(
    `CREATE PUBLICATION ${quoteIdentifier(publication)}
       WITH (publish = 'insert, update, delete, truncate', publish_via_partition_root = true${generated})`,
  );
  return true;
}

/** Snapshot of the last epoch; null: there was none; undefined: the slot was never finished. */
async function recordedSnapshot({ admin }: EngineContext): Promise<Snapshot | null | undefined> {
  const result = await admin.query<{ snapshot: string | null }>('SELECT snapshot FROM millrace.base_progress');
  const [row] = result.rows;
  if (row === undefined) return undefined;
  return row.snapshot === null ? null : parseSnapshot(row.snapshot);
}

/** Changes may have been missed: tables have to be brought in again, views over them to be rebuilt. */
async function changesLost(engine: EngineContext, bases: readonly BaseTable[], reason: string | null): Promise<void> {
  const captured = bases.filter((base) => base.state === 'captured' && base.method === 'wal').map((base) => base.id);
  const epoch = await Epoch.begin(engine);
  await epoch.run([
    "UPDATE millrace.base_table SET state = 'new' WHERE state = 'captured' AND method = 'wal'",
    'DELETE FROM millrace.base_progress',
    ...(captured.length === 0 || reason === null ? [] : [loseDeltas(captured, reason)]),
  ]);
  await epoch.commit(new Map());
  if (captured.length > 0 && reason !== null) engine.log.warn({ reason }, 'stream tables over base tables will be rebuilt');
  engine.wake();
}
