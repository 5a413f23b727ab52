-- Sinks: what leaves the database.
-- A position is the timestamp of an epoch: milliseconds, each epoch's later than the one before.

ALTER TABLE millrace.epoch ADD COLUMN ts bigint NOT NULL DEFAULT 0;

CREATE OR REPLACE FUNCTION millrace.begin_epoch(leader bigint, OUT number bigint)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    UPDATE millrace.epoch
       SET epoch = epoch + 1, committed_at = clock_timestamp(),
           ts = greatest(ts + 1, floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint)
     WHERE token = leader
    RETURNING epoch.epoch INTO number;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = '55P04', MESSAGE = 'another Millrace process has taken over as leader of this database';
    END IF;
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
    hold_ts       bigint,
    -- What it had still to deliver was thrown away, because its outbox had grown to the limit.
    overrun       boolean NOT NULL DEFAULT false
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
