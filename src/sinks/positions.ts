/** How far a sink is. */

export interface Position {
  /** Version of the sink that is being delivered. */
  readonly version: number;
  /** Timestamp of the last epoch that is out, whole. */
  readonly ts: number;
  /** Of the version's backfill, rows up to this number are out; null: it has none, or all of it is. */
  readonly backfillSeq: number | null;
}

/** Whether `a` is later than `b`. */
export function isLater(a: Position, b: Position): boolean {
  if (a.version !== b.version) return a.version > b.version;
  if (a.ts !== b.ts) return a.ts > b.ts;
  return (a.backfillSeq ?? Number.POSITIVE_INFINITY) > (b.backfillSeq ?? Number.POSITIVE_INFINITY);
}
