/**
 * Runs auth_query at the upstream as Millrace's own role, over a connection of its own.
 * Invariant: nothing a client has said but the role name, which is a parameter, reaches that connection: its search_path is pg_catalog
 * (CVE-2025-12819 of PgBouncer). At most one such connection is open at a time.
 */
import type { ServerAddress } from '../../config.ts';
import { dataRowValues, errorFields } from '../decode.ts';
import { bind, execute, message, parse, sync } from '../encode.ts';
import { Reply, Request } from '../tags.ts';
import { connectUpstream } from '../upstream.ts';
import { MessageReader } from './message-reader.ts';
import type { AuthQuery } from './secrets.ts';
import { logIn } from './server-login.ts';

const longestAnswer = 65_536;
/** A server that hangs must not keep the next from asking. */
const patience = 15_000;

export function upstreamAuthQuery(address: ServerAddress): AuthQuery {
  let last: Promise<unknown> = Promise.resolve();
  return (sql, user) => {
    const answer = last.then(() => ask(address, sql, user));
    last = answer.catch(() => undefined);
    return answer;
  };
}

async function ask(address: ServerAddress, sql: string, user: string): Promise<(string | null)[][]> {
  const peer = await connectUpstream(address);
  const { socket } = peer;
  socket.on('error', () => undefined);
  const timer = setTimeout(() => socket.destroy(), patience);
  try {
    const parameters = {
      user: address.user,
      database: address.database,
      application_name: 'millrace',
      client_encoding: 'UTF8',
      search_path: 'pg_catalog',
    };
    const { password } = address;
    const login = await logIn(peer, { parameters }, password === undefined ? { kind: 'none' } : { kind: 'password', password });
    const reader = new MessageReader(peer, login.rest);
    const charset = 'utf8';
    socket.write(Buffer.concat([parse('', sql, charset), bind('', '', [user], charset), execute('', charset), sync]));
    const rows: (string | null)[][] = [];
    let failure: string | undefined;
    for (;;) {
      const next = await reader.next(longestAnswer);
      if (next[0] === Reply.dataRow && rows.length < 2) rows.push(dataRowValues(next, charset));
      else if (next[0] === Reply.error) failure = errorFields(next, charset)['M'];
      else if (next[0] === Reply.readyForQuery) break;
    }
    reader.release();
    socket.end(message(Request.terminate, []));
    if (failure !== undefined) throw new Error(failure);
    return rows;
  } finally {
    clearTimeout(timer);
    socket.destroySoon();
  }
}
