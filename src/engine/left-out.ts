/**
 * What it means that a row came without some of its values. Pure. Invariant: no version shows NULL where the origin has a value: those that would say
 * so instead, and how it is mended.
 * An update that brings a row into the row filter of a publication is sent as an insert, of the new row as it stands in the WAL: TOASTed values that
 * it has not changed are not there, unless the old row is with REPLICA IDENTITY FULL (PostgreSQL, "Row Filters"; pgoutput_row_filter). A subscription
 * of Postgres stores NULL for them.
 */
import type { Storage } from '../catalog/model.ts';
import { isLeftOut } from '../replication/copy-rows.ts';
import type { TupleView } from '../replication/pgoutput.ts';
import { quoteIdentifier } from '../sql/quote.ts';
import type { Target } from './change-batch.ts';
import type { EngineContext } from './context.ts';
import { missedError } from './relation-errors.ts';
import { type BrokenVersion, versionsOf } from './schema-change.ts';
import type { SourceRow } from './source-row.ts';

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
