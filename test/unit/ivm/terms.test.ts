import fc from 'fast-check';
import { expect, test } from 'vitest';
import { possibleScales, typmodScale } from '../../../src/ivm/numeric-scale.ts';
import { presentTerms, signedTerms, touchingTerms } from '../../../src/ivm/terms.ts';

/** Relations as old and new numbers of rows; a join of them as the product. Changes are new minus old. */
const relations = fc.array(fc.record({ old: fc.integer({ min: 0, max: 9 }), new: fc.integer({ min: 0, max: 9 }) }), {
  minLength: 1,
  maxLength: 6,
});

test('signed terms add up to new minus old', () => {
  fc.assert(
    fc.property(relations, (sizes) => {
      const product = (values: readonly number[]): number => values.reduce((a, b) => a * b, 1);
      const changed = sizes.map((size) => size.old !== size.new);
      const sum = signedTerms(changed)
        .map(({ sign, states }) =>
          product([
            sign,
            ...states.map((state, i) => {
              const size = sizes[i] ?? { old: 0, new: 0 };
              if (state === 'changes') return size.new - size.old;
              return state === 'old' ? size.old : size.new;
            }),
          ]),
        )
        .reduce((a, b) => a + b, 0);
      expect(sum).toBe(product(sizes.map((size) => size.new)) - product(sizes.map((size) => size.old)));
    }),
  );
});

/** A result row by whether each of its input rows changed, and if it did, whether it is present now. */
const rows = fc.array(fc.constantFrom('kept', 'came', 'went'), { minLength: 1, maxLength: 6 });

test('touching terms have every row that came or went', () => {
  fc.assert(
    fc.property(rows, (row) => {
      const came = row.includes('came');
      const went = row.includes('went');
      // Rows with parts that came and parts that went existed at no time.
      if (came === went) return;
      const has = touchingTerms(row.map(() => true)).some(({ states }) =>
        states.every((state, i) => {
          if (state === 'changes') return row[i] !== 'kept';
          return state === 'either' || row[i] !== 'went';
        }),
      );
      expect(has).toBe(true);
    }),
  );
});

test('present terms have each present row with a changed part once', () => {
  fc.assert(
    fc.property(fc.array(fc.boolean(), { minLength: 1, maxLength: 6 }), (touched) => {
      const times = presentTerms(touched.map(() => true)).filter(({ states }) =>
        states.every((state, i) => (state === 'touched' ? touched[i] === true : state === 'untouched' ? touched[i] === false : true)),
      );
      expect(times).toHaveLength(touched.includes(true) ? 1 : 0);
    }),
  );
});

test('scales of numeric types', () => {
  const numeric = (precision: number, scale: number): number => ((precision << 16) | (scale & 0x7ff)) + 4;
  expect(typmodScale(numeric(10, 2))).toBe(2);
  expect(typmodScale(numeric(5, -3))).toBe(0);
  expect(typmodScale(-1)).toBeNull();
  const column = { ColumnRef: {} };
  const operator = (name: string, lexpr: unknown, rexpr: unknown): unknown => ({
    A_Expr: { kind: 'AEXPR_OP', name: [{ String: { sval: name } }], lexpr, rexpr },
  });
  const scales = (expression: unknown): number[] | null =>
    possibleScales(expression, () => ({ typeOid: 1700, typeModifier: numeric(10, 2) }));
  expect(scales(operator('*', column, operator('-', { A_Const: { ival: { ival: 1 } } }, column)))).toEqual([4]);
  expect(scales(operator('/', column, column))).toBeNull();
  expect(scales({ CoalesceExpr: { args: [column, { A_Const: { fval: { fval: '0.125' } } }] } })).toEqual([2, 3]);
});
