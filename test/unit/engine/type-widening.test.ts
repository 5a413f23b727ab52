/** Which changes of a column's type keep every value, and how it is written. */
import { expect, test } from 'vitest';
import { widening } from '../../../src/engine/type-widening.ts';

test.each([
  ['smallint', 'integer', 'same text'],
  ['integer', 'bigint', 'same text'],
  ['bigint', 'integer', null],
  ['integer', 'numeric', 'same text'],
  ['integer', 'numeric(10,0)', 'same text'],
  ['integer', 'numeric(9,0)', null],
  ['integer', 'numeric(12,2)', 'other text'],
  ['integer', 'real', null],
  ['integer', 'text', null],
  ['real', 'double precision', 'other text'],
  ['character varying(10)', 'character varying(20)', 'same text'],
  ['character varying(20)', 'character varying(10)', null],
  ['character varying(10)', 'text', 'same text'],
  ['text', 'character varying', 'same text'],
  ['text', 'character varying(9)', null],
  ['character(3)', 'character(5)', 'other text'],
  ['character(3)', 'text', null],
  ['numeric(6,2)', 'numeric(10,2)', 'same text'],
  ['numeric(6,2)', 'numeric', 'same text'],
  ['numeric(6,2)', 'numeric(10,4)', 'other text'],
  ['numeric(6,2)', 'numeric(7,4)', null],
  ['numeric', 'numeric(10,2)', null],
  ['bit varying(3)', 'bit varying', 'same text'],
  ['bit(3)', 'bit(4)', null],
  ['timestamp(3) without time zone', 'timestamp(6) without time zone', 'same text'],
  ['timestamp(3) without time zone', 'timestamp without time zone', 'same text'],
  ['timestamp without time zone', 'timestamp(3) without time zone', null],
  ['timestamp(3) without time zone', 'timestamp(6) with time zone', null],
  ['interval(3)', 'interval', 'same text'],
  ['integer[]', 'bigint[]', 'same text'],
  ['integer[]', 'bigint', null],
  ['public.mood', 'text', null],
  ['"char"', 'text', null],
  ['date', 'timestamp without time zone', null],
])('%s to %s: %s', (from, to, wanted) => {
  expect(widening(from, to)).toBe(wanted);
});
