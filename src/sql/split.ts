/**
 * Cuts a query text into its statements.
 * Invariant: the cuts are those of the server's own parser for every text that parser accepts (and psql's for the others):
 * a semicolon inside a literal, a comment, parentheses (CREATE RULE .. DO (a; b)) or a BEGIN ATOMIC body is none.
 */
import { type LexerOptions, nextToken, skipPlain, type Token } from './lexer.ts';

export interface RawStatement {
  /** The first character that is not whitespace; comments in front belong to the statement (they can be hints). */
  readonly at: number;
  /** Its first token. */
  readonly first: number;
  /** Behind its last character that is not whitespace; the semicolon is left out. */
  readonly end: number;
  /** The first thing in it that is no token, if any. */
  readonly bad: Token | null;
}

/** What has to be remembered of a statement to know whether BEGIN opens a routine body. */
interface RoutineState {
  /** 0: nothing yet, 1: CREATE, 2: CREATE OR, 3: CREATE OR REPLACE, 4: CREATE [OR REPLACE] FUNCTION|PROCEDURE, -1: anything else. */
  head: number;
  /** Open BEGIN ATOMIC and CASE. */
  depth: number;
  /** The word before, upper case; empty when the token before was no word. */
  previous: string;
  /** Whether the word before stood where only a label can stand (behind AS or a dot). */
  label: boolean;
}

/** The statements of a text. Those without any token are left out, as Postgres does. Never throws. */
export function splitStatements(text: string, options: LexerOptions = {}): RawStatement[] {
  const statements: RawStatement[] = [];
  let at = 0;
  let first = -1;
  let parentheses = 0;
  let bad: Token | null = null;
  let routine = newRoutineState();
  for (
    let token = nextToken(text, 0, options);
    ;
    token = nextToken(text, routine.head === -1 ? skipPlain(text, token.end) : token.end, options)
  ) {
    const symbol = token.kind === 'symbol' ? text.charAt(token.start) : '';
    const ends = token.kind === 'end' || (symbol === ';' && parentheses === 0 && routine.depth === 0);
    if (!ends) {
      if (first === -1) first = token.start;
      if (token.kind === 'bad' && bad === null) bad = token;
      if (symbol === '(') parentheses++;
      else if (symbol === ')' && parentheses > 0) parentheses--;
      if (parentheses === 0 || routine.head !== 4)
        follow(routine, token.kind === 'word' ? text.slice(token.start, token.end).toUpperCase() : symbol);
      continue;
    }
    if (first !== -1) statements.push({ ...trimmed(text, at, token.start), first, bad });
    if (token.kind === 'end') return statements;
    at = token.end;
    first = -1;
    parentheses = 0;
    bad = null;
    routine = newRoutineState();
  }
}

function newRoutineState(): RoutineState {
  return { head: 0, depth: 0, previous: '', label: false };
}

/** One more token: a word in upper case, the first character of a symbol, or empty for anything else. */
function follow(state: RoutineState, token: string): void {
  if (state.head !== 4) {
    state.head = nextHead(state.head, token);
    return;
  }
  const label = state.previous === 'AS' || state.previous === '.';
  if (!label) {
    if (token === 'ATOMIC' && state.previous === 'BEGIN' && !state.label && state.depth === 0) state.depth = 1;
    else if (token === 'CASE' && state.depth > 0) state.depth++;
    else if (token === 'END' && state.depth > 0) state.depth--;
  }
  state.previous = token;
  state.label = label;
}

function nextHead(head: number, token: string): number {
  if (head === 0) return token === 'CREATE' ? 1 : -1;
  if (head === 1 && token === 'OR') return 2;
  if (head === 2) return token === 'REPLACE' ? 3 : -1;
  return (head === 1 || head === 3) && (token === 'FUNCTION' || token === 'PROCEDURE') ? 4 : -1;
}

/** [from, to) without the whitespace at both ends. */
function trimmed(text: string, from: number, to: number): { at: number; end: number } {
  let at = from;
  let end = to;
  while (at < end && isSpace(text.charCodeAt(at))) at++;
  while (end > at && isSpace(text.charCodeAt(end - 1))) end--;
  return { at, end };
}

function isSpace(unit: number): boolean {
  return unit === 0x20 || (unit >= 0x09 && unit <= 0x0d);
}
