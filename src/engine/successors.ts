/**
 * Tables that were dropped and made again under their name, and what RESYNC can mend.
 * Invariant: a table takes the place of another only where every column that is stored has the attnum, name and key that it had, and a type that holds
 * its values: then it is what the storage was made for.
 */
import type { Client } from 'pg';
import type { Storage } from '../catalog/model.ts';
import { describeTable, describeTables, type OriginTable, type TableShape } from '../replication/origin-tables.ts';
import type { EngineContext } from './context.ts';
import { fitsKey } from './key-change.ts';
import { resyncOf, storagesOf } from './relation-targets.ts';
import { regained } from './resync.ts';
import { brokenVersions, versionsOf } from './schema-change.ts';
import type { SourceRow } from './source-row.ts';
import { mayFollow } from './type-widening.ts';

/** For the tables of a source that are gone, by OID: what has taken their place; null: nothing. */
export async function successors(
  engine: EngineContext,
  client: Client,
  source: SourceRow,
): Promise<ReadonlyMap<number, OriginTable | null>> {
  const storages = storagesOf(engine, source.id);
  const there = await describeTables(
    client,
    storages.map(({ originOid }) => originOid),
  );
  const found = new Map<number, OriginTable | null>();
  for (const storage of storages) {
    if (there.has(storage.originOid)) continue;
    const before = await lastShape(engine, source, storage.originOid);
    const { schema, name } = before ?? { schema: storage.originSchema, name: storage.originName };
    const { table } = await describeTable(client, { schema, table: name }, { publication: source.publication });
    const fits = table?.published === true && fitsStorage(storage, before, table);
    found.set(storage.originOid, fits && found.get(storage.originOid) !== null ? table : null);
  }
  return found;
}

async function lastShape({ admin }: EngineContext, source: SourceRow, oid: number): Promise<TableShape | null> {
  const result = await admin.query<{ shape: TableShape }>(
    `SELECT shape FROM millrace.origin_table_version
      WHERE source_id = $1 AND table_oid = $2::bigint::oid AND shape IS NOT NULL ORDER BY commit_lsn DESC, ordinal DESC LIMIT 1`,
    [source.id, oid],
  );
  return result.rows[0]?.shape ?? null;
}

function fitsStorage(storage: Storage, before: TableShape | null, table: OriginTable): boolean {
  if (String(storage.keyAttnums) !== String(table.identityKey)) return false;
  return storage.columns.every((column) => {
    const now = table.columns.find(({ attnum }) => attnum === column.attnum);
    const name = before?.columns.find(({ attnum }) => attnum === column.attnum)?.name ?? column.name;
    if (column.lost === true) return true;
    return now !== undefined && now.name === name && (now.formattedType === column.originType || mayFollow(column, now.formattedType));
  });
}

/** Whether versions are in error because of what a resynchronisation mends, now that the origin has what they show. */
export async function isMendable(
  engine: EngineContext,
  client: Client,
  source: SourceRow,
  tables: ReadonlyMap<number, OriginTable>,
): Promise<boolean> {
  const storages = storagesOf(engine, source.id);
  const waiting = storages.filter(
    (storage) =>
      (storage.state === 'live' || storage.missed !== null) &&
      // Being mended.
      resyncOf(storages, storage.id) === undefined &&
      [...engine.state.tables.values()].some((table) => table.storageId === storage.id && table.error?.resync === true),
  );
  if (waiting.length === 0) return false;
  const followed = waiting.some(({ originOid }) => !tables.has(originOid)) ? await successors(engine, client, source) : null;
  return waiting.some((storage) => {
    const origin = tables.get(storage.originOid) ?? followed?.get(storage.originOid) ?? null;
    if (origin === null || !origin.published || !fitsKey(storage, origin)) return false;
    const copied = { ...storage, columns: regained(storage, origin) };
    const broken = new Set(
      brokenVersions(copied, versionsOf(engine.state, storage), origin, source.name).map(({ relationId }) => relationId),
    );
    return [...engine.state.tables.values()].some(
      (table) => table.storageId === storage.id && table.error?.resync === true && !broken.has(table.id),
    );
  });
}
