/**
 * The guide "Zero-downtime migration from materialized views", statement by statement, as a user types it: through psql (simple
 * protocol) and through pg (extended protocol), on the oldest and the newest supported PostgreSQL.
 */
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { startMillrace, type TestMillrace } from '../support/millrace.ts';
import { runOnce } from '../support/one-client.ts';
import { havePsql, type PostgresMajor, psql, startPostgres, type TestPostgres } from '../support/postgres.ts';

/** What the guide types, in its words. */
const guide = {
  definition: "SELECT schemaname, matviewname, definition\nFROM pg_matviews\nWHERE matviewname = 'orders_summary';",
  validate:
    'SELECT pgtrickle.validate_query(\n$$SELECT region, COUNT(*) AS order_count, SUM(amount) AS total\nFROM orders GROUP BY region$$\n);',
  create: `SELECT pgtrickle.create_stream_table(
name => 'orders_summary_st',
query => $$
SELECT region,
COUNT(*) AS order_count,
SUM(amount) AS total
FROM orders
GROUP BY region
$$,
schedule => '10s',
refresh_mode => 'DIFFERENTIAL'
);`,
  status:
    "SELECT pgt_name, status, last_refresh_at, rows_in_last_refresh\nFROM pgtrickle.pgt_stream_tables\nWHERE pgt_name = 'orders_summary_st';",
  onlyOld: 'SELECT * FROM orders_summary\nEXCEPT\nSELECT * FROM orders_summary_st;',
  onlyNew: 'SELECT * FROM orders_summary_st\nEXCEPT\nSELECT * FROM orders_summary;',
  reinitialize: "SELECT pgtrickle.reinitialize_stream_table('orders_summary_st')",
  insert: "INSERT INTO orders (region, amount) VALUES ('TEST', 99.99);",
  oldRegion: "SELECT * FROM orders_summary WHERE region = 'TEST';",
  newRegion: "SELECT * FROM orders_summary_st WHERE region = 'TEST';",
  rename: 'ALTER MATERIALIZED VIEW orders_summary RENAME TO orders_summary_old;',
  compatibility: 'CREATE VIEW orders_summary AS SELECT * FROM orders_summary_st;',
  dropOld: 'DROP MATERIALIZED VIEW orders_summary_old;',
  pause: "SELECT pgtrickle.pause_stream_table('orders_summary_st');",
  renameBack: 'ALTER MATERIALIZED VIEW orders_summary_old RENAME TO orders_summary;',
  dropView: 'DROP VIEW IF EXISTS orders_summary;',
  drop: "SELECT pgtrickle.drop_stream_table('orders_summary_st');",
  full: `SELECT pgtrickle.create_stream_table(
name => 'hourly_snapshot',
query => $$
SELECT *, now() AS snapshot_at FROM large_table
$$,
schedule => '1h',
refresh_mode => 'FULL'
);`,
} as const;

const tables = `
  CREATE TABLE orders (id bigserial PRIMARY KEY, region varchar(20), amount numeric(10, 2));
  INSERT INTO orders (region, amount) SELECT 'region ' || i % 5, i FROM generate_series(1, 500) i;
  CREATE MATERIALIZED VIEW orders_summary AS SELECT region, COUNT(*) AS order_count, SUM(amount) AS total FROM orders GROUP BY region;
  CREATE TABLE large_table AS SELECT i AS id, 'row ' || i AS label FROM generate_series(1, 100) i;`;

const majors: readonly PostgresMajor[] = [18, 15];

