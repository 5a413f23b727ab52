/** Transactions that a stream brought lately. Invariant: the last `remembered / 2` are always known. */

/** More than are ever committed between a commit's record in the WAL and its being visible. */
const remembered = 20_000;

export class RecentXids {
  readonly #order: number[] = [];
  readonly #known = new Set<number>();

  add(xid: number): void {
    this.#order.push(xid);
    this.#known.add(xid);
    if (this.#order.length > remembered) for (const old of this.#order.splice(0, remembered / 2)) this.#known.delete(old);
  }

  has(xid: number): boolean {
    return this.#known.has(xid);
  }
}
