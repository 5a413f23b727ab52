-- Stream tables in IMMEDIATE mode over partitioned tables.
--
-- The triggers of a partitioned table fire for statements that name it, with the rows of all its partitions; for statements that name a partition
-- only that one's fire. So each table of the tree has them, with the same names and functions. Partitions that come and go fire none: an event
-- trigger sees to the triggers of those that came, and computes the view anew where rows may have come or gone with them, within the statement
-- that did it. The set of partitions is part of what is printed of a table, so that a statement that finds another one computes the view anew, too.

CREATE FUNCTION millrace.immediate_tree(parent oid) RETURNS TABLE (relation oid)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT parent
    UNION
    SELECT t.relid FROM pg_class c, pg_partition_tree(c.oid) t WHERE c.oid = parent AND c.relkind = 'p'
$$;

-- Why a partition cannot have triggers that tell of its rows; null: all can.
CREATE FUNCTION millrace.immediate_unfit(parent oid) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format('its partition %s is %s', millrace.qualified_name(c.oid), CASE WHEN c.relkind = 'f' THEN 'a foreign table' ELSE 'unlogged' END)
      FROM millrace.immediate_tree(parent) t JOIN pg_class c ON c.oid = t.relation
     WHERE c.oid <> parent AND (c.relkind = 'f' OR c.relkind = 'r' AND c.relpersistence <> 'p')
     ORDER BY c.oid LIMIT 1
$$;

-- Triggers of a view on one table.
CREATE FUNCTION millrace.immediate_triggers(view bigint, base bigint, relation oid) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    event text;
    called text := millrace.qualified_name(relation);
    prefix text := 'millrace_immediate_' || lpad(view::text, 19, '0');
BEGIN
    FOREACH event IN ARRAY ARRAY['INSERT', 'UPDATE', 'DELETE', 'TRUNCATE'] LOOP
        EXECUTE format('CREATE OR REPLACE TRIGGER %I BEFORE %s ON %s FOR EACH STATEMENT EXECUTE FUNCTION millrace.immediate_before(%L)',
                       prefix || '_before_' || lower(event), event, called, view);
        EXECUTE format('CREATE OR REPLACE TRIGGER %I AFTER %s ON %s %s FOR EACH STATEMENT EXECUTE FUNCTION millrace_data.%I()',
                       prefix || '_after_' || lower(event), event, called,
                       CASE event WHEN 'INSERT' THEN 'REFERENCING NEW TABLE AS new_rows' WHEN 'DELETE' THEN 'REFERENCING OLD TABLE AS old_rows'
                                  WHEN 'UPDATE' THEN 'REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows' ELSE '' END,
                       format('i%s_%s', view, base));
        EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER %I', called, prefix || '_before_' || lower(event));
        EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER %I', called, prefix || '_after_' || lower(event));
    END LOOP;
END $$;

-- Triggers of the view on tables that are in none of its trees any more.
CREATE FUNCTION millrace.immediate_strays(view bigint) RETURNS TABLE (tgname name, tgrelid oid)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT t.tgname, t.tgrelid
      FROM pg_trigger t
     WHERE t.tgname LIKE 'millrace\_immediate\_' || lpad(view::text, 19, '0') || '\_%'
       AND t.tgrelid NOT IN (SELECT x.relation FROM millrace.immediate i, unnest(i.oids) o, millrace.immediate_tree(o) x WHERE i.relation_id = view)
$$;

-- Triggers on all tables of the view's trees, and on no other.
CREATE FUNCTION millrace.immediate_trees(view bigint) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    one record;
    prefix text := 'millrace_immediate_' || lpad(view::text, 19, '0');
BEGIN
    FOR one IN SELECT s.tgname, s.tgrelid FROM millrace.immediate_strays(view) s LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', one.tgname, millrace.qualified_name(one.tgrelid));
    END LOOP;
    FOR one IN
        SELECT b.base, x.relation
          FROM millrace.immediate i, unnest(i.bases, i.oids) b(base, o), millrace.immediate_tree(b.o) x
          JOIN pg_class c ON c.oid = x.relation
         WHERE i.relation_id = view
           AND (SELECT count(*) FROM pg_trigger t WHERE t.tgrelid = x.relation AND t.tgname LIKE replace(prefix, '_', '\_') || '\_%') < 8
    LOOP
        PERFORM millrace.immediate_triggers(view, one.base, one.relation);
    END LOOP;
