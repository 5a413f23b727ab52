/**
 * What a statement has to do with pgtrickle: read from its parse tree, so that a name in a literal or a comment is none.
 * Invariant: a call that is found here can be asked for its arguments by itself (`SELECT <text>`), because it reads no column.
 */
import { type LexerOptions, nextToken } from './lexer.ts';
import { parseSql } from './postgres-parser.ts';

export interface PgtrickleCall {
  /** Without schema. */
  readonly name: string;
  /** `pgtrickle.f(..)` as written. */
  readonly text: string;
  /** It runs exactly once when the statement runs: an item of a SELECT list without FROM, or a function in FROM of a SELECT. */
  readonly once: boolean;
}

export interface PgtrickleUse {
  /** Whether the statement names anything of the schema. */
  readonly uses: boolean;
  readonly calls: readonly PgtrickleCall[];
  /** The statement is `SELECT pgtrickle.f(..)` and nothing else, or CALL: the call alone. */
  readonly single: PgtrickleCall | null;
  readonly isCall: boolean;
}

const nothing: PgtrickleUse = { uses: false, calls: [], single: null, isCall: false };

type Tree = Readonly<Record<string, unknown>>;

/** The last text: it is asked about several times on its way, and parsing takes longer than all else. */
let last: { readonly text: string; readonly standard: boolean | undefined; readonly use: PgtrickleUse } | null = null;

/** How the one statement of `text` uses pgtrickle. `loadPostgresParser()` must have finished. A text that cannot be parsed uses nothing. */
export function pgtrickleUse(text: string, options: LexerOptions = {}): PgtrickleUse {
  const standard = options.standardConformingStrings;
  if (last === null || last.text !== text || last.standard !== standard) last = { text, standard, use: useOf(text, options) };
  return last.use;
}

function useOf(text: string, options: LexerOptions): PgtrickleUse {
  let statement: unknown;
  try {
    const { stmts } = parseSql(text);
    if (stmts?.length !== 1) return nothing;
    statement = stmts[0]?.stmt;
  } catch {
    return nothing;
  }
  if (!isTree(statement)) return nothing;
  // A body of plpgsql is text to the parser.
  if (statement['DoStmt'] !== undefined) return { ...nothing, uses: /\bpgtrickle"?\s*\./i.test(text) };
  const bytes = Buffer.from(text);
  const call = (fields: Tree, once: boolean): PgtrickleCall | null => {
    const name = calledName(fields);
    if (name === null || readsColumns(fields)) return null;
    const written = callText(text, bytes.subarray(0, Number(fields['location'] ?? 0)).toString().length, options);
    return written === null ? null : { name, text: written, once };
  };
  const called = at(statement['CallStmt'], 'funccall');
  if (called !== undefined) {
    const only = call(called, true);
    return only === null ? nothing : { uses: true, calls: [only], single: only, isCall: true };
  }
  const once = callsOfSelect(statement['SelectStmt']);
  const calls: PgtrickleCall[] = [];
  const uses = collect(statement, (fields) => {
    const found = call(fields, once.has(fields));
    if (found !== null) calls.push(found);
  });
  const [only] = calls;
  const single = only !== undefined && calls.length === 1 && isOnlyTarget(statement['SelectStmt'], once) ? only : null;
  return { uses, calls, single, isCall: false };
}

function isTree(value: unknown): value is Tree {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function at(value: unknown, key: string): Tree | undefined {
  const inner = isTree(value) ? value[key] : undefined;
  return isTree(inner) ? inner : undefined;
}

function items(value: unknown): readonly unknown[] {
  return Array.isArray(value) ? value : [];
}

const nameParts = (fields: Tree): string[] => items(fields['funcname']).map((part) => String(at(part, 'String')?.['sval'] ?? ''));

/** The function's name when it is called as pgtrickle.name. */
function calledName(fields: Tree): string | null {
  const [schema, name, ...rest] = nameParts(fields);
  return schema === 'pgtrickle' && name !== undefined && rest.length === 0 ? name : null;
}

const withoutSchema: ReadonlySet<string> = new Set(['A_Const', 'ColumnRef', 'CreateSchemaStmt']);

/** Calls `found` with every FuncCall; tells whether the schema is named anywhere. */
function collect(node: unknown, found: (fields: Tree) => void): boolean {
  if (Array.isArray(node)) return node.map((item) => collect(item, found)).includes(true);
  if (!isTree(node)) return false;
  let uses = false;
  for (const [key, value] of Object.entries(node)) {
    if (key === 'FuncCall' && isTree(value)) found(value);
    // Schemas stand in names of relations, and as strings in all other names; columns have none without their relation.
    if (key === 'schemaname' && value === 'pgtrickle') uses = true;
    if (key === 'String' && isTree(value) && value['sval'] === 'pgtrickle') uses = true;
    if (!withoutSchema.has(key) && collect(value, found)) uses = true;
  }
  return uses;
}

function readsColumns(node: unknown): boolean {
  if (Array.isArray(node)) return node.some(readsColumns);
  if (!isTree(node)) return false;
  return 'ColumnRef' in node || Object.values(node).some(readsColumns);
}

/** The calls that a SELECT makes once: those that are a whole item of its list when it has no FROM, and those that are FROM items. */
function callsOfSelect(select: unknown): ReadonlySet<Tree> {
  const once = new Set<Tree>();
  if (!isTree(select) || select['op'] !== 'SETOP_NONE') return once;
  const from = items(select['fromClause']);
  if (from.length === 0) {
    if (select['whereClause'] !== undefined || select['havingClause'] !== undefined || items(select['groupClause']).length > 0) return once;
    for (const item of items(select['targetList'])) add(at(at(item, 'ResTarget')?.['val'], 'FuncCall'));
  }
  for (const item of from) {
    for (const member of items(at(item, 'RangeFunction')?.['functions'])) {
      for (const part of items(at(member, 'List')?.['items'])) add(at(part, 'FuncCall'));
    }
  }
  return once;

  function add(fields: Tree | undefined): void {
    if (fields !== undefined) once.add(fields);
  }
}

/** SELECT with one unnamed item and nothing besides. */
function isOnlyTarget(select: unknown, once: ReadonlySet<Tree>): boolean {
  if (!isTree(select) || once.size !== 1) return false;
  const plain = new Set(['targetList', 'limitOption', 'op', 'groupDistinct', 'all']);
  if (Object.keys(select).some((key) => !plain.has(key))) return false;
  const target = at(items(select['targetList'])[0], 'ResTarget');
  return items(select['targetList']).length === 1 && target !== undefined && target['name'] === undefined;
}

/** From the name to the closing parenthesis. */
function callText(text: string, start: number, options: LexerOptions): string | null {
  let depth = 0;
  for (
    let token = nextToken(text, start, options);
    token.kind !== 'end' && token.kind !== 'bad';
    token = nextToken(text, token.end, options)
  ) {
    if (token.kind !== 'symbol') continue;
    const symbol = text.slice(token.start, token.end);
    if (symbol === '(') depth++;
    else if (symbol === ')' && --depth === 0) return text.slice(start, token.end);
  }
  return null;
}
