/**
 * How a view is kept, as data.
 * Invariant: JSON in, the same plan out; names of storage tables are not in it.
 */
import type { JoinSource, NamedExpression, Occurrence, PlanReason, Template, VisibleColumn } from './types.ts';

/** Select-project-join: one storage row for each combination of input rows, found by their keys. */
export interface RowsPlan {
  readonly kind: 'rows';
  readonly source: JoinSource;
  /** Storage columns: those shown, then keys that none of them shows. */
  readonly columns: readonly NamedExpression[];
  /** For each relation of the join, the storage columns that hold its key. */
  readonly keys: readonly (readonly string[])[];
}

/** Groups whose aggregates are kept by arithmetic on changes. */
export interface AggregatePlan {
  readonly kind: 'aggregate';
  readonly source: JoinSource;
  /** k1, k2, ..; empty: always one row. */
  readonly groups: readonly NamedExpression[];
  /** a1, a2, ..: arguments with their FILTER inside. */
  readonly arguments: readonly NamedExpression[];
  readonly states: readonly AggregateState[];
}

/** A hidden column of an aggregate. All but the extremes are never null. */
export type AggregateState =
  /** Values that are not null. */
  | { readonly kind: 'count'; readonly column: string; readonly argument: string }
  /** Sum of the values that are neither null nor, for numeric, NaN. */
  | { readonly kind: 'sum'; readonly column: string; readonly argument: string; readonly nan: boolean }
  | { readonly kind: 'nan'; readonly column: string; readonly argument: string }
  /** Values that show so many digits behind the point. */
  | { readonly kind: 'scale'; readonly column: string; readonly argument: string; readonly scale: number }
  | { readonly kind: 'min' | 'max'; readonly column: string; readonly argument: string };

/** Groups that are computed again when something in them changed. */
export interface GroupsPlan {
  readonly kind: 'groups';
  readonly source: JoinSource;
  readonly groups: readonly NamedExpression[];
  /** Group types are built in, so that `=` between them is Postgres's own and can use indexes. */
  readonly comparable: boolean;
  /** c1, c2, ..: the target list. */
  readonly outputs: readonly NamedExpression[];
  readonly having: string | null;
}

/** The whole query again, written as a difference. */
export interface WholePlan {
  readonly kind: 'whole';
  readonly query: Template;
  readonly occurrences: readonly Occurrence[];
  /** c1, c2, .. */
  readonly columns: readonly string[];
}

export interface ViewPlan {
  readonly version: 1;
  readonly reason: PlanReason;
  /** Ids of the inputs, each once, ascending. */
  readonly inputs: readonly number[];
  /** What the facade shows. */
  readonly columns: readonly VisibleColumn[];
  /** Storage columns that identify a row, for views over this one. */
  readonly key: readonly string[];
  readonly body: RowsPlan | AggregatePlan | GroupsPlan | WholePlan;
}
