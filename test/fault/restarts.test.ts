/**
 * Origin and upstream end, in order or by kill -9 of every process, while writes go on: everything catches up by itself.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { bankDifferences, bankProblems, bankSchema, bankStatements, startBankLoad } from '../support/bank.ts';
import { startMillrace, type TestMillrace } from '../support/millrace.ts';
import { withClient } from '../support/one-client.ts';
import { startPostgres, type TestPostgres } from '../support/postgres.ts';

let origin: TestPostgres;
let upstream: TestPostgres;
let millrace: TestMillrace;

beforeAll(async () => {
  origin = await startPostgres({ settings: { wal_level: 'logical' } });
  upstream = await startPostgres({});
  await withClient(origin.url, (admin) => admin.query(`${bankSchema}; CREATE PUBLICATION p FOR ALL TABLES`));
  millrace = await startMillrace({ upstream: upstream.address });
  await withClient(millrace.url(), async (client) => {
    for (const statement of bankStatements(origin)) await client.query(statement);
  });
}, 120_000);

afterAll(async () => {
  await millrace?.stop();
  await Promise.all([origin?.stop(), upstream?.stop()]);
});

/** With no writes going on: waits until everything equals the origin. */
async function caughtUp(): Promise<void> {
  await expect
    .poll(() => withClient(millrace.url(), (live) => withClient(origin.url, (admin) => bankDifferences(live, admin))), {
      timeout: 40_000,
      interval: 300,
    })
    .toEqual([]);
  expect(await withClient(millrace.url(), bankProblems)).toEqual([]);
}

const faults: readonly (readonly [string, () => Promise<void>])[] = [
  ['the origin is restarted', () => origin.restart()],
  [
    'the origin is killed',
    async () => {
      await origin.kill9();
      await sleep(300);
      await origin.restart();
    },
  ],
  ['the upstream is restarted', () => upstream.restart()],
  [
    'the upstream is killed',
    async () => {
      await upstream.kill9();
      await sleep(300);
      await upstream.restart();
    },
  ],
];

for (const [name, fault] of faults) {
  test(`${name} while writes go on`, async () => {
    const load = startBankLoad(origin, { rate: 300, patient: true });
    await sleep(700);
    await fault();
    await sleep(1000);
    expect(await load.stop()).toBeGreaterThan(50);
    await caughtUp();
  }, 90_000);
}
