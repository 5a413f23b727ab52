/**
 * Transactions of this database's own WAL, as changes of base tables.
 * Invariant: a transaction is handed over whole, with everything it did to the tables in `targets`, signed: an old row weighs -1, a new one +1.
 * An update that changes no column of the target gives no rows. What cannot be told in rows (TRUNCATE, old rows that the WAL does not hold) is named in `unknown`.
 */
import { RowBuffer } from '../../replication/copy-rows.ts';
import type { Lsn } from '../../replication/lsn.ts';
import { type ChangeHandler, type RelationMessage, type TupleView, unixMs, valueKind } from '../../replication/pgoutput.ts';
import { mergedTuple } from '../tuples.ts';
import { type Compared, changedColumns, type LineMask, type MaskCounts, wholeRow } from './masks.ts';
import { type Frames, Spill, type SpilledFrames } from './spill.ts';

/** Where rows of one relation of the stream go: `attnums` are the columns of the delta table that the lines have, in order. */
export interface BaseTarget extends Compared {
  readonly baseId: number;
  /** Why rows cannot be told; null: they can. */
  readonly unusable: string | null;
}

/** Lines in COPY form: weight, mask of changed columns, then the target's columns. */
export interface BaseRows {
  readonly baseId: number;
  readonly target: BaseTarget;
  readonly frames: readonly Frames[];
  readonly count: number;
  readonly masks: MaskCounts;
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
  /** Content of a logical message of Millrace's own: at its commit, or at once when it belongs to no transaction (null). */
  readonly marker: (content: string, transaction: Pick<BaseTransaction, 'xid' | 'committedAt'> | null) => void;
  /** The end of any transaction. */
  readonly ended: (endLsn: Lsn) => void;
}

/** Prefix of Millrace's own logical messages. */
export const markerPrefix = 'millrace';

/** Of those who ask for a refresh (millrace.request_refresh), in their transaction. */
export const requestMessage = 'refresh';

/** Bytes of one transaction that are kept in memory. */
const inMemory = 4 * 1024 * 1024;

interface Collected {
  readonly target: BaseTarget;
  readonly rows: RowBuffer;
  readonly spilled: SpilledFrames[];
  count: number;
  readonly masks: Map<LineMask, number>;
}

// Small transactions are many, and all of them are kept for a while: what is the same in most of them is there once.
const nothingUnknown: ReadonlyMap<number, string> = new Map();
const nothingHeld = (): void => undefined;
const frequent = new Map<LineMask, MaskCounts[]>();

function maskCounts(counts: ReadonlyMap<LineMask, number>): MaskCounts {
  const [first] = counts;
  if (first === undefined || counts.size > 1 || first[1] > 4) return new Map([...counts].map(([mask, rows]) => [mask.value, rows]));
  const [mask, rows] = first;
  let known = frequent.get(mask);
  if (known === undefined) {
    known = [];
    frequent.set(mask, known);
  }
  known[rows] ??= new Map([[mask.value, rows]]);
  return known[rows];
}

/** Whether a value that is wanted was left out (unchanged TOAST). */
function leavesOut(row: TupleView, places: readonly number[]): boolean {
  for (const place of places) if (row.kinds[place] === valueKind.unchangedToast) return true;
  return false;
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
    if (count === 0) return;
    const masks = maskCounts(one.masks);
    finished.push({ baseId: target.baseId, target, count, masks, frames: [...spilled, ...rows.takeTight()] });
  };
  const rowsOf = (target: BaseTarget): Collected => {
    const known = collected.get(target.baseId);
    if (known !== undefined && known.target === target) return known;
    // The table got other columns within the transaction.
    if (known !== undefined) finish(known);
    const rows = known?.rows ?? spare.get(target.baseId) ?? new RowBuffer();
    spare.set(target.baseId, rows);
    const fresh = { target, rows, spilled: [], count: 0, masks: new Map<LineMask, number>() };
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
  const add = (target: BaseTarget, mask: LineMask, removed: TupleView | null, made: TupleView | null): void => {
    const into = rowsOf(target);
    const before = into.rows.bytes;
    if (removed !== null) into.rows.appendLine(mask.removed, removed, target.places);
    if (made !== null) into.rows.appendLine(mask.made, made, target.places);
    const lines = removed !== null && made !== null ? 2 : 1;
    into.count += lines;
    into.masks.set(mask, (into.masks.get(mask) ?? 0) + lines);
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
          committedAt: unixMs(time),
          arrivedAt: Date.now(),
          rows: finished.splice(0),
          unknown: unknown.size === 0 ? nothingUnknown : new Map(unknown),
          bytes,
          release: file === null ? nothingHeld : () => file.release(),
        });
      } else file?.release();
      finished.length = 0;
      unknown.clear();
      bytes = 0;
      skipping = false;
      for (const content of markers.splice(0)) hooks.marker(content, { xid, committedAt: unixMs(time) });
      hooks.ended(endLsn);
    },
    origin: () => undefined,
    type: () => undefined,
    relation: (message) => hooks.relation(message, xid),
    message: (transactional, _lsn, prefix, buffer, start, end) => {
      if (prefix !== markerPrefix) return;
      const content = buffer.toString('utf8', start, end);
      if (transactional) markers.push(content);
      else hooks.marker(content, null);
    },
    insert: (oid, row) => each(oid, (target) => add(target, wholeRow, null, row)),
    update: (oid, oldKind, oldRow, newRow) =>
      each(oid, (target) => {
        if (oldRow === undefined || oldKind !== 'O') unknown.set(target.baseId, 'its REPLICA IDENTITY was not FULL');
        else {
          // An update of nothing that anyone looks at is no change.
          const mask = changedColumns(target, oldRow, newRow);
          if (mask !== null) add(target, mask, oldRow, leavesOut(newRow, target.places) ? mergedTuple(oldRow, newRow) : newRow);
        }
      }),
    delete: (oid, oldKind, oldRow) =>
      each(oid, (target) => {
        if (oldKind !== 'O') unknown.set(target.baseId, 'its REPLICA IDENTITY was not FULL');
        else add(target, wholeRow, oldRow, null);
      }),
    truncate: (oids) => {
      for (const oid of oids) each(oid, (target) => unknown.set(target.baseId, 'TRUNCATE'));
    },
  };
}
