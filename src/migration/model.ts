/**
 * What a migration is: the words its other modules speak. Pure.
 * Invariant: a plan names the source and the target by what they are (OID, key), never by where they stand at the moment; names change at the cutover.
 *
 * Words: the source is the user's table as it was; the target is the table that takes its place (`reshape`) or some of its columns (`move`).
 * The old shape is what statements written before the migration expect, the new shape what statements written for it expect. Before the cutover the
 * truth is the source and the target follows it; after it the truth is the target and the source follows, until FINALIZE.
 */

export interface TableName {
  readonly schema: string;
  readonly name: string;
}

/** A column of the source, as the catalog of the upstream has it. */
export interface SourceColumn {
  readonly attnum: number;
  readonly name: string;
  /** format_type, schema-qualified where needed, with COLLATE when it is not the type's own. */
  readonly type: string;
  readonly notNull: boolean;
  /** 'always' and 'by default': an identity column. */
  readonly identity: 'always' | 'by default' | null;
  readonly generated: 'stored' | 'virtual' | null;
  /** Text of the default expression; null: none, or generated. */
  readonly defaultText: string | null;
}

/** The table a migration begins with. */
export interface SourceTable extends TableName {
  readonly oid: number;
  readonly partitioned: boolean;
  readonly owner: { readonly oid: number; readonly name: string };
  readonly columns: readonly SourceColumn[];
  /** Names of the primary key's columns, in its order. Never empty: tables without a key are refused before. */
  readonly key: readonly string[];
}

/** MOVE COLUMNS: a row of the target is there while one of the moved columns is not null. */
export interface MoveDefinition {
  readonly kind: 'move';
  readonly columns: readonly string[];
  readonly target: TableName;
  /** The source's key, and what its columns are called in the target. */
  readonly key: readonly { readonly column: string; readonly as: string }[];
}

/** ALTER TABLE .. ALTER COLUMN .. TYPE: the target has the source's columns, some of another type. */
export interface AlterDefinition {
  readonly kind: 'alter';
  readonly columns: readonly {
    readonly column: string;
    /** As format_type prints it. */
    readonly type: string;
    /** Expressions over the source's columns (up) and over the target's (down); null: a cast. */
    readonly up: string | null;
    readonly down: string | null;
  }[];
}

/** SPLIT COLUMN: the target has other columns in place of one of the source's. */
export interface SplitDefinition {
  readonly kind: 'split';
  readonly column: string;
  /** `up`: expressions over the source's columns. */
  readonly into: readonly { readonly name: string; readonly type: string; readonly up: string }[];
  /** Expression over the target's columns. */
  readonly down: string;
}

export type MigrationDefinition = MoveDefinition | AlterDefinition | SplitDefinition;

export interface MigrationOptions {
  /** `auto`: as soon as a pass of verification was clean. */
  readonly cutover: 'manual' | 'auto';
  /** How long the cutover waits for its locks. */
  readonly lockTimeoutMs: number;
  /** How long it may hold them. */
  readonly maxHoldMs: number;
  /** Finalized by itself so long after the cutover; null: by ALTER MIGRATION .. FINALIZE only. */
  readonly reverseWindowMs: number | null;
  /** Copying rests while changes are applied later than this. */
  readonly maxLagMs: number;
  /** Bytes of the source that one statement copies. */
  readonly chunkBytes: number;
  /** Schemas by which either shape can be had at any time: put in front of the search_path. */
  readonly newVersion: string;
  readonly oldVersion: string;
}

export const defaultOptions = {
  cutover: 'auto',
  lockTimeoutMs: 100,
  maxHoldMs: 250,
  reverseWindowMs: null,
  maxLagMs: 2000,
  chunkBytes: 8 * 1024 * 1024,
} as const satisfies Partial<MigrationOptions>;

/**
 * creating: capture is being set up; copying; verifying: until a whole pass was clean; ready: for the cutover, verified again and again;
 * cut_over: the target is the truth, the source follows; finished, cancelled: nothing is left to do.
 */
export type MigrationPhase = 'creating' | 'copying' | 'verifying' | 'ready' | 'cut_over' | 'finished' | 'cancelled';

/** What the user asked for last; carried out by the engine, then null again. */
export type MigrationRequest = 'cutover' | 'revert' | 'finalize' | 'cancel' | 'verify';

/** What stopped it, or what was in the way of the last attempt. */
export interface MigrationProblem {
  readonly message: string;
  readonly detail?: string;
  readonly hint?: string;
}

/** A migration as the catalog has it, to be carried out. */
export interface Migration {
  readonly id: number;
  readonly name: string;
  readonly owner: { readonly oid: number; readonly name: string };
  readonly source: SourceTable;
  readonly targetOid: number;
  readonly definition: MigrationDefinition;
  readonly options: MigrationOptions;
  readonly phase: MigrationPhase;
  readonly paused: boolean;
  readonly request: MigrationRequest | null;
}
