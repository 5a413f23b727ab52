/**
 * The rows of SUBSCRIBE as SQL. Pure: text in, text out.
 * Invariant: of the rows of one timestamp those that look the same and came and went cancel out; with an envelope one row a key and timestamp is
 * left. Rows look the same when Postgres prints them the same, and each value is printed by its own type, once.
 */
import { quoteIdentifier } from '../sql/quote.ts';

export interface ShownColumn {
  readonly name: string;
  /** As format_type prints it. */
  readonly type: string;
}

/** What the rows are to look like. */
export interface Shape {
  readonly columns: readonly ShownColumn[];
  readonly envelope: 'upsert' | 'debezium' | null;
  /** Places of the key's columns, from 0; of no meaning without an envelope. */
  readonly key: readonly number[];
  /** Expressions over the columns of the result; null: none. */
  readonly orderBy: string | null;
  readonly progress: boolean;
}

const v = (place: number): string => `v${place + 1}`;
const places = (columns: readonly ShownColumn[]): number[] => columns.map((_, place) => place);

/** Rows as they print, as one text. No columns at all: all alike. */
const image = (which: readonly number[]): string =>
  which.length === 0 ? "''" : `ROW(${which.map((place) => `r.${v(place)}`).join(', ')})::text COLLATE "C"`;

/** Rows for the client. `rows`: a query that gives ts, w, v1, v2, .. `distinct`: they are of one timestamp, and no two of them cancel out. */
export function shapedSql(shape: Shape, rows: string, distinct: boolean): string {
  const all = places(shape.columns);
  const list = all.map((place) => `, r.${v(place)}`).join('');
  const imaged = `SELECT r.ts, r.w, ${image(all)} AS image${list} FROM (${rows}) r`;
  const net = distinct
    ? `SELECT r.ts, r.w::bigint AS d${list} FROM (${rows}) r`
    : `SELECT DISTINCT ON (r.ts, r.image) r.ts, r.d${list}
         FROM (SELECT r.ts, r.image, (sum(r.w) OVER (PARTITION BY r.ts, r.image))::bigint AS d${list} FROM (${imaged}) r) r WHERE r.d <> 0`;
  const shaped = shape.envelope === null ? plain(shape, net) : enveloped(shape, shape.envelope, net);
  // Rows of one timestamp need no order but the one asked for.
  const order = distinct ? [] : ['mz_timestamp', ...(shape.envelope === null && shape.orderBy === null ? ['mz_diff'] : [])];
  if (shape.orderBy !== null) order.push(shape.orderBy);
  return `SELECT * FROM (${shaped}) s${order.length === 0 ? '' : ` ORDER BY ${order.join(', ')}`}`;
}

const head = ({ progress }: Shape): string => `r.ts::numeric AS mz_timestamp${progress ? ', false AS mz_progressed' : ''}`;
const shown = ({ columns }: Shape, place: number): string => quoteIdentifier(columns[place]?.name ?? '');

function plain(shape: Shape, net: string): string {
  const list = places(shape.columns).map((place) => `, r.${v(place)} AS ${shown(shape, place)}`);
  return `SELECT ${head(shape)}, r.d AS mz_diff${list.join('')} FROM (${net}) r`;
}

/** One row that came, one that went, or both, tell what became of a key; everything else violates it. */
function enveloped(shape: Shape, envelope: 'upsert' | 'debezium', net: string): string {
  const all = places(shape.columns);
  const values = all.filter((place) => !shape.key.includes(place));
  const list = all.map((place) => `, r.${v(place)}`).join('');
  const former = envelope === 'upsert' ? [] : values.map((place) => `, lead(r.${v(place)}) OVER same AS b${place + 1}`);
  const counted = `
    SELECT r.ts, r.d, r.k${list}${former.join('')},
           coalesce(sum(r.d) FILTER (WHERE r.d > 0) OVER key, 0) AS came, coalesce(-sum(r.d) FILTER (WHERE r.d < 0) OVER key, 0) AS went
      FROM (SELECT r.*, ${image(shape.key)} AS k FROM (${net}) r) r
    WINDOW key AS (PARTITION BY r.ts, r.k), same AS (PARTITION BY r.ts, r.k ORDER BY r.d DESC)`;
  const one = `SELECT DISTINCT ON (r.ts, r.k) r.*,
           CASE WHEN r.came = 1 AND r.went ${envelope === 'debezium' ? "= 0 THEN 'insert' WHEN r.came = 1 AND r.went = 1" : '<= 1'} THEN 'upsert'
                WHEN r.came = 0 AND r.went = 1 THEN 'delete' ELSE 'key_violation' END AS state
      FROM (${counted}) r ORDER BY r.ts, r.k, r.d DESC`;
  const key = shape.key.map((place) => `, r.${v(place)} AS ${shown(shape, place)}`);
  const is = (states: string, expression: string, name: string): string =>
    `, CASE WHEN r.state IN (${states}) THEN ${expression} END AS ${name}`;
  const shownValues =
    envelope === 'upsert'
      ? values.map((place) => is("'upsert'", `r.${v(place)}`, shown(shape, place)))
      : [
          ...values.map((place) => {
            const name = quoteIdentifier(`before_${shape.columns[place]?.name ?? ''}`);
            return `, CASE r.state WHEN 'upsert' THEN r.b${place + 1} WHEN 'delete' THEN r.${v(place)} END AS ${name}`;
          }),
          ...values.map((place) => is("'insert', 'upsert'", `r.${v(place)}`, quoteIdentifier(`after_${shape.columns[place]?.name ?? ''}`))),
        ];
  return `SELECT ${head(shape)}, r.state::text AS mz_state${key.join('')}${shownValues.join('')} FROM (${one}) r`;
}

