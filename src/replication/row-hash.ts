/**
 * 32-bit hash of a row's COPY text line.
 * Invariant: equal bytes give equal hashes on every platform and in every release: hashes are stored next to rows.
 */

/** Murmur3 (x86, 32 bit, seed 0) of `buffer[start .. end)`, signed, so that it fits an int4. */
export function hashLine(buffer: Buffer, start: number, end: number): number {
  return hashBytes(buffer, start, end, 0);
}

/** As hashLine, from another seed. */
export function hashBytes(buffer: Uint8Array, start: number, end: number, seed: number): number {
  let hash = seed | 0;
  let at = start;
  for (; at + 4 <= end; at += 4) {
    const block = (buffer[at] ?? 0) | ((buffer[at + 1] ?? 0) << 8) | ((buffer[at + 2] ?? 0) << 16) | ((buffer[at + 3] ?? 0) << 24);
    hash ^= mix(block);
    hash = (Math.imul((hash << 13) | (hash >>> 19), 5) + 0xe6546b64) | 0;
  }
  let tail = 0;
  for (let shift = 0; at < end; at++, shift += 8) tail |= (buffer[at] ?? 0) << shift;
  hash ^= mix(tail) ^ (end - start);
  hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
  hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35);
  return hash ^ (hash >>> 16);
}

function mix(block: number): number {
  const mixed = Math.imul(block, 0xcc9e2d51);
  return Math.imul((mixed << 15) | (mixed >>> 17), 0x1b873593);
}
