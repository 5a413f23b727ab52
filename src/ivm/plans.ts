/**
 * How a view is kept, as data.
 * Invariant: JSON in, the same plan out; names of storage tables are not in it.
 */
import type { Expiry } from './expiry.ts';
import type { Existence, JoinSource, NamedExpression, Occurrence, PlanReason, Template, VisibleColumn } from './types.ts';

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
  /** What says that a group is there, when it is not the rows of `source`: groups over an outer join. */
  readonly presence?: JoinSource;
}

/** A hidden column of an aggregate. All but the extremes are never null. */
export type AggregateState =
  /** Values that are not null. */
  | { readonly kind: 'count'; readonly column: string; readonly argument: string }
  /** Sum of the values that are not null; 0 without any. `nan`: it may be NaN. */
  | { readonly kind: 'sum'; readonly column: string; readonly argument: string; readonly nan: boolean }
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

/** Rows of several linear queries, duplicates kept, found by their image. */
export interface BagPlan {
  readonly kind: 'bag';
  readonly arms: readonly { readonly source: JoinSource; readonly outputs: readonly string[] }[];
  /** c1, c2, .. */
  readonly columns: readonly string[];
}

/** A query that is computed again for the keys that changes touch. */
export interface KeyedPlan {
  readonly kind: 'keyed';
  /** The query, then the query for the keys in "mr$touched" without NULL, then for those with one. */
  readonly queries: { readonly all: Template; readonly touched: Template; readonly touchedNull: Template };
  readonly occurrences: readonly Occurrence[];
  /** Relations whose own keys the query mentions. */
  readonly keysOf: readonly number[];
  /** Storage columns: those shown, then keys that none of them shows. */
  readonly columns: readonly string[];
  /** Storage columns of the key. */
  readonly key: readonly string[];
  readonly nullable: boolean;
  /** An index entry may hold the key itself; otherwise it is found by its hash. */
  readonly short: boolean;
  /** Storage columns that identify a row; empty when rows may be equal: then they have a hash of their image. */
  readonly unique: readonly string[];
  readonly touch:
    | { readonly kind: 'paths'; readonly paths: readonly TouchQuery[] }
    | { readonly kind: 'terms'; readonly source: JoinSource; readonly keys: readonly string[] };
}

/** Keys that changes of one relation touch. */
export interface TouchQuery {
  readonly query: Template;
  readonly occurrences: readonly Occurrence[];
  readonly trigger: number;
  readonly keysOf: readonly number[];
  /** Conditions to add: what a key needs of other relations, true to be used while these have no changes. */
  readonly needs: readonly Existence[];
}

export type PlanBody = RowsPlan | AggregatePlan | GroupsPlan | BagPlan | KeyedPlan | WholePlan;

/** One stored step. A hidden one is an input of later ones by its number: -1 is the first. */
export interface StagePlan {
  readonly reason: PlanReason;
  /** What the facade, or the next stage, sees. */
  readonly columns: readonly VisibleColumn[];
  /** Storage columns that identify a row. */
  readonly key: readonly string[];
  readonly body: PlanBody;
  /** Columns of another index, by which a later stage reads it in order. */
  readonly index?: readonly string[];
}

export interface ViewPlan extends StagePlan {
  readonly version: 2;
  /** Ids of the inputs, each once, ascending. */
  readonly inputs: readonly number[];
  /** Way of the last step alone; `reason` is that of the whole. */
  readonly last: PlanReason;
  /** Hidden stages in the order in which they are maintained; the plan itself is the last. */
  readonly stages: readonly StagePlan[];
  /** The result changes with time although no row does: to be refreshed by a schedule. */
  readonly clock: boolean;
  /** When it does so; null: that cannot be told. */
  readonly expiry?: Expiry | null;
}
