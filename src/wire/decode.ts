/**
 * Messages read into values. Each function takes one complete message, header included.
 * Invariant: nothing outside the message is read; a message that is cut short throws RangeError rather than giving half a value.
 */
import type { FieldDescription } from '../statements/caller-session.ts';
import type { Charset } from './encode.ts';

/** The NUL-terminated string at `at`, and where the next thing begins. */
function cstringAt(bytes: Buffer, at: number, charset: Charset): { readonly text: string; readonly next: number } {
  const end = bytes.indexOf(0, at);
  if (end === -1) throw new RangeError('a string in a message does not end');
  return { text: bytes.toString(charset, at, end), next: end + 1 };
}

/** ErrorResponse or NoticeResponse: field code -> value, in the order sent. */
export function errorFields(message: Buffer, charset: Charset): Record<string, string> {
  const fields: Record<string, string> = {};
  for (let at = 5; at < message.length && message[at] !== 0; ) {
    const code = String.fromCharCode(message.readUInt8(at));
    const { text, next } = cstringAt(message, at + 1, charset);
    fields[code] = text;
    at = next;
  }
  return fields;
}

export function rowDescriptionFields(message: Buffer, charset: Charset): FieldDescription[] {
  const fields: FieldDescription[] = [];
  let at = 7;
  for (let left = message.readUInt16BE(5); left > 0; left--) {
    const { text: name, next } = cstringAt(message, at, charset);
    fields.push({ name, typeOid: message.readUInt32BE(next + 6), typeModifier: message.readInt32BE(next + 12) });
    at = next + 18;
  }
  return fields;
}

export function dataRowValues(message: Buffer, charset: Charset): (string | null)[] {
  const values: (string | null)[] = [];
  let at = 7;
  for (let left = message.readUInt16BE(5); left > 0; left--) {
    const length = message.readInt32BE(at);
    at += 4;
    if (length < 0) {
      values.push(null);
      continue;
    }
    if (at + length > message.length) throw new RangeError('a value reaches beyond its message');
    values.push(message.toString(charset, at, at + length));
    at += length;
  }
  return values;
}

export function commandTag(message: Buffer): string {
  return cstringAt(message, 5, 'latin1').text;
}

export function queryText(message: Buffer, charset: Charset): string {
  return cstringAt(message, 5, charset).text;
}

export function parseParts(message: Buffer, charset: Charset): { readonly name: Buffer; readonly text: string } {
  const nameEnd = message.indexOf(0, 5);
  if (nameEnd === -1) throw new RangeError('a string in a message does not end');
  return { name: message.subarray(5, nameEnd), text: cstringAt(message, nameEnd + 1, charset).text };
}

export interface BindParts {
  readonly portal: string;
  readonly statement: string;
  /** Formats and values of the parameters, as they came. */
  readonly parameters: Buffer;
  /** Of the results. */
  readonly formats: number[];
}

/** Names are kept byte for byte (latin1), as keys. */
export function bindParts(message: Buffer): BindParts {
  const portal = cstringAt(message, 5, 'latin1');
  const statement = cstringAt(message, portal.next, 'latin1');
  let at = statement.next;
  at += 2 + 2 * message.readUInt16BE(at);
  const values = message.readUInt16BE(at);
  at += 2;
  for (let left = values; left > 0; left--) at += 4 + Math.max(0, message.readInt32BE(at));
  if (at > message.length) throw new RangeError('a value reaches beyond its message');
  const parameters = Buffer.from(message.subarray(statement.next, at));
  const formats: number[] = [];
  for (let left = message.readUInt16BE(at); left > 0; left--) {
    at += 2;
    formats.push(message.readUInt16BE(at));
  }
  return { portal: portal.text, statement: statement.text, parameters, formats };
}

export function parameterTypes(message: Buffer): number[] {
  return Array.from({ length: message.readUInt16BE(5) }, (_, index) => message.readUInt32BE(7 + 4 * index));
}

/** Describe and Close: 'S' or 'P', and the name byte for byte. */
export function target(message: Buffer): { readonly kind: 'S' | 'P'; readonly name: string } {
  return { kind: message[5] === 0x53 ? 'S' : 'P', name: cstringAt(message, 6, 'latin1').text };
}

export function executeParts(message: Buffer): { readonly portal: string; readonly limit: number } {
  const portal = cstringAt(message, 5, 'latin1');
  return { portal: portal.text, limit: message.readInt32BE(portal.next) };
}

export function parameter(message: Buffer): { readonly name: string; readonly value: string } {
  const name = cstringAt(message, 5, 'latin1');
  return { name: name.text, value: cstringAt(message, name.next, 'latin1').text };
}
