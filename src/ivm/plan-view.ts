/**
 * Second step of planning: the way a view is kept.
 * Invariant: a faster way is taken only where it gives what the query gives, as text; every other query falls through to the next way,
 * and the last one takes anything. The reason is kept with the plan.
 */

import { quoteIdentifier } from '../sql/quote.ts';
import { knownAggregate } from './aggregate-calls.ts';
import { planAggregates } from './aggregate-plan.ts';
import { probedExpressions, type ReadAnalysis, type StagedReading } from './analyze.ts';
import { NotRewritable, parseExpression } from './ast.ts';
import { joinSource } from './linear-source.ts';
import { looksOneWay, numericType, typmodScale } from './numeric-scale.ts';
import type { AggregatePlan, GroupsPlan, RowsPlan, StagePlan, ViewPlan } from './plans.ts';
import { eachNode, relationOf } from './query-parts.ts';
import { hiddenKey } from './rows.ts';
import { columnText, type JoinShape, type Shape } from './shape.ts';
import type { Stage } from './stage.ts';
import type { Relations } from './stage-text.ts';
import { bagPlan, canBeKey, keyedPlan, keyOf, needsBag, outputScales, overall, rank, readStage, readsStagesOnly } from './staged.ts';
import type { Fields } from './tree.ts';
import type { LiveRelation, NamedExpression, ProbeColumn, ProbeResult, VisibleColumn } from './types.ts';

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
  const { single, clock, expiry } = analysis.shape;
  const staged = probe.staged === false ? { ...analysis.shape.staged, stages: [] } : analysis.shape.staged;
  const given = dealt(probe, single, staged);
  const base = { version: 2 as const, inputs: analysis.inputs, clock, ...(expiry === null ? {} : { expiry }) };
  // What was counted at one time cannot be taken away at another: only the whole query is right then.
  const plain = clock ? wholePlan(single, 'the time, which changes the result although no row does,') : planShape(single, given.single);
  const alone = { ...base, ...plain, last: plain.reason, stages: [] };
  // The same way in one step is taken from the stage, whose conditions are known one by one.
  const done = rank(plain.reason) === 0 && !(plain.body.kind === 'aggregate' && staged.stages.length === 1);
  if (clock || done || staged.stages.length === 0) return alone;
  const planned = tryStages(staged, given.stages);
  const last = planned.at(-1);
  if (last === undefined || !given.sameTypes) return alone;
  const stages = planned.slice(0, -1).map((plan, i): StagePlan => {
    const index = orderIndex(plan, staged.stages[i]?.stage, given.orders[i] ?? []);
    return index.length === 0 ? plan : { ...plan, index };
  });
  const reason = overall(stages, last);
  const better = rank(reason) < rank(plain.reason) || (rank(reason) === 0 && last.body.kind === plain.body.kind);
  return better ? { ...base, ...last, reason, last: last.reason, stages } : alone;
}

/** Types of a fixed size, which an index takes whatever the value. */
const fixedTypes: ReadonlySet<number> = new Set([16, 20, 21, 23, 26, 700, 701, 1082, 1083, 1114, 1184, 1700, 2950]);

/** Index that gives the rows of a stage in the order in which they are read: of the first columns, as far as they can be in one. */
function orderIndex(plan: StagePlan, stage: Stage | undefined, types: ProbeResult['columns']): string[] {
  const items = (stage?.order ?? []).map(({ column, sort }, i) => {
    const stored = /^s\.(\w+)$/.exec(plan.columns[stage?.columns.indexOf(column) ?? -1]?.expression ?? '')?.[1];
    if (stored === undefined || !fixedTypes.has(types[i]?.typeOid ?? 0) || sort['sortby_dir'] === 'SORTBY_USING') return null;
    const nulls = { SORTBY_NULLS_FIRST: ' NULLS FIRST', SORTBY_NULLS_LAST: ' NULLS LAST' }[String(sort['sortby_nulls'])] ?? '';
    return `${stored}${sort['sortby_dir'] === 'SORTBY_DESC' ? ' DESC' : ''}${nulls}`;
  });
  const end = items.indexOf(null);
  return items.slice(0, end < 0 ? items.length : end).filter((item) => item !== null);
}

