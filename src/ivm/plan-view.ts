/**
 * Second step of planning: the way a view is kept.
 * Invariant: a faster way is taken only where it gives what the query gives, as text; every other query falls through to the next way,
 * and the last one takes anything. The reason is kept with the plan.
 */

import { quoteIdentifier } from '../sql/quote.ts';
import { knownAggregate } from './aggregate-calls.ts';
import { planAggregates } from './aggregate-plan.ts';
import { columnText, type JoinShape, type ReadAnalysis, type Shape } from './analyze.ts';
import { numericType, typmodScale } from './numeric-scale.ts';
import type { AggregatePlan, GroupsPlan, RowsPlan, ViewPlan } from './plans.ts';
import { hiddenKey } from './rows.ts';
import type { Fields } from './tree.ts';
import type { NamedExpression, ProbeColumn, ProbeResult, VisibleColumn } from './types.ts';

/** Types whose equal values look the same: bool bytea char name int2/4/8 text oid varchar date time timestamp timestamptz uuid. */
const plainTypes: ReadonlySet<number> = new Set([16, 17, 18, 19, 20, 21, 23, 25, 26, 1043, 1082, 1083, 1114, 1184, 2950]);
const firstUserOid = 16384;
const mostIndexColumns = 32;

/** SQL with one parameter, text[]: names from `Analysis.functions`. Rows (name, aggregate, set_returning, volatile) for `ProbeResult.functions`. */
export const functionKindsSql = `
SELECT f.name,
       bool_or(p.prokind IN ('a', 'w')) AS aggregate,
       bool_or(p.proretset) AS set_returning,
       bool_or(p.provolatile = 'v') AS volatile
FROM unnest($1::text[]) f(name)
JOIN pg_catalog.pg_proc p ON p.proname = regexp_replace(f.name, '^.*\\.', '')
GROUP BY f.name`.trim();

/** Chooses the way. Pure: the same analysis and probe give the same plan. */
export function planView(analysis: ReadAnalysis, probe: ProbeResult): ViewPlan {
  const { shape } = analysis;
  const base = { version: 1 as const, inputs: analysis.inputs };
  const { join } = shape;
  if (join === null) return { ...base, ...wholePlan(shape, shape.notJoined) };
  const is = (names: readonly string[], what: 'aggregate' | 'setReturning'): boolean =>
    names.some((name) => (what === 'aggregate' && knownAggregate(name) !== null) || probe.functions[name]?.[what] === true);
  if (is(join.innerFunctions, 'aggregate')) return { ...base, ...wholePlan(shape, 'an aggregate in FROM') };
  if (is([...join.innerFunctions, ...join.outerFunctions], 'setReturning'))
    return { ...base, ...wholePlan(shape, 'a function that returns a set') };
  const aggregated = is(join.outerFunctions, 'aggregate');
  if (join.distinct && aggregated) return { ...base, ...wholePlan(shape, 'DISTINCT over groups') };
  if (!join.grouped && !aggregated) return { ...base, ...rowsPlan(shape, join) };
  return { ...base, ...groupedPlan(shape, join, probe) };
}

type Chosen = Pick<ViewPlan, 'reason' | 'columns' | 'key' | 'body'>;

function rowsPlan(shape: Shape, join: JoinShape): Chosen {
  const { occurrences } = join.source;
  const width = occurrences.reduce((sum, occurrence) => sum + occurrence.key.length, 0);
  if (width > mostIndexColumns) return wholePlan(shape, `keys of ${width} columns in all, where an index holds ${mostIndexColumns},`);
  const outputs = join.targets.map((target, i): NamedExpression => ({ name: `c${i + 1}`, expression: target.text }));
  const hidden: NamedExpression[] = [];
  const keys = occurrences.map((occurrence, relation) =>
    occurrence.key.map((_, index) => {
      const shown = join.targets.findIndex(({ key }) => key?.relation === relation && key.index === index);
      if (shown >= 0) return `c${shown + 1}`;
      const column = hiddenKey(relation, index);
      hidden.push(column);
      return column.name;
    }),
  );
  const body: RowsPlan = { kind: 'rows', source: join.source, columns: [...outputs, ...hidden], keys };
  const relations = occurrences.length === 1 ? 'one relation' : `a join of ${occurrences.length} relations`;
  return {
    reason: { way: 'algebraic', reason: `rows of ${relations}, found by the keys of what changed` },
    columns: join.targets.map((target, i) => ({ name: target.name, expression: `s.c${i + 1}` })),
    key: keys.flat(),
    body,
  };
}

