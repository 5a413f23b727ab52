/** Sinks into a real broker: what the statements wait for, and what they say. */
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type KafkaServer, startKafka } from '../../support/kafka.ts';
import { type Stage, simpleSource, startStage, type TestClient } from './stage.ts';

const kafka = await startKafka();
const broker = 'skipped' in kafka ? null : kafka;
let stage: Stage;
let client: TestClient;

beforeAll(async () => {
  if (broker === null) return;
  stage = await startStage();
  client = await stage.connect();
  await simpleSource(stage, client);
  await client.query(`
    CREATE CONNECTION kafka_connection TO KAFKA (BROKER '${broker.brokers[0]}', SECURITY PROTOCOL PLAINTEXT);
    CREATE TABLE t FROM SOURCE s (REFERENCE public.t);
    CREATE MATERIALIZED VIEW matview_1 AS SELECT a AS key_col, b FROM t;
    CREATE MATERIALIZED VIEW matview_2 AS SELECT a AS key_col, b || '!' AS b FROM t WHERE a > 1;
  `);
}, 180_000);
afterAll(async () => {
  await stage?.stop();
  await (broker as KafkaServer | null)?.stop();
});

test.skipIf(broker === null)(
  'CREATE and ALTER SINK return when the sink runs, and when it has cut over',
  { timeout: 120_000 },
  async () => {
    await client.query("CREATE SINK foo FROM matview_1 INTO KAFKA CONNECTION kafka_connection (TOPIC 'test_topic') KEY (key_col)");
    expect(await client.rows('SELECT status, relation, version, error FROM millrace.sinks')).toEqual([
      ['running', 'public.matview_1', 1, null],
    ]);
    client.takeNotices();
    await client.query('ALTER SINK foo SET FROM matview_2 WITH (BACKFILL = diff)');
    expect(client.takeNotices()).toEqual([expect.stringMatching(/^sink "foo" reads matview_2 since timestamp \d{13}\nThat is 20\d\d-/)]);
    expect(await client.rows('SELECT relation, next_relation, version FROM millrace.sinks')).toEqual([['public.matview_2', null, 2]]);
    await client.query('BEGIN');
    await client.query('ALTER SINK foo SET FROM matview_1');
    await client.query('COMMIT');
    expect(client.takeNotices()).toHaveLength(1);
    expect(await client.rows('SELECT relation, version FROM millrace.sinks')).toEqual([['public.matview_1', 3]]);
    await client.query('DROP MATERIALIZED VIEW matview_2');
    expect(await client.failure('DROP MATERIALIZED VIEW matview_1')).toContain(
      'sink public.foo depends on materialized view public.matview_1',
    );
  },
);

test.skipIf(broker === null)(
  'what keeps a sink from running is the error of its CREATE, and nothing is left',
  { timeout: 120_000 },
  async () => {
    const sink = "CREATE SINK bad FROM t INTO KAFKA CONNECTION kafka_connection (TOPIC 'other_topic', TOPIC REPLICATION FACTOR 3) KEY (a)";
    expect(await client.failure(sink)).toMatch(/^ERROR 55000: sink "bad" could not be started\nDETAIL: .*replication factor/is);
    expect(await client.rows("SELECT * FROM millrace.sinks WHERE name = 'bad'")).toEqual([]);
  },
);
