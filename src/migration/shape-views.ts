/**
 * The views through which either shape is read and written while one table is the truth. Pure.
 * Invariant: every view writes to the truth and to nothing else, as the role that writes; what a view cannot do rightly it refuses. Where Postgres
 * can write through a view by itself (automatically updatable views) it does, because it then looks again at a row that someone else has just
 * changed; triggers cannot, and raise 40001 where that matters.
 */
import { quoteIdentifier } from '../sql/quote.ts';
import type { MigrationDefinition, MigrationOptions, MoveDefinition, SourceTable, SplitDefinition, TableName } from './model.ts';
import { movedTriggers, moveInsertAndDelete } from './move-triggers.ts';
import { columnList, qualified, sourcePlace, type Truth, targetPlace } from './places.ts';
import { copyRights } from './rights-sql.ts';
import { conversionTriggers, type MappedView } from './shape-triggers.ts';
import { type ShapeColumn, sourceShape, targetShape } from './shapes.ts';

/** What one view needs: its name, its query, what stands beside it. */
interface ShapeView {
  readonly name: TableName;
  readonly create: string;
  /** Defaults, functions and triggers; said after `create`. */
  readonly more: readonly string[];
}

/** Statements that open the shapes while `truth` is the truth. The tables stand where places.ts says, and none of the views is there. */
export function layoutSql(
  id: number,
  source: SourceTable,
  definition: MigrationDefinition,
  options: MigrationOptions,
  truth: Truth,
): readonly string[] {
  const rightsFrom = sourcePlace(id, source, definition, truth);
  return viewsOf(id, source, definition, options, truth).flatMap(({ name, create, more }) => [
    create,
    `ALTER VIEW ${qualified(name)} OWNER TO ${quoteIdentifier(source.owner.name)}`,
    copyRights(rightsFrom, name, null),
    ...more,
  ]);
}

/** The views of a layout, in the order in which they are to be locked: what reads another view comes first. */
export function layoutViews(
  id: number,
  source: SourceTable,
  definition: MigrationDefinition,
  options: MigrationOptions,
  truth: Truth,
): readonly TableName[] {
  return viewsOf(id, source, definition, options, truth)
    .map(({ name }) => name)
    .reverse();
}

function viewsOf(
  id: number,
  source: SourceTable,
  definition: MigrationDefinition,
  options: MigrationOptions,
  truth: Truth,
): readonly ShapeView[] {
  const from = qualified(sourcePlace(id, source, definition, truth));
  const target = qualified(targetPlace(id, source, definition, truth));
  const inNew = { schema: options.newVersion, name: source.name };
  const inOld = { schema: options.oldVersion, name: source.name };
  const all = source.columns.map(({ name }) => name);
  if (definition.kind === 'move') {
    const staying = all.filter((name) => !definition.columns.includes(name));
    const newSource = plain(inNew, from, staying, source);
    return truth === 'source'
      ? [movedView(id, definition, from), newSource, plain(inOld, from, all, source)]
      : [joinedView(id, source, definition, from, target), newSource, plain(inOld, qualified(source), all, source)];
  }
  if (truth === 'source') {
    const mapped = {
      id,
      tag: 'new',
      name: inNew,
      table: from,
      columns: targetShape(source, definition),
      back: sourceShape(source, definition),
    };
    return [converting(mapped, source, definition), plain(inOld, from, all, source)];
  }
  const names = targetShape(source, definition).map(({ name }) => name);
  const mapped = {
    id,
    tag: 'old',
    name: definition.kind === 'split' ? { schema: source.schema, name: source.name } : inOld,
    table: target,
    columns: sourceShape(source, definition),
    back: targetShape(source, definition),
  };
  const newTable = plain(inNew, target, names, source);
  return definition.kind === 'split'
    ? [converting(mapped, source, definition), newTable, plain(inOld, qualified(source), all, source)]
    : [converting(mapped, source, definition), newTable];
}

