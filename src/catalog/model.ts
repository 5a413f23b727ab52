/** The rows of the catalog as the rest of the program sees them. */

/** A column of a storage: millrace_data.s<id>.c<attnum>. */
export interface StorageColumn {
  /** attnum in the origin table: the identity of the column. */
  readonly attnum: number;
  /** Its name at the origin when last seen, in WAL order. */
  readonly name: string;
  /** Type upstream, as format_type prints it, typmod included. */
  readonly type: string;
  /** Type at the origin, as format_type prints it: a change of it is a schema change. */
  readonly originType: string;
  /** COLLATE clause argument, quoted, or null for the default. */
  readonly collation: string | null;
  /** Of a storage without key: the origin has it no more, or with another type, or has written it anew: it holds NULL. */
  readonly lost?: true;
  /** Values are no longer written as when rows without a key were hashed: hashes are computed here. */
  readonly rehashed?: true;
  /** Of a storage that extends another: that one has the values. Here it stands for its type, and holds NULL. */
  readonly elsewhere?: true;
  /**
   * Not all rows have their values: no version may show it. It came later than the storage, and rows from before may still have the value that it came
   * with (as text, or NULL); or the stream has not brought all of it.
   */
  readonly filling?: { readonly initial: string | null };
}

export type StorageState = 'new' | 'copying' | 'copied' | 'live' | 'failed' | 'dropped';

export interface Storage {
  readonly id: number;
  readonly sourceId: number;
  readonly originOid: number;
  readonly originSchema: string;
  readonly originName: string;
  readonly columns: readonly StorageColumn[];
  /** attnums of the key; empty when rows have none (then rid tells rows apart and h finds them). */
  readonly keyAttnums: readonly number[];
  readonly state: StorageState;
  readonly supersedes: number | null;
  /** Storage of the same table that is to get the columns of this one which are not elsewhere. */
  readonly extends: number | null;
  /** Key up to which it has got them; null: none yet. */
  readonly mergedTo: readonly string[] | null;
  /** Storage that this copy is made for: a resynchronisation. */
  readonly resyncs: number | null;
  /** Takes no rows of the stream until a copy of it has been compared. */
  readonly stale: boolean;
  /** What the publication published of the table when it was copied (OriginTable.sentAs). */
  readonly sentAs: string;
  /** Rows have come or gone that the origin did not tell of: what every version of it says, until it has been resynchronised or copied again. */
  readonly missed: RelationError | null;
  /**
   * Text of a pg_snapshot: what it sees is in the copy, not taken from the spool. A copy in pieces has one from the beginning, and may go on where it was cut
   * short. And an LSN no transaction of the copy ended after.
   */
  readonly copySnapshot: string | null;
  readonly copyLsn: bigint | null;
  /** Of a failed copy: milliseconds until it is tried again; null: never. */
  readonly retryInMs: number | null;
}

/** A column of a version: what is shown, in order. */
export interface VersionColumn {
  readonly attnum: number;
  readonly name: string;
  /** Type, with collation, that it was made with, when the storage has got another which this version could not follow. */
  readonly was?: string;
}

export interface RelationError {
  readonly code: string;
  readonly message: string;
  readonly detail?: string;
  readonly hint?: string;
  /** Relation where it began, when it is not this one. */
  readonly cause?: number;
  /** It passes when the copy that failed has succeeded. */
  readonly isRetried?: true;
  /** A resynchronisation of the source mends it, once the origin has what it shows. */
  readonly resync?: true;
}

export type RelationState = 'pending' | 'populating' | 'ready' | 'error' | 'dropped';

/** A live relation. */
export interface Relation {
  readonly id: number;
  readonly kind: 'table' | 'view';
  readonly facade: number | null;
  readonly gate: number;
  readonly state: RelationState;
  readonly error: RelationError | null;
}

export interface TableVersion extends Relation {
  readonly kind: 'table';
  readonly sourceId: number;
  readonly storageId: number;
  readonly columns: readonly VersionColumn[];
}

/** A column of an ordinary table of this database that a live relation reads. */
export interface BaseColumn {
  readonly attnum: number;
  readonly name: string;
  /** As format_type prints it, typmod included. */
  readonly type: string;
  readonly collation: string | null;
}

