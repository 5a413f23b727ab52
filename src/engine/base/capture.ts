/**
 * Capture of changes of base tables from this database's own WAL: its slot, its publication, which tables are in it.
 * Invariant: what is captured follows from the catalog alone. Whenever changes may have been missed (slot or publication gone), the views that
 * wanted them are told so in the catalog before the stream goes on, and are rebuilt by difference.
 */
import type { Client } from 'pg';
import { type BaseTable, triggerTable } from '../../catalog/model.ts';
import { connectionProblem, openOrigin } from '../../replication/origin.ts';
import type { Execution } from '../../replication/session-contract.ts';
import { createSlot, dropSlot, freeSlot, lookUpSlot } from '../../replication/slots.ts';
import { parseSnapshot, type Snapshot } from '../../replication/snapshot-visibility.ts';
import { quoteIdentifier } from '../../sql/quote.ts';
import type { ReadCatalog } from '../catalog-reader.ts';
import type { CatalogState, EngineContext } from '../context.ts';
import { Epoch } from '../epoch.ts';
import { scheduleOf } from '../streams/due.ts';
import { addTable, CaptureRefusedError, forgetTable, identifyPartitions, removeTable } from './capture-sql.ts';
import { followColumns } from './delta-ddl.ts';
import { findTarget, flushedMarker, flushedMessages, loseDeltas, methodOf, writeMarker } from './facts.ts';
import { BaseRunner, StreamLostError } from './runner.ts';
import { capturedBases, inLine, wantedColumns } from './wanted.ts';

const firstPauseMs = 200;
const longestPauseMs = 10_000;

/** How long a busy stream may be left unread: where some view follows at once, and where none does. */
const [shortPauseMs, idlePauseMs] = [20, 50];
const patience = new WeakMap<CatalogState, number>();

function patienceMs(state: CatalogState): number {
  let ms = patience.get(state);
  if (ms === undefined) {
    ms = [...state.streams.values()].some((stream) => scheduleOf(stream).kind === 'calculated') ? shortPauseMs : idlePauseMs;
    patience.set(state, ms);
  }
  return ms;
}

export interface CaptureHooks {
  /** Transactions wait, or the stream has begun. */
  readonly ready: () => void;
}

export class BaseCapture {
  readonly #engine: EngineContext;
  readonly #hooks: CaptureHooks;
  #runner: BaseRunner | null = null;
  #work: Promise<void> = Promise.resolve();
  #busy = false;
  #again = false;
  #catalog: ReadCatalog | null = null;
  #pauseMs = firstPauseMs;
  #retry: NodeJS.Timeout | null = null;
  #stopped = false;
  #markers = 0;
  #looking = false;
  /** Base tables whose triggers have written down changes. */
  readonly touched = new Set<number>();
  /** Session for markers and look-ups, one at a time. */
  #client: Client | null = null;
  #asked: Promise<unknown> = Promise.resolve();
  /** Work on delta tables, one piece at a time: two sessions that make the same one would meet. */
  #turns: Promise<unknown> = Promise.resolve();

  constructor(engine: EngineContext, hooks: CaptureHooks) {
    this.#engine = engine;
    this.#hooks = hooks;
  }

  /** The stream, when it runs. */
  get runner(): BaseRunner | null {
    return this.#runner?.stopped === false ? this.#runner : null;
  }

