/**
 * Decoded changes on their way to the upstream, collected per storage in COPY form.
 * Invariant: applying the steps of a batch in order gives what the origin's transactions gave; a sealed batch with an `endLsn`
 * ends exactly at that commit.
 */
import type { Storage } from '../catalog/model.ts';
import { RowBuffer, unchangedMask } from '../replication/copy-rows.ts';
import { KeySet } from '../replication/key-set.ts';
import type { Lsn } from '../replication/lsn.ts';
import type { TupleView } from '../replication/pgoutput.ts';
import type { ChunkShape } from './apply-sql.ts';
import type { OriginVersion } from './origin-history.ts';
import { mergedTuple, sameKey, tupleTexts } from './tuples.ts';

/** Where rows of one origin table go: one storage, and which column of a tuple is which of its columns (-1: none). */
export interface Target {
  readonly storage: Storage;
  /** Per storage column, in order. */
  readonly columns: readonly number[];
  /** Tuple columns of the key; empty without key. */
  readonly key: readonly number[];
  /** `columns` with -1 for all but the key. */
  readonly keyOnly: readonly number[];
  /** The copy is not done: changes wait in the spool. */
  readonly spool: boolean;
  /** Without key, and with columns that the origin has lost: rows are hashed by what is left, upstream. */
  readonly rehash: boolean;
}

export type Step =
  | {
      readonly kind: 'rows';
      readonly storageId: number;
      /** Rows that only insert, for COPY into the storage itself; applied before `changes`. */
      readonly inserts: readonly Buffer[];
      readonly insertRows: number;
      readonly changes: readonly Buffer[];
      readonly changeRows: number;
      readonly shape: ChunkShape;
    }
  | { readonly kind: 'spool'; readonly storageId: number; readonly rows: readonly Buffer[] }
  | { readonly kind: 'truncate'; readonly storageId: number }
  | ShapeStep
  /** An update that moves a row to another key and leaves values out: old key, then the values sent (null: SQL NULL; undefined: left out). */
  | {
      readonly kind: 'rekey';
      readonly storageId: number;
      readonly oldKey: readonly (string | null)[];
      readonly values: readonly (string | null | undefined)[];
    };

/** What a change of the table makes of its storage. */
export type ShapeStep =
  /** Columns have got wider types. */
  | { readonly kind: 'widen'; readonly storageId: number; readonly columns: readonly WidenedColumn[] }
  /** Values of an enum have got other labels; `attnums`: columns of the type. */
  | {
      readonly kind: 'relabel';
      readonly storageId: number;
      readonly type: string;
      readonly labels: readonly { readonly from: string; readonly to: string }[];
      readonly attnums: readonly number[];
    }
  /** Rows have become others without being sent: what is copied before this is of no use. */
  | { readonly kind: 'copy again'; readonly storageId: number }
  /**
   * Of these columns not all values were sent: no version is to show them before they are copied anew. A storage without key loses them, as its rows are
   * found by what they look like.
   */
  | { readonly kind: 'missed'; readonly storageId: number; readonly attnums: readonly number[] };

/** A column with the type that it has at the origin by now. */
export interface WidenedColumn {
  readonly attnum: number;
  readonly originType: string;
  /** It is the type that it was, under another name. */
  readonly renamed?: true;
}

export interface Batch {
  readonly steps: readonly Step[];
  /** Versions of origin tables that begin within it. */
  readonly versions: readonly OriginVersion[];
  /** End of the last transaction; null while it is still open (a large one, sent in parts). */
  readonly endLsn: Lsn | null;
  readonly transactions: number;
  readonly rows: number;
  readonly bytes: number;
}

interface Chunk {
  readonly inserts: RowBuffer;
  readonly changes: RowBuffer;
  readonly spool: RowBuffer;
  readonly keys: KeySet;
  seq: number;
  shape: { inserts: boolean; updates: boolean; deletes: boolean; repeats: boolean; keeps: boolean; rehash: boolean };
}

const noShape = (): Chunk['shape'] => ({ inserts: false, updates: false, deletes: false, repeats: false, keeps: false, rehash: false });
/** COPY's NULL. */
const none = '\\N';

/** Collects changes until `seal`. Buffers are reused from batch to batch. */
export class BatchBuilder {
  readonly #chunks = new Map<number, Chunk>();
  readonly #open = new Set<number>();
  #steps: Step[] = [];
  #versions: OriginVersion[] = [];
  readonly #missed = new Set<string>();
  #spoolChunk = 0;
  #xid = 0;
  transactions = 0;
  rows = 0;
  bytes = 0;

