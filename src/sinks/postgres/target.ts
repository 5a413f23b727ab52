/**
 * A table of another Postgres as the target of a sink.
 * Invariant: rows and position are written in one transaction of the target, which names its owner, so that each change is there exactly once and a
 * process that was taken over from can commit nothing. The table follows the columns in the transaction of the first rows that have them.
 */
import type { PostgresSink, SinkColumn } from '../../catalog/sink-model.ts';
import type { ServerAddress } from '../../config.ts';
import { PostgresError } from '../../replication/postgres-error.ts';
import { connectRaw } from '../../replication/raw-connection.ts';
import type { RawConnection } from '../../replication/session-contract.ts';
import { pinnedSettings } from '../../replication/settings.ts';
import { TextArray } from '../../replication/text-array.ts';
import { quoteQualified } from '../../sql/quote.ts';
import type { Change, Row } from '../changes.ts';
import type { Position } from '../positions.ts';
import { type Target, TargetError } from '../target.ts';
import { followColumns } from './follow-schema.ts';
import { createTable, deleteByKeySql, deleteRowsSql, insertSql, progressDdl, recordSql, takeOverSql } from './table-sql.ts';

export interface PostgresTargetOptions {
  /** Tells this sink from all others that may write to the same server. */
  readonly name: string;
  readonly address: ServerAddress;
  readonly target: PostgresSink;
  readonly key: readonly string[] | null;
}

export function postgresTarget({ name, address, target, key }: PostgresTargetOptions): Target {
  const table = quoteQualified(target.schema, target.table);
  let session: RawConnection | null = null;
  let owner = '0';
  /** Columns of the table as the target recorded them; null: nothing was delivered yet. */
  let stored: readonly SinkColumn[] | null = null;
  let columns: readonly SinkColumn[] = [];
  const connected = (): RawConnection => {
    if (session === null) throw new TargetError('retriable', 'the target is not connected');
    return session;
  };

  const prepare = async (): Promise<void> => {
    const open = connected();
    const [there] = await open.query(`SELECT to_regclass('${table.replaceAll("'", "''")}') IS NOT NULL`);
    if (there?.rows[0]?.[0] !== 't') await open.query(createTable(table, columns, key));
    else if (stored !== null) for (const sql of followColumns(table, stored, columns)) await open.query(sql);
  };

  return {
    pairing: key === null ? 'each' : 'upsert',
    async open() {
      session = await guarded(() =>
        connectRaw(address, {
          applicationName: 'millrace sink',
          settings: { ...pinnedSettings, search_path: '', lock_timeout: '10s', tcp_keepalives_idle: '10', tcp_keepalives_interval: '5' },
        }),
      );
      const open = session;
      return await guarded(async () => {
        // Two takeovers at once would both create.
        await open.query(`BEGIN; SELECT pg_advisory_xact_lock(1835625580, 3); ${progressDdl.join('; ')}; COMMIT`);
        const { rows } = await open.execute('take', takeOverSql, [name]);
        const [now, version, ts, seq, recorded] = rows[0] ?? [];
        owner = now ?? '0';
        stored = recorded === null || recorded === undefined ? null : JSON.parse(recorded);
        if (version === null || version === undefined) return null;
        return { version: Number(version), ts: Number(ts), backfillSeq: seq === null || seq === undefined ? null : Number(seq) };
      });
    },
    async describe(now) {
      columns = now;
    },
    async begin() {
      await guarded(async () => {
        await connected().query('BEGIN');
        if (stored === null || JSON.stringify(stored) !== JSON.stringify(columns)) await prepare();
      });
    },
    write: (changes) => guarded(() => writeChanges(connected(), table, columns, key, changes)),
    async commit(position: Position) {
      await guarded(async () => {
        const open = connected();
        const { version, ts, backfillSeq } = position;
        const params = [
          name,
          owner,
          String(version),
          String(ts),
          backfillSeq === null ? null : String(backfillSeq),
          JSON.stringify(columns),
        ];
        const done = await open.execute('record', recordSql, params);
        if (done.tag !== 'UPDATE 1') throw new TargetError('fenced', 'another Millrace process delivers for this sink');
        await open.query('COMMIT');
      });
      stored = columns;
    },
    async close() {
      const open = session;
      session = null;
      open?.destroy();
    },
  };
}

/** Of each key only what is last is written: a batch is one transaction. */
async function writeChanges(
  session: RawConnection,
  table: string,
  columns: readonly SinkColumn[],
  key: readonly string[] | null,
  changes: readonly Change[],
): Promise<number> {
  const gone: Row[] = [];
  const come: Row[] = [];
  if (key === null) {
    for (const { before, after } of changes) {
      if (before !== null) gone.push(before);
      if (after !== null) come.push(after);
    }
  } else {
    const at = key.map((name) => columns.findIndex((column) => column.name === name));
    const last = new Map(changes.map((change) => [JSON.stringify(at.map((place) => (change.after ?? change.before)?.[place])), change]));
    for (const { before, after } of last.values()) {
      if (after !== null) come.push(after);
      else if (before !== null) gone.push(at.map((place) => before[place] ?? null));
    }
  }
  const keyColumns = (key ?? []).flatMap((name) => columns.find((column) => column.name === name) ?? []);
  const removing = key === null ? deleteRowsSql(table, columns) : deleteByKeySql(table, keyColumns);
  let bytes = 0;
  if (gone.length > 0) {
    const { params, size } = asArrays(gone, key === null ? columns.length : keyColumns.length);
    bytes += size;
    await session.execute('remove', removing, params);
  }
  if (come.length > 0) {
    const { params, size } = asArrays(come, columns.length);
    bytes += size;
    await session.execute('insert', insertSql(table, columns, key), params);
  }
  return bytes;
}

function asArrays(rows: readonly Row[], width: number): { readonly params: { readonly binary: Buffer }[]; readonly size: number } {
  let size = 0;
  const params = Array.from({ length: width }, (_, place) => {
    const array = new TextArray();
    for (const row of rows) {
      const value = row[place];
      if (value === null || value === undefined) array.appendNull();
      else array.appendText(value);
    }
    const param = array.toParam();
    size += param.binary.length;
    return param;
  });
  return { params, size };
}

async function guarded<T>(work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if (error instanceof TargetError) throw error;
    const message = error instanceof Error ? error.message : String(error);
    const isRefused = error instanceof PostgresError && !/^(08|57|40|53|55)/.test(error.code);
    throw new TargetError(isRefused ? 'permanent' : 'retriable', `the target says: ${message}`, { cause: error });
  }
}
