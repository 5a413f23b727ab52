/**
 * What a SUBSCRIBE means: which relation or query, which columns, which bounds.
 * Invariant: names are resolved and columns described by Postgres in the caller's session, so what cannot be read or does not exist is its error.
 */
import { millraceError } from '../errors.ts';
import type { ExpressionText, Identifier, QualifiedName, Subscribe } from '../sql/ast.ts';
import { loadPostgresParser, parseSql } from '../sql/postgres-parser.ts';
import { type CallerSession, type FieldDescription, type QueryResult, UpstreamError } from './caller-session.ts';
import { callerRole, firstRow, type StatementContext } from './context.ts';
import { droppable } from './dependents.ts';
import { findLive, type LiveObject, liveByFacade, quotedName, relationExists, requireOwner, shownName, undefinedObject } from './names.ts';
import { type Shape, type ShownColumn, shapedSql } from './subscribe-sql.ts';
import { findDurable, isImmediate } from './subscription-catalog.ts';

export interface Understood {
  readonly shape: Shape;
  readonly fields: readonly FieldDescription[];
  /** null: a query. */
  readonly live: LiveObject | null;
  /** null: not a durable one. */
  readonly durable: { readonly id: string; readonly name: QualifiedName } | null;
}

export async function understand(context: StatementContext, session: CallerSession, statement: Subscribe): Promise<Understood> {
  const { target } = statement;
  let live: LiveObject | null = null;
  let durable: Understood['durable'] = null;
  if (target.kind === 'durable') {
    const found = await findDurable(context, session, target.name);
    if (found === null) throw undefinedObject('durable subscription', target.name);
    await requireOwner(session, 'durable subscription', shownName(target.name), found.owner, await callerRole(session));
    live = found.facade === null ? null : ((await liveByFacade(session, [found.facade]))[0] ?? null);
    if (live === null) throw relationGone(target.name, 'it');
    durable = { id: found.id, name: target.name };
  } else if (target.kind === 'relation') live = await requireSubscribable(context, session, target.name);
  const from = live === null ? `(${target.kind === 'query' ? target.query.text : ''}) AS q` : droppable(live).name;
  const { fields } = await session.query(`SELECT * FROM ${from} WHERE false`);
  const columns = await typed(session, fields);
  await checkOrder(statement.orderBy, columns);
  const shape: Shape = {
    columns,
    envelope: statement.envelope?.kind ?? null,
    key: keyPlaces(statement, columns),
    orderBy: statement.orderBy?.text ?? null,
    progress: statement.progress,
  };
  const named = columns.map((_, place) => `v${place + 1}`).join(', ');
  const rows = `SELECT 0::bigint AS ts, 1 AS w, f.* FROM (SELECT * FROM ${from} WHERE false) AS f${named === '' ? '' : `(${named})`}`;
  const empty = shapedSql(shape, rows, true);
  try {
    return { shape, fields: (await session.query(empty, [], { quiet: true })).fields, live, durable };
  } catch (error) {
    if (statement.orderBy === null || !(error instanceof UpstreamError)) throw error;
    throw millraceError(
      'subscription_order',
      { cause: error.message, columns: ['mz_diff', ...columns.map(({ name }) => name)].join(', ') },
      { position: statement.orderBy.at + 1 },
    );
  }
}

async function typed(session: CallerSession, fields: QueryResult['fields']): Promise<readonly ShownColumn[]> {
  const asked = fields.map(({ typeOid, typeModifier }) => `pg_catalog.format_type(${typeOid}, ${typeModifier})`);
  const types = asked.length === 0 ? [] : ((await firstRow(session, `SELECT ${asked.join(', ')}`)) ?? []);
  return fields.map(({ name }, place) => ({ name, type: types[place] ?? 'text' }));
}

