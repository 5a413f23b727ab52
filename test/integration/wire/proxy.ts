/** A worker in the test's own process, with a runner that the test chooses. */
import { once } from 'node:events';
import { type AddressInfo, createServer } from 'node:net';
import type { ServerAddress } from '../../../src/config.ts';
import type { ExtendedStatement } from '../../../src/sql/ast.ts';
import type { CallerSession, StatementResult, StatementRunner } from '../../../src/statements/caller-session.ts';
import { defaultProxySettings, type ProxySettings } from '../../../src/wire/pool/settings.ts';
import { runWorker, type Worker, type WorkerOptions } from '../../../src/wire/worker.ts';

export interface FakeRunner extends StatementRunner {
  /** What ran, by statement type. */
  readonly ran: string[];
}

/** Texts in SHOW TABLES FROM x: the runner's own little language for tests. */
export function fakeRunner(overrides: Partial<StatementRunner> = {}): FakeRunner {
  const ran: string[] = [];
  return {
    ran,
    async claims(statement, _, session) {
      switch (statement.type) {
        case 'drop_relation': {
          const found = await session.query('SELECT 1 FROM pg_catalog.pg_class WHERE relname = $1 AND relname LIKE $2', [
            statement.names[0]?.name ?? '',
            'live%',
          ]);
          return found.rows.length > 0;
        }
        case 'create_materialized_view':
        case 'refresh_materialized_view':
          return statement.name.name.startsWith('live');
        default:
          return true;
      }
    },
    upstreamText: () => null,
    describe: (statement) => (statement.type === 'show_objects' ? showFields : null),
    async run(statement, text, session) {
      ran.push(statement.type);
      return await runFake(statement, text, session);
    },
    ...overrides,
  };
}

const showFields = [
  { name: 'name', typeOid: 25, typeModifier: -1 },
  { name: 'size', typeOid: 23, typeModifier: -1 },
];

async function runFake(statement: ExtendedStatement, text: string, session: CallerSession): Promise<StatementResult> {
  switch (statement.type) {
    case 'show_objects': {
      const rows = await session.query('SELECT * FROM (VALUES (1), (2), (3)) v(n)');
      return { kind: 'rows', fields: showFields, rows: rows.rows.map(([n]) => [`ü${n}`, n ?? null]), tag: 'SHOW' };
    }
    case 'create_secret': {
      // `AS 'some SQL'` is run; AFTER COMMIT what stands behind `||`.
      const [now = '', later] = statement.value.split('||');
      for (const sql of now.split(';')) if (sql.trim() !== '') await session.query(sql);
      if (later !== undefined) {
        session.onCommit(async (after) => {
          await after.query(later);
        });
      }
      session.notice({ severity: 'NOTICE', code: '00000', message: `made in ${session.inTransactionBlock ? 'a block' : 'no block'}` });
      return { kind: 'done', tag: 'CREATE SECRET' };
    }
    case 'drop_relation':
      await session.query(text);
      return { kind: 'done', tag: 'DROP LIVE' };
    default:
      return { kind: 'done', tag: statement.type.toUpperCase() };
  }
}

/** A worker that listens, on a port of this machine. */
export interface TestProxy extends Worker {
  readonly port: number;
}

export async function startProxy(
  upstream: ServerAddress,
  runner: StatementRunner = fakeRunner(),
  options: WorkerOptions = {},
  proxy: ProxySettings = defaultProxySettings,
): Promise<TestProxy> {
  const worker = runWorker({ upstream, secretKey: '00'.repeat(32), proxy }, runner, options);
  const server = createServer((connection) => worker.take(connection));
  server.listen({ host: '127.0.0.1', port: 0, backlog: 1024 });
  await once(server, 'listening');
  return {
    ...worker,
    port: (server.address() as AddressInfo).port,
    closeDoor(until) {
      server.close();
      worker.closeDoor(until);
    },
    async stop(drainTimeout) {
      server.close();
      await worker.stop(drainTimeout);
    },
  };
}