  begin(xid: number): void {
    this.#xid = xid;
  }

  /** A transaction has ended. */
  commit(): void {
    this.transactions++;
  }

  get empty(): boolean {
    return this.rows === 0 && this.#steps.length === 0 && this.#open.size === 0 && this.#versions.length === 0;
  }

  version(version: OriginVersion): void {
    this.#versions.push(version);
  }

  /** From here on the table of a storage has another shape. */
  shape(step: ShapeStep): void {
    // All of them: a label of an enum is also that of other tables.
    for (const storageId of [...this.#open]) this.#flush(storageId);
    this.#steps.push(step);
  }

  /** Said once a batch: there may be thousands of such rows. */
  missed(step: Extract<ShapeStep, { kind: 'missed' }>): void {
    const key = `${step.storageId} ${step.attnums.join(' ')}`;
    if (this.#missed.has(key)) return;
    this.#missed.add(key);
    this.shape(step);
  }

  insert(target: Target, row: TupleView): void {
    const chunk = this.#chunk(target);
    this.rows++;
    if (target.spool) this.#spool(target, chunk, 'I', row, target.columns, '');
    else if (target.key.length === 0) this.#keylessInsert(target, chunk, row);
    else if (chunk.changes.rows === 0) chunk.inserts.appendLine('', row, target.columns);
    else this.#change(target, chunk, 'I', row, row, target.columns, '');
  }

  update(target: Target, oldRow: TupleView | undefined, oldKind: 'K' | 'O' | '', sent: TupleView): void {
    this.rows++;
    const newRow = oldRow !== undefined && oldKind === 'O' ? mergedTuple(oldRow, sent) : sent;
    if (target.key.length === 0) {
      if (oldRow === undefined) return;
      this.#remove(target, oldRow);
      const chunk = this.#chunk(target);
      if (target.spool) this.#spool(target, chunk, 'I', newRow, target.columns, '');
      else this.#keylessInsert(target, chunk, newRow);
      return;
    }
    const mask = unchangedMask(newRow, target.columns);
    const moved = oldRow !== undefined && (oldKind === 'K' || !sameKey(oldRow, newRow, target.key));
    if (moved && mask !== '') {
      // The values left out are with the row of the old key: it has to be moved, not deleted and inserted.
      this.#flush(target.storage.id);
      const values = tupleTexts(newRow, target.columns);
      if (target.spool) this.#spoolRekey(target, oldRow, newRow, mask);
      else
        this.#steps.push({
          kind: 'rekey',
          storageId: target.storage.id,
          oldKey: tupleTexts(oldRow, target.key).map((value) => value ?? null),
          values,
        });
      return;
    }
    const chunk = this.#chunk(target);
    if (moved) {
      this.#remove(target, oldRow);
      if (target.spool) this.#spool(target, chunk, 'I', newRow, target.columns, '');
      else this.#change(target, chunk, 'I', newRow, newRow, target.columns, '');
    } else if (target.spool) this.#spool(target, chunk, 'U', newRow, target.columns, mask);
    else this.#change(target, chunk, 'U', newRow, newRow, target.columns, mask);
  }

  delete(target: Target, oldRow: TupleView): void {
    this.rows++;
    this.#remove(target, oldRow);
  }

  truncate(target: Target): void {
    this.rows++;
    const chunk = this.#chunk(target);
    if (target.spool) {
      this.#spoolChunk++;
      this.#spool(
        target,
        chunk,
        'T',
        undefined,
        target.columns.map(() => -1),
        '',
      );
      this.#spoolChunk++;
      return;
    }
    this.#flush(target.storage.id);
    this.#steps.push({ kind: 'truncate', storageId: target.storage.id });
  }

