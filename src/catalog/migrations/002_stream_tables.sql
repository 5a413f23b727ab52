-- Stream tables: live views that may also read ordinary tables of this database, refreshed each on a schedule of its own.

ALTER TABLE millrace.relation DROP CONSTRAINT relation_kind_check;
ALTER TABLE millrace.relation ADD CONSTRAINT relation_kind_check CHECK (kind IN ('table', 'view', 'base'));
-- A base table is read as it stands: no gate, no facade.
ALTER TABLE millrace.relation ALTER COLUMN gate DROP NOT NULL;

-- An ordinary table of this database that a live relation reads. Nothing of it is copied: its changes come from this database's own WAL
-- into millrace_data.d<id> (w, m: a mask of changed columns, then c<attnum> of the columns that views use), its rows are read where they are.
-- What some view is not due to take is kept in millrace_data.w<id>, once for all views: as d<id>, with the epoch e it came in.
CREATE TABLE millrace.base_table (
    relation_id bigint PRIMARY KEY REFERENCES millrace.relation ON DELETE CASCADE,
    table_oid   oid   NOT NULL UNIQUE,
    -- [{"attnum", "name", "type", "collation"}]: all columns when last seen; names follow renames
    columns     jsonb NOT NULL,
    key_attnums integer[] NOT NULL,        -- of its primary key; empty: none, its rows are a multiset
    -- relreplident before Millrace asked for old row images (FULL); put back when no stream table needs it; NULL: not changed
    identity_before "char",
    identity_index  oid,                   -- the index that was the identity, when identity_before is i
    -- of a partitioned table: its partitions and their files when last looked at; another set means rows came or went beside the WAL
    parts       text,
    -- wal: its changes come from the stream; trigger: from triggers on it, where the server or the role cannot stream
    method      text NOT NULL DEFAULT 'wal' CHECK (method IN ('wal', 'trigger')),
    -- new: not captured (only views refreshed in FULL read it, or the engine has not come to it); failed: error says why it cannot be
    state       text NOT NULL DEFAULT 'new' CHECK (state IN ('new', 'captured', 'failed')),
    error       jsonb
);

-- One slot and one publication for all base tables of the database; no row while none is captured.
CREATE TABLE millrace.base_capture (
    only_row     boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    slot         text NOT NULL,
    publication  text NOT NULL,
    status       text NOT NULL DEFAULT 'starting' CHECK (status IN ('starting', 'running', 'stalled')),
    error        text,
    status_since timestamptz NOT NULL DEFAULT now()
);

-- How far it is, in a table of its own, because every epoch writes it: exactly the transactions that this snapshot sees have been taken in.
CREATE TABLE millrace.base_progress (
    only_row     boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    snapshot     text,                     -- pg_snapshot of the last epoch that took changes in; NULL: there was none
    lsn          pg_lsn,                   -- WAL position right after that snapshot was taken
    committed_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 10);

-- How far a view is in the logs of changes (millrace_data.w<base table>): it has still to take what came in epochs (e) after this one.
-- A view that has nothing to take there may be behind: it is recorded only where something was written or taken.
CREATE TABLE millrace.change_position (
    relation_id bigint PRIMARY KEY REFERENCES millrace.live_view ON DELETE CASCADE,
    e           bigint NOT NULL
) WITH (fillfactor = 50);

