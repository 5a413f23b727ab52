/**
 * What a copy has otherwise than the storage that it resynchronises.
 * Invariant: only rows that differ are written, and a row that differs is always found. What differs is looked for beside the epochs, while neither side
 * changes: the storage is stale, and what comes for the copy waits in its spool. The epoch that ends the resynchronisation then looks at those rows and at
 * those that the spool touches; to compare all rows takes 2.5 s of each million with a key, and 24 without, for which every source would stand still.
 */
import { differenceTable, type Storage, spoolTable, storageColumn, storageTable } from '../catalog/model.ts';
import { storageKey } from '../catalog/storage-ddl.ts';
import { connectRaw } from '../replication/raw-connection.ts';
import { imageOf, isRehashed, rowHash } from './apply-sql.ts';
import type { EngineContext } from './context.ts';
import { copySettings, freePlanner } from './session-settings.ts';

/** Columns by which rows are found: the key, or the hash of the row. */
const placeColumns = (storage: Storage): string[] => (storage.keyAttnums.length > 0 ? storageKey(storage) : ['h']);

/**
 * Compares all rows and writes down the places of those that differ, in a session of its own. To be called when the copy is in. False: it cannot be done, as
 * rows that are the same have other hashes on the other side (a storage without key that has lost a column).
 */
export async function findDifference({ config }: EngineContext, copy: Storage, storage: Storage): Promise<boolean> {
  if (storage.keyAttnums.length === 0 && (isRehashed(copy) || isRehashed(storage))) return false;
  const session = await connectRaw(config.upstream, {
    database: config.database,
    applicationName: 'millrace compare',
    settings: { ...copySettings, work_mem: '64MB' },
  });
  try {
    const found = differenceTable(copy.id);
    await session.query(`DROP TABLE IF EXISTS ${found}`);
    await session.query('BEGIN');
    await session.query(freePlanner);
    await session.query(`CREATE TABLE ${found} AS ${differentPlaces(copy, storage)}`);
    await session.query('COMMIT');
    await session.query(`ANALYZE ${found}`);
    return true;
  } finally {
    await session.close().catch(() => undefined);
  }
}

function differentPlaces(copy: Storage, storage: Storage): string {
  const [from, to] = [storageTable(copy.id), storageTable(storage.id)];
  const image = (row: string): string => imageOf(storage, row);
  if (storage.keyAttnums.length === 0)
    return `SELECT DISTINCT x.h
  FROM (SELECT s.h, ${image('s')} AS image, -1 AS n FROM ${to} s UNION ALL SELECT n.h, ${image('n')}, 1 FROM ${from} n) x
 GROUP BY x.h, x.image HAVING sum(x.n) <> 0`;
  const key = storageKey(storage);
  // A row that is on one side only looks otherwise than none, as its key is not NULL.
  return `SELECT ${key.map((column) => `coalesce(s.${column}, n.${column}) AS ${column}`).join(', ')}
  FROM ${to} s FULL JOIN ${from} n ON ${key.map((column) => `s.${column} = n.${column}`).join(' AND ')}
 WHERE ${image('s')} <> ${image('n')}`;
}

/** Adds the places of rows that changes in the spool concern. Before those are applied, and not where there is a TRUNCATE among them. */
export function touchedSql(copy: Storage): string {
  const columns = placeColumns(copy).join(', ');
  return `INSERT INTO ${differenceTable(copy.id)} (${columns}) SELECT DISTINCT ${columns} FROM ${spoolTable(copy.id)} WHERE op <> 'T'`;
}

export const isEmptiedSql = (copy: Storage): string => `SELECT EXISTS (SELECT FROM ${spoolTable(copy.id)} WHERE op = 'T')`;

/**
 * Makes the storage hold the rows of the copy, writing only rows that differ. Rows are compared as text: equal is not always the same. `within`: 'found',
 * only rows at the places that have been written down; 'all', all rows.
 */
export function differenceSql(copy: Storage, storage: Storage, within: 'found' | 'all'): string[] {
  const [from, to] = [storageTable(copy.id), storageTable(storage.id)];
  const columns = storage.columns.map((column) => storageColumn(column.attnum));
  const image = (row: string): string => imageOf(storage, row);
  const list = (row: string): string => columns.map((column) => `${row}.${column}`).join(', ');
  const isFound = (row: string): string => {
    const places = placeColumns(storage);
    const same = places.map((column) => `f.${column} = ${row}.${column}`).join(' AND ');
    return within === 'all' ? 'true' : `EXISTS (SELECT FROM ${differenceTable(copy.id)} f WHERE ${same})`;
  };
  if (storage.keyAttnums.length > 0) {
    const same = storageKey(storage)
      .map((column) => `s.${column} = n.${column}`)
      .join(' AND ');
    return [
      `DELETE FROM ${to} s WHERE ${isFound('s')} AND NOT EXISTS (SELECT FROM ${from} n WHERE ${same})`,
      `UPDATE ${to} s SET ${columns.map((column) => `${column} = n.${column}`).join(', ')} FROM ${from} n WHERE ${same} AND ${isFound('n')} AND ${image('s')} <> ${image('n')}`,
      `INSERT INTO ${to} (${columns.join(', ')}) SELECT ${list('n')} FROM ${from} n WHERE ${isFound('n')} AND NOT EXISTS (SELECT FROM ${to} s WHERE ${same})`,
    ];
  }
  // Once columns were lost the stored hash is not the one that a copy comes with.
  const hash = (row: string): string => (isRehashed(storage) ? rowHash(image(row)) : `${row}.h`);
  const counted = (table: string): string =>
    `(SELECT ${hash('t')} AS h, ${image('t')} AS image, count(*) AS n FROM ${table} t WHERE ${isFound('t')} GROUP BY 1, 2)`;
  const placed = (table: string): string =>
    `(SELECT t.rid, ${list('t')}, ${hash('t')} AS h, ${image('t')} AS image, row_number() OVER (PARTITION BY ${hash('t')}, ${image('t')} ORDER BY t.rid) AS place FROM ${table} t WHERE ${isFound('t')})`;
  return [
    `DELETE FROM ${to} s USING (
   SELECT o.rid FROM ${placed(to)} o LEFT JOIN ${counted(from)} n ON n.h = o.h AND n.image = o.image WHERE o.place > coalesce(n.n, 0)
 ) gone WHERE s.rid = gone.rid`,
    `INSERT INTO ${to} (h, ${columns.join(', ')})
 SELECT o.h, ${list('o')} FROM ${placed(from)} o LEFT JOIN ${counted(to)} n ON n.h = o.h AND n.image = o.image WHERE o.place > coalesce(n.n, 0)`,
  ];
}

/** What a comparison holds for: the columns of either side. */
export const comparedColumns = (copy: Storage, storage: Storage): string => JSON.stringify([copy.columns, storage.columns]);
