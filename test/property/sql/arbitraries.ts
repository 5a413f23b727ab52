/**
 * Random names, texts, extended statements and ordinary statements.
 * Invariant: every statement made here is right, so a reader that refuses or changes one is wrong.
 */
import fc from 'fast-check';
import type {
  AvroOption,
  ExpressionText,
  ExtendedStatement,
  FormatClause,
  Identifier,
  MigrationChange,
  MigrationOption,
  Option,
  OptionValue,
  QualifiedName,
  ShowKind,
  Subscribe,
} from '../../../src/sql/ast.ts';

/** Text that Postgres can hold. */
export const text = fc.oneof(
  fc.string({ unit: 'binary' }).map((s) => s.replaceAll('\0', '')),
  fc
    .array(fc.constantFrom("'", '"', '\\', ';', '$$', '$a$', '--', '/*', '*/', '\n', 'é', '😊', 'a', ' with data'), { maxLength: 8 })
    .map((parts) => parts.join('')),
);

const shortEnough = (name: string): boolean => name.length > 0 && Buffer.byteLength(name) <= 63;

export const plainName = fc
  .tuple(
    fc.constantFrom('a', 'v1', '_x', 't', 'orders', 'name', 'source', 'secret', 'connection', 'swap', 'with_data', 'if', 'cascade'),
    fc.nat({ max: 9 }),
  )
  .map(([word, n]) => (n > 6 ? `${word}${n}` : word));

export const name = fc.oneof(
  { arbitrary: plainName, weight: 3 },
  { arbitrary: fc.constantFrom('select', 'order', 'user', 'left', 'true', 'Upper', 'a.b', 'a"b', 'with', 'é', 'int', 'values'), weight: 2 },
  { arbitrary: text.filter(shortEnough), weight: 1 },
);

export const qualified: fc.Arbitrary<QualifiedName> = fc.record({ schema: fc.option(name), name, at: fc.constant(0) });
export const identifier: fc.Arbitrary<Identifier> = fc.record({ name, at: fc.constant(0) });
const some = <T>(of: fc.Arbitrary<T>): fc.Arbitrary<T[]> => fc.array(of, { minLength: 1, maxLength: 3 });

const number = fc.oneof(fc.integer(), fc.double({ noNaN: true, noDefaultInfinity: true })).map((n) => (n === 0 ? 0 : n));
const optionValue: fc.Arbitrary<OptionValue> = fc.oneof(
  fc.record({ kind: fc.constant('string' as const), value: text }),
  fc.record({ kind: fc.constant('number' as const), value: number }),
  fc.record({ kind: fc.constant('boolean' as const), value: fc.boolean() }),
  fc.record({ kind: fc.constant('identifier' as const), name: qualified }),
  fc.record({ kind: fc.constant('secret' as const), name: qualified }),
  fc.record({ kind: fc.constant('list' as const), values: some(text) }),
  fc.record({ kind: fc.constant('map' as const), entries: fc.array(fc.tuple(text, text), { maxLength: 3 }) }),
);
const optionName = fc.constantFrom(
  'HOST',
  'PORT',
  'USER',
  'PASSWORD',
  'DATABASE',
  'SSL MODE',
  'SSL KEY',
  'SSL CERTIFICATE',
  'SSL CERTIFICATE AUTHORITY',
  'SSH TUNNEL',
  'AWS PRIVATELINK',
  'FOO',
  'SOME NEW THING',
  'BROKER',
  'BROKERS',
  'SECURITY PROTOCOL',
  'SASL MECHANISMS',
  'SASL USERNAME',
  'SASL PASSWORD',
  'PROGRESS TOPIC',
  'PROGRESS TOPIC REPLICATION FACTOR',
  'URL',
  'USERNAME',
);
const option: fc.Arbitrary<Option> = fc.record({ name: optionName, value: optionValue, at: fc.constant(0) });

