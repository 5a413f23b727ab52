/**
 * Which transactions a snapshot sees.
 * Invariant: xids are compared modulo 2^32, as the server does; right as long as both are within 2^31 of each other.
 */

/** A pg_snapshot, its xids cut to the 32 bits that the stream carries. */
export interface Snapshot {
  /** Every transaction before it has ended. */
  readonly xmin: number;
  /** First transaction that had not begun. */
  readonly xmax: number;
  /** Those between that were running. Top-level xids only. */
  readonly xip: ReadonlySet<number>;
}

/** 'xmin:xmax:xip,...' as pg_current_snapshot() prints it. */
export function parseSnapshot(text: string): Snapshot {
  const match = /^(\d+):(\d+):([\d,]*)$/.exec(text);
  if (match === null) throw new RangeError(`not a snapshot: "${text}"`);
  const xid = (digits: string): number => Number(BigInt(digits) & 0xffffffffn);
  const running = match[3] ?? '';
  return { xmin: xid(match[1] ?? ''), xmax: xid(match[2] ?? ''), xip: new Set(running === '' ? [] : running.split(',').map(xid)) };
}

/** Whether the snapshot sees the effects of a committed top-level transaction: such a transaction is in the copy already. */
export function isVisible(snapshot: Snapshot, xid32: number): boolean {
  if (((xid32 - snapshot.xmin) | 0) < 0) return true;
  if (((xid32 - snapshot.xmax) | 0) >= 0) return false;
  return !snapshot.xip.has(xid32);
}
