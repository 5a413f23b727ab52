/** Sinks in Avro, with a real broker and a real schema registry: what is registered, what a message holds, and which cutover the registry refuses. */
import { afterAll, beforeAll, expect, test } from 'vitest';
import { connectKafka } from '../../../src/sinks/kafka/client.ts';
import { startKafka } from '../../support/kafka.ts';
import { plainAddress, readTopicBytes } from '../../support/kafka-topic.ts';
import { type Relay, startRelay } from '../../support/relay.ts';
import { startSchemaRegistry } from '../../support/schema-registry.ts';
import { eventually, type Stage, simpleSource, startStage, type TestClient } from './stage.ts';

const [kafka, registry] = await Promise.all([startKafka(), startSchemaRegistry()]);
const skipped = 'skipped' in kafka ? kafka.skipped : 'skipped' in registry ? registry.skipped : null;
const brokers = 'skipped' in kafka ? [] : kafka.brokers;
const url = 'skipped' in registry ? '' : registry.url;
let stage: Stage;
let client: TestClient;
let origin: TestClient;
/** Before the registry. */
let relay: Relay;

beforeAll(async () => {
  if (skipped !== null) return;
  stage = await startStage();
  client = await stage.connect();
  origin = await simpleSource(stage, client);
  const behind = new URL(url);
  relay = await startRelay({ host: behind.hostname, port: Number(behind.port) });
  behind.port = String(relay.port);
  await client.query(`
    CREATE CONNECTION k TO KAFKA (BROKER '${brokers[0]}', SECURITY PROTOCOL PLAINTEXT);
    CREATE CONNECTION csr TO CONFLUENT SCHEMA REGISTRY (URL '${url}');
    CREATE CONNECTION relayed TO CONFLUENT SCHEMA REGISTRY (URL '${behind}');
    CREATE TABLE t FROM SOURCE s (REFERENCE public.t);
    CREATE MATERIALIZED VIEW as_it_was AS SELECT a AS key_col, b FROM t;
    CREATE MATERIALIZED VIEW with_more AS SELECT a AS key_col, b, length(b) AS size FROM t;
    CREATE MATERIALIZED VIEW other_type AS SELECT a AS key_col, length(b) AS b FROM t;
  `);
}, 180_000);
afterAll(async () => {
  await stage?.stop();
  await relay?.stop();
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

const into = (topic: string, from: string, registryName = 'csr', options = "VALUE COMPATIBILITY LEVEL 'BACKWARD'"): string =>
  `CREATE SINK ${topic} FROM ${from} INTO KAFKA CONNECTION k (TOPIC '${topic}') KEY (key_col) FORMAT AVRO USING CONFLUENT SCHEMA REGISTRY CONNECTION ${registryName} (${options}) ENVELOPE UPSERT`;

test.skipIf(skipped !== null)(
  'a sink whose schemas the registry does not take is refused, and leaves nothing',
  { timeout: 120_000 },
  async () => {
    await client.query(into('taken', 'as_it_was'));
    await client.query('DROP SINK taken');
    expect(await client.failure(into('taken', 'other_type'))).toMatch(
      /^ERROR 42P17: schema being registered is incompatible with an earlier schema\nDETAIL: Subject "taken-value": .+\nHINT: /s,
    );
    expect(await client.rows("SELECT name FROM millrace.sinks WHERE name = 'taken'")).toEqual([]);
    // Without NULL DEFAULTS a reader of the new schema does not know what a new column was.
    expect(await client.failure(into('taken', 'with_more'))).toMatch(/^ERROR 42P17/);
    await client.query(into('taken', 'with_more', 'csr', 'NULL DEFAULTS'));
    await client.query('ALTER SINK taken SET FROM as_it_was WITH (BACKFILL = diff)');
    await client.query('DROP SINK taken');
  },
);

test.skipIf(skipped !== null)(
  'a registry that is away keeps no sink from going on, and lets none begin',
  { timeout: 120_000 },
  async () => {
    await client.query(into('patient', 'as_it_was', 'relayed', 'NULL DEFAULTS'));
    const count = async (): Promise<number> => (await readTopicBytes(brokers, 'patient')).length;
    const rows = Number((await client.rows('SELECT count(*) FROM as_it_was'))[0]?.[0]);
    await expect.poll(count, { timeout: 30_000 }).toBe(rows);
    relay.cut(true);
    expect(await client.failure(into('hasty', 'as_it_was', 'relayed'))).toMatch(
      /^ERROR 08001: failed to connect to the schema registry\nDETAIL: .*\nHINT: Check that a schema registry listens at/,
    );
    expect(await client.failure('ALTER SINK patient SET FROM with_more')).toMatch(/^ERROR 08001: failed to connect to the schema registry/);
    expect(await client.rows('SELECT name, version, next_relation, status FROM millrace.sinks ORDER BY name')).toContainEqual([
      'patient',
      1,
      null,
      'running',
    ]);
    expect(await client.rows("SELECT name FROM millrace.sinks WHERE name = 'hasty'")).toEqual([]);
    await origin.query("INSERT INTO t VALUES (100, 'without a registry')");
    await expect.poll(count, { timeout: 30_000 }).toBe(rows + 1);
    // Begun anew it has to ask.
    for (const pid of stage.millrace.enginePids()) process.kill(pid, 'SIGKILL');
    await eventually(client, "SELECT status, error ~ 'registry' FROM millrace.sinks WHERE name = 'patient'", [['stalled', true]]);
    await origin.query("INSERT INTO t VALUES (101, 'later')");
    relay.heal();
    await expect.poll(count, { timeout: 60_000 }).toBe(rows + 2);
    await client.query('ALTER SINK patient SET FROM with_more; DROP SINK patient');
  },
);
