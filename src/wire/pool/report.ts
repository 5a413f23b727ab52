/**
 * What a worker tells of its connections, and what it can be told to do: the admin console and /metrics live on this.
 * Plain data: it travels between processes as messages. Times are ms since the epoch unless said otherwise.
 */
import type { HoldOrder } from '../statement-holds.ts';
import type { PoolMode, ProxySettings } from './settings.ts';

/** One pool: the server connections of one role to one database. */
export interface PoolRow {
  readonly database: string;
  readonly user: string;
  readonly poolMode: PoolMode;
  /** Clients attached to a server or idle; waiting for a server; with a cancel request under way. */
  readonly clActive: number;
  readonly clWaiting: number;
  readonly clActiveCancelReq: number;
  /** Servers attached to a client; idle; in use for a check or reset; logging in. */
  readonly svActive: number;
  readonly svIdle: number;
  readonly svUsed: number;
  readonly svLogin: number;
  /** How long the first in the queue has waited, in microseconds. */
  readonly maxwaitUs: number;
  readonly paused: boolean;
}

export interface ClientRow {
  /** Unique among all workers; what KILL_CLIENT takes. */
  readonly id: string;
  readonly user: string;
  readonly database: string;
  readonly state: 'active' | 'waiting' | 'idle' | 'login';
  readonly address: string;
  readonly port: number;
  readonly localAddress: string;
  readonly localPort: number;
  readonly connectTime: number;
  /** When it last sent a request. */
  readonly requestTime: number;
  readonly waitUs: number;
  /** id of the server it is attached to, or ''. */
  readonly link: string;
  readonly tls: string;
  readonly applicationName: string;
  readonly preparedStatements: number;
  /** Why it keeps its server between transactions, or ''. */
  readonly pinned: string;
}

export interface ServerRow {
  readonly id: string;
  readonly user: string;
  readonly database: string;
  readonly state: 'active' | 'idle' | 'used' | 'login';
  readonly address: string;
  readonly port: number;
  readonly localAddress: string;
  readonly localPort: number;
  readonly connectTime: number;
  readonly requestTime: number;
  readonly link: string;
  /** Process id of the backend. */
  readonly remotePid: number;
  readonly tls: string;
  readonly preparedStatements: number;
}

/** Totals of one database since the worker started. Times in microseconds. */
export interface DatabaseStats {
  readonly database: string;
  readonly totalServerAssignmentCount: number;
  readonly totalXactCount: number;
  readonly totalQueryCount: number;
  readonly totalReceived: number;
  readonly totalSent: number;
  readonly totalXactTime: number;
  readonly totalQueryTime: number;
  readonly totalWaitTime: number;
}

export interface WorkerReport {
  readonly pools: readonly PoolRow[];
  readonly clients: readonly ClientRow[];
  readonly servers: readonly ServerRow[];
  readonly stats: readonly DatabaseStats[];
}

/** What a worker is told; `database` null means all. */
export type WorkerCommand =
  /** Takes effect for new work; resolves when no server connection is in use. */
  | { readonly command: 'pause'; readonly database: string | null }
  | { readonly command: 'resume'; readonly database: string | null }
  | { readonly command: 'disable' | 'enable'; readonly database: string }
  /** Server connections are replaced as soon as they are released. */
  | { readonly command: 'reconnect'; readonly database: string | null }
  /** All client and server connections are closed at once, and the database is paused. */
  | { readonly command: 'kill'; readonly database: string | null }
  /** Closes one client; `found` in the answer says whether this worker has it. */
  | { readonly command: 'kill_client'; readonly id: string }
  /** Resolves when all server connections that were to be replaced are gone. */
  | { readonly command: 'wait_close'; readonly database: string | null }
  | { readonly command: 'reload'; readonly settings: ProxySettings }
  /** Requests that may touch these tables wait. For the engine; no operator says it. */
  | { readonly command: 'hold'; readonly order: HoldOrder }
  /** They go on. `id` null: all of the database. `changed`: the relations that are others now. */
  | { readonly command: 'let_go'; readonly database: string; readonly id: string | null; readonly changed: readonly string[] };

export interface CommandOutcome {
  /** False when what was named is not known to this worker. */
  readonly found: boolean;
}
