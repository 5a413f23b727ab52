/** Values of console rows as bytes, as text and in Postgres's binary formats. Invariant: both forms of a value mean the same. */
import type { Column } from '../encode.ts';
import type { ColumnType, TableColumn, Value } from './tables.ts';

const types: Readonly<Record<ColumnType, { readonly oid: number; readonly length: number }>> = {
  text: { oid: 25, length: -1 },
  int4: { oid: 23, length: 4 },
  numeric: { oid: 1700, length: -1 },
};

/** For a RowDescription. `format` of each column: 0 text, 1 binary. */
export function describeColumns(columns: readonly TableColumn[], format: (index: number) => number): readonly Column[] {
  return columns.map(({ name, type }, index) => ({
    name,
    typeOid: types[type].oid,
    typeLength: types[type].length,
    typeModifier: -1,
    format: format(index),
  }));
}

export function encodeValue(value: Value, type: ColumnType, format: number): Buffer | null {
  if (value === null) return null;
  if (format === 0 || type === 'text') return Buffer.from(String(value), 'utf8');
  if (type === 'int4') {
    const bytes = Buffer.alloc(4);
    bytes.writeInt32BE(Number(value) | 0);
    return bytes;
  }
  return wholeNumeric(BigInt(Math.round(Number(value))));
}

/** numeric: digits to the base 10,000, the highest first; noughts at the end are left out. */
function wholeNumeric(value: bigint): Buffer {
  const digits: number[] = [];
  for (let rest = value < 0n ? -value : value; rest > 0n; rest /= 10_000n) digits.unshift(Number(rest % 10_000n));
  const weight = Math.max(0, digits.length - 1);
  while (digits.at(-1) === 0) digits.pop();
  const bytes = Buffer.alloc(8 + 2 * digits.length);
  bytes.writeInt16BE(digits.length, 0);
  bytes.writeInt16BE(weight, 2);
  bytes.writeUInt16BE(value < 0n ? 0x4000 : 0, 4);
  for (const [index, digit] of digits.entries()) bytes.writeInt16BE(digit, 8 + 2 * index);
  return bytes;
}
