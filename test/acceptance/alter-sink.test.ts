/**
 * "ALTER SINK" as its manual has it: the statements as written, and its three cutover scenarios, each as described and with what makes it go away.
 */
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type KafkaServer, startKafka } from '../support/kafka.ts';
import { startMillrace, type TestMillrace } from '../support/millrace.ts';
import { startPostgres, type TestPostgres } from '../support/postgres.ts';
import { topicContent, topicTable } from '../support/topic-table.ts';

const started = await startKafka();
const kafka = 'skipped' in started ? null : started;
const why = 'skipped' in started ? ` (skipped: ${started.skipped})` : '';

describe.skipIf(kafka === null)(`ALTER SINK${why}`, () => {
  const { brokers } = kafka as KafkaServer;
  let upstream: TestPostgres;
  let origin: TestPostgres;
  let millrace: TestMillrace;
  let client: pg.Client;
  let shop: pg.Client;
  const notices: string[] = [];

  beforeAll(async () => {
    [origin, upstream] = await Promise.all([startPostgres({ settings: { wal_level: 'logical' } }), startPostgres({})]);
    shop = new pg.Client({ connectionString: origin.url });
    await shop.connect();
    await shop.query(`
      CREATE TABLE old_items (key_col integer PRIMARY KEY, name text);
      CREATE TABLE new_items (key_col integer PRIMARY KEY, name text, color text);
      CREATE PUBLICATION mz_source FOR ALL TABLES`);
    millrace = await startMillrace({ upstream: upstream.address });
    client = new pg.Client({ connectionString: millrace.url() });
    client.on('notice', ({ message }) => notices.push(message ?? ''));
    await client.connect();
    await client.query(`CREATE SECRET pw AS 'x'`);
    await client.query(
      `CREATE CONNECTION origin TO POSTGRES (HOST '${origin.host}', PORT ${origin.port}, USER postgres, PASSWORD SECRET pw, DATABASE postgres, SSL MODE disable)`,
    );
    await client.query(`CREATE CONNECTION kafka_connection TO KAFKA (BROKER '${brokers[0]}', SECURITY PROTOCOL 'PLAINTEXT')`);
    await client.query("CREATE SOURCE s FROM POSTGRES CONNECTION origin (PUBLICATION 'mz_source')");
    await client.query('CREATE TABLE old_items FROM SOURCE s (REFERENCE old_items)');
    await client.query('CREATE TABLE new_items FROM SOURCE s (REFERENCE new_items)');
    await client.query('CREATE MATERIALIZED VIEW matview_1 AS SELECT key_col, name FROM old_items');
    await client.query('CREATE MATERIALIZED VIEW matview_2 AS SELECT key_col, name FROM new_items');
    await client.query('CREATE MATERIALIZED VIEW matview_3 AS SELECT key_col, name, color FROM new_items');
  }, 180_000);

  afterAll(async () => {
    await client?.end();
    await shop?.end();
    await millrace?.stop();
    await Promise.all([origin?.stop(), upstream?.stop(), kafka?.stop()]);
  });

  /** Old and new relation with these rows, as they are in Millrace. */
  const given = async (old: string, fresh: string): Promise<void> => {
    await shop.query(`BEGIN; DELETE FROM old_items; DELETE FROM new_items;
      ${old === '' ? '' : `INSERT INTO old_items VALUES ${old};`} ${fresh === '' ? '' : `INSERT INTO new_items VALUES ${fresh};`} COMMIT`);
    const there = async (table: string): Promise<unknown> =>
      [
        (await shop.query(`SELECT md5(string_agg(t::text, ',' ORDER BY key_col)) FROM ${table} t`)).rows,
        (await client.query(`SELECT md5(string_agg(t::text, ',' ORDER BY key_col)) FROM ${table} t`)).rows,
      ] as const;
    for (const table of ['old_items', 'new_items']) {
      await expect
        .poll(async () => {
          const [a, b] = (await there(table)) as [unknown, unknown];
          return JSON.stringify(a) === JSON.stringify(b);
        })
        .toBe(true);
    }
  };
  const reads = (topic: string): Promise<Record<string, unknown>> => topicTable(brokers, topic);

  test('the statements of the manual', async () => {
    await given("(1, 'one')", "(1, 'one', 'red')");
    await client.query(
      `CREATE SINK avro_sink\n  FROM matview_1\n  INTO KAFKA CONNECTION kafka_connection (TOPIC 'test_avro_topic')\n  KEY (key_col)`,
    );
    await expect.poll(() => reads('test_avro_topic')).toEqual({ 1: { key_col: 1, name: 'one' } });
    await client.query("CREATE SINK foo FROM matview_1 INTO KAFKA CONNECTION kafka_connection (TOPIC 'foo') KEY (key_col)");
    notices.length = 0;
    await client.query('ALTER SINK foo SET FROM matview_2;');
    expect(notices.some((text) => /sink "foo" reads .*matview_2.* since timestamp \d{13}/.test(text))).toBe(true);
    const { rows } = await client.query("SELECT status, error FROM mz_internal.mz_sink_statuses WHERE name = 'foo'");
    expect(rows).toEqual([{ status: 'running', error: null }]);
    await client.query('DROP SINK avro_sink, foo');
  });

  interface Scenario {
    readonly name: string;
    readonly old: string;
    readonly fresh: string;
    readonly to: string;
    readonly counts: { readonly stale_keys: string; readonly missing_keys: string; readonly orphaned_keys: string };
    /** What a consumer sees after the cutover, and once key 2 of the new relation has been updated. */
    readonly none: Record<string, unknown>;
  }
  const item = (key: number, name: string, color?: string): unknown => ({ key_col: key, name, ...(color === undefined ? {} : { color }) });
  const scenarios: readonly Scenario[] = [
    {
      name: '1: the topic contains stale values',
      old: "(1, 'one'), (2, 'two')",
      fresh: "(1, 'one', 'red'), (2, 'two', 'blue')",
      to: 'matview_3',
      counts: { stale_keys: '2', missing_keys: '0', orphaned_keys: '0' },
      none: { 1: item(1, 'one'), 2: item(2, 'two') },
    },
    {
      name: '2: the topic is missing a key of the new relation',
      old: "(1, 'one')",
      fresh: "(1, 'one', 'red'), (2, 'two', 'blue')",
      to: 'matview_2',
      counts: { stale_keys: '0', missing_keys: '1', orphaned_keys: '0' },
      none: { 1: item(1, 'one') },
    },
    {
      name: '3: the topic contains a key that the new relation has not',
      old: "(1, 'one'), (2, 'two'), (3, 'three')",
      fresh: "(1, 'one', 'red'), (2, 'two', 'blue')",
      to: 'matview_2',
      counts: { stale_keys: '0', missing_keys: '0', orphaned_keys: '1' },
      none: { 1: item(1, 'one'), 2: item(2, 'two'), 3: item(3, 'three') },
    },
  ];

  describe.each(scenarios)('scenario $name', ({ old, fresh, to, counts, none, name }) => {
    const number = name.slice(0, 1);
    const asNew = { 1: item(1, 'one', 'red'), 2: item(2, 'two', 'blue') };
    const wanted = to === 'matview_3' ? asNew : { 1: item(1, 'one'), 2: item(2, 'two') };

    test('without a backfill it is as the manual says, until the key is updated', async () => {
      await given(old, fresh);
      const topic = `none_${number}`;
      await client.query(`CREATE SINK ${topic} FROM matview_1 INTO KAFKA CONNECTION kafka_connection (TOPIC '${topic}') KEY (key_col)`);
      expect((await client.query(`ALTER SINK ${topic} SET FROM ${to} WITH (DRY RUN)`)).rows).toEqual([counts]);
      await client.query(`ALTER SINK ${topic} SET FROM ${to}`);
      await expect.poll(() => reads(topic)).toEqual(none);
      await shop.query("UPDATE new_items SET name = 'zwei' WHERE key_col = 2");
      await expect.poll(async () => (await reads(topic))[2]).toEqual(to === 'matview_3' ? item(2, 'zwei', 'blue') : item(2, 'zwei'));
      await client.query(`DROP SINK ${topic}`);
    });

    test('with BACKFILL = diff the topic is the new relation, and only what differs was sent', async () => {
      await given(old, fresh);
      const topic = `diff_${number}`;
      await client.query(`CREATE SINK ${topic} FROM matview_1 INTO KAFKA CONNECTION kafka_connection (TOPIC '${topic}') KEY (key_col)`);
      await expect.poll(async () => (await topicContent(brokers, topic)).records.length).toBe(old.split('),').length);
      await client.query(`ALTER SINK ${topic} SET FROM ${to} WITH (BACKFILL = diff)`);
      await expect.poll(() => reads(topic)).toEqual(wanted);
      const { records } = await topicContent(brokers, topic);
      const different = Object.values(counts).reduce((sum, count) => sum + Number(count), 0);
      expect(records.length).toBe(old.split('),').length + different);
      await client.query(`DROP SINK ${topic}`);
    });

    test('with BACKFILL = snapshot every row is sent again', async () => {
      await given(old, fresh);
      const topic = `snapshot_${number}`;
      await client.query(`CREATE SINK ${topic} FROM matview_1 INTO KAFKA CONNECTION kafka_connection (TOPIC '${topic}') KEY (key_col)`);
      await client.query(`ALTER SINK ${topic} SET FROM ${to} WITH (BACKFILL = snapshot)`);
      await expect.poll(() => reads(topic)).toEqual({ ...none, ...wanted });
      await client.query(`DROP SINK ${topic}`);
    });
  });

  test('in one transaction with a swap of schemas: both or neither', async () => {
    await given("(1, 'one')", "(1, 'eins', 'rot')");
    await client.query('CREATE SCHEMA blue; CREATE SCHEMA green');
    await client.query('CREATE MATERIALIZED VIEW blue.m AS SELECT key_col, name FROM old_items');
    await client.query('CREATE MATERIALIZED VIEW green.m AS SELECT key_col, name FROM new_items');
    await client.query("CREATE SINK swapped FROM blue.m INTO KAFKA CONNECTION kafka_connection (TOPIC 'swapped') KEY (key_col)");
    await expect.poll(() => reads('swapped')).toEqual({ 1: item(1, 'one') });
    await client.query('BEGIN; ALTER SCHEMA blue SWAP WITH green; ALTER SINK swapped SET FROM blue.m WITH (BACKFILL = diff); ROLLBACK');
    await shop.query("INSERT INTO old_items VALUES (2, 'two')");
    await expect.poll(() => reads('swapped')).toEqual({ 1: item(1, 'one'), 2: item(2, 'two') });
    await client.query('BEGIN; ALTER SCHEMA blue SWAP WITH green; ALTER SINK swapped SET FROM blue.m WITH (BACKFILL = diff); COMMIT');
    await expect.poll(() => reads('swapped')).toEqual({ 1: item(1, 'eins') });
    await client.query('DROP SCHEMA green CASCADE');
    await shop.query("INSERT INTO new_items VALUES (3, 'drei', 'gelb')");
    await expect.poll(() => reads('swapped')).toEqual({ 1: item(1, 'eins'), 3: item(3, 'drei') });
  });
});