-- A live view that is a stream table: `millrace.live_view` has its plan, `millrace.live_view_input` what it reads.
CREATE TABLE millrace.stream_table (
    relation_id        bigint PRIMARY KEY REFERENCES millrace.live_view ON DELETE CASCADE,
    query              text NOT NULL,          -- as given
    schedule           text,                   -- as given: '10s', '*/5 * * * *', 'calculated', NULL (IMMEDIATE)
    requested_mode     text NOT NULL CHECK (requested_mode IN ('AUTO', 'DIFFERENTIAL', 'FULL', 'IMMEDIATE')),
    refresh_mode       text NOT NULL CHECK (refresh_mode IN ('DIFFERENTIAL', 'FULL', 'IMMEDIATE')),
    downgrade_reason   text,                   -- why refresh_mode is not what was requested
    -- PAUSED by a user, SUSPENDED by Millrace (a column it uses was dropped, too many errors)
    status             text NOT NULL DEFAULT 'INITIALIZING' CHECK (status IN ('INITIALIZING', 'ACTIVE', 'PAUSED', 'SUSPENDED', 'ERROR')),
    status_reason      text,
    options            jsonb NOT NULL DEFAULT '{}',
    is_populated       boolean NOT NULL DEFAULT false,
    consecutive_errors integer NOT NULL DEFAULT 0,
    -- refresh asked for by a statement: the engine refreshes when requested > done
    refresh_requested  bigint NOT NULL DEFAULT 0,
    refresh_done       bigint NOT NULL DEFAULT 0,
    reinitialize       boolean NOT NULL DEFAULT false,
    -- Changes of its inputs are not all known (a TRUNCATE, a lost slot, more than may be set aside): the next refresh is a rebuild by difference
    delta_lost         text,                   -- why; NULL: they are
    next_refresh_at    timestamptz,
    last_refresh_at    timestamptz,
    data_timestamp     timestamptz,            -- commit time up to which base changes are in
    rows_in_last_refresh bigint,
    -- It has taken the place of another one, and what that was known by; NULL: by its own id
    pgt_id             bigint,
    -- The relation whose place, and facade, it takes when it is filled; NULL: none, or it has
    replaces           bigint,
    -- Those with the same number here take their places in one step, when the last of them is filled; NULL: it alone
    replaces_with      bigint,
    created_at         timestamptz NOT NULL DEFAULT now()
);

-- A stream table in IMMEDIATE mode: what its triggers go by (005_immediate.sql, src/engine/immediate). Names of columns are not in it:
-- texts have a place for each table, marked with the nonce, and are written out by what the columns are called then.
CREATE TABLE millrace.immediate (
    relation_id    bigint PRIMARY KEY REFERENCES millrace.stream_table ON DELETE CASCADE,
    -- collect: it is being filled, changes are set aside; on: kept within the statements; off: triggers do nothing
    mode           text      NOT NULL CHECK (mode IN ('collect', 'on', 'off')),
    lost           text,                    -- why its rows are not those of its query: the engine computes them anew; NULL: they are
    nonce          text      NOT NULL,
    bases          bigint[]  NOT NULL,      -- its inputs ..
    oids           oid[]     NOT NULL,      -- .. and the tables they are
    column_bases   bigint[]  NOT NULL,      -- columns that it uses; attnum 0 stands for the table itself
    column_oids    oid[]     NOT NULL,
    column_attnums integer[] NOT NULL,
    column_types   text[]    NOT NULL,
    print          text,                    -- what all these were called when the functions were written
    functions      jsonb     NOT NULL,      -- {"name": body}
    catch_up       jsonb     NOT NULL,      -- {input or "all": [statements]}: from the tables of changes set aside
    rebuild        jsonb     NOT NULL       -- [statements]
);

-- A table whose owner has closed it for a while: stream tables that read it are refreshed when that is asked for, not by themselves.
CREATE TABLE millrace.source_gate (
    source     oid PRIMARY KEY,
    gated      boolean NOT NULL,
    gated_at   timestamptz NOT NULL DEFAULT now(),
    ungated_at timestamptz,
    gated_by   text NOT NULL DEFAULT current_user
);

