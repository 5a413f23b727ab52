/**
 * What a sink is to be: the clauses of CREATE SINK as the catalog keeps them, and the rules they have to meet.
 * Invariant: the rules are the same when a sink is created and when it is given another relation.
 */
import type { KafkaSink, PostgresSink, SinkColumn, SinkDefinition, SinkFormat, SinkTarget, WebhookSink } from '../catalog/sink-model.ts';
import { millraceError } from '../errors.ts';
import type { CreateSink, FormatClause, Identifier } from '../sql/ast.ts';
import { quoteIdentifier } from '../sql/quote.ts';
import type { CallerSession } from './caller-session.ts';
import { requireConnection } from './connections.ts';
import { type CallerRole, firstRow, type StatementContext } from './context.ts';
import { requireNamed } from './names.ts';
import { checkFormats } from './sink-checks.ts';
import {
  avroFormat,
  expressionOption,
  type GivenOptions,
  givenOptions,
  kafkaOptions,
  nameOption,
  requiredOption,
  secretOption,
  textOption,
} from './sink-options.ts';
import { partitionExpression } from './sink-partition.ts';
import type { SinkRelation } from './sink-relation.ts';

export interface PlannedSink {
  readonly definition: SinkDefinition;
  /** null: a webhook. */
  readonly connectionId: string | null;
}

/** Raises what is wrong with the statement. */
export async function planSink(
  context: StatementContext,
  session: CallerSession,
  role: CallerRole,
  statement: CreateSink,
  relation: SinkRelation,
): Promise<PlannedSink> {
  const key = keyColumns(statement, relation);
  const given = givenOptions(statement.target.kind, statement.target.options);
  const planned = await planTarget(context, session, role, statement, relation, key, given);
  const enforced = statement.key?.enforced ?? true;
  const definition: SinkDefinition = { target: planned.target, key, keyProven: key !== null && enforced && isKey(relation, key) };
  requireKey(session, definition, relation, enforced);
  await checkFormats(definition, relation.columns);
  return { definition, connectionId: planned.connectionId };
}

/** Whether the definition of a sink holds over another relation, whose columns take the place of `before`. Raises when it does not. */
export async function requireSameSink(
  context: StatementContext,
  session: CallerSession,
  role: CallerRole,
  definition: SinkDefinition,
  before: readonly SinkColumn[],
  relation: SinkRelation,
): Promise<void> {
  const { key, target } = definition;
  for (const name of key ?? []) {
    const column = relation.columns.find((one) => one.name === name);
    const former = before.find((one) => one.name === name);
    if (column === undefined) throw undefinedColumn('KEY', name, relation);
    if (former !== undefined && (former.typeOid !== column.typeOid || former.typmod !== column.typmod)) {
      throw millraceError('sink_key_changed', { column: name, type: column.type, relation: relation.name, before: former.type });
    }
  }
  requireKey(session, definition, relation, definition.keyProven);
  if (target.type === 'kafka') {
    if (target.headers !== null) requireHeaders(target.headers, null, relation);
    if (target.partitionBy !== null) {
      const given = { text: target.partitionBy, at: null };
      await partitionExpression(context, session, role, given, relation, target.envelope === 'debezium' ? key : null);
    }
  }
  await checkFormats(definition, relation.columns);
}

function keyColumns(statement: CreateSink, relation: SinkRelation): string[] | null {
  if (statement.key === null) return null;
  const key: string[] = [];
  for (const { name, at } of statement.key.columns) {
    if (!relation.columns.some((column) => column.name === name)) throw undefinedColumn('KEY', name, relation, at);
    if (key.includes(name)) throw millraceError('sink_key_duplicate', { column: name }, { position: at + 1 });
    key.push(name);
  }
  return key;
}

function undefinedColumn(clause: string, column: string, relation: SinkRelation, at: number | null = null): Error {
  const near = relation.columns.find((one) => one.name.toLowerCase() === column.toLowerCase());
  return millraceError(
    'sink_column_undefined',
    {
      clause,
      column,
      relation: relation.name,
      columns: relation.columns.map((one) => quoteIdentifier(one.name)).join(', '),
      hint: near === undefined ? '' : `Perhaps you meant ${quoteIdentifier(near.name)}.`,
    },
    at === null ? {} : { position: at + 1 },
  );
}

