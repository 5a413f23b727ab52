/** Views that cannot be live, drops of the wrong kind or of what others need, writes to what is replicated. */
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
        "ERROR 0A000: cannot materialize call to now() but in a comparison
      DETAIL: Rows come and go at known instants only where the time is compared with columns of one relation by <, <=, > or >=.
      HINT: Compare it, as in WHERE at > now() - interval '1 hour' or mz_now() <= at + interval '1 hour', or leave it out and apply it where the view is read.",
        "ERROR 0A000: cannot materialize call to current_timestamp() but in a comparison
      DETAIL: Rows come and go at known instants only where the time is compared with columns of one relation by <, <=, > or >=.
      HINT: Compare it, as in WHERE at > now() - interval '1 hour' or mz_now() <= at + interval '1 hour', or leave it out and apply it where the view is read.",
        "ERROR 0A000: cannot materialize call to current_user()
      DETAIL: Its result changes although no row changes, so the view could not equal its query.
      HINT: Leave current_user() out of the view and apply it where the view is read.",
        "ERROR 0A000: cannot materialize call to random()
      DETAIL: Its result changes although no row changes, so the view could not equal its query.
      HINT: Leave random() out of the view and apply it where the view is read.",
        "ERROR 0A000: cannot materialize call to public.volatile_one()
      DETAIL: Its result changes although no row changes, so the view could not equal its query.
      HINT: Leave public.volatile_one() out of the view and apply it where the view is read.",
        "ERROR 0A000: cannot materialize call to now() but in a comparison
      DETAIL: Rows come and go at known instants only where the time is compared with columns of one relation by <, <=, > or >=.
      HINT: Compare it, as in WHERE at > now() - interval '1 hour' or mz_now() <= at + interval '1 hour', or leave it out and apply it where the view is read.",
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
    await expect.poll(() => client.rows("SELECT count(*)::int FROM millrace.relation WHERE kind <> 'clock'")).toEqual([[2]]);
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
      table public.t depends on schema public
      materialized view public.v depends on schema public
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
