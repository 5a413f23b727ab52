/**
 * The first copy of a table, beside the stream.
 * Invariant: from before the first snapshot is taken, changes of the table go to its spool. What is in the storage is of a snapshot no older than
 * `copySnapshot`; when all is in, the spooled transactions which that one does not see are applied, the last of them in the epoch that makes the
 * storage live. No other table waits for any of it, and no snapshot of the origin lasts longer than one piece.
 *
 * A table with a key is copied in pieces: ranges of the key (key-ranges.ts), each of a snapshot of its own, committed together with its row in
 * the catalog (copy-chunks.ts), so a piece that is in is never copied again. A change does not have to find out which piece its row came with: all
 * changes since the oldest snapshot are applied, in order, and what comes out of it does not depend on how new the copy's rows were (spool.ts).
 * Comparing keys here, with collations that two servers need not agree on, is so avoided. What that rule cannot do is to move a row's values
 * from one key to another when the rows of the two were read before and after the move: `mendMoves` reads such rows again.
 * When the table's shape changes so that what is in the storage is of no use (wider types, rows written anew), the copy begins again: its state
 * is 'new' from the epoch on in which the stream gets there, and no piece is taken, or let in, in that state.
 * A table without a key is copied in one piece: its rows cannot be told apart, so each change has to be applied exactly once.
 */
import { setTimeout as wait } from 'node:timers/promises';
import { type Storage, spoolTable, storageColumn, storageTable } from '../catalog/model.ts';
import { createStorageIndex, dropStorageIndex } from '../catalog/storage-ddl.ts';
import type { ServerAddress } from '../config.ts';
import { formatLsn, type Lsn } from '../replication/lsn.ts';
import type { OriginTable } from '../replication/origin-tables.ts';
import { connectRaw, type RawConnection } from '../replication/raw-connection.ts';
import { type OriginReader, openReader, type TakenSnapshot } from '../replication/snapshot.ts';
import { quoteLiteral } from '../sql/quote.ts';
import { isRehashed, rehashRows } from './apply-sql.ts';
import { Backlog } from './backlog.ts';
import type { EngineContext } from './context.ts';
import { CopiedTable } from './copied-table.ts';
import { type Chunk, chunkIsIn, claimChunk, claimCopy, knownChunks, planChunk } from './copy-chunks.ts';
import { CopyProgress } from './copy-progress.ts';
import { reach } from './fault-points.ts';
import { copySettings } from './session-settings.ts';
import type { SourceRunner } from './source-runner.ts';
import { applyPortion, applySpool, seenBy, spooledXids, spoolIsLong } from './spool.ts';

/** What a copy asks of the source it belongs to, now and later. */
export interface CopySource {
  /** Its stream; null while there is none. */
  runner(): SourceRunner | null;
  /** The table as the origin has it now; null when it is gone. */
  describe(): Promise<OriginTable | null>;
}

/** Rows of a piece. */
const [fewestRows, mostRows] = [100, 1_000_000];
/** Keys that one statement asks for. */
const askedKeys = 500;
/** Nothing else is to be learnt from a piece than its rows: read by the key's index, by one process. */
const chunkSettings = { enable_seqscan: 'off', max_parallel_workers_per_gather: '0', jit: 'off' };

/** Whether a copy that was cut short can go on from the pieces that are in. */
export const isResumable = (storage: Storage): boolean => storage.state === 'copying' && storage.copySnapshot !== null;

/** Statements that put a storage back to where its copy began. */
export function afresh({ id }: Pick<Storage, 'id'>): string[] {
  return [
    // First: it waits for pieces under way, which hold locks on the tables too.
    `DELETE FROM millrace.copy_chunk WHERE storage_id = ${id}`,
    `TRUNCATE ${storageTable(id)}`,
    dropStorageIndex(id),
    `TRUNCATE ${spoolTable(id)}`,
    `UPDATE millrace.storage SET state = 'new', rows_copied = 0, bytes_copied = 0, copy_snapshot = NULL, copy_lsn = NULL, merged_to = NULL, missed = NULL WHERE id = ${id}`,
  ];
}

const analyzed = ({ id }: Pick<Storage, 'id'>): string => `ANALYZE ${storageTable(id)}`;

