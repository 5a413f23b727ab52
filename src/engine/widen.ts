/**
 * A storage follows its origin's table to wider types: in stream order, within an epoch.
 * Invariant: everything that shows such a column has its new type, or says that it cannot: what users made over it is taken down and put up
 * again as it was, live views are compiled anew. A version with something above it that cannot be put up again ends in error, keeps the type
 * it was made with, and the others go on. Types that are only longer cost the catalog; others make Postgres write the storage anew,
 * and readers wait for that.
 */
import {
  deltaTable,
  pendingDeltaTable,
  type Storage,
  spoolTable,
  stagingTable,
  storageColumn,
  storageTable,
  type TableVersion,
} from '../catalog/model.ts';
import { columnType, tableGate } from '../catalog/storage-ddl.ts';
import { PostgresError } from '../replication/postgres-error.ts';
import { quoteLiteral } from '../sql/quote.ts';
import { rehashRows } from './apply-sql.ts';
import type { WidenedColumn } from './change-batch.ts';
import type { EngineContext } from './context.ts';
import type { Epoch } from './epoch.ts';
import { isPassing } from './passing.ts';
import { alteredError } from './relation-errors.ts';
import { mayFollow, widening } from './type-widening.ts';
import { remakeViews } from './view-remake.ts';
import { type KeptView, putUp, takeDown, viewsAbove, viewsOfColumns } from './views-above.ts';

type WithinEpoch = Pick<Epoch, 'fail' | 'run' | 'leaveOut'>;

/** The columns that the origin's table has with a wider type than the storage. */
export function widenedColumns(
  storage: Pick<Storage, 'columns'>,
  origin: { readonly columns: readonly { readonly attnum: number; readonly formattedType: string }[] } | null,
): WidenedColumn[] {
  const now = new Map(origin?.columns.map(({ attnum, formattedType }) => [attnum, formattedType]));
  return storage.columns.flatMap((column) => {
    const originType = now.get(column.attnum);
    return originType !== undefined && column.lost !== true && mayFollow(column, originType) ? [{ attnum: column.attnum, originType }] : [];
  });
}

/** The storage as it will be. */
export function withTypes(storage: Storage, widened: readonly WidenedColumn[]): Storage {
  const types = new Map(widened.map((column) => [column.attnum, column]));
  const isKeyless = storage.keyAttnums.length === 0;
  return {
    ...storage,
    columns: storage.columns.map((column) => {
      const given = types.get(column.attnum);
      if (given === undefined || given.originType === column.originType) return column;
      const { originType: type } = given;
      if (given.renamed === true) return { ...column, originType: type };
      if (!mayFollow(column, type)) return column;
      const rehashed = isKeyless && widening(column.originType, type) === 'other text' ? { rehashed: true as const } : {};
      return { ...column, type, originType: type, ...rehashed };
    }),
  };
}

/** Gives the columns of a storage their new types. Answers the storage as it is then. */
export async function widenStorage(
  engine: EngineContext,
  epoch: WithinEpoch,
  storage: Storage,
  widened: readonly WidenedColumn[],
): Promise<Storage> {
  const { state, log } = engine;
  const now = withTypes(storage, widened);
  const changed = changedTypes(storage, now);
  if (changed.length === 0) {
    if (JSON.stringify(now.columns) !== JSON.stringify(storage.columns)) await epoch.run([columnsSql(now)]);
    return now;
  }
  const attnums = changed.map(({ attnum }) => attnum);
  log.info(
    { storage: storage.id, table: `${storage.originSchema}.${storage.originName}`, types: changed.map(({ type }) => type) },
    'columns get wider types',
  );
  await epoch.run(["SET LOCAL lock_timeout = '5s'"]);
  const versions = [...state.tables.values()].filter(
    (table) => table.storageId === storage.id && table.columns.some((column) => attnums.includes(column.attnum)),
  );
  const following = await alterUnderViews(engine, epoch, storage, now, versions);
  const rehashed = now.columns.some((column) => column.rehashed === true);
  await epoch.run([...(rehashed ? [rehashRows(now)] : []), columnsSql(now)]);
  await remakeViews(engine, epoch, following, attnums);
  await epoch.run(['SET LOCAL lock_timeout = 0']);
  return now;
}

/** Writes the columns of a storage down. */
export const columnsSql = ({ id, columns }: Pick<Storage, 'id' | 'columns'>): string =>
  `UPDATE millrace.storage SET columns = ${quoteLiteral(JSON.stringify(columns))}::jsonb WHERE id = ${id}`;

const changedTypes = (storage: Storage, now: Storage): Storage['columns'] =>
  now.columns.filter((column, i) => column.type !== storage.columns[i]?.type);

