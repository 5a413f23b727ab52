/**
 * The answers a server connection still owes, in order.
 * Invariant: what is at the front is what the next answer of the server belongs to; a batch that failed owes nothing but the
 * ReadyForQuery of its Sync. Where that cannot be known any more `doubtful` is set, and the connection must not go to another client.
 * (Every pooler has shipped a bug here: the queue is the one place that counts.)
 * Numbers in a ring, because this is done for every message.
 */

export const Expect = {
  none: 0,
  /** ReadyForQuery, of a Query. */
  query: 1,
  functionCall: 2,
  sync: 3,
  parse: 4,
  bind: 5,
  describe: 6,
  execute: 7,
  close: 8,
  /** CopyDone or CopyFail stood here: no answer. */
  copyEnd: 9,
  /** An answer that Millrace gives itself when its turn comes. */
  local: 10,
} as const;

/** Added to a kind: the client does not see the answer. */
const hidden = 16;

/** What is known of an expected answer besides its kind. */
export interface Expectation {
  /** The answer itself, of `local`. */
  readonly reply?: Buffer;
  /** Of a hidden message: its error is for nobody. */
  readonly silent?: boolean;
  /** The client's statement that the message makes or takes away. */
  readonly statement?: string;
  /** The message had no effect: it failed, or the server skipped it. */
  undo?(skipped: boolean): void;
  /** It was answered with success. */
  done?(): void;
}

export class ExpectedReplies {
  /** Messages were sent that no Sync has followed yet. */
  batchOpen = false;
  /** The server discards what comes before the next Sync. */
  skipping = false;
  /** The server reads COPY data. */
  copyIn = false;
  /** It is not certain what the server will answer. */
  doubtful = false;
  /** How many of the entries are hidden or local: nearly always none, and then answers pass unseen. */
  edits = 0;
  #ring = new Uint8Array(64);
  #head = 0;
  #tail = 0;
  readonly #about = new Map<number, Expectation>();
  #syncsInCopy = 0;
  /** Where the last request stands that may drop all prepared statements. */
  #forgets = -1;
  #lastSync = -1;
  /** Where the last message stands that makes the unnamed statement; the others by their names, also those that take it away. */
  #unnamed = -1;
  readonly #changes = new Map<string, number>();

  get empty(): boolean {
    return this.#head === this.#tail;
  }

  /** Whether the server has answered everything and waits for a new request. */
  get quiet(): boolean {
    return this.#head === this.#tail && !this.batchOpen && !this.skipping && !this.copyIn && !this.doubtful;
  }

  /** Kind of the answer that comes next, without `hidden`. */
  get front(): number {
    return this.#head === this.#tail ? Expect.none : (this.#ring[this.#head & (this.#ring.length - 1)] ?? 0) & 15;
  }

  get frontHidden(): boolean {
    return this.#head !== this.#tail && ((this.#ring[this.#head & (this.#ring.length - 1)] ?? 0) & hidden) !== 0;
  }

