/**
 * The first copy of a table, beside the stream.
 * Invariant: from before the snapshot is taken, changes of the table go to its spool; when the copy is in and the stream has passed the
 * snapshot's LSN, the spooled transactions that the snapshot does not see are applied in one epoch, and the storage is live.
 * No other table waits for any of it.
 */
import { type Storage, spoolTable, storageColumn, storageTable } from '../catalog/model.ts';
import type { ServerAddress } from '../config.ts';
import { captureDdl } from '../ivm/capture.ts';
import { formatLsn, type Lsn } from '../replication/lsn.ts';
import { connectRaw } from '../replication/raw-connection.ts';
import { pinnedSettings } from '../replication/settings.ts';
import { type OriginSnapshot, openSnapshot } from '../replication/snapshot.ts';
import { isVisible, parseSnapshot } from '../replication/snapshot-visibility.ts';
import { quoteIdentifier, quoteLiteral } from '../sql/quote.ts';
import { applyStaged, clearStorage, forgetColumns, imageOf, insertColumns, without } from './apply-sql.ts';
import type { EngineContext } from './context.ts';
import { Epoch } from './epoch.ts';
import { reach } from './fault-points.ts';
import { relationGate } from './relation-errors.ts';
import { freePlanner } from './session-settings.ts';
import type { SourceRunner } from './source-runner.ts';

const wait = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

/**
 * Copies a storage in state 'new'. Its changes must be going to the spool already (runner.retarget with state 'copying').
 * `names` are the origin's column names by attnum, as they are now.
 */
export async function copyStorage(
  engine: EngineContext,
  runner: SourceRunner,
  storage: Storage,
  origin: { readonly schema: string; readonly name: string; readonly names: ReadonlyMap<number, string> },
  signal: AbortSignal,
): Promise<void> {
  const { address } = runner.source;
  if (address === null) throw new Error(runner.source.addressProblem ?? 'no address');
  reach('copy.began');
  const snapshot = await cleanSnapshot(address, runner);
  reach('copy.snapshot-taken');
  try {
    const upstream = await connectRaw(engine.config.upstream, {
      database: engine.config.database,
      applicationName: 'millrace copy',
      settings: { ...pinnedSettings, statement_timeout: '0' },
    });
    try {
      const keyless = storage.keyAttnums.length === 0;
      const list = storage.columns.map((column) => {
        const name = origin.names.get(column.attnum);
        // TEXT COLUMNS of any type arrive as the stream writes them: by the type's output function.
        return name === undefined
          ? 'NULL'
          : column.type === 'text' && column.originType !== 'text'
            ? `${quoteIdentifier(name)}::text`
            : quoteIdentifier(name);
      });
      await upstream.query('BEGIN');
      let reported = 0;
      const copied = await snapshot.copy({
        upstream,
        sourceSql: `COPY (SELECT ${list.join(', ')} FROM ${quoteIdentifier(origin.schema)}.${quoteIdentifier(origin.name)}) TO STDOUT`,
        targetSql: `COPY ${storageTable(storage.id)} (${insertColumns(storage).join(', ')}) FROM STDIN`,
        withRowHash: keyless,
        signal,
        onProgress: (rows, bytes) => {
          if (Date.now() - reported < 500) return;
          reported = Date.now();
          engine.admin
            .query("UPDATE millrace.storage SET rows_copied = $2, bytes_copied = $3 WHERE id = $1 AND state = 'copying'", [
              storage.id,
              rows,
              bytes,
            ])
            .catch(() => undefined);
        },
      });
      reach('copy.rows-in');
      await Promise.all([snapshot.flush(), upstream.query(`ANALYZE ${storageTable(storage.id)}`)]);
      const [marked] = await upstream.query(
        `UPDATE millrace.storage s
            SET state = 'copied', rows_copied = ${copied.rows}, bytes_copied = ${copied.bytes},
                copy_snapshot = ${quoteLiteral(snapshotText(snapshot))}, copy_lsn = '${formatLsn(snapshot.lsn)}'
           FROM millrace.epoch e
          WHERE s.id = ${storage.id} AND s.state = 'copying' AND e.token = ${engine.token}
         RETURNING s.id`,
      );
      // Another leader, or the table was dropped meanwhile: what was copied is not wanted.
      reach('copy.marked');
      await upstream.query(marked?.rows.length === 1 ? 'COMMIT' : 'ROLLBACK');
      reach('copy.committed');
    } finally {
      await upstream.close().catch(() => undefined);
    }
  } finally {
    await snapshot.close().catch(() => undefined);
  }
}

