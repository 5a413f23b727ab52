/** Stages of a query before types are known. */
import type { Tree } from './ast.ts';
import type { OuterGroups } from './outer-groups.ts';
import type { FunctionKinds } from './query-parts.ts';
import type { Fields } from './tree.ts';
import type { LiveRelation } from './types.ts';

/** How a stage is kept; what depends on types is decided later. */
export type StageWay =
  /** A linear query: rows, groups or DISTINCT. */
  | { readonly kind: 'linear' }
  /** Rows of all arms, duplicates kept. */
  | { readonly kind: 'union'; readonly arms: readonly Tree[] }
  /** Computed again for the keys that changes touch. `anchor`: the item of FROM whose rows they are; `key`: null means its own key. */
  | {
      readonly kind: 'keyed';
      readonly anchor: string | null;
      readonly key: readonly unknown[] | null;
      readonly what: string;
      /** How else it may be kept, if types allow. */
      readonly sums?: OuterGroups | null;
    }
  | { readonly kind: 'whole'; readonly why: string };

export interface Stage {
  readonly select: Tree;
  readonly columns: readonly string[];
  readonly way: StageWay;
  /** Columns by which it is read in order (top rows), with the SortBy of each. */
  readonly order?: readonly { readonly column: string; readonly sort: Fields }[];
}

/** What makes stages. */
export interface StageMaker {
  readonly kinds: FunctionKinds;
  readonly live: readonly LiveRelation[];
  /** Adds the stages of a query; the number of the last. */
  compile(select: Tree): number;
  /** Adds a stage that is made already. */
  add(stage: Stage): number;
  /** An alias used nowhere else. */
  alias(): string;
  /** An item of FROM that reads a stage. */
  item(stage: number, alias?: string): Tree;
  columns(stage: number): readonly string[];
  /** SELECT all columns FROM the stage. */
  read(stage: number): { readonly select: Tree; readonly alias: string };
  /** The stage is read in this order. */
  orderBy(stage: number, order: NonNullable<Stage['order']>): void;
  /** The query with its FROM made plain, when it is a linear one without groups; else null. */
  linearRows(select: Tree): Tree | null;
}
