-- Stream tables in IMMEDIATE mode: kept by statement triggers, within the statements that write to what they read.
--
-- BEFORE triggers take the view's lock (millrace_data.l<id>) for the rest of the transaction and count statements that have begun; AFTER
-- triggers bring the changes, and the one that brings the count to nothing maintains. With one table changed by one statement the changes
-- are its transition tables; else they are set aside in millrace_data.w<id>_<input> until then, and are never there when a transaction ends.
-- The count is a setting of the transaction, because savepoints take settings back together with what was written.
-- millrace_data.x<id> is a sequence that holds the last transaction that changed the view: sequences are seen by everyone at once, so that a
-- transaction whose snapshot is older knows of it (40001). A row would grow a chain of versions under every long snapshot.

-- Functions without a search_path of their own run within those that have one, or in sessions of the engine; nobody else may call them.

-- What columns and tables are called, by the caches of the server, which are never older than the locks held; types by the snapshot.
CREATE FUNCTION millrace.immediate_print(oids oid[], attnums integer[]) RETURNS text
LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN (SELECT string_agg(concat_ws(' ', coalesce(i.identity, 'gone'), a.atttypid, a.atttypmod, p.list), E'\n' ORDER BY u.place)
              FROM unnest(oids, attnums) WITH ORDINALITY u(o, n, place)
              CROSS JOIN LATERAL pg_identify_object('pg_class'::regclass, u.o, u.n) i
              LEFT JOIN pg_attribute a ON a.attrelid = u.o AND a.attnum = u.n AND u.n > 0 AND NOT a.attisdropped
              LEFT JOIN LATERAL (SELECT string_agg(t.relid::oid::text, ',' ORDER BY t.relid::oid) AS list
                                   FROM pg_partition_tree(CASE WHEN u.n = 0 THEN u.o END) t
                                  WHERE t.relid <> u.o) p ON u.n = 0);
END $$;

-- A text with the tables of the view written out: their rows (from), the columns of a transition table called x (list, image).
CREATE FUNCTION millrace.immediate_resolve(view bigint, template text) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    one record;
    resolved text := template;
BEGIN
    FOR one IN
        SELECT b.base, i.nonce, millrace.qualified_name(b.o) AS name,
               string_agg(format('%I AS c%s', a.attname, a.attnum), ', ' ORDER BY a.attnum) FILTER (WHERE a.attnum IS NOT NULL) AS storage,
               coalesce(string_agg(format(', x.%I AS c%s', a.attname, a.attnum), '' ORDER BY a.attnum) FILTER (WHERE a.attnum IS NOT NULL), '') AS list,
               coalesce(string_agg(format('x.%I', a.attname), ', ' ORDER BY a.attnum) FILTER (WHERE a.attnum IS NOT NULL), '') AS image
          FROM millrace.immediate i
          CROSS JOIN LATERAL unnest(i.bases, i.oids) b(base, o)
          LEFT JOIN LATERAL unnest(i.column_oids, i.column_attnums) c(o, n) ON c.o = b.o
          LEFT JOIN pg_attribute a ON a.attrelid = c.o AND a.attnum = c.n AND c.n > 0
         WHERE i.relation_id = view
         GROUP BY b.base, i.nonce, b.o
    LOOP
        resolved := replace(resolved, format('@%s:from:%s@', one.nonce, one.base), format('(SELECT %s FROM %s)', coalesce(one.storage, ''), one.name));
        resolved := replace(resolved, format('@%s:list:%s@', one.nonce, one.base), one.list);
        resolved := replace(resolved, format('@%s:image:%s@', one.nonce, one.base), one.image);
    END LOOP;
    RETURN resolved;
END $$;

-- Writes the trigger functions by what columns are called now. Answers null, or why the view cannot be kept (and notes that it is lost).
CREATE FUNCTION millrace.immediate_follow(view bigint) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    known millrace.immediate;
    now_called text;
    problem text;
    written record;
    following text := current_setting('millrace.following_partitions', true);
