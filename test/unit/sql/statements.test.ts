import { describe, expect, test } from 'vitest';
import type { ExtendedStatement } from '../../../src/sql/ast.ts';
import { parseStatements } from '../../../src/sql/statements.ts';

/** The one statement of a text. */
function one(text: string): ExtendedStatement | null {
  const statements = parseStatements(text);
  expect(statements).toHaveLength(1);
  return statements[0]?.statement ?? null;
}

const name = (written: string): unknown => {
  const [first, second] = written.split('.');
  return { schema: second === undefined ? null : first, name: second ?? first, at: expect.any(Number) };
};
const identifier = (written: string): unknown => ({ name: written, at: expect.any(Number) });

const good: [string, unknown][] = [
  ["CREATE SECRET s AS 'it''s'", { type: 'create_secret', ifNotExists: false, name: name('s'), value: "it's" }],
  ["create secret if not exists a.s as $x$it's$x$", { type: 'create_secret', ifNotExists: true, name: name('a.s'), value: "it's" }],
  ["CREATE SECRET s AS E'a\\nb\\x41\\101\\u00e9\\'\\\\'''", { type: 'create_secret', value: "a\nbAA\u00e9'\\'" }],
  ["CREATE SECRET s AS E'\\xC3\\xA9 \\ud83d\\ude00 \\U0001F600'", { type: 'create_secret', value: '\u00e9 😀 😀' }],
  ["CREATE SECRET s AS 'a\\b'", { type: 'create_secret', value: 'a\\b' }],
  ["CREATE SECRET s AS 'one' -- goes on\n  'two'", { type: 'create_secret', value: 'onetwo' }],
  ["CREATE SECRET s AS decode('aMOp', 'base64')", { type: 'create_secret', value: 'hé' }],
  ["CREATE SECRET s AS decode('68 c3a9','HEX')", { type: 'create_secret', value: 'hé' }],
  ['CREATE SECRET s AS $$$$', { type: 'create_secret', value: '' }],
  ["ALTER SECRET IF EXISTS s AS 'x'", { type: 'alter_secret', ifExists: true, name: name('s'), value: 'x' }],
  [
    "CREATE CONNECTION c TO POSTGRES (HOST 'h', PORT 5432, USER u, PASSWORD SECRET a.p, DATABASE = 'd', SSL MODE verify_full, SSL KEY = SECRET k)",
    {
      type: 'create_connection',
      ifNotExists: false,
      name: name('c'),
      target: 'postgres',
      options: [
        { name: 'HOST', value: { kind: 'string', value: 'h' }, at: 33 },
        { name: 'PORT', value: { kind: 'number', value: 5432 }, at: 43 },
        { name: 'USER', value: { kind: 'identifier', name: name('u') }, at: 54 },
        { name: 'PASSWORD', value: { kind: 'secret', name: name('a.p') }, at: 62 },
        { name: 'DATABASE', value: { kind: 'string', value: 'd' }, at: 83 },
        { name: 'SSL MODE', value: { kind: 'identifier', name: name('verify_full') }, at: 99 },
        { name: 'SSL KEY', value: { kind: 'secret', name: name('k') }, at: 121 },
      ],
      validate: null,
    },
  ],
  ['CREATE CONNECTION c FOR POSTGRES (HOST h) WITH (VALIDATE)', { type: 'create_connection', validate: true }],
  ["CREATE CONNECTION c TO POSTGRES (HOST 'h') WITH (VALIDATE = FALSE)", { type: 'create_connection', validate: false }],
  [
    "CREATE CONNECTION c TO POSTGRES (some new thing 'x', flag, ssl  certificate\n authority 'pem', other SECRET s, secret secret t, n -1.5, b = true)",
    {
      type: 'create_connection',
      options: [
        { name: 'SOME NEW THING', value: { kind: 'string', value: 'x' }, at: expect.any(Number) },
        { name: 'FLAG', value: { kind: 'boolean', value: true }, at: expect.any(Number) },
        { name: 'SSL CERTIFICATE AUTHORITY', value: { kind: 'string', value: 'pem' }, at: expect.any(Number) },
        { name: 'OTHER', value: { kind: 'secret', name: name('s') }, at: expect.any(Number) },
        { name: 'SECRET', value: { kind: 'secret', name: name('t') }, at: expect.any(Number) },
        { name: 'N', value: { kind: 'number', value: -1.5 }, at: expect.any(Number) },
        { name: 'B', value: { kind: 'boolean', value: true }, at: expect.any(Number) },
      ],
    },
  ],
  [
    "ALTER CONNECTION IF EXISTS c SET (HOST 'a', PORT = 1), DROP (SSL KEY), RESET (SSH TUNNEL, PORT) WITH (VALIDATE false)",
    {
      type: 'alter_connection',
      ifExists: true,
      name: name('c'),
      set: [
        { name: 'HOST', value: { kind: 'string', value: 'a' }, at: 34 },
        { name: 'PORT', value: { kind: 'number', value: 1 }, at: 44 },
      ],
      reset: ['SSL KEY', 'SSH TUNNEL', 'PORT'],
      validate: false,
    },
  ],
  ['VALIDATE CONNECTION a.c', { type: 'validate_connection', name: name('a.c') }],
  [
    "CREATE SOURCE IF NOT EXISTS my_source\n    FROM POSTGRES CONNECTION my_connection (PUBLICATION 'mz_source')",
    {
      type: 'create_source',
      ifNotExists: true,
      name: name('my_source'),
      connection: name('my_connection'),
      publication: 'mz_source',
      autoResync: false,
    },
  ],
  ['CREATE SOURCE s FROM POSTGRES CONNECTION c (PUBLICATION = Mz)', { type: 'create_source', publication: 'mz' }],
  [
    'CREATE TABLE v1.T\n    FROM SOURCE my_source(REFERENCE public.T)',
    {
      type: 'create_table_from_source',
      ifNotExists: false,
      name: name('v1.t'),
      source: name('my_source'),
      reference: { parts: ['public', 't'], at: 54 },
      excludeColumns: [],
      textColumns: [],
    },
  ],
  [
    'CREATE TABLE IF NOT EXISTS t FROM SOURCE a.s (REFERENCE = "D".b.select) WITH (TEXT COLUMNS = [x, "Y"], EXCLUDE COLUMNS (B))',
    {
      type: 'create_table_from_source',
      ifNotExists: true,
      name: name('t'),
      source: name('a.s'),
      reference: { parts: ['D', 'b', 'select'], at: 58 },
      excludeColumns: [identifier('b')],
      textColumns: [identifier('x'), identifier('Y')],
    },
  ],
  ['CREATE TABLE t FROM SOURCE s WITH (IGNORE COLUMNS (a, b))', { reference: null, excludeColumns: [identifier('a'), identifier('b')] }],
  ['CREATE TABLE if FROM SOURCE s', { type: 'create_table_from_source', ifNotExists: false, name: name('if') }],
  [
    'CREATE MATERIALIZED VIEW IF NOT EXISTS v1.matview (a, "B") AS\n    SELECT SUM(A) from v1.T WITH NO DATA;',
    {
      type: 'create_materialized_view',
      ifNotExists: true,
      name: name('v1.matview'),
      columns: ['a', 'B'],
      query: 'SELECT SUM(A) from v1.T',
      queryAt: 66,
      withData: false,
    },
  ],
  [
    'CREATE MATERIALIZED VIEW m AS WITH data AS (SELECT \' with data\', $$ with data$$, "with data") TABLE data -- with data\n',
    { columns: null, query: 'WITH data AS (SELECT \' with data\', $$ with data$$, "with data") TABLE data', queryAt: 30, withData: true },
  ],
  ['CREATE MATERIALIZED VIEW m AS SELECT 1 /* x */ WITH/**/DATA -- y', { query: 'SELECT 1', withData: true }],
  ["CREATE MATERIALIZED VIEW m AS SELECT E'\\' with data', awith data", { query: "SELECT E'\\' with data', awith data" }],
  ['REFRESH MATERIALIZED VIEW a.b', { type: 'refresh_materialized_view', name: name('a.b') }],
  ['refresh materialized view concurrently b', { type: 'refresh_materialized_view', name: name('b') }],
  ['ALTER SCHEMA v1 SWAP WITH v3', { type: 'alter_schema_swap', ifExists: false, a: identifier('v1'), b: identifier('v3') }],
  ['ALTER SCHEMA IF EXISTS "a.b" SWAP WITH "!\\_\\""w3😊"', { ifExists: true, a: identifier('a.b'), b: identifier('!\\_\\"w3😊') }],
  ['ALTER SCHEMA if SWAP WITH swap', { type: 'alter_schema_swap', ifExists: false, a: identifier('if'), b: identifier('swap') }],
  ['DROP SECRET a', { type: 'drop_object', kind: 'secret', ifExists: false, names: [name('a')], cascade: false }],
  ['DROP CONNECTION IF EXISTS a, b.c RESTRICT', { kind: 'connection', ifExists: true, names: [name('a'), name('b.c')], cascade: false }],
  ['DROP SOURCE a CASCADE', { kind: 'source', cascade: true }],
  [
    'DROP TABLE IF EXISTS a, "b".c',
    { type: 'drop_relation', kind: 'table', ifExists: true, names: [name('a'), name('b.c')], cascade: false },
  ],
  ['DROP VIEW a CASCADE', { type: 'drop_relation', kind: 'view', cascade: true }],
  ['DROP MATERIALIZED VIEW a', { type: 'drop_relation', kind: 'materialized view' }],
  ['DROP SCHEMA v3 CASCADE', { type: 'drop_schema', ifExists: false, names: [identifier('v3')], cascade: true }],
  ['SHOW SOURCES', { type: 'show_objects', kind: 'sources', schema: null, source: null, like: null, where: null }],
  ["SHOW TABLES FROM v1 LIKE 't%'", { kind: 'tables', schema: identifier('v1'), like: 't%', where: null }],
  ['SHOW TABLES ON a.s', { kind: 'tables', schema: null, source: name('a.s') }],
  ["SHOW MATERIALIZED VIEWS WHERE name = 'a' -- end", { kind: 'materialized views', where: "name = 'a'" }],
  ['SHOW CONNECTIONS FROM "X"', { kind: 'connections', schema: identifier('X') }],
  ['SHOW SECRETS', { kind: 'secrets' }],
  ['SHOW CREATE SOURCE s', { type: 'show_create', kind: 'source', name: name('s') }],
  ['SHOW CREATE TABLE v1.t', { type: 'show_create', kind: 'table', name: name('v1.t') }],
  ['SHOW CREATE MATERIALIZED VIEW m', { type: 'show_create', kind: 'materialized view' }],
  ['SHOW CREATE CONNECTION c', { type: 'show_create', kind: 'connection' }],
  [
    "CREATE SINK avro_sink\n  FROM matview_1\n  INTO KAFKA CONNECTION kafka_connection (TOPIC 'test_avro_topic')\n  KEY (key_col)",
    {
      type: 'create_sink',
      ifNotExists: false,
      name: name('avro_sink'),
      from: name('matview_1'),
      target: {
        kind: 'kafka',
        connection: name('kafka_connection'),
        options: [{ name: 'TOPIC', value: { kind: 'string', value: 'test_avro_topic' }, at: 81 }],
      },
      key: { columns: [identifier('key_col')], enforced: true },
      headers: null,
      keyFormat: null,
      format: null,
      envelope: null,
      snapshot: null,
    },
  ],
  [
    'ALTER SINK foo SET FROM matview_2',
    {
      type: 'alter_sink',
      ifExists: false,
      name: name('foo'),
      action: { kind: 'set_from', from: name('matview_2'), backfill: 'none', timeout: null, dryRun: false },
    },
  ],
  [
    "alter sink if exists a.s set from v2.m with (backfill diff, timeout = '10s', dry run)",
    {
      type: 'alter_sink',
      ifExists: true,
      action: { kind: 'set_from', from: name('v2.m'), backfill: 'diff', timeout: '10s', dryRun: true },
    },
  ],
  ['ALTER SINK s RENAME TO t', { type: 'alter_sink', action: { kind: 'rename', to: identifier('t') } }],
  [
    'ALTER SINK s OWNER TO CURRENT_ROLE',
    { type: 'alter_sink', action: { kind: 'owner', to: { keyword: 'current_user', name: null, at: expect.any(Number) } } },
  ],
  ['ALTER SINK s PAUSE', { type: 'alter_sink', action: { kind: 'pause' } }],
  ['ALTER SINK s RESUME', { type: 'alter_sink', action: { kind: 'resume' } }],
  [
    `CREATE SINK IF NOT EXISTS s FROM v INTO KAFKA CONNECTION c (TOPIC = 't', COMPRESSION TYPE gzip, PARTITION BY = "a,)" ,
      TOPIC CONFIG MAP['cleanup.policy' => 'compact', 'n'=>5], TOPIC PARTITION COUNT 3) KEY (a, "B") NOT ENFORCED HEADERS h
      KEY FORMAT TEXT VALUE FORMAT AVRO USING CONFLUENT SCHEMA REGISTRY CONNECTION r (NULL DEFAULTS, KEY DOC ON TYPE v1.v = 'x',
        DOC ON COLUMN v.a 'y', AVRO VALUE FULLNAME 'f') ENVELOPE DEBEZIUM WITH (SNAPSHOT = false)`,
    {
      type: 'create_sink',
      ifNotExists: true,
      target: {
        options: [
          { name: 'TOPIC' },
          { name: 'COMPRESSION TYPE', value: { kind: 'identifier', name: name('gzip') } },
          { name: 'PARTITION BY', value: { kind: 'expression', text: '"a,)"', at: expect.any(Number) } },
          {
            name: 'TOPIC CONFIG',
            value: {
              kind: 'map',
              entries: [
                ['cleanup.policy', 'compact'],
                ['n', '5'],
              ],
            },
          },
          { name: 'TOPIC PARTITION COUNT', value: { kind: 'number', value: 3 } },
        ],
      },
      key: { columns: [identifier('a'), identifier('B')], enforced: false },
      headers: identifier('h'),
      keyFormat: { kind: 'text' },
      format: {
        kind: 'avro',
        registry: name('r'),
        options: [
          { name: 'NULL DEFAULTS', place: null, value: { kind: 'boolean', value: true } },
          { name: 'KEY DOC ON TYPE', place: ['v1', 'v'], value: { kind: 'string', value: 'x' } },
          { name: 'DOC ON COLUMN', place: ['v', 'a'] },
          { name: 'AVRO VALUE FULLNAME', place: null },
        ],
      },
      envelope: 'debezium',
      snapshot: false,
    },
  ],
  [
    "CREATE SINK s FROM v INTO POSTGRES CONNECTION c (TABLE 's.t')",
    { type: 'create_sink', target: { kind: 'postgres', options: [{ name: 'TABLE', value: { kind: 'string', value: 's.t' } }] } },
  ],
  [
    "CREATE SINK s FROM v INTO WEBHOOK (URL 'https://h/p', SECRET k) KEY (a)",
    {
      type: 'create_sink',
      target: {
        kind: 'webhook',
        connection: null,
        options: [{ name: 'URL' }, { name: 'SECRET', value: { kind: 'identifier', name: name('k') } }],
      },
    },
  ],
  [
    "CREATE CONNECTION k TO KAFKA (BROKERS ('a:9092', 'b:9092'), SECURITY PROTOCOL SASL_SSL, SASL MECHANISMS 'PLAIN', PROGRESS TOPIC REPLICATION FACTOR 3)",
    {
      type: 'create_connection',
      target: 'kafka',
      options: [
        { name: 'BROKERS', value: { kind: 'list', values: ['a:9092', 'b:9092'] } },
        { name: 'SECURITY PROTOCOL', value: { kind: 'identifier', name: name('sasl_ssl') } },
        { name: 'SASL MECHANISMS', value: { kind: 'string', value: 'PLAIN' } },
        { name: 'PROGRESS TOPIC REPLICATION FACTOR', value: { kind: 'number', value: 3 } },
      ],
    },
  ],
  [
    "CREATE CONNECTION r TO CONFLUENT SCHEMA REGISTRY (URL 'http://h:8081', USERNAME 'u', PASSWORD SECRET p) WITH (VALIDATE = false)",
    { type: 'create_connection', target: 'confluent schema registry', validate: false },
  ],
  [
    'DROP SINK IF EXISTS a, b.c CASCADE',
    { type: 'drop_object', kind: 'sink', ifExists: true, names: [name('a'), name('b.c')], cascade: true },
  ],
  ["SHOW SINKS FROM x LIKE 'a%'", { type: 'show_objects', kind: 'sinks', schema: identifier('x'), like: 'a%' }],
  [
    "CREATE MIGRATION move_email MOVE COLUMNS (email, email_verified_at) FROM public.users TO TABLE public.user_emails KEY (id AS user_id) ABSENT WHEN NULL WITH (CUTOVER = MANUAL, LOCK TIMEOUT '100ms', MAX HOLD = '250ms', REVERSE WINDOW '24h')",
    {
      type: 'create_migration',
      ifNotExists: false,
      name: identifier('move_email'),
      change: {
        kind: 'move',
        table: name('public.users'),
        columns: [identifier('email'), identifier('email_verified_at')],
        target: name('public.user_emails'),
        key: [{ column: identifier('id'), as: identifier('user_id') }],
      },
      options: [
        { option: 'cutover', value: 'manual' },
        { option: 'lock timeout', value: '100ms' },
        { option: 'max hold', value: '250ms' },
        { option: 'reverse window', value: '24h' },
      ],
    },
  ],
  [
    'CREATE MIGRATION IF NOT EXISTS m ALTER TABLE orders ALTER COLUMN id TYPE bigint, ALTER price SET DATA TYPE numeric(10, 2) USING round(price, 2) REVERT USING price::float8 WITH (NEW VERSION v2)',
    {
      type: 'create_migration',
      ifNotExists: true,
      change: {
        kind: 'alter',
        table: name('orders'),
        columns: [
          { column: identifier('id'), type: { text: 'bigint' }, up: null, down: null },
          {
            column: identifier('price'),
            type: { text: 'numeric(10, 2)' },
            up: { text: 'round(price, 2)' },
            down: { text: 'price::float8' },
          },
        ],
      },
      options: [{ option: 'new version', value: 'v2' }],
    },
  ],
  [
    "EXPLAIN CREATE MIGRATION split_name SPLIT COLUMN users.name INTO (first_name text AS split_part(name, ' ', 1), last_name varchar(20) AS split_part(name, ' ', 2)) DOWN (first_name || ' ' || last_name)",
    {
      type: 'explain_migration',
      migration: {
        type: 'create_migration',
        name: identifier('split_name'),
        change: {
          kind: 'split',
          table: name('users'),
          column: identifier('name'),
          into: [
            { name: identifier('first_name'), type: { text: 'text' }, up: { text: "split_part(name, ' ', 1)" } },
            { name: identifier('last_name'), type: { text: 'varchar(20)' }, up: { text: "split_part(name, ' ', 2)" } },
          ],
          down: { text: "first_name || ' ' || last_name" },
        },
        options: [],
      },
    },
  ],
  [
    'CREATE MIGRATION m SPLIT COLUMN s.t.c INTO (a int AS c, b int AS c) DOWN (a)',
    { change: { table: name('s.t'), column: identifier('c') } },
  ],
  ['ALTER MIGRATION m CUTOVER', { type: 'alter_migration', ifExists: false, name: identifier('m'), action: { kind: 'cutover' } }],
  ['ALTER MIGRATION IF EXISTS m revert', { type: 'alter_migration', ifExists: true, action: { kind: 'revert' } }],
  [
    "ALTER MIGRATION m SET (MAX LAG '5s', REVERSE WINDOW NONE)",
    {
      type: 'alter_migration',
      action: {
        kind: 'set',
        options: [
          { option: 'max lag', value: '5s' },
          { option: 'reverse window', value: 'none' },
        ],
      },
    },
  ],
  ["SHOW MIGRATIONS LIKE 'move%'", { type: 'show_objects', kind: 'migrations', schema: null, like: 'move%' }],
  ['SHOW CREATE MIGRATION m', { type: 'show_create', kind: 'migration', name: name('m') }],
  ['SHOW CREATE SINK s', { type: 'show_create', kind: 'sink', name: name('s') }],
];