const sinkOption: fc.Arbitrary<Option> = fc.oneof(
  fc.record({
    name: fc.constantFrom(
      ...['TOPIC', 'COMPRESSION TYPE', 'TRANSACTIONAL ID PREFIX', 'PROGRESS GROUP ID PREFIX', 'TOPIC REPLICATION FACTOR'],
      ...['TOPIC PARTITION COUNT', 'TOPIC CONFIG', 'TABLE', 'URL', 'SECRET', 'NEW'],
    ),
    value: optionValue,
    at: fc.constant(0),
  }),
  fc.record({
    name: fc.constant('PARTITION BY'),
    value: fc.record({
      kind: fc.constant('expression' as const),
      text: fc.constantFrom('a', "f(a, ')') + b", 'a[1]', "'it''s, so'", 'CASE WHEN (a IN (1, 2)) THEN b END', '"a,b"', 'x /* , ) */ + 1'),
      at: fc.constant(0),
    }),
    at: fc.constant(0),
  }),
);
const avroOption: fc.Arbitrary<AvroOption> = fc.oneof(
  fc.record({
    name: fc.constantFrom('AVRO KEY FULLNAME', 'AVRO VALUE FULLNAME', 'KEY COMPATIBILITY LEVEL', 'VALUE COMPATIBILITY LEVEL'),
    place: fc.constant(null),
    value: fc.record({ kind: fc.constant('string' as const), value: text }),
    at: fc.constant(0),
  }),
  fc.record({
    name: fc.constantFrom('DOC ON TYPE', 'KEY DOC ON TYPE', 'VALUE DOC ON COLUMN', 'DOC ON COLUMN'),
    place: some(name),
    value: fc.record({ kind: fc.constant('string' as const), value: text }),
    at: fc.constant(0),
  }),
  fc.record({
    name: fc.constant('NULL DEFAULTS'),
    place: fc.constant(null),
    value: fc.record({ kind: fc.constant('boolean' as const), value: fc.boolean() }),
    at: fc.constant(0),
  }),
);
const format: fc.Arbitrary<FormatClause> = fc.oneof(
  fc.record({ kind: fc.constantFrom('json' as const, 'text' as const, 'bytes' as const), at: fc.constant(0) }),
  fc.record({
    kind: fc.constant('avro' as const),
    registry: qualified,
    options: fc.array(avroOption, { maxLength: 3 }),
    at: fc.constant(0),
  }),
);
const formats = fc.oneof(
  fc.constant({ keyFormat: null, format: null }),
  format.map((only) => ({ keyFormat: null, format: only })),
  fc.record({ keyFormat: format, format }),
);

export const viewQuery = fc.constantFrom(
  'SELECT 1',
  'SELECT sum(a) FROM v1.t',
  "SELECT ' with data', $$ with no data$$ FROM t",
  'WITH data AS (SELECT 1) TABLE data',
  'SELECT 1 AS "with data"',
  "SELECT E'\\' with data' -- with data\n, a",
  'SELECT a /* with /* no */ data */ FROM t',
  "VALUES (1, 'é;😊')",
);
const condition = fc.constantFrom("name = 'x;y'", "name LIKE 'a%' AND (type IS NULL)", "E'\\'' = name", '"name" <> $$a$$');

const fixed = <T extends string>(type: T): fc.Arbitrary<T> => fc.constant(type);
const show = (kind: ShowKind): fc.Arbitrary<ExtendedStatement> =>
  fc
    .record({
      schema: fc.option(identifier),
      source: fc.option(qualified),
      filter: fc.option(
        fc.oneof(
          text.map((like) => ({ like, where: null })),
          condition.map((where) => ({ like: null, where })),
        ),
      ),
    })
    .map(({ schema, source, filter }) => ({
      type: 'show_objects',
      kind,
      schema,
      source: kind === 'tables' ? source : null,
      ...(filter ?? { like: null, where: null }),
    }));

