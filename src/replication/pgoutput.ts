/**
 * Decoder of pgoutput, proto_version 1, text values (Postgres documentation, 53.9 Logical Replication Message Formats).
 * Invariant: column values are never made into strings here. A row is a TupleView: kinds and offsets into the message, reused by the next row.
 * Every malformed message is a PgoutputError that names the LSN and the byte.
 */
import { formatLsn, type Lsn } from './lsn.ts';

/** Kind of a column value in a TupleView. */
export const valueKind = { null: 0, unchangedToast: 1, text: 2 } as const;

/**
 * One row of a message. Valid only during the handler call: the decoder reuses it, and the buffer belongs to the socket.
 * Column i is `kinds[i]`; for text its bytes are `buffer[starts[i] .. ends[i])`, UTF-8.
 */
export interface TupleView {
  readonly buffer: Buffer;
  readonly count: number;
  readonly kinds: Uint8Array;
  readonly starts: Uint32Array;
  readonly ends: Uint32Array;
  /** Some value is left out: it is TOASTed, and was not changed. */
  readonly leavesOut: boolean;
}

export interface RelationColumn {
  /** Part of the replica identity ("key" flag). With REPLICA IDENTITY FULL every column is. */
  readonly key: boolean;
  readonly name: string;
  readonly typeOid: number;
  readonly typmod: number;
}

export interface RelationMessage {
  readonly oid: number;
  readonly schema: string;
  readonly name: string;
  /** 'd' default, 'i' index, 'f' full, 'n' nothing. */
  readonly replicaIdentity: string;
  readonly columns: readonly RelationColumn[];
}

/** Milliseconds of the Unix epoch, of a time in the stream. */
export const unixMs = (time: bigint): number => Date.UTC(2000, 0, 1) + Number(time / 1000n);

/** Called synchronously, in stream order. OIDs and xids are unsigned. Times are microseconds since 2000-01-01 UTC. */
export interface ChangeHandler {
  /** `finalLsn` is the LSN of the commit record. */
  begin(finalLsn: Lsn, commitTime: bigint, xid: number): void;
  /** `endLsn` is the position to acknowledge once the transaction is durable. */
  commit(commitLsn: Lsn, endLsn: Lsn, commitTime: bigint): void;
  origin(lsn: Lsn, name: string): void;
  relation(relation: RelationMessage): void;
  type(oid: number, schema: string, name: string): void;
  insert(relationOid: number, row: TupleView): void;
  /** `oldKind` is 'K' (only the identity columns are set, the rest are null), 'O' (the whole old row) or '' (identity unchanged; `oldRow` undefined). */
  update(relationOid: number, oldKind: 'K' | 'O' | '', oldRow: TupleView | undefined, newRow: TupleView): void;
  delete(relationOid: number, oldKind: 'K' | 'O', oldRow: TupleView): void;
  truncate(relationOids: readonly number[], cascade: boolean, restartIdentity: boolean): void;
  /** Content is `buffer[start .. end)`, valid during the call. Non-transactional ones arrive outside begin/commit. */
  message(transactional: boolean, lsn: Lsn, prefix: string, buffer: Buffer, start: number, end: number): void;
}

/** A message that is not pgoutput version 1 as documented. `byte` counts from the start of the message. */
export class PgoutputError extends Error {
  readonly lsn: Lsn;
  readonly byte: number;
  constructor(problem: string, lsn: Lsn, byte: number) {
    super(`malformed replication message at ${formatLsn(lsn)}, byte ${byte}: ${problem}`);
    this.name = 'PgoutputError';
    this.lsn = lsn;
    this.byte = byte;
  }
}

interface MutableTuple extends TupleView {
  buffer: Buffer;
  count: number;
  kinds: Uint8Array;
  starts: Uint32Array;
  ends: Uint32Array;
  leavesOut: boolean;
}

function emptyTuple(): MutableTuple {
  const [starts, ends] = [new Uint32Array(64), new Uint32Array(64)];
  return { buffer: Buffer.alloc(0), count: 0, kinds: new Uint8Array(64), starts, ends, leavesOut: false };
}

