/**
 * Which storages need no delta in an epoch of many rows: those that only views read which take changes directly. Pure.
 * Invariant: whoever reads the deltas of a storage finds all of an epoch there, or is a view that has none there to find.
 */
import { storageTable } from '../catalog/model.ts';
import { type ChangingEvent, type DirectUpkeep, directSetting } from '../ivm/capture.ts';
import { directSql, isDirect } from '../ivm/direct.ts';
import type { Execution } from '../replication/session-contract.ts';
import { type CatalogState, storageOf } from './context.ts';
import { remembering } from './remembering.ts';
import { upkeepOf } from './view-upkeep.ts';

/** With more the delta is cheaper: it is written once for all of them. */
const mostViews = 3;

/** Statements around one that writes many rows to a storage. */
export interface Direct {
  readonly before: Execution;
  readonly after: Execution;
  readonly viewIds: readonly number[];
}

const known = remembering<CatalogState, number, Direct | null>();

/** Null: the changes of the storage are captured, or nobody wants them. */
export const directUpkeep = (state: CatalogState, storageId: number): Direct | null =>
  known(state, storageId, () => make(state, storageId));

function make(state: CatalogState, storageId: number): Direct | null {
  if (!state.captured.has(storageId)) return null;
  if ([...state.outboxes].some((relationId) => storageOf(state, relationId) === storageId)) return null;
  const storage = (input: number): string => storageTable(storageOf(state, input));
  const readers = [...state.views.values()].filter(
    (view) => view.inputs.some((input) => storageOf(state, input) === storageId) && upkeepOf(state, view).wantsDeltas,
  );
  if (readers.length === 0 || readers.length > mostViews) return null;
  if (!readers.every((view) => upkeepOf(state, view).atOnce && isDirect(view.plan))) return null;
  const all = (event: ChangingEvent): string[] => readers.flatMap((view) => directSql(view.plan, view.id, event, storage));
  const upkeep: DirectUpkeep = {
    INSERT: all('INSERT'),
    UPDATE: all('UPDATE'),
    DELETE: all('DELETE'),
    tables: readers.map((view) => storageTable(view.id)),
  };
  const said = (value: string): Execution => ({
    name: 'direct',
    sql: 'SELECT set_config($1, $2, true)',
    params: [directSetting(storageId), value],
  });
  return { before: said(JSON.stringify(upkeep)), after: said(''), viewIds: readers.map((view) => view.id) };
}
