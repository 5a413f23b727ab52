/**
 * What is in a topic, byte for byte: a table of every family of types through a real origin, broker and schema registry, in JSON and Avro, UPSERT and
 * DEBEZIUM, against files in test/golden/sinks. `MILLRACE_GOLDEN=write npx vitest run test/integration/sinks/golden.test.ts` writes them anew; what
 * then differs in git is what consumers would see.
 */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { KafkaMessage } from '../../../src/sinks/kafka/reader.ts';
import { startKafka } from '../../support/kafka.ts';
import { readTopicBytes } from '../../support/kafka-topic.ts';
import { startSchemaRegistry } from '../../support/schema-registry.ts';
import { eventually, leadsTo, type Stage, startStage, type TestClient } from '../statements/stage.ts';

const [kafka, registry] = await Promise.all([startKafka(), startSchemaRegistry()]);
const skipped = 'skipped' in kafka ? kafka.skipped : 'skipped' in registry ? registry.skipped : null;
const brokers = 'skipped' in kafka ? [] : kafka.brokers;
const url = 'skipped' in registry ? '' : registry.url;
let stage: Stage;
let client: TestClient;
let origin: TestClient;

const types = `
  CREATE TYPE mood AS ENUM ('good', 'bad "quoted"');
  CREATE TYPE address AS (street text, number int, tags text[]);
  CREATE DOMAIN percent AS numeric(5,2) CHECK (VALUE <= 100)`;
/** Column, type, a value, another one. */
const columns: readonly (readonly [string, string, string, string])[] = [
  ['flag', 'boolean', 'true', 'false'],
  ['small', 'smallint', '-32768', '32767'],
  ['big', 'bigint', '9007199254740993', '-9223372036854775808'],
  ['single', 'real', '1.5', "'NaN'"],
  ['double', 'double precision', '0.1', "'-Infinity'"],
  ['exact', 'numeric', '12345678901234567890.123456789', '-0.5'],
  ['price', 'numeric(10,2)', '1.5', '-99999999.99'],
  ['share', 'percent', '12.5', '100'],
  ['words', 'text', 'E\'жернов 🌾 "quoted" back\\\\slash \\n\'', "''"],
  ['short', 'varchar(10)', "'ten'", "'other'"],
  ['padded', 'char(5)', "'abc'", "'de'"],
  ['bytes', 'bytea', "'\\x00ff7a'", "'\\x'"],
  ['day', 'date', "'2024-02-29'", "'1969-12-31'"],
  ['moment', 'time', "'23:59:59.123456'", "'00:00:00'"],
  ['local', 'timestamp', "'2011-11-11 11:11:11.12345'", "'1969-12-31 23:59:59.999999'"],
  ['coarse', 'timestamp(3)', "'2011-11-11 11:11:11.123'", "'1970-01-01 00:00:00'"],
  ['instant', 'timestamptz', "'2011-11-11 11:11:11.12345+01'", "'2024-03-31 01:30:00+01'"],
  ['span', 'interval', "'1 year 2 mons -3 days 04:05:06.789'", "'-1 day'"],
  ['id_of', 'uuid', "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'", "'00000000-0000-0000-0000-000000000000'"],
  ['as_given', 'json', `'{"b": 1,  "a": [1.0, null, "x"]}'`, "'null'"],
  ['document', 'jsonb', `'{"b": 1,  "a": [1.0, null, "x"]}'`, "'[]'"],
  ['feeling', 'mood', "'good'", `'bad "quoted"'`],
  ['reach', 'int4range', "'[1,10)'", "'empty'"],
  ['host', 'inet', "'10.1.2.3/24'", "'::1'"],
  ['bits', 'bit varying', "B'101'", "B''"],
  ['numbers', 'int[]', "'{1,NULL,3}'", "'{}'"],
  // Of one dimension: Avro has no schema for others.
  ['texts', 'text[]', `'{"a,b",NULL,"q\\"q",""}'`, "'{x}'"],
  ['home', 'address', `ROW('Mill Lane', 7, '{north,"the, south"}')`, 'ROW(NULL, NULL, NULL)'],
];

