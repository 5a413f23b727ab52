-- Live views that compare with the time: the time is a relation of one row, and that row changes in epochs like any other.

ALTER TABLE millrace.relation DROP CONSTRAINT relation_kind_check;
ALTER TABLE millrace.relation ADD CONSTRAINT relation_kind_check CHECK (kind IN ('table', 'view', 'base', 'clock'));
INSERT INTO millrace.relation (id, kind, state) VALUES (0, 'clock', 'ready');

-- t: the time for which all such views are right.
CREATE TABLE millrace_data.s0 (
    c1 smallint PRIMARY KEY CHECK (c1 = 1),
    c2 timestamptz NOT NULL
) WITH (fillfactor = 10);
INSERT INTO millrace_data.s0 VALUES (1, now());
-- A table of one row is none that is ever analyzed by itself.
ANALYZE millrace_data.s0;

-- mz_now() as Materialize has it, milliseconds of the Unix epoch, which it compares with numbers and with times: of the type of what it is compared with.
CREATE FUNCTION millrace.mz_now(compared numeric) RETURNS numeric
LANGUAGE sql STABLE AS $$ SELECT pg_catalog.floor(pg_catalog.date_part('epoch', pg_catalog.now())::pg_catalog.numeric * 1000) $$;
CREATE FUNCTION millrace.mz_now(compared timestamptz) RETURNS timestamptz
LANGUAGE sql STABLE AS $$ SELECT pg_catalog.date_trunc('milliseconds', pg_catalog.now()) $$;
CREATE FUNCTION millrace.mz_now(compared timestamp) RETURNS timestamp
LANGUAGE sql STABLE AS $$ SELECT pg_catalog.date_trunc('milliseconds', pg_catalog.timezone('UTC', pg_catalog.now())) $$;

-- The instant at which mz_now() reaches a value. Numbers beyond what a time can be (Materialize's own end of time is 2^64 - 1) are never reached.
CREATE FUNCTION millrace.mz_instant(value numeric) RETURNS timestamptz
LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN value > 9000000000000000 THEN 'infinity'::pg_catalog.timestamptz
                WHEN value < -60000000000000 THEN '-infinity'::pg_catalog.timestamptz
                ELSE pg_catalog.to_timestamp(0) OPERATOR(pg_catalog.+) (value::pg_catalog.float8 OPERATOR(pg_catalog.*) '1 millisecond'::pg_catalog.interval) END
$$;
CREATE FUNCTION millrace.mz_instant(value timestamptz) RETURNS timestamptz
LANGUAGE sql STABLE AS $$ SELECT value $$;
CREATE FUNCTION millrace.mz_instant(value timestamp) RETURNS timestamptz
LANGUAGE sql STABLE AS $$ SELECT pg_catalog.timezone('UTC', value) $$;
