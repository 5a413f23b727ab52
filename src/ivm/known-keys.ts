/**
 * Which columns of a live view are known to tell its rows apart.
 * Invariant: a key that is returned is one in every state of the inputs. What is not known is not claimed: no key is no statement.
 */
import { meaningOf, parseSelect, type Tree } from './ast.ts';
import { clockId } from './clock-relation.ts';
import type { RowsPlan, ViewPlan } from './plans.ts';
import { at, contains, kindOf, list, node, strings, walk } from './tree.ts';
import type { JoinSource, OccurrenceColumn } from './types.ts';

export interface KnownKeys {
  /** Places of columns, from 0. An empty one: there is at most one row. */
  readonly keys: readonly (readonly number[])[];
  /** Places of columns that are never null. */
  readonly notNull: readonly number[];
}

export interface KeyFacts {
  /** Whether two columns of inputs have one type, so that equality finds at most one row of a key. */
  readonly sameType: (left: InputColumn, right: InputColumn) => boolean;
  /** Whether a function of this name, as printed, returns sets. */
  readonly returnsSet: (name: string) => boolean;
}

/** A storage column of an input; negative inputs are the view's own hidden stages. */
export interface InputColumn {
  readonly input: number;
  readonly column: string;
}

/** `definition`: the view's query as Postgres prints it, '' when that is not had. The parser must be loaded. */
export function knownKeys(plan: ViewPlan, definition: string, facts: KeyFacts): KnownKeys {
  const place = (column: string): number => plan.columns.findIndex(({ expression }) => expression === `s.${column}`);
  const shown = (columns: readonly string[]): readonly number[] | null => {
    const places = columns.map(place);
    return places.includes(-1) ? null : places;
  };
  const { keys, notNull } = storedKeys(plan, facts);
  const found = [...keys.map(shown), ...(definition === '' ? [] : queryKeys(definition, plan.columns.length, facts))].filter(
    (key) => key !== null,
  );
  return {
    keys: smallest(found.map((key) => [...new Set(key)].sort((a, b) => a - b))),
    notNull: [...new Set(notNull.map(place).filter((one) => one >= 0))],
  };
}

/** Keys by storage columns. */
function storedKeys(
  plan: ViewPlan,
  facts: KeyFacts,
): { readonly keys: readonly (readonly string[])[]; readonly notNull: readonly string[] } {
  const { body } = plan;
  switch (body.kind) {
    case 'rows':
      return { keys: keysOfJoin(body, facts), notNull: body.keys.flat() };
    case 'aggregate':
      return { keys: [body.groups.map(({ name }) => name)], notNull: [] };
    case 'groups':
      return { keys: body.groups.length === 0 ? [] : [body.groups.map(({ name }) => name)], notNull: [] };
    case 'keyed':
      return { keys: body.unique.length === 0 ? [] : [body.unique], notNull: body.unique };
    case 'bag':
    case 'whole':
      return { keys: [], notNull: [] };
  }
}

/** The keys of all relations together, and those of one from which all others are found by their keys. */
function keysOfJoin(body: RowsPlan, facts: KeyFacts): string[][] {
  return [...body.keys.flatMap((key, relation) => (findsAll(body.source, relation, facts.sameType) ? [[...key]] : [])), body.keys.flat()];
}

/** Whether a row of the relation `start` stands in one row of the join at most: each of the others is found by its key from there on. */
export function findsAll(source: JoinSource, start: number, sameType: KeyFacts['sameType']): boolean {
  const { occurrences } = source;
  const equalities = [...(source.equalities ?? []), ...(source.joined ?? [])];
  const storageColumn = ({ relation, column }: OccurrenceColumn): InputColumn => ({
    input: occurrences[relation]?.input ?? 0,
    column: (occurrences[relation]?.columns.find(({ name }) => name === column)?.expression ?? '').replace(/^s\./, ''),
  });
  /** Whether a column of the relation's key is equal to one of a relation that is found. */
  const isBound = (relation: number, key: string, found: ReadonlySet<number>): boolean =>
    equalities.some((pair) =>
      [pair, [pair[1], pair[0]] as const].some(([own, other]) => {
        if (own.relation !== relation || !found.has(other.relation)) return false;
        const column = storageColumn(own);
        return column.column === key && sameType(column, storageColumn(other));
      }),
    );
  const found = new Set([start]);
  for (let more = true; more; ) {
    more = false;
    for (const [relation, { input, key }] of occurrences.entries()) {
      const isOne = input === clockId || (key.length > 0 && key.every((column) => isBound(relation, column, found)));
      if (found.has(relation) || !isOne) continue;
      found.add(relation);
      more = true;
    }
  }
  return found.size === occurrences.length;
}

/** What the query's own words say: DISTINCT, DISTINCT ON, GROUP BY, UNION and the like, LIMIT 1. */
function queryKeys(definition: string, width: number, facts: KeyFacts): (readonly number[] | null)[] {
  const select = parseSelect(definition);
  const limit = at(select['limitCount'], 'A_Const')?.['ival'];
  const single = limit !== undefined && node(limit)['ival'] === 1 && select['limitOption'] === 'LIMIT_OPTION_COUNT' ? [[]] : [];
  if (select['op'] === 'SETOP_NONE') return [...single, ...keysOfSelect(select, facts)];
  return select['all'] === true ? single : [...single, Array.from({ length: width }, (_, i) => i)];
}

function keysOfSelect(select: Tree, facts: KeyFacts): (readonly number[] | null)[] {
  const targets = list(select['targetList']).map((target) => at(target, 'ResTarget')?.['val']);
  const places = (expressions: readonly unknown[]): readonly number[] | null => {
    const found = expressions.map((expression) => targets.findIndex((target) => meaningOf(target) === meaningOf(expression)));
    return found.includes(-1) ? null : found;
  };
  const distinct = list(select['distinctClause']);
  const on = distinct.filter((expression) => kindOf(expression).kind !== '');
  const groups = list(select['groupClause']);
  // A function that returns sets makes several rows of a group.
  const grouped = groups.length > 0 && !contains(groups, new Set(['GroupingSet'])) && !targets.some((target) => callsSet(target, facts));
  return [...(on.length > 0 ? [places(on)] : distinct.length > 0 ? [targets.map((_, i) => i)] : []), ...(grouped ? [places(groups)] : [])];
}

function callsSet(target: unknown, facts: KeyFacts): boolean {
  let found = false;
  walk(target, (kind, fields) => {
    if (kind === 'FuncCall') found ||= facts.returnsSet(strings(fields['funcname']).join('.'));
  });
  return found;
}

/** Keys that hold no other one, each once. */
function smallest(keys: readonly (readonly number[])[]): (readonly number[])[] {
  const kept: (readonly number[])[] = [];
  for (const key of [...keys].sort((a, b) => a.length - b.length)) {
    if (!kept.some((smaller) => smaller.every((column) => key.includes(column)))) kept.push(key);
  }
  return kept;
}
