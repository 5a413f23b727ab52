/** Transactions as a feed tells of them. */
import type { TouchingTransaction } from '../../../src/migration/touched.ts';

/** One that has touched these keys. Its LSNs follow from its xid. */
export const transaction = (xid: number, ...keys: string[]): TouchingTransaction => ({
  xid,
  commitLsn: BigInt(xid),
  endLsn: BigInt(xid + 1),
  committedAt: 0,
  keys: new Map(keys.map((key) => [key, [key]])),
});
