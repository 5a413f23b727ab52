/**
 * Waiting for the engine after a commit, so that a script runs top to bottom.
 * Invariant: the wait runs as short statements over the caller's own session: Ctrl-C cancels it as it cancels any statement,
 * no snapshot is held from one look to the next, and any engine, in any process, may do the work.
 */
import { MillraceError, millraceError } from '../errors.ts';
import type { CallerSession } from './caller-session.ts';
import { firstRow } from './context.ts';

interface Waited {
  readonly id: string;
  readonly state: string;
  readonly error: { readonly code?: string; readonly message?: string; readonly detail?: string; readonly hint?: string } | null;
  readonly name: string | null;
  readonly rowsCopied: number | null;
  readonly rowsEstimate: number | null;
}

/** Whether this session waits: off only after SET millrace.wait = off. */
export async function waitsForEngine(session: CallerSession): Promise<boolean> {
  const row = await firstRow(session, "SELECT pg_catalog.current_setting('millrace.wait', true)");
  return isWaiting(row?.[0]);
}

/** Up to this a wait is ended promptly; behind it, a tenth of a second is neither here nor there. */
const shortWaitMs = 10_000;

/** What a value of millrace.wait means. */
export const isWaiting = (setting: string | null | undefined): boolean =>
  !['off', 'false', 'no', '0'].includes((setting ?? '').toLowerCase());

/**
 * After commit: returns when every object is readable. `onFailure` undoes what was created when the engine reports an error for one of them,
 * and the error is raised. Progress reaches the client as NOTICEs, the first after two seconds.
 */
export async function awaitReady(
  session: CallerSession,
  ids: readonly string[],
  onFailure: (failed: { readonly id: string; readonly name: string }) => Promise<void>,
): Promise<void> {
  const started = Date.now();
  let announced = started;
  let pause = 0.002;
  for (;;) {
    const looked = await look(session, ids, pause);
    pause = Math.min(pause * 1.5, Date.now() - started < shortWaitMs ? 0.02 : 0.1);
    const failed = looked.find((object) => object.state === 'error');
    if (failed !== undefined) {
      // After the commit every query is a transaction of its own; what undoes the CREATE has to be one.
      await session.query('BEGIN', [], { quiet: true });
      await onFailure({ id: failed.id, name: failed.name ?? '' });
      await session.query('COMMIT', [], { quiet: true });
      throw new MillraceError('population_failed', {
        severity: 'ERROR',
        code: failed.error?.code ?? '55000',
        message: failed.error?.message ?? `${failed.name} could not be made ready`,
        detail: [failed.error?.detail, `${failed.name ?? 'It'} could not be filled and was taken away again.`].filter(Boolean).join(' '),
        ...(failed.error?.hint === undefined ? {} : { hint: failed.error.hint }),
      });
    }
    // An object that is gone was rolled back to a savepoint or dropped by someone else: nothing to wait for.
    const waiting = looked.filter((object) => object.state !== 'ready');
    if (waiting.length === 0) return;
    if (Date.now() - announced >= 2000) {
      announced = Date.now();
      for (const object of waiting) session.notice({ severity: 'NOTICE', code: '00000', message: progressText(object) });
    }
  }
}

/** After commit: returns when a source has been resynchronised. What keeps it from beginning (an origin that cannot be reached) is told, and waited for. */
export async function awaitResync(session: CallerSession, sourceId: string, name: string): Promise<void> {
  let announced = Date.now();
  for (let pause = 0.01; ; pause = Math.min(pause * 1.5, 0.2)) {
    const result = await session.query(
      'SELECT s.is_pending, s.error FROM pg_catalog.pg_sleep($1) AS slept, LATERAL millrace.resync_state($2::bigint) AS s',
      [String(pause), sourceId],
      { quiet: true },
    );
    const [isPending, error] = result.rows[0] ?? [];
    // One that is gone was dropped by someone else.
    if (isPending !== 't') return;
    if (Date.now() - announced < 2000) continue;
    announced = Date.now();
    session.notice({
      severity: 'NOTICE',
      code: '00000',
      message: `${name}: resynchronising${error === null || error === undefined ? '' : `: ${error}`}`,
    });
  }
}

function progressText(object: Waited): string {
  if (object.rowsCopied === null) return `${object.name}: ${object.state}`;
  const of = object.rowsEstimate !== null && object.rowsEstimate > 0 ? ` of about ${object.rowsEstimate}` : '';
  return `${object.name}: ${object.rowsCopied}${of} rows copied`;
}

