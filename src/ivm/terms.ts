/**
 * Which combinations of relation states make up the change of a join.
 * Invariant: the signed terms add up to exactly new result minus old result, also when changes are not netted, and when one relation
 * occurs several times.
 * Source: inclusion and exclusion over the changed relations needs only new states and changes (2^k - 1 plain joins), which the planner
 * handles best up to three; beyond, one term for each changed relation, with the old state of those after it (telescoping).
 */
import type { State } from './relation-sql.ts';

export interface Term {
  readonly sign: 1 | -1;
  readonly states: readonly State[];
}

/** Most changed relations for which every subset gets a term. */
export const subsetsUpTo = 3;

/** Terms whose weighted sum is the change. `changed[i]`: relation i may have changes. */
export function signedTerms(changed: readonly boolean[]): Term[] {
  const indexes = changed.flatMap((is, i) => (is ? [i] : []));
  if (indexes.length > subsetsUpTo) return telescoped(changed, indexes, 'old');
  const terms: Term[] = [];
  for (let subset = 1; subset < 1 << indexes.length; subset++) {
    const inSubset = indexes.filter((_, bit) => (subset & (1 << bit)) !== 0);
    terms.push({ sign: inSubset.length % 2 === 1 ? 1 : -1, states: changed.map((_, i) => (inSubset.includes(i) ? 'changes' : 'new')) });
  }
  return terms;
}

/**
 * Terms whose rows, signs aside, include every row the result gained or lost: the first changed row of such a row is a change,
 * those before it are as they are now, those behind it are or were.
 */
export function touchingTerms(changed: readonly boolean[]): Term[] {
  const indexes = changed.flatMap((is, i) => (is ? [i] : []));
  return indexes.length > subsetsUpTo ? telescoped(changed, indexes, 'either') : signedTerms(changed);
}

/**
 * Terms whose rows are the present result rows with a changed key in some relation, each once:
 * one term for each changed relation, without the rows that an earlier term has.
 */
export function presentTerms(changed: readonly boolean[]): Term[] {
  const indexes = changed.flatMap((is, i) => (is ? [i] : []));
  return indexes.map((index) => ({
    sign: 1,
    states: changed.map((is, i) => (i === index ? 'touched' : is && i < index ? 'untouched' : 'new')),
  }));
}

function telescoped(changed: readonly boolean[], indexes: readonly number[], behind: State): Term[] {
  return indexes.map((index) => ({
    sign: 1,
    states: changed.map((is, i) => (i === index ? 'changes' : is && i > index ? behind : 'new')),
  }));
}
