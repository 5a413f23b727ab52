/**
 * SCRAM where the client and the upstream both use TLS, each with Millrace.
 * Channel binding cannot hold then: the upstream would bind to its certificate and the client to Millrace's. So the mechanism that binds is
 * not passed on, and a client that could use it says so (gs2 flag 'y'), which the upstream must take for an attack (RFC 5802, section 6).
 * Where Millrace can have the role's secret it authenticates the client itself, as strictly as the upstream would, and logs in upstream
 * with the keys of the client's own proof; elsewhere such a client is told what to do.
 * Invariant: the upstream connection that is handed on is paused and continues with the next message the client has to see.
 */
import { MillraceError, millraceError } from '../../errors.ts';
import { withoutChannelBinding } from '../authentication.ts';
import type { PeerSocket } from '../static-reader.ts';
import { Reply } from '../tags.ts';
import { type ClientAuthenticator, refuseClient } from './client-authentication.ts';
import { ConversationEnded, MessageReader } from './message-reader.ts';
import { initialResponse, Question } from './scram-conversation.ts';
import { bindingFlag, ScramProtocolError } from './scram-server.ts';
import { ServerAnswers } from './server-login.ts';

const longestMessage = 1_048_576;

/**
 * Sends the startup packet and carries authentication as far as it has to be in between. Resolves with what the client has sent that is
 * still to be relayed, the upstream's next bytes being unread again; null when the client was refused or left, and everything is closed.
 */
export async function startOverTls(
  client: PeerSocket,
  upstream: PeerSocket,
  startup: Buffer,
  rest: Buffer,
  user: string,
  authenticator: ClientAuthenticator,
): Promise<Buffer | null> {
  const server = new MessageReader(upstream);
  const giveBack = (...messages: readonly Buffer[]): void => {
    const bytes = Buffer.concat([...messages, server.release()]);
    if (bytes.length > 0) upstream.socket.unshift(bytes);
  };
  const giveUp = (told: MillraceError | Buffer | null): null => {
    server.release();
    upstream.socket.on('error', () => undefined).destroy();
    if (told !== null) refuseClient(client, told);
    return null;
  };
  try {
    upstream.socket.write(startup);
    const before: Buffer[] = [];
    let question = await server.next(longestMessage);
    while (question[0] !== Reply.authentication && question[0] !== Reply.error) {
      before.push(question);
      question = await server.next(longestMessage);
    }
    if (!bindsToChannel(question)) {
      giveBack(...before, question);
      return rest;
    }
    for (const message of before) client.socket.write(message);
    if (!(await authenticator.decides(user))) {
      const left = await relayUnlessBound(client, upstream, question, rest, user);
      giveBack();
      return left;
    }
    const found = await authenticator.authenticate(client, user, 'scram-sha-256', rest);
    if (found === null) return giveUp(null);
    const answers = new ServerAnswers(user, found.credentials);
    for (;;) {
      const answer = await answers.to(question);
      if (answers.complete) break;
      if (answer !== null) upstream.socket.write(answer);
      question = await server.next(longestMessage);
      if (question[0] === Reply.error) {
        authenticator.forget(user);
        return giveUp(question);
      }
      if (question[0] !== Reply.authentication) throw new ConversationEnded('unexpected message of the server during login');
    }
    giveBack(question);
    return found.rest;
  } catch (error) {
    const told = refusalOf(error);
    if (told === null) client.socket.destroy();
    return giveUp(told);
  }
}

/** What the client hears of an error; null when there is nobody to hear it. */
function refusalOf(error: unknown): MillraceError | null {
  if (error instanceof MillraceError) return error;
  if (error instanceof ScramProtocolError) return millraceError('protocol_violation', { message: error.message, detail: error.detail });
  if (error instanceof ClientLeft) return null;
  return millraceError('upstream_unreachable', { cause: error instanceof Error ? error.message : String(error) });
}

class ClientLeft extends Error {}

/** Passes the offer on without channel binding, and the answer of a client that never thought of it. */
async function relayUnlessBound(client: PeerSocket, upstream: PeerSocket, offer: Buffer, rest: Buffer, user: string): Promise<Buffer> {
  const reader = new MessageReader(client, rest);
  try {
    client.socket.write(withoutChannelBinding(offer));
    const initial = await initialResponse(reader);
    if (bindingFlag(initial.text ?? '') === 'y') throw millraceError('channel_binding_impossible', { user });
    upstream.socket.write(initial.bytes);
    return reader.release();
  } catch (error) {
    reader.release();
    throw error instanceof ConversationEnded && !error.tooLong ? new ClientLeft() : error;
  }
}

/** AuthenticationSASL of a server that supports channel binding, and so refuses who says it does not. */
function bindsToChannel(message: Buffer): boolean {
  return (
    message[0] === Reply.authentication &&
    message.length > 9 &&
    message.readInt32BE(5) === Question.sasl &&
    withoutChannelBinding(message) !== message
  );
}
