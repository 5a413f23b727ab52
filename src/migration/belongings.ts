/**
 * What belongs to a table's place and not to the table, when another table takes that place: names of indexes, statistics and sequences, foreign keys,
 * triggers, publications. Pure.
 * Invariant: of each pair of objects the one of the table that is not the truth is called m<id>_.. and the OID of the other, so no two migrations are in
 * each other's way, and names come back to whom they belong.
 */
import { quoteBody, quoteLiteral } from '../sql/quote.ts';
import type { TableName } from './model.ts';
import { dataSchema, homeName, oidOf, qualified } from './places.ts';
import { sameRights } from './rights-sql.ts';
import type { Question } from './steps.ts';

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
export function exchangeNames(id: number, former: TableName, present: TableName): readonly Question[] {
  const home = homeName(id);
  const expressions = `(SELECT array_agg(pg_get_indexdef(i.indexrelid, k, false) ORDER BY k) FROM generate_series(1, i.indnatts) k)`;
  const indexes = (
    table: TableName,
    ours: boolean,
  ): string => `SELECT i.indexrelid AS oid, c.relname AS name, concat_ws('/', i.indisunique, ${expressions}, pg_get_expr(i.indpred, i.indrelid)) AS text
                  FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid WHERE i.indrelid = ${oidOf(table)} AND c.relname ${ours ? '~' : '!~'} '^${home}_i[0-9]+$'`;
  const numbered = (from: string, mate: string): string =>
    `(SELECT o.*, row_number() OVER (PARTITION BY o.text ORDER BY o.oid) AS k FROM ${from} o WHERE o.oid NOT IN (SELECT ${mate} FROM named))`;
  const aside = (kind: 'i' | 's' | 'q', oid: string): string => `format('${home}_${kind}%s', ${oid})`;
  const sequences = `SELECT q.old_sequence, c.relname AS name, q.new_sequence, s.seqmax, s.seqmin,
                    o.seqincrement > 0 AND o.seqmax = (2::numeric ^ (8 * t.typlen - 1) - 1) AND s.seqmax = o.seqmax AND s.seqtypid <> o.seqtypid AS widens
               FROM (SELECT pg_get_serial_sequence(${quoteLiteral(qualified(former))}, a.attname)::regclass AS old_sequence, pg_get_serial_sequence(${quoteLiteral(qualified(present))}, b.attname)::regclass AS new_sequence
                       FROM pg_attribute a JOIN pg_attribute b ON b.attrelid = ${oidOf(present)} AND b.attname = a.attname AND b.attidentity <> '' WHERE a.attrelid = ${oidOf(former)} AND a.attidentity <> '') q
               JOIN pg_class c ON c.oid = q.old_sequence JOIN pg_sequence s ON s.seqrelid = q.new_sequence
               JOIN pg_sequence o ON o.seqrelid = q.old_sequence JOIN pg_type t ON t.oid = o.seqtypid`;
  return [
    {
      // An index that was made again meanwhile has another OID, and is known by its text.
      ask: `WITH f AS MATERIALIZED (${indexes(former, false)}), t AS MATERIALIZED (${indexes(present, true)}),
                  named AS MATERIALIZED (SELECT f.oid AS old_index, f.name, t.oid AS new_index FROM f JOIN t ON t.name = ${aside('i', 'f.oid')}),
                  alike AS (SELECT f.oid, f.name, t.oid FROM ${numbered('f', 'old_index')} f JOIN ${numbered('t', 'new_index')} t USING (text, k))
             SELECT x.old_index::bigint AS n, concat_ws(';', format('ALTER INDEX %s RENAME TO %I', x.old_index::regclass, ${aside('i', 'x.new_index')}), format('ALTER INDEX %s RENAME TO %I', x.new_index::regclass, x.name)) AS sql
               FROM (SELECT * FROM named UNION ALL SELECT * FROM alike) x`,
    },
    {
      ask: `SELECT f.oid::bigint AS n, concat_ws(';', format('ALTER STATISTICS %I.%I RENAME TO %I', fn.nspname, f.stxname, ${aside('s', 't.oid')}), format('ALTER STATISTICS %I.%I SET SCHEMA ${dataSchema}', fn.nspname, ${aside('s', 't.oid')}),
                    format('ALTER STATISTICS %I.%I RENAME TO %I', tn.nspname, t.stxname, f.stxname), format('ALTER STATISTICS %I.%I SET SCHEMA %I', tn.nspname, f.stxname, fn.nspname)) AS sql
               FROM pg_statistic_ext f JOIN pg_namespace fn ON fn.oid = f.stxnamespace
               JOIN pg_statistic_ext t ON t.stxrelid = ${oidOf(present)} AND t.stxname = ${aside('s', 'f.oid')} JOIN pg_namespace tn ON tn.oid = t.stxnamespace
              WHERE f.stxrelid = ${oidOf(former)}`,
    },
    {
      ask: `SELECT x.new_sequence::oid::bigint * 2 + r.n AS n, r.sql FROM (${sequences}) x, LATERAL (${sameRights('SEQUENCE', 'x.old_sequence', 'x.new_sequence')}) r`,
    },
    {
      ask: `SELECT x.new_sequence::oid::bigint AS n, concat_ws(';', CASE WHEN x.widens THEN format('ALTER SEQUENCE %s NO MAXVALUE', x.new_sequence) END,
                    format('SELECT setval(%L, greatest(least(last_value, %s), %s), is_called) FROM %s', x.new_sequence, x.seqmax, x.seqmin, x.old_sequence),
                    format('ALTER SEQUENCE %s RENAME TO %I', x.old_sequence, ${aside('q', 'x.new_sequence::oid')}), format('ALTER SEQUENCE %s RENAME TO %I', x.new_sequence, x.name)) AS sql FROM (${sequences}) x`,
    },
  ];
}

