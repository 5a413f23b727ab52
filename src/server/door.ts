/**
 * The socket that clients connect to.
 * Invariant: a connection waits here, or belongs to one worker; a client whose worker ends while it takes it over sees its connection end.
 * (node:cluster forgets such a connection and leaves it open: the client would wait for ever.)
 */
import { createServer, type Socket } from 'node:net';
import type { HostPort } from '../config-loading.ts';
import type { Logger } from '../log.ts';

/** Who takes connections over, one at a time. */
export interface Taker {
  /** False when it cannot take any now. Otherwise `settled` follows: it has taken it, or has ended. */
  take(connection: Socket, settled: () => void): boolean;
}

export interface Door {
  readonly port: number;
  /** Somebody who could not take any perhaps can. */
  knock(): void;
  /** Takes no more connections, and ends those that wait. */
  close(): void;
}

const backlog = 1_024;

/** Listens, and gives connections to each of the takers in turn. Rejects when it cannot listen. */
export async function openDoor(listen: HostPort, takers: readonly Taker[], log: Logger): Promise<Door> {
  const waiting: Socket[] = [];
  const busy = new Set<Taker>();
  let last = 0;
  const give = (connection: Socket): boolean => {
    for (let i = 1; i <= takers.length; i++) {
      const next = (last + i) % takers.length;
      const taker = takers[next];
      if (taker === undefined || busy.has(taker)) continue;
      busy.add(taker);
      const settled = (): void => {
        busy.delete(taker);
        giveAll();
      };
      if (taker.take(connection, settled)) {
        last = next;
        return true;
      }
      busy.delete(taker);
    }
    return false;
  };
  const giveAll = (): void => {
    for (let connection = waiting[0]; connection !== undefined && give(connection); connection = waiting[0]) waiting.shift();
  };
  // Nothing is read here: what the client says is for the worker.
  const server = createServer({ pauseOnConnect: true, allowHalfOpen: true }, (connection) => {
    connection.on('error', () => connection.destroy());
    waiting.push(connection);
    giveAll();
  });
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen({ ...listen, backlog }, () => {
      server.off('error', reject);
      resolve();
    });
  });
  server.on('error', (error) => log.error({ err: error }, 'the listening socket failed'));
  const address = server.address();
  return {
    port: typeof address === 'object' && address !== null ? address.port : listen.port,
    knock: giveAll,
    close() {
      server.close();
      for (const connection of waiting.splice(0)) connection.destroy();
    },
  };
}
