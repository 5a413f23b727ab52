import fc from 'fast-check';
import { expect, test } from 'vitest';
import { seahash, seahashModulo } from '../../../src/sinks/kafka/seahash.ts';

// docs.rs/seahash, "Implementation": hash(b"to be or not to be") and the tests of the crate.
test('SeaHash of the reference', () => {
  expect(seahash(Buffer.from('to be or not to be'))).toBe(1988685042348123509n);
});

const mask = 0xffffffffffffffffn;
const prime = 0x6eed0e9da4d94a4fn;

function diffuse(value: bigint): bigint {
  let x = (value * prime) & mask;
  x ^= (x >> 32n) >> (x >> 60n);
  return (x * prime) & mask;
}

/** As the reference describes it, in numbers of 64 bits. */
function reference(bytes: Uint8Array): bigint {
  let [a, b, c, d] = [0x16f11fe89b0d677cn, 0xb480a793d8e6c86cn, 0x6fe2e5aaf078ebc9n, 0x14f994a4c5259381n] as const as [
    bigint,
    bigint,
    bigint,
    bigint,
  ];
  for (let at = 0; at < bytes.length; at += 8) {
    const block = bytes.subarray(at, at + 8).reduceRight((sum, byte) => (sum << 8n) | BigInt(byte), 0n);
    [a, b, c, d] = [b, c, d, diffuse(a ^ block)];
  }
  return diffuse(a ^ b ^ c ^ d ^ BigInt(bytes.length));
}

test('SeaHash in halves of 32 bits is the one in 64 bits, for any bytes', () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 100 }), (bytes) => {
      expect(seahash(bytes)).toBe(reference(bytes));
    }),
    { numRuns: 2000 },
  );
});

test('its remainder, too', () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 40 }), fc.integer({ min: 1, max: 2 ** 26 - 1 }), (bytes, count) => {
      expect(seahashModulo(bytes, count)).toBe(Number(reference(bytes) % BigInt(count)));
    }),
    { numRuns: 2000 },
  );
});
