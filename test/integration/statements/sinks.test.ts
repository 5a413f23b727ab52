/** Sinks as statements: what is written down, what is refused, what hangs on what. No broker: nothing here is delivered. */
import { crc32 } from 'node:zlib';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { refusals } from './mistakes.ts';
import { eventually, leadsTo, type Stage, simpleSource, startStage, type TestClient } from './stage.ts';

let stage: Stage;
let client: TestClient;
let origin: TestClient;

beforeAll(async () => {
  stage = await startStage({ upstream: { settings: { wal_level: 'logical' } } });
  client = await stage.connect();
  origin = await simpleSource(stage, client);
  await origin.query(`
    CREATE TABLE orders (id int PRIMARY KEY, customer int NOT NULL, item text, meta jsonb, at timestamptz);
    CREATE TABLE customers (id int PRIMARY KEY, name text);
    CREATE TABLE keyless (a int); ALTER TABLE keyless REPLICA IDENTITY FULL;
    INSERT INTO orders VALUES (1, 1, 'a'), (2, 1, 'b'), (3, 2, 'c');
    INSERT INTO customers VALUES (1, 'x'), (2, 'y');
  `);
  await client.query(`
    CREATE SECRET pw AS 'hush-hush';
    CREATE CONNECTION kafka_connection TO KAFKA (BROKER '127.0.0.1:1', SECURITY PROTOCOL PLAINTEXT) WITH (VALIDATE = false);
    CREATE CONNECTION secured TO KAFKA (BROKERS ('a:1', 'b:2'), SASL MECHANISMS 'PLAIN', SASL USERNAME 'u', SASL PASSWORD SECRET pw) WITH (VALIDATE = false);
    CREATE CONNECTION csr TO CONFLUENT SCHEMA REGISTRY (URL 'http://127.0.0.1:1', USERNAME 'u', PASSWORD SECRET pw) WITH (VALIDATE = false);
    CREATE TABLE t FROM SOURCE s (REFERENCE public.t);
    CREATE TABLE orders FROM SOURCE s (REFERENCE public.orders);
    CREATE TABLE customers FROM SOURCE s (REFERENCE public.customers);
    CREATE TABLE keyless FROM SOURCE s (REFERENCE public.keyless);
    CREATE TABLE items FROM SOURCE s (REFERENCE public.orders) WITH (EXCLUDE COLUMNS (id));
    CREATE MATERIALIZED VIEW matview_1 AS SELECT a AS key_col, b FROM t;
    CREATE MATERIALIZED VIEW matview_2 AS SELECT a AS key_col, b || '!' AS b FROM t;
    CREATE MATERIALIZED VIEW total AS SELECT count(*) AS n FROM t;
    CREATE VIEW plain AS SELECT * FROM t;
    CREATE TABLE ordinary (a int PRIMARY KEY);
    SET millrace.wait = off;
  `);
}, 180_000);
afterAll(() => stage?.stop());

const kafka = (relation: string, rest: string, topic = 'x'): string =>
  `CREATE SINK s1 FROM ${relation} INTO KAFKA CONNECTION kafka_connection (TOPIC '${topic}') ${rest}`;

/** Makes it, looks at it, and drops it. */
async function made(sql: string): Promise<Record<string, unknown>> {
  await client.query(sql);
  const [row] = await client.rows(`
    SELECT s.definition, v.backfill, (SELECT jsonb_agg(c ->> 'name') FROM jsonb_array_elements(v.columns) c)
      FROM millrace.sink s JOIN millrace.sink_version v ON v.sink_id = s.id WHERE s.name = 's1' AND s.status <> 'dropped'`);
  await client.query('DROP SINK s1');
  const [definition, backfill, columns] = row ?? [];
  return { ...(definition as object), backfill, columns };
}

