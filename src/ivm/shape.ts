/** What a query, or a stage of one, is made of. */
import { quoteIdentifier } from '../sql/quote.ts';
import type { AggregateCall, TargetPiece } from './aggregate-calls.ts';
import { type Fields, strings } from './tree.ts';
import type { JoinSource, Occurrence, Template } from './types.ts';

export interface ShapeTarget {
  readonly name: string;
  readonly text: string;
  /** Null: it cannot be put together from group expressions and aggregates. */
  readonly pieces: readonly TargetPiece[] | null;
  /** The relation and the place of the key column that this target is, if it is just that. */
  readonly key: { readonly relation: number; readonly index: number } | null;
}

/** A query whose FROM is a join of live relations. */
export interface JoinShape {
  readonly source: JoinSource;
  readonly targets: readonly ShapeTarget[];
  readonly distinct: boolean;
  readonly groups: readonly string[];
  readonly having: string | null;
  readonly calls: readonly AggregateCall[];
  /** Something asks for groups: GROUP BY, HAVING, or one of the known aggregates. */
  readonly grouped: boolean;
  /** Functions in the target list and HAVING, which may turn out to be aggregates or to return sets. */
  readonly outerFunctions: readonly string[];
  /** Functions elsewhere, which must be plain. */
  readonly innerFunctions: readonly string[];
  /** Columns named in arguments of numeric aggregates: probed behind groups and arguments. */
  readonly argumentColumns: readonly string[];
  /** Digits that columns of stages can show, by their text. */
  readonly knownScales?: Readonly<Record<string, readonly number[]>>;
}

export interface Shape {
  readonly whole: Template;
  readonly occurrences: readonly Occurrence[];
  readonly columns: readonly string[];
  /** Null with the reason in `notJoined`. */
  readonly join: JoinShape | null;
  readonly notJoined: string;
}

/** A column reference as SQL; also a key to find it by. */
export function columnText(fields: Fields): string {
  return strings(fields['fields']).map(quoteIdentifier).join('.');
}
