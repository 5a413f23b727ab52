/**
 * Logical messages by which an origin tells of DDL, in the order of its WAL, and the event triggers that send them.
 * Invariant: they never fail a user's statement and never wait: an error ends the telling, not the statement, and what was not told is found
 * by looking at the catalog. They are part of the transaction: DDL that is rolled back is not told of.
 * Event triggers want a superuser (or what a managed server has in place of one); without them only the catalog is looked at.
 */
import type pg from 'pg';
import { filterPrintSql, operationsSql, shapeSql, type TableShape } from './origin-tables.ts';

/** Prefix of the messages. */
export const ddlPrefix = 'millrace_ddl';
const schema = 'millrace_origin';
/** Bumped with every change of the functions below. */
const version = 3;

/**
 * Sessions that are not to be told of: SET millrace.skip_ddl = on.
 * The block with EXCEPTION is a subtransaction. Decoding merges those by position, where a message counts with the end of its record and a row
 * with the beginning of its own: a row right behind a message would tie with it and may come first. The empty message stands between them.
 */
const tellDdl = `
CREATE OR REPLACE FUNCTION ${schema}.tell_ddl() RETURNS event_trigger LANGUAGE plpgsql SET search_path = pg_catalog AS $tell$
DECLARE
  changed oid[] := '{}';
  rewritten oid[];
  found record;
BEGIN
  IF current_setting('wal_level') <> 'logical' OR coalesce(current_setting('millrace.skip_ddl', true), '') IN ('on', 'true', 'yes', '1') THEN
    RETURN;
  END IF;
  rewritten := string_to_array(coalesce(current_setting('millrace.rewritten', true), ''), ',')::oid[];
  IF TG_EVENT = 'table_rewrite' THEN
    -- 4: the values of a column. CLUSTER and VACUUM FULL do not come here.
    IF pg_event_trigger_table_rewrite_reason() & 4 <> 0 THEN
      PERFORM set_config('millrace.rewritten', array_to_string(rewritten || pg_event_trigger_table_rewrite_oid(), ','), true);
    END IF;
    RETURN;
  END IF;
  IF TG_EVENT = 'sql_drop' THEN
    FOR found IN
      SELECT o.objid AS oid, o.schema_name, o.object_name FROM pg_event_trigger_dropped_objects() o
       WHERE o.object_type = 'table' AND NOT o.is_temporary
    LOOP
      PERFORM pg_logical_emit_message(true, '${ddlPrefix}', json_build_object('tag', TG_TAG, 'by', session_user, 'at', clock_timestamp(),
        'dropped', json_build_object('oid', found.oid::bigint, 'schema', found.schema_name, 'name', found.object_name))::text);
    END LOOP;
    -- The end of ALTER TABLE tells of the columns it drops.
    IF TG_TAG <> 'ALTER TABLE' THEN
      SELECT coalesce(array_agg(DISTINCT o.objid), '{}') INTO changed FROM pg_event_trigger_dropped_objects() o
       WHERE o.object_type = 'table column' AND NOT o.is_temporary;
    END IF;
  ELSE
    SELECT coalesce(array_agg(DISTINCT t.oid), '{}') INTO changed
      FROM (
        SELECT c.classid, c.objid FROM pg_event_trigger_ddl_commands() c WHERE NOT c.in_extension
      ) c
      CROSS JOIN LATERAL (
        SELECT c.objid AS oid WHERE c.classid = 'pg_class'::regclass
        UNION ALL
        SELECT k.oid FROM pg_class k WHERE c.classid = 'pg_namespace'::regclass AND k.relnamespace = c.objid AND k.relkind IN ('r', 'p')
        UNION ALL
        SELECT a.attrelid FROM pg_attribute a JOIN pg_type u ON u.oid = a.atttypid
         WHERE c.classid = 'pg_type'::regclass AND a.attnum > 0 AND NOT a.attisdropped AND c.objid IN (u.oid, u.typelem, u.typbasetype)
      ) t;
    IF TG_TAG LIKE '% PUBLICATION' THEN
      PERFORM pg_logical_emit_message(true, '${ddlPrefix}', json_build_object('tag', TG_TAG, 'by', session_user, 'at', clock_timestamp(),
        'publications', coalesce((SELECT json_object_agg(p.pubname,
            (SELECT coalesce(json_agg(c.oid::bigint), '[]') FROM pg_publication_tables pt
               JOIN pg_namespace n ON n.nspname = pt.schemaname JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = pt.tablename
              WHERE pt.pubname = p.pubname))
          FROM pg_publication p), '{}'),
        'operations', (SELECT coalesce(json_object_agg(p.pubname, ${operationsSql}), '{}') FROM pg_publication p),
        'filters', (SELECT coalesce(json_agg(json_build_object('publication', p.pubname, 'oid', r.prrelid::bigint, 'print', ${filterPrintSql})), '[]')
          FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid WHERE to_jsonb(r)->>'prqual' IS NOT NULL))::text);
    END IF;
  END IF;
  -- With a table its children and partitions change, too.
  FOR found IN
    WITH RECURSIVE family(oid) AS (
      -- A new partition changes its root, too.
      SELECT unnest(changed) UNION SELECT pg_partition_root(x) FROM unnest(changed) x WHERE pg_partition_root(x) IS NOT NULL
      UNION SELECT i.inhrelid FROM family f JOIN pg_inherits i ON i.inhparent = f.oid
    )
    SELECT ${shapeSql} AS shape,
           EXISTS (
             WITH RECURSIVE below(oid) AS (
               SELECT c.oid UNION SELECT i.inhrelid FROM below b JOIN pg_inherits i ON i.inhparent = b.oid
             )
             SELECT FROM below b WHERE b.oid = ANY (rewritten)
           ) AS is_rewritten,
           (SELECT coalesce(json_agg(pt.pubname), '[]') FROM pg_publication_tables pt WHERE pt.schemaname = n.nspname AND pt.tablename = c.relname) AS published
      FROM family f JOIN pg_class c ON c.oid = f.oid JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p'
       AND (TG_TAG IN ('ALTER TABLE', 'ALTER SCHEMA') AND EXISTS (SELECT FROM pg_publication)
            OR EXISTS (SELECT FROM pg_publication_tables pt WHERE pt.schemaname = n.nspname AND pt.tablename = c.relname))
     ORDER BY c.oid
  LOOP
    PERFORM pg_logical_emit_message(true, '${ddlPrefix}', json_build_object('tag', TG_TAG, 'by', session_user, 'at', clock_timestamp(),
      'table', found.shape, 'published', found.published, 'rewritten', found.is_rewritten,
      'query', CASE WHEN found.is_rewritten AND length(current_query()) <= 20000 THEN current_query() END)::text);
  END LOOP;
  IF TG_EVENT = 'ddl_command_end' AND rewritten <> '{}' THEN
    PERFORM set_config('millrace.rewritten', '', true);
  END IF;
  PERFORM pg_logical_emit_message(true, '${ddlPrefix}', '');
EXCEPTION WHEN OTHERS THEN
  RAISE DEBUG 'millrace: % could not be told of: %', TG_TAG, SQLERRM;
END $tell$`.trim();