BEGIN
    SELECT i.* INTO STRICT known FROM millrace.immediate i WHERE i.relation_id = view;
    now_called := millrace.immediate_print(known.column_oids, known.column_attnums);
    IF now_called = known.print THEN
        RETURN NULL;
    END IF;
    SELECT CASE WHEN c.relname IS NULL THEN 'a table it reads was dropped'
                ELSE format('a column of %s that it uses was dropped or has another type', c.oid::regclass) END INTO problem
      FROM unnest(known.column_oids, known.column_attnums, known.column_types) u(o, n, type)
      LEFT JOIN pg_class c ON c.oid = u.o
      LEFT JOIN pg_attribute a ON a.attrelid = u.o AND a.attnum = u.n AND NOT a.attisdropped
     WHERE c.oid IS NULL OR u.n > 0 AND format_type(a.atttypid, a.atttypmod) IS DISTINCT FROM u.type
     LIMIT 1;
    IF problem IS NOT NULL THEN
        UPDATE millrace.immediate i SET lost = coalesce(i.lost, problem) WHERE i.relation_id = view;
        RETURN problem;
    END IF;
    -- These are commands, too, but no occasion to look at triggers: a statement that writes would wait for the readers of their tables.
    PERFORM set_config('millrace.following_partitions', 'on', true);
    FOR written IN SELECT f.key AS name, f.value AS body FROM jsonb_each_text(known.functions) f LOOP
        -- As in sessions of the engine: rows are compared, and hashed, by their text.
        EXECUTE format($f$CREATE OR REPLACE FUNCTION millrace_data.%I() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
            SET search_path = pg_catalog, pg_temp SET DateStyle = 'ISO, YMD' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET extra_float_digits = 3
            SET bytea_output = 'hex' SET lc_monetary = 'C' SET xmloption = 'content' SET jit = off SET random_page_cost = 1.1
            SET from_collapse_limit = 16 SET join_collapse_limit = 16 AS %L$f$,
            written.name, millrace.immediate_resolve(view, written.body));
        EXECUTE format('REVOKE EXECUTE ON FUNCTION millrace_data.%I() FROM PUBLIC', written.name);
    END LOOP;
    PERFORM set_config('millrace.following_partitions', coalesce(following, 'off'), true);
    UPDATE millrace.immediate i SET print = now_called WHERE i.relation_id = view;
    RETURN NULL;
END $$;

-- Computes the view anew, writing only what differs. To be called under the view's lock.
CREATE FUNCTION millrace.immediate_rebuild(view bigint) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    known millrace.immediate;
    statement text;
    base bigint;
BEGIN
    SELECT i.* INTO STRICT known FROM millrace.immediate i WHERE i.relation_id = view;
    FOR statement IN SELECT s.value FROM jsonb_array_elements_text(known.rebuild) s LOOP
        EXECUTE millrace.immediate_resolve(view, statement);
    END LOOP;
    FOREACH base IN ARRAY known.bases LOOP
        EXECUTE format('DELETE FROM millrace_data.w%s_%s', view, base);
    END LOOP;
    IF known.lost IS NOT NULL THEN
        UPDATE millrace.immediate i SET lost = NULL WHERE i.relation_id = view;
    END IF;
    PERFORM setval(format('millrace_data.x%s', view)::regclass, pg_current_xact_id()::text::bigint);
END $$;

-- Takes in the changes that were set aside. To be called under the view's lock.
CREATE FUNCTION millrace.immediate_catch_up(view bigint) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    known millrace.immediate;
    changed bigint[] := '{}';
    base bigint;
    there boolean;
    statement text;
    aside text;
BEGIN
    SELECT i.* INTO STRICT known FROM millrace.immediate i WHERE i.relation_id = view;
    FOREACH base IN ARRAY known.bases LOOP
        EXECUTE format('SELECT EXISTS (SELECT FROM millrace_data.w%s_%s)', view, base) INTO there;
        IF there THEN
            changed := changed || base;
        END IF;
    END LOOP;
    IF changed = '{}' THEN
        RETURN;
    END IF;
    BEGIN
        FOR statement IN
            SELECT s.value FROM jsonb_array_elements_text(known.catch_up -> CASE WHEN cardinality(changed) = 1 THEN changed[1]::text ELSE 'all' END) s
        LOOP
            EXECUTE millrace.immediate_resolve(view, statement);
        END LOOP;
    EXCEPTION WHEN OTHERS THEN
        IF SQLSTATE ~ '^(40|57|53|55P03)' THEN
            RAISE;
        END IF;
        -- Terms of several changes look at pairs of rows that never stood side by side: the query itself decides.
        PERFORM millrace.immediate_rebuild(view);
        RETURN;
    END;
    -- Dead rows would be read past for ever: now and then the table is emptied at once, but never by waiting.
    FOREACH base IN ARRAY changed LOOP
        aside := format('millrace_data.w%s_%s', view, base);
        IF pg_relation_size(aside::regclass) > 163840 THEN
            BEGIN
                EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE NOWAIT', aside);
                EXECUTE format('TRUNCATE %s', aside);
                CONTINUE;
            EXCEPTION WHEN lock_not_available THEN
                NULL;
            END;
        END IF;
        EXECUTE format('DELETE FROM %s', aside);
    END LOOP;
    PERFORM setval(format('millrace_data.x%s', view)::regclass, pg_current_xact_id()::text::bigint);
