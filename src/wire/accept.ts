/**
 * A client connection up to the point where it has an upstream connection.
 * Invariant: a client costs no upstream connection before it has sent a startup packet, and no more than 10 kB and `patience` ever.
 * Nothing that came unencrypted is taken for something that came over TLS (CVE-2021-23214).
 */
import type { Socket } from 'node:net';
import { TLSSocket } from 'node:tls';
import type { ServerAddress } from '../config.ts';
import { type MillraceError, millraceError } from '../errors.ts';
import type { ClientAuthenticator } from './auth/client-authentication.ts';
import { startOverTls } from './auth/tls-both-sides.ts';
import type { ClientTls } from './client-tls.ts';
import { errorResponse } from './encode.ts';
import { Session, type SessionServices } from './session.ts';
import { readStartupPacket } from './startup.ts';
import { withStaticReader } from './static-reader.ts';
import { connectUpstream } from './upstream.ts';

const refused = Buffer.from('N');
const granted = Buffer.from('S');
/** A client that was told goodbye and does not hang up is cut off. */
const lingerTime = 5_000;

export interface AcceptOptions {
  readonly upstream: ServerAddress;
  /** How long a client may take until it is authenticated, in ms; 0: as long as it likes. */
  readonly patience: number;
  readonly tls: ClientTls;
  readonly authenticator: ClientAuthenticator;
}

/** Serves a client. `opened` gets the session once there is one, `closed` is called when the client is gone, once. */
export function acceptClient(
  client: Socket,
  options: AcceptOptions,
  services: SessionServices,
  hooks: { opened(session: Session): void; closed(session: Session | null): void },
): void {
  /** What is spoken over: the client's socket, or TLS on it. */
  let peer = client;
  let secure: TLSSocket | null = null;
  let bytes: Buffer = Buffer.alloc(0);
  let fresh = true;
  let session: Session | null = null;
  let gone = false;
  const cut = (): void => {
    client.destroy();
    session?.destroy();
  };
  let timer = options.patience > 0 ? setTimeout(cut, options.patience) : undefined;
  const leave = (): void => {
    if (gone) return;
    gone = true;
    clearTimeout(timer);
    hooks.closed(session);
  };
  const onError = (): void => {
    client.destroy();
  };
  const onEnd = (): void => {
    client.destroy();
  };
  const listen = (): void => {
    peer.on('data', onData).on('end', onEnd).on('error', onError);
  };
  const stopReading = (): void => {
    peer.off('data', onData);
    peer.pause();
  };
  const refuse = (error: MillraceError): void => {
    services.counters.errors++;
    clearTimeout(timer);
    timer = setTimeout(cut, lingerTime);
    peer.off('data', onData);
    peer.end(errorResponse(error.fields, 'utf8', 'FATAL'));
    peer.resume();
  };
  const onData = (chunk: Buffer): void => {
    bytes = bytes.length === 0 ? chunk : Buffer.concat([bytes, chunk]);
    for (;;) {
      const packet = readStartupPacket(bytes);
      switch (packet.kind) {
        case 'incomplete':
          return;
        case 'ssl':
          bytes = bytes.subarray(packet.length);
          if (secure === null && !options.tls.current.offered) {
            peer.write(refused);
            fresh = false;
            continue;
          }
          if (secure === null) startTls(false);
          else refuse(millraceError('protocol_violation', { message: 'SSL request inside SSL' }));
          return;
        case 'gss':
          bytes = bytes.subarray(packet.length);
          if (secure === null) {
            peer.write(refused);
            fresh = false;
            continue;
          }
          refuse(millraceError('protocol_violation', { message: 'GSSAPI encryption request inside SSL' }));
          return;
        case 'direct-tls':
          if (fresh && options.tls.current.offered) startTls(true);
          else client.destroy();
          return;
        case 'invalid':
          refuse(millraceError('protocol_violation', { message: packet.message }));
          return;
        case 'cancel':
          stopReading();
          void forwardCancel(peer, options.upstream, bytes.subarray(0, packet.length), services);
          return;
        case 'startup': {
          const error = unfit(options.tls, secure);
          if (error !== null) {
            refuse(error);
            return;
          }
          stopReading();
          void connect(bytes.subarray(0, packet.length), bytes.subarray(packet.length), packet);
          return;
        }
      }
    }
  };
  const startTls = (direct: boolean): void => {
    if (!direct && bytes.length > 0) {
      // They may have been put there by somebody in between.
      refuse(millraceError('protocol_violation', { message: 'received unencrypted data after SSL request' }));
      return;
    }
    stopReading();
    client.off('end', onEnd);
    if (direct) client.unshift(bytes);
    else client.write(granted);
    fresh = false;
    bytes = Buffer.alloc(0);
    options.tls.handshake(client, direct, (socket) => {
      secure = socket;
      peer = socket;
      listen();
    });
  };
  const connect = async (
    startup: Buffer,
    rest: Buffer,
    identity: { user: string; database: string; replication: boolean },
  ): Promise<void> => {
    try {
      const upstream = await connectUpstream(options.upstream);
      let packet = startup;
      let behind: Buffer | null = rest;
      if (!gone && secure !== null && upstream.socket instanceof TLSSocket) {
        packet = Buffer.alloc(0);
        const { user } = identity;
        behind = await startOverTls({ socket: secure, reader: null }, upstream, startup, rest, user, options.authenticator);
      }
      if (gone || behind === null) {
        if (behind === null) services.counters.errors++;
        upstream.socket.destroy();
        return;
      }
      peer.off('end', onEnd).off('error', onError);
      client.off('close', leave);
      // A socket under TLS stays watched.
      if (secure === null) client.off('error', onError);
      session = new Session(secure === null ? withStaticReader(client) : { socket: secure, reader: null }, upstream, identity, services, {
        authenticated: () => clearTimeout(timer),
        closed: leave,
      });
      hooks.opened(session);
      session.start(packet, behind);
    } catch (error) {
      const cause = reason(error);
      services.log.warn({ cause }, 'the upstream cannot be reached');
      refuse(millraceError('upstream_unreachable', { cause }));
    }
  };
  client.on('close', leave);
  listen();
}

/** Why a client may not go on the way it came. */
function unfit(tls: ClientTls, secure: TLSSocket | null): MillraceError | null {
  const { required, verifies } = tls.current;
  if (required && secure === null) return millraceError('ssl_required');
  if (!verifies || secure?.authorized === true) return null;
  // What OpenSSL found wrong with it. `authorizationError` is a code, whatever its declared type.
  const problem: unknown = secure?.authorizationError;
  return millraceError('client_certificate_required', { problem: typeof problem === 'string' ? problem : '' });
}

/** The key in it is the upstream's own, so the upstream knows what is meant; there is no answer. */
async function forwardCancel(client: Socket, upstream: ServerAddress, packet: Buffer, services: SessionServices): Promise<void> {
  services.counters.cancels++;
  try {
    const { socket } = await connectUpstream(upstream);
    socket.on('error', () => socket.destroy());
    // In good order also over TLS: libpq 17 takes anything else for a failure.
    socket.on('close', () => client.destroySoon());
    socket.resume();
    socket.end(packet);
  } catch (error) {
    services.log.warn({ cause: reason(error) }, 'a cancel request could not be forwarded');
    client.destroy();
  }
}

/** Several addresses of one name may each have failed in their own way. */
function reason(error: unknown): string {
  if (error instanceof AggregateError && error.errors.length > 0) return error.errors.map(reason).join('; ');
  return error instanceof Error ? error.message : String(error);
}
