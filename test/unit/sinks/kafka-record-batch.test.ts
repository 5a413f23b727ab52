import { Reader, readRecordsBatches } from '@platformatic/kafka';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { encodeBatch, type KafkaRecord, recordSizeBound } from '../../../src/sinks/kafka/record-batch.ts';

const options = { producerId: 7n, producerEpoch: 3, firstSequence: 11, transactional: true, now: 1_700_000_000_000 };
const bytes = fc.option(fc.uint8Array({ maxLength: 300 }).map((array) => Buffer.from(array)));
const record: fc.Arbitrary<KafkaRecord> = fc.record(
  {
    key: bytes,
    value: bytes,
    headers: fc.array(fc.record({ name: fc.string({ unit: 'grapheme' }), value: bytes }), { maxLength: 3 }),
    timestamp: fc.integer({ min: 0, max: 2 ** 42 }),
  },
  { requiredKeys: ['key', 'value'] },
);

describe('a batch of records', () => {
  it('is read back by the client library as it was written', () => {
    fc.assert(
      fc.property(fc.array(record, { minLength: 1, maxLength: 200 }), (records) => {
        const [batch, ...more] = readRecordsBatches(Reader.from(encodeBatch(records, 0, records.length, options)));
        if (batch === undefined) throw new Error('no batch');
        expect(more).toEqual([]);
        expect(batch).toMatchObject({ producerId: 7n, producerEpoch: 3, firstSequence: 11, magic: 2, attributes: 0x10 });
        const read = batch.records.map((one) => ({
          key: one.key,
          value: one.value,
          timestamp: Number(batch.firstTimestamp + one.timestampDelta),
          headers: one.headers.map(([name, value]) => ({ name: String(name), value })),
        }));
        expect(read).toEqual(records.map((one) => ({ timestamp: options.now, headers: [], ...one })));
      }),
    );
  });

  it('is never larger than the bound that batches are cut by', () => {
    fc.assert(
      fc.property(fc.array(record, { minLength: 1, maxLength: 20 }), (records) => {
        const bound = records.reduce((sum, one) => sum + recordSizeBound(one), 61);
        expect(encodeBatch(records, 0, records.length, options).length).toBeLessThanOrEqual(bound);
      }),
    );
  });

  it('holds a part of the records given', () => {
    const records = ['a', 'b', 'c', 'd'].map((key) => ({ key: Buffer.from(key), value: null }));
    const [batch] = readRecordsBatches(Reader.from(encodeBatch(records, 1, 3, options)));
    expect(batch?.records.map(({ key, offsetDelta }) => [String(key), offsetDelta])).toEqual([
      ['b', 0],
      ['c', 1],
    ]);
  });
});
