-- The Millrace catalog. Lives in the database where extended SQL is used; owned by the role Millrace itself connects as.
-- Objects are known by OID (facades, gates, definitions, schemas, roles) and origin columns by attnum: names may change at any time.

CREATE SCHEMA millrace;
CREATE SCHEMA millrace_data;
CREATE SCHEMA IF NOT EXISTS mz_internal;

GRANT USAGE ON SCHEMA millrace, millrace_data, mz_internal TO PUBLIC;

CREATE TABLE millrace.catalog_version (
    version    integer PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT now()
);

-- Storages, relations, sources, connections and secrets share one series of ids, so an id names one thing.
CREATE SEQUENCE millrace.object_id;

-- One row: the key by which a Millrace process proves, inside a client's own session, that a catalog write comes from Millrace.
CREATE TABLE millrace.service_key (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    key      bytea NOT NULL
);

CREATE TABLE millrace.secret (
    id        bigint PRIMARY KEY DEFAULT nextval('millrace.object_id'),
    namespace oid  NOT NULL,
    name      text NOT NULL,
    owner     oid  NOT NULL,
    value     text NOT NULL,      -- AES-256-GCM, see src/catalog/encryption.ts
    UNIQUE (namespace, name)
);

CREATE TABLE millrace.connection (
    id        bigint PRIMARY KEY DEFAULT nextval('millrace.object_id'),
    namespace oid   NOT NULL,
    name      text  NOT NULL,
    owner     oid   NOT NULL,
    type      text  NOT NULL,
    options   jsonb NOT NULL,     -- option name -> {"value": text} or {"secret": id}
    UNIQUE (namespace, name)
);

CREATE TABLE millrace.source (
    id                bigint PRIMARY KEY DEFAULT nextval('millrace.object_id'),
    facade            oid UNIQUE,          -- the view that stands for the source: its name, schema and owner are the source's
    gate              oid,
    connection_id     bigint NOT NULL,     -- no foreign key: a dropped source is cleared away after its connection may be gone
    publication       text   NOT NULL,
    slot              text   NOT NULL UNIQUE,
    system_identifier text,
    origin_database   text,
    status            text   NOT NULL DEFAULT 'created' CHECK (status IN ('created', 'starting', 'running', 'stalled', 'ceased', 'dropped')),
    error             text,
    details           jsonb,
    status_since      timestamptz NOT NULL DEFAULT now()
);

-- One row a slot, updated by every epoch: few columns, room for HOT.
CREATE TABLE millrace.source_progress (
    source_id   bigint PRIMARY KEY REFERENCES millrace.source ON DELETE CASCADE,
    lsn         pg_lsn NOT NULL,           -- end of the last origin commit that is in storage
    committed_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 10);

-- What the engine last heard from the origin, beside epochs: for lag.
CREATE TABLE millrace.source_position (
    source_id  bigint PRIMARY KEY REFERENCES millrace.source ON DELETE CASCADE,
    origin_lsn pg_lsn NOT NULL,
    reached_lsn pg_lsn NOT NULL,           -- everything before it is in storage or concerned no table here
    heard_at   timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 10);

CREATE TABLE millrace.epoch (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    epoch    bigint NOT NULL DEFAULT 0,
    token    bigint NOT NULL DEFAULT 0,    -- fencing: the leader's; every epoch checks it
    committed_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 10);
INSERT INTO millrace.epoch DEFAULT VALUES;

-- millrace_data.s<id>: the rows of one origin table, shared by its versions.
CREATE TABLE millrace.storage (
    id            bigint PRIMARY KEY DEFAULT nextval('millrace.object_id'),
    source_id     bigint NOT NULL REFERENCES millrace.source,
    origin_oid    oid    NOT NULL,
    origin_schema text   NOT NULL,
    origin_name   text   NOT NULL,
    -- [{"attnum", "name", "type", "collation", "text", "notNull"}], storage column c<attnum>
    columns       jsonb  NOT NULL,
    key_attnums   integer[] NOT NULL,      -- empty: no key, rows are told apart by rid and found by h
    state         text   NOT NULL DEFAULT 'new' CHECK (state IN ('new', 'copying', 'copied', 'live', 'failed', 'dropped')),
    supersedes    bigint,                  -- storage with fewer columns that this one replaces once live
    extends       bigint REFERENCES millrace.storage, -- storage that gets this one's columns (but for those marked "elsewhere") once they are live; then this one goes
    merged_to     text[],                  -- key up to which it has got them
    copy_snapshot text,                    -- pg_snapshot: what it sees need not be taken from the spool
    copy_lsn      pg_lsn,                  -- no transaction of the copy ended after this
    sent_as       text   NOT NULL DEFAULT '', -- what the publication published of the table when it was copied: operations, fingerprint of the row filter
    missed        jsonb,                   -- rows came or went that the origin did not tell of: what its versions say of that; null: none did
    rows_copied   bigint NOT NULL DEFAULT 0,
    bytes_copied  bigint NOT NULL DEFAULT 0,
    rows_estimate bigint,
    chunks_estimate integer,               -- how many pieces the copy is expected to take
    error         jsonb,
    attempts      integer NOT NULL DEFAULT 0,  -- copies that failed
    retry_at      timestamptz              -- of a copy that failed: when it is tried again
);

