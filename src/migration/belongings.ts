/**
 * What belongs to a table's place and not to the table, when another table takes that place: names of indexes, statistics and sequences, foreign keys,
 * triggers, publications. Pure.
 * Invariant: of each pair of objects the one of the table that is not the truth is called m<id>_.. and the OID of the other, so no two migrations are in
 * each other's way, and names come back to whom they belong.
 */
import { quoteBody, quoteLiteral } from '../sql/quote.ts';
import type { TableName } from './model.ts';
import { dataSchema, homeName, qualified } from './places.ts';
import { sameRights } from './rights-sql.ts';

export const block = (declare: string, body: string): string =>
  `DO ${quoteBody(`\nDECLARE\n    x record;\n${declare}BEGIN\n${body}\nEND `)}`;

export const both = (
  former: TableName,
  present: TableName,
): string => `    former CONSTANT oid := ${quoteLiteral(qualified(former))}::regclass;
    present CONSTANT oid := ${quoteLiteral(qualified(present))}::regclass;
    former_name CONSTANT text := ${quoteLiteral(qualified(former))};
    present_name CONSTANT text := ${quoteLiteral(qualified(present))};
`;

/** A fresh copy by LIKE gets what LIKE leaves out. LIKE makes indexes and statistics in the order of their OIDs. */
export function likenessSql(id: number, source: TableName, copy: TableName): string {
  const numbered = (select: string): string => `(SELECT row_number() OVER (ORDER BY oid) AS n, o.* FROM (${select}) o)`;
  const indexes = (table: string): string =>
    numbered(
      `SELECT i.indexrelid AS oid, i.indnatts, i.indisclustered, i.indisreplident FROM pg_index i WHERE i.indrelid = ${table} AND i.indislive`,
    );
  const statistics = (table: string): string =>
    numbered(`SELECT s.oid, s.stxname, s.stxnamespace, s.stxstattarget FROM pg_statistic_ext s WHERE s.stxrelid = ${table}`);
  return block(
    both(source, copy),
    `    FOR x IN SELECT t.oid::regclass AS index, format('${homeName(id)}_i%s', f.oid) AS name, f.indisclustered, f.indisreplident FROM ${indexes('former')} f JOIN ${indexes('present')} t USING (n, indnatts)
    LOOP
        EXECUTE format('ALTER INDEX %s RENAME TO %I', x.index, x.name);
        IF x.indisclustered THEN
            EXECUTE format('ALTER TABLE %s CLUSTER ON %I', present_name, x.name);
        END IF;
        IF x.indisreplident THEN
            EXECUTE format('ALTER TABLE %s REPLICA IDENTITY USING INDEX %I', present_name, x.name);
        END IF;
    END LOOP;
    FOR x IN SELECT format('%I.%I', n.nspname, t.stxname) AS statistics, format('${homeName(id)}_s%s', f.oid) AS name, n.nspname, f.stxstattarget
               FROM ${statistics('former')} f JOIN ${statistics('present')} t USING (n) JOIN pg_namespace n ON n.oid = t.stxnamespace
    LOOP
        IF x.stxstattarget >= 0 THEN
            EXECUTE format('ALTER STATISTICS %s SET STATISTICS %s', x.statistics, x.stxstattarget);
        END IF;
        EXECUTE format('ALTER STATISTICS %s RENAME TO %I', x.statistics, x.name);
    END LOOP;
    FOR x IN SELECT c.relreplident, obj_description(c.oid, 'pg_class') AS comment, (SELECT s.spcname FROM pg_tablespace s WHERE s.oid = c.reltablespace) AS tablespace,
                    (SELECT string_agg(format('%s%I = %L', o.prefix, o.option_name, o.option_value), ', ')
                       FROM (SELECT '' AS prefix, p.* FROM pg_options_to_table(c.reloptions) p UNION ALL SELECT 'toast.', p.* FROM pg_class t, pg_options_to_table(t.reloptions) p WHERE t.oid = c.reltoastrelid) o) AS options
               FROM pg_class c WHERE c.oid = former
    LOOP
        IF x.options IS NOT NULL THEN
            EXECUTE format('ALTER TABLE %s SET (%s)', present_name, x.options);
        END IF;
        IF x.tablespace IS NOT NULL THEN
            EXECUTE format('ALTER TABLE %s SET TABLESPACE %I', present_name, x.tablespace);
        END IF;
        IF x.relreplident = 'f' THEN
            EXECUTE format('ALTER TABLE %s REPLICA IDENTITY FULL', present_name);
        END IF;
        EXECUTE format('COMMENT ON TABLE %s IS %L', present_name, x.comment);
    END LOOP;
    FOR x IN SELECT a.attname, a.attstattarget, (SELECT string_agg(format('%I = %L', o.option_name, o.option_value), ', ') FROM pg_options_to_table(a.attoptions) o) AS options
               FROM pg_attribute a WHERE a.attrelid = former AND a.attnum > 0 AND NOT a.attisdropped
    LOOP
        IF x.attstattarget >= 0 THEN
            EXECUTE format('ALTER TABLE %s ALTER COLUMN %I SET STATISTICS %s', present_name, x.attname, x.attstattarget);
        END IF;
        IF x.options IS NOT NULL THEN
            EXECUTE format('ALTER TABLE %s ALTER COLUMN %I SET (%s)', present_name, x.attname, x.options);
        END IF;
    END LOOP;
    -- What rows of the user do not hold to must not stop their copies. They come with the place (belongingsSql).
    FOR x IN SELECT c.conname FROM pg_constraint c WHERE c.conrelid = former AND c.contype = 'c' AND NOT c.convalidated
    LOOP
        EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', present_name, x.conname);
    END LOOP;`,
  );
}

