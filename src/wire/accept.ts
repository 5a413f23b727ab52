/**
 * A client connection up to the point where it has an upstream connection.
 * Invariant: a client costs no upstream connection before it has sent a startup packet, and no more than 10 kB and `patience` ever.
 * Nothing that came unencrypted is taken for something that came over TLS (CVE-2021-23214).
 */
import type { Socket } from 'node:net';
import type { TLSSocket } from 'node:tls';
import { type ErrorFields, MillraceError, millraceError } from '../errors.ts';
import type { ClientTls } from './client-tls.ts';
import { errorResponse } from './encode.ts';
import { Session, type SessionIdentity, type SessionServices } from './session.ts';
import { readStartupPacket, type StartupPacket } from './startup.ts';
import { withStaticReader } from './static-reader.ts';
import type { UpstreamLink } from './upstream-link.ts';

type StartupMessage = Extract<StartupPacket, { kind: 'startup' }>;

const nothing = Buffer.alloc(0);
const refused = Buffer.from('N');
const granted = Buffer.from('S');
/** A client that was told goodbye and does not hang up is cut off. */
const lingerTime = 5_000;

/** A client that has sent its startup packet and waits. */
export interface Arrival {
  readonly packet: Buffer;
  /** What it sent behind the packet. */
  readonly rest: Buffer;
  readonly identity: SessionIdentity;
  /** The TLS it came over, null when it did not. Nobody reads from `socket` now. */
  readonly secure: TLSSocket | null;
  readonly socket: Socket;
  isGone(): boolean;
  /** It is who it says: `patience` is over. */
  authenticated(): void;
  /** Waits for something the client is not to blame for: `patience` begins anew afterwards. */
  excused<T>(wait: Promise<T>): Promise<T>;
  /** Nobody waits for this client when the worker stops, and nobody here watches its socket. */
  leave(): void;
  /** Turns it away. */
  refuse(error: { readonly fields: ErrorFields }): void;
  /** The socket goes to a session. */
  handOver(link: UpstreamLink, identity: SessionIdentity): Session;
}

export interface AcceptOptions {
  /** How long a client may take until it is authenticated, in ms; 0: as long as it likes. */
  readonly patience: number;
  readonly tls: ClientTls;
  /** Finds the client a server, or turns it away. */
  serve(arrival: Arrival): Promise<void>;
  /** Does what a cancel request asks for. Never rejects; the client is sent away afterwards. */
  cancel(packet: Buffer): Promise<void>;
}

export interface AcceptHooks {
  /** There is a session. */
  opened(session: Session, identity: SessionIdentity): void;
  /** The client belongs to somebody else now, see Arrival.leave. */
  left(): void;
  /** The client is gone. */
  closed(session: Session | null): void;
}

/** Serves a client. Each hook is called at most once, `closed` always. */
export function acceptClient(accepted: Socket, options: AcceptOptions, services: SessionServices, hooks: AcceptHooks): void {
  let client = accepted;
  /** What is spoken over: the client's socket, or TLS on it. */
  let peer = client;
  let secure: TLSSocket | null = null;
  let bytes: Buffer = nothing;
  let fresh = true;
  let session: Session | null = null;
  let gone = false;
  const cut = (): void => {
    client.destroy();
    session?.destroy();
  };
  const beImpatient = (): NodeJS.Timeout | undefined => (options.patience > 0 ? setTimeout(cut, options.patience) : undefined);
  let timer = beImpatient();
  const calm = (): void => {
    clearTimeout(timer);
    timer = undefined;
  };
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
  const refuse = (error: { readonly fields: ErrorFields }): void => {
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
          services.counters.cancels++;
          // In good order also over TLS: libpq 17 takes anything else for a failure.
          void options.cancel(Buffer.from(bytes.subarray(0, packet.length))).finally(() => peer.destroySoon());
          return;
        case 'startup': {
          const error = unfit(options.tls, secure);
          if (error !== null) {
            refuse(error);
            return;
          }
          stopReading();
          arrived(packet);
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
    bytes = nothing;
    options.tls.handshake(client, direct, (socket) => {
      secure = socket;
      peer = socket;
      listen();
    });
  };
  const arrived = (packet: StartupMessage): void => {
    const arrival: Arrival = {
      packet: bytes.subarray(0, packet.length),
      rest: bytes.subarray(packet.length),
      identity: packet,
      secure,
      socket: peer,
      isGone: () => gone,
      authenticated: calm,
      async excused(wait) {
        clearTimeout(timer);
        const result = await wait;
        if (!gone) timer = beImpatient();
        return result;
      },
      leave() {
        peer.off('end', onEnd);
        hooks.left();
      },
      refuse,
      handOver(link, identity) {
        peer.off('end', onEnd).off('error', onError);
        client.off('close', leave);
        // A socket under TLS stays watched.
        if (secure === null) client.off('error', onError);
        const own = secure === null ? withStaticReader(client) : { socket: secure, reader: null };
        // Nothing of the arrival is kept for as long as the session lasts.
        bytes = nothing;
        peer = own.socket;
        if (secure === null) client = own.socket;
        session = new Session(own, link, identity, services, { authenticated: calm, closed: leave });
        hooks.opened(session, identity);
        return session;
      },
    };
    options.serve(arrival).catch((error: unknown) => {
      if (error instanceof MillraceError) {
        refuse(error);
        return;
      }
      services.log.error({ err: error }, 'a client could not be served');
      client.destroy();
    });
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
