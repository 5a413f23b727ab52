/** Random transactions on the storages of the property test. */
import type pg from 'pg';
import type { LiveDatabase } from './live-database.ts';
import type { Random } from './random.ts';

/** c1.. of a test table in this order; `Weird` is bigint. */
export const columnTypes = ['int', 'numeric(10,2)', 'text', 'date', 'bigint', 'float8', 'numeric'] as const;

/** A table that random transactions write to. */
export interface WritableTable {
  /** Qualified. */
  readonly name: string;
  /** Columns of `columnTypes`, quoted. */
  readonly columns: readonly string[];
  /** Integer primary key that inserts name; null: there is none. */
  readonly key: string | null;
  /** Integer that tells rows apart, as far as there is one. */
  readonly identity: string | null;
}

/** As users see them. */
export const columnNames = ['a', 'b', 'c', 'd', 'Weird "col', 'f', 'u'] as const;

/** t_1 with a key, t_2 without, t_3 with or without: all with the same columns, and rows. */
export async function createTables(random: Random, database: LiveDatabase): Promise<(WritableTable & { readonly id: number })[]> {
  const tables = [];
  for (const [i, keyed] of [true, false, random.chance(0.5)].entries()) {
    const columns = columnNames.map((name, column) => ({ name: String(name), type: String(columnTypes[column] ?? 'int') }));
    if (keyed) columns.push({ name: 'id', type: 'int' });
    const id = await database.createTable(`t_${i + 1}`, columns, keyed ? [columns.length - 1] : [], !keyed && random.chance(0.5));
    const key = keyed ? `c${columns.length}` : null;
    const table = {
      id,
      name: `millrace_data.s${id}`,
      columns: columnTypes.map((_, column) => `c${column + 1}`),
      key,
      identity: key ?? 'rid',
    };
    tables.push(table);
    await database.client.query(insertRows(random, table, 5 + random.int(25)));
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
      return random.chance(0.05) ? `'NaN'` : `${random.int(5)}.${random.pick(['00', '25', '50', '10'])}`;
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

export function insertRows(random: Random, { name, columns, key }: WritableTable, count: number): string {
  const list = [...columns, ...(key === null ? [] : [key])].join(', ');
  const rows = Array.from({ length: count }, () => {
    const values = columnTypes.map((_, column) => randomValue(random, column));
    return `(${[...values, ...(key === null ? [] : [String(random.int(100000))])].join(', ')})`;
  });
  if (key === null) return `INSERT INTO ${name} (${list}) VALUES ${rows.join(', ')}`;
  // One row at a time: a statement may not touch a row twice on conflict.
  return rows
    .map((row) => `INSERT INTO ${name} (${list}) VALUES ${row} ON CONFLICT (${key}) DO UPDATE SET ${columns[0]} = excluded.${columns[0]}`)
    .join(';\n');
}

function randomStatement(random: Random, table: WritableTable): string {
  const { name, columns, identity } = table;
  const [a, b, c] = columns;
  const number = identity === null ? 'hashtext(t.*::text)' : `t.${identity}`;
  const some = `hashint8(${number}::bigint + ${random.int(1000)}) % ${2 + random.int(4)} = 0`;
  const column = random.int(columnTypes.length);
  const kind = random.int(9);
  switch (identity === null && (kind === 5 || kind === 6) ? 2 : kind) {
    case 0:
    case 1:
      return insertRows(random, table, 1 + random.int(4));
    case 2:
    case 3:
      return `UPDATE ${name} t SET ${columns[column]} = ${randomValue(random, column)} WHERE ${some}`;
    case 4:
      return `UPDATE ${name} t SET ${columns[column]} = ${columns[column]} WHERE ${some}`;
    case 5:
      return `UPDATE ${name} t SET ${identity} = ${identity} + 100000 + ${random.int(1000)} WHERE ${some} AND ${identity} < 2000000000`;
    case 6:
      return `MERGE INTO ${name} s USING (SELECT ${identity} AS k FROM ${name} t WHERE ${some}) d ON s.${identity} = d.k
        WHEN MATCHED AND s.${a} > 2 THEN DELETE WHEN MATCHED THEN UPDATE SET ${a} = coalesce(s.${a}, 0) + 1, ${b} = NULL`;
    case 7:
      return `DELETE FROM ${name} t WHERE ${some}`;
    default:
      return `UPDATE ${name} SET ${a} = ${randomValue(random, 0)}, ${c} = ${randomValue(random, 2)}, ${columns[6]} = ${randomValue(random, 6)}`;
  }
}
