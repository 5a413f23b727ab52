-- Subscriptions: who reads the changes of a relation over SQL, and from where on they are kept for it.

-- What an outbox still has: every change after `since`.
CREATE TABLE millrace.outbox (
    relation_id bigint PRIMARY KEY,
    since       bigint NOT NULL,
    -- And also what each changed row was before, after this one; null: of a changed row only what it is now, as everybody takes upserts.
    whole_since bigint,
    -- Where epochs write: millrace_data.o<relation>a or b.
    segment     text NOT NULL DEFAULT 'a' CHECK (segment IN ('a', 'b')),
    turned_at   timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE millrace.subscription (
    id            bigint PRIMARY KEY DEFAULT nextval('millrace.object_id'),
    relation_id   bigint NOT NULL,         -- no foreign key: one of a relation that is gone says so until it is dropped; 0: of a query
    namespace     oid,                     -- both null: of one SUBSCRIBE, and gone soon after it
    name          text,
    owner         oid NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now(),
    -- The outbox of the relation has every change after this epoch; null: the engine has not seen to it yet.
    cut_ts        bigint,
    -- Changes up to this epoch are not wanted any more; null: all after cut_ts are.
    ts            bigint,
    -- The session that reads; null: none does.
    pid           integer,
    backend_start timestamptz,
    ended_at      timestamptz,             -- of one without a name: its changes are kept a while, for a reader that comes back
    overrun       boolean NOT NULL DEFAULT false,
    CHECK ((name IS NULL) = (namespace IS NULL))
);
CREATE UNIQUE INDEX subscription_name ON millrace.subscription (namespace, name);

-- Up to which epoch every reader of an outbox has taken it; where nobody reads it any more, up to the last one.
CREATE FUNCTION millrace.outbox_taken(relation bigint) RETURNS bigint
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce(min(x.ts), (SELECT e.ts FROM millrace.epoch e))
      FROM (SELECT CASE WHEN p.version = v.version THEN p.ts ELSE coalesce(v.cut_ts, s.hold_ts) END AS ts
              FROM millrace.sink_version v
              JOIN millrace.sink s ON s.id = v.sink_id AND s.status <> 'dropped'
              LEFT JOIN millrace.sink_progress p ON p.sink_id = s.id
             WHERE v.relation_id = relation AND (p.version IS NULL OR p.version <= v.version) AND (p.overrun AND p.version = v.version) IS NOT TRUE
            UNION ALL
            SELECT coalesce(s.ts, s.cut_ts) FROM millrace.subscription s WHERE s.relation_id = relation AND NOT s.overrun) x
$$;

-- Whether a segment has rows that somebody is still to take. As in all that reads outboxes: nothing is known of how many rows there are (they are never
-- analyzed), and most of what there is has been read before, so it is found by the index.
CREATE FUNCTION millrace.outbox_wanted(relation bigint, segment text) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
DECLARE
    taken bigint := millrace.outbox_taken(relation);
    found boolean;
BEGIN
    EXECUTE format('SELECT EXISTS (SELECT FROM millrace_data.%I o WHERE o.ts > $1)', 'o' || relation || segment) INTO found USING taken;
    RETURN found;
END $$;

-- Empties a segment, if nobody is to take anything from it and nobody uses it in this moment: whoever would wait for the lock made others wait
-- behind it. An epoch may have written to it that began before it was turned, so it is looked at under the lock.
CREATE FUNCTION millrace.empty_outbox(relation bigint, segment text) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    last bigint;
BEGIN
    EXECUTE format('LOCK TABLE millrace_data.%I IN ACCESS EXCLUSIVE MODE NOWAIT', 'o' || relation || segment);
    IF millrace.outbox_wanted(relation, segment) THEN
        RETURN false;
    END IF;
    EXECUTE format('SELECT max(o.ts) FROM millrace_data.%I o', 'o' || relation || segment) INTO last;
    UPDATE millrace.outbox b SET since = last WHERE b.relation_id = relation AND b.since < last;
    EXECUTE format('TRUNCATE millrace_data.%I', 'o' || relation || segment);
    RETURN true;
EXCEPTION WHEN lock_not_available THEN
    RETURN false;
END $$;
REVOKE EXECUTE ON FUNCTION millrace.outbox_taken(bigint), millrace.outbox_wanted(bigint, text), millrace.empty_outbox(bigint, text) FROM PUBLIC;

-- Waits until there is an epoch after `after_ts`, for `patience` milliseconds at most, and says how many changes came by then (counted up to
-- 501). `ts` null: the outbox is not there yet. `problem`: why there is nothing to wait for. `subscription` null: epochs only.
-- Each look is a snapshot of its own, which READ COMMITTED gives it.
CREATE FUNCTION millrace.subscription_wait(subscription bigint, after_ts bigint, patience integer,
                                           OUT ts bigint, OUT changes integer, OUT since bigint, OUT problem text, OUT detail text, OUT hint text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
DECLARE
    s record;
    is_known boolean := subscription IS NULL;
    deadline timestamptz := clock_timestamp() + patience * interval '1 millisecond';
BEGIN
    LOOP
        IF subscription IS NOT NULL THEN
            SELECT x.relation_id, x.cut_ts, x.overrun, r.id AS found, r.state, r.error, greatest(o.since, o.whole_since) AS since INTO s
              FROM millrace.subscription x LEFT JOIN millrace.relation r ON r.id = x.relation_id
              LEFT JOIN millrace.outbox o ON o.relation_id = x.relation_id
             WHERE x.id = subscription AND x.pid = pg_backend_pid() AND x.ended_at IS NULL;
            problem := CASE WHEN NOT FOUND THEN 'taken'
                            WHEN s.overrun THEN 'overrun'
                            WHEN s.found IS NULL OR s.state = 'dropped' THEN 'dropped'
                            WHEN s.state = 'error' THEN 'failed' END;
            detail := CASE WHEN problem = 'failed' THEN concat_ws(' ', s.error ->> 'message', s.error ->> 'detail') END;
            hint := CASE WHEN problem = 'failed' THEN s.error ->> 'hint' END;
            since := s.since;
            is_known := s.cut_ts IS NOT NULL;
            EXIT WHEN problem IS NOT NULL;
        END IF;
        IF is_known THEN
            SELECT e.ts INTO ts FROM millrace.epoch e;
        END IF;
        EXIT WHEN ts > after_ts OR clock_timestamp() >= deadline;
        PERFORM pg_sleep(0.015);
    END LOOP;
    changes := 0;
    IF subscription IS NOT NULL AND problem IS NULL AND ts > after_ts THEN
        EXECUTE format('SELECT count(*) FROM (SELECT FROM millrace_data.%I o WHERE o.ts > $1 AND o.ts <= $2 LIMIT 501) x', 'o' || s.relation_id)
           INTO changes USING after_ts, ts;
    END IF;
END $$;

-- Changes of a subscription's relation in (after_ts, up_to]; for the session that holds it only. To be called with the columns of the outbox.
-- STABLE: it sees what the statement around it sees.
CREATE FUNCTION millrace.subscription_changes(subscription bigint, after_ts bigint, up_to bigint) RETURNS SETOF record
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
DECLARE
    s record;
BEGIN
    SELECT x.relation_id, x.overrun, has_table_privilege(x.owner, r.facade, 'SELECT') AS may INTO s
      FROM millrace.subscription x JOIN millrace.relation r ON r.id = x.relation_id
     WHERE x.id = subscription AND x.pid = pg_backend_pid() AND x.ended_at IS NULL;
    IF NOT FOUND OR s.overrun OR s.may IS NOT TRUE THEN
        RAISE EXCEPTION USING ERRCODE = '55000', MESSAGE = 'the changes of this subscription are not there any more';
    END IF;
    RETURN QUERY EXECUTE format('SELECT * FROM millrace_data.%I o WHERE o.ts > $1 AND o.ts <= $2', 'o' || s.relation_id) USING after_ts, up_to;
END $$;

-- The timestamp of the last epoch that the calling statement sees.
CREATE FUNCTION millrace.epoch_ts() RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$ SELECT e.ts FROM millrace.epoch e $$;

-- The present, for AS OF and UP TO: no epoch so far is later. The same throughout a statement.
CREATE FUNCTION millrace.now() RETURNS numeric
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT greatest(e.ts, floor(extract(epoch FROM statement_timestamp()) * 1000)) FROM millrace.epoch e
$$;

CREATE VIEW millrace.subscriptions AS
    SELECT s.id, n.nspname AS schema, s.name, pg_get_userbyid(s.owner) AS owner, millrace.qualified_name(r.facade) AS relation, s.created_at,
           CASE WHEN s.relation_id = 0 THEN CASE WHEN s.ended_at IS NULL THEN 'read' ELSE 'ended' END
                WHEN r.id IS NULL OR r.facade IS NULL THEN 'relation dropped' WHEN s.overrun THEN 'overrun' WHEN s.ended_at IS NOT NULL THEN 'ended'
                WHEN s.cut_ts IS NULL THEN 'starting' WHEN s.pid IS NULL THEN 'waiting' ELSE 'read' END AS status,
           s.pid, coalesce(s.ts, s.cut_ts) AS ts, greatest(e.ts - coalesce(s.ts, s.cut_ts), 0) AS lag_ms
      FROM millrace.subscription s
      CROSS JOIN millrace.epoch e
      LEFT JOIN pg_namespace n ON n.oid = s.namespace
      LEFT JOIN millrace.relation r ON r.id = s.relation_id AND r.state <> 'dropped' AND EXISTS (SELECT FROM pg_class c WHERE c.oid = r.facade);

-- As Materialize's, where a session is the process id of its server process.
CREATE VIEW mz_internal.mz_subscriptions AS
    SELECT 'u' || s.id AS id, s.pid::text AS session_id, NULL::text AS cluster_id, s.created_at, CASE WHEN s.relation_id = 0 THEN '{}'::text[] ELSE ARRAY['u' || s.relation_id] END AS referenced_object_ids
      FROM millrace.subscription s WHERE s.pid IS NOT NULL;

GRANT SELECT ON millrace.subscriptions, mz_internal.mz_subscriptions TO PUBLIC;