-- Pieces of a first copy: ranges of the key, each read at a snapshot of its own and committed together with its row here. Without a key there is one.
CREATE TABLE millrace.copy_chunk (
    storage_id bigint  NOT NULL REFERENCES millrace.storage ON DELETE CASCADE,
    chunk      integer NOT NULL,
    after_key  text[],                     -- its rows come after this key ..; null: from the first
    up_to_key  text[],                     -- .. and end with it; null: to the last
    snapshot   text,                       -- null: it is not in yet
    lsn        pg_lsn,
    rows       bigint,
    bytes      bigint,
    copied_at  timestamptz,
    PRIMARY KEY (storage_id, chunk)
);

-- Live relations: tables from sources and live materialized views.
CREATE TABLE millrace.relation (
    id           bigint PRIMARY KEY DEFAULT nextval('millrace.object_id'),
    kind         text NOT NULL CHECK (kind IN ('table', 'view')),
    facade       oid UNIQUE,
    gate         oid NOT NULL,
    -- pending: waits for the engine; populating; ready; error: the gate raises; dropped: the engine clears it away
    state        text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'populating', 'ready', 'error', 'dropped')),
    error        jsonb,                    -- {"code", "message", "detail", "hint", "cause": id of the relation where it began}
    state_since  timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE millrace.table_version (
    relation_id bigint PRIMARY KEY REFERENCES millrace.relation ON DELETE CASCADE,
    source_id   bigint NOT NULL REFERENCES millrace.source,
    storage_id  bigint NOT NULL REFERENCES millrace.storage,
    -- [{"attnum", "name", "text"}] in the order shown
    columns     jsonb  NOT NULL,
    excluded    text[] NOT NULL DEFAULT '{}',
    text_columns text[] NOT NULL DEFAULT '{}'
);

CREATE TABLE millrace.live_view (
    relation_id bigint PRIMARY KEY REFERENCES millrace.relation ON DELETE CASCADE,
    definition  oid   NOT NULL,            -- view millrace_data.q<id>: the query as Postgres keeps it, dependencies included
    plan        jsonb NOT NULL,
    rows_maintained bigint NOT NULL DEFAULT 0
);

CREATE TABLE millrace.live_view_input (
    relation_id bigint NOT NULL REFERENCES millrace.live_view ON DELETE CASCADE,
    input_id    bigint NOT NULL REFERENCES millrace.relation,
    PRIMARY KEY (relation_id, input_id)
);

-- The constant-time comparison of Postgres is memcmp on bytea; the signature covers one transaction only, so timing tells nothing of use.
-- HMAC (RFC 2104) over SHA-256 with the functions every Postgres has.
CREATE FUNCTION millrace.hmac_sha256(message bytea, key bytea) RETURNS bytea
LANGUAGE plpgsql IMMUTABLE STRICT SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    padded bytea := key || decode(repeat('00', 64 - length(key)), 'hex');
    ipad   bytea := padded;
    opad   bytea := padded;
