/** Housekeeping that nobody waits for. Invariant: it never waits for users, and whatever it cannot do now is tried again later. */
import { PostgresError } from '../replication/postgres-error.ts';
import type { EngineContext } from './context.ts';

/** True when it was done; false when something holds a lock, and it is tried again later. */
export async function briefTransaction({ session, log }: EngineContext, statements: readonly string[], what: string): Promise<boolean> {
  try {
    await session.query(`BEGIN; SET LOCAL lock_timeout = '200ms'; ${statements.join('; ')}; COMMIT`);
    return true;
  } catch (error) {
    await session.query('ROLLBACK').catch(() => undefined);
    if (!(error instanceof PostgresError)) throw error;
    log.debug({ what, err: error }, 'not cleared away yet');
    return false;
  }
}
