/**
 * Frontend messages of the protocol, gathered into few writes.
 * Invariant: memory handed to the socket is never written again.
 */
import type { Socket } from 'node:net';

/** A parameter: text (string, or its UTF-8 bytes), a value in binary format, or NULL. */
export type Param = string | Buffer | { readonly binary: Buffer } | null;

const slabSize = 64 * 1024;
/** Buffers from here on are handed to the socket as they are, not copied. */
const ownWrite = 4 * 1024;

/** Messages written here go out at the next `flush`, as one write. */
export class Outbox {
  #slab = Buffer.allocUnsafeSlow(slabSize);
  #from = 0;
  #at = 0;
  #queue: Buffer[] = [];
  #queued = 0;

  /** Bytes not yet given to the socket. */
  get pending(): number {
    return this.#queued + this.#at - this.#from;
  }

  query(sql: string): void {
    const length = Buffer.byteLength(sql);
    this.#open('Q', 4 + length + 1);
    this.#text(sql, length);
  }

  parse(name: string, sql: string): void {
    const nameLength = Buffer.byteLength(name);
    const sqlLength = Buffer.byteLength(sql);
    this.#open('P', 4 + nameLength + 1 + sqlLength + 1 + 2);
    this.#text(name, nameLength);
    this.#text(sql, sqlLength);
    this.#int16(0);
  }

  /** Unnamed portal, results as text. */
  bind(statement: string, params: readonly Param[]): void {
    const nameLength = Buffer.byteLength(statement);
    const lengths = params.map(byteLength);
    const size = lengths.reduce((sum, length) => sum + 4 + Math.max(length, 0), 0);
    this.#open('B', 4 + 1 + nameLength + 1 + 2 + 2 * params.length + 2 + size + 2);
    this.#text('', 0);
    this.#text(statement, nameLength);
    this.#int16(params.length);
    for (const param of params) this.#int16(isBinary(param) ? 1 : 0);
    this.#int16(params.length);
    params.forEach((param, i) => {
      const length = lengths[i] ?? -1;
      this.#int32(length);
      if (typeof param === 'string') this.#slab.write(param, this.#at, length, 'utf8');
      else if (param !== null) (Buffer.isBuffer(param) ? param : param.binary).copy(this.#slab, this.#at);
      this.#at += Math.max(length, 0);
    });
    this.#int16(0);
  }

  /** The unnamed portal, all rows. */
  execute(): void {
    this.#open('E', 4 + 1 + 4);
    this.#text('', 0);
    this.#int32(0);
  }

  closeStatement(name: string): void {
    const length = Buffer.byteLength(name);
    this.#open('C', 4 + 1 + length + 1);
    this.#slab[this.#at++] = 0x53;
    this.#text(name, length);
  }

  sync(): void {
    this.#open('S', 4);
  }

  terminate(): void {
    this.#open('X', 4);
  }

  copyDone(): void {
    this.#open('c', 4);
  }

  copyFail(reason: string): void {
    const length = Buffer.byteLength(reason);
    this.#open('f', 4 + length + 1);
    this.#text(reason, length);
  }

  /** One CopyData message around `payload`. The payload must not change any more. */
  copyData(payload: Buffer): void {
    this.#reserve(5);
    this.#slab[this.#at++] = 0x64;
    this.#int32(4 + payload.length);
    this.raw(payload);
  }

  /** Bytes that are messages already. They must not change any more. */
  raw(bytes: Buffer): void {
    if (bytes.length < ownWrite) {
      this.#reserve(bytes.length);
      bytes.copy(this.#slab, this.#at);
      this.#at += bytes.length;
      return;
    }
    this.#cut();
    this.#queue.push(bytes);
    this.#queued += bytes.length;
  }

  /** Hands everything to the socket as one write. */
  flush(socket: Socket): void {
    this.#cut();
    const queue = this.#queue;
    if (queue.length === 0) return;
    this.#queue = [];
    this.#queued = 0;
    if (queue.length > 1) socket.cork();
    for (const bytes of queue) socket.write(bytes);
    if (queue.length > 1) socket.uncork();
  }

  #cut(): void {
    if (this.#at === this.#from) return;
    this.#queue.push(this.#slab.subarray(this.#from, this.#at));
    this.#queued += this.#at - this.#from;
    this.#from = this.#at;
  }

  #reserve(bytes: number): void {
    if (this.#slab.length - this.#at >= bytes) return;
    this.#cut();
    this.#slab = Buffer.allocUnsafeSlow(Math.max(slabSize, bytes));
    this.#from = 0;
    this.#at = 0;
  }

  /** `length` as in the message: itself included, the type byte not. */
  #open(type: string, length: number): void {
    this.#reserve(1 + length);
    this.#slab[this.#at++] = type.charCodeAt(0);
    this.#int32(length);
  }

  #int16(value: number): void {
    this.#at = this.#slab.writeUInt16BE(value, this.#at);
  }

  #int32(value: number): void {
    this.#at = this.#slab.writeInt32BE(value, this.#at);
  }

  #text(value: string, length: number): void {
    this.#slab.write(value, this.#at, length, 'utf8');
    this.#at += length;
    this.#slab[this.#at++] = 0;
  }
}

function isBinary(param: Param): param is { readonly binary: Buffer } {
  return param !== null && typeof param === 'object' && !Buffer.isBuffer(param);
}

function byteLength(param: Param): number {
  if (param === null) return -1;
  if (typeof param === 'string') return Buffer.byteLength(param);
  return Buffer.isBuffer(param) ? param.length : param.binary.length;
}