BEGIN
    FOR i IN 0..63 LOOP
        ipad := set_byte(ipad, i, get_byte(padded, i) # 54);
        opad := set_byte(opad, i, get_byte(padded, i) # 92);
    END LOOP;
    RETURN sha256(opad || sha256(ipad || message));
END $$;

-- The only way a client's session writes to the catalog: statements that a Millrace process has signed for exactly this transaction.
-- Whoever else calls it has no key. Runs as the owner of the catalog, in the caller's transaction.
CREATE FUNCTION millrace.perform(statements text[], arguments text, signature text) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    expected text;
    statement text;
    result jsonb;
    writes boolean := false;
BEGIN
    SELECT encode(millrace.hmac_sha256(
               convert_to(pg_current_xact_id()::text || E'\n' || array_to_string(statements, E'\n') || E'\n' || arguments, 'UTF8'), k.key), 'hex')
      INTO expected
      FROM millrace.service_key k;
    -- NULLs, too, are no signature.
    IF (expected = signature) IS NOT TRUE THEN
        RAISE EXCEPTION USING
            ERRCODE = '42501',
            MESSAGE = 'permission denied for function millrace.perform',
            DETAIL = 'The catalog is written by Millrace itself, or this process runs under another MILLRACE_SECRET_KEY than the one that installed the catalog.',
            HINT = 'Type extended SQL through Millrace; start every Millrace process on this database with the same key.';
    END IF;
    FOREACH statement IN ARRAY statements LOOP
        writes := writes OR statement !~* '^\s*select';
        IF statement ~* '^\s*(create|alter|drop|grant)' THEN
            EXECUTE statement;
        ELSIF statement ~* '^\s*(select|with)' OR statement ~* '\mreturning\M' THEN
            EXECUTE statement INTO result USING arguments::jsonb;
        ELSE
            EXECUTE statement USING arguments::jsonb;
        END IF;
    END LOOP;
    IF writes THEN
        PERFORM pg_notify('millrace', '');
    END IF;
    RETURN result;
END $$;

CREATE FUNCTION millrace.qualified_name(relation oid) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = relation
$$;

-- Stands in the gate of a relation that cannot be read: raises what keeps it from being read.
-- STABLE and without columns, so the planner makes it a one-time filter that runs before any row is looked for.
CREATE FUNCTION millrace.unreadable(relation_id bigint) RETURNS boolean
LANGUAGE plpgsql STABLE SECURITY DEFINER PARALLEL RESTRICTED SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    r record;
    root record;
    shown text;
    copied text;
BEGIN
    SELECT rel.*, millrace.qualified_name(rel.facade) AS name INTO r FROM millrace.relation rel WHERE rel.id = relation_id;
    IF r.state = 'error' THEN
        shown := r.error ->> 'message';
        SELECT rel.id, rel.kind, millrace.qualified_name(rel.facade) AS name INTO root
          FROM millrace.relation rel WHERE rel.id = coalesce((r.error ->> 'cause')::bigint, relation_id);
        RAISE EXCEPTION USING
            ERRCODE = coalesce(r.error ->> 'code', '55000'),
            MESSAGE = shown,
            DETAIL = btrim(coalesce(r.error ->> 'detail', format('It concerns %s.', coalesce(root.name, r.name))) ||
                           CASE WHEN root.id <> relation_id THEN format(' Materialized view %s reads %s.', r.name, root.name) ELSE '' END),
            HINT = replace(coalesce(r.error ->> 'hint', 'DROP it and create it again once the cause is gone.'),
                           '{relation}', coalesce(root.name, r.name, ''));
    END IF;
    SELECT format(' %s rows copied so far%s.', s.rows_copied, CASE WHEN s.rows_estimate > 0 THEN format(' of about %s', s.rows_estimate) ELSE '' END)
      INTO copied
      FROM millrace.table_version v JOIN millrace.storage s ON s.id = v.storage_id
     WHERE v.relation_id = unreadable.relation_id AND s.state IN ('new', 'copying');
    RAISE EXCEPTION USING
        ERRCODE = '55000',
        MESSAGE = format('relation %s is not ready', coalesce(r.name, '(dropped)')),
        DETAIL = format('Its state is "%s".%s', coalesce(r.state, 'dropped'), coalesce(copied, '')),
        HINT = 'Wait for it: SELECT * FROM millrace.snapshot_progress; or leave millrace.wait on, so that CREATE returns when it can be read.';
END $$;

-- Facades carry this as INSTEAD OF (row) and BEFORE (statement) triggers: a write is refused, from superusers too.
CREATE FUNCTION millrace.refuse_write() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    r record;
    name text := format('%I.%I', TG_TABLE_SCHEMA, TG_TABLE_NAME);
BEGIN
    SELECT rel.kind, s.origin_schema, s.origin_name, millrace.qualified_name(src.facade) AS source INTO r
      FROM millrace.relation rel
      LEFT JOIN millrace.table_version v ON v.relation_id = rel.id
      LEFT JOIN millrace.storage s ON s.id = v.storage_id
      LEFT JOIN millrace.source src ON src.id = v.source_id
     WHERE rel.facade = TG_RELID;
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

-- A view's query with every relation named in full.
CREATE FUNCTION millrace.definition_of(relation oid) RETURNS text
LANGUAGE sql STABLE SET search_path = '' AS $$
    SELECT pg_catalog.regexp_replace(pg_catalog.pg_get_viewdef(relation), ';\s*$', '')
$$;

-- Whether a statement that returns a boolean says true; an error means no. As the caller, so nothing is gained by calling it.
CREATE FUNCTION millrace.holds(statement text) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    answer boolean;
BEGIN
    EXECUTE statement INTO answer;
    RETURN coalesce(answer, false);
EXCEPTION WHEN OTHERS THEN
    RETURN false;
END $$;

-- Relations that a view reads, plain views looked through: what each is and, where live, how its rows are kept.
CREATE FUNCTION millrace.relations_read(view oid)
RETURNS TABLE (relation oid, schema text, name text, kind text, query text, relation_id bigint, storage_id bigint, columns jsonb, key_attnums integer[], plan jsonb)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    WITH RECURSIVE reads(oid, looked_through) AS (
        SELECT view, true
        UNION
        SELECT d.refobjid, c.relkind = 'v' AND NOT EXISTS (SELECT FROM millrace.relation r WHERE r.facade = d.refobjid)
          FROM reads
          JOIN pg_rewrite w ON w.ev_class = reads.oid
          JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = w.oid AND d.refclassid = 'pg_class'::regclass AND d.refobjid <> reads.oid
          JOIN pg_class c ON c.oid = d.refobjid
         WHERE reads.looked_through AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
    )
    SELECT c.oid, n.nspname, c.relname,
           CASE WHEN r.id IS NOT NULL THEN r.kind WHEN c.relkind = 'v' THEN 'plain view' ELSE 'ordinary' END,
           CASE WHEN r.id IS NULL AND c.relkind = 'v' THEN millrace.definition_of(c.oid) END,
           r.id, v.storage_id, v.columns, s.key_attnums, lv.plan
      FROM reads
      JOIN pg_class c ON c.oid = reads.oid
      JOIN pg_namespace n ON n.oid = c.relnamespace
      LEFT JOIN millrace.relation r ON r.facade = c.oid AND r.state <> 'dropped'
      LEFT JOIN millrace.table_version v ON v.relation_id = r.id
      LEFT JOIN millrace.storage s ON s.id = v.storage_id
      LEFT JOIN millrace.live_view lv ON lv.relation_id = r.id
     WHERE reads.oid <> view
$$;

-- What the CREATE statements wait for: state of relations and sources by id.
CREATE FUNCTION millrace.state_of(ids bigint[])
RETURNS TABLE (id bigint, state text, error jsonb, name text, rows_copied bigint, rows_estimate bigint)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN QUERY
    SELECT r.id, r.state, r.error, millrace.qualified_name(r.facade), s.rows_copied, s.rows_estimate
      FROM millrace.relation r
      LEFT JOIN millrace.table_version v ON v.relation_id = r.id
      LEFT JOIN millrace.storage s ON s.id = v.storage_id
     WHERE r.id = ANY (ids)
    UNION ALL
    SELECT s.id,
           CASE s.status WHEN 'running' THEN 'ready' WHEN 'ceased' THEN 'error' ELSE CASE WHEN s.error IS NULL THEN 'pending' ELSE 'error' END END,
           CASE WHEN s.error IS NULL THEN NULL ELSE coalesce(s.details, '{}') || jsonb_build_object('message', s.error) END,
           millrace.qualified_name(s.facade), NULL, NULL
      FROM millrace.source s
     WHERE s.id = ANY (ids);
END $$;

-- The live objects among facades.
CREATE FUNCTION millrace.live_among(facades oid[])
RETURNS TABLE (id bigint, type text, facade oid, state text, schema name, name name, owner oid)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT live.id, live.type, live.facade, live.state, n.nspname, c.relname, c.relowner
      FROM (SELECT r.id, r.kind AS type, r.facade, r.state FROM millrace.relation r WHERE r.state <> 'dropped'
            UNION ALL
            SELECT s.id, 'source', s.facade, s.status FROM millrace.source s WHERE s.status <> 'dropped') live
      JOIN pg_class c ON c.oid = live.facade
      JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE live.facade = ANY (facades)
$$;

-- Gates follow the owners of their facades (ALTER .. OWNER TO, REASSIGN OWNED): a facade reads its gate as its owner.
CREATE FUNCTION millrace.stray_grants() RETURNS SETOF text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH gates AS (
        SELECT g.oid, g.relowner AS keeper, g.relacl, f.relowner AS owner
          FROM (SELECT r.gate, r.facade FROM millrace.relation r UNION ALL SELECT s.gate, s.facade FROM millrace.source s) x
          JOIN pg_class g ON g.oid = x.gate
          JOIN pg_class f ON f.oid = x.facade
    ), granted AS (
        SELECT g.oid, a.grantee FROM gates g, aclexplode(g.relacl) a
    )
    SELECT format('GRANT SELECT ON %s TO %I', g.oid::regclass, pg_get_userbyid(g.owner))
      FROM gates g
     WHERE g.owner <> g.keeper AND NOT EXISTS (SELECT FROM granted a WHERE a.oid = g.oid AND a.grantee = g.owner)
    UNION ALL
    SELECT DISTINCT format('REVOKE ALL ON %s FROM %I', g.oid::regclass, pg_get_userbyid(a.grantee))
      FROM gates g JOIN granted a USING (oid)
     WHERE a.grantee NOT IN (g.owner, g.keeper, 0)
$$;
REVOKE EXECUTE ON FUNCTION millrace.stray_grants() FROM PUBLIC;

CREATE FUNCTION millrace.follow_owners() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    change text;
BEGIN
    FOR change IN SELECT g FROM millrace.stray_grants() g LOOP
        EXECUTE change;
    END LOOP;
END $$;
REVOKE EXECUTE ON FUNCTION millrace.follow_owners() FROM PUBLIC;

-- For statements of a leader that must not be carried out by any other: WHERE token = <its own> OR millrace.leadership_lost().
CREATE FUNCTION millrace.leadership_lost() RETURNS boolean
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = '55P04', MESSAGE = 'another Millrace process has taken over as leader of this database';
END $$;
REVOKE EXECUTE ON FUNCTION millrace.leadership_lost() FROM PUBLIC;

-- Whether a relation is live, or a plain view that reads a live relation at any depth.
CREATE FUNCTION millrace.reads_live(relation oid) RETURNS boolean
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
    SELECT EXISTS (SELECT FROM reached JOIN millrace.relation r ON r.facade = reached.oid)
$$;

-- Views, live, plain or materialized by Postgres, that read one of these relations at any depth, nearest first, with what they were reached through.
CREATE FUNCTION millrace.dependents(relations oid[])
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

-- Functions other than built-in ones that the rules of these views call: by name, behind operators, casts and aggregates, in checks of domains.
CREATE FUNCTION millrace.functions_called(views oid[])
RETURNS TABLE (signature text, owner name, trusted boolean, volatile boolean)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    WITH RECURSIVE used(classid, objid) AS (
        (SELECT d.refclassid, d.refobjid
           FROM pg_rewrite w JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = w.oid
          WHERE w.ev_class = ANY (views)
         UNION
         SELECT 'pg_type'::regclass, a.atttypid FROM pg_attribute a WHERE a.attrelid = ANY (views) AND a.attnum > 0)
        UNION
        SELECT next.classid, next.objid
          FROM used, LATERAL (
               SELECT d.refclassid AS classid, d.refobjid AS objid
                 FROM pg_depend d
                WHERE d.classid = used.classid AND d.objid = used.objid
                  AND (d.classid IN ('pg_operator'::regclass, 'pg_type'::regclass, 'pg_constraint'::regclass)
                       OR EXISTS (SELECT FROM pg_aggregate g WHERE d.classid = 'pg_proc'::regclass AND g.aggfnoid = d.objid))
               UNION ALL
               SELECT 'pg_constraint'::regclass, c.oid FROM pg_constraint c WHERE used.classid = 'pg_type'::regclass AND c.contypid = used.objid
          ) next
         WHERE next.classid IN ('pg_proc'::regclass, 'pg_operator'::regclass, 'pg_type'::regclass, 'pg_constraint'::regclass)
    )
    SELECT DISTINCT p.oid::regprocedure::text, r.rolname,
           r.rolsuper OR r.oid = (SELECT n.nspowner FROM pg_namespace n WHERE n.nspname = 'millrace'), p.provolatile = 'v'
      FROM used
      JOIN pg_proc p ON used.classid = 'pg_proc'::regclass AND p.oid = used.objid
      JOIN pg_roles r ON r.oid = p.proowner
     WHERE p.pronamespace <> 'pg_catalog'::regnamespace
     ORDER BY 1
$$;

-- Everything below can be read by everyone: names, states, progress; never options or secrets.
CREATE VIEW millrace.sources AS
    SELECT s.id, n.nspname AS schema, c.relname AS name, pg_get_userbyid(c.relowner) AS owner, 'postgres'::text AS type,
           s.publication, s.slot, s.status, s.error, s.status_since,
           greatest(p.lsn, o.reached_lsn) AS lsn, o.origin_lsn, greatest(o.origin_lsn - greatest(p.lsn, o.reached_lsn), 0) AS lag_bytes, o.heard_at
      FROM millrace.source s
      JOIN pg_class c ON c.oid = s.facade
      JOIN pg_namespace n ON n.oid = c.relnamespace
      LEFT JOIN millrace.source_progress p ON p.source_id = s.id
      LEFT JOIN millrace.source_position o ON o.source_id = s.id
     WHERE s.status <> 'dropped';

CREATE VIEW millrace.relations AS
    SELECT r.id, CASE r.kind WHEN 'table' THEN 'table' ELSE 'materialized view' END AS type,
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

CREATE VIEW millrace.snapshot_progress AS
    SELECT r.schema, r.name, CASE WHEN s.state = 'live' AND s.extends IS NOT NULL THEN 'merging' ELSE s.state END AS state, s.rows_copied, s.rows_estimate, s.bytes_copied,
           CASE WHEN s.state IN ('copied', 'live') THEN 100.0
                WHEN s.rows_estimate > 0 THEN least(99.9, round(100.0 * s.rows_copied / s.rows_estimate, 1)) END AS percent,
           c.copied AS chunks_copied, greatest(c.planned, CASE WHEN s.state IN ('new', 'copying') THEN s.chunks_estimate END) AS chunks,
           s.attempts AS failed_attempts, CASE WHEN s.state = 'failed' THEN s.error ->> 'message' END AS error,
           CASE WHEN s.state = 'failed' THEN s.retry_at END AS retry_at
      FROM millrace.relations r JOIN millrace.storage s ON s.id = r.storage_id
     CROSS JOIN LATERAL (SELECT count(*) AS planned, count(k.copied_at) AS copied FROM millrace.copy_chunk k WHERE k.storage_id = s.id) c;

CREATE VIEW millrace.connections AS
    SELECT c.id, n.nspname AS schema, c.name, pg_get_userbyid(c.owner) AS owner, c.type
      FROM millrace.connection c JOIN pg_namespace n ON n.oid = c.namespace;

CREATE VIEW millrace.secrets AS
    SELECT s.id, n.nspname AS schema, s.name, pg_get_userbyid(s.owner) AS owner
      FROM millrace.secret s JOIN pg_namespace n ON n.oid = s.namespace;

CREATE VIEW mz_internal.mz_source_statuses AS
    SELECT 'u' || s.id AS id, c.relname::text AS name, 'postgres'::text AS type, s.status_since AS last_status_change_at,
           s.status, s.error, s.details
      FROM millrace.source s JOIN pg_class c ON c.oid = s.facade
     WHERE s.status <> 'dropped'
    UNION ALL
    SELECT 'u' || r.id, c.relname::text, 'table', r.state_since,
           CASE r.state WHEN 'ready' THEN 'running' WHEN 'error' THEN 'ceased' WHEN 'populating' THEN 'starting' ELSE 'created' END,
           r.error ->> 'message', r.error
      FROM millrace.relation r JOIN pg_class c ON c.oid = r.facade
     WHERE r.kind = 'table' AND r.state <> 'dropped';

GRANT SELECT ON millrace.catalog_version, millrace.sources, millrace.relations, millrace.snapshot_progress, millrace.connections, millrace.secrets,
    mz_internal.mz_source_statuses TO PUBLIC;

REVOKE EXECUTE ON FUNCTION millrace.hmac_sha256(bytea, bytea) FROM PUBLIC;
