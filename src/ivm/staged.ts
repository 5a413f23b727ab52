/**
 * Planning of a query that is split into stages.
 * Invariant: a stage is planned when those below it are, because their plans say what their columns and keys are; the whole is as good as
 * its worst step, and a step that computes everything again counts as keyed when it reads stored stages alone.
 */

import type { AggregateCall, TargetPiece } from './aggregate-calls.ts';
import { knownAggregate } from './aggregate-calls.ts';
import {
  allOf,
  columnOf,
  columnRef,
  equal,
  expressionText,
  meaningOf,
  NotRewritable,
  parseExpression,
  replace,
  resTarget,
  selectFields,
  type Tree,
} from './ast.ts';
import { joinSource } from './linear-source.ts';
import { possibleScales } from './numeric-scale.ts';
import type { BagPlan, KeyedPlan, PlanBody, StagePlan } from './plans.ts';
import { distinctOn, eachOwnNode, type FunctionKinds, hasSetFunction, isAggregate, isGrouped } from './query-parts.ts';
import { keyName } from './relation-sql.ts';
import { anyRows, isShort, rowIdentity } from './row-identity.ts';
import { columnText, type JoinShape, type Shape, type ShapeTarget } from './shape.ts';
import { tokensOf } from './source-text.ts';
import type { Stage } from './stage.ts';
import { placesOf, type Relations, type StageText, stageText } from './stage-text.ts';
import { touchQueries } from './touch-queries.ts';
import { at, type Fields, functionName, kindOf, list, node } from './tree.ts';
import type { LiveRelation, PlanReason, ProbeColumn } from './types.ts';

/** A stage with what can be said of it without types. */
export interface ReadStage {
  readonly stage: Stage;
  readonly text: StageText;
  /** Expressions whose types are asked for. */
  readonly probed: readonly string[];
  /** Text of FROM and WHERE over which they are, for the probe; empty when there are none. */
  readonly over: StageText | null;
  readonly shape: Shape;
}

/** A stage as a relation before it is planned: its columns by their own names. */
export function draftRelation(number: number, columns: readonly string[]): LiveRelation {
  return {
    kind: 'live',
    id: -1 - number,
    key: [],
    columns: columns.map((name) => ({ name, expression: `s."${name.replaceAll('"', '""')}"` })),
  };
}

export function readStage(stage: Stage, relations: Relations, kinds: FunctionKinds): ReadStage {
  const text = stageText(stage.select, relations);
  const shape: Shape = {
    whole: text.template,
    occurrences: text.occurrences,
    columns: stage.columns,
    join: sumsOf(stage) === null ? null : linearShape({ ...stage, select: sumsOf(stage) ?? {} }, relations, kinds),
    notJoined: stage.way.kind === 'whole' ? stage.way.why : '',
  };
  const expressions = probedOf(stage, shape);
  const from = selectFields([{ ResTarget: { val: parseExpression('1') } }], list(stage.select['fromClause']));
  return {
    stage,
    text,
    shape,
    probed: expressions.map(expressionText),
    over: expressions.length === 0 ? null : stageText(from, relations, stage.select),
  };
}

/** The linear query that can keep the stage. */
function sumsOf({ select, way }: Stage): Tree | null {
  switch (way.kind) {
    case 'linear':
      return select;
    case 'keyed':
      return way.sums?.inner ?? null;
    case 'union':
    case 'whole':
      return null;
  }
}

/** The key of a keyed stage; groups, then arguments of calls, then columns in outputs: as `probedExpressions`. */
function probedOf(stage: Stage, shape: Shape): unknown[] {
  const { join } = shape;
  return [
    ...keyOf(stage),
    ...(join === null
      ? []
      : [
          ...groupNodes(stage.select),
          ...join.calls.flatMap((call) => (call.argument === null ? [] : [call.argumentNode])),
          ...join.argumentColumns.map(parseExpression),
        ]),
  ];
}

/** Expressions of the key of a keyed stage, where it is not a relation's own. */
export function keyOf({ way }: Stage): readonly unknown[] {
  return way.kind === 'keyed' ? (way.key ?? []) : [];
}

