/**
 * FORMAT TEXT and FORMAT BYTES: one column by itself.
 * Invariant: TEXT is what Postgres shows, BYTES what its binary protocol sends; NULL is no bytes at all, never a tombstone.
 */

import type { TypedColumn } from '../../catalog/sink-model.ts';
import { type SinkRow, type UnsupportedColumn, type ValueKind, valueKind } from './column.ts';
import { bytea } from './literals.ts';

/** Writes one value of a row. */
export interface PlainEncoder {
  encode(row: SinkRow): Buffer;
}

type Result = PlainEncoder | { readonly unsupported: UnsupportedColumn };

/** The value of a column as text. */
export function textValue(index: number): PlainEncoder {
  return { encode: (row) => Buffer.from(row[index] ?? '') };
}

/** The value of a column as bytes, or why there is no such encoding of its type. */
export function bytesValue(column: TypedColumn, index: number): Result {
  const write = bytesWriter(valueKind(column), column.typeName);
  if (write === undefined) {
    const reason = 'only boolean, integer, float, text, uuid and bytea values are bytes by themselves';
    return { unsupported: { column: column.name, type: column.typeName, format: 'BYTES', reason } };
  }
  return {
    encode(row) {
      const text = row[index] ?? null;
      return text === null ? Buffer.alloc(0) : write(text);
    },
  };
}

const TEXT_TYPES: ReadonlySet<string> = new Set(['text', 'varchar', 'bpchar', 'name', 'char', 'citext']);

function bytesWriter(kind: ValueKind, typeName: string): ((text: string) => Buffer) | undefined {
  switch (kind.kind) {
    case 'boolean':
      return (text) => Buffer.from([text.startsWith('t') ? 1 : 0]);
    case 'integer':
      switch (kind.bits) {
        case 16:
          return sized(2, (bytes, text) => bytes.writeInt16BE(Number(text)));
        case 32:
          return sized(4, (bytes, text) => bytes.writeInt32BE(Number(text)));
        case 64:
          return sized(8, (bytes, text) => bytes.writeBigInt64BE(BigInt(text)));
      }
      break;
    case 'float':
      return kind.bits === 32
        ? sized(4, (bytes, text) => bytes.writeFloatBE(Number(text)))
        : sized(8, (bytes, text) => bytes.writeDoubleBE(Number(text)));
    case 'oid':
      return sized(4, (bytes, text) => bytes.writeUInt32BE(Number(text)));
    case 'uuid':
      return (text) => Buffer.from(text.replaceAll('-', ''), 'hex');
    case 'bytes':
      return bytea;
    case 'text':
      return TEXT_TYPES.has(typeName) ? (text) => Buffer.from(text) : undefined;
    case 'numeric':
    case 'date':
    case 'time':
    case 'timestamp':
    case 'interval':
    case 'json':
    case 'array':
    case 'record':
    case 'unknown':
      return undefined;
  }
  return undefined;
}

function sized(size: number, write: (bytes: Buffer, text: string) => void): (text: string) => Buffer {
  return (text) => {
    const bytes = Buffer.alloc(size);
    write(bytes, text);
    return bytes;
  };
}
