/** What it means that a publication no longer has a table. Pure. Invariant: every version on the storage is named, and the way back is said. */
import type { Storage } from '../catalog/model.ts';
import { quoteIdentifier } from '../sql/quote.ts';
import type { EngineContext } from './context.ts';
import { type BrokenVersion, versionsOf } from './schema-change.ts';
import type { SourceRow } from './source-row.ts';

export function unpublished(storage: Storage, engine: EngineContext, source: SourceRow): BrokenVersion[] {
  const reference = `${quoteIdentifier(storage.originSchema)}.${quoteIdentifier(storage.originName)}`;
  return versionsOf(engine.state, storage).map(({ id }) => ({
    relationId: id,
    error: {
      code: '42704',
      message: `source table ${storage.originSchema}.${storage.originName} is no longer in publication "${source.publication}"`,
      detail: 'Changes made since it was taken out are not known here.',
      hint: `On the origin: ALTER PUBLICATION ${quoteIdentifier(source.publication)} ADD TABLE ${reference}; then here: ALTER SOURCE ${source.name} RESYNC;`,
      resync: true,
    },
  }));
}