/** A query that is no more than one step. */
function planShape(shape: Shape, probe: ProbeResult): StagePlan {
  const { join } = shape;
  if (join === null) return wholePlan(shape, shape.notJoined);
  const is = (names: readonly string[], what: 'aggregate' | 'setReturning'): boolean =>
    names.some((name) => (what === 'aggregate' && knownAggregate(name) !== null) || probe.functions[name]?.[what] === true);
  if (is(join.innerFunctions, 'aggregate')) return wholePlan(shape, 'an aggregate in FROM');
  if (is([...join.innerFunctions, ...join.outerFunctions], 'setReturning')) return wholePlan(shape, 'a function that returns a set');
  const aggregated = is(join.outerFunctions, 'aggregate');
  if (join.distinct && aggregated) return wholePlan(shape, 'DISTINCT over groups');
  return !join.grouped && !aggregated ? rowsPlan(shape, join) : groupedPlan(shape, join, probe);
}

/** None when a stage turns out to be none that can be planned. */
function tryStages(staged: StagedReading, probes: readonly ProbeResult[]): StagePlan[] {
  try {
    return planStages(staged, probes);
  } catch (error) {
    if (error instanceof NotRewritable) return [];
    throw error;
  }
}

/** Plans of all stages, each made when those it reads are. */
function planStages(staged: StagedReading, probes: readonly ProbeResult[]): StagePlan[] {
  const planned: StagePlan[] = [];
  const scales: (readonly (readonly number[] | null)[])[] = [];
  const relations: Relations = (stage, number) => {
    const plan = planned[number];
    const relation = stage
      ? plan === undefined
        ? undefined
        : {
            kind: 'live' as const,
            id: -1 - number,
            key: plan.key,
            columns: namedAs(plan.columns, staged.stages[number]?.stage.columns ?? []),
          }
      : staged.live[number];
    if (relation === undefined) throw new RangeError('a stage reads one that is not planned');
    return relation;
  };
  for (const [i, { stage }] of staged.stages.entries()) {
    const probe = probes[i] ?? { columns: [], functions: {}, groupsHashable: [] };
    const read = readStage(stage, relations, probe.functions);
    const shape = withScales(read.shape, stage, staged, scales);
    planned.push(planStage(stage, shape, probe, relations, staged.live));
    const { join } = shape;
    scales.push(
      outputScales(
        stage,
        join === null ? () => undefined : probedTypes(join, { ...probe, columns: probe.columns.slice(keyOf(stage).length) }).column,
      ),
    );
  }
  return planned;
}

function namedAs(columns: readonly VisibleColumn[], names: readonly string[]): VisibleColumn[] {
  return columns.map((column, i) => ({ ...column, name: names[i] ?? column.name }));
}

/** What is known of the digits of stages below, by the columns of this one's text. */
function withScales(shape: Shape, stage: Stage, staged: StagedReading, scales: readonly (readonly (readonly number[] | null)[])[]): Shape {
  const { join } = shape;
  if (join === null) return shape;
  const known: Record<string, readonly number[]> = {};
  eachNode(stage.select, (kind, fields) => {
    const found = kind === 'RangeVar' ? relationOf({ RangeVar: fields }) : null;
    if (found?.stage !== true) return undefined;
    staged.stages[found.number]?.stage.columns.forEach((name, i) => {
      const digits = scales[found.number]?.[i];
      if (digits !== null && digits !== undefined) known[[found.alias, name].map(quoteIdentifier).join('.')] = digits;
    });
    return undefined;
  });
  return { ...shape, join: { ...join, knownScales: known } };
}

function planStage(stage: Stage, shape: Shape, probe: ProbeResult, relations: Relations, live: readonly LiveRelation[]): StagePlan {
  const { way } = stage;
  const shown = stage.columns.map((name, i) => ({ name, expression: `s.c${i + 1}` }));
  switch (way.kind) {
    case 'linear': {
      const { join } = shape;
      if (join === null) throw new RangeError('a linear stage has a join');
      if (join.grouped) return fromStages(groupedPlan(shape, join, probe));
      const keyless = join.source.occurrences.some((occurrence) => occurrence.key.length === 0);
      if (!keyless && !needsBag(stage, probe.functions)) {
        const rows = rowsPlan(shape, join);
        if (rows.body.kind === 'rows') return rows;
      }
      const why = keyless ? 'a relation without a key' : 'rows that may be equal';
      return {
        reason: { way: 'algebraic', reason: `${why}: counted by what they look like` },
        columns: shown,
        key: ['rid'],
        body: bagPlan([stage.select], relations),
      };
    }
    case 'union':
      return {
        reason: { way: 'algebraic', reason: `rows of ${way.arms.length} arms, counted by what they look like` },
        columns: shown,
        key: ['rid'],
        body: bagPlan(way.arms, relations),
      };
    case 'keyed': {
      const keys = keyOf(stage).length;
      const { join } = shape;
      if (way.sums && join !== null) {
        const sums = groupedPlan(shape, join, { ...probe, columns: probe.columns.slice(keys) });
        const presence = joinSource(way.sums.preserved, relations);
        if (sums.body.kind === 'aggregate') return { ...sums, body: { ...sums.body, presence } };
      }
      if (way.key !== null && !probe.columns.slice(0, keys).every(canBeKey))
        return fromStages(wholePlan(shape, 'a key of a type that is not looked up by value'));
      return {
        ...keyedPlan(stage, relations, live, probe.columns.slice(0, keys), probe.functions),
        key: ['rid'],
        reason: { way: 'keyed', reason: `${way.what} are computed again` },
      };
    }
    case 'whole':
      return fromStages(wholePlan(shape, way.why));
  }
}