/** Sequences that belong to a column of a relation because somebody said so. */
const ownedSql = (relation: TableName): string => `SELECT d.objid AS sequence, a.attname, a.atttypid
          FROM pg_depend d JOIN pg_class c ON c.oid = d.objid AND c.relkind = 'S' JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
         WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = ${oidOf(relation)} AND d.deptype = 'a'`;

/**
 * A sequence that belongs to a column goes where its table goes, and its name is to stay: it is made independent before the tables move, and belongs
 * to the same column of whatever has that name afterwards (`takeUp`), which may be a view.
 */
export const letGo = (place: TableName): Question => ({
  ask: `SELECT o.sequence::bigint AS n, format('ALTER SEQUENCE %s OWNED BY NONE', o.sequence::regclass) AS sql FROM (${ownedSql(place)}) o`,
});

/**
 * Said when the tables have moved; `next` is what has the name of `place` then. As long as its column's type was the sequence's own, the sequence goes
 * on to be of its column's type.
 */
export const takeUp = (place: TableName, next: TableName): Question => ({
  ask: `SELECT q.seqrelid::bigint AS n, concat_ws(';', format('ALTER SEQUENCE %s OWNED BY %s.%I', q.seqrelid::regclass, ${quoteLiteral(qualified(place))}, a.attname),
                    CASE WHEN q.seqtypid = o.atttypid AND a.atttypid <> q.seqtypid AND a.atttypid IN ('int2'::regtype, 'int4'::regtype, 'int8'::regtype) THEN
                         format('DO $fits$ BEGIN IF (SELECT abs(last_value) < %s FROM %s) THEN ALTER SEQUENCE %s AS %s; END IF; END $fits$',
                                CASE a.atttypid WHEN 'int2'::regtype THEN 32767 WHEN 'int4'::regtype THEN 2147483647 ELSE 9223372036854775807 END, q.seqrelid::regclass, q.seqrelid::regclass, a.atttypid::regtype) END) AS sql
          FROM (${ownedSql(place)}) o JOIN pg_sequence q ON q.seqrelid = o.sequence JOIN pg_attribute a ON a.attrelid = ${oidOf(next)} AND a.attname = o.attname AND NOT a.attisdropped`,
});

/** Which foreign keys are NOT VALID only because the cutover had no time to look at rows. `oids`: SQL. */
export const toValidateSql = (id: number, oids: string): string =>
  `UPDATE millrace.migration_progress SET to_validate = ${oids} WHERE migration_id = ${id}`;

