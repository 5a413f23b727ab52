import avsc from 'avsc';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { SinkType, TypedColumn } from '../../../src/catalog/sink-model.ts';
import { avroChanges, avroRows } from '../../../src/sinks/formats/avro.ts';
import { avroNames } from '../../../src/sinks/formats/avro-schema.ts';

import { jsonObject } from '../../../src/sinks/formats/json.ts';
import { bytesValue } from '../../../src/sinks/formats/plain.ts';
import { column, numeric, SAMPLES, type } from './columns.ts';

/** Integers of 64 bits as bigints, so that nothing is lost in reading. */
const longs = avsc.types.LongType.__with({
  fromBuffer: (bytes: Buffer) => bytes.readBigInt64LE(),
  toBuffer: (value: bigint) => {
    const bytes = Buffer.alloc(8);
    bytes.writeBigInt64LE(value);
    return bytes;
  },
  fromJSON: BigInt,
  toJSON: Number,
  isValid: (value: unknown) => typeof value === 'bigint',
  compare: (a: bigint, b: bigint) => (a < b ? -1 : a > b ? 1 : 0),
});
/** Also where a long has a logical type. */
const withLongs = (schema: unknown): avsc.Type | undefined =>
  schema === 'long' || (typeof schema === 'object' && schema !== null && 'type' in schema && schema.type === 'long') ? longs : undefined;
const parse = (schema: object): avsc.Type =>
  avsc.Type.forSchema(JSON.parse(JSON.stringify(schema)), { typeHook: withLongs, wrapUnions: false, omitRecordMethods: true });

function json(of: SinkType, text: string | null): string {
  const made = jsonObject([column('c', of)], [0]);
  if ('unsupported' in made) throw new Error(made.unsupported.reason);
  return made.toJson([text]);
}

function avro(columns: readonly TypedColumn[], row: readonly (string | null)[]): { bytes: Buffer; read: unknown; schema: object } {
  const encoder = avroRows(
    columns,
    columns.map((_, index) => index),
    'envelope',
  );
  if ('unsupported' in encoder) throw new Error(encoder.unsupported.reason);
  const bytes = encoder.encode(row);
  return { bytes, read: parse(encoder.schema).fromBuffer(bytes), schema: encoder.schema };
}

const shown = (value: unknown): unknown =>
  JSON.parse(
    JSON.stringify(value, (_, one: unknown) => {
      if (typeof one === 'bigint') return `${one}n`;
      if (typeof one === 'number' && !Number.isFinite(one)) return String(one);
      if (one !== null && typeof one === 'object' && 'type' in one && one.type === 'Buffer' && 'data' in one) {
        return Buffer.from(one.data as number[]).toString('hex');
      }
      return one;
    }),
  );