/** Names of indexes, statistics and sequences of identity columns change hands; said before the tables move. */
export function exchangeNames(id: number, former: TableName, present: TableName): string {
  const home = homeName(id);
  const texts = (of: string): string =>
    `ARRAY(SELECT pg_get_indexdef(${of}.indexrelid, k, false) FROM generate_series(1, ${of}.indnatts) k)`;
  const same = `t.indisunique = f.indisunique AND ${texts('t')} = ${texts('f')} AND pg_get_expr(t.indpred, t.indrelid) IS NOT DISTINCT FROM pg_get_expr(f.indpred, f.indrelid)`;
  const exchangeIndexes = (
    mates: string,
  ): string => `    FOR x IN SELECT f.indexrelid::regclass AS old_index, c.relname AS name, t.indexrelid::regclass AS new_index, format('${home}_i%s', t.indexrelid) AS aside
               FROM pg_index f JOIN pg_class c ON c.oid = f.indexrelid, pg_index t JOIN pg_class d ON d.oid = t.indexrelid
              WHERE f.indrelid = former AND t.indrelid = present AND c.relname !~ '^${home}_i[0-9]+$' AND d.relname ~ '^${home}_i[0-9]+$' AND ${mates}
    LOOP
        EXECUTE format('ALTER INDEX %s RENAME TO %I', x.old_index, x.aside);
        EXECUTE format('ALTER INDEX %s RENAME TO %I', x.new_index, x.name);
    END LOOP;`;
  return block(
    both(former, present),
    `${exchangeIndexes(`d.relname = format('${home}_i%s', f.indexrelid)`)}
    -- An index that was made again meanwhile has another OID.
${exchangeIndexes(same)}
    FOR x IN SELECT format('%I.%I', fn.nspname, f.stxname) AS old_name, fn.nspname AS schema, f.stxname AS name, format('%I.%I', tn.nspname, t.stxname) AS new_name, tn.nspname AS its_schema, format('${home}_s%s', t.oid) AS aside
               FROM pg_statistic_ext f JOIN pg_namespace fn ON fn.oid = f.stxnamespace
               JOIN pg_statistic_ext t ON t.stxrelid = present AND t.stxname = format('${home}_s%s', f.oid) JOIN pg_namespace tn ON tn.oid = t.stxnamespace
              WHERE f.stxrelid = former
    LOOP
        EXECUTE format('ALTER STATISTICS %s RENAME TO %I', x.old_name, x.aside);
        EXECUTE format('ALTER STATISTICS %I.%I SET SCHEMA ${dataSchema}', x.schema, x.aside);
        EXECUTE format('ALTER STATISTICS %s RENAME TO %I', x.new_name, x.name);
        EXECUTE format('ALTER STATISTICS %I.%I SET SCHEMA %I', x.its_schema, x.name, x.schema);
    END LOOP;
    FOR x IN SELECT q.old_sequence, c.relname AS name, q.new_sequence, format('${home}_q%s', q.new_sequence::oid) AS aside, s.seqmax, s.seqmin,
                    o.seqincrement > 0 AND o.seqmax = (2::numeric ^ (8 * t.typlen - 1) - 1) AND s.seqmax = o.seqmax AND s.seqtypid <> o.seqtypid AS widens
               FROM (SELECT pg_get_serial_sequence(former_name, a.attname)::regclass AS old_sequence, pg_get_serial_sequence(present_name, b.attname)::regclass AS new_sequence
                       FROM pg_attribute a JOIN pg_attribute b ON b.attrelid = present AND b.attname = a.attname AND b.attidentity <> '' WHERE a.attrelid = former AND a.attidentity <> '') q
               JOIN pg_class c ON c.oid = q.old_sequence JOIN pg_sequence s ON s.seqrelid = q.new_sequence
               JOIN pg_sequence o ON o.seqrelid = q.old_sequence JOIN pg_type t ON t.oid = o.seqtypid
    LOOP
        IF x.widens THEN
            EXECUTE format('ALTER SEQUENCE %s NO MAXVALUE', x.new_sequence);
        END IF;
        EXECUTE format('SELECT setval(%L, greatest(least(last_value, %s), %s), is_called) FROM %s', x.new_sequence, x.seqmax, x.seqmin, x.old_sequence);
        EXECUTE format('ALTER SEQUENCE %s RENAME TO %I', x.old_sequence, x.aside);
        EXECUTE format('ALTER SEQUENCE %s RENAME TO %I', x.new_sequence, x.name);
        DECLARE g record;
        BEGIN
${sameRights('SEQUENCE', 'x.old_sequence', 'x.new_sequence', 'g')}
        END;
    END LOOP;`,
  );
}

