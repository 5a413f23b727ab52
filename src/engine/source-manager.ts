/**
 * Every source of the database: its slot, its stream, what its origin says of its tables.
 * Invariant: a source that cannot run says so in its status row and is tried again with growing pauses; the others go on.
 */
import type { Client } from 'pg';
import type { Storage } from '../catalog/model.ts';
import { formatLsn, type Lsn } from '../replication/lsn.ts';
import { connectionProblem, openOrigin } from '../replication/origin.ts';
import { describeTables, type OriginTable } from '../replication/origin-tables.ts';
import type { RelationMessage } from '../replication/pgoutput.ts';
import { createSlot, dropSlot, freeSlot, lookUpSlot } from '../replication/slots.ts';
import { quoteIdentifier } from '../sql/quote.ts';
import type { EngineContext } from './context.ts';
import { type BrokenVersion, brokenVersions, columnPlaces } from './schema-change.ts';
import type { SourceRow } from './source-row.ts';
import { SourceRunner } from './source-runner.ts';

const firstPauseMs = 200;
const longestPauseMs = 10_000;

export interface ManagerHooks {
  /** Some runner has a batch or a new position. */
  readonly ready: () => void;
  /** Some runner has reached a position without changes. */
  readonly idle: () => void;
  /** Versions that can no longer be kept. */
  readonly broken: (versions: readonly BrokenVersion[]) => void;
}