/** Copies a storage in state 'copying', or what is missing of it. Its changes must be going to the spool already. */
export async function copyStorage(engine: EngineContext, storage: Storage, source: CopySource, signal: AbortSignal): Promise<void> {
  const address = engine.state.sources.get(storage.sourceId)?.address ?? null;
  if (address === null) throw new Error('the source has no address');
  const copy = new TableCopy(engine, storage, source, address, signal);
  try {
    await copy.run();
  } catch (error) {
    await copy.close();
    throw error;
  }
  // Nobody waits for statistics: a rough idea is there, and what fails here the server makes good by itself.
  void copy
    .analyze()
    .catch(() => undefined)
    .then(() => copy.close());
}

class TableCopy {
  readonly #engine: EngineContext;
  readonly #storage: Storage;
  readonly #source: CopySource;
  readonly #table: CopiedTable;
  readonly #address: ServerAddress;
  /** Of the caller, and of the first part that fails. */
  readonly #signal: AbortSignal;
  readonly #failed = new AbortController();
  readonly #progress: CopyProgress;
  readonly #backlog = new Backlog<Chunk>();
  readonly #open: { close(): Promise<void> }[] = [];
  #unanalyzed: RawConnection | null = null;
  /** The furthest that a snapshot of it may have seen. */
  #lsn: Lsn = 0n;

  constructor(engine: EngineContext, storage: Storage, source: CopySource, address: ServerAddress, signal: AbortSignal) {
    this.#engine = engine;
    this.#storage = storage;
    this.#source = source;
    this.#table = new CopiedTable(storage, () => source.describe());
    this.#address = address;
    this.#signal = AbortSignal.any([signal, this.#failed.signal]);
    this.#progress = new CopyProgress(engine, storage.id);
  }