/** Where a table stands before the tables move, and after. */
export interface Moving {
  readonly before: TableName;
  readonly after: TableName;
}

/** Foreign keys, unvalidated checks, triggers and publications go from the table that was the truth to the one that is; said when both have moved. */
export function belongingsSql(id: number, former: Moving, present: TableName): readonly Question[] {
  const from = oidOf(former.before);
  const formerName = quoteLiteral(qualified(former.after));
  const presentName = quoteLiteral(qualified(present));
  const columns = (numbers: string, table: string): string =>
    `(SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY k.i) FROM unnest(${numbers}) WITH ORDINALITY k(attnum, i) JOIN pg_attribute a ON a.attrelid = ${table} AND a.attnum = k.attnum)`;
  // A later VALIDATE looks at the rows that are there.
  const foreignKeys = `SELECT c.oid, c.conname, c.convalidated OR c.oid = ANY (coalesce((SELECT p.to_validate FROM millrace.migration_progress p WHERE p.migration_id = ${id}), '{}')) AS is_valid,
                    pg_get_constraintdef(c.oid) AS text, CASE WHEN c.conrelid = ${from} THEN ${formerName} ELSE r.name END AS old_holder, CASE WHEN c.conrelid = ${from} THEN ${presentName} ELSE r.name END AS holder,
                    c.confrelid = ${from} AS points_here, obj_description(c.oid, 'pg_constraint') AS comment,
                    r.relkind = 'p' AND current_setting('server_version_num')::integer < 180000 AS at_once, ${columns('c.conkey', 'c.conrelid')} AS columns, ${columns('c.confkey', 'c.confrelid')} AS referenced
               FROM pg_constraint c JOIN (SELECT t.oid, t.relkind, format('%I.%I', n.nspname, t.relname) AS name FROM pg_class t JOIN pg_namespace n ON n.oid = t.relnamespace) r ON r.oid = c.conrelid
              WHERE c.contype = 'f' AND c.conparentid = 0 AND (c.conrelid = ${from} OR c.confrelid = ${from})`;
  return [
    {
      ask: `SELECT x.oid::bigint AS n, concat_ws(';', format('ALTER TABLE %s DROP CONSTRAINT %I', x.old_holder, x.conname),
                    format('ALTER TABLE %s ADD CONSTRAINT %I %s%s', x.holder, x.conname,
                           CASE WHEN x.points_here
                                THEN format('FOREIGN KEY (%s) REFERENCES %s (%s)%s', x.columns, ${presentName}, x.referenced, substring(x.text FROM '^FOREIGN KEY \\(.*?\\) REFERENCES .*?\\)((?: .*)?)$'))
                                ELSE x.text END,
                           CASE WHEN x.at_once OR x.text ~ 'NOT (VALID|ENFORCED)$' THEN '' ELSE ' NOT VALID' END),
                    CASE WHEN x.comment IS NOT NULL THEN format('COMMENT ON CONSTRAINT %I ON %s IS %L', x.conname, x.holder, x.comment) END) AS sql
               FROM (${foreignKeys}) x`,
    },
    {
      ask: `SELECT 1::bigint AS n, format(${quoteLiteral(toValidateSql(id, 'ARRAY(SELECT c.oid FROM pg_constraint c WHERE (c.conrelid, c.conname) IN (%s))'))}, coalesce(nullif(string_agg(format('(%L::regclass, %L)', x.holder, x.conname), ', '), ''), '(NULL::oid, NULL::name)')) AS sql
               FROM (${foreignKeys}) x WHERE x.is_valid`,
    },
    {
      ask: `SELECT c.oid::bigint AS n, concat_ws(';', format('ALTER TABLE %s DROP CONSTRAINT %I', ${formerName}, c.conname), format('ALTER TABLE %s ADD CONSTRAINT %I %s', ${presentName}, c.conname, pg_get_constraintdef(c.oid)),
                    format('COMMENT ON CONSTRAINT %I ON %s IS %L', c.conname, ${presentName}, obj_description(c.oid, 'pg_constraint'))) AS sql
               FROM pg_constraint c WHERE c.contype = 'c' AND NOT c.convalidated AND c.conrelid = ${from}`,
    },
    {
      // Of the user.
      ask: `SELECT t.oid::bigint AS n, concat_ws(';', format('DROP TRIGGER %I ON %s', t.tgname, ${formerName}),
                    replace(pg_get_triggerdef(t.oid), format(' ON %s ', millrace.qualified_name(t.tgrelid)), format(' ON %s ', ${presentName})),
                    CASE WHEN t.tgenabled <> 'O' THEN format('ALTER TABLE %s %s TRIGGER %I', ${presentName},
                         CASE t.tgenabled WHEN 'D' THEN 'DISABLE' WHEN 'R' THEN 'ENABLE REPLICA' ELSE 'ENABLE ALWAYS' END, t.tgname) END,
                    CASE WHEN obj_description(t.oid, 'pg_trigger') IS NOT NULL THEN format('COMMENT ON TRIGGER %I ON %s IS %L', t.tgname, ${presentName}, obj_description(t.oid, 'pg_trigger')) END) AS sql
               FROM pg_trigger t WHERE t.tgrelid = ${from} AND NOT t.tgisinternal`,
    },
    {
      // Of the user: subscribers find a table of the same name.
      ask: `SELECT r.oid::bigint AS n, concat_ws(';', format('ALTER PUBLICATION %I DROP TABLE %s', p.pubname, ${formerName}),
                    format('ALTER PUBLICATION %I ADD TABLE %s%s%s', p.pubname, ${presentName},
                           (SELECT format(' (%s)', string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum)) FROM pg_attribute a WHERE a.attrelid = r.prrelid AND a.attnum = ANY (r.prattrs) HAVING count(*) > 0),
                           ' WHERE (' || pg_get_expr(r.prqual, r.prrelid) || ')')) AS sql
               FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid WHERE r.prrelid = ${from} AND p.pubname !~ '^millrace_migration_'`,
    },
  ];
}

