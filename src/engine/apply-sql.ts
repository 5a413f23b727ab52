/**
 * The SQL by which staged changes reach a storage. Pure.
 * Invariant: after it the storage holds what the origin table holds after the same transactions, whatever their order within the chunk:
 * with a key, the last change of each key wins; without, inserts go in before deletes come out, as multisets commute.
 * Recipe and traps: changes of one key twice in a chunk need the last one (UPDATE FROM would take any of them);
 * values the origin left out (unchanged TOAST, pgoutput 'u') keep what the storage has.
 */
import { type Storage, stagingTable, storageColumn, storageTable } from '../catalog/model.ts';
import { storageKey } from '../catalog/storage-ddl.ts';
import { quoteLiteral } from '../sql/quote.ts';

/** What a chunk of staged changes contains; a superset is always safe. */
export interface ChunkShape {
  readonly inserts: boolean;
  readonly updates: boolean;
  readonly deletes: boolean;
  /** Some key may occur more than once. */
  readonly repeats: boolean;
  /** Some row leaves values out. Such a row's key never repeats in its chunk. */
  readonly keeps: boolean;
  /** Hashes are computed here, not taken from the staged rows: see rowHash. */
  readonly rehash: boolean;
}

type StorageShape = Pick<Storage, 'id' | 'columns' | 'keyAttnums'>;

/** Columns of the staging table in COPY order, for a chunk of changes. */
export function stagingColumns(storage: StorageShape): string[] {
  return ['seq', 'op', storage.keyAttnums.length > 0 ? 'keep' : 'h', ...storage.columns.map((column) => storageColumn(column.attnum))];
}

/** Columns of the storage itself in COPY order, for rows that only insert. */
export function insertColumns(storage: StorageShape): string[] {
  const columns = storage.columns.map((column) => storageColumn(column.attnum));
  return storage.keyAttnums.length > 0 ? columns : ['h', ...columns];
}

/** Statements that apply the staged changes of one storage. `staged` is the staging table or a query in its shape. */
export function applyStaged(storage: StorageShape, shape: ChunkShape, staged = stagingTable(storage.id)): string[] {
  return storage.keyAttnums.length > 0 ? applyKeyed(storage, shape, staged) : applyKeyless(storage, shape, staged);
}

function applyKeyed(storage: StorageShape, shape: ChunkShape, staged: string): string[] {
  const table = storageTable(storage.id);
  const key = storageKey(storage);
  const columns = storage.columns.map((column) => storageColumn(column.attnum));
  const others = columns.filter((column) => !key.includes(column));
  const on = key.map((column) => `s.${column} = d.${column}`).join(' AND ');
  const value = (column: string): string =>
    shape.keeps ? `CASE WHEN substr(d.keep, ${columns.indexOf(column) + 1}, 1) = '1' THEN s.${column} ELSE d.${column} END` : `d.${column}`;
  const assignments = others.map((column) => `${column} = ${value(column)}`).join(', ');

  if (!shape.repeats && shape.deletes && !shape.updates && !shape.inserts) {
    return [`DELETE FROM ${table} s USING ${staged} d WHERE ${on}`];
  }
  if (!shape.repeats && shape.updates && !shape.deletes && !shape.inserts) {
    return others.length === 0 ? [] : [`UPDATE ${table} s SET ${assignments} FROM ${staged} d WHERE ${on}`];
  }
  const source = shape.repeats
    ? `(SELECT DISTINCT ON (${key.join(', ')}) x.* FROM ${staged} x ORDER BY ${key.join(', ')}, seq DESC)`
    : staged;
  return [
    [
      `MERGE INTO ${table} s USING ${source} d ON ${on}`,
      ...(shape.deletes ? ["WHEN MATCHED AND d.op = 'D' THEN DELETE"] : []),
      others.length === 0 ? 'WHEN MATCHED THEN DO NOTHING' : `WHEN MATCHED THEN UPDATE SET ${assignments}`,
      `WHEN NOT MATCHED AND d.op <> 'D' THEN INSERT (${columns.join(', ')}) VALUES (${columns.map((column) => `d.${column}`).join(', ')})`,
    ].join('\n'),
  ];
}

