/** What it means that a publication no longer has a table. Pure. Invariant: the way back is said. */
import type { Storage } from '../catalog/model.ts';
import { quoteIdentifier } from '../sql/quote.ts';
import type { MissedRows } from './missed-rows.ts';
import type { SourceRow } from './source-row.ts';

export function unpublished(storage: Storage, source: Pick<SourceRow, 'name' | 'publication'>): MissedRows {
  const reference = `${quoteIdentifier(storage.originSchema)}.${quoteIdentifier(storage.originName)}`;
  return {
    storageId: storage.id,
    error: {
      code: '42704',
      message: `source table ${storage.originSchema}.${storage.originName} is no longer in publication "${source.publication}"`,
      detail: 'Changes made since it was taken out are not known here.',
      hint: `On the origin: ALTER PUBLICATION ${quoteIdentifier(source.publication)} ADD TABLE ${reference}; then here: ALTER SOURCE ${source.name} RESYNC;`,
      resync: true,
    },
  };
}