/** Message text bytes as numbers. */
const tag = { B: 66, C: 67, O: 79, R: 82, Y: 89, I: 73, U: 85, D: 68, T: 84, M: 77, K: 75, N: 78, n: 110, u: 117, t: 116 } as const;

/** Feeds one handler. Keeps no state between messages other than reused memory. */
export class PgoutputDecoder {
  readonly #handler: ChangeHandler;
  readonly #oldRow = emptyTuple();
  readonly #newRow = emptyTuple();
  #buffer: Buffer = Buffer.alloc(0);
  #start = 0;
  #at = 0;
  #end = 0;
  #lsn: Lsn = 0n;

  constructor(handler: ChangeHandler) {
    this.#handler = handler;
  }

  /** Decodes one message, `[start, end)` of `buffer` (an XLogData payload). `walStart` is for error messages. Errors of the handler pass through. */
  decode(walStart: Lsn, buffer: Buffer, start: number, end: number): void {
    this.#buffer = buffer;
    this.#start = start;
    this.#at = start;
    this.#end = end;
    this.#lsn = walStart;
    const handler = this.#handler;
    const kind = this.#byte();
    switch (kind) {
      case tag.I: {
        const oid = this.#uint32();
        this.#expect(tag.N);
        this.#tuple(this.#newRow);
        this.#finish();
        handler.insert(oid, this.#newRow);
        return;
      }
      case tag.U:
        this.#update();
        return;
      case tag.D: {
        const oid = this.#uint32();
        const oldKind = this.#byte();
        if (oldKind !== tag.K && oldKind !== tag.O) this.#fail(`expected K or O, found byte ${oldKind}`, -1);
        this.#tuple(this.#oldRow);
        this.#finish();
        handler.delete(oid, oldKind === tag.K ? 'K' : 'O', this.#oldRow);
        return;
      }
      case tag.B: {
        const finalLsn = this.#uint64();
        const time = this.#int64();
        const xid = this.#uint32();
        this.#finish();
        handler.begin(finalLsn, time, xid);
        return;
      }
      case tag.C: {
        this.#byte();
        const commitLsn = this.#uint64();
        const endLsn = this.#uint64();
        const time = this.#int64();
        this.#finish();
        handler.commit(commitLsn, endLsn, time);
        return;
      }
      case tag.O: {
        const lsn = this.#uint64();
        const name = this.#string();
        this.#finish();
        handler.origin(lsn, name);
        return;
      }
      case tag.R:
        handler.relation(this.#relation());
        return;
      case tag.Y: {
        const oid = this.#uint32();
        const schema = this.#string();
        const name = this.#string();
        this.#finish();
        handler.type(oid, this.#schema(schema), name);
        return;
      }
      case tag.T: {
        const count = this.#uint32();
        const options = this.#byte();
        if (count * 4 !== this.#end - this.#at) this.#fail(`${count} relations announced in ${this.#end - this.#at} bytes`);
        const oids: number[] = [];
        for (let i = 0; i < count; i++) oids.push(this.#uint32());
        handler.truncate(oids, (options & 1) !== 0, (options & 2) !== 0);
        return;
      }
      case tag.M: {
        const flags = this.#byte();
        const lsn = this.#uint64();
        const prefix = this.#string();
        const length = this.#uint32();
        if (length !== this.#end - this.#at) this.#fail(`content of ${length} bytes announced, ${this.#end - this.#at} present`);
        handler.message((flags & 1) !== 0, lsn, prefix, buffer, this.#at, this.#end);
        return;
      }
      default:
        this.#fail(`unknown message type byte ${kind}`, -1);
    }
  }

  #update(): void {
    const oid = this.#uint32();
    let kind = this.#byte();
    let oldKind: 'K' | 'O' | '' = '';
    if (kind === tag.K || kind === tag.O) {
      oldKind = kind === tag.K ? 'K' : 'O';
      this.#tuple(this.#oldRow);
      kind = this.#byte();
    }
    if (kind !== tag.N) this.#fail(`expected N, found byte ${kind}`, -1);
    this.#tuple(this.#newRow);
    this.#finish();
    this.#handler.update(oid, oldKind, oldKind === '' ? undefined : this.#oldRow, this.#newRow);
  }

  #relation(): RelationMessage {
    const oid = this.#uint32();
    const schema = this.#schema(this.#string());
    const name = this.#string();
    const replicaIdentity = String.fromCharCode(this.#byte());
    const count = this.#uint16();
    const columns: RelationColumn[] = [];
    for (let i = 0; i < count; i++) {
      const flags = this.#byte();
      const column = this.#string();
      const typeOid = this.#uint32();
      this.#need(4);
      const typmod = this.#buffer.readInt32BE(this.#at);
      this.#at += 4;
      columns.push({ key: (flags & 1) !== 0, name: column, typeOid, typmod });
    }
    this.#finish();
    return { oid, schema, name, replicaIdentity, columns };
  }

  /** pgoutput sends pg_catalog as an empty string. */
  #schema(name: string): string {
    return name === '' ? 'pg_catalog' : name;
  }

  #tuple(row: MutableTuple): void {
    const count = this.#uint16();
    if (count > row.kinds.length) {
      row.kinds = new Uint8Array(count);
      row.starts = new Uint32Array(count);
      row.ends = new Uint32Array(count);
    }
    const buffer = this.#buffer;
    const end = this.#end;
    const { kinds, starts, ends } = row;
    let at = this.#at;
    row.leavesOut = false;
    for (let i = 0; i < count; i++) {
      if (at >= end) {
        this.#at = at;
        this.#fail(`row ends before column ${i + 1} of ${count}`);
      }
      const kind = buffer[at++];
      if (kind === tag.t) {
        if (at + 4 > end) {
          this.#at = at;
          this.#fail(`row ends in the length of column ${i + 1}`);
        }
        const length =
          (((buffer[at] ?? 0) << 24) | ((buffer[at + 1] ?? 0) << 16) | ((buffer[at + 2] ?? 0) << 8) | (buffer[at + 3] ?? 0)) >>> 0;
        at += 4;
        if (length > end - at) {
          this.#at = at - 4;
          this.#fail(`column ${i + 1} is ${length} bytes long, ${end - at} are left`);
        }
        kinds[i] = valueKind.text;
        starts[i] = at;
        at += length;
        ends[i] = at;
      } else if (kind === tag.n || kind === tag.u) {
        if (kind === tag.u) row.leavesOut = true;
        kinds[i] = kind === tag.n ? valueKind.null : valueKind.unchangedToast;
        starts[i] = at;
        ends[i] = at;
      } else {
        this.#at = at;
        this.#fail(`column ${i + 1} has unknown value kind byte ${kind}`, -1);
      }
    }
    this.#at = at;
    row.buffer = buffer;
    row.count = count;
  }

  #expect(expected: number): void {
    const found = this.#byte();
    if (found !== expected) this.#fail(`expected ${String.fromCharCode(expected)}, found byte ${found}`, -1);
  }

  #byte(): number {
    this.#need(1);
    return this.#buffer[this.#at++] ?? 0;
  }

  #uint16(): number {
    this.#need(2);
    const value = this.#buffer.readUInt16BE(this.#at);
    this.#at += 2;
    return value;
  }

  #uint32(): number {
    this.#need(4);
    const value = this.#buffer.readUInt32BE(this.#at);
    this.#at += 4;
    return value;
  }

  #uint64(): bigint {
    this.#need(8);
    const value = this.#buffer.readBigUInt64BE(this.#at);
    this.#at += 8;
    return value;
  }

  #int64(): bigint {
    return BigInt.asIntN(64, this.#uint64());
  }

  #string(): string {
    const stop = this.#buffer.indexOf(0, this.#at);
    if (stop < 0 || stop >= this.#end) this.#fail('string without end');
    const text = this.#buffer.toString('utf8', this.#at, stop);
    this.#at = stop + 1;
    return text;
  }

  #need(bytes: number): void {
    if (this.#end - this.#at < bytes) this.#fail(`${bytes} more bytes expected, ${this.#end - this.#at} are left`);
  }

  #finish(): void {
    if (this.#at !== this.#end) this.#fail(`${this.#end - this.#at} bytes too many`);
  }

  /** `shift` moves the reported byte back to the one just read. */
  #fail(problem: string, shift = 0): never {
    throw new PgoutputError(problem, this.#lsn, this.#at + shift - this.#start);
  }
}
