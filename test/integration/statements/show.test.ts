/** What can be asked about: SHOW, the status views, waiting or not. */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { eventually, leadsTo, type Stage, simpleSource, startStage, type TestClient } from './stage.ts';

let stage: Stage;
let client: TestClient;
let origin: TestClient;
beforeAll(async () => {
  stage = await startStage();
  client = await stage.connect();
  expect((await client.query('SHOW SOURCES')).rows).toEqual([]);
  origin = await simpleSource(stage, client);
  await client.query(`
    CREATE SECRET pw AS 'x'; CREATE SECRET other AS 'y';
    CREATE SCHEMA v1; CREATE SCHEMA v2;
    CREATE SOURCE second FROM POSTGRES CONNECTION c (PUBLICATION 'mz_source');
    CREATE TABLE v1.t FROM SOURCE s (REFERENCE public.t) WITH (EXCLUDE COLUMNS (b));
    CREATE TABLE v2.t FROM SOURCE second (REFERENCE public.t) WITH (TEXT COLUMNS (a));
    CREATE MATERIALIZED VIEW v1.m AS SELECT count(*) FROM v1.t;
    COMMENT ON VIEW v1.t IS 'the first';
    CREATE TABLE v1.ordinary (a int);
  `);
});
afterAll(() => stage.stop());

describe('SHOW', () => {
  it('lists objects', async () => {
    expect(await client.rows('SHOW SOURCES')).toEqual([
      ['s', 'postgres', 'running', ''],
      ['second', 'postgres', 'running', ''],
    ]);
    expect(await client.rows('SHOW TABLES')).toEqual([
      ['t', 'ready', 'the first'],
      ['t', 'ready', ''],
    ]);
    expect(await client.rows('SHOW MATERIALIZED VIEWS')).toEqual([['m', 'ready', '']]);
    expect(await client.rows('SHOW CONNECTIONS')).toEqual([['c', 'postgres', '']]);
    expect(await client.rows('SHOW SECRETS')).toEqual([
      ['other', ''],
      ['pw', ''],
    ]);
  });

  it('filters', async () => {
    expect(await client.rows("SHOW SECRETS LIKE 'p%'")).toEqual([['pw', '']]);
    expect(await client.rows("SHOW SECRETS WHERE name = 'other' -- a comment")).toEqual([['other', '']]);
    expect(await client.rows("SHOW TABLES WHERE comment <> '' OR name = 'nothing'")).toEqual([['t', 'ready', 'the first']]);
    expect(await client.rows('SHOW TABLES FROM v2')).toEqual([['t', 'ready', '']]);
    expect(await client.rows('SHOW TABLES ON second')).toEqual([['t', 'ready', '']]);
    expect(await client.rows("SHOW TABLES FROM v1 ON second LIKE 't'")).toEqual([]);
    expect(await client.failure('SHOW TABLES WHERE nope = 1')).toMatchInlineSnapshot(`
      "ERROR 42703: column "nope" does not exist
      HINT: Perhaps you meant to reference the column "shown.name"."
    `);
    expect(await client.failure('SHOW TABLES WHERE name =')).toMatchInlineSnapshot(`"ERROR 42601: syntax error at or near ")""`);
    expect(await client.failure('SHOW TABLES FROM v1 WHERE true) OR (true')).toMatchInlineSnapshot(
      `"ERROR 42601: syntax error at or near ")""`,
    );
    expect(await client.failure('SHOW TABLES WHERE true UNION SELECT 1')).toMatchInlineSnapshot(
      `"ERROR 42601: syntax error at or near "UNION""`,
    );
  });

  it('CREATE prints what makes the same again', async () => {
    const things = ['CONNECTION c', 'SOURCE s', 'SOURCE second', 'TABLE v1.t', 'TABLE v2.t', 'MATERIALIZED VIEW v1.m'];
    const printed = new Map<string, unknown>();
    for (const thing of things) printed.set(thing, (await client.rows(`SHOW CREATE ${thing}`))[0]?.[1]);
    expect([...printed.values()].map((sql) => String(sql).replace(/PORT \d+/, 'PORT 1'))).toMatchInlineSnapshot(`
      [
        "CREATE CONNECTION public.c TO POSTGRES (HOST '127.0.0.1', PORT 1, USER 'postgres', DATABASE 'postgres')",
        "CREATE SOURCE public.s FROM POSTGRES CONNECTION public.c (PUBLICATION 'mz_source')",
        "CREATE SOURCE public.second FROM POSTGRES CONNECTION public.c (PUBLICATION 'mz_source')",
        "CREATE TABLE v1.t FROM SOURCE public.s (REFERENCE public.t) WITH (EXCLUDE COLUMNS (b))",
        "CREATE TABLE v2.t FROM SOURCE public.second (REFERENCE public.t) WITH (TEXT COLUMNS (a))",
        "CREATE MATERIALIZED VIEW v1.m AS
       SELECT count(*) AS count
         FROM v1.t",
      ]
    `);
    const before = await client.rows('SELECT * FROM v1.t, v1.m, v2.t ORDER BY 1');
    await client.query('DROP CONNECTION c CASCADE');
    expect(await client.rows('SHOW TABLES')).toEqual([]);
    for (const sql of printed.values()) await client.query(String(sql));
    expect(await client.rows('SELECT * FROM v1.t, v1.m, v2.t ORDER BY 1')).toEqual(before);
    for (const thing of things) expect((await client.rows(`SHOW CREATE ${thing}`))[0]?.[1]).toBe(printed.get(thing));
  });

  it('leaves the parameters of Postgres alone', async () => {
    expect(await client.rows('SHOW server_encoding')).toEqual([['UTF8']]);
    await client.query("SET millrace.wait = 'off'");
    expect(await client.rows('SHOW millrace.wait')).toEqual([['off']]);
    await client.query('RESET millrace.wait');
  });
});

