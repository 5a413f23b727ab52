/**
 * A subscription to a live relation, read piece by piece: the rows that are there, then what changes.
 * Invariant: with a position `ts` every change up to it has been given and none after it, so that the rows given so far add up to the relation as
 * of that epoch. Rows wait in a cursor of the caller's session, in the upstream: a reader that is slow costs no memory here.
 */
import { millraceError } from '../errors.ts';
import type { CallerSession, Feed, FeedPage, FieldDescription } from './caller-session.ts';
import { firstRow, type StatementContext } from './context.ts';
import { changesSql, pastSql, type Shape, snapshotSql } from './subscribe-sql.ts';
import { advanceSubscription, endSubscription } from './subscription-catalog.ts';

type Row = readonly (string | null)[];

/** What is told of a subscription that cannot be read on. */
export interface ProblemHints {
  readonly overrun: string;
  /** Its relation was dropped. */
  readonly gone: () => Error;
}

/** What is read, and who reads it. */
export interface FeedPlan {
  readonly context: StatementContext;
  readonly fields: readonly FieldDescription[];
  readonly shape: Shape;
  /** Qualified and quoted. */
  readonly relation: string;
  readonly facade: string;
  readonly subscription: string;
  readonly isDurable: boolean;
  readonly pid: string;
  /** Types of the outbox's columns. */
  readonly types: readonly string[];
  /** null: now. */
  readonly asOf: number | null;
  readonly snapshot: boolean;
  /** Exclusive; null: without end. */
  readonly upTo: number | null;
  readonly hints: ProblemHints & { readonly denied: () => Promise<Error> };
  readonly patience: number;
}

/** As many changes are read at once, without a cursor. */
const fewChanges = 500;
const pageBytes = 262_144;
const advanceEveryMs = 2000;
let cursors = 0;

/** Rows of a cursor, about so many bytes at a time. */
class CursorReader {
  readonly #name: string;
  #rows = 100;

  private constructor(name: string) {
    this.#name = name;
  }

  /** In a block it ends with that; elsewhere it outlives the statement, and must be closed. */
  static async open(session: CallerSession, sql: string): Promise<CursorReader> {
    const name = `__millrace_subscription_${++cursors}`;
    await session.query(`DECLARE ${name} NO SCROLL CURSOR ${session.inTransactionBlock ? 'WITHOUT' : 'WITH'} HOLD FOR ${sql}`);
    return new CursorReader(name);
  }

