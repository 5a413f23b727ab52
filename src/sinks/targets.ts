/** The target a sink's definition describes. Invariant: secrets are opened here, and live no longer than the target. */
import { openAddress, openKafkaAddress, openRegistryAddress, openSecret } from '../catalog/connection-address.ts';
import type { KafkaSink, SinkColumn, SinkFormat } from '../catalog/sink-model.ts';
import { jsonObject } from './formats/json.ts';
import { type MessageMaker, messageMaker, type SchemaIds, type SinkFormat as WrittenFormat } from './formats/messages.ts';
import { kafkaTarget } from './kafka/target.ts';
import { postgresTarget } from './postgres/target.ts';
import { type CompatibilityLevel, RegistryError, schemaRegistry } from './registry.ts';
import type { StoredConnection, StoredSink } from './sink-catalog.ts';
import { type Target, TargetError } from './target.ts';
import { webhookTarget } from './webhook/target.ts';

export interface TargetConfig {
  readonly secretKey: string;
  /** millrace.installation.id */
  readonly installation: string;
}

/**
 * Throws TargetError when it cannot be had as things are: a secret that cannot be opened, a connection that is gone.
 * `accepted`: what a webhook remembers from one target of the sink to the next. `waits`: told what the target has not answered for.
 */
export function openTarget(sink: StoredSink, config: TargetConfig, accepted: Set<string>, waits: (what: TargetError) => void): Target {
  const { target, key } = sink.definition;
  // The same in every process, and no other sink has it.
  const name = `millrace-${config.installation}-${sink.id}`;
  try {
    switch (target.type) {
      case 'kafka': {
        const connection = requireConnection(sink, sink.connectionId);
        const { progressTopic, progressReplicationFactor, ...address } = openKafkaAddress(
          config.secretKey,
          connection.options,
          sink.secrets,
        );
        return kafkaTarget({
          name,
          address,
          progressTopic: progressTopic ?? `_millrace-progress-${config.installation}-${connection.id}`,
          progressReplicationFactor,
          target,
          key,
          encoders: (columns) => encoders(sink, config, target, columns),
        });
      }
      case 'postgres': {
        const address = openAddress(config.secretKey, requireConnection(sink, sink.connectionId).options, sink.secrets);
        return postgresTarget({ name, address, target, key, waits });
      }
      case 'webhook': {
        const secret = target.secretId === null ? null : openSecret(config.secretKey, target.secretId, sink.secrets);
        return webhookTarget({ name, url: target.url, secret, key, json: rowAsJson, clock: Date.now, accepted, waits });
      }
    }
  } catch (error) {
    if (error instanceof TargetError) throw error;
    throw new TargetError('permanent', error instanceof Error ? error.message : String(error), { cause: error });
  }
}

function requireConnection(sink: StoredSink, id: string | null): StoredConnection {
  const found = sink.connections[id ?? ''];
  if (found === undefined) throw new TargetError('permanent', 'the connection of the sink is gone');
  return found;
}

/** Formats of a topic, with the numbers a registry has given their schemas. */
async function encoders(
  sink: StoredSink,
  config: TargetConfig,
  target: KafkaSink,
  columns: readonly SinkColumn[],
): Promise<{ readonly maker: MessageMaker; readonly ids: SchemaIds }> {
  const { key } = sink.definition;
  const keyFormat = target.keyFormat ?? target.valueFormat;
  const maker = messageMaker({
    columns,
    key: key === null ? null : key.map((name) => columns.findIndex((column) => column.name === name)),
    keyFormat: written(keyFormat, 'key'),
    valueFormat: written(target.valueFormat, 'value'),
    envelope: target.envelope,
  });
  if ('problem' in maker) throw new TargetError('permanent', `the columns do not fit the format: ${JSON.stringify(maker)}`);
  const register = async (side: 'key' | 'value', format: SinkFormat, schema: object | undefined): Promise<number | undefined> => {
    if (format.kind !== 'avro' || schema === undefined) return undefined;
    const { options } = requireConnection(sink, format.registryId);
    const registry = schemaRegistry(openRegistryAddress(config.secretKey, options, sink.secrets));
    const subject = `${target.topic}-${side}`;
    const level = side === 'key' ? format.keyCompatibility : format.valueCompatibility;
    try {
      // As Materialize: of a subject that is there already, the level is somebody else's.
      if (level !== null && !(await registry.exists(subject))) await registry.setCompatibility(subject, level as CompatibilityLevel);
      return await registry.register(subject, schema);
    } catch (error) {
      if (!(error instanceof RegistryError)) throw error;
      const isPermanent = error.failure === 'incompatible' || error.failure === 'invalid_schema' || error.failure === 'authentication';
      throw new TargetError(isPermanent ? 'permanent' : 'retriable', error.message, { cause: error });
    }
  };
  const [keyId, valueId] = [
    await register('key', keyFormat, maker.keySchema),
    await register('value', target.valueFormat, maker.valueSchema),
  ];
  return { maker, ids: { ...(keyId === undefined ? {} : { key: keyId }), ...(valueId === undefined ? {} : { value: valueId }) } };
}

/** A format of the catalog as encoders know it. */
export function written(format: SinkFormat, side: 'key' | 'value'): WrittenFormat {
  if (format.kind !== 'avro') return format;
  const fullname = side === 'key' ? format.keyFullname : format.valueFullname;
  const docs = side === 'key' ? format.keyDocs : format.valueDocs;
  const { '': doc, ...columnDocs } = docs;
  return {
    kind: 'avro',
    options: {
      nullDefaults: format.nullDefaults,
      columnDocs,
      ...(fullname === null ? {} : { fullname }),
      ...(doc === undefined ? {} : { doc }),
    },
  };
}

function rowAsJson(columns: readonly SinkColumn[]): (row: readonly (string | null)[]) => string {
  const json = jsonObject(
    columns,
    columns.map((_, index) => index),
  );
  if ('unsupported' in json) throw new TargetError('permanent', `column "${json.unsupported.column}" cannot be written as JSON`);
  return (row) => json.toJson(row);
}
