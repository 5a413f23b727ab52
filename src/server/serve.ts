/**
 * The main process: brings everything up in order, keeps it up, brings it down in order.
 * Invariant: the ready line is printed when a client can connect, and not before; when this process is gone nothing it started remains.
 */
import { type ChildProcess, fork } from 'node:child_process';
import { availableParallelism } from 'node:os';
import { fileURLToPath } from 'node:url';
import type { ChildMessage, EngineConfig, WorkerConfig } from '../config.ts';
import { type HostPort, reason, showHostPort } from '../config-loading.ts';
import { type ServiceState, startHttp } from '../http/server.ts';
import { createLogger } from '../log.ts';
import type { ServeConfig } from '../serve-config.ts';
import { type Admin, createAdmin } from './admin.ts';
import { type DatabaseWatch, watchDatabases } from './databases.ts';
import { type Door, openDoor } from './door.ts';
import { tryBind } from './free-port.ts';
import { LiveSettings } from './live-settings.ts';
import { passHolds } from './pass-holds.ts';
import { loadSecretKey } from './secret-key.ts';
import { type Supervised, supervise } from './supervise.ts';
import { embedUpstream, type Upstream, useUpstream } from './upstream.ts';
import { showServer } from './upstream-facts.ts';
import { WorkerGroup } from './worker-group.ts';

/** When a worker that drains is ended by force: it ends its clients itself after 10 s. */
const drainPatience = 13_000;
const enginePatience = 10_000;

export interface Service {
  readonly listen: HostPort;
  readonly http: HostPort;
  /** Ends everything in order; called again, ends everything at once. */
  stop(): Promise<void>;
  /** Reads config file, auth_file and certificates again. What is wrong with them is in the log, and changes nothing. */
  reload(): void;
}

export interface ServeHooks {
  /** Millrace can no longer serve. */
  lost(message: string): void;
  /** An operator asks for the end over the admin console. */
  stop(): void;
}

/** Starts Millrace. Rejects with an error of one line when it cannot serve; nothing is left running then. `signal` ends a start that is under way. */
export async function serve(config: ServeConfig, hooks: ServeHooks, signal: AbortSignal): Promise<Service> {
  const log = createLogger('main');
  const undo: (() => Promise<void>)[] = [];
  try {
    const secretKey = loadSecretKey(config.dataDir, process.env);
    const listen = await bindable(config.listen, '--listen');
    const upstream =
      config.upstream === undefined ? await embedUpstream(config.dataDir, log, hooks.lost) : await useUpstream(config.upstream, log);
    undo.unshift(() => upstream.stop());
    warnOfOpenDoor(upstream, listen, log);
    signal.throwIfAborted();

    let door: Door | undefined;
    let engines: DatabaseWatch | undefined;
    const workers: Supervised[] = [];
    const state = (): ServiceState => describe(door !== undefined, workers, engines, upstream);
    const http = await startHttp(config.http, state).catch((error: unknown) => {
      throw new Error(bindProblem(config.http, '--http', error), { cause: error });
    });
    undo.unshift(() => http.close());

    for (const warning of config.proxy.warnings) log.warn(warning);
    const settings = new LiveSettings(config.proxy, config.proxySource);
    const group = new WorkerGroup(workers);
    const places = {
      listen_addr: listen.host,
      listen_port: String(listen.port),
      http: showHostPort({ host: config.http.host, port: http.port }),
      data_dir: config.dataDir,
      workers: String(config.workers),
    };
    const admin = createAdmin({ group, settings, places, log, stop: hooks.stop, closeDoor: () => door?.close() });
    undo.unshift(async () => admin.close());

    const workerConfig = (): WorkerConfig => ({ upstream: upstream.address, secretKey, proxy: settings.current });
    const startedWell = startWorkers(workers, config.workers, workerConfig, {
      message: (number, message) => {
        if (message.type === 'catalog-installed') engines?.installed(message.database);
        else if (message.type === 'ask') void answer(admin, message, workers[number - 1]);
        else group.received(number, message);
        if (message.type === 'ready') door?.knock();
      },
      ended: (number) => group.ended(number),
    });
    undo.unshift(async () => {
      for (const worker of workers) worker.kill();
    });
    await Promise.race([startedWell, aborted(signal)]);
    door = await openDoor(listen, workers, log).catch((error: unknown) => {
      throw new Error(bindProblem(listen, '--listen', error), { cause: error });
    });
    undo.unshift(async () => door?.close());
    engines = watchDatabases(
      upstream.address,
      (database) => startEngine({ upstream: upstream.address, database, secretKey, copies: config.copies }, group, log),
      log,
    );

    const boundHttp = { host: config.http.host, port: http.port };
    log.info(
      {
        listen: showHostPort(listen),
        http: showHostPort(boundHttp),
        upstream: upstream.embedded ? 'embedded' : showServer(upstream.address),
        version: upstream.version,
        workers: config.workers,
      },
      'ready',
    );
    const { user, database } = upstream.address;
    process.stdout.write(
      `Millrace is ready. Connect with: psql -h ${reachable(listen.host)} -p ${listen.port} -U ${shell(user)} ${shell(database)}\n`,
    );
    return {
      listen,
      http: boundHttp,
      stop: stopper(door, workers, engines, upstream, () => http.close(), log),
      reload: () => void admin.reload(),
    };
  } catch (error) {
    for (const step of undo) await step().catch(() => undefined);
    throw error;
  }
}

