/**
 * DROP of live relations, sources, and of what live relations hang on.
 * Invariant: the caller's transaction drops the views users see and marks the rest; storage, deltas and slots are cleared away
 * by the engine after the commit, so that an open transaction never holds a lock an epoch needs.
 */
import { definitionView, gateView } from '../catalog/model.ts';
import { millraceError } from '../errors.ts';
import type { DropObject, DropRelation, DropSchema, QualifiedName } from '../sql/ast.ts';
import { quoteIdentifier } from '../sql/quote.ts';
import type { CallerSession, StatementResult } from './caller-session.ts';
import { callerRole, firstRow, perform, requireCatalog, type StatementContext } from './context.ts';
import { findLive, type LiveObject, liveByFacade, quotedName, requireOwner, shownName, undefinedObject } from './names.ts';
import { dropNamed } from './secrets.ts';
import { dropSources, tablesOfSource } from './sources.ts';

/** A live view that hangs on something, with its name. */
interface Dependent {
  readonly id: string;
  readonly facade: string;
  readonly name: string;
}

/** DROP SECRET, CONNECTION, SOURCE. */
export async function dropObject(context: StatementContext, session: CallerSession, statement: DropObject): Promise<StatementResult> {
  switch (statement.kind) {
    case 'secret':
    case 'connection':
      return dropNamed(context, session, statement.kind, statement.names, {
        ifExists: statement.ifExists,
        cascade: statement.cascade,
        dropSources: async (ids) => {
          for (const id of ids) await dropSourceWithTables(context, session, id);
        },
      });
    case 'source':
      return dropSourceStatement(context, session, statement);
  }
}

async function dropSourceStatement(context: StatementContext, session: CallerSession, statement: DropObject): Promise<StatementResult> {
  await requireCatalog(context, session);
  const role = await callerRole(session);
  for (const name of statement.names) {
    const found = await findLive(session, name);
    if (found === null || found.type !== 'source') {
      if (found !== null) throw millraceError('wrong_object_type', { name: shownName(name), kind: 'source' }, { position: name.at + 1 });
      if (!statement.ifExists) throw undefinedObject('source', name);
      session.notice({ severity: 'NOTICE', code: '42704', message: `source "${shownName(name)}" does not exist, skipping` });
      continue;
    }
    await requireOwner(session, 'source', shownName(name), found.owner, role);
    const tables = await tablesOfSource(context, session, found.id);
    if (tables.length > 0 && !statement.cascade) {
      throw millraceError('dependent_objects', {
        kind: 'source',
        name: shownName(name),
        dependents: tables.map((table) => `table ${table.name} depends on source ${shownName(name)}`).join('\n'),
      });
    }
    await dropSourceWithTables(context, session, found.id);
  }
  return { kind: 'done', tag: 'DROP SOURCE' };
}

async function dropSourceWithTables(context: StatementContext, session: CallerSession, sourceId: string): Promise<void> {
  const tables = await tablesOfSource(context, session, sourceId);
  const views = await dependentsOf(
    session,
    tables.map((table) => table.facade),
  );
  announceCascade(session, [
    ...tables.map((table) => `drop cascades to table ${table.name}`),
    ...views.map((view) => `drop cascades to materialized view ${view.name}`),
  ]);
  await dropFacades(context, session, [...views].reverse(), true);
  await dropFacades(context, session, tables, true);
  await dropSources(context, session, [sourceId]);
}

