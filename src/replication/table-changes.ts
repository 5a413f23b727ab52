/**
 * What changed between two shapes of a table. Pure.
 * Invariant: a column is its attnum: the same attnum with another name is a rename, one that is missing was dropped, a new one was added;
 * so a column dropped and added again is two changes, and names that are swapped are two renames.
 */
import { quoteIdentifier, quoteLiteral, quoteQualified } from '../sql/quote.ts';
import type { OriginColumn, TableShape } from './origin-tables.ts';

/** Changes as subcommands of ALTER TABLE, in order: of the table, then of its columns by attnum; and what has become of their enums, as ALTER TYPE. */
export function tableChanges(before: TableShape, after: TableShape): string[] {
  const changes: string[] = [];
  if (before.schema !== after.schema) changes.push(`SET SCHEMA ${quoteIdentifier(after.schema)}`);
  if (before.name !== after.name) changes.push(`RENAME TO ${quoteIdentifier(after.name)}`);
  const [parts, partsNow] = [before.parts ?? [], after.parts ?? []].map((list) => new Set(list.map(({ oid }) => oid)));
  if (before.parts != null && after.parts != null) {
    for (const oid of partsNow ?? []) if (parts?.has(oid) === false) changes.push(`ATTACH PARTITION ${oid}`);
    for (const oid of parts ?? []) if (partsNow?.has(oid) === false) changes.push(`DETACH PARTITION ${oid}`);
  }
  const old = new Map(before.columns.map((column) => [column.attnum, column]));
  const now = new Map(after.columns.map((column) => [column.attnum, column]));
  for (const attnum of [...new Set([...old.keys(), ...now.keys()])].sort((a, b) => a - b)) {
    const was = old.get(attnum);
    const is = now.get(attnum);
    if (is === undefined) changes.push(`DROP COLUMN ${quoteIdentifier(was?.name ?? '')}`);
    else if (was === undefined) changes.push(`ADD COLUMN ${definition(is)}`);
    else changes.push(...columnChanges(was, is));
  }
  const names = (shape: TableShape, key: readonly number[]): string =>
    key.map((attnum) => quoteIdentifier(shape.columns.find((column) => column.attnum === attnum)?.name ?? String(attnum))).join(', ');
  if (String(before.primaryKey) !== String(after.primaryKey))
    changes.push(after.primaryKey.length === 0 ? 'DROP PRIMARY KEY' : `ADD PRIMARY KEY (${names(after, after.primaryKey)})`);
  if (
    before.replicaIdentity !== after.replicaIdentity ||
    (after.replicaIdentity === 'i' && String(before.identityKey) !== String(after.identityKey))
  )
    changes.push(`REPLICA IDENTITY ${identity(after, names)}`);
  return changes;
}

function definition(column: OriginColumn): string {
  const collation = column.collation === null ? '' : ` COLLATE ${column.collation}`;
  const generated =
    column.generated === '' ? '' : ` GENERATED ALWAYS AS (${column.default ?? ''}) ${column.generated === 's' ? 'STORED' : 'VIRTUAL'}`;
  const asIdentity = column.identity === '' ? '' : ` GENERATED ${column.identity === 'a' ? 'ALWAYS' : 'BY DEFAULT'} AS IDENTITY`;
  const byDefault = column.generated === '' && column.default !== null ? ` DEFAULT ${column.default}` : '';
  return `${quoteIdentifier(column.name)} ${column.formattedType}${collation}${column.notNull ? ' NOT NULL' : ''}${generated}${asIdentity}${byDefault}`;
}

function columnChanges(was: OriginColumn, is: OriginColumn): string[] {
  const changes: string[] = [];
  const alter = `ALTER COLUMN ${quoteIdentifier(is.name)}`;
  if (was.name !== is.name) changes.push(`RENAME COLUMN ${quoteIdentifier(was.name)} TO ${quoteIdentifier(is.name)}`);
  if (was.formattedType !== is.formattedType || was.collation !== is.collation)
    changes.push(`${alter} TYPE ${is.formattedType}${is.collation === null ? '' : ` COLLATE ${is.collation}`}`);
  changes.push(...labelChanges(was, is));
  if (was.notNull !== is.notNull) changes.push(`${alter} ${is.notNull ? 'SET' : 'DROP'} NOT NULL`);
  if (was.identity !== is.identity)
    changes.push(
      is.identity === '' ? `${alter} DROP IDENTITY` : `${alter} ADD GENERATED ${is.identity === 'a' ? 'ALWAYS' : 'BY DEFAULT'} AS IDENTITY`,
    );
  if (was.generated !== is.generated)
    changes.push(is.generated === '' ? `${alter} DROP EXPRESSION` : `${alter} SET EXPRESSION AS (${is.default ?? ''})`);
  else if (was.default !== is.default) {
    if (is.generated !== '') changes.push(`${alter} SET EXPRESSION AS (${is.default ?? ''})`);
    else changes.push(is.default === null ? `${alter} DROP DEFAULT` : `${alter} SET DEFAULT ${is.default}`);
  }
  return changes;
}

/** A value of an enum is its OID. One that has got another label, as of the shape before. */
export function renamedLabels(was: OriginColumn, is: OriginColumn): { readonly from: string; readonly to: string }[] {
  if (was.typeOid !== is.typeOid) return [];
  const before = new Map((was.labels ?? []).map(({ oid, label }) => [oid, label]));
  return (is.labels ?? []).flatMap(({ oid, label }) => {
    const from = before.get(oid);
    return from === undefined || from === label ? [] : [{ from, to: label }];
  });
}

function labelChanges(was: OriginColumn, is: OriginColumn): string[] {
  if (was.typeOid !== is.typeOid || was.labels == null) return [];
  const known = new Set(was.labels.map(({ oid }) => oid));
  const type = `ALTER TYPE ${is.formattedType.replace(/\[\]$/, '')}`;
  return [
    ...renamedLabels(was, is).map(({ from, to }) => `${type} RENAME VALUE ${quoteLiteral(from)} TO ${quoteLiteral(to)}`),
    ...(is.labels ?? []).flatMap(({ oid, label }) => (known.has(oid) ? [] : [`${type} ADD VALUE ${quoteLiteral(label)}`])),
  ];
}

function identity(shape: TableShape, names: (shape: TableShape, key: readonly number[]) => string): string {
  switch (shape.replicaIdentity) {
    case 'd':
      return 'DEFAULT';
    case 'f':
      return 'FULL';
    case 'n':
      return 'NOTHING';
    case 'i':
      return `USING INDEX ON (${names(shape, shape.identityKey)})`;
  }
}

/** The table's name as users type it. */
export const shownTable = (shape: Pick<TableShape, 'schema' | 'name'>): string => quoteQualified(shape.schema, shape.name);
