/**
 * How many digits behind the point the numeric values of an expression show.
 * Invariant: every non-null, non-NaN value of the expression has one of the scales found. Source: src/backend/utils/adt/numeric.c
 * (add_var, sub_var: the larger scale; mul_var: the sum; casts to numeric(p,s): s; integers: 0).
 * Sums kept by adding and subtracting agree with a fresh sum digit for digit only if this is known, because a sum shows the largest scale
 * of what is in it now, not of what ever was.
 */
import { at, type Fields, kindOf, list, node, strings } from './tree.ts';
import type { ProbeColumn } from './types.ts';

const integerTypes: ReadonlySet<number> = new Set([20, 21, 23]);
export const numericType = 1700;
const mostScales = 4;

/** Scale of numeric(p,s) from its type modifier; null without one. */
export function typmodScale(typeModifier: number): number | null {
  if (typeModifier < 4) return null;
  const scale = (((typeModifier - 4) & 0x7ff) ^ 1024) - 1024;
  return Math.max(scale, 0);
}

/** Fields of dates and times that extract() gives as whole numbers (infinite ones for infinite times). */
const wholeFields: ReadonlySet<string> = new Set(
  'year month day hour minute quarter week century decade millennium isoyear dow isodow doy'.split(' '),
);

/** True when equal values of a numeric expression look the same, so that one can stand for all of a group. */
export function looksOneWay(expression: unknown, typeOf: (column: Fields) => ProbeColumn | undefined): boolean {
  const { kind, fields } = kindOf(expression);
  if (kind === 'FuncCall' && strings(fields['funcname']).at(-1) === 'extract') {
    const field = at(list(fields['args'])[0], 'A_Const', 'sval')?.['sval'];
    return typeof field === 'string' && wholeFields.has(field.toLowerCase());
  }
  return possibleScales(expression, typeOf)?.length === 1;
}

/** All scales that values of the expression can have, ascending; null when that is not known. */
export function possibleScales(expression: unknown, typeOf: (column: Fields) => ProbeColumn | undefined): number[] | null {
  const scales = scalesOf(expression, typeOf);
  return scales === null || scales.size > mostScales ? null : [...scales].sort((a, b) => a - b);
}

type Scales = ReadonlySet<number> | null;

function scalesOf(expression: unknown, typeOf: (column: Fields) => ProbeColumn | undefined): Scales {
  const { kind, fields } = kindOf(expression);
  const inner = (value: unknown): Scales => scalesOf(value, typeOf);
  switch (kind) {
    case 'ColumnRef':
      return columnScales(typeOf(fields));
    case 'A_Const':
      return constantScales(fields);
    case 'TypeCast':
      return castScales(fields, inner);
    case 'A_Expr':
      return operatorScales(fields, inner);
    case 'CaseExpr':
      return union([...list(fields['args']).map((arm) => inner(at(arm, 'CaseWhen')?.['result'])), orNull(fields['defresult'], inner)]);
    case 'CoalesceExpr':
      return union(list(fields['args']).map(inner));
    default:
      return null;
  }
}

function columnScales(column: ProbeColumn | undefined): Scales {
  if (column === undefined) return null;
  if (column.scales !== undefined) return new Set(column.scales);
  if (integerTypes.has(column.typeOid)) return new Set([0]);
  const scale = column.typeOid === numericType ? typmodScale(column.typeModifier) : null;
  return scale === null ? null : new Set([scale]);
}

function constantScales(fields: Fields): Scales {
  if (fields['isnull'] === true) return new Set();
  if (fields['ival'] !== undefined) return new Set([0]);
  const text = at(fields, 'fval')?.['fval'] ?? at(fields, 'sval')?.['sval'];
  const digits = typeof text === 'string' ? /^[+-]?\d+(?:\.(\d*))?$/.exec(text) : null;
  return digits === null ? null : new Set([(digits[1] ?? '').length]);
}

function castScales(fields: Fields, inner: (value: unknown) => Scales): Scales {
  const type = node(fields['typeName']);
  const name = strings(type['names']).at(-1) ?? '';
  if (list(type['arrayBounds']).length > 0) return null;
  if (/^(int2|int4|int8|smallint|integer|bigint)$/.test(name)) return new Set([0]);
  if (name !== 'numeric') return null;
  const modifiers = list(type['typmods']).map((item) => at(item, 'A_Const'));
  if (modifiers.length === 0) return inner(fields['arg']);
  if (modifiers.length === 1) return new Set([0]);
  const scale = at(modifiers[1], 'ival')?.['ival'] ?? 0;
  return typeof scale === 'number' && scale >= 0 ? new Set([scale]) : null;
}

function operatorScales(fields: Fields, inner: (value: unknown) => Scales): Scales {
  if (fields['kind'] !== 'AEXPR_OP') return null;
  const operator = strings(fields['name']).join('.');
  const right = inner(fields['rexpr']);
  if (fields['lexpr'] === undefined) return operator === '-' ? right : null;
  const left = inner(fields['lexpr']);
  if (operator === '+' || operator === '-') return combine(left, right, Math.max);
  return operator === '*' ? combine(left, right, (a, b) => a + b) : null;
}

function combine(left: Scales, right: Scales, rule: (a: number, b: number) => number): Scales {
  if (left === null || right === null) return null;
  return new Set([...left].flatMap((a) => [...right].map((b) => rule(a, b))));
}

/** A CASE without ELSE gives NULL, which has no scale. */
function orNull(value: unknown, inner: (value: unknown) => Scales): Scales {
  return value === undefined ? new Set() : inner(value);
}

function union(parts: readonly Scales[]): Scales {
  const all = new Set<number>();
  for (const part of parts) {
    if (part === null) return null;
    for (const scale of part) all.add(scale);
  }
  return all;
}
