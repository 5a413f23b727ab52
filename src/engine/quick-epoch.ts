/**
 * An epoch in one write: everything from its begin to its commit is sent at once, in the hope that nothing fails.
 * Invariant: the same as of an Epoch. When a statement fails the server has rolled everything back, and the caller does the epoch again,
 * step by step, with savepoints that tell what failed.
 * Few rows go as one pipeline of prepared statements under one Sync, which the server runs as one transaction without being told BEGIN
 * or COMMIT (protocol, "Pipelining": an error skips the rest up to Sync and rolls back all of it): one answer to wait for, one wake-up on either side.
 * Plain loops, as every one-row transaction comes through here: V8 guesses what arrays map and filter meet, and for each wrong guess it compiled this anew,
 * 25 ms of a processor.
 */
import { deltaTable } from '../catalog/model.ts';
import type { Lsn } from '../replication/lsn.ts';
import type { Execution, StatementResult } from '../replication/session-contract.ts';
import { isShapeStep, type PlainStep, sendStep, stepExecutions } from './apply-steps.ts';
import type { Batch } from './change-batch.ts';
import { extensionsOf, takesMending } from './column-merge.ts';
import { type EngineContext, storageOf } from './context.ts';
import { directUpkeep } from './direct-upkeep.ts';
import { requireStatementError } from './epoch.ts';
import { countEpoch, fence, leadershipLost, progress } from './epoch-ends.ts';
import { reach, reachSoon } from './fault-points.ts';
import { recordVersions } from './origin-history.ts';
import { outboxExecutions } from './outbox.ts';
import { fewRows } from './row-arrays.ts';
import { freePlanner } from './session-settings.ts';
import { leaveOutFormer, type Written, writtenBy } from './upsert-outbox.ts';
import { maintenance, settingAside } from './view-statements.ts';
import { upkeepOf } from './view-upkeep.ts';

/** True when it committed; false when a statement failed and nothing was changed. Other errors are thrown. */
export async function quickEpoch(engine: EngineContext, batches: readonly Batch[], positions: ReadonlyMap<number, Lsn>): Promise<boolean> {
  const { state } = engine;
  const extensions = extensionsOf(state);
  const steps: PlainStep[] = [];
  const changed = new Set<number>();
  let rows = 0;
  for (const batch of batches) {
    rows += batch.rows;
    for (const step of batch.steps) {
      if (isShapeStep(step) || takesMending(extensions, step)) return false;
      if ((state.storages.get(step.storageId)?.state ?? 'failed') === 'failed') continue;
      steps.push(step);
      if (step.kind !== 'spool' && state.captured.has(step.storageId)) changed.add(step.storageId);
    }
  }
  const ends: Execution[] = [];
  // Adds to `changed` the views that may change.
  const views = viewExecutions(engine, changed);
  const written = writtenBy(steps);
  const outboxes = outboxExecutions(state, changed, written);
  if (changed.size > 0) append(ends, engine.clock.followed(state));
  engine.clock.changed(state, changed);
  append(ends, views);
  append(ends, outboxes);
  for (const { versions } of batches) if (versions.length > 0) append(ends, recordVersions(versions));
  append(ends, progress(positions));
  const tables: string[] = [];
  const empties: Execution[] = [];
  for (const id of changed) {
    const table = deltaTable(id);
    tables.push(table);
    empties.push(engine.deltas.empty(table, rows <= fewRows));
  }

  let emptied: readonly StatementResult[];
  reach('small.epoch-begun');
  try {
    reachSoon('small.epoch-sent');
    emptied = await send(engine, steps, ends, empties, rows, written);
  } catch (error) {
    for (const table of tables) engine.deltas.unknown(table);
    const reason = requireStatementError(error);
    if (reason.code === leadershipLost) throw reason;
    engine.log.info({ code: reason.code, reason: reason.message }, 'an epoch is done again step by step');
    return false;
  }
  for (const [index, table] of tables.entries()) engine.deltas.emptied(table, emptied[index]?.tag ?? '');
  reach('small.epoch-committed');
  countEpoch(engine, rows);
  if (outboxes.length > 0) engine.outboxed();
  return true;
}

/** Answers the results of `empties`. */
async function send(
  engine: EngineContext,
  steps: readonly PlainStep[],
  ends: readonly Execution[],
  empties: readonly Execution[],
  rows: number,
  written: ReadonlyMap<number, Written>,
): Promise<readonly StatementResult[]> {
  const { session, state } = engine;
  const few = rows <= fewRows ? fewExecutions(engine, steps) : null;
  if (few !== null) {
    const all = [fence(engine.token)];
    append(all, few);
    append(all, ends);
    append(all, empties);
    const results = await session.executeAll(all);
    return empties.length === 0 ? [] : results.slice(-empties.length);
  }
  const sent: Promise<unknown>[] = [];
  session.cork();
  sent.push(session.query('BEGIN'), session.executeAll([fence(engine.token)]));
  for (const sql of leaveOutFormer(state, written)) sent.push(session.query(sql));
  for (const step of steps) {
    const storage = state.storages.get(step.storageId);
    if (storage !== undefined) sendStep(session, storage, step, sent, directUpkeep(state, storage.id));
  }
  // Many rows deserve a plan of their own, not one made for a small delta.
  for (const { name, sql, params } of ends) {
    sent.push(rows <= fewRows || params !== undefined ? session.execute(name, sql, params) : session.query(sql));
  }
  const emptied = empties.map(({ name, sql }) => session.execute(name, sql));
  sent.push(...emptied, session.query('COMMIT'));
  session.uncork();
  const failure = (await Promise.allSettled(sent)).find((outcome) => outcome.status === 'rejected');
  if (failure !== undefined) throw failure.reason;
  return await Promise.all(emptied);
}

function fewExecutions(engine: EngineContext, steps: readonly PlainStep[]): Execution[] | null {
  const all: Execution[] = [];
  for (const step of steps) {
    const storage = engine.state.storages.get(step.storageId);
    const executions = storage === undefined ? [] : stepExecutions(storage, step);
    if (executions === null) return null;
    append(all, executions);
  }
  return all;
}

function append(to: Execution[], more: readonly Execution[]): void {
  for (const one of more) to.push(one);
}

function viewExecutions(engine: EngineContext, changed: Set<number>): Execution[] {
  const { state } = engine;
  const executions: Execution[] = [];
  if (changed.size === 0) return executions;
  for (const view of state.views.values()) {
    const inputs: number[] = [];
    for (const input of view.inputs) if (changed.has(storageOf(state, input))) inputs.push(input);
    if (inputs.length === 0) continue;
    const upkeep = upkeepOf(state, view);
    if (upkeep.aside) {
      engine.clean.delete(view.id);
      append(executions, settingAside(state, view.id, inputs));
    } else if (upkeep.atOnce) {
      append(executions, maintenance(state, view.id, inputs));
      // Whether it changes is not known yet: views over it are told to look.
      if (state.captured.has(view.id)) changed.add(view.id);
    }
  }
  if (executions.length > 0) executions.unshift({ name: 'free', sql: freePlanner });
  return executions;
}
