/**
 * Shape of origin tables.
 * Invariant: a table is described by one statement, hence as of one moment; identity is by OID and attnum, names are only shown.
 */
import type pg from 'pg';

export interface OriginColumn {
  readonly attnum: number;
  readonly name: string;
  readonly typeOid: number;
  readonly typmod: number;
  /** format_type, schema-qualified unless in pg_catalog: 'numeric(10,2)', 'public.mood'. */
  readonly formattedType: string;
  readonly typeSchema: string;
  readonly typeName: string;
  /** The type, with domains resolved, comes with Postgres itself (arrays of such too). */
  readonly baseIsBuiltin: boolean;
  /** format_type of the type below all domains; equals formattedType when it is no domain. */
  readonly baseType: string;
  readonly notNull: boolean;
  /** '' not generated, 's' stored, 'v' virtual. pgoutput leaves generated columns out unless the publication says otherwise. */
  readonly generated: string;
  /** '' none, 'a' always, 'd' by default. */
  readonly identity: string;
  readonly hasDefault: boolean;
  /** The expression; of a generated column, what it is generated from. */
  readonly default: string | null;
  /** Schema-qualified and quoted; null when the type has none or it is the type's default. */
  readonly collation: string | null;
  /** Of an enum, or an array of one: its values in order, known by OID. Left out for other types. */
  readonly labels?: readonly EnumLabel[] | null;
}

export interface TablePart {
  readonly oid: number;
  readonly isEmpty: boolean;
}

export interface EnumLabel {
  readonly oid: number;
  readonly label: string;
}

/** What DDL can change of a table. */
export interface TableShape {
  readonly oid: number;
  readonly schema: string;
  readonly name: string;
  /** 'r' table, 'p' partitioned table; 'v', 'm', 'f', 'S' cannot be replicated. */
  readonly relkind: string;
  readonly isPartition: boolean;
  /** Columns it ever had: a higher attnum was never given. */
  readonly natts: number;
  readonly replicaIdentity: 'd' | 'i' | 'f' | 'n';
  /** In order of attnum; dropped ones left out. */
  readonly columns: readonly OriginColumn[];
  /** Number of its file: as long as it is the same, no ALTER TABLE has written the rows anew. 0: it has none of its own. */
  readonly filenode?: number;
  /** Of a partitioned table: the partitions that have rows, and whether they ever had any (their files are not empty). */
  readonly parts?: readonly TablePart[] | null;
  /** attnums in key order; empty without one. */
  readonly primaryKey: readonly number[];
  /** attnums that identify a row in update and delete messages: of the replica identity index ('i') or the primary key ('d', and 'f' when there is one); else empty. */
  readonly identityKey: readonly number[];
}

/** A table as one role sees it, and one publication. */
export interface OriginTable extends TableShape {
  /** Row security would hide rows from the role that is connected. */
  readonly rls: boolean;
  /** The role may read the whole table. */
  readonly canSelect: boolean;
  readonly published: boolean;
  /** attnums of the columns that the publication publishes; null: that is not known, so all. */
  readonly publishedColumns: readonly number[] | null;
  /** SQL of the publication's row filter; null without one. */
  readonly rowFilter: string | null;
  /**
   * What the publication publishes of it: the first letters of operations, and behind a space, where there is a row filter, its fingerprint. The same for the
   * same, whatever columns are called by now.
   */
  readonly sentAs: string;
}

export interface PublishedTable {
  readonly oid: number;
  readonly schema: string;
  readonly name: string;
}