describe('statements that are right', () => {
  test.each(good)('%s', (text, expected) => {
    expect(one(text)).toMatchObject(expected as object);
  });

  test.each(good)('with comments between all tokens: %s', (text, expected) => {
    // Blanks outside literals become comments; texts that hold comments or opaque SQL already are tested as they are.
    if (/--|\/\*|SELECT|where|'one'| E'|\$|REVERT USING|SPLIT COLUMN users/i.test(text)) return;
    const commented = text
      .split(/('[^']*'|"(?:[^"]|"")*")/)
      .map((part, i) => (i % 2 === 0 ? part.replace(/\s+/g, ' /* a /* nested */ ; */ -- b;\n\t') : part));
    const statement = one(`/* ; */ ${commented.join('')} -- end`);
    const withoutOffsets = (value: unknown): unknown =>
      JSON.parse(JSON.stringify(value, (key, item: unknown) => (key === 'at' ? 0 : item)));
    expect(withoutOffsets(statement)).toEqual(withoutOffsets(one(text)));
    expect(statement).toMatchObject({ type: (one(text) as ExtendedStatement).type });
    expect(expected).toBeDefined();
  });

  test('names fold, keep quotes and are cut at 63 bytes between characters', () => {
    expect(one('DROP SOURCE ABC."DeF""g"')).toMatchObject({ names: [name('abc.DeF"g')] });
    expect(one('DROP SOURCE ÄB')).toMatchObject({ names: [{ name: 'Äb' }] });
    expect(one(`DROP SOURCE ${'é'.repeat(40)}`)).toMatchObject({ names: [{ name: 'é'.repeat(31) }] });
    expect(one(`DROP SOURCE "${'😊'.repeat(40)}"`)).toMatchObject({ names: [{ name: '😊'.repeat(15) }] });
    expect(one(`DROP SOURCE a.${'x'.repeat(64)}`)).toMatchObject({ names: [{ schema: 'a', name: 'x'.repeat(63) }] });
  });

  test('keywords that are not reserved are names', () => {
    expect(one('DROP SOURCE source, secret, connection, int, cascade CASCADE')).toMatchObject({
      names: ['source', 'secret', 'connection', 'int', 'cascade'].map((n) => ({ name: n })),
      cascade: true,
    });
  });

  test('standard_conforming_strings off makes every literal an escape string', () => {
    const [statement, rest] = parseStatements("CREATE SECRET s AS 'a\\';b'; SELECT '\\';'", { standardConformingStrings: false });
    expect(statement?.statement).toMatchObject({ value: "a';b" });
    expect(rest?.text).toBe("SELECT '\\';'");
  });
});

describe('statements of the upstream', () => {
  test.each([
    'SELECT 1',
    'SHOW search_path',
    'SHOW tables.setting',
    'SHOW CREATE VIEW v',
    'SHOW CREATE',
    'SHOW MATERIALIZED',
    'CREATE TABLE source (a int)',
    'CREATE TABLE t AS SELECT * FROM source',
    'CREATE TABLE t (a int) INHERITS (source)',
    'CREATE TABLE t FROM x',
    'CREATE TEMP TABLE t (a int)',
    'ALTER SCHEMA a RENAME TO swap',
    'ALTER SCHEMA swap OWNER TO b',
    'ALTER TABLE t RENAME TO u',
    'CREATE OR REPLACE VIEW v AS SELECT 1',
    'CREATE SCHEMA a',
    'EXPLAIN CREATE MATERIALIZED VIEW m AS SELECT 1',
    'EXPLAIN CREATE TABLE migration AS SELECT 1',
    'EXPLAIN ANALYZE CREATE MIGRATION m',
    'SHOW migrations.setting',
    "PREPARE p AS SELECT 'DROP SOURCE x'",
    // candidates that are not understood
    'CREATE MATERIALIZED VIEW m USING heap AS SELECT 1',
    'CREATE MATERIALIZED VIEW m WITH (fillfactor = 70) AS SELECT 1',
    'CREATE MATERIALIZED VIEW m TABLESPACE x AS SELECT 1',
    'CREATE MATERIALIZED VIEW m AS',
    'CREATE MATERIALIZED VIEW select AS SELECT 1',
    "CREATE MATERIALIZED VIEW m AS SELECT 'open",
    'CREATE OR REPLACE MATERIALIZED VIEW m AS SELECT 1',
    'DROP TABLE',
    'DROP TABLE a b',
    'DROP TABLE a.b.c',
    'DROP SCHEMA a.b',
    'DROP VIEW select',
    'REFRESH MATERIALIZED VIEW m WITH NO DATA',
    'REFRESH MATERIALIZED TABLE m',
    'validate x',
  ])('%s', (text) => {
    expect(one(text)).toBeNull();
  });
});

describe('several statements', () => {
  test('each is cut out and numbered in the whole text', () => {
    const text = " ;; SELECT ';' ; -- hint\n DROP SOURCE a;\nCREATE RULE r AS ON INSERT TO t DO (SELECT 1; SELECT 2); DROP TABLE b  ";
    const statements = parseStatements(text);
    expect(statements.map((s) => s.text)).toEqual([
      "SELECT ';'",
      '-- hint\n DROP SOURCE a',
      'CREATE RULE r AS ON INSERT TO t DO (SELECT 1; SELECT 2)',
      'DROP TABLE b',
    ]);
    for (const { text: piece, at, end } of statements) expect(text.slice(at, end)).toBe(piece);
    expect(statements.map((s) => s.statement?.type ?? null)).toEqual([null, 'drop_object', null, 'drop_relation']);
    expect(statements[1]?.statement).toMatchObject({ names: [{ name: 'a', at: 21 }] });
  });

  test('nothing at all', () => {
    for (const text of ['', ' ', ';', '-- x', '/* ; */ ;; ']) expect(parseStatements(text)).toEqual([]);
  });

  test('routine bodies keep their semicolons', () => {
    const body = 'CREATE OR REPLACE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT CASE WHEN a.end THEN 1 END AS case; DROP SOURCE x; END';
    expect(parseStatements(`${body}; DROP SOURCE y`).map((s) => s.text)).toEqual([body, 'DROP SOURCE y']);
    expect(parseStatements('BEGIN; DROP SOURCE y; END').map((s) => s.text)).toEqual(['BEGIN', 'DROP SOURCE y', 'END']);
    expect(parseStatements('CREATE TABLE f (a int); BEGIN; SELECT 1').length).toBe(3);
  });

  test('hidden statements are none', () => {
    for (const text of [
      "SELECT '; DROP SOURCE x'",
      'SELECT "; DROP SOURCE x"',
      'SELECT $a$; DROP SOURCE x; $$ $a$',
      'SELECT 1 /* ; /* */ DROP SOURCE x */',
      'SELECT (1; DROP SOURCE x',
      "SELECT E'\\'; DROP SOURCE x'",
      "SELECT 'open; DROP SOURCE x",
    ]) {
      expect(parseStatements(text).map((s) => s.statement)).toEqual([null]);
    }
  });
});
