/** What triggers of shape views are made of. Pure. Invariant: their functions run as the role that writes, and name every table with its schema. */
import { quoteBody, quoteIdentifier, quoteLiteral } from '../sql/quote.ts';
import type { SourceColumn, TableName } from './model.ts';
import { columnList, qualified } from './places.ts';

/** Whether two lists of values differ in a byte. Works for every type, also those without equality. */
export const differ = (columns: readonly string[], a: string, b: string): string =>
  `pg_catalog.record_image_ne(ROW(${columnList(columns, a)}), ROW(${columnList(columns, b)}))`;

/** Text of a trigger on a view. */
export function createTrigger(view: TableName, event: 'INSERT' | 'UPDATE' | 'DELETE', call: string): string {
  return `CREATE TRIGGER ${quoteIdentifier(`millrace_${event.toLowerCase()}`)} INSTEAD OF ${event} ON ${qualified(view)} FOR EACH ROW EXECUTE FUNCTION ${call}()`;
}

/** A trigger's function. */
export function createFunction(name: string, declare: string, body: string): string {
  return `CREATE OR REPLACE FUNCTION ${name}() RETURNS trigger LANGUAGE plpgsql AS ${quoteBody(`
#variable_conflict use_column
${declare === '' ? '' : `DECLARE\n${declare}\n`}BEGIN
${body}
END `)}`;
}

/** A column as far as its identity goes. */
interface Identified {
  readonly name: string;
  readonly identity: SourceColumn['identity'];
}

/** An INSERT into these columns, or without the identity column where the row has no value for it. `insertOf`: the statement, and its OVERRIDING. */
export function insertWithIdentity<T extends Identified>(
  columns: readonly T[],
  insertOf: (columns: readonly T[], overriding: string) => string,
): string {
  const identity = columns.find((column) => column.identity !== null);
  if (identity === undefined) return insertOf(columns, '');
  const without = columns.filter((column) => column !== identity);
  return `IF NEW.${quoteIdentifier(identity.name)} IS NULL THEN
        ${insertOf(without, '')}
    ELSE
        ${insertOf(columns, identity.identity === 'always' ? ' OVERRIDING SYSTEM VALUE' : '')}
    END IF;`;
}

/** Raises what a table raises where an identity column is to get another value. */
export const keepIdentity = (columns: readonly Identified[]): string =>
  columns
    .filter(({ identity }) => identity === 'always')
    .map(
      ({ name }) => `IF ${differ([name], 'NEW', 'OLD')} THEN
        RAISE EXCEPTION USING ERRCODE = '428C9', MESSAGE = ${quoteLiteral(`column "${name}" can only be updated to DEFAULT`)},
            DETAIL = ${quoteLiteral(`Column "${name}" is an identity column defined as GENERATED ALWAYS.`)};
    END IF;`,
    )
    .join('\n    ');

/** Raised where a trigger cannot look again at a row that somebody else has changed meanwhile, as Postgres would. */
export const changedMeanwhile = (table: string): string =>
  `RAISE EXCEPTION USING ERRCODE = '40001', MESSAGE = 'could not serialize access due to concurrent update',
            DETAIL = ${quoteLiteral(`A row of ${table} was changed by another transaction while this statement wanted to write it in another shape.`)},
            HINT = 'Run the transaction again.';`;

/**
 * An UPDATE that sets only what has to be set: who may write some columns needs no right on others, and triggers OF other columns stay silent.
 * `set`: over NEW as $1 and `values` as $2, $3, ..; `when`: over the variables of the function.
 */
export function updateChanged(
  table: string,
  sets: readonly { readonly when: string; readonly set: readonly string[] }[],
  where: string,
  values: readonly string[],
): string {
  const list = sets.map(({ when, set }) => `CASE WHEN ${when} THEN ${quoteLiteral(set.join(', '))} END`).join(',\n        ');
  return `millrace_sets := pg_catalog.concat_ws(', ', ${list});
    IF millrace_sets <> '' THEN
        EXECUTE ${quoteLiteral(`UPDATE ${table} p SET `)} || millrace_sets || ${quoteLiteral(` WHERE ${where}`)} USING ${['NEW', ...values].join(', ')};
    END IF;`;
}
