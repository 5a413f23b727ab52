/**
 * Live views whose inputs have got other types: compiled anew, emptied, and filled again as a new one is.
 * Invariant: a view is never read with rows of its former plan; while it is filled again it says that it is not ready.
 */
import { definitionView, gateView, type LiveView, storageTable } from '../catalog/model.ts';
import { gateQuery } from '../catalog/storage-ddl.ts';
import { MillraceError } from '../errors.ts';
import { dropCaptureDdl } from '../ivm/capture.ts';
import type { ViewPlan } from '../ivm/plans.ts';
import { storageDdl, visibleColumns } from '../ivm/view-plan.ts';
import { PostgresError } from '../replication/postgres-error.ts';
import { quoteIdentifier, quoteLiteral } from '../sql/quote.ts';
import { usedAttnums } from './base/shapes.ts';
import { type EngineContext, storageOf } from './context.ts';
import type { Epoch } from './epoch.ts';
import { dropAsideDdl } from './leftovers.ts';
import { isPassing } from './passing.ts';
import { compileView } from './recompile.ts';
import { relationGate } from './relation-errors.ts';
import { suspend } from './streams/suspend.ts';
import { putUp, takeDown, viewsAbove } from './views-above.ts';

type WithinEpoch = Pick<Epoch, 'fail' | 'run' | 'leaveOut'>;

/**
 * Remakes the live views that use these columns, by the ids of the relations that have them, and all live views over those.
 * The definitions of the views are as Postgres understands them with the new types already.
 */
export async function remakeViews(
  engine: EngineContext,
  epoch: WithinEpoch,
  relations: readonly number[],
  attnums: readonly number[],
): Promise<void> {
  const remade = new Set<number>();
  const ended = new Set<number>();
  for (const view of engine.state.views.values()) {
    if (view.inputs.some((input) => ended.has(input))) {
      // It has been failed together with what it reads.
      ended.add(view.id);
      continue;
    }
    const uses = view.inputs.some(
      (input) => remade.has(input) || (relations.includes(input) && attnums.some((attnum) => usedAttnums(view.plan, input).has(attnum))),
    );
    if (!uses) continue;
    if (engine.state.streams.has(view.id)) {
      await suspendStream(engine, epoch, view.id);
      ended.add(view.id);
    } else if (await remake(engine, epoch, view)) remade.add(view.id);
    else ended.add(view.id);
  }
}

async function suspendStream(engine: EngineContext, epoch: WithinEpoch, viewId: number): Promise<void> {
  const stream = engine.state.streams.get(viewId);
  const name = `${stream?.schema}.${stream?.name}`;
  await suspend(engine, epoch, viewId, {
    code: '42804',
    message: 'stream table is suspended: a column that it uses has changed at the origin',
    detail: 'A type has become wider, or a value of an enum has got another name; what it holds was made before.',
    hint: `SELECT pgtrickle.reinitialize_stream_table('${name}'); plans and fills it again for the column as it is now.`,
  });
}

/** False: it cannot be, and is in error. */
async function remake(engine: EngineContext, epoch: WithinEpoch, view: LiveView<ViewPlan>): Promise<boolean> {
  const { session } = engine;
  await session.query('SAVEPOINT remake');
  try {
    await remade(engine, epoch, view);
    await session.query('RELEASE SAVEPOINT remake');
    return true;
  } catch (error) {
    const known = error instanceof MillraceError || (error instanceof PostgresError && !isPassing(error));
    if (!known) throw error;
    await session.query('ROLLBACK TO SAVEPOINT remake; RELEASE SAVEPOINT remake');
    engine.log.error({ view: view.id, err: error }, 'a live view cannot follow the type of a column');
    await epoch.fail(view.id, {
      code: '42804',
      message: `materialized view cannot follow a column that has got a wider type: ${error.message}`,
      detail: 'Its own columns have the types that it was made with.',
      hint: 'DROP MATERIALIZED VIEW {relation}; and create it again, once nothing else stands in the way.',
    });
    return false;
  }
}