interface Running {
  readonly source: SourceRow;
  runner: SourceRunner | null;
  pauseMs: number;
  retry: NodeJS.Timeout | null;
  /** Session that looks at the origin's tables now and then. */
  watcher: Client | null;
  stopped: boolean;
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
      if (now === undefined || now.addressKey !== entry.source.addressKey) {
        this.#running.delete(id);
        void this.#stop(entry);
      }
    }
    for (const source of sources.values()) {
      if (this.#running.has(source.id)) continue;
      const entry: Running = { source, runner: null, pauseMs: firstPauseMs, retry: null, watcher: null, stopped: false };
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
      const startLsn = await this.#prepareSlot(source);
      const runner: SourceRunner = new SourceRunner(source, startLsn, {
        resolve: (message) => this.#resolve(source, message),
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

  /** The slot, created when the source has no position yet, freed from a process that no longer leads. Answers where to begin. */
  async #prepareSlot(source: SourceRow): Promise<Lsn> {
    const { address } = source;
    if (address === null) throw new Error(source.addressProblem ?? 'the connection cannot be opened');
    const client = await openOrigin(address, { applicationName: 'millrace' });
    try {
      const slot = await lookUpSlot(client, source.slot);
      // Between epochs: what a former stream of this source still had under way is recorded by then, and will not be asked for again.
      const recorded = await this.#engine.exclusively(() => this.#recordedLsn(source.id));
      if (recorded !== null) {
        if (slot === undefined) {
          throw Object.assign(new Error(`replication slot "${source.slot}" no longer exists on the origin`), { code: '42704' });
        }
        if (slot.walStatus === 'lost') {
          throw Object.assign(
            new Error(`replication slot "${source.slot}" has been invalidated: ${slot.invalidationReason ?? 'its WAL was removed'}`),
            {
              code: '55000',
            },
          );
        }
        if (slot.activePid !== undefined) await freeSlot(client, source.slot);
        return recorded;
      }
      // Created before a crash that came before its position was recorded: nothing was read from it.
      if (slot !== undefined) await dropSlot(client, source.slot, { terminate: true });
      const { consistentPoint } = await createSlot(address, source.slot);
      await this.#engine.admin.query(
        'INSERT INTO millrace.source_progress (source_id, lsn) VALUES ($1, $2) ON CONFLICT (source_id) DO NOTHING',
        [source.id, formatLsn(consistentPoint)],
      );
      return consistentPoint;
    } finally {
      await client.end().catch(() => undefined);
    }
  }

  async #recordedLsn(sourceId: number): Promise<Lsn | null> {
    const result = await this.#engine.admin.query<{ lsn: string | null }>(
      "SELECT (lsn - '0/0'::pg_lsn)::text AS lsn FROM millrace.source_progress WHERE source_id = $1",
      [sourceId],
    );
    const lsn = result.rows[0]?.lsn;
    return lsn === undefined || lsn === null ? null : BigInt(lsn);
  }

  async #status(source: SourceRow, status: string, error: string | null, code?: string): Promise<void> {
    await this.#engine.admin.query(
      `UPDATE millrace.source
          SET status = $2, error = $3, details = CASE WHEN $4::text IS NULL THEN NULL ELSE jsonb_build_object('code', $4::text) END, status_since = now()
        WHERE id = $1 AND status <> 'dropped' AND (status, error) IS DISTINCT FROM ($2::text, $3::text)`,
      [source.id, status, error, code ?? null],
    );
  }

  /** Storages that want rows of an origin table, with the places of their columns in its Relation message. */
  async #resolve(source: SourceRow, message: RelationMessage): Promise<{ storage: Storage; columns: number[]; spool: boolean }[]> {
    const storages = this.#storagesOf(source.id).filter(
      (storage) => storage.originOid === message.oid && ['copying', 'copied', 'live'].includes(storage.state),
    );
    if (storages.length === 0 || source.address === null) return [];
    const client = await openOrigin(source.address, { applicationName: 'millrace' });
    let origin: OriginTable | null;
    const types = new Map<string, string>();
    try {
      origin = (await describeTables(client, [message.oid], { publication: source.publication })).get(message.oid) ?? null;
      const formatted = await client.query<{ name: string; type: string }>(
        `SELECT c.name, pg_catalog.format_type(c.type, c.typmod) AS type
           FROM pg_catalog.json_to_recordset($1::json) AS c(name text, type oid, typmod integer)`,
        [JSON.stringify(message.columns.map((column) => ({ name: column.name, type: column.typeOid, typmod: column.typmod })))],
      );
      for (const row of formatted.rows) types.set(row.name, row.type);
    } finally {
      await client.end().catch(() => undefined);
    }
    const attnums = attnumsByName(storages, origin);
    const shape = {
      schema: message.schema,
      name: message.name,
      columns: message.columns.flatMap((column) => {
        const attnum = attnums.get(column.name);
        return attnum === undefined ? [] : [{ attnum, name: column.name, formattedType: types.get(column.name) ?? '' }];
      }),
    };
    return storages.map((storage) => {
      // Judged by what the origin has now: a message from before a column was added lacks it too, and that breaks nothing.
      const broken = brokenVersions(storage, this.#engine.state.tables.values(), origin, source.name);
      if (broken.length > 0) this.#hooks.broken(broken);
      const unusable = new Set(
        storage.columns
          .filter(
            (column) =>
              column.type !== 'text' &&
              shape.columns.some((now) => now.attnum === column.attnum && now.formattedType !== column.originType),
          )
          .map((column) => column.attnum),
      );
      return { storage, columns: columnPlaces(storage, message.columns, attnums, unusable), spool: storage.state !== 'live' };
    });
  }

  #storagesOf(sourceId: number): Storage[] {
    return [...this.#engine.state.storages.values()].filter((storage) => storage.sourceId === sourceId);
  }

  /** Asks every origin for the present shape of the tables in use: a DDL that no write follows is seen this way. */
  async watch(): Promise<void> {
    for (const entry of [...this.#running.values()]) {
      const { runner, source } = entry;
      if (runner === null || source.address === null) continue;
      const storages = this.#storagesOf(source.id).filter(
        (storage) => storage.state === 'live' || storage.state === 'copied' || storage.state === 'copying',
      );
      try {
        await this.#savePosition(source, runner);
        if (storages.length === 0) continue;
        entry.watcher ??= await openOrigin(source.address, { applicationName: 'millrace watch', statementTimeoutMs: 5_000 });
        await this.#watchTables(entry.watcher, source, storages);
      } catch (error) {
        void entry.watcher?.end().catch(() => undefined);
        entry.watcher = null;
        this.#engine.log.debug({ source: source.name, err: error }, 'origin cannot be watched');
      }
    }
  }

  async #watchTables(client: Client, source: SourceRow, storages: readonly Storage[]): Promise<void> {
    const tables = await describeTables(client, [...new Set(storages.map((storage) => storage.originOid))], {
      publication: source.publication,
    });
    for (const storage of storages) {
      const origin = tables.get(storage.originOid) ?? null;
      const broken = brokenVersions(storage, this.#engine.state.tables.values(), origin, source.name);
      if (broken.length > 0) this.#hooks.broken(broken);
      else if (origin !== null && !origin.published) this.#hooks.broken(unpublished(storage, this.#engine, source));
      if (origin !== null && (origin.schema !== storage.originSchema || origin.name !== storage.originName)) {
        await this.#engine.admin.query('UPDATE millrace.storage SET origin_schema = $2, origin_name = $3 WHERE id = $1', [
          storage.id,
          origin.schema,
          origin.name,
        ]);
        this.#engine.wake();
      }
    }
  }

  async #savePosition(source: SourceRow, runner: SourceRunner): Promise<void> {
    runner.requestPosition();
    this.#engine.metrics[`millrace_replication_lag_bytes{source=${JSON.stringify(source.name)}}`] = Number(
      runner.received - runner.applied,
    );
    await this.#engine.admin.query(
      `INSERT INTO millrace.source_position (source_id, origin_lsn, reached_lsn) VALUES ($1, $2, $3)
       ON CONFLICT (source_id) DO UPDATE SET origin_lsn = excluded.origin_lsn, reached_lsn = excluded.reached_lsn, heard_at = now()
       WHERE (source_position.origin_lsn, source_position.reached_lsn) IS DISTINCT FROM (excluded.origin_lsn, excluded.reached_lsn)`,
      [source.id, formatLsn(runner.received), formatLsn(runner.applied)],
    );
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
    } finally {
      await client.end().catch(() => undefined);
    }
  }
}