/**
 * A sequence that belongs to a column goes where its table goes, and its name is to stay: it is made independent before the tables move, and belongs
 * to the same column of whatever has that name afterwards (`takeUp`), which may be a view.
 */
export function letGo(place: TableName): string {
  return block(
    '',
    `    PERFORM set_config('millrace.owned', coalesce((
        SELECT jsonb_agg(jsonb_build_object('sequence', d.objid, 'column', a.attname, 'type', a.atttypid))
          FROM pg_depend d JOIN pg_class c ON c.oid = d.objid AND c.relkind = 'S' JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
         WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = ${quoteLiteral(qualified(place))}::regclass AND d.deptype = 'a'), '[]')::text, true);
    FOR x IN SELECT (o ->> 'sequence')::oid::regclass AS sequence FROM jsonb_array_elements(current_setting('millrace.owned')::jsonb) o
    LOOP
        EXECUTE format('ALTER SEQUENCE %s OWNED BY NONE', x.sequence);
    END LOOP;`,
  );
}

/** As long as its column's type was the sequence's own, the sequence goes on to be of its column's type. */
export function takeUp(place: TableName): string {
  return block(
    '    fits boolean;\n',
    `    FOR x IN SELECT q.seqrelid::regclass AS sequence, a.attname, a.atttypid, a.atttypid::regtype AS type,
                    q.seqtypid = (o ->> 'type')::oid AND a.atttypid <> q.seqtypid AND a.atttypid IN ('int2'::regtype, 'int4'::regtype, 'int8'::regtype) AS changes,
                    CASE a.atttypid WHEN 'int2'::regtype THEN 32767 WHEN 'int4'::regtype THEN 2147483647 ELSE 9223372036854775807 END AS greatest_value
               FROM jsonb_array_elements(current_setting('millrace.owned')::jsonb) o JOIN pg_sequence q ON q.seqrelid = (o ->> 'sequence')::oid
               JOIN pg_attribute a ON a.attrelid = ${quoteLiteral(qualified(place))}::regclass AND a.attname = o ->> 'column' AND NOT a.attisdropped
    LOOP
        EXECUTE format('ALTER SEQUENCE %s OWNED BY %s.%I', x.sequence, ${quoteLiteral(qualified(place))}, x.attname);
        IF x.changes THEN
            EXECUTE format('SELECT abs(last_value) < %s FROM %s', x.greatest_value, x.sequence) INTO fits;
            IF fits THEN
                EXECUTE format('ALTER SEQUENCE %s AS %s', x.sequence, x.type);
            END IF;
        END IF;
    END LOOP;`,
  );
}

