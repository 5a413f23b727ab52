/**
 * Rows of a large transaction, out of memory until they are wanted.
 * Invariant: the file has no name while it is in use, so nothing is left of it whatever becomes of the process.
 */
import { closeSync, mkdtempSync, openSync, readSync, rmSync, unlinkSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/** Whole CopyData messages: in memory, or where they are in a file. */
export type Frames = Buffer | SpilledFrames;

export interface SpilledFrames {
  /** Reads them. */
  readonly read: () => Buffer;
}

export class Spill {
  #file: number | null = null;
  #end = 0;

  /** Moves frames into the file. Throws what the file system says when there is no room. */
  append(frames: readonly Buffer[]): SpilledFrames[] {
    this.#file ??= openUnnamed();
    const file = this.#file;
    return frames.map((frame) => {
      const at = this.#end;
      for (let done = 0; done < frame.length; ) done += writeSync(file, frame, done, frame.length - done, at + done);
      this.#end += frame.length;
      return { read: () => readWhole(file, at, frame.length) };
    });
  }

  /** What was appended cannot be read any more. */
  release(): void {
    if (this.#file !== null) closeSync(this.#file);
    this.#file = null;
    this.#end = 0;
  }
}

function openUnnamed(): number {
  const folder = mkdtempSync(join(tmpdir(), 'millrace-'));
  const path = join(folder, 'rows');
  const file = openSync(path, 'wx+', 0o600);
  unlinkSync(path);
  rmSync(folder, { recursive: true, force: true });
  return file;
}

function readWhole(file: number, at: number, length: number): Buffer {
  const frame = Buffer.allocUnsafeSlow(length);
  for (let done = 0; done < length; ) {
    const read = readSync(file, frame, done, length - done, at + done);
    if (read === 0) throw new Error('a file of set aside rows is shorter than what was written');
    done += read;
  }
  return frame;
}
