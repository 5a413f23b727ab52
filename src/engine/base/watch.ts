/**
 * Sees that base tables are not what they were: DDL notifies nobody, and what harms a stream table is to be told soon.
 * Invariant: what has changed is found out by reading the catalog; this only says that there is something to read.
 */
import type { Client } from 'pg';
import type { CatalogState } from '../context.ts';

/** One text that is another when a base table, or one of its columns, has gone, or has another name or type, or a stream table was lost. */
const printSql = `
SELECT md5(string_agg(concat_ws(' ', b.relation_id, n.nspname, c.relname, i.lost,
           (SELECT string_agg(concat_ws(' ', a.attnum, a.attname, a.atttypid, a.atttypmod), ',' ORDER BY a.attnum)
              FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)), ';' ORDER BY b.relation_id)) AS print
  FROM millrace.base_table b
  LEFT JOIN pg_catalog.pg_class c ON c.oid = b.table_oid
  LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN LATERAL (SELECT string_agg(x.lost, ',') AS lost FROM millrace.immediate x WHERE b.relation_id = ANY (x.bases)) i ON true`;

export class BaseWatch {
  #print: string | null = null;
  #looking = false;

  /** Called about every second: whether something has changed since the last time. Asks nothing where there are no base tables. */
  async changed(admin: Client, { bases }: Pick<CatalogState, 'bases'>): Promise<boolean> {
    if (bases.size === 0 || this.#looking) return false;
    this.#looking = true;
    try {
      const found = await admin.query<{ print: string | null }>(printSql);
      const print = found.rows[0]?.print ?? null;
      const former = this.#print;
      this.#print = print;
      return former !== null && former !== print;
    } finally {
      this.#looking = false;
    }
  }
}
