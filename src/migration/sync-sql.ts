/**
 * How one table follows the other. Pure.
 * Invariant: a row that follows is always computed from the row it follows as one snapshot shows it, never from what a message of the stream said. The
 * stream only tells which keys to look at. So a copy can never overwrite something newer, values that the WAL leaves out are never missed, and doing it
 * again does no harm: all that is needed is that the snapshot sees every transaction whose keys are looked at.
 */
import { borderSql, type KeyColumn, type KeyRange, type KeyValue, rangeCondition } from '../replication/key-ranges.ts';
import { quoteIdentifier } from '../sql/quote.ts';
import type { MigrationDefinition, MoveDefinition, SourceTable } from './model.ts';
import { columnList, downView, qualified, sourcePlace, type Truth, targetPlace, upView } from './places.ts';
import { keyParts, sourceShape, targetShape, written } from './shapes.ts';
import { differ } from './trigger-text.ts';

export interface SyncSql {
  /** Columns of a key. */
  readonly width: number;
  /** Name of column i of the key in the table that is followed. */
  readonly keyNames: readonly string[];
  /** Brings the rows of these keys up to date: $1, $2, .. are arrays of texts, one for each column of the key. In order, in one transaction. */
  readonly apply: readonly string[];
  /** The same where values that have to be unique have changed places. */
  readonly applyAnew: readonly string[];
  /** Rows of a range that are not there yet. */
  copy(range: KeyRange): string;
  /** The key so many rows after one: as many columns as the key, no row at the end. */
  border(after: KeyValue | null, rows: number): string;
  /** Keys of a range whose row is not as it should be, at most so many. */
  differences(range: KeyRange, limit: number): string;
}

/** How the table that is not the truth follows it. */
export function syncSql(id: number, source: SourceTable, definition: MigrationDefinition, truth: Truth): SyncSql {
  if (definition.kind === 'move' && truth === 'target') return movedBack(id, source, definition);
  const forward = truth === 'source';
  const parts = keyParts(source, definition);
  const keys = parts.map((part) =>
    forward ? { name: part.source, type: part.sourceType, to: part.target } : { name: part.target, type: part.targetType, to: part.source },
  );
  const shape = forward ? targetShape(source, definition) : sourceShape(source, definition);
  const followed = qualified(forward ? sourcePlace(id, source, definition, truth) : targetPlace(id, source, definition, truth));
  const follower = qualified(forward ? targetPlace(id, source, definition, truth) : sourcePlace(id, source, definition, truth));
  const image = forward ? upView(id) : downView(id);
  const columns = written(shape);
  const followerKey = keys.map(({ to }) => to);
  const asked = askedKeys(
    keys,
    keys.map(({ to }) => shape.find(({ name }) => name === to)?.expression ?? quoteIdentifier(to)),
  );
  const sameRow = keys.map((_, i) => `u.s${i + 1} = k.s${i + 1}`).join(' AND ');
  const ofKey = followerKey.map((name, i) => `t.${quoteIdentifier(name)} = k.t${i + 1}`).join(' AND ');
  const imageKey: readonly KeyColumn[] = keys.map(({ type }, i) => ({ name: `s${i + 1}`, type }));
  const followerColumns: readonly KeyColumn[] = keys.map(({ to }) => ({
    name: to,
    type: shape.find(({ name }) => name === to)?.type ?? 'text',
  }));
  const remove = (condition: string): string =>
    `WITH k AS MATERIALIZED (${asked}) DELETE FROM ${follower} t USING k LEFT JOIN ${image} u ON ${sameRow} WHERE ${ofKey}${condition}`;
  const add = `WITH k AS MATERIALIZED (${asked}) INSERT INTO ${follower} (${columnList(columns)}) OVERRIDING SYSTEM VALUE SELECT ${columnList(columns, 'u')} FROM k JOIN ${image} u ON ${sameRow} WHERE NOT EXISTS (SELECT FROM ${follower} t WHERE ${ofKey})`;
  const apply = [remove(` AND (u.s1 IS NULL OR ${differ(columns, 'u', 't')})`), add];
  return {
    width: keys.length,
    keyNames: keys.map(({ name }) => name),
    apply,
    applyAnew: apply,
    copy: (range) =>
      `INSERT INTO ${follower} (${columnList(columns)}) OVERRIDING SYSTEM VALUE SELECT ${columnList(columns, 'u')} FROM ${image} u${where(rangeCondition(imageKey, range))} ON CONFLICT (${columnList(followerKey)}) DO NOTHING`,
    border: (after, rows) => borderSql(followed, keys, after, rows),
    differences: (range, limit) =>
      `SELECT ${keys.map((_, i) => `coalesce(u.s${i + 1}::text, t.${quoteIdentifier(followerKey[i] ?? '')}::text)`).join(', ')}
  FROM (SELECT * FROM ${image}${where(rangeCondition(imageKey, range))}) u
  FULL JOIN (SELECT * FROM ${follower}${where(rangeCondition(followerColumns, range))}) t ON ${followerKey.map((name) => `u.${quoteIdentifier(name)} = t.${quoteIdentifier(name)}`).join(' AND ')}
 WHERE u.s1 IS NULL OR t.${quoteIdentifier(followerKey[0] ?? '')} IS NULL OR ${differ(columns, 'u', 't')} LIMIT ${limit}`,
  };
}

