/**
 * Kafka as sinks use it: topics, the progress record, and the producer with transactions.
 * Invariant: what a sink has delivered is what its newest committed progress record says, because both are written in one transaction.
 *
 * The order that keeps it: `transactionalProducer` (fences whoever wrote before), then `lastProgress`, then transactions of records that end with
 * the progress record. After a failure: `recover`, `lastProgress`, and go on behind it.
 */

import { setTimeout as delay } from 'node:timers/promises';
import { apiVersionsV3, createTopicsV7 } from '@platformatic/kafka';
import { version } from '../../version.ts';
import { CLOSED, KafkaError } from './failure.ts';
import { openProducer, type ProducerOptions, type TransactionalProducer } from './producer.ts';
import { endOffset, type KafkaMessage, readCommitted, settledEnd, startOffset } from './reader.ts';
import { type KafkaAddress, openTransport, type Placement } from './transport.ts';

export type { KafkaAddress } from './transport.ts';

/** A topic that is wanted; what is left out is the broker's default. */
export interface TopicWish {
  readonly name: string;
  readonly partitions?: number;
  readonly replicationFactor?: number;
  readonly config?: Readonly<Record<string, string>>;
}

/** A topic as it is. */
export interface TopicState {
  readonly partitions: number;
  readonly replicationFactor: number;
  /** Whether it was made just now; the settings of a topic that was there are left alone. */
  readonly created: boolean;
}

export interface KafkaConnection {
  /** Talks to the cluster once, logs in, and checks that it is new enough. Throws what is wrong. */
  probe(): Promise<void>;
  /** Makes the topic if it is not there, and says what is there now. */
  ensureTopic(wish: TopicWish): Promise<TopicState>;
  /** How many partitions a topic has; undefined when there is no such topic. */
  partitions(topic: string): Promise<number | undefined>;
  /**
   * The value of the newest committed record with this key in a topic of one partition; undefined when there is none, also when there is no topic.
   * Call it when a transactional producer has been opened or has recovered, which has ended every transaction of an older one; open transactions
   * of other producers in this topic are waited for.
   */
  lastProgress(topic: string, key: string): Promise<Buffer | undefined>;
  /** Takes over a transactional id. See TransactionalProducer. */
  transactionalProducer(transactionalId: string, options?: ProducerOptions): Promise<TransactionalProducer>;
  /** Calls `onMessage` for every record that is committed now, in order within each partition. */
  read(topic: string, onMessage: (message: KafkaMessage) => void): Promise<void>;
  close(): Promise<void>;
}

