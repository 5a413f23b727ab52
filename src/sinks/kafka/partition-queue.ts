/**
 * Records cut into batches, partition by partition.
 * Invariant: records of a partition stay in their order, and a batch is under the size it may have unless one record alone is not.
 */
import { type KafkaRecord, recordSizeBound } from './record-batch.ts';

/** A record and where it goes. */
export interface KafkaProduce extends KafkaRecord {
  readonly topic: string;
  readonly partition: number;
}

/** Records of a queue that are one batch. */
export interface Slice {
  readonly from: number;
  readonly to: number;
}

/** What goes to one partition: its records, cut into batches. */
export interface PartitionQueue {
  readonly topic: string;
  readonly partition: number;
  readonly records: KafkaRecord[];
  readonly slices: Slice[];
}

/** A batch as it is sent, and sent again. */
export interface EncodedBatch {
  readonly queue: PartitionQueue;
  readonly slice: Slice;
  readonly firstSequence: number;
  readonly bytes: Buffer;
}

/** What partitions are told apart by. */
export function partitionKey(topic: string, partition: number): string {
  return `${topic}:${partition}`;
}

/** The records by partition, in batches. */
export function intoQueues(records: readonly KafkaProduce[], maxBatchBytes: number): Map<string, PartitionQueue> {
  const queues = new Map<string, PartitionQueue>();
  const sizes = new Map<PartitionQueue, number>();
  /** The queues of the topic that the last record was for, by partition: most records follow one of the same topic. */
  let ofTopic: { readonly topic: string; readonly queues: (PartitionQueue | undefined)[] } = { topic: '', queues: [] };
  const queueOf = ({ topic, partition }: KafkaProduce): PartitionQueue => {
    if (ofTopic.topic !== topic) ofTopic = { topic, queues: [] };
    const known = ofTopic.queues[partition];
    if (known !== undefined) return known;
    const key = partitionKey(topic, partition);
    const queue = queues.get(key) ?? { topic, partition, records: [], slices: [] };
    queues.set(key, queue);
    ofTopic.queues[partition] = queue;
    return queue;
  };
  for (const record of records) {
    const queue = queueOf(record);
    const size = recordSizeBound(record);
    const begun = queue.slices.at(-1)?.to ?? 0;
    const waiting = sizes.get(queue) ?? 0;
    const isFull = waiting + size > maxBatchBytes && queue.records.length > begun;
    if (isFull) queue.slices.push({ from: begun, to: queue.records.length });
    sizes.set(queue, isFull ? size : waiting + size);
    queue.records.push(record);
  }
  for (const { slices, records: all } of queues.values()) slices.push({ from: slices.at(-1)?.to ?? 0, to: all.length });
  return queues;
}