export type BaseState = 'new' | 'captured' | 'failed';

/** An ordinary table of this database that live relations read where it is. */
export interface BaseTable {
  readonly id: number;
  readonly tableOid: number;
  /** LOCK TABLE knows it: not a materialized view, not a foreign table. */
  readonly lockable: boolean;
  /** Qualified and quoted, as it is called now; null when it is gone. */
  readonly name: string | null;
  /** All columns when last seen, and now. */
  readonly columns: readonly BaseColumn[];
  readonly columnsNow: readonly BaseColumn[];
  readonly keyAttnums: readonly number[];
  /** relreplident before Millrace set FULL; null: not changed. */
  readonly identityBefore: string | null;
  readonly method: 'wal' | 'trigger';
  readonly state: BaseState;
  readonly error: RelationError | null;
  /** Partitions with their files, when last looked at and now; null for a table without, or not looked at yet. */
  readonly parts: string | null;
  readonly partsNow: string | null;
  /** Its owner has closed it for a while: nothing is refreshed because of it. */
  readonly gated: boolean;
  /** Columns of its delta table: those that some view uses; empty when it has none. */
  readonly deltaAttnums: readonly number[];
}

export type StreamStatus = 'INITIALIZING' | 'ACTIVE' | 'PAUSED' | 'SUSPENDED' | 'ERROR';

/** What makes a live view a stream table. Times are milliseconds of the epoch. */
export interface StreamTable {
  readonly relationId: number;
  readonly schedule: string | null;
  readonly refreshMode: 'DIFFERENTIAL' | 'FULL' | 'IMMEDIATE';
  readonly status: StreamStatus;
  readonly isPopulated: boolean;
  /** False: not to be populated before a refresh is asked for. */
  readonly initialize: boolean;
  readonly consecutiveErrors: number;
  readonly refreshRequested: number;
  readonly refreshDone: number;
  readonly reinitialize: boolean;
  readonly deltaLost: string | null;
  readonly nextRefreshAt: number | null;
  readonly lastRefreshAt: number | null;
  /** The stream table whose place it takes once it is filled; null: none. */
  readonly replaces: number | null;
  /** Those with the same number take their places in one step; null: it alone. */
  readonly replacesWith: number | null;
  /** It has triggers (IMMEDIATE), or had when it was suspended. */
  readonly triggered: boolean;
  /** Types of the columns of its base tables when its query was planned: by id of the base table, by attnum. */
  readonly plannedTypes: Readonly<Record<string, Readonly<Record<string, string>>>>;
  /** Schema and name of its facade, for alerts. */
  readonly schema: string;
  readonly name: string;
}

export interface LiveView<Plan> extends Relation {
  readonly kind: 'view';
  readonly definition: number;
  readonly plan: Plan;
  readonly inputs: readonly number[];
  /** Epoch up to which it has taken what is in the change logs of base tables; null: it takes nothing from there yet. */
  readonly position: bigint | null;
}

/** Names of what Millrace keeps in millrace_data; `id` is a storage id, for views the relation id. */
export const storageTable = (id: number): string => `millrace_data.s${id}`;
export const deltaTable = (id: number): string => `millrace_data.d${id}`;
/** Changes of a base table that some view has still to take. */
export const changeLogTable = (id: number): string => `millrace_data.w${id}`;
/** What triggers on a base table have written. */
export const triggerTable = (id: number): string => `millrace_data.t${id}`;
/** Changes on their way into a storage. */
export const stagingTable = (id: number): string => `millrace_data.i${id}`;
/** Changes that wait until the copy of a storage is done. */
export const spoolTable = (id: number): string => `millrace_data.p${id}`;
/** Of a copy that resynchronises a storage: where rows differ. */
export const differenceTable = (id: number): string => `millrace_data.f${id}`;
export const gateView = (relationId: number): string => `millrace_data.r${relationId}`;
export const definitionView = (relationId: number): string => `millrace_data.q${relationId}`;
/** Deltas of one input, a storage, set aside for a view that is being populated or is not due. */
export const pendingDeltaTable = (relationId: number, inputId: number): string => `millrace_data.w${relationId}_${inputId}`;
export const storageColumn = (attnum: number): string => `c${attnum}`;
