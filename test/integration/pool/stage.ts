/**
 * One server and proxies of any settings before it, for the tests of a file.
 * Invariant: nothing of a test reaches the next: its clients and proxies are gone when it ends.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import { createLogger } from '../../../src/log.ts';
import { defaultProxySettings, type ProxySettings } from '../../../src/wire/pool/settings.ts';
import { startPostgres, type TestPostgres, type TestPostgresOptions } from '../../support/postgres.ts';
import { startProxy, type TestProxy } from '../wire/proxy.ts';
import { RawClient, type RawMessage, shown, startupPacket } from '../wire/raw-client.ts';

const log = createLogger('test');
log.level = 'silent';

/** A client of node-postgres that remembers what its connection ended with. */
export class PoolClient extends pg.Client {
  /** `SQLSTATE message` of the FATAL error, or what the network said. */
  end_: string | null = null;

  async rows(sql: string, values: readonly unknown[] = []): Promise<unknown[][]> {
    const query = { text: sql, rowMode: 'array' as const };
    const result: unknown = await this.query(values.length === 0 ? query : { ...query, values: [...values] });
    const last: unknown = Array.isArray(result) ? result.at(-1) : result;
    return (last as pg.QueryArrayResult).rows as unknown[][];
  }

  /** The first value of the first row. */
  async value(sql: string, values: readonly unknown[] = []): Promise<unknown> {
    return (await this.rows(sql, values))[0]?.[0];
  }

  /** What a statement is refused with. */
  async failure(sql: string | pg.QueryConfig): Promise<string> {
    return await this.query(sql).then(
      () => 'success',
      (error: unknown) => errorText(error),
    );
  }
}

export function errorText(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const { code } = error as { code?: string };
  return code === undefined ? error.message : `${code} ${error.message}`;
}

export interface PoolStage {
  readonly postgres: TestPostgres;
  /** Not through Millrace. */
  readonly direct: PoolClient;
  /** A proxy in transaction mode that trusts everybody, but for `settings`. */
  proxy(settings?: Partial<ProxySettings>): Promise<TestProxy>;
  connect(proxy: TestProxy, options?: pg.ClientConfig): Promise<PoolClient>;
  /** What a client is turned away with. */
  refusal(proxy: TestProxy, options?: pg.ClientConfig): Promise<string>;
  raw(proxy: TestProxy, parameters?: Readonly<Record<string, string>>): Promise<RawClient>;
  /** How many backends there are besides `direct`, by a condition on pg_stat_activity. */
  backends(condition?: string): Promise<number>;
  /** Ends clients and proxies of the test. */
  clear(): Promise<void>;
  stop(): Promise<void>;
}

export async function startPoolStage(options: TestPostgresOptions = {}): Promise<PoolStage> {
  const postgres = await startPostgres(options);
  const open: { end(): unknown }[] = [];
  const proxies: TestProxy[] = [];
  const connectTo = async (port: number, config: pg.ClientConfig = {}): Promise<PoolClient> => {
    const client = new PoolClient({ host: '127.0.0.1', port, user: 'postgres', database: 'postgres', ...config });
    client.on('error', (error) => {
      client.end_ ??= errorText(error);
    });
    await client.connect();
    return client;
  };
  const direct = await connectTo(postgres.port);
  return {
    postgres,
    direct,
    async proxy(settings = {}) {
      const all: ProxySettings = { ...defaultProxySettings, poolMode: 'transaction', authType: 'trust', ...settings };
      const worker = await startProxy(postgres.address, undefined, { log }, all);
      proxies.push(worker);
      return worker;
    },
    async connect(proxy, config) {
      const client = await connectTo(proxy.port, config);
      open.push(client);
      return client;
    },
    async refusal(proxy, config) {
      return await connectTo(proxy.port, config).then(
        async (client) => {
          await client.end();
          return 'let in';
        },
        (error: unknown) => errorText(error),
      );
    },
    async raw(proxy, parameters) {
      const client = await RawClient.open(proxy.port, parameters);
      open.push({ end: () => client.destroy() });
      return client;
    },
    async backends(condition = 'true') {
      const sql = `SELECT count(*)::int FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND (${condition})`;
      return Number(await direct.value(sql));
    },
    clear,
    async stop() {
      await clear();
      await direct.end().catch(() => undefined);
      await postgres.stop();
    },
  };
  async function clear(): Promise<void> {
    await Promise.all(open.splice(0).map(async (client) => await Promise.resolve(client.end()).catch(() => undefined)));
    await Promise.all(proxies.splice(0).map((proxy) => proxy.stop(0)));
  }
}

export async function eventually(check: () => Promise<boolean> | boolean, what: string): Promise<void> {
  for (const end = Date.now() + 10_000; !(await check()); await sleep(10))
    if (Date.now() > end) throw new Error(`not within 10 s: ${what}`);
}

/** A startup packet of a raw client that is not to be answered yet. */
export function hello(parameters: Readonly<Record<string, string>> = {}, protocol = 0x30000): Buffer {
  const packet = startupPacket({ user: 'postgres', database: 'postgres', ...parameters });
  packet.writeInt32BE(protocol, 4);
  return packet;
}

/** Messages as lines, without what only a server's version or settings decide. */
export const lines = (messages: readonly RawMessage[]): string[] => shown(messages).filter((line) => line !== 'S');
