import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { type MessageMaker, type MessageSpec, messageMaker, type SinkMessage } from '../../../src/sinks/formats/messages.ts';
import type { Row } from '../../../src/sinks/row-lines.ts';
import { column, SAMPLES } from './columns.ts';
import { rowLine } from './lines.ts';

const value = fc.option(
  fc.string({ unit: 'binary' }).filter((text) => !text.includes('\0')),
  { nil: null },
);

describe('a line of COPY', () => {
  test('gives the values it was made of, whatever is in them and wherever they stand', () => {
    fc.assert(
      fc.property(fc.array(value, { maxLength: 8 }), fc.array(fc.nat(7), { maxLength: 3 }), (values, first) => {
        const picked = first.filter((index) => index < values.length);
        expect(rowLine(values, picked).values()).toEqual(values);
      }),
    );
  });

  test('looks like another when all its values do', () => {
    expect(rowLine(['1', null, 'a\tb']).looksLike(rowLine(['1', null, 'a\tb']))).toBe(true);
    expect(rowLine(['1', null]).looksLike(rowLine(['1', '\\N']))).toBe(false);
    expect(rowLine(['1', 'ab']).looksLike(rowLine(['1', 'ac']))).toBe(false);
  });
});

const columns = SAMPLES.map(([type], index) => column(`c "${index}"\n`, type));
const samples = fc.tuple(...SAMPLES.map(([, values]) => fc.option(fc.constantFrom(...values), { nil: null })));
const json = { keyFormat: { kind: 'json' }, valueFormat: { kind: 'json' } } as const;

function made(spec: MessageSpec): MessageMaker {
  const maker = messageMaker(spec);
  if ('problem' in maker) throw new Error(maker.problem);
  return maker;
}

const shown = (messages: readonly SinkMessage[]): unknown[] =>
  messages.map(({ key, value: sent, partitionBy }) => [key, sent, partitionBy].map((bytes) => bytes?.toString() ?? null));

/** Messages of lines are those of the same rows as text. */
function expectSame(spec: MessageSpec, before: Row | null, after: Row | null): void {
  const maker = made(spec);
  const line = (row: Row | null) => (row === null ? null : rowLine(row, spec.key ?? []));
  expect(shown(maker.messagesOfLines({ before: line(before), after: line(after) }, {}))).toEqual(
    shown(maker.messages({ before, after }, {})),
  );
}

describe('JSON made of lines is JSON made of texts', () => {
  const key = fc.constantFrom<readonly number[] | null>([0], [3, 1], [SAMPLES.length - 1], null);
  const envelope = fc.constantFrom('upsert', 'debezium');
  const specOf = (of: MessageSpec['columns'], places: readonly number[] | null, wished: 'upsert' | 'debezium'): MessageSpec => ({
    ...json,
    columns: of,
    key: places,
    envelope: places === null ? 'debezium' : wished,
  });

  test('for values of all types', () => {
    const rows = fc.option(samples, { nil: null });
    fc.assert(
      fc.property(rows, rows, key, envelope, (before, after, places, wished) => {
        expectSame(specOf(columns, places, wished), before, after);
      }),
    );
  });

  test('for every character', () => {
    const texts = [column('id', 'int4'), column('a', 'text'), column('b', 'text')];
    fc.assert(
      fc.property(value, value, envelope, (a, b, wished) => {
        expectSame(specOf(texts, [0], wished), ['1', b, a], ['1', a, b]);
      }),
      { numRuns: 500 },
    );
    for (let code = 1; code < 0x100; code++) expectSame(specOf(texts, [1], 'upsert'), null, ['1', String.fromCharCode(code), '\u2028']);
  });

  test('for any JSON in a column', () => {
    const documents = [column('id', 'int4'), column('doc', 'jsonb')];
    fc.assert(
      fc.property(fc.json(), (doc) => {
        expectSame(specOf(documents, [0], 'upsert'), null, ['1', doc]);
      }),
    );
  });

  test('for any moment', () => {
    const moments = [column('at', 'timestamptz'), column('local', 'timestamp')];
    const two = (number: number): string => String(number).padStart(2, '0');
    const written = fc
      .record({
        at: fc.date({ min: new Date('0001-01-01T00:00:00Z'), max: new Date('9999-12-31T23:59:59Z'), noInvalidDate: true }),
        micros: fc.nat(999_999),
      })
      .map(({ at, micros }) => {
        const fraction = micros === 0 ? '' : `.${String(micros).padStart(6, '0').replace(/0+$/, '')}`;
        const day = `${String(at.getUTCFullYear()).padStart(4, '0')}-${two(at.getUTCMonth() + 1)}-${two(at.getUTCDate())}`;
        return `${day} ${two(at.getUTCHours())}:${two(at.getUTCMinutes())}:${two(at.getUTCSeconds())}${fraction}`;
      });
    fc.assert(
      fc.property(written, written, (at, local) => {
        expectSame(specOf(moments, [0], 'upsert'), null, [`${at}+00`, local]);
      }),
      { numRuns: 2000 },
    );
    for (const special of ['infinity', '-infinity', '10000-01-01 00:00:00+00', '0044-03-15 12:00:00 BC', '2024-03-31 01:30:00-03:30'])
      expectSame(specOf(moments, [0], 'upsert'), null, [special, '1970-01-01 00:00:00']);
  });

  test('for rows larger than what is set aside for them', () => {
    const wide = [column('id', 'int4'), column('text', 'text'), column('bytes', 'bytea')];
    const row = ['1', '\u0001"'.repeat(300_000), `\\x${'ff'.repeat(100_000)}`];
    expectSame(specOf(wide, [0], 'debezium'), row, row);
  });

  test('what was made stays as it is while more is made', () => {
    const maker = made(specOf([column('id', 'int4'), column('text', 'text')], [0], 'upsert'));
    const all = Array.from({ length: 5000 }, (_, id) =>
      maker.messagesOfLines({ before: null, after: rowLine([String(id), 'x'.repeat(id % 400)]) }, {}),
    );
    all.forEach(([message], id) => {
      expect(String(message?.value)).toBe(JSON.stringify({ id, text: 'x'.repeat(id % 400) }));
      expect(String(message?.key)).toBe(JSON.stringify({ id }));
    });
  });

  test('a row without columns is an empty object', () => {
    expectSame(specOf([], null, 'debezium'), null, []);
  });
});
