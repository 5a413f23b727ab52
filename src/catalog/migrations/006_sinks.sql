-- Sinks: what leaves the database.
-- A position is the timestamp of an epoch: milliseconds, each epoch's later than the one before.

ALTER TABLE millrace.epoch ADD COLUMN ts bigint NOT NULL DEFAULT 0;

-- Names this catalog to the world outside: what a sink has delivered is kept there under it.
CREATE TABLE millrace.installation (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    id       uuid NOT NULL DEFAULT gen_random_uuid()
);
INSERT INTO millrace.installation DEFAULT VALUES;

-- A type as formats of messages know it: SinkType of src/catalog/sink-model.ts.
CREATE FUNCTION millrace.type_shape(type oid, typmod integer) RETURNS jsonb
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    t record;
    shape jsonb;
BEGIN
    SELECT p.typname, p.typtype, p.typelem, p.typbasetype, p.typtypmod, p.typrelid,
           p.typelem <> 0 AND p.typsubscript = 'array_subscript_handler'::regproc AS is_array
      INTO t FROM pg_type p WHERE p.oid = type;
    shape := jsonb_build_object('typeName', t.typname, 'typmod', typmod, 'typeKind', t.typtype);
    IF t.is_array THEN
        shape := shape || jsonb_build_object('element', millrace.type_shape(t.typelem, typmod),
                                             'delimiter', (SELECT e.typdelim FROM pg_type e WHERE e.oid = t.typelem));
    ELSIF t.typtype = 'd' THEN
        shape := shape || jsonb_build_object('base', millrace.type_shape(t.typbasetype, t.typtypmod));
    ELSIF t.typtype = 'c' THEN
        shape := shape || jsonb_build_object('fields', (
            SELECT coalesce(jsonb_agg(millrace.type_shape(a.atttypid, a.atttypmod) ||
                                      jsonb_build_object('name', a.attname, 'nullable', true, 'comment', col_description(a.attrelid, a.attnum))
                                      ORDER BY a.attnum), '[]')
              FROM pg_attribute a WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped));
    END IF;
    RETURN shape;
END $$;

CREATE TABLE millrace.sink (
    id            bigint PRIMARY KEY DEFAULT nextval('millrace.object_id'),
    namespace     oid   NOT NULL,
    name          text  NOT NULL,
    owner         oid   NOT NULL,
    connection_id bigint,                  -- null: a webhook
    definition    jsonb NOT NULL,          -- SinkDefinition of src/catalog/sink-model.ts
    paused        boolean NOT NULL DEFAULT false,
    -- created: waits for its first cutover; starting; running; paused; stalled: tried again; dropped: the engine clears it away
    status        text NOT NULL DEFAULT 'created' CHECK (status IN ('created', 'starting', 'running', 'paused', 'stalled', 'dropped')),
    error         text,
    details       jsonb,                   -- {"hint": ..}
    status_since  timestamptz NOT NULL DEFAULT now(),
    -- Nothing later than this may leave yet: a cutover is being prepared.
    hold_ts       bigint
);
CREATE UNIQUE INDEX sink_name ON millrace.sink (namespace, name) WHERE status <> 'dropped';

-- What a sink reads: the first version by CREATE SINK, one more by each ALTER SINK .. SET FROM.
CREATE TABLE millrace.sink_version (
    sink_id     bigint  NOT NULL REFERENCES millrace.sink ON DELETE CASCADE,
    version     integer NOT NULL,
    relation_id bigint  NOT NULL,          -- no foreign key: a relation may be dropped while its last changes are on their way out
    columns     jsonb   NOT NULL,          -- [SinkColumn of src/catalog/sink-model.ts]
    backfill    text    NOT NULL CHECK (backfill IN ('none', 'snapshot', 'diff')),
    -- Changes of its relation after this epoch are its; null: the engine has not cut over yet. The one before it ends there.
    cut_ts      bigint,
    -- Rows of its backfill; null: it has none, or they are not counted yet.
    backfill_rows bigint,
    PRIMARY KEY (sink_id, version)
);

-- How far a sink is; for Kafka and Postgres a copy of what the target says.
CREATE TABLE millrace.sink_progress (
    sink_id     bigint PRIMARY KEY REFERENCES millrace.sink ON DELETE CASCADE,
    version     integer NOT NULL,
    ts          bigint  NOT NULL,          -- everything up to this epoch is out
    backfill_seq bigint,                   -- of the version's backfill; null: done, or none
    messages    bigint  NOT NULL DEFAULT 0,
    bytes       bigint  NOT NULL DEFAULT 0,
    -- What it had still to deliver was thrown away, because its outbox had grown to the limit.
    overrun     boolean NOT NULL DEFAULT false,
    updated_at  timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 10);