END $$;

-- What is under way in this transaction: statements begun, whether changes are set aside, whether all is to be computed anew.
CREATE FUNCTION millrace.immediate_noted(view bigint, OUT begun integer, OUT aside boolean, OUT anew boolean)
LANGUAGE plpgsql STABLE AS $$
DECLARE
    parts text[] := string_to_array(current_setting('millrace.immediate_' || view, true), ' ');
BEGIN
    -- One that was not made in this transaction is none.
    IF parts[1] = extract(epoch FROM transaction_timestamp())::text AND cardinality(parts) = 4 THEN
        begun := parts[2];
        aside := parts[3];
        anew := parts[4];
    ELSE
        begun := 0;
        aside := false;
        anew := false;
    END IF;
END $$;

CREATE FUNCTION millrace.immediate_note(view bigint, begun integer, aside boolean, anew boolean) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('millrace.immediate_' || view, concat_ws(' ', extract(epoch FROM transaction_timestamp()), begun, aside, anew), true);
END $$;

-- For transactions with one snapshot: raises unless it sees the last change of the view. `described`: whether it sees the view's description.
CREATE FUNCTION millrace.immediate_require_seen(view bigint, described boolean) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    last bigint := pg_sequence_last_value(format('millrace_data.x%s', view)::regclass);
BEGIN
    IF NOT described OR last <> coalesce(pg_current_xact_id_if_assigned()::text::bigint, 0)
                        AND NOT pg_visible_in_snapshot(last::text::xid8, pg_current_snapshot()) THEN
        RAISE EXCEPTION USING
            ERRCODE = '40001',
            MESSAGE = 'could not serialize access due to concurrent update',
            DETAIL = format('Stream table %s was changed by a transaction that this one does not see.', millrace.stream_table_shown(view));
    END IF;
END $$;

-- BEFORE trigger of each statement. Argument: the view.
CREATE FUNCTION millrace.immediate_before() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    view bigint := TG_ARGV[0];
    known record;
    other oid;
    called text;
    noted record;
BEGIN
    SELECT i.mode, i.oids INTO known FROM millrace.immediate i WHERE i.relation_id = view;
    IF known.mode = 'off' THEN
        RETURN NULL;
    END IF;
    EXECUTE format('LOCK TABLE millrace_data.l%s IN SHARE ROW EXCLUSIVE MODE', view);
    -- Names that are looked up from here on stay what they are.
    FOREACH other IN ARRAY coalesce(known.oids, '{}') LOOP
        CONTINUE WHEN other = TG_RELID;
        called := (pg_identify_object('pg_class'::regclass, other, 0)).identity;
        IF called IS NOT NULL THEN
            EXECUTE format('LOCK TABLE %s IN ACCESS SHARE MODE', called);
        END IF;
    END LOOP;
    IF current_setting('transaction_isolation') IN ('repeatable read', 'serializable') THEN
        PERFORM millrace.immediate_require_seen(view, known.mode IS NOT NULL);
    END IF;
    noted := millrace.immediate_noted(view);
    PERFORM millrace.immediate_note(view, noted.begun + 1, noted.aside, noted.anew);
    RETURN NULL;
END $$;

