/**
 * The pieces of a table's first copy, as the catalog has them.
 * Invariant: the ranges written so far follow each other without a gap, from the first key; a piece is marked as in by the transaction that brought
 * its rows, and only by the leader.
 */

import type { KeyRange, KeyValue } from '../replication/key-ranges.ts';
import { formatLsn, type Lsn, parseLsn } from '../replication/lsn.ts';
import type { RawConnection } from '../replication/session-contract.ts';
import type { TakenSnapshot } from '../replication/snapshot.ts';
import { quoteLiteral } from '../sql/quote.ts';
import type { EngineContext } from './context.ts';

export interface Chunk {
  readonly number: number;
  readonly range: KeyRange;
}

/** A piece, and what came of it once it is in. */
export interface KnownChunk extends Chunk {
  readonly done: { readonly rows: number; readonly bytes: number; readonly lsn: Lsn } | null;
}

export async function knownChunks({ admin }: EngineContext, storageId: number): Promise<KnownChunk[]> {
  const result = await admin.query<{
    chunk: number;
    after_key: string[] | null;
    up_to_key: string[] | null;
    lsn: string | null;
    rows: string;
    bytes: string;
  }>(
    'SELECT chunk, after_key, up_to_key, lsn::text, rows::text, bytes::text FROM millrace.copy_chunk WHERE storage_id = $1 ORDER BY chunk',
    [storageId],
  );
  return result.rows.map(({ chunk, after_key, up_to_key, lsn, rows, bytes }) => ({
    number: chunk,
    range: { after: after_key, upTo: up_to_key },
    done: lsn === null ? null : { rows: Number(rows), bytes: Number(bytes), lsn: parseLsn(lsn) },
  }));
}

/** Writes down that a piece is to be copied. False: the copy is not wanted any more, or another process leads. */
export async function planChunk({ admin, token }: EngineContext, storageId: number, { number, range }: Chunk): Promise<boolean> {
  const result = await admin.query(
    `INSERT INTO millrace.copy_chunk (storage_id, chunk, after_key, up_to_key)
     SELECT s.id, $2, $3, $4 FROM millrace.storage s, millrace.epoch e WHERE s.id = $1 AND s.state = 'copying' AND e.token = $5
     ON CONFLICT DO NOTHING`,
    [storageId, number, mutable(range.after), mutable(range.upTo), String(token)],
  );
  return result.rowCount === 1;
}

const mutable = (key: KeyValue | null): string[] | null => (key === null ? null : [...key]);

/** Within the transaction that copies it: nobody else does meanwhile. False: it is in already, or not wanted. */
export async function claimChunk(upstream: RawConnection, token: bigint, storageId: number, { number }: Chunk): Promise<boolean> {
  const [claimed] = await upstream.query(
    `SELECT FROM millrace.copy_chunk c, millrace.storage s, millrace.epoch e
      WHERE c.storage_id = ${storageId} AND c.chunk = ${number} AND c.copied_at IS NULL AND s.id = c.storage_id AND s.state = 'copying' AND e.token = ${token}
        FOR UPDATE OF c`,
  );
  return claimed?.rows.length === 1;
}

/** At the end of that transaction: it is in. False: it is not wanted by now, or another process leads, and the transaction must not commit. */
export async function chunkIsIn(
  upstream: RawConnection,
  token: bigint,
  storageId: number,
  { number }: Chunk,
  taken: TakenSnapshot,
  copied: { readonly rows: number; readonly bytes: number },
): Promise<boolean> {
  const [marked] = await upstream.query(
    `UPDATE millrace.copy_chunk c
        SET snapshot = ${quoteLiteral(taken.text)}, lsn = '${formatLsn(taken.lsn)}', rows = ${copied.rows}, bytes = ${copied.bytes}, copied_at = clock_timestamp()
       FROM millrace.epoch e, millrace.storage s
      WHERE c.storage_id = ${storageId} AND c.chunk = ${number} AND e.token = ${token} AND s.id = c.storage_id AND s.state = 'copying'
     RETURNING c.chunk`,
  );
  return marked?.rows.length === 1;
}

/** For what is done to the copy as a whole: nobody else works on a piece of it, and this process leads. False: it is not wanted. */
export async function claimCopy(upstream: RawConnection, token: bigint, storageId: number): Promise<boolean> {
  await upstream.query(`SELECT FROM millrace.copy_chunk c WHERE c.storage_id = ${storageId} ORDER BY c.chunk FOR UPDATE`);
  const [wanted] = await upstream.query(
    `SELECT FROM millrace.storage s, millrace.epoch e WHERE s.id = ${storageId} AND s.state = 'copying' AND e.token = ${token}`,
  );
  return wanted?.rows.length === 1;
}
