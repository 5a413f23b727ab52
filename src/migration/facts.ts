/**
 * What has to be known before a migration may begin: about the table, what hangs on it, the server, and the rights of those who act.
 * Invariant: nothing is changed and no lock is taken on the table; names in texts are qualified, whatever the caller's search_path is.
 */
import { quoteQualified } from '../sql/quote.ts';
import type { SourceTable, TableName } from './model.ts';

/** Answers one jsonb value; `$1` of the statement is the parameters as jsonb, and search_path is pg_catalog while it runs. */
export type Ask = (sql: string, parameters: Readonly<Record<string, unknown>>) => Promise<unknown>;

/** Something of the table that names columns of it. */
export interface WithColumns {
  readonly name: string;
  readonly columns: readonly string[];
}

export interface IndexFact extends WithColumns {
  readonly unique: boolean;
  readonly primary: boolean;
  readonly exclusion: boolean;
  readonly valid: boolean;
}

export interface ForeignKeyOut extends WithColumns {
  /** The table that is referred to. */
  readonly table: string;
}

export interface ForeignKeyIn extends WithColumns {
  /** The table that refers, and by which of its columns; `columns` are those referred to. */
  readonly table: string;
  readonly from: readonly string[];
  /** Types of `from`. */
  readonly types: readonly string[];
}

export interface Dependent extends WithColumns {
  readonly kind: 'view' | 'materialized view' | 'function' | 'other';
}

export interface OpenTransaction {
  /** null: a prepared transaction, known by `gid`. */
  readonly pid: number | null;
  readonly gid: string | null;
  readonly user: string;
  /** null: the caller may not see it. */
  readonly query: string | null;
  readonly ageMs: number;
  /** It holds a lock on the table; else it only has written something. */
  readonly onTable: boolean;
}

export interface TableFacts {
  readonly source: SourceTable;
  /** relkind, and relpersistence. */
  readonly kind: string;
  readonly persistence: string;
  /** In a schema of Postgres's or of Millrace's own. */
  readonly isSystem: boolean;
  readonly isPartition: boolean;
  /** Columns in the partition key, of whatever level. */
  readonly partitionKey: readonly string[];
  /** What partitions have for themselves. */
  readonly partitionObjects: readonly string[];
  /** Tables that inherit from it, partitions left out; and those it inherits from. */
  readonly children: readonly string[];
  readonly parents: readonly string[];
  readonly rows: number;
  readonly bytes: number;
  readonly indexBytes: number;
  readonly toastBytes: number;
  /** relreplident, and the columns of its index. */
  readonly identity: string;
  readonly identityColumns: readonly string[];
  readonly rowSecurity: boolean;
  readonly policies: readonly WithColumns[];
  readonly rules: readonly string[];
  readonly triggers: readonly (WithColumns & { readonly enabled: boolean })[];
  /** Generated columns, and what they are made of. */
  readonly generated: readonly WithColumns[];
  readonly checks: readonly WithColumns[];
  readonly foreignKeysOut: readonly ForeignKeyOut[];
  readonly foreignKeysIn: readonly ForeignKeyIn[];
  readonly indexes: readonly IndexFact[];
  readonly statistics: readonly WithColumns[];
  /** Views over it directly or through other views; `columns`: what it names of the table itself. */
  readonly dependents: readonly Dependent[];
  /** `columns`: those that its column list or its row filter names. */
  readonly publications: readonly (WithColumns & { readonly allTables: boolean })[];
}

/** For messages, and to be typed. */
export const tableName = ({ source }: TableFacts): string => quoteQualified(source.schema, source.name);

export interface Surroundings {
  readonly walLevel: string;
  readonly slots: { readonly used: number; readonly max: number };
  readonly walSenders: { readonly used: number; readonly max: number };
  readonly databaseBytes: number;
  readonly tablespace: string;
  /** The role of Millrace's own connection. */
  readonly engine: { readonly name: string; readonly superuser: boolean; readonly replication: boolean; readonly owns: boolean };
  readonly caller: {
    readonly name: string;
    readonly superuser: boolean;
    readonly owns: boolean;
    readonly createInDatabase: boolean;
    /** In the target's schema; null: there is no such schema. */
    readonly createInTarget: boolean | null;
  };
  readonly database: string;
  readonly targetExists: boolean;
  /** Of the wanted version schemas, those that are there already. */
  readonly schemasTaken: readonly string[];
  /** Migrations under way of the same table. */
  readonly migrations: readonly string[];
  /** Stream tables that read it, with the columns they name. */
  readonly readers: readonly WithColumns[];
  readonly transactions: readonly OpenTransaction[];
}

