/**
 * The views through which either shape is read and written while one table is the truth. Pure.
 * Invariant: every view writes to the truth and to nothing else, as the role that writes; what a view cannot do rightly it refuses. Where Postgres
 * can write through a view by itself (automatically updatable views) it does, because it then looks again at a row that someone else has just
 * changed; triggers cannot, and raise 40001 where that matters.
 */
import { quoteIdentifier } from '../sql/quote.ts';
import type { Migration, MigrationDefinition, MoveDefinition, SourceTable, SplitDefinition, TableName } from './model.ts';
import { movedTriggers, moveInsertAndDelete } from './move-triggers.ts';
import { columnList, dataSchema, homeName, qualified, sourcePlace, type Truth, targetPlace } from './places.ts';
import { copyRights, keepRights } from './rights-sql.ts';
import { conversionTriggers, type MappedView } from './shape-triggers.ts';
import { present, type ShapeColumn, sourceShape, targetShape } from './shapes.ts';
import type { Question } from './steps.ts';

/** What one view needs: its name, its query, what stands beside it. */
interface ShapeView {
  readonly name: TableName;
  readonly create: string;
  /** Defaults, functions and triggers; said after `create`. */
  readonly more: readonly string[];
}

/** Where things stand: physical tables, quoted, and the place at which a view is made. */
interface Standing {
  /** Now, when views are made. */
  readonly reads: { readonly source: string; readonly target: string };
  /** When they are in use: triggers find tables by name. */
  readonly writes: { readonly source: string; readonly target: string };
  readonly spot: (view: TableName) => TableName;
}

type Layout = Pick<Migration, 'id' | 'source' | 'definition' | 'options'>;

/** Statements that open the shapes while `truth` is the truth. The tables stand where places.ts says, and none of the views is there. */
export function layoutSql(layout: Layout, truth: Truth): readonly string[] {
  return makeSql(layout, truth, { reads: tables(layout, truth), writes: tables(layout, truth), spot: (view) => view });
}

/** The same ahead of time, while the other table is the truth: where nobody finds them. `settleSql` puts them where they belong. */
export function aheadSql(layout: Layout, truth: Truth): readonly string[] {
  return makeSql(layout, truth, { reads: tables(layout, otherTruth(truth)), writes: tables(layout, truth), spot: hiding(layout, truth) });
}

/** Where views made ahead of time are. */
export const aheadViews = (layout: Layout): readonly TableName[] =>
  (['source', 'target'] as const).flatMap((truth) => layoutViews(layout, truth).map(hiding(layout, truth)));

/** Where what is made ahead of time of a view of this name is. */
export const aheadPlace = (layout: Layout, truth: Truth, view: TableName): TableName => hiding(layout, truth)(view);

/** Rights that were given or taken since views were made ahead of time; asked before they come to their places. */
export const aheadRights = (layout: Layout, truth: Truth): readonly Question[] =>
  layoutViews(layout, truth).map((view) => keepRights(likeAhead(layout, truth), hiding(layout, truth)(view)));

/** Views made ahead of time come to their places, which are free by now. */
export function settleSql(layout: Layout, truth: Truth): readonly string[] {
  const hidden = hiding(layout, truth);
  return layoutViews(layout, truth).flatMap((view) => {
    const from = hidden(view);
    return [
      `ALTER VIEW ${qualified(from)} RENAME TO ${quoteIdentifier(view.name)}`,
      `ALTER VIEW ${qualified({ schema: from.schema, name: view.name })} SET SCHEMA ${quoteIdentifier(view.schema)}`,
    ];
  });
}

/** The views of a layout, in the order in which they are to be locked: what reads another view comes first. */
export function layoutViews(layout: Layout, truth: Truth): readonly TableName[] {
  return viewsOf(layout, truth, { reads: tables(layout, truth), writes: tables(layout, truth), spot: (view) => view })
    .map(({ name }) => name)
    .reverse();
}

function makeSql(layout: Layout, truth: Truth, standing: Standing): readonly string[] {
  const ahead = standing.reads.source !== tables(layout, truth).source;
  return opened(layout, viewsOf(layout, truth, standing), ahead ? likeAhead(layout, truth) : layout.source);
}

/** The target as a view gets the rights on the target as a table, once it was one. */
const likeAhead = ({ source, definition }: Layout, truth: Truth): TableName =>
  definition.kind === 'move' && truth === 'source' ? definition.target : source;

/** `like`: whose rights they get: what has the source's name, whatever it is at the moment. */
function opened({ source }: Layout, views: readonly ShapeView[], like: TableName): readonly string[] {
  return views.flatMap(({ name, create, more }) => [
    create,
    `ALTER VIEW ${qualified(name)} OWNER TO ${quoteIdentifier(source.owner.name)}`,
    copyRights(like, name, null),
    ...more,
  ]);
}

