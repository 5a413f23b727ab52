/**
 * Columns of storages that rows of the stream bring no values of: their publication has them no more, or they are of another type. Pure.
 * Invariant: what was not brought is not shown, also when the column is published, or of its type, again: no version is made of it before it has been copied
 * anew. Storages without key lose such columns (lostColumns); of the others this is written down here.
 */
import type { Storage } from '../catalog/model.ts';
import type { ShapeStep } from './change-batch.ts';
import type { CatalogState } from './context.ts';
import { notYetMissed } from './left-out.ts';
import type { MissedRows } from './missed-rows.ts';
import { absentError } from './relation-errors.ts';
import { notPublished, type OriginShape } from './schema-change.ts';

export interface Unfed {
  readonly steps: readonly ShapeStep[];
  /** Extensions: what they have got of the column is of no use. */
  readonly broken: readonly MissedRows[];
}

/** What it means for a storage that the rows that follow have its columns in these places (-1: they have not). `table`: as of these rows. */
export function unfed(
  state: Pick<CatalogState, 'storages'>,
  storage: Storage,
  places: readonly number[],
  table: OriginShape,
  source: string,
): Unfed {
  const none = { steps: [], broken: [] };
  if (storage.keyAttnums.length === 0 || storage.stale) return none;
  const lacking = storage.columns.filter(
    ({ attnum, elsewhere }, i) => places[i] === -1 && elsewhere !== true && table.columns.some((column) => column.attnum === attnum),
  );
  const storageId = storage.id;
  if (storage.state === 'live' && storage.extends === null) {
    const attnums = notYetMissed(
      state,
      storage,
      lacking.map(({ attnum }) => attnum),
    );
    return attnums.length === 0 ? none : { ...none, steps: [{ kind: 'missed', storageId, attnums }] };
  }
  // Rows from before the column came are in the copy: what they lack is not missed.
  const gone = unpublishedColumns(storage, table);
  const [first] = lacking.filter(({ attnum }) => gone.includes(attnum));
  if (first === undefined) return none;
  if (storage.state === 'live') return { ...none, broken: [{ storageId, error: unpublishedError(storage, first.attnum, table, source) }] };
  return { ...none, steps: [{ kind: 'copy again', storageId }] };
}

/** attnums of the columns that a storage with key has, and the publication no more, and of which that is not written down. */
export function unpublishedColumns({ columns, keyAttnums }: Pick<Storage, 'columns' | 'keyAttnums'>, table: OriginShape): number[] {
  const published = table.publishedColumns ?? null;
  if (published === null || keyAttnums.length === 0) return [];
  return columns.flatMap(({ attnum, filling, elsewhere }) => {
    const isThere = table.columns.some((column) => column.attnum === attnum);
    return isThere && !published.includes(attnum) && filling === undefined && elsewhere !== true ? [attnum] : [];
  });
}

/** What a version says that shows a column which is no longer published. */
export function unpublishedError(
  { columns }: Pick<Storage, 'columns'>,
  attnum: number,
  table: OriginShape,
  source: string,
): MissedRows['error'] {
  const column = columns.find((known) => known.attnum === attnum);
  const reference = `${table.schema}.${table.name}`;
  return absentError({ reference, problem: notPublished(column?.name ?? '', reference), source });
}
