/**
 * Reading what has been committed to a partition.
 * Invariant: a record is delivered exactly when its transaction has been committed; records of open transactions are waited for or not read.
 */

import { setTimeout as delay } from 'node:timers/promises';
import { fetchV12, listOffsetsV6, type RecordsBatch } from '@platformatic/kafka';
import { KafkaError } from './failure.ts';
import type { KafkaHeader } from './record-batch.ts';
import type { KafkaTransport } from './transport.ts';

/** A record as it was read. */
export interface KafkaMessage {
  readonly partition: number;
  readonly offset: bigint;
  readonly timestamp: number;
  readonly key: Buffer | null;
  readonly value: Buffer | null;
  readonly headers: readonly KafkaHeader[];
}

export type Isolation = 'read_committed' | 'read_uncommitted';

/** The offset behind the last record: of the log, or of the part in which no transaction is open any more. */
export async function endOffset(transport: KafkaTransport, topic: string, partition: number, isolation: Isolation): Promise<bigint> {
  return offsetAt(transport, topic, partition, LATEST, isolation);
}

/** The first offset that is still there. */
export async function startOffset(transport: KafkaTransport, topic: string, partition: number): Promise<bigint> {
  return offsetAt(transport, topic, partition, EARLIEST, 'read_uncommitted');
}

/**
 * Waits until no transaction is open that began before now, and returns the offset behind the last record of that moment.
 * Transactions of other producers end within their timeout; an older producer of ours has to be fenced first.
 */
export async function settledEnd(transport: KafkaTransport, topic: string, partition: number, waitMs: number): Promise<bigint> {
  const end = await endOffset(transport, topic, partition, 'read_uncommitted');
  const until = Date.now() + waitMs;
  for (let pause = 5; ; pause = Math.min(pause * 2, 500)) {
    if ((await endOffset(transport, topic, partition, 'read_committed')) >= end) return end;
    if (Date.now() > until) {
      const message = `a transaction in topic "${topic}" has been open for more than ${Math.round(waitMs / 1000)} s`;
      throw new KafkaError('retriable', 'transaction', message);
    }
    await delay(pause);
  }
}

/** Calls `onMessage` for every committed record from `from` to `to` (exclusive), in order. */
export async function readCommitted(
  transport: KafkaTransport,
  at: { readonly topic: string; readonly partition: number; readonly from: bigint; readonly to: bigint },
  onMessage: (message: KafkaMessage) => void,
): Promise<void> {
  const { topic, partition, to } = at;
  for (let next = at.from; next < to; ) {
    const from = next;
    const fetched = await transport.retrying(() => fetch(transport, topic, partition, from));
    const aborted = [...fetched.aborted].sort((a, b) => Number(a.firstOffset - b.firstOffset));
    const inAborted = new Set<bigint>();
    for (const batch of fetched.batches) {
      const last = batch.firstOffset + BigInt(batch.lastOffsetDelta);
      for (let one = aborted[0]; one !== undefined && one.firstOffset <= last; one = aborted[0]) {
        inAborted.add(one.producerId);
        aborted.shift();
      }
      next = last + 1n > next ? last + 1n : next;
      if ((batch.attributes & CONTROL) !== 0) {
        // The marker at the end of a transaction, committed or not: what follows of this producer is another one.
        inAborted.delete(batch.producerId);
        continue;
      }
      if ((batch.attributes & TRANSACTIONAL) !== 0 && inAborted.has(batch.producerId)) continue;
      for (const message of messagesOf(batch, partition)) if (message.offset >= from && message.offset < to) onMessage(message);
    }
    // Nothing more is there: compaction has taken the rest.
    if (next === from) return;
  }
}

const LATEST = -1n;
const EARLIEST = -2n;
const TRANSACTIONAL = 0x10;
const CONTROL = 0x20;

async function offsetAt(
  transport: KafkaTransport,
  topic: string,
  partition: number,
  timestamp: bigint,
  isolation: Isolation,
): Promise<bigint> {
  return transport.retrying(async () => {
    const leader = await leaderOf(transport, topic, partition);
    const partitions = [{ partitionIndex: partition, currentLeaderEpoch: -1, timestamp }];
    const level = isolation === 'read_committed' ? 1 : 0;
    const answer = await transport.call(leader, listOffsetsV6.api, [-1, level, [{ name: topic, partitions }]], `read topic "${topic}"`);
    return answer.topics[0]?.partitions[0]?.offset ?? 0n;
  });
}

interface Fetched {
  readonly batches: readonly RecordsBatch[];
  readonly aborted: readonly { readonly producerId: bigint; readonly firstOffset: bigint }[];
}

async function fetch(transport: KafkaTransport, topic: string, partition: number, from: bigint): Promise<Fetched> {
  const leader = await leaderOf(transport, topic, partition);
  const wanted = { partition, currentLeaderEpoch: -1, fetchOffset: from, lastFetchedEpoch: -1, partitionMaxBytes: 8 << 20 };
  const topics = [{ topicId: topic, partitions: [wanted] }];
  const answer = await transport.call(leader, fetchV12.api, [100, 1, 8 << 20, 1, 0, -1, topics, [], ''], `read topic "${topic}"`);
  const found = answer.responses[0]?.partitions[0];
  return { batches: found?.records ?? [], aborted: found?.abortedTransactions ?? [] };
}

async function leaderOf(transport: KafkaTransport, topic: string, partition: number): Promise<number> {
  const placement = await transport.placement(topic);
  if (placement === undefined) throw new KafkaError('fatal', 'unknown_topic', `topic "${topic}" does not exist`);
  const leader = placement.leaders[partition];
  if (leader === undefined) throw new KafkaError('fatal', 'unknown_topic', `topic "${topic}" has no partition ${partition}`);
  if (leader < 0) throw new KafkaError('retriable', 'broker', `partition ${partition} of topic "${topic}" has no leader at the moment`);
  return leader;
}

function* messagesOf(batch: RecordsBatch, partition: number): Generator<KafkaMessage> {
  for (const record of batch.records) {
    yield {
      partition,
      offset: batch.firstOffset + BigInt(record.offsetDelta),
      timestamp: Number(batch.firstTimestamp + record.timestampDelta),
      key: record.key,
      value: record.value,
      headers: record.headers.map(([name, value]) => ({ name: name?.toString() ?? '', value })),
    };
  }
}
