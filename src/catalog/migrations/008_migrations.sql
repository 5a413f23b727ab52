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
    to_validate    oid[],                      -- foreign keys that the last cutover added NOT VALID
    files          text,                       -- of the truth's partitions, when what was in them was known
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
           m.phase, m.request, p.rows_copied, p.rows_total, p.applied_keys AS keys_applied, p.lag_ms, p.backlog_bytes, p.throttled_by,
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

-- What a user may change of migrations directly: those of tables whose owner's rights the current role has.
CREATE VIEW millrace.own_migration WITH (security_barrier) AS
    SELECT m.id, m.name, m.phase, m.paused, m.request FROM millrace.migration m WHERE pg_has_role(m.owner, 'USAGE')
      WITH CHECK OPTION;
GRANT SELECT, UPDATE (paused, request) ON millrace.own_migration TO PUBLIC;

-- Trying again begins with a clean sheet.
CREATE FUNCTION millrace.migration_resumed() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    UPDATE millrace.migration_progress SET error = NULL, next_try_at = NULL
     WHERE migration_id = NEW.id AND (error IS NOT NULL OR next_try_at IS NOT NULL);
    RETURN NULL;
END $$;
CREATE TRIGGER resumed AFTER UPDATE OF paused ON millrace.migration FOR EACH ROW WHEN (NOT NEW.paused) EXECUTE FUNCTION millrace.migration_resumed();

-- The migration of a name: the one under way, else the last that was. Says why `wanted` (a request, pause or resume) cannot be asked of it now:
-- {"code", "message", "detail", "hint"}; null when it can. The one place where this is decided.
CREATE FUNCTION millrace.migration_named(name text, wanted text, OUT id bigint, OUT owner oid, OUT phase text, OUT paused boolean, OUT request text, OUT refusal jsonb)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    copied bigint;
    total bigint;
    shown text;
    allowed text[];
    possible text;
    trouble text;
BEGIN
    SELECT m.id, m.owner, m.phase, m.paused, m.request, p.rows_copied, p.rows_total, p.error ->> 'message'
      INTO id, owner, phase, paused, request, copied, total, trouble
      FROM millrace.migration m LEFT JOIN millrace.migration_progress p ON p.migration_id = m.id
     WHERE m.name = migration_named.name ORDER BY m.phase IN ('finished', 'cancelled'), m.id DESC LIMIT 1;
    IF id IS NULL THEN
        RETURN;
    END IF;
    allowed := CASE wanted
        WHEN 'pause'    THEN '{creating,copying,verifying,ready,cut_over}'
        WHEN 'resume'   THEN '{creating,copying,verifying,ready,cut_over}'
        WHEN 'verify'   THEN '{verifying,ready,cut_over}'
        WHEN 'cutover'  THEN '{ready}'
        WHEN 'revert'   THEN '{cut_over}'
        WHEN 'finalize' THEN '{cut_over}'
        WHEN 'cancel'   THEN '{creating,copying,verifying,ready}'
        ELSE '{creating,copying,verifying,ready,cut_over}' END;
    IF phase <> ALL (allowed) THEN
        shown := CASE phase
            WHEN 'creating'  THEN 'It is being set up.'
            WHEN 'copying'   THEN format('It is copying: %s%s rows.', coalesce(copied, 0), CASE WHEN total >= copied THEN format(' of about %s', total) ELSE '' END)
            WHEN 'verifying' THEN 'It is verifying: a whole pass without differences has to come first.'
            WHEN 'ready'     THEN 'It has not cut over: the table has its old shape.'
            WHEN 'cut_over'  THEN 'It has cut over: the table has its new shape, and the old one is kept current.'
            ELSE format('It is %s.', phase) END;
        IF trouble IS NOT NULL AND phase NOT IN ('finished', 'cancelled') THEN
            shown := format('%s The last problem: %s', shown, trouble);
        END IF;
        possible := CASE
            WHEN phase IN ('creating', 'copying', 'verifying') THEN format('Wait until it is ready: SHOW MIGRATIONS; or type ALTER MIGRATION %I CANCEL;', name)
            WHEN phase = 'ready' THEN format('Possible now: ALTER MIGRATION %I CUTOVER | VERIFY | PAUSE | CANCEL;', name)
            WHEN phase = 'cut_over' AND wanted = 'cancel' THEN format('ALTER MIGRATION %I REVERT; brings the old shape back, and then it can be cancelled.', name)
            WHEN phase = 'cut_over' THEN format('Possible now: ALTER MIGRATION %I REVERT | FINALIZE | VERIFY | PAUSE;', name)
            ELSE 'SHOW MIGRATIONS; lists those under way.' END;
        refusal := jsonb_build_object('code', '55000', 'message', format('cannot %s migration "%s" now', wanted, name), 'detail', shown, 'hint', possible);
    ELSIF request IS NOT NULL AND request <> wanted AND wanted NOT IN ('pause', 'resume', 'set') THEN
        refusal := jsonb_build_object('code', '55006', 'message', format('cannot %s migration "%s" now', wanted, name),
            'detail', format('It has still to carry out another request: %s.', upper(request)),
            'hint', 'SHOW MIGRATIONS; says how far it is, and what blocks it.');
    ELSIF paused AND wanted NOT IN ('pause', 'resume', 'cancel', 'set') THEN
        refusal := jsonb_build_object('code', '55000', 'message', format('cannot %s migration "%s" now', wanted, name), 'detail', 'It is paused.',
            'hint', format('ALTER MIGRATION %I RESUME;', name));
    END IF;