const otherTruth = (truth: Truth): Truth => (truth === 'source' ? 'target' : 'source');

const tables = ({ id, source, definition }: Layout, truth: Truth): Standing['reads'] => ({
  source: qualified(sourcePlace(id, source, definition, truth)),
  target: qualified(targetPlace(id, source, definition, truth)),
});

function hiding(layout: Layout, truth: Truth): (view: TableName) => TableName {
  const views = layoutViews(layout, truth).map(qualified);
  return (view) => ({ schema: dataSchema, name: `${homeName(layout.id)}_view${views.indexOf(qualified(view)) + 1}` });
}

/**
 * The views of a layout that are not in the other. The fewer the better: all of them are locked when the layouts change. So in the schema of a version
 * there is nothing where the shape is what the search path comes to behind it.
 */
function viewsOf({ id, source, definition, options }: Layout, truth: Truth, { reads, writes, spot }: Standing): readonly ShapeView[] {
  const own = { schema: source.schema, name: source.name };
  const inNew = { schema: options.newVersion, name: source.name };
  const inOld = { schema: options.oldVersion, name: source.name };
  if (definition.kind === 'move') {
    return truth === 'source'
      ? [movedView(id, definition, spot(definition.target), reads.source, writes.source)]
      : [joinedView(id, source, definition, spot(own), reads, writes)];
  }
  const [oldShape, newShape] = [sourceShape(source, definition), targetShape(source, definition)];
  if (truth === 'source') {
    const mapped = { id, tag: 'new', name: spot(inNew), reads: reads.source, table: writes.source, columns: newShape, back: oldShape };
    return [converting(mapped, source, definition)];
  }
  const place = spot(definition.kind === 'split' ? own : inOld);
  const mapped = { id, tag: 'old', name: place, reads: reads.target, table: writes.target, columns: oldShape, back: newShape };
  const old = converting(mapped, source, definition);
  if (definition.kind === 'alter') return [old];
  return [
    old,
    plain(
      spot(inNew),
      reads.target,
      newShape.map(({ name }) => name),
      source,
    ),
  ];
}

/** Views that are right in both layouts, from the beginning to the end. */
function lastingViews({ id, source, definition, options }: Layout): readonly ShapeView[] {
  if (definition.kind !== 'move') return [];
  const staying = source.columns.map(({ name }) => name).filter((name) => !definition.columns.includes(name));
  return [
    plain({ schema: options.newVersion, name: source.name }, qualified(sourcePlace(id, source, definition, 'source')), staying, source),
  ];
}

export const lastingViewNames = (layout: Layout): readonly TableName[] => lastingViews(layout).map(({ name }) => name);

/** Statements that make them, while the source is the truth. */
export const lastingSql = (layout: Layout): readonly string[] => opened(layout, lastingViews(layout), layout.source);

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
    create: `CREATE VIEW ${qualified(mapped.name)} WITH (security_invoker = true) AS SELECT ${list} FROM ${mapped.reads}`,
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
function movedView(id: number, definition: MoveDefinition, place: TableName, from: string, later: string): ShapeView {
  const key = definition.key.map(({ column, as }) => `CASE WHEN true THEN ${quoteIdentifier(column)} END AS ${quoteIdentifier(as)}`);
  return {
    name: place,
    create: `CREATE VIEW ${qualified(place)} WITH (security_invoker = true, check_option = local) AS SELECT ${[...key, columnList(definition.columns)].join(', ')} FROM ${from} WHERE ${present(definition)}`,
    more: moveInsertAndDelete(id, definition, place, later),
  };
}

/**
 * After the cutover: the source as it was, from both tables. The target is read WITH .., because FOR UPDATE does not reach into that: it locks
 * the source's row, which is right, and could not lock the nullable side of an outer join. The planner makes one join of it all the same.
 */
function joinedView(
  id: number,
  source: SourceTable,
  definition: MoveDefinition,
  name: TableName,
  reads: Standing['reads'],
  writes: Standing['writes'],
): ShapeView {
  const moved = new Set(definition.columns);
  const list = source.columns.map(({ name: column }) => `${moved.has(column) ? 't' : 's'}.${quoteIdentifier(column)}`).join(', ');
  const keys = definition.key.map(({ as }) => as);
  const on = definition.key.map(({ column, as }) => `t.${quoteIdentifier(as)} = s.${quoteIdentifier(column)}`).join(' AND ');
  return {
    name,
    create: `CREATE VIEW ${qualified(name)} WITH (security_invoker = true) AS WITH t AS (SELECT ${columnList([...keys, ...definition.columns])} FROM ${reads.target}) SELECT ${list} FROM ${reads.source} s LEFT JOIN t ON ${on}`,
    more: [...defaults(name, source.columns), ...movedTriggers(id, source, definition, name, writes.source, writes.target)],
  };
}