  /** What there is so far. `endLsn` null: the transaction goes on in the next batch. */
  seal(endLsn: Lsn | null): Batch {
    for (const storageId of [...this.#open]) this.#flush(storageId);
    const { transactions, rows, bytes } = this;
    const batch: Batch = { steps: this.#steps, versions: this.#versions, endLsn, transactions, rows, bytes };
    this.#steps = [];
    this.#versions = [];
    this.#missed.clear();
    this.transactions = 0;
    this.rows = 0;
    this.bytes = 0;
    return batch;
  }

  /** Bytes held. */
  get pendingBytes(): number {
    let sum = 0;
    for (const id of this.#open) {
      const chunk = this.#chunks.get(id);
      if (chunk !== undefined) sum += chunk.inserts.bytes + chunk.changes.bytes + chunk.spool.bytes;
    }
    return sum;
  }

  #chunk(target: Target): Chunk {
    const { id } = target.storage;
    let chunk = this.#chunks.get(id);
    if (chunk === undefined) {
      chunk = { inserts: new RowBuffer(), changes: new RowBuffer(), spool: new RowBuffer(), keys: new KeySet(), seq: 0, shape: noShape() };
      this.#chunks.set(id, chunk);
    }
    this.#open.add(id);
    return chunk;
  }

  #keylessInsert(target: Target, chunk: Chunk, row: TupleView): void {
    chunk.shape.rehash = target.rehash;
    if (chunk.changes.rows === 0 && !target.rehash) {
      chunk.inserts.appendHashedLine('', row, target.columns);
      return;
    }
    chunk.changes.appendHashedLine(`${chunk.seq++}\tI\t`, row, target.columns);
    chunk.shape.inserts = true;
  }

  #remove(target: Target, oldRow: TupleView): void {
    const chunk = this.#chunk(target);
    if (target.key.length === 0) {
      if (target.spool) this.#spool(target, chunk, 'D', oldRow, target.columns, '');
      else {
        chunk.changes.appendHashedLine(`${chunk.seq++}\tD\t`, oldRow, target.columns);
        chunk.shape.deletes = true;
        chunk.shape.rehash = target.rehash;
      }
    } else if (target.spool) this.#spool(target, chunk, 'D', oldRow, target.keyOnly, '');
    else this.#change(target, chunk, 'D', oldRow, oldRow, target.keyOnly, '');
  }

  #change(
    target: Target,
    given: Chunk,
    op: 'I' | 'U' | 'D',
    row: TupleView,
    keyRow: TupleView,
    columns: readonly number[],
    mask: string,
  ): void {
    let chunk = given;
    if (chunk.keys.add(keyRow, target.key)) {
      if (mask !== '' || chunk.shape.keeps) {
        this.#flush(target.storage.id);
        chunk = this.#chunk(target);
        chunk.keys.add(keyRow, target.key);
      } else chunk.shape.repeats = true;
    }
    chunk.changes.appendLine(`${chunk.seq++}\t${op}\t${mask === '' ? none : mask}\t`, row, columns);
    if (op === 'I') chunk.shape.inserts = true;
    else if (op === 'U') chunk.shape.updates = true;
    else chunk.shape.deletes = true;
    if (mask !== '') chunk.shape.keeps = true;
  }

  #spool(target: Target, chunk: Chunk, op: string, row: TupleView | undefined, columns: readonly number[], mask: string): void {
    // Every row with values left out stands in a chunk of its own, so that no key repeats beside it.
    if (mask !== '') this.#spoolChunk++;
    const prefix = `${this.#spoolChunk}\t${this.#xid}\t${chunk.seq++}\t${op}\t`;
    const shown = row ?? {
      buffer: Buffer.alloc(0),
      count: 0,
      kinds: new Uint8Array(0),
      starts: new Uint32Array(0),
      ends: new Uint32Array(0),
      leavesOut: false,
    };
    if (target.storage.keyAttnums.length > 0) chunk.spool.appendLine(`${prefix}${mask === '' ? none : mask}\t`, shown, columns);
    else chunk.spool.appendHashedLine(prefix, shown, columns);
    if (mask !== '') this.#spoolChunk++;
  }

  /** In the spool a moved row with values left out is an update of the old key that keeps them (op M, old key first), then the new key. */
  #spoolRekey(target: Target, oldRow: TupleView, newRow: TupleView, mask: string): void {
    const chunk = this.#chunk(target);
    this.#spoolChunk++;
    this.#spool(target, chunk, 'O', oldRow, target.keyOnly, '');
    this.#spool(target, chunk, 'N', newRow, target.columns, mask);
    this.#spoolChunk++;
  }

  #flush(storageId: number): void {
    const chunk = this.#chunks.get(storageId);
    if (chunk === undefined || !this.#open.delete(storageId)) return;
    this.bytes += chunk.inserts.bytes + chunk.changes.bytes + chunk.spool.bytes;
    if (chunk.spool.rows > 0) this.#steps.push({ kind: 'spool', storageId, rows: chunk.spool.take() });
    if (chunk.inserts.rows + chunk.changes.rows > 0) {
      const { rows: insertRows } = chunk.inserts;
      const { rows: changeRows } = chunk.changes;
      this.#steps.push({
        kind: 'rows',
        storageId,
        insertRows,
        changeRows,
        inserts: chunk.inserts.take(),
        changes: chunk.changes.take(),
        shape: chunk.shape,
      });
    }
    chunk.keys.clear();
    chunk.seq = 0;
    chunk.shape = noShape();
  }
}
