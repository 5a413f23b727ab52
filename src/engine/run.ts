/**
 * The engine of one database: becomes leader, then turns what the streams bring into epochs.
 * Invariant: crash only. Whatever is unexpected ends the process; the next leader begins from what is committed.
 */
import type { Client } from 'pg';
import { ensureCatalog } from '../catalog/install.ts';
import type { EngineConfig } from '../config.ts';
import { createLogger } from '../log.ts';
import type { HoldStatements } from '../migration/hold.ts';
import { Migrations } from '../migration/migrations.ts';
import type { Lsn } from '../replication/lsn.ts';
import { connectRaw } from '../replication/raw-connection.ts';
import { connectPg } from '../replication/server-address.ts';
import type { RawConnection } from '../replication/session-contract.ts';
import { Wakeup } from '../wakeup.ts';
import { BaseCapture } from './base/capture.ts';
import { ChangeLogs } from './base/change-logs.ts';
import { BaseWatch } from './base/watch.ts';
import { catalogDigest, isSettled, type ReadCatalog, readCatalog } from './catalog-reader.ts';
import type { Batch } from './change-batch.ts';
import type { EngineContext } from './context.ts';
import { Cutovers } from './cutover.ts';
import { DeltaTables } from './delta-tables.ts';
import { Epoch } from './epoch.ts';
import { reach } from './fault-points.ts';
import { FlushWatch } from './flush-watch.ts';
import { Gathering } from './gathering.ts';
import { becomeLeader, startHeartbeat } from './leadership.ts';
import type { Broken } from './missed-rows.ts';
import { quickEpoch } from './quick-epoch.ts';
import { Reconciler } from './reconcile.ts';
import { RefreshLoop } from './refresh-loop.ts';
import { epochSettings } from './session-settings.ts';
import { SinkThread } from './sink-thread.ts';
import { SourceManager } from './source-manager.ts';
import type { SourceRunner } from './source-runner.ts';
import { lastFullMs } from './streams/bookkeeping.ts';
import { RefreshStatements } from './streams/refresh-statements.ts';
import { Subscriptions } from './subscriptions.ts';
import { ViewClock } from './view-clock.ts';

export interface EngineHooks {
  /** This process leads and every source has been started once. */
  ready(): void;
  metrics(values: Record<string, number>): void;
  /** The engine has ended by an error; the process should exit. */
  failed?(error: unknown): void;
  /** Has statements wait in the proxy while tables change. Default: they meet the locks. */
  readonly hold?: HoldStatements;
}

const watchEveryMs = 1000;
/** How often tables that are captured by triggers are looked at. */
const lookEveryMs = 250;
const tidyEveryMs = 30_000;
const lookAgainEveryMs = 3_000;
const flushLookMs = 100;
/** Time goes on for those who subscribe, also when nothing changes. */
const tickEveryMs = 500;

export async function runEngine(config: EngineConfig, hooks: EngineHooks): Promise<{ stop(): Promise<void> }> {
  const log = createLogger('engine').child({ database: config.database });
  const session = await connectRaw(config.upstream, {
    database: config.database,
    applicationName: 'millrace epochs',
    settings: epochSettings,
  });
  // By this name what is left of an engine is found.
  const applicationName = `millrace engine ${session.backendPid}`;
  const admin = await connectPg(config.upstream, { database: config.database, applicationName });
  const loop = new EngineLoop(config, hooks, log, admin, session);
  const heartbeat = await startHeartbeat(config.upstream, config.database, session.backendPid, (error) => loop.lost(error));
  await ensureCatalog(admin, config.secretKey);
  void loop.run();
  return {
    stop: async () => {
      await loop.stop();
      await heartbeat.stop();
    },
  };
}