CREATE FUNCTION millrace.sink_state(sink bigint, OUT version integer, OUT cut_ts bigint, OUT status text, OUT error text, OUT hint text, OUT relation_state text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT v.version, v.cut_ts, s.status, s.error, s.details ->> 'hint', r.state
      FROM millrace.sink s
      JOIN millrace.sink_version v ON v.sink_id = s.id
      LEFT JOIN millrace.relation r ON r.id = v.relation_id
     WHERE s.id = sink AND s.status <> 'dropped'
     ORDER BY v.version DESC LIMIT 1
$$;

-- Whether a row that can be seen was written by the transaction that asks, subtransactions included. `row_xmin`: its xmin.
CREATE FUNCTION millrace.is_own_row(row_xmin xid) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce(pg_xact_status((CASE WHEN x.full_xid > x.now + 2147483648 THEN x.full_xid - 4294967296 ELSE x.full_xid END)::text::xid8) = 'in progress', false)
      FROM (SELECT n.now, (n.now / 4294967296) * 4294967296 + row_xmin::text::bigint AS full_xid
              FROM (SELECT pg_current_xact_id()::text::bigint AS now) n) x
$$;

-- Sinks that read relations, or are to read them after their next cutover. `leaving`: it is to read another one.
CREATE FUNCTION millrace.sinks_of(relations bigint[])
RETURNS TABLE (id bigint, name text, relation_id bigint, leaving boolean)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT DISTINCT ON (s.id, v.relation_id) s.id, coalesce(format('%I.%I', n.nspname, s.name), s.name), v.relation_id,
           EXISTS (SELECT FROM millrace.sink_version w WHERE w.sink_id = s.id AND w.cut_ts IS NULL AND w.relation_id <> v.relation_id)
      FROM millrace.sink s
      JOIN millrace.sink_version v ON v.sink_id = s.id
      LEFT JOIN pg_namespace n ON n.oid = s.namespace
     WHERE s.status <> 'dropped' AND v.relation_id = ANY (relations)
       AND (v.cut_ts IS NULL OR v.version = (SELECT max(w.version) FROM millrace.sink_version w WHERE w.sink_id = s.id AND w.cut_ts IS NOT NULL))
     ORDER BY s.id, v.relation_id
$$;

-- Drops the sinks of a relation that users no longer see: only who might drop the relation can have brought that about.
CREATE FUNCTION millrace.drop_sinks_of_gone(relation bigint) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    UPDATE millrace.sink s SET status = 'dropped', status_since = now()
     WHERE s.id IN (SELECT o.id FROM millrace.sinks_of(ARRAY[relation]) o)
       AND EXISTS (SELECT FROM millrace.relation r WHERE r.id = relation AND NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = r.facade))
$$;

-- What a sink reads is its newest version that has cut over; `next_relation` is what it is to read after the cutover that is under way.
CREATE VIEW millrace.sinks AS
    SELECT s.id, n.nspname AS schema, s.name, pg_get_userbyid(s.owner) AS owner, s.definition #>> '{target,type}' AS type,
           millrace.qualified_name(r.facade) AS relation, v.version,
           CASE WHEN w.version <> v.version THEN millrace.qualified_name(x.facade) END AS next_relation,
           CASE WHEN s.paused THEN 'paused' ELSE s.status END AS status, s.error, s.details ->> 'hint' AS hint, s.status_since,
           p.ts, to_timestamp(p.ts / 1000.0) AS reached_at, greatest(e.ts - p.ts, 0) AS lag_ms,
           coalesce(p.messages, 0) AS messages, coalesce(p.bytes, 0) AS bytes
      FROM millrace.sink s
      CROSS JOIN millrace.epoch e
      LEFT JOIN pg_namespace n ON n.oid = s.namespace
      LEFT JOIN millrace.sink_progress p ON p.sink_id = s.id
      LEFT JOIN LATERAL (SELECT i.* FROM millrace.sink_version i WHERE i.sink_id = s.id ORDER BY i.cut_ts IS NULL, i.version DESC LIMIT 1) v ON true
      LEFT JOIN LATERAL (SELECT i.* FROM millrace.sink_version i WHERE i.sink_id = s.id ORDER BY i.version DESC LIMIT 1) w ON true
      LEFT JOIN millrace.relation r ON r.id = v.relation_id
      LEFT JOIN millrace.relation x ON x.id = w.relation_id
     WHERE s.status <> 'dropped';

CREATE VIEW mz_internal.mz_sink_statuses AS
    SELECT 'u' || s.id AS id, s.name, s.definition #>> '{target,type}' AS type, s.status_since AS last_status_change_at,
           CASE WHEN s.paused THEN 'paused' ELSE s.status END AS status, s.error, s.details
      FROM millrace.sink s WHERE s.status <> 'dropped';