describe('CREATE SINK', () => {
  it('without FORMAT and ENVELOPE: JSON, and by KEY', async () => {
    expect(
      await made("CREATE SINK s1 FROM matview_1 INTO KAFKA CONNECTION kafka_connection (TOPIC 'test_avro_topic') KEY (key_col)"),
    ).toEqual({
      target: {
        type: 'kafka',
        topic: 'test_avro_topic',
        compression: 'lz4',
        transactionalIdPrefix: '',
        partitionCount: null,
        replicationFactor: null,
        topicConfig: {},
        partitionBy: null,
        headers: null,
        envelope: 'upsert',
        keyFormat: { kind: 'json' },
        valueFormat: { kind: 'json' },
      },
      key: ['key_col'],
      keyProven: true,
      backfill: 'snapshot',
      columns: ['key_col', 'b'],
    });
    expect(await made(kafka('matview_1', 'WITH (SNAPSHOT = false)'))).toMatchObject({
      target: { envelope: 'debezium', keyFormat: null },
      key: null,
      backfill: 'none',
    });
  });

  it('keeps the columns as the relation shows them', async () => {
    await client.query("COMMENT ON COLUMN orders.item IS 'what it is'");
    await client.query(kafka('orders', 'KEY (id)'));
    expect(
      await client.rows(
        "SELECT jsonb_path_query(columns, '$[*]') FROM millrace.sink_version v JOIN millrace.sink s ON s.id = v.sink_id WHERE s.status <> 'dropped'",
      ),
    ).toEqual(
      [
        ['id', 'integer', 23, -1, false, null],
        ['customer', 'integer', 23, -1, true, null],
        ['item', 'text', 25, -1, true, 'what it is'],
        ['meta', 'jsonb', 3802, -1, true, null],
        ['at', 'timestamp with time zone', 1184, -1, true, null],
      ].map(([name, type, typeOid, typmod, nullable, comment]) => [
        expect.objectContaining({ name, type, typeOid, typmod, nullable, comment }),
      ]),
    );
    await client.query('DROP SINK s1');
  });

  it('into Postgres and webhooks', async () => {
    await client.query(`CREATE CONNECTION pgc TO POSTGRES (${leadsTo(stage.origin)})`);
    expect(await made('CREATE SINK s1 FROM orders INTO POSTGRES CONNECTION pgc (TABLE \'"S".t\') KEY (id)')).toMatchObject({
      target: { type: 'postgres', schema: 'S', table: 't' },
      key: ['id'],
    });
    expect(await made("CREATE SINK s1 FROM orders INTO WEBHOOK (URL 'https://h.example/p', SECRET pw) KEY (id)")).toMatchObject({
      target: { type: 'webhook', url: 'https://h.example/p', secretId: expect.any(String) },
    });
  });

  it('partitions by what Postgres makes of the expression', async () => {
    const sink = (by: string, rest = 'KEY (id)'): string =>
      `CREATE SINK s1 FROM orders INTO KAFKA CONNECTION kafka_connection (TOPIC 'x', PARTITION BY ${by}) ${rest}`;
    expect(await made(sink('customer % 7'))).toMatchObject({ target: { partitionBy: '(((customer % 7))::bigint)' } });
    expect(
      await refusals(client, [
        sink('nope + 1'),
        sink('orders.id'),
        sink('random()'),
        sink("'2020-01-01'::date"),
        sink('(SELECT 1)'),
        sink('id, 2'),
        sink('count(*)'),
      ]),
    ).toMatchInlineSnapshot(`
      [
        "ERROR 42703 at <nope>: column referenced in PARTITION BY does not exist: nope
      DETAIL: The columns of public.orders are: id, customer, item, meta, at.",
        "ERROR 42703 at <orders>: column referenced in PARTITION BY does not exist: orders.id
      DETAIL: The columns of public.orders are: id, customer, item, meta, at.
      HINT: Columns are named alone there, without the relation.",
        "ERROR 42P17 at <random>: invalid PARTITION BY: functions in PARTITION BY must be marked IMMUTABLE",
        "ERROR 42846 at <'>: invalid PARTITION BY: cannot cast type date to bigint",
        "ERROR 0A000 at <(>: invalid PARTITION BY: cannot use subquery in PARTITION BY",
        "ERROR 42601 at <2>: syntax error at or near "2"",
        "ERROR 42803 at <count>: invalid PARTITION BY: aggregate functions are not allowed in PARTITION BY",
      ]
    `);
    expect(await client.failure(sink('customer', 'KEY (id) ENVELOPE DEBEZIUM'))).toMatchInlineSnapshot(`
      "ERROR 22023 at <customer>: PARTITION BY expression cannot refer to non-key column "customer"
      HINT: With ENVELOPE DEBEZIUM the messages of a key must stay in one partition: use key columns only."
    `);
    expect(await client.rows("SELECT count(*)::int FROM pg_class WHERE relname LIKE 'millrace_partition%'")).toEqual([[0]]);
  });

  it('has the hashes that other producers partition by', async () => {
    // Values of Kafka's own tests (UtilsTest.testMurmur2), the high bit cleared; the check value of CRC-32.
    const words = [
      '21',
      'foobar',
      'a-little-bit-long-string',
      'a-little-bit-longer-string',
      'lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8',
      'abc',
    ];
    const hashes = await client.rows('SELECT millrace.kafka_murmur2(w) FROM unnest($1::text[]) WITH ORDINALITY x(w, n) ORDER BY n', [
      words,
    ]);
    expect(hashes.flat()).toEqual([-973932308, -790332482, -985981536, -1486304829, -58897971, 479470107].map((hash) => hash & 0x7fffffff));
    expect(await client.rows("SELECT millrace.crc32('123456789'), millrace.crc32('\\x00ff'::bytea), millrace.crc32('')")).toEqual([
      ['3421780262', String(crc32(Buffer.from([0, 255]))), '0'],
    ]);
    const sink =
      "CREATE SINK s1 FROM orders INTO KAFKA CONNECTION kafka_connection (TOPIC 'x', PARTITION BY millrace.crc32(item)) KEY (id)";
    expect(await made(sink)).toMatchObject({ target: { partitionBy: 'millrace.crc32(item)' } });
  });

  it('IF NOT EXISTS', async () => {
    await client.query(kafka('matview_1', 'KEY (key_col)'));
    client.takeNotices();
    await client.query(kafka('matview_1', 'KEY (key_col)').replace('SINK', 'SINK IF NOT EXISTS'));
    expect(client.takeNotices()).toEqual(['sink "s1" already exists, skipping']);
    expect(await client.failure(kafka('matview_1', 'KEY (key_col)'))).toMatchInlineSnapshot(
      `"ERROR 42710 at <s1>: sink "s1" already exists"`,
    );
    await client.query('DROP SINK s1');
  });

  it('leaves nothing when it is rolled back', async () => {
    await client.query('BEGIN');
    await client.query(kafka('matview_1', 'KEY (key_col)'));
    await client.query('ROLLBACK');
    expect(await client.rows('SHOW SINKS')).toEqual([]);
  });

  it('refuses what cannot be a sink', async () => {
    const answers = await refusals(client, [
      kafka('nothing', 'KEY (a)'), // what is not there
      kafka('plain', 'KEY (a)'), // a view
      kafka('ordinary', 'KEY (a)'), // an ordinary table
      kafka('s', 'KEY (lsn)'), // a source
      kafka('pg_class', 'KEY (oid)'), // the catalog
      kafka('orders', 'KEY ("ID")'), // an unknown key
      kafka('orders', 'KEY (id, id)'), // a key named twice
      kafka('orders', 'ENVELOPE UPSERT'), // UPSERT without a key
      kafka('orders', 'KEY (id) FORMAT TEXT'), // TEXT with several columns
      kafka('total', 'FORMAT BYTES ENVELOPE DEBEZIUM'), // BYTES with DEBEZIUM
      kafka('orders', 'KEY FORMAT TEXT VALUE FORMAT JSON'), // KEY FORMAT without a key
      kafka('orders', 'KEY (id) HEADERS item'), // headers of another type
      kafka('orders', 'KEY (id) HEADERS heads'), // unknown headers
      kafka('orders', 'KEY (id) HEADERS meta ENVELOPE DEBEZIUM'), // headers with DEBEZIUM
      kafka('orders', 'KEY (id) FORMAT AVRO USING CONFLUENT SCHEMA REGISTRY CONNECTION kafka_connection'), // Avro over another connection
      kafka('orders', "KEY (id) FORMAT AVRO USING CONFLUENT SCHEMA REGISTRY CONNECTION csr (AVRO VALUE FULLNAME 'a.b')"), // one full name of two
      kafka('orders', "FORMAT AVRO USING CONFLUENT SCHEMA REGISTRY CONNECTION csr (AVRO VALUE FULLNAME '1-2')"), // a full name that is none
      kafka('orders', "KEY (id) FORMAT AVRO USING CONFLUENT SCHEMA REGISTRY CONNECTION csr (DOC ON COLUMN orders.x = 'y')"), // documentation of nothing
      kafka('orders', "KEY (id) FORMAT AVRO USING CONFLUENT SCHEMA REGISTRY CONNECTION csr (VALUE COMPATIBILITY LEVEL 'SOME')"), // an unknown level
    ]);
    expect(answers).toMatchInlineSnapshot(`
      [
        "ERROR 42P01 at <nothing>: relation "nothing" does not exist",
        "ERROR 42809 at <plain>: view plain cannot be exported as a sink
      DETAIL: Sinks follow relations that Millrace keeps; this view is Postgres's own.
      HINT: Create a materialized view over live relations, or a stream table, with the query of the view.",
        "ERROR 42809 at <ordinary>: table ordinary cannot be exported as a sink
      DETAIL: Sinks follow relations that Millrace keeps; this table is Postgres's own.
      HINT: Create a stream table over it: SELECT pgtrickle.create_stream_table('my_stream', 'SELECT * FROM ordinary');",
        "ERROR 42809 at <s>: source s cannot be exported as a sink
      HINT: Export a table of it: CREATE TABLE .. FROM SOURCE.",
        "ERROR 42809 at <pg_class>: catalog object pg_class cannot be exported as a sink
      DETAIL: A sink cannot be created directly on a catalog object.
      HINT: Create a table of your own from it.",
        "ERROR 42703 at <"ID">: column referenced in KEY does not exist: ID
      DETAIL: The columns of public.orders are: id, customer, item, meta, at.
      HINT: Perhaps you meant id.",
        "ERROR 42701 at <id>: duplicate column referenced in KEY: id",
        "ERROR 22023: upsert sinks must specify a key
      HINT: Name the columns that tell rows apart: KEY (id).",
        "ERROR 0A000: FORMAT TEXT holds one column",
        "ERROR 0A000: FORMAT BYTES cannot hold the two rows of ENVELOPE DEBEZIUM",
        "ERROR 22023 at <TEXT>: KEY FORMAT needs a KEY
      HINT: Add KEY (..), or give FORMAT alone.",
        "ERROR 0A000 at <item>: HEADERS cannot hold column "item" of type text
      DETAIL: It wants a map of texts.
      HINT: The types are: jsonb, json, hstore.",
        "ERROR 42703 at <heads>: column referenced in HEADERS does not exist: heads
      DETAIL: The columns of public.orders are: id, customer, item, meta, at.",
        "ERROR 22023 at <meta>: HEADERS option is not supported with ENVELOPE DEBEZIUM",
        "ERROR 42809 at <kafka_connection>: "kafka_connection" is not a CONFLUENT SCHEMA REGISTRY connection
      DETAIL: It is a KAFKA connection.
      HINT: SHOW CONNECTIONS WHERE type = 'confluent-schema-registry';",
        "ERROR 22023: must specify both AVRO KEY FULLNAME and AVRO VALUE FULLNAME when specifying generated schema names",
        "ERROR 22023: invalid AVRO VALUE FULLNAME: "1-2"
      HINT: Give a full name of Avro: 'com.example.orders'.",
        "ERROR 22023 at <DOC>: DOC ON COLUMN orders.x is about nothing of the sink
      HINT: Name the relation, orders, or one of its columns: id, customer, item, meta, at.",
        "ERROR 22023: invalid VALUE COMPATIBILITY LEVEL: "SOME"
      HINT: The levels are: NONE, BACKWARD, BACKWARD_TRANSITIVE, FORWARD, FORWARD_TRANSITIVE, FULL, FULL_TRANSITIVE.",
      ]
    `);
  });

  it('refuses options that are not right', async () => {
    const into = [
      "KAFKA CONNECTION kafka_connection (TOPIC 'a b') KEY (id)",
      'KAFKA CONNECTION kafka_connection (TOPIC 5) KEY (id)',
      'KAFKA CONNECTION kafka_connection (COMPRESSION TYPE gzip) KEY (id)',
      "KAFKA CONNECTION kafka_connection (TOPIC 'x', COMPRESSION TYPE 'zip') KEY (id)",
      "KAFKA CONNECTION kafka_connection (TOPIC 'x', TOPIC 'y') KEY (id)",
      "KAFKA CONNECTION kafka_connection (TOPIC 'x', TOPIC REPLICATION FACTOR 0) KEY (id)",
      "KAFKA CONNECTION kafka_connection (TOPIC 'x', TOPIC PARTITION COUNT 'x') KEY (id)",
      "KAFKA CONNECTION kafka_connection (TOPIC 'x', TOPIC CONFIG 'x') KEY (id)",
      "KAFKA CONNECTION kafka_connection (TOPIC 'x', RETENTION 5) KEY (id)",
      "KAFKA CONNECTION c (TOPIC 'x') KEY (id)",
      "KAFKA CONNECTION nowhere (TOPIC 'x') KEY (id)",
      'POSTGRES CONNECTION c (TOPIC x)',
      "POSTGRES CONNECTION c (TABLE 'a.b.c')",
      "POSTGRES CONNECTION c (TABLE 'a') KEY (id) FORMAT JSON",
      "POSTGRES CONNECTION csr (TABLE 'a') KEY (id)",
      "WEBHOOK (URL 'ftp://x') KEY (id)",
      "WEBHOOK (URL 'https://u:p@x') KEY (id)",
      "WEBHOOK (URL 'https://x')",
      "WEBHOOK (URL 'https://x', SECRET nope) KEY (id)",
    ];
    const answers = await refusals(
      client,
      into.map((target) => `CREATE SINK s1 FROM orders INTO ${target}`),
    );
    expect(answers).toMatchInlineSnapshot(`
      [
        "ERROR 22023 at <TOPIC>: invalid TOPIC: "a b"
      HINT: Names of topics have up to 249 letters, digits, dots, dashes and underscores.",
        "ERROR 22023 at <TOPIC>: invalid TOPIC: cannot use a number as string",
        "ERROR 22023: KAFKA sinks must specify TOPIC
      HINT: Add TOPIC '...' to the list.",
        "ERROR 22023 at <COMPRESSION>: invalid COMPRESSION TYPE: "zip"
      HINT: The types are: none, gzip, snappy, lz4, zstd.",
        "ERROR 22023 at <TOPIC>: TOPIC specified more than once",
        "ERROR 22023 at <TOPIC>: TOPIC REPLICATION FACTOR must be a positive integer",
        "ERROR 22023 at <TOPIC>: invalid TOPIC PARTITION COUNT: cannot use a string as number",
        "ERROR 22023 at <TOPIC>: invalid TOPIC CONFIG: cannot use a string as map: MAP['key' => 'value', ..]",
        "ERROR 22023 at <RETENTION>: KAFKA sinks do not support RETENTION values
      HINT: The options are: TOPIC, COMPRESSION TYPE, TRANSACTIONAL ID PREFIX, PROGRESS GROUP ID PREFIX, PARTITION BY, TOPIC REPLICATION FACTOR, TOPIC PARTITION COUNT, TOPIC CONFIG.",
        "ERROR 42809 at <c>: "c" is not a KAFKA connection
      DETAIL: It is a POSTGRES connection.
      HINT: SHOW CONNECTIONS WHERE type = 'kafka';",
        "ERROR 42704 at <nowhere>: connection "nowhere" does not exist
      HINT: SHOW CONNECTIONS; lists what there is.",
        "ERROR 22023 at <TOPIC>: POSTGRES sinks do not support TOPIC values
      HINT: The options are: TABLE.",
        "ERROR 22023: invalid TABLE: "a.b.c"
      HINT: Give it as 'schema.table'.",
        "ERROR 0A000 at <JSON>: FORMAT is not supported for sinks INTO POSTGRES",
        "ERROR 42809 at <csr>: "csr" is not a POSTGRES connection
      DETAIL: It is a CONFLUENT SCHEMA REGISTRY connection.
      HINT: SHOW CONNECTIONS WHERE type = 'postgres';",
        "ERROR 22023: invalid URL: "ftp://x"
      HINT: Give it as 'https://host/path'.",
        "ERROR 22023: invalid URL: it must not contain a user or password
      HINT: Sign requests instead: SECRET my_secret.",
        "ERROR 22023: webhook sinks must specify a key
      HINT: Name the columns that tell rows apart: KEY (id).",
        "ERROR 42704 at <nope>: secret "nope" does not exist
      HINT: SHOW SECRETS; lists what there is.",
      ]
    `);
  });
});

