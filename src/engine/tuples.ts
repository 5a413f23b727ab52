/** Looks into decoded rows. Invariant: results own their bytes unless said otherwise; the decoder's views do not. */
import { type TupleView, valueKind } from '../replication/pgoutput.ts';

/** The new row with values it leaves out (unchanged TOAST) taken from the old row. The same view when it leaves none out. */
export function mergedTuple(oldRow: TupleView, newRow: TupleView): TupleView {
  if (!newRow.leavesOut) return newRow;
  const count = newRow.count;
  const kinds = new Uint8Array(count);
  const starts = new Uint32Array(count);
  const ends = new Uint32Array(count);
  const parts: Buffer[] = [];
  let at = 0;
  for (let i = 0; i < count; i++) {
    const from = newRow.kinds[i] === valueKind.unchangedToast ? oldRow : newRow;
    kinds[i] = from.kinds[i] ?? valueKind.null;
    if (kinds[i] !== valueKind.text) continue;
    const bytes = from.buffer.subarray(from.starts[i], from.ends[i]);
    starts[i] = at;
    at += bytes.length;
    ends[i] = at;
    parts.push(bytes);
  }
  return { buffer: Buffer.concat(parts), count, kinds, starts, ends, leavesOut: oldRow.leavesOut };
}

/** Whether two rows have the same bytes in these columns. */
export function sameKey(a: TupleView, b: TupleView, columns: readonly number[]): boolean {
  return columns.every(
    (column) =>
      a.kinds[column] === b.kinds[column] &&
      a.buffer.compare(b.buffer, b.starts[column] ?? 0, b.ends[column] ?? 0, a.starts[column] ?? 0, a.ends[column] ?? 0) === 0,
  );
}

/** Values as strings: null is NULL, undefined was left out or is not there. */
export function tupleTexts(row: TupleView, columns: readonly number[]): (string | null | undefined)[] {
  return columns.map((column) => {
    switch (row.kinds[column]) {
      case valueKind.text:
        return row.buffer.toString('utf8', row.starts[column], row.ends[column]);
      case valueKind.null:
        return null;
      default:
        return undefined;
    }
  });
}