beforeAll(async () => {
  if (skipped !== null) return;
  stage = await startStage();
  client = await stage.connect();
  origin = await stage.direct(stage.origin);
  await origin.query(`${types};
    CREATE TABLE kinds (id int PRIMARY KEY, ${columns.map(([name, type]) => `${name} ${type}`).join(', ')}, meta jsonb);
    CREATE PUBLICATION mz_source FOR ALL TABLES`);
  await client.query(`${types};
    CREATE CONNECTION c TO POSTGRES (${leadsTo(stage.origin)});
    CREATE CONNECTION k TO KAFKA (BROKER '${brokers[0]}', SECURITY PROTOCOL PLAINTEXT);
    CREATE CONNECTION csr TO CONFLUENT SCHEMA REGISTRY (URL '${url}')`);
  await client.query(
    "CREATE SOURCE s FROM POSTGRES CONNECTION c (PUBLICATION 'mz_source'); CREATE TABLE kinds FROM SOURCE s (REFERENCE public.kinds)",
  );
  const avro = 'FORMAT AVRO USING CONFLUENT SCHEMA REGISTRY CONNECTION csr';
  for (const [topic, rest] of [
    ['json-upsert', 'HEADERS meta FORMAT JSON ENVELOPE UPSERT'],
    ['json-debezium', 'FORMAT JSON ENVELOPE DEBEZIUM'],
    ['avro-upsert', `${avro} ENVELOPE UPSERT`],
    ['avro-debezium', `${avro} ENVELOPE DEBEZIUM`],
  ])
    await client.query(
      `CREATE SINK "${topic}" FROM kinds INTO KAFKA CONNECTION k (TOPIC '${topic}', TOPIC PARTITION COUNT 1) KEY (id) ${rest}`,
    );
  const values = (at: 2 | 3): string => columns.map((column) => column[at]).join(', ');
  // Each is a transaction of its own, and waited for: epochs take several at once.
  const there = async (sql: string): Promise<void> => {
    await origin.query(sql);
    const wanted = (await origin.rows('SELECT count(*)::int, sum(id)::int, bool_or(flag) FROM kinds'))[0] ?? [];
    await eventually(client, 'SELECT count(*)::int, sum(id)::int, bool_or(flag) FROM kinds', [wanted]);
  };
  await there(`INSERT INTO kinds VALUES (1, ${values(2)}, '{"source": "mill", "none": null}')`);
  await there('INSERT INTO kinds (id) VALUES (2)');
  await there(`UPDATE kinds SET (${columns.map(([name]) => name).join(', ')}) = ROW(${values(3)}) WHERE id = 1`);
  await there('UPDATE kinds SET id = 30 WHERE id = 2');
  await there('DELETE FROM kinds WHERE id = 1');
}, 180_000);
afterAll(async () => {
  await stage?.stop();
  if (!('skipped' in kafka)) await kafka.stop();
  if (!('skipped' in registry)) await registry.stop();
});

/** Texts as they are; Avro in hexadecimal, the number of the schema, which the registry gives, left out. */
const written = (isAvro: boolean, bytes: Buffer | null | undefined): string => {
  if (bytes === null || bytes === undefined) return '(none)';
  return isAvro ? `${bytes.subarray(0, 1).toString('hex')} <id> ${bytes.subarray(5).toString('hex')}` : bytes.toString('utf8');
};

const asText = (isAvro: boolean, messages: readonly KafkaMessage[]): string =>
  messages
    .map(({ key, value, headers }) =>
      [
        `key: ${written(isAvro, key)}`,
        `value: ${written(isAvro, value)}`,
        // Its value is the time.
        ...headers.map(
          ({ name, value: of }) => `header: ${name}${name === 'materialize-timestamp' ? '' : ` = ${of?.toString() ?? '(none)'}`}`,
        ),
      ].join('\n'),
    )
    .join('\n\n');

const schemaOf = async (subject: string): Promise<string> => {
  const answer = (await (await fetch(`${url}/subjects/${subject}/versions/latest`)).json()) as { schema: string };
  return `${subject}: ${JSON.stringify(JSON.parse(answer.schema), null, 1)}`;
};

function expectGolden(name: string, text: string): void {
  const file = fileURLToPath(new URL(`../../golden/sinks/${name}`, import.meta.url));
  if (process.env['MILLRACE_GOLDEN'] === 'write') {
    mkdirSync(dirname(file), { recursive: true });
    writeFileSync(file, text);
  }
  expect(text).toBe(readFileSync(file, 'utf8'));
}

describe.skipIf(skipped !== null)(`messages as in the golden files${skipped === null ? '' : ` (skipped: ${skipped})`}`, () => {
  test.each([
    ['json-upsert', 6],
    ['json-debezium', 6],
    ['avro-upsert', 6],
    ['avro-debezium', 6],
  ] as const)('%s', { timeout: 60_000 }, async (topic, count) => {
    const isAvro = topic.startsWith('avro');
    await expect.poll(async () => (await readTopicBytes(brokers, topic)).length, { timeout: 30_000 }).toBe(count);
    expect(await client.rows('SELECT status, error FROM millrace.sinks WHERE name = $1', [topic])).toEqual([['running', null]]);
    const schemas = isAvro ? [await schemaOf(`${topic}-key`), await schemaOf(`${topic}-value`)] : [];
    expectGolden(`${topic}.txt`, `${[...schemas, asText(isAvro, await readTopicBytes(brokers, topic))].join('\n\n')}\n`);
  });
});
