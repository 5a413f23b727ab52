/**
 * What the parts of one engine share.
 * Invariant: `session` carries the leader's advisory lock and every epoch; whoever uses it does so inside `exclusively`,
 * between epochs, so that nothing comes between the statements of an epoch.
 */
import type { Client } from 'pg';
import type { BaseTable, LiveView, Storage, StreamTable, TableVersion } from '../catalog/model.ts';
import type { Backfill, SinkColumn } from '../catalog/sink-model.ts';
import type { EngineConfig } from '../config.ts';
import type { ViewPlan } from '../ivm/plans.ts';
import type { Logger } from '../log.ts';
import type { Lsn } from '../replication/lsn.ts';
import type { Execution, RawConnection } from '../replication/session-contract.ts';
import type { ChangeLogs } from './base/change-logs.ts';
import type { DeltaTables } from './delta-tables.ts';
import type { SourceRow } from './source-row.ts';
import type { SourceRunner } from './source-runner.ts';
import type { RefreshStatements } from './streams/refresh-statements.ts';

/** The catalog as last read. */
export interface CatalogState {
  readonly sources: ReadonlyMap<number, SourceRow>;
  readonly storages: ReadonlyMap<number, Storage>;
  readonly tables: ReadonlyMap<number, TableVersion>;
  /** What a view reads comes before it. */
  readonly views: ReadonlyMap<number, LiveView<ViewPlan>>;
  /** Storages, and base tables, whose changes come in a delta table. */
  readonly captured: ReadonlySet<number>;
  /** Ordinary tables of this database that views read. */
  readonly bases: ReadonlyMap<number, BaseTable>;
  /** By the id of their view. */
  readonly streams: ReadonlyMap<number, StreamTable>;
  /** Relations that have an outbox. */
  readonly outboxes: ReadonlySet<number>;
  /** Those that need not have what a changed row was before. */
  readonly upsertOutboxes: ReadonlySet<number>;
  readonly sinks: ReadonlyMap<number, SinkState>;
  readonly subscriptions: ReadonlyMap<number, SubscriptionState>;
}

/** A subscription as the engine has to know it. */
export interface SubscriptionState {
  readonly id: number;
  readonly relationId: number;
  /** The outbox has every change after this epoch; null: it is still to be seen to. */
  readonly cutTs: number | null;
  /** A session reads it. */
  readonly isRead: boolean;
}

/** A sink as the engine has to know it: what it reads. Timestamps are those of epochs. */
export interface SinkState {
  readonly id: number;
  readonly name: string;
  readonly status: string;
  readonly holdTs: number | null;
  /** Version that is being delivered; null: none yet. */
  readonly reachedVersion: number | null;
  readonly key: readonly string[] | null;
  /** It takes of each key only what is left of it. */
  readonly upserts: boolean;
  /** In order. Only the last may have no cutover yet. */
  readonly versions: readonly SinkVersion[];
}

export interface SinkVersion {
  readonly version: number;
  readonly relationId: number;
  readonly backfill: Backfill;
  readonly cutTs: number | null;
  readonly columns: readonly SinkColumn[];
}

/** What an epoch has to do with the time. See ViewClock. */
export interface EpochClock {
  /** Statements with which an epoch begins that changes rows. */
  followed(state: CatalogState): Execution[];
  /** An epoch changes these storages. */
  changed(state: CatalogState, storages: ReadonlySet<number>): void;
}

export interface EngineContext {
  readonly config: EngineConfig;
  readonly log: Logger;
  readonly session: RawConnection;
  /** For reading the catalog and for progress outside epochs. */
  readonly admin: Client;
  /** Fencing token of this leadership. */
  readonly token: bigint;
  /** pg_database.oid of the database. */
  readonly databaseOid: number;
  /** server_version_num of the upstream. */
  readonly serverVersion: number;
  state: CatalogState;
  readonly metrics: Record<string, number>;
  readonly deltas: DeltaTables;
  /** Logs of changes of base tables. */
  readonly changes: ChangeLogs;
  readonly refreshes: RefreshStatements;
  /** Sees to the views over the time. */
  readonly clock: EpochClock;
  /** An epoch has committed changes to outboxes. */
  outboxed(): void;
  /** Views that have nothing set aside, as far as is known. */
  readonly clean: Set<number>;
  /** Runs a task on `session` when no epoch is open; tasks and epochs take turns. */
  exclusively<T>(task: () => Promise<T>): Promise<T>;
  /** An epoch has committed a source's changes up to this position. */
  reached(runner: SourceRunner, lsn: Lsn): void;
  /** Calls back once everything committed so far is on disk. */
  whenFlushed(then: () => void): void;
  /** The catalog may have changed: read it again and do what follows from it. */
  wake(): void;
  /** Unexpected error: the engine ends and is started anew from what is committed. */
  fail(error: unknown): void;
}

/** Storage id of a live relation: its table's, or its own for a view or a base table. */
export function storageOf(state: CatalogState, relationId: number): number {
  return state.tables.get(relationId)?.storageId ?? relationId;
}
