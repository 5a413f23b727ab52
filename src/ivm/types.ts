/**
 * The words between the view compiler and its callers.
 * Invariant: everything here is plain data that survives JSON, because plans live in the catalog.
 */

/** A relation that Millrace maintains, as input of a view. */
export interface LiveRelation {
  readonly kind: 'live';
  /** Internal id: storage `millrace_data.s<id>`, delta table `millrace_data.d<id>`. */
  readonly id: number;
  /** Storage columns that identify a row: unique, never null. Empty: rows may be equal to each other. */
  readonly key: readonly string[];
  /** What users see, in order. */
  readonly columns: readonly VisibleColumn[];
}

/** A plain view; its query is expanded in place. */
export interface PlainView {
  readonly kind: 'view';
  /** pg_get_viewdef(oid) of it. */
  readonly query: string;
}

/**
 * A column that users see. `expression` is SQL over one row of the storage (or of its delta table), which is always called `s`:
 * `s.c1`, or `CASE WHEN s.v2 > 0 THEN s.v1 END`. The facade is `SELECT <expression> AS <name>, ... FROM millrace_data.s<id> s`.
 */
export interface VisibleColumn {
  readonly name: string;
  readonly expression: string;
}

/** Finds what a name in the query stands for. `schema` is null when the name is printed unqualified. Undefined: not known. */
export type RelationLookup = (schema: string | null, name: string) => LiveRelation | PlainView | undefined;

export interface RelationName {
  readonly schema: string | null;
  readonly name: string;
}

/** Text of a query cut where relations stand, so that each can be put in its new, its old or its delta state. */
export type Template = readonly TemplatePiece[];
export type TemplatePiece =
  | string
  /** A relation; its alias follows in the text. */
  | { readonly relation: number }
  /** Place in a target list of a subquery in FROM where hidden columns of these relations are passed on. */
  | { readonly pass: readonly number[] };

/** One mention of a live relation in the query. A self-join has two of the same input. */
export interface Occurrence {
  readonly input: number;
  readonly key: readonly string[];
  readonly columns: readonly VisibleColumn[];
  /** Names of the columns the query can mention; null: all of them. */
  readonly used: readonly string[] | null;
}

/** FROM and WHERE of a select-project-join query. */
export interface JoinSource {
  readonly from: Template;
  readonly where: string | null;
  readonly occurrences: readonly Occurrence[];
  /** Columns that must be equal, where that is known. */
  readonly equalities?: readonly (readonly [OccurrenceColumn, OccurrenceColumn])[];
  /** The same where nothing but known keys is made of it. */
  readonly joined?: readonly (readonly [OccurrenceColumn, OccurrenceColumn])[];
  readonly narrowings?: readonly Narrowing[];
  /** `where` one by one, with the relations each is about; -1: something else in FROM. */
  readonly conditions?: readonly { readonly text: string; readonly relations: readonly number[] }[];
  /** Relations that can be left out of FROM when no condition and no output is about them. */
  readonly sparable?: readonly number[];
}

/** A condition that holds when other relations have the rows it looks for. */
export interface Existence {
  readonly condition: Template;
  readonly occurrences: readonly Occurrence[];
}

/** As those rows are found by their keys, the relations need not be joined where nothing else is asked of them. */
export interface Need extends Existence {
  readonly relations: readonly number[];
}

/** What rows of a relation have to be to matter; `alias` is what the conditions call it. */
export interface Narrowing {
  readonly relation: number;
  readonly alias: string;
  /** Conditions of WHERE and of joins. */
  readonly where: string | null;
  /** To be asked while these relations do not change. */
  readonly needs: readonly Need[];
}

export interface OccurrenceColumn {
  readonly relation: number;
  readonly column: string;
}

export interface NamedExpression {
  readonly name: string;
  readonly expression: string;
}

/** Type of one column of `Analysis.probeSql`, from its RowDescription. */
export interface ProbeColumn {
  readonly typeOid: number;
  readonly typeModifier: number;
  /** Digits behind the point that its numeric values can show, where more is known than the type says. */
  readonly scales?: readonly number[];
}

/** What is known of a function by its name; when several share the name, true if true of any. */
export interface FunctionKind {
  readonly aggregate: boolean;
  readonly setReturning: boolean;
}

/** What the caller asks the database for between `analyzeView` and `planView`. */
export interface ProbeResult {
  /** One for each column of `probeSql`; empty when that is null. */
  readonly columns: readonly ProbeColumn[];
  /** By the names that `viewFunctions` gives; rows of `functionKindsSql`. */
  readonly functions: Readonly<Record<string, FunctionKind>>;
  /** False: `Analysis.stagesSql` failed, and `columns` are those of `singleProbeSql`. */
  readonly staged?: boolean;
  /** For each of `Analysis.hashableSql` its one value; false when that statement fails (take a savepoint). */
  readonly groupsHashable: readonly boolean[];
}

/** First step of planning: all that can be known without types. */
export interface Analysis {
  /** Ids of the live relations read, each once, ascending. */
  readonly inputs: readonly number[];
  /** Names of functions called, as printed (`f`, `s.f`). */
  readonly functions: readonly string[];
  /** `SELECT ... LIMIT 0` whose RowDescription types the expressions `planView` needs; null when it needs none. */
  readonly probeSql: string | null;
  /** As `probeSql` without stages: for when `stagesSql` fails. */
  readonly singleProbeSql: string | null;
  /** One row, true, when the stages can be computed; null when there are none. A query that is written anew may not be understood. */
  readonly stagesSql: string | null;
  /** One row, one boolean: can groups be found by hash? Each may fail with 42883, which means no. */
  readonly hashableSql: readonly string[];
  /** For `planView` only. */
  readonly shape: unknown;
}

/** How a view is maintained; the reason is shown to users. */
export interface PlanReason {
  readonly way: 'algebraic' | 'keyed' | 'full';
  readonly reason: string;
}

/** Storage tables are named by the caller: an input's storage can be replaced by another. Result: a qualified, quoted name. */
export type TableName = (input: number) => string;

/** What is known of the inputs when changes are taken in. */
export interface InputFacts {
  /**
   * All rows in the delta of this input are of changes to columns that the view uses, as far as each update is concerned: then who only wants to
   * know which rows changed need not compare their images.
   */
  readonly isExact: (input: number) => boolean;
  /** Type of a storage column, with its collation; undefined: not known. */
  readonly typeOf: (input: number, column: string) => string | undefined;
}

export const nothingKnown: InputFacts = { isExact: () => false, typeOf: () => undefined };