/**
 * Hash by which rows of a keyless storage are found once it has lost a column: of what is left, as text. The hash that comes with staged rows is
 * of the line as the origin wrote it, which no longer has all that the stored rows were hashed with, and cannot be computed by a server.
 */
export const rowHash = (image: string): string => `('x' || substr(md5(${image}), 1, 8))::bit(32)::integer`;

/** Whether rows of a storage without key are found by that hash. */
export const isRehashed = ({ columns }: Pick<Storage, 'columns'>): boolean =>
  columns.some(({ lost, rehashed }) => lost === true || rehashed === true);

/** Hashes all rows so. */
export const rehashRows = (storage: StorageShape): string =>
  `UPDATE ${storageTable(storage.id)} s SET h = ${rowHash(imageOf(storage, 's'))}`;

/** Text of a row's columns: rows that look the same are the same. */
export const imageOf = (storage: Pick<Storage, 'columns'>, row: string): string =>
  `ROW(${storage.columns.map((column) => `${row}.${storageColumn(column.attnum)}`).join(', ')})::text`;

/** The storage as it is once it has forgotten columns. */
export function without<Shape extends StorageShape>(storage: Shape, attnums: readonly number[]): Shape {
  if (attnums.length === 0) return storage;
  return { ...storage, columns: storage.columns.map((column) => (attnums.includes(column.attnum) ? { ...column, lost: true } : column)) };
}

/** Columns that the origin has lost become NULL, and rows of a storage without key are found by what is left. */
export function forgetColumns(storage: StorageShape, attnums: readonly number[]): string[] {
  const table = storageTable(storage.id);
  const lost = without(storage, attnums).columns;
  const left = lost.map((column) => (column.lost === true ? `NULL::${column.type}` : `s.${storageColumn(column.attnum)}`));
  const assignments = lost.filter((column) => column.lost === true).map((column) => `${storageColumn(column.attnum)} = NULL`);
  return [
    `UPDATE ${table} s SET ${[...assignments, `h = ${rowHash(`ROW(${left.join(', ')})::text`)}`].join(', ')}`,
    `UPDATE millrace.storage SET columns = ${quoteLiteral(JSON.stringify(lost))}::jsonb WHERE id = ${storage.id}`,
  ];
}

function applyKeyless(storage: StorageShape, shape: ChunkShape, given: string): string[] {
  const table = storageTable(storage.id);
  const columns = storage.columns.map((column) => storageColumn(column.attnum));
  const list = ['h', ...columns].join(', ');
  const statements: string[] = [];
  const staged = shape.rehash
    ? `(SELECT x.seq, x.op, ${rowHash(imageOf(storage, 'x'))} AS h, ${columns.map((column) => `x.${column}`).join(', ')} FROM ${given} x)`
    : given;
  if (shape.inserts) statements.push(`INSERT INTO ${table} (${list}) SELECT ${list} FROM ${staged} d WHERE d.op = 'I' ORDER BY d.seq`);
  if (shape.deletes) {
    const image = (row: string): string => imageOf(storage, row);
    // One sort of what is gone and what is stored. A join of the two goes by nested loops, as all joins here: row by row through the square.
    statements.push(
      `DELETE FROM ${table} s
 USING (
   SELECT x.rid
     FROM (SELECT u.rid, row_number() OVER (alike ORDER BY u.rid) AS place, count(*) FILTER (WHERE u.rid IS NULL) OVER alike AS n
             FROM (SELECT t.rid, t.h, ${image('t')} AS image
                     FROM (SELECT DISTINCT d.h FROM ${staged} d WHERE d.op = 'D') w JOIN ${table} t ON t.h = w.h
                   UNION ALL
                   SELECT NULL, d.h, ${image('d')} FROM ${staged} d WHERE d.op = 'D') u
           WINDOW alike AS (PARTITION BY u.h, u.image)) x
    WHERE x.place <= x.n AND x.rid IS NOT NULL
 ) v
 WHERE s.rid = v.rid`,
    );
  }
  return statements;
}

/** Empties a storage in a way that readers' snapshots survive and delta capture sees (TRUNCATE is neither). */
export function clearStorage(storage: Pick<Storage, 'id'>): string {
  return `DELETE FROM ${storageTable(storage.id)}`;
}
