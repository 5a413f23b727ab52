/**
 * Brings what was set aside during a copy into the storage.
 * Invariant: rows of the spool are taken in the order of their places, which is the stream's; after them every row that they touch is as the
 * stream left it, whatever newer state the copy may have had of it.
 * Why it does not matter that pieces of the copy are of different snapshots, all later than the one that the spool is cut at: with a key, the last
 * change of a row that says a column's value decides it. Where no change of the spool says it, nothing has changed it since, and the copy has it.
 * The one exception, an update that moves a row to another key and leaves values out, is what `mendMoves` of table-copy.ts is for.
 */
import { type Storage, spoolTable, storageColumn, storageTable } from '../catalog/model.ts';
import { storageKey } from '../catalog/storage-ddl.ts';
import type { RawConnection } from '../replication/session-contract.ts';
import { isVisible, parseSnapshot } from '../replication/snapshot-visibility.ts';
import { applyStaged, clearStorage, isRehashed } from './apply-sql.ts';

/** Rows that one transaction beside the stream takes. */
const portionRows = 20_000;

/** Applies the rows that fulfil `within`, a condition on the spool; all by default. They stay in the spool, but for those that the copy's snapshot sees. */
export async function applySpool(session: RawConnection, storage: Storage, within = 'true'): Promise<void> {
  const spool = spoolTable(storage.id);
  if (storage.copySnapshot !== null) {
    const seen = (await spooledXids(session, storage, within)).filter(seenBy(storage.copySnapshot));
    if (seen.length > 0) await session.query(`DELETE FROM ${spool} WHERE xid = ANY ('{${seen.join(',')}}') AND ${within}`);
  }
  // What stands alone, and how many other rows come before it.
  const [special] = await session.query(
    `SELECT place, op, before
       FROM (SELECT place, op, count(*) FILTER (WHERE op NOT IN ('T', 'O', 'N')) OVER (ORDER BY place) AS before FROM ${spool} WHERE ${within}) x
      WHERE op IN ('T', 'O') ORDER BY place`,
  );
  let after = -1n;
  let taken = 0;
  for (const [place, op, before] of special?.rows ?? []) {
    if (Number(before) > taken) await applyRows(session, storage, `${within} AND place > ${after} AND place < ${place}`);
    taken = Number(before);
    if (op === 'T') {
      await session.query(clearStorage(storage));
      after = BigInt(place ?? 0);
    } else after = await moveRow(session, storage, BigInt(place ?? 0));
  }
  await applyRows(session, storage, `${within} AND place > ${after}`);
}

/** Applies the oldest rows and takes them out of the spool, in a transaction of the caller's. Answers how many there were, up to portionRows. */
export async function applyPortion(session: RawConnection, storage: Storage): Promise<number> {
  const spool = spoolTable(storage.id);
  const [oldest] = await session.query(
    `SELECT max(place), count(*) FROM (SELECT place FROM ${spool} ORDER BY place LIMIT ${portionRows}) x`,
  );
  const [last, count] = oldest?.rows[0] ?? [];
  if (last === null || last === undefined) return 0;
  // The two rows of one change are not torn apart.
  const within = `place <= coalesce((SELECT n.place FROM ${spool} n, ${spool} o WHERE o.place = ${last} AND o.op = 'O' AND n.place > o.place ORDER BY n.place LIMIT 1), ${last})`;
  await applySpool(session, storage, within);
  await session.query(`DELETE FROM ${spool} WHERE ${within}`);
  return Number(count);
}

export const spoolIsLong = (count: number): boolean => count >= portionRows / 10;

/** The xids in the spool. */
export async function spooledXids(session: RawConnection, storage: Storage, within = 'true'): Promise<number[]> {
  const [xids] = await session.query(`SELECT DISTINCT xid FROM ${spoolTable(storage.id)} WHERE ${within}`);
  return (xids?.rows ?? []).map((row) => Number(row[0]));
}

/** Whether a snapshot, given as text, sees a transaction. */
export function seenBy(snapshot: string): (xid: number) => boolean {
  const parsed = parseSnapshot(snapshot);
  return (xid) => isVisible(parsed, xid);
}

