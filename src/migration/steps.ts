/**
 * What is to be done under locks, in order: statements as they are, and such as depend on what the catalog says then. Pure.
 * Invariant: all questions are asked at once, before the first statement runs and while everything involved is locked; so an answer speaks of objects
 * by the names that they have when its turn comes, and nothing that was found before the locks is relied upon.
 */

/** A query of statements: (n bigint, sql text), said in the order of n. Planned before the locks, so that under them it costs no more than its rows. */
export interface Question {
  readonly ask: string;
}

export type Step = string | Question;

/** Whether nothing needs to be asked. */
const isStatement = (step: Step): step is string => typeof step === 'string';

/** One query for all questions: (number of the step, statement). Null: there are none. */
export function questionsSql(steps: readonly Step[]): string | null {
  const asked = steps.flatMap((step, place) => (isStatement(step) ? [] : [`SELECT ${place} AS place, q.n, q.sql FROM (${step.ask}) q`]));
  return asked.length === 0 ? null : `SELECT a.place, a.sql FROM (${asked.join('\nUNION ALL\n')}) a ORDER BY a.place, a.n`;
}

/** The statements, questions answered. */
export function answered(steps: readonly Step[], answers: readonly (readonly (string | null)[])[]): readonly string[] {
  return steps.flatMap((step, place) =>
    isStatement(step) ? [step] : answers.filter(([of]) => Number(of) === place).map(([, sql]) => sql ?? ''),
  );
}
