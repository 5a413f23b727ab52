/**
 * Rows as the server writes them for COPY, as bytes.
 * Invariant: a value is the bytes between two tabs, `\N` is NULL, and what a line escapes it escapes in one way only: so two values look the same as
 * text exactly when their bytes are the same (PostgreSQL, "COPY", text format). A line keeps the buffer it stands in.
 */

/** Values as text, by place. */
export type Row = readonly (string | null)[];

const tab = 0x09;
const backslash = 0x5c;

/** How the columns of a relation stand in a line. */
export interface LineLayout {
  /** Column by column: which field of the line it is. */
  readonly fieldOf: readonly number[];
}

/** One row: the fields `[start, end)` of a buffer, from its first column on, without the newline. */
export class RowLine {
  readonly layout: LineLayout;
  readonly buffer: Buffer;
  readonly start: number;
  readonly end: number;

  constructor(layout: LineLayout, buffer: Buffer, start: number, end: number) {
    this.layout = layout;
    this.buffer = buffer;
    this.start = start;
    this.end = end;
  }

  /** Its columns as text, made anew each time. */
  values(): Row {
    const fields: (string | null)[] = [];
    let begun = this.start;
    for (let at = this.start; at <= this.end; at++) {
      if (at < this.end && this.buffer[at] !== tab) continue;
      fields.push(fieldText(this.buffer, begun, at));
      begun = at + 1;
    }
    return this.layout.fieldOf.map((field) => fields[field] ?? null);
  }

  /** Whether it looks like another line of the same layout. */
  looksLike(other: RowLine): boolean {
    return sameBytes(this.buffer, this.start, this.end, other.buffer, other.start, other.end);
  }
}

/** Whether two ranges hold the same bytes. Most differ early, or are short: a loop is quicker than a call into native code. */
export function sameBytes(a: Buffer, aStart: number, aEnd: number, b: Buffer, bStart: number, bEnd: number): boolean {
  if (aEnd - aStart !== bEnd - bStart) return false;
  for (let i = aStart, j = bStart; i < aEnd; i++, j++) if (a[i] !== b[j]) return false;
  return true;
}

/** Whether a field is NULL. */
export function isNullField(buffer: Buffer, start: number, end: number): boolean {
  return end - start === 2 && buffer[start] === backslash && buffer[start + 1] === 0x4e;
}

/** A field as text; null for NULL. */
export function fieldText(buffer: Buffer, start: number, end: number): string | null {
  if (isNullField(buffer, start, end)) return null;
  const text = buffer.toString('utf8', start, end);
  return text.includes('\\') ? text.replace(/\\(.)/g, (_, letter: string) => unescaped[letter] ?? letter) : text;
}

/** What the letter behind a backslash stands for; any other stands for itself. */
const unescaped: Readonly<Record<string, string>> = { b: '\b', f: '\f', n: '\n', r: '\r', t: '\t', v: '\v' };

/** The field boundaries of a line: field f is `[ends[f - 1] + 1, ends[f])`, and the first begins with the line. Answers how many fields there are. */
export function fieldEnds(line: RowLine, ends: Int32Array): number {
  const { buffer, end } = line;
  let count = 0;
  for (let at = line.start; at < end; at++) if (buffer[at] === tab) ends[count++] = at;
  ends[count++] = end;
  return count;
}
