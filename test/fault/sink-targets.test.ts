/**
 * Sinks into another Postgres and into a webhook whose engine is killed again and again, and whose target goes down, under writes: at the end the
 * tables are the relations, row by row, and whoever keeps what the webhook sends by its ids has the relation. MILLRACE_SOAK_SECONDS sets how long.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { startMillrace, type TestMillrace } from '../support/millrace.ts';
import { startPostgres, type TestPostgres } from '../support/postgres.ts';
import { startWebhookReceiver, type WebhookReceiver } from '../support/webhook-receiver.ts';

const seconds = Number(process.env['MILLRACE_SOAK_SECONDS'] ?? 12);

let upstream: TestPostgres;
let origin: TestPostgres;
let warehouse: TestPostgres;
let millrace: TestMillrace;
let receiver: WebhookReceiver;
let client: pg.Client;
let shop: pg.Client;

beforeAll(async () => {
  [origin, upstream, warehouse] = await Promise.all([startPostgres(), startPostgres(), startPostgres()]);
  receiver = await startWebhookReceiver();
  shop = new pg.Client({ connectionString: origin.url });
  await shop.connect();
  await shop.query(`
    CREATE TABLE account (id integer PRIMARY KEY, version integer NOT NULL, note text);
    CREATE TABLE ledger (n integer, amount integer); ALTER TABLE ledger REPLICA IDENTITY FULL;
    INSERT INTO account SELECT g, 0, 'n' FROM generate_series(1, 50) g;
    CREATE PUBLICATION p FOR ALL TABLES`);
  // Outboxes are turned and emptied at every look.
  millrace = await startMillrace({ upstream: upstream.address, env: { MILLRACE_OUTBOX_SEGMENT: '0' } });
  client = new pg.Client({ connectionString: millrace.url() });
  await client.connect();
  const leadsTo = ({ host, port }: TestPostgres): string => `HOST '${host}', PORT ${port}, USER postgres, DATABASE postgres`;
  for (const sql of [
    `CREATE CONNECTION origin TO POSTGRES (${leadsTo(origin)})`,
    `CREATE CONNECTION warehouse TO POSTGRES (${leadsTo(warehouse)})`,
    "CREATE SOURCE s FROM POSTGRES CONNECTION origin (PUBLICATION 'p')",
    'CREATE TABLE account FROM SOURCE s (REFERENCE account)',
    'CREATE TABLE ledger FROM SOURCE s (REFERENCE ledger)',
    "CREATE MATERIALIZED VIEW account_a AS SELECT id, version, note, 'a' AS by FROM account",
    "CREATE MATERIALIZED VIEW account_b AS SELECT id, version, note || '!' AS note, version * 2 AS twice FROM account WHERE id % 3 > 0",
    "CREATE SINK accounts FROM account_a INTO POSTGRES CONNECTION warehouse (TABLE 'account') KEY (id)",
    "CREATE SINK ledgers FROM ledger INTO POSTGRES CONNECTION warehouse (TABLE 'ledger')",
    `CREATE SINK hook FROM account INTO WEBHOOK (URL '${receiver.url}') KEY (id)`,
  ])
    await client.query(sql);
}, 180_000);

afterAll(async () => {
  await client?.end();
  await shop?.end();
  await millrace?.stop();
  await Promise.all([origin?.stop(), upstream?.stop(), warehouse?.stop(), receiver?.stop()]);
});

/** An engine that is killed all the time may not have come to the cutover before: then the next is refused, and nothing has changed. */
const notInTime = (error: Error): void => {
  if (!error.message.includes('was altered concurrently')) throw error;
};

/** Rows as text, sorted: every one of them counts. */
async function rows(server: TestPostgres, relation: string): Promise<string[]> {
  const at = new pg.Client({ connectionString: server.url });
  await at.connect();
  try {
    const found = await at.query<[string]>({ text: `SELECT t::text FROM ${relation} t ORDER BY t::text COLLATE "C"`, rowMode: 'array' });
    return found.rows.map(([row]) => row);
  } finally {
    await at.end();
  }
}