/** Any extended statement or candidate. Offsets are 0. */
const expressionText: fc.Arbitrary<ExpressionText> = fc.record({
  text: fc.constantFrom('17', "'as of 3'", 'millrace.now() - 1000', 'a DESC, (b + 1)', '"with (" NULLS LAST', '$$ up to 3 $$'),
  at: fc.constant(0),
});
const copyOption: fc.Arbitrary<Option> = fc.record({
  name: fc.constantFrom('FORMAT', 'NULL', 'HEADER'),
  value: fc.record({ kind: fixed('string'), value: text }),
  at: fc.constant(0),
});
const subscription: fc.Arbitrary<Subscribe> = fc
  .record({
    type: fixed('subscribe'),
    target: fc.oneof(
      fc.record({ kind: fc.constantFrom('relation' as const, 'durable' as const), name: qualified }),
      fc.record({
        kind: fixed('query'),
        query: fc.record({ text: fc.constantFrom("SELECT ')' AS a", 'SELECT 1, (2)', 'TABLE t'), at: fc.constant(0) }),
      }),
    ),
    envelope: fc.option(fc.record({ kind: fc.constantFrom('upsert' as const, 'debezium' as const), key: some(identifier) })),
    orderBy: fc.option(expressionText),
    snapshot: fc.option(fc.boolean()),
    progress: fc.boolean(),
    asOf: fc.option(fc.tuple(expressionText, fc.boolean()).map(([expression, atLeast]) => ({ ...expression, atLeast }))),
    upTo: fc.option(expressionText),
  })
  .map((of) => (of.envelope === null ? of : { ...of, orderBy: null }));

const changeExpression: fc.Arbitrary<ExpressionText> = fc.record({
  text: fc.constantFrom(
    ...[
      "a || ', ' || b",
      'f(a, b)',
      'id::bigint',
      'CASE WHEN (a AND b) THEN c END',
      '"using" + revert',
      'x[1, 2]',
      "$$ revert using ) $$ || ''",
    ],
    ...["(a AT TIME ZONE 'UTC')", 'a /* , WITH ( */ + 1'],
  ),
  at: fc.constant(0),
});
const typeText: fc.Arbitrary<ExpressionText> = fc.record({
  text: fc.constantFrom('bigint', 'numeric(10, 2)', 'timestamp(3) with time zone', 'text COLLATE "C"', 'a."b,c"[]', 'double precision'),
  at: fc.constant(0),
});
const migrationChange: fc.Arbitrary<MigrationChange> = fc.oneof(
  fc.record({
    kind: fixed('move'),
    table: qualified,
    columns: some(identifier),
    target: qualified,
    key: some(fc.record({ column: identifier, as: identifier })),
  }),
  fc.record({
    kind: fixed('alter'),
    table: qualified,
    columns: some(fc.record({ column: identifier, type: typeText, up: fc.option(changeExpression), down: fc.option(changeExpression) })),
  }),
  fc.record({
    kind: fixed('split'),
    table: qualified,
    column: identifier,
    into: some(fc.record({ name: identifier, type: typeText, up: changeExpression })),
    down: changeExpression,
  }),
);
const migrationOptions: fc.Arbitrary<MigrationOption[]> = fc.uniqueArray(
  fc.oneof(
    fc.record({
      option: fc.constantFrom(
        'lock timeout' as const,
        'max hold' as const,
        'reverse window' as const,
        'max lag' as const,
        'chunk' as const,
      ),
      value: text,
      at: fc.constant(0),
    }),
    fc.record({ option: fixed('cutover'), value: fc.constantFrom('manual', 'auto'), at: fc.constant(0) }),
    fc.record({ option: fc.constantFrom('new version' as const, 'old version' as const), value: name, at: fc.constant(0) }),
  ),
  { selector: ({ option }) => option, maxLength: 4 },
);
const createMigration = fc.record({
  type: fixed('create_migration'),
  ifNotExists: fc.boolean(),
  name: identifier,
  change: migrationChange,
  options: migrationOptions,
});