export interface MigrationFacts {
  readonly table: TableFacts;
  readonly surroundings: Surroundings;
}

/** A list of columns as names, from those of `pg_attribute` whose numbers `attnums` (an SQL array) holds, in its order. */
const named = (attnums: string, relation = 't.oid'): string =>
  `(SELECT coalesce(jsonb_agg(a.attname ORDER BY x.place), '[]') FROM unnest(${attnums}) WITH ORDINALITY AS x(attnum, place)
     JOIN pg_attribute a ON a.attrelid = ${relation} AND a.attnum = x.attnum)`;

/** Columns of the table that an object refers to. */
const referred = (condition: string): string =>
  `(SELECT coalesce(jsonb_agg(DISTINCT a.attname), '[]') FROM pg_depend d
     JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
    WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = t.oid AND d.refobjsubid > 0 AND ${condition})`;

const list = (select: string): string => `(SELECT coalesce(jsonb_agg(x), '[]') FROM (${select}) x)`;

const typeOf = `format_type(a.atttypid, a.atttypmod) ||
  CASE WHEN a.attcollation NOT IN (0, ty.typcollation) THEN (SELECT format(' COLLATE %I.%I', cn.nspname, co.collname)
    FROM pg_collation co JOIN pg_namespace cn ON cn.oid = co.collnamespace WHERE co.oid = a.attcollation) ELSE '' END`;

/** Columns of the table `t` (pg_class), as SourceColumn. */
export const columnsSql = list(`
  SELECT a.attnum, a.attname AS name, ${typeOf} AS type, a.attnotnull AS "notNull",
         CASE a.attidentity WHEN 'a' THEN 'always' WHEN 'd' THEN 'by default' END AS identity,
         CASE a.attgenerated WHEN 's' THEN 'stored' WHEN 'v' THEN 'virtual' END AS generated,
         CASE WHEN a.attgenerated = '' THEN pg_get_expr(ad.adbin, ad.adrelid) END AS "defaultText"
    FROM pg_attribute a JOIN pg_type ty ON ty.oid = a.atttypid
    LEFT JOIN pg_attrdef ad ON ad.adrelid = a.attrelid AND ad.adnum = a.attnum
   WHERE a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum`);

/** Views above the table, to the last; `columns` of those that name it. Definitions of live relations are in millrace_data: they are `readers`. */
const dependentsSql = list(`
  WITH RECURSIVE above(oid) AS (
    SELECT t.oid
    UNION
    SELECT w.ev_class FROM above JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = above.oid AND d.classid = 'pg_rewrite'::regclass
      JOIN pg_rewrite w ON w.oid = d.objid
  )
  SELECT CASE c.relkind WHEN 'm' THEN 'materialized view' WHEN 'v' THEN 'view' ELSE 'other' END AS kind, format('%I.%I', n.nspname, c.relname) AS name,
         ${referred("d.classid = 'pg_rewrite'::regclass AND d.objid IN (SELECT w.oid FROM pg_rewrite w WHERE w.ev_class = c.oid)")} AS columns
    FROM above JOIN pg_class c ON c.oid = above.oid JOIN pg_namespace n ON n.oid = c.relnamespace
   WHERE c.oid <> t.oid AND n.nspname NOT IN ('millrace', 'millrace_data')
  UNION ALL
  SELECT 'function', p.oid::regprocedure::text, ${referred("d.classid = 'pg_proc'::regclass AND d.objid = p.oid")}
    FROM pg_proc p WHERE p.oid IN (SELECT d.objid FROM pg_depend d
           WHERE d.classid = 'pg_proc'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = t.oid)`);

const publicationsSql = list(`
  SELECT p.pubname AS name, p.puballtables AS "allTables",
         ${referred("d.classid = 'pg_publication_rel'::regclass AND d.objid = pr.oid")} AS columns
    FROM pg_publication p LEFT JOIN pg_publication_rel pr ON pr.prpubid = p.oid AND pr.prrelid = t.oid
   WHERE NOT p.pubname ~ '^millrace' AND (p.puballtables OR pr.oid IS NOT NULL
      OR EXISTS (SELECT FROM pg_publication_namespace pn WHERE pn.pnpubid = p.oid AND pn.pnnspid = t.relnamespace))
   ORDER BY p.pubname`);

const partitionKeySql = `(SELECT coalesce(jsonb_agg(DISTINCT a.attname), '[]')
    FROM pg_partition_tree(t.oid) l JOIN pg_partitioned_table k ON k.partrelid = l.relid JOIN pg_attribute a ON a.attrelid = l.relid AND a.attnum > 0
   WHERE a.attnum = ANY (k.partattrs::smallint[])
      OR EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = l.relid AND d.objsubid = 0
                    AND d.refclassid = 'pg_class'::regclass AND d.refobjid = l.relid AND d.refobjsubid = a.attnum))`;

