/**
 * What others have done to the definition of a table while it is being migrated. Indexes and checks come along; what cannot stops the cutover.
 * Invariant: the table that takes the place has what the one before it has now, as far as its columns allow; or the names do not change.
 */
import { PostgresError } from '../replication/postgres-error.ts';
import { quoteIdentifier, quoteLiteral } from '../sql/quote.ts';
import { columnsSql } from './facts.ts';
import type { Migration, MigrationProblem, MoveDefinition, SourceColumn } from './model.ts';
import { partitionsApartSql } from './partitions.ts';
import { homeName, presentCheck, qualified, sourcePlace, type Truth, targetPlace, truthPlace } from './places.ts';
import type { MigrationSessions } from './sessions.ts';
import { targetShape } from './shapes.ts';

/** Makes what the table that follows lacks, and takes away what the other has no more. Answers what cannot come along. */
export async function keepUp(sessions: MigrationSessions, migration: Migration, truth: Truth): Promise<MigrationProblem | null> {
  const changed = (await changedColumns(sessions, migration, truth)) ?? (await changedPartitions(sessions, migration, truth));
  if (changed !== null) return changed;
  const hindrance = await hindered(sessions, migration, truth);
  if (hindrance !== null) return hindrance;
  for (const { kind, name, sql } of await lacking(sessions, migration, truth)) {
    try {
      await sessions.work.query(sql);
    } catch (error) {
      if (!(error instanceof PostgresError)) throw error;
      return {
        message: `${kind} "${name}" cannot be made on the table that takes the place: ${error.message}`,
        detail: 'It was not there when the migration began.',
        hint: `Drop it; or ALTER MIGRATION ${quoteIdentifier(migration.name)} CANCEL;`,
      };
    }
  }
  return null;
}

interface Lacking {
  readonly kind: string;
  readonly name: string;
  /** Mends it. */
  readonly sql: string;
}

/** What the truth is made of, in a word that changes with it: quickly told, while locks are held. */
export async function definitionOf({ work }: MigrationSessions, migration: Migration, truth: Truth): Promise<string> {
  const { rows } = await work.execute('definition', definitionSql, [qualified(truthPlace(migration, truth))]);
  return rows[0]?.[0] ?? '';
}

const definitionSql = `WITH t AS (SELECT to_regclass($1) AS oid)
SELECT md5(concat_ws('/',
         (SELECT string_agg(concat_ws(' ', a.attname, a.atttypid, a.atttypmod, a.attcollation, a.attnotnull, a.attidentity, a.attgenerated, d.oid), ';' ORDER BY a.attnum)
            FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum WHERE a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped),
         (SELECT string_agg(concat_ws(' ', i.indexrelid, i.indisvalid), ';' ORDER BY i.indexrelid) FROM pg_index i WHERE i.indrelid = t.oid AND i.indislive),
         (SELECT string_agg(concat_ws(' ', k.oid, k.convalidated), ';' ORDER BY k.oid) FROM pg_constraint k WHERE k.conrelid = t.oid AND k.contype = 'c'),
         (SELECT string_agg(concat_ws(' ', l.relid::oid, pg_relation_filenode(l.relid)), ';' ORDER BY l.relid::oid) FROM pg_partition_tree(t.oid) l))) FROM t`;

async function lacking({ work }: MigrationSessions, migration: Migration, truth: Truth): Promise<readonly Lacking[]> {
  const [result] = await work.query(lackingSql(migration, truth));
  return (result?.rows ?? []).map(([kind, name, sql]) => ({ kind: kind ?? '', name: name ?? '', sql: sql ?? '' }));
}

/**
 * Of a pair of indexes one has the other's OID in its name (belongings.ts), or both say the same. Only what is over columns that both tables have can
 * come along; of a move: what is over moved columns alone.
 */
