/**
 * The statements by which names change hands: cutover, revert, finalize, cancel. Pure.
 * Invariant: each list runs in one transaction that holds ACCESS EXCLUSIVE locks on both tables and on all views of the layout, so nobody ever sees
 * a part of it. What belongs to a table's place and not to the table (foreign keys, triggers, sequences, publications, names of indexes) goes along.
 */
import { quoteBody, quoteIdentifier, quoteLiteral } from '../sql/quote.ts';
import type { Migration, TableName } from './model.ts';
import { foreignKeyName } from './move-triggers.ts';
import {
  columnList,
  dataSchema,
  downView,
  homeName,
  publicationName,
  qualified,
  sourcePlace,
  type Truth,
  targetName,
  targetPlace,
  upView,
} from './places.ts';
import { lastingViewNames, layoutViews, settleSql } from './shape-views.ts';

/** What is locked before names change. Who reads a view has locked it before what it reads. */
export function toBeLocked(migration: Migration, truth: Truth): readonly TableName[] {
  const { id, source, definition } = migration;
  return [...layoutViews(migration, truth), sourcePlace(id, source, definition, truth), targetPlace(id, source, definition, truth)];
}

/** What is locked before all of it ends. */
export const lockedAtEnd = (migration: Migration, truth: Truth): readonly TableName[] => [
  ...lastingViewNames(migration),
  ...toBeLocked(migration, truth),
];

/** `tables`: quoted. */
export const lockSql = (tables: readonly string[]): string => `LOCK TABLE ${tables.join(', ')} IN ACCESS EXCLUSIVE MODE`;

/** The target becomes the truth. The views of the new layout were made ahead of time (aheadSql). */
export function cutoverSql(migration: Migration): readonly string[] {
  const { id, source, definition } = migration;
  const target = targetPlace(id, source, definition, 'target');
  return [
    dropViews(migration, 'source'),
    ...letGo(migration, source),
    ...relocate(source, sourcePlace(id, source, definition, 'target')),
    ...(targetName(source, definition) === null ? [] : relocate({ schema: dataSchema, name: homeName(id) }, target)),
    ...belongings(migration, sourcePlace(id, source, definition, 'target'), target),
    ...(definition.kind === 'move' ? [addForeignKey(migration)] : []),
    `ALTER PUBLICATION ${quoteIdentifier(publicationName(id))} SET TABLE ${followed(migration).map(qualified).join(', ')}`,
    ...settleSql(migration, 'target'),
  ];
}

/**
 * Whose changes tell what to look at after the cutover. What is left of the source by a move takes its old columns along when its key changes, and the
 * target says nothing of that where it has no row.
 */
function followed({ id, source, definition }: Migration): readonly TableName[] {
  const target = targetPlace(id, source, definition, 'target');
  return definition.kind === 'move' ? [target, sourcePlace(id, source, definition, 'target')] : [target];
}

/** The source is the truth again. As for the cutover. */
export function revertSql(migration: Migration): readonly string[] {
  const { id, source, definition } = migration;
  const target = targetPlace(id, source, definition, 'target');
  const home = { schema: dataSchema, name: homeName(id) };
  return [
    dropViews(migration, 'target'),
    ...(definition.kind === 'move'
      ? [`ALTER TABLE ${qualified(target)} DROP CONSTRAINT IF EXISTS ${quoteIdentifier(foreignKeyName(definition))}`]
      : []),
    ...letGo(migration, target),
    ...(targetName(source, definition) === null ? [] : relocate(target, home)),
    ...relocate(sourcePlace(id, source, definition, 'target'), source),
    ...belongings(migration, home, source),
    `ALTER PUBLICATION ${quoteIdentifier(publicationName(id))} SET TABLE ${qualified(source)}`,
    ...settleSql(migration, 'source'),
  ];
}

