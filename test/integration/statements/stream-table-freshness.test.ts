/** What a refresh that was asked for shows: everything that was committed before, whether an epoch was needed to know it or not. */
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type Stage, startStage, type TestClient } from './stage.ts';

let stage: Stage;
let client: TestClient;

beforeAll(async () => {
  stage = await startStage({ upstream: { settings: { wal_level: 'logical' } } });
  client = await stage.connect();
}, 120_000);
afterAll(() => stage?.stop());

const refresh = (name: string): Promise<unknown> => client.query(`SELECT pgtrickle.refresh_stream_table('${name}')`);
const create = (name: string, query: string): Promise<unknown> =>
  client.query(`SELECT pgtrickle.create_stream_table('${name}', $q$${query}$q$, schedule => '1h')`);
const actions = (name: string): Promise<unknown[][]> =>
  client.rows(`SELECT action FROM pgtrickle.get_refresh_history('${name}', 1000) ORDER BY refresh_id`);

test('what one session commits is there after the refresh of another, beside writers whose transactions stay open', async () => {
  await client.query('CREATE TABLE counter (id int PRIMARY KEY, n int NOT NULL); INSERT INTO counter VALUES (1, 0), (2, 0), (3, 0)');
  await create('counters', 'SELECT id, n FROM counter');
  const writer = await stage.direct(stage.upstream);
  const open = await stage.direct(stage.upstream);
  for (let i = 1; i <= 60; i++) {
    await open.query(i % 2 === 1 ? 'BEGIN; UPDATE counter SET n = n + 1 WHERE id = 2' : 'COMMIT');
    // Every third time nothing is written.
    if (i % 3 !== 0) await writer.query(`UPDATE counter SET n = ${i} WHERE id = 1`);
    await refresh('counters');
    const expected = [
      [1, i % 3 === 0 ? i - 1 : i],
      [2, Math.floor(i / 2)],
      [3, 0],
    ];
    expect(await client.rows('TABLE counters ORDER BY id')).toEqual(expected);
  }
});

test('where nothing has changed that is noted, and the time up to which it is known; changes of other columns and tables are none', async () => {
  await client.query(
    'CREATE TABLE kept (id int PRIMARY KEY, a int, b int); INSERT INTO kept VALUES (1, 1, 1); CREATE TABLE other (id int)',
  );
  await create('keeps', 'SELECT id, a FROM kept');
  const asOf = async (): Promise<unknown> =>
    (
      await client.rows("SELECT extract(epoch FROM data_timestamp)::float8 FROM pgtrickle.pgt_stream_tables WHERE pgt_name = 'keeps'")
    )[0]?.[0];
  await refresh('keeps');
  const before = await asOf();
  await client.query('UPDATE kept SET b = 2; INSERT INTO other VALUES (1)');
  await refresh('keeps');
  expect(await asOf()).toBeGreaterThan(before as number);
  await client.query('TRUNCATE kept');
  await refresh('keeps');
  expect(await client.rows('TABLE keeps')).toEqual([]);
  expect((await actions('keeps')).map(([action]) => action)).toEqual(['FULL', 'NO_DATA', 'NO_DATA', 'FULL']);
});

test('inside a transaction it is asked for at its end, with what the transaction itself wrote; rolled back it is not', async () => {
  await client.query('CREATE TABLE mine (id int PRIMARY KEY)');
  await create('mines', 'SELECT id FROM mine');
  await client.query("BEGIN; SAVEPOINT s; SELECT pgtrickle.refresh_stream_table('mines'); INSERT INTO mine VALUES (1); COMMIT");
  expect(await client.rows('TABLE mines')).toEqual([[1]]);
  await client.query("BEGIN; INSERT INTO mine VALUES (2); SELECT pgtrickle.refresh_stream_table('mines'); ROLLBACK");
  await client.query("SELECT pgtrickle.write_and_refresh('INSERT INTO mine VALUES (3)', 'mines')");
  expect(await client.rows('TABLE mines ORDER BY id')).toEqual([[1], [3]]);
});

test('one statement refreshes many, and says which of them failed', async () => {
  await client.query('CREATE TABLE divided (id int PRIMARY KEY, by int NOT NULL); INSERT INTO divided VALUES (1, 1)');
  await create('quotients', 'SELECT id, 10 / by AS q FROM divided');
  await create('divisors', 'SELECT id, by FROM divided');
  await client.query('INSERT INTO divided VALUES (2, 5)');
  const both = "SELECT pgtrickle.refresh_stream_table(n) FROM unnest('{quotients,divisors}'::text[]) n";
  await client.query(both);
  expect(await client.rows('SELECT q, by FROM quotients JOIN divisors USING (id) ORDER BY id')).toEqual([
    [10, 1],
    [2, 5],
  ]);
  await client.query('UPDATE divided SET by = 0 WHERE id = 2');
  await expect(client.query(both)).rejects.toThrow('refresh of stream table public.quotients failed: division by zero');
  await expect.poll(() => client.rows('SELECT by FROM divisors ORDER BY id'), { timeout: 20_000 }).toEqual([[1], [0]]);
});
