-- skip if schema exists: pgtrickle
-- Schema pgtrickle: what users type for stream tables, as pg_trickle has it. Everything that needs no query compiler is a view or a function
-- here, so that it stands in larger queries and answers on direct connections too; the rest asks Millrace (millrace.carried_out).
-- Functions run as their caller, along the caller's search_path: rights are those of the caller, checked by the views they write to.

-- The definition of a stream table is text and recorded sources, not a view: nothing of Millrace's stands in the way of a user's DDL.
ALTER TABLE millrace.live_view ALTER COLUMN definition DROP NOT NULL;
ALTER TABLE millrace.stream_table ADD COLUMN definition text;       -- the query as Postgres prints it, every relation named in full

CREATE TABLE millrace.stream_table_source (
    relation_id bigint NOT NULL REFERENCES millrace.stream_table ON DELETE CASCADE,
    source      oid    NOT NULL,
    source_type text   NOT NULL CHECK (source_type IN ('TABLE', 'STREAM_TABLE', 'VIEW', 'MATVIEW', 'FOREIGN_TABLE')),
    attnums     integer[] NOT NULL,     -- columns the query uses
    names       text[] NOT NULL,        -- what they were called
    name        text   NOT NULL,        -- what it was called
    types       jsonb,                  -- of its columns, by attnum, when the query was planned; NULL: not a table of users
    PRIMARY KEY (relation_id, source)
);

-- As before, and: tables that stand by themselves, with what a stream table has to know of them.
CREATE OR REPLACE FUNCTION millrace.reads_live(relation oid) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    WITH RECURSIVE reached(oid) AS (
        SELECT relation
        UNION
        SELECT d.refobjid
          FROM reached
          JOIN pg_rewrite w ON w.ev_class = reached.oid
          JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = w.oid AND d.refclassid = 'pg_class'::regclass
         WHERE NOT EXISTS (SELECT FROM millrace.relation r WHERE r.facade = reached.oid)
    )
    -- A stream table is refreshed on its own schedule: to a materialized view it is as ordinary as a table.
    SELECT EXISTS (SELECT FROM reached JOIN millrace.relation r ON r.facade = reached.oid
                    WHERE NOT EXISTS (SELECT FROM millrace.stream_table t WHERE t.relation_id = r.id))
$$;

CREATE FUNCTION millrace.is_stream_table(relation bigint) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT EXISTS (SELECT FROM millrace.stream_table t WHERE t.relation_id = relation)
$$;

CREATE OR REPLACE VIEW millrace.relations AS
    SELECT r.id, CASE WHEN millrace.is_stream_table(r.id) THEN 'stream table' WHEN r.kind = 'table' THEN 'table' ELSE 'materialized view' END AS type,
           n.nspname AS schema, c.relname AS name, pg_get_userbyid(c.relowner) AS owner,
           r.state, r.error ->> 'message' AS error, r.state_since,
           v.source_id, v.storage_id, s.origin_schema, s.origin_name,
           lv.plan -> 'reason' ->> 'way' AS strategy, lv.plan -> 'reason' ->> 'reason' AS reason
      FROM millrace.relation r
      JOIN pg_class c ON c.oid = r.facade
      JOIN pg_namespace n ON n.oid = c.relnamespace
      LEFT JOIN millrace.table_version v ON v.relation_id = r.id
      LEFT JOIN millrace.storage s ON s.id = v.storage_id
      LEFT JOIN millrace.live_view lv ON lv.relation_id = r.id
     WHERE r.state <> 'dropped';

-- Ordinary relations as sources of a stream table.
CREATE FUNCTION millrace.source_tables(relations oid[])
RETURNS TABLE (relation oid, base_id bigint, kind "char", persistence "char", has_children boolean, is_system boolean, identity "char",
               owned boolean, readable boolean, hidden_rows boolean, has_policies boolean, key_attnums integer[], columns jsonb)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT c.oid, b.relation_id, c.relkind, c.relpersistence,
           c.relkind = 'r' AND EXISTS (SELECT FROM pg_inherits i WHERE i.inhparent = c.oid),
           n.nspname IN ('pg_catalog', 'information_schema', 'millrace', 'millrace_data', 'pgtrickle') OR n.nspname LIKE 'pg\_%',
           c.relreplident, pg_has_role(c.relowner, 'USAGE'), has_table_privilege(c.oid, 'SELECT') AND has_schema_privilege(n.oid, 'USAGE'),
           row_security_active(c.oid), c.relrowsecurity,
           coalesce((SELECT array_agg(k.attnum::integer ORDER BY k.place)
                       FROM pg_index i, unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, place)
                      WHERE i.indrelid = c.oid AND i.indisprimary AND i.indimmediate AND i.indisvalid AND k.place <= i.indnkeyatts), '{}'),
           (SELECT coalesce(jsonb_agg(jsonb_build_object(
                       'attnum', a.attnum, 'name', a.attname, 'type', format_type(a.atttypid, a.atttypmod),
                       'collation', (SELECT format('%I.%I', cn.nspname, co.collname)
                                       FROM pg_collation co JOIN pg_namespace cn ON cn.oid = co.collnamespace
                                       JOIN pg_type t ON t.oid = a.atttypid
                                      WHERE co.oid = a.attcollation AND a.attcollation <> t.typcollation),
                       'generated', a.attgenerated) ORDER BY a.attnum), '[]')
              FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)
      FROM unnest(relations) AS wanted(oid)
      JOIN pg_class c ON c.oid = wanted.oid
      JOIN pg_namespace n ON n.oid = c.relnamespace
      LEFT JOIN millrace.base_table b ON b.table_oid = c.oid
$$;
REVOKE EXECUTE ON FUNCTION millrace.source_tables(oid[]) FROM PUBLIC;

-- Whether Millrace's role can have changes from the WAL here. Without, they come from triggers (src/engine/base/capture.ts decides by the same facts).
CREATE FUNCTION millrace.can_stream() RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT current_setting('wal_level') = 'logical'
           AND (r.rolsuper OR r.rolreplication OR EXISTS (SELECT FROM pg_roles x WHERE x.rolname = 'rds_replication' AND pg_has_role(r.oid, x.oid, 'MEMBER')))
           AND has_database_privilege(current_database(), 'CREATE')
      FROM pg_roles r WHERE r.rolname = current_user
$$;

-- Whether a statement works, as the caller: null, or the error. What it did stays done when it works.
CREATE FUNCTION millrace.attempt(statement text) RETURNS jsonb
LANGUAGE plpgsql AS $$
DECLARE
    code text;
    message text;
    detail text;
    hint text;
BEGIN
    EXECUTE statement;
    RETURN NULL;
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS code = RETURNED_SQLSTATE, message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
    RETURN pg_catalog.jsonb_build_object('code', code, 'message', message, 'detail', nullif(detail, ''), 'hint', nullif(hint, ''));
END $$;

-- Live views and stream tables that read one of these; the latter by what is recorded.
CREATE OR REPLACE FUNCTION millrace.dependents(relations oid[])
RETURNS TABLE (relation_id bigint, view oid, kind text, name text, via oid, depth integer)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    WITH RECURSIVE edges AS (
        SELECT DISTINCT d.refobjid AS base,
               CASE WHEN lv.relation_id IS NULL THEN w.ev_class ELSE r.facade END AS dependent,
               lv.relation_id
          FROM pg_depend d
          JOIN pg_rewrite w ON w.oid = d.objid
          LEFT JOIN millrace.live_view lv ON lv.definition = w.ev_class
          LEFT JOIN millrace.relation r ON r.id = lv.relation_id
         WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid <> w.ev_class
        UNION
        SELECT source.facade, r.facade, r.id
          FROM millrace.stream_table t
          JOIN millrace.relation r ON r.id = t.relation_id AND r.facade IS NOT NULL
          JOIN millrace.live_view_input i ON i.relation_id = r.id
          JOIN millrace.relation source ON source.id = i.input_id AND source.facade IS NOT NULL
    ), reached(oid, relation_id, via, depth) AS (
        SELECT unnest(relations), NULL::bigint, NULL::oid, 0
        UNION
        SELECT e.dependent, e.relation_id, reached.oid, reached.depth + 1
          FROM reached JOIN edges e ON e.base = reached.oid
         WHERE reached.depth < 100
    ), deepest AS (
        SELECT DISTINCT ON (reached.oid) reached.*
          FROM reached
         WHERE reached.via IS NOT NULL AND NOT reached.oid = ANY (relations)
         ORDER BY reached.oid, reached.depth DESC
    )
    SELECT x.relation_id, x.oid,
           CASE WHEN x.relation_id IS NOT NULL OR c.relkind = 'm' THEN 'materialized view' ELSE 'view' END,
           millrace.qualified_name(x.oid), x.via, x.depth
      FROM deepest x JOIN pg_class c ON c.oid = x.oid
     ORDER BY x.depth, x.oid
$$;

CREATE OR REPLACE FUNCTION millrace.refuse_write() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    r record;
    name text := format('%I.%I', TG_TABLE_SCHEMA, TG_TABLE_NAME);
