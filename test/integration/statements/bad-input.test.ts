/** What is typed wrong: each mistake has its own answer, and session and engine go on after it. */
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { type Stage, simpleSource, startStage, type TestClient } from './stage.ts';

let stage: Stage;
let client: TestClient;
beforeAll(async () => {
  stage = await startStage();
  client = await stage.connect();
  const origin = await simpleSource(stage, client);
  await origin.query(`
    CREATE TYPE mood AS ENUM ('sad', 'happy');
    CREATE TYPE pair AS (x int, y int);
    CREATE TABLE moods (id int PRIMARY KEY, m mood, p pair, "Mixed" int);
    CREATE TABLE no_identity (a int); ALTER TABLE no_identity REPLICA IDENTITY NOTHING;
    CREATE TABLE "Upper" (a int);
    CREATE SCHEMA other; CREATE TABLE other.twice (a int); CREATE SCHEMA other2; CREATE TABLE other2.twice (a int);
    CREATE TABLE unpublished (a int);
    CREATE PUBLICATION narrow FOR TABLE t;
  `);
  await client.query(`
    CREATE SECRET sec AS 'x';
    CREATE SOURCE narrow FROM POSTGRES CONNECTION c (PUBLICATION 'narrow');
    CREATE TABLE t FROM SOURCE s (REFERENCE public.t);
    CREATE MATERIALIZED VIEW v AS SELECT sum(a) FROM t;
    CREATE TABLE ordinary (a int);
    CREATE VIEW plain AS SELECT 1 AS a;
  `);
});
afterAll(() => stage.stop());

// The session and the engine go on.
afterEach(async () => {
  expect(await client.rows('SELECT count(*)::int FROM t')).toEqual([[2]]);
  expect(await client.rows("SELECT count(*)::int FROM millrace.sources WHERE status = 'running'")).toEqual([[2]]);
});

const list = async (...statements: string[]): Promise<string[]> => {
  const answers: string[] = [];
  for (const statement of statements) {
    answers.push(await client.failure(statement).catch((error: unknown) => (error instanceof Error ? error.message : String(error))));
  }
  return answers;
};