describe('keys that are proven', () => {
  const views: [string, string[], string[]][] = [
    ['SELECT id, item FROM orders', ['id', 'id, item'], ['item']],
    ['SELECT item FROM orders', [], ['item']],
    ['SELECT o.id, o.item, c.name FROM orders o JOIN customers c ON c.id = o.customer', ['id'], ['name', 'item']],
    ['SELECT o.id, c.id AS cid FROM orders o CROSS JOIN customers c', ['id, cid'], ['id', 'cid']],
    ['SELECT customer, count(*) AS n FROM orders GROUP BY customer', ['customer'], ['n']],
    ['SELECT customer, item, max(id) AS m FROM orders GROUP BY customer, item', ['customer, item'], ['customer', 'm']],
    ['SELECT max(id) AS m, item FROM orders GROUP BY customer, item', [], ['m, item']],
    ['SELECT count(*) AS n, sum(id) AS s FROM orders', ['n', 's'], []],
    ['SELECT DISTINCT customer, item FROM orders', ['customer, item'], ['customer']],
    ['SELECT DISTINCT ON (customer) customer, id, item FROM orders ORDER BY customer, id', ['customer'], ['item']],
    ['SELECT id FROM orders UNION SELECT id FROM customers', ['id'], []],
    ['SELECT id FROM orders UNION ALL SELECT id FROM customers', [], ['id']],
    ["SELECT customer, string_agg(item, ',' ORDER BY id) AS items FROM orders GROUP BY customer", ['customer'], ['items']],
    ['SELECT customer, unnest(array_agg(item)) AS item FROM orders GROUP BY customer', [], ['customer']],
    ['SELECT o.id, c.name FROM orders o LEFT JOIN customers c ON c.id = o.customer', [], ['name']],
    ['SELECT a FROM keyless', [], ['a']],
    ['SELECT id, item FROM orders ORDER BY id DESC LIMIT 1', ['item'], []],
  ];

  it.each(views)('%s', async (query, proven, unproven) => {
    await client.query(
      `DROP MATERIALIZED VIEW IF EXISTS mv; SET millrace.wait = on; CREATE MATERIALIZED VIEW mv AS ${query}; SET millrace.wait = off`,
    );
    for (const key of proven) expect([key, await made(kafka('mv', `KEY (${key})`))]).toMatchObject([key, { keyProven: true }]);
    for (const key of unproven)
      expect(await client.failure(kafka('mv', `KEY (${key})`))).toContain('ERROR 42P10: upsert key could not be validated as unique');
  });

  it('are told, and need not be', async () => {
    expect(await client.failure(kafka('orders', 'KEY (item)'))).toMatchInlineSnapshot(`
      "ERROR 42P10: upsert key could not be validated as unique
      DETAIL: Millrace could not prove that the specified upsert envelope key ("item") is a unique key of the underlying relation public.orders. The following keys are known to be unique for the underlying relation:
        ("id")
      HINT: Choose columns that contain a known key, or take the responsibility: KEY (item) NOT ENFORCED."
    `);
    expect(await client.failure(kafka('keyless', 'KEY (a)'))).toMatchInlineSnapshot(`
      "ERROR 42P10: upsert key could not be validated as unique
      DETAIL: Millrace could not prove that the specified upsert envelope key ("a") is a unique key of the underlying relation public.keyless. There are no known valid unique keys for the underlying relation.
      HINT: Choose columns that contain a known key, or take the responsibility: KEY (a) NOT ENFORCED."
    `);
    expect(await client.failure(kafka('items', 'KEY (item)'))).toContain('There are no known valid unique keys');
    client.takeNotices();
    expect(await made(kafka('orders', 'KEY (item) NOT ENFORCED'))).toMatchObject({ key: ['item'], keyProven: false });
    expect(client.takeNotices()).toEqual(['upsert key not validated to be unique']);
    expect(await made(kafka('orders', 'KEY (item) ENVELOPE DEBEZIUM'))).toMatchObject({ key: ['item'] });
  });

  it('follow columns that were renamed', async () => {
    await client.query('ALTER VIEW matview_2 RENAME COLUMN key_col TO k');
    expect(await made(kafka('matview_2', 'KEY (k)'))).toMatchObject({ key: ['k'], keyProven: true });
    await client.query('ALTER VIEW matview_2 RENAME COLUMN k TO key_col');
  });
});

