/**
 * Clients of session mode: a server connection each, and the server itself asks for the password.
 * Invariant: the startup packet and everything behind it reach the server as the client sent them.
 */

import { TLSSocket } from 'node:tls';
import type { ServerAddress } from '../config.ts';
import { millraceError } from '../errors.ts';
import type { Logger } from '../log.ts';
import type { Arrival } from './accept.ts';
import type { ClientAuthenticator } from './auth/client-authentication.ts';
import { startOverTls } from './auth/tls-both-sides.ts';
import { connectUpstream, reason } from './upstream.ts';
import { directLink } from './upstream-link.ts';

/** Connects the client to a server of its own, or turns it away. */
export async function serveRelayed(
  arrival: Arrival,
  upstream: ServerAddress,
  authenticator: ClientAuthenticator,
  log: Logger,
): Promise<void> {
  try {
    const server = await connectUpstream(upstream);
    const { identity, secure } = arrival;
    let { packet } = arrival;
    let rest: Buffer | null = arrival.rest;
    if (!arrival.isGone() && secure !== null && server.socket instanceof TLSSocket) {
      rest = await startOverTls({ socket: secure, reader: null }, server, packet, rest, identity.user, authenticator);
      packet = Buffer.alloc(0);
    }
    if (arrival.isGone() || rest === null) server.socket.destroy();
    else arrival.handOver(directLink(server), identity).start(packet, rest);
  } catch (error) {
    const cause = reason(error);
    log.warn({ cause }, 'the upstream cannot be reached');
    arrival.refuse(millraceError('upstream_unreachable', { cause }));
  }
}

/** Sends a cancel request to the server; there is no answer. Resolves when the server has passed it on. */
export async function sendCancel(packet: Buffer, upstream: ServerAddress, patience: number, log: Logger): Promise<void> {
  try {
    const { socket } = await connectUpstream(upstream);
    await new Promise<void>((resolve) => {
      if (patience > 0) socket.setTimeout(patience, () => socket.destroy());
      socket.on('error', () => socket.destroy());
      socket.on('close', () => resolve());
      socket.resume();
      socket.end(packet);
    });
  } catch (error) {
    log.warn({ cause: reason(error) }, 'a cancel request could not be forwarded');
  }
}
