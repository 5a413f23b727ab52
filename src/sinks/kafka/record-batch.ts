/**
 * Records as Kafka stores them: one batch of format version 2.
 * Invariant: one pass counts the bytes and one writes them into one buffer, without an object per record: this is what producing costs.
 */
import { crc32c } from '@platformatic/kafka';

/** A record to be written; null as value is a tombstone. */
export interface KafkaRecord {
  readonly key: Buffer | null;
  readonly value: Buffer | null;
  readonly headers?: readonly KafkaHeader[];
  /** Milliseconds since 1970; when missing, the time of sending. */
  readonly timestamp?: number;
}

export interface KafkaHeader {
  readonly name: string;
  readonly value: Buffer | null;
}

export interface BatchOptions {
  readonly producerId: bigint;
  readonly producerEpoch: number;
  readonly firstSequence: number;
  readonly transactional: boolean;
  /** Timestamp of records that have none. */
  readonly now: number;
  readonly compression?: { readonly code: number; compress(bytes: Buffer): Buffer };
}

const HEADER_BYTES = 61;
/** From here on the checksum counts. */
const CHECKED_FROM = 21;
const TRANSACTIONAL = 0x10;

/** An upper bound of what a record takes in a batch. */
export function recordSizeBound(record: KafkaRecord): number {
  let size = 36 + (record.key?.length ?? 0) + (record.value?.length ?? 0);
  for (const { name, value } of record.headers ?? []) size += 10 + name.length * 3 + (value?.length ?? 0);
  return size;
}

/** The records `from` .. `to` (exclusive, at least one) as one batch. */
export function encodeBatch(records: readonly KafkaRecord[], from: number, to: number, options: BatchOptions): Buffer {
  const first = records[from]?.timestamp ?? options.now;
  const bodies = new Int32Array(to - from);
  const headers = new HeaderBytes();
  let latest = first;
  let size = 0;
  for (let i = from; i < to; i++) {
    const record = at(records, i);
    const timestamp = record.timestamp ?? options.now;
    if (timestamp > latest) latest = timestamp;
    const body =
      1 +
      varintSize(timestamp - first) +
      varintSize(i - from) +
      bytesSize(record.key) +
      bytesSize(record.value) +
      headers.of(record).length;
    bodies[i - from] = body;
    size += varintSize(body) + body;
  }
  const plain = options.compression === undefined;
  const bytes = Buffer.allocUnsafe(plain ? HEADER_BYTES + size : size);
  let position = plain ? HEADER_BYTES : 0;
  for (let i = from; i < to; i++) {
    const record = at(records, i);
    position = writeVarint(bytes, position, bodies[i - from] ?? 0);
    bytes[position++] = 0; // attributes
    position = writeVarint(bytes, position, (record.timestamp ?? options.now) - first);
    position = writeVarint(bytes, position, i - from);
    position = writeBytes(bytes, position, record.key);
    position = writeBytes(bytes, position, record.value);
    position = copyBytes(bytes, position, headers.of(record));
  }
  if (options.compression === undefined) return finish(bytes, to - from, first, latest, options);
  return finish(Buffer.concat([Buffer.alloc(HEADER_BYTES), options.compression.compress(bytes)]), to - from, first, latest, options);
}

const noHeaders: readonly KafkaHeader[] = [];

/** Headers as they stand in a record. Records of a batch mostly share one list of them. */
class HeaderBytes {
  #headers = noHeaders;
  #bytes = Buffer.from([0]);

  of(record: KafkaRecord): Buffer {
    const headers = record.headers ?? noHeaders;
    if (headers === this.#headers) return this.#bytes;
    let size = varintSize(headers.length);
    for (const { name, value } of headers) {
      const length = Buffer.byteLength(name);
      size += varintSize(length) + length + bytesSize(value);
    }
    const bytes = Buffer.allocUnsafe(size);
    let position = writeVarint(bytes, 0, headers.length);
    for (const { name, value } of headers) {
      position = writeVarint(bytes, position, Buffer.byteLength(name));
      position += bytes.write(name, position);
      position = writeBytes(bytes, position, value);
    }
    this.#headers = headers;
    this.#bytes = bytes;
    return bytes;
  }
}

function finish(batch: Buffer, count: number, first: number, latest: number, options: BatchOptions): Buffer {
  batch.fill(0, 0, 8); // base offset: the broker's to choose
  batch.writeInt32BE(batch.length - 12, 8);
  batch.writeInt32BE(-1, 12); // leader epoch: likewise
  batch.writeInt8(2, 16);
  batch.writeInt16BE((options.compression?.code ?? 0) | (options.transactional ? TRANSACTIONAL : 0), 21);
  batch.writeInt32BE(count - 1, 23);
  batch.writeBigInt64BE(BigInt(first), 27);
  batch.writeBigInt64BE(BigInt(latest), 35);
  batch.writeBigInt64BE(options.producerId, 43);
  batch.writeInt16BE(options.producerEpoch, 51);
  batch.writeInt32BE(options.firstSequence, 53);
  batch.writeInt32BE(count, 57);
  batch.writeUInt32BE(crc32c(batch.subarray(CHECKED_FROM)) >>> 0, 17);
  return batch;
}

function bytesSize(bytes: Buffer | null): number {
  return bytes === null ? 1 : varintSize(bytes.length) + bytes.length;
}

function writeBytes(into: Buffer, position: number, bytes: Buffer | null): number {
  if (bytes === null) return writeVarint(into, position, -1);
  return copyBytes(into, writeVarint(into, position, bytes.length), bytes);
}

/** Few bytes are copied sooner than a call into native code is made. */
function copyBytes(into: Buffer, position: number, bytes: Buffer): number {
  const { length } = bytes;
  if (length > SHORT_BYTES) into.set(bytes, position);
  else for (let i = 0; i < length; i++) into[position + i] = bytes[i] as number;
  return position + length;
}

const SHORT_BYTES = 64;

/** Zig-zag, so that small negative numbers are short; beyond 31 bits with the slower arithmetic of doubles. */
function zigzag(value: number): number {
  return value >= 0 ? value * 2 : value * -2 - 1;
}

function varintSize(value: number): number {
  let rest = zigzag(value);
  let size = 1;
  while (rest >= LONG) {
    rest = Math.floor(rest / 0x80);
    size++;
  }
  for (; rest >= 0x80; rest >>>= 7) size++;
  return size;
}

function writeVarint(into: Buffer, position: number, value: number): number {
  let rest = zigzag(value);
  let to = position;
  while (rest >= LONG) {
    into[to++] = (rest % 0x80) | 0x80;
    rest = Math.floor(rest / 0x80);
  }
  for (; rest >= 0x80; rest >>>= 7) into[to++] = (rest & 0x7f) | 0x80;
  into[to++] = rest;
  return to;
}

const LONG = 2 ** 31;

function at(records: readonly KafkaRecord[], index: number): KafkaRecord {
  const record = records[index];
  if (record === undefined) throw new RangeError(`no record ${index}`);
  return record;
}
