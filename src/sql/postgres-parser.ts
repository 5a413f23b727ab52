/**
 * Postgres's own parser (libpg-query, the grammar of PostgreSQL 18 as WebAssembly).
 * Invariant: it is loaded when the first statement wants it, and not before: ordinary traffic needs none of its 20 MB.
 */
import type * as PgQuery from 'libpg-query';
import type { Node, ParseResult, ScanResult } from 'libpg-query';
import { millraceError } from '../errors.ts';

export type { Node, ParseResult };

/** A relation or function as written; `schema` is null when it was left out. */
export interface WrittenName {
  readonly schema: string | null;
  readonly name: string;
}

let loading: Promise<void> | undefined;
let loaded: typeof PgQuery | undefined;

/** Loads the parser, once per process. The functions below work when it has resolved. */
export function loadPostgresParser(): Promise<void> {
  loading ??= import('libpg-query').then(async (library) => {
    await library.loadModule();
    loaded = library;
  });
  return loading;
}

function library(): typeof PgQuery {
  if (loaded === undefined) throw new Error('the parser is used before it is loaded');
  return loaded;
}

/** The tokens of a text; offsets count UTF-8 bytes. */
export function scanSql(sql: string): ScanResult {
  return library().scanSync(sql);
}

/** The parse tree of one or more statements. Throws MillraceError 42601 as the server would. Offsets in the tree count UTF-8 bytes. */
export function parseSql(sql: string): ParseResult {
  try {
    return library().parseSync(sql);
  } catch (error) {
    if (!library().hasSqlDetails(error) || error.sqlDetails === undefined) throw error;
    const { message, cursorPosition } = error.sqlDetails;
    // libpg-query counts characters (code points) from 0.
    const position = cursorPosition >= 0 ? { position: cursorPosition + 1 } : {};
    throw millraceError('syntax_error', { message }, { ...position, cause: error });
  }
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

/** Tables named with ONLY: those below them are left out. */
export function namedWithOnly(sql: string): WrittenName[] {
  const found: WrittenName[] = [];
  const visit = (node: unknown): void => {
    if (Array.isArray(node)) for (const item of node) visit(item);
    else if (isTree(node)) {
      for (const [key, value] of Object.entries(node)) {
        if (key === 'RangeVar' && isTree(value) && value['inh'] !== true) {
          found.push({ schema: textAt(value, 'schemaname'), name: textAt(value, 'relname') ?? '' });
        } else visit(value);
      }
    }
  };
  visit(parseSql(sql).stmts ?? []);
  return found;
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