export const statement: fc.Arbitrary<ExtendedStatement> = fc.oneof(
  createMigration,
  createMigration.map((migration) => ({ type: 'explain_migration' as const, migration })),
  fc.record({
    type: fixed('alter_migration'),
    ifExists: fc.boolean(),
    name: identifier,
    action: fc.oneof(
      fc.record({
        kind: fc.constantFrom(...(['pause', 'resume', 'verify', 'cutover', 'revert', 'finalize', 'cancel'] as const)),
      }),
      fc.record({ kind: fixed('set'), options: migrationOptions.filter((options) => options.length > 0) }),
    ),
  }),
  fc.record({ type: fixed('create_secret'), ifNotExists: fc.boolean(), name: qualified, value: text }),
  fc.record({ type: fixed('alter_secret'), ifExists: fc.boolean(), name: qualified, value: text }),
  fc.record({
    type: fixed('create_connection'),
    ifNotExists: fc.boolean(),
    name: qualified,
    target: fc.constantFrom('postgres' as const, 'kafka' as const, 'confluent schema registry' as const),
    options: some(option),
    validate: fc.option(fc.boolean()),
  }),
  fc
    .record({
      type: fixed('alter_connection'),
      ifExists: fc.boolean(),
      name: qualified,
      set: fc.array(option, { maxLength: 3 }),
      reset: fc.array(optionName, { maxLength: 3 }),
      validate: fc.option(fc.boolean()),
    })
    .filter(({ set, reset }) => set.length + reset.length > 0),
  fc.record({ type: fixed('validate_connection'), name: qualified }),
  fc.record({
    type: fixed('create_source'),
    ifNotExists: fc.boolean(),
    name: qualified,
    connection: qualified,
    publication: text,
    autoResync: fc.boolean(),
  }),
  fc.record({ type: fixed('alter_source'), ifExists: fc.boolean(), name: qualified, autoResync: fc.option(fc.boolean()) }),
  fc.record({
    type: fixed('create_table_from_source'),
    ifNotExists: fc.boolean(),
    name: qualified,
    source: qualified,
    reference: fc.option(fc.record({ parts: some(name), at: fc.constant(0) })),
    excludeColumns: fc.array(identifier, { maxLength: 3 }),
    textColumns: fc.array(identifier, { maxLength: 3 }),
  }),
  fc
    .record({
      type: fixed('create_sink'),
      ifNotExists: fc.boolean(),
      name: qualified,
      from: qualified,
      target: fc.oneof(
        fc.record({ kind: fc.constantFrom('kafka' as const, 'postgres' as const), connection: qualified, options: some(sinkOption) }),
        fc.record({ kind: fixed('webhook'), connection: fc.constant(null), options: some(sinkOption) }),
      ),
      key: fc.option(fc.record({ columns: some(identifier), enforced: fc.boolean() })),
      headers: fc.option(identifier),
      envelope: fc.option(fc.constantFrom('upsert' as const, 'debezium' as const)),
      snapshot: fc.option(fc.boolean()),
      both: formats,
    })
    .map(({ both, ...rest }) => ({ ...rest, ...both })),
  subscription,
  fc.record({ type: fixed('copy_subscribe'), subscribe: subscription, options: fc.array(copyOption, { maxLength: 2 }) }),
  fc.record({ type: fixed('declare_subscription'), cursor: identifier, subscribe: subscription }),
  fc.record({ type: fixed('create_durable_subscription'), ifNotExists: fc.boolean(), name: qualified, relation: qualified }),
  fc.record({ type: fixed('acknowledge_durable_subscription'), name: qualified, upTo: expressionText }),
  fc.record({ type: fixed('drop_durable_subscription'), ifExists: fc.boolean(), names: some(qualified) }),
  fc.record({
    type: fixed('alter_sink'),
    ifExists: fc.boolean(),
    name: qualified,
    action: fc.oneof(
      fc.record({
        kind: fixed('set_from'),
        from: qualified,
        backfill: fc.constantFrom('none' as const, 'snapshot' as const, 'diff' as const),
        timeout: fc.option(text),
        dryRun: fc.boolean(),
      }),
      fc.record({ kind: fixed('rename'), to: identifier }),
      fc.record({
        kind: fixed('owner'),
        to: fc.oneof(
          fc.record({
            keyword: fc.constantFrom('current_user' as const, 'session_user' as const),
            name: fc.constant(null),
            at: fc.constant(0),
          }),
          fc.record({ keyword: fc.constant(null), name, at: fc.constant(0) }),
        ),
      }),
      fc.record({ kind: fc.constantFrom('pause' as const, 'resume' as const) }),
    ),
  }),
  fc.record({
    type: fixed('create_materialized_view'),
    ifNotExists: fc.boolean(),
    name: qualified,
    columns: fc.option(some(name)),
    query: viewQuery,
    queryAt: fc.constant(0),
    withData: fc.boolean(),
  }),
  fc.record({ type: fixed('refresh_materialized_view'), name: qualified }),
  fc.record({ type: fixed('alter_schema_swap'), ifExists: fc.boolean(), a: identifier, b: identifier }),
  fc.record({
    type: fixed('drop_object'),
    kind: fc.constantFrom('secret' as const, 'connection' as const, 'source' as const, 'sink' as const),
    ifExists: fc.boolean(),
    names: some(qualified),
    cascade: fc.boolean(),
  }),
  fc.record({
    type: fixed('drop_relation'),
    kind: fc.constantFrom('table' as const, 'view' as const, 'materialized view' as const),
    ifExists: fc.boolean(),
    names: some(qualified),
    cascade: fc.boolean(),
  }),
  fc.record({ type: fixed('drop_schema'), ifExists: fc.boolean(), names: some(identifier), cascade: fc.boolean() }),
  show('sources'),
  show('sinks'),
  show('tables'),
  show('materialized views'),
  show('connections'),
  show('secrets'),
  show('migrations').map((shown) => (shown.type === 'show_objects' ? { ...shown, schema: null } : shown)),
  fc.record({ type: fixed('show_create'), kind: fixed('migration'), name: identifier.map((shown) => ({ schema: null, ...shown })) }),
  fc.record({
    type: fixed('show_create'),
    kind: fc.constantFrom('source' as const, 'sink' as const, 'table' as const, 'materialized view' as const, 'connection' as const),
    name: qualified,
  }),
);

