/**
 * SASLprep of passwords (RFC 4013), as pg_saslprep of Postgres (src/common/saslprep.c) and its callers.
 * Invariant: a password that Postgres would not prepare (not UTF-8, prohibited characters, mixed directions) is used byte for byte.
 */
import { isUtf8 } from 'node:buffer';
import { leftToRight, mappedToNothing, nonAsciiSpace, prohibited, rightToLeft, unassigned } from './saslprep-tables.ts';

type Ranges = readonly (readonly [first: number, last: number])[];

function ranges(table: string): Ranges {
  return table
    .trim()
    .split(/\s+/)
    .map((range) => {
      const [first = '', last = first] = range.split('-');
      return [Number.parseInt(first, 16), Number.parseInt(last, 16)] as const;
    });
}

function contains(table: Ranges, code: number): boolean {
  let low = 0;
  let high = table.length - 1;
  while (low <= high) {
    const middle = (low + high) >> 1;
    const [first, last] = table[middle] ?? [0, 0];
    if (code < first) high = middle - 1;
    else if (code > last) low = middle + 1;
    else return true;
  }
  return false;
}

const tables = {
  unassigned: ranges(unassigned),
  mappedToNothing: ranges(mappedToNothing),
  nonAsciiSpace: ranges(nonAsciiSpace),
  prohibited: ranges(prohibited),
  rightToLeft: ranges(rightToLeft),
  leftToRight: ranges(leftToRight),
};

/** The bytes of a password that go into a key. */
export function preparedPassword(password: string | Buffer): Buffer {
  const bytes = typeof password === 'string' ? Buffer.from(password, 'utf8') : password;
  if (bytes.every((byte) => byte < 0x80) || !isUtf8(bytes)) return bytes;
  const prepared = saslprep(bytes.toString('utf8'));
  return prepared === null ? bytes : Buffer.from(prepared, 'utf8');
}

/** Null where RFC 4013 prohibits the text. */
export function saslprep(text: string): string | null {
  let mapped = '';
  for (const character of text) {
    const code = character.codePointAt(0) ?? 0;
    if (contains(tables.nonAsciiSpace, code)) mapped += ' ';
    else if (!contains(tables.mappedToNothing, code)) mapped += character;
  }
  if (mapped === '') return null;
  const prepared = mapped.normalize('NFKC');
  const codes = Array.from(prepared, (character) => character.codePointAt(0) ?? 0);
  if (codes.some((code) => contains(tables.prohibited, code) || contains(tables.unassigned, code))) return null;
  // RFC 3454, section 6: text with a right-to-left character has no left-to-right one, and begins and ends with one of the former.
  const isRightToLeft = (code: number | undefined): boolean => code !== undefined && contains(tables.rightToLeft, code);
  if (!codes.some(isRightToLeft)) return prepared;
  const mixed = codes.some((code) => contains(tables.leftToRight, code));
  return mixed || !isRightToLeft(codes[0]) || !isRightToLeft(codes[codes.length - 1]) ? null : prepared;
}
