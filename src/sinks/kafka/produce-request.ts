/**
 * Sends batches to the brokers that lead their partitions.
 * Invariant: of a request that fails in part it is known which batches are stored, so that only the others are sent again.
 */
import { createAPI, produceV9, Writer } from '@platformatic/kafka';
import { KafkaError } from './failure.ts';
import type { EncodedBatch, PartitionQueue } from './partition-queue.ts';
import type { KafkaTransport } from './transport.ts';

/** To every replica in sync; a producer with a transactional id may not ask for less. */
const ACKS_ALL = -1;
const PRODUCE_TIMEOUT_MS = 25_000;

async function leaderOf(transport: KafkaTransport, topic: string, partition: number): Promise<number> {
  const placement = await transport.placement(topic);
  if (placement === undefined) {
    throw new KafkaError('fatal', 'unknown_topic', `topic "${topic}" does not exist`, { code: 'UNKNOWN_TOPIC_OR_PARTITION' });
  }
  const leader = placement.leaders[partition];
  if (leader === undefined) throw new KafkaError('fatal', 'unknown_topic', `topic "${topic}" has no partition ${partition}`);
  if (leader < 0) throw new KafkaError('retriable', 'broker', `partition ${partition} of topic "${topic}" has no leader at the moment`);
  return leader;
}

/** Batches by the broker that leads their partition. */
export async function groupByLeader(transport: KafkaTransport, batches: readonly EncodedBatch[]): Promise<Map<number, EncodedBatch[]>> {
  const groups = new Map<number, EncodedBatch[]>();
  for (const batch of batches) {
    const leader = await leaderOf(transport, batch.queue.topic, batch.queue.partition);
    const group = groups.get(leader);
    if (group === undefined) groups.set(leader, [batch]);
    else group.push(batch);
  }
  return groups;
}

/** Queues by the broker that leads their partition. */
export async function queuesByLeader(transport: KafkaTransport, queues: ReadonlyMap<string, PartitionQueue>): Promise<PartitionQueue[][]> {
  const groups = new Map<number, PartitionQueue[]>();
  for (const queue of queues.values()) {
    const leader = await transport.retrying(() => leaderOf(transport, queue.topic, queue.partition));
    const group = groups.get(leader);
    if (group === undefined) groups.set(leader, [queue]);
    else group.push(queue);
  }
  return [...groups.values()];
}

interface ProduceOutcome {
  readonly done: ReadonlySet<EncodedBatch>;
  readonly failure?: KafkaError;
}

type ProduceAnswer = ReturnType<typeof produceV9.parseResponse>;

/** A produce request of batches that are encoded already. */
const produceApi = createAPI<[transactionalId: string, batches: readonly EncodedBatch[]], ProduceAnswer>(
  0,
  9,
  (transactionalId: string, batches: readonly EncodedBatch[]) => {
    const topics = new Map<string, EncodedBatch[]>();
    for (const batch of batches) {
      const list = topics.get(batch.queue.topic);
      if (list === undefined) topics.set(batch.queue.topic, [batch]);
      else list.push(batch);
    }
    return Writer.create()
      .appendString(transactionalId)
      .appendInt16(ACKS_ALL)
      .appendInt32(PRODUCE_TIMEOUT_MS)
      .appendArray([...topics], (ofTopic, [topic, list]) => {
        ofTopic.appendString(topic).appendArray(list, (ofPartition, { queue, bytes }) => {
          ofPartition
            .appendInt32(queue.partition)
            .appendUnsignedVarInt(bytes.length + 1)
            .append(bytes);
        });
      })
      .appendTaggedFields();
  },
  produceV9.parseResponse,
);

/** One request to one broker: which batches are stored now, and what failed first if not all are. */
export async function produceTo(
  transport: KafkaTransport,
  leader: number,
  transactionalId: string,
  batches: readonly EncodedBatch[],
): Promise<ProduceOutcome> {
  const names = [...new Set(batches.map(({ queue }) => queue.topic))];
  const doing = `write to topic "${names.join('", "')}"`;
  try {
    await transport.call(leader, produceApi, [transactionalId, batches], doing);
    return { done: new Set(batches) };
  } catch (error) {
    if (!(error instanceof KafkaError) || error.code === undefined) throw error;
    return partialOutcome(error, batches);
  }
}

/** A broker answers for each partition by itself. */
function partialOutcome(error: KafkaError, batches: readonly EncodedBatch[]): ProduceOutcome {
  const answer = (error.cause as { readonly response?: ProduceAnswer } | undefined)?.response;
  const done = new Set<EncodedBatch>();
  for (const batch of batches) {
    const topic = answer?.responses.find((one) => one.name === batch.queue.topic);
    const partition = topic?.partitionResponses.find((one) => one.index === batch.queue.partition);
    if (partition?.errorCode === 0 || partition?.errorCode === DUPLICATE_SEQUENCE_NUMBER) done.add(batch);
  }
  return done.size === batches.length ? { done } : { done, failure: error };
}

const DUPLICATE_SEQUENCE_NUMBER = 46;