/** Facts of table `c` in schema `n` that DDL changes, as a jsonb object: of `OriginTable`, what `TableShape` has. */
export const shapeSql = `
pg_catalog.jsonb_build_object('oid', c.oid::bigint, 'schema', n.nspname, 'name', c.relname, 'relkind', c.relkind::text,
  'isPartition', c.relispartition, 'natts', c.relnatts, 'filenode', c.relfilenode::bigint,
  'parts', CASE WHEN c.relkind = 'p' THEN (
    SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object('oid', p.relid::oid::bigint, 'isEmpty', coalesce(pg_catalog.pg_relation_size(p.relid), 0) = 0) ORDER BY p.relid::oid)
      FROM pg_catalog.pg_partition_tree(c.oid) p WHERE p.isleaf AND p.relid <> c.oid) END,
  'replicaIdentity', c.relreplident::text,
  'primaryKey', COALESCE((SELECT pg_catalog.jsonb_agg(k.attnum ORDER BY k.ord)
    FROM pg_catalog.pg_index i, LATERAL pg_catalog.unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, ord)
    WHERE i.indrelid = c.oid AND i.indisprimary AND k.ord <= i.indnkeyatts), '[]'),
  'identityKey', COALESCE((SELECT pg_catalog.jsonb_agg(k.attnum ORDER BY k.ord)
    FROM pg_catalog.pg_index i, LATERAL pg_catalog.unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, ord)
    WHERE i.indrelid = c.oid AND i.indisvalid AND k.ord <= i.indnkeyatts
      AND CASE c.relreplident WHEN 'i' THEN i.indisreplident WHEN 'n' THEN false ELSE i.indisprimary END), '[]'),
  'columns', COALESCE((SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object(
      'attnum', a.attnum, 'name', a.attname, 'typeOid', a.atttypid::bigint, 'typmod', a.atttypmod,
      'formattedType', pg_catalog.format_type(a.atttypid, a.atttypmod),
      'typeSchema', tn.nspname, 'typeName', t.typname,
      'baseIsBuiltin', b.oid < 16384, 'baseType', pg_catalog.format_type(b.oid, b.typmod),
      'notNull', a.attnotnull, 'generated', a.attgenerated::text, 'identity', a.attidentity::text, 'hasDefault', a.atthasdef,
      'default', pg_catalog.pg_get_expr(d.adbin, d.adrelid),
      'collation', CASE WHEN a.attcollation <> t.typcollation
        THEN pg_catalog.quote_ident(cn.nspname) || '.' || pg_catalog.quote_ident(co.collname) END,
      'labels', (SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object('oid', e.oid::bigint, 'label', e.enumlabel) ORDER BY e.enumsortorder)
        FROM pg_catalog.pg_enum e WHERE e.enumtypid IN (t.oid, t.typelem))) ORDER BY a.attnum)
    FROM pg_catalog.pg_attribute a
    JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
    JOIN pg_catalog.pg_namespace tn ON tn.oid = t.typnamespace
    LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    LEFT JOIN pg_catalog.pg_collation co ON co.oid = a.attcollation
    LEFT JOIN pg_catalog.pg_namespace cn ON cn.oid = co.collnamespace
    CROSS JOIN LATERAL (
      WITH RECURSIVE base(oid, typmod, typtype, next, next_typmod, depth) AS (
        SELECT t.oid, a.atttypmod, t.typtype, t.typbasetype, t.typtypmod, 0
        UNION ALL
        SELECT u.oid, base.next_typmod, u.typtype, u.typbasetype, u.typtypmod, base.depth + 1
        FROM base JOIN pg_catalog.pg_type u ON u.oid = base.next WHERE base.typtype = 'd')
      SELECT oid, typmod FROM base ORDER BY depth DESC LIMIT 1) b
    WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped), '[]'))`.trim();

/** First letters of the operations that publication `p` publishes. */
export const operationsSql = `(CASE WHEN p.pubinsert THEN 'i' ELSE '' END || CASE WHEN p.pubupdate THEN 'u' ELSE '' END
  || CASE WHEN p.pubdelete THEN 'd' ELSE '' END || CASE WHEN p.pubtruncate THEN 't' ELSE '' END)`;

/** Fingerprint of the row filter of `r` in pg_publication_rel: of its tree, without the places that it had in a text. Row filters came with 15. */
export const filterPrintSql =
  "pg_catalog.hashtextextended(pg_catalog.regexp_replace(pg_catalog.to_jsonb(r)->>'prqual', ':location -?[0-9]+', '', 'g'), 0)::text";

