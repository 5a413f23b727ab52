/**
 * Grouped views kept by arithmetic on changes.
 * Invariant: hidden columns are sums over the group's rows, so adding the signed sums over the changes keeps them exact; a row of the
 * storage exists while its group has rows (without GROUP BY always). The least and greatest value need the group's rows only when one
 * that was as extreme may be gone. A sum that is NaN stays so while no NaN comes or goes.
 * Source: counting and summary deltas of Mumick, Quass, Mumick 1997; terms for joins see terms.ts.
 */
import { groupName, presentGroups } from './group-recompute.ts';
import type { AggregatePlan, AggregateState } from './plans.ts';
import {
  gated,
  type NarrowedChanges,
  narrowedChanges,
  onlyTurned,
  reductions,
  renderFrom,
  type State,
  sparedRelations,
  weightProduct,
  whereOf,
} from './relation-sql.ts';
import { columnsOf, hashOf, imageDiffers, nameList, rowNumbers, sameRow, selectList, whereAll } from './sql-text.ts';
import { signedTerms } from './terms.ts';
import type { TableName } from './types.ts';

type Extreme = AggregateState & { readonly kind: 'min' | 'max' };

export function aggregateDdl(plan: AggregatePlan, table: string, storage: TableName): string[] {
  return [
    `CREATE TABLE ${table} WITH (fillfactor = 80) AS\n${aggregateSelect(plan, storage)}\nWITH NO DATA`,
    rowNumbers(table),
    `CREATE INDEX ON ${table} (h)`,
  ];
}

export function aggregateColumns(plan: AggregatePlan): string[] {
  return ['h', ...plan.groups.map(({ name }) => name), 'n', ...plan.states.map(({ column }) => column)];
}

/** All rows of the storage, columns as in `aggregateColumns`. */
export function aggregateSelect(plan: AggregatePlan, storage: TableName): string {
  const states = plan.states.map((state) => `${freshState(state)} AS ${state.column}`);
  const rows = [argumentRows(plan, storage, undefined, null)];
  if (plan.presence !== undefined) rows.push(argumentRows(plan, storage, undefined, null, true));
  const n = plan.presence === undefined ? 'count(*)' : 'count(t.p)';
  return `SELECT ${groupHead(plan, [`${n} AS n`, ...states])}
FROM (
  ${rows.join('\n  UNION ALL\n  ')}
) t
${groupTail(plan)}`;
}

export function aggregateMaintain(
  plan: AggregatePlan,
  table: string,
  changed: ReadonlySet<number>,
  delta: TableName,
  storage: TableName,
): string[] {
  const isChanged = plan.source.occurrences.map((occurrence) => changed.has(occurrence.input));
  const narrowed = narrowedChanges(plan.source, changed, { storage, delta });
  const terms = signedTerms(isChanged).map((term) => argumentRows(plan, storage, delta, { ...term, narrowed }));
  if (plan.presence !== undefined) {
    const moved = plan.presence.occurrences.map((occurrence) => changed.has(occurrence.input));
    terms.push(...signedTerms(moved).map((term) => argumentRows(plan, storage, delta, term, true)));
  }
  const extremes = plan.states.filter((state): state is Extreme => state.kind === 'min' || state.kind === 'max');
  const sums = ['n', ...plan.states.filter((state) => !isExtreme(state)).map(({ column }) => column)];
  const list = groupHead(plan, [`coalesce(${countOf(plan)}, 0) AS n`, ...plan.states.flatMap(changeOfState)]);
  const someSum = sums.map((_, i) => changeOf(plan, sums, i)).join(' OR ');
  // With extremes a group can change although no sum does.
  const having = extremes.length > 0 ? 'HAVING count(*) > 0' : `HAVING ${someSum}`;
  const change = `
WITH ${narrowed.ctes.map((cte) => `${cte}, `).join('')}"mr$change" AS MATERIALIZED (
  SELECT ${list}
  FROM (
    ${onceEach(terms)}
  ) t
  ${groupTail(plan)} ${having}
)`.trim();
  const again = extremes.length === 0 ? { ctes: '', source: '"mr$change"' } : recomputed(plan, table, storage, extremes);
  return [`${change}${again.ctes}\n${merge(plan, table, again.source, sums, extremes)}`];
}

