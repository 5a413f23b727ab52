/**
 * Which hidden columns an aggregate needs, and what it shows of them.
 * Invariant: what is shown is digit for digit what Postgres computes from the same rows.
 * Source: src/backend/utils/adt/numeric.c: avg() is numeric division of the sum by the count (int8_avg, numeric_avg), sum() of numeric
 * shows the largest scale among its values and is NaN when one of them is; sum() of smallint and integer is bigint.
 */
import type { AggregateCall } from './aggregate-calls.ts';
import { numericType, possibleScales } from './numeric-scale.ts';
import type { AggregateState } from './plans.ts';
import type { Fields } from './tree.ts';
import type { NamedExpression, ProbeColumn } from './types.ts';

const integers: ReadonlySet<number> = new Set([20, 21, 23]);
/** date, time, timestamp, timestamptz, text, varchar: ordered, and equal values look the same. */
const ordered: ReadonlySet<number> = new Set([20, 21, 23, 25, 26, 1043, 1082, 1083, 1114, 1184]);

export interface PlannedAggregates {
  readonly arguments: readonly NamedExpression[];
  readonly states: readonly AggregateState[];
  /** For each call, SQL over the storage row `s`. */
  readonly shown: readonly string[];
}

/** Plans all calls, or says why arithmetic will not do. `typeOf` gives the type of each argument, `columnType` that of columns inside. */
export function planAggregates(
  calls: readonly AggregateCall[],
  typeOf: (call: number) => ProbeColumn | undefined,
  columnType: (column: Fields) => ProbeColumn | undefined,
): PlannedAggregates | string {
  const args: NamedExpression[] = [];
  const states: AggregateState[] = [];
  const shown: string[] = [];
  const argument = (call: AggregateCall): string => {
    const value = call.argument ?? '1';
    const expression = call.filter === null ? value : `CASE WHEN (${call.filter}) THEN (${value}) END`;
    const same = args.find((other) => other.expression === expression);
    if (same !== undefined) return same.name;
    args.push({ name: `a${args.length + 1}`, expression });
    return `a${args.length}`;
  };
  const state = (wanted: AggregateState): string => {
    if (!states.some((other) => other.column === wanted.column)) states.push(wanted);
    return `s.${wanted.column}`;
  };
  for (const [i, call] of calls.entries()) {
    if (call.argument === null && call.filter === null) {
      shown.push('s.n');
      continue;
    }
    const name = argument(call);
    if (call.name === 'count') {
      shown.push(state({ kind: 'count', column: `count_${name}`, argument: name }));
      continue;
    }
    const type = typeOf(i);
    const scales = type?.typeOid === numericType ? possibleScales(call.argumentNode, columnType) : null;
    if (call.name === 'min' || call.name === 'max') {
      if (type === undefined || !(ordered.has(type.typeOid) || scales?.length === 1))
        return `${call.name}() of a type whose equal values can look different`;
      shown.push(state({ kind: call.name, column: `${call.name}_${name}`, argument: name }));
      continue;
    }
    const sum = planSum(type, scales, name, state);
    if (sum === null) return `${call.name}() of a type whose sums cannot be undone exactly`;
    shown.push(call.name === 'sum' ? sum.value : sum.average);
  }
  return { arguments: args, states, shown };
}

function planSum(
  type: ProbeColumn | undefined,
  scales: readonly number[] | null,
  name: string,
  state: (wanted: AggregateState) => string,
): { readonly value: string; readonly average: string } | null {
  const isInteger = type !== undefined && integers.has(type.typeOid);
  if (!isInteger && (scales === null || scales.length === 0)) return null;
  const count = state({ kind: 'count', column: `count_${name}`, argument: name });
  const sum = state({ kind: 'sum', column: `sum_${name}`, argument: name, nan: !isInteger });
  if (isInteger) {
    return {
      value: `CASE WHEN ${count} > 0 THEN ${sum} END`,
      average: `CASE WHEN ${count} > 0 THEN ${sum}::numeric / ${count}::numeric END`,
    };
  }
  const [least = 0, ...larger] = scales ?? [];
  const arms = larger
    .reverse()
    .map((scale) => `WHEN ${state({ kind: 'scale', column: `scale_${name}_${scale}`, argument: name, scale })} > 0 THEN ${scale}`);
  const exact = arms.length === 0 ? sum : `round(${sum}, CASE ${arms.join(' ')} ELSE ${least} END)`;
  const shown = (value: string): string => `CASE WHEN ${count} > 0 THEN ${value} END`;
  return { value: shown(exact), average: shown(`${exact} / ${count}::numeric`) };
}