describe('the views', () => {
  it('tell the state of sources and relations', async () => {
    expect(await client.rows('SELECT name, type, status, error FROM mz_internal.mz_source_statuses ORDER BY type, name')).toEqual([
      ['s', 'postgres', 'running', null],
      ['second', 'postgres', 'running', null],
      ['t', 'table', 'running', null],
      ['t', 'table', 'running', null],
    ]);
    await eventually(client, 'SELECT name, owner, publication, lag_bytes::int FROM millrace.sources ORDER BY name', [
      ['s', 'postgres', 'mz_source', 0],
      ['second', 'postgres', 'mz_source', 0],
    ]);
    expect(
      await client.rows('SELECT type, schema, name, state, origin_name, strategy IS NOT NULL FROM millrace.relations ORDER BY 1, 2'),
    ).toEqual([
      ['materialized view', 'v1', 'm', 'ready', null, true],
      ['table', 'v1', 't', 'ready', 't', false],
      ['table', 'v2', 't', 'ready', 't', false],
    ]);
    expect(await client.rows('SELECT schema, name, state, percent::int FROM millrace.snapshot_progress ORDER BY 1')).toEqual([
      ['v1', 't', 'live', 100],
      ['v2', 't', 'live', 100],
    ]);
    expect(await client.rows('SELECT lsn > $1 FROM s', ['0/0'])).toEqual([[true]]);
  });
});

describe('millrace.wait = off', () => {
  it('returns at once; what is not ready says so', async () => {
    await origin.query('CREATE TABLE big AS SELECT i AS a, repeat(md5(i::text), 10) AS b FROM generate_series(1, 60000) i');
    await client.query('SET millrace.wait = off');
    await client.query('CREATE TABLE v1.big FROM SOURCE s (REFERENCE public.big)');
    expect(
      (await client.failure('SELECT * FROM v1.big')).replace(/ \d+ rows copied so far( of about \d+)?/, ' N rows copied so far'),
    ).toMatchInlineSnapshot(`
      "ERROR 55000: relation v1.big is not ready
      DETAIL: Its state is "pending". N rows copied so far.
      HINT: Wait for it: SELECT * FROM millrace.snapshot_progress; or leave millrace.wait on, so that CREATE returns when it can be read."
    `);
    await client.query('CREATE MATERIALIZED VIEW v1.over AS SELECT count(*)::int FROM v1.big');
    expect((await client.failure('SELECT * FROM v1.over')).split('\n')[0]).toBe('ERROR 55000: relation v1.over is not ready');
    await client.query('RESET millrace.wait');
    await eventually(client, 'SELECT * FROM v1.over', [[60000]]);
  });

  it('also for a source whose origin is not there for the moment', async () => {
    await client.query(`CREATE CONNECTION nowhere TO POSTGRES (${leadsTo(stage.origin)}); SET millrace.wait = off`);
    await client.query("CREATE SOURCE later FROM POSTGRES CONNECTION nowhere (PUBLICATION 'mz_source')");
    await client.query('RESET millrace.wait');
    await eventually(client, "SELECT status FROM millrace.sources WHERE name = 'later'", [['running']]);
  });
});
