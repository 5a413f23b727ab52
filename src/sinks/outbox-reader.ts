/**
 * Reading what a sink has still to deliver.
 * Invariant: what `look` answers is of one snapshot of the catalog and the outbox: with a row come all rows of its epoch and of those before it,
 * and every cutover and hold that was decided by then. Nothing is answered to a process that no longer leads.
 */
import type { SinkColumn } from '../catalog/sink-model.ts';
import { backfillTable, type OutboxSegment, outboxSegmentTable } from '../catalog/sink-model.ts';
import type { RawConnection } from '../replication/session-contract.ts';
import { quoteIdentifier } from '../sql/quote.ts';
import { LineReader, type RowsHandler } from './line-reader.ts';
import type { Position } from './positions.ts';
import type { LineLayout } from './row-lines.ts';

/** Rows of one batch, unless an epoch alone has more. */
const batchRows = 50_000;

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
  /** Where the oldest rows are that may be delivered; null: there are none. */
  readonly segment: OutboxSegment | null;
}

export interface ReadPlan {
  readonly columns: readonly SinkColumn[];
  /** Names of the key's columns; null: none. */
  readonly key: readonly string[] | null;
  /** Expression over the columns by name; null: none. */
  readonly partitionBy: string | null;
}

const outlookSql = (relationId: number): string => `
WITH sink AS (
  SELECT s.hold_ts, s.paused, (SELECT p.overrun FROM millrace.sink_progress p WHERE p.sink_id = s.id) AS overrun,
         (SELECT min(v.version) FROM millrace.sink_version v WHERE v.sink_id = s.id AND v.version > $2::integer AND v.cut_ts IS NOT NULL) AS next_version
    FROM millrace.sink s WHERE s.id = $1::bigint AND s.status <> 'dropped'
), cut AS (
  SELECT v.version, v.cut_ts, v.backfill <> 'none' AS has_backfill FROM sink JOIN millrace.sink_version v ON v.sink_id = $1::bigint AND v.version = sink.next_version
), bound AS (
  SELECT least((SELECT hold_ts FROM sink), (SELECT cut_ts FROM cut)) AS ts
), due AS (
  SELECT b.segment,
         EXISTS (SELECT FROM ${outboxSegmentTable(relationId, 'a')} o WHERE o.ts > $3::bigint AND o.ts <= coalesce(bound.ts, o.ts)) AS a,
         EXISTS (SELECT FROM ${outboxSegmentTable(relationId, 'b')} o WHERE o.ts > $3::bigint AND o.ts <= coalesce(bound.ts, o.ts)) AS b
    FROM bound, millrace.outbox b WHERE b.relation_id = $4::bigint
)
SELECT e.token::text, e.ts, (SELECT count(*) FROM sink), (SELECT paused FROM sink), (SELECT overrun FROM sink), bound.ts,
       cut.version, cut.cut_ts, cut.has_backfill,
       (SELECT CASE WHEN due.a AND (due.segment = 'b' OR NOT due.b) THEN 'a' WHEN due.b THEN 'b' END FROM due),
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
  const { rows } = await session.execute(`look_${sinkId}`, outlookSql(relationId), params);
  const [leader, now, count, paused, overrun, bound, version, cutTs, hasBackfill, segment, gone] = rows[0] ?? [];
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
    segment: segment === 'a' || segment === 'b' ? segment : null,
  };
}

/** Rows after `after` up to `upTo`, of one segment. */
export interface OutboxRange {
  readonly segment: OutboxSegment;
  readonly after: number;
  readonly upTo: number;
}

/**
 * Where a batch ends. Rows lie in the order of their epochs, but for those that came to where others were vacuumed away: it is those that come first
 * that are counted, and what comes after them decides nothing but how large the batch is.
 */
const batchEndSql = (table: string): string => `
WITH far AS (
  SELECT o.ts FROM ${table} o WHERE o.ts > $1::bigint AND o.ts <= $2::bigint OFFSET ${batchRows} LIMIT 1
)
SELECT CASE WHEN NOT EXISTS (SELECT FROM far) THEN (SELECT max(o.ts) FROM ${table} o WHERE o.ts > $1::bigint AND o.ts <= $2::bigint)
            WHEN EXISTS (SELECT FROM ${table} o, far WHERE o.ts > $1::bigint AND o.ts < far.ts) THEN (SELECT far.ts - 1 FROM far)
            ELSE (SELECT far.ts FROM far) END`;

/** The part of a range that is delivered at once: whole epochs. `range.upTo`: of epochs that have committed. */
export async function firstBatch(session: RawConnection, sinkId: number, relationId: number, range: OutboxRange): Promise<OutboxRange> {
  const sql = batchEndSql(outboxSegmentTable(relationId, range.segment));
  const { rows } = await session.execute(`batch_${sinkId}${range.segment}`, sql, [String(range.after), String(range.upTo)]);
  return { ...range, upTo: Number(rows[0]?.[0] ?? range.upTo) };
}

/** The rows of a range in order of epochs, those of a group next to each other. In pages. */
export async function readChanges(
  session: RawConnection,
  relationId: number,
  plan: ReadPlan,
  range: OutboxRange,
  take: RowsHandler,
): Promise<void> {
  const group = groupColumns(plan);
  const order = ['r.ts', ...group.map((place) => groupingOrder(plan.columns[place], `r.v${place + 1}`)), 'r.w'];
  const { list, layout } = lineOf(plan, group);
  const sql = `SELECT r.w, ${partition(plan)}, r.ts${list}
  FROM ${outboxSegmentTable(relationId, range.segment)} r WHERE r.ts > ${range.after} AND r.ts <= ${range.upTo} ORDER BY ${order.join(', ')}`;
  await new LineReader(session, { layout, grouped: group.length, ts: null }).read(sql, take);
}

/** Rows of a version's backfill after number `after`, whole numbers, about a batch of them. Answers the last number; null: there are no more. */
export async function readBackfill(
  session: RawConnection,
  sinkId: number,
  version: number,
  plan: ReadPlan,
  range: { readonly after: number; readonly ts: number },
  take: RowsHandler,
): Promise<number | null> {
  const { list, layout } = lineOf(plan, groupColumns(plan));
  const sql = `SELECT r.w, ${partition(plan)}, r.seq${list}
  FROM ${backfillTable(sinkId, version)} r WHERE r.seq > ${range.after} AND r.seq <= ${range.after + batchRows} ORDER BY r.seq, r.place`;
  const reader = new LineReader(session, { layout, grouped: 0, ts: range.ts });
  await reader.read(sql, take);
  return reader.lastNumber;
}

/** Indexes of the columns by which rows belong together: the key, or all. */
function groupColumns({ columns, key }: ReadPlan): number[] {
  if (key === null) return columns.map((_, index) => index);
  return key.map((name) => columns.findIndex((column) => column.name === name)).filter((index) => index >= 0);
}

/** The columns as they stand in a line, those by which rows belong together first. */
function lineOf({ columns }: ReadPlan, group: readonly number[]): { readonly list: string; readonly layout: LineLayout } {
  const order = [...group, ...columns.keys()].filter((index, at, all) => all.indexOf(index) === at);
  return { list: order.map((index) => `, r.v${index + 1}`).join(''), layout: { fieldOf: columns.map((_, index) => order.indexOf(index)) } };
}

/** Types of which equal values have one text, and other values another. */
const oneText: ReadonlySet<string> = new Set(['int2', 'int4', 'int8', 'oid', 'uuid', 'bool', 'date', 'timestamp', 'timestamptz']);

/** An order that puts values with the same text next to each other. */
function groupingOrder(column: SinkColumn | undefined, value: string): string {
  if (column !== undefined && column.element === undefined && (column.typeKind ?? 'b') === 'b') {
    if (oneText.has(column.typeName)) return value;
    if (column.typeName === 'text' || column.typeName === 'varchar') return `${value} COLLATE "C"`;
  }
  return `${value}::text COLLATE "C"`;
}

/** The expression reads the columns by their names. */
function partition({ columns, partitionBy }: ReadPlan): string {
  if (partitionBy === null) return 'NULL';
  const named = columns.map(({ name }, index) => `r.v${index + 1} AS ${quoteIdentifier(name)}`);
  return `(SELECT (${partitionBy})::bigint FROM (SELECT ${named.join(', ')}) row)`;
}
