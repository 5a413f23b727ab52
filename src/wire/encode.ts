/**
 * Messages as bytes, both directions.
 * Invariant: one call gives one buffer that holds whole messages; text is written in the client's encoding (see `Charset`).
 */
import type { ErrorFields, NoticeFields } from '../errors.ts';
import { Reply, Request } from './tags.ts';

/**
 * How text and bytes are turned into each other. For every client_encoding but UTF-8 bytes are kept as they are, one a character
 * (latin1): all of Millrace's syntax is ASCII, and names and literals go back to the same session unchanged.
 */
export type Charset = 'utf8' | 'latin1';

const nul = Buffer.from([0]);

/** Puts a header before the concatenated parts. */
export function message(tag: number, parts: readonly Buffer[]): Buffer {
  let length = 4;
  for (const part of parts) length += part.length;
  const bytes = Buffer.allocUnsafe(length + 1);
  bytes[0] = tag;
  bytes.writeInt32BE(length, 1);
  let at = 5;
  for (const part of parts) at += part.copy(bytes, at);
  return bytes;
}

function cstring(text: string, charset: Charset): Buffer {
  // A NUL cannot be sent; it would end the string early and shift the rest of the message.
  return Buffer.concat([Buffer.from(text.replaceAll('\0', ''), charset), nul]);
}

function int16(...values: readonly number[]): Buffer {
  const bytes = Buffer.allocUnsafe(2 * values.length);
  for (const [index, value] of values.entries()) bytes.writeUInt16BE(value, 2 * index);
  return bytes;
}

function int32(...values: readonly number[]): Buffer {
  const bytes = Buffer.allocUnsafe(4 * values.length);
  for (const [index, value] of values.entries()) bytes.writeInt32BE(value | 0, 4 * index);
  return bytes;
}

// What the client hears.

/** The body shared by ErrorResponse and NoticeResponse: field code and text, in the order given. */
export function fieldsMessage(tag: number, fields: Readonly<Record<string, string>>, charset: Charset): Buffer {
  const parts: Buffer[] = [];
  for (const [code, value] of Object.entries(fields)) parts.push(Buffer.from(code, 'latin1'), cstring(value, charset));
  parts.push(nul);
  return message(tag, parts);
}

/** ErrorResponse. `severity` overrides that of the error (FATAL while starting up). */
export function errorResponse(error: ErrorFields, charset: Charset, severity: 'ERROR' | 'FATAL' = error.severity): Buffer {
  return fieldsMessage(
    Reply.error,
    {
      S: severity,
      V: severity,
      C: error.code,
      M: error.message,
      ...(error.detail === undefined ? {} : { D: error.detail }),
      ...(error.hint === undefined ? {} : { H: error.hint }),
      ...(error.position === undefined ? {} : { P: String(error.position) }),
    },
    charset,
  );
}

export function noticeResponse(notice: NoticeFields, charset: Charset): Buffer {
  return fieldsMessage(
    Reply.notice,
    {
      S: notice.severity,
      V: notice.severity,
      C: notice.code,
      M: notice.message,
      ...(notice.detail === undefined ? {} : { D: notice.detail }),
      ...(notice.hint === undefined ? {} : { H: notice.hint }),
    },
    charset,
  );
}

export function readyForQuery(status: number): Buffer {
  return Buffer.from([Reply.readyForQuery, 0, 0, 0, 5, status]);
}

export function commandComplete(tag: string, charset: Charset): Buffer {
  return message(Reply.commandComplete, [cstring(tag, charset)]);
}

export interface Column {
  readonly name: string;
  readonly typeOid: number;
  readonly typeLength: number;
  readonly typeModifier: number;
  readonly format: number;
}

export function rowDescription(columns: readonly Column[], charset: Charset): Buffer {
  const parts = [int16(columns.length)];
  for (const column of columns) {
    parts.push(
      cstring(column.name, charset),
      int32(0),
      int16(0),
      int32(column.typeOid),
      int16(column.typeLength & 0xffff),
      int32(column.typeModifier),
      int16(column.format),
    );
  }
  return message(Reply.rowDescription, parts);
}

export function dataRow(values: readonly (Buffer | null)[]): Buffer {
  return message(Reply.dataRow, [tuple(values)]);
}

/** Values as they stand in a DataRow, and in COPY in binary. */
export function tuple(values: readonly (Buffer | null)[]): Buffer {
  const parts = [int16(values.length)];
  for (const value of values) {
    if (value === null) parts.push(int32(-1));
    else parts.push(int32(value.length), value);
  }
  return Buffer.concat(parts);
}

/** CopyOutResponse. `format`: 0 text, 1 binary. */
export function copyOutResponse(columns: number, format: 0 | 1): Buffer {
  return message(Reply.copyOut, [Buffer.from([format]), int16(columns), int16(...Array.from({ length: columns }, () => format))]);
}

export function copyData(bytes: Buffer): Buffer {
  return message(Reply.copyData, [bytes]);
}

export const noData = message(Reply.noData, []);
export const portalSuspended = message(Reply.portalSuspended, []);
export const parseComplete = message(Reply.parseComplete, []);

// What the upstream hears.

export function query(sql: string, charset: Charset): Buffer {
  return message(Request.query, [cstring(sql, charset)]);
}

export function parse(name: string, sql: string, charset: Charset, types: readonly number[] = []): Buffer {
  return message(Request.parse, [cstring(name, charset), cstring(sql, charset), int16(types.length), int32(...types)]);
}

/** Parameters and results in text format. */
export function bind(portal: string, statement: string, values: readonly (string | null)[], charset: Charset): Buffer {
  const parts = [cstring(portal, charset), cstring(statement, charset), int16(0, values.length)];
  for (const value of values) {
    if (value === null) parts.push(int32(-1));
    else {
      const bytes = Buffer.from(value, charset);
      parts.push(int32(bytes.length), bytes);
    }
  }
  parts.push(int16(0));
  return message(Request.bind, parts);
}

/** With parameters as another Bind had them: formats and values. Results in text format. */
export function bindAs(portal: string, statement: string, parameters: Buffer, charset: Charset): Buffer {
  return message(Request.bind, [cstring(portal, charset), cstring(statement, charset), parameters, int16(0)]);
}

export function describe(kind: 'S' | 'P', name: string, charset: Charset): Buffer {
  return message(Request.describe, [Buffer.from(kind, 'latin1'), cstring(name, charset)]);
}

export function close(kind: 'S' | 'P', name: string, charset: Charset): Buffer {
  return message(Request.close, [Buffer.from(kind, 'latin1'), cstring(name, charset)]);
}

/** Execute without a row limit. */
export function execute(portal: string, charset: Charset): Buffer {
  return message(Request.execute, [cstring(portal, charset), int32(0)]);
}

export const flush = message(Request.flush, []);
export const sync = message(Request.sync, []);
/** The same both ways. */
export const copyDone = message(Request.copyDone, []);
export const sslRequest = Buffer.from([0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f]);

/** CancelRequest. */
export function cancelPacket(pid: number, key: Buffer): Buffer {
  const packet = Buffer.alloc(12 + key.length);
  packet.writeInt32BE(packet.length, 0);
  packet.writeInt32BE(80877102, 4);
  packet.writeInt32BE(pid, 8);
  key.copy(packet, 12);
  return packet;
}

export function backendKeyData(pid: number, key: Buffer): Buffer {
  return message(Reply.backendKeyData, [int32(pid), key]);
}

export function parameterStatus(name: string, value: string): Buffer {
  return message(Reply.parameterStatus, [cstring(name, 'utf8'), cstring(value, 'utf8')]);
}
