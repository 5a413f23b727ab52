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
import { ConsoleHost } from './admin/host.ts';
import { loneWorker } from './admin/lone-worker.ts';
import type { AdminPort } from './admin/messages.ts';
import { newCounters, samples } from './counters.ts';
import { LiveClients } from './live-clients.ts';
import { LiveCommands } from './live-commands.ts';
import type { CommandOutcome, WorkerCommand, WorkerReport } from './pool/report.ts';
import { poolSamples } from './pool-samples.ts';
import type { Session, SessionServices } from './session.ts';

export interface WorkerOptions {
  readonly log?: Logger;
  /** How long a client may take until it is authenticated, in ms. Default: as client_login_timeout says. */
  readonly authenticationTimeout?: number;
  /** How long `stop` lets transactions go on, in ms. Default 10 s. */
  readonly drainTimeout?: number;
  /** The way to the other workers, for the admin console. Default: there are none. */
  readonly admin?: AdminPort;
}

export interface Worker {
  /** Where it listens; the port that was chosen when 0 was asked for. */
  readonly port: number;
  /** Prometheus samples: name -> value. */
  metrics(): Record<string, number>;
  report(): WorkerReport;
  /** Rejects with an Error of one line. Some commands take as long as clients take. */
  command(command: WorkerCommand): Promise<CommandOutcome>;
  /** A cancel request with this key came to one of the workers. */
  cancelConsole(key: string): void;
  /** Takes no more clients from now on. Those there are may stay until they leave, or until their transactions end. */
  closeDoor(until: 'clients' | 'transactions'): void;
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
  const live = new LiveClients();
  const commands = new LiveCommands(live, config.proxy);
  const worker: Pick<Worker, 'report' | 'command' | 'cancelConsole'> = {
    report() {
      const own = live.report(commands.isPaused);
      return { ...own, pools: [...own.pools, ...consoles.pools()], clients: [...own.clients, ...consoles.clients()] };
    },
    async command(command) {
      if (command.command === 'kill_client' && consoles.kill(command.id)) return { found: true };
      return await commands.run(command);
    },
    cancelConsole: (key) => consoles.cancel(key),
  };
  const consoles = new ConsoleHost({
    upstream: config.upstream,
    port: options.admin ?? loneWorker(worker),
    log,
    settings: () => commands.settings,
    newId: () => live.newId(),
  });
  const accept = {
    upstream: config.upstream,
    get patience() {
      return options.authenticationTimeout ?? commands.settings.clientLoginTimeout;
    },
    consoles,
    admit: commands.admit.bind(commands),
  };
  const server = createServer({ allowHalfOpen: true, noDelay: true, keepAlive: true }, (client) => {
    counters.connections++;
    counters.activeConnections++;
    sockets.add(client);
    starting.add(client);
    acceptClient(client, accept, services, {
      opened: (session, identity) => {
        starting.delete(client);
        sessions.add(session);
        commands.entered(live.opened(session, identity));
      },
      // Nobody waits for these when the worker stops.
      console: () => {
        starting.delete(client);
        sockets.delete(client);
      },
      closed: (session) => {
        counters.activeConnections--;
        sockets.delete(client);
        starting.delete(client);
        if (session !== null) {
          sessions.delete(session);
          live.closed(session);
        }
        if (sockets.size === 0) emptied();
      },
    });
  });
  await listen(server, config.listen);
  server.on('error', (error) => log.error({ err: error }, 'the listening socket failed'));
  const address = server.address();
  return {
    port: typeof address === 'object' && address !== null ? address.port : config.listen.port,
    metrics() {
      live.tick();
      return { ...samples(counters), ...poolSamples([...live.pools(commands.isPaused), ...consoles.pools()], live.stats()) };
    },
    ...worker,
    closeDoor(until) {
      server.close();
      for (const socket of starting) socket.destroy();
      if (until === 'transactions') for (const session of sessions) session.drain();
    },
    async stop(drainTimeout = options.drainTimeout ?? 10_000) {
      server.close();
      consoles.shutDown();
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
