/**
 * Clears away what was dropped, and what nobody needs any more.
 * Invariant: a tidy catalog is never waited for: what somebody holds a lock on is cleared away later. To be called exclusively.
 */
import { definitionView, deltaTable, differenceTable, gateView, spoolTable, stagingTable, storageTable } from '../catalog/model.ts';
import { dropCaptureDdl } from '../ivm/capture.ts';
import { baseError } from './base/shapes.ts';
import { briefTransaction } from './brief-transaction.ts';
import type { ReadCatalog } from './catalog-reader.ts';
import type { EngineContext } from './context.ts';
import type { Copies } from './copies.ts';
import { dropAsideDdl } from './leftovers.ts';
import type { BrokenVersion } from './schema-change.ts';
import type { SourceManager } from './source-manager.ts';
import { suspendNow } from './streams/recovery.ts';

/** Relations that were dropped. True when some were cleared away. */
export async function clearRelations(engine: EngineContext, catalog: ReadCatalog): Promise<boolean> {
  let cleared = false;
  if (catalog.strayGrants) await briefTransaction(engine, ['SELECT millrace.follow_owners()'], 'grants of gates');
  for (const relation of catalog.gone) {
    const statements = [
      // Triggers first: a write meanwhile would find no storage.
      ...(relation.kind === 'view' ? [`SELECT millrace.immediate_remove(${relation.id})`] : []),
      `DROP VIEW IF EXISTS ${definitionView(relation.id)}`,
      `DROP VIEW IF EXISTS ${gateView(relation.id)}`,
      ...(relation.kind === 'view' ? [`DROP TABLE IF EXISTS ${storageTable(relation.id)} CASCADE`, ...dropCaptureDdl(relation.id)] : []),
      ...dropAsideDdl(relation.id),
      `DELETE FROM millrace.live_view_input WHERE relation_id = ${relation.id}`,
      `DELETE FROM millrace.relation WHERE id = ${relation.id} AND NOT EXISTS (SELECT FROM millrace.live_view_input i WHERE i.input_id = ${relation.id})`,
    ];
    cleared = (await briefTransaction(engine, statements, `relation ${relation.id}`)) || cleared;
  }
  return cleared;
}

/** Stream tables whose base table's capture is gone. True when some were found. */
export async function suspendUncaptured(engine: EngineContext, catalog: ReadCatalog, reload: () => Promise<void>): Promise<boolean> {
  let suspended = false;
  for (const base of catalog.bases.values()) {
    const { error } = base;
    if (base.state !== 'failed' || error === null) continue;
    for (const view of catalog.views.values()) {
      if (!view.inputs.includes(base.id) || view.state === 'error' || catalog.streams.get(view.id)?.refreshMode === 'FULL') continue;
      await suspendNow(engine, reload, view.id, error);
      suspended = true;
    }
  }
  return suspended;
}

/** Views whose definition is gone; behind all that may tell why. True when some were found. */
export async function endUndefined(
  engine: EngineContext,
  catalog: ReadCatalog,
  reload: () => Promise<void>,
  fail: (broken: readonly BrokenVersion[]) => Promise<void>,
): Promise<boolean> {
  let cleared = false;
  for (const viewId of catalog.undefinedViews) {
    const stream = catalog.streams.get(viewId);
    if (stream !== undefined) {
      // A column or table that it names is known by now to be the cause, if it is.
      if (engine.state.views.get(viewId)?.state === 'error') continue;
      await suspendNow(engine, reload, viewId, baseError('something it reads was dropped with CASCADE', `${stream.schema}.${stream.name}`));
      cleared = true;
      continue;
    }
    await fail([
      {
        relationId: viewId,
        error: {
          code: '55000',
          message: 'materialized view has lost its definition: something it reads was dropped with CASCADE',
          hint: 'DROP MATERIALIZED VIEW {relation}; and create it again.',
        },
      },
    ]);
  }
  return cleared;
}

/** Storages that no version shows, and sources that were dropped. True when some were cleared away. */
export async function clearStorages(engine: EngineContext, catalog: ReadCatalog, copies: Copies, sources: SourceManager): Promise<boolean> {
  const { log } = engine;
  let cleared = false;
  const used = new Set([...catalog.tables.values()].map((table) => table.storageId));
  const waiting = new Set(
    [...catalog.storages.values()].flatMap((storage) => [
      ...(storage.state === 'live' ? [] : [storage.supersedes]),
      ...(used.has(storage.id) ? [storage.extends] : []),
    ]),
  );
  const removed = new Set<number>();
  for (const storage of catalog.storages.values()) {
    if (
      used.has(storage.id) ||
      (storage.resyncs !== null && storage.state !== 'dropped' && used.has(storage.resyncs)) ||
      waiting.has(storage.id) ||
      copies.has(storage.id)
    )
      continue;
    const done = await briefTransaction(
      engine,
      [
        // A CREATE TABLE under way may just be choosing this storage: its foreign key lock makes this wait, and then fail.
        `DELETE FROM millrace.storage WHERE id = ${storage.id}`,
        `DROP TABLE IF EXISTS ${storageTable(storage.id)} CASCADE`,
        `DROP TABLE IF EXISTS ${stagingTable(storage.id)}, ${spoolTable(storage.id)}, ${differenceTable(storage.id)}`,
        `DROP TABLE IF EXISTS ${deltaTable(storage.id)}`,
        ...dropCaptureDdl(storage.id),
      ],
      `storage ${storage.id}`,
    );
    if (done) removed.add(storage.id);
    cleared ||= done;
  }
  for (const source of catalog.goneSources) {
    try {
      await sources.dropSlotOf(source);
    } catch (error) {
      log.warn(
        { source: source.id, slot: source.slot, err: error },
        'the slot of a dropped source could not be dropped; drop it on the origin',
      );
    }
    if ([...catalog.storages.values()].some((storage) => storage.sourceId === source.id && !removed.has(storage.id))) continue;
    await briefTransaction(
      engine,
      [`DROP VIEW IF EXISTS ${gateView(source.id)}`, `DELETE FROM millrace.source WHERE id = ${source.id}`],
      `source ${source.id}`,
    );
  }
  return cleared;
}