class EngineLoop {
  readonly #config: EngineConfig;
  readonly #hooks: EngineHooks;
  readonly #log: ReturnType<typeof createLogger>;
  readonly #admin: Client;
  readonly #session: RawConnection;
  #stopping = false;
  #ended: Promise<void> = Promise.resolve();
  readonly #wakeup = new Wakeup();
  #catalogDue = true;
  #tasks: (() => Promise<void>)[] = [];
  #broken: Broken[] = [];
  #timers: NodeJS.Timeout[] = [];
  /** Why the engine is to end; null: it is not. */
  #failure: unknown = null;
  #over = false;
  readonly #gathering = new Gathering();
  readonly #flushes: FlushWatch;

  constructor(config: EngineConfig, hooks: EngineHooks, log: ReturnType<typeof createLogger>, admin: Client, session: RawConnection) {
    this.#config = config;
    this.#hooks = hooks;
    this.#log = log;
    this.#admin = admin;
    this.#session = session;
    this.#flushes = new FlushWatch(admin);
  }

  run(): Promise<void> {
    this.#ended = this.#lead().catch((error: unknown) => this.#end(error));
    return this.#ended;
  }

  /** The upstream does not answer: what waits for it would do so in vain. */
  lost(error: Error): void {
    this.#session.destroy(error);
    this.#end(error);
  }

  #end(error: unknown): void {
    if (this.#stopping || this.#over) return;
    this.#over = true;
    this.#log.error({ err: error }, 'engine ends');
    this.#hooks.failed?.(error);
  }

  async stop(): Promise<void> {
    this.#stopping = true;
    this.#kick();
    await this.#ended;
    for (const timer of this.#timers) clearInterval(timer);
    await this.#session.close().catch(() => undefined);
    await this.#admin.end().catch(() => undefined);
  }

  #fail(error: unknown): void {
    this.#failure ??= error;
    this.#kick();
  }

