/**
 * From rows of an outbox to changes a target can write. Pure.
 * Invariant: of the rows of one group (one timestamp and one key; without a key, one timestamp and one image of the row) those that came and went
 * cancel out, so what is left is the difference between before the epoch and after it. Groups come whole and one after the other.
 * Rows are told apart by how they look, as text: that is what a consumer sees.
 */
import { type RowLine, sameBytes } from './row-lines.ts';

export interface OutboxRow {
  /** Epoch; of a backfill: the cutover's. */
  readonly ts: number;
  /** Rows that belong together have the same bytes here, in the buffer of their line, and come next to each other. */
  readonly groupStart: number;
  readonly groupEnd: number;
  /** +1 came, -1 went. */
  readonly weight: number;
  readonly line: RowLine;
  /** What PARTITION BY gives for this row; null: nothing is asked, or it gives NULL. */
  readonly partition: string | null;
}

/** One message, or one row of a target table: before null: an insert; after null: a delete. */
export interface Change {
  readonly ts: number;
  readonly before: RowLine | null;
  readonly after: RowLine | null;
  readonly partition: string | null;
}

export type Pairing =
  /** One change a key: its row now, or that it is gone. More than one row of a key: all that came. */
  | 'upsert'
  /** A row that went is paired with one of the same key that came. */
  | 'pair'
  /** Each row that came or went is a change of its own. */
  | 'each';

/** Puts rows together into changes; `flush` gives those of the last group. */
export class ChangeMaker {
  readonly #pairing: Pairing;
  readonly #rows: OutboxRow[] = [];

  constructor(pairing: Pairing) {
    this.#pairing = pairing;
  }

  /** Adds the changes that are complete with this row to `into`: those of the group before it. */
  add(row: OutboxRow, into: Change[]): void {
    const [first] = this.#rows;
    if (first !== undefined && !isOneGroup(first, row)) this.flush(into);
    this.#rows.push(row);
  }

  flush(into: Change[]): void {
    const rows = this.#rows;
    const [first, second] = rows;
    if (first === undefined) return;
    if (second === undefined) into.push(single(first));
    else if (rows.length > 2 || first.weight === second.weight) into.push(...this.#changes(net(rows)));
    else if (!first.line.looksLike(second.line)) {
      const [went, came] = first.weight < 0 ? [first, second] : [second, first];
      if (this.#pairing === 'upsert') into.push(single(came));
      else if (this.#pairing === 'pair') into.push(paired(went, came));
      else into.push(single(went), single(came));
    }
    rows.length = 0;
  }

  #changes({ came, went }: Left): Change[] {
    switch (this.#pairing) {
      case 'upsert':
        return came.length > 0 ? came.map(single) : went.slice(0, 1).map(single);
      case 'pair':
        return Array.from({ length: Math.max(came.length, went.length) }, (_, index) => paired(went[index], came[index]));
      case 'each':
        return [...went, ...came].map(single);
    }
  }
}

const isOneGroup = (one: OutboxRow, other: OutboxRow): boolean =>
  sameBytes(one.line.buffer, one.groupStart, one.groupEnd, other.line.buffer, other.groupStart, other.groupEnd);

const single = ({ ts, line, weight, partition }: OutboxRow): Change =>
  weight > 0 ? { ts, before: null, after: line, partition } : { ts, before: line, after: null, partition };

function paired(went: OutboxRow | undefined, came: OutboxRow | undefined): Change {
  const row = came ?? went;
  return { ts: row?.ts ?? 0, before: went?.line ?? null, after: came?.line ?? null, partition: row?.partition ?? null };
}

interface Left {
  readonly came: readonly OutboxRow[];
  readonly went: readonly OutboxRow[];
}

/** What is left when rows that look the same and came and went are taken away. */
function net(rows: readonly OutboxRow[]): Left {
  const byImage = new Map<string, OutboxRow[]>();
  for (const row of rows) {
    const { buffer, start, end } = row.line;
    const image = buffer.toString('latin1', start, end);
    const same = byImage.get(image);
    if (same === undefined) byImage.set(image, [row]);
    else if (same[0]?.weight === row.weight) same.push(row);
    else {
      same.pop();
      if (same.length === 0) byImage.delete(image);
    }
  }
  const left = [...byImage.values()].flat();
  return { came: left.filter(({ weight }) => weight > 0), went: left.filter(({ weight }) => weight < 0) };
}
