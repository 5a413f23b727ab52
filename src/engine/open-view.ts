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
import { Epoch, requireStatementError } from './epoch.ts';
import { relationGate } from './relation-errors.ts';

/**
 * Opens it, within an epoch that is rolled back unless it could be. 'gone': what it was to replace is not there any more, and it is not wanted;
 * 'busy': somebody reads that in a long transaction, to be tried again. One of several that take their places together waits, filled, for the
 * last of them.
 */
export async function openView({ session, state }: EngineContext, epoch: Epoch, viewId: number): Promise<'opened' | 'gone' | 'busy'> {
  const together = companions(state, viewId);
  if (!(await mayOpen(session, state, viewId))) {
    await session.query('ROLLBACK');
    return 'gone';
  }
  try {
    const waits = together.some((id) => id !== viewId && state.views.get(id)?.state !== 'ready');
    if (waits || state.streams.get(viewId)?.replaces === null || !state.streams.has(viewId)) await epoch.run(readied(state, viewId));
    else await replaceAll(session, state, epoch, together, viewId);
    return 'opened';
  } catch (error) {
    if (requireStatementError(error).code !== '55P03') throw error;
    await session.query('ROLLBACK');
    return 'busy';
  }
}

/** The first of stream tables that could take their places together, and have not: one they waited for went away. Null: there is none. */
export function leftWaiting(state: CatalogState): number | null {
  for (const [id, stream] of state.streams) {
    if (stream.replaces === null || stream.replacesWith === null) continue;
    if (companions(state, id).every((other) => state.views.get(other)?.state === 'ready')) return id;
  }
  return null;
}

/** Those that take their places in one step with a view, which is among them, in an order in which each comes behind what it reads. */
function companions(state: CatalogState, viewId: number): number[] {
  const together = state.streams.get(viewId)?.replacesWith ?? null;
  if (together === null) return [viewId];
  return [...state.views.keys()].filter((id) => state.streams.get(id)?.replacesWith === together);
}

/** Whether the stream table that a view is to replace is still there; held so for the transaction. To be asked before `replaced`. */
async function mayOpen(session: RawConnection, state: CatalogState, viewId: number): Promise<boolean> {
  const replaced = state.streams.get(viewId)?.replaces ?? null;
  if (replaced === null) return true;
  const [found] = await session.query(
    `SELECT FROM millrace.relation WHERE id = ${replaced} AND state <> 'dropped' AND facade IS NOT NULL FOR UPDATE`,
  );
  return found?.rows.length === 1;
}

async function replaceAll(
  session: RawConnection,
  state: CatalogState,
  epoch: Epoch,
  viewIds: readonly number[],
  opened: number,
): Promise<void> {
  for (const id of viewIds) if (id === opened || (await mayOpen(session, state, id))) await epoch.run(inPlace(state, id));
}

const isReady = (viewId: number): string =>
  `UPDATE millrace.relation SET state = 'ready', state_since = now() WHERE id = ${viewId} AND state = 'populating'`;

const readied = (state: CatalogState, viewId: number): string[] => [relationGate(state, viewId, 'ready'), isReady(viewId)];

/**
 * Statements that make a view readable in the place of another: it takes over that one's gate, which its facade reads whoever owns that, and
 * what it was known by; the other is cleared away.
 */
function inPlace(state: CatalogState, viewId: number): string[] {
  const replaced = state.streams.get(viewId)?.replaces ?? null;
  const view = state.views.get(viewId);
  if (view === undefined || replaced === null) throw new Error(`live relation ${viewId} replaces none`);
  const list = visibleColumns(view.plan).map((column) => `${column.expression} AS ${quoteIdentifier(column.name)}`);
  const [, name = ''] = gateView(viewId).split('.');
  return [
    // Whoever reads the old one in a long transaction is not waited for: later.
    "SET LOCAL lock_timeout = '200ms'",
    `DROP VIEW ${gateView(viewId)}`,
    gateSql(replaced, list, `${storageTable(viewId)} s`, 'ready'),
    `ALTER VIEW ${gateView(replaced)} RENAME TO ${name}`,
    'SET LOCAL lock_timeout = 0',
    isReady(viewId),
    `WITH old AS (UPDATE millrace.relation r SET facade = NULL, state = 'dropped', state_since = now()
                    FROM millrace.relation o WHERE r.id = ${replaced} AND o.id = r.id RETURNING o.facade, o.gate)
     SELECT pg_catalog.set_config('millrace.replaced', old.facade || ' ' || old.gate, true) FROM old`,
    `UPDATE millrace.relation SET facade = split_part(current_setting('millrace.replaced'), ' ', 1)::oid, gate = split_part(current_setting('millrace.replaced'), ' ', 2)::oid
      WHERE id = ${viewId}`,
    `UPDATE millrace.stream_table SET replaces = NULL, replaces_with = NULL WHERE relation_id = ${viewId}`,
    `UPDATE millrace.refresh_history SET relation_id = ${viewId} WHERE relation_id = ${replaced}`,
  ];
}

/** Lets those take their places that only waited for one that is gone. */
export async function openWaiting(engine: EngineContext): Promise<boolean> {
  const id = leftWaiting(engine.state);
  if (id === null) return false;
  const epoch = await Epoch.begin(engine);
  if ((await openView(engine, epoch, id)) !== 'opened') return false;
  await epoch.commit(new Map());
  return true;
}
