/**
 * What a change of an origin table means for the storages and versions made from it. Pure.
 * Invariant: columns are followed by attnum: a rename changes nothing, a drop or another type ends the versions that show the column, and only those.
 */
import type { RelationError, Storage, TableVersion } from '../catalog/model.ts';
import type { OriginColumn, TableShape } from '../replication/origin-tables.ts';
import { quoteIdentifier } from '../sql/quote.ts';
import { absentError, alteredError, rewrittenError } from './relation-errors.ts';
import { isAsText, mayFollow } from './type-widening.ts';

/** An origin table as it is now, as far as needed here. */
export interface OriginShape {
  readonly schema: string;
  readonly name: string;
  readonly columns: readonly OriginShapeColumn[];
  /** attnums; null: all. */
  readonly publishedColumns?: readonly number[] | null;
}

type OriginShapeColumn = { readonly attnum: number; readonly name: string; readonly formattedType: string } & Partial<
  Pick<OriginColumn, 'typeOid' | 'typmod'>
>;

export interface BrokenVersion {
  readonly relationId: number;
  readonly error: RelationError;
}

/** The versions that show rows of a storage, or are going to: those of storages that extend it. */
export function versionsOf(
  { tables, storages }: { readonly tables: ReadonlyMap<number, TableVersion>; readonly storages: ReadonlyMap<number, Storage> },
  { id }: Pick<Storage, 'id'>,
): TableVersion[] {
  return [...tables.values()].filter(({ storageId }) => storageId === id || storages.get(storageId)?.extends === id);
}

/**
 * Of these versions of a storage (versionsOf) those that can no longer be kept, with the reason. `origin` null: the table is gone; `last`: what the stream has told of it. A wider type
 * is followed in the order of the stream, and refused there if it must be.
 */
export function brokenVersions(
  storage: Storage,
  versions: Iterable<TableVersion>,
  origin: OriginShape | null,
  source: string,
  last?: TableShape,
): BrokenVersion[] {
  const oldReference = `${quoteIdentifier(storage.originSchema)}.${quoteIdentifier(storage.originName)}`;
  const reference = origin === null ? oldReference : `${quoteIdentifier(origin.schema)}.${quoteIdentifier(origin.name)}`;
  const shownReference = `${origin?.schema ?? storage.originSchema}.${origin?.name ?? storage.originName}`;
  const now = new Map(origin?.columns.map((column) => [column.attnum, column]));
  const broken: BrokenVersion[] = [];
  for (const version of versions) {
    const needed = [...version.columns.map((column) => column.attnum), ...storage.keyAttnums];
    const left = version.columns.find(({ was }) => was !== undefined);
    const absent = origin === null ? `table ${shownReference} was dropped` : unpublishedColumn(storage, needed, origin, shownReference);
    const problem =
      origin === null
        ? null
        : left !== undefined
          ? `column "${left.name}" of ${shownReference} is no longer of type ${left.was}`
          : firstProblem(storage, needed, now, shownReference, last);
    if (problem !== null) broken.push({ relationId: version.id, error: alteredError({ reference, problem, source }) });
    else if (absent !== null) broken.push({ relationId: version.id, error: absentError({ reference, problem: absent, source }) });
    else {
      // It has its type, and not the values that there were.
      const lost = storage.columns.find((column) => column.lost === true && needed.includes(column.attnum));
      if (lost !== undefined)
        broken.push({
          relationId: version.id,
          error: rewrittenError({ reference, source, name: lost.name, type: null, isMendable: true }),
        });
    }
  }
  return broken;
}

/** What is wrong, in words, as are the next. */
export const notPublished = (column: string, reference: string): string => `column "${column}" of ${reference} is no longer published`;

export const otherType = (
  { name, originType }: { readonly name: string; readonly originType: string },
  now: string,
  reference: string,
): string => `column "${name}" of ${reference} changed from type ${originType} to ${now}`;

function firstProblem(
  storage: Storage,
  attnums: readonly number[],
  now: ReadonlyMap<number, OriginShapeColumn>,
  reference: string,
  last?: TableShape,
): string | null {
  for (const attnum of attnums) {
    const column = storage.columns.find((known) => known.attnum === attnum);
    if (column === undefined) continue;
    const current = now.get(attnum);
    if (current === undefined) return `column "${column.name}" of ${reference} was dropped`;
    // A column taken as text shows whatever type it has. A type may be called otherwise by now.
    const known = last?.columns.find((told) => told.attnum === attnum);
    const isSame = known !== undefined && known.typeOid === current.typeOid && known.typmod === current.typmod;
    const isKept = current.formattedType === column.originType || (isSame && known.formattedType === column.originType);
    if (!isKept && !isAsText(column) && !mayFollow(column, current.formattedType)) {
      return otherType(column, current.formattedType, reference);
    }
  }
  return null;
}

function unpublishedColumn(
  storage: Storage,
  attnums: readonly number[],
  { publishedColumns }: OriginShape,
  reference: string,
): string | null {
  const column = storage.columns.find(({ attnum }) => attnums.includes(attnum) && publishedColumns?.includes(attnum) === false);
  return column === undefined ? null : notPublished(column.name, reference);
}

/** attnums of columns that rows without key can no longer be told apart by: the origin has them no more, or with another type. `origin` null: it is gone. */
export function lostColumns(storage: Storage, origin: OriginShape | null): number[] {
  if (storage.keyAttnums.length > 0 || origin === null) return [];
  const published = origin.columns.filter(({ attnum }) => origin.publishedColumns?.includes(attnum) !== false);
  const now = new Map(published.map((column) => [column.attnum, column.formattedType]));
  return storage.columns
    .filter(
      (column) => column.lost !== true && (!now.has(column.attnum) || (!isAsText(column) && now.get(column.attnum) !== column.originType)),
    )
    .map(({ attnum }) => attnum);
}

/** For each column of a storage, its place among the columns of a Relation message; -1 when the message has none or another type. */
export function columnPlaces(
  storage: Storage,
  message: readonly { readonly name: string }[],
  attnumOf: ReadonlyMap<string, number>,
  unusable: ReadonlySet<number>,
): number[] {
  const places = new Map<number, number>();
  message.forEach((column, place) => {
    const attnum = attnumOf.get(column.name);
    if (attnum !== undefined) places.set(attnum, place);
  });
  return storage.columns.map((column) =>
    column.lost === true || column.elsewhere === true || unusable.has(column.attnum) ? -1 : (places.get(column.attnum) ?? -1),
  );
}