async function remade(engine: EngineContext, epoch: WithinEpoch, view: LiveView<ViewPlan>): Promise<void> {
  const { session, state } = engine;
  const { id } = view;
  const plan = await compileView(session, id);
  epoch.leaveOut(id);
  // One that is in error because of what it reads is filled when that is mended.
  const stays = view.state === 'error' ? 'error' : 'pending';
  const pending = `UPDATE millrace.relation SET state = 'pending', state_since = now() WHERE id = ${id} AND state NOT IN ('error', 'dropped')`;
  const storage = (input: number): string => storageTable(storageOf(state, input));
  if (await isSame(engine, view, plan, storage)) {
    await epoch.run([relationGate(state, id, stays), pending]);
    return;
  }
  const [gate] = await session.query(`SELECT '${gateView(id)}'::regclass::oid`);
  const { views, obstacles } = await viewsAbove(session, [Number(gate?.rows[0]?.[0])]);
  const [obstacle] = obstacles;
  if (obstacle !== undefined)
    throw new MillraceError('feature_not_supported', { severity: 'ERROR', code: '0A000', message: obstacle.what });
  const list = visibleColumns(plan).map((column) => `${column.expression} AS ${quoteIdentifier(column.name)}`);
  await epoch.run([
    ...takeDown(views),
    ...dropAsideDdl(id),
    ...dropCaptureDdl(id),
    `DROP TABLE ${storageTable(id)}`,
    ...storageDdl(plan, id, storage),
    ...views.flatMap((kept) => putUp(kept, kept.name === gateView(id) ? gateQuery(id, list, `${storageTable(id)} s`, stays) : kept.query)),
    `UPDATE millrace.live_view SET plan = ${quoteLiteral(JSON.stringify(plan))}::jsonb WHERE relation_id = ${id}`,
    pending,
  ]);
  await requireSameTypes(engine, id);
}

/** The compiler's promise, checked as when a view is made. */
async function requireSameTypes({ session }: EngineContext, id: number): Promise<void> {
  const [different] = await session.query(
    `SELECT q.attname
       FROM pg_catalog.pg_attribute q LEFT JOIN pg_catalog.pg_attribute g ON g.attrelid = '${gateView(id)}'::regclass AND g.attnum = q.attnum
      WHERE q.attrelid = '${definitionView(id)}'::regclass AND q.attnum > 0
        AND (q.atttypid, q.atttypmod, q.attcollation) IS DISTINCT FROM (g.atttypid, g.atttypmod, g.attcollation)`,
  );
  const name = different?.rows[0]?.[0];
  if (name === undefined) return;
  const message = `column "${name}" would have another type than its query`;
  throw new MillraceError('internal_error', { severity: 'ERROR', code: 'XX000', message });
}

/** Whether the plan is what it was, and its tables would be: then they need only be filled again. */
async function isSame(
  { session }: EngineContext,
  { id }: LiveView<ViewPlan>,
  plan: ViewPlan,
  storage: (input: number) => string,
): Promise<boolean> {
  const [stored] = await session.query(
    `SELECT plan = ${quoteLiteral(JSON.stringify(plan))}::jsonb FROM millrace.live_view WHERE relation_id = ${id}`,
  );
  if (stored?.rows[0]?.[0] !== 't') return false;
  const [next] = await session.query("SAVEPOINT compare; SELECT nextval('millrace.object_id')").then((results) => results.slice(1));
  const other = Number(next?.rows[0]?.[0]);
  for (const sql of storageDdl(plan, other, storage)) await session.query(sql);
  const columns = async (of: number): Promise<string> => {
    const [found] = await session.query(
      `SELECT jsonb_agg(jsonb_build_array(substr(c.relname, ${String(of).length + 2}), a.attname, a.atttypid, a.atttypmod, a.attcollation) ORDER BY c.relname, a.attnum)
         FROM pg_catalog.pg_class c JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        WHERE c.relnamespace = 'millrace_data'::regnamespace AND c.relkind = 'r' AND c.relname ~ '^s${of}(_\\d+)?$'`,
    );
    return found?.rows[0]?.[0] ?? '';
  };
  const same = (await columns(other)) === (await columns(id));
  await session.query('ROLLBACK TO SAVEPOINT compare; RELEASE SAVEPOINT compare');
  return same;
}