/** Names of columns, in the order they are to be believed: as the origin has them now, else as they were last known. */
function attnumsByName(storages: readonly Storage[], origin: OriginTable | null): Map<string, number> {
  const attnums = new Map<string, number>();
  for (const storage of storages) for (const column of storage.columns) attnums.set(column.name, column.attnum);
  if (origin === null) return attnums;
  // A name that now belongs to another column (dropped and added again) must not find the old one.
  for (const column of origin.columns) {
    for (const [name, attnum] of attnums)
      if (attnum === column.attnum && name !== column.name && !origin.columns.some((other) => other.name === name))
        attnums.set(name, attnum);
    attnums.set(column.name, column.attnum);
  }
  return attnums;
}

function unpublished(storage: Storage, engine: EngineContext, source: SourceRow): BrokenVersion[] {
  const reference = `${quoteIdentifier(storage.originSchema)}.${quoteIdentifier(storage.originName)}`;
  return [...engine.state.tables.values()]
    .filter((table) => table.storageId === storage.id)
    .map((table) => ({
      relationId: table.id,
      error: {
        code: '42704',
        message: `source table ${storage.originSchema}.${storage.originName} is no longer in publication "${source.publication}"`,
        detail: 'Changes made since it was taken out are not known here.',
        hint: `On the origin: ALTER PUBLICATION ${quoteIdentifier(source.publication)} ADD TABLE ${reference}; then here: DROP TABLE {relation} CASCADE; CREATE TABLE {relation} FROM SOURCE ${source.name} (REFERENCE ${reference});`,
      },
    }));
}
