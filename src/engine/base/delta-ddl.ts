/**
 * The tables that hold changes of a base table: the delta table of an epoch, and the log of what is still to be taken.
 * Invariant: between epochs both have every column of the base table that some view uses, as it is now; they never lose a column that is
 * still there, because changes that have been read and wait for their epoch may have it.
 */
import type { Client } from 'pg';
import { type BaseTable, changeLogTable, deltaTable, storageColumn, triggerTable } from '../../catalog/model.ts';
import { quoteIdentifier } from '../../sql/quote.ts';
import { allColumns } from './masks.ts';

type Base = Pick<BaseTable, 'id' | 'tableOid'>;

interface Column {
  readonly attnum: number;
  readonly name: string;
  readonly notNull: boolean;
  readonly generated: boolean;
  /** Type and collation, as in a column definition. */
  readonly type: string;
}

const columnsSql = `SELECT a.attnum, a.attname AS name, a.attnotnull AS "notNull", a.attgenerated <> '' AS generated,
            pg_catalog.format_type(a.atttypid, a.atttypmod)
              || CASE WHEN a.attcollation <> t.typcollation
                      THEN ' COLLATE ' || pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(co.collname) ELSE '' END AS type
       FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
       LEFT JOIN pg_catalog.pg_collation co ON co.oid = a.attcollation LEFT JOIN pg_catalog.pg_namespace n ON n.oid = co.collnamespace
      WHERE a.attrelid = (CASE WHEN $1 ~ '^[0-9]+$' THEN $1::oid ELSE to_regclass($1)::oid END) AND a.attnum > 0 AND NOT a.attisdropped
      ORDER BY a.attnum`;

/** By name or oid. */
const columnsOf = async (client: Client, table: string): Promise<readonly Column[]> =>
  (await client.query<Column>(columnsSql, [table])).rows;

/** Those of a table of changes that are of the base table, by name. */
const taken = (columns: readonly Column[]): ReadonlyMap<string, Column> =>
  new Map(columns.flatMap((column) => (/^c\d+$/.test(column.name) ? [[column.name, column] as const] : [])));

/** New tables for changes, of these columns. What a former log held is gone. */
export async function createDelta(client: Client, base: Base, wanted: ReadonlySet<number>): Promise<void> {
  await createDeltaTable(client, base, wanted);
  const log = changeLogTable(base.id);
  await client.query(`DROP TABLE IF EXISTS ${log}`);
  await client.query(`CREATE TABLE ${log} (e bigint NOT NULL, LIKE ${deltaTable(base.id)}) WITH (autovacuum_enabled = off)`);
  await client.query(`CREATE INDEX ON ${log} (e)`);
}

/**
 * w, m, then columns by attnum. Generated columns are computed in it, as the stream does not bring them, and have all others beside them.
 */
async function createDeltaTable(client: Client, { id, tableOid }: Base, wanted: ReadonlySet<number>): Promise<void> {
  const delta = deltaTable(id);
  const named = await client.query<{ name: string }>('SELECT millrace.qualified_name($1) AS name', [tableOid]);
  const table = named.rows[0]?.name ?? '';
  const columns = await columnsOf(client, String(tableOid));
  await client.query(`DROP TABLE IF EXISTS ${delta}`);
  if (!columns.some((column) => column.generated && wanted.has(column.attnum))) {
    const list = columns.filter((column) => wanted.has(column.attnum)).map(({ attnum, type }) => `, ${storageColumn(attnum)} ${type}`);
    await client.query(
      `CREATE UNLOGGED TABLE ${delta} (w smallint, m bigint NOT NULL DEFAULT ${allColumns}${list.join('')}) WITH (autovacuum_enabled = off)`,
    );
    return;
  }
  // A column of the user's may be called w: theirs are renamed first.
  await client.query(
    `CREATE UNLOGGED TABLE ${delta} ("mr$w" smallint, "mr$m" bigint NOT NULL DEFAULT ${allColumns}, LIKE ${table} INCLUDING GENERATED)
       WITH (autovacuum_enabled = off)`,
  );
  const temporary = (attnum: number): string => `"mr$${attnum}"`;
  for (const column of columns) {
    if (column.notNull) await client.query(`ALTER TABLE ${delta} ALTER COLUMN ${quoteIdentifier(column.name)} DROP NOT NULL`);
  }
  for (const column of columns) {
    await client.query(`ALTER TABLE ${delta} RENAME COLUMN ${quoteIdentifier(column.name)} TO ${temporary(column.attnum)}`);
  }
  for (const column of columns) {
    await client.query(`ALTER TABLE ${delta} RENAME COLUMN ${temporary(column.attnum)} TO ${storageColumn(column.attnum)}`);
  }
  await client.query(`ALTER TABLE ${delta} RENAME COLUMN "mr$w" TO w`);
  await client.query(`ALTER TABLE ${delta} RENAME COLUMN "mr$m" TO m`);
}

/**
 * Makes the tables for changes have the columns that are wanted, as the base table has them now; true when they had not. To be called between
 * epochs, when the delta table is empty.
 */
export async function followColumns(client: Client, base: Base, wanted: ReadonlySet<number>): Promise<boolean> {
  const { id, tableOid } = base;
  const now = new Map((await columnsOf(client, String(tableOid))).map((column) => [column.attnum, column]));
  // Its capture is ending, or has not begun: it is made anew then.
  if ((await columnsOf(client, changeLogTable(id))).length === 0) return false;
  const there = taken(await columnsOf(client, deltaTable(id)));
  const unlogged = await missingFromTriggers(client, base, now);
  const lacks = [...wanted].some((attnum) => now.has(attnum) && !there.has(storageColumn(attnum)));
  const differs = [...there].some(([name, column]) => now.get(attnumOf(name))?.type !== column.type);
  if (!lacks && !differs && unlogged.length === 0) return false;
  await client.query("BEGIN; SET LOCAL lock_timeout = '5s'");
  try {
    for (const attnum of unlogged) await client.query(`ALTER TABLE ${triggerTable(id)} ADD COLUMN ${storageColumn(attnum)} text`);
    if (lacks || differs) {
      await createDeltaTable(client, base, new Set([...wanted, ...[...there.keys()].map(attnumOf)]));
      await widenLog(client, id);
    }
    await client.query('COMMIT');
    return true;
  } catch (error) {
    await client.query('ROLLBACK').catch(() => undefined);
    throw error;
  }
}

const attnumOf = (name: string): number => Number(name.slice(1));

/** Triggers write down all columns, whatever is wanted. */
async function missingFromTriggers(client: Client, { id }: Base, now: ReadonlyMap<number, Column>): Promise<readonly number[]> {
  const written = taken(await columnsOf(client, triggerTable(id)));
  return written.size === 0 ? [] : [...now.keys()].filter((attnum) => !written.has(storageColumn(attnum)));
}

/** Changes in the log are of no concern to a view that uses a column which they have not: it came later. */
async function widenLog(client: Client, id: number): Promise<void> {
  const log = changeLogTable(id);
  const logged = taken(await columnsOf(client, log));
  for (const [name, { type }] of taken(await columnsOf(client, deltaTable(id)))) {
    const known = logged.get(name);
    if (known?.type === type) continue;
    if (known !== undefined) await client.query(`ALTER TABLE ${log} DROP COLUMN ${name}`);
    await client.query(`ALTER TABLE ${log} ADD COLUMN ${name} ${type}`);
  }
}