/**
 * Names of indexes and statistics that begin with the one prefix begin with the other, where nobody has that name. `asked`: where the table is before the
 * tables move; `said`: the schema it is in when names change; `schema`: where statistics stand then.
 */
export function renameParts(asked: TableName, from: string, to: string, said: string, schema: string): Question {
  const name = (of: string): string => `left(${quoteLiteral(to)} || substr(${of}, ${[...from].length + 1}), 63)`;
  const inSchema = (column: string, of: string): string =>
    `${column} = (SELECT k.oid FROM pg_namespace k WHERE k.nspname = ${quoteLiteral(of)})`;
  return {
    ask: `SELECT c.oid::bigint AS n, format('ALTER INDEX %I.%I RENAME TO %I', ${quoteLiteral(said)}, c.relname, n.name) AS sql
               FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid, LATERAL (SELECT ${name('c.relname')} AS name) n
              WHERE i.indrelid = ${oidOf(asked)} AND starts_with(c.relname, ${quoteLiteral(from)})
                AND NOT EXISTS (SELECT FROM pg_class o WHERE ${inSchema('o.relnamespace', said)} AND o.relname = n.name)
             UNION ALL
             SELECT s.oid, concat_ws(';', format('ALTER STATISTICS %I.%I RENAME TO %I', o.nspname, s.stxname, n.name),
                    CASE WHEN o.nspname <> ${quoteLiteral(schema)} THEN format('ALTER STATISTICS %I.%I SET SCHEMA %I', o.nspname, n.name, ${quoteLiteral(schema)}) END)
               FROM pg_statistic_ext s JOIN pg_namespace o ON o.oid = s.stxnamespace, LATERAL (SELECT ${name('s.stxname')} AS name) n
              WHERE s.stxrelid = ${oidOf(asked)} AND starts_with(s.stxname, ${quoteLiteral(from)})
                AND NOT EXISTS (SELECT FROM pg_statistic_ext e WHERE ${inSchema('e.stxnamespace', schema)} AND e.stxname = n.name)`,
  };
}