/** Of the table as a whole each has a part in a partition, which knows it. */
const partitionObjectsSql = `(SELECT coalesce(jsonb_agg(format('%s of %s', o.what, l.relid::regclass)), '[]')
    FROM pg_partition_tree(t.oid) l JOIN pg_class c ON c.oid = l.relid, LATERAL (
      SELECT 'index ' || x.relname FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid WHERE i.indrelid = c.oid AND NOT x.relispartition
      UNION ALL SELECT 'trigger ' || g.tgname FROM pg_trigger g WHERE g.tgrelid = c.oid AND NOT g.tgisinternal AND g.tgparentid = 0
      UNION ALL SELECT 'constraint ' || k.conname FROM pg_constraint k WHERE k.conrelid = c.oid AND k.contype IN ('c', 'f') AND k.coninhcount = 0 AND k.conparentid = 0
      UNION ALL SELECT 'foreign key ' || k.conname FROM pg_constraint k WHERE k.confrelid = c.oid AND k.contype = 'f' AND k.conparentid = 0
      UNION ALL SELECT 'publication ' || p.pubname FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid WHERE r.prrelid = c.oid
      UNION ALL SELECT 'view ' || w.ev_class::regclass FROM pg_depend d JOIN pg_rewrite w ON w.oid = d.objid
                 WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = c.oid
      UNION ALL SELECT 'default of column ' || a.attname FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
                  JOIN pg_attribute b ON b.attrelid = t.oid AND b.attname = a.attname LEFT JOIN pg_attrdef e ON e.adrelid = b.attrelid AND e.adnum = b.attnum
                 WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
                   AND pg_get_expr(d.adbin, d.adrelid) IS DISTINCT FROM pg_get_expr(e.adbin, e.adrelid)
      UNION ALL SELECT 'row-level security' WHERE c.relrowsecurity
      UNION ALL SELECT 'the foreign server' WHERE c.relkind = 'f') o(what)
   WHERE l.level > 0)`;

