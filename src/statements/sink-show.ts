/**
 * SHOW CREATE SINK.
 * Invariant: the text can be executed again and makes the same sink over the relation that it reads now; secrets are named, never shown.
 */
import type { AvroFormat, KafkaSink, SinkDefinition, SinkFormat } from '../catalog/sink-model.ts';
import { quoteIdentifier, quoteLiteral } from '../sql/quote.ts';
import type { CallerSession } from './caller-session.ts';
import { perform, type StatementContext } from './context.ts';
import type { NamedObject } from './names.ts';

interface Stored {
  readonly definition: SinkDefinition;
  /** Qualified and quoted; null: it has been dropped. */
  readonly relation: string | null;
  readonly backfill: string;
  readonly connection: string | null;
  /** By id. */
  readonly connections: Readonly<Record<string, string>>;
  readonly secrets: Readonly<Record<string, string>>;
}

const storedSql = `
SELECT jsonb_build_object(
         'definition', s.definition, 'relation', millrace.qualified_name(r.facade), 'backfill', v.backfill,
         'connection', (SELECT format('%I.%I', n.nspname, c.name) FROM millrace.connection c JOIN pg_namespace n ON n.oid = c.namespace WHERE c.id = s.connection_id),
         'connections', (SELECT coalesce(jsonb_object_agg(c.id, format('%I.%I', n.nspname, c.name)), '{}')
                           FROM millrace.connection c JOIN pg_namespace n ON n.oid = c.namespace),
         'secrets', (SELECT coalesce(jsonb_object_agg(x.id, format('%I.%I', n.nspname, x.name)), '{}')
                       FROM millrace.secret x JOIN pg_namespace n ON n.oid = x.namespace))
  FROM millrace.sink s
  JOIN LATERAL (SELECT i.* FROM millrace.sink_version i WHERE i.sink_id = s.id ORDER BY i.cut_ts IS NULL, i.version DESC LIMIT 1) v ON true
  LEFT JOIN millrace.relation r ON r.id = v.relation_id
 WHERE s.id = ($1 ->> 'id')::bigint`;

export async function createSinkSql(context: StatementContext, session: CallerSession, found: NamedObject): Promise<string> {
  const stored = (await perform(context, session, [storedSql], { id: found.id })) as Stored;
  const { definition, relation } = stored;
  const { target } = definition;
  const lines = [
    `CREATE SINK ${quoteIdentifier(found.schema)}.${quoteIdentifier(found.name)}`,
    `FROM ${relation ?? '/* dropped */'}`,
    `INTO ${intoClause(stored)}`,
    ...(definition.key === null
      ? []
      : [`KEY (${definition.key.map(quoteIdentifier).join(', ')})${isEnforced(definition) ? '' : ' NOT ENFORCED'}`]),
    ...(target.type === 'kafka' ? kafkaClauses(target, stored) : []),
    // An altered sink has no snapshot of what it reads now; made again it needs one.
    ...(stored.backfill === 'none' && relation !== null && (await isFirst(context, session, found.id)) ? ['WITH (SNAPSHOT = false)'] : []),
  ];
  return lines.join('\n  ');
}

/** Where keys need not be unique, nothing was to be shown. */
function isEnforced({ keyProven, target }: SinkDefinition): boolean {
  return keyProven || (target.type === 'kafka' && target.envelope === 'debezium');
}

async function isFirst(context: StatementContext, session: CallerSession, id: string): Promise<boolean> {
  const sql = "SELECT to_jsonb(max(version) = 1) FROM millrace.sink_version WHERE sink_id = ($1 ->> 'id')::bigint";
  return (await perform(context, session, [sql], { id })) === true;
}

function intoClause({ definition, connection, secrets }: Stored): string {
  const { target } = definition;
  switch (target.type) {
    case 'kafka':
      return `KAFKA CONNECTION ${connection} (${kafkaOptions(target).join(', ')})`;
    case 'postgres':
      return `POSTGRES CONNECTION ${connection} (TABLE ${quoteLiteral(`${quoteIdentifier(target.schema)}.${quoteIdentifier(target.table)}`)})`;
    case 'webhook': {
      const secret = target.secretId === null ? '' : `, SECRET ${secrets[target.secretId] ?? '?'}`;
      return `WEBHOOK (URL ${quoteLiteral(target.url)}${secret})`;
    }
  }
}

function kafkaOptions(target: KafkaSink): string[] {
  const config = Object.entries(target.topicConfig).map(([key, value]) => `${quoteLiteral(key)} => ${quoteLiteral(value)}`);
  return [
    `TOPIC ${quoteLiteral(target.topic)}`,
    ...(target.compression === 'lz4' ? [] : [`COMPRESSION TYPE ${quoteLiteral(target.compression)}`]),
    ...(target.transactionalIdPrefix === '' ? [] : [`TRANSACTIONAL ID PREFIX ${quoteLiteral(target.transactionalIdPrefix)}`]),
    ...(target.partitionBy === null ? [] : [`PARTITION BY ${target.partitionBy}`]),
    ...(target.replicationFactor === null ? [] : [`TOPIC REPLICATION FACTOR ${target.replicationFactor}`]),
    ...(target.partitionCount === null ? [] : [`TOPIC PARTITION COUNT ${target.partitionCount}`]),
    ...(config.length === 0 ? [] : [`TOPIC CONFIG MAP[${config.join(', ')}]`]),
  ];
}

function kafkaClauses(target: KafkaSink, stored: Stored): string[] {
  const { keyFormat, valueFormat } = target;
  const same = keyFormat === null || JSON.stringify(keyFormat) === JSON.stringify(valueFormat);
  return [
    ...(target.headers === null ? [] : [`HEADERS ${quoteIdentifier(target.headers)}`]),
    same
      ? `FORMAT ${formatSql(valueFormat, stored)}`
      : `KEY FORMAT ${formatSql(keyFormat, stored)} VALUE FORMAT ${formatSql(valueFormat, stored)}`,
    `ENVELOPE ${target.envelope.toUpperCase()}`,
  ];
}

function formatSql(format: SinkFormat, stored: Stored): string {
  if (format.kind !== 'avro') return format.kind.toUpperCase();
  const options = avroOptions(format, stored);
  const list = options.length === 0 ? '' : ` (${options.join(', ')})`;
  return `AVRO USING CONFLUENT SCHEMA REGISTRY CONNECTION ${stored.connections[format.registryId] ?? '?'}${list}`;
}

function avroOptions(format: AvroFormat, { relation }: Stored): string[] {
  const docs = (side: 'KEY' | 'VALUE', of: Readonly<Record<string, string>>): string[] =>
    Object.entries(of).map(([column, doc]) => {
      const place = column === '' ? `TYPE ${relation}` : `COLUMN ${relation}.${quoteIdentifier(column)}`;
      return `${side} DOC ON ${place} = ${quoteLiteral(doc)}`;
    });
  const text = (name: string, value: string | null): string[] => (value === null ? [] : [`${name} ${quoteLiteral(value)}`]);
  return [
    ...text('AVRO KEY FULLNAME', format.keyFullname),
    ...text('AVRO VALUE FULLNAME', format.valueFullname),
    ...(format.nullDefaults ? ['NULL DEFAULTS = true'] : []),
    ...docs('KEY', format.keyDocs),
    ...docs('VALUE', format.valueDocs),
    ...text('KEY COMPATIBILITY LEVEL', format.keyCompatibility),
    ...text('VALUE COMPATIBILITY LEVEL', format.valueCompatibility),
  ];
}
