/** Extended statements in transactions: all or nothing, as any statement of Postgres. */
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { leadsTo, type Stage, simpleSource, startStage, type TestClient, whatThereIs } from './stage.ts';

let stage: Stage;
let client: TestClient;
let direct: TestClient;
let origin: TestClient;
beforeAll(async () => {
  stage = await startStage();
  [client, direct] = await Promise.all([stage.connect(), stage.direct(stage.upstream)]);
  origin = await simpleSource(stage, client);
  await client.query(`
    CREATE SECRET sec AS 'x';
    CREATE TABLE t FROM SOURCE s (REFERENCE public.t);
    CREATE MATERIALIZED VIEW v AS SELECT sum(a) FROM t;
    CREATE SCHEMA one; CREATE SCHEMA two; CREATE TABLE one.x (a int)`);
});
afterAll(() => stage.stop());
afterEach(async () => {
  await client.query('ROLLBACK');
});

let before: Record<string, unknown>;
beforeEach(async () => {
  before = await whatThereIs(direct, origin);
});

const nothingChanged = async (): Promise<void> => {
  await expect.poll(() => whatThereIs(direct, origin), { timeout: 10_000 }).toEqual(before);
  expect(await client.rows('SELECT * FROM v')).toEqual([['3']]);
  expect(await client.rows("SELECT to_regclass('one.x') IS NOT NULL")).toEqual([[true]]);
};

describe('ROLLBACK', () => {
  const statements = (): string[] => [
    "CREATE SECRET n AS 'x'",
    "ALTER SECRET sec AS 'y'",
    `CREATE CONNECTION n TO POSTGRES (${leadsTo(stage.origin)})`,
    "ALTER CONNECTION c SET (SSL MODE 'disable')",
    "CREATE SOURCE n FROM POSTGRES CONNECTION c (PUBLICATION 'mz_source')",
    'CREATE TABLE n FROM SOURCE s (REFERENCE public.t)',
    'CREATE MATERIALIZED VIEW n AS SELECT * FROM t',
    'ALTER SCHEMA one SWAP WITH two',
    'DROP MATERIALIZED VIEW v',
    'DROP TABLE t CASCADE',
    'DROP SOURCE s CASCADE',
    'DROP CONNECTION c CASCADE',
    'DROP SECRET sec',
    'DROP SCHEMA one CASCADE',
  ];

  it('leaves nothing of any statement', async () => {
    const was = await direct.rows('SELECT * FROM millrace.connection, millrace.secret');
    for (const statement of statements()) {
      await client.query(`BEGIN; ${statement}`);
      await client.query('ROLLBACK');
      await client.query('BEGIN');
      await client.query({ text: statement, values: [] });
      await client.query('ROLLBACK');
    }
    await nothingChanged();
    expect(await direct.rows('SELECT * FROM millrace.connection, millrace.secret')).toEqual(was);
  });

  it('TO SAVEPOINT takes back what came after it', async () => {
    await client.query(`BEGIN; CREATE TABLE kept FROM SOURCE s (REFERENCE public.t); SAVEPOINT p;
      CREATE TABLE gone FROM SOURCE s (REFERENCE public.t) WITH (TEXT COLUMNS (a));
      CREATE SOURCE gone_too FROM POSTGRES CONNECTION c (PUBLICATION 'mz_source')`);
    await client.query('ROLLBACK TO SAVEPOINT p');
    await client.query('CREATE MATERIALIZED VIEW kept_too AS SELECT count(*)::int FROM kept');
    await client.query('COMMIT');
    expect(await client.rows('SELECT * FROM kept_too')).toEqual([[2]]);
    expect(await client.rows("SELECT to_regclass('gone'), to_regclass('gone_too')")).toEqual([[null, null]]);
    await client.query('DROP TABLE kept CASCADE');
    await nothingChanged();
  });

  it('happens by itself when a later statement of the text fails', async () => {
    expect(
      await client.failure(
        "CREATE TABLE n FROM SOURCE s (REFERENCE public.t); CREATE SECRET n AS 'x'; SELECT 1 / 0; CREATE SECRET n2 AS 'x'",
      ),
    ).toBe('ERROR 22012: division by zero');
    expect(await client.failure("CREATE TABLE n FROM SOURCE s (REFERENCE public.t); CREATE SECRET sec AS 'x'")).toContain('42710');
    expect(await client.rows("SELECT to_regclass('n')")).toEqual([[null]]);
    await nothingChanged();
  });

  it('happens when the client goes away', async () => {
    const leaver = await stage.connect();
    await leaver.query("BEGIN; CREATE SECRET n AS 'x'; CREATE TABLE n FROM SOURCE s (REFERENCE public.t)");
    await leaver.end();
    await nothingChanged();
  });
});

