/**
 * Runs auth_query at the upstream as Millrace's own role, over a connection of its own.
 * Invariant: nothing a client has said but the role name, which is a parameter, reaches that connection: its search_path is pg_catalog
 * (CVE-2025-12819 of PgBouncer). At most one such connection is open at a time.
 */
import type { ServerAddress } from '../../config.ts';
import { dataRowValues, errorFields } from '../decode.ts';
import { bind, execute, message, parse, sync } from '../encode.ts';
import type { PeerSocket } from '../static-reader.ts';
import { Reply, Request } from '../tags.ts';
import { connectUpstream } from '../upstream.ts';
import { ConversationEnded, MessageReader } from './message-reader.ts';
import type { AuthQuery } from './secrets.ts';
import { logIn } from './server-login.ts';

const longestAnswer = 65_536;
/** A server that hangs must not keep the next from asking. */
const patience = 15_000;
/** How long a connection waits for the next question. */
const idleTime = 5_000;
const charset = 'utf8';

interface Connection {
  readonly peer: PeerSocket;
  readonly reader: MessageReader;
}

/** Questions are asked one after the other. */
export function upstreamAuthQuery(address: ServerAddress): AuthQuery {
  let last: Promise<unknown> = Promise.resolve();
  let idle: (Connection & { readonly timer: NodeJS.Timeout }) | null = null;
  const dismiss = (): void => {
    if (idle === null) return;
    clearTimeout(idle.timer);
    close(idle);
    idle = null;
  };
  const reused = (): Connection | null => {
    const connection = idle;
    if (connection === null) return null;
    clearTimeout(connection.timer);
    idle = null;
    if (connection.peer.socket.destroyed) return null;
    connection.peer.socket.ref();
    return connection;
  };
  const keep = (connection: Connection): void => {
    // Neither holds up the end of the process.
    connection.peer.socket.unref();
    idle = { ...connection, timer: setTimeout(dismiss, idleTime).unref() };
  };
  const answer = async (sql: string, user: string): Promise<(string | null)[][]> => {
    const kept = reused();
    if (kept !== null) {
      try {
        const rows = await ask(kept, sql, user);
        keep(kept);
        return rows;
      } catch (error) {
        close(kept);
        // The server has ended it meanwhile.
        if (!(error instanceof ConversationEnded)) throw error;
      }
    }
    const fresh = await connect(address);
    try {
      const rows = await ask(fresh, sql, user);
      keep(fresh);
      return rows;
    } catch (error) {
      close(fresh);
      throw error;
    }
  };
  return (sql, user) => {
    const result = last.then(() => answer(sql, user));
    last = result.catch(() => undefined);
    return result;
  };
}

async function connect(address: ServerAddress): Promise<Connection> {
  const peer = await connectUpstream(address);
  peer.socket.on('error', () => peer.socket.destroy());
  const parameters = {
    user: address.user,
    database: address.database,
    application_name: 'millrace',
    client_encoding: 'UTF8',
    search_path: 'pg_catalog',
  };
  const { password } = address;
  const login = await within(peer, logIn(peer, { parameters }, password === undefined ? { kind: 'none' } : { kind: 'password', password }));
  return { peer, reader: new MessageReader(peer, login.rest) };
}

/** Cuts a connection that takes too long. */
async function within<T>(peer: PeerSocket, work: Promise<T>): Promise<T> {
  const timer = setTimeout(() => peer.socket.destroy(), patience);
  try {
    return await work;
  } finally {
    clearTimeout(timer);
  }
}

async function ask({ peer, reader }: Connection, sql: string, user: string): Promise<(string | null)[][]> {
  peer.socket.write(Buffer.concat([parse('', sql, charset), bind('', '', [user], charset), execute('', charset), sync]));
  const { rows, failure } = await within(peer, answerOf(reader));
  if (failure !== null) throw new Error(failure);
  return rows;
}

async function answerOf(reader: MessageReader): Promise<{ rows: (string | null)[][]; failure: string | null }> {
  const rows: (string | null)[][] = [];
  let failure: string | null = null;
  for (;;) {
    const next = await reader.next(longestAnswer);
    if (next[0] === Reply.dataRow && rows.length === 0) rows.push(dataRowValues(next, charset));
    else if (next[0] === Reply.error) failure = errorFields(next, charset)['M'] ?? 'the query failed';
    else if (next[0] === Reply.readyForQuery) return { rows, failure };
  }
}

function close({ peer, reader }: Connection): void {
  reader.release();
  peer.socket.write(message(Request.terminate, []));
  peer.socket.destroySoon();
}