/** Some known key of the relation is among the columns. */
function isKey(relation: SinkRelation, columns: readonly string[]): boolean {
  return relation.keys.some((key) => key.every((column) => columns.includes(column)));
}

/** Messages of these sinks replace each other by key. */
function replacesByKey(target: SinkTarget): boolean {
  return target.type !== 'kafka' || target.envelope === 'upsert';
}

function requireKey(session: CallerSession, { target, key }: SinkDefinition, relation: SinkRelation, enforced: boolean): void {
  if (key === null) {
    if (target.type === 'postgres' || !replacesByKey(target)) return;
    const columns = (relation.keys[0] ?? ['..']).map((name) => (name === '..' ? name : quoteIdentifier(name))).join(', ');
    throw millraceError('sink_key_required', { sinks: target.type === 'kafka' ? 'upsert sinks' : 'webhook sinks', columns });
  }
  if (!replacesByKey(target) || isKey(relation, key)) return;
  if (!enforced) {
    session.notice({ severity: 'NOTICE', code: '00000', message: 'upsert key not validated to be unique' });
    return;
  }
  const shown = (columns: readonly string[]): string => columns.map((name) => `"${name}"`).join(', ');
  throw millraceError('sink_key_unproven', {
    key: shown(key),
    key_quoted: key.map(quoteIdentifier).join(', '),
    relation: relation.name,
    known:
      relation.keys.length === 0
        ? 'There are no known valid unique keys for the underlying relation.'
        : `The following keys are known to be unique for the underlying relation:\n${relation.keys.map((columns) => `  (${shown(columns)})`).join('\n')}`,
  });
}

/** Types that can hold a map of texts. */
const mapTypes = /^(?:json|jsonb|(?:\w+\.)?hstore)$/;

function requireHeaders(name: string, at: number | null, relation: SinkRelation): void {
  const column = relation.columns.find((one) => one.name === name);
  if (column === undefined) throw undefinedColumn('HEADERS', name, relation, at);
  if (mapTypes.test(column.type)) return;
  throw millraceError(
    'sink_column_type',
    { format: 'HEADERS', column: name, type: column.type, detail: 'It wants a map of texts.', hint: 'The types are: jsonb, json, hstore.' },
    at === null ? {} : { position: at + 1 },
  );
}

async function planTarget(
  context: StatementContext,
  session: CallerSession,
  role: CallerRole,
  statement: CreateSink,
  relation: SinkRelation,
  key: readonly string[] | null,
  given: GivenOptions,
): Promise<{ readonly target: SinkTarget; readonly connectionId: string | null }> {
  const { target } = statement;
  if (target.kind !== 'kafka') refuseKafkaClauses(statement);
  switch (target.kind) {
    case 'kafka': {
      const connection = await requireConnection(context, session, target.connection, role, 'kafka');
      return { target: await planKafka(context, session, role, statement, relation, key, given), connectionId: connection.id };
    }
    case 'postgres': {
      const connection = await requireConnection(context, session, target.connection, role, 'postgres');
      return { target: await planPostgres(session, given), connectionId: connection.id };
    }
    case 'webhook':
      return { target: await planWebhook(context, session, role, given), connectionId: null };
  }
}

function refuseKafkaClauses({ target, keyFormat, format, envelope, headers }: CreateSink): void {
  const clause = keyFormat !== null || format !== null ? 'FORMAT' : envelope !== null ? 'ENVELOPE' : headers !== null ? 'HEADERS' : null;
  if (clause === null) return;
  throw millraceError(
    'feature_not_supported',
    { message: `${clause} is not supported for sinks INTO ${target.kind.toUpperCase()}` },
    { position: (format?.at ?? headers?.at ?? target.connection?.at ?? 0) + 1 },
  );
}