function aborted(signal: AbortSignal): Promise<never> {
  return new Promise((_, reject) => {
    const stop = (): void => reject(signal.reason);
    if (signal.aborted) stop();
    signal.addEventListener('abort', stop, { once: true });
  });
}

/** The first call ends things in order, so that nothing is lost; the second, from an operator who has waited enough, at once. */
function stopper(
  door: Door,
  workers: readonly Supervised[],
  engines: DatabaseWatch,
  upstream: Upstream,
  closeHttp: () => Promise<void>,
  log: ReturnType<typeof createLogger>,
): () => Promise<void> {
  let first: Promise<void> | undefined;
  const inOrder = async (): Promise<void> => {
    log.info('stopping');
    door.close();
    // Together: a source whose connection leads through this very proxy is one of the clients the workers wait for.
    await Promise.all([...workers.map((worker) => worker.stop(drainPatience)), engines.stop(enginePatience)]);
    await upstream.stop('fast');
    await closeHttp();
  };
  return () => {
    if (first === undefined) {
      first = inOrder();
      return first;
    }
    for (const worker of workers) worker.kill();
    engines.kill();
    return upstream.stop('immediate');
  };
}

const v8Flags = [
  // In MB. The default of 16 is as much as V8 lets a heap as small as ours grow from one full collection to the next, so that every collection of
  // young objects was followed by a full one: 12 ms every half second of an engine with one small transaction every 3 ms.
  '--max-semi-space-size=2',
  // V8 compiles and collects on threads of its own, four by default. One processor is left to those who wait for an answer.
  `--v8-pool-size=${Math.min(4, Math.max(1, availableParallelism() - 1))}`,
];

function spawnChild(file: string): ChildProcess {
  return fork(fileURLToPath(new URL(file, import.meta.url)), [], {
    stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
    execArgv: [...process.execArgv, ...v8Flags],
  });
}

/** A console of a worker has asked something. */
async function answer(
  admin: Admin,
  { id, request }: Extract<ChildMessage, { type: 'ask' }>,
  worker: Supervised | undefined,
): Promise<void> {
  worker?.tell({ type: 'answer', id, answer: await admin.handle(request) });
}

