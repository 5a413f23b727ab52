/**
 * Views that can be brought up to date by the statement that changes their only input, without a delta table in between. Pure.
 * Invariant: after each such statement the view is its query over what the input is by then. So the statement before must have been
 * dealt with: capture takes care of that.
 */
import { type ChangingEvent, changedRows } from './capture.ts';
import type { ViewPlan } from './plans.ts';
import type { TableName } from './types.ts';
import { maintainSql } from './view-plan.ts';

/**
 * Whether a view can be: sums over one relation, as adding them up needs nothing else, in whatever pieces changes come. Not the least and greatest, which
 * may have to be looked for among all rows: by one join once an epoch, not by nested loops, as everything goes that is applied.
 */
export function isDirect({ body, stages, clock, inputs }: ViewPlan): boolean {
  if (body.kind !== 'aggregate' || body.presence !== undefined || stages.length > 0 || clock) return false;
  if (body.states.some(({ kind }) => kind === 'min' || kind === 'max')) return false;
  return inputs.length === 1 && body.source.occurrences.length === 1;
}

/** The statements by which such a view takes what a statement has changed. `storage`: see maintainSql. */
export function directSql(plan: ViewPlan, id: number, event: ChangingEvent, storage: TableName): string[] {
  return maintainSql(plan, id, new Set(plan.inputs), () => changedRows(event), storage);
}
