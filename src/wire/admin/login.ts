/**
 * A client of the admin console proves who it is: to the upstream, which knows the roles and their passwords.
 * Invariant: a client is let in only when the upstream would let it in (the role exists, may log in, and has proven itself), and hears
 * nothing of AuthenticationOk before. What it may send meanwhile is bounded as on every connection.
 */
import type { Socket } from 'node:net';
import type { ServerAddress } from '../../config.ts';
import { millraceError } from '../../errors.ts';
import { AuthenticationGuard, withoutChannelBinding } from '../authentication.ts';
import { Reply } from '../tags.ts';
import { connectUpstream } from '../upstream.ts';

const authenticationOk = 0;
const authenticationSasl = 10;
const negotiateProtocolVersion = 0x76;
/** No server says more than this in one message while somebody logs in. */
const longestReply = 1_048_576;

/** The startup packet of `client` for another database: its role and protocol, nothing else of it. */
export function startupFor(packet: Buffer, database: string): Buffer {
  // Byte for byte: names may be in any encoding.
  const strings = packet.toString('latin1', 8).split('\0');
  const kept: string[] = [];
  for (let i = 0; i + 1 < strings.length && strings[i] !== ''; i += 2) {
    const name = strings[i] ?? '';
    if (name === 'user' || name.startsWith('_pq_.')) kept.push(name, strings[i + 1] ?? '');
  }
  kept.push('database', Buffer.from(database, 'utf8').toString('latin1'), 'application_name', 'millrace console', '', '');
  const body = Buffer.from(kept.join('\0'), 'latin1');
  const header = Buffer.alloc(8);
  header.writeUInt32BE(8 + body.length, 0);
  packet.copy(header, 4, 4, 8);
  return Buffer.concat([header, body]);
}

/**
 * Relays authentication. Resolves with what the client has sent behind it (nearly always nothing) once the upstream is ready for its
 * queries; that connection is closed then. Rejects with a MillraceError, or with null when the client was told already or is gone.
 */
export async function relayLogin(client: Socket, upstream: ServerAddress, startup: Buffer, rest: Buffer): Promise<Buffer> {
  const { socket, reader } = await connectUpstream(upstream).catch((cause: unknown) => {
    throw millraceError('upstream_unreachable', { cause: cause instanceof Error ? cause.message : String(cause) });
  });
  const guard = new AuthenticationGuard();
  return await new Promise<Buffer>((resolve, reject) => {
    let replies: Buffer = Buffer.alloc(0);
    let proven = false;
    let behind: Buffer = Buffer.alloc(0);
    let over = false;
    const finish = (error: Error | null, done?: Buffer): void => {
      if (over) return;
      over = true;
      client.off('data', fromClient).off('close', gone).off('end', gone);
      client.pause();
      socket.destroy();
      if (done === undefined) reject(error);
      else resolve(done);
    };
    const gone = (): void => finish(null);
    const fromClient = (chunk: Buffer): void => {
      if (proven) {
        behind = Buffer.concat([behind, chunk]);
        if (behind.length > longestReply)
          finish(millraceError('protocol_violation', { message: 'too much was sent before the console is ready' }));
      } else if (guard.allows(chunk)) socket.write(chunk);
      else finish(millraceError('protocol_violation', { message: 'expected a password response' }));
    };
    /** False when it is over. */
    const reply = (message: Buffer): boolean => {
      if (message[0] === Reply.error) {
        client.end(message);
        finish(null);
      } else if (message[0] === Reply.readyForQuery) finish(null, behind);
      else if (message[0] === Reply.authentication && message.length >= 9) {
        const question = message.readInt32BE(5);
        if (question === authenticationOk) proven = true;
        else client.write(question === authenticationSasl ? withoutChannelBinding(message) : message);
      } else if (message[0] === Reply.notice || message[0] === negotiateProtocolVersion) client.write(message);
      return !over;
    };
    const fromUpstream = (chunk: Buffer): void => {
      replies = Buffer.concat([replies, chunk]);
      for (let going = !over; going && replies.length >= 5; ) {
        const length = 1 + replies.readInt32BE(1);
        if (length < 5 || length > longestReply) {
          finish(millraceError('protocol_violation', { message: 'the upstream sent a message of impossible length' }));
          return;
        }
        if (replies.length < length) return;
        const message = replies.subarray(0, length);
        replies = replies.subarray(length);
        going = reply(message);
      }
    };
    if (reader === null) socket.on('data', fromUpstream);
    else {
      reader.receive = (chunk) => {
        fromUpstream(Buffer.from(chunk));
        return false;
      };
    }
    const lost = (): void => finish(millraceError('upstream_unreachable', { cause: 'the connection ended during the login' }));
    socket.on('error', lost).on('end', lost).on('close', lost);
    client.on('data', fromClient).once('close', gone).once('end', gone);
    socket.write(startup);
    socket.resume();
    if (rest.length > 0) fromClient(rest);
    client.resume();
  });
}
