/**
 * Every source of the database: its slot, its stream, what its origin says of its tables.
 * Invariant: a source that cannot run says so in its status row and is tried again with growing pauses; the others go on.
 */
import pg, { type Client } from 'pg';
import type { Storage } from '../catalog/model.ts';
import type { ServerAddress } from '../config.ts';
import { installDdlMessages, type Publication, removeDdlMessages, sentAs } from '../replication/ddl-messages.ts';
import { formatLsn, type Lsn } from '../replication/lsn.ts';
import { connectionProblem, openOrigin } from '../replication/origin.ts';
import { identifyOrigin, type OriginIdentity } from '../replication/origin-identity.ts';
import { describeTables, listPublished, type OriginTable, shapeOf, type TableShape } from '../replication/origin-tables.ts';
import { createSlot, dropSlot, freeSlot, lookUpSlot, type SlotInfo } from '../replication/slots.ts';
import { loadPostgresParser } from '../sql/postgres-parser.ts';
import type { ShapeStep } from './change-batch.ts';
import type { EngineContext } from './context.ts';
import { reach } from './fault-points.ts';
import { followShape, type NewShape, StoragesAhead } from './follow-shape.ts';
import { incompleteVersions, notYetMissed } from './left-out.ts';
import type { Broken } from './missed-rows.ts';
import { type Learned, OriginHistory, recordVersions } from './origin-history.ts';
import { type OriginLostError, whyLost } from './origin-lost.ts';
import { resolveRelation, storagesOf } from './relation-targets.ts';
import { beginResync } from './resync.ts';
import { brokenVersions, versionsOf } from './schema-change.ts';
import { reachedLsn, recordedLsn, savePosition } from './source-position.ts';
import type { SourceRow } from './source-row.ts';
import { SourceRunner } from './source-runner.ts';
import { successors } from './successors.ts';
import { type PublishedChanges, unsent } from './unpublished.ts';
import { watchTables } from './watch-tables.ts';
import { watchWal } from './watch-wal.ts';

const firstPauseMs = 200;
const longestPauseMs = 10_000;

export interface ManagerHooks {
  /** Some runner has a batch or a new position. */
  readonly ready: () => void;
  /** Some runner has reached a position without changes. */
  readonly idle: () => void;
  /** The catalog is to be read at once. */
  readonly reload: () => Promise<void>;
  /** What can no longer be kept. */
  readonly broken: (broken: readonly Broken[]) => void;
}

interface Running {
  source: SourceRow;
  runner: SourceRunner | null;
  pauseMs: number;
  retry: NodeJS.Timeout | null;
  /** Session that looks at the origin's tables now and then. */
  watcher: Client | null;
  /** It has been said that the origin keeps much WAL. */
  warned: boolean;
  /** A look at it is under way. */
  watching: boolean;
  stopped: boolean;
  /** What the stream has told of shapes and has not reached storage. */
  ahead: StoragesAhead;
}

export class SourceManager {
  readonly #engine: EngineContext;
  readonly #hooks: ManagerHooks;
  readonly #running = new Map<number, Running>();

  constructor(engine: EngineContext, hooks: ManagerHooks) {
    this.#engine = engine;
    this.#hooks = hooks;
  }

