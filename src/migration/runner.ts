/**
 * One migration, from its creation to its end.
 * Invariant: whatever happens, it goes on from what the catalog says. An error is noted there, and it is tried again; nothing of it concerns anyone else.
 */
import type { ServerAddress } from '../config.ts';
import type { Logger } from '../log.ts';
import { PostgresError } from '../replication/postgres-error.ts';
import { createSlot, dropSlot, freeSlot, lookUpSlot } from '../replication/slots.ts';
import { quoteIdentifier, quoteLiteral } from '../sql/quote.ts';
import { Wakeup } from '../wakeup.ts';
import { noteProblem, noteProgress, phaseSql, readProgress, requestDone } from './catalog.ts';
import { ChangeFeed } from './change-feed.ts';
import { Course } from './course.ts';
import { filesSql } from './emptied.ts';
import { unvalidatedSql } from './flip-sql.ts';
import { applyWaiting, copyPiece, type Following, repairAll, verifyPiece } from './follow.ts';
import type { HoldStatements } from './hold.ts';
import { keepUp } from './keep-up.ts';
import type { Migration, MigrationPhase, MigrationProblem } from './model.ts';
import { publicationName, qualified, slotName, type Truth, targetPlace } from './places.ts';
import { problemOf } from './problems.ts';
import { type MigrationSessions, openSessions, rollback } from './sessions.ts';
import { endMigration, type SwitchOutcome, switchTruth, tellOthers } from './switch.ts';
import { type SyncSql, syncSql } from './sync-sql.ts';
import { behind, nextRows, readLoad, restMs, whyRest } from './throttle.ts';

export interface RunnerServices {
  readonly upstream: ServerAddress;
  readonly database: string;
  readonly databaseOid: number;
  readonly log: Logger;
  /** The catalog has changed. */
  readonly wake: () => void;
  readonly hold: HoldStatements | null;
}

const firstRetryMs = 500;
const longestRetryMs = 30_000;
/** From one piece to the next of the verification that goes on while nothing else is to be done. */
const verifyEveryMs = 1_000;
const idleMs = 250;
const noteEveryMs = 500;
/** From one round of changes to the next: a round costs about as much for thirty changes as for three. */
const roundMs = 20;
/** So many keys are not kept waiting. */
const manyKeys = 500;
/**
 * Behind a cutover beside writers, before anything else is done: those who waited go on, and every session's first statement over what has changed is
 * planned anew.
 * With the other direction's first changes, a validation and a look at the catalog beside them, statements took twice as long.
 */
const letOthersMs = 200;

export class MigrationRunner {
  readonly #services: RunnerServices;
  /** By which table is the truth. They depend on nothing that changes. */
  readonly #syncs: Readonly<Record<Truth, SyncSql>>;
  #migration: Migration;
  #stopped = false;
  readonly #wakeup = new Wakeup();
  /** Changes that arrive wait until then; by performance.now(). */
  #restsUntil = 0;
  /** And the catalog has not been read since: it is not to cut over again by itself. */
  #isReverted = false;
  readonly #ended: Promise<void>;

  constructor(services: RunnerServices, migration: Migration) {
    this.#services = services;
    this.#migration = migration;
    const { id, source, definition } = migration;
    this.#syncs = { source: syncSql(id, source, definition, 'source'), target: syncSql(id, source, definition, 'target') };
    this.#ended = this.#run();
  }

  /** The catalog says something new of it. The phase is this runner's own: what was read may be older than what it has just written. */
  update(migration: Migration): void {
    if (migration.options.cutover === 'manual') this.#isReverted = false;
    this.#migration = { ...migration, phase: this.#migration.phase };
    this.#wakeup.wake();
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    this.#wakeup.wake();
    await this.#ended;
  }

