/**
 * Transactions of this database's own WAL, as changes of base tables.
 * Invariant: a transaction is handed over whole, with everything it did to the tables in `targets`, signed: an old row weighs -1, a new one +1.
 * What cannot be told in rows (TRUNCATE, old rows that the WAL does not hold) is named in `unknown`.
 */
import { RowBuffer } from '../../replication/copy-rows.ts';
import type { Lsn } from '../../replication/lsn.ts';
import type { ChangeHandler, RelationMessage, TupleView } from '../../replication/pgoutput.ts';
import { mergedTuple } from '../tuples.ts';
import { type Frames, Spill, type SpilledFrames } from './spill.ts';

/** Where rows of one relation of the stream go. */
export interface BaseTarget {
  readonly baseId: number;
  /** Columns of the delta table that the lines have, in order. */
  readonly attnums: readonly number[];
  /** For each of them its place in a row of the stream; -1: it is not there. */
  readonly places: readonly number[];
  /** Why rows cannot be told; null: they can. */
  readonly unusable: string | null;
}

/** Lines in COPY form: weight, then the columns `attnums`. */
export interface BaseRows {
  readonly baseId: number;
  readonly attnums: readonly number[];
  readonly frames: readonly Frames[];
  readonly count: number;
}

export interface BaseTransaction {
  /** Of the top level, 32 bits. */
  readonly xid: number;
  /** Of its commit record: a stream that begins there brings it again. */
  readonly commitLsn: Lsn;
  readonly endLsn: Lsn;
  /** Milliseconds of the Unix epoch. */
  readonly committedAt: number;
  /** When it was here, by the clock of this machine. */
  readonly arrivedAt: number;
  readonly rows: readonly BaseRows[];
  /** Base tables whose change is not known in rows, and why. */
  readonly unknown: ReadonlyMap<number, string>;
  /** Of memory. */
  readonly bytes: number;
  /** Lets go of what is not in memory. */
  readonly release: () => void;
}

export interface TransactionHooks {
  /**
   * Called for every relation of the stream before its first row and after it changed, with the transaction (32 bits) it comes in;
   * `targets` is to hold its target by then.
   */
  readonly relation: (message: RelationMessage, xid: number) => void;
  readonly targets: ReadonlyMap<number, BaseTarget>;
  /** False: it has been taken in before, and its rows are skipped. */
  readonly wanted: (xid: number) => boolean;
  readonly committed: (transaction: BaseTransaction) => void;
  /** Content of a logical message of Millrace's own, at its commit. */
  readonly marker: (content: string) => void;
  /** The end of any transaction. */
  readonly ended: (endLsn: Lsn) => void;
}

/** Prefix of Millrace's own logical messages. */
export const markerPrefix = 'millrace';

const postgresEpochMs = Date.UTC(2000, 0, 1);

/** Bytes of one transaction that are kept in memory. */
const inMemory = 4 * 1024 * 1024;

interface Collected {
  readonly target: BaseTarget;
  readonly rows: RowBuffer;
  readonly spilled: SpilledFrames[];
  count: number;
}

/** A handler for the decoder. Buffers are kept from transaction to transaction. */
export function transactionHandler(hooks: TransactionHooks): ChangeHandler & {
  readonly isOpen: () => boolean;
  /** The stream is gone, in the middle of a transaction perhaps. */
  readonly discard: () => void;
} {
  const spare = new Map<number, RowBuffer>();
  const collected = new Map<number, Collected>();
  const unknown = new Map<number, string>();
  const finished: BaseRows[] = [];
  const markers: string[] = [];
  let spill: Spill | null = null;
  let xid = 0;
  let open = false;
  let skipping = false;
  let bytes = 0;

  const finish = (one: Collected): void => {
    const { target, rows, spilled, count } = one;
    if (count > 0) finished.push({ baseId: target.baseId, attnums: target.attnums, count, frames: [...spilled, ...rows.takeTight()] });
  };
  const rowsOf = (target: BaseTarget): Collected => {
    const known = collected.get(target.baseId);
    if (known !== undefined && known.target.attnums === target.attnums) return known;
    // The table got other columns within the transaction.
    if (known !== undefined) finish(known);
    const rows = known?.rows ?? spare.get(target.baseId) ?? new RowBuffer();
    spare.set(target.baseId, rows);
    const fresh = { target, rows, spilled: [], count: 0 };
    collected.set(target.baseId, fresh);
    return fresh;
  };
  const each = (oid: number, work: (target: BaseTarget) => void): void => {
    if (skipping) return;
    const target = hooks.targets.get(oid);
    if (target === undefined) return;
    if (target.unusable === null) work(target);
    else unknown.set(target.baseId, target.unusable);
  };
  const add = (target: BaseTarget, weight: '1' | '-1', row: TupleView): void => {
    const into = rowsOf(target);
    const before = into.rows.bytes;
    into.rows.appendLine(`${weight}\t`, row, target.places);
    into.count++;
    bytes += into.rows.bytes - before;
    if (bytes > inMemory) spillAll();
  };
  const spillAll = (): void => {
    spill ??= new Spill();
    for (const one of collected.values()) one.spilled.push(...spill.append(one.rows.take()));
    bytes = 0;
  };

  return {
    isOpen: () => open,
    discard: () => {
      spill?.release();
      spill = null;
    },
    begin: (_finalLsn, _time, topXid) => {
      open = true;
      xid = topXid;
      skipping = !hooks.wanted(xid);
    },
    commit: (commitLsn, endLsn, time) => {
      open = false;
      for (const one of collected.values()) finish(one);
      collected.clear();
      const file = spill;
      spill = null;
      if (!skipping && (finished.length > 0 || unknown.size > 0)) {
        hooks.committed({
          xid,
          commitLsn,
          endLsn,
          committedAt: postgresEpochMs + Number(time / 1000n),
          arrivedAt: Date.now(),
          rows: finished.splice(0),
          unknown: new Map(unknown),
          bytes,
          release: () => file?.release(),
        });
      } else file?.release();
      finished.length = 0;
      unknown.clear();
      bytes = 0;
      skipping = false;
      for (const content of markers.splice(0)) hooks.marker(content);
      hooks.ended(endLsn);
    },
    origin: () => undefined,
    type: () => undefined,
    relation: (message) => hooks.relation(message, xid),
    message: (transactional, _lsn, prefix, buffer, start, end) => {
      if (transactional && prefix === markerPrefix) markers.push(buffer.toString('utf8', start, end));
    },
    insert: (oid, row) => each(oid, (target) => add(target, '1', row)),
    update: (oid, oldKind, oldRow, newRow) =>
      each(oid, (target) => {
        if (oldRow === undefined || oldKind !== 'O') unknown.set(target.baseId, 'its REPLICA IDENTITY was not FULL');
        else {
          add(target, '-1', oldRow);
          add(target, '1', mergedTuple(oldRow, newRow));
        }
      }),
    delete: (oid, oldKind, oldRow) =>
      each(oid, (target) => {
        if (oldKind !== 'O') unknown.set(target.baseId, 'its REPLICA IDENTITY was not FULL');
        else add(target, '-1', oldRow);
      }),
    truncate: (oids) => {
      for (const oid of oids) each(oid, (target) => unknown.set(target.baseId, 'TRUNCATE'));
    },
  };
}
