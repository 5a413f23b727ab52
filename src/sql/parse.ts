/**
 * One extended statement: text in, AST out, through the generated parser.
 * Invariant: whatever is wrong with the text becomes one MillraceError worded as Postgres words it, with the position of the token in
 * the whole text the client sent.
 */
import { type MillraceError, millraceError } from '../errors.ts';
import type { ExtendedStatement } from './ast.ts';
import { SyntaxError as GrammarError, parse as parseGenerated } from './generated/millrace-parser.js';
import { isReservedName } from './keywords.ts';
import { characterPosition, type LexerOptions, nextToken } from './lexer.ts';
import { decodeBinary, LiteralError, readEscapes } from './literals.ts';
import type { RawStatement } from './split.ts';

/** NAMEDATALEN - 1 */
const MAX_NAME_BYTES = 63;

/** What the grammar asks of its caller. `at` is an offset in the statement's own text. */
interface GrammarOptions {
  readonly standardConformingStrings: boolean;
  isReservedName(word: string): boolean;
  truncate(name: string): string;
  unescape(text: string, at: number): string;
  decode(encoded: string, format: string, at: number): string;
  unsupported(message: string, at: number): never;
  fail(message: string, at: number): never;
}

/** Parses the statement `raw` of `text`. Throws MillraceError. */
export function parseExtended(text: string, raw: RawStatement, options: LexerOptions = {}): ExtendedStatement {
  const positioned = (at: number): { position: number } => ({ position: characterPosition(text, raw.at + at) });
  const fail = (message: string, at: number): never => {
    throw millraceError('syntax_error', { message }, positioned(at));
  };
  const literal = (read: () => string, at: number): string => {
    try {
      return read();
    } catch (error) {
      if (error instanceof LiteralError) throw millraceError(error.condition, { message: error.message }, positioned(at));
      throw error;
    }
  };
  const grammarOptions: GrammarOptions = {
    standardConformingStrings: options.standardConformingStrings !== false,
    isReservedName,
    truncate: truncateName,
    unescape: (source, at) => literal(() => readEscapes(source), at),
    decode: (encoded, format, at) => literal(() => decodeBinary(encoded, format), at),
    unsupported: (message, at) => {
      throw millraceError('feature_not_supported', { message }, positioned(at));
    },
    fail,
  };
  let statement: ExtendedStatement;
  try {
    // The grammar builds nothing but the shapes of ast.ts; the round-trip property test holds it to that.
    statement = parseGenerated(text.slice(raw.at, raw.end), grammarOptions) as ExtendedStatement;
  } catch (error) {
    if (error instanceof GrammarError) throw syntaxError(text, raw, raw.at + error.location.start.offset, options);
    // Comments or parentheses nested by the thousand; nothing else in the grammar recurses.
    if (error instanceof RangeError) throw millraceError('syntax_error', { message: 'comments or parentheses are nested too deeply' });
    throw error;
  }
  if (raw.bad !== null) throw syntaxError(text, raw, raw.end, options);
  return statement;
}

/** The error for a statement that nothing could continue with at `offset` (of the whole text). */
function syntaxError(text: string, raw: RawStatement, offset: number, options: LexerOptions): MillraceError {
  const { bad } = raw;
  if (bad !== null && bad.start <= offset) return near(text, bad.problem ?? 'syntax error', bad.start, bad.end);
  let token = nextToken(text, raw.first, options);
  while (token.kind !== 'end' && token.end <= offset) token = nextToken(text, token.end, options);
  return token.kind === 'end'
    ? millraceError('syntax_error', { message: 'syntax error at end of input' }, { position: characterPosition(text, text.length) })
    : near(text, 'syntax error', token.start, token.end);
}

function near(text: string, problem: string, start: number, end: number): MillraceError {
  const message = `${problem} at or near "${text.slice(start, end)}"`;
  return millraceError('syntax_error', { message }, { position: characterPosition(text, start) });
}

/** A name cut to 63 bytes at a character boundary, as Postgres does. */
export function truncateName(name: string): string {
  // No character has more than three bytes per UTF-16 unit.
  if (name.length * 3 <= MAX_NAME_BYTES) return name;
  let bytes = 0;
  let kept = '';
  for (const character of name) {
    bytes += Buffer.byteLength(character);
    if (bytes > MAX_NAME_BYTES) break;
    kept += character;
  }
  return kept;
}
