/**
 * Cutovers of sinks: from which epoch on a sink reads a relation.
 * Invariant: a version of a sink has `cut_ts` only when the outbox of its relation holds every change after that epoch and its backfill, made from
 * the state right after that epoch, is complete; nothing later of the version before it has left by then, since it is held at that epoch meanwhile.
 * So all changes of the old relation up to the cut go out, then the backfill, then all changes of the new one after it.
 * Without a backfill the cut is one epoch of some milliseconds; a backfill is made beside epochs from a snapshot taken between two.
 */
import { backfillTable } from '../catalog/sink-model.ts';
import { PostgresError } from '../replication/postgres-error.ts';
import { connectRaw } from '../replication/raw-connection.ts';
import type { RawConnection } from '../replication/session-contract.ts';
import { pinnedSettings } from '../replication/settings.ts';
import { quoteLiteral } from '../sql/quote.ts';
import { backfillSql } from './backfill-sql.ts';
import { type EngineContext, type SinkState, type SinkVersion, storageOf } from './context.ts';
import { Epoch } from './epoch.ts';
import { dropOutbox, keepWhole, needsNoFormer, outboxDdl, shownExpressions, unusedOutboxes } from './outbox.ts';
import { sinkTypes } from './outbox-types.ts';
import { upsertKey } from './upsert-outbox.ts';

/** The version of a sink that waits for its cutover; null: none does. */
export function waitingVersion(sink: SinkState): SinkVersion | null {
  return sink.versions.find(({ cutTs }) => cutTs === null) ?? null;
}

export class Cutovers {
  readonly #engine: EngineContext;
  readonly #reload: () => Promise<void>;
  /** Sinks whose cutover is being made. */
  readonly #cutting = new Set<number>();
  #renewing = false;

  constructor(engine: EngineContext, reload: () => Promise<void>) {
    this.#engine = engine;
    this.#reload = reload;
  }