/** A step over stored stages alone reads little, however it is computed. */
function fromStages(plan: StagePlan): StagePlan {
  if (plan.body.kind !== 'whole') return plan;
  if (plan.body.occurrences.length === 0) return { ...plan, reason: { way: 'algebraic', reason: 'constant rows' } };
  if (!readsStagesOnly(plan.body)) return plan;
  const why = plan.reason.reason.replace(/ needs the whole query; only rows that differ are written$/, '');
  return { ...plan, reason: { way: 'keyed', reason: `${why}: computed again from stored stages, only rows that differ are written` } };
}

/** The probe's answers by who asked; see probeSql. */
function dealt(
  probe: ProbeResult,
  single: Shape,
  staged: StagedReading,
): {
  readonly single: ProbeResult;
  readonly stages: readonly ProbeResult[];
  readonly orders: readonly ProbeResult['columns'][];
  readonly sameTypes: boolean;
} {
  let column = 0;
  let hash = 0;
  const take = (count: number, hashes: boolean): ProbeResult => {
    const columns = probe.columns.slice(column, column + count);
    column += count;
    return { columns, functions: probe.functions, groupsHashable: hashes ? [probe.groupsHashable[hash++] === true] : [] };
  };
  const { join } = single;
  const first = take(join === null ? 0 : probedExpressions(join).length, join !== null && join.groups.length > 0);
  const stages = staged.stages.map((stage) => take(stage.probed.length, (stage.shape.join?.groups.length ?? 0) > 0));
  const orders = staged.stages.map(({ stage }) => take(stage.order?.length ?? 0, false).columns);
  const wanted = take(single.columns.length, false).columns;
  const found = take(single.columns.length, false).columns;
  const sameTypes = wanted.every((one, i) => one.typeOid === found[i]?.typeOid && one.typeModifier === found[i]?.typeModifier);
  return { single: first, stages, orders, sameTypes };
}

function rowsPlan(shape: Shape, join: JoinShape): StagePlan {
  const { occurrences } = join.source;
  if (occurrences.some((occurrence) => occurrence.key.length === 0)) return wholePlan(shape, 'a relation without a key');
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

function groupedPlan(shape: Shape, join: JoinShape, probe: ProbeResult): StagePlan {
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
  if (probe.groupsHashable[0] !== true) return wholePlan(shape, 'a group key that cannot be hashed');
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
  if (join.groups.length > 0 && probe.groupsHashable[0] !== true) return 'a group key that cannot be hashed';
  const unlike = join.groups.findIndex((text, i) => {
    const type = types.group(i);
    return !looksAlike(type) && !(type?.typeOid === numericType && looksOneWay(groupExpression(text), types.column));
  });
  return unlike < 0 ? null : `group key ${join.groups[unlike] ?? ''}, whose equal values can look different`;
}

/** The expression of a group, where it can be read. */
function groupExpression(text: string): unknown {
  try {
    return parseExpression(text);
  } catch {
    return null;
  }
}

function looksAlike(type: ProbeColumn | undefined): boolean {
  if (type === undefined) return false;
  if (type.typeOid === numericType) return typmodScale(type.typeModifier) !== null;
  // char(n) is padded to its length; without a length trailing spaces vary.
  return plainTypes.has(type.typeOid) || (type.typeOid === 1042 && type.typeModifier >= 0);
}

function wholePlan(shape: Shape, why: string): StagePlan {
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
      const found = place < 0 ? undefined : probe.columns[columnsFrom + place];
      const scales = join.knownScales?.[columnText(column)];
      return found === undefined || scales === undefined ? found : { ...found, scales };
    },
  };
}
