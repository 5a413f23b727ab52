/**
 * From rows of an outbox to changes a target can write. Pure.
 * Invariant: of the rows of one group (one timestamp and one key; without a key, one timestamp and one image of the row) those that came and went
 * cancel out, so what is left is the difference between before the epoch and after it. Groups come whole and one after the other.
 * Rows are told apart by how they look, as text: that is what a consumer sees.
 */

/** Values as text, by place. */
export type Row = readonly (string | null)[];

export interface OutboxRow {
  /** Epoch; of a backfill: the cutover's. */
  readonly ts: number;
  /** Rows that belong together have the same, next to each other. */
  readonly group: string;
  /** +1 came, -1 went. */
  readonly weight: number;
  readonly row: Row;
  /** What PARTITION BY gives for this row; null: nothing is asked, or it gives NULL. */
  readonly partition: string | null;
}

/** One message, or one row of a target table: before null: an insert; after null: a delete. */
export interface Change {
  readonly ts: number;
  readonly before: Row | null;
  readonly after: Row | null;
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
  #ts = -1;
  #group = '';
  #rows: OutboxRow[] = [];

  constructor(pairing: Pairing) {
    this.#pairing = pairing;
  }

  /** The changes that are complete with this row: those of the group before it. */
  add(row: OutboxRow): readonly Change[] {
    if (row.ts === this.#ts && row.group === this.#group) {
      this.#rows.push(row);
      return [];
    }
    const done = this.flush();
    this.#ts = row.ts;
    this.#group = row.group;
    this.#rows = [row];
    return done;
  }

  flush(): readonly Change[] {
    const rows = this.#rows;
    this.#rows = [];
    if (rows.length === 0) return [];
    const [only] = rows;
    if (rows.length === 1 && only !== undefined) return [single(only)];
    return this.#changes(rows);
  }

  #changes(rows: readonly OutboxRow[]): Change[] {
    const { came, went } = net(rows);
    switch (this.#pairing) {
      case 'upsert':
        return came.length > 0 ? came.map(single) : went.slice(0, 1).map(single);
      case 'pair':
        return Array.from({ length: Math.max(came.length, went.length) }, (_, index) => {
          const before = went[index];
          const after = came[index];
          const row = after ?? before;
          return { ts: this.#ts, before: before?.row ?? null, after: after?.row ?? null, partition: row?.partition ?? null };
        });
      case 'each':
        return [...went, ...came].map(single);
    }
  }
}

const single = ({ ts, row, weight, partition }: OutboxRow): Change =>
  weight > 0 ? { ts, before: null, after: row, partition } : { ts, before: row, after: null, partition };

/** What is left when rows that look the same and came and went are taken away. */
function net(rows: readonly OutboxRow[]): { readonly came: readonly OutboxRow[]; readonly went: readonly OutboxRow[] } {
  const byImage = new Map<string, OutboxRow[]>();
  for (const row of rows) {
    const image = JSON.stringify(row.row);
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
