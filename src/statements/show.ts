/**
 * SHOW SOURCES, SINKS, TABLES, MATERIALIZED VIEWS, CONNECTIONS, SECRETS and SHOW CREATE.
 * Invariant: what is shown is read from the catalog with the names things have now; SHOW CREATE can be executed again and never shows a secret.
 */
import type { ConnectionOptions } from '../catalog/connection-address.ts';
import { millraceError } from '../errors.ts';
import type { QualifiedName, ShowCreate, ShowKind, ShowObjects } from '../sql/ast.ts';
import { loadPostgresParser, parseSql } from '../sql/postgres-parser.ts';
import { quoteIdentifier, quoteLiteral } from '../sql/quote.ts';
import type { CallerSession, FieldDescription, StatementResult } from './caller-session.ts';
import { shownTarget, targetOf } from './connection-options.ts';
import { callerRole, catalogPresent, firstRow, perform, type StatementContext } from './context.ts';
import { findLive, type LiveObject, relationExists, requireNamed, shownName, undefinedObject } from './names.ts';
import { createSinkSql } from './sink-show.ts';

const text = 25;

/** Columns of each SHOW, as Materialize has them, less clusters, plus what tells the state. */
const shownColumns: Readonly<Record<ShowKind, readonly string[]>> = {
  sources: ['name', 'type', 'status', 'comment'],
  sinks: ['name', 'type', 'relation', 'status', 'comment'],
  tables: ['name', 'state', 'comment'],
  'materialized views': ['name', 'state', 'comment'],
  connections: ['name', 'type', 'comment'],
  secrets: ['name', 'comment'],
  migrations: [
    ...[
      'name',
      'kind',
      'table',
      'status',
      'request',
      'rows_copied',
      'rows_total',
      'lag_ms',
      'backlog_bytes',
      'last_verified_at',
      'differences',
    ],
    ...['blocked_by', 'next_try_at', 'error'],
  ],
};

const showQueries: Readonly<Record<ShowKind, string>> = {
  sources: `SELECT s.name::text AS name, s.type, s.status, coalesce(pg_catalog.obj_description(x.facade, 'pg_class'), '') AS comment,
                   s.schema, NULL::bigint AS source_id
              FROM millrace.sources s, LATERAL (SELECT pg_catalog.to_regclass(pg_catalog.format('%I.%I', s.schema, s.name))::oid) AS x(facade)`,
  tables: `SELECT r.name::text AS name, r.state, coalesce(pg_catalog.obj_description(x.facade, 'pg_class'), '') AS comment, r.schema, r.source_id
             FROM millrace.relations r, LATERAL (SELECT pg_catalog.to_regclass(pg_catalog.format('%I.%I', r.schema, r.name))::oid) AS x(facade)
            WHERE r.type = 'table'`,
  'materialized views': `SELECT r.name::text AS name, r.state, coalesce(pg_catalog.obj_description(x.facade, 'pg_class'), '') AS comment, r.schema,
                                NULL::bigint AS source_id
             FROM millrace.relations r, LATERAL (SELECT pg_catalog.to_regclass(pg_catalog.format('%I.%I', r.schema, r.name))::oid) AS x(facade)
            WHERE r.type = 'materialized view'`,
  sinks: "SELECT s.name, s.type, s.relation, s.status, ''::text AS comment, s.schema, NULL::bigint AS source_id FROM millrace.sinks s",
  connections: "SELECT c.name, c.type, ''::text AS comment, c.schema, NULL::bigint AS source_id FROM millrace.connections c",
  migrations: `SELECT m.name, m.kind, m.source AS "table", m.status, m.request, m.rows_copied, m.rows_total, m.lag_ms, m.backlog_bytes,
                      m.last_pass_at AS last_verified_at, m.differences, m.blocked_by, m.next_try_at, m.error, ''::text AS schema, NULL::bigint AS source_id
                 FROM millrace.migrations m`,
  secrets: "SELECT s.name, ''::text AS comment, s.schema, NULL::bigint AS source_id FROM millrace.secrets s",
};

const field = (name: string): FieldDescription => ({ name, typeOid: text, typeModifier: -1 });

export function showFields(statement: ShowObjects): readonly FieldDescription[] {
  return shownColumns[statement.kind].map(field);
}

export const showCreateFields: readonly FieldDescription[] = [field('name'), field('create_sql')];

