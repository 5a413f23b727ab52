/**
 * Rows that Millrace makes itself, as messages.
 * Invariant: a value goes out in the format the client asked for; where binary cannot be had the client gets an error, not text.
 */
import { millraceError } from '../errors.ts';
import type { FieldDescription, StatementResult } from '../statements/caller-session.ts';
import { binaryOf } from './binary-values.ts';
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
    return format === 1 ? binaryOf(field) : undefined;
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
