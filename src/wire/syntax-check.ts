/**
 * The syntax of a text of several statements is checked before the first of them runs, as a server does that parses the whole text first.
 * Invariant: what the upstream would accept is not refused; a complaint is the upstream's own.
 */
import { MillraceError } from '../errors.ts';
import type { StatementText } from '../sql/ast.ts';
import { loadPostgresParser, parseSql } from '../sql/postgres-parser.ts';
import { reservedName } from './caller.ts';
import { errorFields } from './decode.ts';
import { close, flush, parse } from './encode.ts';
import { charactersBefore, OrdinaryPartError } from './failure.ts';
import { Disposition } from './replies.ts';
import { Reply } from './tags.ts';
import type { Taken } from './taken.ts';

interface SyntaxErrorIn {
  readonly error: OrdinaryPartError;
  /** Where its statement begins in the text. */
  readonly at: number;
}

/** The first syntax error among the ordinary statements; the upstream's transaction has then failed. */
async function firstSyntaxError(taken: Taken, parts: readonly StatementText[]): Promise<SyntaxErrorIn | null> {
  if (parts.length === 0) return null;
  await loadPostgresParser();
  for (const part of parts) {
    if ((part.statement !== null && part.statement.type !== 'mentions_pgtrickle') || isGood(part.text)) continue;
    // The upstream may be of another version than the parser.
    const error = await complaint(taken, part.text);
    if (error !== null) return { error, at: part.at };
  }
  return null;
}

/** The statements of a text. Throws the first syntax error that can be told without knowing which of them are Millrace's. */
export async function parseWhole(taken: Taken, text: string): Promise<readonly StatementText[]> {
  try {
    return taken.parse(text);
  } catch (error) {
    await checkSyntax(taken, text, partsBefore(taken, text, error));
    throw error;
  }
}

/** Throws the first syntax error among the ordinary statements. */
export async function checkSyntax(taken: Taken, text: string, parts: readonly StatementText[]): Promise<void> {
  const wrong = await firstSyntaxError(taken, parts);
  if (wrong !== null) throw shifted(wrong, text);
}

/** The error with its position in the whole text. */
function shifted({ error, at }: SyntaxErrorIn, text: string): OrdinaryPartError {
  const position = error.fields['P'];
  if (position === undefined) return error;
  return new OrdinaryPartError({ ...error.fields, P: String(Number(position) + charactersBefore(text, at)) });
}

/** The statements in front of the one that the error is about, as far as they can be told. */
function partsBefore(taken: Taken, text: string, error: unknown): readonly StatementText[] {
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
  const { charset } = driver;
  const closed = close('S', reservedName, charset);
  let closes = 2;
  driver.dirty = true;
  await driver.exchange(Buffer.concat([closed, parse(reservedName, text, charset), closed, flush]), {
    disposition: (tag) => (tag === Reply.closeComplete || tag === Reply.error ? Disposition.collect : Disposition.drop),
    message: (tag, message) => {
      if (tag === Reply.error) error = new OrdinaryPartError(errorFields(message, charset));
      return error !== null || --closes === 0;
    },
  });
  if (error !== null) driver.failed = true;
  return error;
}