/** Which foreign keys are NOT VALID only because the cutover had no time to look at rows. `oids`: SQL. */
export const toValidateSql = (id: number, oids: string): string =>
  `UPDATE millrace.migration_progress SET to_validate = ${oids} WHERE migration_id = ${id}`;

/** Foreign keys, unvalidated checks, triggers and publications go from the table that was the truth, where it stands now, to the one that is. */
export function belongingsSql(id: number, former: TableName, present: TableName): string {
  return block(
    `${both(former, present)}    awaited oid[] := (SELECT coalesce(p.to_validate, '{}') FROM millrace.migration_progress p WHERE p.migration_id = ${id});
    unlooked oid[] := '{}';
`,
    `    -- Foreign keys of the table, and to it. A later VALIDATE looks at the rows that are there.
    FOR x IN SELECT c.conname, c.convalidated OR c.oid = ANY (awaited) AS is_valid, pg_get_constraintdef(c.oid) AS text, c.conrelid = former AS own, format('%I.%I', n.nspname, r.relname) AS holder,
                    c.confrelid = former AS points_here, obj_description(c.oid, 'pg_constraint') AS comment,
                    r.relkind = 'p' AND current_setting('server_version_num')::integer < 180000 AS at_once,
                    (SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY k.i) FROM unnest(c.conkey) WITH ORDINALITY k(attnum, i) JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = k.attnum) AS columns,
                    (SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY k.i) FROM unnest(c.confkey) WITH ORDINALITY k(attnum, i) JOIN pg_attribute a ON a.attrelid = c.confrelid AND a.attnum = k.attnum) AS referenced
               FROM pg_constraint c JOIN pg_class r ON r.oid = c.conrelid JOIN pg_namespace n ON n.oid = r.relnamespace
              WHERE c.contype = 'f' AND c.conparentid = 0 AND (c.conrelid = former OR c.confrelid = former)
    LOOP
        EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', x.holder, x.conname);
        EXECUTE format('ALTER TABLE %s ADD CONSTRAINT %I %s%s', CASE WHEN x.own THEN present_name ELSE x.holder END, x.conname,
                       CASE WHEN x.points_here
                            THEN format('FOREIGN KEY (%s) REFERENCES %s (%s)%s', x.columns, present_name, x.referenced, substring(x.text FROM '^FOREIGN KEY \\(.*?\\) REFERENCES .*?\\)((?: .*)?)$'))
                            ELSE x.text END,
                       CASE WHEN x.at_once OR x.text ~ 'NOT (VALID|ENFORCED)$' THEN '' ELSE ' NOT VALID' END);
        IF x.comment IS NOT NULL THEN
            EXECUTE format('COMMENT ON CONSTRAINT %I ON %s IS %L', x.conname, CASE WHEN x.own THEN present_name ELSE x.holder END, x.comment);
        END IF;
        IF x.is_valid THEN
            unlooked := unlooked || ARRAY(SELECT c.oid FROM pg_constraint c WHERE c.conname = x.conname AND c.conrelid = (CASE WHEN x.own THEN present_name ELSE x.holder END)::regclass);
        END IF;
    END LOOP;
    ${toValidateSql(id, 'unlooked')};
    FOR x IN SELECT c.conname, pg_get_constraintdef(c.oid) AS text, obj_description(c.oid, 'pg_constraint') AS comment
               FROM pg_constraint c WHERE c.contype = 'c' AND NOT c.convalidated AND c.conrelid = former
    LOOP
        EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', former_name, x.conname);
        EXECUTE format('ALTER TABLE %s ADD CONSTRAINT %I %s', present_name, x.conname, x.text);
        EXECUTE format('COMMENT ON CONSTRAINT %I ON %s IS %L', x.conname, present_name, x.comment);
    END LOOP;
    -- Triggers of the user.
    FOR x IN SELECT t.tgname, t.tgenabled, pg_get_triggerdef(t.oid) AS text, obj_description(t.oid, 'pg_trigger') AS comment FROM pg_trigger t WHERE t.tgrelid = former AND NOT t.tgisinternal
    LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', x.tgname, former_name);
        EXECUTE replace(x.text, format(' ON %s ', former_name), format(' ON %s ', present_name));
        IF x.tgenabled <> 'O' THEN
            EXECUTE format('ALTER TABLE %s %s TRIGGER %I', present_name,
                           CASE x.tgenabled WHEN 'D' THEN 'DISABLE' WHEN 'R' THEN 'ENABLE REPLICA' ELSE 'ENABLE ALWAYS' END, x.tgname);
        END IF;
        IF x.comment IS NOT NULL THEN
            EXECUTE format('COMMENT ON TRIGGER %I ON %s IS %L', x.tgname, present_name, x.comment);
        END IF;
    END LOOP;
    -- Publications of the user: subscribers find a table of the same name.
    FOR x IN SELECT p.pubname, pg_get_expr(r.prqual, r.prrelid) AS condition,
                    (SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum) FROM pg_attribute a WHERE a.attrelid = r.prrelid AND a.attnum = ANY (r.prattrs)) AS columns
               FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid WHERE r.prrelid = former AND p.pubname !~ '^millrace_migration_'
    LOOP
        EXECUTE format('ALTER PUBLICATION %I DROP TABLE %s', x.pubname, former_name);
        EXECUTE format('ALTER PUBLICATION %I ADD TABLE %s%s%s', x.pubname, present_name, coalesce(format(' (%s)', x.columns), ''), coalesce(format(' WHERE (%s)', x.condition), ''));
    END LOOP;`,
  );
}

