/** Work that one part finds and others take. Invariant: everything put in is taken once, in order, unless it was ended before. */
export class Backlog<Item> {
  readonly #items: Item[] = [];
  #waiting: ((item: Item | null) => void)[] = [];
  #ended = false;

  push(item: Item): void {
    const taker = this.#waiting.shift();
    if (taker === undefined) this.#items.push(item);
    else taker(item);
  }

  /** Nothing more will come. */
  end(): void {
    this.#ended = true;
    for (const taker of this.#waiting.splice(0)) taker(null);
  }

  /** The next; null when there is none and none will come. */
  take(): Promise<Item | null> {
    const item = this.#items.shift();
    if (item !== undefined) return Promise.resolve(item);
    if (this.#ended) return Promise.resolve(null);
    return new Promise((resolve) => this.#waiting.push(resolve));
  }
}
