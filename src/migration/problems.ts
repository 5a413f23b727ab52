/** Errors of a migration as its user is to read them. Pure. Invariant: each says how to go on. */
import { PostgresError } from '../replication/postgres-error.ts';
import { quoteIdentifier } from '../sql/quote.ts';
import type { Migration, MigrationProblem } from './model.ts';
import { qualified } from './places.ts';

export const triedAgain = 'It is tried again by itself.';

export function problemOf(error: unknown, { name, source }: Migration): MigrationProblem {
  const message = error instanceof Error ? error.message : String(error);
  const code = error instanceof PostgresError ? error.code : error instanceof Error && 'code' in error ? String(error.code) : '';
  if (['42P01', '42703', '42804'].includes(code)) {
    return {
      message,
      detail: `${qualified(source)} is not as it was when the migration began.`,
      hint: `Undo that, and it goes on by itself; or ALTER MIGRATION ${quoteIdentifier(name)} CANCEL;`,
    };
  }
  if (code === '55P03') {
    return {
      message,
      detail: 'Capture begins when every transaction that is open now has ended.',
      hint: 'SELECT pid, xact_start, query FROM pg_stat_activity WHERE xact_start IS NOT NULL ORDER BY 2;',
    };
  }
  return { message, hint: triedAgain };
}
