/**
 * Where the objects of a migration stand. Pure.
 * Invariant: a name here is unique to the migration, whatever the user's tables are called; before the cutover the source stands under its own name
 * and the target is kept in millrace_data, after it the other way round.
 */
import { quoteIdentifier, quoteLiteral, quoteQualified } from '../sql/quote.ts';
import type { MigrationDefinition, MoveDefinition, SourceTable, TableName } from './model.ts';

export const dataSchema = 'millrace_data';

/** Which of the two tables is written by users. */
export type Truth = 'source' | 'target';

export const homeName = (id: number): string => `m${id}`;
export const sourceHomeName = (id: number): string => `m${id}_source`;
/** The source's rows as the target has them, found by the source's key (s1, s2, ..). */
export const upView = (id: number): string => quoteQualified(dataSchema, `m${id}_up`);
/** The target's rows as the source has them, found by the target's key (s1, s2, ..). */
export const downView = (id: number): string => quoteQualified(dataSchema, `m${id}_down`);
/** A function of a trigger: `view` tells which one, `event` what it does. */
export const triggerFunction = (id: number, view: string, event: string): string => quoteQualified(dataSchema, `m${id}_${view}_${event}`);

export const publicationName = (id: number): string => `millrace_migration_${id}`;
/** Slots are known to the whole server. */
export const slotName = (databaseOid: number, id: number): string => `${slotPrefix}_${databaseOid}_${id}`;
export const slotPrefix = 'millrace_migration';

export const qualified = ({ schema, name }: TableName): string => quoteQualified(schema, name);
/** Its OID, as SQL; looked up when that runs, and not when it is planned. */
export const oidOf = (relation: TableName): string => `to_regclass(${quoteLiteral(qualified(relation))})::oid`;
export const columnList = (names: readonly string[], of = ''): string =>
  names.map((name) => `${of === '' ? '' : `${of}.`}${quoteIdentifier(name)}`).join(', ');

/** Where the source stands while `truth` is the truth. */
export function sourcePlace(id: number, source: SourceTable, definition: MigrationDefinition, truth: Truth): TableName {
  const { schema, name } = source;
  if (truth === 'source') return { schema, name };
  // What is left of it by a move stays in use, and its sequences would leave the schema with it.
  if (definition.kind === 'move') return { schema, name: `${shortened(name, 50)}_${homeName(id)}` };
  return { schema: dataSchema, name: sourceHomeName(id) };
}

/** A name that takes at most so many bytes. */
export const shortened = (name: string, bytes: number): string =>
  Buffer.from(name)
    .subarray(0, bytes)
    .toString()
    .replace(/\ufffd+$/, '');

/** Names as Postgres has them hold so many bytes. */
const nameBytes = 63;

/** The check of a moved table: a row is there while one of the columns is not null. */
export const presentCheck = ({ target }: MoveDefinition): string => shortened(`${target.name}_present`, nameBytes);

/** What a moved table's reference to the source is called. */
export const foreignKeyName = ({ target, key }: MoveDefinition): string =>
  shortened(`${target.name}_${key.map(({ as }) => as).join('_')}_fkey`, nameBytes);

/** What the target is called once it is the truth; null: the name of the source stays with the old shape until FINALIZE. */
export function targetName(source: SourceTable, definition: MigrationDefinition): TableName | null {
  switch (definition.kind) {
    case 'move':
      return definition.target;
    case 'alter':
      return source;
    case 'split':
      return null;
  }
}

/** Where the target stands while `truth` is the truth. */
export function targetPlace(id: number, source: SourceTable, definition: MigrationDefinition, truth: Truth): TableName {
  const home = { schema: dataSchema, name: homeName(id) };
  return truth === 'source' ? home : (targetName(source, definition) ?? home);
}

/** The table that is the truth, by its name of then. */
export const truthPlace = (
  { id, source, definition }: { readonly id: number; readonly source: SourceTable; readonly definition: MigrationDefinition },
  truth: Truth,
): TableName => (truth === 'source' ? sourcePlace(id, source, definition, truth) : targetPlace(id, source, definition, truth));
