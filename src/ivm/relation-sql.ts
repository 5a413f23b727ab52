/**
 * Relations of a join, each in a chosen state, as SQL.
 * Invariant: hidden columns (`mr$k<relation>_<i>` keys, `mr$w<relation>` weights) have names no other relation uses, so that they can be
 * named without qualification at the top, however deep the relation lies.
 */

import { quoteIdentifier } from '../sql/quote.ts';
import { atOtherTime, clockId, isOfTime, otherTime } from './clock-relation.ts';
import { columnsOf, whereAll } from './sql-text.ts';
import { subsetsUpTo } from './terms.ts';
import type { JoinSource, Occurrence, TableName, Template } from './types.ts';

/**
 * State of one relation of a join: `new` as it is now; `changes` its signed changes; `old` as it was, new minus changes, signed;
 * `either` rows it has or had (a superset of both states, without signs); `touched` present rows with a changed key;
 * `untouched` present rows without; `moved` changed rows, those that came and those that went, without signs.
 */
export type State = 'new' | 'changes' | 'old' | 'either' | 'touched' | 'untouched' | 'moved';

export interface Rendering {
  readonly storage: TableName;
  /** Delta tables; needed for the states that look at changes. */
  readonly delta?: TableName;
  readonly states?: readonly State[];
  /** Expose the keys of these relations. */
  readonly keysOf?: readonly number[];
  /** CTEs with the changes of relations that matter. */
  readonly changes?: ReadonlyMap<number, string>;
  /** Relations that are left out: one row without columns. */
  readonly spared?: ReadonlySet<number>;
  /** Read of these relations only what changes of another can join, before anything else is joined. */
  readonly reduced?: ReadonlyMap<number, Reduction>;
}

/** Rows of a relation whose columns `own` are those, `theirs`, of a change of the relation `by`. */
export interface Reduction {
  readonly by: number;
  readonly own: readonly string[];
  readonly theirs: readonly string[];
}

/**
 * Relations joined to another by several columns, where the planner multiplies selectivities that depend on each other, takes the join for
 * nearly empty and begins with it: those that changes join to by fewer columns are reduced by them first.
 */
export function reductions(source: JoinSource, states: readonly State[]): ReadonlyMap<number, Reduction> {
  const reduced = new Map<number, Reduction>();
  const between = (a: number, b: number): (readonly [string, string])[] =>
    (source.equalities ?? []).flatMap(([left, right]) => {
      if (left.relation === a && right.relation === b) return [[left.column, right.column] as const];
      return left.relation === b && right.relation === a ? [[right.column, left.column] as const] : [];
    });
  source.occurrences.forEach((_, relation) => {
    if (states[relation] !== 'new' || states.includes('old')) return;
    const by = source.occurrences.findIndex((_other, other) => states[other] === 'changes' && between(relation, other).length > 0);
    const most = Math.max(...states.map((state, other) => (state === 'new' ? between(relation, other).length : 0)));
    if (by < 0 || most < 2 || most <= between(relation, by).length) return;
    const pairs = between(relation, by);
    reduced.set(relation, { by, own: pairs.map(([own]) => own), theirs: pairs.map(([, theirs]) => theirs) });
  });
  return reduced;
}

export const weightName = (relation: number): string => `"mr$w${relation}"`;
export const keyName = (relation: number, i: number): string => `"mr$k${relation}_${i + 1}"`;
/** CTE with the changed keys of an input. */
export const changedKeys = (input: number): string => `"mr$changed${input}"`;

/** FROM text of a join. */
export function renderFrom(source: JoinSource, rendering: Rendering): string {
  return renderTemplate(source.from, source.occurrences, rendering);
}

/** Any template with its relations filled in. */
export function renderTemplate(template: Template, occurrences: readonly Occurrence[], rendering: Rendering): string {
  return template
    .map((piece) => {
      if (typeof piece === 'string') return piece;
      if ('pass' in piece) {
        const names = piece.pass.flatMap((relation) => hiddenNames(relation, occurrences[relation], rendering));
        return names.map((name) => `, ${name}`).join('');
      }
      return renderRelation(piece.relation, occurrences, rendering);
    })
    .join('');
}

/** Product of the weights of the relations that have one; null when none has: each row counts once. */
export function weightProduct(states: readonly State[]): string | null {
  const names = states.flatMap((state, i) => (state === 'changes' || state === 'old' ? [weightName(i)] : []));
  return names.length === 0 ? null : names.join(' * ');
}

export interface NarrowedChanges {
  readonly ctes: readonly string[];
  /** By relation. */
  readonly names: ReadonlyMap<number, string>;
  /** Relations that were asked for by each. */
  readonly found: ReadonlyMap<number, ReadonlySet<number>>;
}

