/**
 * FORMAT AVRO: rows in Avro's binary encoding.
 * Invariant: what is written is what the schema of the same columns says, to the last digit; a value the schema has no room for is an error of its row.
 * Written without a library because values come as text and go out as bytes: nothing in between is made.
 */

import type { TypedColumn } from '../../catalog/sink-model.ts';
import { epochDays, epochMicros, timeMicros } from '../../sql/time-text.ts';
import { type AvroOptions, type AvroRecord, changeSchema, decimalDigits, rowSchema } from './avro-schema.ts';
import { type SinkRow, type UnsupportedColumn, type ValueKind, ValueNotEncodable, valueKind } from './column.ts';
import { type ArrayElement, arrayElements, bytea, interval, recordValues, unscaled } from './literals.ts';

/** Writes rows of the columns with these indexes. */
export interface AvroRowEncoder {
  readonly schema: AvroRecord;
  encode(row: SinkRow): Buffer;
}

/** Writes changes: the row before and after, each may be missing. */
export interface AvroChangeEncoder {
  readonly schema: AvroRecord;
  encode(before: SinkRow | null, after: SinkRow | null): Buffer;
}

interface Failure {
  readonly unsupported: UnsupportedColumn;
}

/** What writes keys (`row`) or values of ENVELOPE UPSERT (`envelope`), or the column that cannot be written. */
export function avroRows(
  columns: readonly TypedColumn[],
  picked: readonly number[],
  name: 'row' | 'envelope',
  options: AvroOptions = {},
): AvroRowEncoder | Failure {
  const chosen = pick(columns, picked);
  const fields = fieldWriters(chosen, picked);
  if ('unsupported' in fields) return fields;
  return {
    schema: rowSchema(chosen, name, options),
    encode(row) {
      const out = newOutput();
      writeRow(out, fields, row);
      return out.taken();
    },
  };
}

/** What writes values of ENVELOPE DEBEZIUM, or the column that cannot be written. */
export function avroChanges(columns: readonly TypedColumn[], options: AvroOptions = {}): AvroChangeEncoder | Failure {
  const fields = fieldWriters(
    columns,
    columns.map((_, index) => index),
  );
  if ('unsupported' in fields) return fields;
  return {
    schema: changeSchema(columns, options),
    encode(before, after) {
      const out = newOutput();
      for (const row of [before, after]) {
        if (row === null) out.int(0);
        else {
          out.int(1);
          writeRow(out, fields, row);
        }
      }
      return out.taken();
    },
  };
}

type ValueWriter = (out: Output, text: string) => void;

interface FieldWriter {
  readonly index: number;
  readonly column: string;
  readonly nullable: boolean;
  readonly write: ValueWriter;
}

function pick(columns: readonly TypedColumn[], picked: readonly number[]): TypedColumn[] {
  return picked.map((index) => {
    const column = columns[index];
    if (column === undefined) throw new RangeError(`no column ${index}`);
    return column;
  });
}

function fieldWriters(columns: readonly TypedColumn[], indexes: readonly number[]): FieldWriter[] | Failure {
  const fields: FieldWriter[] = [];
  for (const [position, column] of columns.entries()) {
    const kind = valueKind(column);
    if (kind.kind === 'unknown') {
      const reason = 'it has no parts that are known';
      return { unsupported: { column: column.name, type: column.typeName, format: 'AVRO', reason } };
    }
    fields.push({
      index: indexes[position] ?? position,
      column: column.name,
      nullable: column.nullable,
      write: writerOf(kind, column.name),
    });
  }
  return fields;
}

function writeRow(out: Output, fields: readonly FieldWriter[], row: SinkRow): void {
  for (const { index, column, nullable, write } of fields) {
    const text = row[index] ?? null;
    if (text === null) {
      if (!nullable) throw new ValueNotEncodable(column, 'NULL', 'the schema says that the column is never null');
      out.int(0);
    } else {
      if (nullable) out.int(1);
      write(out, text);
    }
  }
}

