/**
 * Writing to Kafka in transactions, exactly once.
 * Invariant: every batch of a partition carries the number of its first record, counted from the start of the producer's epoch; a batch is sent
 * again only as it was, so that the broker knows it; and after a failure that leaves that count in doubt a new epoch begins.
 *
 * The protocol is that of Kafka 3 (KIP-98, KIP-360), which newer brokers speak as well; requests are those an ordinary client may send, so that
 * WRITE on the transactional id and on the topics is all the privilege needed.
 */
import {
  addPartitionsToTxnV3,
  compressionsAlgorithms,
  createAPI,
  endTxnV3,
  findCoordinatorV4,
  initProducerIdV4,
  produceV9,
  Writer,
} from '@platformatic/kafka';
import { KafkaError } from './failure.ts';
import { type BatchOptions, encodeBatch, type KafkaRecord, recordSizeBound } from './record-batch.ts';
import type { KafkaTransport } from './transport.ts';

/** A record and where it goes. */
export interface KafkaProduce extends KafkaRecord {
  readonly topic: string;
  readonly partition: number;
}

export type KafkaCompression = 'none' | 'gzip' | 'snappy' | 'lz4' | 'zstd';

export interface ProducerOptions {
  readonly compression?: KafkaCompression;
  /** After how long the cluster gives up a transaction that nobody ends; readers wait no longer than that. Default 60 s. */
  readonly transactionTimeoutMs?: number;
  /** Largest batch in bytes before compression; default 900 kB, which is under what a topic takes when it is not told otherwise. */
  readonly maxBatchBytes?: number;
}

/**
 * One producer with a transactional id. Calls follow one another: never two at once.
 *
 * When `send`, `commit` or `abort` throws a retriable KafkaError, call `recover`, which ends the transaction one way or the other: a commit that
 * failed may nevertheless have happened. So read the progress record then (`lastProgress`) and go on behind what it says. `recover` too may throw a
 * retriable error, while the cluster is still away: call it again.
 * When it throws one of kind `fenced`, another producer has this transactional id, or the transaction was open for longer than its timeout.
 */
export interface TransactionalProducer {
  /** Begins a transaction. Nothing is sent. */
  begin(): void;
  /** Writes records in the transaction; resolves when all of them are at every replica in sync. Order is kept in each partition. */
  send(records: readonly KafkaProduce[]): Promise<void>;
  /** Makes what was sent visible to readers, all at once. */
  commit(): Promise<void>;
  /** Takes back what was sent. Also after a failed `send`. */
  abort(): Promise<void>;
  /** After a failure: waits until no transaction of this producer is open, and begins anew with its own claim to the transactional id. */
  recover(): Promise<void>;
  /** Forgets it. A transaction that is open is aborted if the cluster can be reached. */
  close(): Promise<void>;
}

/**
 * Takes over a transactional id: a producer that had it before is fenced, its open transaction is aborted, and one whose commit is under way is
 * finished, before this resolves.
 */
