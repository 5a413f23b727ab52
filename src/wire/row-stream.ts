/**
 * Rows of a statement that come bit by bit, as messages.
 * Invariant: no more is asked for while the client has not taken what it was sent; however the writing ends, the source of the rows is told.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { CopyFormat, FieldDescription, StatementResult } from '../statements/caller-session.ts';
import { binaryOf } from './binary-values.ts';
import type { Driver } from './driver.ts';
import { type Charset, commandComplete, copyData, copyDone, copyOutResponse, portalSuspended, tuple } from './encode.ts';
import { describeFields, encodeRows } from './result-rows.ts';

export type StreamResult = Extract<StatementResult, { readonly kind: 'stream' }>;

/** A client that takes what it is sent within this time is not asked whether it has cancelled. */
const promptMs = 100;

/** The client has taken what it was sent. While it does not, the server is kept at a statement that a cancel ends. */
async function taken(driver: Driver, { meanwhile }: StreamResult): Promise<void> {
  let isTaken = false;
  const drained = driver.drained().finally(() => {
    isTaken = true;
  });
  drained.catch(() => undefined);
  await Promise.race([drained, sleep(promptMs)]);
  while (!isTaken) {
    driver.hearsAlways();
    await meanwhile();
  }
  await drained;
}

/** Rows as the data of COPY. */
interface CopyWriter {
  readonly format: 0 | 1;
  readonly head: Buffer | null;
  row(row: readonly (string | null)[]): Buffer;
  readonly tail: Buffer | null;
}

/** Signature, flags, and the length of an extension that is not there. */
const binaryHead = Buffer.from('PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0', 'latin1');
const binaryTail = Buffer.from([0xff, 0xff]);

/** Raises when a column cannot be had in binary. */
function copyWriter(copy: CopyFormat, fields: readonly FieldDescription[], charset: Charset): CopyWriter {
  if (copy.kind === 'lines') {
    const bytes = (line: string): Buffer => Buffer.from(line, charset);
    return { format: 0, head: copy.header === null ? null : bytes(copy.header), row: (row) => bytes(copy.line(row)), tail: null };
  }
  const encoders = fields.map(binaryOf);
  const values = (row: readonly (string | null)[]): (Buffer | null)[] =>
    row.map((value, index) => (value === null ? null : (encoders[index]?.(value, charset) ?? null)));
  return { format: 1, head: binaryHead, row: (row) => tuple(values(row)), tail: binaryTail };
}

/** All of a stream, without its end. Answers how many rows it had. `described`: the client knows the columns. */
export async function writeStream(driver: Driver, result: StreamResult, formats: readonly number[], described: boolean): Promise<number> {
  const { charset } = driver;
  const { copy, fields } = result;
  let rows = 0;
  let written: CopyWriter | null = null;
  try {
    written = copy === null ? null : copyWriter(copy, fields, charset);
  } catch (error) {
    result.abandon();
    throw error;
  }
  if (written !== null) {
    driver.toClient(copyOutResponse(fields.length, written.format));
    if (written.head !== null) driver.toClient(copyData(written.head));
  } else if (!described) driver.toClient(describeFields(fields, formats, charset));
  for await (const page of result.pages) {
    rows += page.length;
    driver.toClient(
      Buffer.concat(
        written === null ? encodeRows({ fields, rows: page }, formats, charset) : page.map((row) => copyData(written.row(row))),
      ),
    );
    await taken(driver, result);
  }
  if (written !== null) {
    if (written.tail !== null) driver.toClient(copyData(written.tail));
    driver.toClient(copyDone);
  }
  return rows;
}

/** A stream that a portal reads, as many rows at a time as it is asked for. */
export class PortalStream {
  readonly #result: StreamResult;
  readonly #formats: readonly number[];
  readonly #iterator: AsyncIterator<readonly (readonly (string | null)[])[]>;
  #encoded: readonly Buffer[] = [];
  #rows = 0;
  #over = false;

  constructor(result: StreamResult, formats: readonly number[]) {
    this.#result = result;
    this.#formats = formats;
    this.#iterator = result.pages[Symbol.asyncIterator]();
  }

  /** Answers one Execute. */
  async deliver(driver: Driver, limit: number): Promise<void> {
    const { fields, tag } = this.#result;
    for (let left = limit > 0 ? limit : Number.POSITIVE_INFINITY; left > 0; ) {
      if (this.#encoded.length === 0 && !this.#over) {
        const next = await this.#iterator.next();
        if (next.done === true) this.#over = true;
        else this.#encoded = encodeRows({ fields, rows: next.value }, this.#formats, driver.charset);
      }
      if (this.#over) {
        driver.toClient(commandComplete(tag(this.#rows), driver.charset));
        return;
      }
      const some = this.#encoded.slice(0, left);
      this.#encoded = this.#encoded.slice(some.length);
      this.#rows += some.length;
      left -= some.length;
      driver.toClient(Buffer.concat(some));
      await taken(driver, this.#result);
    }
    driver.toClient(portalSuspended);
  }

  /** Nobody will read on. */
  close(): void {
    this.#over = true;
    this.#encoded = [];
    this.#result.abandon();
    this.#iterator.return?.().catch(() => undefined);
  }
}
