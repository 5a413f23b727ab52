/** Sinks in Avro, with a real broker and a real schema registry: what is registered, what a message holds, and which cutover the registry refuses. */
import { afterAll, beforeAll, expect, test } from 'vitest';
import { connectKafka } from '../../../src/sinks/kafka/client.ts';
import { startKafka } from '../../support/kafka.ts';
import { plainAddress, readTopicBytes } from '../../support/kafka-topic.ts';
import { startSchemaRegistry } from '../../support/schema-registry.ts';
import { type Stage, simpleSource, startStage, type TestClient } from './stage.ts';

const [kafka, registry] = await Promise.all([startKafka(), startSchemaRegistry()]);
const skipped = 'skipped' in kafka ? kafka.skipped : 'skipped' in registry ? registry.skipped : null;
const brokers = 'skipped' in kafka ? [] : kafka.brokers;
const url = 'skipped' in registry ? '' : registry.url;
let stage: Stage;
let client: TestClient;

beforeAll(async () => {
  if (skipped !== null) return;
  stage = await startStage();
  client = await stage.connect();
  await simpleSource(stage, client);
  await client.query(`
    CREATE CONNECTION k TO KAFKA (BROKER '${brokers[0]}', SECURITY PROTOCOL PLAINTEXT);
    CREATE CONNECTION csr TO CONFLUENT SCHEMA REGISTRY (URL '${url}');
    CREATE TABLE t FROM SOURCE s (REFERENCE public.t);
    CREATE MATERIALIZED VIEW as_it_was AS SELECT a AS key_col, b FROM t;
    CREATE MATERIALIZED VIEW with_more AS SELECT a AS key_col, b, length(b) AS size FROM t;
    CREATE MATERIALIZED VIEW other_type AS SELECT a AS key_col, length(b) AS b FROM t;
  `);
}, 180_000);
afterAll(async () => {
  await stage?.stop();
  if (!('skipped' in kafka)) await kafka.stop();
  if (!('skipped' in registry)) await registry.stop();
});

const schemaOf = async (subject: string): Promise<unknown> => {
  const answer = (await (await fetch(`${url}/subjects/${subject}/versions/latest`)).json()) as { schema: string };
  return JSON.parse(answer.schema);
};

test.skipIf(skipped !== null)(
  `a sink in Avro, and cutovers that the registry takes or refuses${skipped === null ? '' : ` (skipped: ${skipped})`}`,
  { timeout: 120_000 },
  async () => {
    await client.query(
      "CREATE SINK avro_sink FROM as_it_was INTO KAFKA CONNECTION k (TOPIC 'avro') KEY (key_col) FORMAT AVRO USING CONFLUENT SCHEMA REGISTRY CONNECTION csr (KEY COMPATIBILITY LEVEL 'BACKWARD', VALUE COMPATIBILITY LEVEL 'BACKWARD', NULL DEFAULTS) ENVELOPE UPSERT",
    );
    expect(await schemaOf('avro-key')).toMatchObject({ type: 'record', name: 'row', fields: [{ name: 'key_col', type: 'int' }] });
    expect(await schemaOf('avro-value')).toMatchObject({
      type: 'record',
      name: 'envelope',
      fields: [
        { name: 'key_col', type: 'int' },
        { name: 'b', type: ['null', 'string'], default: null },
      ],
    });
    const rows = Number((await client.rows('SELECT count(*) FROM as_it_was'))[0]?.[0]);
    await expect.poll(async () => (await readTopicBytes(brokers, 'avro')).length, { timeout: 30_000 }).toBe(rows);
    // Magic byte, then the number of the schema.
    for (const { value } of await readTopicBytes(brokers, 'avro')) expect(value?.[0]).toBe(0);

    expect(await client.failure('ALTER SINK avro_sink SET FROM other_type')).toMatch(/avro-value/);
    expect(await client.rows('SELECT relation, version, status FROM millrace.sinks')).toEqual([['public.as_it_was', 1, 'running']]);
    await client.query('ALTER SINK avro_sink SET FROM with_more WITH (BACKFILL = diff)');
    await expect.poll(async () => (await readTopicBytes(brokers, 'avro')).length, { timeout: 30_000 }).toBe(2 * rows);
    expect(await schemaOf('avro-value')).toMatchObject({ fields: [{ name: 'key_col' }, { name: 'b' }, { name: 'size' }] });
    const cluster = await connectKafka(plainAddress(brokers));
    expect(await cluster.partitions('avro')).toBeGreaterThan(0);
    await cluster.close();
  },
);
