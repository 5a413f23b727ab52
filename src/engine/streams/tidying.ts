/**
 * Changes set aside that nobody has to take any more, or that are more than are kept.
 * Invariant: what some view has still to take is removed only together with the note that it was lost, so that the view is rebuilt by difference.
 */
import { changeLogTable, deltaTable, type LiveView, pendingDeltaTable } from '../../catalog/model.ts';
import type { ViewPlan } from '../../ivm/plans.ts';
import { PostgresError } from '../../replication/postgres-error.ts';
import { quoteLiteral } from '../../sql/quote.ts';
import type { EngineContext } from '../context.ts';
import { emptyTable } from '../delta-tables.ts';
import { Epoch } from '../epoch.ts';
import { upkeepOf } from '../view-upkeep.ts';

/** Bytes of changes set aside, beyond which it is cheaper to compute a view again. */
const mostBytes = 1024 ** 3;
/** Rows from which a log is emptied with its file. */
const worthTruncate = 5000;
/** Dead rows from which a log is vacuumed. */
const worthVacuum = 10_000;

/** Views that have still to take something from a log. */
function takers({ state, changes }: EngineContext, baseId: number): LiveView<ViewPlan>[] {
  return [...state.views.values()].filter(
    (view) => view.inputs.includes(baseId) && upkeepOf(state, view).aside && changes.pending(view, baseId, undefined).rows > 0,
  );
}

/** Epoch up to which everybody has taken what is in a log; null: nobody waits for anything in it. */
function passed(engine: EngineContext, baseId: number): bigint | null {
  let least: bigint | null = null;
  for (const view of takers(engine, baseId)) {
    const position = engine.changes.position(view);
    if (least === null || position < least) least = position;
  }
  return least;
}

/**
 * With nothing else to do: empties delta tables, and removes from the logs what everybody has taken where that is worth an epoch: all of a log,
 * or half of it. True when something was done.
 */
export async function trimLogs(engine: EngineContext): Promise<boolean> {
  const { changes } = engine;
  if (changes.known.length + changes.filled.size === 0) return false;
  const removals = changes.known.flatMap((baseId) => {
    const last = changes.last(baseId);
    if (last === null || engine.state.bases.get(baseId)?.state !== 'captured') return [];
    const rows = changes.rows(baseId);
    const until = passed(engine, baseId) ?? last;
    const gone = changes.upTo(baseId, until);
    if (2 * gone < rows || gone === 0) return [];
    return [{ baseId, until, truncates: gone === rows && rows + changes.dead(baseId) > worthTruncate }];
  });
  const filled = [...changes.filled].filter((baseId) => engine.state.bases.get(baseId)?.state === 'captured');
  if (removals.length + filled.length === 0) return false;
  const statements = [
    ...filled.map((baseId) => emptyTable(deltaTable(baseId))),
    ...removals.map(({ baseId, until, truncates }) => {
      const log = changeLogTable(baseId);
      return truncates ? emptyTable(log) : `DELETE FROM ${log} WHERE e <= ${until}`;
    }),
  ];
  try {
    const epoch = await Epoch.begin(engine);
    await epoch.run(statements);
    await epoch.commit(new Map());
  } catch (error) {
    // The capture of a table has just ended.
    if (!(error instanceof PostgresError) || error.code !== '42P01') throw error;
    await engine.session.query('ROLLBACK');
    engine.wake();
    return false;
  }
  for (const { baseId, until, truncates } of removals) changes.removed(baseId, until, truncates);
  for (const baseId of filled) {
    changes.filled.delete(baseId);
    engine.deltas.emptied(deltaTable(baseId), '');
  }
  return true;
}

/** Where deleted rows are many their place is made free for others. */
export async function vacuumLogs(engine: EngineContext): Promise<void> {
  const { changes, state, admin } = engine;
  for (const baseId of changes.known) {
    if (changes.dead(baseId) < worthVacuum || state.bases.get(baseId)?.state !== 'captured') continue;
    const log = changeLogTable(baseId);
    changes.vacuumed(baseId);
    // It may be dropped at any time.
    await admin.query(`VACUUM ${log}`).catch((err: unknown) => engine.log.debug({ log, err }, 'a log of changes cannot be vacuumed now'));
  }
}

/** Where too much is set aside, those who are furthest behind do not get it any more. True when some view was let go. */
export async function letGoOfMost(engine: EngineContext): Promise<boolean> {
  const { state, admin, changes } = engine;
  const sizes = await admin.query<{ base: number | null; view: number | null; bytes: string }>(
    `SELECT substring(c.relname FROM '^w(\\d+)$')::integer AS base, substring(c.relname FROM '^w(\\d+)_')::integer AS view,
            sum(pg_catalog.pg_relation_size(c.oid)) AS bytes
       FROM pg_catalog.pg_class c WHERE c.relnamespace = 'millrace_data'::regnamespace AND c.relkind = 'r' AND c.relname ~ '^w\\d+(_\\d+)?$'
      GROUP BY 1, 2 HAVING sum(pg_catalog.pg_relation_size(c.oid)) > $1`,
    [mostBytes],
  );
  let done = false;
  for (const { base, view, bytes } of sizes.rows) {
    const size = Number(bytes);
    if (view !== null) {
      const one = state.views.get(view);
      done = (one !== undefined && (await letGo(engine, [one], size))) || done;
    } else if (base !== null && changes.known.includes(base)) {
      const rows = changes.rows(base);
      if ((size * rows) / Math.max(1, rows + changes.dead(base)) <= mostBytes) continue;
      const least = passed(engine, base);
      const behind = takers(engine, base).filter((one) => changes.position(one) === least);
      done = (await letGo(engine, behind, size)) || done;
    }
  }
  return done;
}

async function letGo(engine: EngineContext, views: readonly LiveView<ViewPlan>[], bytes: number): Promise<boolean> {
  const { state, log } = engine;
  const known = views.filter((view) => view.state === 'ready' && state.streams.has(view.id));
  if (known.length === 0) return false;
  const reason = `${Math.round(bytes / 1024)} kB of changes were set aside, more than are kept`;
  const epoch = await Epoch.begin(engine);
  for (const view of known) {
    const name = state.streams.get(view.id)?.name;
    log.warn({ view: view.id, name, bytes }, 'changes set aside for a stream table are let go; it will be rebuilt');
    const stored = view.inputs.filter((input) => !state.bases.has(input));
    await epoch.run([
      `UPDATE millrace.stream_table SET delta_lost = coalesce(delta_lost, ${quoteLiteral(reason)}) WHERE relation_id = ${view.id}`,
      ...stored.map((input) => emptyTable(pendingDeltaTable(view.id, input))),
    ]);
  }
  await epoch.commit(new Map());
  return true;
}