/** Answers the versions that have followed, by id. */
async function alterUnderViews(
  engine: EngineContext,
  epoch: WithinEpoch,
  storage: Storage,
  now: Storage,
  versions: readonly TableVersion[],
): Promise<number[]> {
  const { session, log } = engine;
  const changed = changedTypes(storage, now);
  const columns = changed.map(({ attnum }) => storageColumn(attnum));
  const roots = await viewsOfColumns(session, storageTable(storage.id), columns);
  const above = await viewsAbove(session, roots);
  const gateOf = (root: number): TableVersion | undefined => versions.find(({ gate }) => gate === root);
  const stuck = new Map<TableVersion, string>();
  for (const { roots: under, what } of above.obstacles)
    for (const root of under) {
      const version = gateOf(root);
      if (version !== undefined && !stuck.has(version)) stuck.set(version, what);
    }
  await epoch.run(['SAVEPOINT widen']);
  try {
    for (const [version, what] of stuck) await detach(engine, epoch, storage, now, version, what);
    const isFree = (root: number): boolean => ![...stuck.keys()].some(({ gate }) => gate === root);
    const free = above.views.filter(({ roots: under }) => under.some(isFree));
    const before = await functionsCalled(engine, free);
    await epoch.run([
      "SET LOCAL lock_timeout = '5s'",
      ...takeDown(free),
      ...(await alterTypes(engine, storage, changed)),
      ...free.flatMap((view) => putUp(view)),
    ]);
    const other = (await functionsCalled(engine, free)).find((call) => !before.includes(call));
    if (other !== undefined)
      throw new PostgresError({ severity: 'ERROR', code: '42804', message: `a view would call another function: ${other}` });
    await epoch.run(['RELEASE SAVEPOINT widen']);
  } catch (error) {
    if (!(error instanceof PostgresError) || isPassing(error)) throw error;
    log.error({ storage: storage.id, err: error }, 'views cannot follow the type of a column');
    await epoch.run(['ROLLBACK TO SAVEPOINT widen; RELEASE SAVEPOINT widen']);
    for (const version of versions) {
      await detach(engine, epoch, storage, now, version, error.message);
      stuck.set(version, error.message);
    }
    await epoch.run(await alterTypes(engine, storage, changed));
  }
  return versions.filter((version) => !stuck.has(version)).map(({ id }) => id);
}

/** A version that cannot follow: in error, its gate without the column, so that the storage is free. */
async function detach(
  engine: EngineContext,
  epoch: WithinEpoch,
  storage: Storage,
  now: Storage,
  version: TableVersion,
  what: string,
): Promise<void> {
  const reference = `${storage.originSchema}.${storage.originName}`;
  const changed = now.columns.flatMap((column, i) => {
    const old = storage.columns[i];
    return old === undefined || old.type === column.type ? [] : [{ old, column }];
  });
  const columns = version.columns.map((shown) => {
    const found = changed.find(({ column }) => column.attnum === shown.attnum);
    return found === undefined || shown.was !== undefined ? shown : { ...shown, was: columnType(found.old) };
  });
  const [first] = changed.filter(({ column }) => version.columns.some(({ attnum }) => attnum === column.attnum));
  const source = engine.state.sources.get(storage.sourceId)?.name ?? '';
  const problem = `column "${first?.old.name}" of ${reference} changed from type ${first?.old.originType} to ${first?.column.originType}, which this table cannot follow: ${what}`;
  await epoch.fail(version.id, alteredError({ reference, problem, source }));
  await epoch.run([
    tableGate(version.id, storage.id, columns, 'error'),
    `UPDATE millrace.table_version SET columns = ${quoteLiteral(JSON.stringify(columns))}::jsonb WHERE relation_id = ${version.id}`,
  ]);
}

/** ALTER TABLE of the storage and of all that holds its rows for a while. */
async function alterTypes(engine: EngineContext, { id }: Storage, changed: Storage['columns']): Promise<string[]> {
  const actions = changed.map((column) => `ALTER COLUMN ${storageColumn(column.attnum)} TYPE ${columnType(column)}`).join(', ');
  return (await tablesOfRows(engine, id)).map((table) => `ALTER TABLE ${table} ${actions}`);
}

/** The tables that have rows of a storage: itself, and those that hold them for a while. */
export async function tablesOfRows({ session, state }: EngineContext, id: number): Promise<string[]> {
  const versions = new Set([...state.tables.values()].filter((table) => table.storageId === id).map((table) => table.id));
  const aside = [...state.views.values()].flatMap((view) =>
    view.inputs.filter((input) => versions.has(input)).map((input) => pendingDeltaTable(view.id, input)),
  );
  const tables = [storageTable(id), stagingTable(id), spoolTable(id), deltaTable(id), ...aside];
  const [found] = await session.query(
    `SELECT t FROM unnest('{${tables.join(',')}}'::text[]) WITH ORDINALITY AS x(t, n) WHERE to_regclass(t) IS NOT NULL ORDER BY n`,
  );
  return (found?.rows ?? []).map(([table]) => table ?? '');
}

/** Statements by which rows that come while a table is copied have room in its spool. */
export const spoolTypes = (storage: Storage, now: Storage): string[] =>
  changedTypes(storage, now).map(
    (column) => `ALTER TABLE ${spoolTable(storage.id)} ALTER COLUMN ${storageColumn(column.attnum)} TYPE ${columnType(column)}`,
  );

/** Functions other than built-in ones: a wider type must not lead to another one of the same name. */
async function functionsCalled({ session }: EngineContext, views: readonly KeptView[]): Promise<string[]> {
  if (views.length === 0) return [];
  const [found] = await session.query(
    `SELECT v || ': ' || f.signature FROM unnest(ARRAY[${views.map(({ name }) => quoteLiteral(name)).join(', ')}]) v, millrace.functions_called(ARRAY[v::regclass::oid]) f`,
  );
  return (found?.rows ?? []).map(([call]) => call ?? '');
}
