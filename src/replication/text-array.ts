/**
 * Builds text[] parameters in binary format out of pgoutput tuples: for small batches, where an array per column
 * and unnest() beat COPY. No quoting, no strings.
 * Invariant: the parameter is a one-dimensional text[] with lower bound 1; elements are the bytes of the values.
 */

const textOid = 25;
/** Dimensions, has-null flag, element type, length, lower bound. */
const header = 20;

/** One array under construction; a new one is needed for each use as a parameter. */
export class TextArray {
  #bytes = Buffer.allocUnsafe(256);
  #at = header;
  #count = 0;
  #hasNull = false;

  get count(): number {
    return this.#count;
  }

  append(source: Buffer, start: number, end: number): void {
    const length = end - start;
    this.#reserve(4 + length);
    this.#at = this.#bytes.writeInt32BE(length, this.#at);
    this.#at += source.copy(this.#bytes, this.#at, start, end);
    this.#count++;
  }

  appendText(value: string): void {
    const length = Buffer.byteLength(value);
    this.#reserve(4 + length);
    this.#at = this.#bytes.writeInt32BE(length, this.#at);
    this.#at += this.#bytes.write(value, this.#at, 'utf8');
    this.#count++;
  }

  appendNull(): void {
    this.#reserve(4);
    this.#at = this.#bytes.writeInt32BE(-1, this.#at);
    this.#count++;
    this.#hasNull = true;
  }

  /** The parameter; the array must not be appended to afterwards. */
  toParam(): { readonly binary: Buffer } {
    const bytes = this.#bytes;
    bytes.writeInt32BE(this.#count === 0 ? 0 : 1, 0);
    bytes.writeInt32BE(this.#hasNull ? 1 : 0, 4);
    bytes.writeInt32BE(textOid, 8);
    if (this.#count === 0) return { binary: bytes.subarray(0, 12) };
    bytes.writeInt32BE(this.#count, 12);
    bytes.writeInt32BE(1, 16);
    return { binary: bytes.subarray(0, this.#at) };
  }

  #reserve(more: number): void {
    if (this.#bytes.length - this.#at >= more) return;
    const larger = Buffer.allocUnsafe(Math.max(this.#bytes.length * 2, this.#at + more));
    this.#bytes.copy(larger, 0, 0, this.#at);
    this.#bytes = larger;
  }
}