describe('what does not exist', () => {
  it('connection, source, secret, table', async () => {
    expect(
      await list(
        "CREATE SOURCE n FROM POSTGRES CONNECTION nope (PUBLICATION 'p')",
        "CREATE SOURCE n FROM POSTGRES CONNECTION public.nope (PUBLICATION 'p')",
        'CREATE TABLE n FROM SOURCE nope (REFERENCE public.t)',
        'CREATE TABLE n FROM SOURCE ordinary (REFERENCE public.t)',
        'CREATE TABLE n FROM SOURCE v (REFERENCE public.t)',
        "ALTER SECRET nope AS 'x'",
        "ALTER CONNECTION nope SET (HOST 'h')",
        'VALIDATE CONNECTION nope',
        "CREATE CONNECTION n TO POSTGRES (HOST 'h', DATABASE 'd', USER 'u', PASSWORD SECRET nope)",
        'DROP SOURCE nope',
        'DROP CONNECTION nope',
        'DROP SECRET nope',
        'DROP SOURCE t',
        'SHOW CREATE SOURCE nope',
        'SHOW CREATE TABLE v',
        'SHOW CREATE TABLE ordinary',
        'SHOW TABLES FROM nope',
        'SHOW TABLES ON nope',
        'SHOW CREATE CONNECTION nope',
      ),
    ).toMatchInlineSnapshot(`
      [
        "ERROR 42704 at <nope>: connection "nope" does not exist
      HINT: SHOW CONNECTIONS; lists what there is.",
        "ERROR 42704 at <public>: connection "public.nope" does not exist
      HINT: SHOW CONNECTIONS; lists what there is.",
        "ERROR 42704 at <nope>: source "nope" does not exist
      HINT: SHOW SOURCES; lists what there is.",
        "ERROR 42809 at <ordinary>: "ordinary" is not a source",
        "ERROR 42809 at <v>: "v" is not a source",
        "ERROR 42704 at <nope>: secret "nope" does not exist
      HINT: SHOW SECRETS; lists what there is.",
        "ERROR 42704 at <nope>: connection "nope" does not exist
      HINT: SHOW CONNECTIONS; lists what there is.",
        "ERROR 42704 at <nope>: connection "nope" does not exist
      HINT: SHOW CONNECTIONS; lists what there is.",
        "ERROR 42704 at <nope>: secret "nope" does not exist
      HINT: SHOW SECRETS; lists what there is.",
        "ERROR 42704 at <nope>: source "nope" does not exist
      HINT: SHOW SOURCES; lists what there is.",
        "ERROR 42704 at <nope>: connection "nope" does not exist
      HINT: SHOW CONNECTIONS; lists what there is.",
        "ERROR 42704 at <nope>: secret "nope" does not exist
      HINT: SHOW SECRETS; lists what there is.",
        "ERROR 42809 at <t>: "t" is not a source
      HINT: Use DROP TABLE t; to remove it.",
        "ERROR 42704 at <nope>: source "nope" does not exist
      HINT: SHOW SOURCES; lists what there is.",
        "ERROR 42809 at <v>: "v" is not a table",
        "ERROR 42809 at <ordinary>: "ordinary" is not a live table",
        "ERROR 3F000 at <nope>: schema "nope" does not exist
      HINT: Type: CREATE SCHEMA nope;",
        "ERROR 42704 at <nope>: source "nope" does not exist
      HINT: SHOW SOURCES; lists what there is.",
        "ERROR 42704 at <nope>: connection "nope" does not exist
      HINT: SHOW CONNECTIONS; lists what there is.",
      ]
    `);
  });

  it('the origin table or its columns', async () => {
    expect(
      await list(
        'CREATE TABLE n FROM SOURCE s (REFERENCE public.nope)',
        'CREATE TABLE n FROM SOURCE s (REFERENCE public.upper)',
        'CREATE TABLE n FROM SOURCE s (REFERENCE twice)',
        'CREATE TABLE n FROM SOURCE s (REFERENCE elsewhere.public.t)',
        'CREATE TABLE n FROM SOURCE narrow (REFERENCE public.unpublished)',
        'CREATE TABLE n FROM SOURCE s (REFERENCE public.no_identity)',
        'CREATE TABLE n FROM SOURCE s (REFERENCE public.t) WITH (EXCLUDE COLUMNS (nope))',
        'CREATE TABLE n FROM SOURCE s (REFERENCE public.moods) WITH (TEXT COLUMNS (m, p, mixed))',
        'CREATE TABLE n FROM SOURCE s (REFERENCE public.t) WITH (EXCLUDE COLUMNS (b), TEXT COLUMNS (b))',
        'CREATE TABLE n FROM SOURCE s (REFERENCE public.t) WITH (EXCLUDE COLUMNS (a, b))',
        'CREATE TABLE n FROM SOURCE s (REFERENCE public.moods)',
        'CREATE TABLE n FROM SOURCE s',
      ),
    ).toMatchInlineSnapshot(`
      [
        "ERROR 42P01 at <public>: reference to public.nope not found in source "s"
      DETAIL: Database "postgres" has no such table, or role "postgres" cannot see it.",
        "ERROR 42P01 at <public>: reference to public.upper not found in source "s"
      DETAIL: Database "postgres" has no such table, or role "postgres" cannot see it.
      HINT: Perhaps you meant public."Upper".",
        "ERROR 42P09 at <twice>: reference twice is ambiguous
      DETAIL: It could be: other.twice, other2.twice.
      HINT: Name the schema as well: REFERENCE schema.table.",
        "ERROR 42P01 at <elsewhere>: reference to elsewhere.public.t not found in source "s"
      DETAIL: The source reads database "postgres".
      HINT: Leave the database out of REFERENCE.",
        "ERROR 42704 at <public>: table public.unpublished is not in publication "narrow"
      HINT: On the origin: ALTER PUBLICATION narrow ADD TABLE public.unpublished;",
        "ERROR 55000 at <public>: origin table public.no_identity has REPLICA IDENTITY NOTHING
      HINT: On the origin: ALTER TABLE public.no_identity REPLICA IDENTITY FULL;",
        "ERROR 42703 at <nope>: column "nope" of origin table public.t does not exist
      DETAIL: Its columns are: a, b.",
        "ERROR 42703 at <mixed>: column "mixed" of origin table public.moods does not exist
      DETAIL: Its columns are: id, m, p, Mixed.
      HINT: Perhaps you meant "Mixed".",
        "ERROR 22023 at <b>: column "b" named more than once in TEXT or EXCLUDE COLUMNS",
        "ERROR 22023 at <a>: a table from a source must show at least one column
      DETAIL: Nothing is left of public.t.",
        "ERROR 0A000 at <public>: referenced table public.moods uses types that the upstream does not have
      DETAIL: column m is of type public.mood
      column p is of type public.pair
      HINT: Create the type upstream, or type: WITH (TEXT COLUMNS (m, p)) to receive the values as text.",
        "ERROR 42P01 at <n>: reference to n not found in source "s"
      DETAIL: Database "postgres" has no such table, or role "postgres" cannot see it.",
      ]
    `);
  });

  it('a schema', async () => {
    expect(
      await list(
        "CREATE SECRET nope.n AS 'x'",
        "CREATE CONNECTION nope.n TO POSTGRES (HOST 'h', DATABASE 'd', USER 'u')",
        "CREATE SOURCE nope.n FROM POSTGRES CONNECTION c (PUBLICATION 'p')",
        'CREATE TABLE nope.n FROM SOURCE s (REFERENCE public.t)',
        'CREATE MATERIALIZED VIEW nope.n AS SELECT * FROM t',
        'ALTER SCHEMA nope SWAP WITH public',
        'ALTER SCHEMA public SWAP WITH nope',
        'ALTER SCHEMA public SWAP WITH millrace',
        "SET search_path = ''; CREATE TABLE n FROM SOURCE public.s (REFERENCE public.t)",
      ),
    ).toMatchInlineSnapshot(`
      [
        "ERROR 3F000 at <nope>: schema "nope" does not exist
      HINT: Type: CREATE SCHEMA nope;",
        "ERROR 3F000 at <nope>: schema "nope" does not exist
      HINT: Type: CREATE SCHEMA nope;",
        "ERROR 3F000 at <nope>: schema "nope" does not exist
      HINT: Type: CREATE SCHEMA nope;",
        "ERROR 3F000 at <nope>: schema "nope" does not exist
      HINT: Type: CREATE SCHEMA nope;",
        "ERROR 3F000 at <nope>: schema "nope" does not exist
      HINT: Type: CREATE SCHEMA nope;",
        "ERROR 3F000 at <nope>: schema "nope" does not exist
      HINT: Type: CREATE SCHEMA nope;",
        "ERROR 3F000 at <nope>: schema "nope" does not exist
      HINT: Type: CREATE SCHEMA nope;",
        "ERROR 22023 at <millrace>: swapping a system schema is not supported
      DETAIL: "millrace" belongs to the system.
      HINT: Swap schemas of your own.",
        "ERROR 3F000 at <n>: no schema has been selected to create in
      HINT: Name a schema, or SET search_path.",
      ]
    `);
    await client.query('RESET search_path');
  });
});

