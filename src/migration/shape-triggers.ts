/**
 * Triggers that write through a view with computed columns. Pure.
 * Invariant: only what a statement has changed is written; where another transaction has changed the same value meanwhile 40001 is raised.
 */
import { quoteIdentifier } from '../sql/quote.ts';
import type { TableName } from './model.ts';
import { columnList, triggerFunction } from './places.ts';
import type { ShapeColumn } from './shapes.ts';
import {
  changedMeanwhile,
  createFunction,
  createTrigger,
  differ,
  insertWithIdentity,
  keepIdentity,
  updateChanged,
} from './trigger-text.ts';

/** A view of one shape over the table that has the other. */
export interface MappedView {
  readonly id: number;
  /** Told apart by it from other views of the migration. */
  readonly tag: string;
  readonly name: TableName;
  /** The table as the view is made, quoted, and as its triggers find it. */
  readonly reads: string;
  readonly table: string;
  /** The view's columns, from the table's. */
  readonly columns: readonly ShapeColumn[];
  /** The table's columns, from the view's. */
  readonly back: readonly ShapeColumn[];
}

/**
 * `key`: columns of the key, which have the same names in both. `together`: columns that are computed from one another.
 * DELETE needs no trigger: Postgres does it.
 */
export function conversionTriggers(
  view: MappedView,
  key: readonly string[],
  together: readonly { readonly old: readonly string[]; readonly new: readonly string[] }[],
): readonly string[] {
  const { id, tag, name, table, columns, back } = view;
  const insertFunction = triggerFunction(id, tag, 'insert');
  const updateFunction = triggerFunction(id, tag, 'update');
  const own = (group: { readonly old: readonly string[]; readonly new: readonly string[] }): readonly string[] =>
    tag === 'new' ? group.new : group.old;
  const theirs = (group: { readonly old: readonly string[]; readonly new: readonly string[] }): readonly string[] =>
    tag === 'new' ? group.old : group.new;
  const writable = back.filter(({ generated }) => !generated);
  const backOf = (columnName: string): string =>
    back.find((column) => column.name === columnName)?.expression ?? quoteIdentifier(columnName);
  const image = columns.map(({ name: column, expression }) => `${expression} AS ${quoteIdentifier(column)}`).join(', ');
  const keyVariables = key.map((_, i) => `millrace_k${i + 1}`);
  const declareKeys = key
    .map((column, i) => `    millrace_k${i + 1} ${back.find((one) => one.name === column)?.type ?? 'text'};`)
    .join('\n');
  const keyIs = key.map((column, i) => `p.${quoteIdentifier(column)} = millrace_k${i + 1}`).join(' AND ');
  const readKeys = (row: string): string =>
    `SELECT ${key.map(backOf).join(', ')} INTO ${keyVariables.join(', ')} FROM (SELECT (${row}).*) AS n;`;
  const readBack = `SELECT i.* INTO NEW FROM (SELECT ${image} FROM ${table} p WHERE ${keyIs}) i;`;

  const insertOf = (into: readonly ShapeColumn[], overriding: string): string =>
    `    INSERT INTO ${table} (${columnList(into.map((column) => column.name))})${overriding}
    SELECT ${into.map(({ expression }) => expression).join(', ')} FROM (SELECT (NEW).*) AS n
    RETURNING ${columnList(key)} INTO ${keyVariables.join(', ')};`;
  const insert = insertWithIdentity(writable, insertOf);

  // One value at a time: what is computed together is one.
  const groups = [
    ...columns
      .filter(({ shared, generated }) => shared !== null && !generated)
      .map((column) => ({ own: [column.name], theirs: [column.shared ?? ''] })),
    ...together.map((group) => ({ own: own(group), theirs: theirs(group) })),
  ];
  const conflict = groups
    .map((group) => `(${differ(group.own, 'NEW', 'OLD')} AND ${differ(group.own, 'millrace_now', 'OLD')})`)
    .join('\n       OR ');
  const settable = (column: string): boolean => back.some((one) => one.name === column && one.identity !== 'always');
  const sets = groups.flatMap((group) => {
    const set = group.theirs.filter(settable).map((column) => `${quoteIdentifier(column)} = ${backValue(view, column)}`);
    return set.length === 0 ? [] : [{ when: differ(group.own, 'NEW', 'OLD'), set }];
  });
  const keyGiven = key.map((column, i) => `p.${quoteIdentifier(column)} = $${i + 2}`).join(' AND ');
  return [
    createFunction(insertFunction, declareKeys, `${insert}\n    ${readBack}\n    RETURN NEW;`),
    createTrigger(name, 'INSERT', insertFunction),
    createFunction(
      updateFunction,
      `${declareKeys}\n    millrace_now record;\n    millrace_sets text;`,
      `    ${readKeys('OLD')}
    SELECT i.* INTO millrace_now FROM (SELECT ${image} FROM ${table} p WHERE ${keyIs} FOR UPDATE) i;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    ${keepIdentity(columns)}
    -- Where it is not reached it need not be planned.
    IF ${differ(
      columns.map((column) => column.name),
      'millrace_now',
      'OLD',
    )} THEN
        IF ${conflict} THEN
            ${changedMeanwhile(table)}
        END IF;
    END IF;
    ${updateChanged(table, sets, keyGiven, keyVariables)}
    ${readKeys('NEW')}
    ${readBack}
    RETURN NEW;`,
    ),
    createTrigger(name, 'UPDATE', updateFunction),
  ];
}

/** The value of a column of the table for the row that the statement wants, which is $1. */
function backValue({ back }: MappedView, column: string): string {
  const found = back.find((one) => one.name === column);
  if (found === undefined || found.shared !== null) return `($1).${quoteIdentifier(found?.shared ?? column)}`;
  return `(SELECT ${found.expression} FROM (SELECT ($1).*) AS n)`;
}
