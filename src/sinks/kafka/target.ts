/**
 * A topic as the target of a sink.
 * Invariant: messages and the record of the position go in one transaction of Kafka, the record last, so that readers of committed messages see each
 * change once; who takes over fences the one before and reads where that got to. After any failure it is opened anew: only the record tells.
 * Partitions, headers and the record are those of Materialize, so that its consumers can read on.
 */
import { setTimeout as delay } from 'node:timers/promises';
import type { KafkaSink, SinkColumn } from '../../catalog/sink-model.ts';
import type { Change } from '../changes.ts';
import { ValueNotEncodable } from '../formats/column.ts';
import type { MessageMaker, SchemaIds } from '../formats/messages.ts';
import type { Position } from '../positions.ts';
import { type Target, TargetError } from '../target.ts';
import { connectKafka, type KafkaAddress, type KafkaConnection } from './client.ts';
import { KafkaError } from './failure.ts';
import type { KafkaProduce } from './partition-queue.ts';
import type { TransactionalProducer } from './producer.ts';
import type { KafkaHeader } from './record-batch.ts';
import { seahashModulo } from './seahash.ts';

/** Longer than a batch takes; as long may readers wait for a process that is gone and that nobody takes over from. */
const transactionTimeoutMs = 120_000;
/** A broker that is away is waited for a while, as long as an election takes; then the sink says so, and its delivery tries again. */
const patience = { requestTimeoutMs: 15_000, retryForMs: 10_000 };
/** How long `close` waits for a broker. */
const closingMs = 2000;

export interface KafkaTargetOptions {
  /** Tells this sink from all others that write to the cluster. */
  readonly name: string;
  readonly address: KafkaAddress;
  readonly progressTopic: string;
  readonly progressReplicationFactor: number | null;
  readonly target: KafkaSink;
  readonly key: readonly string[] | null;
  /** Formats for these columns; registers their schemas. Throws TargetError. */
  readonly encoders: (columns: readonly SinkColumn[]) => Promise<{ readonly maker: MessageMaker; readonly ids: SchemaIds }>;
}

export function kafkaTarget(options: KafkaTargetOptions): Target {
  const { name, target, key, progressTopic } = options;
  let connection: KafkaConnection | null = null;
  let producer: TransactionalProducer | null = null;
  let partitions = 1;
  let encoding: { readonly maker: MessageMaker; readonly ids: SchemaIds } | null = null;
  /** Place of the column of headers; -1: there is none. */
  let headersAt = -1;
  /** What is being sent while the next is made ready. */
  let sending: Promise<void> = Promise.resolve();
  let stamp: { readonly ts: number; readonly headers: readonly KafkaHeader[] } | null = null;
  const writer = (): TransactionalProducer => {
    if (producer === null) throw new TargetError('retriable', 'Kafka is not connected');
    return producer;
  };

  const produce = (change: Change, into: KafkaProduce[]): void => {
    if (encoding === null) throw new TargetError('retriable', 'the columns are not known yet');
    if (stamp?.ts !== change.ts)
      stamp = { ts: change.ts, headers: [{ name: 'materialize-timestamp', value: Buffer.from(String(change.ts)) }] };
    const headers =
      headersAt < 0 ? stamp.headers : [...stamp.headers, ...headersOf((change.after ?? change.before)?.values()[headersAt] ?? null)];
    for (const { key: messageKey, value, partitionBy } of encoding.maker.messagesOfLines(change, encoding.ids)) {
      const partition = target.partitionBy === null ? partitionOfKey(partitionBy, partitions) : partitionOf(change.partition, partitions);
      into.push({ topic: target.topic, partition, key: messageKey, value, headers });
    }
  };

  return {
    pairing: target.envelope === 'upsert' ? 'upsert' : key === null ? 'each' : 'pair',
    open: () =>
      guarded(async () => {
        connection = await connectKafka({ ...options.address, ...patience });
        producer = await connection.transactionalProducer(`${target.transactionalIdPrefix}${name}`, {
          compression: target.compression,
          transactionTimeoutMs,
        });
        await connection.ensureTopic({
          name: progressTopic,
          partitions: 1,
          ...(options.progressReplicationFactor === null ? {} : { replicationFactor: options.progressReplicationFactor }),
          // Nothing of it may be forgotten but what a newer record stands for.
          config: { 'cleanup.policy': 'compact' },
        });
        const topic = await connection.ensureTopic({
          name: target.topic,
          ...(target.partitionCount === null ? {} : { partitions: target.partitionCount }),
          ...(target.replicationFactor === null ? {} : { replicationFactor: target.replicationFactor }),
          config: target.topicConfig,
        });
        partitions = topic.partitions;
        const record = await connection.lastProgress(progressTopic, name);
        return record === undefined ? null : readPosition(record);
      }),
    async describe(columns) {
      encoding = await options.encoders(columns);
      headersAt = target.headers === null ? -1 : columns.findIndex((column) => column.name === target.headers);
    },
    begin: () =>
      guarded(async () => {
        writer().begin();
        sending = Promise.resolve();
      }),
    write: (changes) =>
      guarded(async () => {
        const records: KafkaProduce[] = [];
        for (const change of changes) produce(change, records);
        await sending;
        sending = writer().send(records);
        // Whoever waits for it next hears of a failure.
        sending.catch(() => undefined);
        return records.reduce((sum, record) => sum + (record.key?.length ?? 0) + (record.value?.length ?? 0), 0);
      }),
    commit: (position) =>
      guarded(async () => {
        await sending;
        await writer().send([{ topic: progressTopic, partition: 0, key: Buffer.from(name), value: positionRecord(position) }]);
        await writer().commit();
      }),
    async close() {
      const open = { connection, producer };
      connection = null;
      producer = null;
      const orderly = sending.catch(() => undefined).then(() => open.producer?.close().catch(() => undefined));
      await Promise.race([orderly, delay(closingMs, undefined, { ref: false })]);
      await open.connection?.close().catch(() => undefined);
    },
  };
}

