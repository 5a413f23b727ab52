/** What the handlers of taken-over messages work with. Invariant: while one of them runs nobody else writes to either side. */
import type { Logger } from '../log.ts';
import type { StatementText } from '../sql/ast.ts';
import type { CallerSession, StatementRunner } from '../statements/caller-session.ts';
import { type BoundParameters, type CommitTask, createCaller } from './caller.ts';
import type { CommitWatch } from './commit-tasks.ts';
import type { Counters } from './counters.ts';
import type { Driver } from './driver.ts';
import type { Ledger } from './ledger.ts';
import type { LocalNames } from './local-names.ts';
import { quiesce, type Rest } from './quiesce.ts';
import type { Gate } from './requests.ts';
import { Status } from './tags.ts';

export type StatementParser = (
  text: string,
  options: { readonly standardConformingStrings?: boolean; readonly subscriptionCursors?: boolean },
) => readonly StatementText[];

export interface Taken {
  readonly user: string;
  readonly database: string;
  readonly driver: Driver;
  readonly ledger: Ledger;
  readonly names: LocalNames;
  readonly watch: CommitWatch;
  readonly runner: StatementRunner;
  readonly counters: Counters;
  readonly log: Logger;
  readonly mayBeExtended: Gate;
  readonly parse: (text: string) => readonly StatementText[];
  /** Sends a message of the client to the upstream and books it as the client's. */
  forward(message: Buffer): void;
  /** The client's COPY data goes to the upstream until its end, or until `endCopyIn`. */
  relayCopyIn(): void;
  endCopyIn(): void;
}

/** A caller's session for one statement. `tasks` receives what is to be run after the commit. */
export function callerFor(
  taken: Taken,
  how: { readonly name: string; readonly eachSynced: boolean; readonly bound?: BoundParameters },
  tasks: CommitTask[] = [],
): CallerSession {
  return createCaller(taken.driver, {
    user: taken.user,
    database: taken.database,
    ...how,
    inTransactionBlock: () => taken.ledger.status !== Status.idle,
    onCommit: (task) => tasks.push(task),
    cursors: taken.names.cursors,
  });
}

/**
 * As `rest`, in front of a Query or FunctionCall. A batch that has executed nothing leaves that a transaction of its own, which ends with
 * it; with a question of ours in the batch it would be part of a block up to Sync, so that the batch is ended first.
 */
export async function restBeforeQuery(taken: Taken): Promise<Rest> {
  const reached = await rest(taken);
  if (reached === 'ready' && taken.ledger.asked && taken.ledger.status === Status.idle) await taken.driver.sync();
  return reached;
}

/** Waits until the upstream has answered everything the client has sent so far. */
export function rest(taken: Taken): Promise<Rest> {
  return quiesce(taken.driver, (tag, message) => taken.watch.note(tag, message));
}