export async function openProducer(
  transport: KafkaTransport,
  transactionalId: string,
  options: ProducerOptions = {},
): Promise<TransactionalProducer> {
  const compression = compressionOf(options.compression ?? 'none');
  const maxBatchBytes = options.maxBatchBytes ?? 900_000;
  let coordinator: number | undefined;
  let producerId = -1n;
  let producerEpoch = -1;
  let sequences = new Map<string, number>();
  let inTransaction = new Set<string>();
  let state: 'idle' | 'open' | 'failed' = 'idle';

  /** Sends to the broker that coordinates this transactional id, finding it again where it has moved. */
  const atCoordinator = <T>(work: (node: number) => Promise<T>): Promise<T> =>
    transport.retrying(async () => {
      coordinator ??= await findCoordinator(transport, transactionalId);
      try {
        return await work(coordinator);
      } catch (error) {
        if (!(error instanceof KafkaError && error.code === 'CONCURRENT_TRANSACTIONS')) coordinator = undefined;
        throw error;
      }
    });

  const init = async (): Promise<void> => {
    const timeout = options.transactionTimeoutMs ?? 60_000;
    const doing = `take over the transactional id "${transactionalId}"`;
    const answer = await atCoordinator((node) =>
      transport.call(node, initProducerIdV4.api, [transactionalId, timeout, producerId, producerEpoch], doing),
    );
    ({ producerId, producerEpoch } = answer);
    sequences = new Map();
    inTransaction = new Set();
    state = 'idle';
  };

  const end = async (committed: boolean): Promise<void> => {
    // A transaction in which nothing was sent is not known to the cluster.
    if (inTransaction.size > 0) {
      const doing = `${committed ? 'commit' : 'abort'} the transaction of "${transactionalId}"`;
      await atCoordinator((node) => transport.call(node, endTxnV3.api, [transactionalId, producerId, producerEpoch, committed], doing));
    }
    inTransaction = new Set();
    state = 'idle';
  };

  const addPartitions = async (partitions: ReadonlyMap<string, PartitionQueue>): Promise<void> => {
    const fresh = new Map<string, number[]>();
    for (const [key, { topic, partition }] of partitions) {
      if (inTransaction.has(key)) continue;
      const list = fresh.get(topic);
      if (list === undefined) fresh.set(topic, [partition]);
      else list.push(partition);
    }
    if (fresh.size === 0) return;
    // What is asked for may have been done although no answer came.
    for (const key of partitions.keys()) inTransaction.add(key);
    const topics = [...fresh].map(([name, list]) => ({ name, partitions: list }));
    const request = [{ transactionalId, producerId, producerEpoch, verifyOnly: false, topics }];
    const doing = `add partitions to the transaction of "${transactionalId}"`;
    await atCoordinator((node) => transport.call(node, addPartitionsToTxnV3.api, [request], doing));
  };

  const batchOptions = (firstSequence: number): BatchOptions => ({
    producerId,
    producerEpoch,
    firstSequence,
    transactional: true,
    now: Date.now(),
    ...(compression === undefined ? {} : { compression }),
  });

  /** The next batch of a partition, encoded and counted. */
  const nextBatch = (queue: PartitionQueue): EncodedBatch | undefined => {
    const slice = queue.slices.shift();
    if (slice === undefined) return undefined;
    const key = partitionKey(queue.topic, queue.partition);
    const firstSequence = sequences.get(key) ?? 0;
    sequences.set(key, (firstSequence + slice.to - slice.from) % SEQUENCES);
    const bytes = encodeBatch(queue.records, slice.from, slice.to, batchOptions(firstSequence));
    return { queue, slice, firstSequence, bytes };
  };

  /** Sends one batch of each of several partitions of a broker, until all are taken. */
  const produce = async (batches: readonly EncodedBatch[]): Promise<void> => {
    let waiting = batches;
    try {
      await transport.retrying(async () => {
        // Leaders may have moved since.
        for (const [leader, group] of await groupByLeader(transport, waiting)) {
          const outcome = await produceTo(transport, leader, transactionalId, group);
          waiting = waiting.filter((batch) => !outcome.done.has(batch));
          if (outcome.failure !== undefined) throw outcome.failure;
        }
      });
    } catch (error) {
      if (!(error instanceof KafkaError && error.condition === 'record_too_large')) throw error;
      // The topic takes less than is usual: smaller batches, down to single records.
      for (const batch of waiting) for (const half of halves(batch, error)) await produce([half]);
    }
  };

  const halves = (batch: EncodedBatch, tooLarge: KafkaError): EncodedBatch[] => {
    const { queue, slice, firstSequence } = batch;
    if (slice.to - slice.from < 2) {
      const message = `a record of ${batch.bytes.length} bytes is larger than topic "${queue.topic}" takes (max.message.bytes)`;
      throw new KafkaError('fatal', 'record_too_large', message, { code: 'MESSAGE_TOO_LARGE', cause: tooLarge });
    }
    const middle = (slice.from + slice.to) >> 1;
    return [
      { from: slice.from, to: middle },
      { from: middle, to: slice.to },
    ].map((part) => {
      const sequence = (firstSequence + part.from - slice.from) % SEQUENCES;
      return { queue, slice: part, firstSequence: sequence, bytes: encodeBatch(queue.records, part.from, part.to, batchOptions(sequence)) };
    });
  };

  const sendTo = async (queues: readonly PartitionQueue[]): Promise<void> => {
    let underWay: Promise<void> = Promise.resolve();
    for (;;) {
      const batches: EncodedBatch[] = [];
      let size = 0;
      for (const queue of queues) {
        if (size > 0 && size + maxBatchBytes > MAX_REQUEST_BYTES) break;
        const batch = nextBatch(queue);
        if (batch === undefined) continue;
        batches.push(batch);
        size += batch.bytes.length;
      }
      // What is encoded now was encoded while the request before was under way.
      await underWay;
      if (batches.length === 0) return;
      underWay = produce(batches);
      underWay.catch(() => undefined);
    }
  };

  const recover = async (): Promise<void> => {
    state = 'failed';
    if (inTransaction.size > 0) {
      try {
        await end(false);
      } catch (error) {
        // It was ended already: by the commit whose answer did not come, or because it never began.
        if (!(error instanceof KafkaError && ENDED_ALREADY.has(error.code))) throw error;
      }
    }
    state = 'failed';
    await init();
  };

  await init();
  return {
    begin() {
      if (state !== 'idle') throw new Error(`begin in a producer that is ${state}`);
      state = 'open';
    },
    async send(records) {
      if (state !== 'open') throw new Error(`send in a producer that is ${state}`);
      if (records.length === 0) return;
      const queues = intoQueues(records, maxBatchBytes);
      try {
        const groups = await queuesByLeader(transport, queues);
        await addPartitions(queues);
        await Promise.all(groups.map(sendTo));
      } catch (error) {
        state = 'failed';
        throw error;
      }
    },
    async commit() {
      if (state !== 'open') throw new Error(`commit in a producer that is ${state}`);
      try {
        await end(true);
      } catch (error) {
        state = 'failed';
        throw error;
      }
    },
    async abort() {
      if (state === 'failed') return recover();
      try {
        await end(false);
      } catch (error) {
        state = 'failed';
        throw error;
      }
    },
    recover,
    async close() {
      if (state === 'open' || state === 'failed') await end(false).catch(() => undefined);
      state = 'idle';
    },
  };
}