-- What an AFTER trigger on `relation` is to do. `changes`: rows in its transition tables, no more than 33 are counted; `print`: as its function was written for.
--   nothing; maintain: from the transition tables, of few rows; maintain many; set aside; set aside, catch up; catch up; rebuild
CREATE FUNCTION millrace.immediate_turn(view bigint, event text, changes integer, relation oid) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    known record;
    noted record;
    todo text := 'nothing';
BEGIN
    SELECT i.mode, i.lost, i.print, i.oids, i.column_oids, i.column_attnums, t.status INTO known
      FROM millrace.immediate i JOIN millrace.stream_table t USING (relation_id) WHERE i.relation_id = view;
    IF known.mode = 'off' THEN
        RETURN 'nothing';
    END IF;
    -- A partition that is being, or has just been, detached concurrently still has the triggers.
    IF relation <> ALL (known.oids) AND NOT EXISTS (SELECT FROM pg_catalog.pg_partition_ancestors(relation::regclass) a WHERE a.relid = ANY (known.oids)) THEN
        changes := 0;
        event := '';
    END IF;
    noted := millrace.immediate_noted(view);
    noted.begun := noted.begun - 1;
    IF known.lost IS NULL AND known.status = 'PAUSED' AND (changes > 0 OR event = 'TRUNCATE') THEN
        UPDATE millrace.immediate i SET lost = 'it was paused' WHERE i.relation_id = view;
        known.lost := 'it was paused';
    END IF;
    IF known.lost IS NOT NULL THEN
        PERFORM millrace.immediate_note(view, noted.begun, false, false);
        RETURN 'nothing';
    END IF;
    IF event = 'TRUNCATE' THEN
        noted.anew := true;
    END IF;
    IF changes > 0 AND millrace.immediate_print(known.column_oids, known.column_attnums) IS DISTINCT FROM known.print THEN
        IF current_setting('transaction_isolation') IN ('repeatable read', 'serializable') THEN
            RAISE EXCEPTION USING ERRCODE = '40001', MESSAGE = 'could not serialize access: a table was altered';
        END IF;
        IF millrace.immediate_follow(view) IS NOT NULL THEN
            PERFORM millrace.immediate_note(view, noted.begun, false, false);
            RETURN 'nothing';
        END IF;
        noted.anew := true;
    END IF;
    IF known.mode = 'collect' THEN
        IF noted.anew THEN
            UPDATE millrace.immediate i SET lost = event WHERE i.relation_id = view;
        ELSIF changes > 0 THEN
            todo := 'set aside';
        END IF;
        noted.anew := false;
    ELSIF noted.begun > 0 THEN
        IF changes > 0 AND NOT noted.anew THEN
            todo := 'set aside';
            noted.aside := true;
        END IF;
    ELSE
        todo := CASE WHEN noted.anew THEN 'rebuild'
                     WHEN noted.aside THEN CASE WHEN changes > 0 THEN 'set aside, catch up' ELSE 'catch up' END
                     WHEN changes = 0 THEN 'nothing'
                     WHEN changes <= 32 THEN 'maintain'
                     ELSE 'maintain many' END;
        noted.aside := false;
        noted.anew := false;
    END IF;
    PERFORM millrace.immediate_note(view, noted.begun, noted.aside, noted.anew);
    IF todo <> 'nothing' THEN
        PERFORM setval(format('millrace_data.x%s', view)::regclass, pg_current_xact_id()::text::bigint);
    END IF;
    RETURN todo;
END $$;

CREATE FUNCTION millrace.stream_table_shown(view bigint) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce(millrace.qualified_name(r.facade), 'dropped') FROM millrace.relation r WHERE r.id = view
$$;

