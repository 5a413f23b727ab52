/**
 * Tasks that extended statements want run once their transaction has committed.
 * Invariant: a task runs at most once, only when the transaction committed, and before the client hears the ReadyForQuery of it.
 * While tasks wait, the session forwards one request at a time, so that nothing follows that ReadyForQuery before they are done.
 */
import type { CommitTask } from './caller.ts';
import { commandTag } from './decode.ts';
import type { DriverPort } from './driver.ts';
import { Disposition, type ReplySink } from './replies.ts';
import { Reply, Status } from './tags.ts';

export type Outcome =
  /** By an explicit COMMIT: what goes wrong now is a warning. */
  | 'committed'
  /** By the Sync behind the statement itself: what goes wrong is its error. */
  | 'implicit'
  | 'rolled back';

/** Reads the replies while tasks wait. `ended` is called, instead of forwarding, with the ReadyForQuery that ends the transaction. */
export class CommitWatch implements ReplySink {
  tasks: CommitTask[] = [];
  readonly #port: DriverPort;
  readonly #hooks: { ended(outcome: Outcome, readyForQuery: Buffer): void; answered(): void };
  /** Registered outside an explicit block. */
  #implicit = false;
  #error = false;
  #committed = false;
  #rolledBack = false;

  constructor(port: DriverPort, hooks: { ended(outcome: Outcome, readyForQuery: Buffer): void; answered(): void }) {
    this.#port = port;
    this.#hooks = hooks;
  }

  /** Adds what a statement has registered. */
  add(tasks: readonly CommitTask[], implicit: boolean): void {
    if (tasks.length === 0) return;
    if (this.tasks.length === 0) {
      this.#implicit = implicit;
      this.#error = false;
      this.#committed = false;
      this.#rolledBack = false;
    }
    this.tasks.push(...tasks);
  }

  disposition(tag: number): number {
    switch (tag) {
      case Reply.commandComplete:
      case Reply.error:
      case Reply.readyForQuery:
      case Reply.copyIn:
      case Reply.parameterStatus:
        return Disposition.collect;
      default:
        return Disposition.pass;
    }
  }

  message(tag: number, message: Buffer): void {
    const bytes = Buffer.from(message);
    if (tag === Reply.readyForQuery) {
      this.#port.ledger.ready(message[5] ?? Status.idle);
      if (this.#port.ledger.status === Status.idle) {
        this.#hooks.ended(this.#outcome(), bytes);
        return;
      }
    }
    this.#port.toClient(bytes);
    this.note(tag, message);
    if (tag === Reply.error) this.#port.ledger.error();
    else if (tag === Reply.copyIn) this.#port.ledger.copyStarted();
    else if (tag === Reply.parameterStatus) this.#port.parameterStatus(message);
    // COPY data is no new request: the upstream waits for it.
    if (tag === Reply.readyForQuery || tag === Reply.copyIn) this.#hooks.answered();
  }

  /** Takes notice of an answer that says how the transaction goes on, also of one that came while a message was taken over. */
  note(tag: number, message: Buffer): void {
    if (tag === Reply.error) this.noteError();
    else if (tag === Reply.commandComplete) {
      const command = commandTag(message);
      if (command === 'COMMIT') this.#committed = true;
      // Also the tag of ROLLBACK TO SAVEPOINT: behind that one a COMMIT follows.
      else if (command === 'ROLLBACK') this.#rolledBack = true;
    }
  }

  /** An error, whoever raised it, has undone the transaction unless that is an explicit one. */
  noteError(): void {
    this.#error = true;
  }

  #outcome(): Outcome {
    if (this.#committed) return 'committed';
    if (this.#rolledBack || this.#error || !this.#implicit) return 'rolled back';
    return 'implicit';
  }
}