function writerOf(kind: ValueKind, column: string): ValueWriter {
  const fail = (text: string, reason = 'Avro has no such value'): never => {
    throw new ValueNotEncodable(column, text, reason);
  };
  switch (kind.kind) {
    case 'boolean':
      return (out, text) => out.byte(text === 't' || text === 'true' ? 1 : 0);
    case 'integer':
      return kind.bits === 64 ? (out, text) => out.long(BigInt(text)) : (out, text) => out.int(Number(text));
    case 'float':
      return kind.bits === 32 ? (out, text) => out.float(Number(text)) : (out, text) => out.double(Number(text));
    case 'numeric': {
      const { precision, scale } = decimalDigits(kind);
      const limit = 10n ** BigInt(precision);
      const tooMany = `there is room for ${precision} digits, ${scale} of them after the point`;
      return (out, text) => {
        const value = unscaled(text, scale) ?? fail(text, /^[-0-9.]+$/.test(text) ? tooMany : undefined);
        if (value >= limit || value <= -limit) fail(text, tooMany);
        out.bytes(twosComplement(value));
      };
    }
    case 'text':
    case 'uuid':
    case 'json':
      return (out, text) => out.string(text);
    case 'bytes':
      return (out, text) => out.bytes(bytea(text));
    case 'date':
      return (out, text) => out.int(epochDays(text) ?? fail(text));
    case 'time':
      return (out, text) => out.long(BigInt(timeMicros(text) ?? fail(text)));
    case 'timestamp':
      return kind.digits <= 3
        ? (out, text) => out.long(floorDiv(epochMicros(text) ?? fail(text), 1000n))
        : (out, text) => {
            const micros = epochMicros(text) ?? fail(text);
            if (BigInt.asIntN(64, micros) !== micros) fail(text, 'it is too far away to be counted in microseconds');
            out.long(micros);
          };
    case 'interval':
      return (out, text) => {
        const { months, days, micros } = interval(text) ?? fail(text);
        const bytes = Buffer.allocUnsafe(16);
        bytes.writeInt32LE(months, 0);
        bytes.writeInt32LE(days, 4);
        bytes.writeBigInt64LE(micros, 8);
        out.raw(bytes);
      };
    case 'oid':
      return (out, text) => {
        const bytes = Buffer.allocUnsafe(4);
        bytes.writeUInt32BE(Number(text), 0);
        out.raw(bytes);
      };
    case 'array': {
      const element = writerOf(kind.element, column);
      return (out, text) => {
        const elements = arrayElements(text, kind.delimiter) ?? fail(text, 'it is not as Postgres writes it with its own settings');
        if (elements.length > 0) out.int(elements.length);
        for (const one of elements) writeElement(out, one, element, () => fail(text, 'arrays of several dimensions have no schema'));
        out.int(0);
      };
    }
    case 'record': {
      const fields = kind.fields.map(({ name, nullable, value }, index) => ({
        index,
        column: `${column}.${name}`,
        nullable,
        write: writerOf(value, column),
      }));
      return (out, text) => writeRow(out, fields, recordValues(text) ?? fail(text, 'it is not a row'));
    }
    case 'unknown':
      throw new Error('a column of an unknown type cannot be written');
  }
}

function writeElement(out: Output, element: ArrayElement, write: ValueWriter, nested: () => never): void {
  if (element === null) out.int(0);
  else if (typeof element === 'string') {
    out.int(1);
    write(out, element);
  } else nested();
}

function floorDiv(value: bigint, by: bigint): bigint {
  const quotient = value / by;
  return value % by < 0n ? quotient - 1n : quotient;
}

/** The shortest big-endian bytes of a number. */
function twosComplement(value: bigint): Buffer {
  let length = 1;
  while (BigInt.asIntN(length * 8, value) !== value) length++;
  return Buffer.from(
    BigInt.asUintN(length * 8, value)
      .toString(16)
      .padStart(length * 2, '0'),
    'hex',
  );
}

interface Output {
  byte(value: number): void;
  int(value: number): void;
  long(value: bigint): void;
  float(value: number): void;
  double(value: number): void;
  bytes(value: Buffer): void;
  string(value: string): void;
  raw(value: Buffer): void;
  /** A copy of what was written. */
  taken(): Buffer;
}

/** One buffer for all rows of a process, one row at a time: writing a row does not wait for anything. */
let scratch = Buffer.allocUnsafe(4096);

function newOutput(): Output {
  let at = 0;
  const room = (size: number): void => {
    if (at + size <= scratch.length) return;
    const larger = Buffer.allocUnsafe(Math.max(scratch.length * 2, at + size));
    scratch.copy(larger, 0, 0, at);
    scratch = larger;
  };
  const int = (value: number): void => {
    room(5);
    let rest = ((value << 1) ^ (value >> 31)) >>> 0;
    while (rest > 0x7f) {
      scratch[at++] = (rest & 0x7f) | 0x80;
      rest >>>= 7;
    }
    scratch[at++] = rest;
  };
  const raw = (value: Buffer): void => {
    room(value.length);
    scratch.set(value, at);
    at += value.length;
  };
  return {
    int,
    raw,
    byte(value) {
      room(1);
      scratch[at++] = value;
    },
    long(value) {
      if (value >= -1073741824n && value <= 1073741823n) return int(Number(value));
      room(10);
      let rest = BigInt.asUintN(64, (value << 1n) ^ (value >> 63n));
      while (rest > 0x7fn) {
        scratch[at++] = Number(rest & 0x7fn) | 0x80;
        rest >>= 7n;
      }
      scratch[at++] = Number(rest);
      return undefined;
    },
    float(value) {
      room(4);
      at = scratch.writeFloatLE(value, at);
    },
    double(value) {
      room(8);
      at = scratch.writeDoubleLE(value, at);
    },
    bytes(value) {
      int(value.length);
      raw(value);
    },
    string(value) {
      const length = Buffer.byteLength(value);
      int(length);
      room(length);
      at += scratch.write(value, at);
    },
    taken: () => Buffer.from(scratch.subarray(0, at)),
  };
}