/** As Materialize writes it: every change before the frontier is out. `backfill` is ours: rows of the version's backfill that are out, too. */
export function positionRecord({ version, ts, backfillSeq }: Position): Buffer {
  return Buffer.from(JSON.stringify({ frontier: [ts + 1], version, ...(backfillSeq === null ? {} : { backfill: backfillSeq }) }));
}

export function readPosition(record: Buffer): Position {
  try {
    const { frontier, version, backfill } = JSON.parse(record.toString()) as { frontier: number[]; version: number; backfill?: number };
    const [next] = frontier;
    if (typeof next !== 'number' || typeof version !== 'number') throw new Error('no frontier');
    return { version, ts: next - 1, backfillSeq: backfill ?? null };
  } catch (error) {
    throw new TargetError('permanent', `the progress record cannot be read: ${record.toString().slice(0, 200)}`, {
      cause: error,
      hint: 'Something else writes to the progress topic. Give the connection another PROGRESS TOPIC.',
    });
  }
}

const partitionOfKey = (key: Buffer | null, count: number): number => (key === null || count === 1 ? 0 : seahashModulo(key, count));

/** The value of PARTITION BY; NULL, and what is negative, goes to the first. */
function partitionOf(value: string | null, count: number): number {
  const number = value === null ? -1n : BigInt(value);
  return number < 0n ? 0 : Number(number % BigInt(count));
}

const pair = /"((?:[^"\\]|\\.)*)"=>(?:NULL|"((?:[^"\\]|\\.)*)")/g;

/** Pairs of an hstore as Postgres writes it. */
function hstorePairs(text: string): [string, string | null][] {
  const plain = (quoted: string): string => quoted.replace(/\\(.)/g, '$1');
  return [...text.matchAll(pair)].map(([, name = '', value]) => [plain(name), value === undefined ? null : plain(value)]);
}

/** A JSON object of texts, or an hstore. */
function headersOf(map: string | null): KafkaHeader[] {
  if (map === null) return [];
  const entries = map.startsWith('{') ? Object.entries(JSON.parse(map) as Readonly<Record<string, unknown>>) : hstorePairs(map);
  return entries
    .filter(([header]) => !header.startsWith('materialize-'))
    .map(([header, value]) => ({ name: header, value: value === null ? null : Buffer.from(String(value)) }));
}

async function guarded<T>(work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if (error instanceof TargetError) throw error;
    if (error instanceof ValueNotEncodable) {
      throw new TargetError('permanent', error.message, {
        cause: error,
        hint: 'Mend the row; or ALTER SINK .. SET FROM a relation that casts the column.',
      });
    }
    if (!(error instanceof KafkaError)) throw error;
    const kind = error.kind === 'fatal' ? 'permanent' : error.kind;
    const hint = error.condition === 'record_too_large' ? "Raise the topic's max.message.bytes, or leave the large column out." : undefined;
    throw new TargetError(kind, `kafka: ${error.message}`, { cause: error, ...(hint === undefined ? {} : { hint }) });
  }
}