describe.each(majors)('the guide on PostgreSQL %s', (major) => {
  let upstream: TestPostgres;
  let millrace: TestMillrace;

  beforeAll(async () => {
    upstream = await startPostgres({ version: major, settings: { wal_level: 'logical' } });
    millrace = await startMillrace({ upstream: upstream.address });
  }, 120_000);
  afterAll(async () => {
    await millrace?.stop();
    await upstream?.stop();
  });

  const database = async (name: string): Promise<string> => {
    await runOnce(upstream.url, `CREATE DATABASE ${name}`);
    const url = millrace.url(name);
    await runOnce(url, tables);
    return url;
  };

  test('by pg, extended protocol', async () => {
    const client = new pg.Client({ connectionString: await database('by_pg') });
    await client.connect();
    const rows = async (text: string): Promise<unknown[]> => (await client.query({ text, queryMode: 'extended' } as pg.QueryConfig)).rows;
    try {
      expect(await rows(guide.definition)).toHaveLength(1);
      expect(await rows(guide.validate)).toEqual([{ result: 'ok', detail: 'Query is IVM-eligible. Recommended mode: DIFFERENTIAL' }]);
      expect(await rows(guide.create)).toEqual([{ create_stream_table: '' }]);
      expect(await rows(guide.status)).toEqual([
        { pgt_name: 'orders_summary_st', status: 'ACTIVE', last_refresh_at: expect.any(Date), rows_in_last_refresh: expect.any(String) },
      ]);
      expect(await rows(guide.onlyOld)).toEqual([]);
      expect(await rows(guide.onlyNew)).toEqual([]);
      await rows(guide.reinitialize);
      expect(await rows(guide.onlyOld)).toEqual([]);
      await rows(guide.insert);
      await rows('REFRESH MATERIALIZED VIEW orders_summary');
      await rows("SELECT pgtrickle.refresh_stream_table('orders_summary_st')");
      expect(await rows(guide.oldRegion)).toEqual([{ region: 'TEST', order_count: '1', total: '99.99' }]);
      expect(await rows(guide.newRegion)).toEqual([{ region: 'TEST', order_count: '1', total: '99.99' }]);
      await rows(guide.rename);
      await rows(guide.compatibility);
      expect(await rows('SELECT * FROM orders_summary EXCEPT SELECT * FROM orders_summary_old')).toEqual([]);
      await rows(guide.dropOld);
      expect(await rows("SELECT * FROM orders_summary WHERE region = 'TEST'")).toHaveLength(1);
      await rows(guide.pause);
      expect(await rows(guide.status)).toEqual([expect.objectContaining({ status: 'SUSPENDED' })]);
      await rows(guide.dropView);
      await rows(guide.drop);
      expect(await rows(guide.status)).toEqual([]);
      await rows(guide.full);
      expect(await rows('SELECT count(*) AS rows, count(snapshot_at) AS times FROM hourly_snapshot')).toEqual([
        { rows: '100', times: '100' },
      ]);
    } finally {
      await client.end();
    }
  }, 60_000);

  test.runIf(havePsql)(
    'by psql, and the way back',
    async () => {
      const url = new URL(await database('by_psql'));
      const address = millrace.address(url.pathname.slice(1));
      const script = [
        guide.definition,
        guide.validate,
        guide.create,
        guide.status,
        guide.onlyOld,
        guide.onlyNew,
        `${guide.reinitialize};`,
        guide.insert,
        'REFRESH MATERIALIZED VIEW orders_summary;',
        "SELECT pgtrickle.refresh_stream_table('orders_summary_st');",
        guide.oldRegion,
        guide.newRegion,
        guide.rename,
        guide.compatibility,
        guide.pause,
        guide.dropView,
        guide.renameBack,
        guide.drop,
        guide.full,
      ];
      const { stdout, stderr, code } = await psql(address, ['-v', 'ON_ERROR_STOP=1', ...script.flatMap((statement) => ['-c', statement])]);
      // Who waits for long is told so.
      const told = stderr.replace(/^NOTICE: {2}public\.\w+: pending\n/gm, '');
      expect(told).toMatch(/^NOTICE: {2}table public\.orders is given REPLICA IDENTITY FULL\nDETAIL.*\nHINT.*\n$/);
      expect(code).toBe(0);
      const shown = stdout.split('\n').filter((line) => line !== '');
      expect(shown).toContain('ok|Query is IVM-eligible. Recommended mode: DIFFERENTIAL');
      expect(shown.filter((line) => line === 'TEST|1|99.99')).toHaveLength(2);
      expect(shown.some((line) => line.startsWith('orders_summary_st|ACTIVE|'))).toBe(true);
    },
    60_000,
  );
});
