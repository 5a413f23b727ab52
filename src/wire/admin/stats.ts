/**
 * Statistics of all workers as one. Pure.
 * Invariant: totals are sums over the workers; averages are over the time since the earlier numbers, and never negative (a worker that was
 * started again begins at 0).
 */
import type { DatabaseStats } from '../pool/report.ts';

export type Numbers = Omit<DatabaseStats, 'database'>;

/** Per second, but for the times, which are µs per transaction, query and wait. */
export interface Averages {
  readonly xactCount: number;
  readonly queryCount: number;
  readonly serverAssignmentCount: number;
  readonly received: number;
  readonly sent: number;
  readonly xactTime: number;
  readonly queryTime: number;
  readonly waitTime: number;
}

const zero: Numbers = {
  totalServerAssignmentCount: 0,
  totalXactCount: 0,
  totalQueryCount: 0,
  totalReceived: 0,
  totalSent: 0,
  totalXactTime: 0,
  totalQueryTime: 0,
  totalWaitTime: 0,
};
const keys = Object.keys(zero) as (keyof Numbers)[];

export function addUp(all: readonly Numbers[]): Numbers {
  const sum: Record<keyof Numbers, number> = { ...zero };
  for (const one of all) for (const key of keys) sum[key] += one[key];
  return sum;
}

/** One entry a database, by name. */
export function byDatabase(all: readonly DatabaseStats[]): readonly DatabaseStats[] {
  const names = [...new Set(all.map(({ database }) => database))].sort();
  return names.map((database) => ({ database, ...addUp(all.filter((one) => one.database === database)) }));
}

/** What happened between two readings, on average. */
export function averages(now: Numbers, earlier: Numbers | undefined, elapsedMs: number): Averages {
  const difference = (key: keyof Numbers): number => Math.max(0, now[key] - (earlier?.[key] ?? 0));
  const perSecond = (key: keyof Numbers): number => Math.round((difference(key) * 1000) / Math.max(1000, elapsedMs));
  const each = (time: keyof Numbers, count: keyof Numbers): number =>
    difference(count) === 0 ? 0 : Math.round(difference(time) / difference(count));
  return {
    xactCount: perSecond('totalXactCount'),
    queryCount: perSecond('totalQueryCount'),
    serverAssignmentCount: perSecond('totalServerAssignmentCount'),
    received: perSecond('totalReceived'),
    sent: perSecond('totalSent'),
    xactTime: each('totalXactTime', 'totalXactCount'),
    queryTime: each('totalQueryTime', 'totalQueryCount'),
    waitTime: each('totalWaitTime', 'totalServerAssignmentCount'),
  };
}