/** Columns of one table or view as they are: Postgres writes through it by itself. */
function plain(name: TableName, from: string, columns: readonly string[], source: SourceTable): ShapeView {
  return {
    name,
    create: `CREATE VIEW ${qualified(name)} WITH (security_invoker = true) AS SELECT ${columnList(columns)} FROM ${from}`,
    more: defaults(
      name,
      source.columns.filter((column) => columns.includes(column.name)),
    ),
  };
}

/** Without these an INSERT that leaves a column out would write NULL: a view has no defaults of its own where triggers write for it. */
function defaults(name: TableName, columns: readonly Pick<ShapeColumn, 'name' | 'defaultText'>[]): readonly string[] {
  const list = columns.flatMap(({ name: column, defaultText }) =>
    defaultText === null ? [] : [`ALTER COLUMN ${quoteIdentifier(column)} SET DEFAULT ${defaultText}`],
  );
  return list.length === 0 ? [] : [`ALTER VIEW ${qualified(name)} ${list.join(', ')}`];
}

/** Of a reshape: one table with some columns computed. Rows are deleted by Postgres itself. */
function converting(mapped: MappedView, source: SourceTable, definition: Exclude<MigrationDefinition, MoveDefinition>): ShapeView {
  const list = mapped.columns.map(({ name, expression }) => `${expression} AS ${quoteIdentifier(name)}`).join(', ');
  return {
    name: mapped.name,
    create: `CREATE VIEW ${qualified(mapped.name)} WITH (security_invoker = true) AS SELECT ${list} FROM ${mapped.table}`,
    more: [...defaults(mapped.name, mapped.columns), ...conversionTriggers(mapped, source.key, changedTogether(definition))],
  };
}

/** Columns of either shape that are computed from one another. */
function changedTogether(
  definition: Exclude<MigrationDefinition, MoveDefinition>,
): readonly { readonly old: readonly string[]; readonly new: readonly string[] }[] {
  return definition.kind === 'alter'
    ? definition.columns.map(({ column }) => ({ old: [column], new: [column] }))
    : [{ old: [definition.column], new: intoNames(definition) }];
}

const intoNames = (definition: SplitDefinition): readonly string[] => definition.into.map(({ name }) => name);

/** Before the cutover: the target, as a view of the source. Its key is written so that nobody can update the source's key through it. */
function movedView(id: number, definition: MoveDefinition, from: string): ShapeView {
  const key = definition.key.map(({ column, as }) => `CASE WHEN true THEN ${quoteIdentifier(column)} END AS ${quoteIdentifier(as)}`);
  const where = definition.columns.map((name) => `${quoteIdentifier(name)} IS NOT NULL`).join(' OR ');
  return {
    name: definition.target,
    create: `CREATE VIEW ${qualified(definition.target)} WITH (security_invoker = true, check_option = local) AS SELECT ${[...key, columnList(definition.columns)].join(', ')} FROM ${from} WHERE ${where}`,
    more: moveInsertAndDelete(id, definition, from),
  };
}

/**
 * After the cutover: the source as it was, from both tables. The target is read WITH .., because FOR UPDATE does not reach into that: it locks
 * the source's row, which is right, and could not lock the nullable side of an outer join. The planner makes one join of it all the same.
 */
function joinedView(id: number, source: SourceTable, definition: MoveDefinition, from: string, target: string): ShapeView {
  const name = { schema: source.schema, name: source.name };
  const moved = new Set(definition.columns);
  const list = source.columns.map(({ name: column }) => `${moved.has(column) ? 't' : 's'}.${quoteIdentifier(column)}`).join(', ');
  const keys = definition.key.map(({ as }) => as);
  const on = definition.key.map(({ column, as }) => `t.${quoteIdentifier(as)} = s.${quoteIdentifier(column)}`).join(' AND ');
  return {
    name,
    create: `CREATE VIEW ${qualified(name)} WITH (security_invoker = true) AS WITH t AS (SELECT ${columnList([...keys, ...definition.columns])} FROM ${target}) SELECT ${list} FROM ${from} s LEFT JOIN t ON ${on}`,
    more: [...defaults(name, source.columns), ...movedTriggers(id, source, definition, from, target)],
  };
}
