/**
 * SeaHash, by which Materialize chooses a message's partition.
 * Invariant: the same number as the reference implementation for the same bytes (docs.rs/seahash, "reference"): four lanes of 64 bits take blocks of
 * eight bytes in turn, each xored into its lane and diffused. Numbers of 64 bits are two halves of 32 here: BigInt would cost more than all else
 * that is done for a message.
 */

const primeHigh = 0x6eed0e9d;
const primeLow = 0xa4d94a4f;
const primeLowTop = primeLow >>> 16;
const primeLowBottom = primeLow & 0xffff;
const seedsHigh = [0x16f11fe8, 0xb480a793, 0x6fe2e5aa, 0x14f994a4] as const;
const seedsLow = [0x9b0d677c, 0xd8e6c86c, 0xf078ebc9, 0xc5259381] as const;

/** The number that is being worked on: halves of 32 bits. */
let high = 0;
let low = 0;
const lanesHigh = new Uint32Array(4);
const lanesLow = new Uint32Array(4);

/** high:low *= prime */
function multiply(): void {
  const top = low >>> 16;
  const bottom = low & 0xffff;
  const first = top * primeLowBottom + ((bottom * primeLowBottom) >>> 16);
  const second = bottom * primeLowTop + (first & 0xffff);
  const carried = top * primeLowTop + (first >>> 16) + (second >>> 16);
  high = (carried + Math.imul(low, primeHigh) + Math.imul(high, primeLow)) >>> 0;
  low = Math.imul(low, primeLow) >>> 0;
}

/** high:low is diffused. */
function diffuse(): void {
  multiply();
  low = (low ^ (high >>> (high >>> 28))) >>> 0;
  multiply();
}

/** Leaves the hash of these bytes in high:low. */
function hash(bytes: Uint8Array): void {
  lanesHigh.set(seedsHigh);
  lanesLow.set(seedsLow);
  const { length } = bytes;
  for (let at = 0; at < length; at += 8) {
    const lane = (at >> 3) & 3;
    low = ((lanesLow[lane] as number) ^ word(bytes, at)) >>> 0;
    high = ((lanesHigh[lane] as number) ^ word(bytes, at + 4)) >>> 0;
    diffuse();
    lanesLow[lane] = low;
    lanesHigh[lane] = high;
  }
  low = length;
  high = Math.trunc(length / 2 ** 32);
  for (let lane = 0; lane < 4; lane++) {
    low = (low ^ (lanesLow[lane] as number)) >>> 0;
    high = (high ^ (lanesHigh[lane] as number)) >>> 0;
  }
  diffuse();
}

/** Four bytes, the least significant first; behind the end there are zeros. */
function word(bytes: Uint8Array, at: number): number {
  return (bytes[at] ?? 0) | ((bytes[at + 1] ?? 0) << 8) | ((bytes[at + 2] ?? 0) << 16) | ((bytes[at + 3] ?? 0) << 24);
}

/** The hash of these bytes, with the reference's own seeds. */
export function seahash(bytes: Uint8Array): bigint {
  hash(bytes);
  return (BigInt(high) << 32n) | BigInt(low);
}

/** The remainder of the hash of these bytes; `count` is less than 2^26. */
export function seahashModulo(bytes: Uint8Array, count: number): number {
  hash(bytes);
  return ((high % count) * (2 ** 32 % count) + (low % count)) % count;
}
