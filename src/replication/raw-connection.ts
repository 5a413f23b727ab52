/**
 * Opens pipelined sessions.
 * npm `pg` authenticates (TLS, SCRAM); its socket is then taken over, because rows and COPY data must move as bytes, not as strings.
 * Invariant: the caller gets a session that is idle and has the settings asked for, or an error and no open socket.
 */
import { type ConnectOpts, Socket, type SocketConstructorOpts } from 'node:net';
import type pg from 'pg';
import type { ServerAddress } from '../config.ts';
import { type ConnectOptions, connectPg } from './server-address.ts';
import { Session } from './session.ts';
import type { RawConnection } from './session-contract.ts';

export type { Param } from './outbox.ts';
export type { Column } from './reply-parts.ts';
export type { CopyBoth, CopyIn, Execution, FramesHandler, RawConnection, StatementResult } from './session-contract.ts';

export interface RawConnectionOptions extends ConnectOptions {
  /** Session settings, set before the promise resolves. */
  readonly settings?: Readonly<Record<string, string>>;
  /**
   * For many small messages: reads go into one buffer and are copied out, which is cheaper than a new buffer for each, and while reading is paused
   * nothing is read at all, so that the kernel gathers what comes. Without effect under TLS.
   */
  readonly gatherReads?: boolean;
}

/** Room for one read. */
const readSize = 256 * 1024;

/** A socket that reads into one buffer. Its data events own their bytes, as those of any other socket. */
function gatheringSocket(): Socket {
  const options: SocketConstructorOpts & Pick<ConnectOpts, 'onread'> = {
    onread: {
      buffer: Buffer.allocUnsafeSlow(readSize),
      callback: (length, buffer) => {
        socket.emit('data', Buffer.from(buffer.subarray(0, length)));
        return true;
      },
    },
  };
  const socket: Socket = new Socket(options);
  return socket;
}

/** The parts of a pg client that its types leave out. */
interface ClientInternals {
  readonly processID: number;
  readonly connection: { readonly stream: Socket };
}

/**
 * Opens a session. Rejects as connectPg does, or with PostgresError when a setting is refused.
 * With `replication` the session understands replication commands as well as SQL (simple protocol only).
 */
export async function connectRaw(address: ServerAddress, options: RawConnectionOptions = {}): Promise<RawConnection> {
  const client: pg.Client = await connectPg(
    address,
    options.gatherReads === true ? { ...options, extra: { stream: gatheringSocket } } : options,
  );
  const internals = client as unknown as ClientInternals;
  const session = new Session(internals.connection.stream, internals.processID);
  const settings = Object.entries(options.settings ?? {});
  if (settings.length > 0) {
    const literal = (text: string): string => `'${text.replaceAll("'", "''")}'`;
    const calls = settings.map(([name, value]) => `pg_catalog.set_config(${literal(name)}, ${literal(value)}, false)`);
    try {
      await session.query(`SELECT ${calls.join(', ')}`);
    } catch (error) {
      session.destroy();
      throw error;
    }
  }
  return session;
}
