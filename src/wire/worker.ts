/**
 * A proxy worker: the data path, alone in its process. It is handed connections that the main process has accepted.
 * Invariant: after `stop` no client connection is left, and no transaction that could end in time was cut off.
 */
import { createHmac, timingSafeEqual } from 'node:crypto';
import type { Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import type { WorkerConfig } from '../config.ts';
import type { ErrorFields } from '../errors.ts';
import { createLogger, type Logger } from '../log.ts';
import { mayBeExtended } from '../sql/gate.ts';
import { parseStatements } from '../sql/statements.ts';
import type { StatementRunner } from '../statements/caller-session.ts';
import { type Arrival, acceptClient } from './accept.ts';
import { ConsoleHost } from './admin/host.ts';
import { loneWorker } from './admin/lone-worker.ts';
import type { AdminPort } from './admin/messages.ts';
import { Admission } from './admission.ts';
import { upstreamAuthQuery } from './auth/auth-query.ts';
import { ClientAuthenticator } from './auth/client-authentication.ts';
import { Secrets } from './auth/secrets.ts';
import { ClientTls } from './client-tls.ts';
import { newCounters, samples } from './counters.ts';
import { cancelPacket } from './encode.ts';
import { LiveClients } from './live-clients.ts';
import { LiveCommands } from './live-commands.ts';
import { firstPooledPid, Pools } from './pool/pools.ts';
import type { CommandOutcome, WorkerCommand, WorkerReport } from './pool/report.ts';
import { servePooled } from './pool/serve.ts';
import { poolSamples } from './pool-samples.ts';
import { sendCancel, serveRelayed } from './relayed.ts';
import type { Session, SessionServices } from './session.ts';
import { StatementHolds } from './statement-holds.ts';
import { watchTimeouts } from './timeouts.ts';
import { keepAlive } from './upstream.ts';

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
  /** Serves a client. `connection`: nothing has been read from it. */
  take(connection: Socket): void;
  /** Prometheus samples: name -> value. */
  metrics(): Record<string, number>;
  report(): WorkerReport;
  /** Rejects with an Error of one line. Some commands take as long as clients take. */
  command(command: WorkerCommand): Promise<CommandOutcome>;
  /** A cancel request with this key (process id and secret, hex) came to one of the workers. */
  cancelHere(key: string): void;
  /** Takes no more clients from now on. Those there are may stay until they leave, or until their transactions end. */
  closeDoor(until: 'clients' | 'transactions'): void;
  /** Takes no more clients, ends idle sessions, lets transactions finish up to the deadline, then cuts the rest. */
  stop(drainTimeout?: number): Promise<void>;
}

