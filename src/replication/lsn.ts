/**
 * Log sequence numbers. Invariant: inside Millrace an LSN is an unsigned 64-bit bigint; text ('16/B374D848') exists only at the edges.
 */

/** A byte position in an origin's WAL. 0n is "no position" (InvalidXLogRecPtr). */
export type Lsn = bigint;

const pattern = /^([0-9A-Fa-f]{1,8})\/([0-9A-Fa-f]{1,8})$/;

/** 'X/Y' as Postgres prints a pg_lsn. Throws RangeError on anything else. */
export function parseLsn(text: string): Lsn {
  const match = pattern.exec(text);
  if (match === null) throw new RangeError(`not a log sequence number: "${text}"`);
  return (BigInt(`0x${match[1]}`) << 32n) | BigInt(`0x${match[2]}`);
}

/** As Postgres prints it: two upper-case hexadecimal halves without leading zeros. */
export function formatLsn(lsn: Lsn): string {
  if (lsn < 0n || lsn > 0xffffffffffffffffn) throw new RangeError(`log sequence number out of range: ${lsn}`);
  return `${(lsn >> 32n).toString(16).toUpperCase()}/${(lsn & 0xffffffffn).toString(16).toUpperCase()}`;
}
