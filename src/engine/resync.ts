/**
 * Bringing tables up to date that the stream cannot: its slot is gone, or the origin is not what it was.
 * Invariant: nothing is dropped or emptied. Each table is copied anew beside its storage, which shows until then what it had and takes no rows of the
 * stream; when all copies of the source are in and the stream has passed them, one epoch writes what differs, so that views receive only real changes.
 */
import {
  differenceTable,
  type Storage,
  type StorageColumn,
  spoolTable,
  stagingTable,
  storageTable,
  type TableVersion,
} from '../catalog/model.ts';
import { createSpool, createStaging, createStorage } from '../catalog/storage-ddl.ts';
import { formatLsn, type Lsn } from '../replication/lsn.ts';
import type { OriginTable, TableShape } from '../replication/origin-tables.ts';
import { quoteLiteral } from '../sql/quote.ts';
import { forgetColumns, without } from './apply-sql.ts';
import type { EngineContext } from './context.ts';
import { Epoch } from './epoch.ts';
import { reach } from './fault-points.ts';
import { takeHeld } from './held-stream.ts';
import { fitsKey } from './key-change.ts';
import { wholeColumns } from './left-out.ts';
import { revived } from './relation-errors.ts';
import { resyncOf, storagesOf } from './relation-targets.ts';
import { comparedColumns, differenceSql, isEmptiedSql, touchedSql } from './resync-difference.ts';
import { brokenVersions, lostColumns, versionsOf } from './schema-change.ts';
import { freePlanner } from './session-settings.ts';
import type { SourceRow } from './source-row.ts';
import type { SourceRunner } from './source-runner.ts';
import { applySpool } from './spool.ts';
import { afresh } from './table-copy.ts';
import { columnsSql, widenedColumns, widenStorage } from './widen.ts';

/** The tables of a source as its origin has them now. */
export interface OriginNow {
  /** Those that are there no more, with what has taken their place; null: nothing. */
  readonly gone: ReadonlyMap<number, OriginTable | null>;
  readonly there: ReadonlyMap<number, OriginTable>;
}

/**
 * Marks every table of a source for it. `startLsn`: where the new slot begins; null: the slot is good. Copies under way begin again.
 * To be called exclusively, with no stream running.
 */
export async function beginResync(
  engine: EngineContext,
  source: SourceRow,
  startLsn: Lsn | null,
  timeline: number,
  { gone, there }: OriginNow,
): Promise<void> {
  const storages = storagesOf(engine, source.id);
  const statements = [
    `UPDATE millrace.source SET resync_requested = false, timeline = ${timeline} WHERE id = ${source.id}`,
    ...(startLsn === null
      ? []
      : [
          `UPDATE millrace.source_progress SET lsn = '${formatLsn(startLsn)}' WHERE source_id = ${source.id}`,
          `DELETE FROM millrace.source_position WHERE source_id = ${source.id}`,
        ]),
  ];
  for (const storage of storages) {
    const successor = gone.get(storage.originOid);
    if (successor === null) {
      // There is nothing to copy: what it has said goes on being said.
      if (storage.resyncs !== null) statements.push(`UPDATE millrace.storage SET state = 'dropped' WHERE id = ${storage.id}`);
      continue;
    }
    if (successor !== undefined)
      statements.push(
        `UPDATE millrace.storage SET origin_oid = ${successor.oid}, origin_schema = ${quoteLiteral(successor.schema)}, origin_name = ${quoteLiteral(successor.name)} WHERE id = ${storage.id}`,
      );
    if (storage.extends !== null) {
      if (storage.state !== 'live' && storage.state !== 'copying' && storage.state !== 'copied') continue;
      // From the beginning: the storage that it extends is not what it was when its versions were given up, if they were.
      statements.push(...afresh(storage), ...waitAgain(engine, storage));
    } else if (isOfOtherKey(storage, there.get(storage.originOid))) {
      // By a key that the table has no more rows cannot be told apart: they are not made one of two.
      if (storage.resyncs !== null) statements.push(`UPDATE millrace.storage SET state = 'dropped' WHERE id = ${storage.id}`);
    } else if (storage.state === 'live' || isGivenUp(storage)) {
      statements.push(`UPDATE millrace.storage SET state = 'live', stale = true, error = NULL WHERE id = ${storage.id}`);
      if (resyncOf(storages, storage.id) === undefined)
        statements.push(...(await createCopy(engine, { ...storage, columns: regained(storage, there.get(storage.originOid)) })));
    } else if (storage.state === 'copying' || storage.state === 'copied') {
      statements.push(...afresh(storage), ...waitAgain(engine, storage));
    }
  }
  const epoch = await Epoch.begin(engine);
  await epoch.run(statements);
  await epoch.commit(new Map());
}

