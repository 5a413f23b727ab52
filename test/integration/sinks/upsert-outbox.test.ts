/**
 * What an outbox holds of changed rows: where all who read it take upserts by the key of the table, only what they are now; and what they were
 * before, too, once somebody wants to know.
 */
import { afterAll, beforeAll, expect, it, vi } from 'vitest';
import type { TestPostgres } from '../../support/postgres.ts';
import { eventually, type Stage, type TestClient } from '../statements/stage.ts';
import { startTargetStage } from './target-stage.ts';

let stage: Stage;
let server: TestPostgres;
let client: TestClient;
let origin: TestClient;
let target: TestClient;

beforeAll(async () => {
  ({ stage, server, client, origin, target } = await startTargetStage());
  await origin.query('CREATE TABLE item (id int PRIMARY KEY, n int); INSERT INTO item VALUES (1, 0), (2, 0), (3, 0)');
  await client.query(`
    CREATE TABLE item FROM SOURCE s (REFERENCE public.item);
    CREATE SINK copy FROM item INTO POSTGRES CONNECTION warehouse (TABLE 'copy') KEY (id)`);
}, 180_000);
afterAll(async () => {
  await stage?.stop();
  await server?.stop();
});

/** Weights and rows that a transaction at the origin, and nothing before it, brings into the outbox. */
async function outboxOf(sql: string): Promise<unknown[][]> {
  const seen = `(SELECT coalesce(max(o.ts), 0) FROM millrace_data.o${await relation()} o)`;
  const [[last] = []] = await client.rows(`SELECT ${seen}::text`);
  await origin.query(sql);
  const changes = `SELECT o.w::int, o.v1, o.v2 FROM millrace_data.o${await relation()} o WHERE o.ts > ${last} ORDER BY o.v1, o.w, o.v2`;
  await vi.waitFor(async () => expect(await client.rows(changes)).not.toEqual([]), { timeout: 10_000 });
  await becomesItem();
  return await client.rows(changes);
}

const relation = async (): Promise<unknown> => (await client.rows('SELECT b.relation_id::text FROM millrace.outbox b'))[0]?.[0];

async function becomesItem(): Promise<void> {
  const wanted = await origin.rows('SELECT * FROM item ORDER BY id');
  await eventually(client, 'SELECT * FROM item ORDER BY id', wanted);
  await eventually(target, 'SELECT * FROM copy ORDER BY id', wanted);
}

it('of an update only what the row is now, of a delete what it was', async () => {
  await becomesItem();
  expect(await outboxOf('UPDATE item SET n = 1 WHERE id < 3')).toEqual([
    [1, 1, 1],
    [1, 2, 1],
  ]);
  expect(await outboxOf('DELETE FROM item WHERE id = 2')).toEqual([[-1, 2, 1]]);
  expect(await outboxOf('BEGIN; DELETE FROM item WHERE id = 1; INSERT INTO item VALUES (1, 5), (4, 4); COMMIT')).toEqual([
    [1, 1, 5],
    [1, 4, 4],
  ]);
});

it('a row that moves to another key leaves the one before', async () => {
  expect(await outboxOf('UPDATE item SET id = 7 WHERE id = 4')).toEqual([
    [-1, 4, 4],
    [1, 7, 4],
  ]);
});

it('many rows at once: each key as it is at the end', async () => {
  await outboxOf(`INSERT INTO item SELECT g, 0 FROM generate_series(100, 6000) g`);
  const changes = await outboxOf(
    'BEGIN; UPDATE item SET n = n + 1 WHERE id >= 100; DELETE FROM item WHERE id >= 3000; UPDATE item SET n = n + 1 WHERE id >= 100; COMMIT',
  );
  expect(changes.filter(([w]) => w === 1)).toEqual(Array.from({ length: 2900 }, (_, index) => [1, index + 100, 2]));
  expect(changes.filter(([w]) => w === -1).length).toBe(3001);
  await outboxOf('DELETE FROM item WHERE id >= 100');
});

it('rows that a large transaction changes, or makes, and then deletes were left at the target', async () => {
  await outboxOf('INSERT INTO item SELECT g, 0 FROM generate_series(1001, 41000) g');
  await outboxOf(`BEGIN;
    UPDATE item SET n = n + 1 WHERE id > 1000;
    INSERT INTO item SELECT g, 0 FROM generate_series(100001, 140000) g;
    DELETE FROM item WHERE id > 1000 AND id % 2 = 0;
    COMMIT`);
  expect(await target.rows('SELECT count(*)::int FROM copy WHERE id > 1000')).toEqual([[40_000]]);
  await outboxOf('DELETE FROM item WHERE id > 1000');
});

it('a subscription has all of it, from its beginning on; what came before cannot be asked for', async () => {
  const [[before] = []] = await client.rows('SELECT e.ts::text FROM millrace.epoch e');
  await outboxOf('UPDATE item SET n = 10 WHERE id = 1');
  await client.query('BEGIN; DECLARE c CURSOR FOR SUBSCRIBE item');
  expect((await client.rows("FETCH ALL c WITH (timeout = '0s')")).length).toBe(3);
  expect(await outboxOf('UPDATE item SET n = 11 WHERE id = 1')).toEqual([
    [-1, 1, 10],
    [1, 1, 11],
  ]);
  const changes = await client.rows("FETCH 2 c WITH (timeout = '5s')");
  expect(changes.map((row) => row.slice(1).map(String))).toEqual([
    ['-1', '1', '10'],
    ['1', '1', '11'],
  ]);
  const other = await stage.connect();
  expect(await other.failure(`COPY (SUBSCRIBE item AS OF ${String(before)} UP TO ${Number(before) + 60_000}) TO STDOUT`)).toMatch(
    /^ERROR 22023/,
  );
  await other.end();
  await client.query('COMMIT');
});

it('once nobody reads it any more, updates are lean again', async () => {
  // What it would have read is kept for a minute.
  await vi.waitFor(
    async () => {
      await client.query("UPDATE millrace.subscription SET ended_at = ended_at - interval '1 minute'");
      expect(await client.rows('SELECT whole_since IS NULL FROM millrace.outbox')).toEqual([[true]]);
    },
    { timeout: 20_000, interval: 100 },
  );
  expect(await outboxOf('UPDATE item SET n = 12 WHERE id = 1')).toEqual([[1, 1, 12]]);
});
