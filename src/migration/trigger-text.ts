/** What triggers of shape views are made of. Pure. Invariant: their functions run as the role that writes, and name every table with its schema. */
import { quoteBody, quoteIdentifier, quoteLiteral } from '../sql/quote.ts';
import type { TableName } from './model.ts';
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
