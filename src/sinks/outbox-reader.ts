/**
 * Reading what a sink has still to deliver.
 * Invariant: what `look` answers is of one snapshot of the catalog and the outbox: with a row come all rows of its epoch and of those before it,
 * and every cutover and hold that was decided by then. Nothing is answered to a process that no longer leads.
 */
import type { SinkColumn } from '../catalog/sink-model.ts';
import { backfillTable, outboxTable } from '../catalog/sink-model.ts';
import type { RawConnection, StatementResult } from '../replication/session-contract.ts';
import { quoteIdentifier } from '../sql/quote.ts';
import type { OutboxRow } from './changes.ts';
import type { Position } from './positions.ts';

/** Rows of one batch, unless an epoch alone has more. */
const batchRows = 50_000;
const fetchRows = 5_000;

export interface Outlook {
  readonly leads: boolean;
  readonly exists: boolean;
  readonly paused: boolean;
  /** What it had still to deliver was thrown away: only another version can be begun. */
  readonly overrun: boolean;
  /** The relation of its version was dropped, around Millrace too: nothing more comes of it. */
  readonly isGone: boolean;
  /** Timestamp of the last epoch. */
  readonly now: number;
  /** Nothing later may leave yet; null: anything may. */
  readonly bound: number | null;
  /** Version that follows, once everything up to its cutover is out; null: none yet. */
  readonly next: { readonly version: number; readonly cutTs: number; readonly hasBackfill: boolean } | null;
  /** Where a batch may end; null: there is nothing to deliver. */
  readonly upTo: number | null;
}

export interface ReadPlan {
  readonly columns: readonly SinkColumn[];
  /** Names of the key's columns; null: none. */
  readonly key: readonly string[] | null;
  /** Expression over the columns by name; null: none. */
  readonly partitionBy: string | null;
}

const outlookSql = (table: string): string => `
WITH sink AS (
  SELECT s.hold_ts, s.paused, (SELECT p.overrun FROM millrace.sink_progress p WHERE p.sink_id = s.id) AS overrun,
         (SELECT min(v.version) FROM millrace.sink_version v WHERE v.sink_id = s.id AND v.version > $2::integer AND v.cut_ts IS NOT NULL) AS next_version
    FROM millrace.sink s WHERE s.id = $1::bigint AND s.status <> 'dropped'
), cut AS (
  SELECT v.version, v.cut_ts, v.backfill <> 'none' AS has_backfill FROM sink JOIN millrace.sink_version v ON v.sink_id = $1::bigint AND v.version = sink.next_version
), bound AS (
  SELECT least((SELECT hold_ts FROM sink), (SELECT cut_ts FROM cut)) AS ts
), far AS (
  SELECT o.ts FROM ${table} o, bound WHERE o.ts > $3::bigint AND o.ts <= coalesce(bound.ts, o.ts) ORDER BY o.ts OFFSET ${batchRows} LIMIT 1
)
SELECT e.token::text, e.ts, (SELECT count(*) FROM sink), (SELECT paused FROM sink), (SELECT overrun FROM sink), bound.ts,
       cut.version, cut.cut_ts, cut.has_backfill,
       CASE WHEN EXISTS (SELECT FROM far)
            THEN coalesce((SELECT max(o.ts) FROM ${table} o WHERE o.ts > $3::bigint AND o.ts < (SELECT far.ts FROM far)), (SELECT far.ts FROM far))
            ELSE (SELECT max(o.ts) FROM ${table} o WHERE o.ts > $3::bigint AND o.ts <= coalesce(bound.ts, o.ts)) END,
       NOT EXISTS (SELECT FROM millrace.relation r WHERE r.id = $4::bigint AND r.state <> 'dropped')
  FROM millrace.epoch e CROSS JOIN bound LEFT JOIN cut ON true`;

/** What can be delivered after `position`, of the relation of its version. `token`: of the leadership. */
export async function look(
  session: RawConnection,
  sinkId: number,
  relationId: number,
  position: Position,
  token: string,
): Promise<Outlook> {
  const params = [String(sinkId), String(position.version), String(position.ts), String(relationId)];
  const { rows } = await session.execute(`look_${sinkId}`, outlookSql(outboxTable(relationId)), params);
  const [leader, now, count, paused, overrun, bound, version, cutTs, hasBackfill, upTo, gone] = rows[0] ?? [];
  const number = (value: string | null | undefined): number | null => (value === null || value === undefined ? null : Number(value));
  return {
    leads: leader === token,
    exists: count !== '0',
    paused: paused === 't',
    overrun: overrun === 't',
    isGone: gone === 't',
    now: Number(now),
    bound: number(bound),
    next:
      version === null || version === undefined
        ? null
        : { version: Number(version), cutTs: Number(cutTs), hasBackfill: hasBackfill === 't' },
    upTo: number(upTo),
  };
}

