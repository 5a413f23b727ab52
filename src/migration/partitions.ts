/**
 * Partitions of a table that gets another shape: the table that takes its place has the same ones. Pure.
 * Invariant: as for indexes (belongings.ts): of each pair of partitions the one of the table that is not the truth is called m<id>_p and the OID of the
 * other, and stands in millrace_data.
 */

import { quoteLiteral } from '../sql/quote.ts';
import { block, both } from './belongings.ts';
import type { SourceTable, TableName } from './model.ts';
import { dataSchema, homeName, oidOf, qualified } from './places.ts';
import { sameRights } from './rights-sql.ts';
import type { Step } from './steps.ts';

const partName = (id: number, oid: string): string => `format('${homeName(id)}_p%s', ${oid})`;

/** A table as another one, without rows; with its partition key, where it has one. */
export function likeSql(source: SourceTable, copy: TableName): string {
  const create = `CREATE TABLE ${qualified(copy)} (LIKE ${qualified(source)} INCLUDING ALL)`;
  if (!source.partitioned) return create;
  return `DO $make$ BEGIN EXECUTE ${quoteLiteral(`${create} PARTITION BY `)} || pg_get_partkeydef(${source.oid}); END $make$`;
}

/** The same partitions as those of the source; said when the copy has its columns. */
export function partitionsSql(id: number, source: SourceTable, copy: TableName): readonly string[] {
  if (!source.partitioned) return [];
  return [
    block(
      both(source, copy),
      `    FOR x IN SELECT ${partName(id, 'l.relid::oid')} AS name, CASE WHEN l.parentrelid = former THEN present_name ELSE format('${dataSchema}.%I', ${partName(id, 'l.parentrelid::oid')}) END AS parent,
                    pg_get_expr(c.relpartbound, c.oid) AS bound, pg_get_partkeydef(c.oid) AS key, pg_get_userbyid(c.relowner) AS owner,
                    (SELECT s.spcname FROM pg_tablespace s WHERE s.oid = c.reltablespace) AS tablespace,
                    (SELECT string_agg(format('%s%I = %L', o.prefix, o.option_name, o.option_value), ', ')
                       FROM (SELECT '' AS prefix, p.* FROM pg_options_to_table(c.reloptions) p UNION ALL SELECT 'toast.', p.* FROM pg_class t, pg_options_to_table(t.reloptions) p WHERE t.oid = c.reltoastrelid) o) AS options,
                    obj_description(c.oid, 'pg_class') AS comment
               FROM pg_partition_tree(former) l JOIN pg_class c ON c.oid = l.relid WHERE l.level > 0 ORDER BY l.level, l.relid::oid
    LOOP
        EXECUTE format('CREATE TABLE ${dataSchema}.%I PARTITION OF %s %s%s%s%s', x.name, x.parent, x.bound, coalesce(' PARTITION BY ' || x.key, ''),
                       coalesce(' WITH (' || x.options || ')', ''), coalesce(' TABLESPACE ' || quote_ident(x.tablespace), ''));
        EXECUTE format('ALTER TABLE ${dataSchema}.%I OWNER TO %I', x.name, x.owner);
        EXECUTE format('COMMENT ON TABLE ${dataSchema}.%I IS %L', x.name, x.comment);
    END LOOP;`,
    ),
  ];
}

/** Partitions change places, and so do the names of their indexes; said before the tables move. Rights are those on the partition that has the name. */
export function exchangePartitions(id: number, source: SourceTable, former: TableName, present: TableName): readonly Step[] {
  if (!source.partitioned) return [];
  const indexes = (table: string): string =>
    `(SELECT o.*, row_number() OVER (PARTITION BY o.tail ORDER BY o.oid) AS n
                FROM (SELECT i.indexrelid AS oid, c.relname AS name, i.indisunique || substr(pg_get_indexdef(i.indexrelid), length(format('CREATE %sINDEX %I ON %s%s', CASE WHEN i.indisunique THEN 'UNIQUE ' END,
                             c.relname, CASE WHEN c.relkind = 'I' THEN 'ONLY ' END, millrace.qualified_name(i.indrelid))) + 1) AS tail
                        FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid WHERE i.indrelid = ${table}) o)`;
  const pairs = `SELECT f.oid AS old_oid, n.nspname AS schema, f.relname AS name, t.oid AS new_oid, t.relname AS made_name, ${partName(id, 't.oid')} AS aside
               FROM pg_partition_tree(${oidOf(former)}) l JOIN pg_class f ON f.oid = l.relid JOIN pg_namespace n ON n.oid = f.relnamespace
               JOIN (SELECT c.* FROM pg_partition_tree(${oidOf(present)}) p JOIN pg_class c ON c.oid = p.relid WHERE p.level > 0) t ON t.relname = ${partName(id, 'f.oid')}
              WHERE l.level > 0`;
  return [
    {
      ask: `SELECT x.old_oid::bigint AS n, concat_ws(';', format('ALTER INDEX %s RENAME TO %I', a.oid::regclass, format('${homeName(id)}_i%s', b.oid)), format('ALTER INDEX %s RENAME TO %I', b.oid::regclass, a.name)) AS sql
               FROM (${pairs}) x, LATERAL ${indexes('x.old_oid')} a JOIN LATERAL ${indexes('x.new_oid')} b USING (tail, n)`,
    },
    {
      ask: `SELECT x.old_oid::bigint * 2 + r.n AS n, r.sql FROM (${pairs}) x, LATERAL (${sameRights('TABLE', 'x.old_oid', 'x.new_oid')}) r`,
    },
    {
      ask: `SELECT x.old_oid::bigint AS n, concat_ws(';', format('ALTER TABLE %I.%I RENAME TO %I', x.schema, x.name, x.aside), format('ALTER TABLE %I.%I SET SCHEMA ${dataSchema}', x.schema, x.aside),
                    format('ALTER TABLE ${dataSchema}.%I RENAME TO %I', x.made_name, x.name), format('ALTER TABLE ${dataSchema}.%I SET SCHEMA %I', x.name, x.schema)) AS sql FROM (${pairs}) x`,
    },
  ];
}

/** Partitions of either table that the other has not, as texts. */
export function partitionsApartSql(former: TableName, present: TableName): string {
  const bounds = (table: TableName): string =>
    `SELECT l.level, pg_get_expr(c.relpartbound, c.oid) AS bound, c.relname FROM pg_partition_tree(${quoteLiteral(qualified(table))}::regclass) l JOIN pg_class c ON c.oid = l.relid WHERE l.level > 0`;
  const apart = (have: TableName, lack: TableName, way: string): string =>
    `SELECT a.relname, ${quoteLiteral(way)} FROM (${bounds(have)}) a WHERE NOT EXISTS (SELECT FROM (${bounds(lack)}) b WHERE (b.level, b.bound) = (a.level, a.bound))`;
  return `${apart(former, present, 'attached')} UNION ALL ${apart(present, former, 'detached')}`;
}