  /**
   * A relation that was being filled again by a former leader may have lost what it was filled over, which is in a table that a crash of the server
   * empties: sinks that read it cannot say what has changed.
   */
  async recover(): Promise<void> {
    await this.#engine.session.query(`
      UPDATE millrace.sink_progress p SET overrun = true
        FROM millrace.sink_version v JOIN millrace.relation r ON r.id = v.relation_id
       WHERE v.sink_id = p.sink_id AND v.cut_ts IS NOT NULL AND r.kind = 'view' AND r.state = 'populating';
      UPDATE millrace.subscription s SET overrun = true
        FROM millrace.relation r WHERE r.id = s.relation_id AND s.cut_ts IS NOT NULL AND r.kind = 'view' AND r.state = 'populating'`);
  }

  /** Begins the cutovers that can be made. */
  run(): void {
    this.#renew();
    const { sinks, tables, views } = this.#engine.state;
    for (const sink of sinks.values()) {
      const version = waitingVersion(sink);
      if (version === null || this.#cutting.has(sink.id)) continue;
      if ((tables.get(version.relationId) ?? views.get(version.relationId))?.state !== 'ready') continue;
      this.#cutting.add(sink.id);
      this.#cut(sink.id)
        .catch((error: unknown) => this.#engine.fail(error))
        .finally(() => {
          this.#cutting.delete(sink.id);
          this.#engine.wake();
        });
    }
  }

  /**
   * Outboxes of views that were made anew with other types, uncaptured: nobody knows what has changed between the former rows and those there are
   * now, so whoever reads one has to begin again.
   */
  #renew(): void {
    if (this.#renewing || this.#uncaptured().length === 0) return;
    this.#renewing = true;
    this.#engine
      .exclusively(async () => {
        const { session, state, log } = this.#engine;
        const stale = this.#uncaptured();
        if (stale.length === 0) return;
        const ids = stale.join(', ');
        try {
          const epoch = await Epoch.begin(this.#engine);
          epoch.send([
            "SET LOCAL lock_timeout = '200ms'",
            `UPDATE millrace.sink_progress p SET overrun = true FROM millrace.sink_version v
              WHERE v.sink_id = p.sink_id AND v.cut_ts IS NOT NULL AND v.relation_id IN (${ids})`,
            `UPDATE millrace.subscription s SET overrun = true WHERE s.cut_ts IS NOT NULL AND s.relation_id IN (${ids})`,
            ...stale.flatMap((id) => [dropOutbox(id), ...outboxDdl(state, id), sinkTypes(id)]),
          ]);
          await epoch.commit(new Map());
          log.warn({ relations: stale }, 'live views were made anew with other types: sinks that read them have to begin again');
        } catch (error) {
          if (!(error instanceof PostgresError)) throw error;
          await session.query('ROLLBACK').catch(() => undefined);
          log.debug({ err: error }, 'an outbox could not be made anew yet');
          return;
        }
        await this.#reload();
        this.#engine.outboxed();
      })
      .catch((error: unknown) => this.#engine.fail(error))
      .finally(() => {
        this.#renewing = false;
      });
  }

  /** Relations with an outbox that nothing would write to. */
  #uncaptured(): number[] {
    const { state } = this.#engine;
    return [...state.outboxes].filter(
      (id) => state.views.get(id)?.state === 'ready' && !state.captured.has(storageOf(state, id)) && !unusedOutboxes(state).includes(id),
    );
  }

  async #cut(sinkId: number): Promise<void> {
    const filler = await connectRaw(this.#engine.config.upstream, {
      database: this.#engine.config.database,
      applicationName: 'millrace backfill',
      settings: { ...pinnedSettings, statement_timeout: '0' },
    });
    try {
      const begun = await this.#engine.exclusively(() => this.#begin(sinkId, filler));
      if (begun !== null) await this.#fill(begun, filler);
    } finally {
      await filler.close().catch(() => undefined);
    }
  }

  /** The epoch of the cut. Answers what is still to be filled; null: nothing is. */
  async #begin(sinkId: number, filler: RawConnection): Promise<{ readonly sql: readonly string[] } | null> {
    const { session, state } = this.#engine;
    const sink = state.sinks.get(sinkId);
    const version = sink === undefined ? null : waitingVersion(sink);
    if (sink === undefined || version === null) return null;
    const { relationId } = version;
    if ((state.tables.get(relationId) ?? state.views.get(relationId))?.state !== 'ready') return null;
    const former = sink.versions.find((one) => one.version === version.version - 1) ?? null;
    const width = shownExpressions(state, relationId)?.length ?? 0;
    if (width !== version.columns.length) return null;

    const epoch = await Epoch.begin(this.#engine);
    // Whoever has altered it and not committed yet holds back its cutover, not the epochs. One that was given up is not made.
    const [free] = await session.query(
      `SELECT FROM millrace.sink s JOIN millrace.sink_version v ON v.sink_id = s.id AND v.version = ${version.version}
        WHERE s.id = ${sinkId} AND v.relation_id = ${relationId} AND v.cut_ts IS NULL
          FOR NO KEY UPDATE ${version.backfill === 'none' ? 'OF v ' : ''}SKIP LOCKED`,
    );
    if (free?.rows.length !== 1) {
      await session.query('ROLLBACK');
      return null;
    }
    if (!state.outboxes.has(relationId)) epoch.send(outboxDdl(state, relationId));
    epoch.send([upsertKey(state, relationId) === null ? keepWhole([relationId]) : needsNoFormer([relationId])]);
    const ts = '(SELECT e.ts FROM millrace.epoch e)';
    if (version.backfill === 'none') {
      epoch.send([
        `UPDATE millrace.sink_version SET cut_ts = ${ts} WHERE sink_id = ${sinkId} AND version = ${version.version} AND relation_id = ${relationId} AND cut_ts IS NULL`,
        ...(former === null ? [beginsAt(sinkId, version.version, ts, null)] : []),
      ]);
    } else epoch.send([`UPDATE millrace.sink SET hold_ts = ${ts} WHERE id = ${sinkId}`]);
    await epoch.commit(new Map());
    const table = backfillTable(sinkId, version.version);
    let fill: readonly string[] | null = null;
    if (version.backfill !== 'none') {
      const [held] = await session.query(`SELECT hold_ts FROM millrace.sink WHERE id = ${sinkId}`);
      const hold = held?.rows[0]?.[0] ?? null;
      if (hold !== null) {
        await filler.query('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1');
        const making = backfillSql(state, {
          version,
          former: version.backfill === 'diff' && this.#isThere(former) ? former : null,
          key: sink.key,
          table,
        });
        fill = [
          `DROP TABLE IF EXISTS ${table}`,
          ...making,
          `CREATE UNIQUE INDEX ON ${table} (seq, place)`,
          `WITH cut AS (UPDATE millrace.sink s SET hold_ts = NULL FROM millrace.epoch e
                         WHERE s.id = ${sinkId} AND s.hold_ts = ${hold} AND s.status <> 'dropped' AND e.token = ${this.#engine.token} RETURNING s.id)
           UPDATE millrace.sink_version v SET cut_ts = ${hold}, backfill_rows = (SELECT count(*) FROM ${table})
             FROM cut WHERE v.sink_id = cut.id AND v.version = ${version.version} AND v.relation_id = ${relationId} AND v.cut_ts IS NULL`,
          ...(former === null ? [beginsAt(sinkId, version.version, hold, 0)] : []),
        ];
      }
    }
    await this.#reload();
    this.#engine.outboxed();
    return fill === null ? null : { sql: fill };
  }

  /** Dropped around Millrace, a relation has nothing to be compared with. */
  #isThere(version: SinkVersion | null): boolean {
    const { tables, views } = this.#engine.state;
    return version !== null && (tables.has(version.relationId) || views.has(version.relationId));
  }

  async #fill({ sql }: { readonly sql: readonly string[] }, filler: RawConnection): Promise<void> {
    try {
      for (const statement of sql) {
        const [done] = await filler.query(statement);
        // Dropped, or another leader: what was made is not wanted.
        if (done?.tag === 'UPDATE 0') return;
      }
      await filler.query('COMMIT');
    } catch (error) {
      if (!(error instanceof PostgresError)) throw error;
      this.#engine.log.warn({ err: error }, 'a backfill could not be made; it is tried again');
      await new Promise((resolve) => setTimeout(resolve, 1000));
      return;
    }
    this.#engine.outboxed();
  }

  /** Clears away sinks that were dropped, versions that are behind, and what they left. To be called exclusively. */
  async clear(gone: readonly SinkState[]): Promise<boolean> {
    const { session, state, log } = this.#engine;
    const statements = gone
      .filter(({ id }) => !this.#cutting.has(id))
      .flatMap((sink) => [
        `DROP TABLE IF EXISTS ${sink.versions.map(({ version }) => backfillTable(sink.id, version)).join(', ') || backfillTable(sink.id, 0)}`,
        `DELETE FROM millrace.sink WHERE id = ${sink.id}`,
      ]);
    for (const sink of state.sinks.values()) {
      const behind = sink.versions.filter(({ version }) => sink.reachedVersion !== null && version < sink.reachedVersion);
      if (behind.length === 0) continue;
      statements.push(
        `DROP TABLE IF EXISTS ${behind.map(({ version }) => backfillTable(sink.id, version)).join(', ')}`,
        `DELETE FROM millrace.sink_version WHERE sink_id = ${sink.id} AND version < ${sink.reachedVersion}`,
      );
    }
    for (const sink of state.sinks.values()) {
      const waiting = waitingVersion(sink);
      // What it was to read next is gone: it goes on with what it reads.
      if (waiting !== null && waiting.version > 1 && !this.#isThere(waiting))
        statements.push(
          `DELETE FROM millrace.sink_version v WHERE v.sink_id = ${sink.id} AND v.version = ${waiting.version} AND v.cut_ts IS NULL
             AND NOT EXISTS (SELECT FROM millrace.relation r WHERE r.id = v.relation_id AND r.state <> 'dropped')`,
        );
    }
    for (const sink of state.sinks.values()) {
      // A former leader held it, or a backfill failed.
      if (sink.holdTs !== null && !this.#cutting.has(sink.id))
        statements.push(`UPDATE millrace.sink SET hold_ts = NULL WHERE id = ${sink.id}`);
    }
    const unused = unusedOutboxes(state).filter(() => this.#cutting.size === 0);
    if (unused.length > 0) {
      statements.push(...unused.map(dropOutbox), `DELETE FROM millrace.outbox WHERE relation_id IN (${unused.join(', ')})`);
    }
    const lean = [...state.outboxes].filter(
      (id) =>
        !state.upsertOutboxes.has(id) && !unused.includes(id) && state.tables.get(id)?.state === 'ready' && upsertKey(state, id) !== null,
    );
    if (lean.length > 0) statements.push(needsNoFormer(lean));
    if (statements.length === 0) return false;
    try {
      await session.query(`BEGIN; SET LOCAL lock_timeout = '200ms'; ${statements.join('; ')}; COMMIT`);
      return true;
    } catch (error) {
      await session.query('ROLLBACK').catch(() => undefined);
      if (!(error instanceof PostgresError)) throw error;
      log.debug({ err: error }, 'what sinks left is not cleared away yet');
      return false;
    }
  }
}

/** A sink begins there. `seq`: the first row of its backfill comes after this; null: it has none. */
const beginsAt = (sinkId: number, version: number, ts: string, seq: number | null): string =>
  `INSERT INTO millrace.sink_progress (sink_id, version, ts, backfill_seq) VALUES (${sinkId}, ${version}, ${ts}, ${seq === null ? 'NULL' : quoteLiteral(String(seq))})
   ON CONFLICT (sink_id) DO NOTHING`;