  /** Brings slot, publication and tables in line with the catalog, beside epochs. */
  reconcile(catalog: ReadCatalog | null): void {
    this.#catalog = catalog;
    if (this.#stopped || catalog === null) return;
    if (this.#busy || this.#retry !== null) {
      this.#again = true;
      return;
    }
    this.#busy = true;
    this.#again = false;
    this.#work = this.#reconcile(catalog)
      .then(async () => {
        this.#pauseMs = firstPauseMs;
        if (this.runner !== null) await this.#status('running', null);
      })
      .catch((error: unknown) => this.#failed(error))
      .finally(() => {
        this.#busy = false;
        if (this.#again) this.reconcile(this.#catalog);
      });
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    if (this.#retry !== null) clearTimeout(this.#retry);
    await this.#runner?.stop();
    await this.#client?.end().catch(() => undefined);
    await this.#work.catch(() => undefined);
  }

  /** Whether changes of a base table can be taken in now. */
  serves(base: BaseTable): boolean {
    return base.state === 'captured' && (base.method === 'trigger' || this.runner !== null);
  }

  /**
   * A mark to be put into the WAL: `passed` resolves when the stream has come to it, so that every transaction before it is with the runner.
   * `statement` writes it, in any transaction; null: `write` has to be called.
   */
  marker(runner: BaseRunner): {
    readonly passed: Promise<void>;
    readonly statement: Execution | null;
    readonly write: () => Promise<void>;
  } {
    const marker = `${this.#engine.token}:${++this.#markers}`;
    const passed = runner.passed(marker);
    passed.catch(() => undefined);
    return {
      passed,
      statement: this.#engine.serverVersion >= flushedMessages ? flushedMarker(marker) : null,
      write: async () => {
        await this.#ask((client) => writeMarker(client, marker)).catch((error: unknown) => {
          throw new StreamLostError('a marker could not be written', { cause: error });
        });
      },
    };
  }

  /** Called about every second. */
  watch(): void {
    const { runner } = this;
    if (runner === null) return;
    runner.requestPosition();
    this.#engine.metrics['millrace_base_lag_bytes'] = runner.lagBytes;
    this.#engine.metrics['millrace_base_waiting_transactions'] = runner.waiting.length;
  }

  /** Questions are asked one after the other; when the session is gone the stream is taken for lost. */
  #ask<T>(work: (client: Client) => Promise<T>): Promise<T> {
    const asked = this.#asked.then(async () => {
      const client = this.#client;
      if (client === null) throw new StreamLostError('the session for base tables is closed');
      return await work(client);
    });
    this.#asked = asked.catch(() => undefined);
    return asked;
  }

  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const done = this.#turns.then(work);
    this.#turns = done.catch(() => undefined);
    return done;
  }

  async #openClient(): Promise<Client> {
    const { upstream, database } = this.#engine.config;
    await this.#client?.end().catch(() => undefined);
    const client = await openOrigin(upstream, { database, applicationName: 'millrace markers' });
    this.#client = client;
    client.on('error', (error) => {
      if (this.#client !== client) return;
      this.#client = null;
      void this.#runner?.stop();
      this.#failed(error);
    });
    return client;
  }

  /** Called a few times a second: sees what triggers have written. Does nothing where nothing is captured by triggers. */
  look(): void {
    const bases = [...this.#engine.state.bases.values()].filter((base) => base.state === 'captured' && base.method === 'trigger');
    if (bases.length === 0 || this.#looking || this.#stopped || this.#retry !== null) return;
    this.#looking = true;
    const work = async (): Promise<void> => {
      if (this.#client === null) await this.#openClient();
      const exists = bases.map((base) => `SELECT ${base.id} AS id WHERE EXISTS (SELECT FROM ${triggerTable(base.id)})`);
      const found = await this.#ask((client) => client.query<{ id: number }>(exists.join(' UNION ALL ')));
      for (const { id } of found.rows) this.touched.add(id);
      if (found.rows.length > 0) this.#hooks.ready();
    };
    work()
      // A table that was just dropped, a session that is gone: next time.
      .catch((error: unknown) => this.#engine.log.debug({ err: error }, 'tables captured by triggers cannot be looked at'))
      .finally(() => {
        this.#looking = false;
      });
  }

  #names(): { slot: string; publication: string } {
    const name = `millrace_base_${this.#engine.databaseOid}`;
    return { slot: name, publication: name };
  }

  async #reconcile(catalog: ReadCatalog): Promise<void> {
    const wanted = capturedBases(catalog);
    const present = [...catalog.bases.values()];
    const captured = present.filter((base) => base.state === 'captured');
    const exists = this.#runner !== null || captured.length > 0 || catalog.baseCapture;
    if (wanted.size === 0 && !exists && catalog.unusedBases.length === 0) return;
    // The catalog is read often; a session is opened only when there is something to bring in line.
    const streamed = captured.some((base) => base.method === 'wal');
    const settled = streamed === (this.runner !== null) && (streamed || !catalog.baseCapture) && catalog.unusedBases.length === 0;
    if (settled && present.every((base) => inLine(base, wanted))) return;
    const client = await openOrigin(this.#engine.config.upstream, {
      database: this.#engine.config.database,
      applicationName: 'millrace capture',
    });
    try {
      const unmet = present.some((base) => wanted.has(base.id) && base.state !== 'captured');
      const method = unmet ? await methodOf(client) : 'wal';
      const streams = present.some((base) => wanted.has(base.id) && (base.state === 'captured' ? base.method : method) === 'wal');
      if (streams && this.runner === null) await this.#startStream(client, present);
      let changed = false;
      let locked: unknown = null;
      for (const base of present) {
        if (wanted.has(base.id) && base.state !== 'captured' && (method === 'trigger' || this.runner !== null)) {
          try {
            changed = (await this.#inTurn(() => this.#add(client, method, base))) || changed;
          } catch (error) {
            // Someone writes to it, or has locked it: again later, and the others now.
            if (!(error instanceof Error && 'code' in error && error.code === '55P03')) throw error;
            locked = error;
          }
        } else if (wanted.has(base.id) && base.state === 'captured' && base.parts !== base.partsNow && base.partsNow !== null) {
          await identifyPartitions(client, base.tableOid).catch(async (error: unknown) => {
            await client.query('ROLLBACK');
            this.#engine.log.debug({ table: base.name, err: error }, 'replica identity of a partition cannot be set yet');
          });
        } else if (!wanted.has(base.id) && base.state === 'captured') {
          await this.#inTurn(() => removeTable(client, this.#names().publication, base));
          if (base.identityBefore !== null)
            this.#engine.log.info({ table: base.name }, 'replica identity of a base table is as it was before');
          changed = true;
        }
      }
      for (const base of catalog.unusedBases) {
        changed = (await this.#inTurn(() => forgetTable(client, base.id))) || changed;
      }
      if (!streams && (this.#runner !== null || catalog.baseCapture)) await this.#end(client);
      if (changed) {
        this.#engine.wake();
        await this.#runner?.retarget();
      }
      if (locked !== null) throw locked;
    } finally {
      await client.end().catch(() => undefined);
    }
  }

  async #add(client: Client, method: BaseTable['method'], base: BaseTable): Promise<boolean> {
    try {
      if (await addTable(client, method, this.#names().publication, base, wantedColumns(this.#engine.state, base.id))) {
        this.#engine.log.info({ table: base.name }, 'REPLICA IDENTITY FULL set: stream tables over it need old row images');
      }
      this.#engine.changes.forget(base.id);
      if (method === 'trigger') {
        this.touched.add(base.id);
        this.#engine.log.info({ table: base.name }, 'changes are captured by triggers: the server or the role does not stream');
      }
      return true;
    } catch (error) {
      if (!(error instanceof CaptureRefusedError)) throw error;
      await client.query("UPDATE millrace.base_table SET state = 'failed', error = $2 WHERE relation_id = $1", [
        base.id,
        JSON.stringify(error.relationError),
      ]);
      return true;
    }
  }

  async #startStream(client: Client, bases: readonly BaseTable[]): Promise<void> {
    const { config, admin, log } = this.#engine;
    const { slot, publication } = this.#names();
    const former = this.#runner;
    await former?.stop();
    this.#runner = null;
    await admin.query(
      'INSERT INTO millrace.base_capture (slot, publication) VALUES ($1, $2) ON CONFLICT (only_row) DO UPDATE SET slot = excluded.slot, publication = excluded.publication',
      [slot, publication],
    );
    const created = await this.#ensurePublication(client, publication);
    // Between epochs: what a former stream had under way is recorded by then.
    const recorded = await this.#engine.exclusively(() => {
      former?.discard();
      return this.#recorded();
    });
    const found = await lookUpSlot(client, slot);
    const usable = found !== undefined && found.walStatus !== 'lost' && recorded !== undefined && !created;
    let taken: Snapshot | null = null;
    if (usable) {
      if (found.activePid !== undefined) await freeSlot(client, slot);
      taken = recorded;
    } else {
      const reason = created ? 'the publication of base tables was gone' : 'the replication slot of base tables was gone';
      await this.#engine.exclusively(() => this.#lost(bases, recorded === undefined ? null : reason));
      if (found !== undefined) await dropSlot(client, slot, { terminate: true });
      await createSlot(config.upstream, slot, { database: config.database });
      await admin.query('INSERT INTO millrace.base_progress (snapshot) VALUES (NULL) ON CONFLICT (only_row) DO NOTHING');
    }
    // What the last epoch recorded is on disk before the slot may be acknowledged because of it.
    await writeMarker(await this.#openClient(), 'start');
    const runner: BaseRunner = new BaseRunner(
      { address: config.upstream, database: config.database, slot, publication, taken },
      {
        resolve: (message, xid) => this.#ask((asked) => findTarget(asked, message, xid)),
        ready: this.#hooks.ready,
        patience: () => patienceMs(this.#engine.state),
        failed: (error) => {
          if (this.#runner === runner) this.#failed(error);
        },
      },
    );
    await runner.start();
    if (this.#stopped) {
      await runner.stop();
      return;
    }
    this.#runner = runner;
    await this.#status('running', null);
    log.info({ slot }, 'changes of base tables are captured');
    this.#engine.wake();
  }

  /** True when it had to be created. */
  async #ensurePublication(client: Client, publication: string): Promise<boolean> {
    const found = await client.query('SELECT FROM pg_catalog.pg_publication WHERE pubname = $1', [publication]);
    if (found.rowCount !== 0) return false;
    const version = await client.query<{ number: number }>("SELECT current_setting('server_version_num')::integer AS number");
    // From 18 on a replica identity must not hold generated columns that are not published.
    const generated = (version.rows[0]?.number ?? 0) >= 180000 ? ', publish_generated_columns = stored' : '';
    await client.query(
      `CREATE PUBLICATION ${quoteIdentifier(publication)}
         WITH (publish = 'insert, update, delete, truncate', publish_via_partition_root = true${generated})`,
    );
    return true;
  }

  /** Snapshot of the last epoch; null: there was none; undefined: the slot was never finished. */
  async #recorded(): Promise<Snapshot | null | undefined> {
    const result = await this.#engine.admin.query<{ snapshot: string | null }>('SELECT snapshot FROM millrace.base_progress');
    const [row] = result.rows;
    if (row === undefined) return undefined;
    return row.snapshot === null ? null : parseSnapshot(row.snapshot);
  }

  /** Changes may have been missed: tables have to be brought in again, views over them to be rebuilt. */
  async #lost(bases: readonly BaseTable[], reason: string | null): Promise<void> {
    const captured = bases.filter((base) => base.state === 'captured' && base.method === 'wal').map((base) => base.id);
    const epoch = await Epoch.begin(this.#engine);
    await epoch.run([
      "UPDATE millrace.base_table SET state = 'new' WHERE state = 'captured' AND method = 'wal'",
      'DELETE FROM millrace.base_progress',
      ...(captured.length === 0 || reason === null ? [] : [loseDeltas(captured, reason)]),
    ]);
    await epoch.commit(new Map());
    if (captured.length > 0 && reason !== null) this.#engine.log.warn({ reason }, 'stream tables over base tables will be rebuilt');
    this.#engine.wake();
  }

  /** The last table has left. */
  async #end(client: Client): Promise<void> {
    const { slot, publication } = this.#names();
    const runner = this.#runner;
    this.#runner = null;
    await runner?.stop();
    await dropSlot(client, slot, { terminate: true });
    await client.query(`DROP PUBLICATION IF EXISTS ${quoteIdentifier(publication)}`);
    await client.query('DELETE FROM millrace.base_progress; DELETE FROM millrace.base_capture');
    this.#engine.log.info({ slot }, 'no base table is captured any more');
    this.#engine.wake();
  }

  #failed(error: unknown): void {
    if (this.#stopped || this.#retry !== null) return;
    const problem = connectionProblem(error);
    this.#engine.log.warn({ code: problem.code, problem: problem.message, err: error }, 'capture of base tables is stalled');
    void this.#status('stalled', problem.message).catch(() => undefined);
    this.#hooks.ready();
    this.#retry = setTimeout(() => {
      this.#retry = null;
      this.reconcile(this.#catalog);
    }, this.#pauseMs);
    this.#pauseMs = Math.min(this.#pauseMs * 2, longestPauseMs);
  }

  async #status(status: string, error: string | null): Promise<void> {
    await this.#engine.admin.query(
      'UPDATE millrace.base_capture SET status = $1, error = $2, status_since = now() WHERE (status, error) IS DISTINCT FROM ($1::text, $2::text)',
      [status, error],
    );
  }

  /** To be called between epochs: delta tables get the columns their tables have now. */
  async followColumns(bases: readonly BaseTable[]): Promise<void> {
    const { upstream, database } = this.#engine.config;
    const client = await openOrigin(upstream, { database, applicationName: 'millrace capture' });
    let changed = false;
    try {
      for (const base of bases)
        changed = (await this.#inTurn(() => followColumns(client, base, wantedColumns(this.#engine.state, base.id)))) || changed;
    } finally {
      await client.end().catch(() => undefined);
    }
    if (changed) await this.#runner?.retarget();
  }
}