function groupNodes(select: Tree): unknown[] {
  const targets = list(select['targetList']).map((entry) => at(entry, 'ResTarget')?.['val']);
  return distinctOn(select) === null ? [...list(select['groupClause'])] : targets;
}

function linearShape(stage: Stage, relations: Relations, kinds: FunctionKinds): JoinShape {
  const { select } = stage;
  const source = joinSource(select, relations);
  const distinct = distinctOn(select) !== null;
  const groups = groupNodes(select);
  const grouped = distinct || isGrouped(select, kinds);
  const calls: AggregateCall[] = [];
  const places = placesOf(selectFields([], list(select['fromClause'])));
  const targets = list(select['targetList']).map((entry, i): ShapeTarget => {
    const val = at(entry, 'ResTarget')?.['val'];
    const column = columnOf(val);
    const relation = column === null ? undefined : places.get(column.alias);
    const expression = source.occurrences[relation ?? -1]?.columns.find(({ name }) => name === column?.column)?.expression;
    const index = relation === undefined ? -1 : (source.occurrences[relation]?.key.findIndex((key) => expression === `s.${key}`) ?? -1);
    return {
      name: stage.columns[i] ?? '',
      text: expressionText(val),
      pieces: !grouped ? null : distinct ? [{ group: i }] : takeApartTree(val, groups, calls, kinds),
      key: relation === undefined || index < 0 ? null : { relation, index },
    };
  });
  const columns = new Set<string>();
  eachOwnNode([select['targetList'], groups], (kind, fields) => {
    if (kind === 'ColumnRef') columns.add(columnText(fields));
    return undefined;
  });
  return {
    source,
    targets,
    distinct,
    groups: groups.map(expressionText),
    having: select['havingClause'] === undefined ? null : expressionText(select['havingClause']),
    calls,
    grouped,
    outerFunctions: functionNames([select['targetList'], select['havingClause']]),
    innerFunctions: [],
    argumentColumns: [...columns],
  };
}

function functionNames(value: unknown): string[] {
  const names = new Set<string>();
  eachOwnNode(value, (kind, fields) => {
    if (kind === 'FuncCall') names.add(functionName(fields));
    return undefined;
  });
  return [...names];
}

/** An output put together from groups and aggregates; null when it holds an aggregate that arithmetic does not keep. */
function takeApartTree(value: unknown, groups: readonly unknown[], calls: AggregateCall[], kinds: FunctionKinds): TargetPiece[] | null {
  const meanings = groups.map(meaningOf);
  let possible = true;
  const marked = replace(value, (kind, fields, whole) => {
    const group = meanings.indexOf(meaningOf(whole));
    if (group >= 0) return columnRef('mr$piece', `g${group}`);
    if (kind !== 'FuncCall' || !isAggregate(fields, kinds)) return undefined;
    const call = plainCall(fields);
    if (call === null) {
      possible = false;
      return whole;
    }
    const same = calls.findIndex((other) => other.name === call.name && other.argument === call.argument && other.filter === call.filter);
    if (same < 0) calls.push(call);
    return columnRef('mr$piece', `a${same < 0 ? calls.length - 1 : same}`);
  });
  if (!possible) return null;
  const text = expressionText(marked);
  const tokens = tokensOf(text);
  const pieces: TargetPiece[] = [];
  let done = 0;
  for (const [i, token] of tokens.entries()) {
    if (token.text.replaceAll('"', '') !== 'mr$piece' || tokens[i + 1]?.text !== '.') continue;
    const name = tokens[i + 2];
    if (name === undefined) return null;
    const number = Number(name.text.slice(1));
    pieces.push(text.slice(done, token.start), name.text.startsWith('g') ? { group: number } : { aggregate: number });
    done = name.end;
  }
  pieces.push(text.slice(done));
  const outside = pieces.filter((piece) => typeof piece === 'string').join(' ');
  // A column beside groups and aggregates.
  if (tokensOf(outside).some((token, i, all) => all[i + 1]?.text === '.' && /^"?[qr]\d+"?$/.test(token.text))) return null;
  return pieces.filter((piece) => piece !== '');
}

