/**
 * Stream tables that cannot be kept for a while, and those that can be again.
 * Invariant: what is said of a stream table follows from the catalog alone. To be called exclusively.
 */
import type { BaseTable, LiveView, RelationError } from '../../catalog/model.ts';
import type { ViewPlan } from '../../ivm/plans.ts';
import { baseError, baseProblem, sameColumns } from '../base/shapes.ts';
import { briefTransaction } from '../brief-transaction.ts';
import type { ReadCatalog } from '../catalog-reader.ts';
import type { EngineContext } from '../context.ts';
import { Epoch } from '../epoch.ts';
import { rebuildImmediate, wantsRebuild } from '../immediate/fill.ts';
import { heldView, relationGate } from '../relation-errors.ts';
import { suspend } from './suspend.ts';

type Reload = () => Promise<void>;

/** In an epoch of its own. */
export async function suspendNow(engine: EngineContext, reload: Reload, viewId: number, error: RelationError): Promise<void> {
  const epoch = await Epoch.begin(engine);
  await suspend(engine, epoch, viewId, error);
  await epoch.commit(new Map());
  await reload();
}

/**
 * Stream tables in error that were told to go on, or that depended on one that has recovered: populated anew.
 * Where the cause is still there they are suspended for it again.
 */
export async function resumeStreams(engine: EngineContext, catalog: ReadCatalog, reload: Reload): Promise<boolean> {
  let resumed = false;
  for (const view of catalog.views.values()) {
    const stream = catalog.streams.get(view.id);
    if (view.state !== 'error' || stream === undefined) continue;
    const asked = stream.status === 'ERROR' && stream.refreshRequested > stream.refreshDone;
    if (!asked && stream.status !== 'ACTIVE' && stream.status !== 'INITIALIZING') continue;
    const inputsReady = view.inputs.every((input) => {
      // A user's table is what it is; one that holds a stream table's rows is as good as that.
      const held = heldView(catalog, input);
      if (held === null && catalog.bases.has(input)) return true;
      const read = held ?? input;
      return (catalog.tables.get(read) ?? catalog.views.get(read))?.state === 'ready';
    });
    if (!inputsReady) continue;
    resumed = true;
    const bases = view.inputs.flatMap((input) => catalog.bases.get(input) ?? []);
    const problem = bases.map((base) => problemNow(catalog, base, view)).find((found) => found !== null);
    if (problem !== undefined) {
      await suspendNow(engine, reload, view.id, baseError(problem, `${stream.schema}.${stream.name}`));
      continue;
    }
    const epoch = await Epoch.begin(engine);
    await epoch.run([
      relationGate(engine.state, view.id, 'pending'),
      `UPDATE millrace.relation SET state = 'pending', error = NULL, state_since = now() WHERE id = ${view.id} AND state = 'error'`,
      `UPDATE millrace.stream_table SET status = 'INITIALIZING' WHERE relation_id = ${view.id} AND status = 'ERROR'`,
      `UPDATE millrace.base_table SET state = 'new', error = NULL
        WHERE state = 'failed' AND relation_id IN (SELECT i.input_id FROM millrace.live_view_input i WHERE i.relation_id = ${view.id})`,
    ]);
    await epoch.commit(new Map());
  }
  return resumed;
}

/** Deferred views whose base tables lost what they use. A change that harms nobody is noted by the next epoch that reads the table. */
export async function followBases(engine: EngineContext, catalog: ReadCatalog, reload: Reload): Promise<boolean> {
  let suspended = false;
  for (const base of catalog.bases.values()) {
    if (base.name !== null && sameColumns(base.columns, base.columnsNow)) continue;
    for (const view of catalog.views.values()) {
      if (!view.inputs.includes(base.id) || view.state === 'error') continue;
      const problem = problemNow(catalog, base, view);
      if (problem === null) continue;
      const stream = catalog.streams.get(view.id);
      engine.log.error({ view: view.id, name: stream?.name, problem }, 'a stream table is suspended');
      await suspendNow(engine, reload, view.id, baseError(problem, `${stream?.schema}.${stream?.name}`));
      suspended = true;
    }
  }
  return suspended;
}

/** Stream tables that triggers keep: those to be computed anew, and triggers of those that cannot be kept. */
export async function keepImmediate(engine: EngineContext, catalog: ReadCatalog, reload: () => Promise<void>): Promise<void> {
  if (immediateViews(catalog)) await suspendParts(engine, catalog, reload);
  // Where the event trigger was off, or somebody dropped it.
  if ([...catalog.bases.values()].some((base) => base.parts !== null || base.partsNow !== null) && immediateViews(catalog))
    await briefTransaction(engine, ['SELECT millrace.immediate_partitions(true)'], 'partitions under stream tables');
  for (const view of catalog.views.values()) {
    const stream = catalog.streams.get(view.id);
    if (stream?.refreshMode !== 'IMMEDIATE') continue;
    const reason = wantsRebuild(view, stream, Date.now());
    if (reason !== null) await rebuildImmediate(engine, view.id, reason);
    if (view.state === 'error' && stream.triggered) {
      await briefTransaction(engine, [`SELECT millrace.immediate_remove(${view.id})`], `triggers of stream table ${view.id}`);
    }
  }
}

/** Stream tables over tables that have become parts of others: writes to those fire no trigger of theirs. */
async function suspendParts(engine: EngineContext, catalog: ReadCatalog, reload: () => Promise<void>): Promise<void> {
  const found = await engine.admin.query<{ id: number; part: string; parent: string }>(
    `SELECT i.relation_id::integer AS id, x.inhrelid::regclass::text AS part, x.inhparent::regclass::text AS parent
       FROM millrace.immediate i JOIN pg_inherits x ON x.inhrelid = ANY (i.oids)`,
  );
  for (const { id, part, parent } of found.rows) {
    const stream = catalog.streams.get(id);
    if (stream === undefined || catalog.views.get(id)?.state === 'error') continue;
    const problem = `${part} has become part of ${parent}, and writes to that fire no statement trigger of it`;
    engine.log.error({ view: id, name: stream.name, problem }, 'a stream table is suspended');
    await suspendNow(engine, reload, id, baseError(problem, `${stream.schema}.${stream.name}`));
  }
}

const immediateViews = ({ streams }: ReadCatalog): boolean => [...streams.values()].some(({ refreshMode }) => refreshMode === 'IMMEDIATE');

/** Why a view over this table, as it is now, cannot be kept; null: it can. */
function problemNow({ streams }: ReadCatalog, base: BaseTable, view: LiveView<ViewPlan>): string | null {
  return baseProblem(base, { id: base.id, name: base.name, columns: base.columnsNow, parts: null }, view, streams);
}
