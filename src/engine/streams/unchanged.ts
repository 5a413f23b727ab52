/**
 * Refreshes that were asked for where nothing has changed, without an epoch at a snapshot.
 * Invariant: answered is only what reads nothing but tables captured from the WAL, has nothing set aside, and has no change among all
 * transactions that committed before the one that asked: the message it put into the WAL has come, and with it everything in front of it. What was
 * done to the tables themselves is looked at.
 */
import type { LiveView } from '../../catalog/model.ts';
import type { ViewPlan } from '../../ivm/plans.ts';
import type { Execution } from '../../replication/session-contract.ts';
import { maskOf } from '../base/change-logs.ts';
import type { BaseRunner } from '../base/runner.ts';
import { type BaseShape, baseProblem, shapesOf } from '../base/shapes.ts';
import type { EngineContext } from '../context.ts';
import { requireStatementError } from '../epoch.ts';
import { fence, leadershipLost } from '../epoch-ends.ts';
import { refreshed } from './bookkeeping.ts';
import type { DueReason } from './due.ts';
import type { StreamMemory } from './memory.ts';
import { nextAfter } from './refresh.ts';

/** How long the message is waited for: it is on its way while the request itself is. */
const patienceMs = 2;

/** Answers those of `due` for which that can be told, and takes them out. True when there was one. */
export async function answerUnchanged(
  engine: EngineContext,
  memory: StreamMemory,
  runner: BaseRunner,
  due: Map<number, DueReason>,
): Promise<boolean> {
  const { session, state, metrics } = engine;
  const candidates = [...due].flatMap(([id, reason]) => {
    const view = state.views.get(id);
    const stream = state.streams.get(id);
    const request = memory.request(id);
    if (reason !== 'manual' || view === undefined || stream === undefined || request === undefined) return [];
    // A request that came before the engine did has no number here.
    if (request.number < stream.refreshRequested || !isSteady(engine, view) || isChanged(engine, runner, view)) return [];
    return [{ id, reason, view, stream, request }];
  });
  if (candidates.length === 0) return false;
  const [shapes, ...committed] = await Promise.all([
    // Beside the wait for the messages: what was done to the tables since the catalog was read.
    session.executeAll([shapesOf([...new Set(candidates.flatMap(({ view }) => view.inputs))])]),
    ...candidates.map(({ request }) => runner.askedAt(request.xid, patienceMs)),
  ]);
  const shapeOf = new Map((JSON.parse(shapes[0]?.rows[0]?.[0] ?? '[]') as BaseShape[]).map((shape) => [shape.id, shape]));
  const answered: { readonly id: number; readonly done: number; readonly nextAt: number | null }[] = [];
  const statements: Execution[] = [];
  candidates.forEach(({ id, reason, view, stream, request }, i) => {
    const committedAt = committed[i] ?? null;
    if (committedAt === null || isChanged(engine, runner, view) || !isAsKnown(engine, view, shapeOf)) return;
    const startedAt = Date.now();
    const nextAt = nextAfter(view, stream, startedAt, 0, false);
    const outcome = { action: 'NO_DATA', reason, startedAt, inserted: 0, deleted: 0, deltaRows: 0, failure: null } as const;
    statements.push(...refreshed(stream, outcome, committedAt, request.number, nextAt, false));
    answered.push({ id, done: request.number, nextAt });
  });
  if (answered.length === 0) return false;
  // One batch of the extended protocol is one transaction.
  try {
    await session.executeAll([fence(engine.token), ...statements]);
  } catch (error) {
    const reason = requireStatementError(error);
    if (reason.code === leadershipLost) throw reason;
    // It was dropped a moment ago, perhaps: an epoch will tell.
    engine.log.info({ code: reason.code, reason: reason.message }, 'refreshes without changes are left to an epoch');
    return false;
  }
  for (const { id, done, nextAt } of answered) {
    due.delete(id);
    memory.set(id, { done, nextAt });
    const metric = 'millrace_refreshes_total{action="NO_DATA"}';
    metrics[metric] = (metrics[metric] ?? 0) + 1;
  }
  return true;
}

/** Whether changes of its tables are all that can concern it, and all of them are in the stream. */
function isSteady({ state }: EngineContext, view: LiveView<ViewPlan>): boolean {
  const stream = state.streams.get(view.id);
  if (stream?.refreshMode !== 'DIFFERENTIAL' || stream.status !== 'ACTIVE' || stream.consecutiveErrors > 0) return false;
  if (stream.deltaLost !== null || stream.reinitialize || view.plan.clock || view.plan.expiry != null) return false;
  return view.inputs.every((input) => {
    const base = state.bases.get(input);
    // Partitions come and go without a word in the stream.
    return base !== undefined && base.state === 'captured' && base.method === 'wal' && base.parts === null;
  });
}

const isChanged = ({ clean }: EngineContext, runner: BaseRunner, view: LiveView<ViewPlan>): boolean =>
  !clean.has(view.id) || view.inputs.some((input) => runner.waitingFor(input, maskOf(view, input)));

/** Whether its tables are there, with the columns that it uses. */
function isAsKnown({ state }: EngineContext, view: LiveView<ViewPlan>, shapes: ReadonlyMap<number, BaseShape>): boolean {
  return view.inputs.every((input) => {
    const base = state.bases.get(input);
    const shape = shapes.get(input) ?? null;
    return base !== undefined && shape?.parts === null && baseProblem(base, shape, view, state.streams) === null;
  });
}
