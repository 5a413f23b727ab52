/**
 * Builds rows in COPY text format out of pgoutput tuples, bytes to bytes.
 * Invariant: a row is written exactly as the origin's COPY .. TO STDOUT would write it (client_encoding UTF8), so hashes of lines agree.
 */
import { type TupleView, valueKind } from './pgoutput.ts';
import { hashLine } from './row-hash.ts';

const chunkSize = 64 * 1024;
/** CopyData: type byte and length. Every chunk begins with room for it. */
const header = 5;
/** Width of a hash field: sign and ten digits. */
const hashWidth = 11;

const tab = 0x09;
const newline = 0x0a;
const backslash = 0x5c;

/** Byte -> the letter that follows the backslash, 0 when the byte stands for itself (Postgres: CopyAttributeOutText). */
const escapes = new Uint8Array(256);
for (const [byte, letter] of [
  [0x08, 'b'],
  [0x09, 't'],
  [0x0a, 'n'],
  [0x0b, 'v'],
  [0x0c, 'f'],
  [0x0d, 'r'],
  [backslash, '\\'],
] as const) {
  escapes[byte] = letter.charCodeAt(0);
}

/** Rows for one COPY .. FROM STDIN. Either whole lines by `appendLine`, or field by field. */
export class RowBuffer {
  #chunk: Buffer = Buffer.allocUnsafeSlow(chunkSize);
  #at = header;
  /** Where the line under construction begins. */
  #line = header;
  #full: Buffer[] = [];
  #fullBytes = 0;
  #rows = 0;

  /** Lines since the last `take`. */
  get rows(): number {
    return this.#rows;
  }

  /** Bytes since the last `take`. */
  get bytes(): number {
    return this.#fullBytes + this.#at - header;
  }

  /**
   * One line: `prefix` (ASCII that needs no escaping, with its final tab; or ''), then for each entry of `columnMap` that column of the tuple;
   * -1 stands for NULL. Unchanged TOAST values are written as NULL: see unchangedMask.
   */
  appendLine(prefix: string, row: TupleView, columnMap: readonly number[]): void {
    this.ascii(prefix);
    this.#columns(row, columnMap);
    this.endLine();
  }