  runners(): SourceRunner[] {
    return [...this.#running.values()].flatMap((entry) => (entry.runner === null ? [] : [entry.runner]));
  }

  runner(sourceId: number): SourceRunner | null {
    return this.#running.get(sourceId)?.runner ?? null;
  }

  /** Starts sources that are new, restarts those whose connection changed, stops those that are gone. */
  reconcile(): void {
    const { sources } = this.#engine.state;
    for (const [id, entry] of this.#running) {
      const now = sources.get(id);
      const asked = now?.resyncRequested === true && !entry.source.resyncRequested;
      if (now === undefined || now.addressKey !== entry.source.addressKey || asked) {
        this.#running.delete(id);
        void this.#stop(entry);
      }
    }
    for (const source of sources.values()) {
      if (this.#running.has(source.id)) continue;
      const entry: Running = {
        source,
        runner: null,
        pauseMs: firstPauseMs,
        retry: null,
        watcher: null,
        warned: false,
        watching: false,
        stopped: false,
        ahead: new StoragesAhead(),
      };
      this.#running.set(source.id, entry);
      void this.#start(entry);
    }
  }

  async stopAll(): Promise<void> {
    const entries = [...this.#running.values()];
    this.#running.clear();
    await Promise.all(entries.map((entry) => this.#stop(entry)));
  }

  async #stop(entry: Running): Promise<void> {
    entry.stopped = true;
    if (entry.retry !== null) clearTimeout(entry.retry);
    void entry.watcher?.end().catch(() => undefined);
    await entry.runner?.stop().catch(() => undefined);
    entry.runner = null;
  }

  async #start(entry: Running): Promise<void> {
    const { source } = entry;
    try {
      const { startLsn, history } = await this.#prepareSlot(source);
      entry.source = { ...source, resyncRequested: false };
      const ahead = new StoragesAhead();
      entry.ahead = ahead;
      const report = this.#hooks.broken;
      const follow = (shape: NewShape): readonly ShapeStep[] => followShape(this.#engine, source, ahead, shape, report);
      const runner: SourceRunner = new SourceRunner(source, startLsn, history, {
        resolve: (message, place) =>
          resolveRelation(this.#engine, source, message, place, {
            ahead: (storage) => ahead.of(storage),
            note: (step) => ahead.note(step),
            follow,
            report,
          }),
        reshaped: follow,
        changed: (oid, shape) => this.#changed(source, ahead, oid, shape),
        published: (publication) => this.#published(source, ahead, ({ originOid }) => publishedChanges(publication, originOid)),
        unpublished: (table) =>
          this.#published(source, ahead, ({ originOid, sentAs: before }) => ({ published: originOid !== table, sentAs: before })),
        leftOut: (storage, attnums) => {
          report(incompleteVersions(storage, attnums, this.#engine, source));
          return notYetMissed(this.#engine.state, storage, attnums);
        },
        ready: this.#hooks.ready,
        idle: this.#hooks.idle,
        failed: (error) => {
          if (entry.runner === runner) void this.#failed(entry, error);
        },
      });
      await runner.start();
      if (entry.stopped) {
        await runner.stop();
        return;
      }
      entry.runner = runner;
      entry.pauseMs = firstPauseMs;
      await this.#status(source, 'running', null);
      this.#engine.log.info({ source: source.name, lsn: formatLsn(startLsn) }, 'source is streaming');
      this.#engine.wake();
    } catch (error) {
      await this.#failed(entry, error);
    }
  }

  async #failed(entry: Running, error: unknown): Promise<void> {
    if (entry.stopped) return;
    const { runner } = entry;
    entry.runner = null;
    await runner?.stop().catch(() => undefined);
    const problem = connectionProblem(error);
    this.#engine.log.warn({ source: entry.source.name, code: problem.code, problem: problem.message }, 'source is stalled');
    // What the runner had decoded and not handed over comes again from the slot; an epoch left open for it must not commit.
    this.#hooks.ready();
    await this.#status(entry.source, 'stalled', problem.message, problem.code).catch(() => undefined);
    if (entry.stopped) return;
    entry.retry = setTimeout(() => {
      entry.retry = null;
      if (!entry.stopped) void this.#start(entry);
    }, entry.pauseMs);
    entry.pauseMs = Math.min(entry.pauseMs * 2, longestPauseMs);
  }

  /** The slot, created when the source has no position yet, freed from a process that no longer leads. Answers where to begin, and what is known of the tables there. */
  async #prepareSlot(source: SourceRow): Promise<{ readonly startLsn: Lsn; readonly history: OriginHistory }> {
    const { address } = source;
    if (address === null) throw new Error(source.addressProblem ?? 'the connection cannot be opened');
    await loadPostgresParser();
    const client = await openOrigin(address, { applicationName: 'millrace' });
    try {
      const identity = await identifyOrigin(address);
      const slot = await lookUpSlot(client, source.slot);
      const tells = await installDdlMessages(client);
      if (!tells)
        this.#engine.log.info({ source: source.name }, 'the origin does not tell of DDL: the role may not create event triggers there');
      // Between epochs: what a former stream of this source still had under way is recorded by then, and will not be asked for again.
      const recorded = await this.#engine.exclusively(() => recordedLsn(this.#engine, source.id));
      if (recorded !== null) {
        const lost = whyLost(source, slot, identity, { applied: recorded, reached: await reachedLsn(this.#engine, source.id, recorded) });
        if (lost !== null && (!lost.isMendable || !(source.autoResync || source.resyncRequested))) throw lost;
        if (lost !== null || source.resyncRequested) return await this.#resync(client, { ...source, address }, slot, identity, tells, lost);
        if (source.timeline !== identity.timeline)
          await this.#engine.admin.query('UPDATE millrace.source SET timeline = $2 WHERE id = $1', [source.id, identity.timeline]);
        if (slot?.activePid !== undefined) await freeSlot(client, source.slot);
        return { startLsn: recorded, history: await this.#history(client, source, tells, recorded) };
      }
      // Created before a crash that came before its position was recorded: nothing was read from it.
      if (slot !== undefined) await dropSlot(client, source.slot, { terminate: true });
      const { consistentPoint } = await createSlot(address, source.slot, { failover: true });
      reach('slot.created');
      await this.#engine.admin.query(
        'UPDATE millrace.source SET timeline = $2, system_identifier = coalesce(system_identifier, $3) WHERE id = $1',
        [source.id, identity.timeline, identity.systemIdentifier],
      );
      await this.#engine.admin.query(
        'INSERT INTO millrace.source_progress (source_id, lsn) VALUES ($1, $2) ON CONFLICT (source_id) DO NOTHING',
        [source.id, formatLsn(consistentPoint)],
      );
      reach('slot.recorded');
      return { startLsn: consistentPoint, history: await this.#history(client, source, tells, consistentPoint) };
    } finally {
      await client.end().catch(() => undefined);
    }
  }

  /** Every table is copied anew beside what there is: from a new slot where the old one is of no use. */
  async #resync(
    client: Client,
    source: SourceRow & { readonly address: ServerAddress },
    slot: SlotInfo | undefined,
    identity: OriginIdentity,
    tells: boolean,
    lost: OriginLostError | null,
  ): Promise<{ readonly startLsn: Lsn; readonly history: OriginHistory }> {
    this.#engine.log.warn({ source: source.name, reason: lost?.message ?? 'ALTER SOURCE .. RESYNC' }, 'a source is resynchronised');
    if (lost !== null && slot !== undefined) await dropSlot(client, source.slot, { terminate: true });
    else if (slot?.activePid !== undefined) await freeSlot(client, source.slot);
    reach('resync.slot-dropped');
    const begins = lost === null ? null : (await createSlot(source.address, source.slot, { failover: true })).consistentPoint;
    reach('resync.slot-made');
    await this.#engine.exclusively(async () => {
      await this.#hooks.reload();
      const gone = await successors(this.#engine, client, source);
      const oids = storagesOf(this.#engine, source.id).map(({ originOid }) => originOid);
      const there = await describeTables(client, [...new Set(oids)], { publication: source.publication });
      await beginResync(this.#engine, source, begins, identity.timeline, { gone, there });
      await this.#hooks.reload();
    });
    reach('resync.marked');
    const startLsn = begins ?? (await recordedLsn(this.#engine, source.id)) ?? 0n;
    const history = await this.#history(client, source, tells, startLsn);
    if (begins === null) return { startLsn, history };
    // What changed while nobody listened.
    await this.#learnPublished(client, source, history, startLsn, 'catalog');
    return { startLsn, history };
  }

  /** What was told before; for a source that begins, the tables of its publication as they are now: what changed since the slot was made is told again. */
  async #history(client: Client, source: SourceRow, tells: boolean, startLsn: Lsn): Promise<OriginHistory> {
    const told = await this.#engine.admin.query<{ shape: TableShape }>(
      `SELECT v.shape
         FROM (SELECT DISTINCT ON (table_oid) shape FROM millrace.origin_table_version WHERE source_id = $1 ORDER BY table_oid, commit_lsn DESC, ordinal DESC) v
        WHERE v.shape IS NOT NULL`,
      [source.id],
    );
    const history = new OriginHistory(
      source.id,
      tells,
      told.rows.map(({ shape }) => shape),
    );
    if (told.rows.length > 0) return history;
    await this.#learnPublished(client, source, history, startLsn, 'start');
    return history;
  }

  /** The tables of the publication as they are now, from this position on; written down at once: no epoch brings them. */
  async #learnPublished(client: Client, source: SourceRow, history: OriginHistory, lsn: Lsn, from: Learned['from']): Promise<void> {
    const published = await listPublished(client, source.publication);
    const tables = await describeTables(
      client,
      published.map(({ oid }) => oid),
    );
    const learned: Learned = { from, tag: null, by: null, at: null };
    const versions = [...tables.values()].flatMap((table) => history.learn(shapeOf(table), { commitLsn: lsn, ordinal: 0 }, learned) ?? []);
    for (const { sql, params } of recordVersions(versions)) await this.#engine.admin.query(sql, [...(params ?? [])]);
  }

  async #status(source: SourceRow, status: string, error: string | null, code?: string): Promise<void> {
    await this.#engine.admin.query(
      `UPDATE millrace.source
          SET status = $2, error = $3, details = CASE WHEN $4::text IS NULL THEN NULL ELSE jsonb_build_object('code', $4::text) END, status_since = now()
        WHERE id = $1 AND status <> 'dropped' AND (status, error) IS DISTINCT FROM ($2::text, $3::text)`,
      [source.id, status, error, code ?? null],
    );
  }

  /** What the stream tells of a table. A storage that is not live yet may be newer than that: it is judged by the origin's catalog. */
  #changed(source: SourceRow, ahead: StoragesAhead, oid: number, shape: TableShape | null): void {
    for (const storage of storagesOf(this.#engine, source.id)) {
      if (storage.originOid !== oid || storage.state !== 'live' || storage.stale) continue;
      const broken = brokenVersions(ahead.of(storage), versionsOf(this.#engine.state, storage), shape, source.name);
      if (broken.length > 0) this.#hooks.broken(broken);
    }
  }

  /**
   * What the publication publishes from here on: a table that it lost is told of although it may be back by the time its catalog is looked at. What is being
   * copied is copied again: should the table still be out of the publication then, its catalog tells.
   */
  #published(source: SourceRow, ahead: StoragesAhead, changesOf: (storage: Storage) => PublishedChanges): readonly ShapeStep[] {
    const steps: ShapeStep[] = [];
    for (const storage of storagesOf(this.#engine, source.id)) {
      const missed = unsent(storage, changesOf(storage), source);
      if (missed === null) continue;
      if (storage.state === 'live') this.#hooks.broken([missed]);
      else if (storage.state === 'copying' || storage.state === 'copied') steps.push({ kind: 'copy again', storageId: storage.id });
    }
    for (const step of steps) ahead.note(step);
    return steps;
  }

  /** Asks every origin for the present shape of the tables in use: a DDL that no write follows is seen this way. */
  async watch(): Promise<void> {
    await Promise.all([...this.#running.values()].map((entry) => this.#watchOne(entry)));
  }

  /** One origin that does not answer keeps no other waiting. */
  async #watchOne(entry: Running): Promise<void> {
    const { runner, source } = entry;
    if (runner === null || source.address === null || entry.watching) return;
    entry.watching = true;
    const storages = storagesOf(this.#engine, source.id).filter(
      (storage) => storage.state === 'live' || storage.state === 'copied' || storage.state === 'copying',
    );
    try {
      await savePosition(this.#engine, source, runner);
      entry.watcher ??= await openOrigin(source.address, { applicationName: 'millrace watch', statementTimeoutMs: 5_000 });
      entry.warned = await watchWal(this.#engine, entry.watcher, { source, runner, warned: entry.warned });
      const { ahead } = entry;
      const broken = storages.length === 0 ? [] : await watchTables(this.#engine, entry.watcher, { source, runner, ahead }, storages);
      if (broken.length > 0) this.#hooks.broken(broken);
    } catch (error) {
      void entry.watcher?.end().catch(() => undefined);
      entry.watcher = null;
      this.#engine.log.debug({ source: source.name, err: error }, 'origin cannot be watched');
      // An error is an answer.
      if (!(error instanceof pg.DatabaseError)) runner.unanswered();
    } finally {
      entry.watching = false;
    }
  }

  /** The origin's view of a table for its first copy; null when it is gone. */
  async describe(source: SourceRow, oid: number): Promise<OriginTable | null> {
    if (source.address === null) return null;
    const client = await openOrigin(source.address, { applicationName: 'millrace' });
    try {
      return (await describeTables(client, [oid], { publication: source.publication })).get(oid) ?? null;
    } finally {
      await client.end().catch(() => undefined);
    }
  }

  /** Drops the slot of a source that is gone; an origin that cannot be reached keeps it, and that is logged. */
  async dropSlotOf(source: SourceRow): Promise<void> {
    const entry = this.#running.get(source.id);
    this.#running.delete(source.id);
    if (entry !== undefined) await this.#stop(entry);
    if (source.address === null) return;
    const client = await openOrigin(source.address, { applicationName: 'millrace' });
    try {
      await dropSlot(client, source.slot, { terminate: true });
      await removeDdlMessages(client);
    } finally {
      await client.end().catch(() => undefined);
    }
  }
}

/** Undefined: the publication is gone. */
function publishedChanges(publication: Publication | undefined, oid: number): PublishedChanges {
  return { published: publication?.tables.includes(oid) === true, sentAs: publication === undefined ? '' : sentAs(publication, oid) };
}
