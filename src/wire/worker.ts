/**
 * A proxy worker: the data path, alone in its process or one of several under node:cluster.
 * Invariant: after `stop` no client connection is left, and no transaction that could end in time was cut off.
 */
import { createServer, type Server, type Socket } from 'node:net';
import type { WorkerConfig } from '../config.ts';
import { createLogger, type Logger } from '../log.ts';
import { mayBeExtended } from '../sql/gate.ts';
import { parseStatements } from '../sql/statements.ts';
import type { StatementRunner } from '../statements/caller-session.ts';
import { acceptClient } from './accept.ts';
import { newCounters, samples } from './counters.ts';
import type { Session, SessionServices } from './session.ts';
import { keepAlive } from './upstream.ts';

export interface WorkerOptions {
  readonly log?: Logger;
  /** How long a client may take until it is authenticated, in ms. Default 60 s, as in Postgres. */
  readonly authenticationTimeout?: number;
  /** How long `stop` lets transactions go on, in ms. Default 10 s. */
  readonly drainTimeout?: number;
}

export interface Worker {
  /** Where it listens; the port that was chosen when 0 was asked for. */
  readonly port: number;
  /** Prometheus samples: name -> value. */
  metrics(): Record<string, number>;
  /** Takes no more clients, ends idle sessions, lets transactions finish up to the deadline, then cuts the rest. */
  stop(drainTimeout?: number): Promise<void>;
}

/** Listens and serves. Rejects when it cannot listen. */
export async function runWorker(config: WorkerConfig, runner: StatementRunner, options: WorkerOptions = {}): Promise<Worker> {
  const log = options.log ?? createLogger('proxy');
  const counters = newCounters();
  const services: SessionServices = { runner, mayBeExtended, parseStatements, counters, log };
  const sessions = new Set<Session>();
  const sockets = new Set<Socket>();
  /** Those among them that have no session yet. */
  const starting = new Set<Socket>();
  let emptied: () => void = () => undefined;
  const accept = { upstream: config.upstream, patience: options.authenticationTimeout ?? 60_000 };
  const server = createServer({ allowHalfOpen: true, noDelay: true, ...keepAlive }, (client) => {
    counters.connections++;
    counters.activeConnections++;
    sockets.add(client);
    starting.add(client);
    acceptClient(client, accept, services, {
      opened: (session) => {
        starting.delete(client);
        sessions.add(session);
      },
      closed: (session) => {
        counters.activeConnections--;
        sockets.delete(client);
        starting.delete(client);
        if (session !== null) sessions.delete(session);
        if (sockets.size === 0) emptied();
      },
    });
  });
  await listen(server, config.listen);
  server.on('error', (error) => log.error({ err: error }, 'the listening socket failed'));
  const address = server.address();
  return {
    port: typeof address === 'object' && address !== null ? address.port : config.listen.port,
    metrics: () => samples(counters),
    async stop(drainTimeout = options.drainTimeout ?? 10_000) {
      server.close();
      const empty = new Promise<void>((resolve) => {
        emptied = resolve;
        if (sockets.size === 0) resolve();
      });
      for (const socket of starting) socket.destroy();
      for (const session of sessions) session.drain();
      const deadline = setTimeout(() => {
        for (const session of sessions) session.shutDown();
        // Those that do not take their leave.
        setTimeout(() => {
          for (const session of sessions) session.destroy();
          for (const socket of sockets) socket.destroy();
        }, 1000).unref();
      }, drainTimeout);
      await empty;
      clearTimeout(deadline);
    },
  };
}

function listen(server: Server, { host, port }: { readonly host: string; readonly port: number }): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', reject);
    server.listen({ host, port, backlog: 1024 }, () => {
      server.off('error', reject);
      resolve();
    });
  });
}