/**
 * A snapshot that sees every transaction the stream has brought so far. A commit is in the WAL shortly (with synchronous replication: long)
 * before snapshots see it; such a transaction would be neither in the copy nor in the spool.
 */
async function cleanSnapshot(address: ServerAddress, runner: SourceRunner): Promise<OriginSnapshot> {
  for (;;) {
    const snapshot = await openSnapshot(address);
    if (![...snapshot.snapshot.xip].some((xid) => runner.sawRecently(xid))) return snapshot;
    await snapshot.close();
    await wait(20);
  }
}

const snapshotText = ({ snapshot }: OriginSnapshot): string => `${snapshot.xmin}:${snapshot.xmax}:${[...snapshot.xip].join(',')}`;

/**
 * Makes a copied storage live, in one epoch with what its stream, held between two transactions, still had to give.
 * The stream must have applied up to the copy's LSN. Answers the position reached, when it moved.
 * Versions on a superseded storage move to this one in the same epoch.
 * `lost`: columns of a storage without key that the origin has no more: rows spooled before and after that must look alike.
 */
export async function goLive(engine: EngineContext, copied: Storage, runner: SourceRunner, lost: readonly number[]): Promise<Lsn | null> {
  const { state } = engine;
  const storage = without(copied, lost);
  reach('copy.held');
  const epoch = await Epoch.begin(engine);
  let reached: Lsn | null = null;
  for (let batch = runner.take(); batch !== null; batch = runner.take()) {
    await epoch.apply(batch);
    reached = batch.endLsn ?? reached;
  }
  if (lost.length > 0) await epoch.run(forgetColumns(copied, lost));
  await applySpool(engine, storage);
  reach('copy.spool-applied');
  const superseded = storage.supersedes === null ? undefined : state.storages.get(storage.supersedes);
  const moves = superseded !== undefined && superseded.state === 'live';
  if (moves && storage.keyAttnums.length === 0) await keepRowIds(engine, superseded, storage);
  if (moves && state.captured.has(superseded.id)) await epoch.run(captureDdl(storage.id));

  const statements = ["SET LOCAL lock_timeout = '5s'"];
  for (const table of state.tables.values()) {
    const moved = moves && table.storageId === superseded.id && table.state === 'ready';
    if (moved) statements.push(`UPDATE millrace.table_version SET storage_id = ${storage.id} WHERE relation_id = ${table.id}`);
    if (moved || (table.storageId === storage.id && table.state !== 'error')) {
      statements.push(
        relationGate(state, table.id, 'ready', storage.id),
        `UPDATE millrace.relation SET state = 'ready', state_since = now() WHERE id = ${table.id} AND state IN ('pending', 'populating')`,
      );
    }
  }
  statements.push(
    `DROP TABLE IF EXISTS ${spoolTable(storage.id)}`,
    `UPDATE millrace.storage SET state = 'live', copy_snapshot = NULL WHERE id = ${storage.id} AND state = 'copied'`,
    'SET LOCAL lock_timeout = 0',
  );
  await epoch.run(statements);
  reach('copy.gates-open');
  await epoch.commit(reached === null ? new Map() : new Map([[storage.sourceId, reached]]));
  reach('copy.live');
  return reached;
}

/** Applies what was spooled, chunk by chunk where order between chunks matters. */
export async function applySpool(engine: EngineContext, storage: Storage): Promise<void> {
  const { session } = engine;
  const spool = spoolTable(storage.id);
  const [xids] = await session.query(`SELECT DISTINCT xid FROM ${spool}`);
  if (xids === undefined || xids.rows.length === 0) return;
  const snapshot = parseSnapshot(storage.copySnapshot ?? '');
  const seen = xids.rows.map((row) => Number(row[0])).filter((xid) => isVisible(snapshot, xid));
  if (seen.length > 0) await session.query(`DELETE FROM ${spool} WHERE xid = ANY ('{${seen.join(',')}}')`);
  const keyed = storage.keyAttnums.length > 0;
  const [special] = await session.query(
    `SELECT EXISTS (SELECT FROM ${spool} WHERE op IN ('T', 'O', 'N')${keyed ? ' OR keep IS NOT NULL' : ''})`,
  );
  if (special?.rows[0]?.[0] !== 't') {
    await applyRows(engine, storage, `SELECT * FROM ${spool}`, false);
    return;
  }
  const [chunks] = await session.query(
    `SELECT chunk, bool_or(op = 'T'), bool_or(op = 'O'), ${keyed ? 'bool_or(keep IS NOT NULL)' : 'false'}, min(place)
       FROM ${spool} GROUP BY chunk ORDER BY min(place)`,
  );
  for (const [chunk, truncates, moves, keeps] of chunks?.rows ?? []) {
    if (truncates === 't') await session.query(clearStorage(storage));
    else if (moves === 't') await moveRow(engine, storage, String(chunk));
    else await applyRows(engine, storage, `SELECT * FROM ${spool} WHERE chunk = ${chunk}`, keeps === 't');
  }
}

