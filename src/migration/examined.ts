/** A migration with everything that was found out about it before it begins. Pure. */
import type { MigrationFacts } from './facts.ts';
import type { MigrationDefinition, MigrationOptions } from './model.ts';
import type { Probed, ProbeProblem, RoundTrip } from './probes.ts';

/** What Postgres made of a type and an expression. */
export interface Probe {
  /** The column that the expression fills. */
  readonly column: string;
  readonly direction: 'up' | 'down';
  /** The user has written the expression; else it is the column itself, to be cast by assignment. */
  readonly given: boolean;
  /** As written. */
  readonly type: string;
  readonly result: Probed;
}

export interface Examined {
  readonly name: string;
  readonly facts: MigrationFacts;
  readonly definition: MigrationDefinition;
  readonly options: MigrationOptions;
  readonly probes: readonly Probe[];
  /** null: it was not tried, because an expression is wrong or there is none. */
  readonly roundTrip: { readonly value: RoundTrip } | { readonly problem: ProbeProblem } | null;
}
