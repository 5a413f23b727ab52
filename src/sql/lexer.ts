/**
 * The lexical rules of Postgres (scan.l), just enough to know where tokens begin and end.
 * Invariant: a token has the extent that Postgres gives it, so that nothing inside a literal, a quoted name or a comment is ever
 * taken for SQL, and error messages name the same token. What a token means is the grammar's business.
 * Offsets are UTF-16 units, as JavaScript slices; `characterPosition` turns one into what the wire speaks of.
 */

export type TokenKind = 'word' | 'quoted' | 'string' | 'number' | 'parameter' | 'symbol' | 'bad' | 'end';

export interface Token {
  readonly kind: TokenKind;
  readonly start: number;
  readonly end: number;
  /** Of a bad token: Postgres's wording, to be followed by `at or near "..."`. */
  readonly problem?: string;
}

export interface LexerOptions {
  /** The session's standard_conforming_strings; off makes every '...' an E'...'. Default true. */
  readonly standardConformingStrings?: boolean;
  /** The session has cursors over subscriptions: FETCH, MOVE and CLOSE are looked at. */
  readonly subscriptionCursors?: boolean;
}

const blank = /[ \t\n\r\f\v]+/y;
const lineComment = /--[^\n\r]*/y;
const word = /[A-Za-z_\u0080-\uffff][A-Za-z0-9_$\u0080-\uffff]*/y;
const dollarOpening = /\$(?:[A-Za-z_\u0080-\uffff][A-Za-z0-9_\u0080-\uffff]*)?\$/y;
const number =
  /0[xX](?:_?[0-9A-Fa-f])+|0[oO](?:_?[0-7])+|0[bB](?:_?[01])+|(?:\d(?:_?\d)*(?:\.(?!\.)(?:\d(?:_?\d)*)?)?|\.\d(?:_?\d)*)(?:[eE][-+]?\d(?:_?\d)*)?/y;
