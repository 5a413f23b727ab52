/**
 * What the client has asked and what the upstream has answered.
 * Invariant: `quiet` is never true while an answer is on its way. The opposite may happen (a Query that was skipped after an error, a
 * Sync among COPY data that failed): then a marker puts it right, see quiesce.ts.
 */
import { Status } from './tags.ts';

/** What is remembered of the messages that were forwarded, in their order. */
const Entry = {
  /** Query or FunctionCall, and the startup packet: answered by ReadyForQuery. */
  query: 1,
  /** Answered by ReadyForQuery, unless COPY reads it. */
  sync: 2,
  /** CopyData; several in a row are one. */
  copyData: 3,
  /** CopyDone or CopyFail. */
  copyEnd: 4,
  /** Execute behind COPY messages that are still here: what it reads comes behind it. */
  execute: 5,
} as const;

/** A server that does not expect COPY data says nothing to it, so that nothing else bounds how much a client can send of it. */
const mostCopyEntries = 1_000;

export class Ledger {
  /** Extended-protocol messages were forwarded after the last Sync or Query. */
  batchOpen = false;
  /** The upstream is known to have answered everything of the open batch so far. */
  caughtUp = false;
  /** The open batch has made a portal, which lasts to the end of its transaction. */
  bound = false;
  /** Something was carried out since the last Sync, other than by a Query of its own. */
  executed = false;
  /** A question of ours was executed since the last Sync, though nothing of the client: the upstream takes what follows for a pipeline. */
  asked = false;
  /** The upstream discards messages up to the next Sync. */
  skipping = false;
  /** The upstream reads COPY data: Sync and Flush mean nothing to it. */
  copyIn = false;
  /** Transaction status of the last ReadyForQuery: 'I', 'T' or 'E'. */
  status: number = Status.idle;
  /** How many ReadyForQuery are to come. */
  outstanding = 0;
  /** It cannot be known from here which Sync was answered, and which was read as part of COPY data. */
  doubtful = false;
  /** A ring of entries; its length is a power of two. */
  #entries = new Uint8Array(8);
  #first = 0;
  #count = 0;
  #copyEntries = 0;
  /** CopyData was forwarded to the COPY that reads now. */
  #dataSeen = false;
  /** A Sync stood among the data of a COPY: should that fail, the Sync may have been answered. */
  #syncAmongData = false;
  /** For statistics: how many ReadyForQuery came in all, and how many of them outside a transaction. */
  answered = 0;
  transactions = 0;

  /** True when every request was answered and none is half sent. */
  get quiet(): boolean {
    return this.outstanding === 0 && !this.batchOpen && !this.copyIn && !this.doubtful;
  }

  /** An extended-protocol message was forwarded. */
  extended(): void {
    this.batchOpen = true;
    this.caughtUp = false;
  }

  /** A Query, FunctionCall or startup packet was forwarded. In a batch known to have failed the upstream discards it. */
  query(): void {
    if (this.skipping) return;
    this.#push(Entry.query);
    this.batchOpen = false;
    this.caughtUp = false;
  }

