/** Outboxes are trimmed of what every reader has, and of nothing else. */
import pg from 'pg';
import { afterAll, beforeAll, beforeEach, expect, it } from 'vitest';
import { ensureCatalog } from '../../../src/catalog/install.ts';
import { segmentDdl } from '../../../src/engine/outbox.ts';
import { endSubscriptions, type OutboxBounds, trimOutboxes } from '../../../src/sinks/trim.ts';
import { testKey } from '../../support/engine.ts';
import { startPostgres, type TestPostgres } from '../../support/postgres.ts';

let server: TestPostgres;
let client: pg.Client;

beforeAll(async () => {
  server = await startPostgres();
  client = new pg.Client({ connectionString: server.url });
  await client.connect();
  await ensureCatalog(client, testKey);
  await client.query('CREATE TABLE millrace_data.o7 (ts bigint, w smallint, v1 int)');
  for (const sql of [...segmentDdl(7, 'a'), ...segmentDdl(7, 'b')]) await client.query(sql);
});
afterAll(async () => {
  await client?.end();
  await server?.stop();
});

const within = (limit: number): OutboxBounds => ({ limit, segment: 64_000_000 });

/** Epochs 20, 30, 40 are in the older segment, 50 to 100 in the one that is written to. */
beforeEach(async () => {
  await client.query(`
    DELETE FROM millrace.sink; DELETE FROM millrace.subscription; DELETE FROM millrace.outbox; TRUNCATE millrace_data.o7;
    UPDATE millrace.epoch SET ts = 100;
    INSERT INTO millrace.outbox (relation_id, since, segment) VALUES (7, 10, 'b');
    INSERT INTO millrace_data.o7a SELECT n * 10, 1, n FROM generate_series(2, 4) n;
    INSERT INTO millrace_data.o7b SELECT n * 10, 1, n FROM generate_series(5, 10) n`);
});

/** Timestamps of what is left, from where on there is everything, and where epochs write. */
async function left(): Promise<[string, number, string]> {
  const { rows } = await client.query("SELECT coalesce(string_agg(o.ts::text, ' ' ORDER BY o.ts), '') AS left FROM millrace_data.o7 o");
  const outbox = await client.query('SELECT since::int, segment FROM millrace.outbox');
  return [rows[0]?.left, outbox.rows[0]?.since, outbox.rows[0]?.segment];
}

const everything = '20 30 40 50 60 70 80 90 100';
const newer = '50 60 70 80 90 100';
const sink = `INSERT INTO millrace.sink (id, namespace, name, owner, definition, hold_ts) VALUES (1, 1, 's', 10, '{}', 40);
  INSERT INTO millrace.sink_version (sink_id, version, relation_id, columns, backfill) VALUES (1, 1, 7, '[]', 'snapshot')`;

it('what a sink has to deliver behind its first snapshot stays while that is being made', async () => {
  await client.query(`${sink}; UPDATE millrace.sink SET hold_ts = 30`);
  await trimOutboxes(client, within(1e9));
  expect(await left()).toEqual([everything, 10, 'b']);
  await client.query('UPDATE millrace.sink SET hold_ts = 40');
  await trimOutboxes(client, within(1e9));
  expect(await left()).toEqual([newer, 40, 'b']);
});

it('what a subscription may ask for stays: what it has not read, or not acknowledged', async () => {
  await client.query(`INSERT INTO millrace.subscription (relation_id, owner, cut_ts, ts) VALUES (7, 10, 30, 60);
    INSERT INTO millrace.subscription (relation_id, owner, cut_ts, namespace, name) VALUES (7, 10, 30, 1, 'd')`);
  await trimOutboxes(client, within(1e9));
  expect(await left()).toEqual([everything, 10, 'b']);
  await client.query("UPDATE millrace.subscription SET ts = 70 WHERE name = 'd'");
  await trimOutboxes(client, within(1e9));
  expect(await left()).toEqual([newer, 40, 'b']);
});

it('an outbox that has grown goes on in its other segment, and the one before goes as a whole once everybody has it', async () => {
  await client.query('INSERT INTO millrace.subscription (relation_id, owner, cut_ts, ts) VALUES (7, 10, 30, 60)');
  await trimOutboxes(client, within(64_000));
  expect(await left()).toEqual([newer, 40, 'a']);
  await client.query('INSERT INTO millrace_data.o7a VALUES (110, 1, 11); UPDATE millrace.epoch SET ts = 110');
  await trimOutboxes(client, within(64_000));
  expect(await left()).toEqual([`${newer} 110`, 40, 'a']);
  await client.query('UPDATE millrace.subscription SET ts = 100');
  await trimOutboxes(client, within(64_000));
  expect(await left()).toEqual(['110', 100, 'b']);
});

it('what has lain for minutes goes although it is little', async () => {
  await trimOutboxes(client, within(1e9));
  expect(await left()).toEqual([newer, 40, 'b']);
  await client.query("UPDATE millrace.outbox SET turned_at = now() - interval '6 minutes'");
  await trimOutboxes(client, within(1e9));
  await trimOutboxes(client, within(1e9));
  expect(await left()).toEqual(['', 100, 'a']);
});