describe('COMMIT', () => {
  it('returns when all that was made can be read', async () => {
    await client.query('BEGIN');
    await client.query("CREATE SOURCE s2 FROM POSTGRES CONNECTION c (PUBLICATION 'mz_source')");
    await client.query('CREATE TABLE t2 FROM SOURCE s2 (REFERENCE public.t)');
    await client.query('CREATE MATERIALIZED VIEW v2 AS SELECT sum(a)::int FROM t2');
    await client.query('CREATE VIEW plain2 AS SELECT * FROM v2');
    await client.query('CREATE MATERIALIZED VIEW v3 AS SELECT * FROM plain2');
    expect((await client.failure('SAVEPOINT p; SELECT * FROM t2')).split('\n')[0]).toBe('ERROR 55000: relation public.t2 is not ready');
    await client.query('ROLLBACK TO p');
    await client.query('COMMIT');
    expect(await client.rows('SELECT * FROM v3')).toEqual([[3]]);
    await client.query('DROP SOURCE s2 CASCADE');
    await nothingChanged();
  });

  it('also at the end of one text', async () => {
    expect(
      await client
        .rows(`
        BEGIN; CREATE SOURCE s2 FROM POSTGRES CONNECTION c (PUBLICATION 'mz_source'); CREATE TABLE t2 FROM SOURCE s2 (REFERENCE public.t); COMMIT;
        CREATE MATERIALIZED VIEW v2 AS SELECT sum(a)::int FROM t2; COMMIT; SELECT * FROM v2`)
        .catch(String),
    ).toEqual([[3]]);
    await client.query('DROP SOURCE s2 CASCADE');
    await nothingChanged();
  });

  it('of one text without BEGIN, several extended statements and ordinary ones between', async () => {
    await client.query(`
      CREATE SOURCE s2 FROM POSTGRES CONNECTION c (PUBLICATION 'mz_source'); CREATE TABLE ordinary (a int);
      CREATE TABLE t2 FROM SOURCE s2 (REFERENCE public.t); INSERT INTO ordinary VALUES (1);
      CREATE MATERIALIZED VIEW v2 AS SELECT sum(a)::int FROM t2`);
    expect(await client.rows('SELECT * FROM v2, ordinary')).toEqual([[3, 1]]);
    await client.query('DROP SOURCE s2 CASCADE; DROP TABLE ordinary');
    await nothingChanged();
  });

  it('of texts whose statements become ours by those in front of them', async () => {
    await client.query('CREATE VIEW over AS SELECT a FROM t; CREATE MATERIALIZED VIEW n AS SELECT count(*)::int FROM over');
    expect(await client.rows('SELECT n, strategy IS NOT NULL FROM n, millrace.relations WHERE name = $1', ['n'])).toHaveLength(1);
    await client.query('CREATE SCHEMA path; CREATE TABLE path.n FROM SOURCE s (REFERENCE public.t)');
    await client.query('SET search_path = path; CREATE MATERIALIZED VIEW m AS SELECT count(*)::int FROM n; REFRESH MATERIALIZED VIEW m');
    await client.query(
      'SET search_path = public; DROP MATERIALIZED VIEW n; SET search_path = path; DROP TABLE n CASCADE; RESET search_path',
    );
    await client.query('DROP VIEW over; DROP SCHEMA path CASCADE');
    await nothingChanged();
  });

  it('warns when a view cannot be filled, and takes it away', async () => {
    client.takeNotices();
    await client.query(
      'BEGIN; CREATE MATERIALIZED VIEW good AS SELECT a FROM t; CREATE MATERIALIZED VIEW bad AS SELECT 1 / (a - 1) FROM t',
    );
    await client.query('COMMIT');
    expect(client.takeNotices()).toMatchInlineSnapshot(`
      [
        "division by zero
      public.bad could not be filled and was taken away again.",
      ]
    `);
    expect(await client.rows("SELECT to_regclass('good')::text, to_regclass('bad')::text")).toEqual([['good', null]]);
    await client.query('DROP MATERIALIZED VIEW good');
    await nothingChanged();
  });

  it('of drops and creates of the same name', async () => {
    await client.query(`BEGIN; CREATE TABLE n FROM SOURCE s (REFERENCE public.t); DROP TABLE n;
      CREATE TABLE n FROM SOURCE s (REFERENCE public.t) WITH (TEXT COLUMNS (a)); COMMIT`);
    expect(await client.rows('SELECT a FROM n ORDER BY a')).toEqual([['1'], ['2']]);
    await client.query(`BEGIN; DROP TABLE n; CREATE TABLE n FROM SOURCE s (REFERENCE public.t) WITH (EXCLUDE COLUMNS (b)); COMMIT`);
    expect(await client.rows('SELECT * FROM n ORDER BY a')).toEqual([[1], [2]]);
    await client.query('DROP TABLE n');
    await nothingChanged();
  });
});