  /** A Sync was forwarded. */
  sync(): void {
    if (this.copyIn) {
      if (this.#dataSeen) this.#syncAmongData = true;
      return;
    }
    this.synced();
    this.#push(Entry.sync);
  }

  /** The batch has ended, by a Sync of the client or one of ours. */
  synced(): void {
    this.batchOpen = false;
    this.caughtUp = false;
    this.skipping = false;
    this.bound = false;
    this.executed = false;
    this.asked = false;
  }

  /** Execute was forwarded. */
  execute(): void {
    if (this.copyIn) return;
    this.extended();
    this.executed = true;
    this.asked = false;
    if (this.#copyEntries > 0 && this.#isCopy(this.#at(this.#count - 1))) this.#pushCopy(Entry.execute);
  }

  /** CopyData was forwarded. */
  copyData(): void {
    if (this.copyIn) this.#dataSeen = true;
    else if (this.#count === 0 || this.#at(this.#count - 1) !== Entry.copyData) this.#pushCopy(Entry.copyData);
  }

  /** CopyDone or CopyFail was forwarded. */
  copyEnd(): void {
    if (!this.copyIn) this.#pushCopy(Entry.copyEnd);
    this.copyIn = false;
  }

  /** ReadyForQuery came. */
  ready(status: number): void {
    this.status = status;
    this.answered++;
    if (status === Status.idle) this.transactions++;
    this.copyIn = false;
    this.#syncAmongData = false;
    while (this.#count > 0) {
      const entry = this.#shift();
      if (entry === Entry.query || entry === Entry.sync) break;
    }
    if (this.outstanding > 0) return;
    // A Query in a batch leaves the batch's transaction open up to Sync: then the status is not idle.
    if (this.batchOpen) return;
    this.#clear();
    if (status !== Status.idle) return;
    this.executed = false;
    this.bound = false;
  }

  /** ErrorResponse came. With nothing older under way it belongs to the open batch. */
  error(): void {
    this.copyIn = false;
    if (this.#syncAmongData) this.doubtful = true;
    if (this.batchOpen && this.outstanding === 0) this.skipping = true;
  }

  /** CopyInResponse came: the upstream reads what follows the request, up to the end of the data. Syncs there are not answered. */
  copyStarted(): void {
    const request = this.#nextRequest();
    // Of a Query the data come behind it, and with Execute they may come in front of the Sync that is waited for.
    let at = request < this.#count && this.#at(request) === Entry.query ? request + 1 : this.#behindExecute(request);
    const swallowed = request < at ? 0 : this.outstanding;
    this.copyIn = true;
    this.#dataSeen = false;
    this.#syncAmongData = false;
    while (this.copyIn && at < this.#count) {
      const entry = this.#remove(at);
      if (entry === Entry.copyEnd) this.copyIn = false;
      else if (entry === Entry.copyData) this.#dataSeen = true;
      else if (entry === Entry.sync) {
        if (this.#dataSeen) this.#syncAmongData = true;
      } else if (entry === Entry.query) {
        // No COPY takes a Query: the upstream will say so.
        at++;
      }
    }
    if (swallowed === 0 || this.outstanding > 0) return;
    // The batch of the Execute goes on.
    this.extended();
    this.bound = true;
    this.executed = true;
  }

  /** Known to be at rest: older differences are forgotten. */
  settle(): void {
    this.#clear();
    this.doubtful = false;
  }

  #clear(): void {
    this.#count = 0;
    this.#copyEntries = 0;
    this.outstanding = 0;
  }

  #pushCopy(entry: number): void {
    // At rest nobody waits for data.
    if (this.skipping || (this.outstanding === 0 && !this.batchOpen)) return;
    if (this.#copyEntries >= mostCopyEntries) this.doubtful = true;
    else this.#push(entry);
  }

  #push(entry: number): void {
    if (this.#count === this.#entries.length) {
      const larger = new Uint8Array(2 * this.#count);
      for (let at = 0; at < this.#count; at++) larger[at] = this.#at(at);
      this.#entries = larger;
      this.#first = 0;
    }
    this.#entries[(this.#first + this.#count++) & (this.#entries.length - 1)] = entry;
    if (entry === Entry.query || entry === Entry.sync) this.outstanding++;
    else this.#copyEntries++;
  }

  #at(index: number): number {
    return this.#entries[(this.#first + index) & (this.#entries.length - 1)] ?? 0;
  }

  #shift(): number {
    const entry = this.#at(0);
    this.#first = (this.#first + 1) & (this.#entries.length - 1);
    this.#forget(entry);
    return entry;
  }

  /** Takes out the entry at `index`, except a Query. */
  #remove(index: number): number {
    const entry = this.#at(index);
    if (entry === Entry.query) return entry;
    for (let at = index + 1; at < this.#count; at++) {
      this.#entries[(this.#first + at - 1) & (this.#entries.length - 1)] = this.#at(at);
    }
    this.#forget(entry);
    return entry;
  }

  #forget(entry: number): void {
    this.#count--;
    if (entry === Entry.query || entry === Entry.sync) this.outstanding--;
    else this.#copyEntries--;
  }

  #isCopy(entry: number): boolean {
    return entry === Entry.copyData || entry === Entry.copyEnd;
  }

  /** Where the data of an Execute in front of `request` begin: nobody read those in front of the first Execute that follows any. */
  #behindExecute(request: number): number {
    for (let at = 0; at < request; at++) {
      if (this.#at(at) === Entry.execute) return at + 1;
    }
    return 0;
  }

  /** The index of the request that is answered next. */
  #nextRequest(): number {
    for (let at = 0; at < this.#count; at++) {
      const entry = this.#at(at);
      if (entry === Entry.query || entry === Entry.sync) return at;
    }
    return this.#count;
  }
}