  async run(): Promise<void> {
    reach('copy.began');
    await this.#table.look();
    const known = await knownChunks(this.#engine, this.#storage.id);
    for (const { number, done } of known) {
      if (done === null) continue;
      this.#progress.set(number, done.rows, done.bytes);
      if (done.lsn > this.#lsn) this.#lsn = done.lsn;
    }
    const planner = await this.#reader();
    const isWhole = known.length === 0 ? await this.#isOnePiece(planner) : known[0]?.range.upTo === null;
    for (const chunk of known) if (chunk.done === null) this.#backlog.push(chunk);
    const upstream = await this.#upstream();
    if (isWhole) {
      if (known.length === 0) await this.#plan({ number: 0, range: { after: null, upTo: null } });
      this.#backlog.end();
      await this.#work(planner, upstream);
    } else {
      await planner.query(
        Object.entries(chunkSettings)
          .map(([name, value]) => `SET ${name} = '${value}'`)
          .join('; '),
      );
      const parts = [this.#planRanges(planner, known.at(-1) ?? null)];
      for (let i = 0; i < this.#engine.config.copies.sessions; i++) parts.push(this.#workAlone(i === 0 ? upstream : null));
      await this.#together(parts);
    }
    if (isRehashed(this.#storage) && this.#storage.keyAttnums.length === 0) await this.#rehash(upstream);
    await Promise.all([planner.flush(), this.#index(upstream)]);
    reach('copy.indexed');
    await this.#mendMoves(planner, upstream);
    // Rows without key: columns that the origin has lost meanwhile have to be forgotten first, see goLive.
    if (this.#storage.keyAttnums.length > 0) await this.#catchUp(upstream);
    reach('copy.all-in');
    // What takes the place of a storage gets triggers when it goes live, and would wait for this.
    if (this.#storage.supersedes !== null) await upstream.query(analyzed(this.#storage));
    else this.#unanalyzed = upstream;
    await this.#finished();
    reach('copy.finished');
  }

  /** Statistics in full, if they are not there yet. Behind `run`. */
  async analyze(): Promise<void> {
    await this.#unanalyzed?.query(analyzed(this.#storage));
  }

  async close(): Promise<void> {
    this.#progress.stop();
    await Promise.all(this.#open.map((session) => session.close().catch(() => undefined)));
  }

  async #reader(settings: Readonly<Record<string, string>> = {}): Promise<OriginReader> {
    this.#signal.throwIfAborted();
    const reader = await openReader(this.#address, { settings });
    const abort = (): void => reader.destroy(asError(this.#signal.reason));
    this.#signal.addEventListener('abort', abort, { once: true });
    if (this.#signal.aborted) abort();
    this.#open.push(reader);
    return reader;
  }

  async #upstream(): Promise<RawConnection> {
    const { upstream, database } = this.#engine.config;
    const session = await connectRaw(upstream, { database, applicationName: 'millrace copy', settings: copySettings });
    this.#open.push(session);
    return session;
  }

  /** All parts to their end; the first that fails ends the others, and is what is told. */
  async #together(parts: readonly Promise<void>[]): Promise<void> {
    const errors: unknown[] = [];
    await Promise.all(
      parts.map((part) =>
        part.catch((error: unknown) => {
          errors.push(error);
          this.#failed.abort(error);
          this.#backlog.end();
        }),
      ),
    );
    if (errors.length > 0) throw errors[0];
  }

  /**
   * Whether it is copied at one snapshot: a table without key, or a small one. For the others the snapshot is taken that all pieces are later than, and
   * that the spool is cut at.
   */
  async #isOnePiece(reader: OriginReader): Promise<boolean> {
    const { rows, bytes } = await this.#table.size(reader);
    const { chunkBytes } = this.#engine.config.copies;
    const isWhole = this.#storage.keyAttnums.length === 0 || bytes <= chunkBytes;
    let base: string | null = null;
    if (!isWhole) {
      base = (await this.#cleanSnapshot(reader)).text;
      await reader.end();
    }
    const result = await this.#engine.admin.query(
      `UPDATE millrace.storage s SET copy_snapshot = $2, rows_estimate = coalesce($3, s.rows_estimate), chunks_estimate = $4
         FROM millrace.epoch e WHERE s.id = $1 AND s.state = 'copying' AND e.token = $5`,
      [this.#storage.id, base, rows > 0 ? rows : null, isWhole ? 1 : Math.ceil(bytes / chunkBytes), String(this.#engine.token)],
    );
    if (result.rowCount !== 1) throw new Error('the copy is not wanted any more');
    return isWhole;
  }

  /**
   * A snapshot that sees every transaction the stream has brought so far. A commit is in the WAL shortly (with synchronous replication: long)
   * before snapshots see it; such a transaction would be neither in the copy nor in the spool.
   */
  async #cleanSnapshot(reader: OriginReader): Promise<TakenSnapshot> {
    for (;;) {
      const taken = await reader.begin(this.#table.name);
      const runner = this.#source.runner();
      if (![...taken.snapshot.xip].some((xid) => runner?.sawRecently(xid) === true)) return taken;
      await reader.end();
      await wait(20);
    }
  }

  async #plan(chunk: Chunk): Promise<void> {
    if (!(await planChunk(this.#engine, this.#storage.id, chunk))) throw new Error('the copy is not wanted any more');
    this.#backlog.push(chunk);
  }

  /** Finds the ranges that are not known yet, one after the other, while the first are being copied. */
  async #planRanges(reader: OriginReader, last: Chunk | null): Promise<void> {
    const { rows, bytes } = await this.#table.size(reader);
    // Never analysed: a guess at the size of a row.
    const rowBytes = rows > 0 ? Math.max(bytes / rows, 1) : 120;
    const size = Math.min(mostRows, Math.max(fewestRows, Math.round(this.#engine.config.copies.chunkBytes / rowBytes)));
    for (let before = last; before === null || before.range.upTo !== null; ) {
      const after = before?.range.upTo ?? null;
      const upTo = await this.#table.despiteRenaming(() => this.#table.border(reader, after, size));
      before = { number: before === null ? 0 : before.number + 1, range: { after, upTo } };
      await this.#plan(before);
    }
    this.#backlog.end();
  }

  async #workAlone(given: RawConnection | null): Promise<void> {
    // What there is for it may come late or never.
    const first = await this.#backlog.take();
    if (first === null) return;
    const [reader, upstream] = await Promise.all([this.#reader(chunkSettings), given ?? this.#upstream()]);
    await this.#copyChunk(reader, upstream, first);
    await this.#work(reader, upstream);
  }

  async #work(reader: OriginReader, upstream: RawConnection): Promise<void> {
    for (let chunk = await this.#backlog.take(); chunk !== null; chunk = await this.#backlog.take()) {
      this.#signal.throwIfAborted();
      await this.#copyChunk(reader, upstream, chunk);
    }
  }

  #copyChunk(reader: OriginReader, upstream: RawConnection, chunk: Chunk): Promise<void> {
    return this.#table.despiteRenaming(
      () => this.#copyOnce(reader, upstream, chunk),
      () => Promise.all([reader.end(), upstream.query('ROLLBACK')]),
    );
  }

  async #copyOnce(reader: OriginReader, upstream: RawConnection, chunk: Chunk): Promise<void> {
    const { token } = this.#engine;
    const { id } = this.#storage;
    const taken = await this.#cleanSnapshot(reader);
    reach('copy.snapshot-taken');
    await upstream.query('BEGIN');
    if (!(await claimChunk(upstream, token, id, chunk))) {
      await Promise.all([reader.end(), upstream.query('ROLLBACK')]);
      return;
    }
    const copied = await reader.copy({
      upstream,
      ...this.#table.copySql(chunk.range),
      signal: this.#signal,
      rest: (bytes) => this.#source.runner()?.givingWay.rest(bytes, performance.now()) ?? 0,
      onProgress: (rows, bytes) => this.#progress.set(chunk.number, rows, bytes),
    });
    await reader.end();
    reach('copy.rows-in');
    const isWanted = await chunkIsIn(upstream, token, id, chunk, taken, copied);
    // Of a copy in one piece it is the snapshot of all.
    await upstream.query(
      `UPDATE millrace.storage SET copy_snapshot = ${quoteLiteral(taken.text)} WHERE id = ${id} AND copy_snapshot IS NULL`,
    );
    reach('copy.piece-noted');
    await upstream.query(isWanted ? 'COMMIT' : 'ROLLBACK');
    reach('copy.piece-committed');
    if (taken.lsn > this.#lsn) this.#lsn = taken.lsn;
  }

  /** The stream has applied, to the spool too, everything up to a position. */
  async #passed(lsn: Lsn): Promise<void> {
    for (;;) {
      this.#signal.throwIfAborted();
      const runner = this.#source.runner();
      if (runner !== null && runner.applied >= lsn) return;
      runner?.requestPosition();
      await wait(20);
    }
  }

  /**
   * Rows that were moved to another key by an update that left values out (unchanged TOAST), while pieces were read: the value may have been missed with
   * the old key and with the new one. All pieces are in and the stream has passed them, so there will be no more such moves. At a new snapshot, once the
   * stream has passed that, everything which it sees is applied; then the storage is the table as of that snapshot, but for those rows, which are read at it.
   */
  async #mendMoves(reader: OriginReader, upstream: RawConnection): Promise<void> {
    const spool = spoolTable(this.#storage.id);
    const [pieces] = await upstream.query(
      `SELECT EXISTS (SELECT FROM millrace.copy_chunk k, millrace.storage s WHERE s.id = ${this.#storage.id} AND k.storage_id = s.id AND k.snapshot <> s.copy_snapshot)`,
    );
    if (pieces?.rows[0]?.[0] !== 't') return;
    await this.#passed(this.#lsn);
    const [moves] = await upstream.query(`SELECT EXISTS (SELECT FROM ${spool} WHERE op = 'O')`);
    if (moves?.rows[0]?.[0] !== 't') return;
    const flusher = await this.#reader();
    const taken = await reader.begin(this.#table.name);
    await flusher.flush();
    await this.#passed(taken.lsn);
    await upstream.query('BEGIN');
    if (!(await claimCopy(upstream, this.#engine.token, this.#storage.id))) throw new Error('the copy is not wanted any more');
    const seen = (await spooledXids(upstream, this.#storage)).filter(seenBy(taken.text));
    const within = `xid = ANY ('{${seen.join(',')}}')`;
    const key = this.#storage.keyAttnums.map(storageColumn);
    await upstream.query(
      `CREATE TEMPORARY TABLE moved ON COMMIT DROP AS SELECT DISTINCT ${key.join(', ')} FROM ${spool} WHERE op IN ('O', 'N') AND ${within}`,
    );
    const [keys] = await upstream.query(`SELECT ${key.map((column) => `${column}::text`).join(', ')} FROM moved`);
    await upstream.query(`UPDATE ${spool} SET op = 'D' WHERE op = 'O' AND ${within}`);
    await upstream.query(`DELETE FROM ${spool} WHERE op = 'N' AND ${within}`);
    await applySpool(upstream, await this.#current(upstream), within);
    await upstream.query(`DELETE FROM ${spool} WHERE ${within}`);
    await upstream.query(
      `DELETE FROM ${storageTable(this.#storage.id)} s USING moved d WHERE ${key.map((column) => `s.${column} = d.${column}`).join(' AND ')}`,
    );
    const rows = (keys?.rows ?? []).map((row) => row.map((value) => value ?? ''));
    for (let at = 0; at < rows.length; at += askedKeys)
      await reader.copy({ upstream, ...this.#table.copySql(rows.slice(at, at + askedKeys)), signal: this.#signal });
    await upstream.query(`UPDATE millrace.storage SET copy_snapshot = ${quoteLiteral(taken.text)} WHERE id = ${this.#storage.id}`);
    await Promise.all([reader.end(), upstream.query('COMMIT')]);
    this.#lsn = taken.lsn;
  }

  /** What finds rows, and a rough idea of them for who reads before the proper one is there. */
  async #index(upstream: RawConnection): Promise<void> {
    const { admin, config } = this.#engine;
    // A large one takes a while: who drops the table meanwhile does not wait for it.
    const cancel = (): void => void admin.query('SELECT pg_catalog.pg_cancel_backend($1)', [upstream.backendPid]).catch(() => undefined);
    this.#signal.addEventListener('abort', cancel, { once: true });
    try {
      // It cannot rest in between: one more processor only where nobody was late while rows came as fast as they could.
      const isFree = this.#source.runner()?.givingWay.rate === Number.POSITIVE_INFINITY;
      await upstream.query(`SET max_parallel_maintenance_workers = ${config.copies.sessions - (isFree ? 0 : 1)}`);
      await upstream.query(createStorageIndex(this.#storage));
      await upstream.query(`SET default_statistics_target = 10; ${analyzed(this.#storage)}; RESET default_statistics_target`);
    } finally {
      this.#signal.removeEventListener('abort', cancel);
    }
    this.#signal.throwIfAborted();
  }

  /** With the snapshot that it has by now. */
  async #current(upstream: RawConnection): Promise<Storage> {
    const [now] = await upstream.query(`SELECT copy_snapshot FROM millrace.storage WHERE id = ${this.#storage.id}`);
    return { ...this.#storage, copySnapshot: now?.rows[0]?.[0] ?? null };
  }

  /** Its rows came with the hashes of the origin's lines, and are found by those of what is stored. */
  async #rehash(upstream: RawConnection): Promise<void> {
    await upstream.query('BEGIN');
    if (!(await claimCopy(upstream, this.#engine.token, this.#storage.id))) throw new Error('the copy is not wanted any more');
    await upstream.query(rehashRows(this.#storage));
    await upstream.query('COMMIT');
  }

  /** What the spool has grown to is applied in portions beside the stream, so that going live is short. */
  async #catchUp(upstream: RawConnection): Promise<void> {
    for (;;) {
      this.#signal.throwIfAborted();
      const [length] = await upstream.query(`SELECT count(*) FROM (SELECT FROM ${spoolTable(this.#storage.id)} LIMIT 100000) x`);
      if (!spoolIsLong(Number(length?.rows[0]?.[0]))) return;
      await upstream.query('BEGIN');
      if (!(await claimCopy(upstream, this.#engine.token, this.#storage.id))) throw new Error('the copy is not wanted any more');
      await applyPortion(upstream, await this.#current(upstream));
      await upstream.query('COMMIT');
    }
  }

  /** From here on it waits for the stream to pass it, and goes live. */
  async #finished(): Promise<void> {
    this.#progress.stop();
    await this.#engine.admin.query(
      `UPDATE millrace.storage s
          SET state = 'copied', copy_lsn = $2, rows_copied = c.rows, bytes_copied = c.bytes
         FROM millrace.epoch e,
              (SELECT coalesce(sum(k.rows), 0) AS rows, coalesce(sum(k.bytes), 0) AS bytes, bool_and(k.copied_at IS NOT NULL) AS whole
                 FROM millrace.copy_chunk k WHERE k.storage_id = $1) c
        WHERE s.id = $1 AND s.state = 'copying' AND e.token = $3 AND c.whole`,
      [this.#storage.id, formatLsn(this.#lsn), String(this.#engine.token)],
    );
  }
}

/** Puts a storage whose copy was cut short, has failed or is of no use back to where it began. To be called exclusively. */
export async function restartCopy({ session, state }: EngineContext, id: number): Promise<void> {
  const storage = state.storages.get(id);
  if (storage === undefined || storage.state === 'live' || storage.state === 'dropped') return;
  await session.query(`BEGIN; ${afresh(storage).join('; ')}; COMMIT`);
}

const asError = (reason: unknown): Error => (reason instanceof Error ? reason : new Error(String(reason)));
