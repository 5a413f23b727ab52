/**
 * A query as text with its tokens and its parse tree side by side.
 * Invariant: expressions are cut out of the text as Postgres printed them, never printed again from the tree:
 * what is not re-printed cannot be misprinted. All offsets here are in characters (the parser counts bytes).
 */
import { millraceError } from '../errors.ts';
import { parseSql, scanSql } from '../sql/postgres-parser.ts';
import { at, type Fields, list, node } from './tree.ts';

export { loadPostgresParser as loadViewParser } from '../sql/postgres-parser.ts';

export interface Token {
  readonly start: number;
  readonly end: number;
  readonly text: string;
  /** Upper case for a keyword that is not quoted, else ''. */
  readonly keyword: string;
  /** Index of the bracket that closes this one, or opens it; -1 for other tokens. */
  readonly partner: number;
}

export interface Span {
  readonly start: number;
  readonly end: number;
}

export interface Source {
  readonly text: string;
  readonly tokens: readonly Token[];
  /** Body of the one SelectStmt. */
  readonly select: Fields;
  /** Index of the token that holds the character offset of a `location` of the tree. */
  readonly tokenOf: (fields: Fields) => number;
}

/** Reads one SELECT. A trailing semicolon is dropped. Anything else is refused. */
export function readSource(query: string): Source {
  const text = query.trim().replace(/;$/, '');
  const statements = list(node(parseSql(text))['stmts']);
  const select = at(statements[0], 'stmt', 'SelectStmt');
  if (statements.length !== 1 || select === undefined) {
    throw millraceError('feature_not_supported', { message: 'a live view is defined by one SELECT' });
  }
  const toChars = characterOffsets(text);
  const tokens = tokensOf(text);
  const starts = new Map(tokens.map((token, i) => [token.start, i]));
  const tokenOf = (fields: Fields): number => {
    // The parser leaves a location of 0 out.
    const index = starts.get(toChars(Number(fields['location'] ?? 0)));
    if (index === undefined) throw millraceError('internal_error', { message: 'a location in the parse tree is not the start of a token' });
    return index;
  };
  return { text, tokens, select, tokenOf };
}

/** The tokens of any piece of SQL. */
export function tokensOf(text: string): Token[] {
  const toChars = characterOffsets(text);
  const raw = scanSql(text).tokens.map((token) => ({
    start: toChars(token.start),
    end: toChars(token.end),
    keyword: token.keywordKind > 0 ? token.text.toUpperCase() : '',
  }));
  const partners = pairBrackets(raw.map((token) => text.slice(token.start, token.end)));
  return raw.map((token, i) => ({ ...token, text: text.slice(token.start, token.end), partner: partners[i] ?? -1 }));
}

export function textOf(source: Source, span: Span): string {
  return source.text.slice(span.start, span.end);
}

/** From the first to the last token, both included. */
export function spanOf(source: Source, first: number, last: number): Span {
  return { start: source.tokens[first]?.start ?? 0, end: source.tokens[last]?.end ?? 0 };
}

function characterOffsets(text: string): (bytes: number) => number {
  if (Buffer.byteLength(text) === text.length) return (bytes) => bytes;
  const offsets: number[] = [];
  let index = 0;
  for (const character of text) {
    const bytes = Buffer.byteLength(character);
    for (let i = 0; i < bytes; i++) offsets.push(index);
    index += character.length;
  }
  offsets.push(index);
  return (bytes) => offsets[bytes] ?? index;
}

function pairBrackets(texts: readonly string[]): number[] {
  const partners = texts.map(() => -1);
  const open: number[] = [];
  texts.forEach((text, i) => {
    if (text === '(' || text === '[') open.push(i);
    if (text !== ')' && text !== ']') return;
    const partner = open.pop();
    if (partner === undefined) return;
    partners[partner] = i;
    partners[i] = partner;
  });
  return partners;
}

/** An expression over a row `s` of a storage, with its columns named anew. */
export function overStorage(expression: string, rename: (column: string) => string): string {
  const tokens = tokensOf(expression);
  let text = '';
  let done = 0;
  for (const [i, token] of tokens.entries()) {
    const column = tokens[i + 2];
    if (token.text !== 's' || tokens[i + 1]?.text !== '.' || tokens[i - 1]?.text === '.' || column === undefined) continue;
    const name = column.text.startsWith('"') ? column.text.slice(1, -1).replaceAll('""', '"') : column.text;
    text += `${expression.slice(done, token.start)}s.${rename(name)}`;
    done = column.end;
  }
  return text + expression.slice(done);
}