const tableSql = `
SELECT jsonb_build_object(
  'source', jsonb_build_object(
     'oid', t.oid::bigint, 'schema', n.nspname, 'name', t.relname, 'partitioned', t.relkind = 'p',
     'owner', jsonb_build_object('oid', t.relowner::bigint, 'name', pg_get_userbyid(t.relowner)),
     'columns', ${columnsSql},
     'key', coalesce((SELECT ${named('k.conkey')} FROM pg_constraint k WHERE k.conrelid = t.oid AND k.contype = 'p'), '[]')),
  'kind', t.relkind, 'persistence', t.relpersistence,
  'isSystem', n.nspname ~ '^(pg_|millrace$|millrace_data$|information_schema$)', 'isPartition', t.relispartition,
  'children', (SELECT coalesce(jsonb_agg(i.inhrelid::regclass::text), '[]') FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
                WHERE i.inhparent = t.oid AND NOT c.relispartition AND t.relkind <> 'p'),
  'parents', (SELECT coalesce(jsonb_agg(i.inhparent::regclass::text), '[]') FROM pg_inherits i WHERE i.inhrelid = t.oid),
  'partitionKey', ${partitionKeySql}, 'partitionObjects', ${partitionObjectsSql},
  'rows', greatest((SELECT sum(greatest(c.reltuples, 0)) FROM files f JOIN pg_class c ON c.oid = f.oid), 0),
  'bytes', (SELECT coalesce(sum(pg_relation_size(f.oid)), 0) FROM files f),
  'indexBytes', (SELECT coalesce(sum(pg_indexes_size(f.oid)), 0) FROM files f),
  'toastBytes', (SELECT coalesce(sum(pg_total_relation_size(c.reltoastrelid)), 0) FROM files f JOIN pg_class c ON c.oid = f.oid WHERE c.reltoastrelid <> 0),
  'identity', t.relreplident,
  'identityColumns', coalesce((SELECT ${named('i.indkey::smallint[]')} FROM pg_index i WHERE i.indrelid = t.oid AND i.indisreplident), '[]'),
  'rowSecurity', t.relrowsecurity,
  'policies', ${list(`SELECT p.polname AS name, ${referred("d.classid = 'pg_policy'::regclass AND d.objid = p.oid")} AS columns FROM pg_policy p WHERE p.polrelid = t.oid`)},
  'rules', (SELECT coalesce(jsonb_agg(w.rulename), '[]') FROM pg_rewrite w WHERE w.ev_class = t.oid AND w.rulename <> '_RETURN'),
  'triggers', ${list(`SELECT g.tgname AS name, g.tgenabled <> 'D' AS enabled, ${referred("d.classid = 'pg_trigger'::regclass AND d.objid = g.oid")} AS columns
                        FROM pg_trigger g WHERE g.tgrelid = t.oid AND NOT g.tgisinternal`)},
  'generated', ${list(
    `SELECT ga.attname AS name, ${referred(
      `a.attname <> ga.attname AND ((d.classid = 'pg_class'::regclass AND d.objid = t.oid AND d.objsubid = ga.attnum)
       OR (d.classid = 'pg_attrdef'::regclass AND d.objid IN (SELECT ad.oid FROM pg_attrdef ad WHERE ad.adrelid = t.oid AND ad.adnum = ga.attnum)))`,
    )} AS columns FROM pg_attribute ga WHERE ga.attrelid = t.oid AND ga.attgenerated <> ''`,
  )},
  'checks', ${list(`SELECT k.conname AS name, ${named('k.conkey')} AS columns FROM pg_constraint k WHERE k.conrelid = t.oid AND k.contype = 'c'`)},
  'foreignKeysOut', ${list(`SELECT k.conname AS name, k.confrelid::regclass::text AS table, ${named('k.conkey')} AS columns FROM pg_constraint k WHERE k.conrelid = t.oid AND k.contype = 'f' AND k.conparentid = 0`)},
  'foreignKeysIn', ${list(`SELECT k.conname AS name, k.conrelid::regclass::text AS table, ${named('k.confkey')} AS columns, ${named('k.conkey', 'k.conrelid')} AS from,
       (SELECT jsonb_agg(format_type(a.atttypid, a.atttypmod) ORDER BY x.place) FROM unnest(k.conkey) WITH ORDINALITY AS x(attnum, place)
          JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = x.attnum) AS types
     FROM pg_constraint k WHERE k.confrelid = t.oid AND k.contype = 'f' AND k.conparentid = 0`)},
  'indexes', ${list(`SELECT c.relname AS name, i.indisunique AS unique, i.indisprimary AS primary, i.indisexclusion AS exclusion, i.indisvalid AS valid,
       (SELECT coalesce(jsonb_agg(DISTINCT a.attname), '[]') FROM pg_attribute a WHERE a.attrelid = t.oid AND a.attnum > 0
           AND (a.attnum = ANY (i.indkey::smallint[]) OR a.attnum IN (SELECT d.refobjsubid FROM pg_depend d
                 WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.refclassid = 'pg_class'::regclass AND d.refobjid = t.oid))) AS columns
     FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid WHERE i.indrelid = t.oid`)},
  'statistics', ${list(`SELECT s.stxname AS name, ${named('s.stxkeys::smallint[]')} AS columns FROM pg_statistic_ext s WHERE s.stxrelid = t.oid`)},
  'dependents', ${dependentsSql},
  'publications', ${publicationsSql})
  FROM pg_class t JOIN pg_namespace n ON n.oid = t.relnamespace
 WHERE t.oid = ($1 ->> 'oid')::oid`.replaceAll(
  'files f',
  "(SELECT l.relid::oid AS oid FROM pg_partition_tree(t.oid) l WHERE l.isleaf UNION SELECT t.oid WHERE t.relkind <> 'p') f",
);

/** Millrace's own catalog, where it is there: migrations of the table, and what reads it. */
const ownSql = `
SELECT jsonb_build_object(
  'migrations', (SELECT coalesce(jsonb_agg(m.name ORDER BY m.id), '[]') FROM millrace.migration m
                  WHERE m.phase NOT IN ('finished', 'cancelled') AND ($1 ->> 'oid')::oid IN (m.source_oid, m.target_oid)),
  'readers', ${list(`
     SELECT millrace.qualified_name(r.facade) AS name,
            (SELECT coalesce(jsonb_agg(a.attname ORDER BY a.attnum), '[]') FROM pg_attribute a WHERE a.attrelid = x.source AND a.attnum = ANY (x.attnums)) AS columns
       FROM millrace.stream_table_source x JOIN millrace.relation r ON r.id = x.relation_id AND r.state <> 'dropped'
      WHERE x.source = ($1 ->> 'oid')::oid`)})`;