/** Nothing is left of the old shape. */
export function finalizeSql(migration: Migration): readonly string[] {
  const { id, source, definition } = migration;
  const kept = sourcePlace(id, source, definition, 'target');
  const made = targetPlace(id, source, definition, 'target');
  const images = `DROP VIEW IF EXISTS ${upView(id)}, ${downView(id)}`;
  switch (definition.kind) {
    case 'move':
      return [
        dropAllViews(migration, 'target'),
        images,
        ...relocate(kept, source),
        `ALTER TABLE ${qualified(source)} ${definition.columns.map((name) => `DROP COLUMN ${quoteIdentifier(name)}`).join(', ')}`,
        ...leftovers(migration),
      ];
    case 'alter':
      return [dropAllViews(migration, 'target'), images, `DROP TABLE ${qualified(kept)}`, ...leftovers(migration)];
    case 'split':
      return [
        dropAllViews(migration, 'target'),
        images,
        takeIndexNames(kept, made),
        `DROP TABLE ${qualified(kept)}`,
        ...relocate(made, source),
        ...leftovers(migration),
      ];
  }
}

/** As if it had never been. */
export function cancelSql(migration: Migration): readonly string[] {
  const { id } = migration;
  return [
    dropAllViews(migration, 'source'),
    `DROP VIEW IF EXISTS ${upView(id)}, ${downView(id)}`,
    `DROP TABLE IF EXISTS ${qualified({ schema: dataSchema, name: homeName(id) })}`,
    ...leftovers(migration),
  ];
}

const dropViews = (migration: Migration, truth: Truth): string =>
  `DROP VIEW IF EXISTS ${layoutViews(migration, truth).map(qualified).join(', ')}`;

/** At the end those go, too, that were right in both layouts. */
const dropAllViews = (migration: Migration, truth: Truth): string =>
  `DROP VIEW IF EXISTS ${[...layoutViews(migration, truth), ...lastingViewNames(migration)].map(qualified).join(', ')}`;

function relocate(from: TableName, to: TableName): readonly string[] {
  return [
    ...(from.schema === to.schema ? [] : [`ALTER TABLE ${qualified(from)} SET SCHEMA ${quoteIdentifier(to.schema)}`]),
    ...(from.name === to.name
      ? []
      : [`ALTER TABLE ${qualified({ schema: to.schema, name: from.name })} RENAME TO ${quoteIdentifier(to.name)}`]),
  ];
}

/** Functions, schemas of the versions and the publication. A schema in which the user has put something stays. */
function leftovers({ id, options }: Migration): readonly string[] {
  return [
    `DO ${quoteBody(`
DECLARE f record;
BEGIN
    FOR f IN SELECT p.oid::regprocedure AS name FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
              WHERE n.nspname = ${quoteLiteral(dataSchema)} AND p.proname ~ ${quoteLiteral(`^${homeName(id)}_`)}
    LOOP
        EXECUTE format('DROP FUNCTION %s', f.name);
    END LOOP;
    FOR f IN SELECT n.nspname AS name FROM pg_namespace n WHERE n.nspname IN (${quoteLiteral(options.newVersion)}, ${quoteLiteral(options.oldVersion)})
    LOOP
        BEGIN
            EXECUTE format('DROP SCHEMA %I', f.name);
        EXCEPTION WHEN dependent_objects_still_exist THEN
            NULL;
        END;
    END LOOP;
END `)}`,
    `DROP PUBLICATION IF EXISTS ${quoteIdentifier(publicationName(id))}`,
  ];
}

/** The moved columns' rows go with their row. Checked for what is there already by `validateSql`, when the locks are gone. */
function addForeignKey({ id, source, definition }: Migration): string {
  if (definition.kind !== 'move') return '';
  const target = targetPlace(id, source, definition, 'target');
  return `ALTER TABLE ${qualified(target)} ADD CONSTRAINT ${quoteIdentifier(foreignKeyName(definition))} FOREIGN KEY (${columnList(
    definition.key.map(({ as }) => as),
  )}) REFERENCES ${qualified(sourcePlace(id, source, definition, 'target'))} (${columnList(definition.key.map(({ column }) => column))}) ON UPDATE CASCADE ON DELETE CASCADE NOT VALID`;
}

/** Constraints that were added NOT VALID on or to a table: to be validated one by one, without locks that anyone would notice. */
export const unvalidatedSql = `SELECT format('ALTER TABLE %s VALIDATE CONSTRAINT %I', millrace.qualified_name(c.conrelid), c.conname)
  FROM pg_catalog.pg_constraint c
 WHERE c.contype = 'f' AND NOT c.convalidated AND (c.conrelid = $1 OR c.confrelid = $1)`;