/** After the cutover of a move: the columns that are left over in the source follow the target. */
function movedBack(id: number, source: SourceTable, definition: MoveDefinition): SyncSql {
  const table = qualified(sourcePlace(id, source, definition, 'target'));
  const image = downView(id);
  const parts = keyParts(source, definition);
  const keys = parts.map(({ target, targetType }) => ({ name: target, type: targetType }));
  const asked = askedKeys(
    keys,
    parts.map(({ target }) => quoteIdentifier(target)),
  );
  const sameRow = parts.map((_, i) => `u.s${i + 1} = k.s${i + 1}`).join(' AND ');
  const ofKey = parts.map(({ source: name }, i) => `t.${quoteIdentifier(name)} = k.t${i + 1}`).join(' AND ');
  const differs = differ(definition.columns, 'u', 't');
  const update = (value: (column: string) => string, condition: string): string =>
    `WITH k AS MATERIALIZED (${asked}) UPDATE ${table} t SET ${definition.columns.map((name) => `${quoteIdentifier(name)} = ${value(name)}`).join(', ')} FROM k LEFT JOIN ${image} u ON ${sameRow} WHERE ${ofKey} AND ${condition}`;
  const set = update((name) => `u.${quoteIdentifier(name)}`, differs);
  const tableKey: readonly KeyColumn[] = parts.map(({ source: name, sourceType }) => ({ name, type: sourceType }));
  return {
    width: keys.length,
    keyNames: keys.map(({ name }) => name),
    apply: [set],
    applyAnew: [update(() => 'NULL', differs), set],
    copy: () => 'SELECT WHERE false',
    border: (after, rows) => borderSql(table, tableKey, after, rows),
    differences: (range, limit) =>
      `SELECT ${parts.map(({ source: name }) => `t.${quoteIdentifier(name)}::text`).join(', ')}
  FROM (SELECT * FROM ${table}${where(rangeCondition(tableKey, range))}) t
  LEFT JOIN ${image} u ON ${parts.map(({ source: name }, i) => `u.s${i + 1} = t.${quoteIdentifier(name)}`).join(' AND ')}
 WHERE ${differs} LIMIT ${limit}`,
  };
}

const where = (condition: string): string => (condition === '' ? '' : ` WHERE ${condition}`);

/** The keys asked for: s1, s2, .. as the table that is followed has them, t1, t2, .. as the other has them. `converted`: expressions over the former. */
function askedKeys(keys: readonly { readonly name: string; readonly type: string }[], converted: readonly string[]): string {
  const given = keys.map((_, i) => `a${i + 1}`).join(', ');
  const typed = keys.map(({ name, type }, i) => `a${i + 1}::${type} AS ${quoteIdentifier(name)}`).join(', ');
  const both = [
    ...keys.map(({ name }, i) => `${quoteIdentifier(name)} AS s${i + 1}`),
    ...converted.map((expression, i) => `${expression} AS t${i + 1}`),
  ].join(', ');
  return `SELECT DISTINCT ${both} FROM (SELECT ${typed} FROM unnest(${keys.map((_, i) => `$${i + 1}::text[]`).join(', ')}) AS g(${given})) x`;
}