  /** As appendLine, with the hash of the columns' part of the line (hashLine) as one more field between prefix and columns. Returns the hash. */
  appendHashedLine(prefix: string, row: TupleView, columnMap: readonly number[]): number {
    this.ascii(prefix);
    this.#reserve(hashWidth + 1);
    // The line may move to another chunk while it grows, so its parts are remembered relative to its beginning.
    const place = this.#at - this.#line;
    this.#at += hashWidth;
    this.#chunk[this.#at++] = tab;
    this.#columns(row, columnMap);
    const at = this.#line + place;
    const hash = hashLine(this.#chunk, at + hashWidth + 1, columnMap.length === 0 ? at + hashWidth + 1 : this.#at - 1);
    writeHash(this.#chunk, at, hash);
    this.endLine();
    return hash;
  }

  /** Characters that need no escaping; separators included. */
  ascii(text: string): void {
    if (text === '') return;
    this.#reserve(text.length);
    this.#at += this.#chunk.write(text, this.#at, 'latin1');
  }

  /** A field from bytes, escaped. */
  field(bytes: Buffer, start: number, end: number): void {
    this.#reserve(2 * (end - start) + 1);
    this.#at = escapeInto(this.#chunk, this.#at, bytes, start, end);
    this.#chunk[this.#at++] = tab;
  }

  /** A field from a string, escaped. */
  text(value: string): void {
    const bytes = Buffer.from(value);
    this.field(bytes, 0, bytes.length);
  }

  null(): void {
    this.#reserve(3);
    this.#chunk[this.#at++] = backslash;
    this.#chunk[this.#at++] = 0x4e;
    this.#chunk[this.#at++] = tab;
  }

  /** Ends the line; the last field's separator becomes the newline. */
  endLine(): void {
    if (this.#at > this.#line && this.#chunk[this.#at - 1] === tab) this.#chunk[this.#at - 1] = newline;
    else {
      this.#reserve(1);
      this.#chunk[this.#at++] = newline;
    }
    this.#line = this.#at;
    this.#rows++;
  }

  /** The lines so far as CopyData messages (for CopyIn.writeFrames), and empties the buffer. */
  take(): Buffer[] {
    this.#cut();
    const chunks = this.#full;
    this.#full = [];
    this.#fullBytes = 0;
    this.#rows = 0;
    return chunks;
  }

  /** As `take`; a few lines are copied and the buffer kept, so that many small takes cost little memory. */
  takeTight(): Buffer[] {
    if (this.#full.length > 0 || this.#at > chunkSize / 4) return this.take();
    const lines = this.#chunk.subarray(0, this.#at);
    if (lines.length > header) {
      lines[0] = 0x64;
      lines.writeInt32BE(lines.length - 1, 1);
    }
    const chunks = lines.length > header ? [Buffer.from(lines)] : [];
    this.clear();
    return chunks;
  }

  clear(): void {
    this.#full = [];
    this.#fullBytes = 0;
    this.#rows = 0;
    this.#at = header;
    this.#line = header;
  }

  #columns(row: TupleView, columnMap: readonly number[]): void {
    const { buffer, kinds, starts, ends } = row;
    for (let i = 0; i < columnMap.length; i++) {
      const column = columnMap[i] ?? -1;
      if (column < 0 || column >= row.count || kinds[column] !== valueKind.text) this.null();
      else this.field(buffer, starts[column] ?? 0, ends[column] ?? 0);
    }
  }

  #reserve(bytes: number): void {
    if (this.#chunk.length - this.#at >= bytes) return;
    // A line stays in one piece (it is hashed), so what there is of it moves along.
    const old = this.#chunk;
    const from = this.#line;
    const to = this.#at;
    const used = to - from;
    this.#at = from;
    this.#cut(Math.max(chunkSize, header + 2 * (used + bytes)));
    old.copy(this.#chunk, header, from, to);
    this.#at = header + used;
  }

  /** Closes the chunk at the end of the last whole line and begins another. */
  #cut(nextSize = chunkSize): void {
    if (this.#at > header) {
      this.#chunk[0] = 0x64;
      this.#chunk.writeInt32BE(this.#at - 1, 1);
      this.#full.push(this.#chunk.subarray(0, this.#at));
      this.#fullBytes += this.#at - header;
      this.#chunk = Buffer.allocUnsafeSlow(nextSize);
    } else if (this.#chunk.length < nextSize) {
      this.#chunk = Buffer.allocUnsafeSlow(nextSize);
    }
    this.#at = header;
    this.#line = header;
  }
}

/** Writes a hash as a field of fixed width that int4 reads ('+0000000042'). */
export function writeHash(target: Buffer, at: number, hash: number): void {
  target[at] = hash < 0 ? 0x2d : 0x2b;
  let rest = Math.abs(hash);
  for (let i = at + hashWidth - 1; i > at; i--) {
    target[i] = 0x30 + (rest % 10);
    rest = Math.floor(rest / 10);
  }
}

/** Which entries of `columnMap` are unchanged TOAST values: a bit string as of Postgres's type bit varying, first entry first; '' when none is. */
export function unchangedMask(row: TupleView, columnMap: readonly number[]): string {
  if (!row.leavesOut || !columnMap.some((column) => isLeftOut(row, column))) return '';
  return columnMap.map((column) => (isLeftOut(row, column) ? '1' : '0')).join('');
}

/** Whether the row has no value of a column because it was not changed. -1: the row has no such column. */
export function isLeftOut(row: TupleView, column: number): boolean {
  return column >= 0 && column < row.count && row.kinds[column] === valueKind.unchangedToast;
}

/** Room for twice the bytes must be there. Returns where the next byte goes. */
function escapeInto(target: Buffer, to: number, source: Buffer, start: number, end: number): number {
  let at = to;
  if (end - start < 48) {
    for (let i = start; i < end; i++) {
      const byte = source[i] ?? 0;
      const letter = escapes[byte] ?? 0;
      if (letter !== 0) {
        target[at++] = backslash;
        target[at++] = letter;
      } else target[at++] = byte;
    }
    return at;
  }
  let clean = start;
  for (let i = start; i < end; i++) {
    const letter = escapes[source[i] ?? 0] ?? 0;
    if (letter === 0) continue;
    at += source.copy(target, at, clean, i);
    target[at++] = backslash;
    target[at++] = letter;
    clean = i + 1;
  }
  return at + source.copy(target, at, clean, end);
}