const surroundingsSql = `
SELECT jsonb_build_object(
  'walLevel', current_setting('wal_level'),
  'slots', jsonb_build_object('used', (SELECT count(*) FROM pg_replication_slots), 'max', current_setting('max_replication_slots')::integer),
  'walSenders', jsonb_build_object('used', (SELECT count(*) FROM pg_stat_replication), 'max', current_setting('max_wal_senders')::integer),
  'databaseBytes', pg_database_size(db.oid), 'database', db.datname,
  'tablespace', (SELECT s.spcname FROM pg_tablespace s WHERE s.oid = coalesce(nullif(t.reltablespace, 0), db.dattablespace)),
  'engine', (SELECT jsonb_build_object('name', r.rolname, 'superuser', r.rolsuper, 'replication', r.rolreplication OR r.rolsuper,
                                       'owns', pg_has_role(r.oid, t.relowner, 'USAGE'))
               FROM pg_roles r WHERE r.rolname = $1 ->> 'engine'),
  'caller', (SELECT jsonb_build_object('name', r.rolname, 'superuser', r.rolsuper, 'owns', pg_has_role(r.oid, t.relowner, 'USAGE'),
                'createInDatabase', has_database_privilege(r.oid, db.oid, 'CREATE'),
                'createInTarget', (SELECT has_schema_privilege(r.oid, n.oid, 'CREATE') FROM pg_namespace n WHERE n.nspname = $1 ->> 'targetSchema'))
               FROM pg_roles r WHERE r.oid = ($1 ->> 'caller')::oid),
  'targetExists', EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                           WHERE n.nspname = $1 ->> 'targetSchema' AND c.relname = $1 ->> 'targetName'),
  'schemasTaken', (SELECT coalesce(jsonb_agg(n.nspname), '[]') FROM pg_namespace n
                    WHERE n.nspname IN (SELECT jsonb_array_elements_text($1 -> 'schemas'))),
  'transactions', ${list(`
     SELECT a.pid, NULL::text AS gid, a.usename AS user,
            CASE WHEN pg_has_role(($1 ->> 'caller')::oid, a.usesysid, 'USAGE') OR pg_has_role(($1 ->> 'caller')::oid, 'pg_read_all_stats', 'USAGE')
                 THEN a.query END AS query,
            greatest(0, extract(epoch FROM clock_timestamp() - a.xact_start) * 1000)::bigint AS "ageMs", o.on_table AS "onTable"
       FROM pg_stat_activity a,
            LATERAL (SELECT EXISTS (SELECT FROM pg_locks l WHERE l.pid = a.pid AND l.granted AND l.locktype = 'relation' AND l.database = db.oid
                                       AND l.relation IN (SELECT t.oid UNION SELECT p.relid FROM pg_partition_tree(t.oid) p)) AS on_table) o
      WHERE a.datname = db.datname AND a.pid <> pg_backend_pid() AND a.xact_start IS NOT NULL AND a.backend_type = 'client backend'
        AND clock_timestamp() - a.xact_start > interval '1 second' AND (o.on_table OR a.backend_xid IS NOT NULL)
     UNION ALL
     SELECT NULL, x.gid, x.owner, NULL, greatest(0, extract(epoch FROM clock_timestamp() - x.prepared) * 1000)::bigint,
            EXISTS (SELECT FROM pg_locks l WHERE l.pid IS NULL AND l.locktype = 'relation' AND l.database = db.oid AND l.relation = t.oid
                       AND l.virtualtransaction = '-1/' || x.transaction)
       FROM pg_prepared_xacts x WHERE x.database = db.datname
      ORDER BY 5 DESC`)})
  FROM pg_class t, pg_database db WHERE t.oid = ($1 ->> 'oid')::oid AND db.datname = current_database()`;

export interface Wanted {
  readonly oid: string;
  /** Role that types the statement. */
  readonly caller: string;
  /** Role of Millrace's own connection. */
  readonly engine: string;
  /** MOVE COLUMNS only. */
  readonly target: TableName | null;
  readonly versions: readonly string[];
}

/** `own`: asks Millrace's catalog; null where there is none yet. */
export async function readFacts(ask: Ask, own: Ask | null, wanted: Wanted): Promise<MigrationFacts> {
  const parameters = {
    oid: wanted.oid,
    caller: wanted.caller,
    engine: wanted.engine,
    targetSchema: wanted.target?.schema ?? null,
    targetName: wanted.target?.name ?? null,
    schemas: wanted.versions,
  };
  const table = (await ask(tableSql, parameters)) as TableFacts;
  const around = (await ask(surroundingsSql, parameters)) as Omit<Surroundings, 'migrations' | 'readers'>;
  const known = own === null ? { migrations: [], readers: [] } : await own(ownSql, parameters);
  return { table, surroundings: { ...around, ...(known as Pick<Surroundings, 'migrations' | 'readers'>) } };
}