/**
 * CTEs with the changes of each of several changed relations, less those that cannot be in any result, old or new; by relation. With one
 * changed relation its one term says the same.
 */
export function narrowedChanges(source: JoinSource, changed: ReadonlySet<number>, rendering: Rendering): NarrowedChanges {
  const ctes: string[] = [];
  const names = new Map<number, string>();
  const found = new Map<number, ReadonlySet<number>>();
  const moving = source.occurrences.filter(({ input }) => changed.has(input)).length;
  // With old states in the terms each has changes of its own.
  if (moving < 2 || moving > subsetsUpTo) return { ctes, names, found };
  for (const { relation, alias, where, needs } of source.narrowings ?? []) {
    if (!changed.has(source.occurrences[relation]?.input ?? 0)) continue;
    const usable = needs.filter(({ occurrences }) => !occurrences.some(({ input }) => changed.has(input)));
    if (where === null && usable.length === 0) continue;
    const conditions = usable.map(({ condition, occurrences }) => renderTemplate(condition, occurrences, { storage: rendering.storage }));
    const states = source.occurrences.map((_, i): State => (i === relation ? 'changes' : 'new'));
    const from = renderRelation(relation, source.occurrences, { ...rendering, states });
    const as = quoteIdentifier(alias);
    const name = `"mr$delta${relation}"`;
    ctes.push(`${name} AS MATERIALIZED (
  SELECT ${as}.* FROM ${from} AS ${as} ${whereAll(where === null ? null : unestimated(where, `${as}.${weightName(relation)}`), ...conditions)}
)`);
    names.set(relation, name);
    found.set(relation, new Set(usable.flatMap(({ relations }) => relations)));
  }
  return { ctes, names, found };
}

/**
 * A condition of which the planner believes that one row in eight passes it. Without statistics it believes that of a range or an equality
 * one in 200 does, takes what is left for one row or none, and joins it to other changes row by row.
 */
function unestimated(condition: string, weight: string): string {
  const always = (one: string, other: string): string => `CASE WHEN ${weight} ${one} 0 THEN true ELSE ${weight} ${other} 0 END`;
  return `CASE WHEN (${condition}) THEN true END AND ${always('>', '<')} AND ${always('<', '>')}`;
}

/** Relations that a term need not join: its changes have been asked for their rows already, and nothing else is asked of them. */
export function sparedRelations(source: JoinSource, states: readonly State[], { found }: NarrowedChanges): ReadonlySet<number> {
  const spared = new Set<number>();
  for (const [relation, relations] of found) {
    if (states[relation] !== 'changes') continue;
    const inside = new Set([...relations].filter((one) => states[one] === 'new' && source.sparable?.includes(one)));
    const isInside = (one: number): boolean => one === relation || inside.has(one);
    for (let size = -1; size !== inside.size; ) {
      size = inside.size;
      for (const { relations: about } of source.conditions ?? []) {
        if (!about.every(isInside)) for (const one of about) inside.delete(one);
      }
    }
    for (const one of inside) spared.add(one);
  }
  return spared;
}

/** WHERE of a term: what changes have been asked already is not asked again. */
export function whereOf(
  source: JoinSource,
  states: readonly State[] = [],
  changes: ReadonlyMap<number, string> = new Map(),
  spared: ReadonlySet<number> = new Set(),
  turned: string | null = null,
): string {
  if (source.conditions === undefined) return whereAll(source.where === null ? null : `(${source.where})`, turned);
  const open = source.conditions.filter(({ relations }) => {
    const [one = -1, ...more] = relations;
    const asked = more.length === 0 && changes.has(one) && states[one] === 'changes';
    return !asked && !relations.some((relation) => spared.has(relation));
  });
  return whereAll(...open.map(({ text }) => `(${text})`), turned);
}

/**
 * The rows of a term. Whether there are changes that matter, and of hidden stages any, is known to the server alone: a term of none is not
 * begun. Asked outside, because a condition about no relation makes the planner consider joining everything with everything.
 */
export function gated(
  term: string,
  source: JoinSource,
  states: readonly State[],
  delta: TableName,
  changes: ReadonlyMap<number, string> = new Map(),
): string {
  const tables = source.occurrences.flatMap(({ input }, i) => {
    if (states[i] !== 'changes' && states[i] !== 'moved') return [];
    return changes.get(i) ?? (input < 0 ? [delta(input)] : []);
  });
  const some = [...new Set(tables)].map((table) => `EXISTS (SELECT FROM ${table})`);
  return some.length === 0 ? term : `SELECT * FROM (${term} OFFSET 0) g ${whereAll(...some)}`;
}