async function look(session: CallerSession, ids: readonly string[], pause: number): Promise<Waited[]> {
  const result = await session.query(
    `SELECT s.id, s.state, s.error, s.name, s.rows_copied, s.rows_estimate
       FROM pg_catalog.pg_sleep($1) AS slept, LATERAL millrace.state_of($2::bigint[]) AS s`,
    [String(pause), `{${ids.join(',')}}`],
    { quiet: true },
  );
  return result.rows.map(([id, state, error, name, copied, estimate]) => ({
    id: id ?? '',
    state: state ?? '',
    error: error === null || error === undefined ? null : JSON.parse(error),
    name: name ?? null,
    rowsCopied: copied === null || copied === undefined ? null : Number(copied),
    rowsEstimate: estimate === null || estimate === undefined ? null : Number(estimate),
  }));
}

interface SinkState {
  readonly version: number;
  /** When it has cut over to that version: milliseconds of the epoch, in decimal. */
  readonly cutTs: string | null;
  readonly status: string;
  readonly error: string | null;
  readonly hint: string | null;
  readonly relationState: string | null;
}

/** Null: the sink is gone. */
async function lookAtSink(session: CallerSession, id: string, pause: number): Promise<SinkState | null> {
  const result = await session.query(
    `SELECT s.version, s.cut_ts, s.status, s.error, s.hint, s.relation_state
       FROM pg_catalog.pg_sleep($1) AS slept, LATERAL millrace.sink_state($2::bigint) AS s`,
    [String(pause), id],
    { quiet: true },
  );
  const [version, cutTs, status, error, hint, relationState] = result.rows[0] ?? [];
  if (version === null || version === undefined) return null;
  return {
    version: Number(version),
    cutTs: cutTs ?? null,
    status: status ?? '',
    error: error ?? null,
    hint: hint ?? null,
    relationState: relationState ?? null,
  };
}

interface AwaitedSink {
  readonly id: string;
  readonly name: string;
  readonly relation: string;
}

/** After CREATE SINK has committed: returns when the sink runs. What keeps it from running is raised, when `onFailure` has undone the CREATE. */
export async function awaitSink(session: CallerSession, sink: AwaitedSink, onFailure: () => Promise<void>): Promise<void> {
  let announced = Date.now();
  for (let pause = 0.002; ; pause = Math.min(pause * 1.5, 0.1)) {
    const state = await lookAtSink(session, sink.id, pause);
    if (state === null || (state.cutTs !== null && state.status === 'running')) return;
    const failed = state.status === 'stalled' || state.relationState === 'error';
    if (failed) {
      await session.query('BEGIN', [], { quiet: true });
      await onFailure();
      await session.query('COMMIT', [], { quiet: true });
      throw millraceError('sink_start_failed', {
        name: sink.name,
        cause: `${(state.error ?? `${sink.relation} is in error`).replace(/\.$/, '')}. The sink was taken away again.`,
        hint: state.hint ?? '',
      });
    }
    if (Date.now() - announced < 2000) continue;
    announced = Date.now();
    const what = state.cutTs === null && state.relationState !== 'ready' ? `waits for ${sink.relation}` : 'starting';
    session.notice({ severity: 'NOTICE', code: '00000', message: `sink "${sink.name}": ${what}` });
  }
}

/**
 * After ALTER SINK .. SET FROM has committed: returns when the sink reads the relation, and says since when. After `deadline` (of `Date.now`) it says
 * that this is still to come.
 */
export async function awaitCutover(
  session: CallerSession,
  sink: AwaitedSink & { readonly version: number },
  deadline: number,
): Promise<void> {
  for (let pause = 0.002; ; pause = Math.min(pause * 1.5, 0.1)) {
    const state = await lookAtSink(session, sink.id, pause);
    // Gone, or given yet another relation, by someone else.
    if (state === null || state.version > sink.version) return;
    if (state.cutTs !== null && state.version === sink.version) {
      session.notice({
        severity: 'NOTICE',
        code: '00000',
        message: `sink "${sink.name}" reads ${sink.relation} since timestamp ${state.cutTs}`,
        detail: `That is ${new Date(Number(state.cutTs)).toISOString()}: changes of the former relation up to it, of ${sink.relation} after it.`,
      });
      return;
    }
    // Given up by someone else.
    if (state.version < sink.version) return;
    const isStuck = state.relationState === null || state.relationState === 'error' || state.relationState === 'dropped';
    if (Date.now() < deadline && !isStuck) continue;
    session.notice({
      severity: 'WARNING',
      code: '01000',
      message: `sink "${sink.name}" does not read ${sink.relation} yet`,
      detail: isStuck
        ? `${sink.relation} is in error, or was dropped.`
        : `It cuts over by itself as soon as it can.${state.error === null ? '' : ` It is ${state.status}: ${state.error}`}`,
      hint: isStuck
        ? `To give it up: ALTER SINK ${sink.name} SET FROM its present relation;`
        : 'SELECT name, relation, next_relation, version, status, error FROM millrace.sinks;',
    });
    return;
  }
}