async function startWorkers(
  into: Supervised[],
  count: number,
  config: () => WorkerConfig,
  on: { message(number: number, message: ChildMessage): void; ended(number: number): void },
): Promise<void> {
  const log = createLogger('main');
  const failed = new Promise<never>((_, reject) => {
    for (let number = 1; number <= count; number++) {
      into.push(
        supervise({
          name: `worker ${number}`,
          spawn: () => spawnChild('worker-entry.js'),
          config: () => ({ ...config(), worker: number - 1, workers: count }),
          log,
          onEnd: () => on.ended(number),
          onMessage: (message) => {
            // Only the first start waits for this: later the supervisor tries again.
            if (message.type === 'fatal') reject(new Error(message.message));
            on.message(number, message);
          },
        }),
      );
    }
  });
  failed.catch(() => {});
  await Promise.race([Promise.all(into.map((worker) => worker.started)), failed]);
}

function startEngine(config: EngineConfig, group: WorkerGroup, log: ReturnType<typeof createLogger>): Supervised {
  const holds = passHolds(group, config.database);
  const engine = supervise({
    name: `engine of database "${config.database}"`,
    spawn: () => spawnChild('engine-entry.js'),
    config: () => config,
    log,
    onMessage: (message) => holds.received(message, (answer) => void engine.tell(answer)),
    onEnd: () => holds.ended(),
  });
  return engine;
}

function describe(isOpen: boolean, workers: readonly Supervised[], engines: DatabaseWatch | undefined, upstream: Upstream): ServiceState {
  const serving = isOpen && workers.some((worker) => worker.isReady());
  const missing = [
    ...(upstream.isRunning() ? [] : ['the embedded PostgreSQL']),
    ...(serving ? [] : ['the proxy']),
    ...(engines?.scanned() ? [] : ['a look through the databases of the upstream']),
    ...[...(engines?.engines.values() ?? [])].filter((engine) => !engine.isReady()).map((engine) => `the ${engine.name}`),
  ];
  const own = (child: Supervised): Record<string, number> => ({
    millrace_up: child.isReady() ? 1 : 0,
    millrace_restarts_total: child.restarts(),
    ...child.metrics(),
  });
  return {
    serving,
    missing,
    samples: [
      ...workers.map((worker, index) => ({ labels: { worker: String(index + 1) }, values: own(worker) })),
      ...[...(engines?.engines ?? [])].map(([database, engine]) => ({ labels: { engine: database }, values: own(engine) })),
    ],
  };
}

/** The address with its port made definite, after a look whether it can be bound: one line now instead of one from every worker. */
async function bindable(address: HostPort, flag: string): Promise<HostPort> {
  try {
    return { host: address.host, port: await tryBind(address.host, address.port) };
  } catch (error) {
    throw new Error(bindProblem(address, flag, error), { cause: error });
  }
}

function bindProblem(address: HostPort, flag: string, error: unknown): string {
  const place = showHostPort(address);
  switch ((error as NodeJS.ErrnoException).code) {
    case 'EADDRINUSE':
      return `cannot listen on ${place}: the port is in use (another Millrace? choose another with ${flag} HOST:PORT)`;
    case 'EACCES':
      return `cannot listen on ${place}: not permitted (ports below 1024 are for root; choose another with ${flag} HOST:PORT)`;
    case 'EADDRNOTAVAIL':
    case 'ENOTFOUND':
      return `cannot listen on ${place}: this machine has no such address (choose another with ${flag} HOST:PORT)`;
    default:
      return `cannot listen on ${place}: ${reason(error)}`;
  }
}

function warnOfOpenDoor(upstream: Upstream, listen: HostPort, log: ReturnType<typeof createLogger>): void {
  if (!upstream.embedded || /^(localhost|127\.|::1$)/.test(listen.host)) return;
  log.warn(
    { listen: showHostPort(listen) },
    'the embedded PostgreSQL asks for no password: whoever reaches this address is its superuser. Use --upstream with a server that has passwords, or let only trusted machines reach it',
  );
}

/** An address clients on this machine can type. */
function reachable(host: string): string {
  return host === '0.0.0.0' || host === '::' ? '127.0.0.1' : host;
}

function shell(word: string): string {
  return /^[\w.@%+:-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}