function groupedPlan(shape: Shape, join: JoinShape, probe: ProbeResult): Chosen {
  const types = probedTypes(join, probe);
  const why = whyNotArithmetic(join, probe, types);
  const planned = why ?? planAggregates(join.calls, types.argument, types.column);
  if (typeof planned !== 'string') {
    const groups = join.groups.map((expression, i): NamedExpression => ({ name: `k${i + 1}`, expression }));
    const columns = join.targets.map(
      (target): VisibleColumn => ({
        name: target.name,
        expression: (target.pieces ?? [])
          .map((piece) => {
            if (typeof piece === 'string') return piece;
            return 'group' in piece ? `s.k${piece.group + 1}` : parenthesised(planned.shown[piece.aggregate] ?? '');
          })
          .join(''),
      }),
    );
    const body: AggregatePlan = { kind: 'aggregate', source: join.source, groups, arguments: planned.arguments, states: planned.states };
    const what = join.distinct ? 'DISTINCT, kept by counting' : 'aggregates kept by adding and subtracting';
    const extremes = planned.states.some(({ kind }) => kind === 'min' || kind === 'max')
      ? '; min and max from the group when theirs is gone'
      : '';
    return { reason: { way: 'algebraic', reason: what + extremes }, columns, key: ['rid'], body };
  }
  if (join.groups.length === 0) return wholePlan(shape, `${planned} without GROUP BY`);
  if (!probe.groupsHashable) return wholePlan(shape, 'a group key that cannot be hashed');
  if (join.groups.some(isBareConstant)) return wholePlan(shape, 'a constant group key');
  const outputs = join.targets.map((target, i): NamedExpression => ({ name: `c${i + 1}`, expression: target.text }));
  const groups = join.groups.map((expression, i): NamedExpression => {
    const shown = outputs.find((output) => output.expression === expression);
    return { name: shown?.name ?? `k${i + 1}`, expression };
  });
  const comparable = join.groups.every((_, i) => (types.group(i)?.typeOid ?? firstUserOid) < firstUserOid);
  const body: GroupsPlan = { kind: 'groups', source: join.source, groups, comparable, outputs, having: join.having };
  return {
    reason: { way: 'keyed', reason: `touched groups are computed again because of ${planned}` },
    columns: join.targets.map((target, i) => ({ name: target.name, expression: `s.c${i + 1}` })),
    key: ['rid'],
    body,
  };
}

/** Why aggregates cannot be kept by arithmetic, whatever they are; null when they may. */
function whyNotArithmetic(join: JoinShape, probe: ProbeResult, types: ProbedTypes): string | null {
  if (join.having !== null) return 'HAVING';
  const other = join.outerFunctions.find((name) => knownAggregate(name) === null && probe.functions[name]?.aggregate === true);
  if (other !== undefined) return `${other}()`;
  if (join.targets.some((target) => target.pieces === null)) return 'an aggregate or an expression that cannot be taken apart';
  if (join.groups.length > 0 && !probe.groupsHashable) return 'a group key that cannot be hashed';
  const unlike = join.groups.findIndex((_, i) => !looksAlike(types.group(i)));
  return unlike < 0 ? null : `group key ${join.groups[unlike] ?? ''}, whose equal values can look different`;
}

function looksAlike(type: ProbeColumn | undefined): boolean {
  if (type === undefined) return false;
  if (type.typeOid === numericType) return typmodScale(type.typeModifier) !== null;
  // char(n) is padded to its length; without a length trailing spaces vary.
  return plainTypes.has(type.typeOid) || (type.typeOid === 1042 && type.typeModifier >= 0);
}

function wholePlan(shape: Shape, why: string): Chosen {
  const columns = shape.columns.map((_, i) => `c${i + 1}`);
  return {
    reason: { way: 'full', reason: `${why} needs the whole query; only rows that differ are written` },
    columns: shape.columns.map((name, i) => ({ name, expression: `s.${quoteIdentifier(columns[i] ?? '')}` })),
    key: ['rid'],
    body: { kind: 'whole', query: shape.whole, occurrences: shape.occurrences, columns },
  };
}

/** A bare constant in GROUP BY means a position, or is refused. */
function isBareConstant(text: string): boolean {
  return /^\(*[-+]?[\d.]+\)*$|^(true|false|null)$/i.test(text.trim());
}

function parenthesised(expression: string): string {
  return /^s\.\w+$/.test(expression) ? expression : `(${expression})`;
}

interface ProbedTypes {
  readonly group: (i: number) => ProbeColumn | undefined;
  /** Type of the argument of a call. */
  readonly argument: (call: number) => ProbeColumn | undefined;
  readonly column: (column: Fields) => ProbeColumn | undefined;
}

/** The probe's columns by what they are; their order is that of `probedExpressions`. */
function probedTypes(join: JoinShape, probe: ProbeResult): ProbedTypes {
  const withArgument = join.calls.flatMap((call, i) => (call.argument === null ? [] : [i]));
  const columnsFrom = join.groups.length + withArgument.length;
  return {
    group: (i) => probe.columns[i],
    argument: (call) => {
      const place = withArgument.indexOf(call);
      return place < 0 ? undefined : probe.columns[join.groups.length + place];
    },
    column: (column) => {
      const place = join.argumentColumns.indexOf(columnText(column));
      return place < 0 ? undefined : probe.columns[columnsFrom + place];
    },
  };
}
