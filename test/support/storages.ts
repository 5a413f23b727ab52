/** Storages as the catalog has them, for tests of what works on them. */
import type { Storage, StorageColumn } from '../../src/catalog/model.ts';

export const testColumn = (attnum: number, type: string, more: Partial<StorageColumn> = {}): StorageColumn => ({
  attnum,
  name: `c${attnum}`,
  type,
  originType: type,
  collation: null,
  ...more,
});

/** A live one of public.t, with a key of its first column. */
export const testStorage = (more: Partial<Storage>): Storage => ({
  id: 5,
  sourceId: 1,
  originOid: 100,
  originSchema: 'public',
  originName: 't',
  columns: [],
  keyAttnums: [1],
  state: 'live',
  supersedes: null,
  extends: null,
  mergedTo: null,
  resyncs: null,
  stale: false,
  sentAs: 'iudt',
  missed: null,
  copySnapshot: null,
  copyLsn: null,
  retryInMs: null,
  ...more,
});
