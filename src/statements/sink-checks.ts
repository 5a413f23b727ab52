/**
 * What is asked of Kafka and schema registries before a statement is accepted, each problem its own error.
 * Invariant: nothing there is changed here. Their clients are loaded when they are first wanted: proxy workers need none of it.
 */
import type { KafkaAddress, RegistryAddress } from '../catalog/connection-address.ts';
import type { KafkaSink, SinkColumn, SinkDefinition } from '../catalog/sink-model.ts';
import { type MillraceError, millraceError } from '../errors.ts';
import type { MessageMaker, MessageProblem } from '../sinks/formats/messages.ts';
import type { KafkaError } from '../sinks/kafka/failure.ts';
import type { SchemaRegistry } from '../sinks/registry.ts';

/** A client waits for the answer. */
const patience = { connectTimeoutMs: 10_000, requestTimeoutMs: 10_000, retryForMs: 0 };

/** CREATE, ALTER, VALIDATE CONNECTION TO KAFKA: can the cluster be reached and logged in to? */
export async function checkKafka(address: KafkaAddress, connection: string): Promise<void> {
  const [{ connectKafka }, failures] = await Promise.all([import('../sinks/kafka/client.ts'), import('../sinks/kafka/failure.ts')]);
  try {
    const kafka = await connectKafka({ ...address, ...patience });
    try {
      await kafka.probe();
    } finally {
      await kafka.close().catch(() => undefined);
    }
  } catch (error) {
    throw error instanceof failures.KafkaError ? kafkaProblem(error, address, connection) : error;
  }
}

function kafkaProblem(error: KafkaError, address: KafkaAddress, connection: string): MillraceError {
  const cause = error.message;
  const failed = (hint: string): MillraceError => millraceError('kafka_failed', { cause, hint }, { cause: error });
  switch (error.condition) {
    case 'authentication':
      return millraceError('kafka_authentication_failed', { cause, connection }, { cause: error });
    case 'tls':
      return failed(`Correct the SECURITY PROTOCOL of connection "${connection}" or its certificates.`);
    case 'unreachable':
    case 'timeout':
      return failed(
        `Check that Kafka listens at ${address.brokers.join(', ')} for ${address.tls === null ? 'clients without TLS' : 'clients with TLS'}, and that this machine may reach it.`,
      );
    case 'authorization':
      return failed(`Allow it to the user of connection "${connection}" in the cluster.`);
    default:
      return failed(`Check connection "${connection}".`);
  }
}

/** CREATE, ALTER, VALIDATE CONNECTION TO CONFLUENT SCHEMA REGISTRY: does it answer, and to this user? */
export async function checkRegistry(address: RegistryAddress, connection: string): Promise<void> {
  await askRegistry(address, connection, (registry) => registry.probe());
}

/** Asks a registry; what goes wrong is raised as an error of ours. */
async function askRegistry<T>(address: RegistryAddress, connection: string, work: (registry: SchemaRegistry) => Promise<T>): Promise<T> {
  const { RegistryError, schemaRegistry } = await import('../sinks/registry.ts');
  try {
    return await work(schemaRegistry({ ...address, timeoutMs: 10_000 }));
  } catch (error) {
    if (!(error instanceof RegistryError)) throw error;
    const cause = error.message;
    if (error.failure === 'authentication') throw millraceError('registry_authentication_failed', { cause, connection }, { cause: error });
    const hint =
      error.failure === 'unreachable'
        ? `Check that a schema registry listens at ${address.url}, and that this machine may reach it.`
        : `Check connection "${connection}".`;
    throw millraceError('registry_failed', { cause, hint }, { cause: error });
  }
}

/** Whether the formats of a sink can hold the columns. Raises what does not fit. */
export async function checkFormats(definition: SinkDefinition, columns: readonly SinkColumn[]): Promise<void> {
  if (definition.target.type === 'kafka') await messagesOf(definition.target, definition.key, columns);
}

/**
 * Whether the registry takes the schemas of the columns as next versions of what it has under the topic. `open`: where a registry is, by the id
 * of its connection.
 */
export async function checkRegistrySchemas(
  definition: SinkDefinition,
  columns: readonly SinkColumn[],
  open: (connectionId: string) => Promise<{ readonly name: string; readonly address: RegistryAddress }>,
): Promise<void> {
  const { target, key } = definition;
  if (target.type !== 'kafka') return;
  const { keySchema, valueSchema } = await messagesOf(target, key, columns);
  const sides = [
    { side: 'key', format: target.keyFormat, schema: keySchema },
    { side: 'value', format: target.valueFormat, schema: valueSchema },
  ] as const;
  for (const { side, format, schema } of sides) {
    if (format?.kind !== 'avro' || schema === undefined) continue;
    const subject = `${target.topic}-${side}`;
    const { name, address } = await open(format.registryId);
    const answer = await askRegistry(address, name, (registry) => registry.checkCompatibility(subject, schema));
    if (!answer.compatible) {
      throw millraceError('registry_incompatible', { subject, cause: answer.reasons.join('\n') || 'the registry gives no reason' });
    }
  }
}

/** The messages of a sink over these columns. Raises what does not fit. */
async function messagesOf(target: KafkaSink, key: readonly string[] | null, columns: readonly SinkColumn[]): Promise<MessageMaker> {
  const [{ messageMaker }, { written }] = await Promise.all([import('../sinks/formats/messages.ts'), import('../sinks/targets.ts')]);
  const made = messageMaker({
    columns,
    key: key === null ? null : key.map((name) => columns.findIndex((column) => column.name === name)),
    keyFormat: written(target.keyFormat ?? target.valueFormat, 'key'),
    valueFormat: written(target.valueFormat, 'value'),
    envelope: target.envelope,
  });
  if ('problem' in made) throw misfit(made, columns);
  return made;
}

function misfit(problem: MessageProblem, columns: readonly SinkColumn[]): MillraceError {
  switch (problem.problem) {
    case 'unsupported_column': {
      const { column, format, reason, type } = problem.unsupported;
      const shown = columns.find(({ name }) => name === column)?.type ?? type;
      return millraceError('sink_column_type', {
        format,
        column,
        type: shown,
        detail: reason,
        hint: 'Leave the column out, or cast it, in a view.',
      });
    }
    case 'one_column_only':
      return millraceError('feature_not_supported', { message: `FORMAT ${problem.format} holds one column` });
    case 'no_envelope_in_format':
      return millraceError('feature_not_supported', { message: `FORMAT ${problem.format} cannot hold the two rows of ENVELOPE DEBEZIUM` });
    case 'key_required':
      return millraceError('sink_key_required', { sinks: 'upsert sinks', columns: '..' });
  }
}