/** Names of indexes and statistics that begin with the one prefix begin with the other, where nobody has that name. Statistics stand in `schema` then. */
export function renameParts(table: TableName, from: string, to: string, schema: string): string {
  const name = (of: string): string => `left(${quoteLiteral(to)} || substr(${of}, ${[...from].length + 1}), 63)`;
  return block(
    '',
    `    FOR x IN SELECT c.oid::regclass AS index, n.name
               FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid, LATERAL (SELECT ${name('c.relname')} AS name) n
              WHERE i.indrelid = ${quoteLiteral(qualified(table))}::regclass AND starts_with(c.relname, ${quoteLiteral(from)})
                AND NOT EXISTS (SELECT FROM pg_class o WHERE o.relnamespace = c.relnamespace AND o.relname = n.name)
    LOOP
        EXECUTE format('ALTER INDEX %s RENAME TO %I', x.index, x.name);
    END LOOP;
    FOR x IN SELECT format('%I.%I', o.nspname, s.stxname) AS statistics, o.nspname, n.name
               FROM pg_statistic_ext s JOIN pg_namespace o ON o.oid = s.stxnamespace, LATERAL (SELECT ${name('s.stxname')} AS name) n
              WHERE s.stxrelid = ${quoteLiteral(qualified(table))}::regclass AND starts_with(s.stxname, ${quoteLiteral(from)})
                AND NOT EXISTS (SELECT FROM pg_statistic_ext e JOIN pg_namespace k ON k.oid = e.stxnamespace WHERE k.nspname = ${quoteLiteral(schema)} AND e.stxname = n.name)
    LOOP
        EXECUTE format('ALTER STATISTICS %s RENAME TO %I', x.statistics, x.name);
        IF x.nspname <> ${quoteLiteral(schema)} THEN
            EXECUTE format('ALTER STATISTICS %I.%I SET SCHEMA %I', x.nspname, x.name, ${quoteLiteral(schema)});
        END IF;
    END LOOP;`,
  );
}
