/**
 * A subscription to a query: run again after each epoch, and what differs is given.
 * Invariant: a row is given under the timestamp of the epoch that the snapshot of its run saw; the rows given so far add up to the result of that
 * run. The last result is held in memory, up to a limit.
 */
import { millraceError } from '../errors.ts';
import type { CallerSession, Feed, FeedPage, FieldDescription } from './caller-session.ts';
import { firstRow } from './context.ts';
import { givenSql, queryRowsSql, type Shape } from './subscribe-sql.ts';

type Row = readonly (string | null)[];

const mostRows = 100_000;
const mostBytes = 64 * 1024 ** 2;

export interface QueryFeedPlan {
  readonly fields: readonly FieldDescription[];
  readonly shape: Shape;
  readonly query: string;
  /** The earliest; null: now. */
  readonly asOf: number | null;
  readonly snapshot: boolean;
  readonly upTo: number | null;
  readonly patience: number;
  /** Nobody reads it any more. */
  readonly ended: () => Promise<void>;
}

export class QueryFeed implements Feed {
  readonly fields: readonly FieldDescription[];
  readonly #plan: QueryFeedPlan;
  #ready: readonly Row[] = [];
  #position: number | null = null;
  #closed = false;
  /** How often each row is in the last result; rows as JSON. */
  #last: ReadonlyMap<string, number> = new Map();

  constructor(plan: QueryFeedPlan) {
    this.fields = plan.fields;
    this.#plan = plan;
  }

  async take(session: CallerSession, max: number, patienceMs: number | null): Promise<FeedPage> {
    const { upTo } = this.#plan;
    const deadline = patienceMs === null ? null : performance.now() + patienceMs;
    for (;;) {
      if (this.#ready.length > 0) {
        const rows = this.#ready.slice(0, max);
        this.#ready = this.#ready.slice(rows.length);
        return { rows, ended: false };
      }
      if (this.#position !== null && upTo !== null && this.#position + 1 >= upTo) return { rows: [], ended: true };
      const left = deadline === null ? null : deadline - performance.now();
      if (!(await this.#next(session, left)) && left !== null && left <= 0) return { rows: [], ended: false };
    }
  }

  async close(): Promise<void> {
    this.#last = new Map();
    this.#ready = [];
    if (this.#closed) return;
    this.#closed = true;
    await this.#plan.ended().catch(() => undefined);
  }

  async #next(session: CallerSession, leftMs: number | null): Promise<boolean> {
    const { asOf, patience, shape, snapshot, upTo } = this.#plan;
    if (asOf !== null && asOf === upTo) {
      this.#position = upTo;
      return true;
    }
    const after = this.#position ?? (asOf ?? 0) - 1;
    const row = await firstRow(session, 'SELECT w.ts FROM millrace.subscription_wait(NULL, $1::bigint, $2::integer) w', [
      String(after),
      String(Math.max(0, Math.floor(Math.min(patience, leftMs ?? patience)))),
    ]);
    const now = Number(row?.[0] ?? -1);
    if (now <= after) return false;
    if (upTo !== null && now >= upTo && this.#position !== null) {
      // What has changed by then belongs to a later time.
      this.#arrive(upTo - 1);
      return true;
    }
    const isFirst = this.#position === null;
    const { ts, rows } = await this.#run(session);
    if (isFirst && upTo !== null && ts > upTo) throw millraceError('subscription_bounds', { as_of: ts, up_to: upTo });
    if (upTo !== null && ts >= upTo) {
      if (isFirst) this.#ready = this.#progress(ts);
      this.#arrive(upTo - 1);
      return true;
    }
    const changes = difference(this.#last, rows);
    this.#last = rows;
    const given =
      changes.length === 0 || (isFirst && !snapshot)
        ? []
        : await session.query(givenSql(shape, ts), [JSON.stringify(changes)], { quiet: true });
    this.#ready = [...(isFirst ? this.#progress(ts) : []), ...('rows' in given ? given.rows : [])];
    this.#arrive(ts);
    return true;
  }

  #arrive(ts: number): void {
    this.#position = ts;
    this.#ready = [...this.#ready, ...this.#progress(ts + 1)];
  }

  #progress(ts: number): readonly Row[] {
    if (!this.#plan.shape.progress) return [];
    return [this.fields.map((_, index) => (index === 0 ? String(ts) : index === 1 ? 't' : null))];
  }

  async #run(session: CallerSession): Promise<{ readonly ts: number; readonly rows: ReadonlyMap<string, number> }> {
    const { query, shape } = this.#plan;
    const result = await session.query(queryRowsSql(query, shape.columns, mostRows + 1));
    if (result.rows.length > mostRows) throw millraceError('subscription_too_large', { limit: `${mostRows} rows` });
    const rows = new Map<string, number>();
    let bytes = 0;
    for (const [, present, ...values] of result.rows) {
      if (present === null) continue;
      const key = JSON.stringify(values);
      bytes += key.length;
      if (bytes > mostBytes) throw millraceError('subscription_too_large', { limit: `${mostBytes / 1024 ** 2} MB` });
      rows.set(key, (rows.get(key) ?? 0) + 1);
    }
    return { ts: Number(result.rows[0]?.[0]), rows };
  }
}

/** [weight, value, ..] of what is to be added to the one to get the other. */
function difference(before: ReadonlyMap<string, number>, after: ReadonlyMap<string, number>): unknown[][] {
  const changes: unknown[][] = [];
  const add = (key: string, weight: number): void => {
    if (weight !== 0) changes.push([weight, ...(JSON.parse(key) as (string | null)[])]);
  };
  for (const [key, count] of after) add(key, count - (before.get(key) ?? 0));
  for (const [key, count] of before) if (!after.has(key)) add(key, -count);
  return changes;
}
