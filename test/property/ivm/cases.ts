/** Random cases, each of a seed that brings it again. */
import type pg from 'pg';
import { expect } from 'vitest';
import type { LiveDatabase } from './live-database.ts';

export const firstSeed = Number(process.env['MILLRACE_IVM_SEED'] ?? Date.now() % 1_000_000_000);

/** How many cases are tried. */
export const casesOr = (usual: number): number => Number(process.env['MILLRACE_IVM_CASES'] ?? usual);

/** How many views are maintained in which way. */
export type Ways = Map<string, number>;

export function waysOf({ views }: LiveDatabase): Ways {
  const ways: Ways = new Map();
  for (const { plan } of views) ways.set(plan.reason.way, (ways.get(plan.reason.way) ?? 0) + 1);
  return ways;
}

/** Tries the cases; fails with what to set to see again those that fail, five at most. Answers how the views of all were maintained. */
export async function tryCases(
  server: { readonly client: pg.Client; readonly version: number },
  cases: number,
  tryCase: (seed: number) => Promise<Ways>,
): Promise<Ways> {
  const all: Ways = new Map();
  const failures: string[] = [];
  for (let i = 0; i < cases && failures.length < 5; i++) {
    const seed = firstSeed + i;
    try {
      for (const [way, count] of await tryCase(seed)) all.set(way, (all.get(way) ?? 0) + count);
    } catch (error) {
      failures.push(`MILLRACE_IVM_SEED=${seed} MILLRACE_IVM_CASES=1 MILLRACE_IVM_POSTGRES=${server.version}: ${String(error)}`);
      await server.client.query('ROLLBACK');
    }
  }
  expect(failures.join('\n\n')).toBe('');
  return all;
}