BEGIN
    SELECT rel.kind, s.origin_schema, s.origin_name, millrace.qualified_name(src.facade) AS source, millrace.is_stream_table(rel.id) AS streamed INTO r
      FROM millrace.relation rel
      LEFT JOIN millrace.table_version v ON v.relation_id = rel.id
      LEFT JOIN millrace.storage s ON s.id = v.storage_id
      LEFT JOIN millrace.source src ON src.id = v.source_id
     WHERE rel.facade = TG_RELID;
    IF r.streamed THEN
        RAISE EXCEPTION USING
            ERRCODE = '25006',
            MESSAGE = format('Direct DML on stream table %s is not allowed. Stream tables are maintained automatically by pg_trickle.', name),
            DETAIL = 'Its rows are kept up to date from its query by Millrace.',
            HINT = 'Write to the tables it reads.';
    END IF;
    RAISE EXCEPTION USING
        ERRCODE = '25006',
        MESSAGE = CASE r.kind
                      WHEN 'table' THEN format('cannot write to table %s: it is replicated from a source', name)
                      WHEN 'view' THEN format('cannot write to materialized view %s', name)
                      ELSE format('cannot write to source %s', name) END,
        DETAIL = CASE r.kind
                     WHEN 'table' THEN format('Its rows come from %I.%I of source %s.', r.origin_schema, r.origin_name, r.source)
                     WHEN 'view' THEN 'Its rows are kept up to date from its query.'
                     ELSE 'It shows the position reached in the origin.' END,
        HINT = CASE r.kind
                   WHEN 'table' THEN 'Write to the origin table; the change arrives here by itself.'
                   ELSE 'Write to the tables it reads at their origin.' END;
END $$;

-- What a user may change of stream tables directly: those that the current role owns, and of them these columns.
CREATE VIEW millrace.own_stream_table WITH (security_barrier) AS
    SELECT coalesce(t.pgt_id, t.relation_id) AS pgt_id, t.relation_id, t.status, t.status_reason, t.consecutive_errors, t.refresh_requested, t.refresh_done, t.reinitialize,
           t.next_refresh_at
      FROM millrace.stream_table t
     WHERE EXISTS (SELECT FROM millrace.relation r JOIN pg_class c ON c.oid = r.facade
                    WHERE r.id = t.relation_id AND r.state <> 'dropped' AND pg_has_role(c.relowner, 'USAGE'))
      WITH CHECK OPTION;
GRANT SELECT, UPDATE (status, status_reason, consecutive_errors, refresh_requested, reinitialize, next_refresh_at) ON millrace.own_stream_table TO PUBLIC;

