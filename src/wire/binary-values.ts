/**
 * Values in Postgres's binary formats, made of their text.
 * Invariant: the bytes are those that the type's send function writes for the value.
 */
import { millraceError } from '../errors.ts';
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
      return bytes(4, (buffer, value) => buffer.writeInt32BE(infinite(value, days) ?? dayOf(field, value)));
    case 1083:
      return bytes(8, (buffer, value) => buffer.writeBigInt64BE(timeOf(field, value)));
    case 1114:
    case 1184:
      return bytes(8, (buffer, value) => buffer.writeBigInt64BE(infinite(value, moments) ?? momentOf(field, value)));
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

/** Days since 2000-01-01. */
function dayOf(field: FieldDescription, value: string): number {
  const [, year = '', month = '', day = '', era] = /^(\d{4,})-(\d\d)-(\d\d)( BC)?$/.exec(value) ?? [];
  if (year === '') throw notIso(field);
  // Years begin with March here, so that a leap day is their last. The year before 1 is 1 BC.
  const astronomical = (era === undefined ? Number(year) : 1 - Number(year)) - (Number(month) <= 2 ? 1 : 0);
  const sinceMarch = (Number(month) + 9) % 12;
  const days400 = Math.floor(astronomical / 400);
  const yearOf400 = astronomical - days400 * 400;
  const dayOfYear = Math.floor((153 * sinceMarch + 2) / 5) + Number(day) - 1;
  return days400 * 146_097 + yearOf400 * 365 + Math.floor(yearOf400 / 4) - Math.floor(yearOf400 / 100) + dayOfYear - 730_425;
}

/** Microseconds since midnight. */
function timeOf(field: FieldDescription, value: string): bigint {
  const [, hour = '', minute = '', second = '', fraction = ''] = /^(\d\d):(\d\d):(\d\d)(?:\.(\d{1,6}))?$/.exec(value) ?? [];
  if (hour === '') throw notIso(field);
  return BigInt((Number(hour) * 60 + Number(minute)) * 60 + Number(second)) * 1_000_000n + BigInt(fraction.padEnd(6, '0'));
}

/** Microseconds since 2000-01-01, UTC where there is an offset. */
function momentOf(field: FieldDescription, value: string): bigint {
  const [, date = '', time = '', sign = '', hours = '0', minutes = '0', seconds = '0', era = ''] =
    /^(\S+) ([\d:.]+?)(?:([+-])(\d\d)(?::(\d\d))?(?::(\d\d))?)?( BC)?$/.exec(value) ?? [];
  const offset = (Number(hours) * 60 + Number(minutes)) * 60 + Number(seconds);
  const east = BigInt(sign === '-' ? -offset : offset) * 1_000_000n;
  return BigInt(dayOf(field, date + era)) * 86_400_000_000n + timeOf(field, time) - east;
}
