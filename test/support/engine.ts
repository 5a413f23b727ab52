/**
 * Extended SQL and an engine without the proxy in between: statements run over a plain client, the engine in a child process
 * that tests may kill at any instant.
 */
import { type ChildProcess, fork } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import pg from 'pg';
import type { CopySettings, ServerAddress } from '../../src/config.ts';
import { parseStatements } from '../../src/sql/statements.ts';
import { type CallerSession, type StatementResult, UpstreamError } from '../../src/statements/caller-session.ts';
import { createStatementRunner } from '../../src/statements/runner.ts';

export const testKey = '5a'.repeat(32);

/** Values of a result as Postgres wrote them. */
export async function texts(client: pg.Client, sql: string): Promise<(string | null)[][]> {
  const result = await client.query({ text: sql, rowMode: 'array', types: { getTypeParser: () => (value: string) => value } });
  return result.rows as (string | null)[][];
}

export interface ExtendedClient {
  readonly client: pg.Client;
  /** Runs statements one by one, each its own transaction; answers what the last extended one returned. */
  run(sql: string): Promise<StatementResult | null>;
  /** Runs statements in one transaction, which stays open until what this answers is called. */
  open(sql: string): Promise<() => Promise<void>>;
  readonly notices: string[];
  end(): Promise<void>;
}

export async function extendedClient(upstream: ServerAddress, user = 'postgres'): Promise<ExtendedClient> {
  const client = new pg.Client({ host: upstream.host, port: upstream.port, user, database: upstream.database });
  await client.connect();
  const runner = createStatementRunner({ secretKey: testKey, upstream, onCatalog: () => undefined });
  const notices: string[] = [];
  type Parsed = ReturnType<typeof parseStatements>[number];
  const begin = async (parts: readonly Parsed[]): Promise<{ last: StatementResult | null; commit: () => Promise<void> }> => {
    let last: StatementResult | null = null;
    const tasks: ((session: CallerSession) => Promise<void>)[] = [];
    const session: CallerSession = {
      database: upstream.database,
      user,
      inTransactionBlock: false,
      isOneTransaction: true,
      cursors: new Map(),
      query: (text, parameters = []) => callerQuery(client, text, parameters),
      notice: (fields) => notices.push(fields.message),
      onCommit: (task) => tasks.push(task),
    };
    const orRollBack = async (work: () => Promise<unknown>): Promise<void> => {
      try {
        await work();
      } catch (error) {
        await client.query('ROLLBACK');
        throw error;
      }
    };
    await client.query('BEGIN');
    for (const { statement, text } of parts)
      await orRollBack(async () => {
        if (statement === null || !(await runner.claims(statement, text, session))) {
          await client.query(text);
          return;
        }
        last = await runner.run(statement, text, session);
        if (last.kind !== 'forward') return;
        await client.query(last.text);
        const { rows } = await session.query(last.behind.sql);
        last.behind.answered(rows[0] ?? []);
      });
    const commit = async (): Promise<void> => {
      await orRollBack(() => client.query('COMMIT'));
      for (const task of tasks) await task(session);
    };
    return { last, commit };
  };
  const run = async (sql: string): Promise<StatementResult | null> => {
    let last: StatementResult | null = null;
    for (const part of parseStatements(sql)) {
      const begun = await begin([part]);
      await begun.commit();
      last = begun.last;
    }
    return last;
  };
  const open = async (sql: string): Promise<() => Promise<void>> => (await begin(parseStatements(sql))).commit;
  return { client, run, open, notices, end: () => client.end() };
}

async function callerQuery(client: pg.Client, text: string, parameters: readonly (string | null)[]): ReturnType<CallerSession['query']> {
  try {
    const result = await client.query({
      text,
      values: [...parameters],
      rowMode: 'array',
      types: { getTypeParser: () => (value: string) => value },
    });
    return {
      fields: result.fields.map((field) => ({ name: field.name, typeOid: field.dataTypeID, typeModifier: field.dataTypeModifier })),
      rows: result.rows as (string | null)[][],
      tag: result.command,
    };
  } catch (error) {
    if (!(error instanceof pg.DatabaseError)) throw error;
    throw new UpstreamError({
      S: error.severity ?? 'ERROR',
      C: error.code ?? 'XX000',
      M: error.message,
      ...(error.detail === undefined ? {} : { D: error.detail }),
      ...(error.hint === undefined ? {} : { H: error.hint }),
      ...(error.position === undefined ? {} : { P: error.position }),
    });
  }
}

export interface TestEngine {
  /** kill -9, then a new process. */
  restart(): Promise<void>;
  kill(): void;
  stop(): Promise<void>;
  pid(): number | undefined;
  /** What MILLRACE_FAULT_POINT says to the process that runs now; null: nothing. */
  faultPoint(): string | null;
}

const entry = fileURLToPath(new URL('../../dist/server/engine-entry.js', import.meta.url));

/**
 * The engine of the upstream's default database, started again whenever it dies by itself. `faultPoints`: values of MILLRACE_FAULT_POINT, one for each
 * process, the first for the first; further processes have none.
 */
export function startEngine(
  upstream: ServerAddress,
  copies: CopySettings = { sessions: 2, chunkBytes: 64 * 1024 * 1024 },
  faultPoints: Iterable<string> = [],
): TestEngine {
  let child: ChildProcess;
  let wanted = true;
  let faultPoint: string | null = null;
  const faults = faultPoints[Symbol.iterator]();
  const start = (): void => {
    const next = faults.next();
    faultPoint = next.done === true ? null : next.value;
    child = fork(entry, [], {
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
      env: {
        ...process.env,
        MILLRACE_LOG_LEVEL: process.env['MILLRACE_LOG_LEVEL'] ?? 'error',
        ...(faultPoint === null ? {} : { MILLRACE_FAULT_POINT: faultPoint }),
      },
    });
    child.send({ type: 'config', config: { upstream, database: upstream.database, secretKey: testKey, copies } });
    const current = child;
    child.on('exit', () => {
      if (wanted && child === current) setTimeout(() => wanted && start(), 100);
    });
  };
  start();
  const gone = (process_: ChildProcess): Promise<void> =>
    new Promise((resolve) => {
      if (process_.exitCode !== null || process_.signalCode !== null) resolve();
      else process_.once('exit', () => resolve());
    });
  return {
    pid: () => child.pid,
    faultPoint: () => faultPoint,
    kill: () => child.kill('SIGKILL'),
    restart: async () => {
      const old = child;
      old.removeAllListeners('exit');
      old.kill('SIGKILL');
      await gone(old);
      start();
    },
    stop: async () => {
      wanted = false;
      child.kill('SIGKILL');
      await gone(child);
    },
  };
}
