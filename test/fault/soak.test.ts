/**
 * A bank under load, its live copy and views through a real Millrace whose engine is killed every few seconds: at every read the books balance
 * and each view equals its query; at the end everything equals the origin. MILLRACE_SOAK_SECONDS sets how long.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { bankDifferences, bankProblems, bankSchema, bankStatements, startBankLoad } from '../support/bank.ts';
import { startMillrace, type TestMillrace } from '../support/millrace.ts';
import { startPostgres, type TestPostgres } from '../support/postgres.ts';

const seconds = Number(process.env['MILLRACE_SOAK_SECONDS'] ?? 15);
/** 0: as fast as the writers can. */
const rate = Number(process.env['MILLRACE_SOAK_RATE'] ?? 400);

let origin: TestPostgres;
let upstream: TestPostgres;
let millrace: TestMillrace;
let admin: pg.Client;
let client: pg.Client;

beforeAll(async () => {
  origin = await startPostgres({ settings: { wal_level: 'logical' } });
  upstream = await startPostgres({});
  admin = new pg.Client({ connectionString: origin.url });
  await admin.connect();
  await admin.query(`${bankSchema}; CREATE PUBLICATION p FOR ALL TABLES`);
  millrace = await startMillrace({ upstream: upstream.address });
  client = new pg.Client({ connectionString: millrace.url() });
  await client.connect();
  for (const statement of bankStatements(origin)) await client.query(statement);
}, 120_000);

afterAll(async () => {
  await client?.end();
  await admin?.end();
  await millrace?.stop();
  await Promise.all([origin?.stop(), upstream?.stop()]);
});

test(`a bank under load for ${seconds} s, its engine killed again and again`, { timeout: (seconds + 150) * 1000 }, async () => {
  const load = startBankLoad(origin, rate > 0 ? { rate } : {});
  const end = Date.now() + seconds * 1000;
  let kills = 0;
  const killer = (async () => {
    while (Date.now() < end) {
      await sleep(1000 + Math.random() * 3000);
      for (const pid of millrace.enginePids()) {
        process.kill(pid, 'SIGKILL');
        kills++;
      }
    }
  })();
  let reads = 0;
  let slowest = 0;
  while (Date.now() < end) {
    const begun = performance.now();
    expect(await bankProblems(client)).toEqual([]);
    slowest = Math.max(slowest, performance.now() - begun);
    reads++;
    await sleep(20);
  }
  const transactions = await load.stop();
  await killer;
  await expect.poll(() => bankDifferences(client, admin), { timeout: 90_000, interval: 200 }).toEqual([]);
  expect(await bankProblems(client)).toEqual([]);
  const epochs = await client.query<{ epoch: string }>('SELECT epoch FROM millrace.epoch');
  console.log(
    `${seconds} s: ${transactions} transactions, ${kills} kills, ${epochs.rows[0]?.epoch} epochs, ${reads} reads of everything (slowest ${slowest.toFixed(0)} ms), 0 mismatches`,
  );
  expect(kills).toBeGreaterThan(2);
  expect(transactions).toBeGreaterThan(100);
});
