/**
 * A view that has been filled becomes readable.
 * Invariant: all of it within the epoch that fills it, or nothing; where it replaces another, readers see the old rows until then, the new ones after.
 */
import { gateView, storageTable } from '../catalog/model.ts';
import { gateSql } from '../catalog/storage-ddl.ts';
import { visibleColumns } from '../ivm/view-plan.ts';
import type { RawConnection } from '../replication/session-contract.ts';
import { quoteIdentifier } from '../sql/quote.ts';
import type { CatalogState, EngineContext } from './context.ts';
import { type Epoch, requireStatementError } from './epoch.ts';
import { relationGate } from './relation-errors.ts';

/**
 * Opens it, within an epoch that is rolled back unless it could be. 'gone': what it was to replace is not there any more, and it is not wanted;
 * 'busy': somebody reads that in a long transaction, to be tried again.
 */
export async function openView({ session, state }: EngineContext, epoch: Epoch, viewId: number): Promise<'opened' | 'gone' | 'busy'> {
  if (!(await mayOpen(session, state, viewId))) {
    await session.query('ROLLBACK');
    return 'gone';
  }
  try {
    await epoch.run(opened(state, viewId));
    return 'opened';
  } catch (error) {
    if (requireStatementError(error).code !== '55P03') throw error;
    await session.query('ROLLBACK');
    return 'busy';
  }
}

/** Whether the stream table that a view is to replace is still there; held so for the transaction. To be asked before `opened`. */
async function mayOpen(session: RawConnection, state: CatalogState, viewId: number): Promise<boolean> {
  const replaced = state.streams.get(viewId)?.replaces ?? null;
  if (replaced === null) return true;
  const [found] = await session.query(
    `SELECT FROM millrace.relation WHERE id = ${replaced} AND state <> 'dropped' AND facade IS NOT NULL FOR UPDATE`,
  );
  return found?.rows.length === 1;
}

/**
 * Statements that make a view readable. One that replaces another takes over its gate, which its facade reads whoever owns that, and what it
 * was known by; the other is cleared away.
 */
function opened(state: CatalogState, viewId: number): string[] {
  const replaced = state.streams.get(viewId)?.replaces ?? null;
  const ready = `UPDATE millrace.relation SET state = 'ready', state_since = now() WHERE id = ${viewId} AND state = 'populating'`;
  if (replaced === null) return [relationGate(state, viewId, 'ready'), ready];
  const view = state.views.get(viewId);
  if (view === undefined) throw new Error(`no live relation ${viewId}`);
  const list = visibleColumns(view.plan).map((column) => `${column.expression} AS ${quoteIdentifier(column.name)}`);
  const [, name = ''] = gateView(viewId).split('.');
  return [
    // Whoever reads the old one in a long transaction is not waited for: later.
    "SET LOCAL lock_timeout = '200ms'",
    `DROP VIEW ${gateView(viewId)}`,
    gateSql(replaced, list, `${storageTable(viewId)} s`, 'ready'),
    `ALTER VIEW ${gateView(replaced)} RENAME TO ${name}`,
    'SET LOCAL lock_timeout = 0',
    ready,
    `WITH old AS (UPDATE millrace.relation r SET facade = NULL, state = 'dropped', state_since = now()
                    FROM millrace.relation o WHERE r.id = ${replaced} AND o.id = r.id RETURNING o.facade, o.gate)
     SELECT pg_catalog.set_config('millrace.replaced', old.facade || ' ' || old.gate, true) FROM old`,
    `UPDATE millrace.relation SET facade = split_part(current_setting('millrace.replaced'), ' ', 1)::oid, gate = split_part(current_setting('millrace.replaced'), ' ', 2)::oid
      WHERE id = ${viewId}`,
    `UPDATE millrace.stream_table SET replaces = NULL WHERE relation_id = ${viewId}`,
    `UPDATE millrace.refresh_history SET relation_id = ${viewId} WHERE relation_id = ${replaced}`,
  ];
}
