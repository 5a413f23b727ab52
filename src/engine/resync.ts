/**
 * Bringing tables up to date that the stream cannot: its slot is gone, or the origin is not what it was.
 * Invariant: nothing is dropped or emptied. Each table is copied anew beside its storage, which shows until then what it had and takes no rows of the
 * stream; when all copies of the source are in and the stream has passed them, one epoch writes what differs, so that views receive only real changes.
 */
import {
  type Storage,
  type StorageColumn,
  spoolTable,
  stagingTable,
  storageColumn,
  storageTable,
  type TableVersion,
} from '../catalog/model.ts';
import { createSpool, createStaging, createStorage, storageKey } from '../catalog/storage-ddl.ts';
import { formatLsn, type Lsn } from '../replication/lsn.ts';
import type { OriginTable, TableShape } from '../replication/origin-tables.ts';
import { quoteLiteral } from '../sql/quote.ts';
import { forgetColumns, imageOf, isRehashed, rowHash, without } from './apply-sql.ts';
import type { EngineContext } from './context.ts';
import { Epoch } from './epoch.ts';
import { reach } from './fault-points.ts';
import { takeHeld } from './held-stream.ts';
import { wholeColumns } from './left-out.ts';
import { revived } from './relation-errors.ts';
import { resyncOf, storagesOf } from './relation-targets.ts';
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

/**
 * Writes what differs, in one epoch with what the stream, held between two transactions, still had to give. All copies of the source are in,
 * and the stream has applied up to the last of them. `shapes`: the origin's tables now, by OID. Answers the position reached.
 */
export async function finishResync(
  engine: EngineContext,
  copies: readonly Storage[],
  runner: SourceRunner,
  shapes: ReadonlyMap<number, TableShape>,
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
    // As wide as what is to be written to it.
    const types = copy.columns.map(({ attnum, originType }) => ({ attnum, formattedType: originType }));
    const wide = await widenStorage(engine, epoch, stored, widenedColumns(stored, { columns: types }));
    const storage = { ...wide, columns: asCopied(wide, copy) };
    const lost = { copy: lostColumns(copy, shape), storage: lostColumns(storage, shape) };
    if (lost.copy.length > 0) await epoch.run(forgetColumns(copy, lost.copy));
    if (lost.storage.length > 0) await epoch.run(forgetColumns(storage, lost.storage));
    await applySpool(engine.session, without(copy, lost.copy));
    const kept = without(storage, lost.storage);
    await epoch.run(differenceSql(copy, kept));
    // Rows had come without them.
    const columns = wholeColumns(state, kept, copy, shape);
    if (JSON.stringify(columns) !== JSON.stringify(wide.columns)) await epoch.run([columnsSql({ id: kept.id, columns })]);
    // Otherwise the stream goes on without telling of it.
    if (shape !== null) await epoch.run([`UPDATE millrace.storage SET missed = NULL WHERE id = ${storage.id}`]);
    epoch.touch(storage.id);
    const ended = brokenVersions(storage, versionsOf(state, storage), shape, runner.source.name);
    // Of a table that is not there, or not published, the next look says which.
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
    ]),
    ...revived(state, mended),
    'SET LOCAL lock_timeout = 0',
  ]);
  reach('resync.copies-dropped');
  await epoch.commit(new Map([[runner.source.id, reached]]));
  reach('resync.finished');
  return reached;
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

/** Makes the storage hold the rows of the copy, writing only rows that differ. Rows are compared as text: equal is not always the same. */
export function differenceSql(copy: Storage, storage: Storage): string[] {
  const [from, to] = [storageTable(copy.id), storageTable(storage.id)];
  const columns = storage.columns.map((column) => storageColumn(column.attnum));
  const image = (row: string): string => imageOf(storage, row);
  const list = (row: string): string => columns.map((column) => `${row}.${column}`).join(', ');
  if (storage.keyAttnums.length > 0) {
    const same = storageKey(storage)
      .map((column) => `s.${column} = n.${column}`)
      .join(' AND ');
    return [
      `DELETE FROM ${to} s WHERE NOT EXISTS (SELECT FROM ${from} n WHERE ${same})`,
      `UPDATE ${to} s SET ${columns.map((column) => `${column} = n.${column}`).join(', ')} FROM ${from} n WHERE ${same} AND ${image('s')} <> ${image('n')}`,
      `INSERT INTO ${to} (${columns.join(', ')}) SELECT ${list('n')} FROM ${from} n WHERE NOT EXISTS (SELECT FROM ${to} s WHERE ${same})`,
    ];
  }
  // Once columns were lost the stored hash is not the one that a copy comes with.
  const hash = (row: string): string => (isRehashed(storage) ? rowHash(image(row)) : `${row}.h`);
  const counted = (table: string): string =>
    `(SELECT ${hash('t')} AS h, ${image('t')} AS image, count(*) AS n FROM ${table} t GROUP BY 1, 2)`;
  const placed = (table: string): string =>
    `(SELECT t.rid, ${list('t')}, ${hash('t')} AS h, ${image('t')} AS image, row_number() OVER (PARTITION BY ${hash('t')}, ${image('t')} ORDER BY t.rid) AS place FROM ${table} t)`;
  return [
    `DELETE FROM ${to} s USING (
   SELECT o.rid FROM ${placed(to)} o LEFT JOIN ${counted(from)} n ON n.h = o.h AND n.image = o.image WHERE o.place > coalesce(n.n, 0)
 ) gone WHERE s.rid = gone.rid`,
    `INSERT INTO ${to} (h, ${columns.join(', ')})
 SELECT o.h, ${list('o')} FROM ${placed(from)} o LEFT JOIN ${counted(to)} n ON n.h = o.h AND n.image = o.image WHERE o.place > coalesce(n.n, 0)`,
  ];
}
