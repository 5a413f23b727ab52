/**
 * Cuts a byte stream into protocol frames (type byte, int32 length, body).
 * Invariant: a frame is given to the consumer whole and once, in order; while paused nothing is given.
 */

/** Takes whole frames from `buffer[start .. end)` and returns the offset of the first byte it did not take. May pause the reader. */
export type FrameConsumer = (buffer: Buffer, start: number, end: number) => number;

export class FrameReader {
  readonly #consume: FrameConsumer;
  #waiting: Buffer[] = [];
  #waitingBytes = 0;
  /** Bytes that must be there before the consumer can do anything. */
  #needed = 0;
  #paused = false;
  #running = false;

  constructor(consume: FrameConsumer) {
    this.#consume = consume;
  }

  get paused(): boolean {
    return this.#paused;
  }

  push(chunk: Buffer): void {
    this.#waiting.push(chunk);
    this.#waitingBytes += chunk.length;
    this.#run();
  }

  pause(): void {
    this.#paused = true;
  }

  /** Gives what has arrived meanwhile, synchronously. */
  resume(): void {
    this.#paused = false;
    this.#run();
  }

  #run(): void {
    if (this.#running) return;
    this.#running = true;
    try {
      while (!this.#paused && this.#waitingBytes > 0 && this.#waitingBytes >= this.#needed) {
        const first = this.#waiting[0];
        // At most one chunk is copied per frame that spans chunks.
        const buffer = this.#waiting.length === 1 && first !== undefined ? first : Buffer.concat(this.#waiting, this.#waitingBytes);
        this.#waiting = [];
        this.#waitingBytes = 0;
        const at = this.#consume(buffer, 0, buffer.length);
        const left = buffer.length - at;
        if (left > 0) {
          this.#waiting.unshift(at === 0 ? buffer : buffer.subarray(at));
          this.#waitingBytes += left;
        }
        this.#needed = this.#paused ? 0 : left >= 5 ? 1 + buffer.readInt32BE(at + 1) : 5;
      }
    } finally {
      this.#running = false;
    }
  }
}
