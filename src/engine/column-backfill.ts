/**
 * New columns of a storage that is there: only they are copied, into a storage of their own that extends the other one, and end in that.
 * Invariant: the extension is copied and caught up as any storage is, beside the stream. In the epoch from which it takes changes itself, the storage that
 * it extends has the columns, empty, and takes changes of them too; from there on pieces of it are merged between epochs (column-merge.ts). No version
 * shows the columns before all are, and no change that somebody is shown comes of it: nothing is captured.
 */
import { type Storage, type StorageColumn, spoolTable, storageColumn, storageTable } from '../catalog/model.ts';
import { columnType } from '../catalog/storage-ddl.ts';
import { uncaptured } from '../ivm/capture.ts';
import type { Lsn } from '../replication/lsn.ts';
import { PostgresError } from '../replication/postgres-error.ts';
import { connectRaw } from '../replication/raw-connection.ts';
import { quoteLiteral } from '../sql/quote.ts';
import { broughtColumns, extensionsOf, mergeSql, pieceEndSql } from './column-merge.ts';
import type { CatalogState, EngineContext } from './context.ts';
import { Epoch } from './epoch.ts';
import { reach } from './fault-points.ts';
import { takeHeld } from './held-stream.ts';
import { isPassing } from './passing.ts';
import { relationGate, revived } from './relation-errors.ts';
import { copySettings } from './session-settings.ts';
import type { SourceRunner } from './source-runner.ts';
import { applySpool } from './spool.ts';
import { columnsSql, tablesOfRows } from './widen.ts';

/** Rows of a piece, and the milliseconds that it should take: the next epoch waits for it. */
const [fewestRows, mostRows] = [500, 50_000];
const [shortMs, longMs] = [20, 60];
export const firstPieceRows = 2000;

/** How many rows the next piece should have. */
export function nextPieceRows(rows: number, tookMs: number): number {
  if (tookMs < shortMs) return Math.min(rows * 2, mostRows);
  return tookMs > longMs ? Math.max(Math.round(rows / 2), fewestRows) : rows;
}

/** The storage that another one extends, when it can get columns now. */
export function extendable({ storages }: Pick<CatalogState, 'storages'>, extension: Storage): Storage | null {
  const base = storages.get(extension.extends ?? 0);
  const isWhole = extension.missed === null && base?.missed === null;
  return base !== undefined && base.state === 'live' && !base.stale && isWhole ? base : null;
}

/**
 * An extension that has been copied takes changes itself, and what it extends gets its columns; in one epoch with what the stream, held between two
 * transactions, still had to give. The stream must have applied up to the copy's LSN. Answers the position reached, when it moved, and whether that
 * was done: not while somebody reads the storage in a long transaction.
 */
export async function joinStream(
  engine: EngineContext,
  extension: Storage,
  runner: SourceRunner,
): Promise<{ readonly reached: Lsn | null; readonly joined: boolean }> {
  const { session, state } = engine;
  const extended = extendable(state, extension);
  if (extended === null) return { reached: null, joined: false };
  reach('copy.held');
  const epoch = await Epoch.begin(engine);
  try {
    // Before anything is taken from the stream. Nobody is to wait behind it for long.
    await epoch.run(["SET LOCAL lock_timeout = '200ms'", `LOCK TABLE ${storageTable(extended.id)} IN ACCESS EXCLUSIVE MODE`]);
  } catch (error) {
    if (!(error instanceof PostgresError) || !isPassing(error)) throw error;
    await epoch.abandon();
    return { reached: null, joined: false };
  }
  await epoch.run(['SET LOCAL lock_timeout = 0']);
  const reached = await takeHeld(epoch, runner);
  const base = epoch.storage(extended.id) ?? extended;
  const joined = !epoch.isCopiedAgain(extension.id) && !epoch.hasFailed(base.id) && agree(extension, base);
  if (joined) {
    await applySpool(session, extension);
    reach('copy.spool-applied');
    const others = (extensionsOf(state).get(base.id) ?? []).flatMap((other) => broughtColumns(other));
    const has = (columns: readonly StorageColumn[], attnum: number): boolean => columns.some((column) => column.attnum === attnum);
    // Half filled columns that nobody fills any more may have any value.
    const stays = base.columns.filter(
      ({ attnum, filling }) => filling === undefined || !has(broughtColumns(extension), attnum) || has(others, attnum),
    );
    const fresh = broughtColumns(extension).filter(({ attnum }) => !has(stays, attnum));
    const added: StorageColumn[] = [];
    for (const column of fresh) added.push({ ...column, filling: { initial: await initialValue(engine, extension, column) } });
    await epoch.run([
      ...(await addColumns(
        engine,
        base.id,
        base.columns.filter((column) => !stays.includes(column)),
        added,
      )),
      columnsSql({ id: base.id, columns: [...stays, ...added] }),
      `TRUNCATE ${spoolTable(extension.id)}`,
      `UPDATE millrace.storage SET state = 'live', copy_snapshot = NULL, error = NULL, merged_to = NULL WHERE id = ${extension.id} AND state = 'copied'`,
    ]);
  }
  await epoch.commit(new Map([[extension.sourceId, reached]]));
  reach('column.joined');
  return { reached, joined };
}

