/**
 * Capture of changes of base tables from this database's own WAL: its slot, its publication, which tables are in it.
 * Invariant: what is captured follows from the catalog alone. Whenever changes may have been missed (slot or publication gone), the views that
 * wanted them are told so in the catalog before the stream goes on, and are rebuilt by difference.
 */
import type { Client } from 'pg';
import type { BaseTable } from '../../catalog/model.ts';
import { connectionProblem, openOrigin } from '../../replication/origin.ts';
import type { RelationMessage } from '../../replication/pgoutput.ts';
import { createSlot, dropSlot, freeSlot, lookUpSlot } from '../../replication/slots.ts';
import { parseSnapshot, type Snapshot } from '../../replication/snapshot-visibility.ts';
import { quoteIdentifier, quoteLiteral } from '../../sql/quote.ts';
import type { ReadCatalog } from '../catalog-reader.ts';
import type { EngineContext } from '../context.ts';
import { Epoch } from '../epoch.ts';
import { upkeepOf } from '../view-upkeep.ts';
import { addTable, CaptureRefusedError, followColumns, forgetTable, identifyPartitions, removeTable } from './capture-sql.ts';
import { BaseRunner } from './runner.ts';
import { type TargetFacts, targetOf } from './shapes.ts';
import { type BaseTarget, markerPrefix } from './transactions.ts';