describe('what is there already', () => {
  it('is not made again', async () => {
    expect(
      await list(
        "CREATE SECRET sec AS 'y'",
        "CREATE CONNECTION c TO POSTGRES (HOST 'h', DATABASE 'd', USER 'u')",
        "CREATE SOURCE s FROM POSTGRES CONNECTION c (PUBLICATION 'mz_source')",
        "CREATE SOURCE ordinary FROM POSTGRES CONNECTION c (PUBLICATION 'mz_source')",
        'CREATE TABLE t FROM SOURCE s (REFERENCE public.t)',
        'CREATE TABLE v FROM SOURCE s (REFERENCE public.t)',
        'CREATE TABLE s FROM SOURCE s (REFERENCE public.t)',
        'CREATE MATERIALIZED VIEW v AS SELECT * FROM t',
        'CREATE MATERIALIZED VIEW ordinary AS SELECT * FROM t',
        'CREATE TABLE t (a int)',
      ),
    ).toMatchInlineSnapshot(`
      [
        "ERROR 42710 at <sec>: secret "sec" already exists",
        "ERROR 42710 at <c>: connection "c" already exists",
        "ERROR 42P07 at <s>: relation "s" already exists
      HINT: Choose another name or schema, or type CREATE ... IF NOT EXISTS.",
        "ERROR 42P07 at <ordinary>: relation "ordinary" already exists
      HINT: Choose another name or schema, or type CREATE ... IF NOT EXISTS.",
        "ERROR 42P07 at <t>: relation "t" already exists
      HINT: Choose another name or schema, or type CREATE ... IF NOT EXISTS.",
        "ERROR 42P07 at <v>: relation "v" already exists
      HINT: Choose another name or schema, or type CREATE ... IF NOT EXISTS.",
        "ERROR 42P07 at <s>: relation "s" already exists
      HINT: Choose another name or schema, or type CREATE ... IF NOT EXISTS.",
        "ERROR 42P07 at <v>: relation "v" already exists
      HINT: Choose another name or schema, or type CREATE ... IF NOT EXISTS.",
        "ERROR 42P07 at <ordinary>: relation "ordinary" already exists
      HINT: Choose another name or schema, or type CREATE ... IF NOT EXISTS.",
        "ERROR 42P07: relation "t" already exists",
      ]
    `);
  });

  it('or skipped with a notice', async () => {
    client.takeNotices();
    await client.query("CREATE SECRET IF NOT EXISTS sec AS 'y'");
    await client.query("CREATE CONNECTION IF NOT EXISTS c TO POSTGRES (HOST 'h', DATABASE 'd', USER 'u')");
    await client.query("CREATE SOURCE IF NOT EXISTS s FROM POSTGRES CONNECTION nope (PUBLICATION 'mz_source')");
    await client.query('CREATE TABLE IF NOT EXISTS t FROM SOURCE nope (REFERENCE public.t)');
    await client.query('CREATE MATERIALIZED VIEW IF NOT EXISTS v AS SELECT * FROM t');
    await client.query("ALTER SECRET IF EXISTS nope AS 'x'");
    await client.query("ALTER CONNECTION IF EXISTS nope SET (HOST 'h')");
    await client.query('ALTER SCHEMA IF EXISTS nope SWAP WITH public');
    await client.query('DROP SECRET IF EXISTS nope');
    await client.query('DROP CONNECTION IF EXISTS nope');
    await client.query('DROP SOURCE IF EXISTS nope');
    await client.query('DROP TABLE IF EXISTS nope');
    expect(client.takeNotices()).toMatchInlineSnapshot(`
      [
        "secret "sec" already exists, skipping",
        "connection "c" already exists, skipping",
        "relation "s" already exists, skipping",
        "relation "t" already exists, skipping",
        "relation "v" already exists, skipping",
        "secret "nope" does not exist, skipping",
        "connection "nope" does not exist, skipping",
        "schema "nope" does not exist, skipping",
        "secret "nope" does not exist, skipping",
        "connection "nope" does not exist, skipping",
        "source "nope" does not exist, skipping",
        "table "nope" does not exist, skipping",
      ]
    `);
  });
});

