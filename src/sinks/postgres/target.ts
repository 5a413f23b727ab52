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
import { quoteIdentifier, quoteLiteral, quoteQualified } from '../../sql/quote.ts';
import type { Change } from '../changes.ts';
import type { Position } from '../positions.ts';
import type { Row } from '../row-lines.ts';
import { type Target, TargetError } from '../target.ts';
import { followColumns } from './follow-schema.ts';
import {
  columnTypesSql,
  createTable,
  deleteByKeySql,
  deleteRowsSql,
  insertSql,
  progressDdl,
  recordSql,
  type TableColumn,
  takeOverSql,
  trialSql,
} from './table-sql.ts';
import { applicationName, type Watch, type WatchTimings, watchOf } from './watch.ts';

/**
 * While a batch is under way, so long as this the upstream keeps the rows that it reads: whoever waits longer for a lock begins the batch anew. What
 * comes before a batch waits without an end.
 */
const batchLockTimeout = '12s';

export interface PostgresTargetOptions {
  /** Tells this sink from all others that may write to the same server. */
  readonly name: string;
  readonly address: ServerAddress;
  readonly target: PostgresSink;
  readonly key: readonly string[] | null;
  /** Told what the target has not answered for, while it is still waited for. */
  readonly waits: (what: TargetError) => void;
  readonly timings?: WatchTimings;
}

type WrittenColumn = TableColumn & { readonly nullable: boolean };

