/**
 * What it means that a row came without some of its values. Pure. Invariant: no version shows NULL where the origin has a value: those that would say
 * so instead, and how it is mended.
 * An update that brings a row into the row filter of a publication is sent as an insert, of the new row as it stands in the WAL: TOASTed values that
 * it has not changed are not there, unless the old row is with REPLICA IDENTITY FULL (PostgreSQL, "Row Filters"; pgoutput_row_filter). A subscription
 * of Postgres stores NULL for them.
 */
import type { Storage, StorageColumn } from '../catalog/model.ts';
import { isLeftOut } from '../replication/copy-rows.ts';
import type { TableShape } from '../replication/origin-tables.ts';
import type { TupleView } from '../replication/pgoutput.ts';
import { quoteIdentifier } from '../sql/quote.ts';
import type { Target } from './change-batch.ts';
import { broughtColumns } from './column-merge.ts';
import type { CatalogState, EngineContext } from './context.ts';
import { missedError } from './relation-errors.ts';
import { type BrokenVersion, versionsOf } from './schema-change.ts';
import type { SourceRow } from './source-row.ts';
import { isAsText } from './type-widening.ts';

/** Attnums of the columns of a storage that an inserted row has no value for. */
export function leftOutColumns({ storage, columns }: Pick<Target, 'storage' | 'columns'>, row: TupleView): number[] {
  return storage.columns.flatMap(({ attnum }, i) => (isLeftOut(row, columns[i] ?? -1) ? [attnum] : []));
}

/** The versions that show one of the columns. */
export function incompleteVersions(
  storage: Storage,
  attnums: readonly number[],
  { state }: Pick<EngineContext, 'state'>,
  source: Pick<SourceRow, 'name' | 'publication'>,
): BrokenVersion[] {
  const reference = `${quoteIdentifier(storage.originSchema)}.${quoteIdentifier(storage.originName)}`;
  return versionsOf(state, storage).flatMap(({ id, columns }) => {
    const shown = columns.find(({ attnum }) => attnums.includes(attnum));
    if (shown === undefined) return [];
    const error = {
      ...missedError({
        reference: `${storage.originSchema}.${storage.originName}`,
        problem: `has sent a row without its value of column "${shown.name}"`,
        source: source.name,
      }),
      detail: `An update has brought the row into the row filter of publication "${source.publication}", and of what it did not change large values are sent with REPLICA IDENTITY FULL only.`,
      hint: `ALTER SOURCE ${source.name} RESYNC; and before it on the origin, so that this does not come again: ALTER TABLE ${reference} REPLICA IDENTITY FULL;`,
    };
    return [{ relationId: id, error }];
  });
}

/** A storage whose rows are not all there in these columns: as if they were half filled, and by nobody (column-backfill.ts). */
export const withoutValues = (storage: Storage, attnums: readonly number[]): Storage => ({
  ...storage,
  columns: storage.columns.map((column) =>
    attnums.includes(column.attnum) && column.filling === undefined ? { ...column, filling: { initial: null } } : column,
  ),
});

/** Those of the columns of which it is not written down yet that rows lack them. `storage` as it will be once what is on its way has reached it. */
export function notYetMissed(
  { storages }: Pick<CatalogState, 'storages'>,
  { id, columns, keyAttnums, extends: extended }: Storage,
  attnums: readonly number[],
): readonly number[] {
  // The versions that wait for an extension err, and it goes with them.
  if (extended !== null) return [];
  const now = keyAttnums.length === 0 ? columns : (storages.get(id)?.columns ?? columns);
  return attnums.filter(
    (attnum) =>
      !keyAttnums.includes(attnum) &&
      now.some((column) => column.attnum === attnum && column.filling === undefined && column.lost === undefined),
  );
}

/**
 * The columns of a storage when all its rows have been compared with those of a copy: an extension may still be filling some, the copy lack values, too, and
 * the origin's table (`shape`) have other types.
 */
export function wholeColumns(
  { storages }: Pick<CatalogState, 'storages'>,
  storage: Storage,
  copy: Pick<Storage, 'columns'>,
  shape: TableShape | null,
): Storage['columns'] {
  const extensions = [...storages.values()].filter((other) => other.extends === storage.id);
  const brought = new Set(extensions.flatMap((other) => broughtColumns(other).map(({ attnum }) => attnum)));
  const columns = storage.columns.map((column) => {
    if (column.filling === undefined || brought.has(column.attnum)) return column;
    const { filling: _, ...whole } = column;
    return whole;
  });
  const types = new Map(shape?.columns.map(({ attnum, formattedType }) => [attnum, formattedType]));
  const isLacking = (column: StorageColumn): boolean =>
    column.filling !== undefined ||
    (column.lost !== true && types.has(column.attnum) && types.get(column.attnum) !== column.originType && !isAsText(column));
  const isKeyless = storage.keyAttnums.length === 0;
  const lacking = isKeyless ? [] : copy.columns.filter((column) => isLacking(column) && !storage.keyAttnums.includes(column.attnum));
  return withoutValues(
    { ...storage, columns },
    lacking.map(({ attnum }) => attnum),
  ).columns;
}

/** Versions that were made to show such a column while the word of it was on its way. */
export function shownIncomplete(engine: Pick<EngineContext, 'state'>): BrokenVersion[] {
  const { storages, tables, sources } = engine.state;
  return [...storages.values()].flatMap((storage) => {
    const source = sources.get(storage.sourceId);
    const attnums = storage.columns.flatMap(({ attnum, filling }) => (filling === undefined ? [] : [attnum]));
    if (attnums.length === 0 || storage.state !== 'live' || source === undefined) return [];
    return incompleteVersions(storage, attnums, engine, source).filter(({ relationId }) => {
      const version = tables.get(relationId);
      return version?.storageId === storage.id && version.state === 'ready';
    });
  });
}
