/**
 * The statements by which names change hands: cutover, revert, finalize, cancel. Pure.
 * Invariant: each list runs in one transaction that holds ACCESS EXCLUSIVE locks on both tables and on all views of the layout, so nobody ever sees
 * a part of it. What belongs to a table's place and not to the table (foreign keys, triggers, sequences, publications, names of indexes) goes along.
 */
import { quoteBody, quoteIdentifier, quoteLiteral } from '../sql/quote.ts';
import { belongingsSql, exchangeNames, letGo, renameParts, takeUp } from './belongings.ts';
import type { Migration, TableName } from './model.ts';
import { exchangePartitions } from './partitions.ts';
import {
  columnList,
  dataSchema,
  downView,
  foreignKeyName,
  homeName,
  publicationName,
  qualified,
  sourcePlace,
  type Truth,
  targetName,
  targetPlace,
  upView,
} from './places.ts';
import { keepRights } from './rights-sql.ts';
import { aheadPlace, aheadRights, lastingViewNames, layoutViews, settleSql } from './shape-views.ts';
import type { Step } from './steps.ts';

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
export function cutoverSql(migration: Migration): readonly Step[] {
  const { id, source, definition } = migration;
  const kept = sourcePlace(id, source, definition, 'target');
  const target = targetPlace(id, source, definition, 'target');
  const home = { schema: dataSchema, name: homeName(id) };
  const reshapes = definition.kind !== 'move';
  return [
    // Rights are those on what has the name, whatever it is at the moment.
    keepRights(definition.kind === 'move' ? definition.target : source, home),
    ...aheadRights(migration, 'target'),
    ...(reshapes ? [letGo(source), ...exchangeNames(id, source, home), ...exchangePartitions(id, source, source, home)] : []),
    dropViews(migration, 'source'),
    ...relocate(source, kept),
    ...(targetName(source, definition) === null ? [] : relocate(home, target)),
    ...(reshapes
      ? belongingsSql(id, { before: source, after: kept }, target)
      : [renameParts(home, `${home.name}_`, `${target.name}_`, target.schema, target.schema), ...addForeignKey(migration)]),
    `ALTER PUBLICATION ${quoteIdentifier(publicationName(id))} SET TABLE ${followed(migration).map(qualified).join(', ')}`,
    ...settleSql(migration, 'target'),
    ...(reshapes ? [takeUp(source, targetName(source, definition) === null ? aheadPlace(migration, 'target', source) : home)] : []),
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
export function revertSql(migration: Migration): readonly Step[] {
  const { id, source, definition } = migration;
  const kept = sourcePlace(id, source, definition, 'target');
  const target = targetPlace(id, source, definition, 'target');
  const home = { schema: dataSchema, name: homeName(id) };
  const reshapes = definition.kind !== 'move';
  return [
    keepRights(source, kept),
    ...aheadRights(migration, 'source'),
    ...(reshapes ? [letGo(source), ...exchangeNames(id, target, kept), ...exchangePartitions(id, source, target, kept)] : []),
    dropViews(migration, 'target'),
    ...(definition.kind === 'move'
      ? [
          `ALTER TABLE ${qualified(target)} DROP CONSTRAINT IF EXISTS ${quoteIdentifier(foreignKeyName(definition))}`,
          renameParts(target, `${target.name}_`, `${home.name}_`, target.schema, home.schema),
        ]
      : []),
    ...(targetName(source, definition) === null ? [] : relocate(target, home)),
    ...relocate(kept, source),
    ...(reshapes ? belongingsSql(id, { before: target, after: home }, source) : []),
    `ALTER PUBLICATION ${quoteIdentifier(publicationName(id))} SET TABLE ${qualified(source)}`,
    ...settleSql(migration, 'source'),
    ...(reshapes ? [takeUp(source, kept)] : []),
  ];
}

/** Nothing is left of the old shape. */
export function finalizeSql(migration: Migration): readonly Step[] {
  const { id, source, definition } = migration;
  const kept = sourcePlace(id, source, definition, 'target');
  const made = targetPlace(id, source, definition, 'target');
  const images = `DROP VIEW IF EXISTS ${upView(id)}, ${downView(id)}`;
  switch (definition.kind) {
    case 'move':
      return [
        keepRights(source, kept),
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
        keepRights(source, made),
        letGo(source),
        dropAllViews(migration, 'target'),
        images,
        `DROP TABLE ${qualified(kept)}`,
        ...relocate(made, source),
        takeUp(source, made),
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
function addForeignKey({ id, source, definition }: Migration): readonly string[] {
  if (definition.kind !== 'move') return [];
  const target = targetPlace(id, source, definition, 'target');
  const name = foreignKeyName(definition);
  return [
    `ALTER TABLE ${qualified(target)} ADD CONSTRAINT ${quoteIdentifier(name)} FOREIGN KEY (${columnList(
      definition.key.map(({ as }) => as),
    )}) REFERENCES ${qualified(sourcePlace(id, source, definition, 'target'))} (${columnList(definition.key.map(({ column }) => column))}) ON UPDATE CASCADE ON DELETE CASCADE NOT VALID`,
  ];
}

/** Assignments to the migration's progress, once it has cut over: which foreign keys are to be validated. */
export function awaitedSet({ id, source, definition }: Migration): readonly string[] {
  if (definition.kind !== 'move') return [];
  const target = quoteLiteral(qualified(targetPlace(id, source, definition, 'target')));
  const name = quoteLiteral(foreignKeyName(definition));
  return [`to_validate = ARRAY(SELECT oid FROM pg_constraint WHERE conrelid = ${target}::regclass AND conname = ${name})`];
}

/** Foreign keys that the cutover has added NOT VALID: to be validated one by one, without locks that anyone would notice. Those of the user stay so. */
export const unvalidatedSql = `SELECT format('ALTER TABLE %s VALIDATE CONSTRAINT %I', millrace.qualified_name(c.conrelid), c.conname)
  FROM millrace.migration_progress p JOIN pg_catalog.pg_constraint c ON c.oid = ANY (p.to_validate)
 WHERE p.migration_id = $1 AND NOT c.convalidated ORDER BY c.oid`;

/** Tables at the other ends of foreign keys, which are taken from one table and given to another at a cutover. */
export const otherEndsSql = `SELECT DISTINCT millrace.qualified_name(o.oid)
  FROM pg_catalog.pg_constraint c, LATERAL (VALUES (c.conrelid), (c.confrelid)) o(oid)
 WHERE c.contype = 'f' AND c.conparentid = 0 AND to_regclass($1) IN (c.conrelid, c.confrelid) AND o.oid <> to_regclass($1) ORDER BY 1`;

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
