import { describe, expect, it } from 'vitest';
import { murmur2, partitionFor } from '../../../src/sinks/kafka/partition.ts';

describe("Kafka's default partitioner", () => {
  // From Kafka's own test, UtilsTest.testMurmur2.
  const vectors: readonly [string, number][] = [
    ['21', -973932308],
    ['foobar', -790332482],
    ['a-little-bit-long-string', -985981536],
    ['a-little-bit-longer-string', -1486304829],
    ['lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8', -58897971],
    ['abc', 479470107],
  ];
  for (const [text, hash] of vectors) {
    it(`hashes ${text} as Kafka does`, () => expect(murmur2(Buffer.from(text))).toBe(hash));
  }

  it('takes the hash without its sign, modulo the number of partitions', () => {
    expect(partitionFor(Buffer.from('21'), 7)).toBe((-973932308 & 0x7fffffff) % 7);
  });

  it('hashes bytes above 127 as bytes, not as signed numbers', () => {
    expect(partitionFor(Buffer.from([0xff, 0xfe, 0xfd]), 1000)).toBe((murmur2(Buffer.from([0xff, 0xfe, 0xfd])) & 0x7fffffff) % 1000);
    expect(murmur2(Buffer.from([0xff, 0xff, 0xff, 0xff, 0xff]))).toBe(murmur2(new Uint8Array([255, 255, 255, 255, 255])));
  });

  it('puts records without key into the first partition', () => expect(partitionFor(null, 12)).toBe(0));
});
