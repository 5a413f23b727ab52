/** Random transactions on the storages of the property test. */
import type pg from 'pg';
import type { LiveDatabase } from './live-database.ts';
import type { Random } from './random.ts';

/** c1.. of a test table in this order; `Weird` is bigint. */
export const columnTypes = ['int', 'numeric(10,2)', 'text', 'date', 'bigint', 'float8', 'numeric'] as const;

const names = ['a', 'b', 'c', 'd', 'Weird "col', 'f', 'u'];

/** t_1 with a key, t_2 without, t_3 with or without: all with the same columns, and rows. */
export async function createTables(random: Random, database: LiveDatabase): Promise<WritableTable[]> {
  const tables: WritableTable[] = [];
  for (const [i, keyed] of [true, false, random.chance(0.5)].entries()) {
    const columns = names.map((name, column) => ({ name, type: columnTypes[column] ?? 'int' }));
    if (keyed) columns.push({ name: 'id', type: 'int' });
    const id = await database.createTable(`t_${i + 1}`, columns, keyed ? [columns.length - 1] : [], !keyed && random.chance(0.5));
    tables.push({ id, keyed });
    await database.client.query(insertRows(random, { id, keyed }, 5 + random.int(25)));
    await database.client.query(`DELETE FROM millrace_data.d${id}`);
  }
  return tables;
}

export function randomValue(random: Random, column: number): string {
  if (random.chance(0.12)) return 'NULL';
  switch (column) {
    case 0:
      return String(random.int(6));
    case 1:
      return random.chance(0.01) ? `'NaN'` : `${random.int(5)}.${random.pick(['00', '25', '50', '10'])}`;
    case 2:
      return random.pick([`'a'`, `'b'`, `'aa'`, `'A'`, `''`, `'é"'`]);
    case 3:
      return `DATE '2024-0${1 + random.int(2)}-0${1 + random.int(4)}'`;
    case 4:
      return random.pick(['1', '2', '3', '9007199254740993']);
    case 5:
      return random.pick(['0.25', '1.5', '-0.0', '2', '0.0']);
    default:
      return random.pick(['1', '1.0', '1.00', '2.5', '100', `'NaN'`]);
  }
}

export interface WritableTable {
  readonly id: number;
  /** The table has `id` as last column and key. */
  readonly keyed: boolean;
}

/** Several statements on several tables: inserts, updates (of keys too, and without effect), deletes, the same rows again. */
export async function randomTransaction(random: Random, client: pg.Client, tables: readonly WritableTable[]): Promise<void> {
  for (const table of random.some(tables, 1 + random.int(tables.length))) {
    const statements = 1 + random.int(4);
    for (let i = 0; i < statements; i++) {
      await client.query('SAVEPOINT statement');
      await client.query(randomStatement(random, table)).catch(async (error: { code?: string }) => {
        // A key may have been taken.
        if (error.code !== '23505') throw error;
        await client.query('ROLLBACK TO statement');
      });
    }
  }
}

export function insertRows(random: Random, table: WritableTable, count: number): string {
  const names = columnTypes.map((_, i) => `c${i + 1}`);
  const rows = Array.from({ length: count }, () => {
    const values = columnTypes.map((_, column) => randomValue(random, column));
    return `(${[...values, ...(table.keyed ? [String(random.int(100000))] : [])].join(', ')})`;
  });
  const conflict = table.keyed ? `ON CONFLICT (c${columnTypes.length + 1}) DO UPDATE SET c1 = excluded.c1` : '';
  // One row at a time: a statement may not touch a row twice on conflict.
  return table.keyed
    ? rows
        .map((row) => `INSERT INTO millrace_data.s${table.id} (${[...names, `c${names.length + 1}`].join(', ')}) VALUES ${row} ${conflict}`)
        .join(';\n')
    : `INSERT INTO millrace_data.s${table.id} (${names.join(', ')}) VALUES ${rows.join(', ')}`;
}

function randomStatement(random: Random, table: WritableTable): string {
  const storage = `millrace_data.s${table.id}`;
  const key = table.keyed ? `c${columnTypes.length + 1}` : 'rid';
  const some = `${key} IN (SELECT ${key} FROM ${storage} WHERE hashint8(${key}::bigint + ${random.int(1000)}) % ${2 + random.int(4)} = 0)`;
  const column = random.int(columnTypes.length);
  switch (random.int(9)) {
    case 0:
    case 1:
      return insertRows(random, table, 1 + random.int(4));
    case 2:
    case 3:
      return `UPDATE ${storage} SET c${column + 1} = ${randomValue(random, column)} WHERE ${some}`;
    case 4:
      return `UPDATE ${storage} SET c${column + 1} = c${column + 1} WHERE ${some}`;
    case 5:
      return `UPDATE ${storage} SET ${key} = ${key} + 100000 + ${random.int(1000)} WHERE ${some} AND ${key} < 2000000000`;
    case 6:
      return `MERGE INTO ${storage} s USING (SELECT ${key} AS k FROM ${storage} WHERE ${some}) d ON s.${key} = d.k
        WHEN MATCHED AND s.c1 > 2 THEN DELETE WHEN MATCHED THEN UPDATE SET c1 = coalesce(s.c1, 0) + 1, c2 = NULL`;
    case 7:
      return `DELETE FROM ${storage} WHERE ${some}`;
    default:
      return `UPDATE ${storage} SET c1 = ${randomValue(random, 0)}, c3 = ${randomValue(random, 2)}, c7 = ${randomValue(random, 6)}`;
  }
}