  async read(session: CallerSession, max: number): Promise<{ readonly rows: readonly Row[]; readonly isLast: boolean }> {
    const wanted = Math.min(max, this.#rows);
    const { rows } = await session.query(`FETCH ${wanted} FROM ${this.#name}`, [], { quiet: true });
    if (rows.length > 0) {
      const bytes = rows.reduce((sum, row) => sum + row.reduce((width, value) => width + (value?.length ?? 0), 0), 0);
      this.#rows = Math.max(1, Math.min(2000, Math.floor(pageBytes / (bytes / rows.length + 1))));
    }
    return { rows, isLast: rows.length < wanted };
  }

  async close(session: CallerSession): Promise<void> {
    const there = await firstRow(session, 'SELECT 1 FROM pg_catalog.pg_cursors WHERE name OPERATOR(pg_catalog.=) $1', [this.#name]);
    if (there !== null) await session.query(`CLOSE ${this.#name}`, [], { quiet: true });
  }
}

export class RelationFeed implements Feed {
  readonly fields: readonly FieldDescription[];
  readonly #plan: FeedPlan;
  /** Rows that are here. */
  #ready: readonly Row[] = [];
  /** What is being read, and the position when it has been: null of a snapshot that says so itself. */
  #reading: { readonly cursor: CursorReader; readonly until: number | null } | null = null;
  /** null: nothing was given yet. */
  #position: number | null = null;
  #closed = false;
  #advancedAt = 0;
  #advanced = -1;

  constructor(plan: FeedPlan) {
    this.fields = plan.fields;
    this.#plan = plan;
  }

  async take(session: CallerSession, max: number, patienceMs: number | null): Promise<FeedPage> {
    const deadline = patienceMs === null ? null : performance.now() + patienceMs;
    for (;;) {
      if (this.#ready.length > 0) {
        const rows = this.#ready.slice(0, max);
        this.#ready = this.#ready.slice(rows.length);
        return { rows, ended: false };
      }
      if (this.#reading !== null) await this.#read(session, max);
      else if (this.#position === null) await this.#begin(session);
      else if (this.#isOver(this.#position)) return { rows: [], ended: true };
      else {
        this.#advance(session.database, this.#position);
        const left = deadline === null ? null : deadline - performance.now();
        if (!(await this.#follow(session, this.#position, left)) && left !== null && left <= 0) return { rows: [], ended: false };
      }
    }
  }

  async close(session: CallerSession | null): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    const { context, subscription, pid } = this.#plan;
    if (session !== null) await this.release(session).catch(() => undefined);
    if (this.#database !== null) await endSubscription(context, this.#database, subscription, pid).catch(() => undefined);
  }

  /** Closes what is open in the session. */
  async release(session: CallerSession): Promise<void> {
    const reading = this.#reading;
    this.#reading = null;
    await reading?.cursor.close(session);
  }

  #database: string | null = null;

  /** To be ended in this database. */
  opened(database: string): this {
    this.#database = database;
    return this;
  }

  #isOver(position: number): boolean {
    const { upTo } = this.#plan;
    return upTo !== null && position + 1 >= upTo;
  }

  /** Where it begins, and what is there. */
  async #begin(session: CallerSession): Promise<void> {
    const { asOf, upTo, shape, relation, snapshot, subscription, types } = this.#plan;
    if (asOf !== null && asOf === upTo) {
      this.#position = upTo;
      return;
    }
    if (!snapshot || asOf !== null) {
      const from = asOf ?? (await this.#reach(session, 0));
      if (asOf !== null) await this.#reach(session, asOf);
      if (upTo !== null && from > upTo) throw millraceError('subscription_bounds', { as_of: from, up_to: upTo });
      if (snapshot) {
        const cursor = await CursorReader.open(session, pastSql(shape, relation, subscription, from, types));
        this.#reading = { cursor, until: from };
        this.#ready = this.#progress(from);
      } else {
        this.#position = from;
        this.#ready = this.#progress(from);
        if (shape.progress && !this.#isOver(from)) this.#ready = [...this.#ready, ...this.#progress(from + 1)];
      }
      return;
    }
    this.#reading = { cursor: await CursorReader.open(session, snapshotSql(shape, relation)), until: null };
  }

  /** Waits until the epoch `ts` is over. */
  async #reach(session: CallerSession, ts: number): Promise<number> {
    for (;;) {
      const seen = await this.#wait(session, ts - 1, null);
      if (seen.ts !== null && seen.ts >= ts) return seen.ts;
    }
  }

  async #read(session: CallerSession, max: number): Promise<void> {
    const reading = this.#reading;
    if (reading === null) return;
    const { rows, isLast } = await reading.cursor.read(session, max);
    let until = reading.until;
    if (until !== null) this.#ready = rows;
    else {
      // The first column of a snapshot is its timestamp, of every row, and a row that has nothing else stands for none.
      until = Number(rows[0]?.[0] ?? this.#snapshotTs);
      const fresh = this.#snapshotTs === null;
      const begins = fresh ? this.#progress(until) : [];
      this.#snapshotTs = until;
      const { upTo } = this.#plan;
      if (fresh && upTo !== null && until > upTo) throw millraceError('subscription_bounds', { as_of: until, up_to: upTo });
      const there = until === upTo ? [] : rows.map((row) => row.slice(1)).filter((row) => row[0] !== null);
      this.#ready = [...begins, ...there];
    }
    if (!isLast) return;
    await reading.cursor.close(session);
    this.#reading = null;
    this.#arrive(until);
  }

  #snapshotTs: number | null = null;

  /** Everything up to `ts` is given, or stands ready. */
  #arrive(ts: number): void {
    this.#position = ts;
    this.#ready = [...this.#ready, ...this.#progress(ts + 1)];
  }

  /** Nothing earlier than `ts` comes any more. */
  #progress(ts: number): readonly Row[] {
    const { shape, upTo } = this.#plan;
    if (!shape.progress) return [];
    const shown = upTo === null ? ts : Math.min(ts, upTo);
    return [this.fields.map((_, index) => (index === 0 ? String(shown) : index === 1 ? 't' : null))];
  }

  /** Waits for the next epoch; false: none came. */
  async #follow(session: CallerSession, position: number, leftMs: number | null): Promise<boolean> {
    const { shape, subscription, types, upTo } = this.#plan;
    const seen = await this.#wait(session, position, leftMs);
    if (seen.ts === null || seen.ts <= position) return false;
    const until = upTo === null ? seen.ts : Math.min(seen.ts, upTo - 1);
    if (seen.changes === 0) this.#arrive(until);
    else {
      const sql = changesSql(shape, subscription, position, until, types);
      if (seen.changes > fewChanges) this.#reading = { cursor: await CursorReader.open(session, sql), until };
      else {
        this.#ready = (await session.query(sql, [], { quiet: true })).rows;
        this.#arrive(until);
      }
    }
    return true;
  }

  /** A while: until there is an epoch after `after`. */
  async #wait(
    session: CallerSession,
    after: number,
    leftMs: number | null,
  ): Promise<{ readonly ts: number | null; readonly changes: number }> {
    const { facade, hints, patience, relation, subscription } = this.#plan;
    const row = await firstRow(
      session,
      `SELECT w.ts, w.changes, w.problem, w.detail, w.hint, pg_catalog.has_table_privilege($4::pg_catalog.oid, 'SELECT')
         FROM millrace.subscription_wait($1::bigint, $2::bigint, $3::integer) w`,
      [subscription, String(after), String(Math.max(0, Math.floor(Math.min(patience, leftMs ?? patience)))), facade],
    );
    const [ts, changes, problem, detail, hint, may] = row ?? [];
    if (problem !== null && problem !== undefined) throw problemError(problem, relation, { detail, hint, ...hints });
    if (may !== 't') throw may === null ? hints.gone() : await hints.denied();
    return { ts: ts === null || ts === undefined ? null : Number(ts), changes: Number(changes ?? 0) };
  }

  /** What was given is not to be kept for it, now and then; what a durable one has read is kept until acknowledged. */
  #advance(database: string, position: number): void {
    const { context, isDurable, subscription } = this.#plan;
    const now = performance.now();
    if (isDurable || position <= this.#advanced || now - this.#advancedAt < advanceEveryMs) return;
    this.#advancedAt = now;
    this.#advanced = position;
    advanceSubscription(context, database, subscription, position).catch(() => undefined);
  }
}

/** Why a subscription cannot be read on. */
export function problemError(
  problem: string,
  relation: string,
  more: ProblemHints & { readonly detail?: string | null | undefined; readonly hint?: string | null | undefined },
): Error {
  switch (problem) {
    case 'overrun':
      return millraceError('subscription_overrun', { name: relation, hint: more.overrun });
    case 'dropped':
      return more.gone();
    case 'failed':
      return millraceError('subscription_relation_failed', { name: relation, cause: more.detail ?? '', hint: more.hint ?? '' });
    default:
      return millraceError('subscription_taken', { name: relation });
  }
}
