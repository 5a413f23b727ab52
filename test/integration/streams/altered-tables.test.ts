/**
 * Ordinary tables that are altered, locked, partitioned or without a key under stream tables.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { startEngine, type TestEngine } from '../../support/engine.ts';
import { startPostgres, type TestPostgres } from '../../support/postgres.ts';
import { createStream, followsQuery, installCatalog, refreshStream, streamReady, streamRow } from '../../support/streams.ts';

describe.each([15, 18] as const)('on PostgreSQL %i', (version) => {
  let upstream: TestPostgres;
  let client: pg.Client;
  let engine: TestEngine;

  beforeAll(async () => {
    upstream = await startPostgres({ version, settings: { wal_level: 'logical' } });
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

  test('columns are added and renamed, the table too, and changes go on arriving', async () => {
    await client.query(
      'CREATE TABLE item (id integer PRIMARY KEY, kind text, price integer); INSERT INTO item VALUES (1, $$a$$, 1), (2, $$b$$, 2)',
    );
    await streamReady(client, await createStream(client, 'kinds', 'SELECT kind, sum(price) AS total FROM item GROUP BY kind'));
    await client.query("ALTER TABLE item ADD COLUMN extra text DEFAULT 'x'; INSERT INTO item VALUES (3, 'a', 3, 'y')");
    await followsQuery(client, 'kinds', 'SELECT kind, sum(price) AS total FROM item GROUP BY kind');
    await client.query("ALTER TABLE item RENAME kind TO sort; UPDATE item SET sort = 'c' WHERE id = 1");
    await followsQuery(client, 'kinds', 'SELECT sort, sum(price) AS total FROM item GROUP BY sort');
    await client.query(
      'ALTER TABLE item RENAME TO thing; CREATE SCHEMA shop; ALTER TABLE thing SET SCHEMA shop; UPDATE shop.thing SET price = price + 1',
    );
    await followsQuery(client, 'kinds', 'SELECT sort, sum(price) AS total FROM shop.thing GROUP BY sort');
    // A stream table made now sees the new column, and the old one goes on.
    await streamReady(client, await createStream(client, 'extras', 'SELECT extra, count(*) AS n FROM shop.thing GROUP BY extra'));
    await client.query("INSERT INTO shop.thing VALUES (4, 'd', 4, 'z')");
    await followsQuery(client, 'extras', 'SELECT extra, count(*) AS n FROM shop.thing GROUP BY extra');
    await followsQuery(client, 'kinds', 'SELECT sort, sum(price) AS total FROM shop.thing GROUP BY sort');
  });

  test('a dropped column suspends the stream tables that use it, with its name, and no others', async () => {
    await client.query('CREATE TABLE wide (id integer PRIMARY KEY, a integer, b integer, c integer); INSERT INTO wide VALUES (1, 1, 1, 1)');
    const usesB = await createStream(client, 'uses_b', 'SELECT a, sum(b) AS s FROM wide GROUP BY a');
    const usesC = await createStream(client, 'uses_c', 'SELECT a, sum(c) AS s FROM wide GROUP BY a');
    await streamReady(client, usesB);
    await streamReady(client, usesC);
    await expect(client.query('ALTER TABLE wide DROP COLUMN b')).rejects.toThrow(/other objects depend on it/);
    await client.query('ALTER TABLE wide DROP COLUMN b CASCADE; INSERT INTO wide VALUES (2, 2, 2)');
    await followsQuery(client, 'uses_c', 'SELECT a, sum(c) AS s FROM wide GROUP BY a');
    await expect.poll(async () => (await streamRow(client, usesB))['status'], { timeout: 15_000 }).toBe('SUSPENDED');
    expect((await streamRow(client, usesB))['status_reason']).toBe('stream table is suspended: column "b" of public.wide was dropped');
    await expect(client.query('SELECT * FROM uses_b')).rejects.toThrow('stream table is suspended: column "b" of public.wide was dropped');
    expect(await streamRow(client, usesC)).toMatchObject({ status: 'ACTIVE' });
    // Told to go on, it says so again.
    await client.query(
      `UPDATE millrace.stream_table SET status = 'ACTIVE', status_reason = NULL WHERE relation_id = ${usesB}; NOTIFY millrace, ''`,
    );
    await expect
      .poll(async () => (await streamRow(client, usesB))['status_reason'], { timeout: 15_000 })
      .toBe('stream table is suspended: column "b" of public.wide was dropped');
  });

  test('a dropped table suspends what reads it', async () => {
    await client.query('CREATE TABLE doomed (id integer PRIMARY KEY); INSERT INTO doomed VALUES (1)');
    const id = await createStream(client, 'of_doomed', 'SELECT count(*) AS n FROM doomed');
    await streamReady(client, id);
    await client.query('DROP TABLE doomed CASCADE');
    // Nothing is written and nothing refreshed: it is looked for.
    await expect.poll(async () => (await streamRow(client, id))['status'], { timeout: 15_000 }).toBe('SUSPENDED');
    await expect(client.query('SELECT * FROM of_doomed')).rejects.toThrow('was dropped');
    expect(String((await streamRow(client, id))['status_reason'])).toContain('was dropped');
  });

  test('a table that someone has locked does not hold up the others', async () => {
    await client.query('CREATE TABLE held (id integer PRIMARY KEY); CREATE TABLE free (id integer PRIMARY KEY)');
    await streamReady(client, await createStream(client, 'of_held', 'SELECT count(*) AS n FROM held'));
    await streamReady(client, await createStream(client, 'of_free', 'SELECT count(*) AS n FROM free'));
    const other = new pg.Client({ connectionString: upstream.url });
    await other.connect();
    await other.query('BEGIN; INSERT INTO held VALUES (1); LOCK TABLE held IN ACCESS EXCLUSIVE MODE');
    await client.query('INSERT INTO free VALUES (1)');
    await followsQuery(client, 'of_free', 'SELECT count(*) AS n FROM free');
    await other.query('COMMIT; BEGIN; LOCK TABLE held IN ACCESS EXCLUSIVE MODE');
    await sleep(300);
    await client.query('INSERT INTO free VALUES (2)');
    await followsQuery(client, 'of_free', 'SELECT count(*) AS n FROM free');
    await other.query('COMMIT');
    await followsQuery(client, 'of_held', 'SELECT count(*) AS n FROM held');
    await other.end();
  });

  test('partitioned tables are read through their parent; partitions may come later', async () => {
    await client.query(`CREATE TABLE event (id integer, day integer, n integer, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
      CREATE TABLE event_1 PARTITION OF event FOR VALUES FROM (0) TO (10); CREATE TABLE event_2 PARTITION OF event FOR VALUES FROM (10) TO (20);
      INSERT INTO event SELECT g, g % 20, g FROM generate_series(1, 100) g`);
    const query = 'SELECT day, count(*) AS c, sum(n) AS s FROM event GROUP BY day';
    await streamReady(client, await createStream(client, 'days', query));
    await client.query(
      'UPDATE event SET day = 15, n = 0 WHERE id = 3; DELETE FROM event WHERE id > 90; INSERT INTO event_2 VALUES (500, 11, 7)',
    );
    await followsQuery(client, 'days', query);
    await client.query(
      'CREATE TABLE event_3 PARTITION OF event FOR VALUES FROM (20) TO (30); INSERT INTO event SELECT g, 25, g FROM generate_series(600, 620) g',
    );
    await followsQuery(client, 'days', query);
    await client.query('UPDATE event SET n = n + 1 WHERE day = 25; DELETE FROM event WHERE id = 601');
    await followsQuery(client, 'days', query);
    await client.query('TRUNCATE event_1');
    await followsQuery(client, 'days', query);
    await client.query('ALTER TABLE event DETACH PARTITION event_2');
    await followsQuery(client, 'days', query);
  });

  test('generated columns are known in changes', async () => {
    await client.query(`CREATE TABLE made (id integer PRIMARY KEY, a integer, b integer GENERATED ALWAYS AS (a * 2) STORED);
      INSERT INTO made VALUES (1, 1), (2, 2)`);
    const query = 'SELECT b, count(*) AS n FROM made GROUP BY b';
    await streamReady(client, await createStream(client, 'of_made', query));
    await client.query('INSERT INTO made VALUES (3, 1); UPDATE made SET a = 7 WHERE id = 2');
    await followsQuery(client, 'of_made', query);
  });

  test('with the slot gone everything is rebuilt by difference and goes on', async () => {
    await client.query('CREATE TABLE sturdy (id integer PRIMARY KEY, v integer); INSERT INTO sturdy VALUES (1, 1)');
    const query = 'SELECT v, count(*) AS n FROM sturdy GROUP BY v';
    const id = await createStream(client, 'of_sturdy', query);
    await streamReady(client, id);
    // The engine takes it again at once: whoever is first.
    await expect
      .poll(
        async () => {
          await client.query("SELECT pg_terminate_backend(active_pid, 1000) FROM pg_replication_slots WHERE slot_name ~ '^millrace_base'");
          return client
            .query("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name ~ '^millrace_base'")
            .then(
              (r) => r.rowCount,
              () => 0,
            );
        },
        { timeout: 15_000 },
      )
      .toBe(1);
    await client.query('INSERT INTO sturdy VALUES (2, 2); DELETE FROM sturdy WHERE id = 1');
    await followsQuery(client, 'of_sturdy', query, 20_000);
    await client.query('INSERT INTO sturdy VALUES (3, 3)');
    await followsQuery(client, 'of_sturdy', query);
    expect(await streamRow(client, id)).toMatchObject({ delta_lost: null, status: 'ACTIVE' });
  });

  test('an unlogged table cannot be captured, and the stream table says so; FULL can', async () => {
    await client.query('CREATE UNLOGGED TABLE light (id integer PRIMARY KEY); INSERT INTO light VALUES (1)');
    const id = await createStream(client, 'of_light', 'SELECT count(*) AS n FROM light');
    await expect.poll(async () => (await streamRow(client, id))['status'], { timeout: 15_000 }).toBe('SUSPENDED');
    expect((await streamRow(client, id))['status_reason']).toBe('changes of public.light cannot be captured: it is unlogged');
    await client.query('CREATE UNLOGGED TABLE mended (id integer PRIMARY KEY); INSERT INTO mended VALUES (1)');
    const mended = await createStream(client, 'of_mended', 'SELECT count(*) AS n FROM mended');
    const over = await createStream(client, 'over_mended', 'SELECT n FROM of_mended');
    await expect.poll(async () => (await streamRow(client, mended))['status'], { timeout: 15_000 }).toBe('SUSPENDED');
    await client.query(
      `ALTER TABLE mended SET LOGGED; UPDATE millrace.stream_table SET status = 'ACTIVE' WHERE relation_id = ${mended}; NOTIFY millrace, ''`,
    );
    await streamReady(client, mended);
    await streamReady(client, over);
    await client.query('INSERT INTO mended VALUES (2)');
    await followsQuery(client, 'over_mended', 'SELECT count(*) AS n FROM mended');
    const full = await createStream(client, 'of_light_full', 'SELECT count(*) AS n FROM light', { mode: 'FULL', schedule: '1h' });
    await streamReady(client, full);
    await client.query('INSERT INTO light VALUES (2)');
    await refreshStream(client, full);
    expect((await client.query('SELECT n FROM of_light_full')).rows).toEqual([{ n: '2' }]);
  });
});
