/** What is in a Kafka topic, for tests. */
import { connectKafka, type KafkaAddress } from '../../src/sinks/kafka/client.ts';
import type { KafkaMessage } from '../../src/sinks/kafka/reader.ts';

/** A record with its key, value and headers as text. */
export interface TopicRecord {
  readonly partition: number;
  readonly offset: bigint;
  readonly key: string | null;
  readonly value: string | null;
  readonly headers: Readonly<Record<string, string | null>>;
  readonly timestamp: number;
}

/** Every record that is committed now, as bytes: by partition, then by offset. */
export async function readTopicBytes(brokers: readonly string[], topic: string): Promise<KafkaMessage[]> {
  const kafka = await connectKafka(plainAddress(brokers));
  try {
    const messages: KafkaMessage[] = [];
    await kafka.read(topic, (message) => messages.push(message));
    return messages;
  } finally {
    await kafka.close();
  }
}

/** Every record that is committed now, as text: by partition, then by offset. */
export async function readTopic(brokers: readonly string[], topic: string): Promise<TopicRecord[]> {
  return (await readTopicBytes(brokers, topic)).map(({ key, value, headers, ...rest }) => ({
    ...rest,
    key: key?.toString() ?? null,
    value: value?.toString() ?? null,
    headers: Object.fromEntries(headers.map((header) => [header.name, header.value?.toString() ?? null])),
  }));
}

/** The address of a cluster without TLS and login. */
export function plainAddress(brokers: readonly string[]): KafkaAddress {
  return { brokers: [...brokers], tls: null, sasl: null };
}