async function applyRows(engine: EngineContext, storage: Storage, rows: string, keeps: boolean): Promise<void> {
  const data = storage.columns
    .map((column) => (column.lost === true ? `NULL::${column.type} AS ${storageColumn(column.attnum)}` : storageColumn(column.attnum)))
    .join(', ');
  const extra = storage.keyAttnums.length > 0 ? 'keep' : 'h';
  const staged = `(SELECT x.place AS seq, x.op, x.${extra}, ${data} FROM (${rows}) x)`;
  const shape = {
    inserts: true,
    updates: true,
    deletes: true,
    repeats: !keeps,
    keeps,
    rehash: storage.columns.some((column) => column.lost === true),
  };
  for (const sql of applyStaged(storage, shape, staged)) await engine.session.query(sql);
}

/** An update that moved a row to another key and left values out: op O has the old key, op N the new row. */
async function moveRow(engine: EngineContext, storage: Storage, chunk: string): Promise<void> {
  const on = storage.keyAttnums.map((attnum) => `s.${storageColumn(attnum)} = o.${storageColumn(attnum)}`).join(' AND ');
  const assignments = storage.columns.map((column, index) => {
    const name = storageColumn(column.attnum);
    return `${name} = CASE WHEN substr(n.keep, ${index + 1}, 1) = '1' THEN s.${name} ELSE n.${name} END`;
  });
  const spool = spoolTable(storage.id);
  await engine.session.query(
    `UPDATE ${storageTable(storage.id)} s SET ${assignments.join(', ')}
       FROM (SELECT * FROM ${spool} WHERE chunk = ${chunk} AND op = 'O') o, (SELECT * FROM ${spool} WHERE chunk = ${chunk} AND op = 'N') n
      WHERE ${on}`,
  );
}

/**
 * Rows without key are known to views by rid: the rows of the new storage take over the rids of equal rows of the old one.
 * Both hold the same rows as of this epoch, so every old row finds one.
 */
async function keepRowIds(engine: EngineContext, old: Storage, storage: Storage): Promise<void> {
  const image = (row: string): string => imageOf(old, row);
  const table = storageTable(storage.id);
  const { session } = engine;
  await session.query(freePlanner);
  // First out of the way, because rids of both storages begin at 1.
  await session.query(`UPDATE ${table} SET rid = -rid`);
  await session.query(
    `UPDATE ${table} s SET rid = pair.old_rid
       FROM (SELECT n.rid AS new_rid, o.rid AS old_rid
               FROM (SELECT t.rid, ${image('t')} AS image, row_number() OVER (PARTITION BY ${image('t')} ORDER BY t.rid) AS place FROM ${storageTable(old.id)} t) o
               JOIN (SELECT t.rid, ${image('t')} AS image, row_number() OVER (PARTITION BY ${image('t')} ORDER BY t.rid DESC) AS place FROM ${table} t) n
                 ON n.image = o.image AND n.place = o.place) pair
      WHERE s.rid = pair.new_rid`,
  );
  await session.query(
    `SELECT setval(pg_get_serial_sequence('${table}', 'rid'), greatest((SELECT coalesce(max(abs(rid)), 1) FROM ${table}), (SELECT coalesce(max(rid), 1) FROM ${storageTable(old.id)})))`,
  );
}

/** Puts a storage whose copy was cut short back to where it began. */
export async function restartCopy(engine: EngineContext, storage: Storage): Promise<void> {
  await engine.session.query(
    `BEGIN;
     TRUNCATE ${storageTable(storage.id)};
     TRUNCATE ${spoolTable(storage.id)};
     UPDATE millrace.storage SET state = 'new', rows_copied = 0, bytes_copied = 0 WHERE id = ${storage.id} AND state = 'copying';
     COMMIT`,
  );
}