-- What a statement of a client waits for behind its commit: how far stream tables are with the refreshes it has asked for. Looks after a pause,
-- and after the epochs that are about to refresh them, if there are any: the engine holds these locks as long as they are open. Nothing but the
-- wait depends on the locks. A pause of less than a millisecond, which nothing here can sleep, is spent looking.
CREATE FUNCTION millrace.refresh_outcomes(asked bigint[], wanted bigint[], pause float8)
RETURNS TABLE (id bigint, is_done boolean, name text, status text, code text, message text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    until timestamptz := clock_timestamp() + make_interval(secs => pause);
    slept boolean := false;
    late bigint;
BEGIN
    LOOP
        SELECT coalesce(t.pgt_id, t.relation_id) INTO late
          FROM millrace.stream_table t JOIN unnest(asked, wanted) w(id, number) ON coalesce(t.pgt_id, t.relation_id) = w.id
          JOIN millrace.relation r ON r.id = t.relation_id AND r.state <> 'dropped' AND r.facade IS NOT NULL
         WHERE t.refresh_done < w.number LIMIT 1;
        EXIT WHEN late IS NULL OR clock_timestamp() >= until AND (slept OR pause < 0.001);
        IF pause >= 0.001 THEN
            PERFORM pg_sleep(pause);
            slept := true;
        END IF;
    END LOOP;
    IF late IS NOT NULL THEN
        PERFORM pg_advisory_xact_lock_shared(1835625581, (t.relation_id % 2147483647)::integer)
           FROM millrace.stream_table t WHERE coalesce(t.pgt_id, t.relation_id) = ANY (asked);
    END IF;
    RETURN QUERY
    SELECT w.id, t.refresh_done >= w.number, millrace.qualified_name(r.facade), t.status,
           CASE WHEN h.status = 'FAILED' THEN coalesce(h.sqlstate, 'XX000') ELSE r.error ->> 'code' END,
           CASE WHEN h.status = 'FAILED' THEN h.error ELSE r.error ->> 'message' END
      FROM unnest(asked, wanted) WITH ORDINALITY w(id, number, place)
      JOIN millrace.stream_table t ON coalesce(t.pgt_id, t.relation_id) = w.id
      JOIN millrace.relation r ON r.id = t.relation_id AND r.state <> 'dropped'
      LEFT JOIN LATERAL (SELECT * FROM millrace.refresh_history h WHERE h.relation_id = t.relation_id ORDER BY h.refresh_id DESC LIMIT 1) h ON true
     WHERE r.facade IS NOT NULL
     ORDER BY w.place;
END $$;

-- The way from a function to Millrace and back, inside one transaction: Millrace first lets the calls of a statement say their arguments
-- ("asked"), does the work, leaves the answers, and then lets the statement run.
CREATE FUNCTION millrace.carried_out(called text, arguments jsonb) RETURNS jsonb
LANGUAGE plpgsql AS $$
DECLARE
    state jsonb := nullif(pg_catalog.current_setting('millrace.call', true), '')::jsonb;
    key text := called || ' ' || arguments::text;
BEGIN
    IF state ? 'asked' THEN
        PERFORM pg_catalog.set_config('millrace.call',
            pg_catalog.jsonb_build_object('answers', state -> 'answers', 'asked',
                state -> 'asked' || pg_catalog.jsonb_build_object('called', called, 'arguments', arguments, 'key', key))::text, true);
        RETURN state -> 'answers' -> key;
    END IF;
    IF state -> 'answers' ? key THEN
        RETURN state -> 'answers' -> key;
    END IF;
    RAISE EXCEPTION USING
        ERRCODE = '55000',
        MESSAGE = pg_catalog.format('pgtrickle.%s() is carried out by Millrace', called),
        DETAIL = 'The call came over a direct connection to the server, or from where Millrace does not see it (a function, a larger query).',
        HINT = pg_catalog.format('Connect through Millrace and call it in a statement of its own: SELECT pgtrickle.%s(...);', called);
END $$;

CREATE SCHEMA pgtrickle;
GRANT USAGE ON SCHEMA pgtrickle TO PUBLIC;

CREATE FUNCTION pgtrickle.version() RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT '0.57.0'::text $$;

CREATE FUNCTION pgtrickle.version_check() RETURNS text
LANGUAGE sql STABLE AS $$ SELECT 'Millrace, as pg_trickle ' OPERATOR(pg_catalog.||) pgtrickle.version() $$;

CREATE FUNCTION pgtrickle.parse_duration_seconds(input text) RETURNS bigint
LANGUAGE plpgsql IMMUTABLE STRICT SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    rest text := btrim(input);
    part text[];
    total bigint := 0;
    problem text;
BEGIN
    IF rest ~ '^\d+$' THEN
        RETURN rest::bigint;
    END IF;
    IF rest = '' THEN
        problem := 'schedule cannot be empty';
    ELSIF rest LIKE '-%' THEN
        problem := format('schedule cannot be negative: ''%s''', rest);
    END IF;
    WHILE problem IS NULL AND rest <> '' LOOP
        part := regexp_match(rest, '^(\d*)([^\d]*)');
        IF part[1] = '' THEN
            problem := format('expected a number before ''%s'' in duration ''%s''', left(part[2], 1), input);
        ELSIF part[2] = '' THEN
            problem := format('trailing digits ''%s'' without a unit in duration ''%s''. Use units s, m, h, d or w.', part[1], input);
        ELSIF lower(part[2]) NOT IN ('s', 'm', 'h', 'd', 'w') THEN
            problem := format('invalid duration unit ''%s'' in ''%s''. Use units s, m, h, d or w.', part[2], input);
        ELSE
            total := total + part[1]::bigint * CASE lower(part[2]) WHEN 's' THEN 1 WHEN 'm' THEN 60 WHEN 'h' THEN 3600 WHEN 'd' THEN 86400 ELSE 604800 END;
            rest := substr(rest, length(part[1]) + length(part[2]) + 1);
        END IF;
    END LOOP;
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = 'invalid argument: ' || problem;
    END IF;
    RETURN total;
END $$;

-- Seconds of a schedule that is a duration; null for cron and calculated.
CREATE FUNCTION millrace.schedule_seconds(schedule text) RETURNS bigint
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN schedule !~ '[\s@]' AND lower(schedule) <> 'calculated' THEN pgtrickle.parse_duration_seconds(schedule) END
$$;

CREATE VIEW pgtrickle.pgt_stream_tables AS
    SELECT coalesce(t.pgt_id, t.relation_id) AS pgt_id, r.facade AS pgt_relid, c.relname::text COLLATE "default" AS pgt_name, n.nspname::text COLLATE "default" AS pgt_schema,
           t.definition AS defining_query, t.query AS original_query,
           CASE WHEN lower(t.schedule) <> 'calculated' THEN t.schedule END AS schedule,
           CASE t.requested_mode WHEN 'AUTO' THEN t.refresh_mode ELSE t.requested_mode END AS refresh_mode,
           CASE WHEN r.state = 'error' THEN 'ERROR' WHEN t.status = 'PAUSED' THEN 'SUSPENDED' ELSE t.status END AS status,
           t.is_populated,
           -- IMMEDIATE: as of whoever looks
           CASE WHEN t.refresh_mode = 'IMMEDIATE' AND t.status = 'ACTIVE' AND r.state = 'ready'
                     AND NOT EXISTS (SELECT FROM millrace.immediate i WHERE i.relation_id = t.relation_id AND i.lost IS NOT NULL)
                THEN now() ELSE t.data_timestamp END AS data_timestamp,
           NULL::jsonb AS frontier, t.last_refresh_at, t.consecutive_errors, t.reinitialize AS needs_reinit,
           NULL::float8 AS auto_threshold, NULL::float8 AS last_full_ms, NULL::text[] AS functions_used,
           NULL::integer AS topk_limit, NULL::text AS topk_order_by, NULL::integer AS topk_offset,
           'none'::text AS diamond_consistency, 'fastest'::text AS diamond_schedule_policy,
           EXISTS (SELECT FROM millrace.live_view_input i JOIN millrace.base_table b ON b.relation_id = i.input_id
                    WHERE i.relation_id = r.id AND b.key_attnums = '{}') AS has_keyless_source,
           NULL::text AS function_hashes, coalesce(t.options ->> 'cdc_mode', 'wal') AS requested_cdc_mode, false AS is_append_only,
           NULL::integer AS scc_id, NULL::integer AS last_fixpoint_iterations, NULL::integer AS max_differential_joins,
           NULL::float8 AS max_delta_fraction, coalesce((t.options ->> 'pooler_compatibility_mode')::boolean, false) AS pooler_compatibility_mode,
           'hot'::text AS refresh_tier, t.refresh_mode AS effective_refresh_mode, 'off'::text AS fuse_mode, 'armed'::text AS fuse_state,
           NULL::bigint AS fuse_ceiling, NULL::integer AS fuse_sensitivity, NULL::timestamptz AS blown_at, NULL::text AS blow_reason,
           coalesce(r.error ->> 'message', failed.error) AS last_error_message, failed.ended_at AS last_error_at,
           NULL::text AS downstream_publication_name, NULL::bigint AS freshness_deadline_ms, NULL::text AS st_partition_key,
           'local'::text AS st_placement, false AS temporal_mode, 'heap'::text AS storage_backend, 'none'::text AS post_refresh_action,
           NULL::float8 AS reindex_drift_threshold, 0::bigint AS rows_changed_since_last_reindex, NULL::timestamptz AS last_reindex_at,
           NULL::jsonb AS column_lineage, t.created_at, greatest(t.created_at, t.last_refresh_at, r.state_since) AS updated_at,
           t.rows_in_last_refresh, t.requested_mode, t.downgrade_reason, t.status_reason
      FROM millrace.stream_table t
      JOIN millrace.relation r ON r.id = t.relation_id AND r.state <> 'dropped'
      JOIN pg_class c ON c.oid = r.facade
      JOIN pg_namespace n ON n.oid = c.relnamespace
      LEFT JOIN LATERAL (SELECT h.error, h.ended_at FROM millrace.refresh_history h
                          WHERE h.relation_id = t.relation_id AND h.status = 'FAILED' AND t.consecutive_errors > 0
                          ORDER BY h.refresh_id DESC LIMIT 1) failed ON true;

CREATE VIEW pgtrickle.pgt_dependencies AS
    SELECT coalesce(t.pgt_id, t.relation_id) AS pgt_id, s.source AS source_relid, s.source_type,
           coalesce((SELECT array_agg(a.attname::text ORDER BY a.attnum) FROM pg_attribute a
                      WHERE a.attrelid = s.source AND a.attnum = ANY (s.attnums) AND NOT a.attisdropped), s.names) AS columns_used,
           NULL::jsonb AS column_snapshot, NULL::text AS schema_fingerprint, 
           CASE WHEN b.method = 'trigger' OR t.refresh_mode = 'IMMEDIATE' THEN 'TRIGGER' ELSE 'WAL' END AS cdc_mode,
           CASE WHEN b.state = 'captured' AND b.method = 'wal' THEN capture.slot END AS slot_name,
           CASE WHEN b.state = 'captured' AND b.method = 'wal' THEN progress.lsn END AS decoder_confirmed_lsn,
           NULL::timestamptz AS transition_started_at,
           coalesce(millrace.qualified_name(s.source), s.name) AS source_stable_name, 'local'::text AS source_placement
      FROM millrace.stream_table_source s
      JOIN millrace.stream_table t ON t.relation_id = s.relation_id
      LEFT JOIN millrace.base_table b ON b.table_oid = s.source
      LEFT JOIN millrace.base_capture capture ON true
      LEFT JOIN millrace.base_progress progress ON true
      JOIN millrace.relation r ON r.id = s.relation_id AND r.state <> 'dropped' AND r.facade IS NOT NULL;

CREATE VIEW pgtrickle.pgt_refresh_history AS
    SELECT h.refresh_id, coalesce(t.pgt_id, h.relation_id) AS pgt_id, coalesce(h.ended_at, h.started_at) AS data_timestamp, h.started_at AS start_time, h.ended_at AS end_time,
           CASE h.action WHEN 'INITIALIZE' THEN 'FULL' ELSE h.action END AS action, h.rows_inserted, h.rows_deleted, h.delta_rows AS delta_row_count,
           NULL::text AS merge_strategy_used, h.action = 'FULL' AND t.refresh_mode = 'DIFFERENTIAL' AS was_full_fallback,
           h.error AS error_message, h.status,
           CASE WHEN h.action = 'INITIALIZE' THEN 'INITIAL' WHEN h.reason = 'manual' THEN 'MANUAL' ELSE 'SCHEDULER' END AS initiated_by,
           NULL::timestamptz AS freshness_deadline, NULL::pg_lsn AS tick_watermark_lsn, NULL::integer AS fixpoint_iteration, h.reason, h.sqlstate
      FROM millrace.refresh_history h
      LEFT JOIN millrace.stream_table t ON t.relation_id = h.relation_id;

CREATE VIEW pgtrickle.pg_stat_stream_tables AS
    SELECT s.pgt_id, s.pgt_schema, s.pgt_name, s.status, s.refresh_mode, s.is_populated, s.data_timestamp, s.schedule,
           now() - s.data_timestamp AS staleness,
           now() - s.data_timestamp > make_interval(secs => millrace.schedule_seconds(s.schedule) + 1) AS stale,
           s.consecutive_errors, s.needs_reinit, s.last_refresh_at,
           coalesce(h.total, 0) AS total_refreshes, coalesce(h.successful, 0) AS successful_refreshes, coalesce(h.failed, 0) AS failed_refreshes,
           coalesce(h.inserted, 0) AS total_rows_inserted, coalesce(h.deleted, 0) AS total_rows_deleted, h.average AS avg_duration_ms,
           last.action AS last_action, last.status AS last_status, ARRAY['WAL'] AS cdc_modes, s.scc_id, s.last_fixpoint_iterations, s.refresh_tier
      FROM pgtrickle.pgt_stream_tables s
      LEFT JOIN LATERAL (
               SELECT count(*) AS total, count(*) FILTER (WHERE h.status = 'COMPLETED') AS successful, count(*) FILTER (WHERE h.status = 'FAILED') AS failed,
                      sum(h.rows_inserted)::bigint AS inserted, sum(h.rows_deleted)::bigint AS deleted,
                      avg(extract(epoch FROM h.end_time - h.start_time) * 1000)::float8 AS average
                 FROM pgtrickle.pgt_refresh_history h WHERE h.pgt_id = s.pgt_id) h ON true
      LEFT JOIN LATERAL (
               SELECT h.action, h.status FROM pgtrickle.pgt_refresh_history h WHERE h.pgt_id = s.pgt_id ORDER BY h.refresh_id DESC LIMIT 1) last ON true;

CREATE VIEW pgtrickle.stream_tables_info AS
    SELECT s.*, now() - s.data_timestamp AS staleness,
           now() - s.data_timestamp > make_interval(secs => millrace.schedule_seconds(s.schedule) + 1) AS stale, false AS is_topk
      FROM pgtrickle.pgt_stream_tables s;

-- Whether an engine works: its session holds the lock of the leader (src/engine/run.ts).
CREATE FUNCTION millrace.engine_runs() RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT EXISTS (SELECT FROM pg_stat_activity a WHERE a.datname = current_database() AND a.application_name LIKE 'millrace engine%')
$$;

CREATE VIEW pgtrickle.quick_health AS
    SELECT count(*) AS total_stream_tables, count(*) FILTER (WHERE s.status = 'ERROR' OR s.consecutive_errors > 0) AS error_tables,
           count(*) FILTER (WHERE s.stale) AS stale_tables, millrace.engine_runs() AS scheduler_running,
           CASE WHEN count(*) = 0 THEN 'EMPTY'
                WHEN bool_or(s.status = 'SUSPENDED') THEN 'CRITICAL'
                WHEN bool_or(s.status = 'ERROR' OR s.consecutive_errors > 0 OR s.stale) THEN 'WARNING'
                ELSE 'OK' END AS status
      FROM pgtrickle.stream_tables_info s;

CREATE VIEW pgtrickle.pgt_cdc_status AS
    SELECT s.pgt_schema, s.pgt_name, d.source_relid, c.relname::text AS source_name, n.nspname::text AS source_schema, d.cdc_mode, d.slot_name,
           d.decoder_confirmed_lsn, d.transition_started_at
      FROM pgtrickle.pgt_dependencies d
      JOIN pgtrickle.pgt_stream_tables s USING (pgt_id)
      JOIN pg_class c ON c.oid = d.source_relid
      JOIN pg_namespace n ON n.oid = c.relnamespace;

GRANT SELECT ON ALL TABLES IN SCHEMA pgtrickle TO PUBLIC;

-- What stream tables are known by, for look-ups that are made often.
CREATE VIEW millrace.stream_table_facade AS
    SELECT coalesce(t.pgt_id, t.relation_id) AS pgt_id, r.facade
      FROM millrace.relation r JOIN millrace.stream_table t ON t.relation_id = r.id WHERE r.state <> 'dropped' AND r.facade IS NOT NULL;
GRANT SELECT ON millrace.stream_table_facade TO PUBLIC;

-- Id of the stream table with this name, by Postgres's own rules for names. Raises 42P01.
CREATE FUNCTION millrace.stream_table_named(name text) RETURNS bigint
LANGUAGE plpgsql STABLE AS $$
DECLARE
    found bigint;
BEGIN
    SELECT s.pgt_id INTO found FROM millrace.stream_table_facade s WHERE s.facade = pg_catalog.to_regclass(name)::oid;
    IF found IS NULL THEN
        RAISE EXCEPTION USING
            ERRCODE = '42P01',
            MESSAGE = pg_catalog.format('stream table not found: %s', name),
            HINT = 'SELECT * FROM pgtrickle.pgt_status(); lists what there is.';
    END IF;
    RETURN found;
END $$;

CREATE FUNCTION millrace.stream_table_name(id bigint) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT pg_catalog.format('%s.%s', s.pgt_schema, s.pgt_name) FROM pgtrickle.pgt_stream_tables s WHERE s.pgt_id = id
$$;

-- The same, for what only its owner may do. Raises 42501.
CREATE FUNCTION millrace.own_stream_table_named(name text) RETURNS bigint
LANGUAGE plpgsql STABLE AS $$
DECLARE
    id bigint := millrace.stream_table_named(name);
BEGIN
    IF NOT EXISTS (SELECT FROM millrace.own_stream_table t WHERE t.pgt_id = id) THEN
        RAISE EXCEPTION USING
            ERRCODE = '42501',
            MESSAGE = pg_catalog.format('permission denied: must be owner of stream table %s', name),
            HINT = 'Act as its owner (SET ROLE ...) or as a superuser.';
    END IF;
    RETURN id;
END $$;

-- Asks the engine for a refresh; the statement waits for it behind its commit when it came through Millrace.
CREATE FUNCTION millrace.request_refresh(id bigint) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    wanted bigint;
    relation bigint;
    awaited jsonb := coalesce(nullif(pg_catalog.current_setting('millrace.awaited', true), '')::jsonb, '{}');
BEGIN
    UPDATE millrace.own_stream_table SET refresh_requested = refresh_requested + 1 WHERE pgt_id = id RETURNING refresh_requested, relation_id INTO wanted, relation;
    PERFORM pg_catalog.set_config('millrace.awaited', (awaited || pg_catalog.jsonb_build_object(id::text, wanted))::text, true);
    -- In the stream of changes this stands behind everything that was committed before: the engine then knows whether anything has changed.
    PERFORM pg_catalog.pg_logical_emit_message(true, 'millrace', 'refresh');
    PERFORM pg_catalog.pg_notify('millrace', pg_catalog.format('refresh %s %s %s', relation, wanted, pg_catalog.pg_current_xact_id()));
END $$;

CREATE FUNCTION pgtrickle.refresh_stream_table(name text) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    id bigint := millrace.own_stream_table_named(name);
    shown text;
BEGIN
    IF pg_catalog.pg_is_in_recovery() THEN
        RAISE EXCEPTION USING ERRCODE = '25006', MESSAGE = 'Cannot refresh stream tables on a read replica. Type it on the primary server.';
    END IF;
    IF EXISTS (SELECT FROM millrace.own_stream_table t WHERE t.pgt_id = id AND t.status IN ('PAUSED', 'SUSPENDED')) THEN
        shown := millrace.stream_table_name(id);
        RAISE EXCEPTION USING
            ERRCODE = '22023',
            MESSAGE = pg_catalog.format('invalid argument: stream table %s is suspended ; use pgtrickle.resume_stream_table(''%s'') first', shown, shown);
    END IF;
    PERFORM millrace.request_refresh(id);
END $$;

CREATE FUNCTION pgtrickle.refresh_if_stale(p_name text, p_max_age interval DEFAULT '5 minutes') RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM pgtrickle.pgt_stream_tables s
                WHERE s.pgt_id = millrace.own_stream_table_named(p_name) AND s.data_timestamp >= pg_catalog.clock_timestamp() - p_max_age) THEN
        RETURN false;
    END IF;
    PERFORM pgtrickle.refresh_stream_table(p_name);
    RETURN true;
