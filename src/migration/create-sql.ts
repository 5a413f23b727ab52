/**
 * What CREATE MIGRATION makes: the target, empty, and the views through which its rows are seen in the source and the other way round. Pure.
 * Invariant: everything belongs to the source's owner, and nothing of it can be reached by anyone before the shapes are opened (shape-views.ts).
 */
import { quoteIdentifier } from '../sql/quote.ts';
import { likenessSql } from './belongings.ts';
import type { MigrationDefinition, MigrationOptions, SourceTable } from './model.ts';
import { likeSql, partitionsSql } from './partitions.ts';
import { dataSchema, downView, homeName, presentCheck, qualified, targetPlace, upView } from './places.ts';
import { copyRights, copyUsage, takeRights } from './rights-sql.ts';
import { lastingSql, layoutSql } from './shape-views.ts';
import { keyParts, present, type ShapeColumn, sourceShape, targetShape } from './shapes.ts';

/** Statements for the catalog's owner, in the caller's transaction. After them the target is `millrace_data.m<id>`. */
export function createSql(id: number, source: SourceTable, definition: MigrationDefinition, options: MigrationOptions): readonly string[] {
  const owner = quoteIdentifier(source.owner.name);
  return [
    ...targetSql(id, source, definition),
    `ALTER TABLE ${qualified({ schema: dataSchema, name: homeName(id) })} OWNER TO ${owner}`,
    copyRights(source, { schema: dataSchema, name: homeName(id) }, definition.kind === 'move' ? definition.columns : null),
    ...imageSql(id, source, definition),
    ...[options.newVersion, options.oldVersion].map((schema) => `CREATE SCHEMA ${quoteIdentifier(schema)} AUTHORIZATION ${owner}`),
    ...[options.newVersion, options.oldVersion].map((schema) => copyUsage(source.schema, schema)),
    ...lastingSql({ id, source, definition, options }),
    ...layoutSql({ id, source, definition, options }, 'source'),
  ];
}

function targetSql(id: number, source: SourceTable, definition: MigrationDefinition): readonly string[] {
  const home = { schema: dataSchema, name: homeName(id) };
  const target = qualified(home);
  const from = qualified(source);
  switch (definition.kind) {
    case 'move': {
      // By way of a table that loses columns: a table made like that one has no gaps where they were.
      const draft = qualified({ schema: dataSchema, name: `m${id}_draft` });
      const kept = new Set([...definition.columns, ...definition.key.map(({ column }) => column)]);
      const dropped = source.columns
        .filter(({ name }) => !kept.has(name))
        .map(({ name }) => `DROP COLUMN IF EXISTS ${quoteIdentifier(name)} CASCADE`);
      const key = definition.key.flatMap(({ column }) => [
        `ALTER COLUMN ${quoteIdentifier(column)} DROP IDENTITY IF EXISTS`,
        `ALTER COLUMN ${quoteIdentifier(column)} DROP DEFAULT`,
      ]);
      return [
        `CREATE TABLE ${draft} (LIKE ${from} INCLUDING ALL)`,
        `ALTER TABLE ${draft} ${[...key, ...dropped].join(', ')}`,
        ...definition.key
          .filter(({ column, as }) => column !== as)
          .map(({ column, as }) => `ALTER TABLE ${draft} RENAME COLUMN ${quoteIdentifier(column)} TO ${quoteIdentifier(as)}`),
        `CREATE TABLE ${target} (LIKE ${draft} INCLUDING ALL)`,
        `DROP TABLE ${draft}`,
        `ALTER TABLE ${target} ADD CONSTRAINT ${quoteIdentifier(presentCheck(definition))} CHECK (${present(definition)})`,
      ];
    }
    case 'alter':
      return [
        likeSql(source, home),
        likenessSql(id, source, home),
        ...definition.columns.map(({ column, type }) => {
          const name = quoteIdentifier(column);
          const text = source.columns.find((one) => one.name === column)?.defaultText ?? null;
          const [drop, again] =
            text === null ? ['', ''] : [`ALTER COLUMN ${name} DROP DEFAULT, `, `, ALTER COLUMN ${name} SET DEFAULT (${text})::${type}`];
          return `ALTER TABLE ${target} ${drop}ALTER COLUMN ${name} TYPE ${type} USING NULL::${type}${again}`;
        }),
        ...partitionsSql(id, source, home),
      ];
    case 'split':
      return [
        likeSql(source, home),
        likenessSql(id, source, home),
        `ALTER TABLE ${target} DROP COLUMN ${quoteIdentifier(definition.column)}${definition.into
          .map(({ name, type }) => `, ADD COLUMN ${quoteIdentifier(name)} ${type}`)
          .join('')}`,
        ...partitionsSql(id, source, home),
      ];
  }
}

/** The images: views by which the engine reads one table's rows as the other has them. They follow OIDs, so they stay right when tables are renamed. */
function imageSql(id: number, source: SourceTable, definition: MigrationDefinition): readonly string[] {
  const owner = quoteIdentifier(source.owner.name);
  const key = keyParts(source, definition);
  const target = targetPlace(id, source, definition, 'source');
  const image = (keys: readonly string[], columns: readonly ShapeColumn[]): string =>
    [
      ...keys.map((name, i) => `${quoteIdentifier(name)} AS s${i + 1}`),
      ...columns.filter(({ generated }) => !generated).map(({ name, expression }) => `${expression} AS ${quoteIdentifier(name)}`),
    ].join(', ');
  const up = image(
    key.map((part) => part.source),
    targetShape(source, definition),
  );
  const down = image(
    key.map((part) => part.target),
    sourceShape(source, definition),
  );
  const where = definition.kind === 'move' ? ` WHERE ${present(definition)}` : '';
  return [
    `CREATE VIEW ${upView(id)} AS SELECT ${up} FROM ${qualified(source)}${where}`,
    `CREATE VIEW ${downView(id)} AS SELECT ${down} FROM ${qualified(target)}`,
    ...['up', 'down'].flatMap((way) => {
      const view = { schema: dataSchema, name: `${homeName(id)}_${way}` };
      return [`ALTER VIEW ${qualified(view)} OWNER TO ${owner}`, takeRights(view)];
    }),
  ];
}
