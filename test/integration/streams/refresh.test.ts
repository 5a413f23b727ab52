/**
 * When and how stream tables are refreshed: schedules, pauses, failures, rebuilds, alerts.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { startEngine, type TestEngine } from '../../support/engine.ts';
import { startPostgres, type TestPostgres } from '../../support/postgres.ts';
import { createStream, followsQuery, installCatalog, refreshStream, sortedRows, streamReady, streamRow } from '../../support/streams.ts';

let upstream: TestPostgres;
let client: pg.Client;
let engine: TestEngine;

beforeAll(async () => {
  upstream = await startPostgres({ settings: { wal_level: 'logical' } });
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

async function set(id: number, assignments: string): Promise<void> {
  await client.query(`UPDATE millrace.stream_table SET ${assignments} WHERE relation_id = ${id}; NOTIFY millrace, ''`);
}

test('a schedule of seconds is kept', async () => {
  await client.query('CREATE TABLE tick (id integer PRIMARY KEY); INSERT INTO tick VALUES (1)');
  const id = await createStream(client, 'ticks', 'SELECT count(*) AS n FROM tick', { schedule: '1s' });
  await streamReady(client, id);
  await client.query('INSERT INTO tick VALUES (2)');
  await followsQuery(client, 'ticks', 'SELECT count(*) AS n FROM tick', 5000);
  const { rows } = await client.query(
    'SELECT reason FROM millrace.refresh_history WHERE relation_id = $1 ORDER BY refresh_id DESC LIMIT 1',
    [id],
  );
  expect(rows).toEqual([{ reason: 'schedule' }]);
  const before = (await streamRow(client, id))['data_timestamp'] as Date;
  // Nothing changes, and yet what is shown is known to be of a later time.
  await expect.poll(async () => ((await streamRow(client, id))['data_timestamp'] as Date) > before, { timeout: 5000 }).toBe(true);
});

test('FULL is refreshed when asked for, needs no capture, and writes what differs', async () => {
  await client.query('CREATE TABLE few (id integer PRIMARY KEY, v integer); INSERT INTO few SELECT g, g FROM generate_series(1, 100) g');
  const query = 'SELECT id, v FROM few';
  const id = await createStream(client, 'few_copy', query, { schedule: '@daily', mode: 'FULL' });
  await streamReady(client, id);
  await client.query('UPDATE few SET v = 0 WHERE id = 7; DELETE FROM few WHERE id = 8');
  await refreshStream(client, id);
  expect(await sortedRows(client, 'SELECT * FROM few_copy')).toEqual(await sortedRows(client, query));
  expect(await streamRow(client, id)).toMatchObject({ rows_in_last_refresh: '2' });
  expect((await client.query("SELECT relreplident FROM pg_class WHERE relname = 'few'")).rows).toEqual([{ relreplident: 'd' }]);
});

test('while paused nothing is applied, and afterwards all of it', async () => {
  await client.query('CREATE TABLE p (id integer PRIMARY KEY, v integer); INSERT INTO p VALUES (1, 1)');
  const id = await createStream(client, 'paused', 'SELECT sum(v) AS s FROM p');
  await streamReady(client, id);
  await set(id, "status = 'PAUSED'");
  await sleep(300);
  await client.query('INSERT INTO p VALUES (2, 2)');
  // Another stream table over the same table goes on: so changes have been taken in.
  await streamReady(client, await createStream(client, 'not_paused', 'SELECT count(*) AS n FROM p'));
  await client.query('INSERT INTO p VALUES (3, 3)');
  await followsQuery(client, 'not_paused', 'SELECT count(*) AS n FROM p');
  expect((await client.query('SELECT s FROM paused')).rows).toEqual([{ s: '1' }]);
  await engine.restart();
  await set(id, "status = 'ACTIVE'");
  await followsQuery(client, 'paused', 'SELECT sum(v) AS s FROM p');
  const { rows } = await client.query(
    "SELECT DISTINCT action FROM millrace.refresh_history WHERE relation_id = $1 AND status = 'COMPLETED'",
    [id],
  );
  expect(rows.map((row) => row.action).sort()).toEqual(['DIFFERENTIAL', 'INITIALIZE']);
});

test('reinitialize rebuilds by difference', async () => {
  await client.query('CREATE TABLE r (id integer PRIMARY KEY, v integer); INSERT INTO r SELECT g, g FROM generate_series(1, 10) g');
  const id = await createStream(client, 'rebuilt', 'SELECT id, v FROM r', { schedule: '1h' });
  await streamReady(client, id);
  await client.query(`DELETE FROM millrace_data.s${id} WHERE ctid IN (SELECT ctid FROM millrace_data.s${id} LIMIT 2)`);
  await set(id, 'reinitialize = true');
  await followsQuery(client, 'rebuilt', 'SELECT id, v FROM r');
  await expect.poll(async () => (await streamRow(client, id))['reinitialize']).toBe(false);
  const { rows } = await client.query(
    "SELECT rows_inserted + rows_deleted <= 4 AS few FROM millrace.refresh_history WHERE relation_id = $1 AND action = 'REINITIALIZE'",
    [id],
  );
  expect(rows).toEqual([{ few: true }]);
});

test('a query that fails three times is suspended, says why, and others go on', async () => {
  const listener = new pg.Client({ connectionString: upstream.url });
  await listener.connect();
  const events: string[] = [];
  listener.on('notification', ({ channel, payload }) => {
    const alert = JSON.parse(payload ?? '{}') as { event: string; st: string };
    if (channel === 'pgtrickle_alert' && alert.st === 'public.ratios') events.push(alert.event);
  });
  await listener.query('LISTEN pgtrickle_alert');
  await client.query('CREATE TABLE q (id integer PRIMARY KEY, v integer); INSERT INTO q VALUES (1, 1)');
  const id = await createStream(client, 'ratios', 'SELECT id, 100 / v AS r FROM q');
  const other = await createStream(client, 'plain', 'SELECT id FROM q');
  await streamReady(client, id);
  await streamReady(client, other);
  await client.query('INSERT INTO q VALUES (2, 0)');
  await followsQuery(client, 'plain', 'SELECT id FROM q');
  await expect.poll(async () => (await streamRow(client, id))['status'], { timeout: 20_000 }).toBe('SUSPENDED');
  expect(await streamRow(client, id)).toMatchObject({ consecutive_errors: 3, status_reason: 'division by zero' });
  // What it had is still there to be read.
  expect((await client.query('SELECT * FROM ratios')).rows).toEqual([{ id: 1, r: 100 }]);
  expect(events).toEqual(['refresh_completed', 'refresh_failed', 'refresh_failed', 'refresh_failed', 'auto_suspended']);
  const failed = await client.query("SELECT error, sqlstate FROM millrace.refresh_history WHERE relation_id = $1 AND status = 'FAILED'", [
    id,
  ]);
  expect(failed.rows[0]).toEqual({ error: 'division by zero', sqlstate: '22012' });
  await client.query('DELETE FROM q WHERE v = 0');
  await set(id, "status = 'ACTIVE', consecutive_errors = 0, next_refresh_at = NULL");
  await followsQuery(client, 'ratios', 'SELECT id, 100 / v AS r FROM q');
  await client.query('INSERT INTO q VALUES (3, 3)');
  await followsQuery(client, 'ratios', 'SELECT id, 100 / v AS r FROM q');
  await listener.end();
});

test('a query that fails when it is first computed can be tried again', async () => {
  await client.query('CREATE TABLE z (id integer PRIMARY KEY, v integer); INSERT INTO z VALUES (1, 0)');
  const id = await createStream(client, 'of_z', 'SELECT id, 1 / v AS r FROM z');
  await expect.poll(async () => (await streamRow(client, id))['status'], { timeout: 10_000 }).toBe('ERROR');
  await expect(client.query('SELECT * FROM of_z')).rejects.toThrow('division by zero');
  await client.query('UPDATE z SET v = 1');
  await refreshStream(client, id);
  await followsQuery(client, 'of_z', 'SELECT id, 1 / v AS r FROM z');
  expect(await streamRow(client, id)).toMatchObject({ status: 'ACTIVE', status_reason: null });
});

test('a diamond is refreshed together, whatever the schedules of its sides', async () => {
  await client.query('CREATE TABLE d (id integer PRIMARY KEY, v integer); INSERT INTO d SELECT g, g FROM generate_series(1, 10) g');
  await streamReady(client, await createStream(client, 'd_left', 'SELECT id % 2 AS k, sum(v) AS s FROM d GROUP BY 1', { schedule: '1h' }));
  await streamReady(client, await createStream(client, 'd_right', 'SELECT id % 2 AS k, count(*) AS n FROM d GROUP BY 1'));
  const top = await createStream(client, 'd_top', 'SELECT l.k, l.s, r.n FROM d_left l JOIN d_right r ON r.k = l.k', { schedule: '1h' });
  await streamReady(client, top);
  await client.query('INSERT INTO d VALUES (11, 100), (12, 200)');
  await refreshStream(client, top);
  expect(await sortedRows(client, 'SELECT * FROM d_top')).toEqual(
    await sortedRows(client, 'SELECT id % 2, sum(v), count(*) FROM d GROUP BY 1'),
  );
});

test('a large transaction arrives whole, and so many changes are computed as a whole', async () => {
  await client.query('CREATE TABLE large (id integer PRIMARY KEY, g integer, note text)');
  const query = 'SELECT g, count(*) AS n, max(note) AS last FROM large GROUP BY g';
  const id = await createStream(client, 'of_large', query);
  await streamReady(client, id);
  await client.query("INSERT INTO large SELECT g, g % 50, repeat('x', 100) || g FROM generate_series(1, 120000) g");
  await followsQuery(client, 'of_large', query, 40_000);
  await client.query('ANALYZE large; UPDATE large SET g = (g + 1) % 50');
  await followsQuery(client, 'of_large', query, 40_000);
  const { rows } = await client.query("SELECT reason FROM millrace.refresh_history WHERE relation_id = $1 AND action = 'FULL'", [id]);
  expect(rows.map((row) => String(row.reason).slice(0, 5))).toContain('cost:');
});

test('an engine with nothing to do writes nothing', async () => {
  // Those with a schedule of seconds note the time of what they show.
  await client.query("UPDATE millrace.stream_table SET schedule = '1h', next_refresh_at = now() + interval '1 hour'; NOTIFY millrace, ''");
  await sleep(1500);
  const epochs = async (): Promise<unknown> => (await client.query('SELECT epoch FROM millrace.epoch')).rows[0]?.epoch;
  const before = await epochs();
  await sleep(3000);
  expect(await epochs()).toBe(before);
});
