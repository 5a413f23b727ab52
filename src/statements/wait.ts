/**
 * Waiting for the engine after a commit, so that a script runs top to bottom.
 * Invariant: the wait runs as short statements over the caller's own session: Ctrl-C cancels it as it cancels any statement,
 * no snapshot is held from one look to the next, and any engine, in any process, may do the work.
 */
import { MillraceError } from '../errors.ts';
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
  return !['off', 'false', 'no', '0'].includes((row?.[0] ?? '').toLowerCase());
}

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
    pause = Math.min(pause * 1.5, 0.1);
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