const ENDED_ALREADY: ReadonlySet<string | undefined> = new Set(['INVALID_TXN_STATE', 'INVALID_PRODUCER_ID_MAPPING']);
/** Sequence numbers are 31 bits and begin again at 0. */
const SEQUENCES = 2 ** 31;
const MAX_REQUEST_BYTES = 8 << 20;
/** To every replica in sync; a producer with a transactional id may not ask for less. */
const ACKS_ALL = -1;
const PRODUCE_TIMEOUT_MS = 25_000;

interface Slice {
  readonly from: number;
  readonly to: number;
}

/** What goes to one partition: its records, cut into batches. */
interface PartitionQueue {
  readonly topic: string;
  readonly partition: number;
  readonly records: KafkaRecord[];
  readonly slices: Slice[];
}

interface EncodedBatch {
  readonly queue: PartitionQueue;
  readonly slice: Slice;
  readonly firstSequence: number;
  readonly bytes: Buffer;
}

function partitionKey(topic: string, partition: number): string {
  return `${topic}:${partition}`;
}

function intoQueues(records: readonly KafkaProduce[], maxBatchBytes: number): Map<string, PartitionQueue> {
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

async function findCoordinator(transport: KafkaTransport, transactionalId: string): Promise<number> {
  const doing = `find the coordinator of "${transactionalId}"`;
  const answer = await transport.call('any', findCoordinatorV4.api, [TRANSACTION, [transactionalId]], doing);
  const [found] = answer.coordinators;
  if (found === undefined || found.nodeId < 0) throw new KafkaError('retriable', 'broker', `cannot ${doing}: there is none at the moment`);
  transport.learnBroker(found.nodeId, found.host, found.port);
  return found.nodeId;
}

const TRANSACTION = 1;

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

async function groupByLeader(transport: KafkaTransport, batches: readonly EncodedBatch[]): Promise<Map<number, EncodedBatch[]>> {
  const groups = new Map<number, EncodedBatch[]>();
  for (const batch of batches) {
    const leader = await leaderOf(transport, batch.queue.topic, batch.queue.partition);
    const group = groups.get(leader);
    if (group === undefined) groups.set(leader, [batch]);
    else group.push(batch);
  }
  return groups;
}

async function queuesByLeader(transport: KafkaTransport, queues: ReadonlyMap<string, PartitionQueue>): Promise<PartitionQueue[][]> {
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
async function produceTo(
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

/** Kafka's numbers of compressions, and how it is done here. */
function compressionOf(name: KafkaCompression): BatchOptions['compression'] {
  if (name === 'none') return undefined;
  const algorithm = compressionsAlgorithms[name];
  if (!algorithm.available) {
    const message = `compression ${name} needs a newer Node.js than ${process.version}`;
    throw new KafkaError('fatal', 'unsupported', message);
  }
  return { code: algorithm.bitmask, compress: (bytes) => algorithm.compressSync(bytes) };
}