-- The maintenance of a view failed within a statement: so does the statement.
CREATE FUNCTION millrace.immediate_failed(view bigint, code text, message text, detail text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION USING
        ERRCODE = code,
        MESSAGE = format('stream table %s cannot take this change: %s', millrace.stream_table_shown(view), message),
        DETAIL = coalesce(nullif(detail, ''), 'It is kept within the statements that write to its tables (IMMEDIATE), and its query fails on the rows there would be.'),
        HINT = format('SELECT pgtrickle.pause_stream_table(''%s''); lets writes go on without it.', millrace.stream_table_shown(view));
END $$;

-- Tables and triggers of the view that `millrace.immediate` describes. To be called with the tables locked against writers.
CREATE FUNCTION millrace.immediate_install(view bigint) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    known millrace.immediate;
    one record;
    problem text;
BEGIN
    PERFORM set_config('millrace.following_partitions', 'on', true);
    problem := millrace.immediate_follow(view);
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = '42703', MESSAGE = problem;
    END IF;
    SELECT i.* INTO STRICT known FROM millrace.immediate i WHERE i.relation_id = view;
    EXECUTE format('CREATE TABLE IF NOT EXISTS millrace_data.l%s ()', view);
    EXECUTE format('CREATE SEQUENCE IF NOT EXISTS millrace_data.x%s', view);
    PERFORM setval(format('millrace_data.x%s', view)::regclass, pg_current_xact_id()::text::bigint);
    FOR one IN SELECT b.base, b.o FROM unnest(known.bases, known.oids) b(base, o) LOOP
        EXECUTE format('DROP TABLE IF EXISTS millrace_data.w%s_%s', view, one.base);
        EXECUTE format('CREATE UNLOGGED TABLE millrace_data.w%s_%s WITH (autovacuum_enabled = off) AS SELECT 0::smallint AS w, x.* FROM %s x WITH NO DATA',
                       view, one.base, millrace.immediate_resolve(view, format('@%s:from:%s@', known.nonce, one.base)));
        PERFORM millrace.immediate_triggers(view, one.base, x.relation) FROM millrace.immediate_tree(one.o) x;
    END LOOP;
    IF EXISTS (SELECT FROM pg_class c WHERE c.oid = ANY (known.oids) AND c.relkind = 'p')
       AND NOT EXISTS (SELECT FROM pg_event_trigger e WHERE e.evtname = 'millrace_partitions') THEN
        CREATE EVENT TRIGGER millrace_partitions ON ddl_command_end EXECUTE FUNCTION millrace.immediate_command();
        ALTER EVENT TRIGGER millrace_partitions ENABLE ALWAYS;
    END IF;
    PERFORM set_config('millrace.following_partitions', 'off', true);
END $$;

-- Undoes it; also when only part of it is there.
CREATE FUNCTION millrace.immediate_remove(view bigint) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    statement text;
BEGIN
    DELETE FROM millrace.immediate i WHERE i.relation_id = view;
    FOR statement IN
        SELECT format('DROP TRIGGER %I ON %s', t.tgname, millrace.qualified_name(t.tgrelid))
          FROM pg_trigger t WHERE t.tgname LIKE 'millrace\_immediate\_' || lpad(view::text, 19, '0') || '\_%'
        UNION ALL
        SELECT format('DROP FUNCTION %s', p.oid::regprocedure)
          FROM pg_proc p WHERE p.pronamespace = 'millrace_data'::regnamespace AND p.proname ~ ('^i' || view || '_')
        UNION ALL
        SELECT format('DROP %s millrace_data.%I', CASE c.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, c.relname)
          FROM pg_class c
         WHERE c.relnamespace = 'millrace_data'::regnamespace AND (c.relname IN ('l' || view, 'x' || view) OR c.relkind = 'r' AND c.relname ~ ('^w' || view || '_'))
        UNION ALL
        SELECT 'DROP EVENT TRIGGER millrace_partitions'
         WHERE EXISTS (SELECT FROM pg_event_trigger e WHERE e.evtname = 'millrace_partitions')
           AND NOT EXISTS (SELECT FROM millrace.immediate i JOIN pg_class c ON c.oid = ANY (i.oids) AND c.relkind = 'p' WHERE i.relation_id <> view)
    LOOP
        EXECUTE statement;
    END LOOP;
END $$;

REVOKE EXECUTE ON FUNCTION millrace.immediate_print(oid[], integer[]), millrace.immediate_resolve(bigint, text), millrace.immediate_follow(bigint),
    millrace.immediate_rebuild(bigint), millrace.immediate_catch_up(bigint), millrace.immediate_require_seen(bigint, boolean), millrace.immediate_before(),
    millrace.immediate_turn(bigint, text, integer, oid), millrace.immediate_noted(bigint), millrace.immediate_note(bigint, integer, boolean, boolean),
    millrace.immediate_failed(bigint, text, text, text),
    millrace.immediate_install(bigint), millrace.immediate_remove(bigint) FROM PUBLIC;
