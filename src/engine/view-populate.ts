/**
 * Filling a new live view, beside epochs.
 * Invariant: the view's storage is filled from one snapshot taken between two epochs; deltas of the epochs after it are set aside and
 * applied as one batch before the view is readable. The algebra allows any batch, so the result is the query over the state then.
 */
import { deltaTable, pendingDeltaTable, storageTable } from '../catalog/model.ts';
import { captureDdl } from '../ivm/capture.ts';
import { maintainSql, populateSql, storageTables } from '../ivm/view-plan.ts';
import { PostgresError } from '../replication/postgres-error.ts';
import { connectRaw } from '../replication/raw-connection.ts';
import { pinnedSettings } from '../replication/settings.ts';
import { type EngineContext, storageOf } from './context.ts';
import { Epoch } from './epoch.ts';
import { relationGate } from './relation-errors.ts';
import { freePlanner } from './session-settings.ts';

/** Populates a pending view whose inputs are ready. Errors of its query become the view's error; others are thrown. */
export async function populateView(engine: EngineContext, viewId: number, reload: () => Promise<void>): Promise<void> {
  const filler = await connectRaw(engine.config.upstream, {
    database: engine.config.database,
    applicationName: 'millrace populate',
    settings: { ...pinnedSettings, statement_timeout: '0' },
  });
  try {
    const started = await engine.exclusively(async () => {
      const view = engine.state.views.get(viewId);
      if (view === undefined || view.state !== 'pending') return false;
      await prepare(engine, viewId, view.inputs, storageTables(view.plan, viewId));
      await filler.query('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1');
      await reload();
      return true;
    });
    if (!started) return;
    const view = engine.state.views.get(viewId);
    if (view === undefined) return;
    try {
      for (const sql of populateSql(view.plan, viewId, (input) => storageTable(storageOf(engine.state, input)))) await filler.query(sql);
      await filler.query(`ANALYZE ${storageTable(viewId)}`);
      await filler.query('COMMIT');
    } catch (error) {
      if (!(error instanceof PostgresError)) throw error;
      await engine.exclusively(() => populationFailed(engine, viewId, error));
      return;
    }
    await engine.exclusively(() => finish(engine, viewId, reload));
  } finally {
    await filler.close().catch(() => undefined);
  }
}

/** Capture on every input, tables for deltas set aside, an empty storage. */
async function prepare(engine: EngineContext, viewId: number, inputs: readonly number[], storages: readonly string[]): Promise<void> {
  const { session, state } = engine;
  const captures = new Set(inputs.map((input) => storageOf(state, input)).filter((storageId) => !state.captured.has(storageId)));
  const statements = [
    'BEGIN',
    ...[...captures].flatMap((storageId) => captureDdl(storageId)),
    ...inputs.flatMap((input) => [
      `DROP TABLE IF EXISTS ${pendingDeltaTable(viewId, input)}`,
      `CREATE TABLE ${pendingDeltaTable(viewId, input)} (LIKE ${deltaTable(storageOf(state, input))}) WITH (autovacuum_enabled = off)`,
    ]),
    `TRUNCATE ${storages.join(', ')}`,
    `UPDATE millrace.relation SET state = 'populating', state_since = now() WHERE id = ${viewId} AND state = 'pending'`,
    'COMMIT',
  ];
  await Promise.all(statements.map((sql) => session.query(sql)));
}

/** Applies what was set aside and opens the gate. */
async function finish(engine: EngineContext, viewId: number, reload: () => Promise<void>): Promise<void> {
  const { session, state } = engine;
  const view = state.views.get(viewId);
  if (view === undefined || view.state !== 'populating') return;
  const epoch = await Epoch.begin(engine);
  const changed = new Set<number>();
  for (const input of view.inputs) {
    const [found] = await session.query(`SELECT EXISTS (SELECT FROM ${pendingDeltaTable(viewId, input)})`);
    if (found?.rows[0]?.[0] === 't') changed.add(input);
  }
  if (changed.size > 0) {
    try {
      await session.query(freePlanner);
      await epoch.run(
        maintainSql(
          view.plan,
          viewId,
          changed,
          (input) => pendingDeltaTable(viewId, input),
          (input) => storageTable(storageOf(state, input)),
        ),
      );
    } catch (error) {
      if (!(error instanceof PostgresError)) throw error;
      await session.query('ROLLBACK');
      await populationFailed(engine, viewId, error);
      return;
    }
  }
  await epoch.run([
    relationGate(state, viewId, 'ready'),
    ...view.inputs.map((input) => `DROP TABLE ${pendingDeltaTable(viewId, input)}`),
    `UPDATE millrace.relation SET state = 'ready', state_since = now() WHERE id = ${viewId} AND state = 'populating'`,
  ]);
  await epoch.commit(new Map());
  await reload();
}

async function populationFailed(engine: EngineContext, viewId: number, error: PostgresError): Promise<void> {
  const epoch = await Epoch.begin(engine);
  await epoch.fail(viewId, {
    code: error.code,
    message: error.message,
    ...(error.fields.detail === undefined ? {} : { detail: error.fields.detail }),
    ...(error.fields.hint === undefined ? {} : { hint: error.fields.hint }),
  });
  await epoch.commit(new Map());
}
