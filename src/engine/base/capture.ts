/**
 * Capture of changes of base tables from this database's own WAL: its stream, and which tables are in it.
 * Invariant: what is captured follows from the catalog alone. Whenever changes may have been missed (slot or publication gone), the views that
 * wanted them are told so in the catalog before the stream goes on, and are rebuilt by difference.
 */
import type { Client } from 'pg';
import { type BaseTable, triggerTable } from '../../catalog/model.ts';
import { writeMarker } from '../../replication/markers.ts';
import { connectionProblem, openOrigin } from '../../replication/origin.ts';
import type { Execution } from '../../replication/session-contract.ts';
import type { ReadCatalog } from '../catalog-reader.ts';
import type { CatalogState, EngineContext } from '../context.ts';
import { scheduleOf } from '../streams/due.ts';
import { noteStatus, prepareSlot, removeSlot, slotNames } from './capture-slot.ts';
import { addTable, CaptureRefusedError, forgetTable, identifyPartitions, removeTable } from './capture-sql.ts';
import { followColumns } from './delta-ddl.ts';
import { findTarget, flushedMarker, flushedMessages, methodOf } from './facts.ts';
import { QuestionSession } from './question-session.ts';
import { BaseRunner, StreamLostError } from './runner.ts';
import { markerPrefix } from './transactions.ts';
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
  readonly #questions: QuestionSession;
  /** Work on delta tables, one piece at a time: two sessions that make the same one would meet. */
  #turns: Promise<unknown> = Promise.resolve();

  constructor(engine: EngineContext, hooks: CaptureHooks) {
    this.#engine = engine;
    this.#hooks = hooks;
    this.#questions = new QuestionSession(engine.config, (error) => {
      void this.#runner?.stop();
      this.#failed(error);
    });
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
        if (this.runner !== null) await noteStatus(this.#engine, 'running', null);
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
    await this.#questions.close();
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
        await this.#questions
          .ask((client) => writeMarker(client, markerPrefix, marker))
          .catch((error: unknown) => {
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

  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const done = this.#turns.then(work);
    this.#turns = done.catch(() => undefined);
    return done;
  }

  /** Called a few times a second: sees what triggers have written. Does nothing where nothing is captured by triggers. */
  look(): void {
    const bases = [...this.#engine.state.bases.values()].filter((base) => base.state === 'captured' && base.method === 'trigger');
    if (bases.length === 0 || this.#looking || this.#stopped || this.#retry !== null) return;
    this.#looking = true;
    const work = async (): Promise<void> => {
      if (!this.#questions.isOpen) await this.#questions.open();
      const exists = bases.map((base) => `SELECT ${base.id} AS id WHERE EXISTS (SELECT FROM ${triggerTable(base.id)})`);
      const found = await this.#questions.ask((client) => client.query<{ id: number }>(exists.join(' UNION ALL ')));
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
          await this.#inTurn(() => removeTable(client, slotNames(this.#engine).publication, base));
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
      if (await addTable(client, method, slotNames(this.#engine).publication, base, wantedColumns(this.#engine.state, base.id))) {
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
    const { config, log } = this.#engine;
    const { slot, publication } = slotNames(this.#engine);
    const former = this.#runner;
    await former?.stop();
    this.#runner = null;
    const taken = await prepareSlot(this.#engine, client, bases, () => former?.discard());
    // What the last epoch recorded is on disk before the slot may be acknowledged because of it.
    await writeMarker(await this.#questions.open(), markerPrefix, 'start');
    const runner: BaseRunner = new BaseRunner(
      { address: config.upstream, database: config.database, slot, publication, taken },
      {
        resolve: (message, xid) => this.#questions.ask((asked) => findTarget(asked, message, xid)),
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
    await noteStatus(this.#engine, 'running', null);
    log.info({ slot }, 'changes of base tables are captured');
    this.#engine.wake();
  }

  /** The last table has left. */
  async #end(client: Client): Promise<void> {
    const runner = this.#runner;
    this.#runner = null;
    await runner?.stop();
    await removeSlot(this.#engine, client);
  }

  #failed(error: unknown): void {
    if (this.#stopped || this.#retry !== null) return;
    const problem = connectionProblem(error);
    this.#engine.log.warn({ code: problem.code, problem: problem.message, err: error }, 'capture of base tables is stalled');
    void noteStatus(this.#engine, 'stalled', problem.message).catch(() => undefined);
    this.#hooks.ready();
    this.#retry = setTimeout(() => {
      this.#retry = null;
      this.reconcile(this.#catalog);
    }, this.#pauseMs);
    this.#pauseMs = Math.min(this.#pauseMs * 2, longestPauseMs);
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
