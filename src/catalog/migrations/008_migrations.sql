-- Migrations: live data moved to a new shape. Phases and requests: src/migration/model.ts.

CREATE TABLE millrace.migration (
    id             bigint  PRIMARY KEY DEFAULT nextval('millrace.object_id'),
    name           text    NOT NULL,
    owner          oid     NOT NULL,
    statement      text    NOT NULL,           -- as typed
    source         jsonb   NOT NULL,           -- SourceTable
    source_oid     oid     NOT NULL,
    target_oid     oid     NOT NULL,
    definition     jsonb   NOT NULL,           -- MigrationDefinition
    options        jsonb   NOT NULL,           -- MigrationOptions
    phase          text    NOT NULL DEFAULT 'creating'
                   CHECK (phase IN ('creating', 'copying', 'verifying', 'ready', 'cut_over', 'finished', 'cancelled')),
    phase_since    timestamptz NOT NULL DEFAULT now(),
    paused         boolean NOT NULL DEFAULT false,
    request        text    CHECK (request IN ('cutover', 'revert', 'finalize', 'cancel', 'verify')),
    created_at     timestamptz NOT NULL DEFAULT now(),
    cut_over_at    timestamptz,
    cut_over_lsn   pg_lsn,
    reverted_at    timestamptz,
    window_ends_at timestamptz,                -- finalized by itself then
    ended_at       timestamptz
);
CREATE UNIQUE INDEX migration_name ON millrace.migration (name) WHERE phase NOT IN ('finished', 'cancelled');

-- How far a migration is: written by the engine, in the transaction that does what it tells of.
CREATE TABLE millrace.migration_progress (
    migration_id   bigint PRIMARY KEY REFERENCES millrace.migration ON DELETE CASCADE,
    rows_copied    bigint NOT NULL DEFAULT 0,
    rows_total     bigint,
    copied_to      text[],                     -- the key up to which it is copied; null: from the beginning
    verified_to    text[],                     -- of the pass under way
    passes         integer NOT NULL DEFAULT 0, -- whole passes
    last_pass_at   timestamptz,
    differences    bigint,                     -- found, and repaired, in the last whole pass
    found          bigint NOT NULL DEFAULT 0,  -- in the pass under way
    repaired       bigint NOT NULL DEFAULT 0,  -- ever
    applied_keys   bigint NOT NULL DEFAULT 0,
    lag_ms         bigint,
    backlog_bytes  bigint,
    throttled_by   text,
    attempts       integer NOT NULL DEFAULT 0, -- of the present cutover or revert
    blocked_by     jsonb,                      -- [{"pid": .., "query": .., "age_ms": ..}]
    next_try_at    timestamptz,
    hold_ms        double precision,           -- for so long the last cutover held its locks
    error          jsonb                       -- MigrationProblem
) WITH (fillfactor = 10);

CREATE VIEW millrace.migrations AS
    SELECT m.id, m.name, pg_get_userbyid(m.owner) AS owner, m.definition ->> 'kind' AS kind,
           coalesce(millrace.qualified_name(m.source_oid), format('%I.%I', m.source ->> 'schema', m.source ->> 'name')) AS source,
           millrace.qualified_name(m.target_oid) AS target,
           CASE WHEN m.paused AND m.phase NOT IN ('finished', 'cancelled') THEN 'paused' ELSE m.phase END AS status,
           m.phase, m.request, p.rows_copied, p.rows_total, p.lag_ms, p.backlog_bytes, p.throttled_by,
           p.passes, p.last_pass_at, p.differences, p.repaired, p.attempts, p.blocked_by, p.next_try_at, p.hold_ms,
           p.error ->> 'message' AS error, p.error ->> 'detail' AS detail, p.error ->> 'hint' AS hint,
           m.created_at, m.phase_since, m.cut_over_at, m.cut_over_lsn, m.reverted_at, m.window_ends_at, m.ended_at,
           m.options ->> 'oldVersion' AS old_version, m.options ->> 'newVersion' AS new_version, m.statement
      FROM millrace.migration m LEFT JOIN millrace.migration_progress p ON p.migration_id = m.id;

GRANT SELECT ON millrace.migrations TO PUBLIC;

-- For who waits for a migration.
CREATE FUNCTION millrace.migration_state(migration bigint, OUT phase text, OUT request text, OUT paused boolean, OUT error jsonb, OUT rows_copied bigint,
                                         OUT rows_total bigint, OUT attempts integer, OUT blocked_by jsonb, OUT hold_ms double precision, OUT passes integer)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT m.phase, m.request, m.paused, p.error, p.rows_copied, p.rows_total, p.attempts, p.blocked_by, p.hold_ms, p.passes
      FROM millrace.migration m LEFT JOIN millrace.migration_progress p ON p.migration_id = m.id WHERE m.id = migration
$$;