function lackingSql(migration: Migration, truth: Truth): string {
  const { id, source, definition } = migration;
  const places = [sourcePlace(id, source, definition, truth), targetPlace(id, source, definition, truth)].map(qualified);
  const [former, follower] = (truth === 'source' ? places : [...places].reverse()).map(quoteLiteral);
  const moved = definition.kind === 'move' ? `ARRAY[${definition.columns.map(quoteLiteral).join(', ')}]::name[]` : null;
  const shared =
    moved ?? `ARRAY(SELECT a.attname FROM pg_attribute a WHERE a.attrelid = ${follower}::regclass AND a.attnum > 0 AND NOT a.attisdropped)`;
  const named = `'${homeName(id)}_i' || x.oid`;
  const columns = (table: string, condition: string): string =>
    `ARRAY(SELECT DISTINCT a.attname FROM pg_depend d JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
            WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = ${table} AND d.refobjsubid > 0 AND (${condition}))`;
  return `WITH part AS (
  SELECT i.indrelid = ${former}::regclass AS is_former, i.indexrelid AS oid, c.relname AS name, millrace.qualified_name(i.indexrelid) AS index, i.indisvalid AS valid,
         i.indisunique AS is_unique, k.oid AS con, k.contype, k.conname, pg_get_constraintdef(k.oid) AS text,
         substr(pg_get_indexdef(i.indexrelid), length(format('CREATE %sINDEX %I ON %s%s', CASE WHEN i.indisunique THEN 'UNIQUE ' END, c.relname,
                                                            CASE WHEN c.relkind = 'I' THEN 'ONLY ' END, millrace.qualified_name(i.indrelid))) + 1) AS tail,
         ${columns('i.indrelid', "d.classid = 'pg_class'::regclass AND d.objid = i.indexrelid OR d.classid = 'pg_constraint'::regclass AND d.objid = k.oid")} AS columns
    FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
    LEFT JOIN pg_constraint k ON k.conindid = i.indexrelid AND k.conrelid = i.indrelid AND k.contype IN ('p', 'u', 'x')
   WHERE i.indrelid IN (${former}::regclass, ${follower}::regclass) AND i.indislive),
mate AS (SELECT x.oid AS former, y.oid AS follower FROM part x JOIN part y ON x.is_former AND NOT y.is_former
            AND (y.name = ${named} OR x.is_unique = y.is_unique AND x.tail = y.tail)),
checks AS (
  SELECT k.conrelid = ${former}::regclass AS is_former, k.conname AS name, pg_get_constraintdef(k.oid) AS text, k.convalidated,
         ${columns('k.conrelid', "d.classid = 'pg_constraint'::regclass AND d.objid = k.oid")} AS columns
    FROM pg_constraint k WHERE k.contype = 'c' AND k.conrelid IN (${former}::regclass, ${follower}::regclass) ${definition.kind === 'move' ? `AND k.conname <> ${quoteLiteral(presentCheck(definition))}` : ''})
SELECT CASE WHEN x.con IS NULL THEN 'index' ELSE 'constraint' END, x.name,
       CASE WHEN x.con IS NULL THEN format('CREATE %sINDEX %s ON %s%s', CASE WHEN x.is_unique THEN 'UNIQUE ' END, ${moved === null ? named : "''"}, ${follower}, x.tail)
            ELSE format('ALTER TABLE %s ADD %s %s', ${follower}, ${moved === null ? `'CONSTRAINT ' || ${named}` : "''"}, x.text) END
  FROM part x WHERE x.is_former AND x.valid AND NOT EXISTS (SELECT FROM mate WHERE former = x.oid) AND x.columns <> '{}' AND x.columns <@ ${shared}
UNION ALL
SELECT 'index', y.name, CASE WHEN y.con IS NULL THEN format('DROP INDEX %s', y.index) ELSE format('ALTER TABLE %s DROP CONSTRAINT %I', ${follower}, y.conname) END
  FROM part y WHERE NOT y.is_former AND NOT EXISTS (SELECT FROM mate WHERE follower = y.oid) AND y.contype IS DISTINCT FROM 'p'
   AND ${moved === null ? `y.name ~ '^${homeName(id)}_i[0-9]+$'` : `y.columns <> '{}' AND y.columns <@ ${moved}`}
UNION ALL
SELECT 'constraint', x.name, format('ALTER TABLE %s ADD CONSTRAINT %I %s', ${follower}, x.name, x.text)
  FROM checks x WHERE x.is_former AND x.convalidated AND x.columns <@ ${shared}${moved === null ? '' : " AND x.columns <> '{}'"} AND NOT EXISTS (SELECT FROM checks y WHERE NOT y.is_former AND y.name = x.name)
UNION ALL
SELECT 'constraint', y.name, format('ALTER TABLE %s DROP CONSTRAINT %I', ${follower}, y.name)
  FROM checks y WHERE NOT y.is_former AND y.columns <@ ${shared} AND NOT EXISTS (SELECT FROM checks x WHERE x.is_former AND x.name = y.name)`;
}

/** Columns are told of when the migration begins: a statement of the user that changes them is not known to the views, nor to what is copied. */
async function changedColumns({ work }: MigrationSessions, migration: Migration, truth: Truth): Promise<MigrationProblem | null> {
  const { source, definition } = migration;
  const place = qualified(truthPlace(migration, truth));
  const { rows } = await work.execute('columns', `SELECT ${columnsSql} FROM pg_catalog.pg_class t WHERE t.oid = to_regclass($1)`, [place]);
  const now = JSON.parse(rows[0]?.[0] ?? '[]') as readonly SourceColumn[];
  const known: readonly (Pick<SourceColumn, 'name'> & Partial<SourceColumn>)[] =
    truth === 'source' ? source.columns : targetShape(source, definition).map(({ name }) => ({ name }));
  const facts = ({ type, notNull, identity, generated, defaultText }: SourceColumn): string =>
    JSON.stringify([type, notNull, identity, generated, defaultText]);
  const added = now.filter(({ name }) => !known.some((column) => column.name === name)).map(({ name }) => [name, 'was added']);
  const gone = known.filter(({ name }) => !now.some((column) => column.name === name)).map(({ name }) => [name, 'is gone']);
  const altered =
    truth === 'source'
      ? source.columns
          .filter((column) => now.some((one) => one.name === column.name && facts(one) !== facts(column)))
          .map(({ name }) => [name, 'was altered'])
      : [];
  const [first] = [...gone, ...added, ...altered];
  if (first === undefined) return null;
  const give = `ALTER MIGRATION ${quoteIdentifier(migration.name)}`;
  return {
    message: `column "${first[0]}" of ${place} ${first[1]} after the migration began`,
    detail: 'The other table and the views of both shapes do not have it so.',
    hint:
      truth === 'source'
        ? `Undo that; or ${give} CANCEL; and create the migration again.`
        : `Undo that; or ${give} FINALIZE; which does not need the other table.`,
  };
}

