/**
 * Which columns a change concerns, as a bit mask: bit attnum - 1 for each column, and one bit that says that the row came or went.
 * Invariant: a row of changes is left out for a view only if its mask shares no bit with what the view looks at; whenever less is known
 * than that (attnums beyond the bits, changes that triggers have written), all bits are set.
 */
import { type TupleView, valueKind } from '../../replication/pgoutput.ts';

/** Of an insert, of a delete, and of what is not known. */
export const allColumns = -1n;
/** Highest attnum that has a bit of its own. */
export const lastBit = 62;
const rowBit = 1n << BigInt(lastBit);

/** What a view looks at that uses these columns: a row that comes or goes concerns it even when they are none. */
export function viewMask(attnums: Iterable<number>): bigint {
  let mask = rowBit;
  for (const attnum of attnums) {
    if (attnum > lastBit) return allColumns;
    mask |= 1n << BigInt(attnum - 1);
  }
  return mask;
}

/** Changed rows by their mask. */
export type MaskCounts = ReadonlyMap<bigint, number>;

/** How many of these rows concern who looks at `mask`. */
export function concerning(counts: MaskCounts, mask: bigint): number {
  let sum = 0;
  for (const [changed, rows] of counts) if ((changed & mask) !== 0n) sum += rows;
  return sum;
}

/** Every row counted in either. */
export function addCounts(into: Map<bigint, number>, more: MaskCounts): void {
  for (const [mask, rows] of more) into.set(mask, (into.get(mask) ?? 0) + rows);
}

/** A mask on its way into a line of COPY. Equal masks are the same object. */
export interface LineMask {
  readonly value: bigint;
  /** First fields of a line: weight and mask. */
  readonly removed: string;
  readonly made: string;
}

const lineMask = (value: bigint): LineMask => ({ value, removed: `-1\t${value}\t`, made: `1\t${value}\t` });

/** Of rows that came or went. */
export const wholeRow: LineMask = lineMask(allColumns);

/** The halves of a mask as they are computed: bits 0 to 30, and 31 to 61. */
const halfBits = 31;
const interned = new Map<number, Map<number, LineMask>>();

function lineMaskOf(low: number, high: number): LineMask {
  let ofHigh = interned.get(high);
  if (ofHigh === undefined) {
    ofHigh = new Map();
    interned.set(high, ofHigh);
  }
  let mask = ofHigh.get(low);
  if (mask === undefined) {
    mask = lineMask((BigInt(high) << BigInt(halfBits)) | BigInt(low));
    ofHigh.set(low, mask);
  }
  return mask;
}

/** The columns of a relation of the stream whose change is looked for. */
export interface Compared {
  readonly attnums: readonly number[];
  /** For each of them its place in a row of the stream; -1: it is not there. */
  readonly places: readonly number[];
  /** Columns that are computed from others: each may have changed with any of them. */
  readonly computed: readonly number[];
}

/** Compares the images of an updated row, byte by byte. Null: they differ in none of the columns. */
export function changedColumns({ attnums, places, computed }: Compared, oldRow: TupleView, newRow: TupleView): LineMask | null {
  let low = 0;
  let high = 0;
  let beyond = false;
  for (let i = 0; i < places.length; i++) {
    const place = places[i] ?? -1;
    if (place < 0 || isSame(oldRow, newRow, place)) continue;
    const bit = (attnums[i] ?? 0) - 1;
    if (bit < halfBits) low |= 1 << bit;
    else if (bit < 2 * halfBits) high |= 1 << (bit - halfBits);
    else beyond = true;
  }
  if (beyond) return wholeRow;
  if (low === 0 && high === 0) return null;
  for (const attnum of computed) {
    if (attnum > lastBit) return wholeRow;
    if (attnum <= halfBits) low |= 1 << (attnum - 1);
    else high |= 1 << (attnum - 1 - halfBits);
  }
  return lineMaskOf(low, high);
}

function isSame(oldRow: TupleView, newRow: TupleView, place: number): boolean {
  const kind = newRow.kinds[place];
  if (kind === valueKind.unchangedToast) return true;
  if (kind !== oldRow.kinds[place]) return false;
  if (kind !== valueKind.text) return true;
  const from = oldRow.starts[place] ?? 0;
  const to = oldRow.ends[place] ?? 0;
  const at = newRow.starts[place] ?? 0;
  const end = newRow.ends[place] ?? 0;
  if (to - from !== end - at) return false;
  if (to - from >= 48) return oldRow.buffer.compare(newRow.buffer, at, end, from, to) === 0;
  for (let i = from, j = at; i < to; i++, j++) if (oldRow.buffer[i] !== newRow.buffer[j]) return false;
  return true;
}