describe('SHOW', () => {
  it('CREATE SINK prints what makes the same again, and no secret', async () => {
    const statements = [
      kafka('matview_1', 'KEY (key_col)'),
      kafka('keyless', ''),
      kafka('orders', 'KEY (item) NOT ENFORCED FORMAT JSON ENVELOPE UPSERT WITH (SNAPSHOT = false)'),
      `CREATE SINK s1 FROM orders INTO KAFKA CONNECTION secured (TOPIC 'x', COMPRESSION TYPE zstd, TRANSACTIONAL ID PREFIX 'it''s', PARTITION BY id % 3,
         TOPIC REPLICATION FACTOR 3, TOPIC PARTITION COUNT 6, TOPIC CONFIG MAP['cleanup.policy' => 'compact']) KEY (id) HEADERS meta
         KEY FORMAT TEXT VALUE FORMAT AVRO USING CONFLUENT SCHEMA REGISTRY CONNECTION csr (AVRO KEY FULLNAME 'a.k', AVRO VALUE FULLNAME 'a.v',
         NULL DEFAULTS, DOC ON TYPE orders = 'all of them', VALUE DOC ON COLUMN orders.item = 'it''s', VALUE COMPATIBILITY LEVEL 'full')`,
      "CREATE SINK s1 FROM orders INTO WEBHOOK (URL 'https://h.example/p', SECRET pw) KEY (id)",
      'CREATE SINK s1 FROM orders INTO POSTGRES CONNECTION c (TABLE \'"S".t\')',
    ];
    const printed: unknown[] = [];
    for (const statement of statements) {
      const before = await made(statement);
      await client.query(statement);
      const [[name, sql] = []] = await client.rows('SHOW CREATE SINK s1');
      await client.query('DROP SINK s1');
      expect(name).toBe('public.s1');
      expect(await made(String(sql))).toEqual(before);
      printed.push(sql);
    }
    expect(printed).toMatchInlineSnapshot(`
      [
        "CREATE SINK public.s1
        FROM public.matview_1
        INTO KAFKA CONNECTION public.kafka_connection (TOPIC 'x')
        KEY (key_col)
        FORMAT JSON
        ENVELOPE UPSERT",
        "CREATE SINK public.s1
        FROM public.keyless
        INTO KAFKA CONNECTION public.kafka_connection (TOPIC 'x')
        FORMAT JSON
        ENVELOPE DEBEZIUM",
        "CREATE SINK public.s1
        FROM public.orders
        INTO KAFKA CONNECTION public.kafka_connection (TOPIC 'x')
        KEY (item) NOT ENFORCED
        FORMAT JSON
        ENVELOPE UPSERT
        WITH (SNAPSHOT = false)",
        "CREATE SINK public.s1
        FROM public.orders
        INTO KAFKA CONNECTION public.secured (TOPIC 'x', COMPRESSION TYPE 'zstd', TRANSACTIONAL ID PREFIX 'it''s', PARTITION BY (((id % 3))::bigint), TOPIC REPLICATION FACTOR 3, TOPIC PARTITION COUNT 6, TOPIC CONFIG MAP['cleanup.policy' => 'compact'])
        KEY (id)
        HEADERS meta
        KEY FORMAT TEXT VALUE FORMAT AVRO USING CONFLUENT SCHEMA REGISTRY CONNECTION public.csr (AVRO KEY FULLNAME 'a.k', AVRO VALUE FULLNAME 'a.v', NULL DEFAULTS = true, KEY DOC ON TYPE public.orders = 'all of them', VALUE DOC ON TYPE public.orders = 'all of them', VALUE DOC ON COLUMN public.orders.item = 'it''s', VALUE COMPATIBILITY LEVEL 'FULL')
        ENVELOPE UPSERT",
        "CREATE SINK public.s1
        FROM public.orders
        INTO WEBHOOK (URL 'https://h.example/p', SECRET public.pw)
        KEY (id)",
        "CREATE SINK public.s1
        FROM public.orders
        INTO POSTGRES CONNECTION public.c (TABLE '"S".t')",
      ]
    `);
    for (const thing of ['CONNECTION secured', 'CONNECTION csr', 'CONNECTION kafka_connection']) {
      printed.push((await client.rows(`SHOW CREATE ${thing}`))[0]?.[1]);
    }
    expect(printed.slice(-3)).toMatchInlineSnapshot(`
      [
        "CREATE CONNECTION public.secured TO KAFKA (BROKERS ('a:1', 'b:2'), SASL PASSWORD SECRET public.pw, SASL USERNAME 'u', SASL MECHANISMS 'PLAIN')",
        "CREATE CONNECTION public.csr TO CONFLUENT SCHEMA REGISTRY (URL 'http://127.0.0.1:1', PASSWORD SECRET public.pw, USERNAME 'u')",
        "CREATE CONNECTION public.kafka_connection TO KAFKA (BROKER '127.0.0.1:1', SECURITY PROTOCOL 'plaintext')",
      ]
    `);
    expect(printed.join()).not.toContain('hush');
  });

  it('SINKS, and the views that tell of them', async () => {
    await client.query(kafka('matview_1', 'KEY (key_col)'));
    expect((await client.rows("SHOW SINKS LIKE 's%'")).map((row) => [...row.slice(0, 3), row[4]])).toEqual([
      ['s1', 'kafka', 'public.matview_1', ''],
    ]);
    expect(await client.rows("SHOW SINKS WHERE type = 'webhook'")).toEqual([]);
    await client.query('ALTER SINK s1 PAUSE');
    expect(await client.rows('SELECT name, type, status FROM mz_internal.mz_sink_statuses')).toEqual([['s1', 'kafka', 'paused']]);
    await client.query('ALTER SINK s1 RESUME');
    await client.query('CREATE ROLE reader LOGIN');
    const reader = await stage.connect('reader');
    expect(await reader.rows('SELECT schema, name, type, relation, next_relation, owner FROM millrace.sinks')).toEqual([
      ['public', 's1', 'kafka', 'public.matview_1', null, 'postgres'],
    ]);
    expect(await reader.rows('SELECT messages_committed::int, bytes_committed::int FROM mz_internal.mz_sink_statistics')).toEqual([[0, 0]]);
    expect(await reader.rows('SELECT topic FROM mz_internal.mz_kafka_sinks')).toEqual([['x']]);
    expect(await reader.failure('SELECT * FROM millrace.sink')).toContain('42501');
    await client.query('DROP SINK s1');
  });
});