/** Statements that give a storage columns, and all that holds its rows for a while: last in each, and in the same order, as rows go from one to the other as they are. */
async function addColumns(
  engine: EngineContext,
  baseId: number,
  dropped: readonly StorageColumn[],
  added: readonly StorageColumn[],
): Promise<string[]> {
  if (added.length === 0) return [];
  const tables = await tablesOfRows(engine, baseId);
  const statements = tables.flatMap((table) => {
    const drops = dropped.map(({ attnum }) => `DROP COLUMN ${storageColumn(attnum)}`);
    const adds = added.map((column) => {
      const initial = table === storageTable(baseId) ? (column.filling?.initial ?? null) : null;
      const fallback = initial === null ? '' : ` DEFAULT ${quoteLiteral(initial)}::${column.type}`;
      return `ADD COLUMN ${storageColumn(column.attnum)} ${columnType(column)}${fallback}`;
    });
    return [...(drops.length === 0 ? [] : [`ALTER TABLE ${table} ${drops.join(', ')}`]), `ALTER TABLE ${table} ${adds.join(', ')}`];
  });
  // The rows that are there keep it.
  const defaults = added
    .filter(({ filling }) => filling?.initial != null)
    .map(({ attnum }) => `ALTER TABLE ${storageTable(baseId)} ALTER COLUMN ${storageColumn(attnum)} DROP DEFAULT`);
  return [...statements, ...defaults];
}

/**
 * The value that most rows have, by the statistics of what was copied: a column comes with it without a row being written (a constant default). Null: they
 * have NULL, or many values, or Postgres would write the rows all the same (a domain), or what is written so may get another name (an enum).
 */
async function initialValue({ session }: EngineContext, extension: Storage, column: StorageColumn): Promise<string | null> {
  const { attnum, type, originType } = column;
  if (type === 'text' && originType !== 'text') return null;
  const [found] = await session.query(
    `SELECT (s.most_common_vals::text::text[])[1]
       FROM pg_catalog.pg_stats s
       JOIN pg_catalog.pg_attribute a ON a.attrelid = '${storageTable(extension.id)}'::regclass AND a.attname = s.attname
       JOIN pg_catalog.pg_type t ON t.oid = a.atttypid AND t.typtype = 'b'
      WHERE format('%I.%I', s.schemaname, s.tablename) = '${storageTable(extension.id)}' AND s.attname = '${storageColumn(attnum)}' AND NOT s.inherited
        AND s.most_common_freqs[1] > greatest(s.null_frac, 0.2)`,
  );
  return found?.rows[0]?.[0] ?? null;
}

/** Columns that both have are of the same types: a wider one may have come to the copy before the stream brought it. */
function agree(extension: Storage, base: Storage): boolean {
  return extension.columns.every((column) => {
    const there = base.columns.find(({ attnum }) => attnum === column.attnum);
    return there === undefined ? column.elsewhere !== true : there.type === column.type && there.collation === column.collation;
  });
}

