/** Transactions that a stream brought lately. Invariant: the last `remembered` are known. Every transaction is written down; asked is hardly ever. */

/** More than are ever committed between a commit's record in the WAL and its being visible. */
const remembered = 16_384;

export class RecentXids {
  /** In a circle; 0 is no xid of a transaction that writes. */
  readonly #xids = new Uint32Array(remembered);
  #next = 0;

  add(xid: number): void {
    this.#xids[this.#next] = xid;
    this.#next = (this.#next + 1) % remembered;
  }

  has(xid: number): boolean {
    return this.#xids.includes(xid);
  }
}