export function runWorker(config: WorkerConfig, runner: StatementRunner, options: WorkerOptions = {}): Worker {
  const log = options.log ?? createLogger('proxy');
  const counters = newCounters();
  const holds = new StatementHolds(counters);
  const services: SessionServices = { runner, mayBeExtended, parseStatements, counters, holds, log };
  const sessions = new Set<Session>();
  const sockets = new Set<Socket>();
  /** Those among them that have no session yet. */
  const starting = new Set<Socket>();
  let emptied: () => void = () => undefined;
  const tls = new ClientTls(config.proxy.tls, log);
  const pools = new Pools(config.proxy, { upstream: config.upstream, log, worker: config.worker ?? 0, workers: config.workers ?? 1 });
  const authenticator = newAuthenticator(config, pools, log);
  const live = new LiveClients(pools);
  /** Ends a session in the middle of whatever it does; the server is told to give up. */
  const cutOff = (session: Session, error: ErrorFields): void => {
    const pooled = pools.client(session);
    const { backendKey, busy } = session.facts();
    if (pooled !== undefined) pools.interrupt(pooled);
    else if (busy && backendKey.length > 4) {
      void sendCancel(
        cancelPacket(backendKey.readInt32BE(0), backendKey.subarray(4)),
        config.upstream,
        pools.settings.cancelWaitTimeout,
        log,
      );
    }
    session.cutOff(error);
  };
  /** What is held goes to a server, where a cancel request finds it. `key`: process id and secret. Answers whose it was. */
  const letGo = (key: Buffer): Session | null => {
    const pooled = pools.clients.get(key.readUInt32BE(0))?.session;
    if (pooled?.letGo() === true) return pooled;
    for (const session of sessions) {
      const { backendKey } = session.facts();
      if (backendKey.length === key.length && timingSafeEqual(backendKey, key) && session.letGo()) return session;
    }
    return null;
  };
  /** A statement was sent to its server only when it was to be cancelled, and the cancel request may be there first, where it finds nothing to end. */
  const cancelAgain = async (session: Session, pid: number, secret: Buffer): Promise<void> => {
    const { answered } = session.facts().ledger;
    for (const ms of [10, 50, 250, 1_000]) {
      await sleep(ms);
      if (session.facts().ledger.answered !== answered || session.facts().client.destroyed) return;
      if (!pools.cancel(pid, secret)) await sendCancel(cancelPacket(pid, secret), config.upstream, pools.settings.cancelWaitTimeout, log);
    }
  };
  const commands = new LiveCommands(live, pools, tls, holds, cutOff);
  const admission = new Admission(pools, live.waiting, () => live.newId());
  const unwatch = watchTimeouts({
    settings: () => pools.settings,
    clients: () => live.clients.values(),
    observe: (client) => live.observe(client),
    end({ session, identity: { user, database } }, error) {
      log.info({ user, database, reason: error.message }, 'a client was ended');
      cutOff(session, error);
    },
  });
  const worker: Pick<Worker, 'report' | 'command' | 'cancelHere'> = {
    report() {
      const own = live.report(commands.isPaused);
      return { ...own, pools: [...own.pools, ...consoles.pools()], clients: [...own.clients, ...consoles.clients()] };
    },
    async command(command) {
      if (command.command === 'kill_client' && consoles.kill(command.id)) return { found: true };
      return await commands.run(command);
    },
    cancelHere(key) {
      consoles.cancel(key);
      const packet = Buffer.from(key, 'hex');
      const [pid, secret] = [packet.readUInt32BE(0), packet.subarray(4)];
      const held = holds.on ? letGo(packet) : null;
      pools.cancel(pid, secret);
      if (held !== null) void cancelAgain(held, pid, secret);
    },
  };
  const admin = options.admin ?? loneWorker(worker);
  const consoles = new ConsoleHost({
    upstream: config.upstream,
    port: admin,
    log,
    settings: () => pools.settings,
    newId: () => live.newId(),
  });
  const serve = async (arrival: Arrival): Promise<void> => {
    const { identity, socket } = arrival;
    const { user, database, replication } = identity;
    if (!replication && consoles.isFor(database)) {
      arrival.leave();
      await consoles.serve(socket, user, arrival.packet, arrival.rest, arrival.authenticated);
      return;
    }
    admission.enter(socket, identity);
    const wait = commands.admit(socket, identity);
    if (wait !== null) await arrival.excused(wait);
    const own = replication || pools.hasOwnServer(database, user);
    const turn = own ? admission.ownServer(socket, identity) : null;
    if (turn !== null) await arrival.excused(turn);
    if (arrival.isGone()) return;
    if (own) await serveRelayed(arrival, config.upstream, authenticator, log);
    else await servePooled(arrival, pools, authenticator, config.upstream);
  };
  const accept = {
    get patience() {
      return options.authenticationTimeout ?? pools.settings.clientLoginTimeout;
    },
    tls,
    serve,
    async cancel(packet: Buffer) {
      // Those that Millrace gives out begin beyond the process ids of any system; which worker gave it out is not known here.
      const ownServer = packet.readUInt32BE(8) < firstPooledPid;
      if (!ownServer || holds.on) await admin.ask({ ask: 'cancel', key: packet.toString('hex', 8) });
      if (ownServer) await sendCancel(packet, config.upstream, pools.settings.cancelWaitTimeout, log);
    },
  };
  let isOpen = true;
  const take = (client: Socket): void => {
    if (!isOpen) {
      client.destroy();
      return;
    }
    client.allowHalfOpen = true;
    client.setNoDelay(true).setKeepAlive(keepAlive.keepAlive, keepAlive.keepAliveInitialDelay);
    counters.connections++;
    counters.activeConnections++;
    sockets.add(client);
    starting.add(client);
    acceptClient(client, accept, services, {
      opened: (session, identity) => {
        starting.delete(client);
        sessions.add(session);
        admission.opened(session, identity);
        commands.entered(live.opened(session, identity));
      },
      // Nobody waits for these when the worker stops.
      left: () => {
        starting.delete(client);
        sockets.delete(client);
      },
      closed: (session) => {
        counters.activeConnections--;
        sockets.delete(client);
        starting.delete(client);
        if (session !== null) {
          sessions.delete(session);
          admission.closed(session);
          live.closed(session);
        }
        if (sockets.size === 0) emptied();
      },
    });
  };
  return {
    take,
    metrics() {
      live.tick();
      return { ...samples(counters), ...poolSamples([...live.pools(commands.isPaused), ...consoles.pools()], live.stats()) };
    },
    ...worker,
    closeDoor(until) {
      isOpen = false;
      for (const socket of starting) socket.destroy();
      if (until === 'transactions') for (const session of sessions) session.drain();
    },
    async stop(drainTimeout = options.drainTimeout ?? 10_000) {
      isOpen = false;
      unwatch();
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
  const mockKey = createHmac('sha256', config.secretKey).update('SCRAM of unknown roles').digest();
  return new ClientAuthenticator({ secretOf: secrets.of, isCertain: secrets.isCertain, forget: secrets.forget, mockKey, log });
}