const firstPauseMs = 200;
const longestPauseMs = 10_000;

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
      .then(() => {
        this.#pauseMs = firstPauseMs;
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
    await this.#work.catch(() => undefined);
  }

  /** Resolves when every transaction that has committed by now is with the runner. */
  async passed(runner: BaseRunner): Promise<void> {
    const marker = `${this.#engine.token}:${++this.#markers}`;
    const passed = runner.passed(marker);
    passed.catch(() => undefined);
    await writeMarker(this.#engine.admin, marker);
    await passed;
  }

  /** Called about every second. */
  watch(): void {
    const { runner } = this;
    if (runner === null) return;
    runner.requestPosition();
    this.#engine.metrics['millrace_base_lag_bytes'] = runner.lagBytes;
    this.#engine.metrics['millrace_base_waiting_transactions'] = runner.waiting.length;
  }

  #names(): { slot: string; publication: string } {
    const name = `millrace_base_${this.#engine.databaseOid}`;
    return { slot: name, publication: name };
  }

  async #reconcile(catalog: ReadCatalog): Promise<void> {
    const wanted = capturedBases(catalog);
    const present = [...catalog.bases.values()];
    const exists = this.#runner !== null || present.some((base) => base.state === 'captured') || catalog.baseCapture;
    if (wanted.size === 0 && !exists && catalog.unusedBases.length === 0) return;
    // The catalog is read for every refresh that is asked for; a session is opened only when there is something to bring in line.
    if (this.runner !== null && catalog.unusedBases.length === 0 && wanted.size > 0 && present.every((base) => inLine(base, wanted)))
      return;
    const client = await openOrigin(this.#engine.config.upstream, {
      database: this.#engine.config.database,
      applicationName: 'millrace capture',
    });
    try {
      if (wanted.size > 0 && this.runner === null) await this.#startStream(client, present);
      let changed = false;
      for (const base of present) {
        if (wanted.has(base.id) && base.state !== 'captured' && this.runner !== null) changed = (await this.#add(client, base)) || changed;
        else if (wanted.has(base.id) && base.state === 'captured' && base.parts !== base.partsNow && base.partsNow !== null) {
          await identifyPartitions(client, base.tableOid).catch(async (error: unknown) => {
            await client.query('ROLLBACK');
            this.#engine.log.debug({ table: base.name, err: error }, 'replica identity of a partition cannot be set yet');
          });
        } else if (!wanted.has(base.id) && base.state === 'captured') {
          await removeTable(client, this.#names().publication, base);
          if (base.identityBefore !== null)
            this.#engine.log.info({ table: base.name }, 'replica identity of a base table is as it was before');
          changed = true;
        }
      }
      for (const base of catalog.unusedBases) {
        changed = (await forgetTable(client, base.id)) || changed;
      }
      if (wanted.size === 0 && exists) await this.#end(client);
      if (changed) {
        this.#engine.wake();
        await this.#runner?.retarget();
      }
    } finally {
      await client.end().catch(() => undefined);
    }
  }

  async #add(client: Client, base: BaseTable): Promise<boolean> {
    try {
      if (await addTable(client, this.#names().publication, base.id, base.tableOid)) {
        this.#engine.log.info({ table: base.name }, 'REPLICA IDENTITY FULL set: stream tables over it need old row images');
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
    await this.#runner?.stop();
    this.#runner = null;
    const level = await client.query<{ wal_level: string }>('SHOW wal_level');
    if (level.rows[0]?.wal_level !== 'logical') {
      await refuseAll(client, bases);
      return;
    }
    await admin.query(
      'INSERT INTO millrace.base_capture (slot, publication) VALUES ($1, $2) ON CONFLICT (only_row) DO UPDATE SET slot = excluded.slot, publication = excluded.publication',
      [slot, publication],
    );
    const created = await this.#ensurePublication(client, publication);
    // Between epochs: what a former stream had under way is recorded by then.
    const recorded = await this.#engine.exclusively(() => this.#recorded());
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
    await writeMarker(admin, 'start');
    const runner: BaseRunner = new BaseRunner(
      { address: config.upstream, database: config.database, slot, publication, taken },
      {
        resolve: (message) => this.#resolve(message),
        ready: this.#hooks.ready,
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
    const captured = bases.filter((base) => base.state === 'captured').map((base) => base.id);
    const epoch = await Epoch.begin(this.#engine);
    await epoch.run([
      "UPDATE millrace.base_table SET state = 'new' WHERE state = 'captured'",
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

  /** The target of a relation, as the database describes it now. */
  async #resolve(message: RelationMessage): Promise<BaseTarget | null> {
    const types = JSON.stringify(message.columns.map((column) => ({ type: column.typeOid, typmod: column.typmod })));
    const result = await this.#engine.admin.query<{ facts: TargetFacts; types: string[] }>(
      `SELECT jsonb_build_object('id', b.relation_id, 'known', b.columns,
                'now', (SELECT coalesce(jsonb_agg(jsonb_build_object('attnum', a.attnum, 'name', a.attname) ORDER BY a.attnum), '[]')
                          FROM pg_catalog.pg_attribute a WHERE a.attrelid = b.table_oid AND a.attnum > 0 AND NOT a.attisdropped),
                'delta', (SELECT coalesce(jsonb_agg(jsonb_build_object('attnum', substr(a.attname, 2)::integer,
                                   'type', pg_catalog.format_type(a.atttypid, a.atttypmod)) ORDER BY a.attnum), '[]')
                            FROM pg_catalog.pg_attribute a
                           WHERE a.attrelid = to_regclass('millrace_data.d' || b.relation_id) AND a.attnum > 1 AND NOT a.attisdropped
                             AND a.attgenerated = '')) AS facts,
              ARRAY(SELECT pg_catalog.format_type((c.value ->> 'type')::oid, (c.value ->> 'typmod')::integer)
                      FROM jsonb_array_elements($2::jsonb) WITH ORDINALITY c(value, place) ORDER BY c.place) AS types
         FROM millrace.base_table b WHERE b.table_oid = $1 AND b.state = 'captured'`,
      [message.oid, types],
    );
    const [row] = result.rows;
    return row === undefined ? null : targetOf(row.facts, message, row.types);
  }

  /** To be called between epochs: delta tables get the columns their tables have now. */
  async followColumns(bases: readonly BaseTable[]): Promise<void> {
    const { upstream, database } = this.#engine.config;
    const client = await openOrigin(upstream, { database, applicationName: 'millrace capture' });
    let changed = false;
    try {
      for (const base of bases) changed = (await followColumns(client, base.id, base.tableOid)) || changed;
    } finally {
      await client.end().catch(() => undefined);
    }
    if (changed) await this.#runner?.retarget();
  }
}

/** Captured if and only if that is wanted, with the partitions it has now. */
function inLine(base: BaseTable, wanted: ReadonlySet<number>): boolean {
  if (wanted.has(base.id) !== (base.state === 'captured')) return false;
  return !wanted.has(base.id) || base.parts === base.partsNow || base.partsNow === null;
}

/** Base tables whose changes some view wants. */
function capturedBases(catalog: ReadCatalog): ReadonlySet<number> {
  const wanted = new Set<number>();
  for (const view of catalog.views.values()) {
    if (!upkeepOf(catalog, view).wantsDeltas) continue;
    for (const input of view.inputs) if (catalog.bases.has(input)) wanted.add(input);
  }
  return wanted;
}

/** Statement that tells the stream tables over these bases that changes were missed. */
export function loseDeltas(inputs: readonly number[], reason: string): string {
  return `UPDATE millrace.stream_table s SET delta_lost = ${quoteLiteral(reason)}
   WHERE s.refresh_mode <> 'FULL' AND s.delta_lost IS NULL
     AND EXISTS (SELECT FROM millrace.live_view_input i WHERE i.relation_id = s.relation_id AND i.input_id IN (${inputs.join(', ')}))`;
}

async function refuseAll(client: Client, bases: readonly BaseTable[]): Promise<void> {
  const error = {
    code: '55000',
    message: 'changes of ordinary tables cannot be captured: wal_level of this server is not "logical"',
    hint: "ALTER SYSTEM SET wal_level = 'logical'; and restart the server, or use refresh_mode => 'FULL'.",
  };
  await client.query("UPDATE millrace.base_table SET state = 'failed', error = $1 WHERE state <> 'failed' AND relation_id = ANY ($2)", [
    JSON.stringify(error),
    bases.map((base) => base.id),
  ]);
  await client.query("SELECT pg_notify('millrace', '')");
}

/** A logical message whose commit puts everything before it on disk, so that the stream comes to it. */
async function writeMarker(admin: Client, content: string): Promise<void> {
  await admin.query("SELECT set_config('synchronous_commit', 'local', true), pg_catalog.pg_logical_emit_message(true, $1, $2)", [
    markerPrefix,
    content,
  ]);
}
