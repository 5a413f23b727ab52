/**
 * The statements that maintain a view, as prepared statements.
 * Invariant: equal names stand for equal text as long as the catalog stays as it was read; a session prepares anew where they differ.
 */
import { deltaTable, pendingDeltaTable, storageTable } from '../catalog/model.ts';
import { maintainSql } from '../ivm/view-plan.ts';
import type { Execution } from '../replication/session-contract.ts';
import { type CatalogState, storageOf } from './context.ts';
import { remembering } from './remembering.ts';

/** Writing the text takes longer than many a small epoch, and it is the same until the catalog changes. */
const written = remembering<CatalogState, string, readonly Execution[]>();

/** Brings a view up to date with the deltas of these inputs. */
export function maintenance(state: CatalogState, viewId: number, inputs: Iterable<number>): readonly Execution[] {
  const view = state.views.get(viewId);
  if (view === undefined) return [];
  const changed = [...inputs].sort((a, b) => a - b);
  const name = `v${viewId}_${changed.join('_')}`;
  return written(state, name, () =>
    maintainSql(
      view.plan,
      viewId,
      new Set(changed),
      (input) => deltaTable(storageOf(state, input)),
      (input) => storageTable(storageOf(state, input)),
    ).map((sql, index) => ({ name: `${name}_${index}`, sql })),
  );
}

/** Sets the deltas of these storages aside: a view that is being populated, or is not due yet, takes them in one piece. */
export function settingAside(state: CatalogState, viewId: number, inputs: Iterable<number>): Execution[] {
  return [...inputs].map((input) => ({
    name: `w${viewId}_${input}`,
    sql: `INSERT INTO ${pendingDeltaTable(viewId, input)} SELECT * FROM ${deltaTable(storageOf(state, input))}`,
  }));
}
