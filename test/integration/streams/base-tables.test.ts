/**
 * Stream tables over ordinary tables of the upstream: what is written to those reaches the stream table from the upstream's own WAL.
 */
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { startEngine, type TestEngine } from '../../support/engine.ts';
import { startPostgres, type TestPostgres } from '../../support/postgres.ts';
import { createStream, followsQuery, installCatalog, refreshStream, sortedRows, streamReady, streamRow } from '../../support/streams.ts';

describe.each([
  [15, 'logical'],
  [18, 'logical'],
  [18, 'replica'],
] as const)('on PostgreSQL %i with wal_level %s', (version, level) => {
  let upstream: TestPostgres;
  let client: pg.Client;
  let engine: TestEngine;

  beforeAll(async () => {
    upstream = await startPostgres({ version, settings: { wal_level: level, max_prepared_transactions: '10' } });
    client = new pg.Client({ connectionString: upstream.url });
    await client.connect();
    await installCatalog(client);
    engine = startEngine(upstream.address);
  });

  afterAll(async () => {
    await engine?.stop();
    await client?.end();
    await upstream?.stop();
  });

  test('inserts, updates and deletes arrive as soon as possible with a calculated schedule', async () => {
    await client.query(`CREATE TABLE orders (id integer PRIMARY KEY, region text, amount numeric(10,2), w text);
      INSERT INTO orders SELECT g, 'r' || g % 3, g, 'x' FROM generate_series(1, 30) g`);
    const query = 'SELECT region, count(*) AS n, sum(amount) AS total FROM orders GROUP BY region';
    const id = await createStream(client, 'by_region', query);
    await streamReady(client, id);
    expect(await sortedRows(client, 'SELECT * FROM by_region')).toEqual(await sortedRows(client, query));
    await client.query("INSERT INTO orders VALUES (31, 'new', 5)");
    await followsQuery(client, 'by_region', query);
    await client.query("UPDATE orders SET amount = amount * 2, region = 'moved' WHERE id % 4 = 0");
    await followsQuery(client, 'by_region', query);
    await client.query('DELETE FROM orders WHERE id < 10');
    await followsQuery(client, 'by_region', query);
    expect(await streamRow(client, id)).toMatchObject({ status: 'ACTIVE', is_populated: true, consecutive_errors: 0, delta_lost: null });
  });

  test.skipIf(level === 'logical')('triggers go when they are no longer needed', async () => {
    await client.query('CREATE TABLE plain (id integer PRIMARY KEY, v integer)');
    const triggers = async (): Promise<number> =>
      (await client.query("SELECT FROM pg_trigger WHERE tgrelid = 'plain'::regclass")).rowCount ?? 0;
    await streamReady(client, await createStream(client, 'plain_sum', 'SELECT sum(v) AS total FROM plain'));
    expect(await triggers()).toBe(4);
    await client.query("ALTER TABLE plain ADD COLUMN n text; ALTER TABLE plain RENAME v TO value; INSERT INTO plain VALUES (1, 1, 'n')");
    await followsQuery(client, 'plain_sum', 'SELECT sum(value) FROM plain');
    await client.query(`DROP VIEW plain_sum; UPDATE millrace.relation SET state = 'dropped' WHERE facade IS NOT NULL AND NOT EXISTS
      (SELECT FROM pg_class c WHERE c.oid = facade); NOTIFY millrace, ''`);
    await expect.poll(triggers, { timeout: 20_000 }).toBe(0);
  });

  test.skipIf(level === 'replica')(
    'REPLICA IDENTITY is FULL while needed and put back afterwards, slot and publication go with the last table',
    async () => {
      await client.query('CREATE TABLE plain (id integer PRIMARY KEY, v integer)');
      const identity = async (): Promise<unknown> =>
        (await client.query("SELECT relreplident FROM pg_class WHERE relname = 'plain'")).rows[0]?.relreplident;
      const id = await createStream(client, 'plain_sum', 'SELECT sum(v) AS total FROM plain');
      await streamReady(client, id);
      expect(await identity()).toBe('f');
      await client.query(
        `DROP VIEW IF EXISTS plain_sum, by_region; UPDATE millrace.relation SET state = 'dropped' WHERE kind = 'view'; NOTIFY millrace, ''`,
      );
      await expect.poll(identity, { timeout: 20_000 }).toBe('d');
      await expect.poll(async () => (await client.query('SELECT FROM pg_replication_slots')).rowCount, { timeout: 20_000 }).toBe(0);
      await expect.poll(async () => (await client.query('SELECT FROM pg_publication')).rowCount).toBe(0);
      await expect.poll(async () => (await client.query('SELECT FROM millrace.base_table')).rowCount, { timeout: 20_000 }).toBe(0);
    },
  );

  test('joins of a base table with itself and others, and views over them, in one epoch', async () => {
    await client.query(`CREATE TABLE a (id integer PRIMARY KEY, g integer, v integer); CREATE TABLE b (id integer PRIMARY KEY, g integer, n text);
      INSERT INTO a SELECT i, i % 5, i FROM generate_series(1, 50) i; INSERT INTO b SELECT i, i % 5, 'n' || i FROM generate_series(1, 20) i`);
    const joined = 'SELECT a.id, b.n, a.v FROM a JOIN b ON b.g = a.g WHERE a.v > 10';
    const sums = 'SELECT n, count(*) AS c, sum(v) AS s FROM joined GROUP BY n';
    const wanted = 'SELECT b.n, count(*) AS c, sum(a.v) AS s FROM a JOIN b ON b.g = a.g WHERE a.v > 10 GROUP BY b.n';
    await streamReady(client, await createStream(client, 'joined', joined));
    await streamReady(client, await createStream(client, 'sums', sums));
    for (let round = 0; round < 20; round++) {
      await client.query(`BEGIN; UPDATE a SET v = v + 1, g = (g + 1) % 5 WHERE id % 7 = ${round % 7}; DELETE FROM b WHERE id = ${round};
        INSERT INTO b VALUES (${100 + round}, ${round % 5}, 'new'); COMMIT`);
    }
    await followsQuery(client, 'joined', joined);
    await followsQuery(client, 'sums', wanted);
  });

  test('transactions with savepoints, rollbacks, prepared ones, unchanged TOAST values', async () => {
    await client.query(`CREATE TABLE doc (id integer PRIMARY KEY, kind integer, body text); ALTER TABLE doc ALTER body SET STORAGE EXTERNAL;
      INSERT INTO doc SELECT i, i % 3, repeat(chr(97 + i % 26), 5000) FROM generate_series(1, 20) i`);
    const query = 'SELECT kind, count(*) AS n, max(body) AS longest FROM doc GROUP BY kind';
    const copies = 'SELECT id, kind, body FROM doc WHERE kind > 0';
    await streamReady(client, await createStream(client, 'kinds', query));
    await streamReady(client, await createStream(client, 'copies', copies));
    await client.query('UPDATE doc SET kind = kind + 1 WHERE id = 5');
    await client.query(`BEGIN; INSERT INTO doc VALUES (100, 7, 'kept'); SAVEPOINT s; INSERT INTO doc VALUES (101, 8, 'gone'); ROLLBACK TO s;
      SAVEPOINT t; DELETE FROM doc WHERE id = 1; RELEASE t; COMMIT`);
    await client.query("BEGIN; DELETE FROM doc; ROLLBACK; BEGIN; INSERT INTO doc VALUES (200, 9, 'prepared'); PREPARE TRANSACTION 'later'");
    await client.query("INSERT INTO doc VALUES (300, 9, 'meanwhile')");
    await followsQuery(client, 'kinds', query);
    await client.query("COMMIT PREPARED 'later'");
    await followsQuery(client, 'kinds', query);
    await followsQuery(client, 'copies', copies);
  });

  test('a schedule holds changes back until a refresh is asked for', async () => {
    await client.query('CREATE TABLE slow (id integer PRIMARY KEY, v integer); INSERT INTO slow VALUES (1, 1)');
    const query = 'SELECT id, v FROM slow';
    const id = await createStream(client, 'slow_copy', query, { schedule: '1h' });
    await streamReady(client, id);
    await client.query('INSERT INTO slow VALUES (2, 2); UPDATE slow SET v = 5 WHERE id = 1');
    await refreshStream(client, id);
    expect(await sortedRows(client, 'SELECT * FROM slow_copy')).toEqual(await sortedRows(client, query));
    expect(await streamRow(client, id)).toMatchObject({ rows_in_last_refresh: '2' });
    await refreshStream(client, id);
    const history = await client.query(
      'SELECT action, status, reason, delta_rows, rows_inserted FROM millrace.refresh_history WHERE relation_id = $1 ORDER BY refresh_id',
      [id],
    );
    expect(history.rows).toEqual([
      { action: 'INITIALIZE', status: 'COMPLETED', reason: 'initial', delta_rows: '0', rows_inserted: '1' },
      { action: 'DIFFERENTIAL', status: 'COMPLETED', reason: 'manual', delta_rows: '3', rows_inserted: '2' },
      { action: 'NO_DATA', status: 'COMPLETED', reason: 'manual', delta_rows: '0', rows_inserted: '0' },
    ]);
  });

  test('TRUNCATE is followed by a rebuild', async () => {
    await client.query(
      'CREATE TABLE logs (id integer PRIMARY KEY, v integer); INSERT INTO logs SELECT g, g FROM generate_series(1, 100) g',
    );
    const query = 'SELECT v % 3 AS k, count(*) AS n FROM logs GROUP BY 1';
    const id = await createStream(client, 'log_counts', query);
    await streamReady(client, id);
    await client.query('TRUNCATE logs; INSERT INTO logs VALUES (1, 1)');
    await followsQuery(client, 'log_counts', query);
    await client.query('INSERT INTO logs VALUES (2, 1)');
    await followsQuery(client, 'log_counts', query);
    expect(
      (await client.query("SELECT reason FROM millrace.refresh_history WHERE relation_id = $1 AND action = 'FULL'", [id])).rows,
    ).toEqual([{ reason: 'TRUNCATE' }]);
    expect(await streamRow(client, id)).toMatchObject({ delta_lost: null });
  });
});