function plainCall(fields: Fields): AggregateCall | null {
  const name = knownAggregate(functionName(fields));
  const plain = ['agg_distinct', 'agg_order', 'agg_within_group', 'func_variadic'].every((mark) => fields[mark] === undefined);
  const args = list(fields['args']);
  const star = fields['agg_star'] === true;
  if (name === null || !plain || (star ? name !== 'count' : args.length !== 1)) return null;
  return {
    name,
    argument: star ? null : expressionText(args[0]),
    argumentNode: args[0] ?? null,
    filter: fields['agg_filter'] === undefined ? null : expressionText(fields['agg_filter']),
  };
}

/** Types whose `=` is Postgres's own and has a hash: a key of them can be looked up. */
const keyTypes: ReadonlySet<number> = new Set([
  ...[16, 17, 18, 19, 20, 21, 23, 25, 26, 700, 701, 869, 650, 829, 1042, 1043, 1082, 1083, 1114, 1184, 1186, 1266, 1700, 2950, 3802],
]);

export function canBeKey(column: ProbeColumn | undefined): boolean {
  return column !== undefined && keyTypes.has(column.typeOid);
}

/** Plan of a keyed stage, over relations whose keys are known. `types`: of its key, where that is not a relation's own. */
export function keyedPlan(
  stage: Stage,
  relations: Relations,
  live: readonly LiveRelation[],
  types: readonly ProbeColumn[],
  kinds: FunctionKinds,
): Omit<StagePlan, 'key' | 'reason'> & { readonly body: KeyedPlan } {
  const { way, select } = stage;
  if (way.kind !== 'keyed') throw new RangeError('not a keyed stage');
  const places = placesOf(select);
  const anchor = way.anchor !== null && way.key === null ? (places.get(way.anchor) ?? null) : null;
  const own = (relation: number, alias: string): unknown[] => {
    const key = stageText(select, relations).occurrences[anchor ?? -1]?.key ?? [];
    return key.map((_, i) => columnRef(alias, keyName(relation, i).slice(1, -1)));
  };
  const keys = way.key ?? own(anchor ?? 0, way.anchor ?? '');
  if (keys.length === 0) throw new NotRewritable('a relation without a key');
  const targets = list(select['targetList']);
  const shown = targets.map((entry) => meaningOf(at(entry, 'ResTarget')?.['val']));
  const hidden: Tree[] = [];
  const key = keys.map((value, i) => {
    const place = anchor === null ? shown.indexOf(meaningOf(value)) : -1;
    if (place >= 0) return `c${place + 1}`;
    hidden.push(resTarget(`k${i + 1}`, value));
    return `k${i + 1}`;
  });
  const identity = needsBag(stage, kinds) ? anyRows(anchor) : rowIdentity(stage, relations, anchor, key);
  hidden.push(...identity.hidden);
  const columns = [...targets.map((_, i) => `c${i + 1}`), ...hidden.map((entry) => String(at(entry, 'ResTarget')?.['name']))];
  const named = [...targets.map((entry, i) => resTarget(`c${i + 1}`, at(entry, 'ResTarget')?.['val'])), ...hidden];
  const all: Tree = { ...select, targetList: named };
  const touched = { RangeVar: { relname: 'mr$touched', inh: true, relpersistence: 'p', alias: { aliasname: 'mr$t' } } };
  const restricted = (conditions: readonly unknown[]): Tree => ({
    ...all,
    fromClause: [...list(select['fromClause']), touched],
    whereClause: allOf([select['whereClause'], ...conditions].filter((condition) => condition !== undefined)),
  });
  const given = keys.map((_, i) => columnRef('mr$t', `k${i + 1}`));
  const someNull = (values: readonly unknown[]): unknown => {
    const tests = values.map((arg) => ({ NullTest: { ...node(kindOf(parseExpression('x IS NULL')).fields), arg } }));
    return tests.length === 1 ? tests[0] : { BoolExpr: { boolop: 'OR_EXPR', args: tests } };
  };
  const alike = keys.map((value, i) =>
    replace(parseExpression('l.x IS NOT DISTINCT FROM r.x'), (kind, fields) =>
      kind === 'ColumnRef' ? (columnOf({ ColumnRef: fields })?.alias === 'l' ? value : given[i]) : undefined,
    ),
  );
  const text = stageText(all, relations);
  const touch: KeyedPlan['touch'] =
    way.anchor === null
      ? { kind: 'terms', source: joinSource(select, relations), keys: keys.map(expressionText) }
      : { kind: 'paths', paths: touchQueries(select, way.anchor, way.key, relations, live) };
  return {
    columns: targets.map((_, i) => ({ name: stage.columns[i] ?? '', expression: `s.c${i + 1}` })),
    body: {
      kind: 'keyed',
      queries: {
        all: text.template,
        touched: stageText(restricted(keys.map((value, i) => equal(value, given[i]))), relations).template,
        touchedNull: stageText(restricted([someNull(keys), someNull(given), ...alike]), relations).template,
      },
      occurrences: text.occurrences,
      keysOf: identity.keysOf,
      columns,
      key,
      nullable: way.key !== null,
      short: way.key === null || isShort(keys.map((_, i) => types[i])),
      unique: identity.unique,
      touch,
    },
  };
}

