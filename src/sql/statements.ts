/**
 * A query text as its statements, each either the upstream's or an extended statement as data.
 * Invariant: a statement that the grammar does not fully understand is the upstream's, unless Postgres could not accept its opening
 * either: then, and only then, the syntax error is ours.
 */
import { MillraceError } from '../errors.ts';
import type { ExtendedStatement, StatementText } from './ast.ts';
import { classify } from './head.ts';
import type { LexerOptions } from './lexer.ts';
import { parseExtended } from './parse.ts';
import { type RawStatement, splitStatements } from './split.ts';

/**
 * The statements of a query text, in order; those without any token (blanks and comments) are left out.
 * Throws MillraceError (42601, 0A000) for an extended statement that is not right. `options` says how the session reads literals.
 */
export function parseStatements(text: string, options: LexerOptions = {}): StatementText[] {
  return splitStatements(text, options).map((raw) => ({
    text: text.slice(raw.at, raw.end),
    at: raw.at,
    end: raw.end,
    statement: understand(text, raw, options),
  }));
}

function understand(text: string, raw: RawStatement, options: LexerOptions): ExtendedStatement | null {
  switch (classify(text, raw.first, raw.end, options)) {
    case 'extended':
      return parseExtended(text, raw, options);
    case 'candidate':
      return understandCandidate(text, raw, options);
    case 'ordinary':
      return /pgtrickle/i.test(text.slice(raw.at, raw.end)) ? { type: 'mentions_pgtrickle' } : null;
  }
}

/** Postgres knows these statements too, so what cannot be read here gets its answer (an error or not) there. */
function understandCandidate(text: string, raw: RawStatement, options: LexerOptions): ExtendedStatement | null {
  if (raw.bad !== null) return null;
  try {
    return parseExtended(text, raw, options);
  } catch (error) {
    if (error instanceof MillraceError) return null;
    throw error;
  }
}
