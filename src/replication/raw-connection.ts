/**
 * Opens pipelined sessions.
 * npm `pg` authenticates (TLS, SCRAM); its socket is then taken over, because rows and COPY data must move as bytes, not as strings.
 * Invariant: the caller gets a session that is idle and has the settings asked for, or an error and no open socket.
 */
import type { Socket } from 'node:net';
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
  const client: pg.Client = await connectPg(address, options);
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