describe('options', () => {
  it('of connections', async () => {
    const connect = (options: string): string => `CREATE CONNECTION n TO POSTGRES (${options})`;
    expect(
      await list(
        connect("DATABASE 'd', USER 'u'"),
        connect("HOST 'h', DATABASE 'd'"),
        connect("HOST 'h', DATABASE 'd', USER 'u', COLOUR 'red'"),
        connect("HOST 'h', HOST 'g', DATABASE 'd', USER 'u'"),
        connect("HOST 'h', DATABASE 'd', USER 'u', PORT 'seven'"),
        connect("HOST 'h', DATABASE 'd', USER 'u', PORT 70000"),
        connect("HOST 'h', DATABASE 'd', USER 'u', PASSWORD 'clear'"),
        connect("HOST 'h', DATABASE 'd', USER 'u', SSL MODE 'sometimes'"),
        connect("HOST 'h', DATABASE 'd', USER 'u', SSL KEY SECRET sec"),
        'ALTER CONNECTION c DROP (HOST)',
        'ALTER CONNECTION c RESET (COLOUR)',
        "ALTER CONNECTION c SET (COLOUR 'red')",
        "CREATE CONNECTION n TO KAFKA (BROKER 'b')",
      ),
    ).toMatchInlineSnapshot(`
      [
        "ERROR 22023: HOST option is required
      HINT: Add HOST '...' to the list.",
        "ERROR 22023: USER option is required
      HINT: Add USER '...' to the list.",
        "ERROR 22023 at <COLOUR>: POSTGRES connections do not support COLOUR values
      HINT: The options are: HOST, PORT, USER, PASSWORD, DATABASE, SSL MODE, SSL CERTIFICATE AUTHORITY, SSL CERTIFICATE, SSL KEY.",
        "ERROR 22023 at <HOST>: HOST specified more than once",
        "ERROR 22023: invalid PORT: seven
      HINT: Give a number from 1 to 65535.",
        "ERROR 22023: invalid PORT: 70000
      HINT: Give a number from 1 to 65535.",
        "ERROR 22023 at <PASSWORD>: PASSWORD must be a secret
      HINT: Type: CREATE SECRET my_password AS '...'; and then PASSWORD SECRET my_password.",
        "ERROR 22023: invalid CONNECTION: unknown SSL MODE "sometimes"
      HINT: The modes are: disable, prefer, require, verify-ca, verify-full.",
        "ERROR 22023: invalid CONNECTION: both SSL KEY and SSL CERTIFICATE are required",
        "ERROR 22023: HOST option is required
      HINT: Add HOST '...' to the list.",
        "ERROR 22023: POSTGRES connections do not support COLOUR values
      HINT: The options are: HOST, PORT, USER, PASSWORD, DATABASE, SSL MODE, SSL CERTIFICATE AUTHORITY, SSL CERTIFICATE, SSL KEY.",
        "ERROR 22023 at <COLOUR>: POSTGRES connections do not support COLOUR values
      HINT: The options are: HOST, PORT, USER, PASSWORD, DATABASE, SSL MODE, SSL CERTIFICATE AUTHORITY, SSL CERTIFICATE, SSL KEY.",
        "ERROR 0A000 at <KAFKA>: connections to KAFKA are not supported",
      ]
    `);
  });

  it('of sources and tables', async () => {
    expect(
      await list(
        'CREATE SOURCE n FROM POSTGRES CONNECTION c',
        "CREATE SOURCE n FROM POSTGRES CONNECTION c (PUBLICATION 'mz_source') FOR ALL TABLES",
        "CREATE SOURCE n FROM POSTGRES CONNECTION c (COLOUR 'red')",
        'CREATE TABLE n FROM SOURCE s (REFERENCE)',
        'CREATE TABLE n FROM SOURCE s (REFERENCE public.t) WITH (COLOUR (b))',
        'CREATE TABLE n FROM SOURCE s (REFERENCE public.t) WITH (EXCLUDE COLUMNS ())',
        'CREATE TEMPORARY TABLE n FROM SOURCE s (REFERENCE public.t)',
      ),
    ).toMatchInlineSnapshot(`
      [
        "ERROR 42601 at <>: syntax error at end of input",
        "ERROR 0A000 at <FOR>: FOR ALL TABLES is not supported; use CREATE TABLE .. FROM SOURCE instead",
        "ERROR 42601 at <COLOUR>: syntax error at or near "COLOUR"",
        "ERROR 42601 at <)>: syntax error at or near ")"",
        "ERROR 42601 at <COLOUR>: syntax error at or near "COLOUR"",
        "ERROR 42601 at <)>: syntax error at or near ")"",
        "ERROR 0A000 at <TEMPORARY>: temporary tables FROM SOURCE are not supported",
      ]
    `);
  });

  it('points into the text of several statements', async () => {
    expect(
      await list(
        "SELECT 'ü'; CREATE TABLE n FROM SOURCE nope (REFERENCE public.t)",
        'SELECT \'€😀\'; CREATE TABLE n FROM SOURCE s (REFERENCE public.t) WITH (EXCLUDE COLUMNS ("ünknown"))',
        'SELECT 1; CREATE SOURCE x FROM POSTGRES CONNCTION c; SELECT 2',
        "/* 😀 */ SELECT 1; CREATE MATERIALIZED VIEW n AS SELECT '€', nope FROM t",
        'SELECT 1; CREATE MATERIALIZED VIEW n AS SELECT * FROM t WHERE; SELECT 2',
        'SELECT 1; SELECT nope; CREATE TABLE n FROM SOURCE s (REFERENCE public.t)',
      ),
    ).toMatchInlineSnapshot(`
      [
        "ERROR 42704 at <nope>: source "nope" does not exist
      HINT: SHOW SOURCES; lists what there is.",
        "ERROR 42703 at <"ünknown">: column "ünknown" of origin table public.t does not exist
      DETAIL: Its columns are: a, b.",
        "ERROR 42601 at <CONNCTION>: syntax error at or near "CONNCTION"",
        "ERROR 42703 at <nope>: column "nope" does not exist",
        "ERROR 42601 at <;>: syntax error at end of input",
        "ERROR 42703 at <nope>: column "nope" does not exist",
      ]
    `);
    expect(await client.rows("SELECT to_regclass('n')")).toEqual([[null]]);
  });
});

