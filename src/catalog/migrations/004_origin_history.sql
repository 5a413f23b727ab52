-- Versions of origin tables, in the order of the origin's WAL. A row is written in the epoch that applies the first rows after it.

CREATE TABLE millrace.origin_table_version (
    source_id    bigint  NOT NULL REFERENCES millrace.source ON DELETE CASCADE,
    table_oid    oid     NOT NULL,
    commit_lsn   pg_lsn  NOT NULL,           -- of the commit record of the transaction that made it; of the first versions: where the stream began
    ordinal      integer NOT NULL,           -- order within that transaction
    schema_name  text    NOT NULL,
    table_name   text    NOT NULL,
    shape        jsonb,                      -- TableShape of src/replication/origin-tables.ts; null: the table was dropped
    changes      text[]  NOT NULL,           -- subcommands of ALTER TABLE that lead from the version before to this one
    learned      text    NOT NULL CHECK (learned IN ('start', 'message', 'catalog')),
    command      text,                       -- tag of the command
    session_role text,
    changed_at   timestamptz NOT NULL,
    PRIMARY KEY (source_id, table_oid, commit_lsn, ordinal)
);

CREATE VIEW millrace.origin_table_versions AS
    SELECT n.nspname AS source_schema, c.relname AS source_name, v.table_oid, v.schema_name, v.table_name,
           row_number() OVER (PARTITION BY v.source_id, v.table_oid ORDER BY v.commit_lsn, v.ordinal) AS version,
           v.commit_lsn, v.ordinal, v.changes, v.shape IS NULL AS is_dropped,
           (SELECT jsonb_agg(jsonb_build_object('attnum', k -> 'attnum', 'name', k -> 'name', 'type', k -> 'formattedType',
                     'not_null', k -> 'notNull', 'default', k -> 'default', 'generated', k ->> 'generated' <> '', 'identity', k ->> 'identity' <> '') ORDER BY (k ->> 'attnum')::integer)
              FROM jsonb_array_elements(v.shape -> 'columns') k) AS columns,
           v.shape -> 'primaryKey' AS primary_key, v.shape ->> 'replicaIdentity' AS replica_identity,
           v.learned, v.command, v.session_role, v.changed_at,
           lead(v.table_oid) OVER (PARTITION BY v.source_id, v.table_oid ORDER BY v.commit_lsn, v.ordinal) IS NULL AS is_current
      FROM millrace.origin_table_version v
      JOIN millrace.source s ON s.id = v.source_id
      JOIN pg_class c ON c.oid = s.facade
      JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE s.status <> 'dropped' AND pg_has_role(c.relowner, 'USAGE');
GRANT SELECT ON millrace.origin_table_versions TO PUBLIC;

-- Resynchronisation: a table is copied anew beside its storage, and what differs is written to it in one epoch.
ALTER TABLE millrace.source
    ADD COLUMN timeline         integer,                          -- of the origin's WAL, when last seen
    ADD COLUMN auto_resync      boolean NOT NULL DEFAULT false,
    ADD COLUMN resync_requested boolean NOT NULL DEFAULT false;
ALTER TABLE millrace.storage
    ADD COLUMN stale   boolean NOT NULL DEFAULT false,            -- no rows of the stream go there until the copy has been compared with it
    ADD COLUMN resyncs bigint;                                    -- storage that this copy is made for

-- Whether a source is still to be resynchronised, and what was said of it last.
CREATE FUNCTION millrace.resync_state(source bigint)
RETURNS TABLE (is_pending boolean, error text, code text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT s.resync_requested OR EXISTS (SELECT FROM millrace.storage t WHERE t.source_id = s.id AND t.resyncs IS NOT NULL AND t.state <> 'dropped'), s.error, s.details ->> 'code'
      FROM millrace.source s WHERE s.id = source AND s.status <> 'dropped'
$$;