function merge(plan: AggregatePlan, table: string, source: string, sums: readonly string[], extremes: readonly Extreme[]): string {
  const groups = plan.groups.map(({ name }) => name);
  const summed = (name: string): string =>
    plan.states.some((state) => state.column === name && state.kind === 'sum' && state.nan) ? orFail(`x.${name}`) : `x.${name}`;
  const inserted = (state: Extreme): string => `CASE WHEN x."mr$again" THEN x.${state.column}_again ELSE x.${state.column}_in END`;
  const updated = (state: Extreme): string =>
    `CASE WHEN x."mr$again" THEN x.${state.column}_again ELSE ${better(state)}(s.${state.column}, x.${state.column}_in) END`;
  const assignments = [
    ...sums.map((name) => `${name} = s.${name} + ${summed(name)}`),
    ...extremes.map((state) => `${state.column} = ${updated(state)}`),
  ];
  const guard =
    extremes.length === 0
      ? ''
      : ` AND (${sums.map((name) => `x.${name} <> 0`).join(' OR ')} OR ${imageDiffers(
          columnsOf(
            's',
            extremes.map(({ column }) => column),
          ),
          extremes.map(updated).join(', '),
        )})`;
  const names = ['h', ...groups, ...sums, ...extremes.map(({ column }) => column)];
  const values = [columnsOf('x', ['h', ...groups]), ...sums.map(summed), ...extremes.map(inserted)];
  return [
    `MERGE INTO ${table} s`,
    `USING ${source} x ON ${match(groups, 's', 'x')}`,
    ...(groups.length > 0 ? ['WHEN MATCHED AND s.n + x.n = 0 THEN DELETE'] : []),
    `WHEN MATCHED${guard} THEN\n  UPDATE SET ${assignments.join(', ')}`,
    // Rows that came and went within the epoch leave nothing to insert.
    `WHEN NOT MATCHED AND x.n > 0 THEN\n  INSERT (${nameList(names)}) VALUES (${values.join(', ')})`,
  ].join('\n');
}

/** The groups where a value as extreme as the stored one (or the best new one) may be gone, computed again. */
function recomputed(
  plan: AggregatePlan,
  table: string,
  storage: TableName,
  extremes: readonly Extreme[],
): { readonly ctes: string; readonly source: string } {
  const groups = plan.groups.map(({ name }) => name);
  const lost = extremes.map((state) => {
    const compare = state.kind === 'min' ? '<=' : '>=';
    return `x.${state.column}_out ${compare} ${better(state)}(s.${state.column}, x.${state.column}_in)`;
  });
  const keys = groups.map((name, i) => `x.${name} AS ${groupName(i)}`);
  const values = extremes.map((state) => {
    const argument = plan.arguments.find(({ name }) => name === state.argument)?.expression ?? '';
    return `${state.kind}(${argument}) AS ${state.column}_again`;
  });
  const { where } = plan.source;
  const present =
    groups.length > 0
      ? presentGroups({
          source: plan.source,
          groups: plan.groups.map(({ expression }) => expression),
          comparable: true,
          storage,
          keys: '"mr$lost"',
          select: values.join(', '),
          having: null,
        })
      : `SELECT 0::bigint AS "mr$h", ${values.join(', ')}
  FROM ${renderFrom(plan.source, { storage })}
  ${whereAll(where === null ? null : `(${where})`, 'EXISTS (SELECT FROM "mr$lost")')}
  HAVING EXISTS (SELECT FROM "mr$lost")`;
  const found = groups.map((_, i) => `a.${groupName(i)}`).join(', ');
  const same = groups.length === 0 ? '' : ` AND ${sameRow(found, columnsOf('x', groups))}`;
  return {
    ctes: `, "mr$lost" AS MATERIALIZED (
  SELECT ${['x.h AS "mr$h"', ...keys].join(', ')}
  FROM "mr$change" x LEFT JOIN ${table} s ON ${match(groups, 's', 'x')}
  WHERE ${lost.join(' OR ')}
), "mr$again" AS MATERIALIZED (
  ${present}
)`,
    source: `(
  SELECT x.*, a."mr$h" IS NOT NULL AS "mr$again", ${extremes.map(({ column }) => `a.${column}_again`).join(', ')}
  FROM "mr$change" x LEFT JOIN "mr$again" a ON a."mr$h" = x.h${same}
)`,
  };
}

/**
 * Rows of a term with group values, arguments and, for changes, their weight. Where presence is counted apart, "p" is set in the rows that
 * count, which have no arguments.
 */
