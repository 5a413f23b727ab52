/**
 * The network between the engine and its servers is cut, or falls silent without ending a connection, while writes go on: the engine notices, comes
 * back by itself, and nothing is lost or there twice.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { type ExtendedClient, extendedClient, startEngine, type TestEngine, texts } from '../support/engine.ts';
import {
  largeTransaction,
  ledgerDifferences,
  ledgerLines,
  ledgerProblems,
  ledgerSchema,
  ledgerStatements,
  startLedgerLoad,
} from '../support/ledger.ts';
import { startPostgres, type TestPostgres } from '../support/postgres.ts';
import { type Relay, startRelay } from '../support/relay.ts';

let origin: TestPostgres;
let upstream: TestPostgres;
let toOrigin: Relay;
let toUpstream: Relay;
let admin: pg.Client;
let extended: ExtendedClient;
let engine: TestEngine;

beforeEach(async () => {
  [origin, upstream] = await Promise.all([startPostgres({ settings: { wal_level: 'logical' } }), startPostgres({})]);
  [toOrigin, toUpstream] = await Promise.all([startRelay(origin), startRelay(upstream)]);
  admin = new pg.Client({ connectionString: origin.url });
  await admin.connect();
  await admin.query(`${ledgerSchema}; CREATE PUBLICATION p FOR ALL TABLES`);
  extended = await extendedClient(upstream.address);
  const [connection, ...statements] = ledgerStatements(toOrigin);
  await extended.run(connection ?? '');
  engine = startEngine({ ...upstream.address, port: toUpstream.port });
  for (const statement of statements) await extended.run(statement);
}, 120_000);

afterEach(async () => {
  await engine?.stop();
  await extended?.end();
  await admin?.end();
  await Promise.all([toOrigin?.stop(), toUpstream?.stop()]);
  await Promise.all([origin?.stop(), upstream?.stop()]);
});

/** Waits for lines beyond those there are now; answers how long that took, in ms. */
async function moves(): Promise<number> {
  const begun = performance.now();
  const before = await ledgerLines(extended.client);
  await expect.poll(() => ledgerLines(extended.client), { timeout: 60_000, interval: 50 }).toBeGreaterThan(before);
  return performance.now() - begun;
}

const sourceStatus = (): Promise<string> =>
  texts(extended.client, 'SELECT status, error FROM millrace.sources').then(([row]) => row?.join('|') ?? '');

/** Runs `faults` while writes go on, then waits until everything is as at the origin. */
async function under(faults: () => Promise<void>): Promise<void> {
  const load = startLedgerLoad(origin, 150);
  await moves();
  await faults();
  expect(await ledgerProblems(extended.client)).toEqual([]);
  const written = await load.stop();
  await expect.poll(() => ledgerDifferences(extended.client, admin), { timeout: 60_000, interval: 200 }).toEqual([]);
  expect(await ledgerProblems(extended.client)).toEqual([]);
  expect(await ledgerLines(extended.client)).toBe(written.reduce((sum, n) => sum + n, 0));
}

test('connections to the origin are cut again and again, in large transactions too', async () => {
  await under(async () => {
    for (let i = 0; i < 6; i++) {
      const large = i % 2 === 0 ? admin.query(largeTransaction) : sleep(0);
      await sleep(Math.random() * 400);
      toOrigin.cut(i % 3 === 0);
      await large;
      await sleep(Math.random() * 300);
      toOrigin.heal();
      expect(await ledgerProblems(extended.client)).toEqual([]);
    }
    await moves();
  });
}, 120_000);

test('the origin falls silent: this is noticed and told, and when it speaks again the stream goes on', async () => {
  await under(async () => {
    toOrigin.hang();
    const silent = performance.now();
    await expect.poll(sourceStatus, { timeout: 40_000 }).toMatch(/^stalled\|nothing heard from the origin for \d+ s$/);
    const noticed = performance.now() - silent;
    toOrigin.forget();
    const back = await moves();
    console.log(`silent origin: noticed after ${(noticed / 1000).toFixed(1)} s, back ${(back / 1000).toFixed(1)} s after the network`);
  });
}, 180_000);

test('connections to the upstream are cut again and again, in large transactions too', async () => {
  await under(async () => {
    for (let i = 0; i < 5; i++) {
      const large = i % 2 === 0 ? admin.query(largeTransaction) : sleep(0);
      await sleep(Math.random() * 600);
      toUpstream.cut(i % 3 === 0);
      await large;
      await sleep(Math.random() * 500);
      toUpstream.heal();
      expect(await ledgerProblems(extended.client)).toEqual([]);
      await moves();
    }
  });
}, 120_000);

test('the upstream falls silent: the engine ends, and the next one takes the lock from the session that is left', async () => {
  await under(async () => {
    const pid = engine.pid();
    toUpstream.hang();
    const silent = performance.now();
    await expect.poll(() => engine.pid(), { timeout: 40_000 }).not.toBe(pid);
    const noticed = performance.now() - silent;
    toUpstream.forget();
    const back = await moves();
    console.log(`silent upstream: noticed after ${(noticed / 1000).toFixed(1)} s, back ${(back / 1000).toFixed(1)} s after the network`);
  });
}, 180_000);