async function planKafka(
  context: StatementContext,
  session: CallerSession,
  role: CallerRole,
  statement: CreateSink,
  relation: SinkRelation,
  key: readonly string[] | null,
  given: GivenOptions,
): Promise<KafkaSink> {
  const { headers, keyFormat } = statement;
  const options = kafkaOptions(given);
  const envelope = statement.envelope ?? (key === null ? 'debezium' : 'upsert');
  if (keyFormat !== null && key === null) {
    throw millraceError(
      'invalid_option',
      { message: 'KEY FORMAT needs a KEY', hint: 'Add KEY (..), or give FORMAT alone.' },
      { position: keyFormat.at + 1 },
    );
  }
  if (headers !== null) {
    if (envelope === 'debezium') {
      throw millraceError(
        'invalid_option',
        { message: 'HEADERS option is not supported with ENVELOPE DEBEZIUM' },
        { position: headers.at + 1 },
      );
    }
    requireHeaders(headers.name, headers.at, relation);
  }
  const format = statement.format ?? { kind: 'json' as const, at: 0 };
  const stored = (clause: FormatClause): Promise<SinkFormat> => storedFormat(context, session, role, clause, statement.from, relation, key);
  const valueFormat = await stored(format);
  const partition = expressionOption(given, 'PARTITION BY');
  if (textOption(given, 'PROGRESS GROUP ID PREFIX') !== null) {
    session.notice({ severity: 'NOTICE', code: '00000', message: 'PROGRESS GROUP ID PREFIX has no effect: no consumer group is used' });
  }
  return {
    type: 'kafka',
    ...options,
    partitionBy:
      partition === null
        ? null
        : await partitionExpression(context, session, role, partition, relation, envelope === 'debezium' ? (key ?? []) : null),
    headers: headers?.name ?? null,
    envelope,
    keyFormat: key === null ? null : keyFormat === null ? valueFormat : await stored(keyFormat),
    valueFormat,
  };
}

async function storedFormat(
  context: StatementContext,
  session: CallerSession,
  role: CallerRole,
  clause: FormatClause,
  from: Pick<Identifier, 'name'>,
  relation: SinkRelation,
  key: readonly string[] | null,
): Promise<SinkFormat> {
  if (clause.kind !== 'avro') return { kind: clause.kind };
  const registry = await requireConnection(context, session, clause.registry, role, 'confluent schema registry');
  const columns = relation.columns.map((column) => column.name);
  return avroFormat(clause.options, registry.id, { name: from.name, columns }, key);
}

async function planPostgres(session: CallerSession, given: GivenOptions): Promise<PostgresSink> {
  const name = nameOption(given, 'TABLE') ?? requiredOption(given, 'postgres', 'TABLE');
  if (typeof name !== 'string') return { type: 'postgres', schema: name.schema ?? 'public', table: name.name };
  const row = await firstRow(session, 'SELECT pg_catalog.to_json(pg_catalog.parse_ident($1))', [name]);
  const parts = JSON.parse(row?.[0] ?? '[]') as string[];
  const [first = '', second] = parts;
  if (parts.length > 2) throw millraceError('invalid_option', { message: `invalid TABLE: "${name}"`, hint: "Give it as 'schema.table'." });
  return second === undefined ? { type: 'postgres', schema: 'public', table: first } : { type: 'postgres', schema: first, table: second };
}

async function planWebhook(context: StatementContext, session: CallerSession, role: CallerRole, given: GivenOptions): Promise<WebhookSink> {
  const url = requiredOption(given, 'webhook', 'URL');
  const parsed = URL.canParse(url) ? new URL(url) : null;
  if (parsed === null || !/^https?:$/.test(parsed.protocol)) {
    throw millraceError('invalid_option', { message: `invalid URL: "${url}"`, hint: "Give it as 'https://host/path'." });
  }
  if (parsed.username !== '' || parsed.password !== '') {
    throw millraceError('invalid_option', {
      message: 'invalid URL: it must not contain a user or password',
      hint: 'Sign requests instead: SECRET my_secret.',
    });
  }
  const secret = secretOption(given, 'SECRET');
  return { type: 'webhook', url, secretId: secret === null ? null : (await requireNamed(context, session, 'secret', secret, role)).id };
}
