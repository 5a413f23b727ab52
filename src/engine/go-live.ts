/**
 * A copied table becomes readable.
 * Invariant: one epoch, with the stream held between two transactions: what was set aside until then is applied to the storage, what comes next goes
 * there directly, and versions find in it what the origin has at the position that the epoch records.
 */
import { type Storage, spoolTable, storageTable } from '../catalog/model.ts';
import { captureDdl } from '../ivm/capture.ts';
import type { Lsn } from '../replication/lsn.ts';
import { forgetColumns, imageOf, without } from './apply-sql.ts';
import type { CatalogState, EngineContext } from './context.ts';
import { Epoch } from './epoch.ts';
import { reach } from './fault-points.ts';
import { takeHeld } from './held-stream.ts';
import { relationGate, revived } from './relation-errors.ts';
import { freePlanner } from './session-settings.ts';
import type { SourceRunner } from './source-runner.ts';
import { applySpool } from './spool.ts';

/**
 * Makes a copied storage live, in one epoch with what its stream, held between two transactions, still had to give.
 * The stream must have applied up to the copy's LSN. Answers the position reached.
 * Versions on a superseded storage move to this one in the same epoch.
 * `lost`: columns of a storage without key that the origin has no more: rows spooled before and after that must look alike.
 */
export async function goLive(engine: EngineContext, copied: Storage, runner: SourceRunner, lost: readonly number[]): Promise<Lsn> {
  const { state } = engine;
  const storage = without(copied, lost);
  reach('copy.held');
  const epoch = await Epoch.begin(engine);
  const reached = await takeHeld(epoch, runner);
  if (epoch.isCopiedAgain(copied.id)) {
    await epoch.commit(new Map([[storage.sourceId, reached]]));
    return reached;
  }
  if (lost.length > 0) await epoch.run(forgetColumns(copied, lost));
  await applySpool(engine.session, storage);
  reach('copy.spool-applied');
  const superseded = storage.supersedes === null ? undefined : state.storages.get(storage.supersedes);
  const moves = superseded !== undefined && superseded.state === 'live' && superseded.missed === null;
  if (moves && storage.keyAttnums.length === 0) await keepRowIds(engine, superseded, storage);
  if (moves && state.captured.has(superseded.id)) await epoch.run(captureDdl(storage.id));

  const statements = ["SET LOCAL lock_timeout = '5s'"];
  for (const table of state.tables.values()) {
    const moved = moves && table.storageId === superseded.id && table.state === 'ready';
    if (moved) statements.push(`UPDATE millrace.table_version SET storage_id = ${storage.id} WHERE relation_id = ${table.id}`);
    if (moved || (table.storageId === storage.id && table.state !== 'error')) {
      statements.push(
        relationGate(state, table.id, 'ready', storage.id),
        `UPDATE millrace.relation SET state = 'ready', state_since = now() WHERE id = ${table.id} AND state IN ('pending', 'populating')`,
      );
    }
  }
  const failed = [...state.tables.values()].filter((table) => table.storageId === storage.id && table.error?.isRetried === true);
  statements.push(
    ...revived(state, new Set(failed.map(({ id }) => id))),
    `DROP TABLE IF EXISTS ${spoolTable(storage.id)}`,
    `UPDATE millrace.storage SET state = 'live', copy_snapshot = NULL, error = NULL WHERE id = ${storage.id} AND state = 'copied'`,
    'SET LOCAL lock_timeout = 0',
  );
  await epoch.run(statements);
  reach('copy.gates-open');
  await epoch.commit(new Map([[storage.sourceId, reached]]));
  reach('copy.live');
  return reached;
}

/** Versions made while the storage that they chose was going live, with the storage that has what they show: the epoch that opened the others did not know them. */
function lateVersions({
  tables,
  storages,
}: Pick<CatalogState, 'tables' | 'storages'>): { readonly id: number; readonly storageId: number }[] {
  return [...tables.values()].flatMap(({ id, state, storageId }) => {
    const chosen = storages.get(storageId);
    // An extension that has done its work.
    const storage = chosen?.state === 'dropped' && chosen.extends !== null ? storages.get(chosen.extends) : chosen;
    return state === 'pending' && storage?.state === 'live' && storage.extends === null ? [{ id, storageId: storage.id }] : [];
  });
}

/** Whether there is something for `openLate` to do. */
export const hasLate = (state: Pick<CatalogState, 'tables' | 'storages'>): boolean => lateVersions(state).length > 0;

/** Opens them. To be called exclusively. */
export async function openLate(engine: EngineContext): Promise<void> {
  const late = lateVersions(engine.state);
  if (late.length === 0) return;
  const epoch = await Epoch.begin(engine);
  await epoch.run([
    "SET LOCAL lock_timeout = '5s'",
    ...late.flatMap(({ id, storageId }) => [
      `UPDATE millrace.table_version SET storage_id = ${storageId} WHERE relation_id = ${id}`,
      relationGate(engine.state, id, 'ready', storageId),
      `UPDATE millrace.relation SET state = 'ready', state_since = now() WHERE id = ${id} AND state = 'pending'`,
    ]),
    'SET LOCAL lock_timeout = 0',
  ]);
  await epoch.commit(new Map());
}

/**
 * Rows without key are known to views by rid: the rows of the new storage take over the rids of equal rows of the old one.
 * Both hold the same rows as of this epoch, so every old row finds one.
 */
async function keepRowIds(engine: EngineContext, old: Storage, storage: Storage): Promise<void> {
  const image = (row: string): string => imageOf(old, row);
  const table = storageTable(storage.id);
  const { session } = engine;
  await session.query(freePlanner);
  // First out of the way, because rids of both storages begin at 1.
  await session.query(`UPDATE ${table} SET rid = -rid`);
  await session.query(
    `UPDATE ${table} s SET rid = pair.old_rid
       FROM (SELECT n.rid AS new_rid, o.rid AS old_rid
               FROM (SELECT t.rid, ${image('t')} AS image, row_number() OVER (PARTITION BY ${image('t')} ORDER BY t.rid) AS place FROM ${storageTable(old.id)} t) o
               JOIN (SELECT t.rid, ${image('t')} AS image, row_number() OVER (PARTITION BY ${image('t')} ORDER BY t.rid DESC) AS place FROM ${table} t) n
                 ON n.image = o.image AND n.place = o.place) pair
      WHERE s.rid = pair.new_rid`,
  );
  await session.query(
    `SELECT setval(pg_get_serial_sequence('${table}', 'rid'), greatest((SELECT coalesce(max(abs(rid)), 1) FROM ${table}), (SELECT coalesce(max(rid), 1) FROM ${storageTable(old.id)})))`,
  );
}
