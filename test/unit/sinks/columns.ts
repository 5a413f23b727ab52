/** Columns of every kind of type with values as Postgres writes them, for tests of formats. */
import type { SinkType, TypedColumn } from '../../../src/catalog/sink-model.ts';

export function type(typeName: string, more: Partial<SinkType> = {}): SinkType {
  return { typeName, typmod: -1, ...more };
}

export function column(name: string, of: SinkType | string, nullable = true): TypedColumn {
  return { name, nullable, ...(typeof of === 'string' ? type(of) : of) };
}

/** numeric(precision, scale), as atttypmod has it. */
export function numeric(precision: number, scale: number): SinkType {
  return type('numeric', { typmod: ((precision << 16) | (scale & 0x7ff)) + 4 });
}

const array = (element: SinkType): SinkType => type(`_${element.typeName}`, { element });
const mood = type('mood', { typeKind: 'e' });
const address = type('address', {
  typeKind: 'c',
  fields: [column('street', 'text'), column('number', 'int4'), column('tags', array(type('text')))],
});

/** Every kind of type: [type, values]. */
export const SAMPLES: readonly (readonly [SinkType, readonly string[]])[] = [
  [type('bool'), ['t', 'f', 'true', 'false']],
  [type('int2'), ['-32768', '0', '32767']],
  [type('int4'), ['-2147483648', '-1', '2147483647']],
  [type('int8'), ['-9223372036854775808', '9007199254740993', '9223372036854775807']],
  [type('float4'), ['1.5', '-3.4028235e+38', 'NaN', 'Infinity', '-Infinity']],
  [type('float8'), ['0.1', '1e-07', '-0', 'NaN', '-Infinity']],
  [type('numeric'), ['0', '-1.50', '12345678901234567890.123456789', '0.000000000000000000000000000000000000001']],
  [numeric(10, 2), ['1.50', '-99999999.99', '0.00']],
  [numeric(3, 5), ['0.00123']],
  [numeric(4, -2), ['123400']],
  [type('text'), ['', 'plain', 'quote " backslash \\ newline \n', 'жернов 🌾']],
  [type('varchar', { typmod: 14 }), ['ten']],
  [type('bpchar', { typmod: 7 }), ['abc']],
  [type('bytea'), ['\\x', '\\x00ff7a']],
  [type('date'), ['1970-01-01', '2024-02-29', '0001-01-01', '0044-03-15 BC', '12024-01-01']],
  [type('time'), ['00:00:00', '23:59:59.999999', '24:00:00', '12:30:00.5']],
  [type('timetz'), ['12:30:00+02']],
  [
    type('timestamp'),
    ['1970-01-01 00:00:00', '2011-11-11 11:11:11.12345', '1969-12-31 23:59:59.999999', '0044-03-15 12:00:00 BC', '294246-12-31 23:59:59'],
  ],
  [type('timestamp', { typmod: 3 }), ['2011-11-11 11:11:11.123', '1969-12-31 23:59:59.999']],
  [type('timestamptz'), ['2024-03-31 01:30:00+01', '2024-03-31 01:30:00-03:30', '1883-11-18 12:03:57.5-04:56:02']],
  [type('interval'), ['00:00:00', '1 year 2 mons 3 days 04:05:06.789', '-1 mons +2 days -03:00:00', '-25:00:00', '5 days']],
  [type('uuid'), ['a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11']],
  [type('jsonb'), ['{"a": [1, null, "x"]}', '"text"', 'null', '1e400']],
  [type('json'), ['{"b":1,"a":2}']],
  [type('oid'), ['0', '4294967295']],
  [type('inet'), ['192.168.0.1/24']],
  [mood, ['happy', 'it\'s "fine"']],
  [type('int4range', { typeKind: 'r' }), ['[1,10)', 'empty']],
  [type('positive', { typeKind: 'd', base: type('int4') }), ['7']],
  [array(type('int4')), ['{}', '{1,NULL,3}', '[0:1]={5,6}']],
  [array(type('text')), ['{plain,"with, comma","NULL",NULL,"a\\"b","back\\\\slash",""}']],
  [array(type('timestamp')), ['{"2011-11-11 11:11:11",NULL}']],
  [address, ['("Mill Lane, 7",7,"{a,\\"b c\\"}")', '(,,)', '("say ""hi""",1,{})']],
  [array(address), ['{"(\\"Mill Lane\\",1,{})",NULL}']],
];
