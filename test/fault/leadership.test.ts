/**
 * Two engines on one database: one leads, and when it is gone the other takes over within seconds; no change is lost or made twice.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { bankDifferences, bankProblems, bankSchema, bankStatements, startBankLoad } from '../support/bank.ts';
import { type ExtendedClient, extendedClient, startEngine, type TestEngine, texts } from '../support/engine.ts';
import { startPostgres, type TestPostgres } from '../support/postgres.ts';

let origin: TestPostgres;
let upstream: TestPostgres;
let admin: pg.Client;
let extended: ExtendedClient;
let leader: TestEngine;
let follower: TestEngine;

beforeAll(async () => {
  origin = await startPostgres({ settings: { wal_level: 'logical' } });
  upstream = await startPostgres({});
  admin = new pg.Client({ connectionString: origin.url });
  await admin.connect();
  await admin.query(`${bankSchema}; CREATE PUBLICATION p FOR ALL TABLES; CREATE TABLE beat (n integer PRIMARY KEY)`);
  extended = await extendedClient(upstream.address);
  const [connection, ...statements] = bankStatements(origin);
  await extended.run(connection ?? '');
  leader = startEngine(upstream.address);
  for (const statement of statements) await extended.run(statement);
  await extended.run('CREATE TABLE live.beat FROM SOURCE bank (REFERENCE public.beat)');
}, 120_000);

afterAll(async () => {
  await leader?.stop();
  await follower?.stop();
  await extended?.end();
  await admin?.end();
  await Promise.all([origin?.stop(), upstream?.stop()]);
});

/** Backends of engines: all, and those that hold the leader's lock. */
async function engines(): Promise<{ all: number; leading: string[] }> {
  const all = await texts(extended.client, "SELECT pid FROM pg_stat_activity WHERE application_name = 'millrace epochs'");
  const leading = await texts(
    extended.client,
    "SELECT l.pid FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE l.locktype = 'advisory' AND l.granted AND a.application_name = 'millrace epochs'",
  );
  return { all: all.length, leading: leading.map((row) => row[0] ?? '') };
}

/** How long until a row written now is seen, in ms. */
async function beat(n: number): Promise<number> {
  const begun = performance.now();
  await admin.query('INSERT INTO beat VALUES ($1)', [n]);
  while ((await texts(extended.client, `SELECT n FROM live.beat WHERE n = ${n}`)).length === 0) {
    if (performance.now() - begun > 30_000) throw new Error('no engine has taken over');
    await sleep(10);
  }
  return performance.now() - begun;
}

test('one of two engines leads, the other takes over', async () => {
  const load = startBankLoad(origin, { rate: 300 });
  const takeovers: number[] = [];
  for (let round = 0; round < 4; round++) {
    follower = startEngine(upstream.address);
    await expect.poll(async () => (await engines()).all, { timeout: 10_000 }).toBe(2);
    await sleep(700);
    expect((await engines()).leading).toHaveLength(1);
    await leader.stop();
    takeovers.push(await beat(round));
    expect((await engines()).leading).toHaveLength(1);
    expect(await bankProblems(extended.client)).toEqual([]);
    leader = follower;
  }
  expect(Math.max(...takeovers)).toBeLessThan(5000);

  // The leader's session is ended under it: with the lock gone it may not go on, whoever leads then.
  follower = startEngine(upstream.address);
  await expect.poll(async () => (await engines()).all, { timeout: 10_000 }).toBe(2);
  const [before] = (await engines()).leading;
  await extended.client.query('SELECT pg_terminate_backend($1)', [before]);
  expect(await beat(100)).toBeLessThan(5000);
  const { leading } = await engines();
  expect(leading).toHaveLength(1);
  expect(leading[0]).not.toBe(before);

  await load.stop();
  await expect.poll(() => bankDifferences(extended.client, admin), { timeout: 30_000, interval: 200 }).toEqual([]);
  expect(await bankProblems(extended.client)).toEqual([]);
}, 120_000);