  async #run(): Promise<void> {
    const { log, upstream, database } = this.#services;
    for (let retryMs = firstRetryMs; !this.#stopped; retryMs = Math.min(retryMs * 2, longestRetryMs)) {
      let sessions: MigrationSessions | null = null;
      const began = Date.now();
      try {
        sessions = await openSessions(upstream, database, this.#migration.id, this.#services.hold);
        if ((await this.#work(sessions)) === 'ended') return;
      } catch (error) {
        if (this.#stopped) return;
        log.warn({ migration: this.#migration.name, err: error }, 'the migration is tried again');
        await this.#note(sessions, await this.#problem(sessions, error));
      } finally {
        await sessions?.close();
      }
      if (Date.now() - began > longestRetryMs) retryMs = firstRetryMs;
      await this.#wakeup.pause(retryMs);
    }
  }

  /** What the error comes of, where it is known: the table may have been changed. */
  async #problem(sessions: MigrationSessions | null, error: unknown): Promise<MigrationProblem> {
    const known = error instanceof PostgresError && sessions !== null && this.#migration.phase !== 'creating';
    if (known) await rollback(sessions.work);
    const cause = known ? await keepUp(sessions, this.#migration, this.#truth()).catch(() => null) : null;
    return cause ?? problemOf(error, this.#migration);
  }

  async #note(sessions: MigrationSessions | null, problem: MigrationProblem): Promise<void> {
    if (sessions !== null) await noteProblem(sessions.beside, this.#migration.id, problem).catch(() => undefined);
  }

  async #work(sessions: MigrationSessions): Promise<'ended' | 'again'> {
    const progress = await readProgress(sessions.beside, this.#migration.id);
    // A process that was killed may have gone further than this one was told.
    this.#migration = { ...this.#migration, phase: progress.phase, request: progress.request };
    if (progress.phase === 'finished' || progress.phase === 'cancelled') return await this.#cleared(sessions);
    if (this.#migration.request === 'cancel' && this.#migration.phase !== 'cut_over') return await this.#end(sessions, 'cancel');
    if (this.#migration.phase === 'creating') await this.#setUp(sessions);
    const lost = await this.#ensureSlot(sessions);
    let broken: Error | null = null;
    const feed = this.#feed((error) => {
      broken = error;
      this.#wakeup.wake();
    });
    try {
      await feed.start();
      await noteProblem(sessions.beside, this.#migration.id, null);
      await this.#validate(sessions);
      // What is of no use any more could keep rows from being copied.
      await keepUp(sessions, this.#migration, this.#truth());
      const state = new Course(sessions, feed, progress);
      if (lost && this.#migration.phase !== 'copying') await repairAll(this.#following(state));
      while (!this.#stopped) {
        if (broken !== null) throw broken;
        const { request, phase } = this.#migration;
        if (
          (request === 'finalize' && phase === 'cut_over') ||
          (request === 'cancel' && phase !== 'cut_over') ||
          this.#windowIsOver(state)
        ) {
          await feed.stop();
          return await this.#end(sessions, phase === 'cut_over' ? 'finalize' : 'cancel');
        }
        await this.#step(state);
      }
      return 'again';
    } finally {
      await feed.stop();
    }
  }

  #feed(lost: (error: Error) => void): ChangeFeed {
    const { upstream, database, databaseOid } = this.#services;
    const { id } = this.#migration;
    return new ChangeFeed(
      { address: upstream, database, slot: slotName(databaseOid, id), publication: publicationName(id) },
      this.#followed(),
      { arrived: () => performance.now() >= this.#restsUntil && this.#wakeup.wake(), lost },
    );
  }

  /** Both tables: which of them is published is what the cutover says. */
  #followed(): readonly { oid: number; keyNames: readonly string[] }[] {
    const { source, targetOid } = this.#migration;
    return [
      { oid: source.oid, keyNames: this.#syncs.source.keyNames },
      { oid: targetOid, keyNames: this.#syncs.target.keyNames },
    ];
  }

  #truth(): Truth {
    return this.#migration.phase === 'cut_over' ? 'target' : 'source';
  }

  #following({ sessions, feed }: Course): Following {
    const truth = this.#truth();
    return { migration: this.#migration, truth, sync: this.#syncs[truth], sessions, feed, log: this.#services.log };
  }

  /** Publication and slot. A slot is made while the publication is there, so that it has every change that is not in what is copied. */
  async #setUp(sessions: MigrationSessions): Promise<void> {
    const { id, source } = this.#migration;
    const { upstream, database, databaseOid } = this.#services;
    const publication = quoteIdentifier(publicationName(id));
    await dropSlot(sessions.beside, slotName(databaseOid, id), { terminate: true });
    await sessions.work.query(
      `DROP PUBLICATION IF EXISTS ${publication}; CREATE PUBLICATION ${publication} FOR TABLE ${qualified(source)} WITH (publish = 'insert, update, delete, truncate', publish_via_partition_root = true)`,
    );
    await createSlot(upstream, slotName(databaseOid, id), { database });
    await sessions.work.query(
      `UPDATE millrace.migration_progress SET rows_copied = 0, copied_to = NULL, verified_to = NULL, found = 0,
              rows_total = (SELECT nullif(sum(greatest(c.reltuples, 0)), 0)::bigint FROM pg_catalog.pg_class c WHERE c.oid = ${source.oid} OR c.oid IN (SELECT relid FROM pg_catalog.pg_partition_tree(${source.oid}))) WHERE migration_id = ${id}; ${filesSql(this.#migration, 'source')}`,
    );
    await this.#enter(sessions, 'copying');
  }

  /** True when changes may have been missed. */
  async #ensureSlot({ beside }: MigrationSessions): Promise<boolean> {
    const { upstream, database, databaseOid, log } = this.#services;
    const slot = slotName(databaseOid, this.#migration.id);
    const found = await lookUpSlot(beside, slot);
    if (found !== undefined && found.walStatus !== 'lost') {
      if (found.activePid !== undefined) await freeSlot(beside, slot);
      return false;
    }
    log.warn({ migration: this.#migration.name, slot }, 'the slot is gone: every row will be compared');
    if (found !== undefined) await dropSlot(beside, slot, { terminate: true });
    await createSlot(upstream, slot, { database });
    return true;
  }

  async #enter({ work }: MigrationSessions, phase: MigrationPhase): Promise<void> {
    await work.query(phaseSql(this.#migration.id, phase));
    this.#services.log.info({ migration: this.#migration.name, phase }, 'the migration goes on');
    this.#migration = { ...this.#migration, phase };
    this.#services.wake();
  }

  /** Whatever is asked for meanwhile is looked at afterwards, or ends it. */
  async #rest(ms: number): Promise<void> {
    this.#restsUntil = performance.now() + ms;
    this.#wakeup.forget();
    await this.#wakeup.pause(ms);
  }

  async #step(course: Course): Promise<void> {
    const following = this.#following(course);
    const began = performance.now();
    const applied = await applyWaiting(following);
    await this.#noteLag(course);
    const { phase, paused, request, options } = this.#migration;
    const isDue = performance.now() >= course.notBefore;
    if (!paused || request !== null) {
      const cuts = phase === 'ready' && (request === 'cutover' || (request === null && options.cutover === 'auto' && !this.#isReverted));
      if (isDue && (cuts || (phase === 'cut_over' && request === 'revert'))) return await this.#switch(course, following);
    }
    if (!paused && phase === 'copying') return await this.#copy(course, following);
    if (!paused && phase === 'verifying') return await this.#verify(course, following, true);
    const verifies = request === 'verify' || (!paused && performance.now() >= course.nextLook);
    if (verifies && (phase === 'ready' || phase === 'cut_over')) return await this.#verify(course, following, request === 'verify');
    if (applied === 0) await this.#wakeup.pause(following.feed.touched.count > 0 ? 2 : idleMs);
    else if (following.feed.touched.keys < manyKeys) await this.#rest(roundMs - (performance.now() - began));
  }

  async #copy(course: Course, following: Following): Promise<void> {
    const { sessions, feed } = course;
    const load = await readLoad(sessions.beside);
    const late = behind(course.walMarks, performance.now(), load);
    course.walMarks = late.marks;
    const reason = whyRest(feed, load, late.ms, this.#migration.options.maxLagMs, Date.now());
    await course.noteThrottle(this.#migration.id, reason);
    if (reason !== null) return await this.#wakeup.pause(20);
    course.mostRows ??= await this.#rowsOf(course, this.#migration.options.chunkBytes);
    const rows = Math.min(course.rows, course.mostRows);
    const began = performance.now();
    course.copiedTo = await copyPiece(following, course.copiedTo, rows);
    const took = performance.now() - began;
    course.rows = nextRows(rows, took, course.mostRows);
    if (course.copiedTo !== null) return await this.#wakeup.pause(restMs(took, load));
    await sessions.work.query(
      `ANALYZE ${qualified(targetPlace(this.#migration.id, this.#migration.source, this.#migration.definition, 'source'))}`,
    );
    await this.#enter(sessions, 'verifying');
  }

  /** So many rows of the source are so many bytes. */
  async #rowsOf({ sessions }: Course, bytes: number): Promise<number> {
    const { rows } = await sessions.beside.query<{ each: number }>(
      `SELECT coalesce(sum(pg_catalog.pg_table_size(c.oid)) / nullif(sum(greatest(c.reltuples, 0)), 0), 200)::float8 AS each FROM pg_catalog.pg_class c
        WHERE c.relkind = 'r' AND (c.oid = $1 OR c.oid IN (SELECT relid FROM pg_catalog.pg_partition_tree($1)))`,
      [this.#migration.source.oid],
    );
    return Math.max(100, Math.floor(bytes / Math.max(rows[0]?.each ?? 200, 20)));
  }

  /** `hurry`: a pass is waited for. */
  async #verify(course: Course, following: Following, hurry: boolean): Promise<void> {
    const began = performance.now();
    const { end, found } = await verifyPiece(following, course.verifiedTo, course.rows);
    const took = performance.now() - began;
    course.rows = nextRows(course.rows, took, 100_000);
    course.verifiedTo = end;
    course.found += found;
    course.nextLook = performance.now() + verifyEveryMs;
    if (end !== null) {
      if (hurry) await this.#wakeup.pause(restMs(took, await readLoad(course.sessions.beside)));
      return;
    }
    const clean = course.found === 0;
    await noteProgress(
      course.sessions.work,
      this.#migration.id,
      `passes = passes + 1, last_pass_at = clock_timestamp(), differences = ${course.found}, found = 0, verified_to = NULL`,
    );
    if (!clean)
      this.#services.log.warn(
        { migration: this.#migration.name, rows: course.found },
        'a pass of verification found and repaired differences',
      );
    course.found = 0;
    if (this.#migration.phase === 'verifying' && clean) await this.#enter(course.sessions, 'ready');
    if (this.#migration.request === 'verify' && this.#migration.phase !== 'verifying') await this.#done(course.sessions, 'verify');
  }

  async #done({ work }: MigrationSessions, request: string): Promise<void> {
    await work.query(requestDone(this.#migration.id, request));
    this.#migration = { ...this.#migration, request: null };
    this.#services.wake();
  }

  async #switch(course: Course, following: Following): Promise<void> {
    const { log, wake } = this.#services;
    if (course.attempts === 0) await noteProgress(course.sessions.work, this.#migration.id, 'attempts = 0');
    const outcome = await switchTruth(following);
    await this.#noteAttempt(course, outcome);
    if (!outcome.done) {
      log.info(
        { migration: this.#migration.name, reason: outcome.problem.message, blockers: outcome.blockers },
        'the cutover is tried again',
      );
      return;
    }
    const forward = following.truth === 'source';
    log.info({ migration: this.#migration.name, heldMs: outcome.heldMs }, forward ? 'cut over' : 'reverted');
    this.#migration = forward
      ? { ...this.#migration, phase: 'cut_over', request: null }
      : { ...this.#migration, phase: 'verifying', request: null, options: { ...this.#migration.options, cutover: 'manual' } };
    this.#isReverted = !forward;
    course.verifiedTo = null;
    course.found = 0;
    course.windowEndsAt =
      this.#migration.phase === 'cut_over' && this.#migration.options.reverseWindowMs !== null
        ? Date.now() + this.#migration.options.reverseWindowMs
        : null;
    if (outcome.keys > 0) await this.#rest(letOthersMs);
    course.nextLook = performance.now() + verifyEveryMs;
    await tellOthers(course.sessions);
    wake();
    await this.#validate(course.sessions);
  }

  async #noteAttempt(course: Course, outcome: SwitchOutcome): Promise<void> {
    const { id } = this.#migration;
    const { sessions } = course;
    if (outcome.done) {
      course.attempts = 0;
      return;
    }
    const pauseMs = Math.min(100 * 1.5 ** course.attempts++, 2_000) * (0.75 + Math.random() / 2);
    course.notBefore = performance.now() + pauseMs;
    await noteProgress(
      sessions.work,
      id,
      `attempts = attempts + 1, next_try_at = clock_timestamp() + ${pauseMs} * interval '1 millisecond', blocked_by = ${quoteLiteral(JSON.stringify(outcome.blockers))}::jsonb, error = ${quoteLiteral(JSON.stringify(outcome.problem))}::jsonb`,
    );
  }

  /** Foreign keys of which the cutover said NOT VALID; this one, or one after which the process was killed. */
  async #validate(sessions: MigrationSessions): Promise<void> {
    const { rows } = await sessions.work.execute('unvalidated', unvalidatedSql, [String(this.#migration.id)]);
    let failed = false;
    for (const [sql] of rows) {
      await sessions.work.query(sql ?? '').catch((error: unknown) => {
        failed = true;
        this.#services.log.warn({ migration: this.#migration.name, err: error }, 'a foreign key could not be validated');
      });
    }
    if (rows.length > 0 && !failed) await noteProgress(sessions.work, this.#migration.id, 'to_validate = NULL');
  }

  async #noteLag(course: Course): Promise<void> {
    if (performance.now() < course.nextNote) return;
    course.nextNote = performance.now() + noteEveryMs;
    const { oldest } = course.feed.touched;
    const lag = oldest === undefined ? 0 : Math.max(0, Date.now() - oldest.committedAt);
    const set = `lag_ms = ${lag}, backlog_bytes = ${course.feed.backlogBytes}`;
    if (set === course.noted) return;
    course.noted = set;
    await noteProgress(course.sessions.work, this.#migration.id, set);
  }

  #windowIsOver({ windowEndsAt }: Course): boolean {
    return this.#migration.phase === 'cut_over' && this.#migration.request === null && windowEndsAt !== null && Date.now() >= windowEndsAt;
  }

  async #end(sessions: MigrationSessions, how: 'finalize' | 'cancel'): Promise<'ended' | 'again'> {
    const { log } = this.#services;
    const { id, name } = this.#migration;
    const outcome = await endMigration(sessions, this.#migration, how);
    if (!outcome.done) {
      await noteProgress(
        sessions.work,
        id,
        `attempts = attempts + 1, blocked_by = ${quoteLiteral(JSON.stringify(outcome.blockers))}::jsonb, error = ${quoteLiteral(JSON.stringify(outcome.problem))}::jsonb`,
      );
      return 'again';
    }
    log.info({ migration: name }, how === 'finalize' ? 'the migration is finished' : 'the migration was cancelled');
    return await this.#cleared(sessions);
  }

  /** It is over: what is left of it outside of the database's tables goes, too. */
  async #cleared({ beside }: MigrationSessions): Promise<'ended'> {
    const { databaseOid, wake } = this.#services;
    await noteProblem(beside, this.#migration.id, null);
    await dropSlot(beside, slotName(databaseOid, this.#migration.id), { terminate: true });
    wake();
    return 'ended';
  }
}