describe('views', () => {
  it('that cannot be live', async () => {
    await client.query(`
      CREATE FUNCTION volatile_one(a int) RETURNS int LANGUAGE sql AS 'SELECT 1';
      CREATE VIEW over_now AS SELECT a, now() AS at FROM t;
    `);
    expect(
      await list(
        'CREATE MATERIALIZED VIEW n AS SELECT * FROM t JOIN ordinary USING (a)',
        'CREATE MATERIALIZED VIEW n AS SELECT now(), a FROM t',
        'CREATE MATERIALIZED VIEW n AS SELECT current_timestamp, a FROM t',
        'CREATE MATERIALIZED VIEW n AS SELECT current_user, a FROM t',
        'CREATE MATERIALIZED VIEW n AS SELECT random(), a FROM t',
        'CREATE MATERIALIZED VIEW n AS SELECT volatile_one(a) FROM t',
        'CREATE MATERIALIZED VIEW n AS SELECT * FROM over_now',
        'CREATE MATERIALIZED VIEW n AS SELECT a FROM t LIMIT 1',
        'CREATE MATERIALIZED VIEW n AS SELECT a FROM t FOR UPDATE',
        'CREATE MATERIALIZED VIEW n AS SELECT nope FROM t',
        'CREATE MATERIALIZED VIEW n AS SELECT a AS x, b AS x FROM t',
        'CREATE MATERIALIZED VIEW n (x, y, z) AS SELECT a, b FROM t',
        'CREATE MATERIALIZED VIEW n AS WITH d AS (DELETE FROM ordinary RETURNING a) SELECT a FROM t JOIN d USING (a)',
        'CREATE MATERIALIZED VIEW n AS SELECT a FROM t; CREATE TABLE n2 FROM SOURCE s (REFERENCE public.nope)',
      ),
    ).toMatchInlineSnapshot(`
      [
        "ERROR 0A000: materialized view "n" reads both live relations and ordinary tables
      DETAIL: Ordinary: public.ordinary.
      HINT: Bring the ordinary table in through a source (CREATE TABLE .. FROM SOURCE), or leave it out of the view.",
        "ERROR 0A000: cannot materialize call to now()
      DETAIL: Its result changes although no row changes, so the view could not equal its query.
      HINT: Leave now() out of the view and apply it where the view is read.",
        "ERROR 0A000: cannot materialize call to current_timestamp()
      DETAIL: Its result changes although no row changes, so the view could not equal its query.
      HINT: Leave current_timestamp() out of the view and apply it where the view is read.",
        "ERROR 0A000: cannot materialize call to current_user()
      DETAIL: Its result changes although no row changes, so the view could not equal its query.
      HINT: Leave current_user() out of the view and apply it where the view is read.",
        "ERROR 0A000: cannot materialize call to random()
      DETAIL: Its result changes although no row changes, so the view could not equal its query.
      HINT: Leave random() out of the view and apply it where the view is read.",
        "ERROR 0A000: cannot materialize call to public.volatile_one()
      DETAIL: Its result changes although no row changes, so the view could not equal its query.
      HINT: Leave public.volatile_one() out of the view and apply it where the view is read.",
        "ERROR 0A000: cannot materialize call to now()
      DETAIL: Its result changes although no row changes, so the view could not equal its query.
      HINT: Leave now() out of the view and apply it where the view is read.",
        "ERROR 0A000: LIMIT without ORDER BY in a live view: which rows it keeps is not defined; add an ORDER BY",
        "ERROR 0A000: FOR UPDATE and FOR SHARE are not possible in a live view",
        "ERROR 42703 at <nope>: column "nope" does not exist",
        "ERROR 42701: column "x" specified more than once",
        "ERROR 42601: CREATE VIEW specifies more column names than columns",
        "ERROR 0A000: views must not contain data-modifying statements in WITH",
        "ERROR 42P01 at <public>: reference to public.nope not found in source "s"
      DETAIL: Database "postgres" has no such table, or role "postgres" cannot see it.",
      ]
    `);
    await client.query('DROP VIEW over_now');
    expect(await client.rows("SELECT to_regclass('n')")).toEqual([[null]]);
  });

  it('whose query fails while it is filled leave nothing behind', async () => {
    expect(await client.failure('CREATE MATERIALIZED VIEW n AS SELECT 1 / (a - 1) AS q FROM t')).toMatchInlineSnapshot(
      `
      "ERROR 22012: division by zero
      DETAIL: public.n could not be filled and was taken away again."
    `,
    );
    expect(await client.rows("SELECT to_regclass('n')")).toEqual([[null]]);
    await expect.poll(() => client.rows('SELECT count(*)::int FROM millrace.relation')).toEqual([[2]]);
    await client.query('CREATE MATERIALIZED VIEW n AS SELECT 1 / a AS q FROM t');
    await client.query('DROP MATERIALIZED VIEW n');
  });

  it('over ordinary tables are plain Postgres', async () => {
    await client.query('INSERT INTO ordinary VALUES (5)');
    await client.query('CREATE MATERIALIZED VIEW n AS SELECT * FROM ordinary');
    expect(await client.rows("SELECT relkind FROM pg_class WHERE relname = 'n'")).toEqual([['m']]);
    await client.query('INSERT INTO ordinary VALUES (6)');
    expect(await client.rows('SELECT * FROM n')).toEqual([[5]]);
    await client.query('REFRESH MATERIALIZED VIEW n');
    expect(await client.rows('SELECT * FROM n')).toEqual([[5], [6]]);
    await client.query('DROP MATERIALIZED VIEW n; TRUNCATE ordinary');
  });
});

