/**
 * FORMAT JSON straight from a line of COPY: bytes to bytes.
 * Invariant: the same bytes as `jsonObject` makes of the same row as text. What COPY escapes JSON escapes in the same way, but for the vertical tab;
 * kinds of values that take more than that go by the text.
 */
import type { TypedColumn } from '../../catalog/sink-model.ts';
import { fieldEnds, fieldText, isNullField, type RowLine, sameBytes } from '../row-lines.ts';
import { ByteArena } from './byte-arena.ts';
import { type ValueKind, valueKind } from './column.ts';
import { writerOf } from './json.ts';
import type { LineChange, SinkMessage } from './messages.ts';

/** Writes the field `[start, end)`, which is not NULL, as JSON. There is room for `longestByte` times its bytes, and `spareBytes`. */
type FieldWriter = (buffer: Buffer, start: number, end: number, into: ByteArena) => void;

const spareBytes = 32;
/** A control character becomes \u00xx. */
const longestByte = 6;

const quote = 0x22;
const backslash = 0x5c;
/** } */
const closing = 0x7d;

const nullBytes = Buffer.from('null');
const trueBytes = Buffer.from('true');
const falseBytes = Buffer.from('false');
const verticalTab = Buffer.from('\\u000b');

type LineMessages = (change: LineChange) => readonly SinkMessage[];

const beforeBytes = Buffer.from('{"before":');
const afterBytes = Buffer.from(',"after":');

/** Makes the messages of changes where both key and value are JSON. The columns can all be written so. */
export function jsonMessages(
  columns: readonly TypedColumn[],
  key: readonly number[] | null,
  envelope: 'upsert' | 'debezium',
): LineMessages {
  const arena = new ByteArena();
  const writeKey = key === null ? null : jsonLine(columns, key);
  const writeRow = jsonLine(columns, [...columns.keys()]);
  const sameKey = key === null ? () => false : fieldsComparer(columns, key);
  const writeSide = (line: RowLine | null): void => {
    arena.reserve(nullBytes.length);
    if (line === null) arena.bytes(nullBytes);
    else writeRow(line, arena);
  };
  const message = (of: RowLine, before: RowLine | null, after: RowLine | null): SinkMessage => {
    let keyBytes: Buffer | null = null;
    if (writeKey !== null) {
      arena.begin();
      writeKey(of, arena);
      keyBytes = arena.end();
    }
    if (envelope === 'upsert' && after === null) return { key: keyBytes, value: null, partitionBy: keyBytes };
    arena.begin();
    if (envelope === 'debezium') {
      arena.reserve(beforeBytes.length);
      arena.bytes(beforeBytes);
      writeSide(before);
      arena.reserve(afterBytes.length);
      arena.bytes(afterBytes);
      writeSide(after);
      arena.reserve(1);
      arena.byte(closing);
    } else writeSide(after);
    return { key: keyBytes, value: arena.end(), partitionBy: keyBytes };
  };
  return ({ before, after }) => {
    if (after === null) return before === null ? [] : [message(before, before, null)];
    if (before === null) return [message(after, null, after)];
    if (sameKey(before, after)) return [message(after, before, after)];
    return [message(before, before, null), message(after, null, after)];
  };
}

/** Answers whether the columns with these indexes look the same in both. */
function fieldsComparer(columns: readonly TypedColumn[], picked: readonly number[]): (one: RowLine, other: RowLine) => boolean {
  const ends = endsFor(columns);
  const otherEnds = endsFor(columns);
  return (one, other) => {
    fieldEnds(one, ends);
    fieldEnds(other, otherEnds);
    return picked.every((index) => {
      const field = one.layout.fieldOf[index] as number;
      const start = field === 0 ? one.start : (ends[field - 1] as number) + 1;
      const otherStart = field === 0 ? other.start : (otherEnds[field - 1] as number) + 1;
      return sameBytes(one.buffer, start, ends[field] as number, other.buffer, otherStart, otherEnds[field] as number);
    });
  };
}

/** Room for the ends of the fields of a line. */
const endsFor = (columns: readonly TypedColumn[]): Int32Array => new Int32Array(Math.max(columns.length, 1));