/** What a receiver has that looks at ids: in order, each change finds what it says was there before. */
function received(): Map<number, string> {
  const table = new Map<number, string>();
  const seen = new Set<string>();
  for (const { status, headers, changes } of receiver.requests) {
    const id = String(headers['webhook-id']);
    if (status !== 204 || seen.has(id)) continue;
    seen.add(id);
    for (const { before, after } of changes) {
      if (before !== null) {
        if (table.get(Number(before['id'])) !== JSON.stringify(before)) throw new Error(`not there: ${JSON.stringify(before)}`);
        table.delete(Number(before['id']));
      }
      if (after !== null) table.set(Number(after['id']), JSON.stringify(after));
    }
  }
  return table;
}

test(`for ${seconds} s`, { timeout: (seconds + 200) * 1000 }, async () => {
  const end = Date.now() + seconds * 1000;
  let written = 0;
  const writing = (async () => {
    while (Date.now() < end) {
      const n = written++;
      await shop.query(`BEGIN;
        INSERT INTO ledger SELECT ${n} % 20, g FROM generate_series(1, 1 + ${n} % 4) g;
        ${n % 3 === 0 ? `DELETE FROM ledger WHERE ctid = ANY (ARRAY(SELECT ctid FROM ledger WHERE n = ${(n * 7) % 20} LIMIT 3));` : ''}
        ${n % 50 === 49 ? 'TRUNCATE ledger;' : ''}
        UPDATE account SET version = version + 1, note = 'n' || ${n} WHERE id % 7 = ${n % 7};
        ${n % 11 === 0 ? 'DELETE FROM account WHERE id = 1 + (random() * 49)::integer;' : ''}
        INSERT INTO account SELECT 1 + (random() * 49)::integer, 0, 'back' ON CONFLICT DO NOTHING; COMMIT`);
      await sleep(Math.random() * 10);
    }
  })();
  let kills = 0;
  const killing = (async () => {
    while (Date.now() < end) {
      await sleep(1000 + Math.random() * 2500);
      for (const pid of millrace.enginePids()) {
        process.kill(pid, 'SIGKILL');
        kills++;
      }
    }
  })();
  receiver.answer = async () => {
    await sleep(Math.random() * 5);
    const dice = Math.random();
    return dice < 0.02 ? 0 : dice < 0.04 ? -1 : dice < 0.1 ? 500 : 204;
  };
  const targetDown = (async () => {
    for (const part of [0.3, 0.6]) {
      await sleep(seconds * 300);
      await warehouse.kill9();
      await sleep(part * 2000);
      await warehouse.restart();
    }
  })();
  let altered = 0;
  while (Date.now() < end) {
    await sleep(800 + Math.random() * 1500);
    await client
      .query(`ALTER SINK accounts SET FROM account_${altered % 2 === 0 ? 'b' : 'a'} WITH (BACKFILL = diff, TIMEOUT = '20s')`)
      .then(() => altered++, notInTime);
  }
  await Promise.all([writing, killing, targetDown]);
  receiver.answer = () => 204;
  await client.query(`ALTER SINK accounts SET FROM account_b WITH (BACKFILL = diff, TIMEOUT = '60s')`).catch(notInTime);
  await client.query(`ALTER SINK accounts SET FROM account_a WITH (BACKFILL = diff, TIMEOUT = '60s')`);

  const wait = { timeout: 90_000, interval: 500 };
  const ledger = await rows(origin, 'ledger');
  await expect.poll(() => rows(warehouse, 'ledger'), wait).toEqual(ledger);
  const accounts = await rows(origin, "(SELECT id, version, note, 'a' AS by FROM account)");
  await expect.poll(() => rows(warehouse, '(SELECT id, version, note, by FROM account)'), wait).toEqual(accounts);
  const hooked = (await shop.query<{ id: number }>('SELECT id, version, note FROM account')).rows.map(
    (row) => [row.id, JSON.stringify(row)] as const,
  );
  await expect.poll(() => [...received()].sort(([a], [b]) => a - b), wait).toEqual(hooked.sort(([a], [b]) => a - b));
  console.log(
    `${seconds} s: ${written} transactions, ${ledger.length} + ${accounts.length} rows, ${receiver.requests.length} requests, ${kills} kills, ${altered} cutovers, target down twice`,
  );
  expect(kills).toBeGreaterThan(2);
  expect(altered).toBeGreaterThan(0);
});