/** Without FROM: those of all schemas. */
export async function showObjects(context: StatementContext, session: CallerSession, statement: ShowObjects): Promise<StatementResult> {
  const fields = showFields(statement);
  if (!(await catalogPresent(context, session))) return { kind: 'rows', fields, rows: [], tag: 'SHOW' };
  const columns = shownColumns[statement.kind].map(quoteIdentifier).join(', ');
  const parameters: (string | null)[] = [];
  const parameter = (value: string): string => `$${parameters.push(value)}`;
  const conditions: string[] = [];
  if (statement.schema !== null) {
    const there = await firstRow(session, 'SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = $1', [statement.schema.name]);
    if (there === null) {
      throw millraceError(
        'undefined_schema',
        { name: statement.schema.name, name_quoted: quoteIdentifier(statement.schema.name) },
        { position: statement.schema.at + 1 },
      );
    }
    conditions.push(`shown.schema = ${parameter(statement.schema.name)}`);
  } else if (statement.source === null) {
    conditions.push("shown.schema NOT IN ('pg_catalog', 'information_schema')");
  }
  if (statement.source !== null) {
    const source = await findLive(session, statement.source);
    if (source === null || source.type !== 'source') throw undefinedObject('source', statement.source);
    conditions.push(`shown.source_id = ${parameter(source.id)}::bigint`);
  }
  if (statement.like !== null) conditions.push(`shown.name LIKE ${parameter(statement.like)}`);
  if (statement.where !== null) {
    await requireExpression(statement.where);
    conditions.push(`(${statement.where})`);
  }
  const result = await session.query(
    `SELECT ${columns} FROM (${showQueries[statement.kind]}) AS shown${conditions.length === 0 ? '' : ` WHERE ${conditions.join(' AND ')}`} ORDER BY shown.schema, shown.name`,
    parameters,
  );
  return { kind: 'rows', fields, rows: result.rows, tag: 'SHOW' };
}

/** Raises unless the text is one expression, not the end of one and the beginning of another. */
async function requireExpression(text: string): Promise<void> {
  await loadPostgresParser();
  for (const sql of [`SELECT WHERE (${text})`, `SELECT WHERE ${text}`]) {
    try {
      parseSql(sql);
    } catch (error) {
      throw millraceError('syntax_error', { message: error instanceof Error ? error.message : String(error) });
    }
  }
}

export async function showCreate(context: StatementContext, session: CallerSession, statement: ShowCreate): Promise<StatementResult> {
  const { kind, name } = statement;
  if (!(await catalogPresent(context, session))) throw undefinedObject(kind, name);
  const [shown, sql] = await createSql(context, session, kind, name);
  return { kind: 'rows', fields: showCreateFields, rows: [[shown, sql]], tag: 'SHOW' };
}

async function createSql(
  context: StatementContext,
  session: CallerSession,
  kind: ShowCreate['kind'],
  name: QualifiedName,
): Promise<[string, string]> {
  switch (kind) {
    case 'connection':
      return await createConnectionSql(context, session, name);
    case 'sink': {
      const found = await requireNamed(context, session, 'sink', name, await callerRole(session));
      return [`${quoteIdentifier(found.schema)}.${quoteIdentifier(found.name)}`, await createSinkSql(context, session, found)];
    }
    case 'migration':
      return await createMigrationSql(session, name);
    case 'source':
    case 'table':
    case 'materialized view':
      return await createRelationSql(context, session, kind, name);
  }
}

async function createConnectionSql(context: StatementContext, session: CallerSession, name: QualifiedName): Promise<[string, string]> {
  const found = await requireNamed(context, session, 'connection', name, await callerRole(session));
  const row = (await perform(
    context,
    session,
    [
      `SELECT jsonb_build_object(
                'type', c.type, 'options', c.options,
                'secrets', (SELECT coalesce(jsonb_object_agg(s.id, format('%I.%I', n.nspname, s.name)), '{}')
                              FROM millrace.secret s JOIN pg_namespace n ON n.oid = s.namespace))
         FROM millrace.connection c WHERE c.id = ($1 ->> 'id')::bigint`,
    ],
    { id: found.id },
  )) as { type: string; options: ConnectionOptions; secrets: Record<string, string> };
  const options = Object.entries(row.options).map(([option, value]) =>
    'secret' in value ? `${option} SECRET ${row.secrets[value.secret] ?? '?'}` : `${option} ${optionSql(option, value.value)}`,
  );
  const qualified = `${quoteIdentifier(found.schema)}.${quoteIdentifier(found.name)}`;
  return [qualified, `CREATE CONNECTION ${qualified} TO ${shownTarget(targetOf(row.type))} (${options.join(', ')})`];
}