it('a segment in use is left alone and nobody waits for it; once the other one is full its rows are deleted', async () => {
  const reader = new pg.Client({ connectionString: server.url });
  await reader.connect();
  try {
    await reader.query('BEGIN; SELECT FROM millrace_data.o7');
    await trimOutboxes(client, within(1e9));
    expect(await left()).toEqual([everything, 10, 'b']);
    await trimOutboxes(client, within(64_000));
    expect(await left()).toEqual([newer, 40, 'a']);
    // Its index knows what comes to where other rows were.
    await client.query('INSERT INTO millrace_data.o7a VALUES (110, 1, 11); SET enable_seqscan = off');
    await trimOutboxes(client, within(1e9));
    expect((await client.query('SELECT ts::int FROM millrace_data.o7a WHERE ts > 100')).rows).toEqual([{ ts: 110 }]);
  } finally {
    await client.query('RESET enable_seqscan');
    await reader.end();
  }
});

it('an epoch that writes to a segment while it is turned loses nothing', async () => {
  const epoch = new pg.Client({ connectionString: server.url });
  await epoch.connect();
  try {
    await epoch.query('BEGIN; INSERT INTO millrace_data.o7a VALUES (95, 1, 0)');
    await trimOutboxes(client, within(1e9));
    expect(await left()).toEqual([everything, 10, 'b']);
    await client.query('INSERT INTO millrace.subscription (relation_id, owner, cut_ts, ts) VALUES (7, 10, 30, 90)');
    await epoch.query('COMMIT');
    await trimOutboxes(client, within(1e9));
    expect((await left())[0]).toBe('20 30 40 50 60 70 80 90 95 100');
  } finally {
    await epoch.end();
  }
});

it('beyond the limit those that are furthest behind lose their place, first', async () => {
  await client.query(`${sink}; UPDATE millrace.sink_version SET cut_ts = 10; INSERT INTO millrace.sink_progress (sink_id, version, ts) VALUES (1, 1, 30);
    INSERT INTO millrace.subscription (relation_id, owner, cut_ts, ts) VALUES (7, 10, 10, 10), (7, 10, 10, 45)`);
  await trimOutboxes(client, within(0));
  expect((await client.query('SELECT overrun FROM millrace.subscription ORDER BY ts')).rows.map((row) => row.overrun)).toEqual([
    true,
    false,
  ]);
  expect(await left()).toEqual([everything, 10, 'b']);
  expect(await trimOutboxes(client, within(0))).toEqual([1]);
  await trimOutboxes(client, within(0));
  expect((await left()).slice(0, 2)).toEqual([newer, 40]);
});

it('what was thrown away is not held against those who are not behind', async () => {
  await client.query(`${sink}; UPDATE millrace.sink SET hold_ts = NULL; UPDATE millrace.sink_version SET cut_ts = 10;
    INSERT INTO millrace.sink_progress (sink_id, version, ts) VALUES (1, 1, 10);
    INSERT INTO millrace.sink (id, namespace, name, owner, definition) VALUES (2, 1, 'other', 10, '{}');
    INSERT INTO millrace.sink_version (sink_id, version, relation_id, columns, backfill, cut_ts) VALUES (2, 1, 7, '[]', 'snapshot', 10);
    INSERT INTO millrace.sink_progress (sink_id, version, ts) VALUES (2, 1, 95);
    INSERT INTO millrace_data.o7b SELECT 50, 1, n FROM generate_series(1, 20000) n`);
  const overrun: number[] = [];
  for (let round = 0; round < 5; round++) overrun.push(...(await trimOutboxes(client, within(400_000))));
  expect(overrun).toEqual([1]);
  // The segment still has a row that the other has not taken.
  await client.query('UPDATE millrace.sink_progress SET ts = 100 WHERE sink_id = 2');
  for (let round = 0; round < 3; round++) expect(await trimOutboxes(client, within(400_000))).toEqual([]);
  expect((await left()).slice(0, 2)).toEqual(['', 100]);
  expect((await client.query("SELECT pg_total_relation_size('millrace_data.o7b') < 100000 AS small")).rows).toEqual([{ small: true }]);
});

it('one without a name ends with its session, and is kept a minute longer', async () => {
  await client.query(`INSERT INTO millrace.subscription (relation_id, owner, cut_ts, pid, backend_start) VALUES (7, 10, 50, 0, now());
    INSERT INTO millrace.subscription (relation_id, owner, cut_ts, pid, backend_start)
    SELECT 7, 10, 60, a.pid, a.backend_start FROM pg_stat_activity a WHERE a.pid = pg_backend_pid()`);
  await endSubscriptions(client);
  const states = 'SELECT cut_ts::int, pid IS NULL AS free, ended_at IS NULL AS going FROM millrace.subscription ORDER BY cut_ts';
  expect((await client.query(states)).rows).toEqual([
    { cut_ts: 50, free: true, going: false },
    { cut_ts: 60, free: false, going: true },
  ]);
  await client.query("UPDATE millrace.subscription SET ended_at = ended_at - interval '61 seconds'");
  await endSubscriptions(client);
  expect((await client.query(states)).rows.length).toBe(1);
});
