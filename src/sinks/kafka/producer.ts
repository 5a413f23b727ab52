/**
 * Writing to Kafka in transactions, exactly once.
 * Invariant: every batch of a partition carries the number of its first record, counted from the start of the producer's epoch; a batch is sent
 * again only as it was, so that the broker knows it; and after a failure that leaves that count in doubt a new epoch begins.
 *
 * The protocol is that of Kafka 3 (KIP-98, KIP-360), which newer brokers speak as well; requests are those an ordinary client may send, so that
 * WRITE on the transactional id and on the topics is all the privilege needed.
 */
import { addPartitionsToTxnV3, compressionsAlgorithms, endTxnV3, findCoordinatorV4, initProducerIdV4 } from '@platformatic/kafka';
import { KafkaError } from './failure.ts';
import { type EncodedBatch, intoQueues, type KafkaProduce, type PartitionQueue, partitionKey } from './partition-queue.ts';
import { groupByLeader, produceTo, queuesByLeader } from './produce-request.ts';
import { type BatchOptions, encodeBatch } from './record-batch.ts';
import type { KafkaTransport } from './transport.ts';

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

async function findCoordinator(transport: KafkaTransport, transactionalId: string): Promise<number> {
  const doing = `find the coordinator of "${transactionalId}"`;
  const answer = await transport.call('any', findCoordinatorV4.api, [TRANSACTION, [transactionalId]], doing);
  const [found] = answer.coordinators;
  if (found === undefined || found.nodeId < 0) throw new KafkaError('retriable', 'broker', `cannot ${doing}: there is none at the moment`);
  transport.learnBroker(found.nodeId, found.host, found.port);
  return found.nodeId;
}

const TRANSACTION = 1;

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