const turned = (delta: string): string =>
  `CASE WHEN s.w > 0 THEN (SELECT max(o.c2) FROM ${delta} o WHERE o.c2 < s.c2) ELSE (SELECT min(o.c2) FROM ${delta} o WHERE o.c2 > s.c2) END`;

/**
 * Of a term with changes of the clock: only rows that do not pass at the other time, before or after; those that pass at both come and go
 * alike. Null: no such term, or what is made of the rows, `shown`, differs with the time.
 */
export function onlyTurned(source: JoinSource, states: readonly State[], shown: string): string | null {
  const [clock, ...more] = source.occurrences.flatMap(({ input }, i) => (input === clockId ? [i] : []));
  if (
    clock === undefined ||
    more.length > 0 ||
    states[clock] !== 'changes' ||
    source.where === null ||
    !isOfTime(source.where) ||
    isOfTime(shown)
  )
    return null;
  const conditions = source.conditions?.map(({ text }) => text).filter(isOfTime) ?? [source.where];
  return `NOT coalesce(${conditions.map((text) => `(${atOtherTime(text)})`).join(' AND ')}, false)`;
}

function expressionsOf(occurrence: Occurrence, names: readonly string[]): string {
  return names.map((name) => occurrence.columns.find((column) => column.name === name)?.expression ?? 'NULL').join(', ');
}

function hiddenNames(relation: number, occurrence: Occurrence | undefined, rendering: Rendering): string[] {
  const state = rendering.states?.[relation] ?? 'new';
  const keys = rendering.keysOf?.includes(relation) === true ? (occurrence?.key ?? []) : [];
  return [...keys.map((_, i) => keyName(relation, i)), ...(state === 'changes' || state === 'old' ? [weightName(relation)] : [])];
}

function renderRelation(relation: number, occurrences: readonly Occurrence[], rendering: Rendering): string {
  const occurrence = occurrences[relation];
  if (occurrence === undefined) throw new RangeError('a template names a relation it does not have');
  if (rendering.spared?.has(relation) === true) return '(SELECT)';
  const state = rendering.states?.[relation] ?? 'new';
  const { used } = occurrence;
  const visible = occurrence.columns
    .filter((column) => used === null || used.includes(column.name))
    .map((column) => `${column.expression} AS ${quoteIdentifier(column.name)}`);
  const keys =
    rendering.keysOf?.includes(relation) === true
      ? occurrence.key.map((column, i) => `s.${quoteIdentifier(column)} AS ${keyName(relation, i)}`)
      : [];
  const columns = (weight?: string): string =>
    [...visible, ...keys, ...(weight === undefined ? [] : [`${weight} AS ${weightName(relation)}`])].join(', ');
  const storage = rendering.storage(occurrence.input);
  const delta = (): string => {
    if (rendering.delta === undefined) throw new RangeError(`state ${state} needs a delta table`);
    return rendering.delta(occurrence.input);
  };
  const sameKey = occurrence.key.map((column) => `k.${quoteIdentifier(column)} = s.${quoteIdentifier(column)}`).join(' AND ');
  switch (state) {
    case 'new': {
      const reduction = rendering.reduced?.get(relation);
      if (reduction === undefined) return `(SELECT ${columns()} FROM ${storage} s)`;
      const by = renderRelation(reduction.by, occurrences, { ...rendering, keysOf: [] });
      const changes = `SELECT ${columnsOf('d', reduction.theirs)} FROM ${by} d`;
      return `(SELECT ${columns()} FROM ${storage} s WHERE (${expressionsOf(occurrence, reduction.own)}) IN (${changes}) OFFSET 0)`;
    }
    case 'changes':
      if (occurrence.input === clockId)
        return `(SELECT ${columns('s.w')}, ${turned(delta())} AS "${otherTime}" FROM ${delta()} s OFFSET 0)`;
      return rendering.changes?.get(relation) ?? `(SELECT ${columns('s.w')} FROM ${delta()} s)`;
    case 'moved':
      return `(SELECT ${columns()} FROM ${delta()} s)`;
    // Both branches without WHERE and with equal types: only then does the planner push joins into them.
    case 'old':
      return `(SELECT ${columns('1::smallint')} FROM ${storage} s UNION ALL SELECT ${columns('(- s.w)')} FROM ${delta()} s)`;
    case 'either':
      return `(SELECT ${columns()} FROM ${storage} s UNION ALL SELECT ${columns()} FROM ${delta()} s)`;
    case 'touched':
      return `(SELECT ${columns()} FROM ${storage} s JOIN ${changedKeys(occurrence.input)} k ON ${sameKey})`;
    case 'untouched':
      return `(SELECT ${columns()} FROM ${storage} s WHERE NOT EXISTS (SELECT FROM ${changedKeys(occurrence.input)} k WHERE ${sameKey}))`;
  }
}
