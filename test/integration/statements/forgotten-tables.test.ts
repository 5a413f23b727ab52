/** Tables that come into the catalog with the first stream table over them and leave it with the last. */
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { startMillrace, type TestMillrace } from '../../support/millrace.ts';
import { startPostgres, type TestPostgres } from '../../support/postgres.ts';

let upstream: TestPostgres;
let millrace: TestMillrace;
let user: pg.Client;
let beside: pg.Client;

beforeAll(async () => {
  upstream = await startPostgres({ settings: { wal_level: 'logical' } });
  millrace = await startMillrace({ upstream: upstream.address });
  user = new pg.Client({ connectionString: millrace.url() });
  beside = new pg.Client({ connectionString: upstream.url });
  await user.connect();
  await beside.connect();
});

afterAll(async () => {
  await user?.end();
  await beside?.end();
  await millrace?.stop();
  await upstream?.stop();
});

test('a stream table over a table that leaves the catalog at that moment', async () => {
  await user.query('CREATE TABLE t (id integer PRIMARY KEY, v integer); INSERT INTO t VALUES (1, 1)');
  await user.query("SELECT pgtrickle.create_stream_table('first', 'SELECT id, v FROM t', schedule => '1h')");
  await user.query("SELECT pgtrickle.drop_stream_table('first')");
  const known = async (): Promise<string | undefined> =>
    (await beside.query<{ id: string }>("SELECT relation_id AS id FROM millrace.base_table WHERE table_oid = 't'::regclass")).rows[0]?.id;
  // What the engine does when nobody reads it, here at a moment of our choosing: it is in the catalog when it is looked up, and not when it is used.
  await expect.poll(known, { timeout: 10_000 }).toBeUndefined();
  const { rows } = await beside.query<{ id: string }>(`
    WITH r AS (INSERT INTO millrace.relation (id, kind) VALUES (nextval('millrace.object_id'), 'base') RETURNING id)
    INSERT INTO millrace.base_table (relation_id, table_oid, columns, key_attnums)
    SELECT id, 't'::regclass, '[{"attnum": 1, "name": "id", "type": "integer"}, {"attnum": 2, "name": "v", "type": "integer"}]', '{1}' FROM r
    RETURNING relation_id AS id`);
  const id = rows[0]?.id;
  await beside.query('BEGIN; LOCK TABLE millrace.base_table IN ROW EXCLUSIVE MODE');
  await beside.query('SELECT FROM millrace.relation WHERE id = $1 FOR UPDATE', [id]);
  const created = user.query("SELECT pgtrickle.create_stream_table('second', 'SELECT id, v FROM t', schedule => '1h')");
  created.catch(() => undefined);
  const waits = async (): Promise<unknown> =>
    (
      await beside.query(
        `SELECT count(*)::integer AS n FROM pg_locks l JOIN pg_stat_activity a USING (pid)
          WHERE NOT l.granted AND l.relation = 'millrace.base_table'::regclass AND a.application_name NOT LIKE 'millrace%'`,
      )
    ).rows[0]?.n;
  for (let tries = 0; (await waits()) !== 1 && tries < 200; tries++) await sleep(20);
  expect(await waits()).toBe(1);
  await beside.query('DELETE FROM millrace.relation WHERE id = $1', [id]);
  await beside.query('COMMIT');
  await created;
  expect((await user.query('SELECT * FROM second')).rows).toEqual([{ id: 1, v: 1 }]);
  await user.query('INSERT INTO t VALUES (2, 2)');
  await user.query("SELECT pgtrickle.refresh_stream_table('second')");
  expect((await user.query('SELECT * FROM second ORDER BY id')).rows).toHaveLength(2);
});

test('a stream table over a table whose capture ends at that moment', async () => {
  const { rows } = await beside.query<{ id: string }>("SELECT relation_id AS id FROM millrace.base_table WHERE table_oid = 't'::regclass");
  const delta = `d${rows[0]?.id}`;
  const leader = async (): Promise<unknown> => (await beside.query('SELECT token FROM millrace.epoch')).rows;
  const before = await leader();
  // What the engine does when nobody wants the changes of a table any more, here while the next stream table over it begins.
  await beside.query(`BEGIN; LOCK TABLE millrace_data.${delta} IN ACCESS EXCLUSIVE MODE`);
  // Taken in by the epoch at which the stream table begins.
  await user.query('INSERT INTO t VALUES (3, 3)');
  const created = user.query("SELECT pgtrickle.create_stream_table('third', 'SELECT count(*) AS n FROM t', schedule => '1h')");
  created.catch(() => undefined);
  const waits = async (): Promise<unknown> =>
    (
      await beside.query(
        `SELECT count(*)::integer AS n FROM pg_locks l JOIN pg_stat_activity a USING (pid)
          WHERE NOT l.granted AND l.relation = 'millrace_data.${delta}'::regclass AND a.application_name = 'millrace epochs'`,
      )
    ).rows[0]?.n;
  for (let tries = 0; (await waits()) !== 1 && tries < 200; tries++) await sleep(20);
  expect(await waits()).toBe(1);
  await beside.query(`DROP TABLE millrace_data.${delta}; COMMIT`);
  await created;
  expect((await user.query('SELECT n FROM third')).rows).toEqual([{ n: '3' }]);
  expect(await leader()).toEqual(before);
});
