/**
 * A proxy worker: the data path, alone in its process or one of several under node:cluster.
 * Invariant: after `stop` no client connection is left, and no transaction that could end in time was cut off.
 */
import { createHmac } from 'node:crypto';
import { createServer, type Server, type Socket } from 'node:net';
import type { WorkerConfig } from '../config.ts';
import { createLogger, type Logger } from '../log.ts';
import { mayBeExtended } from '../sql/gate.ts';
import { parseStatements } from '../sql/statements.ts';
import type { StatementRunner } from '../statements/caller-session.ts';
import { acceptClient } from './accept.ts';
import { upstreamAuthQuery } from './auth/auth-query.ts';
import { ClientAuthenticator } from './auth/client-authentication.ts';
import { Secrets } from './auth/secrets.ts';
import { ClientTls } from './client-tls.ts';
import { newCounters, samples } from './counters.ts';
import { type ClientTlsSettings, defaultProxySettings, type ProxySettings } from './pool/settings.ts';
import type { Session, SessionServices } from './session.ts';

export interface WorkerOptions {
  readonly log?: Logger;
  readonly settings?: ProxySettings;
  /** How long a client may take until it is authenticated, in ms. Default: that of the settings. */
  readonly authenticationTimeout?: number;
  /** How long `stop` lets transactions go on, in ms. Default 10 s. */
  readonly drainTimeout?: number;
}

export interface Worker {
  /** Where it listens; the port that was chosen when 0 was asked for. */
  readonly port: number;
  /** Prometheus samples: name -> value. */
  metrics(): Record<string, number>;
  /** Takes new certificates and TLS modes for connections from now on. Throws when they cannot be used; then nothing has changed. */
  replaceTls(settings: ClientTlsSettings): void;
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
  const settings = options.settings ?? defaultProxySettings;
  const tls = new ClientTls(settings.tls, log);
  const secrets = new Secrets({ users: settings.users, authQuery: settings.authQuery, run: upstreamAuthQuery(config.upstream), log });
  const authenticator = new ClientAuthenticator({
    secretOf: secrets.of,
    isCertain: secrets.isCertain,
    forget: secrets.forget,
    mockKey: createHmac('sha256', config.secretKey).update('SCRAM of unknown roles').digest(),
    log,
  });
  const patience = options.authenticationTimeout ?? settings.clientLoginTimeout;
  const accept = { upstream: config.upstream, patience, tls, authenticator };
  const server = createServer({ allowHalfOpen: true, noDelay: true, keepAlive: true }, (client) => {
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
    replaceTls: (replacement) => tls.replace(replacement),
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