/** Writes the columns with these indexes as one JSON object into the piece that is being written. */
function jsonLine(columns: readonly TypedColumn[], picked: readonly number[]): (line: RowLine, into: ByteArena) => void {
  const members = picked.map((index, place) => {
    const column = columns[index];
    const kind = column === undefined ? undefined : valueKind(column);
    if (column === undefined || kind === undefined || kind.kind === 'unknown') throw new RangeError(`no column ${index}`);
    return { index, name: Buffer.from(`${place === 0 ? '{' : ','}${JSON.stringify(column.name)}:`), write: fieldWriter(kind, column.name) };
  });
  const empty = Buffer.from('{');
  const ends = endsFor(columns);
  return (line, into) => {
    const { buffer, layout } = line;
    fieldEnds(line, ends);
    for (let i = 0; i < members.length; i++) {
      const { index, name, write } = members[i] as (typeof members)[number];
      const field = layout.fieldOf[index] as number;
      const start = field === 0 ? line.start : (ends[field - 1] as number) + 1;
      const end = ends[field] as number;
      into.reserve(name.length + spareBytes + (end - start) * longestByte);
      into.bytes(name);
      if (isNullField(buffer, start, end)) into.bytes(nullBytes);
      else write(buffer, start, end, into);
    }
    into.reserve(2);
    if (members.length === 0) into.bytes(empty);
    into.byte(closing);
  };
}

function fieldWriter(kind: Exclude<ValueKind, { kind: 'unknown' }>, column: string): FieldWriter {
  const slow = byText(writerOf(kind, column));
  switch (kind.kind) {
    case 'boolean':
      return (buffer, start, _end, into) => into.bytes(buffer[start] === 0x74 ? trueBytes : falseBytes);
    case 'integer':
    case 'oid':
      return plain;
    case 'float':
      return (buffer, start, end, into) => {
        // NaN, Infinity, -Infinity: what is no number ends in a letter.
        if ((buffer[end - 1] ?? 0) >= 0x41) slow(buffer, start, end, into);
        else plain(buffer, start, end, into);
      };
    case 'numeric':
    case 'text':
    case 'date':
    case 'time':
    case 'interval':
    case 'uuid':
      return quoted;
    case 'timestamp':
      return (buffer, start, end, into) => {
        if (!timestamp(buffer, start, end, into)) slow(buffer, start, end, into);
      };
    case 'json':
      return verbatim;
    case 'bytes':
    case 'array':
    case 'record':
      return slow;
  }
}

const plain: FieldWriter = (buffer, start, end, into) => {
  const to = into.buffer;
  let { at } = into;
  for (let i = start; i < end; i++) to[at++] = buffer[i] as number;
  into.at = at;
};

const quoted: FieldWriter = (buffer, start, end, into) => {
  const to = into.buffer;
  let { at } = into;
  to[at++] = quote;
  for (let i = start; i < end; i++) {
    const byte = buffer[i] as number;
    if (byte > 0x22 && byte !== backslash) to[at++] = byte;
    else if (byte === backslash) {
      const letter = buffer[++i] as number;
      if (letter === 0x76) at += verticalTab.copy(to, at);
      else {
        to[at++] = backslash;
        to[at++] = letter;
      }
    } else if (byte === quote) {
      to[at++] = backslash;
      to[at++] = quote;
    } else if (byte >= 0x20) to[at++] = byte;
    else at += to.write(`\\u00${byte < 0x10 ? '0' : ''}${byte.toString(16)}`, at, 'latin1');
  }
  to[at++] = quote;
  into.at = at;
};

/** json and jsonb are themselves. */
const verbatim: FieldWriter = (buffer, start, end, into) => {
  const to = into.buffer;
  let { at } = into;
  for (let i = start; i < end; i++) {
    const byte = buffer[i] as number;
    to[at++] = byte === backslash ? (unescapes[buffer[++i] as number] as number) : byte;
  }
  into.at = at;
};