/** Connects to a cluster. Throws a KafkaError when none of its brokers answers or the login fails. */
export async function connectKafka(address: KafkaAddress): Promise<KafkaConnection> {
  const transport = openTransport(address);

  const probe = async (): Promise<void> => {
    const answer = await transport.call('any', apiVersionsV3.api, ['millrace', version], 'ask Kafka what it speaks').catch(withGuess);
    for (const [key, name, needed] of NEEDED) {
      const spoken = answer.apiKeys.find((one) => one.apiKey === key);
      if (spoken === undefined || spoken.maxVersion < needed || spoken.minVersion > needed) {
        const message = `the cluster does not speak ${name} version ${needed}: Kafka 3.0 or newer is needed`;
        throw new KafkaError('fatal', 'unsupported', message);
      }
    }
    await transport.controller().catch(withGuess);
  };

  /** A broker that wants TLS or a login closes the connection without a word. */
  const withGuess = (error: unknown): never => {
    const dumb = error instanceof KafkaError && error.message.endsWith(CLOSED) && (address.tls === null || address.sasl === null);
    if (!dumb) throw error;
    const wanted = [...(address.tls === null ? ['TLS'] : []), ...(address.sasl === null ? ['a login'] : [])].join(' or ');
    throw new KafkaError(error.kind, error.condition, `${error.message}; it may want ${wanted}`, { cause: error });
  };

  const placementWithLeaders = (topic: string): Promise<Placement | undefined> => transport.retrying(() => transport.placement(topic));

  const lastProgress = async (topic: string, key: string): Promise<Buffer | undefined> => {
    const placement = await placementWithLeaders(topic);
    if (placement === undefined) return undefined;
    if (placement.leaders.length !== 1) {
      const message = `progress topic "${topic}" should have one partition, but has ${placement.leaders.length}`;
      throw new KafkaError('fatal', 'topic_config', message);
    }
    const end = await settledEnd(transport, topic, 0, address.retryForMs ?? 60_000);
    const start = await startOffset(transport, topic, 0);
    const wanted = Buffer.from(key);
    // The newest is near the end, unless other sinks write much more often: look there first, then farther back.
    let to = end;
    for (let window = 1000n; to > start; window *= 8n) {
      let from = to - window;
      if (from < start) from = start;
      let newest: KafkaMessage | undefined;
      await readCommitted(transport, { topic, partition: 0, from, to }, (message) => {
        if (message.key?.equals(wanted) === true) newest = message;
      });
      if (newest !== undefined) return newest.value ?? undefined;
      to = from;
    }
    return undefined;
  };

  await probe().catch(async (error: unknown) => {
    await transport.close();
    throw error;
  });
  return {
    probe,
    async ensureTopic(wish) {
      const existing = await placementWithLeaders(wish.name);
      const created = existing === undefined && (await transport.retrying(() => createTopic(wish)));
      for (let pause = 10; ; pause = Math.min(pause * 2, 500)) {
        const placement = await placementWithLeaders(wish.name);
        if (placement !== undefined && !placement.leaders.includes(-1)) {
          return { partitions: placement.leaders.length, replicationFactor: placement.replicationFactor, created };
        }
        if (pause === 500) throw new KafkaError('retriable', 'broker', `topic "${wish.name}" has no leaders yet`);
        await delay(pause);
      }
    },
    async partitions(topic) {
      transport.forget();
      return (await placementWithLeaders(topic))?.leaders.length;
    },
    lastProgress,
    transactionalProducer: (transactionalId, options) => openProducer(transport, transactionalId, options),
    async read(topic, onMessage) {
      const count = (await placementWithLeaders(topic))?.leaders.length ?? 0;
      for (let partition = 0; partition < count; partition++) {
        const from = await startOffset(transport, topic, partition);
        const to = await endOffset(transport, topic, partition, 'read_committed');
        await readCommitted(transport, { topic, partition, from, to }, onMessage);
      }
    },
    close: () => transport.close(),
  };

  /** Whether it was made by this call and not by another at the same moment. */
  async function createTopic({ name, partitions, replicationFactor, config }: TopicWish): Promise<boolean> {
    const topic = {
      name,
      numPartitions: partitions ?? BROKER_DEFAULT,
      replicationFactor: replicationFactor ?? BROKER_DEFAULT,
      assignments: [],
      configs: Object.entries(config ?? {}).map(([key, value]) => ({ name: key, value })),
    };
    try {
      await transport.call(await transport.controller(), createTopicsV7.api, [[topic], 20_000, false], `create topic "${name}"`);
      return true;
    } catch (error) {
      if (error instanceof KafkaError && error.code === 'TOPIC_ALREADY_EXISTS') return false;
      throw error;
    }
  }
}

const BROKER_DEFAULT = -1;

/** Requests that are sent, and in which version: those of Kafka 3.0. */
const NEEDED: readonly (readonly [number, string, number])[] = [
  [0, 'Produce', 9],
  [1, 'Fetch', 12],
  [2, 'ListOffsets', 6],
  [3, 'Metadata', 9],
  [10, 'FindCoordinator', 4],
  [19, 'CreateTopics', 7],
  [22, 'InitProducerId', 4],
  [24, 'AddPartitionsToTxn', 3],
  [26, 'EndTxn', 3],
];