/** Rows of the outbox after `after` up to `upTo`, in order of epochs, those of a group next to each other. In pages. */
export async function readChanges(
  session: RawConnection,
  relationId: number,
  plan: ReadPlan,
  range: { readonly after: number; readonly upTo: number },
  take: (rows: readonly OutboxRow[]) => Promise<void>,
): Promise<void> {
  const group = groupColumns(plan);
  const order = ['r.ts', ...group.map((place) => `r.v${place}::text COLLATE "C"`), 'r.w'];
  const sql = `SELECT r.ts, r.w, ${partition(plan)}${plan.columns.map((_, index) => `, r.v${index + 1}`).join('')}
  FROM ${outboxTable(relationId)} r WHERE r.ts > ${range.after} AND r.ts <= ${range.upTo} ORDER BY ${order.join(', ')}`;
  const asRow = (values: readonly (string | null)[]): OutboxRow => {
    const row = values.slice(3);
    return { ts: Number(values[0]), weight: Number(values[1]), partition: values[2] ?? null, row, group: groupOf(row, group) };
  };
  await pages(session, sql, (result) => take(result.rows.map(asRow)));
}

/** Rows of a version's backfill after number `after`, whole numbers, about a batch of them. Answers the last number; null: there are no more. */
export async function readBackfill(
  session: RawConnection,
  sinkId: number,
  version: number,
  plan: ReadPlan,
  range: { readonly after: number; readonly ts: number },
  take: (rows: readonly OutboxRow[]) => Promise<void>,
): Promise<number | null> {
  let last: number | null = null;
  const sql = `SELECT r.seq, r.w, ${partition(plan)}${plan.columns.map((_, index) => `, r.v${index + 1}`).join('')}
  FROM ${backfillTable(sinkId, version)} r WHERE r.seq > ${range.after} AND r.seq <= ${range.after + batchRows} ORDER BY r.seq, r.place`;
  await pages(session, sql, async (result) => {
    await take(
      result.rows.map((values) => ({
        ts: range.ts,
        weight: Number(values[1]),
        partition: values[2] ?? null,
        row: values.slice(3),
        group: values[0] ?? '',
      })),
    );
    const seq = result.rows.at(-1)?.[0];
    if (seq !== null && seq !== undefined) last = Number(seq);
  });
  return last;
}

async function pages(session: RawConnection, sql: string, take: (result: StatementResult) => Promise<void>): Promise<void> {
  await session.query(`BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; DECLARE batch NO SCROLL CURSOR FOR ${sql}`);
  let ahead = session.query(`FETCH ${fetchRows} FROM batch`);
  try {
    for (;;) {
      const [page] = await ahead;
      if (page === undefined || page.rows.length === 0) break;
      const isLast = page.rows.length < fetchRows;
      // The next page is read while this one is written.
      if (!isLast) {
        ahead = session.query(`FETCH ${fetchRows} FROM batch`);
        ahead.catch(() => undefined);
      }
      await take(page);
      if (isLast) break;
    }
  } finally {
    await ahead.catch(() => undefined);
    await session.query('ROLLBACK').catch(() => undefined);
  }
}

/** Places of the columns by which rows belong together: the key, or all. */
function groupColumns({ columns, key }: ReadPlan): number[] {
  if (key === null) return columns.map((_, index) => index + 1);
  return key.map((name) => columns.findIndex((column) => column.name === name) + 1).filter((place) => place > 0);
}

function groupOf(row: readonly (string | null)[], places: readonly number[]): string {
  return JSON.stringify(places.map((place) => row[place - 1]));
}

/** The expression reads the columns by their names. */
function partition({ columns, partitionBy }: ReadPlan): string {
  if (partitionBy === null) return 'NULL';
  const named = columns.map(({ name }, index) => `r.v${index + 1} AS ${quoteIdentifier(name)}`);
  return `(SELECT (${partitionBy})::bigint FROM (SELECT ${named.join(', ')}) row)`;
}