/** Columns of a storage as a copy can have them: those that rows without key have lost, and the origin has again as they were, are among them. */
export function regained({ columns }: Pick<Storage, 'columns'>, origin: OriginTable | undefined): StorageColumn[] {
  return columns.map(({ filling: _, ...column }) => {
    const now = origin?.columns.find(({ attnum }) => attnum === column.attnum);
    const isPublished = origin?.publishedColumns == null || origin.publishedColumns.includes(column.attnum);
    if (column.lost !== true || now?.formattedType !== column.originType || !isPublished) return column;
    const { lost: __, ...whole } = column;
    return whole;
  });
}

const isOfOtherKey = (storage: Storage, origin: OriginTable | undefined): boolean => origin !== undefined && !fitsKey(storage, origin);

/** Its rows are those of the last change that could be stored. One whose first copy failed has none, and is tried again by itself. */
const isGivenUp = ({ state, resyncs, retryInMs }: Storage): boolean => state === 'failed' && resyncs === null && retryInMs === null;

/** Versions that a resynchronisation mends, and what was given up because of them, wait for the first copy of their storage. */
function waitAgain({ state }: EngineContext, copied: Storage, broken: ReadonlySet<number> = new Set()): string[] {
  const versions = [...state.tables.values()].filter(
    ({ id, storageId, error }) => storageId === copied.id && error?.resync === true && !broken.has(id),
  );
  if (versions.length === 0) return [];
  const ids = versions.map(({ id }) => id).join(', ');
  return [
    `UPDATE millrace.relation SET state = 'pending', error = NULL, state_since = now() WHERE state = 'error' AND (id IN (${ids}) OR (error ->> 'cause')::bigint IN (${ids}))`,
  ];
}

async function createCopy(engine: EngineContext, storage: Storage): Promise<string[]> {
  const [made] = await engine.session.query("SELECT nextval('millrace.object_id')");
  const copy = { id: Number(made?.rows[0]?.[0]), columns: storage.columns, keyAttnums: storage.keyAttnums };
  return [
    createStorage(copy),
    createStaging(copy),
    createSpool(copy),
    `INSERT INTO millrace.storage (id, source_id, origin_oid, origin_schema, origin_name, columns, key_attnums, resyncs)
     SELECT ${copy.id}, source_id, origin_oid, origin_schema, origin_name, ${quoteLiteral(JSON.stringify(copy.columns))}::jsonb, key_attnums, id
       FROM millrace.storage WHERE id = ${storage.id}`,
  ];
}

export interface FinishedCopies {
  /** The origin's tables now, by OID; those that are not published, or have another key, left out. */
  readonly shapes: ReadonlyMap<number, TableShape>;
  /** Of copies whose differences have been found: what that holds for (comparedColumns). */
  readonly compared: ReadonlyMap<number, string>;
}

/**
 * Writes what differs, in one epoch with what the stream, held between two transactions, still had to give. All copies of the source are in,
 * and the stream has applied up to the last of them. Answers the position reached.
 */