/** Rows among which there is no TRUNCATE and no moved row. */
async function applyRows(session: RawConnection, storage: Storage, within: string): Promise<void> {
  const isKeyed = storage.keyAttnums.length > 0;
  const [found] = isKeyed
    ? await session.query(`SELECT DISTINCT keep FROM ${spoolTable(storage.id)} WHERE keep IS NOT NULL AND ${within}`)
    : [undefined];
  const masks = (found?.rows ?? []).map((row) => row[0] ?? '');
  const left = new Set(storage.columns.flatMap((_, index) => (masks.some((mask) => mask[index] === '1') ? [index] : [])));
  const shape = {
    inserts: true,
    updates: true,
    deletes: true,
    repeats: left.size === 0,
    keeps: left.size > 0,
    rehash: isRehashed(storage),
  };
  const staged = left.size > 0 ? folded(storage, within, left) : asSpooled(storage, within);
  for (const sql of applyStaged(storage, shape, `(${staged})`)) await session.query(sql);
}

function asSpooled(storage: Storage, within: string): string {
  const data = storage.columns.map((column) =>
    column.lost === true ? `NULL::${column.type} AS ${storageColumn(column.attnum)}` : `x.${storageColumn(column.attnum)}`,
  );
  return `SELECT x.place AS seq, x.op, x.${storage.keyAttnums.length > 0 ? 'keep' : 'h'}, ${data.join(', ')} FROM ${spoolTable(storage.id)} x WHERE ${within}`;
}

/** One row a key: its last change, with values that it left out (columns `left`, by place) as the last change said that did not. `keep` marks what none did. */
function folded(storage: Storage, within: string, left: ReadonlySet<number>): string {
  const spool = spoolTable(storage.id);
  const key = storageKey(storage).join(', ');
  const columns = storage.columns.map((column) => storageColumn(column.attnum));
  const said = (index: number): string => `p${index}`;
  const places = [...left].map(
    (index) =>
      `max(y.place) FILTER (WHERE substr(y.keep, ${index + 1}, 1) IS DISTINCT FROM '1') OVER (PARTITION BY ${key}) AS ${said(index)}`,
  );
  const keep = columns.map((_, index) => (left.has(index) ? `CASE WHEN x.${said(index)} IS NULL THEN '1' ELSE '0' END` : "'0'"));
  const values = columns.map((column, index) =>
    left.has(index)
      ? `CASE WHEN x.${said(index)} = x.place THEN x.${column} ELSE (SELECT z.${column} FROM ${spool} z WHERE z.place = x.${said(index)}) END AS ${column}`
      : `x.${column}`,
  );
  return `SELECT DISTINCT ON (${key}) x.place AS seq, x.op, ${keep.join(' || ')} AS keep, ${values.join(', ')}
  FROM (SELECT y.*, ${places.join(', ')} FROM ${spool} y WHERE ${within}) x ORDER BY ${storageKey(storage)
    .map((column) => `x.${column}`)
    .join(', ')}, x.place DESC`;
}

/** An update that moved a row to another key and left values out: op O has the old key, op N, the next, the new row. Answers the place of that. */
async function moveRow(session: RawConnection, storage: Storage, place: bigint): Promise<bigint> {
  const spool = spoolTable(storage.id);
  const on = storage.keyAttnums.map((attnum) => `s.${storageColumn(attnum)} = o.${storageColumn(attnum)}`).join(' AND ');
  const assignments = storage.columns.map((column, index) => {
    const name = storageColumn(column.attnum);
    return `${name} = CASE WHEN substr(n.keep, ${index + 1}, 1) = '1' THEN s.${name} ELSE n.${name} END`;
  });
  const [next] = await session.query(`SELECT min(place) FROM ${spool} WHERE place > ${place} AND op = 'N'`);
  const moved = BigInt(next?.rows[0]?.[0] ?? place);
  await session.query(
    `UPDATE ${storageTable(storage.id)} s SET ${assignments.join(', ')}
       FROM (SELECT * FROM ${spool} WHERE place = ${place}) o, (SELECT * FROM ${spool} WHERE place = ${moved}) n
      WHERE ${on}`,
  );
  return moved;
}
