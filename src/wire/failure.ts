/**
 * What went wrong in an extended statement, as the client hears it.
 * Invariant: an error of the upstream keeps every field the client can make sense of; positions count in the client's own text.
 */
import { MillraceError, millraceError } from '../errors.ts';
import type { Logger } from '../log.ts';
import { GivenQueryError, UpstreamError } from '../statements/caller-session.ts';
import { ConnectionLost } from './driver.ts';
import { type Charset, errorResponse, fieldsMessage } from './encode.ts';
import { Reply } from './tags.ts';

/** An error of the upstream in a statement of the client's own, so that its position means something. */
export class OrdinaryPartError extends Error {
  readonly fields: Readonly<Record<string, string>>;
  /** It was met while the statement was carried out, so that there is a portal. */
  readonly inPortal: boolean;
  constructor(fields: Readonly<Record<string, string>>, inPortal = false) {
    super(fields['M'] ?? 'upstream error');
    this.name = 'OrdinaryPartError';
    this.fields = fields;
    this.inPortal = inPortal;
  }
}

/** Fields that speak of SQL the client has not written, or of the server's source. */
const internalFields = new Set(['P', 'p', 'q', 'W', 'F', 'L', 'R']);

/** The ErrorResponse for anything thrown. `offset`: characters in front of the statement in the client's text. */
export function failureResponse(error: unknown, offset: number, charset: Charset, log: Logger): Buffer {
  if (error instanceof ConnectionLost) throw error;
  if (error instanceof OrdinaryPartError) {
    const position = error.fields['P'];
    const moved = position === undefined ? {} : { P: String(Number(position) + offset) };
    return fieldsMessage(Reply.error, { ...error.fields, ...moved }, charset);
  }
  if (error instanceof UpstreamError) {
    const given = error instanceof GivenQueryError;
    const kept = Object.entries(error.fields).filter(([code]) => !internalFields.has(code) || (given && (code === 'p' || code === 'q')));
    return fieldsMessage(Reply.error, Object.fromEntries(kept), charset);
  }
  if (error instanceof MillraceError) {
    const { position, ...fields } = error.fields;
    return errorResponse({ ...fields, ...(position === undefined ? {} : { position: position + offset }) }, charset);
  }
  log.error({ err: error }, 'an extended statement failed unexpectedly');
  return errorResponse(
    millraceError('internal_error', { message: error instanceof Error ? error.message : String(error) }).fields,
    charset,
  );
}

/** How many characters (not UTF-16 units) are in front of `at`. */
export function charactersBefore(text: string, at: number): number {
  let count = 0;
  for (const _ of text.slice(0, at)) count++;
  return count;
}
