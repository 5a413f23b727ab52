/**
 * A stream table that was suspended and goes on, and what reads it.
 */
import pg from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { startEngine, type TestEngine } from '../../support/engine.ts';
import { startPostgres, type TestPostgres } from '../../support/postgres.ts';
import { createStream, installCatalog, streamReady, streamRow } from '../../support/streams.ts';

let upstream: TestPostgres;
let client: pg.Client;
let engine: TestEngine;

beforeAll(async () => {
  upstream = await startPostgres({ version: 18, settings: { wal_level: 'logical' } });
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

test('what reads a stream table follows when that is filled again, without waiting for its next change', async () => {
  await client.query('CREATE TABLE part (id integer PRIMARY KEY, v integer); INSERT INTO part SELECT g, g FROM generate_series(1, 100) g');
  const shares = await createStream(client, 'shares', 'SELECT id, 100 / v AS q FROM part', { schedule: '1s' });
  await streamReady(client, shares);
  await streamReady(client, await createStream(client, 'total', 'SELECT count(*) AS n, sum(q) AS s FROM shares', { schedule: '1s' }));
  await client.query('UPDATE part SET v = 0 WHERE id = 7');
  await expect.poll(async () => (await streamRow(client, shares))['status'], { timeout: 30_000 }).toBe('SUSPENDED');
  await client.query('UPDATE part SET v = 1 WHERE id < 50');
  await client.query("SELECT pgtrickle.resume_stream_table('shares')");
  const wanted = (await client.query('SELECT count(*) AS n, sum(100 / v) AS s FROM part')).rows;
  // After its last failure it would have been tried again in sixteen seconds.
  await expect.poll(async () => (await client.query('SELECT n, s FROM total')).rows, { timeout: 8_000 }).toEqual(wanted);
});
