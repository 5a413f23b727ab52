/**
 * What refreshes of one view cost, and which way is the cheaper.
 * Invariant: neither way is taken for ever on a measurement of long ago: what is not taken is tried again after a number of refreshes, which
 * doubles while it proves dearer, unless it was many times as dear.
 */

/** Changed rows from which it is asked whether computing everything again would be cheaper: fewer cost what any refresh costs. */
export const worthAsking = 1000;
/** Changed rows from which it is asked whether there are more of them than rows. */
export const worthCounting = 64;
/** How much dearer changes must be. */
const margin = 1.1;
/** Refreshes one way until the other is tried, at first and at most. */
const firstPatience = 8;
const mostPatience = 128;
/** What was so many times as dear is not tried. */
const hopeless = 5;

export interface Costs {
  readonly msPerRow: number | null;
  readonly fullMs: number | null;
  /** Large refreshes one after the other that went the same way. */
  readonly way: 'changes' | 'full' | null;
  readonly times: number;
  readonly patience: number;
}

export const unknownCosts: Costs = { msPerRow: null, fullMs: null, way: null, times: 0, patience: firstPatience };

/** After a refresh from so many changed rows. */
export function afterChanges(costs: Costs, rows: number, ms: number): Costs {
  if (rows < worthAsking) return costs;
  const perRow = ms / rows;
  const { msPerRow, fullMs } = costs;
  if (costs.way === 'full' && fullMs !== null && msPerRow !== null) {
    // Tried again: what was known is old.
    const dearer = perRow * rows > margin * fullMs;
    return {
      ...costs,
      msPerRow: perRow,
      way: 'changes',
      times: 1,
      patience: dearer ? Math.min(mostPatience, costs.patience * 2) : firstPatience,
    };
  }
  return { ...costs, msPerRow: msPerRow === null ? perRow : 0.5 * (msPerRow + perRow), way: 'changes', times: costs.times + 1 };
}

/** After everything was computed again. */
export function afterFull(costs: Costs, ms: number): Costs {
  return { ...costs, fullMs: ms, way: 'full', times: costs.way === 'full' ? costs.times + 1 : 1 };
}

/** Why the view had better be computed as a whole than from so many changed rows of so many that there are; null: it had not. */
export function whyFull(costs: Costs, rows: number, total: number | null): string | null {
  // Many transactions on few rows: in a join each change meets every other one.
  if (total !== null && rows >= worthCounting && rows > 2 * total) return `cost: ${rows} changes of about ${total} rows`;
  if (rows < worthAsking) return null;
  const { msPerRow, fullMs } = costs;
  if (msPerRow === null || fullMs === null)
    return total !== null && rows > total / 2 ? `cost: ${rows} changes of about ${total} rows` : null;
  const expected = rows * msPerRow;
  const dearer = expected > margin * fullMs;
  const tired = costs.times >= costs.patience;
  if (dearer) {
    if (tired && costs.way === 'full' && expected <= hopeless * fullMs) return null;
    return `cost: ${rows} changes would take about ${Math.round(expected)} ms, all of it ${Math.round(fullMs)} ms`;
  }
  // Only where it was close can it have become cheaper.
  if (tired && costs.way === 'changes' && expected * 2 > fullMs)
    return `cost: all of it took ${Math.round(fullMs)} ms long ago, measured again`;
  return null;
}