export function postgresTarget({ name, address, target, key, waits, timings }: PostgresTargetOptions): Target {
  const table = quoteQualified(target.schema, target.table);
  const watch: Watch = watchOf(address, waits, timings);
  let session: RawConnection | null = null;
  let pid = 0;
  /** Ends the wait for a session that is to be closed before it is there. */
  const closing = new AbortController();
  let owner = '0';
  /** Columns of the table as the target recorded them; null: nothing was delivered yet. */
  let stored: readonly SinkColumn[] | null = null;
  let columns: readonly SinkColumn[] = [];
  /** The same with the types that the table has for them; null: not looked up yet. */
  let actual: readonly WrittenColumn[] | null = null;
  const connected = (): RawConnection => {
    if (session === null) throw new TargetError('retriable', 'the target is not connected');
    return session;
  };
  /** What is asked of the target and is to be answered. */
  const watched = <T>(work: (open: RawConnection) => Promise<T>): Promise<T> =>
    guarded(async () => {
      const open = connected();
      try {
        return await watch.over({ session: open, pid: () => pid }, () => work(open));
      } catch (error) {
        // Its own message does not say who blocks.
        throw error instanceof PostgresError && error.code === '55P03' && watch.last !== null ? watch.last : error;
      }
    });

  const isThere = async (): Promise<boolean> => {
    const [answer] = await connected().query(`SELECT to_regclass(${quoteLiteral(table)}) IS NOT NULL`);
    return answer?.rows[0]?.[0] === 't';
  };

  /** What the target knows of the columns: whether their types are there, and the types its table has for them; null: no such column. */
  const lookUp = async (): Promise<readonly { readonly known: boolean; readonly actual: string | null }[]> => {
    const { params } = asArrays(
      columns.map(({ name: column, type }) => [column, type]),
      2,
    );
    const { rows } = await connected().execute('columns', columnTypesSql, [table, ...params]);
    return rows.map(([, known, actual]) => ({ known: known === 't', actual: actual ?? null }));
  };

  /** The table has the columns. */
  const prepare = async (): Promise<void> => {
    const open = connected();
    const found = await lookUp();
    // Enums and other types of its own that the target does not have are texts there.
    const typeOf = (column: SinkColumn): string => (found[columns.indexOf(column)]?.known === false ? 'text' : column.type);
    if (stored !== null) for (const sql of followColumns(table, stored, columns, typeOf)) await open.query(sql);
    else if (!(await isThere())) {
      const keyNullable = columns.some((column) => key?.includes(column.name) === true && column.nullable);
      await open.query(
        createTable(
          table,
          columns.map((column) => ({ name: column.name, type: typeOf(column) })),
          key,
          keyNullable,
        ),
      );
    }
  };

  /** Raises what keeps rows from being written. */
  const tryOut = async (): Promise<void> => {
    const open = connected();
    if (stored !== null && !(await isThere())) {
      throw new TargetError('permanent', `table ${table} of the target is gone`, {
        hint: `Make it again, empty; what the sink has not delivered yet goes there. Then: ALTER SINK .. SET FROM its relation WITH (BACKFILL = snapshot); Or drop the sink and create it again.`,
      });
    }
    // What an ALTER SINK has changed is made with its first rows, and raises then.
    if (stored !== null && JSON.stringify(stored) !== JSON.stringify(columns)) return;
    await open.query('BEGIN');
    try {
      if (stored === null) await prepare();
      const found = await lookUp();
      const given = columns.map((column, place) => ({ name: column.name, type: found[place]?.known === true ? column.type : null }));
      for (const sql of trialSql(table, given, key)) await open.query(sql);
    } catch (error) {
      if (!(error instanceof PostgresError) || error.code !== '42P10') throw error;
      const keyList = (key ?? []).map(quoteIdentifier).join(', ');
      throw new TargetError('permanent', `table ${table} of the target does not tell rows apart by the key (${keyList})`, {
        cause: error,
        hint: `CREATE UNIQUE INDEX ON ${table} (${keyList});`,
      });
    } finally {
      await open.query('ROLLBACK').catch(() => undefined);
    }
  };

  return {
    pairing: key === null ? 'each' : 'upsert',
    async open() {
      const opened = await guarded(() => orClosed(closing.signal, openSession(address)));
      session = opened;
      pid = opened.backendPid;
      return await watched(async (open) => {
        const [own] = await open.query(`SELECT pg_catalog.pg_backend_pid(); ${noticeLostClients}`);
        pid = Number(own?.rows[0]?.[0]);
        await progressTable(open);
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
      actual = null;
      await watched(tryOut);
    },
    async begin() {
      await watched(async (open) => {
        await open.query(`BEGIN; SET LOCAL lock_timeout = '${batchLockTimeout}'`);
        if (stored === null || JSON.stringify(stored) !== JSON.stringify(columns)) await prepare();
        if (actual !== null) return;
        const found = await lookUp();
        actual = columns.map((column, place) => ({ ...column, type: found[place]?.actual ?? column.type }));
      });
    },
    write: (changes) => watched((open) => writeChanges(open, table, actual ?? columns, key, changes)),
    async commit(position: Position) {
      await watched(async (open) => {
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
      watch.stop();
      closing.abort();
      open?.destroy();
    },
  };
}

/** Servers before 14 do not have it: there a session that waits for a lock learns only then that nobody wants its answer. */
const noticeLostClients = `SELECT pg_catalog.set_config(s.name, '5s', false) FROM pg_catalog.pg_settings s
 WHERE s.name = 'client_connection_check_interval' AND pg_catalog.version() ~ 'linux'`;

const connectTimeoutMs = 10_000;

const openSession = (address: ServerAddress): Promise<RawConnection> =>
  connectRaw(address, {
    applicationName,
    connectTimeoutMs,
    settings: { ...pinnedSettings, search_path: '', lock_timeout: '0', tcp_keepalives_idle: '10', tcp_keepalives_interval: '5' },
  }).catch((error: unknown) => {
    if (!(error instanceof Error) || error.message !== 'timeout expired') throw error;
    throw new TargetError('retriable', `the target cannot be reached: no answer within ${connectTimeoutMs / 1000} s`, { cause: error });
  });

/** The session; one that comes when nobody waits for it any more is closed. */
function orClosed(signal: AbortSignal, opening: Promise<RawConnection>): Promise<RawConnection> {
  const closed = new Promise<never>((_, reject) => {
    signal.addEventListener('abort', () => {
      opening.then(
        (late) => late.destroy(),
        () => undefined,
      );
      reject(new TargetError('retriable', 'the sink was stopped'));
    });
  });
  return Promise.race([opening, closed]);
}

/** Its table of positions is there. Somebody else may have made it for a role that may not. */
async function progressTable(session: RawConnection): Promise<void> {
  try {
    const [found] = await session.query("SELECT to_regclass('millrace_sink.progress') IS NOT NULL");
    if (found?.rows[0]?.[0] === 't') return;
    // Two takeovers at once would both create.
    await session.query(`BEGIN; SELECT pg_advisory_xact_lock(1835625580, 3); ${progressDdl.join('; ')}; COMMIT`);
  } catch (error) {
    if (!(error instanceof PostgresError) || error.code !== '42501') throw error;
    throw new TargetError('permanent', `the target says: ${error.message}`, {
      cause: error,
      hint: 'Sinks keep their positions in schema millrace_sink there: the role of the connection needs CREATE on the database, or USAGE on that schema with SELECT, INSERT and UPDATE on its table "progress".',
    });
  }
}

/**
 * Of each key only what is last is written: a batch is one transaction. Without a key a row that came and went, or went and came, stays as it was:
 * deletions are done first, and would not find what came in an earlier epoch of the batch.
 */
async function writeChanges(
  session: RawConnection,
  table: string,
  columns: readonly WrittenColumn[],
  key: readonly string[] | null,
  changes: readonly Change[],
): Promise<number> {
  const gone: Row[] = [];
  const come: Row[] = [];
  if (key === null) {
    for (const { row, copies } of copiesOf(changes)) {
      for (let copy = Math.abs(copies); copy > 0; copy--) (copies > 0 ? come : gone).push(row);
    }
  } else {
    const at = key.map((name) => columns.findIndex((column) => column.name === name));
    const last = new Map<string, { readonly row: Row; readonly values: Row; readonly isThere: boolean }>();
    for (const { before, after } of changes) {
      const row = (after ?? before)?.values() ?? [];
      const values = at.map((place) => row[place] ?? null);
      last.set(JSON.stringify(values), { row, values, isThere: after !== null });
    }
    for (const { row, values, isThere } of last.values()) {
      if (isThere) come.push(row);
      // A null conflicts with nothing in a unique index: such a row is replaced by hand.
      if (!isThere || values.includes(null)) gone.push(values);
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

/** How many copies of each row came, less than 0: went. */
function copiesOf(changes: readonly Change[]): Iterable<{ readonly row: Row; readonly copies: number }> {
  const counts = new Map<string, { readonly row: Row; copies: number }>();
  const count = (row: Row | null, by: number): void => {
    if (row === null) return;
    const image = JSON.stringify(row);
    const there = counts.get(image);
    if (there === undefined) counts.set(image, { row, copies: by });
    else there.copies += by;
  };
  for (const { before, after } of changes) {
    count(before?.values() ?? null, -1);
    count(after?.values() ?? null, 1);
  }
  return counts.values();
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
    const { detail, hint } = error instanceof PostgresError ? error.fields : {};
    const more = detail === undefined ? '' : ` (${detail})`;
    throw new TargetError(isRefused ? 'permanent' : 'retriable', `the target says: ${message}${more}`, {
      cause: error,
      ...(hint === undefined ? {} : { hint }),
    });
  }
}
