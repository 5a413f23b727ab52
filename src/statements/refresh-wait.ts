/**
 * Waiting, behind the commit, for refreshes that a statement has asked for.
 * Invariant: as in wait.ts: short statements over the caller's own session, so that Ctrl-C cancels them and no snapshot is held.
 */
import { MillraceError } from '../errors.ts';
import type { CallerSession } from './caller-session.ts';

/** Registers the wait: `wanted` is the number of the refresh by the id of the stream table. */
export function awaitRefreshes(session: CallerSession, wanted: Readonly<Record<string, number>>): void {
  session.onCommit((after) => awaitAll(after, wanted));
}

/** Returns when all are done. Raises when one has failed, or has been stopped meanwhile. One that is gone was dropped by someone else. */
async function awaitAll(session: CallerSession, wanted: Readonly<Record<string, number>>): Promise<void> {
  const list = (values: readonly unknown[]): string => `{${values.join(',')}}`;
  let left = Object.entries(wanted);
  // By then the engine has most often begun; from there on it is told.
  let pause = 0.0009;
  while (left.length > 0) {
    const { rows } = await session.query(
      `SELECT o.id, o.is_done, o.name, o.status, o.code, o.message
         FROM millrace.refresh_outcomes($1::bigint[], $2::bigint[], $3::float8) AS o`,
      [list(left.map(([id]) => id)), list(left.map(([, number]) => number)), String(pause)],
      { quiet: true },
    );
    // Where the engine is busy with something else it sleeps a fifth of the time it has waited.
    pause = Math.min(Math.max(pause * 1.2, 0.001), 0.05);
    const waiting = new Set<string | null | undefined>();
    for (const [id, isDone, name, status, code, message] of rows) {
      if (isDone === 't') {
        if (message !== null && message !== undefined) throw failed(name ?? '', code ?? '55000', message);
      } else if (status === 'SUSPENDED' || status === 'PAUSED')
        throw failed(name ?? '', code ?? '55000', message ?? `it is ${status.toLowerCase()}`);
      else waiting.add(id);
    }
    left = left.filter(([id]) => waiting.has(id));
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
