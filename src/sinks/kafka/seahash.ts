/**
 * SeaHash, by which Materialize chooses a message's partition.
 * Invariant: the same number as the reference implementation for the same bytes (docs.rs/seahash, "reference"): four lanes of 64 bits take blocks of
 * eight bytes in turn, each xored into its lane and diffused.
 */

const mask = 0xffffffffffffffffn;
const prime = 0x6eed0e9da4d94a4fn;
const seeds = [0x16f11fe89b0d677cn, 0xb480a793d8e6c86cn, 0x6fe2e5aaf078ebc9n, 0x14f994a4c5259381n] as const;

function diffuse(value: bigint): bigint {
  let x = (value * prime) & mask;
  x ^= (x >> 32n) >> (x >> 60n);
  return (x * prime) & mask;
}

/** The hash of these bytes, with the reference's own seeds. */
export function seahash(bytes: Buffer): bigint {
  let [a, b, c, d]: readonly [bigint, bigint, bigint, bigint] = seeds;
  for (let at = 0; at < bytes.length; at += 8) {
    const block = at + 8 <= bytes.length ? bytes.readBigUInt64LE(at) : tail(bytes, at);
    [a, b, c, d] = [b, c, d, diffuse(a ^ block)];
  }
  return diffuse(a ^ b ^ c ^ d ^ BigInt(bytes.length));
}

function tail(bytes: Buffer, at: number): bigint {
  let block = 0n;
  for (let index = bytes.length - 1; index >= at; index--) block = (block << 8n) | BigInt(bytes[index] ?? 0);
  return block;
}