/** Plan of rows of several arms, or of one whose rows have no key. */
export function bagPlan(arms: readonly Tree[], relations: Relations): BagPlan {
  const width = list(arms[0]?.['targetList']).length;
  return {
    kind: 'bag',
    arms: arms.map((arm) => ({
      source: joinSource(arm, relations),
      outputs: list(arm['targetList']).map((entry) => expressionText(at(entry, 'ResTarget')?.['val'])),
    })),
    columns: Array.from({ length: width }, (_, i) => `c${i + 1}`),
  };
}

/** Rows of a linear stage can come several times for one combination of input rows, or the inputs cannot tell rows apart. */
export function needsBag(stage: Stage, kinds: FunctionKinds): boolean {
  const relationsOnly = (item: unknown): boolean => {
    const { kind, fields } = kindOf(item);
    return kind === 'JoinExpr' ? relationsOnly(fields['larg']) && relationsOnly(fields['rarg']) : kind === 'RangeVar';
  };
  return hasSetFunction(stage.select['targetList'], kinds) || !list(stage.select['fromClause']).every(relationsOnly);
}

/** Digits behind the point that the columns of a planned stage can show, where that is known. */
export function outputScales(stage: Stage, column: (fields: Fields) => ProbeColumn | undefined): (readonly number[] | null)[] {
  if (stage.way.kind !== 'linear' && stage.way.kind !== 'keyed') return stage.columns.map(() => null);
  return list(stage.select['targetList']).map((entry) => {
    const val = at(entry, 'ResTarget')?.['val'];
    const { kind, fields } = kindOf(val);
    const name = kind === 'FuncCall' ? knownAggregate(functionName(fields)) : null;
    if (name === 'count') return [0];
    if (name === 'sum' || name === 'min' || name === 'max') return possibleScales(list(fields['args'])[0], column);
    return name === null ? possibleScales(val, column) : null;
  });
}

const ranks = { algebraic: 0, keyed: 1, full: 2 } as const;

/** How good a way is: 0 is best. */
export function rank(reason: PlanReason): number {
  return ranks[reason.way];
}

/** The way of the whole of a staged plan. */
export function overall(stages: readonly StagePlan[], last: StagePlan): PlanReason {
  const all = [...stages, last];
  const worst = all.reduce((a, b) => (rank(b.reason) > rank(a.reason) ? b : a));
  const count = all.length === 1 ? '' : `${all.length} stages; `;
  return { way: worst.reason.way, reason: count + worst.reason.reason };
}

/** True when a step reads hidden stages only. */
export function readsStagesOnly(body: PlanBody): boolean {
  return body.kind === 'whole' && body.occurrences.length > 0 && body.occurrences.every(({ input }) => input < 0);
}
