/** What is typed wrong: each mistake has its own answer, and session and engine go on after it. */
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { goesOn, refusals, somethingOfEverything } from './mistakes.ts';
import { type Stage, startStage, type TestClient } from './stage.ts';

let stage: Stage;
let client: TestClient;
beforeAll(async () => {
  stage = await startStage();
  client = await stage.connect();
  await somethingOfEverything(stage, client);
});
afterAll(() => stage.stop());
afterEach(() => goesOn(client));

const list = (...statements: string[]): Promise<string[]> => refusals(client, statements);

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
        "CREATE CONNECTION n TO MYSQL (HOST 'b')",
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
        "ERROR 0A000 at <MYSQL>: connections to MYSQL are not supported",
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