/** What goes with the place and not with the table, from the table that was the truth (`from`, where it stands now) to the one that is. */
function belongings({ definition }: Migration, from: TableName, to: TableName): readonly string[] {
  if (definition.kind === 'move') return [];
  return [
    ...(definition.kind === 'alter' ? [takeIndexNames(from, to)] : []),
    `DO ${quoteBody(`
DECLARE
    former CONSTANT oid := ${quoteLiteral(qualified(from))}::regclass;
    present CONSTANT oid := ${quoteLiteral(qualified(to))}::regclass;
    former_name CONSTANT text := ${quoteLiteral(qualified(from))};
    present_name CONSTANT text := ${quoteLiteral(qualified(to))};
    x record;
BEGIN
    -- Foreign keys of the table, and to it. A later VALIDATE looks at the rows that are there.
    FOR x IN SELECT c.conname, pg_get_constraintdef(c.oid) AS text, c.conrelid = former AS own, format('%I.%I', n.nspname, r.relname) AS holder,
                    c.confrelid = former AS points_here,
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
                       CASE WHEN x.text LIKE '%NOT VALID' THEN '' ELSE ' NOT VALID' END);
    END LOOP;
    -- Triggers of the user.
    FOR x IN SELECT t.tgname, t.tgenabled, pg_get_triggerdef(t.oid) AS text FROM pg_trigger t WHERE t.tgrelid = former AND NOT t.tgisinternal
    LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', x.tgname, former_name);
        EXECUTE replace(x.text, format(' ON %s ', former_name), format(' ON %s ', present_name));
        IF x.tgenabled <> 'O' THEN
            EXECUTE format('ALTER TABLE %s %s TRIGGER %I', present_name,
                           CASE x.tgenabled WHEN 'D' THEN 'DISABLE' WHEN 'R' THEN 'ENABLE REPLICA' ELSE 'ENABLE ALWAYS' END, x.tgname);
        END IF;
    END LOOP;
    -- Sequences from which defaults come: letGo has made them independent. Those of identity columns stay with their table and say how far they are.
    FOR x IN SELECT DISTINCT s.oid::regclass AS sequence, a.attname, format_type(a.atttypid, NULL) AS type
               FROM pg_attrdef f JOIN pg_depend d ON d.classid = 'pg_attrdef'::regclass AND d.objid = f.oid AND d.refclassid = 'pg_class'::regclass
               JOIN pg_class s ON s.oid = d.refobjid AND s.relkind = 'S' JOIN pg_attribute a ON a.attrelid = f.adrelid AND a.attnum = f.adnum
              WHERE f.adrelid = present AND s.relnamespace = (SELECT c.relnamespace FROM pg_class c WHERE c.oid = present)
                AND NOT EXISTS (SELECT FROM pg_depend o WHERE o.classid = 'pg_class'::regclass AND o.objid = s.oid AND o.deptype IN ('a', 'i'))
    LOOP
        EXECUTE format('ALTER SEQUENCE %s OWNED BY %s.%I', x.sequence, present_name, x.attname);
        IF x.type = 'bigint' THEN
            EXECUTE format('ALTER SEQUENCE %s AS bigint', x.sequence);
        END IF;
    END LOOP;
    FOR x IN SELECT pg_get_serial_sequence(former_name, a.attname) AS from_sequence, pg_get_serial_sequence(present_name, b.attname) AS to_sequence
               FROM pg_attribute a JOIN pg_attribute b ON b.attrelid = present AND b.attname = a.attname AND b.attidentity <> ''
              WHERE a.attrelid = former AND a.attidentity <> ''
    LOOP
        EXECUTE format('SELECT setval(%L, last_value, is_called) FROM %s', x.to_sequence, x.from_sequence);
    END LOOP;
    -- Publications of the user: subscribers find a table of the same name.
    FOR x IN SELECT p.pubname, pg_get_expr(r.prqual, r.prrelid) AS condition,
                    (SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum) FROM pg_attribute a WHERE a.attrelid = r.prrelid AND a.attnum = ANY (r.prattrs)) AS columns
               FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid WHERE r.prrelid = former AND p.pubname !~ '^millrace_migration_'
    LOOP
        EXECUTE format('ALTER PUBLICATION %I DROP TABLE %s', x.pubname, former_name);
        EXECUTE format('ALTER PUBLICATION %I ADD TABLE %s%s%s', x.pubname, present_name, coalesce(format(' (%s)', x.columns), ''), coalesce(format(' WHERE (%s)', x.condition), ''));
    END LOOP;
