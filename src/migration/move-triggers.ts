/**
 * Triggers of the views that show moved columns where they are not. Pure.
 * Invariant: as in shape-triggers.ts. Before the cutover an UPDATE of the target needs no trigger: Postgres writes the source itself.
 */
import { quoteIdentifier, quoteLiteral } from '../sql/quote.ts';
import type { MoveDefinition, SourceTable, TableName } from './model.ts';
import { columnList, foreignKeyName, triggerFunction } from './places.ts';
import {
  changedMeanwhile,
  createFunction,
  createTrigger,
  differ,
  insertWithIdentity,
  keepIdentity,
  updateChanged,
} from './trigger-text.ts';

/** Of the target as a view of the source, which is `table` (quoted): rows come by setting the moved columns, and go by setting them to null. */
export function moveInsertAndDelete(id: number, definition: MoveDefinition, view: TableName, table: string): readonly string[] {
  const { columns, key, target } = definition;
  const insertFunction = triggerFunction(id, 'target', 'insert');
  const deleteFunction = triggerFunction(id, 'target', 'delete');
  const keyIs = (row: string): string =>
    key.map(({ column, as }) => `p.${quoteIdentifier(column)} = ${row}.${quoteIdentifier(as)}`).join(' AND ');
  const set = columns.map((name) => `${quoteIdentifier(name)} = NEW.${quoteIdentifier(name)}`).join(', ');
  const clear = columns.map((name) => `${quoteIdentifier(name)} = NULL`).join(', ');
  const absent = columns.map((name) => `p.${quoteIdentifier(name)} IS NULL`).join(' AND ');
  const values = (row: string): string => key.map(({ as }) => `${row}.${quoteIdentifier(as)}`).join(', ');
  const keyNames = key.map(({ as }) => as).join(', ');
  return [
    createFunction(
      insertFunction,
      '',
      `    IF num_nonnulls(${columnList(columns, 'NEW')}) = 0 THEN
        RAISE EXCEPTION USING ERRCODE = '23514', MESSAGE = ${quoteLiteral(`new row for relation "${target.name}" violates check constraint "${target.name}_present"`)},
            DETAIL = ${quoteLiteral(`A row of ${target.name} has a value in at least one of: ${columns.join(', ')}.`)}, TABLE = ${quoteLiteral(target.name)};
    END IF;
    UPDATE ${table} p SET ${set} WHERE ${keyIs('NEW')} AND ${absent};
    IF FOUND THEN
        RETURN NEW;
    END IF;
    IF EXISTS (SELECT FROM ${table} p WHERE ${keyIs('NEW')}) THEN
        RAISE EXCEPTION USING ERRCODE = '23505', MESSAGE = ${quoteLiteral(`duplicate key value violates unique constraint "${target.name}_pkey"`)},
            DETAIL = format('Key (%s)=(%s) already exists.', ${quoteLiteral(keyNames)}, concat_ws(', ', ${values('NEW')})),
            SCHEMA = ${quoteLiteral(target.schema)}, TABLE = ${quoteLiteral(target.name)}, CONSTRAINT = ${quoteLiteral(`${target.name}_pkey`)};
    END IF;
    RAISE EXCEPTION USING ERRCODE = '23503',
        MESSAGE = ${quoteLiteral(`insert or update on table "${target.name}" violates foreign key constraint "${foreignKeyName(definition)}"`)},
        DETAIL = format('Key (%s)=(%s) is not present in table %s.', ${quoteLiteral(keyNames)}, concat_ws(', ', ${values('NEW')}), ${quoteLiteral(table)}),
        SCHEMA = ${quoteLiteral(target.schema)}, TABLE = ${quoteLiteral(target.name)}, CONSTRAINT = ${quoteLiteral(foreignKeyName(definition))};`,
    ),
    createTrigger(view, 'INSERT', insertFunction),
    createFunction(
      deleteFunction,
      '',
      `    UPDATE ${table} p SET ${clear} WHERE ${keyIs('OLD')} AND NOT (${differ(columns, 'p', 'OLD')});
    IF FOUND THEN
        RETURN OLD;
    END IF;
    IF EXISTS (SELECT FROM ${table} p WHERE ${keyIs('OLD')} AND NOT (${absent})) THEN
        ${changedMeanwhile(table)}
    END IF;
    RETURN NULL;`,
    ),
    createTrigger(view, 'DELETE', deleteFunction),
  ];
}

