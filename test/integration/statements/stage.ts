/**
 * One Millrace between an upstream and an origin, for the tests of a file.
 * Invariant: what `failure` shows is what a client is told, whole: code, place, message, detail, hint.
 */
import pg from 'pg';
import { expect, vi } from 'vitest';
import { startMillrace, type TestMillrace } from '../../support/millrace.ts';
import { startPostgres, type TestPostgres, type TestPostgresOptions } from '../../support/postgres.ts';

export interface Stage {
  readonly millrace: TestMillrace;
  readonly upstream: TestPostgres;
  readonly origin: TestPostgres;
  /** A client of Millrace. */
  connect(user?: string): Promise<TestClient>;
  /** A client that goes around Millrace. */
  direct(server: TestPostgres, user?: string): Promise<TestClient>;
  stop(): Promise<void>;
}

export class TestClient extends pg.Client {
  readonly notices: string[] = [];

  /** The rows of the last statement of a text, as arrays. */
  async rows(sql: string, values?: readonly unknown[]): Promise<unknown[][]> {
    const result = await this.query({ text: sql, rowMode: 'array', ...(values === undefined ? {} : { values: [...values] }) });
    const last: unknown = Array.isArray(result) ? result.at(-1) : result;
    return (last as pg.QueryArrayResult).rows as unknown[][];
  }

  /** What a text is refused with, as psql prints it, the place by what stands there. Fails when it succeeds. */
  async failure(sql: string, values?: readonly unknown[]): Promise<string> {
    const error: unknown = await this.query(values === undefined ? sql : { text: sql, values: [...values] }).then(
      () => undefined,
      (reason: unknown) => reason,
    );
    if (!(error instanceof pg.DatabaseError)) throw error ?? new Error(`was expected to fail: ${sql}`);
    const place = error.position === undefined ? '' : ` at <${wordAt(sql, Number(error.position))}>`;
    return [
      `${error.severity} ${error.code}${place}: ${error.message}`,
      ...(error.detail === undefined ? [] : [`DETAIL: ${error.detail}`]),
      ...(error.hint === undefined ? [] : [`HINT: ${error.hint}`]),
    ].join('\n');
  }

  /** Every notice since the last call. */
  takeNotices(): string[] {
    return this.notices.splice(0);
  }
}

function wordAt(sql: string, position: number): string {
  const rest = [...sql].slice(position - 1).join('');
  return /^(?:"[^"]*"|[\p{L}\w$]+|\S)/u.exec(rest)?.[0] ?? '';
}

async function open(config: pg.ClientConfig): Promise<TestClient> {
  const client = new TestClient(config);
  client.on('error', () => undefined);
  client.on('notice', (notice) => client.notices.push([notice.message, notice.detail].filter((text) => text !== undefined).join('\n')));
  await client.connect();
  return client;
}

export async function startStage(
  options: {
    readonly upstream?: TestPostgresOptions;
    readonly origin?: TestPostgresOptions;
    /** Further flags of `serve`. */
    readonly args?: readonly string[];
    readonly env?: Readonly<Record<string, string>>;
  } = {},
): Promise<Stage> {
  const [upstream, origin] = await Promise.all([
    startPostgres(options.upstream),
    startPostgres({ settings: { wal_level: 'logical' }, ...options.origin }),
  ]);
  const millrace = await startMillrace({
    upstream: upstream.address,
    ...(options.args === undefined ? {} : { args: options.args }),
    ...(options.env === undefined ? {} : { env: options.env }),
  });
  const clients: TestClient[] = [];
  const keep = async (client: Promise<TestClient>): Promise<TestClient> => {
    clients.push(await client);
    return client;
  };
  return {
    millrace,
    upstream,
    origin,
    connect: (user = 'postgres') =>
      keep(open({ host: millrace.host, port: millrace.port, user, password: 'secret', database: 'postgres' })),
    direct: (server, user = 'postgres') =>
      keep(open({ host: server.host, port: server.port, user, password: 'secret', database: 'postgres' })),
    async stop() {
      await Promise.all(clients.map((client) => client.end().catch(() => undefined)));
      await millrace.stop();
      await Promise.all([upstream.stop(), origin.stop()]);
    },
  };
}

/** The address part of CREATE CONNECTION .. TO POSTGRES. */
export function leadsTo(server: TestPostgres, user = 'postgres'): string {
  return `HOST '${server.host}', PORT ${server.port}, USER '${user}', DATABASE 'postgres'`;
}

/** Connection, source and a table `public.t (a int primary key, b text)` with rows 1 and 2 at the origin, published as mz_source. */
export async function simpleSource(stage: Stage, client: TestClient): Promise<TestClient> {
  const origin = await stage.direct(stage.origin);
  await origin.query(`
    CREATE TABLE t (a int PRIMARY KEY, b text);
    INSERT INTO t VALUES (1, 'one'), (2, 'two');
    CREATE PUBLICATION mz_source FOR ALL TABLES;
  `);
  await client.query(`CREATE CONNECTION c TO POSTGRES (${leadsTo(stage.origin)})`);
  await client.query("CREATE SOURCE s FROM POSTGRES CONNECTION c (PUBLICATION 'mz_source')");
  return origin;
}

/** The numbers of everything Millrace keeps, to see that nothing was left behind. */
export async function whatThereIs(upstream: TestClient, origin: TestClient): Promise<Record<string, unknown>> {
  const [counts] = await upstream.rows(`
    SELECT (SELECT count(*)::int FROM millrace.secret), (SELECT count(*)::int FROM millrace.connection),
           (SELECT count(*)::int FROM millrace.source), (SELECT count(*)::int FROM millrace.relation),
           (SELECT count(*)::int FROM millrace.storage),
           (SELECT count(*)::int FROM pg_class WHERE relnamespace = 'millrace_data'::regnamespace AND relkind IN ('r', 'v')
               AND relname !~ '^(d|epoch)')`);
  const [slots] = await origin.rows('SELECT count(*)::int FROM pg_replication_slots');
  const names = ['secrets', 'connections', 'sources', 'relations', 'storages', 'data'];
  return { ...Object.fromEntries(names.map((name, index) => [name, counts?.[index]])), slots: slots?.[0] };
}

/** Waits until a query answers these rows. */
export async function eventually(client: TestClient, sql: string, rows: readonly (readonly unknown[])[]): Promise<void> {
  await vi.waitFor(async () => expect(await client.rows(sql).catch(String)).toEqual(rows), { timeout: 20_000, interval: 25 });
}