describe('ALTER SINK .. SET FROM', () => {
  const versions = (): Promise<unknown[][]> =>
    client.rows(`
      SELECT v.version, millrace.qualified_name(r.facade), v.backfill
        FROM millrace.sink_version v JOIN millrace.sink s ON s.id = v.sink_id JOIN millrace.relation r ON r.id = v.relation_id
       WHERE s.name = 'foo' AND s.status <> 'dropped' ORDER BY 1`);

  beforeAll(async () => {
    await client.query(kafka('matview_1', 'KEY (key_col)').replace('s1', 'foo'));
    const cut = "SELECT cut_ts IS NOT NULL FROM millrace.sink_version v JOIN millrace.sink s ON s.id = v.sink_id WHERE s.name = 'foo'";
    await eventually(client, cut, [[true]]);
  });
  afterAll(() => client.query('DROP SINK IF EXISTS foo'));

  it('checks what CREATE SINK would, and changes nothing when something is wrong', async () => {
    await client.query(`
      SET millrace.wait = on;
      CREATE MATERIALIZED VIEW other_name AS SELECT a AS k, b FROM t;
      CREATE MATERIALIZED VIEW other_type AS SELECT a::bigint AS key_col, b FROM t;
      CREATE MATERIALIZED VIEW unproven AS SELECT o.id AS key_col FROM orders o CROSS JOIN customers;
      SET millrace.wait = off;
    `);
    const answers: string[] = [];
    for (const relation of ['nothing', 'plain', 'other_name', 'other_type', 'unproven', 'foo'])
      answers.push(await client.failure(`ALTER SINK foo SET FROM ${relation}`));
    expect(answers).toMatchInlineSnapshot(`
      [
        "ERROR 42P01 at <nothing>: relation "nothing" does not exist",
        "ERROR 42809 at <plain>: view plain cannot be exported as a sink
      DETAIL: Sinks follow relations that Millrace keeps; this view is Postgres's own.
      HINT: Create a materialized view over live relations, or a stream table, with the query of the view.",
        "ERROR 42703: column referenced in KEY does not exist: key_col
      DETAIL: The columns of public.other_name are: k, b.",
        "ERROR 42804: key column "key_col" is of type bigint in public.other_type but of type integer in the present relation of the sink
      HINT: Cast it in the view, or create another sink.",
        "ERROR 42P10: upsert key could not be validated as unique
      DETAIL: Millrace could not prove that the specified upsert envelope key ("key_col") is a unique key of the underlying relation public.unproven. There are no known valid unique keys for the underlying relation.
      HINT: Choose columns that contain a known key, or take the responsibility: KEY (key_col) NOT ENFORCED.",
        "ERROR 42809 at <foo>: sink foo cannot be exported as a sink",
      ]
    `);
    expect(await versions()).toEqual([[1, 'public.matview_1', 'snapshot']]);
    expect(await client.failure("ALTER SINK foo SET FROM matview_2 WITH (TIMEOUT = 'soon')")).toContain('22007');
    expect(await client.failure('ALTER SINK nope SET FROM matview_2')).toMatchInlineSnapshot(`
      "ERROR 42704 at <nope>: sink "nope" does not exist
      HINT: SHOW SINKS; lists what there is."
    `);
    client.takeNotices();
    await client.query('ALTER SINK IF EXISTS nope SET FROM matview_2');
    expect(client.takeNotices()).toEqual(['sink "nope" does not exist, skipping']);
  });

  it('goes with a schema swap or not at all; the last of a transaction counts', async () => {
    await client.query('CREATE SCHEMA blue; CREATE SCHEMA green');
    await client.query('BEGIN');
    await client.query('ALTER SINK foo SET FROM matview_2 WITH (BACKFILL = diff)');
    await client.query('ALTER SCHEMA blue SWAP WITH green');
    await client.query('ROLLBACK');
    expect(await versions()).toEqual([[1, 'public.matview_1', 'snapshot']]);
    await client.query('BEGIN');
    await client.query('SAVEPOINT a');
    await client.query('ALTER SINK foo SET FROM matview_2 WITH (BACKFILL = diff)');
    expect(await versions()).toEqual([
      [1, 'public.matview_1', 'snapshot'],
      [2, 'public.matview_2', 'diff'],
    ]);
    await client.query('ALTER SINK foo SET FROM matview_1');
    expect(await versions()).toEqual([
      [1, 'public.matview_1', 'snapshot'],
      [2, 'public.matview_1', 'none'],
    ]);
    await client.query('ROLLBACK');
  });

  it('keeps the former relation until the cutover', async () => {
    await client.query('BEGIN');
    await client.query('ALTER SINK foo SET FROM matview_2');
    expect(await client.failure('DROP MATERIALIZED VIEW matview_1 CASCADE')).toMatchInlineSnapshot(`
      "ERROR 55006: sink public.foo still reads materialized view public.matview_1 until its cutover
      HINT: Wait until next_relation of it is empty in millrace.sinks, or type: DROP SINK public.foo;"
    `);
    await client.query('ROLLBACK');
  });

  it('of a sink made in the same transaction is what it begins with', async () => {
    await client.query('BEGIN');
    await client.query(kafka('matview_1', 'KEY (key_col)'));
    await client.query('ALTER SINK s1 SET FROM matview_2 WITH (BACKFILL = diff)');
    expect(
      await client.rows(
        "SELECT v.version, v.backfill, millrace.qualified_name(r.facade) FROM millrace.sink_version v JOIN millrace.sink s ON s.id = v.sink_id JOIN millrace.relation r ON r.id = v.relation_id WHERE s.name = 's1' AND s.status <> 'dropped'",
      ),
    ).toEqual([[1, 'snapshot', 'public.matview_2']]);
    await client.query('ROLLBACK');
  });

  it('DRY RUN counts what the topic would have wrong', async () => {
    await client.query(`
      SET millrace.wait = on;
      CREATE MATERIALIZED VIEW changed AS SELECT a AS key_col, CASE a WHEN 1 THEN 'other' ELSE b END AS b FROM t;
      CREATE MATERIALIZED VIEW more AS SELECT id AS key_col, CASE id WHEN 1 THEN 'one' WHEN 2 THEN 'two' END AS b FROM orders;
      CREATE MATERIALIZED VIEW fewer AS SELECT a AS key_col, b FROM t WHERE a > 1;
      CREATE MATERIALIZED VIEW wider AS SELECT a AS key_col, b, 1 AS c FROM t;
      SET millrace.wait = off;
    `);
    const dry = (relation: string): Promise<unknown[][]> => client.rows(`ALTER SINK foo SET FROM ${relation} WITH (DRY RUN)`);
    expect(await dry('changed')).toEqual([['1', '0', '0']]);
    expect(await dry('more')).toEqual([['0', '1', '0']]);
    expect(await dry('fewer')).toEqual([['0', '0', '1']]);
    expect(await dry('wider')).toEqual([['2', '0', '0']]);
    expect(await dry('matview_1')).toEqual([['0', '0', '0']]);
    // Described before it runs, as the extended protocol wants it.
    const described = await client.query({ name: 'dry', text: 'ALTER SINK foo SET FROM changed WITH (DRY RUN)', values: [] });
    expect([described.fields.map(({ name }) => name), described.rows]).toEqual([
      ['stale_keys', 'missing_keys', 'orphaned_keys'],
      [{ stale_keys: '1', missing_keys: '0', orphaned_keys: '0' }],
    ]);
    expect(await versions()).toEqual([[1, 'public.matview_1', 'snapshot']]);
  });

  it('DRY RUN without a key counts rows', async () => {
    await client.query(kafka('matview_1', ''));
    expect(await client.rows('ALTER SINK s1 SET FROM changed WITH (DRY RUN)')).toEqual([['0', '1', '1']]);
    expect(await client.rows('ALTER SINK s1 SET FROM wider WITH (DRY RUN)')).toEqual([['0', '2', '2']]);
    await client.query('DROP SINK s1');
  });

  it('is of its owner, who may read the relation', async () => {
    await client.query(
      'CREATE ROLE maker LOGIN; CREATE ROLE stranger LOGIN; CREATE SCHEMA maker AUTHORIZATION maker; GRANT SELECT ON matview_1 TO maker',
    );
    const [maker, stranger] = [await stage.connect('maker'), await stage.connect('stranger')];
    expect(
      await maker.failure("CREATE SINK maker.s FROM matview_1 INTO KAFKA CONNECTION kafka_connection (TOPIC 'x') KEY (key_col)"),
    ).toMatchInlineSnapshot(`
      "ERROR 42501: must be owner of connection kafka_connection
      DETAIL: It belongs to role "postgres"; the current role is "maker".
      HINT: Act as its owner (SET ROLE postgres;) or ask for membership: GRANT postgres TO ...;"
    `);
    await maker.query(
      "CREATE CONNECTION maker.k TO KAFKA (BROKER '127.0.0.1:1', SECURITY PROTOCOL PLAINTEXT) WITH (VALIDATE = false); SET millrace.wait = off",
    );
    const sink = "CREATE SINK maker.s FROM matview_1 INTO KAFKA CONNECTION maker.k (TOPIC 'x') KEY (key_col)";
    expect(await maker.failure(sink.replace('matview_1', 'matview_2'))).toMatchInlineSnapshot(`
      "ERROR 42501 at <matview_2>: permission denied for materialized view matview_2
      DETAIL: A sink of it needs SELECT; the current role is "maker".
      HINT: Its owner can grant it: GRANT SELECT ON matview_2 TO maker;"
    `);
    expect(await maker.failure(sink.replace('maker.s', 'public.s'))).toMatchInlineSnapshot(`
      "ERROR 42501: permission denied for schema public
      HINT: Its owner can grant it: GRANT CREATE ON SCHEMA public TO ...;"
    `);
    await maker.query(sink);
    expect(await maker.failure('ALTER SINK maker.s SET FROM matview_2')).toContain('permission denied for materialized view matview_2');
    expect(await stranger.failure('ALTER SINK maker.s PAUSE')).toMatchInlineSnapshot(`
      "ERROR 42501: must be owner of sink maker.s
      DETAIL: It belongs to role "maker"; the current role is "stranger".
      HINT: Act as its owner (SET ROLE maker;) or ask for membership: GRANT maker TO ...;"
    `);
    expect(await stranger.failure('DROP SINK maker.s')).toContain('must be owner of sink maker.s');
    expect(await maker.failure('ALTER SINK maker.s OWNER TO stranger')).toMatchInlineSnapshot(`
      "ERROR 42501: must be able to SET ROLE "stranger"
      HINT: A member of the role can grant it: GRANT stranger TO ...;"
    `);
    expect(await maker.failure('ALTER SINK maker.s OWNER TO nobody_there')).toContain('role "nobody_there" does not exist');
    await client.query('ALTER SINK maker.s OWNER TO CURRENT_USER');
    expect(await client.rows("SELECT owner FROM millrace.sinks WHERE schema = 'maker'")).toEqual([['postgres']]);
    await client.query('ALTER SINK maker.s RENAME TO "New"');
    expect((await client.rows('SHOW SINKS FROM maker')).map(([name]) => name)).toEqual(['New']);
    await client.query('DROP SINK maker."New"');
  });
});

