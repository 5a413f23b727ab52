/**
 * Real PostgreSQL servers for tests.
 * Invariant: a server and its files are gone when the test is over, also when the test process was killed.
 */
import { chmodSync, mkdtempSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import pg from 'pg';
import type { ServerAddress } from '../../src/config.ts';
import { type EmbeddedPostgres, startEmbeddedPostgres } from '../../src/server/embedded-postgres.ts';
import { copyCluster, testRoot } from './cluster-template.ts';
import { childrenOf } from './processes.ts';

export { havePsql, type PsqlResult, psql } from './psql.ts';

export type PostgresMajor = 15 | 16 | 17 | 18;

export interface TestPostgresOptions {
  /** Default 18. */
  readonly version?: PostgresMajor;
  /** Settings in postgresql.conf, e.g. `{ wal_level: 'replica' }`. */
  readonly settings?: Readonly<Record<string, string>>;
  /** Created when it is not `postgres`, and used in `url` and `address`. */
  readonly database?: string;
}

export interface TestPostgres {
  readonly host: string;
  readonly port: number;
  readonly user: 'postgres';
  readonly database: string;
  /** postgres://postgres@127.0.0.1:port/database */
  readonly url: string;
  readonly address: ServerAddress;
  readonly version: PostgresMajor;
  readonly dataDir: string;
  /** Fast shutdown, then start on the same port and data. Starts it also after kill9. */
  restart(): Promise<void>;
  /** SIGKILL to the server and every process of it: what a power cut leaves. Resolves when they are gone. */
  kill9(): Promise<void>;
  /** Ends the server and removes its files. */
  stop(): Promise<void>;
  /** What the server logged lately. */
  log(): string;
}

/** Starts a PostgreSQL of its own for one test file: wal_level logical, no password, nothing in it, no waiting for the disk. */
export async function startPostgres(options: TestPostgresOptions = {}): Promise<TestPostgres> {
  const version = options.version ?? 18;
  const packageName = version === 18 ? 'embedded-postgres' : `postgres${version}`;
  const home = mkdtempSync(join(testRoot(), `pg${version}-`));
  // mkdtemp makes it 0700; the user that runs the server has to pass through.
  chmodSync(home, 0o711);
  const dataDir = join(home, 'data');
  await copyCluster(packageName, dataDir);
  const start = (): Promise<EmbeddedPostgres> =>
    startEmbeddedPostgres({
      dataDir,
      packageName,
      removeAfterDeath: home,
      settings: { fsync: 'off', full_page_writes: 'off', shared_buffers: '32MB', max_connections: '100', ...options.settings },
    });
  let server = await start().catch((error: unknown) => {
    rmSync(home, { recursive: true, force: true });
    throw error;
  });
  const database = options.database ?? 'postgres';
  const host = '127.0.0.1';
  const { port } = server;
  if (database !== 'postgres') {
    const client = new pg.Client({ host, port, user: 'postgres', database: 'postgres' });
    await client.connect();
    await client.query(`CREATE DATABASE ${client.escapeIdentifier(database)}`);
    await client.end();
  }
  return {
    host,
    port,
    user: 'postgres',
    database,
    url: `postgres://postgres@${host}:${port}/${encodeURIComponent(database)}`,
    address: { host, port, user: 'postgres', database, ssl: { mode: 'disable' } },
    version,
    dataDir,
    async restart() {
      await server.stop();
      server = await start();
      if (server.port !== port) throw new Error(`port ${port} was taken by another program during the restart`);
    },
    async kill9() {
      for (const pid of [server.pid, ...childrenOf(server.pid)]) {
        try {
          process.kill(pid, 'SIGKILL');
        } catch {
          // Gone already.
        }
      }
      await server.ended;
    },
    async stop() {
      await server.stop('immediate');
      rmSync(home, { recursive: true, force: true });
    },
    log: () => server.recentOutput(),
  };
}