  /** Whether what is being answered is the last thing that was asked. */
  get isLast(): boolean {
    for (let at = this.#head + 1; at < this.#tail; at++) {
      const kind = (this.#ring[at & (this.#ring.length - 1)] ?? 0) & 15;
      if (kind !== Expect.sync && kind !== Expect.close) return false;
    }
    return true;
  }

  /** Whether it takes more of the client for everything to be answered: nothing was asked, or COPY data or a Sync is wanting. */
  get unfinished(): boolean {
    return this.doubtful || this.empty || this.copyIn || this.batchOpen;
  }

  /** Whether an error of the hidden message whose answer comes next is for nobody. */
  get frontSilent(): boolean {
    return this.#about.get(this.#head)?.silent === true;
  }

  /** Whether a request sent now is discarded or cannot be booked. */
  get unbooked(): boolean {
    return this.skipping || this.copyIn || this.doubtful;
  }

  query(kind: typeof Expect.query | typeof Expect.functionCall, secret = false, about?: Expectation): void {
    if (this.copyIn) this.doubtful = true;
    if (this.unbooked) return;
    if (about !== undefined) this.#setAbout(this.#tail, about);
    this.#push(kind, secret);
    this.batchOpen = false;
  }

  /** Parse, Bind, Describe, Execute or Close was sent. */
  extended(kind: number, secret = false, about?: Expectation): void {
    if (this.copyIn) this.doubtful = true;
    if (this.unbooked) {
      about?.undo?.(true);
      return;
    }
    if (about !== undefined) this.#setAbout(this.#tail, about);
    this.#push(kind, secret);
    this.batchOpen = true;
  }

  /** The message that was booked last may drop all prepared statements. */
  forgets(): void {
    this.#forgets = this.#tail - 1;
  }

  /**
   * Whether it is not known yet what the client's statement will be: an earlier request may drop them all, or the message that makes it or
   * takes it away is in a batch of its own, which may fail without this one. `known`: the server is asked under that very name, so that
   * what it makes of a Parse of its own is all the same.
   */
  uncertain(statement: string, known: boolean): boolean {
    if (this.unbooked) return false;
    if (statement === '') return this.#head <= this.#unnamed && this.#unnamed < this.#lastSync;
    if (this.#head <= this.#forgets) return true;
    const at = this.#changes.size === 0 ? undefined : this.#changes.get(statement);
    return at !== undefined && at < this.#lastSync && (!known || this.#about.get(at)?.reply !== undefined);
  }

  sync(secret = false): void {
    if (this.copyIn) {
      this.#syncsInCopy++;
      return;
    }
    this.batchOpen = false;
    this.skipping = false;
    this.#lastSync = this.#tail;
    this.#push(Expect.sync, secret);
  }

  copyEnd(): void {
    if (this.copyIn) this.copyIn = false;
    else if (this.#head !== this.#tail) this.#push(Expect.copyEnd, false);
  }

  /** The answer at the front has come. Returns what was known of it. */
  pop(): Expectation | undefined {
    if (this.#head === this.#tail) {
      this.doubtful = true;
      return undefined;
    }
    const about = this.#drop();
    about?.done?.();
    while (this.front === Expect.copyEnd) this.#drop();
    return about;
  }

  /** The local answer whose turn has come; undefined when the server is to answer next. */
  takeLocal(): Buffer | undefined {
    if (this.front !== Expect.local) return undefined;
    return this.pop()?.reply;
  }

  /** CopyInResponse: the Syncs that were sent in front of the data mean nothing. */
  copyStarted(): void {
    const mask = this.#ring.length - 1;
    let to = this.#head + 1;
    let ended = false;
    let synced = false;
    let lastSync = -1;
    for (let at = to; at < this.#tail; at++) {
      const entry = this.#ring[at & mask] ?? 0;
      const kind = entry & 15;
      if (!ended && kind === Expect.sync) continue;
      if (!ended && kind === Expect.copyEnd) {
        ended = true;
        continue;
      }
      // Anything else in front of the end of the data breaks the COPY off.
      if (!ended) this.doubtful = true;
      if (kind === Expect.sync) {
        synced = true;
        lastSync = to;
      }
      const about = this.#about.get(at);
      this.#about.delete(at);
      if (about !== undefined) this.#setAbout(to, about);
      this.#ring[to++ & mask] = entry;
    }
    this.#tail = to;
    this.#forgets = Math.min(this.#forgets, to - 1);
    this.#lastSync = lastSync;
    this.copyIn = !ended;
    this.#syncsInCopy = 0;
    if (this.front === Expect.execute && !synced) this.batchOpen = true;
  }

  /** ErrorResponse. True when it ends a batch, whose other messages are not answered. */
  error(): boolean {
    if (this.copyIn) {
      this.copyIn = false;
      // Whether those came before or after the error nobody can tell.
      if (this.#syncsInCopy > 0) this.doubtful = true;
    }
    const front = this.front;
    if (front < Expect.parse) {
      this.#about.get(this.#head)?.undo?.(false);
      return false;
    }
    // The latest first, so that each finds what it left.
    const failed = this.#drop();
    const skipped: Expectation[] = [];
    while (this.#head !== this.#tail && this.front !== Expect.sync) {
      const about = this.#drop();
      if (about !== undefined) skipped.push(about);
    }
    if (this.#head === this.#tail) this.skipping = this.batchOpen;
    for (const about of skipped.reverse()) about.undo?.(true);
    failed?.undo?.(false);
    return true;
  }

  #setAbout(at: number, about: Expectation): void {
    this.#about.set(at, about);
    if (about.statement === '') this.#unnamed = at;
    else if (about.statement !== undefined) this.#changes.set(about.statement, at);
  }

  #push(kind: number, secret: boolean): void {
    if (secret || kind === Expect.local) this.edits++;
    if (this.#tail - this.#head === this.#ring.length) this.#grow();
    this.#ring[this.#tail++ & (this.#ring.length - 1)] = secret ? kind | hidden : kind;
  }

  #drop(): Expectation | undefined {
    const at = this.#head++;
    const entry = this.#ring[at & (this.#ring.length - 1)] ?? 0;
    if (entry >= hidden || entry === Expect.local) this.edits--;
    if (this.#about.size === 0) return undefined;
    const about = this.#about.get(at);
    if (about === undefined) return undefined;
    this.#about.delete(at);
    if (this.#changes.size > 0 && about.statement !== undefined && this.#changes.get(about.statement) === at)
      this.#changes.delete(about.statement);
    return about;
  }

  #grow(): void {
    const old = this.#ring;
    const ring = new Uint8Array(2 * old.length);
    for (let at = this.#head; at < this.#tail; at++) ring[at & (ring.length - 1)] = old[at & (old.length - 1)] ?? 0;
    this.#ring = ring;
  }
}
