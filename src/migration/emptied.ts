/**
 * TRUNCATE of one partition by its name: the stream has the changes of the table as a whole, and this is none.
 * Invariant: names change only when every row has been compared since the files of the truth's partitions were last other ones. New files come of other
 * statements as well (VACUUM FULL), and then rows are compared for nothing.
 */
import { quoteLiteral } from '../sql/quote.ts';
import { type Following, repairAll } from './follow.ts';
import type { Migration } from './model.ts';
import { qualified, type Truth, truthPlace } from './places.ts';

/** An SQL expression; null for a table whose TRUNCATE is in the stream. */
function filesOf(migration: Migration, truth: Truth): string {
  const { source, definition } = migration;
  if (!source.partitioned || (definition.kind === 'move' && truth === 'target')) return 'NULL';
  return `(SELECT string_agg(concat_ws(':', l.relid::oid, pg_relation_filenode(l.relid)), ' ' ORDER BY l.relid::oid) FROM pg_partition_tree(${quoteLiteral(qualified(truthPlace(migration, truth)))}) l WHERE l.isleaf)`;
}

/** Assignment that notes the files as they are; `truth`: of now on. */
export const filesSet = (migration: Migration, truth: Truth): string => `files = ${filesOf(migration, truth)}`;

/** The same as a statement. */
export const filesSql = (migration: Migration, truth: Truth): string =>
  `UPDATE millrace.migration_progress SET ${filesSet(migration, truth)} WHERE migration_id = ${migration.id}`;

/** Compares every row when the files are others than noted. */
export async function compareEmptied(f: Following): Promise<void> {
  const { migration, sessions, truth } = f;
  const files = filesOf(migration, truth);
  const [found] = await sessions.work.query(
    `SELECT ${files}, p.files IS DISTINCT FROM ${files} FROM millrace.migration_progress p WHERE p.migration_id = ${migration.id}`,
  );
  const [now, differ] = found?.rows[0] ?? [];
  if (differ !== 't') return;
  await repairAll(f);
  // As they were before: what has been emptied meanwhile is seen the next time.
  await sessions.work.query(
    `UPDATE millrace.migration_progress SET files = ${now === null || now === undefined ? 'NULL' : quoteLiteral(now)} WHERE migration_id = ${migration.id}`,
  );
}