/** As typed: of the one under way, else of the last of this name. */
async function createMigrationSql(session: CallerSession, name: QualifiedName): Promise<[string, string]> {
  const row = await firstRow(
    session,
    "SELECT m.statement FROM millrace.migrations m WHERE m.name = $1 ORDER BY m.phase IN ('finished', 'cancelled'), m.id DESC LIMIT 1",
    [name.name],
  );
  if (row === null) throw undefinedObject('migration', name);
  return [quoteIdentifier(name.name), row[0] ?? ''];
}

function optionSql(option: string, value: string): string {
  if (option === 'BROKERS') return `(${value.split(',').map(quoteLiteral).join(', ')})`;
  return option === 'PORT' || option === 'PROGRESS TOPIC REPLICATION FACTOR' ? value : quoteLiteral(value);
}

async function createRelationSql(
  context: StatementContext,
  session: CallerSession,
  kind: 'source' | 'table' | 'materialized view',
  name: QualifiedName,
): Promise<[string, string]> {
  const kinds = { source: 'source', table: 'table', 'materialized view': 'view' } as const;
  const found = await findLive(session, name);
  if (found === null) {
    if (await relationExists(session, name))
      throw millraceError('wrong_object_type', { name: shownName(name), kind: `live ${kind}` }, { position: name.at + 1 });
    throw undefinedObject(kind, name);
  }
  if (found.type !== kinds[kind]) throw millraceError('wrong_object_type', { name: shownName(name), kind }, { position: name.at + 1 });
  const qualified = `${quoteIdentifier(found.schema)}.${quoteIdentifier(found.name)}`;
  return [qualified, await relationSql(context, session, found, qualified)];
}

async function relationSql(context: StatementContext, session: CallerSession, found: LiveObject, qualified: string): Promise<string> {
  switch (found.type) {
    case 'source': {
      const row = (await perform(
        context,
        session,
        [
          `SELECT jsonb_build_object('connection', format('%I.%I', n.nspname, c.name), 'publication', s.publication)
             FROM millrace.source s
             JOIN millrace.connection c ON c.id = s.connection_id
             JOIN pg_namespace n ON n.oid = c.namespace
            WHERE s.id = ($1 ->> 'id')::bigint`,
        ],
        { id: found.id },
      )) as { connection: string; publication: string };
      return `CREATE SOURCE ${qualified} FROM POSTGRES CONNECTION ${row.connection} (PUBLICATION ${quoteLiteral(row.publication)})`;
    }
    case 'table': {
      const row = (await perform(
        context,
        session,
        [
          `SELECT jsonb_build_object('source', millrace.qualified_name(src.facade), 'schema', s.origin_schema, 'table', s.origin_name,
                                     'excluded', v.excluded, 'text', v.text_columns)
             FROM millrace.table_version v
             JOIN millrace.storage s ON s.id = v.storage_id
             JOIN millrace.source src ON src.id = v.source_id
            WHERE v.relation_id = ($1 ->> 'id')::bigint`,
        ],
        { id: found.id },
      )) as { source: string; schema: string; table: string; excluded: string[]; text: string[] };
      const list = (columns: readonly string[]): string => columns.map(quoteIdentifier).join(', ');
      const options = [
        ...(row.text.length > 0 ? [`TEXT COLUMNS (${list(row.text)})`] : []),
        ...(row.excluded.length > 0 ? [`EXCLUDE COLUMNS (${list(row.excluded)})`] : []),
      ];
      const reference = `${quoteIdentifier(row.schema)}.${quoteIdentifier(row.table)}`;
      return `CREATE TABLE ${qualified} FROM SOURCE ${row.source} (REFERENCE ${reference})${options.length > 0 ? ` WITH (${options.join(', ')})` : ''}`;
    }
    case 'view': {
      const definition = (await perform(
        context,
        session,
        [
          `SELECT to_jsonb(coalesce(t.definition, pg_get_viewdef(lv.definition)))
             FROM millrace.live_view lv LEFT JOIN millrace.stream_table t USING (relation_id) WHERE lv.relation_id = ($1 ->> 'id')::bigint`,
        ],
        { id: found.id },
      )) as string;
      return `CREATE MATERIALIZED VIEW ${qualified} AS\n${definition.replace(/;\s*$/, '')}`;
    }
  }
}
