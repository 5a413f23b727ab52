/** The time as a relation: its id in the catalog and its columns. Invariant: it has one row, which changes to later times only. */
import type { LiveRelation } from './types.ts';

export const clockId = 0;

/** No column of a user's begins with mr$. */
export const timeColumn = 'mr$time';
/** Of a change of the clock: the time before, for the one that came; the time after, for the one that went. */
export const otherTime = 'mr$other';

export const clock: LiveRelation = {
  kind: 'live',
  id: clockId,
  key: ['c1'],
  columns: [{ name: timeColumn, expression: 's.c2' }],
};

/** Whether a text is about the time. */
export const isOfTime = (text: string): boolean => text.includes(timeColumn);

/** A condition on the time as one on the other time. */
export const atOtherTime = (condition: string): string => condition.replace(/"?mr\$time"?/g, `"${otherTime}"`);
