/**
 * Bytes written one after the other, handed out as pieces of larger buffers.
 * Invariant: a piece never changes once it is handed out; the piece that is being written stands in one buffer as a whole, from `begun` to `at`.
 */

const chunkBytes = 256 * 1024;

export class ByteArena {
  /** Where the piece that is being written stands; another one after `reserve`. */
  buffer: Buffer = Buffer.allocUnsafeSlow(chunkBytes);
  at = 0;
  #begun = 0;

  /** A piece begins. */
  begin(): void {
    this.#begun = this.at;
  }

  /** Makes room for so many bytes more in this piece. */
  reserve(bytes: number): void {
    if (this.at + bytes <= this.buffer.length) return;
    const larger = Buffer.allocUnsafeSlow(Math.max(chunkBytes, (this.at - this.#begun + bytes) * 2));
    this.buffer.copy(larger, 0, this.#begun, this.at);
    this.at -= this.#begun;
    this.#begun = 0;
    this.buffer = larger;
  }

  /** Needs room. */
  byte(value: number): void {
    this.buffer[this.at++] = value;
  }

  /** Needs room. For few bytes. */
  bytes(bytes: Buffer): void {
    const { buffer } = this;
    let { at } = this;
    for (let i = 0; i < bytes.length; i++) buffer[at++] = bytes[i] as number;
    this.at = at;
  }

  /** Makes room itself. */
  text(text: string): void {
    this.reserve(text.length * 3);
    this.at += this.buffer.write(text, this.at);
  }

  /** What was written since `begin`. */
  end(): Buffer {
    return this.buffer.subarray(this.#begun, this.at);
  }
}
