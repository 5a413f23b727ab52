/**
 * Which partition of a topic a record with a key belongs to.
 * Invariant: the same partition as Kafka's own producer chooses, so that consumers who join topics by key find them co-partitioned.
 */

/** The partition of a key in a topic of `count` partitions, as Kafka's default partitioner has it. A record without key goes to the first. */
export function partitionFor(key: Uint8Array | null, count: number): number {
  return key === null ? 0 : (murmur2(key) & 0x7fffffff) % count;
}

/** MurmurHash2 with the seed of Kafka, as a signed 32-bit number. */
export function murmur2(bytes: Uint8Array): number {
  const m = 0x5bd1e995;
  const length = bytes.length;
  let h = 0x9747b28c ^ length;
  const whole = length & ~3;
  for (let i = 0; i < whole; i += 4) {
    let k = byte(bytes, i) | (byte(bytes, i + 1) << 8) | (byte(bytes, i + 2) << 16) | (byte(bytes, i + 3) << 24);
    k = Math.imul(k, m);
    k ^= k >>> 24;
    k = Math.imul(k, m);
    h = Math.imul(h, m) ^ k;
  }
  const rest = length & 3;
  if (rest > 2) h ^= byte(bytes, whole + 2) << 16;
  if (rest > 1) h ^= byte(bytes, whole + 1) << 8;
  if (rest > 0) h = Math.imul(h ^ byte(bytes, whole), m);
  h ^= h >>> 13;
  h = Math.imul(h, m);
  return h ^ (h >>> 15);
}

function byte(bytes: Uint8Array, at: number): number {
  return bytes[at] ?? 0;
}