function keyPlaces({ envelope }: Subscribe, columns: readonly ShownColumn[]): number[] {
  const seen = new Set<string>();
  return (envelope?.key ?? []).map((column: Identifier) => {
    const place = columns.findIndex(({ name }) => name === column.name);
    const wrong =
      place === -1 ? `There is no column "${column.name}".` : seen.has(column.name) ? `Column "${column.name}" is named twice.` : null;
    seen.add(column.name);
    if (wrong === null) return place;
    const names = columns.map(({ name }) => name).join(', ');
    throw millraceError(
      'subscription_key',
      { envelope: envelope?.kind.toUpperCase() ?? '', cause: wrong, columns: names },
      { position: column.at + 1 },
    );
  });
}

/** ORDER BY and nothing behind it. */
async function checkOrder(orderBy: ExpressionText | null, columns: readonly ShownColumn[]): Promise<void> {
  if (orderBy === null) return;
  await loadPostgresParser();
  const tree = JSON.stringify(parseSql(`SELECT 1 ORDER BY ${orderBy.text}`).stmts ?? []);
  if (!/"limitCount"|"limitOffset"|"lockingClause"/.test(tree)) return;
  const names = ['mz_diff', ...columns.map(({ name }) => name)].join(', ');
  throw millraceError('subscription_order', { cause: 'Only expressions can be named.', columns: names }, { position: orderBy.at + 1 });
}

/** A durable subscription that nothing more comes of. */
export function relationGone(name: QualifiedName, relation: string): Error {
  return millraceError('durable_subscription_relation_gone', { name: shownName(name), relation, quoted: quotedName(name) });
}

/** The live relation of a name that can be subscribed to. */
export async function requireSubscribable(context: StatementContext, session: CallerSession, name: QualifiedName): Promise<LiveObject> {
  const live = await findLive(session, name);
  const options = { position: name.at + 1 };
  if (live !== null && live.type !== 'source') {
    if (!(await isImmediate(context, session.database, live.id))) return live;
    const detail = "In IMMEDIATE mode it changes within the writers' own transactions, which Millrace does not follow.";
    const hint = "SELECT pgtrickle.alter_stream_table(.., refresh_mode => 'DIFFERENTIAL');";
    throw millraceError('not_subscribable', { kind: 'stream table', name: shownName(name), detail, hint }, options);
  }
  if (live !== null) {
    throw millraceError(
      'not_subscribable',
      { kind: 'source', name: shownName(name), hint: 'Subscribe to a table of it: CREATE TABLE .. FROM SOURCE.' },
      options,
    );
  }
  if (!(await relationExists(session, name))) throw millraceError('undefined_relation', { name: shownName(name) }, options);
  throw millraceError(
    'not_subscribable',
    {
      kind: 'relation',
      name: shownName(name),
      detail: 'It is not one that Millrace keeps, so nobody follows its changes.',
      hint: `Create a stream table over it, or give a query over live relations: SUBSCRIBE (SELECT * FROM ${quotedName(name)});`,
    },
    options,
  );
}

/** Milliseconds of AS OF and UP TO, null where there is none; the present is the same for all of them. */
export async function timestampsOf(session: CallerSession, expressions: readonly (ExpressionText | null)[]): Promise<(number | null)[]> {
  const asked = expressions.map((expression) => {
    if (expression === null) return 'NULL';
    const text = expression.text.replace(/\bmz_now\s*\(\s*\)/gi, 'millrace.now()');
    return `(SELECT CASE WHEN pg_catalog.pg_typeof(x.x)::pg_catalog.oid IN (1082, 1114, 1184) OR x.x::text ~ '^[0-9]{4}-[0-9]'
                         THEN floor(extract(epoch FROM x.x::text::timestamptz) * 1000)::text ELSE x.x::text END
               FROM (SELECT (${text}) AS x) x)`;
  });
  if (expressions.every((expression) => expression === null)) return expressions.map(() => null);
  const row = await firstRow(session, `SELECT ${asked.join(', ')}`);
  return expressions.map((expression, index) => (expression === null ? null : asTimestamp(expression, row?.[index] ?? null)));
}

function asTimestamp(expression: ExpressionText, value: string | null): number {
  const ts = value === null || value.trim() === '' ? Number.NaN : Number(value);
  if (Number.isInteger(ts) && ts >= 0) return ts;
  throw millraceError('subscription_timestamp', { value: value ?? 'NULL' }, { position: expression.at + 1 });
}