describe('DROP', () => {
  const sinks = (): Promise<unknown[]> => client.rows('SELECT name FROM millrace.sinks ORDER BY 1').then((rows) => rows.flat());

  it('of what a sink reads or uses is refused, and takes it along with CASCADE', async () => {
    await client.query(
      'SET millrace.wait = on; CREATE SCHEMA d; CREATE TABLE d.t FROM SOURCE s (REFERENCE public.t); CREATE MATERIALIZED VIEW d.m AS SELECT a, b FROM d.t',
    );
    await client.query(
      "CREATE SECRET d.pw AS 'x'; CREATE CONNECTION d.k TO KAFKA (BROKER 'a:1', SASL MECHANISMS 'PLAIN', SASL USERNAME 'u', SASL PASSWORD SECRET d.pw) WITH (VALIDATE = false); CREATE CONNECTION d.r TO CONFLUENT SCHEMA REGISTRY (URL 'http://h:1') WITH (VALIDATE = false)",
    );
    await client.query('SET millrace.wait = off');
    const make = async (): Promise<void> => {
      await client.query(
        "CREATE SINK d1 FROM d.m INTO KAFKA CONNECTION d.k (TOPIC 'x') KEY (a) FORMAT AVRO USING CONFLUENT SCHEMA REGISTRY CONNECTION d.r",
      );
      await client.query("CREATE SINK d2 FROM d.t INTO WEBHOOK (URL 'https://h', SECRET d.pw) KEY (a)");
    };
    await make();
    const drops = ['MATERIALIZED VIEW d.m', 'TABLE d.t', 'CONNECTION d.k', 'CONNECTION d.r', 'SECRET d.pw', 'SCHEMA d'];
    const refused: string[] = [];
    for (const drop of drops) refused.push(await client.failure(`DROP ${drop}`));
    expect(refused).toMatchInlineSnapshot(`
      [
        "ERROR 2BP01: cannot drop materialized view "d.m" because other objects depend on it
      DETAIL: sink public.d1 depends on materialized view d.m
      HINT: Use DROP ... CASCADE to drop the dependent objects too.",
        "ERROR 2BP01: cannot drop table "d.t" because other objects depend on it
      DETAIL: sink public.d1 depends on materialized view d.m
      sink public.d2 depends on table d.t
      materialized view d.m depends on table d.t
      HINT: Use DROP ... CASCADE to drop the dependent objects too.",
        "ERROR 2BP01: cannot drop connection "d.k" because other objects depend on it
      DETAIL: sink public.d1 depends on connection d.k
      HINT: Use DROP ... CASCADE to drop the dependent objects too.",
        "ERROR 2BP01: cannot drop connection "d.r" because other objects depend on it
      DETAIL: sink public.d1 depends on connection d.r
      HINT: Use DROP ... CASCADE to drop the dependent objects too.",
        "ERROR 2BP01: cannot drop secret "d.pw" because other objects depend on it
      DETAIL: connection d.k depends on secret d.pw
      sink public.d2 depends on secret d.pw
      sink public.d1 depends on connection d.k
      HINT: Use DROP ... CASCADE to drop the dependent objects too.",
        "ERROR 2BP01: cannot drop schema "d" because other objects depend on it
      DETAIL: secret d.pw depends on schema d
      connection d.k depends on schema d
      connection d.r depends on schema d
      table d.t depends on schema d
      materialized view d.m depends on schema d
      HINT: Use DROP ... CASCADE to drop the dependent objects too.",
      ]
    `);
    const left: unknown[] = [];
    for (const drop of drops) {
      client.takeNotices();
      await client.query('BEGIN');
      await client.query(`DROP ${drop} CASCADE`);
      left.push([drop, await sinks(), client.takeNotices()]);
      await client.query('ROLLBACK');
    }
    expect(left).toMatchInlineSnapshot(`
      [
        [
          "MATERIALIZED VIEW d.m",
          [
            "d2",
          ],
          [
            "drop cascades to sink public.d1",
          ],
        ],
        [
          "TABLE d.t",
          [],
          [
            "drop cascades to 3 other objects
      drop cascades to sink public.d1
      drop cascades to sink public.d2
      drop cascades to materialized view d.m",
          ],
        ],
        [
          "CONNECTION d.k",
          [
            "d2",
          ],
          [
            "drop cascades to sink public.d1",
          ],
        ],
        [
          "CONNECTION d.r",
          [
            "d2",
          ],
          [
            "drop cascades to sink public.d1",
          ],
        ],
        [
          "SECRET d.pw",
          [],
          [
            "drop cascades to 3 other objects
      drop cascades to connection d.k
      drop cascades to sink public.d2
      drop cascades to sink public.d1",
          ],
        ],
        [
          "SCHEMA d",
          [],
          [
            "drop cascades to 7 other objects
      drop cascades to secret d.pw
      drop cascades to connection d.k
      drop cascades to connection d.r
      drop cascades to sink public.d1
      drop cascades to sink public.d2
      drop cascades to table d.t
      drop cascades to materialized view d.m",
          ],
        ],
      ]
    `);
    await client.query('DROP SCHEMA d CASCADE');
    expect(await sinks()).toEqual([]);
  });

  it('of a schema takes the sinks in it', async () => {
    await client.query('CREATE SCHEMA d');
    await client.query(kafka('matview_1', 'KEY (key_col)').replace('s1', 'd.s1'));
    expect(await client.failure('DROP SCHEMA d')).toMatchInlineSnapshot(`
      "ERROR 2BP01: cannot drop schema "d" because other objects depend on it
      DETAIL: sink d.s1 depends on schema d
      HINT: Use DROP ... CASCADE to drop the dependent objects too."
    `);
    await client.query('DROP SCHEMA d CASCADE');
    expect(await sinks()).toEqual([]);
  });

  it('of a stream table', async () => {
    await client.query('SET millrace.wait = on; INSERT INTO ordinary VALUES (1)');
    await client.query("SELECT pgtrickle.create_stream_table('st', 'SELECT a FROM ordinary')");
    await client.query('SET millrace.wait = off');
    await client.query(kafka('st', 'KEY (a)'));
    expect(await client.failure("SELECT pgtrickle.drop_stream_table('st')")).toMatchInlineSnapshot(
      `"ERROR 22023: invalid argument: stream table public.st has dependent sinks: public.s1. Use cascade => true to drop them automatically."`,
    );
    expect(await client.failure("SELECT pgtrickle.alter_stream_table('st', refresh_mode => 'IMMEDIATE')")).toMatchInlineSnapshot(
      `"ERROR 22023: invalid argument: stream table public.st has dependent sinks: public.s1. Create another stream table and give it to them: ALTER SINK .. SET FROM."`,
    );
    expect(
      await client.failure("SELECT pgtrickle.alter_stream_table('st', query => 'SELECT a, 1 AS b FROM ordinary')"),
    ).toMatchInlineSnapshot(
      `"ERROR 22023: invalid argument: stream table public.st has dependent sinks: public.s1. Create another stream table and give it to them: ALTER SINK .. SET FROM."`,
    );
    await client.query("SELECT pgtrickle.drop_stream_table('st', cascade => true)");
    expect(await sinks()).toEqual([]);
    await client.query("SELECT pgtrickle.create_stream_table('now', 'SELECT a FROM ordinary', refresh_mode => 'IMMEDIATE')");
    expect(await client.failure(kafka('now', 'KEY (a)'))).toMatchInlineSnapshot(`
      "ERROR 42809 at <now>: stream table now cannot be exported as a sink
      DETAIL: In IMMEDIATE mode it changes within the writers' own transactions, which Millrace does not follow.
      HINT: SELECT pgtrickle.alter_stream_table(.., refresh_mode => 'DIFFERENTIAL');"
    `);
  });

  it('SINK', async () => {
    await client.query(kafka('matview_1', 'KEY (key_col)'));
    client.takeNotices();
    await client.query('DROP SINK IF EXISTS nope, s1');
    expect(client.takeNotices()).toEqual(['sink "nope" does not exist, skipping']);
    expect(await client.failure('DROP SINK s1')).toMatchInlineSnapshot(`
      "ERROR 42704 at <s1>: sink "s1" does not exist
      HINT: SHOW SINKS; lists what there is."
    `);
  });
});

