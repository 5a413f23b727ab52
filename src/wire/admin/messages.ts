/**
 * What the admin console asks of the main process, which knows all workers, and what it is answered.
 * Plain data: it travels between processes as messages.
 */
import type { CommandOutcome, DatabaseStats, WorkerCommand, WorkerReport } from '../pool/report.ts';

export type ShutdownMode = 'now' | 'wait_for_clients' | 'wait_for_servers';

export type AdminRequest =
  | { readonly ask: 'state' }
  /** For all workers. `deadline` in ms: workers that have not answered by then are `missing`; none: they are waited for. */
  | { readonly ask: 'command'; readonly command: WorkerCommand; readonly deadline?: number }
  /** Config file, auth_file and certificates are read again. */
  | { readonly ask: 'reload' }
  /** One setting, until the next reload. */
  | { readonly ask: 'set'; readonly name: string; readonly value: string }
  | { readonly ask: 'shutdown'; readonly mode: ShutdownMode }
  /** A cancel request for a console or a pooled client of some worker. */
  | { readonly ask: 'cancel'; readonly key: string };

/** One worker as the main process knows it. */
export interface WorkerEntry {
  readonly number: number;
  readonly pid: number;
  readonly ready: boolean;
  readonly restarts: number;
  /** null: it did not answer in time. */
  readonly report: WorkerReport | null;
}

export interface ServiceState {
  readonly workers: readonly WorkerEntry[];
  /** Databases that PAUSE and DISABLE named; `pausedAll`: PAUSE named none. */
  readonly pausedAll: boolean;
  readonly paused: readonly string[];
  readonly disabled: readonly string[];
  /** What is not part of ProxySettings: files, addresses. Name -> as given. */
  readonly given: Readonly<Record<string, string>>;
  /** Statistics of all workers as they were a while ago, for averages. */
  readonly earlier: { readonly at: number; readonly stats: readonly DatabaseStats[] };
}

export type AdminAnswer =
  | { readonly answer: 'state'; readonly state: ServiceState }
  /** `missing`: numbers of workers that did not answer in time. `warnings`: one line each. */
  | { readonly answer: 'done'; readonly found: boolean; readonly missing: readonly number[]; readonly warnings: readonly string[] }
  | { readonly answer: 'failed'; readonly message: string };

/** What the main process sends a worker about the console, and the worker's answers. */
export type WorkerQuestion =
  | { readonly type: 'report'; readonly id: number }
  | { readonly type: 'command'; readonly id: number; readonly command: WorkerCommand }
  | { readonly type: 'cancel-here'; readonly key: string };
export type WorkerAnswer =
  | { readonly type: 'report'; readonly id: number; readonly report: WorkerReport }
  | { readonly type: 'outcome'; readonly id: number; readonly outcome: CommandOutcome | { readonly error: string } };

/** The way from a console to the main process. */
export interface AdminPort {
  ask(request: AdminRequest): Promise<AdminAnswer>;
}