END $$;

-- The refresh sees what the statement wrote once both are committed.
CREATE FUNCTION pgtrickle.write_and_refresh(sql text, stream_table_name text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE sql;
    PERFORM pgtrickle.refresh_stream_table(stream_table_name);
END $$;

CREATE FUNCTION millrace.set_stream_status(id bigint, new_status text, reason text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE millrace.own_stream_table SET status = new_status, status_reason = reason WHERE pgt_id = id;
    PERFORM pg_catalog.pg_notify('millrace', '');
END $$;

CREATE FUNCTION pgtrickle.pause_stream_table(name text) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    id bigint := millrace.own_stream_table_named(name);
    shown text;
    current text;
BEGIN
    SELECT s.status, pg_catalog.format('%s.%s', s.pgt_schema, s.pgt_name) INTO current, shown FROM pgtrickle.pgt_stream_tables s WHERE s.pgt_id = id;
    IF current IN ('SUSPENDED', 'ERROR') THEN
        RAISE EXCEPTION USING
            ERRCODE = '22023',
            MESSAGE = pg_catalog.format('invalid argument: stream table %s is already suspended or in error state (current status: %s)', shown, current);
    END IF;
    PERFORM millrace.set_stream_status(id, 'PAUSED', pg_catalog.format('paused by %s', current_user));
END $$;

CREATE FUNCTION pgtrickle.suspend_stream_table(name text) RETURNS void
LANGUAGE sql AS $$ SELECT pgtrickle.pause_stream_table(name) $$;

CREATE FUNCTION pgtrickle.resume_stream_table(name text) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    id bigint := millrace.own_stream_table_named(name);
    shown text;
    current text;
    populated boolean;
BEGIN
    SELECT s.status, pg_catalog.format('%s.%s', s.pgt_schema, s.pgt_name), s.is_populated
      INTO current, shown, populated FROM pgtrickle.pgt_stream_tables s WHERE s.pgt_id = id;
    IF current NOT IN ('SUSPENDED', 'ERROR') THEN
        RAISE EXCEPTION USING
            ERRCODE = '22023',
            MESSAGE = pg_catalog.format('invalid argument: stream table %s is not suspended or in error state (current status: %s)', shown, current);
    END IF;
    -- What it waited for after its last failure is no matter any more.
    UPDATE millrace.own_stream_table SET consecutive_errors = 0, next_refresh_at = pg_catalog.clock_timestamp() WHERE pgt_id = id;
    PERFORM millrace.set_stream_status(id, CASE WHEN populated THEN 'ACTIVE' ELSE 'INITIALIZING' END, NULL);
END $$;

CREATE FUNCTION pgtrickle.pause_all() RETURNS void
LANGUAGE sql AS $$
    SELECT millrace.set_stream_status(t.pgt_id, 'PAUSED', pg_catalog.format('paused by %s', current_user))
      FROM millrace.own_stream_table t WHERE t.status IN ('INITIALIZING', 'ACTIVE')
$$;

CREATE FUNCTION pgtrickle.resume_all() RETURNS void
LANGUAGE sql AS $$
    SELECT millrace.set_stream_status(t.pgt_id, CASE WHEN s.is_populated THEN 'ACTIVE' ELSE 'INITIALIZING' END, NULL)
      FROM millrace.own_stream_table t JOIN pgtrickle.pgt_stream_tables s ON s.pgt_id = t.pgt_id
     WHERE t.status IN ('PAUSED', 'SUSPENDED')
$$;

-- Whether it is suspended because its sources are no longer what it was planned for.
CREATE FUNCTION millrace.is_outgrown(id bigint) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT EXISTS (SELECT FROM millrace.stream_table t JOIN millrace.relation r ON r.id = t.relation_id
                    WHERE coalesce(t.pgt_id, t.relation_id) = is_outgrown.id AND r.state = 'error'
                      AND r.error ->> 'code' IN ('42703', '42804') AND NOT r.error ? 'cause')
$$;

CREATE FUNCTION pgtrickle.reinitialize_stream_table(name text) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    id bigint := millrace.own_stream_table_named(name);
    told jsonb := nullif(pg_catalog.current_setting('millrace.call', true), '')::jsonb;
    arguments jsonb := pg_catalog.jsonb_build_object('name', name);
    populated boolean;
    shown text;
BEGIN
    SELECT s.is_populated, pg_catalog.format('%s.%s', s.pgt_schema, s.pgt_name) INTO populated, shown FROM pgtrickle.pgt_stream_tables s WHERE s.pgt_id = id;
    IF told ? 'asked' THEN
        IF millrace.is_outgrown(id) THEN
            PERFORM millrace.carried_out('reinitialize_stream_table', arguments);
        END IF;
        RETURN NULL;
    ELSIF told -> 'answers' ? ('reinitialize_stream_table ' || arguments::text) THEN
        RETURN pg_catalog.format('stream table %s is planned and filled again for its sources as they are now', shown);
    END IF;
    UPDATE millrace.own_stream_table SET reinitialize = true, consecutive_errors = 0 WHERE pgt_id = id;
    -- It may have been suspended: what it was suspended for is made good by computing it anew, or is told again.
    PERFORM millrace.set_stream_status(id, CASE WHEN populated THEN 'ACTIVE' ELSE 'INITIALIZING' END, NULL);
    PERFORM millrace.request_refresh(id);
    RETURN pg_catalog.format('stream table %s is computed again from its query; its rows stay readable meanwhile', shown);
END $$;

CREATE FUNCTION pgtrickle.repair_stream_table(name text) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    id bigint := millrace.own_stream_table_named(name);
    missing text;
BEGIN
    SELECT pg_catalog.string_agg(pg_catalog.format('missing source: %s', d.source_stable_name), pg_catalog.chr(10)) INTO missing
      FROM pgtrickle.pgt_dependencies d WHERE d.pgt_id = id AND NOT EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid = d.source_relid);
    PERFORM pgtrickle.reinitialize_stream_table(name);
    RETURN pg_catalog.concat_ws(pg_catalog.chr(10), missing, 'frontier reset: scheduled full refresh on next cycle');
END $$;

-- Views of users over it keep it from being dropped, unless cascade; other stream tables do, too.
CREATE FUNCTION pgtrickle.drop_stream_table(name text, cascade boolean DEFAULT false) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    id bigint := millrace.own_stream_table_named(name);
    shown text;
    readers text;
    reader text;
    sinks text;
BEGIN
    shown := millrace.stream_table_name(id);
    SELECT pg_catalog.string_agg(s.name, ', ' ORDER BY s.id) INTO sinks FROM millrace.sinks_of(ARRAY[id]) s;
    IF sinks IS NOT NULL AND NOT coalesce(drop_stream_table.cascade, false) THEN
        RAISE EXCEPTION USING
            ERRCODE = '22023',
            MESSAGE = pg_catalog.format('invalid argument: stream table %s has dependent sinks: %s. Use cascade => true to drop them automatically.', shown, sinks);
    END IF;
    SELECT pg_catalog.string_agg(pg_catalog.format('%s.%s', s.pgt_schema, s.pgt_name), ', ' ORDER BY s.pgt_id) INTO readers
      FROM pgtrickle.pgt_dependencies d JOIN pgtrickle.pgt_stream_tables s USING (pgt_id)
     WHERE d.source_relid = (SELECT p.pgt_relid FROM pgtrickle.pgt_stream_tables p WHERE p.pgt_id = id);
    IF readers IS NOT NULL AND NOT coalesce(drop_stream_table.cascade, false) THEN
        RAISE EXCEPTION USING
            ERRCODE = '22023',
            MESSAGE = pg_catalog.format('invalid argument: stream table %s has dependent stream tables: %s. Use cascade => true to drop them automatically.', shown, readers);
    END IF;
    FOR reader IN
        SELECT pg_catalog.format('%I.%I', s.pgt_schema, s.pgt_name)
          FROM pgtrickle.pgt_dependencies d JOIN pgtrickle.pgt_stream_tables s USING (pgt_id)
         WHERE d.source_relid = (SELECT p.pgt_relid FROM pgtrickle.pgt_stream_tables p WHERE p.pgt_id = id)
    LOOP
        PERFORM pgtrickle.drop_stream_table(reader, true);
    END LOOP;
    EXECUTE pg_catalog.format('DROP VIEW %s%s', (SELECT pg_catalog.format('%I.%I', s.pgt_schema, s.pgt_name) FROM pgtrickle.pgt_stream_tables s WHERE s.pgt_id = id),
                              CASE WHEN drop_stream_table.cascade THEN ' CASCADE' ELSE '' END);
    IF sinks IS NOT NULL THEN
        PERFORM millrace.drop_sinks_of_gone(id);
    END IF;
    PERFORM pg_catalog.pg_notify('millrace', '');
END $$;

CREATE FUNCTION pgtrickle.bulk_drop_stream_tables(names text[]) RETURNS integer
LANGUAGE plpgsql AS $$
DECLARE
    name text;
    dropped integer := 0;
BEGIN
    FOREACH name IN ARRAY names LOOP
        BEGIN
            PERFORM pgtrickle.drop_stream_table(name);
            dropped := dropped + 1;
        EXCEPTION WHEN OTHERS THEN
            RAISE WARNING 'could not drop stream table %: %', name, SQLERRM;
        END;
    END LOOP;
    RETURN dropped;
END $$;

CREATE FUNCTION pgtrickle.pgt_status()
RETURNS TABLE (name text, status text, refresh_mode text, is_populated boolean, consecutive_errors integer, schedule text,
               data_timestamp timestamptz, staleness interval, scc_id integer)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT s.pgt_schema || '.' || s.pgt_name, s.status, s.refresh_mode, s.is_populated, s.consecutive_errors, s.schedule,
           s.data_timestamp, now() - s.data_timestamp, s.scc_id
      FROM pgtrickle.pgt_stream_tables s ORDER BY 1
$$;

CREATE FUNCTION pgtrickle.list_stream_tables()
RETURNS TABLE (name text, status text, refresh_mode text, is_populated boolean, consecutive_errors integer, schedule text,
               data_timestamp timestamptz, staleness interval, scc_id integer)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$ SELECT * FROM pgtrickle.pgt_status() $$;

CREATE FUNCTION pgtrickle.st_refresh_stats()
RETURNS TABLE (pgt_name text, pgt_schema text, status text, refresh_mode text, is_populated boolean, total_refreshes bigint,
               successful_refreshes bigint, failed_refreshes bigint, total_rows_inserted bigint, total_rows_deleted bigint,
               avg_duration_ms float8, last_refresh_action text, last_refresh_status text, last_refresh_at timestamptz, staleness_secs float8,
               stale boolean, consecutive_errors integer, schedule text, refresh_tier text, last_error_message text, downstream_publication text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT s.pgt_name, s.pgt_schema, s.status, s.refresh_mode, s.is_populated, s.total_refreshes, s.successful_refreshes, s.failed_refreshes,
           s.total_rows_inserted, s.total_rows_deleted, s.avg_duration_ms, s.last_action, s.last_status, s.last_refresh_at,
           extract(epoch FROM s.staleness)::float8, s.stale, s.consecutive_errors, s.schedule, s.refresh_tier, t.last_error_message, NULL::text
      FROM pgtrickle.pg_stat_stream_tables s JOIN pgtrickle.pgt_stream_tables t USING (pgt_id)
     ORDER BY s.pgt_schema, s.pgt_name
$$;

CREATE FUNCTION pgtrickle.get_refresh_history(name text, max_rows integer DEFAULT 20)
RETURNS TABLE (refresh_id bigint, data_timestamp timestamptz, start_time timestamptz, end_time timestamptz, action text, status text,
               rows_inserted bigint, rows_deleted bigint, duration_ms float8, error_message text)
LANGUAGE sql STABLE AS $$
    SELECT h.refresh_id, h.data_timestamp, h.start_time, h.end_time, h.action, h.status, h.rows_inserted, h.rows_deleted,
           (extract(epoch FROM h.end_time - h.start_time) * 1000)::float8, h.error_message
      FROM pgtrickle.pgt_refresh_history h WHERE h.pgt_id = millrace.stream_table_named($1)
     ORDER BY h.refresh_id DESC LIMIT $2
$$;

CREATE FUNCTION pgtrickle.refresh_timeline(max_rows integer DEFAULT 50)
RETURNS TABLE (start_time timestamptz, stream_table text, action text, status text, rows_inserted bigint, rows_deleted bigint,
               duration_ms float8, error_message text)
LANGUAGE sql STABLE AS $$
    SELECT h.start_time, s.pgt_schema || '.' || s.pgt_name, h.action, h.status, h.rows_inserted, h.rows_deleted,
           (extract(epoch FROM h.end_time - h.start_time) * 1000)::float8, h.error_message
      FROM pgtrickle.pgt_refresh_history h JOIN pgtrickle.pgt_stream_tables s USING (pgt_id)
     ORDER BY h.refresh_id DESC LIMIT $1
$$;

CREATE FUNCTION pgtrickle.get_staleness(name text) RETURNS float8
LANGUAGE sql STABLE AS $$
    SELECT extract(epoch FROM now() - s.data_timestamp)::float8 FROM pgtrickle.pgt_stream_tables s WHERE s.pgt_id = millrace.stream_table_named($1)
$$;

CREATE FUNCTION pgtrickle.diagnose_errors(name text)
RETURNS TABLE (event_time timestamptz, error_type text, error_message text, remediation text)
LANGUAGE sql STABLE AS $$
    SELECT coalesce(h.end_time, h.start_time),
           CASE WHEN h.sqlstate LIKE '42%' OR h.sqlstate IN ('2BP01') THEN 'schema'
                WHEN h.sqlstate LIKE '22%' OR h.sqlstate LIKE '23%' THEN 'user'
                WHEN h.sqlstate IN ('57014', '53200', '54000') THEN 'performance'
                ELSE 'infrastructure' END,
           h.error_message,
           CASE WHEN h.sqlstate LIKE '42%' OR h.sqlstate IN ('2BP01')
                     THEN format('Something the query uses has changed: pgtrickle.alter_stream_table(%L, query => ...), or drop and create it again.', $1)
                WHEN h.sqlstate LIKE '22%' OR h.sqlstate LIKE '23%'
                     THEN format('A row makes the query fail: correct the row or the query, then pgtrickle.resume_stream_table(%L).', $1)
                WHEN h.sqlstate IN ('57014', '53200', '54000') THEN 'The refresh needs more time or memory than the server allows it.'
                ELSE format('It is tried again by itself; pgtrickle.refresh_stream_table(%L) tries at once.', $1) END
      FROM pgtrickle.pgt_refresh_history h
     WHERE h.pgt_id = millrace.stream_table_named($1) AND h.status = 'FAILED'
     ORDER BY h.refresh_id DESC LIMIT 5
$$;

CREATE FUNCTION pgtrickle.list_sources(name text)
RETURNS TABLE (source_table text, source_oid bigint, source_type text, cdc_mode text, columns_used text)
LANGUAGE sql STABLE AS $$
    SELECT d.source_stable_name, d.source_relid::bigint, d.source_type, d.cdc_mode, array_to_string(d.columns_used, ', ')
      FROM pgtrickle.pgt_dependencies d WHERE d.pgt_id = millrace.stream_table_named($1) ORDER BY 1
$$;

-- Millrace shows no columns but the query's.
CREATE FUNCTION pgtrickle.list_auxiliary_columns(name text) RETURNS TABLE (column_name text, data_type text, purpose text)
LANGUAGE sql STABLE AS $$ SELECT NULL::text, NULL::text, NULL::text WHERE millrace.stream_table_named($1) IS NULL $$;

CREATE FUNCTION pgtrickle.dependency_tree()
RETURNS TABLE (tree_line text, node text, node_type text, depth integer, status text, refresh_mode text)
LANGUAGE sql STABLE AS $$
    WITH RECURSIVE below(relid, name, kind, depth, path) AS (
        SELECT DISTINCT d.source_relid, d.source_stable_name, lower(d.source_type), 0, ARRAY[d.source_stable_name]
          FROM pgtrickle.pgt_dependencies d WHERE d.source_type <> 'STREAM_TABLE'
        UNION ALL
        SELECT s.pgt_relid, format('%I.%I', s.pgt_schema, s.pgt_name), 'stream_table', b.depth + 1, b.path || format('%I.%I', s.pgt_schema, s.pgt_name)
          FROM below b
          JOIN pgtrickle.pgt_dependencies d ON d.source_relid = b.relid
          JOIN pgtrickle.pgt_stream_tables s ON s.pgt_id = d.pgt_id
    )
    SELECT repeat('  ', b.depth) || CASE WHEN b.depth > 0 THEN '-> ' ELSE '' END || b.name, b.name, b.kind, b.depth, s.status, s.refresh_mode
      FROM below b LEFT JOIN pgtrickle.pgt_stream_tables s ON s.pgt_relid = b.relid
     ORDER BY b.path
$$;

CREATE FUNCTION pgtrickle.explain_refresh_mode(name text) RETURNS TABLE (configured_mode text, effective_mode text, downgrade_reason text)
LANGUAGE sql STABLE AS $$
    SELECT s.requested_mode, s.effective_refresh_mode, s.downgrade_reason
      FROM pgtrickle.pgt_stream_tables s WHERE s.pgt_id = millrace.stream_table_named($1)
$$;

-- Statements that make it again.
CREATE FUNCTION pgtrickle.export_definition(st_name text) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT format(E'SELECT pgtrickle.create_stream_table(\n    name => %L,\n    query => %L,\n    schedule => %L,\n    refresh_mode => %L\n);',
                  format('%I.%I', s.pgt_schema, s.pgt_name), s.original_query, coalesce(s.schedule, 'calculated'), s.requested_mode)
      FROM pgtrickle.pgt_stream_tables s WHERE s.pgt_id = millrace.stream_table_named($1)
$$;

CREATE FUNCTION pgtrickle.stream_table_definition(p_name text) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT s.original_query FROM pgtrickle.pgt_stream_tables s WHERE s.pgt_id = millrace.stream_table_named($1)
$$;

-- Changes that wait for a refresh, in tables of Millrace (millrace_data.w<source>): those of one source are there once for all stream tables.
CREATE FUNCTION pgtrickle.change_buffer_sizes()
RETURNS TABLE (stream_table text, source_table text, source_oid bigint, cdc_mode text, pending_rows bigint, buffer_bytes bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT s.pgt_schema || '.' || s.pgt_name, d.source_stable_name, d.source_relid::bigint, d.cdc_mode,
           greatest(c.reltuples, 0)::bigint, coalesce(pg_relation_size(c.oid), 0)
      FROM pgtrickle.pgt_dependencies d
      JOIN pgtrickle.pgt_stream_tables s USING (pgt_id)
      LEFT JOIN millrace.base_table b ON b.table_oid = d.source_relid
      LEFT JOIN pg_class c ON c.oid = to_regclass('millrace_data.w' || b.relation_id)
     ORDER BY 1, 2
$$;

-- One slot for all tables: source_relid is null.
CREATE FUNCTION pgtrickle.slot_health()
RETURNS TABLE (slot_name text, source_relid bigint, active boolean, retained_wal_bytes bigint, wal_status text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT p.slot_name::text, NULL::bigint, p.active, pg_wal_lsn_diff(pg_current_wal_lsn(), p.restart_lsn)::bigint, p.wal_status
      FROM millrace.base_capture c JOIN pg_replication_slots p ON p.slot_name = c.slot
     WHERE NOT pg_is_in_recovery()
$$;

CREATE FUNCTION pgtrickle.check_cdc_health()
RETURNS TABLE (source_relid bigint, source_table text, cdc_mode text, slot_name text, lag_bytes bigint, confirmed_lsn text, alert text, selective_capture boolean)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT b.table_oid::bigint, millrace.qualified_name(b.table_oid), CASE b.method WHEN 'trigger' THEN 'TRIGGER' ELSE 'WAL' END, p.slot_name::text,
           pg_wal_lsn_diff(pg_current_wal_lsn(), p.confirmed_flush_lsn)::bigint, p.confirmed_flush_lsn::text,
           CASE WHEN t.oid IS NULL THEN 'source_dropped'
                WHEN b.state = 'failed' THEN b.error ->> 'message'
                WHEN b.state = 'new' OR b.method = 'trigger' THEN NULL
                WHEN p.slot_name IS NULL THEN 'replication_slot_missing'
                WHEN p.wal_status = 'lost' THEN 'replication_slot_lost'
                WHEN NOT p.active THEN 'replication_slot_inactive'
                ELSE c.error END, false
      FROM millrace.base_table b
      LEFT JOIN pg_class t ON t.oid = b.table_oid
      LEFT JOIN millrace.base_capture c ON true
      LEFT JOIN pg_replication_slots p ON p.slot_name = c.slot AND b.method = 'wal'
     WHERE NOT pg_is_in_recovery()
     ORDER BY 2
$$;

CREATE FUNCTION pgtrickle.health_check() RETURNS TABLE (check_name text, severity text, detail text)
LANGUAGE sql STABLE AS $$
    WITH s AS (SELECT pgt_schema || '.' || pgt_name AS name, * FROM pgtrickle.stream_tables_info),
         named(check_name, bad, names, none) AS (
        SELECT 'error_tables', 'ERROR', string_agg(name, ', ' ORDER BY name) FILTER (WHERE status IN ('ERROR', 'SUSPENDED')), 'No stream tables in error or suspended' FROM s
        UNION ALL
        SELECT 'stale_tables', 'WARN', string_agg(name, ', ' ORDER BY name) FILTER (WHERE stale), 'No stale stream tables' FROM s
        UNION ALL
        SELECT 'needs_reinit', 'WARN', string_agg(name, ', ' ORDER BY name) FILTER (WHERE needs_reinit), 'No stream tables wait to be reinitialized' FROM s
        UNION ALL
        SELECT 'consecutive_errors', 'WARN', string_agg(name, ', ' ORDER BY name) FILTER (WHERE consecutive_errors > 0), 'No consecutive errors' FROM s
        UNION ALL
        SELECT 'buffer_growth', 'WARN', string_agg(DISTINCT stream_table, ', ') FILTER (WHERE buffer_bytes > 1073741824), 'Change buffers are small' FROM pgtrickle.change_buffer_sizes()
        UNION ALL
        SELECT 'slot_lag', 'WARN', string_agg(slot_name, ', ') FILTER (WHERE retained_wal_bytes > 1073741824 OR wal_status = 'lost'), 'Replication slots keep up' FROM pgtrickle.slot_health()
    )
    SELECT 'scheduler_running', CASE WHEN millrace.engine_runs() THEN 'OK' ELSE 'ERROR' END,
           CASE WHEN millrace.engine_runs() THEN 'The Millrace engine runs' ELSE 'No Millrace engine runs on this database: start millrace' END
    UNION ALL
    SELECT check_name, CASE WHEN names IS NULL THEN 'OK' ELSE bad END, coalesce(names, none) FROM named
$$;

CREATE FUNCTION pgtrickle.health_summary()
RETURNS TABLE (total_stream_tables integer, active_count integer, error_count integer, suspended_count integer, stale_count integer,
               reinit_pending integer, max_staleness_seconds float8, scheduler_status text, cache_hit_rate float8)
LANGUAGE sql STABLE AS $$
    SELECT count(*)::integer, count(*) FILTER (WHERE s.status = 'ACTIVE')::integer, count(*) FILTER (WHERE s.status = 'ERROR')::integer,
           count(*) FILTER (WHERE s.status = 'SUSPENDED')::integer, count(*) FILTER (WHERE s.stale)::integer, count(*) FILTER (WHERE s.needs_reinit)::integer,
           max(extract(epoch FROM s.staleness))::float8, CASE WHEN millrace.engine_runs() THEN 'ACTIVE' ELSE 'STOPPED' END, NULL::float8
      FROM pgtrickle.stream_tables_info s
$$;

-- What the compiler has to do with: each asks Millrace.
DO $$
DECLARE
    creation text[] := ARRAY['name text', 'query text', 'schedule text = ''calculated''', 'refresh_mode text = ''AUTO''', 'initialize boolean = true',
        'diamond_consistency text = NULL', 'diamond_schedule_policy text = NULL', 'cdc_mode text = NULL', 'append_only boolean = false',
        'pooler_compatibility_mode boolean = false', 'partition_by text = NULL', 'max_differential_joins integer = NULL',
        'max_delta_fraction float8 = NULL', 'output_distribution_column text = NULL', 'temporal boolean = false', 'storage_backend text = NULL'];
    f record;
    given text;
BEGIN
    FOR f IN
        SELECT * FROM (VALUES
            ('create_stream_table', creation, 'void'),
            ('create_stream_table_if_not_exists', creation, 'void'),
            ('create_or_replace_stream_table', creation, 'void'),
            ('alter_stream_table', ARRAY['name text', 'query text = NULL', 'schedule text = NULL', 'refresh_mode text = NULL', 'status text = NULL',
                'diamond_consistency text = NULL', 'diamond_schedule_policy text = NULL', 'cdc_mode text = NULL', 'append_only boolean = NULL',
                'pooler_compatibility_mode boolean = NULL', 'tier text = NULL', 'fuse text = NULL', 'fuse_ceiling bigint = NULL',
                'fuse_sensitivity integer = NULL', 'partition_by text = NULL', 'max_differential_joins integer = NULL',
                'max_delta_fraction float8 = NULL', 'post_refresh_action text = NULL', 'reindex_drift_threshold float8 = NULL'], 'void'),
            ('bulk_create', ARRAY['definitions jsonb'], 'jsonb'),
            ('bulk_alter_stream_tables', ARRAY['names text[]', 'params json'], 'integer'),
            ('exec_stream_ddl', ARRAY['cmd text'], 'boolean'),
            ('validate_query', ARRAY['query text'], 'TABLE (result text, detail text)'),
            ('explain_st', ARRAY['name text', 'with_analyze boolean = false'], 'TABLE (property text, value text)'),
            ('explain_stream_table', ARRAY['name text'], 'text'),
            ('explain_diff_sql', ARRAY['name text'], 'text')) AS called(name, parameters, returns)
    LOOP
        SELECT string_agg(format('%L, $%s', split_part(p.parameter, ' ', 1), p.place), ', ' ORDER BY p.place) INTO given
          FROM unnest(f.parameters) WITH ORDINALITY AS p(parameter, place);
        EXECUTE format('CREATE FUNCTION pgtrickle.%I(%s) RETURNS %s LANGUAGE plpgsql AS %L',
            f.name, array_to_string(f.parameters, ', '), f.returns,
            format(CASE
                       WHEN f.returns = 'void' THEN 'BEGIN PERFORM %s; END'
                       WHEN f.returns LIKE 'TABLE %' THEN
                           'BEGIN RETURN QUERY SELECT * FROM pg_catalog.jsonb_to_recordset(coalesce(%s, ''[]'')) AS answer'
                           || replace(substr(f.returns, 7), '%', '%%') || '; END'
                       ELSE 'BEGIN RETURN (%s #>> ''{}'')::' || f.returns || '; END' END,
                   format('millrace.carried_out(%L, pg_catalog.jsonb_build_object(%s))', f.name, given)));
    END LOOP;
END $$;

-- Gates. A user may open and close what he owns.
CREATE VIEW millrace.own_source_gate WITH (security_barrier) AS
    SELECT g.source, g.gated, g.gated_at, g.ungated_at, g.gated_by
      FROM millrace.source_gate g
     WHERE EXISTS (SELECT FROM pg_class c WHERE c.oid = g.source AND pg_has_role(c.relowner, 'USAGE'))
      WITH CHECK OPTION;
GRANT SELECT, INSERT, UPDATE ON millrace.own_source_gate TO PUBLIC;

CREATE FUNCTION millrace.gate(source text, closed boolean) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    relation oid := pg_catalog.to_regclass(source)::oid;
BEGIN
    IF relation IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = '42P01', MESSAGE = pg_catalog.format('relation "%s" does not exist', source);
    END IF;
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid = relation AND pg_catalog.pg_has_role(c.relowner, 'USAGE')) THEN
        RAISE EXCEPTION USING ERRCODE = '42501', MESSAGE = pg_catalog.format('must be owner of %s', source);
    END IF;
    UPDATE millrace.own_source_gate g
       SET gated = closed, gated_at = CASE WHEN closed THEN pg_catalog.now() ELSE g.gated_at END,
           ungated_at = CASE WHEN closed THEN NULL ELSE pg_catalog.now() END, gated_by = current_user
     WHERE g.source = relation;
    IF NOT FOUND THEN
        INSERT INTO millrace.own_source_gate (source, gated, gated_at, gated_by) VALUES (relation, closed, pg_catalog.now(), current_user);
    END IF;
    PERFORM pg_catalog.pg_notify('millrace', '');
    PERFORM pg_catalog.pg_notify('pgtrickle_source_gate', source);
END $$;

CREATE FUNCTION pgtrickle.gate_source(source text) RETURNS void LANGUAGE sql AS $$ SELECT millrace.gate($1, true) $$;
CREATE FUNCTION pgtrickle.ungate_source(source text) RETURNS void LANGUAGE sql AS $$ SELECT millrace.gate($1, false) $$;

CREATE FUNCTION pgtrickle.source_gates()
RETURNS TABLE (source_table text, schema_name text, gated boolean, gated_at timestamptz, ungated_at timestamptz, gated_by text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT c.relname::text, n.nspname::text, g.gated, g.gated_at, g.ungated_at, g.gated_by
      FROM millrace.source_gate g JOIN pg_class c ON c.oid = g.source JOIN pg_namespace n ON n.oid = c.relnamespace ORDER BY 2, 1
$$;

-- Snapshots are tables of the caller; a comment says what of.
CREATE FUNCTION pgtrickle.snapshot_stream_table(p_name text, p_target text DEFAULT NULL) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    id bigint := millrace.stream_table_named(p_name);
    of record;
    target text;
BEGIN
    SELECT s.pgt_schema, s.pgt_name INTO of FROM pgtrickle.pgt_stream_tables s WHERE s.pgt_id = id;
    target := coalesce(p_target, pg_catalog.format('%I.%I', of.pgt_schema,
        pg_catalog.left(of.pgt_name, 40) || '_snapshot_' || pg_catalog.to_char(pg_catalog.clock_timestamp(), 'YYYYMMDDHH24MISSMS')));
    IF pg_catalog.to_regclass(target) IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = '42710', MESSAGE = pg_catalog.format('snapshot already exists: %s', target);
    END IF;
    -- As a name it is taken apart and quoted again: it may be anything.
    target := (SELECT pg_catalog.string_agg(pg_catalog.quote_ident(part), '.' ORDER BY place) FROM pg_catalog.unnest(pg_catalog.parse_ident(target)) WITH ORDINALITY AS p(part, place));
    EXECUTE pg_catalog.format('CREATE TABLE %s AS SELECT * FROM %I.%I', target, of.pgt_schema, of.pgt_name);
    EXECUTE pg_catalog.format('COMMENT ON TABLE %s IS %L', target, pg_catalog.format('snapshot of stream table %s taken at %s', id, pg_catalog.clock_timestamp()));
    RETURN target;
END $$;

CREATE FUNCTION pgtrickle.list_snapshots(p_name text)
RETURNS TABLE (snapshot_table text, created_at timestamptz, row_count bigint, frontier jsonb, size_bytes bigint)
LANGUAGE plpgsql STABLE AS $$
DECLARE
    mark text := pg_catalog.format('snapshot of stream table %s taken at ', millrace.stream_table_named(p_name));
BEGIN
    FOR snapshot_table, created_at, size_bytes IN
        SELECT pg_catalog.format('%I.%I', n.nspname, c.relname), pg_catalog.substr(d.description, pg_catalog.length(mark) + 1)::timestamptz, pg_catalog.pg_total_relation_size(c.oid)
          FROM pg_catalog.pg_description d
          JOIN pg_catalog.pg_class c ON c.oid = d.objoid AND c.relkind = 'r'
          JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE d.classoid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objsubid = 0 AND pg_catalog.starts_with(d.description, mark)
           AND pg_catalog.has_table_privilege(c.oid, 'SELECT')
         ORDER BY 2
    LOOP
        EXECUTE pg_catalog.format('SELECT pg_catalog.count(*) FROM %s', snapshot_table) INTO row_count;
        RETURN NEXT;
    END LOOP;
END $$;

CREATE FUNCTION pgtrickle.drop_snapshot(p_snapshot_table text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF coalesce(pg_catalog.obj_description(pg_catalog.to_regclass(p_snapshot_table)::oid, 'pg_class'), '') !~ '^snapshot of stream table \d+ taken at ' THEN
        RAISE EXCEPTION USING ERRCODE = '42P01', MESSAGE = pg_catalog.format('snapshot source not found: %s', p_snapshot_table);
    END IF;
    EXECUTE pg_catalog.format('DROP TABLE %s', pg_catalog.to_regclass(p_snapshot_table));
END $$;

-- There is no fuse that could blow.
CREATE FUNCTION pgtrickle.fuse_status()
RETURNS TABLE (stream_table text, fuse_mode text, fuse_state text, fuse_ceiling bigint, effective_ceiling bigint, fuse_sensitivity integer, blown_at timestamptz, blow_reason text)
LANGUAGE sql STABLE AS $$
    SELECT s.pgt_schema || '.' || s.pgt_name, s.fuse_mode, s.fuse_state, s.fuse_ceiling, NULL::bigint, s.fuse_sensitivity, s.blown_at, s.blow_reason
      FROM pgtrickle.pgt_stream_tables s ORDER BY 1
$$;

CREATE FUNCTION pgtrickle.reset_fuse(name text, action text DEFAULT 'apply') RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    shown text := millrace.stream_table_name(millrace.own_stream_table_named(name));
BEGIN
    RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = CASE
        WHEN action IN ('apply', 'reinitialize', 'skip_changes') THEN pg_catalog.format('invalid argument: fuse is not blown for %s (current state: armed)', shown)
        ELSE pg_catalog.format('invalid argument: invalid reset_fuse action: ''%s'' (expected ''apply'', ''reinitialize'', or ''skip_changes'')', action) END;
END $$;

CREATE FUNCTION pgtrickle.trigger_inventory()
RETURNS TABLE (source_table text, source_oid bigint, trigger_name text, trigger_type text, present boolean, enabled boolean)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format('%I.%I', n.nspname, c.relname), c.oid::bigint, t.tgname::text,
           CASE WHEN t.tgname LIKE 'millrace\_immediate\_%' THEN 'IMMEDIATE' ELSE 'CDC' END, true, t.tgenabled <> 'D'
      FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE t.tgname LIKE 'millrace\_immediate\_%' OR t.tgname LIKE 'millrace\_base\_%'
     ORDER BY 1, 3
$$;

CREATE FUNCTION pgtrickle.refresh_efficiency()
RETURNS TABLE (pgt_schema text, pgt_name text, refresh_mode text, total_refreshes bigint, diff_count bigint, full_count bigint, avg_diff_ms float8,
               avg_full_ms float8, avg_change_ratio float8, diff_speedup text, last_refresh_at text)
LANGUAGE sql STABLE AS $$
    SELECT s.pgt_schema, s.pgt_name, s.refresh_mode, h.total, h.diffs, h.fulls, h.diff_ms, h.full_ms, NULL::float8,
           pg_catalog.round((h.full_ms / nullif(h.diff_ms, 0))::numeric, 1) || 'x', s.last_refresh_at::text
      FROM pgtrickle.pgt_stream_tables s
     CROSS JOIN LATERAL (
           SELECT count(*) AS total, count(*) FILTER (WHERE r.action = 'DIFFERENTIAL') AS diffs, count(*) FILTER (WHERE r.action IN ('FULL', 'REINITIALIZE')) AS fulls,
                  avg(extract(epoch FROM r.end_time - r.start_time) * 1000) FILTER (WHERE r.action = 'DIFFERENTIAL')::float8 AS diff_ms,
                  avg(extract(epoch FROM r.end_time - r.start_time) * 1000) FILTER (WHERE r.action IN ('FULL', 'REINITIALIZE'))::float8 AS full_ms
             FROM pgtrickle.pgt_refresh_history r WHERE r.pgt_id = s.pgt_id AND r.status = 'COMPLETED') h
     ORDER BY 1, 2
$$;

-- What is not there says why, and what there is in its place.
DO $$
DECLARE
    f record;
    group_free text := 'Every refresh reads all its tables at one snapshot.';
    gates text := 'pgtrickle.gate_source() holds refreshes back while a table is loaded.';
    events text := 'LISTEN pg_trickle_alert; brings an event for each refresh.';
BEGIN
    FOR f IN
        SELECT * FROM (VALUES
            ('restore_from_snapshot', 'p_name text, p_source text', 'A stream table always shows what its query gives.', 'Read the snapshot itself; it is a table.'),
            ('advance_watermark', 'source text, watermark timestamptz', group_free, gates),
            ('create_watermark_group', 'group_name text, sources text[], tolerance_secs float8 = 0', group_free, gates),
            ('drop_watermark_group', 'group_name text', group_free, gates),
            ('watermarks', '', group_free, gates),
            ('watermark_groups', '', group_free, gates),
            ('watermark_status', '', group_free, gates),
            ('bootstrap_gate_status', '', 'Gates are for all phases of loading.', 'SELECT * FROM pgtrickle.source_gates();'),
            ('create_refresh_group', 'group_name text, members text[], isolation text = ''read_committed''', 'Stream tables that meet again in another one are refreshed in one transaction by themselves.', 'Give the others the same schedule.'),
            ('drop_refresh_group', 'group_name text', 'There are no refresh groups.', 'Nothing has to be done.'),
            ('refresh_groups', '', 'There are no refresh groups.', 'SELECT * FROM pgtrickle.dependency_tree();'),
            ('set_stream_table_sla', 'name text, sla interval', 'The schedule says how fresh a stream table is.', 'SELECT pgtrickle.alter_stream_table(name, schedule => ''5s'');'),
            ('subscribe', 'stream_table text, channel text', 'No notification is sent for a single stream table.', events),
            ('unsubscribe', 'stream_table text, channel text', 'There are no subscriptions.', events),
            ('list_subscriptions', '', 'There are no subscriptions.', events),
            ('stream_table_to_publication', 'name text', 'What users see is a view, and views cannot be published.', 'Read it over a connection.'),
            ('drop_stream_table_publication', 'name text', 'Stream tables are not published.', 'Nothing has to be done.'),
            ('attach_outbox', 'p_name text, p_retention_hours integer = 24, p_inline_threshold_rows integer = 10000', 'There are no outboxes.', events),
            ('detach_outbox', 'p_name text, p_if_exists boolean = false', 'There are no outboxes.', 'Nothing has to be done.'),
            ('canary_begin', 'p_name text, p_new_query text', 'Another query is filled beside and takes the place of the old one when it is complete.',
             'Create a second stream table to compare, then pgtrickle.alter_stream_table(name, query => ...);'),
            ('canary_diff', 'p_name text', 'There are no canaries.', 'Create a second stream table and compare with EXCEPT ALL.'),
            ('canary_promote', 'p_name text', 'There are no canaries.', 'SELECT pgtrickle.alter_stream_table(name, query => ...);'),
            ('restore_stream_tables', '', 'A dump has no triggers and slots of Millrace to restore.', 'Create stream tables anew from pgtrickle.export_definition().'),
            ('drain', 'timeout_s integer = 60', 'Nothing waits in a queue of workers.', 'SELECT pgtrickle.pause_all();'),
            ('is_drained', '', 'Nothing waits in a queue of workers.', 'SELECT * FROM pgtrickle.pgt_status();'),
            ('preflight', '', 'Millrace checks a server from outside.', 'millrace check --upstream URL'),
            ('migrate', '', 'The catalog is kept current by itself.', 'Nothing has to be done.'),
            ('explain_delta', 'name text, format text = ''text''', 'Plans of delta queries depend on the changes at hand.', 'SELECT pgtrickle.explain_diff_sql(name); shows their SQL.'),
            ('explain_query_rewrite', 'query text', 'Queries are not rewritten in passes.', 'SELECT * FROM pgtrickle.explain_st(name); shows the stages of a stream table.'),
            ('recommend_refresh_mode', 'st_name text = NULL', 'AUTO chooses the best way there is.', 'SELECT * FROM pgtrickle.explain_refresh_mode(name); says why.'),
            ('recommend_schedule', 'p_name text', 'How fresh it has to be is yours to say.', 'schedule => ''calculated'' refreshes as soon as something changes.'),
            ('schedule_recommendations', '', 'How fresh they have to be is yours to say.', 'schedule => ''calculated'' refreshes as soon as something changes.'),
            ('embedding_stream_table', 'name text, source_table text, vector_column text, extra_columns text = NULL, refresh_interval text = ''1m'', index_type text = ''hnsw'', dry_run boolean = false',
             'Embeddings are not computed.', 'A query over a table of embeddings can be a stream table.')
        ) AS missing(name, parameters, reason, instead)
    LOOP
        EXECUTE format('CREATE FUNCTION pgtrickle.%I(%s) RETURNS text LANGUAGE plpgsql AS %L', f.name, f.parameters,
            format('BEGIN RAISE EXCEPTION USING ERRCODE = ''0A000'', MESSAGE = %L, DETAIL = %L, HINT = %L; END',
                   format('pgtrickle.%s() is not supported', f.name), f.reason, f.instead));
    END LOOP;
END $$;