END `)}`,
  ];
}

/** A sequence that belongs to a column goes where its table goes; names of sequences are to stay. */
function letGo({ definition }: Migration, table: TableName): readonly string[] {
  if (definition.kind === 'move') return [];
  return [
    `DO ${quoteBody(`
DECLARE s record;
BEGIN
    FOR s IN SELECT d.objid::regclass AS sequence FROM pg_depend d JOIN pg_class c ON c.oid = d.objid AND c.relkind = 'S'
              WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = ${quoteLiteral(qualified(table))}::regclass AND d.deptype = 'a'
    LOOP
        EXECUTE format('ALTER SEQUENCE %s OWNED BY NONE', s.sequence);
    END LOOP;
END `)}`,
  ];
}

/** Indexes of the one get the names of the other's. LIKE has made them in the order of their OIDs, and both stand in schemas of their own. */
function takeIndexNames(from: TableName, to: TableName): string {
  return `DO ${quoteBody(`
DECLARE x record;
BEGIN
    FOR x IN WITH f AS (SELECT row_number() OVER (ORDER BY i.indexrelid) AS n, c.relname, i.indnkeyatts FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid WHERE i.indrelid = ${quoteLiteral(qualified(from))}::regclass),
                  t AS (SELECT row_number() OVER (ORDER BY i.indexrelid) AS n, c.relname, i.indnkeyatts, i.indexrelid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid WHERE i.indrelid = ${quoteLiteral(qualified(to))}::regclass)
             SELECT t.indexrelid::regclass AS index, f.relname AS name FROM f JOIN t USING (n, indnkeyatts)
              WHERE f.relname <> t.relname AND (SELECT count(*) FROM f) = (SELECT count(*) FROM t)
    LOOP
        EXECUTE format('ALTER INDEX %s RENAME TO %I', x.index, x.name);
    END LOOP;
END `)}`;
}

/** Views of the user that read one of these relations, as texts with the names of now: `create` makes them read what has those names later. */
export const dependentsSql = `WITH ours AS (SELECT to_regclass(n)::oid AS oid FROM unnest($1::text[]) n WHERE to_regclass(n) IS NOT NULL),
       left_out AS (SELECT to_regclass(n)::oid AS oid FROM unnest($2::text[]) n WHERE to_regclass(n) IS NOT NULL),
       dependent AS (SELECT DISTINCT v.oid FROM ours o
                       JOIN pg_catalog.pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = o.oid AND d.classid = 'pg_rewrite'::regclass
                       JOIN pg_catalog.pg_rewrite r ON r.oid = d.objid JOIN pg_catalog.pg_class v ON v.oid = r.ev_class
                      WHERE v.relkind = 'v' AND v.oid NOT IN (SELECT oid FROM ours) AND v.oid NOT IN (SELECT oid FROM left_out))
SELECT format('CREATE OR REPLACE VIEW %s%s AS %s', n.name, coalesce(' WITH (' || array_to_string(v.reloptions, ', ') || ')', ''), pg_catalog.pg_get_viewdef(v.oid)) AS create,
       format('CREATE OR REPLACE VIEW %s AS SELECT %s', n.name,
              (SELECT string_agg(format('NULL::%s%s AS %I', format_type(a.atttypid, a.atttypmod),
                                        CASE WHEN a.attcollation <> 0 THEN (SELECT format(' COLLATE %I.%I', s.nspname, c.collname) FROM pg_collation c JOIN pg_namespace s ON s.oid = c.collnamespace WHERE c.oid = a.attcollation) ELSE '' END,
                                        a.attname), ', ' ORDER BY a.attnum) FROM pg_attribute a WHERE a.attrelid = v.oid AND a.attnum > 0 AND NOT a.attisdropped)) AS detach,
       n.name
  FROM dependent JOIN pg_catalog.pg_class v USING (oid), LATERAL (SELECT millrace.qualified_name(v.oid) AS name) n ORDER BY v.oid`;