describe('DROP', () => {
  it('of the wrong kind', async () => {
    expect(
      await list(
        'DROP TABLE v',
        'DROP VIEW v',
        'DROP VIEW t',
        'DROP MATERIALIZED VIEW t',
        'DROP TABLE s',
        'DROP VIEW s',
        'DROP SOURCE ordinary',
        'DROP TABLE plain',
        'DROP MATERIALIZED VIEW ordinary',
        'DROP INDEX t',
      ),
    ).toMatchInlineSnapshot(`
      [
        "ERROR 42809 at <v>: "v" is not a table
      HINT: Use DROP MATERIALIZED VIEW v; to remove it.",
        "ERROR 42809 at <v>: "v" is not a view
      HINT: Use DROP MATERIALIZED VIEW v; to remove it.",
        "ERROR 42809 at <t>: "t" is not a view
      HINT: Use DROP TABLE t; to remove it.",
        "ERROR 42809 at <t>: "t" is not a materialized view
      HINT: Use DROP TABLE t; to remove it.",
        "ERROR 42809 at <s>: "s" is not a table
      HINT: Use DROP SOURCE s; to remove it.",
        "ERROR 42809 at <s>: "s" is not a view
      HINT: Use DROP SOURCE s; to remove it.",
        "ERROR 42809 at <ordinary>: "ordinary" is not a source",
        "ERROR 42809: "plain" is not a table
      HINT: Use DROP VIEW to remove a view.",
        "ERROR 42809: "ordinary" is not a materialized view
      HINT: Use DROP TABLE to remove a table.",
        "ERROR 42809: "t" is not an index
      HINT: Use DROP VIEW to remove a view.",
      ]
    `);
  });

  it('of what others need', async () => {
    await client.query('CREATE VIEW on_t AS SELECT * FROM t');
    await client.query('CREATE VIEW on_v AS SELECT * FROM v');
    expect(
      await list('DROP SOURCE s', 'DROP TABLE t', 'DROP MATERIALIZED VIEW v', 'DROP CONNECTION c', 'DROP TABLE t, v', 'DROP SCHEMA public'),
    ).toMatchInlineSnapshot(`
      [
        "ERROR 2BP01: cannot drop source "s" because other objects depend on it
      DETAIL: table public.t depends on source s
      materialized view public.v depends on table public.t
      view public.on_t depends on table public.t
      view public.on_v depends on materialized view public.v
      HINT: Use DROP ... CASCADE to drop the dependent objects too.",
        "ERROR 2BP01: cannot drop table "t" because other objects depend on it
      DETAIL: materialized view public.v depends on table public.t
      view public.on_t depends on table public.t
      view public.on_v depends on materialized view public.v
      HINT: Use DROP ... CASCADE to drop the dependent objects too.",
        "ERROR 2BP01: cannot drop materialized view "v" because other objects depend on it
      DETAIL: view public.on_v depends on materialized view public.v
      HINT: Use DROP ... CASCADE to drop the dependent objects too.",
        "ERROR 2BP01: cannot drop connection "c" because other objects depend on it
      DETAIL: source public.s depends on connection c
      source public.narrow depends on connection c
      table public.t depends on source public.s
      materialized view public.v depends on table public.t
      view public.on_t depends on table public.t
      view public.on_v depends on materialized view public.v
      HINT: Use DROP ... CASCADE to drop the dependent objects too.",
        "ERROR 42809 at <v>: "v" is not a table
      HINT: Use DROP MATERIALIZED VIEW v; to remove it.",
        "ERROR 2BP01: cannot drop schema "public" because other objects depend on it
      DETAIL: connection public.c depends on schema public
      secret public.sec depends on schema public
      source public.s depends on schema public
      source public.narrow depends on schema public
      materialized view public.v depends on schema public
      table public.t depends on schema public
      HINT: Use DROP ... CASCADE to drop the dependent objects too.",
      ]
    `);
    await client.query('DROP VIEW on_t, on_v');
    await client.query(`ALTER CONNECTION c SET (PASSWORD SECRET sec)`);
    expect(await list('DROP SECRET sec')).toMatchInlineSnapshot(`
      [
        "ERROR 2BP01: cannot drop secret "sec" because other objects depend on it
      DETAIL: connection public.c depends on secret sec
      source public.s depends on connection public.c
      source public.narrow depends on connection public.c
      table public.t depends on source public.s
      materialized view public.v depends on table public.t
      HINT: Use DROP ... CASCADE to drop the dependent objects too.",
      ]
    `);
    await client.query(`ALTER CONNECTION c DROP (PASSWORD)`);
  });
});

