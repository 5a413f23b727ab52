/**
 * The keywords of PostgreSQL 18 that are more than names.
 * Invariant: equal to the server's pg_get_keywords() without the unreserved ones (a test compares them). Being reserved in 18 but not
 * in an older server only makes quoting more careful.
 */

const reserved = `
  all analyse analyze and any array as asc asymmetric both case cast check collate column constraint create current_catalog
  current_date current_role current_time current_timestamp current_user default deferrable desc distinct do else end except false
  fetch for foreign from grant group having in initially intersect into lateral leading limit localtime localtimestamp not null offset
  on only or order placing primary references returning select session_user some symmetric system_user table then to trailing true
  union unique user using variadic when where window with
`;

/** May name functions and types, not columns or tables. */
const typeFunctionName = `
  authorization binary collation concurrently cross current_schema freeze full ilike inner is isnull join left like natural notnull
  outer overlaps right similar tablesample verbose
`;

/** May name columns and tables, not functions or types. */
const columnName = `
  between bigint bit boolean char character coalesce dec decimal exists extract float greatest grouping inout int integer interval
  json json_array json_arrayagg json_exists json_object json_objectagg json_query json_scalar json_serialize json_table json_value
  least merge_action national nchar none normalize nullif numeric out overlay position precision real row setof smallint substring
  time timestamp treat trim values varchar xmlattributes xmlconcat xmlelement xmlexists xmlforest xmlnamespaces xmlparse xmlpi xmlroot
  xmlserialize xmltable
`;

const words = (list: string): string[] => list.trim().split(/\s+/);
const notAName: ReadonlySet<string> = new Set([...words(reserved), ...words(typeFunctionName)]);
const notUnreserved: ReadonlySet<string> = new Set([...notAName, ...words(columnName)]);

/** Whether a word, in lower case, cannot name a table or column without quotes. */
export function isReservedName(word: string): boolean {
  return notAName.has(word);
}

/** Whether a name equal to this word must be quoted to be safe in every place (the rule of quote_ident). */
export function needsQuotes(word: string): boolean {
  return notUnreserved.has(word);
}
