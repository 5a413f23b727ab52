/**
 * Names and texts as SQL.
 * Invariant: what Postgres reads back is exactly what was given, whatever characters it holds and whatever
 * standard_conforming_strings is set to. Names are quoted only when they must be, by the rule of quote_ident().
 */
import { needsQuotes } from './keywords.ts';

const plainName = /^[a-z_][a-z0-9_]*$/;

/** A name as an identifier. Names with a NUL, and empty ones, cannot exist in Postgres and are refused. */
export function quoteIdentifier(name: string): string {
  refuseNul(name);
  if (name === '') throw new RangeError('an identifier cannot be empty');
  return plainName.test(name) && !needsQuotes(name) ? name : `"${name.replaceAll('"', '""')}"`;
}

/** A text as a string literal. Written as E'..' when it holds a backslash, so that it means the same under every setting. */
export function quoteLiteral(text: string): string {
  refuseNul(text);
  const doubled = text.replaceAll("'", "''");
  return doubled.includes('\\') ? `E'${doubled.replaceAll('\\', '\\\\')}'` : `'${doubled}'`;
}

/** The body of a function or of DO, which stays readable: between dollars, and a word that is nowhere in it. */
export function quoteBody(text: string): string {
  refuseNul(text);
  let delimiter = '$millrace$';
  for (let i = 1; text.includes(delimiter); i++) delimiter = `$millrace${i}$`;
  return `${delimiter}${text}${delimiter}`;
}

/** `schema.name`, or the name alone when schema is null. */
export function quoteQualified(schema: string | null, name: string): string {
  return schema === null ? quoteIdentifier(name) : `${quoteIdentifier(schema)}.${quoteIdentifier(name)}`;
}

function refuseNul(text: string): void {
  if (text.includes('\0')) throw new RangeError('Postgres cannot hold a NUL character');
}