const byText =
  (write: (text: string) => string): FieldWriter =>
  (buffer, start, end, into) =>
    into.text(write(fieldText(buffer, start, end) ?? ''));

/** Letter behind a backslash -> what it stands for; others stand for themselves. */
const unescapes = Uint8Array.from({ length: 256 }, (_, letter) => letter);
for (const [letter, byte] of Object.entries({ b: 8, t: 9, n: 10, v: 11, f: 12, r: 13 })) unescapes[letter.charCodeAt(0)] = byte;

/** `2024-02-29 12:34:56.789012` with or without `+00`, from 1970 on, as `"1709210096789.012"`. False: it is something else. */
function timestamp(buffer: Buffer, start: number, end: number, into: ByteArena): boolean {
  const isUtc = end - start >= 22 && buffer[end - 3] === 0x2b && buffer[end - 2] === 0x30 && buffer[end - 1] === 0x30;
  const stop = isUtc ? end - 3 : end;
  const length = stop - start;
  if (length < 19 || length > 26 || length === 20) return false;
  const isShaped =
    buffer[start + 4] === 0x2d &&
    buffer[start + 7] === 0x2d &&
    buffer[start + 10] === 0x20 &&
    buffer[start + 13] === 0x3a &&
    buffer[start + 16] === 0x3a &&
    (length === 19 || buffer[start + 19] === 0x2e);
  if (!isShaped) return false;
  const year = digits(buffer, start, 4);
  const month = digits(buffer, start + 5, 2);
  const day = digits(buffer, start + 8, 2);
  const hours = digits(buffer, start + 11, 2);
  const minutes = digits(buffer, start + 14, 2);
  const seconds = digits(buffer, start + 17, 2);
  let micros = length === 19 ? 0 : digits(buffer, start + 20, length - 20);
  if (!(year >= 1970 && month >= 0 && day >= 0 && hours >= 0 && minutes >= 0 && seconds >= 0 && micros >= 0)) return false;
  for (let missing = length === 19 ? 0 : 26 - length; missing > 0; missing--) micros *= 10;
  const seconds1970 = days(year, month, day) * 86_400 + hours * 3600 + minutes * 60 + seconds;
  const milliseconds = seconds1970 * 1000 + Math.trunc(micros / 1000);
  into.byte(quote);
  number(milliseconds, into);
  into.byte(0x2e);
  padded(micros % 1000, 3, into);
  into.byte(quote);
  return true;
}

/** A whole number of so many digits, at most nine; less than 0 when something else stands there. */
function digits(buffer: Buffer, start: number, count: number): number {
  let value = 0;
  for (let i = start; i < start + count; i++) {
    const digit = (buffer[i] as number) - 0x30;
    if (digit < 0 || digit > 9) return -1;
    value = value * 10 + digit;
  }
  return value;
}

/** Days since 1970-01-01, from then on. */
function days(year: number, month: number, day: number): number {
  const shifted = month <= 2 ? year - 1 : year;
  const era = Math.trunc(shifted / 400);
  const yearOfEra = shifted - era * 400;
  const dayOfYear = Math.trunc((153 * ((month + 9) % 12) + 2) / 5) + day - 1;
  return era * 146_097 + yearOfEra * 365 + Math.trunc(yearOfEra / 4) - Math.trunc(yearOfEra / 100) + dayOfYear - 719_468;
}

/** A number from 0 to 10^16. */
function number(value: number, into: ByteArena): void {
  const high = Math.trunc(value / 1e8);
  const low = value - high * 1e8;
  if (high > 0) padded(high, widthOf(high), into);
  padded(low, high > 0 ? 8 : widthOf(low), into);
}

function widthOf(value: number): number {
  let width = 1;
  for (let rest = value; rest >= 10; rest = Math.trunc(rest / 10)) width++;
  return width;
}

function padded(value: number, width: number, into: ByteArena): void {
  const to = into.buffer;
  let rest = value;
  for (let at = into.at + width - 1; at >= into.at; at--) {
    const next = Math.trunc(rest / 10);
    to[at] = 0x30 + rest - next * 10;
    rest = next;
  }
  into.at += width;
}
