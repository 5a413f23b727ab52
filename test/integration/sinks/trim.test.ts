/** Outboxes are trimmed of what every reader has, and of nothing else. */
import pg from 'pg';
import { afterAll, beforeAll, beforeEach, expect, it } from 'vitest';
import { ensureCatalog } from '../../../src/catalog/install.ts';
import { endSubscriptions, trimOutboxes } from '../../../src/sinks/trim.ts';
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
});
afterAll(async () => {
  await client?.end();
  await server?.stop();
});

beforeEach(async () => {
  await client.query(`
    DELETE FROM millrace.sink; DELETE FROM millrace.subscription; DELETE FROM millrace.outbox; TRUNCATE millrace_data.o7;
    UPDATE millrace.epoch SET ts = 100;
    INSERT INTO millrace.outbox VALUES (7, 10);
    INSERT INTO millrace_data.o7 SELECT n * 10, 1, n FROM generate_series(2, 10) n`);
});

/** Timestamps of what is left, and from where on there is everything. */
async function left(): Promise<[string, number]> {
  const { rows } = await client.query("SELECT coalesce(string_agg(o.ts::text, ' ' ORDER BY o.ts), '') AS left FROM millrace_data.o7 o");
  const since = await client.query('SELECT since::int FROM millrace.outbox');
  return [rows[0]?.left, since.rows[0]?.since];
}

const sink = `INSERT INTO millrace.sink (id, namespace, name, owner, definition, hold_ts) VALUES (1, 1, 's', 10, '{}', 40);
  INSERT INTO millrace.sink_version (sink_id, version, relation_id, columns, backfill) VALUES (1, 1, 7, '[]', 'snapshot')`;

it('what a sink has to deliver behind its first snapshot stays while that is being made', async () => {
  await client.query(sink);
  await trimOutboxes(client, 1e9);
  expect(await left()).toEqual(['50 60 70 80 90 100', 40]);
});

it('what a subscription may ask for stays: what it has not read, or not acknowledged', async () => {
  await client.query(`INSERT INTO millrace.subscription (relation_id, owner, cut_ts, ts) VALUES (7, 10, 30, 60);
    INSERT INTO millrace.subscription (relation_id, owner, cut_ts, namespace, name) VALUES (7, 10, 50, 1, 'd')`);
  await trimOutboxes(client, 1e9);
  expect(await left()).toEqual(['60 70 80 90 100', 50]);
  await client.query("UPDATE millrace.subscription SET ts = 70 WHERE name = 'd'");
  await trimOutboxes(client, 1e9);
  expect(await left()).toEqual(['70 80 90 100', 60]);
});

it('beyond the limit those that are furthest behind lose their place, first', async () => {
  await client.query(`${sink}; UPDATE millrace.sink_version SET cut_ts = 10; INSERT INTO millrace.sink_progress (sink_id, version, ts) VALUES (1, 1, 60);
    INSERT INTO millrace.subscription (relation_id, owner, cut_ts, ts) VALUES (7, 10, 10, 10), (7, 10, 10, 80)`);
  await trimOutboxes(client, 0);
  expect((await client.query('SELECT overrun FROM millrace.subscription ORDER BY ts')).rows.map((row) => row.overrun)).toEqual([
    true,
    false,
  ]);
  await trimOutboxes(client, 0);
  expect(await left()).toEqual(['70 80 90 100', 60]);
  expect(await trimOutboxes(client, 0)).toEqual([1]);
  await trimOutboxes(client, 0);
  expect(await left()).toEqual(['90 100', 80]);
});

it('what was thrown away is not held against those who are not behind', async () => {
  await client.query(`${sink}; UPDATE millrace.sink SET hold_ts = NULL; UPDATE millrace.sink_version SET cut_ts = 10;
    INSERT INTO millrace.sink_progress (sink_id, version, ts) VALUES (1, 1, 10);
    INSERT INTO millrace.sink (id, namespace, name, owner, definition) VALUES (2, 1, 'other', 10, '{}');
    INSERT INTO millrace.sink_version (sink_id, version, relation_id, columns, backfill, cut_ts) VALUES (2, 1, 7, '[]', 'snapshot', 10);
    INSERT INTO millrace.sink_progress (sink_id, version, ts) VALUES (2, 1, 95);
    INSERT INTO millrace_data.o7 SELECT 50, 1, n FROM generate_series(1, 20000) n`);
  const overrun: number[] = [];
  for (let round = 0; round < 5; round++) overrun.push(...(await trimOutboxes(client, 400_000)));
  expect(overrun).toEqual([1]);
  expect(await left()).toEqual(['100', 90]);
  expect((await client.query("SELECT pg_total_relation_size('millrace_data.o7') < 400000 AS small")).rows).toEqual([{ small: true }]);
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