describe('connections to Kafka and registries', () => {
  it('refuse options that are not right', async () => {
    const targets = [
      "KAFKA (BROKER 'h:0')",
      "KAFKA (BROKER 'a:1', BROKERS ('b:2'))",
      "KAFKA (SECURITY PROTOCOL 'SSL')",
      "KAFKA (BROKER 'a:1', SECURITY PROTOCOL 'TLS')",
      "KAFKA (BROKER 'a:1', SECURITY PROTOCOL PLAINTEXT, SASL USERNAME 'u')",
      "KAFKA (BROKER 'a:1', SASL MECHANISMS 'GSSAPI', SASL USERNAME 'u', SASL PASSWORD SECRET pw)",
      "KAFKA (BROKER 'a:1', SASL MECHANISMS 'PLAIN', SASL USERNAME 'u')",
      "KAFKA (BROKER 'a:1', SASL PASSWORD 'plain')",
      "KAFKA (BROKER 'a:1', PROGRESS TOPIC REPLICATION FACTOR 0)",
      "KAFKA (BROKER 'a:1', HOST 'x')",
      "KAFKA (BROKER 'a:1', SSL KEY SECRET pw)",
      'CONFLUENT SCHEMA REGISTRY (USERNAME u)',
      "CONFLUENT SCHEMA REGISTRY (URL 'http://h/path?x')",
      "CONFLUENT SCHEMA REGISTRY (URL 'http://u:p@h')",
      "CONFLUENT SCHEMA REGISTRY (URL 'h:8081')",
      "POSTGRES (HOST ['a', 'b'], DATABASE 'd', USER 'u')",
      "CONFLUENT SCHEMA REGISTRY (URL 'http://h', PASSWORD SECRET pw)",
    ];
    const answers = await refusals(
      client,
      targets.map((target) => `CREATE CONNECTION n TO ${target} WITH (VALIDATE = false)`),
    );
    expect(answers).toMatchInlineSnapshot(`
      [
        "ERROR 22023: invalid BROKER: "h:0"
      HINT: Give host and port: 'kafka:9092'.",
        "ERROR 22023: can only set one of BROKER and BROKERS",
        "ERROR 22023: invalid CONNECTION: must set BROKER or BROKERS
      HINT: Add BROKER 'host:9092' to the list.",
        "ERROR 22023: invalid CONNECTION: unknown SECURITY PROTOCOL "TLS"
      HINT: The protocols are: PLAINTEXT, SSL, SASL_PLAINTEXT, SASL_SSL.",
        "ERROR 22023: invalid CONNECTION: SASL options have no meaning with SECURITY PROTOCOL PLAINTEXT",
        "ERROR 22023: invalid CONNECTION: unknown SASL MECHANISMS "GSSAPI"
      HINT: The mechanisms are: PLAIN, SCRAM-SHA-256, SCRAM-SHA-512.",
        "ERROR 22023: SASL PASSWORD option is required
      HINT: Add SASL USERNAME '...', SASL PASSWORD SECRET ... to the list.",
        "ERROR 22023 at <SASL>: SASL PASSWORD must be a secret
      HINT: Type: CREATE SECRET my_password AS '...'; and then SASL PASSWORD SECRET my_password.",
        "ERROR 22023: invalid CONNECTION: PROGRESS TOPIC REPLICATION FACTOR must be greater than 0",
        "ERROR 22023 at <HOST>: KAFKA connections do not support HOST values
      HINT: The options are: BROKER, BROKERS, SECURITY PROTOCOL, SASL MECHANISMS, SASL USERNAME, SASL PASSWORD, SSL CERTIFICATE AUTHORITY, SSL CERTIFICATE, SSL KEY, PROGRESS TOPIC, PROGRESS TOPIC REPLICATION FACTOR.",
        "ERROR 22023: invalid CONNECTION: both SSL KEY and SSL CERTIFICATE are required",
        "ERROR 22023: URL option is required
      HINT: Add URL '...' to the list.",
        "ERROR 22023: invalid CONNECTION: URL must not go on behind its path",
        "ERROR 22023: invalid CONNECTION: URL must not contain a user or password
      HINT: Give them as USERNAME '...', PASSWORD SECRET ....",
        "ERROR 22023: invalid CONNECTION: invalid URL "h:8081"
      HINT: Give it as 'http://host:8081'.",
        "ERROR 22023 at <HOST>: invalid HOST: cannot use a list as its value",
        "ERROR 22023: USERNAME option is required
      HINT: Add USERNAME '...' to the list: PASSWORD alone says nothing.",
      ]
    `);
  });

  it('are tried, unless told not to', async () => {
    expect(await client.failure("CREATE CONNECTION n TO KAFKA (BROKER '127.0.0.1:1', SECURITY PROTOCOL PLAINTEXT)")).toMatchInlineSnapshot(`
      "ERROR 08001: failed to connect to Kafka
      DETAIL: cannot connect to Kafka at 127.0.0.1:1: connect ECONNREFUSED 127.0.0.1:1
      HINT: Check that Kafka listens at 127.0.0.1:1 for clients without TLS, and that this machine may reach it."
    `);
    expect(await client.failure('VALIDATE CONNECTION kafka_connection')).toContain('ERROR 08001: failed to connect to Kafka');
    expect(await client.failure("CREATE CONNECTION n TO CONFLUENT SCHEMA REGISTRY (URL 'http://127.0.0.1:1')")).toMatchInlineSnapshot(`
      "ERROR 08001: failed to connect to the schema registry
      DETAIL: cannot list subjects in the schema registry: connect ECONNREFUSED 127.0.0.1:1
      HINT: Check that a schema registry listens at http://127.0.0.1:1, and that this machine may reach it."
    `);
  });

  it('are altered', async () => {
    await client.query(
      "ALTER CONNECTION secured SET (BROKER 'c:3'), RESET (SASL MECHANISMS, SASL USERNAME, SASL PASSWORD) WITH (VALIDATE = false)".replace(
        'RESET (SASL MECHANISMS, SASL USERNAME, SASL PASSWORD)',
        'RESET (SASL MECHANISMS), RESET (SASL USERNAME), RESET (SASL PASSWORD)',
      ),
    );
    expect((await client.rows('SHOW CREATE CONNECTION secured'))[0]?.[1]).toBe("CREATE CONNECTION public.secured TO KAFKA (BROKER 'c:3')");
    expect(await client.failure("ALTER CONNECTION secured SET (PROGRESS TOPIC 'x') WITH (VALIDATE = false)")).toMatchInlineSnapshot(`
      "ERROR 22023: cannot ALTER KAFKA option PROGRESS TOPIC
      DETAIL: Sinks of the connection find in it how far they are.
      HINT: Create another connection."
    `);
    expect(await client.failure("ALTER CONNECTION secured SET (BROKER 'x:1'), DROP (BROKER) WITH (VALIDATE = false)")).toContain(
      'cannot both SET and DROP/RESET option BROKER',
    );
    expect(await client.failure("CREATE SOURCE n FROM POSTGRES CONNECTION csr (PUBLICATION 'p')")).toMatchInlineSnapshot(`
      "ERROR 42809 at <csr>: "csr" is not a POSTGRES connection
      DETAIL: It is a CONFLUENT SCHEMA REGISTRY connection.
      HINT: SHOW CONNECTIONS WHERE type = 'postgres';"
    `);
  });
});