describe('types in formats', () => {
  it('are written as in the golden file', async () => {
    const lines = SAMPLES.flatMap(([of, values]) => {
      const columns = [column('c', of, false)];
      const { schema } = avro(columns, [values[0] ?? '']);
      const [field] = (schema as { fields: { type: unknown }[] }).fields;
      return [
        `${of.typeName}${of.typmod === -1 ? '' : `, typmod ${of.typmod}`}: ${JSON.stringify(field?.type)}`,
        ...values.flatMap((text) => {
          const { bytes, read } = avro(columns, [text]);
          const value = JSON.stringify(shown((read as { c: unknown }).c));
          return [`  ${JSON.stringify(text)}`, `    JSON ${json(of, text)}`, `    Avro ${bytes.toString('hex')}, read as ${value}`];
        }),
      ];
    });
    await expect(`${lines.join('\n')}\n`).toMatchFileSnapshot('golden/types.txt');
  });

  for (const [of, values] of SAMPLES) {
    it(`JSON of ${of.typeName} can be read, and NULL is null`, () => {
      for (const text of values) expect(JSON.parse(json(of, text))).toHaveProperty('c');
      expect(json(of, null)).toBe('{"c":null}');
    });

    it(`Avro of ${of.typeName} that may be NULL is a union with null`, () => {
      for (const text of [...values, null]) {
        const { read } = avro([column('c', of), column('after', 'text')], [text, 'still in step']);
        expect(read).toHaveProperty('after', 'still in step');
        if (text === null) expect(read).toHaveProperty('c', null);
      }
    });
  }

  it('a column that is never null and is null all the same is an error of the row', () => {
    expect(() => avro([column('c', 'int4', false)], [null])).toThrow('value "NULL" of column "c" cannot be written');
  });

  const refused: readonly (readonly [SinkType, string])[] = [
    [type('date'), 'infinity'],
    [type('timestamp'), '-infinity'],
    [type('timestamptz'), 'infinity'],
    // The last year of Postgres, whose microseconds since 1970 do not fit into 64 bits.
    [type('timestamp'), '294276-12-31 23:59:59'],
    [type('interval'), 'infinity'],
    [type('numeric'), 'NaN'],
    [type('numeric'), '-Infinity'],
    [type('numeric'), '0.0000000000000000000000000000000000000001'],
    [type('numeric'), '9'.repeat(43)],
    [type('_int4', { element: type('int4') }), '{{1,2},{3,4}}'],
  ];
  for (const [of, text] of refused) {
    it(`Avro has no ${of.typeName} ${text.slice(0, 20)}, and says so of the column`, () => {
      expect(() => avro([column('c', of)], [text])).toThrow(/of column "c" cannot be written/);
    });
  }

  it('JSON has words for what Avro has none', () => {
    expect(json(type('timestamp'), 'infinity')).toBe('{"c":"infinity"}');
    expect(json(type('date'), '-infinity')).toBe('{"c":"-infinity"}');
    expect(json(type('numeric'), 'NaN')).toBe('{"c":"NaN"}');
    expect(json(type('_int4', { element: type('int4') }), '{{1,2},{3,NULL}}')).toBe('{"c":[[1,2],[3,null]]}');
  });

  it('a type without known parts is named when the encoder is made', () => {
    const columns = [column('id', 'int4'), column('thing', type('record', { typeKind: 'p' }))];
    const expected = { unsupported: { column: 'thing', type: 'record' } };
    expect(jsonObject(columns, [0, 1])).toMatchObject(expected);
    expect(avroRows(columns, [0, 1], 'row')).toMatchObject(expected);
    expect(avroChanges(columns)).toMatchObject(expected);
    expect(jsonObject(columns, [0])).not.toHaveProperty('unsupported');
  });

  it('BYTES are what the binary protocol sends', () => {
    const bytes = (of: string, text: string): string => {
      const encoder = bytesValue(column('c', of), 0);
      if ('unsupported' in encoder) throw new Error(encoder.unsupported.reason);
      return encoder.encode([text]).toString('hex');
    };
    expect(bytes('int8', '-2')).toBe('fffffffffffffffe');
    expect(bytes('bool', 't')).toBe('01');
    expect(bytes('bytea', '\\xdead')).toBe('dead');
    expect(bytes('float8', '1')).toBe('3ff0000000000000');
    expect(bytes('uuid', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11')).toBe('a0eebc999c0b4ef8bb6d6bb9bd380a11');
    expect(bytesValue(column('c', 'numeric'), 0)).toMatchObject({ unsupported: { column: 'c', type: 'numeric', format: 'BYTES' } });
  });
});

describe('Avro', () => {
  it('numbers of any size come back as they were', () => {
    fc.assert(
      fc.property(fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n }), fc.integer(), (long, int) => {
        const { read } = avro([column('l', 'int8', false), column('i', 'int4')], [String(long), String(int)]);
        expect(read).toEqual({ l: long, i: int });
      }),
    );
  });

  it('decimals come back as they were', () => {
    const limit = 10n ** 38n;
    fc.assert(
      fc.property(fc.bigInt({ min: -limit, max: limit }), (unscaled) => {
        const sign = unscaled < 0n ? '-' : '';
        const digits = String(unscaled < 0n ? -unscaled : unscaled).padStart(5, '0');
        const { read } = avro([column('n', numeric(38, 4), false)], [`${sign}${digits.slice(0, -4)}.${digits.slice(-4)}`]);
        const bytes = (read as { n: Buffer }).n;
        expect(BigInt.asIntN(bytes.length * 8, BigInt(`0x${bytes.toString('hex')}`))).toBe(unscaled);
      }),
    );
  });

  it('texts of any length come back as they were', () => {
    fc.assert(
      fc.property(fc.array(fc.string({ unit: 'grapheme', maxLength: 500 }), { minLength: 1, maxLength: 20 }), (texts) => {
        const columns = texts.map((_, index) => column(`c${index}`, 'text', index % 2 === 0));
        expect(Object.values(avro(columns, texts).read as object)).toEqual(texts);
      }),
    );
  });

  it('names columns as Avro allows', () => {
    expect(avroNames(['id', 'col-a', 'col a', 'col.a', '2nd', 'naïve', '', 'a1', 'a1'])).toEqual([
      ...['id', 'col_a', 'col_a1', 'col_a2', '_2nd', 'na_ve', '_', 'a1', 'a1_1'],
    ]);
  });

  it('two columns of one named type name it the second time', () => {
    const { schema, read } = avro([column('a', 'oid', false), column('b', 'oid', false)], ['1', '2']);
    expect(schema).toMatchObject({
      fields: [{ type: { type: 'fixed', size: 4, name: 'com.materialize.sink.uint4' } }, { type: 'com.materialize.sink.uint4' }],
    });
    expect(shown(read)).toEqual({ a: '00000001', b: '00000002' });
  });

  it('takes full names, documentation and defaults', () => {
    const columns = [column('id', 'int4', false), { ...column('note', 'text'), comment: 'from COMMENT ON' }];
    const options = { fullname: 'com.example.Order', nullDefaults: true, doc: 'An order.', columnDocs: { id: 'Its number.' } };
    const encoder = avroRows(columns, [0, 1], 'envelope', options);
    expect(encoder).toMatchObject({
      schema: {
        type: 'record',
        name: 'com.example.Order',
        doc: 'An order.',
        fields: [
          { name: 'id', type: 'int', doc: 'Its number.' },
          { name: 'note', type: ['null', 'string'], default: null, doc: 'from COMMENT ON' },
        ],
      },
    });
  });

  it('writes a change as before and after', () => {
    const encoder = avroChanges([column('id', 'int4', false), column('v', 'text')]);
    if ('unsupported' in encoder) throw new Error(encoder.unsupported.reason);
    expect(encoder.schema).toEqual({
      type: 'record',
      name: 'envelope',
      fields: [
        {
          name: 'before',
          type: [
            'null',
            {
              type: 'record',
              name: 'row',
              fields: [
                { name: 'id', type: 'int' },
                { name: 'v', type: ['null', 'string'] },
              ],
            },
          ],
        },
        { name: 'after', type: ['null', 'row'] },
      ],
    });
    const reader = parse(encoder.schema);
    expect(reader.fromBuffer(encoder.encode(['1', 'a'], ['1', null]))).toEqual({ before: { id: 1, v: 'a' }, after: { id: 1, v: null } });
    expect(reader.fromBuffer(encoder.encode(null, ['2', 'b']))).toEqual({ before: null, after: { id: 2, v: 'b' } });
    expect(reader.fromBuffer(encoder.encode(['2', 'b'], null))).toEqual({ before: { id: 2, v: 'b' }, after: null });
  });
});