END $$;

-- Functions for tools that speak functions, and for connections that do not lead through Millrace. They ask; the engine does it after the commit.
CREATE FUNCTION millrace.ask_migration(name text, wanted text) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    m record;
BEGIN
    SELECT * INTO m FROM millrace.migration_named(name, wanted);
    IF m.id IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = '42704', MESSAGE = pg_catalog.format('migration "%s" does not exist', name),
            HINT = 'SELECT name, status FROM millrace.migrations; lists what there is.';
    ELSIF NOT EXISTS (SELECT FROM millrace.own_migration o WHERE o.id = m.id) THEN
        RAISE EXCEPTION USING ERRCODE = '42501', MESSAGE = pg_catalog.format('must be owner of migration %s', name),
            HINT = 'Act as the owner of its table (SET ROLE ...) or as a superuser.';
    ELSIF m.refusal IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = m.refusal ->> 'code', MESSAGE = m.refusal ->> 'message', DETAIL = m.refusal ->> 'detail', HINT = m.refusal ->> 'hint';
    END IF;
    IF wanted IN ('pause', 'resume') THEN
        UPDATE millrace.own_migration SET paused = (wanted = 'pause') WHERE id = m.id;
    ELSE
        UPDATE millrace.own_migration SET request = wanted WHERE id = m.id;
    END IF;
    PERFORM pg_catalog.pg_notify('millrace', '');
END $$;

CREATE FUNCTION millrace.pause_migration(name text) RETURNS void LANGUAGE sql AS $$ SELECT millrace.ask_migration(name, 'pause') $$;
CREATE FUNCTION millrace.resume_migration(name text) RETURNS void LANGUAGE sql AS $$ SELECT millrace.ask_migration(name, 'resume') $$;
CREATE FUNCTION millrace.verify_migration(name text) RETURNS void LANGUAGE sql AS $$ SELECT millrace.ask_migration(name, 'verify') $$;
CREATE FUNCTION millrace.cutover_migration(name text) RETURNS void LANGUAGE sql AS $$ SELECT millrace.ask_migration(name, 'cutover') $$;
CREATE FUNCTION millrace.revert_migration(name text) RETURNS void LANGUAGE sql AS $$ SELECT millrace.ask_migration(name, 'revert') $$;
CREATE FUNCTION millrace.finalize_migration(name text) RETURNS void LANGUAGE sql AS $$ SELECT millrace.ask_migration(name, 'finalize') $$;
CREATE FUNCTION millrace.cancel_migration(name text) RETURNS void LANGUAGE sql AS $$ SELECT millrace.ask_migration(name, 'cancel') $$;
