/**
 * Values in Postgres's binary formats, made of their text.
 * Invariant: the bytes are those that the type's send function writes for the value.
 */
import { millraceError } from '../errors.ts';
import { epochDays, epochMicros, timeMicros } from '../sql/time-text.ts';
import type { FieldDescription } from '../statements/caller-session.ts';
import type { Charset } from './encode.ts';

/** Types whose binary format is their text: "char", name, text, json, xml, unknown, bpchar, varchar. */
const textual: ReadonlySet<number> = new Set([18, 19, 25, 114, 142, 705, 1042, 1043]);

/** How values of a column, given as text, are written in binary. Raises where that cannot be had. */
export function binaryOf(field: FieldDescription): (value: string, charset: Charset) => Buffer {
  if (textual.has(field.typeOid)) return (value, charset) => Buffer.from(value, charset);
  const bytes = (length: number, write: (buffer: Buffer, value: string) => void) => (value: string) => {
    const buffer = Buffer.allocUnsafe(length);
    write(buffer, value);
    return buffer;
  };
  switch (field.typeOid) {
    case 17:
      // The text is `\x` and hexadecimal digits.
      return (value) => Buffer.from(value.slice(2), 'hex');
    case 2950:
      return (value) => Buffer.from(value.replaceAll('-', ''), 'hex');
    case 3802:
      // In front of the text stands the version of the format.
      return (value, charset) => Buffer.concat([Buffer.of(1), Buffer.from(value, charset)]);
    case 1700:
      return numericBinary;
    case 16:
      return bytes(1, (buffer, value) => buffer.writeUInt8(value === 't' || value === 'true' ? 1 : 0));
    case 20:
      return bytes(8, (buffer, value) => buffer.writeBigInt64BE(BigInt(value)));
    case 21:
      return bytes(2, (buffer, value) => buffer.writeInt16BE(Number(value)));
    case 23:
      return bytes(4, (buffer, value) => buffer.writeInt32BE(Number(value)));
    case 26:
      return bytes(4, (buffer, value) => buffer.writeUInt32BE(Number(value)));
    case 700:
      return bytes(4, (buffer, value) => buffer.writeFloatBE(Number(value)));
    case 701:
      return bytes(8, (buffer, value) => buffer.writeDoubleBE(Number(value)));
    case 1082:
      return bytes(4, (buffer, value) => buffer.writeInt32BE(infinite(value, days) ?? read(field, epochDays(value)) - firstDay));
    case 1083:
      return bytes(8, (buffer, value) => buffer.writeBigInt64BE(BigInt(read(field, timeMicros(value)))));
    case 1114:
    case 1184:
      return bytes(8, (buffer, value) => buffer.writeBigInt64BE(infinite(value, moments) ?? read(field, epochMicros(value)) - firstMicro));
    default:
      throw millraceError('feature_not_supported', { message: `column "${field.name}" has no binary format here; ask for it as text` });
  }
}

/** As numeric_send: digits of base 10000, the weight of the first, sign and scale. */
function numericBinary(value: string): Buffer {
  const special = { NaN: 0xc000, Infinity: 0xd000, '-Infinity': 0xf000 }[value];
  const [, sign = '', whole = '', fraction = ''] = /^(-?)(\d*)\.?(\d*)$/.exec(value) ?? [];
  const padded = whole.padStart(Math.ceil(whole.length / 4) * 4, '0') + fraction.padEnd(Math.ceil(fraction.length / 4) * 4, '0');
  const digits = padded.match(/\d{4}/g)?.map(Number) ?? [];
  let weight = Math.ceil(whole.length / 4) - 1;
  while (digits[0] === 0) {
    digits.shift();
    weight--;
  }
  while (digits.at(-1) === 0) digits.pop();
  const buffer = Buffer.alloc(8 + 2 * digits.length);
  buffer.writeInt16BE(digits.length, 0);
  buffer.writeInt16BE(digits.length === 0 ? 0 : weight, 2);
  buffer.writeUInt16BE(special ?? (sign === '' ? 0 : 0x4000), 4);
  // Postgres gives infinities a scale.
  buffer.writeInt16BE(value.endsWith('Infinity') ? 32 : fraction.length, 6);
  for (const [index, digit] of digits.entries()) buffer.writeInt16BE(digit, 8 + 2 * index);
  return buffer;
}

const days = [-0x80000000, 0x7fffffff] as const;
const moments = [-0x8000000000000000n, 0x7fffffffffffffffn] as const;

const infinite = <T>(value: string, [least, most]: readonly [T, T]): T | null =>
  value === 'infinity' ? most : value === '-infinity' ? least : null;

/** What DateStyle ISO prints; others say the same in ways that are not told apart. */
function notIso(field: FieldDescription): Error {
  return millraceError('feature_not_supported', {
    message: `column "${field.name}" has a binary format here with SET DateStyle = ISO only`,
  });
}

/** Binary dates and times count from 2000-01-01. */
const firstDay = 10_957;
const firstMicro = BigInt(firstDay) * 86_400_000_000n;

/** What was read of a value; raises when it could not be. */
function read<T>(field: FieldDescription, value: T | undefined): T {
  if (value === undefined) throw notIso(field);
  return value;
}