describe('writes', () => {
  it('to live relations are refused to everyone, whatever they match', async () => {
    const writes = (name: string): string[] => [
      `INSERT INTO ${name} VALUES (1)`,
      `INSERT INTO ${name} SELECT 1 WHERE false`,
      `UPDATE ${name} SET ${name === 'v' ? 'sum' : name === 's' ? 'lsn' : 'a'} = NULL WHERE false`,
      `DELETE FROM ${name} WHERE false`,
      `COPY ${name} FROM STDIN`,
      `TRUNCATE ${name}`,
      `MERGE INTO ${name} USING (SELECT 1 AS x) z ON false WHEN NOT MATCHED THEN INSERT VALUES (3)`,
      `MERGE INTO ${name} USING (SELECT 1 AS x) z ON false WHEN MATCHED THEN DELETE`,
      `WITH w AS (DELETE FROM ${name} RETURNING 1) SELECT 1`,
      `LOCK ${name}; INSERT INTO ${name} DEFAULT VALUES`,
    ];
    expect(await list(...writes('t'))).toMatchInlineSnapshot(`
      [
        "ERROR 25006: cannot write to table public.t: it is replicated from a source
      DETAIL: Its rows come from public.t of source public.s.
      HINT: Write to the origin table; the change arrives here by itself.",
        "ERROR 25006: cannot write to table public.t: it is replicated from a source
      DETAIL: Its rows come from public.t of source public.s.
      HINT: Write to the origin table; the change arrives here by itself.",
        "ERROR 25006: cannot write to table public.t: it is replicated from a source
      DETAIL: Its rows come from public.t of source public.s.
      HINT: Write to the origin table; the change arrives here by itself.",
        "ERROR 25006: cannot write to table public.t: it is replicated from a source
      DETAIL: Its rows come from public.t of source public.s.
      HINT: Write to the origin table; the change arrives here by itself.",
        "ERROR 25006: cannot write to table public.t: it is replicated from a source
      DETAIL: Its rows come from public.t of source public.s.
      HINT: Write to the origin table; the change arrives here by itself.",
        "ERROR 42809: "t" is not a table",
        "ERROR 25006: cannot write to table public.t: it is replicated from a source
      DETAIL: Its rows come from public.t of source public.s.
      HINT: Write to the origin table; the change arrives here by itself.",
        "ERROR 25006: cannot write to table public.t: it is replicated from a source
      DETAIL: Its rows come from public.t of source public.s.
      HINT: Write to the origin table; the change arrives here by itself.",
        "ERROR 25006: cannot write to table public.t: it is replicated from a source
      DETAIL: Its rows come from public.t of source public.s.
      HINT: Write to the origin table; the change arrives here by itself.",
        "ERROR 25006: cannot write to table public.t: it is replicated from a source
      DETAIL: Its rows come from public.t of source public.s.
      HINT: Write to the origin table; the change arrives here by itself.",
      ]
    `);
    expect(await list(...writes('v'), 'DELETE FROM s')).toMatchInlineSnapshot(`
      [
        "ERROR 25006: cannot write to materialized view public.v
      DETAIL: Its rows are kept up to date from its query.
      HINT: Write to the tables it reads at their origin.",
        "ERROR 25006: cannot write to materialized view public.v
      DETAIL: Its rows are kept up to date from its query.
      HINT: Write to the tables it reads at their origin.",
        "ERROR 25006: cannot write to materialized view public.v
      DETAIL: Its rows are kept up to date from its query.
      HINT: Write to the tables it reads at their origin.",
        "ERROR 25006: cannot write to materialized view public.v
      DETAIL: Its rows are kept up to date from its query.
      HINT: Write to the tables it reads at their origin.",
        "ERROR 25006: cannot write to materialized view public.v
      DETAIL: Its rows are kept up to date from its query.
      HINT: Write to the tables it reads at their origin.",
        "ERROR 42809: "v" is not a table",
        "ERROR 25006: cannot write to materialized view public.v
      DETAIL: Its rows are kept up to date from its query.
      HINT: Write to the tables it reads at their origin.",
        "ERROR 25006: cannot write to materialized view public.v
      DETAIL: Its rows are kept up to date from its query.
      HINT: Write to the tables it reads at their origin.",
        "ERROR 25006: cannot write to materialized view public.v
      DETAIL: Its rows are kept up to date from its query.
      HINT: Write to the tables it reads at their origin.",
        "ERROR 25006: cannot write to materialized view public.v
      DETAIL: Its rows are kept up to date from its query.
      HINT: Write to the tables it reads at their origin.",
        "ERROR 25006: cannot write to source public.s
      DETAIL: It shows the position reached in the origin.
      HINT: Write to the tables it reads at their origin.",
      ]
    `);
    const direct = await stage.direct(stage.upstream);
    expect(await direct.failure('DELETE FROM t')).toMatchInlineSnapshot(`
      "ERROR 25006: cannot write to table public.t: it is replicated from a source
      DETAIL: Its rows come from public.t of source public.s.
      HINT: Write to the origin table; the change arrives here by itself."
    `);
  });
});
