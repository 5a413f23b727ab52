/**
 * What the client has asked and what the upstream has answered, in numbers.
 * Invariant: `quiet` is never true while an answer is on its way. The opposite may happen (a Sync that COPY swallowed, a Query that was
 * skipped after an error): then the numbers are set right by a marker, see quiesce.ts.
 */
import { Status } from './tags.ts';

export class Ledger {
  /** Forwarded requests that end in a ReadyForQuery, and the ReadyForQuery that came, since nothing was under way. */
  sent = 0;
  received = 0;
  /** Extended-protocol messages were forwarded after the last Sync or Query. */
  batchOpen = false;
  /** The open batch has made a portal, which lasts to the end of its transaction. */
  bound = false;
  /** Something was carried out since the last Sync, other than by a Query of its own. */
  executed = false;
  /** The upstream discards messages up to the next Sync. */
  skipping = false;
  /** The upstream reads COPY data: Sync and Flush mean nothing to it. */
  copyIn = false;
  /** Transaction status of the last ReadyForQuery: 'I', 'T' or 'E'. */
  status: number = Status.idle;
  /** For statistics: how many ReadyForQuery came in all, and how many of them outside a transaction. */
  answered = 0;
  transactions = 0;
  #lastWasQuery = false;
  /** `sent` at the last CopyDone or CopyFail; -1: none since nothing was under way. */
  #sentAtCopyEnd = -1;

  /** True when every request was answered and none is half sent. */
  get quiet(): boolean {
    return this.sent === this.received && !this.batchOpen && !this.copyIn;
  }

  /** A Query or FunctionCall was forwarded. In a batch known to have failed the upstream discards it. */
  query(): void {
    if (this.skipping) return;
    this.sent++;
    this.batchOpen = false;
    this.#lastWasQuery = true;
  }

  /** A Sync was forwarded. */
  sync(): void {
    if (this.copyIn) return;
    this.synced();
    this.sent++;
    this.#lastWasQuery = false;
  }

  /** The batch has ended, by a Sync of the client or one of ours. */
  synced(): void {
    this.batchOpen = false;
    this.skipping = false;
    this.bound = false;
    this.executed = false;
  }

  /** CopyDone or CopyFail was forwarded. */
  copyEnd(): void {
    this.copyIn = false;
    this.#sentAtCopyEnd = this.sent;
  }

  /** ReadyForQuery came. */
  ready(status: number): void {
    this.status = status;
    this.answered++;
    if (status === Status.idle) this.transactions++;
    this.copyIn = false;
    if (++this.received !== this.sent) return;
    this.settle();
    // A Query in a batch leaves the batch's transaction open up to Sync: then the status is not idle.
    if (status === Status.idle && !this.batchOpen) this.executed = false;
  }

  /** ErrorResponse came. With nothing older under way it belongs to the open batch. */
  error(): void {
    this.copyIn = false;
    if (this.batchOpen && this.sent === this.received) this.skipping = true;
  }

  /** CopyInResponse came. When Execute caused it, the Syncs in front of the data are not answered, and the batch stays open. */
  copyStarted(): void {
    const dataSent = this.#sentAtCopyEnd !== -1;
    this.copyIn = !dataSent;
    if (this.#lastWasQuery && this.sent > this.received) return;
    const until = dataSent ? this.#sentAtCopyEnd : this.sent;
    if (until > this.received) this.sent -= until - this.received;
    if (this.sent === this.received) this.batchOpen = true;
  }

  /** Known to be at rest: older differences are forgotten. */
  settle(): void {
    this.sent = 0;
    this.received = 0;
    this.#sentAtCopyEnd = -1;
  }
}
