/**
 * What is asked of Kafka and schema registries before a statement is accepted, each problem its own error.
 * Invariant: nothing there is changed here. Their clients are loaded when they are first wanted: proxy workers need none of it.
 */
import type { KafkaAddress, RegistryAddress } from '../catalog/connection-address.ts';
import type { SinkColumn, SinkDefinition, SinkFormat } from '../catalog/sink-model.ts';
import { type MillraceError, millraceError } from '../errors.ts';
import type { KafkaError } from '../sinks/kafka/failure.ts';
import type { SchemaRegistry } from '../sinks/registry.ts';
import type { CallerSession } from './caller-session.ts';
import type { StatementContext } from './context.ts';

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

/** Whether the formats of a sink can hold the columns. Raises sink_column_type for one that does not fit. */
export async function checkFormats(definition: SinkDefinition, columns: readonly SinkColumn[]): Promise<void> {
  const { target, key } = definition;
  if (target.type !== 'kafka') return;
  const keys = columns.filter((column) => key?.includes(column.name) === true);
  if (target.keyFormat !== null) requireSingle('KEY', target.keyFormat, keys);
  if (target.envelope === 'debezium' && (target.valueFormat.kind === 'text' || target.valueFormat.kind === 'bytes')) {
    throw millraceError('feature_not_supported', {
      message: `FORMAT ${target.valueFormat.kind.toUpperCase()} cannot hold the two rows of ENVELOPE DEBEZIUM`,
    });
  }
  requireSingle('VALUE', target.valueFormat, columns);
}

/** ALTER SINK .. SET FROM: whether the registry takes the schemas of the columns as later versions of what it has. */
export async function checkRegistrySchemas(
  _context: StatementContext,
  _session: CallerSession,
  _definition: SinkDefinition,
  _columns: readonly SinkColumn[],
): Promise<void> {}

/** TEXT and BYTES hold one value. */
function requireSingle(side: 'KEY' | 'VALUE', format: SinkFormat, columns: readonly SinkColumn[]): void {
  if (format.kind !== 'text' && format.kind !== 'bytes') return;
  if (columns.length === 1) return;
  throw millraceError('feature_not_supported', {
    message: `${side} FORMAT ${format.kind.toUpperCase()} holds one column, but there are ${columns.length}`,
  });
}
