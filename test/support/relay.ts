/**
 * A TCP relay before a server, which tests make behave as a bad network does.
 * Invariant: what comes through is what was sent, in order; it comes late, or the connection ends.
 */

import type { AddressInfo } from 'node:net';
import { connect, createServer, type Socket } from 'node:net';

export interface Relay {
  readonly host: '127.0.0.1';
  readonly port: number;
  /** Nothing is passed on any more and nobody is told: what a cable does that is pulled. New connections are accepted and lead nowhere. */
  hang(): void;
  /** From now on everything is passed on, and what came meanwhile, too. */
  heal(): void;
  /** As `heal`, but the connections of before stay dead, without a word: what a firewall does that has forgotten them. */
  forget(): void;
  /** Resets every connection, and while `refusing` each new one. */
  cut(refusing?: boolean): void;
  readonly connections: number;
  stop(): Promise<void>;
}

interface Pair {
  readonly client: Socket;
  readonly server: Socket;
  dead: boolean;
}

export async function startRelay(target: { readonly host: string; readonly port: number }): Promise<Relay> {
  const pairs = new Set<Pair>();
  let hanging = false;
  let refusing = false;
  const listener = createServer({ allowHalfOpen: false }, (client) => {
    client.on('error', () => undefined);
    if (refusing) {
      client.resetAndDestroy();
      return;
    }
    const server = connect(target.port, target.host);
    server.on('error', () => undefined);
    const pair: Pair = { client, server, dead: false };
    pairs.add(pair);
    for (const [from, to] of [
      [client, server],
      [server, client],
    ] as const) {
      from.on('data', (chunk) => {
        if (!to.write(chunk)) from.pause();
      });
      to.on('drain', () => {
        if (!hanging && !pair.dead) from.resume();
      });
      // An end is not told either while nothing is passed on.
      from.on('close', () => {
        if (hanging || pair.dead) return;
        pairs.delete(pair);
        to.destroy();
      });
      if (hanging) from.pause();
    }
  });
  await new Promise<void>((resolve) => listener.listen(0, '127.0.0.1', resolve));
  const each = (work: (pair: Pair) => void): void => {
    for (const pair of pairs) work(pair);
  };
  return {
    host: '127.0.0.1',
    port: (listener.address() as AddressInfo).port,
    hang() {
      hanging = true;
      each(({ client, server }) => {
        client.pause();
        server.pause();
      });
    },
    heal() {
      hanging = false;
      refusing = false;
      each(({ client, server, dead }) => {
        if (dead) return;
        for (const [one, other] of [
          [client, server],
          [server, client],
        ] as const) {
          if (one.destroyed) other.destroy();
          else one.resume();
        }
      });
    },
    forget() {
      each((pair) => {
        pair.dead = true;
        pair.client.pause();
        pair.server.pause();
      });
      hanging = false;
    },
    cut(refuse = false) {
      refusing = refuse;
      hanging = false;
      each(({ client, server }) => {
        client.resetAndDestroy();
        server.resetAndDestroy();
      });
      pairs.clear();
    },
    get connections() {
      return pairs.size;
    },
    async stop() {
      each(({ client, server }) => {
        client.destroy();
        server.destroy();
      });
      await new Promise((resolve) => listener.close(resolve));
    },
  };
}