/** By OID. Without `publication`, `published` is false. */
const describeSql = `
SELECT ${shapeSql} || pg_catalog.jsonb_build_object(
  'rls', pg_catalog.row_security_active(c.oid),
  'canSelect', pg_catalog.has_table_privilege(c.oid, 'SELECT') AND pg_catalog.has_schema_privilege(n.oid, 'USAGE'),
  'published', pt.tablename IS NOT NULL,
  -- Through jsonb: column lists and row filters came with 15.
  'publishedColumns', (SELECT pg_catalog.jsonb_agg(a.attnum ORDER BY a.attnum) FROM pg_catalog.pg_attribute a
    WHERE a.attrelid = c.oid AND a.attname IN (SELECT pg_catalog.jsonb_array_elements_text(pg_catalog.to_jsonb(pt)->'attnames'))),
  'rowFilter', pg_catalog.to_jsonb(pt)->>'rowfilter',
  'sentAs', coalesce(${operationsSql}, '')
    || coalesce(' ' || (SELECT ${filterPrintSql} FROM pg_catalog.pg_publication_rel r WHERE r.prpubid = p.oid AND r.prrelid = c.oid), '')) AS shape
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_publication p ON p.pubname = $2
LEFT JOIN pg_catalog.pg_publication_tables pt ON pt.pubname = $2 AND pt.schemaname = n.nspname AND pt.tablename = c.relname
WHERE c.oid = ANY ($1::oid[])
ORDER BY c.oid`;

/** Of a described table what DDL can change. */
export function shapeOf({
  oid,
  schema,
  name,
  relkind,
  isPartition,
  natts,
  filenode,
  parts,
  replicaIdentity,
  columns,
  primaryKey,
  identityKey,
}: OriginTable): TableShape {
  const file = filenode === undefined ? {} : { filenode };
  return {
    oid,
    schema,
    name,
    relkind,
    isPartition,
    natts,
    ...file,
    ...(parts == null ? {} : { parts }),
    replicaIdentity,
    columns,
    primaryKey,
    identityKey,
  };
}

/** Tables that exist, by OID. */
export async function describeTables(
  client: pg.Client,
  oids: readonly number[],
  options: { readonly publication?: string } = {},
): Promise<ReadonlyMap<number, OriginTable>> {
  // Named: asked once a second, and planning it takes ten times as long as answering.
  const values = [oids.map(String), options.publication ?? null];
  const result = await client.query<{ shape: OriginTable }>({ name: 'describe tables', text: describeSql, values });
  return new Map(result.rows.map(({ shape }) => [shape.oid, shape]));
}

export interface TableReference {
  /** Without one, the only table of that name that is not the system's. */
  readonly schema?: string;
  readonly table: string;
}

/**
 * The table of that name. Without a schema, candidates are searched in all schemas: one in `public` wins, else it must be the only one.
 * Undefined when there is none; `ambiguous` lists the schemas when there are several.
 */
export async function describeTable(
  client: pg.Client,
  reference: TableReference,
  options: { readonly publication?: string } = {},
): Promise<{ readonly table: OriginTable | undefined; readonly ambiguous: readonly string[] }> {
  const found = await client.query<{ oid: string; schema: string }>(
    `SELECT c.oid::text AS oid, n.nspname::text AS schema
     FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
     WHERE c.relname = $1 AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
       AND CASE WHEN $2::text IS NULL THEN n.nspname <> 'information_schema' AND n.nspname !~ '^pg_' ELSE n.nspname = $2 END
     ORDER BY n.nspname <> 'public', n.nspname`,
    [reference.table, reference.schema ?? null],
  );
  const [first] = found.rows;
  if (first === undefined) return { table: undefined, ambiguous: [] };
  if (found.rows.length > 1 && first.schema !== 'public') return { table: undefined, ambiguous: found.rows.map((row) => row.schema) };
  const tables = await describeTables(client, [Number(first.oid)], options);
  return { table: tables.get(Number(first.oid)), ambiguous: [] };
}

/** What the publication publishes: with publish_via_partition_root the roots, else the partitions. */
export async function listPublished(client: pg.Client, publication: string): Promise<PublishedTable[]> {
  const result = await client.query<{ oid: string; schema: string; name: string }>(
    `SELECT c.oid::text AS oid, n.nspname::text AS schema, c.relname::text AS name
     FROM pg_catalog.pg_publication_tables pt
     JOIN pg_catalog.pg_namespace n ON n.nspname = pt.schemaname
     JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = pt.tablename
     WHERE pt.pubname = $1
     ORDER BY 2, 3`,
    [publication],
  );
  return result.rows.map((row) => ({ oid: Number(row.oid), schema: row.schema, name: row.name }));
}