const install = `
CREATE SCHEMA IF NOT EXISTS ${schema};
COMMENT ON SCHEMA ${schema} IS 'Millrace, version ${version}: event triggers that tell of DDL in the WAL. To be dropped with CASCADE when no Millrace reads from this database.';
REVOKE ALL ON SCHEMA ${schema} FROM PUBLIC;
${tellDdl};
REVOKE ALL ON FUNCTION ${schema}.tell_ddl() FROM PUBLIC;
DROP EVENT TRIGGER IF EXISTS millrace_ddl_end;
DROP EVENT TRIGGER IF EXISTS millrace_ddl_drop;
DROP EVENT TRIGGER IF EXISTS millrace_ddl_rewrite;
CREATE EVENT TRIGGER millrace_ddl_end ON ddl_command_end
  WHEN TAG IN ('ALTER TABLE', 'CREATE TABLE', 'CREATE TABLE AS', 'SELECT INTO', 'ALTER SCHEMA', 'ALTER TYPE', 'ALTER DOMAIN',
               'ALTER PUBLICATION', 'CREATE PUBLICATION', 'DROP PUBLICATION')
  EXECUTE FUNCTION ${schema}.tell_ddl();
CREATE EVENT TRIGGER millrace_ddl_drop ON sql_drop EXECUTE FUNCTION ${schema}.tell_ddl();
CREATE EVENT TRIGGER millrace_ddl_rewrite ON table_rewrite EXECUTE FUNCTION ${schema}.tell_ddl()`.trim();

const installed = `
SELECT count(*) = 3 AND pg_catalog.obj_description((SELECT n.oid FROM pg_catalog.pg_namespace n WHERE n.nspname = '${schema}'), 'pg_namespace')
         LIKE 'Millrace, version ${version}:%' AS there
  FROM pg_catalog.pg_event_trigger e WHERE e.evtname IN ('millrace_ddl_end', 'millrace_ddl_drop', 'millrace_ddl_rewrite') AND e.evtenabled IN ('O', 'A')`;

/** "ddlm" in ASCII: two sources of one origin do not install at once. */
const installLock = 1684827245;

/**
 * Makes the database of `client` tell of DDL. False when its role may not: then it does not, unless an administrator has installed it.
 * To be called outside of a transaction.
 */
export async function installDdlMessages(client: pg.Client): Promise<boolean> {
  const look = async (): Promise<boolean> => (await client.query<{ there: boolean | null }>(installed)).rows[0]?.there === true;
  if (await look()) return true;
  try {
    await client.query(`BEGIN; SELECT pg_catalog.pg_advisory_xact_lock(${installLock})`);
    if (!(await look())) await client.query(install);
    await client.query('COMMIT');
    return true;
  } catch (error) {
    await client.query('ROLLBACK');
    // insufficient_privilege, read_only_sql_transaction
    if (['42501', '25006'].includes((error as { code?: string }).code ?? '')) return false;
    throw error;
  }
}