describe('after an error', () => {
  it('statements are refused until the end of the block', async () => {
    await client.query('BEGIN');
    expect(await client.failure('CREATE TABLE n FROM SOURCE nope (REFERENCE public.t)')).toContain('42704');
    expect(await client.failure("CREATE SECRET n AS 'x'")).toMatchInlineSnapshot(
      `"ERROR 25P02: current transaction is aborted, commands ignored until end of transaction block"`,
    );
    expect(await client.failure('SHOW SOURCES', [])).toContain('25P02');
    expect(await client.failure('SELECT 1')).toContain('25P02');
    await client.query('COMMIT');
    expect(await client.rows('SELECT 1')).toEqual([[1]]);
    await nothingChanged();
  });

  it('of Millrace a savepoint helps', async () => {
    await client.query("BEGIN; CREATE SECRET n AS 'x'; SAVEPOINT p");
    expect(await client.failure("CREATE SECRET n AS 'x'")).toContain('42710');
    await client.query('ROLLBACK TO p; CREATE TABLE n FROM SOURCE s (REFERENCE public.t); COMMIT');
    expect(await client.rows('SELECT count(*)::int FROM n')).toEqual([[2]]);
    await client.query('DROP TABLE n; DROP SECRET n');
    await nothingChanged();
  });

  it('in a read-only transaction nothing is written', async () => {
    const answers: string[] = [];
    for (const sql of ["CREATE SECRET n AS 'x'", 'CREATE TABLE n FROM SOURCE s (REFERENCE public.t)', 'DROP TABLE t CASCADE']) {
      answers.push(await client.failure(`BEGIN READ ONLY; ${sql}`));
      await client.query('ROLLBACK');
    }
    expect(answers).toMatchInlineSnapshot(`
      [
        "ERROR 25006: cannot execute CREATE SECRET in a read-only transaction",
        "ERROR 25006: cannot execute CREATE TABLE in a read-only transaction",
        "ERROR 25006: cannot execute DROP TABLE in a read-only transaction",
      ]
    `);
    expect(await client.rows('BEGIN READ ONLY; SHOW TABLES')).toHaveLength(1);
    await client.query('ROLLBACK');
    await nothingChanged();
  });
});

describe('the extended protocol', () => {
  it('runs statements unnamed and named, again and again', async () => {
    await client.query({ text: 'CREATE TABLE n FROM SOURCE s (REFERENCE public.t)', values: [] });
    await client.query({ name: 'drop', text: 'DROP TABLE n', values: [] });
    await client.query({ name: 'make', text: 'CREATE TABLE n FROM SOURCE s (REFERENCE public.t)', values: [] });
    await client.query({ name: 'drop', text: 'DROP TABLE n', values: [] });
    await client.query({ name: 'make', text: 'CREATE TABLE n FROM SOURCE s (REFERENCE public.t)', values: [] });
    expect((await client.query({ name: 'show', text: "SHOW TABLES LIKE 'n'", values: [] })).rows).toEqual([
      { name: 'n', state: 'ready', comment: '' },
    ]);
    await client.query({ name: 'drop', text: 'DROP TABLE n', values: [] });
    expect((await client.query({ name: 'show', text: "SHOW TABLES LIKE 'n'", values: [] })).rows).toEqual([]);
    await client.query({ text: 'CREATE MATERIALIZED VIEW n AS SELECT a FROM t', values: [] });
    expect((await client.query('SELECT * FROM n WHERE a = $1', [2])).rows).toEqual([{ a: 2 }]);
    await client.query({ text: 'DROP MATERIALIZED VIEW n', values: [] });
    expect(await client.failure('CREATE TABLE n FROM SOURCE nope (REFERENCE public.t)', [])).toContain('42704 at <nope>');
    expect(await client.failure('CREATE MATERIALIZED VIEW n AS SELECT * FROM t WHERE a = $1', [1])).toMatchInlineSnapshot(
      `"ERROR 08P01: bind message supplies 1 parameters, but prepared statement "" requires 0"`,
    );
    await nothingChanged();
  });
});
