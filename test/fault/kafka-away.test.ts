/**
 * A broker that is away for a while, and two Millrace processes that fight for the leadership, each with a ledger of which every row has to be in the
 * topic once for readers of committed messages.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { testKey } from '../support/engine.ts';
import { type KafkaServer, startKafka } from '../support/kafka.ts';
import { startMillrace, type TestMillrace } from '../support/millrace.ts';
import { startPostgres, type TestPostgres } from '../support/postgres.ts';
import { topicContent } from '../support/topic-table.ts';
import { startWebhookReceiver, type WebhookReceiver } from '../support/webhook-receiver.ts';

/** How long the broker is away; minutes make no difference but take longer. */
const awaySeconds = Number(process.env['MILLRACE_SOAK_SECONDS'] ?? 15);
const limit = 2_000_000;

const started = await startKafka({ own: true, settings: { 'num.partitions': '3' } });
const kafka = 'skipped' in started ? null : started;
const why = 'skipped' in started ? ` (skipped: ${started.skipped})` : '';

describe.skipIf(kafka === null)(`Kafka sinks${why}`, () => {
  const { brokers } = kafka as KafkaServer;
  const broker = kafka as KafkaServer;
  let upstream: TestPostgres;
  let origin: TestPostgres;
  let millrace: TestMillrace;
  let receiver: WebhookReceiver;
  let client: pg.Client;
  let shop: pg.Client;

  beforeAll(async () => {
    origin = await startPostgres();
    receiver = await startWebhookReceiver();
    shop = new pg.Client({ connectionString: origin.url });
    await shop.connect();
    await shop.query('CREATE TABLE ledger (id integer PRIMARY KEY, filler text); CREATE PUBLICATION p FOR ALL TABLES');
  }, 120_000);
  afterAll(async () => {
    await shop?.end();
    await Promise.all([origin?.stop(), receiver?.stop(), broker.stop()]);
  });

  const settings = { MILLRACE_OUTBOX_LIMIT: String(limit), MILLRACE_SECRET_KEY: testKey };
  beforeEach(async () => {
    await shop.query('TRUNCATE ledger');
    receiver.requests.length = 0;
    upstream = await startPostgres();
    millrace = await startMillrace({ upstream: upstream.address, env: settings });
    client = new pg.Client({ connectionString: millrace.url() });
    await client.connect();
    for (const sql of [
      `CREATE CONNECTION origin TO POSTGRES (HOST '${origin.host}', PORT ${origin.port}, USER postgres, DATABASE postgres)`,
      `CREATE CONNECTION kafka TO KAFKA (BROKER '${brokers[0]}', SECURITY PROTOCOL 'PLAINTEXT')`,
      "CREATE SOURCE s FROM POSTGRES CONNECTION origin (PUBLICATION 'p')",
      'CREATE TABLE ledger FROM SOURCE s (REFERENCE ledger)',
    ])
      await client.query(sql);
  }, 120_000);
  afterEach(async () => {
    await client.query('DROP SOURCE s CASCADE');
    await client.end();
    await millrace.stop();
    await upstream.stop();
  }, 60_000);

  const status = async (sink: string): Promise<{ status: string; error: string | null; hint: string | null }> =>
    (await client.query(`SELECT status, error, hint FROM millrace.sinks WHERE name = '${sink}'`)).rows[0];
  const createLedgers = (topic: string): Promise<unknown> =>
    client.query(`CREATE SINK ledgers FROM ledger INTO KAFKA CONNECTION kafka (TOPIC '${topic}') KEY (id) FORMAT JSON ENVELOPE DEBEZIUM`);
  const inTopic = async (topic: string): Promise<number[]> =>
    (await topicContent(brokers, topic)).records
      .map(({ value }) => (JSON.parse(value ?? '{}') as { after: { id: number } }).after.id)
      .sort((a, b) => a - b);
  const numbers = (count: number): number[] => Array.from({ length: count }, (_, index) => index + 1);

  test.each(['killed', 'stopped'] as const)(
    `a broker that is ${'%s'} for ${awaySeconds} s: the sink says so, the rest goes on, and nothing is lost or twice`,
    { timeout: (awaySeconds + 180) * 1000 },
    async (how) => {
      const topic = `away_${how}`;
      await createLedgers(topic);
      await client.query(`CREATE SINK hook FROM ledger INTO WEBHOOK (URL '${receiver.url}') KEY (id)`);
      let written = 0;
      let going = true;
      const writing = (async () => {
        for (; going; await sleep(20)) await shop.query(`INSERT INTO ledger VALUES (${++written})`);
      })();
      await expect.poll(async () => (await inTopic(topic)).length, { timeout: 30_000 }).toBeGreaterThan(20);
      if (how === 'killed') await broker.kill();
      else broker.pause();
      const away = Date.now();
      await expect
        .poll(async () => await status('ledgers'), { timeout: 60_000 })
        .toMatchObject({ status: 'stalled', error: expect.stringMatching(/^kafka: /) });
      console.log(`${how}: the sink says so after ${((Date.now() - away) / 1000).toFixed(1)} s: ${(await status('ledgers')).error}`);
      // Epochs, other sinks, and statements about sinks go on.
      const now = written;
      await expect.poll(async () => Number((await client.query('SELECT count(*) FROM ledger')).rows[0]?.count)).toBeGreaterThan(now);
      await expect.poll(() => receiver.requests.flatMap(({ changes }) => changes).length, { timeout: 10_000 }).toBeGreaterThan(now);
      await client.query(`CREATE SINK late FROM ledger INTO WEBHOOK (URL '${receiver.url}') KEY (id)`);
      await client.query('DROP SINK late; ALTER SINK ledgers PAUSE; ALTER SINK ledgers RESUME');
      await sleep(Math.max(0, away + awaySeconds * 1000 - Date.now()));
      if (how === 'killed') await broker.start();
      else broker.resume();
      await expect.poll(async () => (await status('ledgers')).status, { timeout: 90_000 }).toBe('running');
      going = false;
      await writing;
      await expect.poll(async () => (await inTopic(topic)).length, { timeout: 60_000 }).toBeGreaterThanOrEqual(written);
      expect(await inTopic(topic)).toEqual(numbers(written));
      expect(await status('ledgers')).toEqual({ status: 'running', error: null, hint: null });
    },
  );

  test('an outbox that grows to its limit: the sink behind has to begin again, the others go on', { timeout: 240_000 }, async () => {
    await client.query("CREATE SINK ledgers FROM ledger INTO KAFKA CONNECTION kafka (TOPIC 'limited') KEY (id)");
    await client.query(`CREATE SINK hook FROM ledger INTO WEBHOOK (URL '${receiver.url}') KEY (id)`);
    await shop.query("INSERT INTO ledger SELECT g, 'before' FROM generate_series(1, 10) g");
    await expect.poll(async () => (await topicContent(brokers, 'limited')).table.size, { timeout: 30_000 }).toBe(10);
    await broker.kill();
    const size = async (): Promise<number> =>
      Number(
        (
          await client.query(
            "SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0) AS size FROM pg_class c WHERE c.relnamespace = 'millrace_data'::regnamespace AND c.relname ~ '^o[0-9]+[ab]$'",
          )
        ).rows[0]?.size,
      );
    let written = 10;
    let largest = 0;
    for (let round = 0; round < 60; round++) {
      await shop.query(`INSERT INTO ledger SELECT ${written} + g, md5(g::text) || repeat('x', 200) FROM generate_series(1, 500) g`);
      written += 500;
      largest = Math.max(largest, await size());
      await sleep(250);
    }
    console.log(`limit ${limit}: the outbox had ${largest} bytes at most while ${written} rows came`);
    // Looked at every two seconds, in which some rows more may come.
    expect(largest).toBeLessThan(2 * limit + 1_000_000);
    await broker.start();
    await expect
      .poll(async () => await status('ledgers'), { timeout: 60_000 })
      .toEqual({
        status: 'stalled',
        error: expect.stringMatching(/^changes were thrown away: the outbox had grown to its limit/),
        hint: expect.stringMatching(/ALTER SINK public\.ledgers SET FROM .* WITH \(BACKFILL = snapshot\)/),
      });
    const received = (): number => new Set(receiver.requests.flatMap(({ changes }) => changes.map(({ after }) => after?.['id']))).size;
    await expect.poll(received, { timeout: 60_000 }).toBe(written);
    expect(await status('hook')).toMatchObject({ status: 'running', error: null });
    await client.query("ALTER SINK ledgers SET FROM ledger WITH (BACKFILL = snapshot, TIMEOUT = '60s')");
    await expect.poll(async () => (await topicContent(brokers, 'limited')).table.size, { timeout: 60_000 }).toBe(written);
    await shop.query("UPDATE ledger SET filler = 'after' WHERE id <= 3");
    await expect
      .poll(async () => [...(await topicContent(brokers, 'limited')).table.values()].filter((value) => value.includes('after')).length)
      .toBe(3);
  });

  test('two processes that take the leadership from each other: the one before is fenced', { timeout: 240_000 }, async () => {
    await createLedgers('fought');
    const second = await startMillrace({ upstream: upstream.address, env: settings });
    try {
      let written = 0;
      let going = true;
      const writing = (async () => {
        for (; going; await sleep(3)) {
          const rows = 1 + Math.floor(Math.random() * 5);
          await shop.query(`INSERT INTO ledger SELECT ${written} + g FROM generate_series(1, ${rows}) g`);
          written += rows;
        }
      })();
      const leader = async (): Promise<number> => {
        const { rows } = await client.query<{ pid: number }>(
          "SELECT l.pid FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE l.locktype = 'advisory' AND l.granted AND a.application_name = 'millrace epochs'",
        );
        return rows[0]?.pid ?? 0;
      };
      const seen = async (): Promise<number> => Number((await client.query('SELECT count(*) FROM ledger')).rows[0]?.count);
      let takeovers = 0;
      for (const both = [millrace, second]; takeovers < 6; takeovers++) {
        await sleep(Math.random() * 1500);
        const before = await leader();
        // Whichever leads stands still, with its thread of sinks in the middle of something, and comes back when it has lost.
        const [engine = 0] = both[takeovers % 2]?.enginePids() ?? [];
        process.kill(engine, 'SIGSTOP');
        const from = written;
        await expect.poll(leader, { timeout: 30_000 }).not.toBe(before);
        await expect.poll(seen, { timeout: 30_000 }).toBeGreaterThan(from);
        await sleep(Math.random() * 1000);
        process.kill(engine, 'SIGCONT');
        await expect.poll(async () => both.map((one) => one.enginePids().length), { timeout: 30_000 }).toEqual([1, 1]);
      }
      going = false;
      await writing;
      await expect.poll(async () => (await inTopic('fought')).length, { timeout: 60_000 }).toBeGreaterThanOrEqual(written);
      expect(await inTopic('fought')).toEqual(numbers(written));
      console.log(`${takeovers} takeovers, ${written} rows, each once`);
    } finally {
      await second.stop();
    }
  });
});
