/**
 * Postgres's own parser (libpg-query, the grammar of PostgreSQL 18 as WebAssembly), and the way back from its tree to SQL.
 * Invariant: text written back parses to the same tree, or there is no text: `deparseSql` reads its own output and refuses a difference.
 *
 * What pgsql-deparser 18.3 gets wrong, each found by that check (the test keeps the list): JSON_VALUE, JSON_QUERY, JSON_EXISTS and
 * JSON_TABLE (unknown to it), XMLTABLE, GROUP BY DISTINCT and FETCH FIRST .. WITH TIES (drops the words), a subscript of an array
 * constructor (drops the parentheses). `AT LOCAL` comes back as the function call it stands for, which is the same.
 */
import type { Node, ParseResult } from 'libpg-query';
import { hasSqlDetails, loadModule, parseSync } from 'libpg-query';
import { deparseSync } from 'pgsql-deparser';
import { millraceError } from '../errors.ts';

export type { Node, ParseResult };

/** A relation or function as written; `schema` is null when it was left out. */
export interface WrittenName {
  readonly schema: string | null;
  readonly name: string;
}

let loading: Promise<void> | undefined;

/** Loads the parser, once per process. The functions below work when it has resolved. */
export function loadPostgresParser(): Promise<void> {
  loading ??= loadModule();
  return loading;
}

/** The parse tree of one or more statements. Throws MillraceError 42601 as the server would. Offsets in the tree count UTF-8 bytes. */
export function parseSql(sql: string): ParseResult {
  try {
    return parseSync(sql);
  } catch (error) {
    if (!hasSqlDetails(error) || error.sqlDetails === undefined) throw error;
    const { message, cursorPosition } = error.sqlDetails;
    // libpg-query counts characters (code points) from 0.
    const position = cursorPosition >= 0 ? { position: cursorPosition + 1 } : {};
    throw millraceError('syntax_error', { message }, { ...position, cause: error });
  }
}

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
    again = parseSync(text);
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

/**
 * Every table or view the statements read, in order of appearance and each once: subqueries and CTE bodies included, names that mean a
 * CTE excluded. The target of INSERT is written only and left out; those of UPDATE, DELETE and MERGE are read.
 */
export function relationNames(sql: string): WrittenName[] {
  const found = new Map<string, WrittenName>();
  collectRelations(parseSql(sql).stmts ?? [], new Set(), (schema, name) => {
    const key = JSON.stringify([schema, name]);
    if (!found.has(key)) found.set(key, { schema, name });
  });
  return [...found.values()];
}

type Tree = Readonly<Record<string, unknown>>;

function isTree(value: unknown): value is Tree {
  return typeof value === 'object' && value !== null;
}

function textAt(tree: unknown, key: string): string | null {
  const value = isTree(tree) ? tree[key] : undefined;
  return typeof value === 'string' ? value : null;
}

/** Fields that hold names which are no relation that is read: aliases of FOR UPDATE OF, the target of SELECT INTO. */
const notRead: ReadonlySet<string> = new Set(['lockingClause', 'intoClause', 'withClause']);

function collectRelations(node: unknown, hidden: ReadonlySet<string>, found: (schema: string | null, name: string) => void): void {
  if (Array.isArray(node)) {
    for (const item of node) collectRelations(item, hidden, found);
    return;
  }
  if (!isTree(node)) return;
  const scope = isTree(node['withClause']) ? collectCtes(node['withClause'], hidden, found) : hidden;
  for (const [key, value] of Object.entries(node)) {
    if (notRead.has(key)) continue;
    if (key === 'InsertStmt' && isTree(value)) {
      const { relation: _written, ...rest } = value;
      collectRelations(rest, scope, found);
      continue;
    }
    const name = key === 'RangeVar' || key === 'relation' ? textAt(value, 'relname') : null;
    if (name === null) {
      collectRelations(value, scope, found);
      continue;
    }
    const schema = textAt(value, 'schemaname');
    // The target of UPDATE, DELETE and MERGE (key "relation") is never a CTE.
    if (schema !== null || key === 'relation' || !scope.has(name)) found(schema, name);
  }
}

/** Reads the bodies of a WITH clause and returns the names hidden behind it. */
function collectCtes(clause: Tree, hidden: ReadonlySet<string>, found: (schema: string | null, name: string) => void): ReadonlySet<string> {
  const ctes = (Array.isArray(clause['ctes']) ? clause['ctes'] : []).map((item: unknown) =>
    isTree(item) ? item['CommonTableExpr'] : undefined,
  );
  const scope = new Set(hidden);
  const hide = (cte: unknown): void => {
    const name = textAt(cte, 'ctename');
    if (name !== null) scope.add(name);
  };
  // With RECURSIVE every body sees every name; without, only the names before it.
  if (clause['recursive'] === true) ctes.forEach(hide);
  for (const cte of ctes) {
    collectRelations(isTree(cte) ? cte['ctequery'] : undefined, new Set(scope), found);
    hide(cte);
  }
  return scope;
}

/**
 * The functions the statements call, each once: `name` for those without schema or of pg_catalog, `schema.name` for others. SQL value
 * functions are called by their keyword (`current_date`, `current_user`). Functions behind operators and casts are not seen.
 */
export function functionNames(sql: string): string[] {
  const found = new Set<string>();
  collectFunctions(parseSql(sql).stmts ?? [], found);
  return [...found];
}

function collectFunctions(node: unknown, found: Set<string>): void {
  if (Array.isArray(node)) {
    for (const item of node) collectFunctions(item, found);
    return;
  }
  if (!isTree(node)) return;
  for (const [key, value] of Object.entries(node)) {
    if (key === 'FuncCall' && isTree(value) && Array.isArray(value['funcname'])) {
      const parts = value['funcname'].map((part: unknown) => (isTree(part) ? (textAt(part['String'], 'sval') ?? '') : ''));
      found.add((parts.length === 2 && parts[0] === 'pg_catalog' ? parts.slice(1) : parts).join('.'));
    } else if (key === 'SQLValueFunction') {
      const operation = textAt(value, 'op');
      if (operation !== null)
        found.add(
          operation
            .replace(/^SVFOP_/, '')
            .replace(/_N$/, '')
            .toLowerCase(),
        );
    }
    collectFunctions(value, found);
  }
}
