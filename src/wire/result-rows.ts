/**
 * Rows that Millrace makes itself, as messages.
 * Invariant: a value goes out in the format the client asked for; where binary cannot be had the client gets an error, not text.
 */
import { millraceError } from '../errors.ts';
import type { FieldDescription, StatementResult } from '../statements/caller-session.ts';
import { type Charset, commandComplete, dataRow, rowDescription } from './encode.ts';

/** Types of fixed length, by OID; all others have -1. */
const typeLengths: ReadonlyMap<number, number> = new Map([
  [16, 1],
  [18, 1],
  [19, 64],
  [20, 8],
  [21, 2],
  [23, 4],
  [26, 4],
  [700, 4],
  [701, 8],
  [1082, 4],
  [1083, 8],
  [1114, 8],
  [1184, 8],
  [1186, 16],
  [2950, 16],
]);

/** Types whose binary format is their text: "char", name, text, json, xml, unknown, bpchar, varchar. */
const textual: ReadonlySet<number> = new Set([18, 19, 25, 114, 142, 705, 1042, 1043]);

/** The format of column `index` by the codes of a Bind. */
export function formatOf(formats: readonly number[], index: number): number {
  return formats[formats.length === 1 ? 0 : index] ?? 0;
}

export function describeFields(fields: readonly FieldDescription[], formats: readonly number[], charset: Charset): Buffer {
  return rowDescription(
    fields.map((field, index) => ({ ...field, typeLength: typeLengths.get(field.typeOid) ?? -1, format: formatOf(formats, index) })),
    charset,
  );
}

/** The DataRows of a result. */
export function encodeRows(
  result: { readonly fields: readonly FieldDescription[]; readonly rows: readonly (readonly (string | null)[])[] },
  formats: readonly number[],
  charset: Charset,
): Buffer[] {
  const encoders = result.fields.map((field, index) => {
    const format = formatOf(formats, index);
    if (format !== 0 && format !== 1) throw millraceError('invalid_option', { message: `unsupported format code: ${format}` });
    return format === 1 ? binary(field) : undefined;
  });
  return result.rows.map((row) =>
    dataRow(row.map((value, index) => (value === null ? null : (encoders[index]?.(value, charset) ?? Buffer.from(value, charset))))),
  );
}

/** What a simple Query shows of a result in front of CommandComplete, and that. */
export function simpleResult(
  result: Exclude<StatementResult, { readonly kind: 'forward' | 'stream' }>,
  charset: Charset,
): { readonly rows: Buffer | null; readonly complete: Buffer } {
  const complete = commandComplete(result.tag, charset);
  if (result.kind === 'done') return { rows: null, complete };
  return { rows: Buffer.concat([describeFields(result.fields, [], charset), ...encodeRows(result, [], charset)]), complete };
}

function binary(field: FieldDescription): (value: string, charset: Charset) => Buffer {
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