END $$;

-- Follows the partitions of tables that views read: to be called whenever they may have changed. `moved`: rows may have come or gone with them.
CREATE FUNCTION millrace.immediate_partitions(moved boolean) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    known record;
    problem text;
    noted record;
BEGIN
    -- What is done here are commands themselves.
    IF current_setting('millrace.following_partitions', true) = 'on' THEN
        RETURN;
    END IF;
    FOR known IN
        SELECT i.relation_id AS view, i.oids, i.mode, i.lost, t.status
          FROM millrace.immediate i JOIN millrace.stream_table t USING (relation_id)
         WHERE i.mode <> 'off' AND i.print IS NOT NULL AND EXISTS (SELECT FROM pg_class c WHERE c.oid = ANY (i.oids) AND c.relkind = 'p')
           AND (millrace.immediate_print(i.column_oids, i.column_attnums) IS DISTINCT FROM i.print OR EXISTS (SELECT FROM millrace.immediate_strays(i.relation_id)))
         ORDER BY i.relation_id
    LOOP
        PERFORM set_config('millrace.following_partitions', 'on', true);
        EXECUTE format('LOCK TABLE millrace_data.l%s IN SHARE ROW EXCLUSIVE MODE', known.view);
        IF current_setting('transaction_isolation') IN ('repeatable read', 'serializable') THEN
            PERFORM millrace.immediate_require_seen(known.view, true);
        END IF;
        SELECT millrace.immediate_unfit(o) INTO problem FROM unnest(known.oids) o WHERE millrace.immediate_unfit(o) IS NOT NULL LIMIT 1;
        IF problem IS NOT NULL THEN
            RAISE EXCEPTION USING
                ERRCODE = '0A000',
                MESSAGE = format('stream table %s cannot follow this change of a table it reads: %s', millrace.stream_table_shown(known.view), problem),
                HINT = format('SELECT pgtrickle.alter_stream_table(''%s'', refresh_mode => ''FULL''); lets it be done.', millrace.stream_table_shown(known.view));
        END IF;
        PERFORM millrace.immediate_trees(known.view);
        IF millrace.immediate_follow(known.view) IS NULL AND moved THEN
            IF known.mode = 'collect' OR known.lost IS NOT NULL OR known.status = 'PAUSED' THEN
                UPDATE millrace.immediate i SET lost = coalesce(i.lost, 'partitions came or went') WHERE i.relation_id = known.view;
                PERFORM set_config('millrace.following_partitions', 'off', true);
                CONTINUE;
            END IF;
            noted := millrace.immediate_noted(known.view);
            IF noted.begun > 0 THEN
                -- Within a statement that writes: when that is done.
                PERFORM millrace.immediate_note(known.view, noted.begun, noted.aside, true);
            ELSE
                BEGIN
                    PERFORM millrace.immediate_rebuild(known.view);
                EXCEPTION WHEN OTHERS THEN
                    IF SQLSTATE ~ '^(40|57|53|55P03)' THEN
                        RAISE;
                    END IF;
                    PERFORM millrace.immediate_failed(known.view, SQLSTATE, SQLERRM, NULL);
                END;
            END IF;
        END IF;
        PERFORM set_config('millrace.following_partitions', 'off', true);
    END LOOP;
END $$;

CREATE FUNCTION millrace.immediate_command() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    -- A partition that is made is empty.
    PERFORM millrace.immediate_partitions(tg_tag <> 'CREATE TABLE');
END $$;

REVOKE EXECUTE ON FUNCTION millrace.immediate_tree(oid), millrace.immediate_unfit(oid), millrace.immediate_triggers(bigint, bigint, oid),
    millrace.immediate_strays(bigint), millrace.immediate_trees(bigint), millrace.immediate_partitions(boolean), millrace.immediate_command() FROM PUBLIC;
