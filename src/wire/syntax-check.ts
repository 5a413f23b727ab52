/**
 * The syntax of a text of several statements is checked before the first of them runs, as a server does that parses the whole text first.
 * Invariant: what the upstream would accept is not refused; a complaint is the upstream's own.
 */
import { MillraceError } from '../errors.ts';
import type { StatementText } from '../sql/ast.ts';
import { loadPostgresParser, parseSql } from '../sql/postgres-parser.ts';
import { errorFields } from './decode.ts';
import { flush, parse } from './encode.ts';
import { OrdinaryPartError } from './failure.ts';
import { Disposition } from './replies.ts';
import { Reply } from './tags.ts';
import type { Taken } from './taken.ts';

export interface SyntaxErrorIn {
  readonly error: OrdinaryPartError;
  /** Where its statement begins in the text. */
  readonly at: number;
}

/** The first syntax error among the ordinary statements; the upstream's transaction has then failed. */
export async function firstSyntaxError(taken: Taken, parts: readonly StatementText[]): Promise<SyntaxErrorIn | null> {
  if (parts.length === 0) return null;
  await loadPostgresParser();
  for (const part of parts) {
    if (part.statement !== null || isGood(part.text)) continue;
    // The upstream may be of another version than the parser.
    const error = await complaint(taken, part.text);
    if (error !== null) return { error, at: part.at };
  }
  return null;
}

/** The statements in front of the one that the error is about, as far as they can be told. */
export function partsBefore(taken: Taken, text: string, error: unknown): readonly StatementText[] {
  if (!(error instanceof MillraceError) || error.fields.position === undefined) return [];
  const position = [...text].slice(0, error.fields.position - 1).join('').length;
  const end = text.lastIndexOf(';', position - 1);
  if (end < 0) return [];
  try {
    return taken.parse(text.slice(0, end));
  } catch {
    return [];
  }
}

function isGood(text: string): boolean {
  try {
    parseSql(text);
    return true;
  } catch {
    return false;
  }
}

async function complaint({ driver }: Taken, text: string): Promise<OrdinaryPartError | null> {
  let error: OrdinaryPartError | null = null;
  driver.dirty = true;
  await driver.exchange(Buffer.concat([parse('', text, driver.charset), flush]), {
    disposition: (tag) => (tag === Reply.parseComplete || tag === Reply.error ? Disposition.collect : Disposition.drop),
    message: (tag, message) => {
      if (tag === Reply.error) error = new OrdinaryPartError(errorFields(message, driver.charset));
      return true;
    },
  });
  if (error !== null) driver.failed = true;
  return error;
}
