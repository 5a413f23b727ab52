/**
 * The way back from a parse tree to SQL.
 * Invariant: text written back parses to the same tree, or there is no text: `deparseSql` reads its own output and refuses a difference.
 *
 * What pgsql-deparser 18.3 gets wrong, each found by that check (the test keeps the list): JSON_VALUE, JSON_QUERY, JSON_EXISTS and
 * JSON_TABLE (unknown to it), XMLTABLE, GROUP BY DISTINCT and FETCH FIRST .. WITH TIES (drops the words), a subscript of an array
 * constructor (drops the parentheses). `AT LOCAL` comes back as the function call it stands for, which is the same.
 */
import { deparseSync } from 'pgsql-deparser';
import { millraceError } from '../errors.ts';
import { type Node, type ParseResult, parseSql } from './postgres-parser.ts';

/** A tree as SQL, without line breaks of its own. Throws MillraceError 0A000 when the text would not mean the same. */
export function deparseSql(tree: ParseResult | Node | Node[]): string {
  let text: string;
  try {
    text = deparseSync(tree, { pretty: false });
  } catch (error) {
    throw notRewritable(error);
  }
  let again: ParseResult;
  try {
    again = parseSql(text);
  } catch (error) {
    throw notRewritable(error);
  }
  if (meaning(again.stmts ?? []) !== meaning(statementsOf(tree))) throw notRewritable(undefined);
  return text;
}

function notRewritable(cause: unknown): Error {
  return millraceError('feature_not_supported', { message: 'the query has a construct that Millrace cannot rewrite' }, { cause });
}

function statementsOf(tree: ParseResult | Node | Node[]): unknown {
  if (Array.isArray(tree)) return tree.map((stmt) => ({ stmt }));
  return 'stmts' in tree ? tree.stmts : [{ stmt: tree }];
}

/** What says where or how something was written, not what it is. */
const formOnly: ReadonlySet<string> = new Set([
  'location',
  'stmt_location',
  'stmt_len',
  'list_start',
  'list_end',
  'rexpr_list_start',
  'rexpr_list_end',
  'funcformat',
]);

function meaning(tree: unknown): string {
  return JSON.stringify(tree, (key, value: unknown) => (formOnly.has(key) ? undefined : value));
}
