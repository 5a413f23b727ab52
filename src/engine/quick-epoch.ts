/**
 * An epoch in one write: everything from BEGIN to COMMIT is sent at once, in the hope that nothing fails.
 * Invariant: the same as of an Epoch. When a statement fails the server has rolled everything back, and the caller does the epoch again,
 * step by step, with savepoints that tell what failed.
 */
import { deltaTable, pendingDeltaTable, storageTable } from '../catalog/model.ts';
import { maintainSql } from '../ivm/view-plan.ts';
import { formatLsn, type Lsn } from '../replication/lsn.ts';
import type { PostgresError } from '../replication/postgres-error.ts';
import { fewRows, sendStep } from './apply-steps.ts';
import type { Batch } from './change-batch.ts';
import { type EngineContext, storageOf } from './context.ts';
import { requireStatementError } from './epoch.ts';
import { viewPhase } from './session-settings.ts';

/** True when it committed; false when a statement failed and nothing was changed. Other errors are thrown. */
export async function quickEpoch(engine: EngineContext, batches: readonly Batch[], positions: ReadonlyMap<number, Lsn>): Promise<boolean> {
  const { session, state } = engine;
  const rows = batches.reduce((sum, batch) => sum + batch.rows, 0);
  const few = rows <= fewRows;
  const sent: Promise<unknown>[] = [];
  const changed = new Set<number>();
  const say = (name: string, sql: string): void => {
    sent.push(few ? session.execute(name, sql) : session.query(sql));
  };

  session.cork();
  sent.push(session.query('BEGIN'));
  sent.push(session.execute('fence', `SELECT millrace.begin_epoch(${engine.token})`));
  for (const batch of batches) {
    for (const step of batch.steps) {
      const storage = state.storages.get(step.storageId);
      if (storage === undefined || storage.state === 'failed') continue;
      sendStep(session, storage, step, sent);
      if (step.kind !== 'spool' && state.captured.has(storage.id)) changed.add(storage.id);
    }
  }
  if (changed.size > 0) {
    sent.push(session.query(viewPhase));
    for (const view of state.views.values()) {
      const inputs = view.inputs.filter((input) => changed.has(storageOf(state, input)));
      if (inputs.length === 0) continue;
      if (view.state === 'populating') {
        for (const input of inputs) {
          say(
            `w${view.id}_${input}`,
            `INSERT INTO ${pendingDeltaTable(view.id, input)} SELECT * FROM ${deltaTable(storageOf(state, input))}`,
          );
        }
      } else if (view.state === 'ready') {
        const statements = maintainSql(
          view.plan,
          view.id,
          new Set(inputs),
          (input) => deltaTable(storageOf(state, input)),
          (input) => storageTable(storageOf(state, input)),
        );
        statements.forEach((sql, index) => {
          say(`v${view.id}_${inputs.join('_')}_${index}`, sql);
        });
        // Whether it changed is not known yet: views over it are told to look.
        if (state.captured.has(view.id)) changed.add(view.id);
      }
    }
    for (const storageId of changed)
      say(`d${storageId}`, few ? `DELETE FROM ${deltaTable(storageId)}` : `TRUNCATE ${deltaTable(storageId)}`);
  }
  for (const [sourceId, lsn] of positions) {
    sent.push(
      session.execute(
        'progress',
        'UPDATE millrace.source_progress SET lsn = $2::pg_lsn, committed_at = clock_timestamp() WHERE source_id = $1::bigint',
        [String(sourceId), formatLsn(lsn)],
      ),
    );
  }
  sent.push(session.query('COMMIT'));
  session.uncork();

  const outcomes = await Promise.allSettled(sent);
  const failure = outcomes.find((outcome) => outcome.status === 'rejected');
  if (failure !== undefined) {
    const reason = requireStatementError(failure.reason);
    if (isFence(reason)) throw reason;
    return false;
  }
  const { metrics } = engine;
  metrics['millrace_epochs_total'] = (metrics['millrace_epochs_total'] ?? 0) + 1;
  metrics['millrace_rows_applied_total'] = (metrics['millrace_rows_applied_total'] ?? 0) + rows;
  return true;
}

/** Raised by millrace.begin_epoch: another process leads. */
const isFence = (error: PostgresError): boolean => error.code === '55P04';
