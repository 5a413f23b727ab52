/**
 * Storages whose rows are no longer the origin's: it does not tell of all that becomes of a table. Pure.
 * Invariant: this is written down with the storage, before the rows that come after it can be read. Every version of it says so, also one that errs already or is made
 * meanwhile, until the storage has been resynchronised or copied again; and no version is made from it.
 */
import type { RelationError } from '../catalog/model.ts';
import { quoteLiteral } from '../sql/quote.ts';
import type { CatalogState } from './context.ts';
import { failRelation } from './relation-errors.ts';
import { type BrokenVersion, versionsOf } from './schema-change.ts';

/** Rows of a storage have come or gone; `error`: what its versions say of that. */
export interface MissedRows {
  readonly storageId: number;
  readonly error: RelationError;
}

/** What can no longer be kept. */
export type Broken = BrokenVersion | MissedRows;

type Known = Pick<CatalogState, 'storages' | 'tables'>;

/** The versions that end with it, those that err already among them. */
export function versionsEnded(state: Known, broken: Broken): BrokenVersion[] {
  if ('relationId' in broken) return [broken];
  const { storageId: id, error } = broken;
  return versionsOf(state, { id }).map((version) => ({ relationId: version.id, error }));
}

/** Statements that end the versions, and write it down with the storage where that has not been done. */
export function brokenSql(state: CatalogState, broken: Broken): string[] {
  return [
    ...notedSql(state, broken),
    ...versionsEnded(state, broken).flatMap(({ relationId, error }) => failRelation(state, relationId, error)),
  ];
}

function notedSql({ storages }: Known, broken: Broken): string[] {
  if ('relationId' in broken || storages.get(broken.storageId)?.missed !== null) return [];
  const { storageId, error } = broken;
  return [`UPDATE millrace.storage SET missed = ${quoteLiteral(JSON.stringify(error))}::jsonb WHERE id = ${storageId} AND missed IS NULL`];
}

/** Versions that were made while it was found out. */
export function madeMeanwhile({ storages, tables }: Known): BrokenVersion[] {
  return [...tables.values()].flatMap(({ id, state, storageId }) => {
    const storage = storages.get(storageId);
    const error = storage?.missed ?? storages.get(storage?.extends ?? 0)?.missed ?? null;
    return error === null || state === 'error' ? [] : [{ relationId: id, error }];
  });
}
