/** What the processes of Millrace are told when they start. Loading (flags, environment) is in cli.ts; nothing here does IO. */
import type { AdminAnswer, AdminRequest, WorkerAnswer, WorkerQuestion } from './wire/admin/messages.ts';
import type { ProxySettings } from './wire/pool/settings.ts';

/** How TLS is asked for, as libpq's sslmode (Postgres documentation, 34.19.3). */
export type SslMode = 'disable' | 'prefer' | 'require' | 'verify-ca' | 'verify-full';

export interface SslOptions {
  readonly mode: SslMode;
  /** PEM text, not paths. */
  readonly ca?: string;
  readonly cert?: string;
  readonly key?: string;
}

/** A Postgres server and the role Millrace itself uses there. `host` beginning with '/' is a Unix socket directory. */
export interface ServerAddress {
  readonly host: string;
  readonly port: number;
  readonly user: string;
  readonly password?: string;
  /** Database used when none is asked for. */
  readonly database: string;
  readonly ssl: SslOptions;
}

/** A proxy worker: the data path. */
export interface WorkerConfig {
  readonly upstream: ServerAddress;
  /** 32 bytes, hex. Encrypts secrets at rest. */
  readonly secretKey: string;
  /** As they are when the worker starts; a `reload` command brings others. */
  readonly proxy: ProxySettings;
  /** Its number from 0, and how many workers there are: limits are shared out among them. Default: the only one. */
  readonly worker?: number;
  readonly workers?: number;
}

/** The engine of one database. */
export interface EngineConfig {
  readonly upstream: ServerAddress;
  readonly database: string;
  readonly secretKey: string;
  readonly copies: CopySettings;
}

/** How first copies of tables are made. */
export interface CopySettings {
  /** Pieces of one table that are read at a time. */
  readonly sessions: number;
  /** Size of a piece, as the table is on disk. */
  readonly chunkBytes: number;
}

/** Messages from children to the main process. */
export type ChildMessage =
  /** The child listens to messages and wants its configuration. */
  | { readonly type: 'hello' }
  | { readonly type: 'ready' }
  /** A worker has taken the connection that it was handed last. */
  | { readonly type: 'taken' }
  | { readonly type: 'catalog-installed'; readonly database: string }
  /** Prometheus samples: name -> value, with labels in the name as in the text format. Sent about every second. */
  | { readonly type: 'metrics'; readonly values: Readonly<Record<string, number>> }
  /** The child cannot go on and a restart would not help (port in use, ...). One line for the user. */
  | { readonly type: 'fatal'; readonly message: string }
  /** Answers to questions of the main process, by their id. */
  | WorkerAnswer
  /** A console of this worker asks; the answer comes as `answer` with this id. */
  | { readonly type: 'ask'; readonly id: number; readonly request: AdminRequest }
  /** An engine is about to lock relations: requests that may touch them are to wait; answered by `held`. */
  | { readonly type: 'hold'; readonly id: number; readonly names: readonly string[]; readonly unknown: boolean; readonly ms: number }
  /** They go on. `changed`: names of relations that are others now. */
  | { readonly type: 'let-go'; readonly id: number; readonly changed: readonly string[] };

/** Messages from the main process to children. */
export type ParentMessage =
  | { readonly type: 'config'; readonly config: WorkerConfig | EngineConfig }
  /** Finish and end. */
  | { readonly type: 'drain' }
  /** To a worker, and with it the connection of a client; answered by `taken`. */
  | { readonly type: 'connection' }
  /** To a worker: take no more clients. Those it has may stay until they leave, or until their transactions end. */
  | { readonly type: 'close-door'; readonly until: 'clients' | 'transactions' }
  | WorkerQuestion
  | { readonly type: 'answer'; readonly id: number; readonly answer: AdminAnswer }
  /** To an engine: requests wait, as far as workers could be told. */
  | { readonly type: 'held'; readonly id: number };
