/**
 * Keys seen in a batch, as 64-bit hashes.
 * Invariant: a key that was added is always found again; a key that was not may (once in 2^64 / size) be taken for one that was.
 */
import { type TupleView, valueKind } from './pgoutput.ts';
import { hashBytes } from './row-hash.ts';

export class KeySet {
  /** Two 32-bit halves per place; both 0 means free. */
  #places = new Int32Array(2 * 1024);
  #size = 0;

  /** Number of different keys added. */
  get size(): number {
    return this.#size;
  }

  /** Adds the key a row has in `columns` (indexes into the tuple); true when it (or one of the same hash) was there already. */
  add(row: TupleView, columns: readonly number[]): boolean {
    let low = 0x2545f491;
    let high = 0x27220a95;
    for (const column of columns) {
      const isText = row.kinds[column] === valueKind.text;
      const start = row.starts[column] ?? 0;
      const end = isText ? (row.ends[column] ?? 0) : start;
      // The kind and the length go in, so that neither NULL and '' nor ('a','bc') and ('ab','c') agree.
      low = Math.imul(low ^ (isText ? end - start + 1 : 0), 0x9e3779b1) | 0;
      high = Math.imul(high ^ (isText ? end - start + 1 : 0), 0x85ebca77) | 0;
      low = hashBytes(row.buffer, start, end, low);
      high = hashBytes(row.buffer, start, end, high);
    }
    return this.addHash(low, high);
  }

  /** Adds a hash given as two 32-bit halves; true when it was there. */
  addHash(low: number, high: number): boolean {
    if (this.#size * 4 >= this.#places.length) this.#grow();
    const found = this.#put(this.#places, low, low === 0 && high === 0 ? 1 : high);
    if (!found) this.#size++;
    return found;
  }

  clear(): void {
    if (this.#size === 0) return;
    // A set that was large once should not cost a large fill for each small batch.
    if (this.#places.length > 2 * 1024 && this.#size * 16 < this.#places.length) this.#places = new Int32Array(2 * 1024);
    else this.#places.fill(0);
    this.#size = 0;
  }

  #put(places: Int32Array, low: number, high: number): boolean {
    const mask = places.length / 2 - 1;
    for (let at = low & mask; ; at = (at + 1) & mask) {
      const one = places[2 * at];
      const other = places[2 * at + 1];
      if (one === 0 && other === 0) {
        places[2 * at] = low;
        places[2 * at + 1] = high;
        return false;
      }
      if (one === low && other === high) return true;
    }
  }

  #grow(): void {
    const larger = new Int32Array(this.#places.length * 2);
    for (let i = 0; i < this.#places.length; i += 2) {
      const low = this.#places[i] ?? 0;
      const high = this.#places[i + 1] ?? 0;
      if (low !== 0 || high !== 0) this.#put(larger, low, high);
    }
    this.#places = larger;
  }
}
