/**
 * Reads the rows of a query as lines of COPY, in pages, while the page before is being written.
 * Invariant: rows are handed over in order, one page at a time, each once; when `read` has ended, also by an error of who takes them, the session is
 * idle again. What has been read and not taken is bounded: the server waits.
 */
import type { RawConnection } from '../replication/session-contract.ts';
import type { OutboxRow } from './changes.ts';
import { type LineLayout, RowLine } from './row-lines.ts';

/** Rows of a page are together about as large. */
const pageBytes = 512 * 1024;
/** Read ahead of who takes them. */
const aheadBytes = 4 * 1024 * 1024;

const tab = 0x09;
const minus = 0x2d;
const backslash = 0x5c;
/** CopyData: type byte and length. */
const header = 5;

type CopySession = Pick<RawConnection, 'copyOut' | 'pause' | 'resume'>;

export type RowsHandler = (rows: readonly OutboxRow[]) => Promise<void>;

/** What a line is: weight, partition, a number, then columns. */
export interface LineShape {
  readonly layout: LineLayout;
  /** How many columns belong to the group, besides the number. */
  readonly grouped: number;
  /** Timestamp of all rows; null: the number is it. */
  readonly ts: number | null;
}

export class LineReader {
  readonly #session: CopySession;
  readonly #shape: LineShape;
  #last: number | null = null;

  constructor(session: CopySession, shape: LineShape) {
    this.#session = session;
    this.#shape = shape;
  }

  /** The number in the last line read; null: there was none. */
  get lastNumber(): number | null {
    return this.#last;
  }

  async read(sql: string, take: RowsHandler): Promise<void> {
    const session = this.#session;
    let pages: Buffer[] = [];
    let waiting = 0;
    let ended = false;
    let isGivenUp = false;
    let wake: (() => void) | null = null;
    const copied = session
      .copyOut(`COPY (${sql}) TO STDOUT`, (buffer, start, end) => {
        if (isGivenUp) return;
        pages.push(Buffer.from(buffer.subarray(start, end)));
        waiting += end - start;
        if (waiting > aheadBytes) session.pause();
        if (waiting >= pageBytes) wake?.();
      })
      .finally(() => {
        ended = true;
        wake?.();
      });
    copied.catch(() => undefined);
    try {
      for (;;) {
        if (!ended && waiting < pageBytes) {
          await new Promise<void>((resolve) => {
            wake = resolve;
          });
          wake = null;
        }
        const taken = pages;
        pages = [];
        waiting = 0;
        session.resume();
        if (taken.length === 0 && ended) break;
        for (const rows of this.#inPages(taken)) await take(rows);
      }
    } finally {
      isGivenUp = true;
      pages = [];
      session.resume();
      await copied.catch(() => undefined);
    }
    await copied;
  }

  *#inPages(buffers: readonly Buffer[]): Generator<OutboxRow[]> {
    let rows: OutboxRow[] = [];
    let size = 0;
    for (const buffer of buffers) {
      this.#rowsOf(buffer, rows);
      size += buffer.length;
      if (size < pageBytes) continue;
      yield rows;
      rows = [];
      size = 0;
    }
    if (rows.length > 0) yield rows;
  }

  /** The rows of whole CopyData messages. */
  #rowsOf(buffer: Buffer, rows: OutboxRow[]): void {
    const { layout, grouped, ts } = this.#shape;
    let number = 0;
    for (let frame = 0; frame + header <= buffer.length; ) {
      const next = frame + 1 + buffer.readUInt32BE(frame + 1);
      let at = frame + header;
      const weight = buffer[at] === minus ? -1 : 1;
      at = skip(buffer, at);
      const partitionAt = at;
      at = skip(buffer, at);
      const partition = buffer[partitionAt] === backslash ? null : buffer.toString('latin1', partitionAt, at - 1);
      const groupStart = at;
      const end = next - 1;
      number = 0;
      while (at < end && buffer[at] !== tab) number = number * 10 + (buffer[at++] ?? 0x30) - 0x30;
      // Without columns the number is the end of the line.
      if (at < end) at++;
      const start = at;
      for (let field = 0; field < grouped && at <= end; field++) at = skip(buffer, at, end);
      rows.push({ ts: ts ?? number, weight, partition, groupStart, groupEnd: at, line: new RowLine(layout, buffer, start, end) });
      frame = next;
    }
    this.#last = number;
  }
}

/** Behind the tab that ends the field at `at`, or behind `end`. */
function skip(buffer: Buffer, at: number, end = buffer.length): number {
  let found = at;
  while (found < end && buffer[found] !== tab) found++;
  return found + 1;
}