/** Of the source as it was, after the cutover. `table`: what is left of the source; `target`: the moved columns; both quoted. */
export function movedTriggers(
  id: number,
  source: SourceTable,
  definition: MoveDefinition,
  view: TableName,
  table: string,
  target: string,
): readonly string[] {
  const moved = definition.columns;
  const staying = source.columns.filter(({ name }) => !moved.includes(name));
  const stayingAll = staying.map(({ name }) => name);
  const writable = staying.filter(({ generated }) => generated === null);
  const [insertFunction, updateFunction, deleteFunction] = ['insert', 'update', 'delete'].map((event) =>
    triggerFunction(id, 'source', event),
  ) as [string, string, string];
  const keyColumns = definition.key.map(({ column }) => column);
  const keyOf = (alias: string, row: string): string =>
    definition.key.map(({ column }) => `${alias}.${quoteIdentifier(column)} = ${row}.${quoteIdentifier(column)}`).join(' AND ');
  const targetKeyOf = (alias: string, row: string): string =>
    definition.key.map(({ column, as }) => `${alias}.${quoteIdentifier(as)} = ${row}.${quoteIdentifier(column)}`).join(' AND ');
  const anyMoved = (row: string): string => `num_nonnulls(${columnList(moved, row)}) > 0`;
  const targetColumns = [...definition.key.map(({ as }) => as), ...moved];
  const readStaying = (row: string): string =>
    `SELECT ${columnList(
      staying.map(({ name }) => name),
      'p',
    )} INTO ${staying.map(({ name }) => `${row}.${quoteIdentifier(name)}`).join(', ')} FROM ${table} p WHERE ${keyOf('p', 'NEW')};`;
  const upsert = `INSERT INTO ${target} AS t (${columnList(targetColumns)}) VALUES (${[columnList(keyColumns, 'NEW'), columnList(moved, 'NEW')].join(', ')})`;
  const insertOf = (columns: readonly { readonly name: string }[], overriding: string): string =>
    `INSERT INTO ${table} AS p (${columnList(columns.map(({ name }) => name))})${overriding} VALUES (${columnList(
      columns.map(({ name }) => name),
      'NEW',
    )}) RETURNING ${columnList(keyColumns, 'p')} INTO ${keyColumns.map((name) => `NEW.${quoteIdentifier(name)}`).join(', ')};`;
  const insert = insertWithIdentity(writable, insertOf);
  const stayingNames = writable.filter((column) => column.identity !== 'always').map(({ name }) => name);
  const changed = stayingNames.map((name) => `(${differ([name], 'NEW', 'OLD')} AND ${differ([name], 'millrace_now', 'OLD')})`);
  const changedMoved = moved.map((name) => `(${differ([name], 'NEW', 'OLD')} AND ${differ([name], 'millrace_moved', 'OLD')})`);
  const merged = moved.map(
    (name) =>
      `IF NOT (${differ([name], 'NEW', 'OLD')}) THEN NEW.${quoteIdentifier(name)} := millrace_moved.${quoteIdentifier(name)}; END IF;`,
  );
  const lock = `SELECT ${columnList(
    staying.map(({ name }) => name),
    'p',
  )} INTO millrace_now FROM ${table} p WHERE ${keyOf('p', 'OLD')} FOR UPDATE;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    SELECT ${columnList(moved, 't')} INTO millrace_moved FROM ${target} t WHERE ${targetKeyOf('t', 'OLD')} FOR UPDATE;`;
  return [
    createFunction(
      insertFunction,
      '',
      `    ${insert}
    IF ${anyMoved('NEW')} THEN
        ${upsert};
    END IF;
    ${readStaying('NEW')}
    RETURN NEW;`,
    ),
    createTrigger(view, 'INSERT', insertFunction),
    createFunction(
      updateFunction,
      '    millrace_now record;\n    millrace_moved record;\n    millrace_sets text;\n    millrace_meanwhile boolean;',
      // What is seldom needed stands where it is not reached, so that sessions need not plan it the first time: they all do that just after the cutover.
      `    ${lock}
    ${keepIdentity(staying)}
    millrace_meanwhile := ${differ(stayingAll, 'millrace_now', 'OLD')} OR ${differ(moved, 'millrace_moved', 'OLD')};
    IF millrace_meanwhile THEN
        IF ${[...changed, ...changedMoved].join('\n       OR ')} THEN
            ${changedMeanwhile(table)}
        END IF;
    END IF;
    ${
      stayingNames.length === 0
        ? readStaying('NEW')
        : `IF millrace_meanwhile OR ${differ(stayingNames, 'NEW', 'OLD')} THEN
    ${updateChanged(
      table,
      stayingNames.map((name) => ({
        when: differ([name], 'NEW', 'OLD'),
        set: [`${quoteIdentifier(name)} = ($1).${quoteIdentifier(name)}`],
      })),
      definition.key.map(({ column }) => `p.${quoteIdentifier(column)} = ($2).${quoteIdentifier(column)}`).join(' AND '),
      ['OLD'],
    )}
    ${readStaying('NEW')}
    END IF;`
    }
    IF ${differ(moved, 'NEW', 'OLD')} THEN
        ${merged.join('\n        ')}
        IF ${anyMoved('NEW')} THEN
            ${upsert}
                ON CONFLICT (${columnList(definition.key.map(({ as }) => as))}) DO UPDATE SET ${moved.map((name) => `${quoteIdentifier(name)} = excluded.${quoteIdentifier(name)}`).join(', ')};
        ELSE
            DELETE FROM ${target} t WHERE ${targetKeyOf('t', 'NEW')};
        END IF;
    ELSIF millrace_meanwhile THEN
        ${moved.map((name) => `NEW.${quoteIdentifier(name)} := millrace_moved.${quoteIdentifier(name)};`).join(' ')}
    END IF;
    RETURN NEW;`,
    ),
    createTrigger(view, 'UPDATE', updateFunction),
    createFunction(
      deleteFunction,
      '    millrace_now record;\n    millrace_moved record;',
      `    ${lock}
    IF ${[differ(stayingAll, 'millrace_now', 'OLD'), differ(moved, 'millrace_moved', 'OLD')].join(' OR ')} THEN
        ${changedMeanwhile(table)}
    END IF;
    DELETE FROM ${table} p WHERE ${keyOf('p', 'OLD')};
    RETURN OLD;`,
    ),
    createTrigger(view, 'DELETE', deleteFunction),
  ];
}
