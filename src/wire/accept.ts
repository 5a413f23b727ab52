/**
 * A client connection up to the point where it has an upstream connection.
 * Invariant: a client costs no upstream connection before it has sent a startup packet, and no more than 10 kB and `patience` ever.
 */
import type { Socket } from 'node:net';
import type { ServerAddress } from '../config.ts';
import { MillraceError, millraceError } from '../errors.ts';
import type { ConsoleHost } from './admin/host.ts';
import { errorResponse } from './encode.ts';
import { Session, type SessionIdentity, type SessionServices } from './session.ts';
import { readStartupPacket } from './startup.ts';
import { withStaticReader } from './static-reader.ts';
import { connectUpstream } from './upstream.ts';

const refused = Buffer.from('N');

export interface AcceptOptions {
  readonly upstream: ServerAddress;
  /** How long a client may take until it is authenticated, in ms; 0: as long as it likes. */
  readonly patience: number;
  readonly consoles: ConsoleHost;
  /** Whether a client may come in: null at once, else when the promise resolves. Rejects with a MillraceError. */
  admit(client: Socket, identity: SessionIdentity): Promise<void> | null;
}

export interface AcceptHooks {
  /** There is a session. */
  opened(session: Session, identity: SessionIdentity): void;
  /** The client turned out to be one of the admin console. */
  console(): void;
  /** The client is gone. */
  closed(session: Session | null): void;
}

/** Serves a client. Each hook is called at most once, `closed` always. */
export function acceptClient(client: Socket, options: AcceptOptions, services: SessionServices, hooks: AcceptHooks): void {
  let bytes: Buffer = Buffer.alloc(0);
  let session: Session | null = null;
  let gone = false;
  const impatient = (): void => {
    client.destroy();
    session?.destroy();
  };
  const beImpatient = (): NodeJS.Timeout | undefined => (options.patience === 0 ? undefined : setTimeout(impatient, options.patience));
  let timer = beImpatient();
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
  const onData = (chunk: Buffer): void => {
    bytes = bytes.length === 0 ? chunk : Buffer.concat([bytes, chunk]);
    for (;;) {
      const packet = readStartupPacket(bytes);
      switch (packet.kind) {
        case 'incomplete':
          return;
        case 'ssl':
        case 'gss':
          // TLS towards clients would begin here.
          client.write(refused);
          bytes = bytes.subarray(packet.length);
          continue;
        case 'direct-tls':
          client.destroy();
          return;
        case 'invalid':
          services.counters.errors++;
          client.end(errorResponse(millraceError('protocol_violation', { message: packet.message }).fields, 'utf8', 'FATAL'));
          client.off('data', onData);
          client.resume();
          return;
        case 'cancel':
          client.off('data', onData);
          client.pause();
          options.consoles.cancelRequested(bytes.subarray(0, packet.length));
          void forwardCancel(client, options.upstream, bytes.subarray(0, packet.length), services);
          return;
        case 'startup':
          client.off('data', onData);
          client.pause();
          if (!packet.replication && options.consoles.isFor(packet.database)) {
            client.off('end', onEnd);
            hooks.console();
            const welcomed = (): void => clearTimeout(timer);
            void options.consoles.serve(client, packet.user, bytes.subarray(0, packet.length), bytes.subarray(packet.length), welcomed);
            return;
          }
          void connect(bytes.subarray(0, packet.length), bytes.subarray(packet.length), packet);
          return;
      }
    }
  };
  const connect = async (
    startup: Buffer,
    rest: Buffer,
    identity: { user: string; database: string; replication: boolean },
  ): Promise<void> => {
    try {
      const wait = options.admit(client, identity);
      if (wait !== null) {
        // While a database is paused its clients are not to blame for the time it takes.
        clearTimeout(timer);
        await wait;
        timer = beImpatient();
      }
      if (gone) {
        clearTimeout(timer);
        return;
      }
      const upstream = await connectUpstream(options.upstream);
      if (gone) {
        upstream.socket.destroy();
        return;
      }
      client.off('error', onError).off('end', onEnd).off('close', leave);
      session = new Session(withStaticReader(client), upstream, identity, services, {
        authenticated: () => clearTimeout(timer),
        closed: leave,
      });
      hooks.opened(session, identity);
      session.start(startup, rest);
    } catch (error) {
      services.counters.errors++;
      if (error instanceof MillraceError) {
        client.end(errorResponse(error.fields, 'utf8', 'FATAL'));
        client.resume();
        return;
      }
      const cause = reason(error);
      services.log.warn({ cause }, 'the upstream cannot be reached');
      client.end(errorResponse(millraceError('upstream_unreachable', { cause }).fields, 'utf8', 'FATAL'));
      client.resume();
    }
  };
  client.on('data', onData).on('error', onError).on('end', onEnd).on('close', leave);
}

/** The key in it is the upstream's own, so the upstream knows what is meant; there is no answer. */
async function forwardCancel(client: Socket, upstream: ServerAddress, packet: Buffer, services: SessionServices): Promise<void> {
  services.counters.cancels++;
  try {
    const { socket } = await connectUpstream(upstream);
    socket.on('error', () => socket.destroy());
    socket.on('close', () => client.destroy());
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
