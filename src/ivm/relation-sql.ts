/**
 * Relations of a join, each in a chosen state, as SQL.
 * Invariant: hidden columns (`mr$k<relation>_<i>` keys, `mr$w<relation>` weights) have names no other relation uses, so that they can be
 * named without qualification at the top, however deep the relation lies.
 */
import { quoteIdentifier } from '../sql/quote.ts';
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
  /** Read of these relations only what changes of another can join, before anything else is joined. */
  readonly reduced?: ReadonlyMap<number, Reduction>;
}

/** Rows of a relation whose columns `own` are those, `theirs`, of a change of the relation `by`. */
export interface Reduction {
  readonly by: Occurrence;
  readonly own: readonly string[];
  readonly theirs: readonly string[];
}

/**
 * Relations joined to another by several columns, where the planner multiplies selectivities that depend on each other, takes the join for
 * nearly empty and begins with it: those that changes join to are reduced by them first.
 */
export function reductions(source: JoinSource, states: readonly State[]): ReadonlyMap<number, Reduction> {
  const reduced = new Map<number, Reduction>();
  const between = (a: number, b: number): (readonly [string, string])[] =>
    (source.equalities ?? []).flatMap(([left, right]) => {
      if (left.relation === a && right.relation === b) return [[left.column, right.column] as const];
      return left.relation === b && right.relation === a ? [[right.column, left.column] as const] : [];
    });
  source.occurrences.forEach((_, relation) => {
    const others = [...source.occurrences.keys()].filter((other) => other !== relation);
    if (states[relation] !== 'new' || !others.some((other) => states[other] === 'new' && between(relation, other).length > 1)) return;
    const by = source.occurrences.findIndex((_other, other) => states[other] === 'changes' && between(relation, other).length > 0);
    const changing = source.occurrences[by];
    if (changing === undefined) return;
    const pairs = between(relation, by);
    reduced.set(relation, { by: changing, own: pairs.map(([own]) => own), theirs: pairs.map(([, theirs]) => theirs) });
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
      const occurrence = occurrences[piece.relation];
      if (occurrence === undefined) throw new RangeError('a template names a relation it does not have');
      return renderRelation(piece.relation, occurrence, rendering);
    })
    .join('');
}

/** Product of the weights of the relations that have one; null when none has: each row counts once. */
export function weightProduct(states: readonly State[]): string | null {
  const names = states.flatMap((state, i) => (state === 'changes' || state === 'old' ? [weightName(i)] : []));
  return names.length === 0 ? null : names.join(' * ');
}

/** Whether a hidden stage changed is known to the server alone: a term of its changes is not begun when there are none. */
export function stageGates(source: JoinSource, states: readonly State[], delta: TableName): string[] {
  const inputs = source.occurrences.flatMap(({ input }, i) =>
    input < 0 && (states[i] === 'changes' || states[i] === 'moved') ? [input] : [],
  );
  return [...new Set(inputs)].map((input) => `EXISTS (SELECT FROM ${delta(input)})`);
}

function expressionsOf(occurrence: Occurrence, names: readonly string[]): string {
  return names.map((name) => occurrence.columns.find((column) => column.name === name)?.expression ?? 'NULL').join(', ');
}

function hiddenNames(relation: number, occurrence: Occurrence | undefined, rendering: Rendering): string[] {
  const state = rendering.states?.[relation] ?? 'new';
  const keys = rendering.keysOf?.includes(relation) === true ? (occurrence?.key ?? []) : [];
  return [...keys.map((_, i) => keyName(relation, i)), ...(state === 'changes' || state === 'old' ? [weightName(relation)] : [])];
}

function renderRelation(relation: number, occurrence: Occurrence, rendering: Rendering): string {
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
      const changes = `SELECT ${expressionsOf(reduction.by, reduction.theirs)} FROM ${rendering.delta?.(reduction.by.input)} s`;
      return `(SELECT ${columns()} FROM ${storage} s WHERE (${expressionsOf(occurrence, reduction.own)}) IN (${changes}) OFFSET 0)`;
    }
    case 'changes':
      return `(SELECT ${columns('s.w')} FROM ${delta()} s)`;
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