  #kick(): void {
    this.#wakeup.wake();
  }

  async #untilLook(ms: number): Promise<'go on' | 'end'> {
    if (!this.#stopping) this.#wakeup.forget();
    await this.#wakeup.pause(ms);
    return this.#stopping ? 'end' : 'go on';
  }

  async #lead(): Promise<void> {
    const token = await becomeLeader(this.#session, this.#log, (ms) => this.#untilLook(ms));
    if (token === null) return;
    const fail = (error: unknown): void => this.#fail(error);
    this.#session.onClose((error) => fail(error ?? new Error('the upstream closed the session')));
    this.#admin.on('error', fail);
    let takes: (payload: string | undefined) => boolean = () => false;
    this.#admin.on('notification', ({ payload }) => {
      if (!takes(payload)) this.#catalogDue = true;
      this.#kick();
    });
    await this.#admin.query('LISTEN millrace');

    const clock = new ViewClock();
    let catalog: ReadCatalog = await readCatalog(this.#admin, this.#config.secretKey);
    const database = await this.#admin.query<{ oid: string; version: string }>(
      "SELECT oid::text, current_setting('server_version_num') AS version FROM pg_database WHERE datname = current_database()",
    );
    const engine: EngineContext = {
      config: this.#config,
      log: this.#log,
      session: this.#session,
      admin: this.#admin,
      token,
      databaseOid: Number(database.rows[0]?.oid),
      serverVersion: Number(database.rows[0]?.version),
      state: catalog,
      metrics: {},
      deltas: new DeltaTables(),
      changes: new ChangeLogs(),
      refreshes: new RefreshStatements(),
      clean: new Set(),
      clock,
      exclusively: (task) =>
        new Promise((resolve, reject) => {
          this.#tasks.push(() => task().then(resolve, reject));
          this.#kick();
        }),
      reached: (runner, lsn) => this.#reached(engine, runner, lsn),
      whenFlushed: (then) => this.#flushes.call(then),
      wake: () => {
        this.#catalogDue = true;
        this.#kick();
      },
      outboxed: () => sinks.written(),
      fail,
    };
    const sinks = new SinkThread(engine);
    const capture = new BaseCapture(engine, { ready: () => this.#kick() });
    const refreshes = new RefreshLoop(engine, capture);
    takes = (payload) => refreshes.asked(payload);
    refreshes.memory.recall(await lastFullMs(this.#admin));
    const reload = async (): Promise<void> => {
      catalog = await readCatalog(this.#admin, this.#config.secretKey);
      engine.state = catalog;
      refreshes.memory.reloaded();
    };
    const sources = new SourceManager(engine, {
      reload,
      ready: () => this.#kick(),
      idle: () => {
        if ([...engine.state.storages.values()].some((storage) => storage.state === 'copied')) engine.wake();
      },
      broken: (versions) => {
        this.#broken.push(...versions);
        this.#kick();
      },
    });
    const reconciler = new Reconciler(engine, sources, capture, refreshes, reload);
    const cutovers = new Cutovers(engine, reload);
    const subscriptions = new Subscriptions(engine, reload);
    const migrations = new Migrations({
      upstream: this.#config.upstream,
      database: this.#config.database,
      databaseOid: engine.databaseOid,
      log: this.#log,
      wake: engine.wake,
      hold: this.#hooks.hold ?? null,
    });
    await cutovers.recover();
    await reconciler.recover();
    reach('leader.recovered');
    const follow = (): void => {
      reconciler.run(catalog);
      cutovers.run();
      subscriptions.run();
      sinks.follow();
      migrations.follow(catalog.migrations);
    };
    // NOTIFY is lost when the upstream restarts between two sessions; facades dropped outside Millrace never notify.
    // Where it can be, that is looked for beside the epochs: to read it all takes as long as ten of them.
    const look = async (): Promise<void> => {
      const isUnchanged = isSettled(catalog) && (await catalogDigest(this.#admin)) === catalog.digest;
      // What is being stopped must not be started again.
      if (this.#stopping) return;
      if (isUnchanged) follow();
      else engine.wake();
    };
    this.#timers.push(setInterval(() => void look().catch(fail), lookAgainEveryMs));
    this.#startTimers(engine, sources, capture, refreshes);
    this.#timers.push(setInterval(() => subscriptions.tick(), tickEveryMs));
    this.#hooks.ready();
    this.#log.info({ token: String(token) }, 'leading');

    const failed = (): unknown => this.#failure;
    while (!this.#stopping) {
      this.#wakeup.forget();
      if (failed() !== null) throw failed();
      if (this.#catalogDue) {
        this.#catalogDue = false;
        await reload();
        await reconciler.clear(catalog);
        if (await cutovers.clear(catalog.goneSinks)) await reload();
        follow();
      }
      for (const task of this.#tasks.splice(0)) {
        // What was said of a table before a resynchronisation of it ends is not to be said of it afterwards.
        await this.#failBroken(reconciler);
        await task();
      }
      await this.#failBroken(reconciler);
      const worked = await this.#work(engine, sources, reconciler, failed);
      const ticked = !this.#catalogDue && (await clock.work(engine));
      const refreshed = !this.#catalogDue && (await refreshes.work());
      if (!worked && !ticked && !refreshed && !this.#catalogDue && this.#tasks.length === 0)
        await this.#wakeup.pause(Math.min(5000, refreshes.pauseMs() ?? 5000, clock.pauseMs(engine.state) ?? 5000));
    }
    await capture.stop();
    await sources.stopAll();
    await sinks.stop();
    await migrations.stop();
  }

  #startTimers(engine: EngineContext, sources: SourceManager, capture: BaseCapture, refreshes: RefreshLoop): void {
    const bases = new BaseWatch();
    this.#timers.push(
      setInterval(() => void this.#flushes.look().catch((error: unknown) => engine.fail(error)), flushLookMs),
      setInterval(() => {
        this.#hooks.metrics({ ...engine.metrics });
        capture.watch();
        void bases
          .changed(this.#admin, engine.state)
          .then((changed) => changed && engine.wake())
          .catch((error: unknown) => engine.fail(error));
        void sources.watch().catch((error: unknown) => engine.fail(error));
      }, watchEveryMs),
      setInterval(() => capture.look(), lookEveryMs),
      setInterval(() => {
        void refreshes.tidy().catch((error: unknown) => engine.fail(error));
      }, tidyEveryMs),
    );
  }

  /** One epoch over whatever waits. False when nothing does. Plain loops: see quick-epoch.ts. */
  async #work(engine: EngineContext, sources: SourceManager, reconciler: Reconciler, failed: () => unknown): Promise<boolean> {
    await this.#gathering.pause(sources.runners());
    const taken: { readonly runner: SourceRunner; readonly batch: Batch }[] = [];
    let transactions = 0;
    for (const runner of sources.runners()) {
      const batch = runner.take();
      if (batch === null) continue;
      taken.push({ runner, batch });
      transactions += batch.transactions;
    }
    if (taken.length === 0) return false;
    this.#gathering.took(performance.now(), transactions);
    reach('small.batch-taken');
    // What a change of the origin's schema means is written before the rows that came after it can be read.
    await this.#failBroken(reconciler);
    const positions = new Map<number, Lsn>();
    const batches: Batch[] = [];
    for (const { runner, batch } of taken) {
      if (batch.endLsn === null) continue;
      positions.set(runner.source.id, batch.endLsn);
      batches.push(batch);
    }
    if (batches.length > 0) {
      if (!(await quickEpoch(engine, batches, positions))) {
        const epoch = await Epoch.begin(engine);
        for (const batch of batches) await epoch.apply(batch);
        await epoch.commit(positions);
      }
      for (const { runner, batch } of taken) if (batch.endLsn !== null) this.#reached(engine, runner, batch.endLsn);
    }
    for (const { runner, batch } of taken) if (batch.endLsn === null) await this.#large(engine, sources, runner, batch, failed);
    return true;
  }

  async #failBroken(reconciler: Reconciler): Promise<void> {
    if (this.#broken.length === 0) return;
    reach('ddl.epoch-waits');
    await reconciler.fail(this.#broken.splice(0));
    reach('ddl.versions-failed');
  }

  /** A transaction that comes in parts: its epoch stays open until its commit has come. */
  async #large(engine: EngineContext, sources: SourceManager, runner: SourceRunner, first: Batch, failed: () => unknown): Promise<void> {
    const epoch = await Epoch.begin(engine);
    let batch: Batch | null = first;
    reach('large.begun');
    for (;;) {
      for (const broken of this.#broken.splice(0)) await epoch.failAll(broken);
      await epoch.apply(batch);
      if (batch.endLsn !== null) break;
      reach('large.part-applied');
      batch = await this.#rest(runner, sources, failed);
      if (batch === null) {
        // The stream broke in the middle of a transaction: it comes again, whole.
        await this.#session.query('ROLLBACK');
        return;
      }
    }
    reach('large.last-applied');
    await epoch.commit(new Map([[runner.source.id, batch.endLsn]]));
    this.#reached(engine, runner, batch.endLsn);
  }

  #reached(engine: EngineContext, runner: SourceRunner, lsn: Lsn): void {
    runner.committed(lsn);
    reach('small.recorded');
    this.#flushes.call(() => runner.flushed(lsn));
    if (copiedOf(engine, runner.source.id)) this.#catalogDue = true;
  }

  /** The next part of a transaction whose epoch is open; null when its stream is gone. */
  async #rest(runner: SourceRunner, sources: SourceManager, failed: () => unknown): Promise<ReturnType<SourceRunner['take']>> {
    for (;;) {
      if (failed() !== null) throw failed();
      if (this.#stopping || sources.runner(runner.source.id) !== runner) return null;
      this.#wakeup.forget();
      const batch = runner.take();
      if (batch !== null) return batch;
      await this.#wakeup.pause(1000);
    }
  }
}

/** Whether a copy of the source waits for the stream to pass its snapshot. */
function copiedOf(engine: EngineContext, sourceId: number): boolean {
  for (const storage of engine.state.storages.values()) if (storage.sourceId === sourceId && storage.state === 'copied') return true;
  return false;
}