/** What there is to do next for an extension that takes changes itself. */
export type Merging = 'more' | 'all merged' | 'not now';

/** Gives the next rows their values, in a transaction of its own. To be called exclusively; `after`: where the piece before ended. */
export async function mergePiece(
  engine: EngineContext,
  extensionId: number,
  after: readonly string[] | null,
  rows: number,
): Promise<{ readonly next: Merging; readonly mergedTo: readonly string[] | null }> {
  const { session, state } = engine;
  const extension = state.storages.get(extensionId);
  const base = extension === undefined ? null : extendable(state, extension);
  if (extension?.state !== 'live' || base === null || !agree(extension, base)) return { next: 'not now', mergedTo: after };
  const epoch = await Epoch.begin(engine);
  const [end] = await session.query(pieceEndSql(extension, after, rows));
  const upTo = end?.rows[0]?.map((value) => value ?? '') ?? null;
  const merged = mergeSql(extension, base, { after, upTo });
  await epoch.run([
    ...(merged === null ? [] : [uncaptured, merged]),
    ...(upTo === null
      ? []
      : [`UPDATE millrace.storage SET merged_to = ARRAY[${upTo.map(quoteLiteral).join(', ')}] WHERE id = ${extension.id}`]),
  ]);
  reach('column.piece-merged');
  await epoch.commit(new Map());
  return { next: upTo === null ? 'all merged' : 'more', mergedTo: upTo };
}

/** What the planner knows of a table that has just been copied it is to know of its new columns, too. */
export async function analyzeBrought({ config }: EngineContext, extension: Storage): Promise<void> {
  const columns = broughtColumns(extension).map(({ attnum }) => storageColumn(attnum));
  const session = await connectRaw(config.upstream, {
    database: config.database,
    applicationName: 'millrace copy',
    settings: copySettings,
  });
  try {
    await session.query(`ANALYZE ${storageTable(extension.extends ?? 0)} (${columns.join(', ')})`);
  } finally {
    await session.close().catch(() => undefined);
  }
}

/**
 * All rows have their values: the versions that waited show them, and the extension goes. To be called exclusively, in the same turn as the last piece
 * was merged or after that.
 */
export async function showMerged(engine: EngineContext, extensionId: number): Promise<void> {
  const { state } = engine;
  const extension = state.storages.get(extensionId);
  const base = extension === undefined ? null : extendable(state, extension);
  if (extension?.state !== 'live' || base === null || !agree(extension, base)) return;
  reach('column.merged');
  const brought = new Set(broughtColumns(extension).map(({ attnum }) => attnum));
  const columns = base.columns.map((column): StorageColumn => {
    if (column.filling === undefined || !brought.has(column.attnum)) return column;
    const { filling: _, ...filled } = column;
    return filled;
  });
  const waiting = [...state.tables.values()].filter(({ storageId }) => storageId === extension.id);
  const moved = new Map(
    [...state.tables].map(([id, table]) => [id, table.storageId === extension.id ? { ...table, storageId: base.id } : table]),
  );
  const now: CatalogState = { ...state, tables: moved };
  const retried = new Set(waiting.flatMap(({ id, error }) => (error?.isRetried === true ? [id] : [])));
  const epoch = await Epoch.begin(engine);
  await epoch.run([
    "SET LOCAL lock_timeout = '5s'",
    columnsSql({ id: base.id, columns }),
    ...waiting.flatMap(({ id, state: shown }) => [
      `UPDATE millrace.table_version SET storage_id = ${base.id} WHERE relation_id = ${id}`,
      relationGate(now, id, shown === 'error' ? 'error' : 'ready'),
      `UPDATE millrace.relation SET state = 'ready', state_since = now() WHERE id = ${id} AND state IN ('pending', 'populating')`,
    ]),
    ...revived(now, retried),
    `UPDATE millrace.storage SET state = 'dropped' WHERE id = ${extension.id}`,
    'SET LOCAL lock_timeout = 0',
  ]);
  await epoch.commit(new Map());
  reach('column.shown');
}
