import { expect, test } from 'vitest';
import { quoteBody, quoteIdentifier, quoteLiteral, quoteQualified } from '../../../src/sql/quote.ts';

test.each([
  ['a', 'a'],
  ['_a1', '_a1'],
  ['A', '"A"'],
  ['1a', '"1a"'],
  ['a b', '"a b"'],
  ['a"b', '"a""b"'],
  ['a$', '"a$"'],
  ['é', '"é"'],
  ['select', '"select"'],
  ['left', '"left"'],
  ['values', '"values"'],
  ['source', 'source'],
])('identifier %s', (name, expected) => {
  expect(quoteIdentifier(name)).toBe(expected);
});

test('literals', () => {
  expect(quoteLiteral('')).toBe("''");
  expect(quoteLiteral("it's")).toBe("'it''s'");
  expect(quoteLiteral("a\\'b")).toBe("E'a\\\\''b'");
});

test('qualified names', () => {
  expect(quoteQualified(null, 'a')).toBe('a');
  expect(quoteQualified('S', 'order')).toBe('"S"."order"');
});

test('what Postgres cannot hold is refused', () => {
  expect(() => quoteIdentifier('')).toThrow(RangeError);
  expect(() => quoteIdentifier('a\0')).toThrow(RangeError);
  expect(() => quoteLiteral('\0')).toThrow(RangeError);
});

test('a body holds no end of itself', () => {
  expect(quoteBody("SELECT 'x'")).toBe("$millrace$SELECT 'x'$millrace$");
  expect(quoteBody('$millrace$; DROP $millrace1$')).toBe('$millrace2$$millrace$; DROP $millrace1$$millrace2$');
});
