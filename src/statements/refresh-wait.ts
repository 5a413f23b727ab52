/**
 * Waiting, behind the commit, for refreshes that a statement has asked for.
 * Invariant: as in wait.ts: short statements over the caller's own session, so that Ctrl-C cancels them and no snapshot is held.
 */
import { MillraceError } from '../errors.ts';
import type { CallerSession } from './caller-session.ts';
import { firstRow } from './context.ts';

/** Registers the wait: `wanted` is the number of the refresh by the id of the stream table. */
export function awaitRefreshes(session: CallerSession, wanted: Readonly<Record<string, number>>): void {
  session.onCommit(async (after) => {
    for (const [id, number] of Object.entries(wanted)) await awaitRefresh(after, id, number);
  });
}

/** Returns when the refresh is done. Raises when it failed, or when the stream table has been stopped meanwhile. */
async function awaitRefresh(session: CallerSession, id: string, number: number): Promise<void> {
  // By then the engine has most often begun; from there on it is told.
  let pause = 0.0009;
  for (;;) {
    const row = await firstRow(
      session,
      'SELECT o.done, o.name, o.status, o.code, o.message FROM millrace.refresh_outcome($1::bigint, $2::bigint, $3::float8) AS o',
      [id, String(number), String(pause)],
    );
    // Where the engine is busy with something else it sleeps a fifth of the time it has waited.
    pause = Math.min(Math.max(pause * 1.2, 0.001), 0.05);
    // It is gone: dropped by someone else.
    if (row === null) return;
    const [done, name, status, code, message] = row;
    if (Number(done) >= number) {
      if (message !== null && message !== undefined) throw failed(name ?? '', code ?? '55000', message);
      return;
    }
    if (status === 'SUSPENDED' || status === 'PAUSED')
      throw failed(name ?? '', code ?? '55000', message ?? `it is ${status.toLowerCase()}`);
  }
}

function failed(name: string, code: string, message: string): MillraceError {
  return new MillraceError('population_failed', {
    severity: 'ERROR',
    code,
    message: `refresh of stream table ${name} failed: ${message}`,
    hint: `SELECT * FROM pgtrickle.diagnose_errors('${name}'); says more.`,
  });
}