/** What is there now. The first column is the timestamp of the statement's snapshot; with no rows one comes that has nothing else. */
export function snapshotSql(shape: Shape, relation: string): string {
  const list = shape.columns.map(({ name }, place) => `, f.${quoteIdentifier(name)} AS ${v(place)}`);
  const rows = `SELECT (SELECT millrace.epoch_ts()) AS ts, 1 AS w${list.join('')} FROM ${relation} f`;
  return `SELECT x.*, p.* FROM (SELECT millrace.epoch_ts() AS now) x LEFT JOIN (${shapedSql(shape, rows, true)}) p ON true${behindJoin(shape)}`;
}

/** A join keeps no order that Postgres promises. */
const behindJoin = ({ orderBy }: Shape): string => (orderBy === null ? '' : ` ORDER BY mz_timestamp, ${orderBy}`);

/** The changes in (after, upTo]. `types`: of the outbox's columns. */
export function changesSql(shape: Shape, subscription: string, after: number, upTo: number | null, types: readonly string[]): string {
  return shapedSql(shape, changes(subscription, after, upTo, types), false);
}

/** What was there at `ts`: what is there now, without what came since. */
export function pastSql(shape: Shape, relation: string, subscription: string, ts: number, types: readonly string[]): string {
  const now = shape.columns.map(({ name }, place) => `, f.${quoteIdentifier(name)} AS ${v(place)}`).join('');
  const undone = places(shape.columns)
    .map((place) => `, c.${v(place)}`)
    .join('');
  const rows = `SELECT ${ts}::bigint AS ts, 1 AS w${now} FROM ${relation} f
    UNION ALL SELECT ${ts}::bigint, -c.w${undone} FROM (${changes(subscription, ts, null, types)}) c`;
  return shapedSql(shape, rows, false);
}

const latest = '9223372036854775807';

function changes(subscription: string, after: number, upTo: number | null, types: readonly string[]): string {
  const definition = types.map((type, place) => `, ${v(place)} ${type}`).join('');
  return `SELECT * FROM millrace.subscription_changes(${subscription}, ${after}, ${upTo ?? latest}) AS c(ts bigint, w smallint${definition})`;
}

/** Differences that the caller has found: $1 is JSON, [[w, v1, ..], ..] with values as text. */
export function givenSql(shape: Shape, ts: number): string {
  const list = shape.columns.map(({ type }, place) => `, (j ->> ${place + 1})::${type} AS ${v(place)}`);
  return shapedSql(
    shape,
    `SELECT ${ts}::bigint AS ts, (j ->> 0)::integer AS w${list.join('')} FROM pg_catalog.json_array_elements($1::json) j`,
    true,
  );
}

/** What a query gives now; first columns as of `snapshotSql`, and whether there is a row. */
export function queryRowsSql(query: string, columns: readonly ShownColumn[], limit: number): string {
  const names = places(columns)
    .map((place) => `, ${v(place)}`)
    .join('')
    .slice(2);
  const rows = names === '' ? query : `SELECT q.* FROM (${query}) AS q(${names})`;
  return `SELECT x.*, p.* FROM (SELECT millrace.epoch_ts() AS now) x LEFT JOIN (SELECT true AS present, p.* FROM (${rows}) p LIMIT ${limit}) p ON true`;
}
