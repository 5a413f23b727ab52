/**
 * A proxy worker: the data path, alone in its process or one of several under node:cluster.
 * Invariant: after `stop` no client connection is left, and no transaction that could end in time was cut off.
 */
import { createHash } from 'node:crypto';
import { createServer, type Server, type Socket } from 'node:net';
import type { WorkerConfig } from '../config.ts';
import { createLogger, type Logger } from '../log.ts';
import { mayBeExtended } from '../sql/gate.ts';
import { parseStatements } from '../sql/statements.ts';
import type { StatementRunner } from '../statements/caller-session.ts';
import { type Arrival, acceptClient } from './accept.ts';
import { upstreamAuthQuery } from './auth/auth-query.ts';
import { ClientAuthenticator } from './auth/client-authentication.ts';
import { Secrets } from './auth/secrets.ts';
import { ClientTls } from './client-tls.ts';
import { newCounters, samples } from './counters.ts';
import { firstPooledPid, Pools } from './pool/pools.ts';
import { servePooled } from './pool/serve.ts';
import { type ClientTlsSettings, defaultProxySettings, type ProxySettings } from './pool/settings.ts';
import { sendCancel, serveRelayed } from './relayed.ts';
import type { Session, SessionServices } from './session.ts';

export interface WorkerOptions {
  readonly log?: Logger;
  readonly settings?: ProxySettings;
  /** This worker's number from 0 and how many there are; default: the only one. */
  readonly worker?: number;
  readonly workers?: number;
  /** Offers a cancel request for a pooled client to the other workers. */
  cancelElsewhere?(packet: Buffer): Promise<void>;
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
  const pools = new Pools(settings, { upstream: config.upstream, log, worker: options.worker ?? 0, workers: options.workers ?? 1 });
  const authenticator = newAuthenticator(config, pools, log);
  const accept = {
    patience: options.authenticationTimeout ?? settings.clientLoginTimeout,
    tls,
    serve: (arrival: Arrival) => {
      const { user, database, replication } = arrival.identity;
      return replication || pools.modeOf(database, user) === 'session'
        ? serveRelayed(arrival, config.upstream, log)
        : servePooled(arrival, pools, authenticator, config.upstream);
    },
    async cancel(packet: Buffer) {
      const pid = packet.readUInt32BE(8);
      if (pid < firstPooledPid) await sendCancel(packet, config.upstream, pools.settings.cancelWaitTimeout, log);
      else if (!pools.cancel(pid, packet.subarray(12))) await options.cancelElsewhere?.(packet);
    },
  };
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
      pools.stop();
    },
  };
}

function newAuthenticator(config: WorkerConfig, pools: Pools, log: Logger): ClientAuthenticator {
  const run = upstreamAuthQuery(config.upstream);
  // Both may change while the worker runs.
  const options = {
    get users() {
      return pools.settings.users;
    },
    get authQuery() {
      return pools.settings.authQuery;
    },
    run,
    log,
  };
  const secrets = new Secrets(options);
  const mockKey = createHash('sha256').update(`mock authentication ${config.secretKey}`).digest();
  return new ClientAuthenticator({ secretOf: secrets.of, forget: secrets.forget, mockKey, log });
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
