/**
 * The columns of the two shapes, and how a value of one comes from the other. Pure.
 * Invariant: what is shared has one value in both shapes; everything else is computed, by an expression over the columns of the other table.
 */
import { quoteIdentifier } from '../sql/quote.ts';
import type { AlterDefinition, MigrationDefinition, MoveDefinition, SourceColumn, SourceTable, SplitDefinition } from './model.ts';

/** One column of a table, as it comes from the other table. */
export interface ShapeColumn {
  readonly name: string;
  readonly type: string;
  /** Column of the other table that holds the same value; null: computed. */
  readonly shared: string | null;
  /** Expression over the other table's columns. */
  readonly expression: string;
  /** Default of the column where it is written through a view; null: none. */
  readonly defaultText: string | null;
  readonly identity: SourceColumn['identity'];
  /** Postgres computes it: nobody writes it. */
  readonly generated: boolean;
}

export interface KeyPart {
  readonly source: string;
  readonly target: string;
  readonly sourceType: string;
  readonly targetType: string;
}

/** Columns of the target, from the source's. */
export function targetShape(source: SourceTable, definition: MigrationDefinition): readonly ShapeColumn[] {
  switch (definition.kind) {
    case 'move':
      return movedShape(source, definition);
    case 'alter':
      return source.columns.map((column) => {
        const altered = definition.columns.find(({ column: name }) => name === column.name);
        return altered === undefined ? same(column) : converted(column, altered.type, altered.up);
      });
    case 'split':
      return [
        ...source.columns.filter(({ name }) => name !== definition.column).map(same),
        ...definition.into.map(({ name, type, up }) => computed(name, type, up)),
      ];
  }
}

/** Columns of the source, from the target's. Of a move only those that moved and the key. */
export function sourceShape(source: SourceTable, definition: MigrationDefinition): readonly ShapeColumn[] {
  switch (definition.kind) {
    case 'move':
      return source.columns.flatMap((column) => {
        const key = definition.key.find((part) => part.column === column.name);
        if (key !== undefined) return [{ ...same(column), shared: key.as, expression: quoteIdentifier(key.as) }];
        return definition.columns.includes(column.name) ? [same(column)] : [];
      });
    case 'alter':
      return source.columns.map((column) => {
        const altered = definition.columns.find(({ column: name }) => name === column.name);
        return altered === undefined ? same(column) : { ...converted(column, column.type, altered.down), defaultText: column.defaultText };
      });
    case 'split':
      return source.columns.map((column) =>
        column.name === definition.column
          ? { ...computed(column.name, column.type, definition.down), defaultText: column.defaultText }
          : same(column),
      );
  }
}

export function keyParts(source: SourceTable, definition: MigrationDefinition): readonly KeyPart[] {
  const target = targetShape(source, definition);
  return source.key.map((name) => {
    const as = definition.kind === 'move' ? (definition.key.find(({ column }) => column === name)?.as ?? name) : name;
    const sourceType = source.columns.find((column) => column.name === name)?.type ?? 'text';
    return { source: name, target: as, sourceType, targetType: target.find((column) => column.name === as)?.type ?? sourceType };
  });
}

/** Whether a row of the source has a row in the target. */
export const present = ({ columns }: MoveDefinition): string => columns.map((name) => `${quoteIdentifier(name)} IS NOT NULL`).join(' OR ');

/** Names of the columns that are written. */
export const written = (columns: readonly ShapeColumn[]): readonly string[] =>
  columns.filter(({ generated }) => !generated).map(({ name }) => name);

function movedShape(source: SourceTable, definition: MoveDefinition): readonly ShapeColumn[] {
  const of = (name: string): SourceColumn | undefined => source.columns.find((column) => column.name === name);
  return [
    ...definition.key.flatMap(({ column, as }) => {
      const found = of(column);
      return found === undefined ? [] : [{ ...same(found), name: as, defaultText: null, identity: null }];
    }),
    ...definition.columns.flatMap((name) => {
      const found = of(name);
      return found === undefined ? [] : [same(found)];
    }),
  ];
}

function same({ name, type, defaultText, identity, generated }: SourceColumn): ShapeColumn {
  return { name, type, shared: name, expression: quoteIdentifier(name), defaultText, identity, generated: generated !== null };
}

function converted(
  { name, defaultText, identity }: SourceColumn,
  type: string,
  expression: AlterDefinition['columns'][number]['up'],
): ShapeColumn {
  return {
    name,
    type,
    shared: null,
    expression: `(${expression ?? quoteIdentifier(name)})::${type}`,
    defaultText: defaultText === null ? null : `(${defaultText})::${type}`,
    identity,
    generated: false,
  };
}

function computed(name: string, type: string, expression: SplitDefinition['down']): ShapeColumn {
  return { name, type, shared: null, expression: `(${expression})::${type}`, defaultText: null, identity: null, generated: false };
}
