/**
 * A sink into a cluster of three brokers of which one is killed again and again, each time one that matters: the leader of the topic's partitions, the
 * coordinator of the sink's transactions, the leader of the progress topic. The sink goes on with the others, and who reads committed messages has
 * every change once, in the order of its key. MILLRACE_SOAK_SECONDS sets how long.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { findCoordinatorV4 } from '@platformatic/kafka';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { openTransport } from '../../src/sinks/kafka/transport.ts';
import { type KafkaCluster, type KafkaServer, startKafkaCluster } from '../support/kafka.ts';
import { plainAddress } from '../support/kafka-topic.ts';
import { startMillrace, type TestMillrace } from '../support/millrace.ts';
import { startPostgres, type TestPostgres } from '../support/postgres.ts';
import { topicContent } from '../support/topic-table.ts';

const seconds = Number(process.env['MILLRACE_SOAK_SECONDS'] ?? 20);

const started = await startKafkaCluster(3, { 'num.partitions': '3' });
const kafka = 'skipped' in started ? null : started;
const why = 'skipped' in started ? ` (skipped: ${started.skipped})` : '';

const roles = ['leader of the topic', 'coordinator of the transactions', 'leader of the progress topic'] as const;

describe.skipIf(kafka === null)(`sinks into several brokers${why}`, () => {
  const { brokers, nodes } = kafka as KafkaCluster;
  let upstream: TestPostgres;
  let origin: TestPostgres;
  let millrace: TestMillrace;
  let client: pg.Client;
  let shop: pg.Client;
  let transactionalId = '';

  beforeAll(async () => {
    [origin, upstream] = await Promise.all([startPostgres({ settings: { wal_level: 'logical' } }), startPostgres()]);
    shop = new pg.Client({ connectionString: origin.url });
    await shop.connect();
    await shop.query(`
      CREATE TABLE ledger (id integer PRIMARY KEY, amount integer NOT NULL);
      CREATE TABLE account (id integer PRIMARY KEY, version integer NOT NULL);
      INSERT INTO account SELECT g, 0 FROM generate_series(1, 50) g;
      CREATE PUBLICATION p FOR ALL TABLES`);
    millrace = await startMillrace({ upstream: upstream.address });
    client = new pg.Client({ connectionString: millrace.url() });
    await client.connect();
    for (const sql of [
      `CREATE CONNECTION origin TO POSTGRES (HOST '${origin.host}', PORT ${origin.port}, USER postgres, DATABASE postgres)`,
      `CREATE CONNECTION kafka TO KAFKA (BROKERS (${brokers.map((broker) => `'${broker}'`).join(', ')}), SECURITY PROTOCOL PLAINTEXT, PROGRESS TOPIC 'progress')`,
      "CREATE SOURCE s FROM POSTGRES CONNECTION origin (PUBLICATION 'p')",
      'CREATE TABLE ledger FROM SOURCE s (REFERENCE ledger); CREATE TABLE account FROM SOURCE s (REFERENCE account)',
      "CREATE SINK ledgers FROM ledger INTO KAFKA CONNECTION kafka (TOPIC 'ledgers') KEY (id) FORMAT JSON ENVELOPE DEBEZIUM",
      "CREATE SINK accounts FROM account INTO KAFKA CONNECTION kafka (TOPIC 'accounts') KEY (id) FORMAT JSON ENVELOPE UPSERT",
    ])
      await client.query(sql);
    const { rows } = await client.query<{ id: string }>(
      "SELECT 'millrace-' || i.id || '-' || s.id AS id FROM millrace.installation i, millrace.sinks s WHERE s.name = 'ledgers'",
    );
    transactionalId = rows[0]?.id ?? '';
  }, 240_000);

  afterAll(async () => {
    await client?.end();
    await shop?.end();
    await millrace?.stop();
    await Promise.all([origin?.stop(), upstream?.stop(), kafka?.stop()]);
  });

  /** The number of the broker that has a role now. */
  async function brokerOf(role: (typeof roles)[number]): Promise<number> {
    const transport = openTransport(plainAddress(brokers));
    try {
      return await transport.retrying(async () => {
        if (role !== 'coordinator of the transactions') {
          const placement = await transport.placement(role === 'leader of the topic' ? 'ledgers' : 'progress');
          expect(placement?.replicationFactor).toBe(3);
          return placement?.leaders[0] ?? -1;
        }
        const answer = await transport.call('any', findCoordinatorV4.api, [1, [transactionalId]], 'find the coordinator');
        return answer.coordinators[0]?.nodeId ?? -1;
      });
    } finally {
      await transport.close();
    }
  }

  const reached = async (): Promise<number> =>
    Number((await client.query<{ least: string }>("SELECT min(ts) AS least FROM millrace.sinks WHERE type = 'kafka'")).rows[0]?.least);

  test(`for ${seconds} s`, { timeout: (seconds + 300) * 1000 }, async () => {
    const end = Date.now() + seconds * 1000;
    let written = 0;
    let going = true;
    const writing = (async () => {
      while (going) {
        const rows = 1 + Math.floor(Math.random() * 5);
        await shop.query(`BEGIN;
          INSERT INTO ledger SELECT ${written} + g, 0 FROM generate_series(1, ${rows}) g;
          UPDATE ledger SET amount = amount + 1 WHERE id = 1 + ${written} / 2;
          UPDATE account SET version = version + 1 WHERE id % 7 = ${written % 7};
          ${written % 11 === 0 ? 'DELETE FROM account WHERE id = 1 + (random() * 49)::integer;' : ''}
          INSERT INTO account SELECT 1 + (random() * 49)::integer, 0 ON CONFLICT DO NOTHING; COMMIT`);
        written += rows;
        await sleep(Math.random() * 10);
      }
    })();
    const killed: string[] = [];
    const pauses: number[] = [];
    for (let turn = 0; Date.now() < end || turn < roles.length; turn++) {
      await sleep(500 + Math.random() * 1500);
      const role = roles[turn % roles.length] as (typeof roles)[number];
      const number = await brokerOf(role);
      const node = nodes.get(number) as KafkaServer;
      await node.kill();
      killed.push(`${role}: ${number}`);
      const at = Date.now();
      // With two of three it goes on: epochs from after the kill are out while that broker is away.
      await expect.poll(reached, { timeout: 60_000, interval: 50 }).toBeGreaterThan(at + 500);
      pauses.push(Date.now() - at);
      await node.start();
      // The next may be killed when all are back in step.
      await inStep(node);
    }
    going = false;
    await writing;

    // Every state of each row of the ledger, in order, once.
    const ledger = (await shop.query<{ id: number; amount: number }>('SELECT id, amount FROM ledger ORDER BY id')).rows;
    const came = async (): Promise<{ readonly id: number; readonly amounts: readonly number[] }[]> => {
      const states = new Map<number, number[]>();
      for (const { value } of (await topicContent(brokers, 'ledgers')).records) {
        const { before, after } = JSON.parse(value ?? '{}') as Record<'before' | 'after', { id: number; amount: number } | null>;
        if (after === null) throw new Error('nothing was deleted');
        const known = states.get(after.id) ?? [];
        if ((before?.amount ?? null) !== (known.at(-1) ?? null)) throw new Error(`${value}, and before it ${known}`);
        states.set(after.id, [...known, after.amount]);
      }
      return [...states].sort(([a], [b]) => a - b).map(([id, amounts]) => ({ id, amounts }));
    };
    await expect
      .poll(async () => (await came()).map(({ id, amounts }) => ({ id, amount: amounts.at(-1) })), { timeout: 120_000, interval: 500 })
      .toEqual(ledger);
    const accounts = (await shop.query<{ id: number; version: number }>('SELECT id, version FROM account')).rows;
    const wanted = accounts.map((row): [string, string] => [JSON.stringify({ id: row.id }), JSON.stringify(row)]).sort();
    await expect
      .poll(async () => [...(await topicContent(brokers, 'accounts')).table].sort(), { timeout: 60_000, interval: 500 })
      .toEqual(wanted);
    console.log(
      `${written} rows; killed: ${killed.join(', ')}; on again after ${pauses.map((pause) => (pause / 1000).toFixed(1)).join(', ')} s`,
    );
    expect(killed.length).toBeGreaterThanOrEqual(roles.length);
  });

  /** Waits until no partition lacks a replica. */
  async function inStep({ tool, plainBrokers }: KafkaServer): Promise<void> {
    const args = ['--bootstrap-server', plainBrokers.join(','), '--describe', '--under-replicated-partitions'];
    await expect
      .poll(async () => (await tool('org.apache.kafka.tools.TopicCommand', args)).trim(), { timeout: 60_000, interval: 500 })
      .toBe('');
  }
});