export async function finishResync(
  engine: EngineContext,
  copies: readonly Storage[],
  runner: SourceRunner,
  { shapes, compared }: FinishedCopies,
): Promise<Lsn> {
  const { state } = engine;
  const epoch = await Epoch.begin(engine);
  const reached = await takeHeld(epoch, runner);
  if (copies.some(({ id }) => epoch.isCopiedAgain(id))) {
    await epoch.commit(new Map([[runner.source.id, reached]]));
    return reached;
  }
  await epoch.run([freePlanner]);
  const mended = new Set<number>();
  for (const copy of copies) {
    const stored = state.storages.get(copy.resyncs ?? 0);
    if (stored === undefined) continue;
    const shape = shapes.get(stored.originOid) ?? null;
    const { storage, columns } = await writeDifference(engine, epoch, { copy, stored, shape, comparedAs: compared.get(copy.id) });
    // Of a table that is not there, not published, or has another key, the stream goes on without telling.
    const missed = shape === null ? 'coalesce(s.missed, c.missed)' : 'NULL';
    await epoch.run([
      `UPDATE millrace.storage s SET sent_as = c.sent_as, missed = ${missed} FROM millrace.storage c WHERE c.id = ${copy.id} AND s.id = ${storage.id}`,
    ]);
    const ended = brokenVersions(storage, versionsOf(state, storage), shape, runner.source.name);
    // Else the next look says why.
    if (shape !== null) for (const { relationId, error } of ended) await epoch.fail(relationId, error);
    const broken = new Set(ended.map(({ relationId }) => relationId));
    const isWhole = (table: TableVersion): boolean =>
      !columns.some(({ attnum, filling }) => filling !== undefined && table.columns.some((column) => column.attnum === attnum));
    for (const table of state.tables.values())
      if (table.storageId === storage.id && table.state === 'error' && !broken.has(table.id) && isWhole(table)) mended.add(table.id);
    // Also those that were given up, for a change that came late, after they had been told to wait.
    for (const extension of state.storages.values())
      if (extension.extends === storage.id) await epoch.run(waitAgain(engine, extension, broken));
  }
  reach('resync.difference-written');
  await epoch.run([
    "SET LOCAL lock_timeout = '5s'",
    ...copies.flatMap((copy) => [
      `UPDATE millrace.storage SET stale = false WHERE id = ${copy.resyncs}`,
      `DELETE FROM millrace.storage WHERE id = ${copy.id}`,
      `DROP TABLE ${storageTable(copy.id)}, ${stagingTable(copy.id)}, ${spoolTable(copy.id)}`,
      `DROP TABLE IF EXISTS ${differenceTable(copy.id)}`,
    ]),
    ...revived(state, mended),
    'SET LOCAL lock_timeout = 0',
  ]);
  reach('resync.copies-dropped');
  await epoch.commit(new Map([[runner.source.id, reached]]));
  reach('resync.finished');
  return reached;
}

interface ComparedCopy {
  readonly copy: Storage;
  readonly stored: Storage;
  /** The origin's table now. */
  readonly shape: TableShape | null;
  /** What the places hold for that have been found beside the epochs; undefined, or of other columns: all rows are compared. */
  readonly comparedAs: string | undefined;
}

/** Brings what waits in the spool into the copy and what the copy has otherwise into the storage. Answers that as it is then, and its columns as written down. */
async function writeDifference(
  engine: EngineContext,
  epoch: Epoch,
  { copy, stored, shape, comparedAs }: ComparedCopy,
): Promise<{ readonly storage: Storage; readonly columns: Storage['columns'] }> {
  // As wide as what is to be written to it.
  const types = copy.columns.map(({ attnum, originType }) => ({ attnum, formattedType: originType }));
  const widened = widenedColumns(stored, { columns: types });
  const wide = await widenStorage(engine, epoch, stored, widened);
  const storage = { ...wide, columns: asCopied(wide, copy) };
  const lost = { copy: lostColumns(copy, shape), storage: lostColumns(storage, shape) };
  if (lost.copy.length > 0) await epoch.run(forgetColumns(copy, lost.copy));
  if (lost.storage.length > 0) await epoch.run(forgetColumns(storage, lost.storage));
  const isSame = widened.length === 0 && lost.copy.length === 0 && lost.storage.length === 0;
  const [emptied] = isSame && comparedAs === comparedColumns(copy, stored) ? await engine.session.query(isEmptiedSql(copy)) : [];
  const within = emptied?.rows[0]?.[0] === 'f' ? 'found' : 'all';
  if (within === 'found') await epoch.run([touchedSql(copy)]);
  await applySpool(engine.session, without(copy, lost.copy));
  const kept = without(storage, lost.storage);
  await epoch.run(differenceSql(copy, kept, within));
  epoch.touch(storage.id);
  // Rows had come without some values.
  const columns = wholeColumns(engine.state, kept, copy, shape);
  if (JSON.stringify(columns) !== JSON.stringify(wide.columns)) await epoch.run([columnsSql({ id: kept.id, columns })]);
  return { storage, columns };
}

/** The storage's columns, with those that the copy has got back. */
function asCopied({ columns }: Storage, copy: Storage): StorageColumn[] {
  const got = new Set(copy.columns.flatMap(({ attnum, lost }) => (lost === true ? [] : [attnum])));
  return columns.map((column) => {
    if (column.lost !== true || !got.has(column.attnum)) return column;
    const { lost: _, ...whole } = column;
    return whole;
  });
}