const parameter = /\$\d+/y;
const operator = /[~!@#^&|`?+\-*/%<>=]+/y;
const fixedSymbol = /::|:=|\.\.|[\s\S]/y;
const quotedName = /"(?:[^"]|"")*"/y;
const plainPiece = /'(?:[^']|'')*'/y;
const escapePiece = /'(?:[^'\\]|''|\\[\s\S])*'/y;
/** What may stand between two literals that Postgres reads as one: whitespace with a line break, and line comments. */
const continuation = /(?:[ \t\f\v]|--[^\n\r]*)*[\n\r](?:[ \t\n\r\f\v]|--[^\n\r]*[\n\r])*(?=')/y;

function matchEnd(pattern: RegExp, text: string, at: number): number {
  pattern.lastIndex = at;
  return pattern.test(text) ? pattern.lastIndex : -1;
}

/** The end of a block comment that opens at `at`, or -1 when it is not closed. */
function blockCommentEnd(text: string, at: number): number {
  const delimiter = /\/\*|\*\//g;
  delimiter.lastIndex = at + 2;
  let depth = 1;
  for (let found = delimiter.exec(text); found !== null; found = delimiter.exec(text)) {
    depth += found[0] === '/*' ? 1 : -1;
    if (depth === 0) return delimiter.lastIndex;
  }
  return -1;
}

/** Past whitespace and comments. Stops in front of a block comment that is not closed. */
export function skipBlank(text: string, from: number): number {
  let at = from;
  for (;;) {
    let next = matchEnd(blank, text, at);
    if (next === -1) next = matchEnd(lineComment, text, at);
    if (next === -1 && text.startsWith('/*', at)) next = blockCommentEnd(text, at);
    if (next === -1) return at;
    at = next;
  }
}

/**
 * What neither opens a literal, a comment or a parenthesis nor ends a statement. A word in front of a quote may be its prefix and is left
 * alone. Counted, because one unbounded repetition over a megabyte would exhaust the regular expression's stack.
 */
const plainRun =
  /(?:[ \t\n\r\f\v,=<>+*:[\]%^|!~@#&?`.]+|[A-Za-z_\u0080-\uffff][A-Za-z0-9_$\u0080-\uffff]*(?![A-Za-z0-9_$\u0080-\uffff'"&])|\d+(?![A-Za-z0-9_$\u0080-\uffff])){1,500}/y;

/** Past everything that cannot matter to where a statement ends. For splitting long texts: many tokens at once. */
export function skipPlain(text: string, from: number): number {
  let at = from;
  for (let next = matchEnd(plainRun, text, at); next !== -1; next = matchEnd(plainRun, text, at)) at = next;
  return at;
}

/** The next token at or behind `from`, whitespace and comments skipped. Never throws. */
export function nextToken(text: string, from: number, options: LexerOptions = {}): Token {
  const start = skipBlank(text, from);
  if (start >= text.length) return { kind: 'end', start: text.length, end: text.length };
  const first = text.charAt(start);
  if (first === "'") return literal(text, start, start, options.standardConformingStrings === false);
  if (first === '"') return quoted(text, start, start);
  if (first === '$') return dollar(text, start);
  const wordEnd = matchEnd(word, text, start);
  if (wordEnd !== -1) return wordOrPrefix(text, start, wordEnd, options);
  const numberEnd = matchEnd(number, text, start);
  if (numberEnd !== -1) return withoutJunk(text, 'number', start, numberEnd, 'trailing junk after numeric literal');
  if (text.startsWith('/*', start)) return { kind: 'bad', start, end: text.length, problem: 'unterminated /* comment' };
  const operatorEnd = matchEnd(operator, text, start);
  if (operatorEnd !== -1) return { kind: 'symbol', start, end: trimOperator(text, start, operatorEnd) };
  return { kind: 'symbol', start, end: matchEnd(fixedSymbol, text, start) };
}

/** A word, unless it is the prefix of a literal: E'..', B'..', X'..', U&'..', U&"..". */
function wordOrPrefix(text: string, start: number, end: number, options: LexerOptions): Token {
  if (end - start === 1) {
    const prefix = text.charAt(start).toLowerCase();
    const next = text.charAt(end);
    if (next === "'" && (prefix === 'e' || prefix === 'b' || prefix === 'x')) return literal(text, start, end, prefix === 'e');
    if (next === '&' && prefix === 'u') {
      const quote = text.charAt(end + 1);
      if (quote === "'") return literal(text, start, end + 1, options.standardConformingStrings === false);
      if (quote === '"') return quoted(text, start, end + 1);
    }
  }
  return { kind: 'word', start, end };
}

function literal(text: string, start: number, quote: number, escapes: boolean): Token {
  const piece = escapes ? escapePiece : plainPiece;
  let end = quote;
  for (;;) {
    const pieceEnd = matchEnd(piece, text, end);
    if (pieceEnd === -1) return { kind: 'bad', start, end: text.length, problem: 'unterminated quoted string' };
    end = pieceEnd;
    const next = matchEnd(continuation, text, end);
    if (next === -1) return { kind: 'string', start, end };
    end = next;
  }
}

function quoted(text: string, start: number, quote: number): Token {
  const end = matchEnd(quotedName, text, quote);
  if (end === -1) return { kind: 'bad', start, end: text.length, problem: 'unterminated quoted identifier' };
  if (end - quote === 2) return { kind: 'bad', start, end, problem: 'zero-length delimited identifier' };
  return { kind: 'quoted', start, end };
}

function dollar(text: string, start: number): Token {
  const parameterEnd = matchEnd(parameter, text, start);
  if (parameterEnd !== -1) return withoutJunk(text, 'parameter', start, parameterEnd, 'trailing junk after parameter');
  const opened = matchEnd(dollarOpening, text, start);
  if (opened === -1) return { kind: 'symbol', start, end: start + 1 };
  const delimiter = text.slice(start, opened);
  const closing = text.indexOf(delimiter, opened);
  if (closing === -1) return { kind: 'bad', start, end: text.length, problem: 'unterminated dollar-quoted string' };
  return { kind: 'string', start, end: closing + delimiter.length };
}

function withoutJunk(text: string, kind: TokenKind, start: number, end: number, problem: string): Token {
  const junkEnd = matchEnd(word, text, end);
  return junkEnd === -1 ? { kind, start, end } : { kind: 'bad', start, end: junkEnd, problem };
}

/** An operator ends before a comment, and before a trailing + or - unless it has a character that SQL operators do not have. */
function trimOperator(text: string, start: number, end: number): number {
  const body = text.slice(start, end);
  const comment = body.search(/\/\*|--/);
  let stop = comment > 0 ? start + comment : end;
  if (!/[~!@#^&|`?%]/.test(text.slice(start, stop))) {
    while (stop - start > 1 && /[+-]/.test(text.charAt(stop - 1))) stop--;
  }
  return stop;
}

/** The 1-based position of an offset as Postgres counts it: in characters (code points). */
export function characterPosition(text: string, offset: number): number {
  let position = 1;
  for (let i = 0; i < offset && i < text.length; i++) {
    const unit = text.charCodeAt(i);
    if (unit >= 0xd800 && unit < 0xdc00 && i + 1 < offset) i++;
    position++;
  }
  return position;
}