/** Removes what `installDdlMessages` made, when no slot of a Millrace source is left in the database. */
export async function removeDdlMessages(client: pg.Client): Promise<void> {
  const others = await client.query(
    "SELECT FROM pg_catalog.pg_replication_slots WHERE database = pg_catalog.current_database() AND slot_name ~ '^millrace_[0-9a-f]{16}$'",
  );
  if (others.rows.length > 0) return;
  await client.query(`DROP SCHEMA IF EXISTS ${schema} CASCADE`).catch((error: { code?: string }) => {
    if (error.code !== '42501') throw error;
  });
}

/** ALTER TABLE has written the values of columns anew: by the cast from the old type, or USING any expression. */
export interface Rewriting {
  /** What the session was running; null: it is too long. */
  readonly query: string | null;
}

export interface Publication {
  /** OIDs. */
  readonly tables: readonly number[];
  /** First letters. */
  readonly operations: string;
  /** Fingerprints of row filters, by the OID of their table. */
  readonly filters: ReadonlyMap<number, string>;
}

/** As OriginTable has it. */
export function sentAs({ operations, filters }: Publication, oid: number): string {
  const filter = filters.get(oid);
  return filter === undefined ? operations : `${operations} ${filter}`;
}

/** What a message tells. */
export type DdlMessage = {
  readonly tag: string;
  /** Role of the session. */
  readonly by: string;
  /** ISO 8601. */
  readonly at: string;
} & (
  | { readonly kind: 'table'; readonly table: TableShape; readonly rewriting: Rewriting | null; readonly published: readonly string[] }
  | { readonly kind: 'dropped'; readonly dropped: { readonly oid: number; readonly schema: string; readonly name: string } }
  /** What every publication publishes, afterwards. */
  | { readonly kind: 'publications'; readonly publications: Readonly<Record<string, Publication>> }
);

/** Null for what no function above has written: anyone may send messages of any prefix. */
export function parseDdlMessage(content: string): DdlMessage | null {
  let read: unknown;
  try {
    read = JSON.parse(content);
  } catch {
    return null;
  }
  const { tag, by, at, table, rewritten, query, published, dropped, publications, operations, filters } = fieldsOf(read);
  if (typeof tag !== 'string' || typeof by !== 'string' || typeof at !== 'string') return null;
  if (isShape(table)) {
    const rewriting = rewritten === true ? { query: typeof query === 'string' ? query : null } : null;
    const names = Array.isArray(published) ? published.filter((name): name is string => typeof name === 'string') : [];
    return { kind: 'table', tag, by, at, table, rewriting, published: names };
  }
  const gone = fieldsOf(dropped);
  if (typeof gone['oid'] === 'number' && typeof gone['schema'] === 'string' && typeof gone['name'] === 'string')
    return { kind: 'dropped', tag, by, at, dropped: { oid: gone['oid'], schema: gone['schema'], name: gone['name'] } };
  const lists = Object.entries(fieldsOf(publications));
  if (publications !== undefined && lists.every((entry): entry is [string, number[]] => isNumbers(entry[1])))
    return { kind: 'publications', tag, by, at, publications: publicationsOf(lists, operations, filters) };
  return null;
}

function publicationsOf(lists: readonly [string, number[]][], operations: unknown, filters: unknown): Record<string, Publication> {
  const letters = fieldsOf(operations);
  const told = Array.isArray(filters) ? filters.map((filter: unknown) => fieldsOf(filter)) : [];
  return Object.fromEntries(
    lists.map(([name, tables]) => {
      const prints = told.flatMap(({ publication, oid, print }): [number, string][] =>
        publication === name && typeof oid === 'number' && typeof print === 'string' ? [[oid, print]] : [],
      );
      return [name, { tables, operations: String(letters[name] ?? ''), filters: new Map(prints) }];
    }),
  );
}

const fieldsOf = (value: unknown): Record<string, unknown> => (typeof value === 'object' && value !== null ? { ...value } : {});
const isNumbers = (value: unknown): value is number[] => Array.isArray(value) && value.every((item) => typeof item === 'number');

function isShape(value: unknown): value is TableShape {
  const { oid, schema: schemaName, name, replicaIdentity, columns, primaryKey, identityKey } = fieldsOf(value);
  return (
    typeof oid === 'number' &&
    typeof schemaName === 'string' &&
    typeof name === 'string' &&
    typeof replicaIdentity === 'string' &&
    isNumbers(primaryKey) &&
    isNumbers(identityKey) &&
    Array.isArray(columns) &&
    columns.every((column) => {
      const { attnum, name: columnName, formattedType } = fieldsOf(column);
      return typeof attnum === 'number' && typeof columnName === 'string' && typeof formattedType === 'string';
    })
  );
}
