/**
 * The SCRAM exchange with a client, by message.
 * Invariant: the client has sent nothing but SASL messages of at most 1 kB each, one for each of ours.
 */

import { randomBytes } from 'node:crypto';
import type { Socket } from 'node:net';
import { message } from '../encode.ts';
import { Reply, Request } from '../tags.ts';
import type { MessageReader } from './message-reader.ts';
import { type ScramKeys, type ScramVerifier, scramMechanism } from './scram-keys.ts';
import { ScramProtocolError, ScramServer } from './scram-server.ts';

/** As PG_MAX_SASL_MESSAGE_LENGTH. */
const longestSaslMessage = 1024;

/** Kinds of authentication requests (protocol documentation, "Message Formats"). */
export const Question = { ok: 0, cleartext: 3, md5: 5, sasl: 10, saslContinue: 11, saslFinal: 12 } as const;

export function authentication(question: number, body: Buffer = Buffer.alloc(0)): Buffer {
  const code = Buffer.alloc(4);
  code.writeInt32BE(question);
  return message(Reply.authentication, [code, body]);
}

/** The offer of SCRAM without channel binding. */
export const scramOffer = authentication(Question.sasl, Buffer.from(`${scramMechanism}\0\0`, 'latin1'));

export function newNonce(): string {
  return randomBytes(18).toString('base64');
}

/** One answer of the client, header included. Rejects with ScramProtocolError when it is no answer. */
export async function answerOf(reader: MessageReader, longest: number): Promise<Buffer> {
  const answer = await reader.next(longest);
  if (answer[0] !== Request.password) throw new ScramProtocolError('expected a password response', '');
  return answer;
}

export interface InitialResponse {
  /** The whole message. */
  readonly bytes: Buffer;
  /** The client-first-message; null when the client waits to be asked. */
  readonly text: string | null;
}

/** The answer to the offer. Rejects with ScramProtocolError. */
export async function initialResponse(reader: MessageReader): Promise<InitialResponse> {
  const bytes = await answerOf(reader, longestSaslMessage);
  const nameEnd = bytes.indexOf(0, 5);
  if (nameEnd === -1 || bytes.toString('latin1', 5, nameEnd) !== scramMechanism || bytes.length < nameEnd + 5) {
    throw new ScramProtocolError('client selected an invalid SASL authentication mechanism', '');
  }
  const length = bytes.readInt32BE(nameEnd + 1);
  if (length === -1) return { bytes, text: null };
  if (length !== bytes.length - nameEnd - 5)
    throw new ScramProtocolError('malformed SCRAM message', 'Message length does not match input length.');
  return { bytes, text: bytes.toString('utf8', nameEnd + 5) };
}

/**
 * The exchange from the answer to the offer on. Null: the proof does not fit. The server-final-message has been sent otherwise, and
 * AuthenticationOk is due. Rejects with ScramProtocolError or ConversationEnded.
 */
export async function scramExchange(
  socket: Socket,
  reader: MessageReader,
  initial: InitialResponse,
  verifier: ScramVerifier,
  doomed: boolean,
): Promise<ScramKeys | null> {
  const server = new ScramServer(verifier, newNonce(), { doomed });
  let first = initial.text;
  if (first === null) {
    socket.write(authentication(Question.saslContinue));
    first = (await answerOf(reader, longestSaslMessage)).toString('utf8', 5);
  }
  socket.write(authentication(Question.saslContinue, Buffer.from(server.first(first), 'utf8')));
  const outcome = server.final((await answerOf(reader, longestSaslMessage)).toString('utf8', 5));
  if (outcome.kind === 'refused') return null;
  socket.write(authentication(Question.saslFinal, Buffer.from(outcome.message, 'utf8')));
  return outcome.keys;
}