/** What may stand between two tokens. */
export const blank = fc.constantFrom(' ', '\n', '\t ', ' /* ; */ ', " -- it's;\n", '/* a /* b */ "c */', '\r\n', '\f\v');

/** Statements that Postgres accepts (its parser, at least) and that are not ours, full of things that look like semicolons and ends. */
export const ordinary = fc.constantFrom(
  'SELECT 1',
  "SELECT ';', $$;$$, $a$;$$;$a$, E'\\';', \"a\"\";\" FROM t",
  "SELECT 'a;'\n 'b;'",
  "SELECT U&'\\0041;', B'01', X'1F', N';'",
  'SELECT 1 /* ; /* ; */ */ + 2',
  'INSERT INTO t VALUES (1), (2)',
  'BEGIN',
  'COMMIT',
  'END',
  'SELECT CASE WHEN a THEN b END FROM t',
  'CREATE RULE r AS ON INSERT TO t DO ALSO (SELECT 1; SELECT 2)',
  'CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; SELECT CASE WHEN true THEN 1 ELSE 2 END; END',
  'CREATE OR REPLACE PROCEDURE p(a int) BEGIN ATOMIC INSERT INTO t VALUES (a); END',
  'CREATE FUNCTION f(x int) RETURNS int LANGUAGE sql BEGIN ATOMIC; SELECT (CASE x WHEN 1 THEN 2 END) AS "end"; END',
  "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1; SELECT 2'",
  'DO $do$ BEGIN DROP TABLE x; END $do$',
  'CREATE TABLE t (a int)',
  'ALTER TABLE t ADD COLUMN source int',
  'SHOW search_path',
  "PREPARE p AS SELECT $1, 'é😊;'",
  'SELECT a<-1, b@-c, 1.5e-3, .5, t.* FROM t',
  'SELECT é😊;'.slice(0, -1),
);