CREATE SEQUENCE millrace.refresh_id;
CREATE TABLE millrace.refresh_history (
    refresh_id    bigint PRIMARY KEY DEFAULT nextval('millrace.refresh_id'),
    relation_id   bigint NOT NULL,             -- no foreign key: history outlives what it tells of, for a while
    started_at    timestamptz NOT NULL,
    ended_at      timestamptz,
    action        text NOT NULL CHECK (action IN ('INITIALIZE', 'DIFFERENTIAL', 'FULL', 'REINITIALIZE', 'NO_DATA', 'SKIP')),
    status        text NOT NULL CHECK (status IN ('RUNNING', 'COMPLETED', 'FAILED')),
    reason        text,                        -- why this action: schedule, manual, cost, ...
    rows_inserted bigint,
    rows_deleted  bigint,
    delta_rows    bigint,                      -- changes of its inputs that were taken in
    error         text,
    sqlstate      text
);
CREATE INDEX ON millrace.refresh_history (relation_id, refresh_id DESC);

-- Statement trigger of a base table that is captured without the WAL: its changes go to millrace_data.t<id> as text, within the writer's
-- transaction. It looks at the table's columns each time, so that no change of them makes a write fail. Argument: the base table's id.
CREATE FUNCTION millrace.base_changed() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET DateStyle = 'ISO, YMD' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET extra_float_digits = 3 SET bytea_output = 'hex' SET lc_monetary = 'C' AS $$
DECLARE
    changes text := 'millrace_data.t' || TG_ARGV[0];
    targets text;
    vals text;
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        EXECUTE format('INSERT INTO %s (w) VALUES (0)', changes);
    ELSE
        SELECT string_agg('c' || a.attnum, ', ' ORDER BY a.attnum), string_agg(format('x.%I::text', a.attname), ', ' ORDER BY a.attnum)
          INTO targets, vals
          FROM pg_attribute a
          JOIN pg_attribute k ON k.attrelid = changes::regclass AND k.attname = 'c' || a.attnum AND NOT k.attisdropped
         WHERE a.attrelid = TG_RELID AND a.attnum > 0 AND NOT a.attisdropped;
        IF TG_OP IN ('UPDATE', 'DELETE') THEN
            EXECUTE format('INSERT INTO %s (w, %s) SELECT -1, %s FROM old_rows x', changes, targets, vals);
        END IF;
        IF TG_OP IN ('INSERT', 'UPDATE') THEN
            EXECUTE format('INSERT INTO %s (w, %s) SELECT 1, %s FROM new_rows x', changes, targets, vals);
        END IF;
    END IF;
    -- No NOTIFY: with it the writer could not PREPARE TRANSACTION, and all writers would commit one after the other. The engine looks now and then.
    RETURN NULL;
END $$;

-- Whoever may put it on a table of his own could write changes of any.
REVOKE EXECUTE ON FUNCTION millrace.base_changed() FROM PUBLIC;

-- Moves what triggers have written and the transaction's snapshot sees to the delta table.
CREATE FUNCTION millrace.take_base_changes(base bigint, OUT taken bigint, OUT truncated boolean)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    targets text;
    vals text;
BEGIN
    EXECUTE format('SELECT coalesce(bool_or(w = 0), false) FROM millrace_data.t%s', base) INTO truncated;
    SELECT string_agg(d.attname, ', ' ORDER BY d.attnum), string_agg(format('x.%I::%s', d.attname, format_type(d.atttypid, d.atttypmod)), ', ' ORDER BY d.attnum)
      INTO targets, vals
      FROM pg_attribute d
      JOIN pg_attribute k ON k.attrelid = ('millrace_data.t' || base)::regclass AND k.attname = d.attname AND NOT k.attisdropped
     WHERE d.attrelid = ('millrace_data.d' || base)::regclass AND d.attnum > 0 AND d.attname ~ '^c' AND NOT d.attisdropped AND d.attgenerated = '';
    -- Which columns an update changed is not looked at: m is all of them by default.
    EXECUTE format('WITH taken AS (DELETE FROM millrace_data.t%s RETURNING *)
                    INSERT INTO millrace_data.d%s (w%s) SELECT x.w%s FROM taken x WHERE x.w <> 0', base, base, ', ' || targets, ', ' || vals);
    GET DIAGNOSTICS taken = ROW_COUNT;
END $$;
REVOKE EXECUTE ON FUNCTION millrace.take_base_changes(bigint) FROM PUBLIC;