/** Attaching and detaching are not in the stream of changes. */
async function changedPartitions({ work }: MigrationSessions, migration: Migration, truth: Truth): Promise<MigrationProblem | null> {
  const { id, source, definition, name } = migration;
  if (definition.kind === 'move' || !source.partitioned) return null;
  const places = [sourcePlace(id, source, definition, truth), targetPlace(id, source, definition, truth)] as const;
  const [former, present] = truth === 'source' ? places : ([places[1], places[0]] as const);
  const [found] = await work.query(partitionsApartSql(former, present));
  const [row] = found?.rows ?? [];
  if (row === undefined) return null;
  return {
    message: `a partition of ${qualified(former)} was ${row[1]} after the migration began`,
    detail: row[1] === 'attached' ? `It is "${row[0]}".` : 'The other table still has its rows.',
    hint:
      truth === 'source'
        ? `Undo that; or ALTER MIGRATION ${quoteIdentifier(name)} CANCEL; and create the migration again.`
        : `Undo that; or ALTER MIGRATION ${quoteIdentifier(name)} FINALIZE; which does not need the other table.`,
  };
}

/** What would have kept the migration from beginning (findings.ts), had it been there. */
async function hindered({ work }: MigrationSessions, migration: Migration, truth: Truth): Promise<MigrationProblem | null> {
  const { definition, name } = migration;
  const place = qualified(truthPlace(migration, truth));
  const [result] = await work.query(
    definition.kind === 'move' && truth === 'source'
      ? `${guardsSql(place)} UNION ALL ${tornSql(place, definition)}`
      : definition.kind === 'move'
        ? guardsSql(place)
        : `${guardsSql(place)} UNION ALL ${tiedSql(place)}`,
  );
  const [row] = result?.rows ?? [];
  if (row === undefined) return null;
  return {
    message: `${row[0]} cannot go along with what of ${place} takes another place`,
    detail: 'It was not there when the migration began.',
    hint: `Drop it; or ALTER MIGRATION ${quoteIdentifier(name)} ${truth === 'source' ? 'CANCEL' : 'FINALIZE'};`,
  };
}

/** What watches over a table, and would not over another. */
const guardsSql = (
  place: string,
): string => `SELECT 'row-level security' FROM pg_class c WHERE c.oid = ${quoteLiteral(place)}::regclass AND c.relrowsecurity
UNION ALL SELECT format('rule %I', w.rulename) FROM pg_rewrite w WHERE w.ev_class = ${quoteLiteral(place)}::regclass AND w.rulename <> '_RETURN'`;

/** What Postgres ties to the table itself, and cannot be made again. */
const tiedSql = (
  place: string,
): string => `SELECT format('materialized view %s', c.oid::regclass) FROM pg_depend d JOIN pg_rewrite w ON w.oid = d.objid JOIN pg_class c ON c.oid = w.ev_class AND c.relkind = 'm'
  WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = ${quoteLiteral(place)}::regclass
UNION ALL SELECT format('function %s', d.objid::regprocedure) FROM pg_depend d
  WHERE d.classid = 'pg_proc'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = ${quoteLiteral(place)}::regclass`;

/** What uses moved columns beside columns that stay, or in a way that cannot be moved. */
function tornSql(place: string, { columns, key }: MoveDefinition): string {
  const names = (list: readonly string[]): string => `ARRAY[${list.map(quoteLiteral).join(', ')}]::name[]`;
  const used = `SELECT d.classid, d.objid, array_agg(DISTINCT a.attname) AS columns FROM pg_depend d JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
                 WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = ${quoteLiteral(place)}::regclass AND d.refobjsubid > 0 AND d.objid <> d.refobjid GROUP BY 1, 2`;
  const uses = `u.columns && ${names(columns)}`;
  const torn = `${uses} AND NOT u.columns <@ ${names([...columns, ...key.map(({ column }) => column)])}`;
  return `SELECT format('trigger %I', g.tgname) FROM (${used}) u JOIN pg_trigger g ON g.oid = u.objid AND u.classid = 'pg_trigger'::regclass AND NOT g.tgisinternal WHERE ${uses}
UNION ALL SELECT format('constraint %I', k.conname) FROM (${used}) u JOIN pg_constraint k ON k.oid = u.objid AND u.classid = 'pg_constraint'::regclass WHERE k.contype = 'f' AND ${uses} OR ${torn}
UNION ALL SELECT format('index %I', c.relname) FROM (${used}) u JOIN pg_class c ON c.oid = u.objid AND u.classid = 'pg_class'::regclass AND c.relkind IN ('i', 'I') WHERE ${torn}`;
}