function argumentRows(
  plan: AggregatePlan,
  storage: TableName,
  delta: TableName | undefined,
  term: { readonly sign: 1 | -1; readonly states: readonly State[]; readonly narrowed?: NarrowedChanges } | null,
  counts = false,
): string {
  const source = (counts ? plan.presence : undefined) ?? plan.source;
  const weight = term === null ? null : weightProduct(term.states);
  const args = counts ? plan.arguments.map(({ name }) => ({ name, expression: 'NULL' })) : plan.arguments;
  const list = [
    selectList([...plan.groups, ...args]),
    ...(plan.presence === undefined ? [] : [`${counts ? '1' : 'NULL::integer'} AS p`]),
    ...(weight === null ? [] : [`${term?.sign === -1 ? `(- (${weight}))` : weight} AS w`]),
  ].filter((item) => item !== '');
  const narrowed = term?.narrowed;
  const changes = narrowed?.names ?? new Map<number, string>();
  const spared = term === null || narrowed === undefined ? new Set<number>() : sparedRelations(source, term.states, narrowed);
  const from = renderFrom(source, {
    storage,
    ...(delta === undefined ? {} : { delta }),
    ...(term === null ? {} : { states: term.states, reduced: reductions(source, term.states) }),
    changes,
    spared,
  });
  const turned = term === null ? null : onlyTurned(source, term.states, list.join(' '));
  const rows = `SELECT ${list.join(', ')} FROM ${from} ${whereOf(source, term?.states, changes, spared, turned)}`;
  return term === null || delta === undefined ? rows : gated(rows, source, term.states, delta, changes);
}

/** By how many rows a group grows. */
function countOf(plan: AggregatePlan): string {
  return plan.presence === undefined ? 'sum(t.w)' : 'sum(t.w) FILTER (WHERE t.p = 1)';
}

/** Rows of all terms. OFFSET keeps arguments from being computed once for each mention. */
function onceEach(terms: readonly string[]): string {
  return terms.length === 1 ? `${terms[0]} OFFSET 0` : terms.join('\n    UNION ALL\n    ');
}

function groupHead(plan: AggregatePlan, rest: readonly string[]): string {
  const names = plan.groups.map(({ name }) => `t.${name}`);
  return [`${hashOf(names)} AS h`, ...names, ...rest].join(', ');
}

function groupTail(plan: AggregatePlan): string {
  return plan.groups.length === 0 ? '' : `GROUP BY ${plan.groups.map(({ name }) => `t.${name}`).join(', ')}`;
}

function match(groups: readonly string[], left: string, right: string): string {
  const hash = `${left}.h = ${right}.h`;
  return groups.length === 0 ? hash : `${hash} AND ${sameRow(columnsOf(left, groups), columnsOf(right, groups))}`;
}

/** A state from all rows of a group. */
function freshState(state: AggregateState): string {
  const value = `t.${state.argument}`;
  switch (state.kind) {
    case 'count':
      return `count(${value})`;
    case 'sum':
      return `coalesce(sum(${value}), 0)`;
    case 'scale':
      return `count(*) FILTER (WHERE pg_catalog.scale(${value}) = ${state.scale})`;
    case 'min':
    case 'max':
      return `${state.kind}(${value})`;
  }
}

/** What changes add to a state. Two sums instead of products with the weight: half the work for numeric, and no overflow. */
function changeOfState(state: AggregateState): string[] {
  const value = `t.${state.argument}`;
  const difference = (call: string, condition: string): string =>
    `${call} FILTER (WHERE t.w > 0${condition})`.concat(` - ${call} FILTER (WHERE t.w < 0${condition}) AS ${state.column}`);
  switch (state.kind) {
    case 'count':
      return [difference(`count(${value})`, '')];
    case 'sum': {
      const part = (sign: string): string => `coalesce(sum(${value}) FILTER (WHERE t.w ${sign} 0), 0)`;
      return [`${part('>')} - ${part('<')} AS ${state.column}`];
    }
    case 'scale':
      return [difference('count(*)', ` AND pg_catalog.scale(${value}) = ${state.scale}`)];
    case 'min':
    case 'max':
      return [
        `${state.kind}(${value}) FILTER (WHERE t.w > 0) AS ${state.column}_in`,
        `${state.kind}(${value}) FILTER (WHERE t.w < 0) AS ${state.column}_out`,
      ];
  }
}

/** Condition on the group's rows under which a summed state changes, for HAVING. */
function changeOf(plan: AggregatePlan, sums: readonly string[], i: number): string {
  const name = sums[i];
  if (name === 'n') return `coalesce(${countOf(plan)}, 0) <> 0`;
  const state = plan.states.find(({ column }) => column === name);
  const text = state === undefined ? '' : (changeOfState(state)[0] ?? '');
  return `${text.slice(0, text.lastIndexOf(' AS '))} <> 0`;
}

function isExtreme(state: AggregateState): state is Extreme {
  return state.kind === 'min' || state.kind === 'max';
}

const better = (state: Extreme): string => (state.kind === 'min' ? 'LEAST' : 'GREATEST');

/** NaN cannot be taken away again: where one came or went, the statement fails, and the caller computes everything anew. */
const orFail = (value: string): string => `CASE WHEN ${value} = 'NaN' THEN CAST('a sum with ' || ${value} AS integer) ELSE ${value} END`;