/** DROP TABLE, VIEW, MATERIALIZED VIEW that concern live relations. */
export async function dropRelation(context: StatementContext, session: CallerSession, statement: DropRelation): Promise<StatementResult> {
  const tag = `DROP ${statement.kind.toUpperCase()}`;
  const live: LiveObject[] = [];
  const ordinary: QualifiedName[] = [];
  for (const name of statement.names) {
    const found = await findLive(session, name);
    if (found === null) ordinary.push(name);
    else {
      requireKind(statement, name, found);
      live.push(found);
    }
  }
  const oids = [...live.map((object) => object.facade), ...(await oidsOf(session, ordinary))];
  const dropped = new Set(live.map((object) => object.id));
  const dependents = (await dependentsOf(session, oids)).filter((view) => !dropped.has(view.id));
  if (dependents.length > 0) {
    const first = statement.names[0];
    if (!statement.cascade) {
      throw millraceError('dependent_objects', {
        kind: statement.kind,
        name: first === undefined ? '' : shownName(first),
        dependents: dependents
          .map((view) => `materialized view ${view.name} depends on ${statement.kind} ${first === undefined ? '' : shownName(first)}`)
          .join('\n'),
      });
    }
    announceCascade(
      session,
      dependents.map((view) => `drop cascades to materialized view ${view.name}`),
    );
  }
  await dropFacades(context, session, [...dependents].reverse(), true);
  const views = live.filter((object) => object.type === 'view');
  await dropFacades(context, session, [...views, ...live.filter((object) => object.type === 'table')].map(named), statement.cascade);
  if (ordinary.length > 0) {
    await session.query(
      `DROP ${statement.kind.toUpperCase()} ${statement.ifExists ? 'IF EXISTS ' : ''}${ordinary.map(quotedName).join(', ')}${statement.cascade ? ' CASCADE' : ''}`,
    );
  }
  return { kind: 'done', tag };
}

function named(object: LiveObject): Dependent {
  return { id: object.id, facade: object.facade, name: `${quoteIdentifier(object.schema)}.${quoteIdentifier(object.name)}` };
}

/** As Postgres: DROP TABLE of a view is refused, with the statement to use. */
function requireKind(statement: DropRelation, name: QualifiedName, found: LiveObject): void {
  const kinds = { table: 'table', view: 'materialized view', source: 'source' } as const;
  const kind = kinds[found.type];
  if (kind === statement.kind) return;
  throw millraceError(
    'wrong_object_type_drop',
    { name: shownName(name), kind: statement.kind, actual_upper: kind.toUpperCase(), name_quoted: quotedName(name) },
    { position: name.at + 1 },
  );
}

async function oidsOf(session: CallerSession, names: readonly QualifiedName[]): Promise<string[]> {
  const oids: string[] = [];
  for (const name of names) {
    const row = await firstRow(session, 'SELECT pg_catalog.to_regclass($1)::oid', [quotedName(name)]);
    if (row?.[0] !== null && row?.[0] !== undefined) oids.push(row[0]);
  }
  return oids;
}

/** Live views that read any of these relations at any depth, nearest first. */
async function dependentsOf(session: CallerSession, facades: readonly string[]): Promise<Dependent[]> {
  if (facades.length === 0) return [];
  const found = await session.query(
    'SELECT d.relation_id, d.facade, millrace.qualified_name(d.facade) FROM millrace.live_dependents($1::oid[]) d ORDER BY d.depth',
    [`{${facades.join(',')}}`],
    { quiet: true },
  );
  return found.rows.map(([id, facade, name]) => ({ id: id ?? '', facade: facade ?? '', name: name ?? '' }));
}

/** As Postgres words it: one line for one object, a count and a DETAIL for more. */
function announceCascade(session: CallerSession, lines: readonly string[]): void {
  const [only] = lines;
  if (only === undefined) return;
  if (lines.length === 1) session.notice({ severity: 'NOTICE', code: '00000', message: only });
  else
    session.notice({
      severity: 'NOTICE',
      code: '00000',
      message: `drop cascades to ${lines.length} other objects`,
      detail: lines.join('\n'),
    });
}

/** Drops facades as the caller (Postgres checks ownership and, without cascade, plain views that depend on them), then what is behind them. */
async function dropFacades(
  context: StatementContext,
  session: CallerSession,
  objects: readonly Dependent[],
  cascade: boolean,
): Promise<void> {
  // Definition views hang on the facades they read: they go first, or RESTRICT would name them.
  await dropDefinitions(
    context,
    session,
    objects.map((object) => object.id),
  );
  for (const object of objects) await session.query(`DROP VIEW ${object.name}${cascade ? ' CASCADE' : ''}`);
  await dropLive(
    context,
    session,
    objects.map((object) => object.id),
  );
}