-- Nothing is staged: what an epoch has written is committed at the target or not sent.
CREATE VIEW mz_internal.mz_sink_statistics AS
    SELECT 'u' || s.id AS id, NULL::text AS replica_id, coalesce(p.messages, 0) AS messages_staged, coalesce(p.messages, 0) AS messages_committed,
           coalesce(p.bytes, 0) AS bytes_staged, coalesce(p.bytes, 0) AS bytes_committed
      FROM millrace.sink s LEFT JOIN millrace.sink_progress p ON p.sink_id = s.id WHERE s.status <> 'dropped';

CREATE VIEW mz_internal.mz_kafka_sinks AS
    SELECT 'u' || s.id AS id, s.definition #>> '{target,topic}' AS topic
      FROM millrace.sink s WHERE s.status <> 'dropped' AND s.definition #>> '{target,type}' = 'kafka';

-- As Materialize's mz_catalog.mz_sinks, without clusters and statements.
CREATE VIEW mz_internal.mz_sinks AS
    SELECT 'u' || s.id AS id, s.namespace AS schema_id, s.name, s.definition #>> '{target,type}' AS type, 'u' || s.connection_id AS connection_id,
           s.definition #>> '{target,envelope}' AS envelope_type, s.definition #>> '{target,valueFormat,kind}' AS format,
           s.definition #>> '{target,keyFormat,kind}' AS key_format, s.definition #>> '{target,valueFormat,kind}' AS value_format, s.owner AS owner_id
      FROM millrace.sink s WHERE s.status <> 'dropped';

GRANT SELECT ON millrace.sinks, mz_internal.mz_sink_statuses, mz_internal.mz_sink_statistics, mz_internal.mz_kafka_sinks, mz_internal.mz_sinks TO PUBLIC;

-- For PARTITION BY: hashes that other producers partition by. Unsigned, so that a partition is hash % count.
CREATE FUNCTION millrace.crc32(value bytea) RETURNS bigint
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    crc bigint := 4294967295;
BEGIN
    FOR i IN 0..length(value) - 1 LOOP
        crc := crc # get_byte(value, i);
        FOR bit IN 1..8 LOOP
            crc := CASE WHEN crc & 1 = 1 THEN (crc >> 1) # 3988292384 ELSE crc >> 1 END;
        END LOOP;
    END LOOP;
    RETURN crc # 4294967295;
END $$;

-- As Kafka's default partitioner has it: Murmur2 with its seed, the high bit cleared.
CREATE FUNCTION millrace.kafka_murmur2(value bytea) RETURNS integer
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    m    CONSTANT bigint := 1540483477;
    mask CONSTANT bigint := 4294967295;
    size integer := length(value);
    rest integer := length(value) & 3;
    h    bigint := (2538058380 # length(value)) & 4294967295;
    k    bigint;
BEGIN
    -- Products of two numbers of 32 bits do not fit: the upper half of one is multiplied by itself.
    FOR i IN 0..size / 4 - 1 LOOP
        k := get_byte(value, 4 * i) | (get_byte(value, 4 * i + 1) << 8) | (get_byte(value, 4 * i + 2) << 16) | (get_byte(value, 4 * i + 3)::bigint << 24);
        k := ((k & 65535) * m + ((((k >> 16) * m) & 65535) << 16)) & mask;
        k := k # (k >> 24);
        k := ((k & 65535) * m + ((((k >> 16) * m) & 65535) << 16)) & mask;
        h := ((h & 65535) * m + ((((h >> 16) * m) & 65535) << 16)) & mask;
        h := h # k;
    END LOOP;
    IF rest > 0 THEN
        FOR i IN REVERSE rest - 1..0 LOOP
            h := h # (get_byte(value, size - rest + i)::bigint << (8 * i));
        END LOOP;
        h := ((h & 65535) * m + ((((h >> 16) * m) & 65535) << 16)) & mask;
    END IF;
    h := h # (h >> 13);
    h := ((h & 65535) * m + ((((h >> 16) * m) & 65535) << 16)) & mask;
    h := h # (h >> 15);
    RETURN (h & 2147483647)::integer;
END $$;

CREATE FUNCTION millrace.crc32(value text) RETURNS bigint
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$ BEGIN RETURN millrace.crc32(convert_to(value, 'UTF8')); END $$;
CREATE FUNCTION millrace.kafka_murmur2(value text) RETURNS integer
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$ BEGIN RETURN millrace.kafka_murmur2(convert_to(value, 'UTF8')); END $$;