async function dropDefinitions(context: StatementContext, session: CallerSession, ids: readonly string[]): Promise<void> {
  if (ids.length === 0) return;
  await perform(
    context,
    session,
    ids.map((id) => `DROP VIEW IF EXISTS ${definitionView(Number(id))}`),
  );
}

/** Marks relations dropped, with their gates and definitions gone. Their facades must be gone already. */
export async function dropLive(context: StatementContext, session: CallerSession, ids: readonly string[]): Promise<void> {
  if (ids.length === 0) return;
  await perform(
    context,
    session,
    [
      ...ids.map((id) => `DROP VIEW IF EXISTS ${definitionView(Number(id))}`),
      ...ids.map((id) => `DROP VIEW IF EXISTS ${gateView(Number(id))}`),
      `UPDATE millrace.relation SET state = 'dropped', facade = NULL, state_since = now()
        WHERE id IN (SELECT value::bigint FROM jsonb_array_elements_text($1 -> 'ids'))`,
    ],
    { ids },
  );
}

/** DROP SCHEMA .. CASCADE over live relations: they and what reads them go first, then Postgres drops the schema. */
export async function dropSchema(
  context: StatementContext,
  session: CallerSession,
  statement: DropSchema,
  text: string,
): Promise<StatementResult> {
  if (statement.cascade) {
    const live = await liveInSchemas(session, statement);
    const role = await callerRole(session);
    for (const object of live)
      await requireOwner(session, object.type === 'view' ? 'materialized view' : object.type, object.name, object.owner, role);
    const sources = live.filter((object) => object.type === 'source');
    const tables = live.filter((object) => object.type === 'table');
    const views = live.filter((object) => object.type === 'view');
    const inside = new Set(live.map((object) => object.id));
    const outside = (
      await dependentsOf(
        session,
        live.map((object) => object.facade),
      )
    ).filter((view) => !inside.has(view.id));
    announceCascade(session, [
      ...tables.map((object) => `drop cascades to table ${named(object).name}`),
      ...[...views.map(named), ...outside].map((view) => `drop cascades to materialized view ${view.name}`),
    ]);
    const order = await dependentsOf(
      session,
      live.map((object) => object.facade),
    );
    const depth = new Map(order.map((view, index) => [view.id, index]));
    const allViews = [...views.map(named), ...outside].sort((a, b) => (depth.get(b.id) ?? -1) - (depth.get(a.id) ?? -1));
    await dropFacades(context, session, allViews, true);
    await dropFacades(context, session, tables.map(named), true);
    for (const source of sources) await dropSourceWithTables(context, session, source.id);
  }
  await session.query(text);
  return { kind: 'done', tag: 'DROP SCHEMA' };
}

/** The live objects whose facades are in the schemas of a DROP SCHEMA. */
export async function liveInSchemas(session: CallerSession, statement: DropSchema): Promise<LiveObject[]> {
  const rows = await session.query(
    `SELECT c.oid FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
      WHERE c.relkind = 'v' AND n.nspname IN (SELECT pg_catalog.json_array_elements_text($1::json))`,
    [JSON.stringify(statement.names.map((name) => name.name))],
    { quiet: true },
  );
  return liveByFacade(
    session,
    rows.rows.map((row) => row[0] ?? '0'),
  );
}

/** Whether a DROP concerns Millrace: a name is live, or a live view hangs on it. */
export async function dropConcerns(session: CallerSession, statement: DropRelation | DropSchema): Promise<boolean> {
  if (statement.type === 'drop_schema') return (await liveInSchemas(session, statement)).length > 0;
  const oids = await oidsOf(session, statement.names);
  if ((await liveByFacade(session, oids)).length > 0) return true;
  return (await dependentsOf(session, oids)).length > 0;
}
