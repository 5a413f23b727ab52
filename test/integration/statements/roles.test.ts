/** Who may do what: roles without superuser, by Postgres's own rules. */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { eventually, leadsTo, type Stage, startStage, type TestClient } from './stage.ts';

let stage: Stage;
let admin: TestClient;
let alice: TestClient;
let bob: TestClient;
let origin: TestClient;
beforeAll(async () => {
  stage = await startStage();
  [admin, origin] = await Promise.all([stage.connect(), stage.direct(stage.origin)]);
  await origin.query(`
    CREATE TABLE t (a int PRIMARY KEY, b bool DEFAULT false); INSERT INTO t VALUES (10);
    CREATE PUBLICATION mz_source FOR ALL TABLES;
    CREATE ROLE reader LOGIN REPLICATION PASSWORD 'geheim'; GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader;
  `);
  await admin.query(`
    CREATE ROLE alice LOGIN; CREATE ROLE bob LOGIN; CREATE ROLE team;
    GRANT CREATE ON DATABASE postgres TO alice;
    CREATE SCHEMA a AUTHORIZATION alice; CREATE SCHEMA b AUTHORIZATION bob;
  `);
  [alice, bob] = await Promise.all([stage.connect('alice'), stage.connect('bob')]);
});
afterAll(() => stage.stop());

describe('a role that is no superuser', () => {
  it('does the whole guide', async () => {
    await alice.query('SET search_path = a');
    await alice.query("CREATE SECRET pw AS 'geheim'");
    await alice.query(`CREATE CONNECTION c TO POSTGRES (${leadsTo(stage.origin, 'reader')}, PASSWORD SECRET pw)`);
    await alice.query("CREATE SOURCE s FROM POSTGRES CONNECTION c (PUBLICATION 'mz_source')");
    await alice.query('CREATE SCHEMA v1; CREATE TABLE v1.T FROM SOURCE s (REFERENCE public.T)');
    await alice.query('CREATE MATERIALIZED VIEW v1.matview AS SELECT sum(a) FROM v1.T');
    expect(await alice.rows('SELECT * FROM v1.matview')).toEqual([['10']]);
    await alice.query('CREATE SCHEMA v3; CREATE TABLE v3.T FROM SOURCE s (REFERENCE public.T) WITH (EXCLUDE COLUMNS (B))');
    await alice.query('ALTER SCHEMA v1 SWAP WITH v3');
    await alice.query('DROP SCHEMA v3 CASCADE');
    expect(await alice.rows('SELECT * FROM v1.t')).toEqual([[10]]);
    await alice.query('CREATE MATERIALIZED VIEW v1.m AS SELECT count(*) AS n FROM v1.t');
    await origin.query('INSERT INTO t VALUES (11)');
    await eventually(alice, 'SELECT * FROM v1.m', [['2']]);
  });

  it('sees nothing of what another may not show it, and changes nothing of it', async () => {
    const answers: string[] = [];
    for (const sql of [
      'SELECT * FROM v1.t',
      'CREATE TABLE b.t FROM SOURCE a.s (REFERENCE public.t)',
      'CREATE TABLE a.x FROM SOURCE a.s (REFERENCE public.t)',
      "CREATE SOURCE b.s FROM POSTGRES CONNECTION a.c (PUBLICATION 'mz_source')",
      "CREATE CONNECTION b.c TO POSTGRES (HOST 'h', DATABASE 'd', USER 'u', PASSWORD SECRET a.pw)",
      'VALIDATE CONNECTION a.c',
      'SHOW CREATE CONNECTION a.c',
      "ALTER SECRET a.pw AS 'mine'",
      "ALTER CONNECTION a.c SET (HOST 'mine')",
      'DROP SECRET a.pw CASCADE',
      'DROP CONNECTION a.c CASCADE',
      'DROP SOURCE a.s CASCADE',
      'DROP TABLE v1.t CASCADE',
      'DROP MATERIALIZED VIEW v1.m',
      'DROP SCHEMA v1 CASCADE',
      'DROP SCHEMA a CASCADE',
      'ALTER SCHEMA a SWAP WITH b',
      'ALTER SCHEMA b SWAP WITH a',
      'CREATE MATERIALIZED VIEW b.m AS SELECT * FROM v1.t',
      "CREATE SECRET a.x AS 'x'",
      'INSERT INTO v1.t VALUES (1)',
    ]) {
      answers.push(await bob.failure(sql));
    }
    expect(answers).toMatchInlineSnapshot(`
      [
        "ERROR 42501 at <v1>: permission denied for schema v1",
        "ERROR 42501: permission denied for schema a",
        "ERROR 42501: permission denied for schema a
      HINT: Its owner can grant it: GRANT CREATE ON SCHEMA a TO ...;",
        "ERROR 42501: must be owner of connection a.c
      DETAIL: It belongs to role "alice"; the current role is "bob".
      HINT: Act as its owner (SET ROLE alice;) or ask for membership: GRANT alice TO ...;",
        "ERROR 42501: must be owner of secret a.pw
      DETAIL: It belongs to role "alice"; the current role is "bob".
      HINT: Act as its owner (SET ROLE alice;) or ask for membership: GRANT alice TO ...;",
        "ERROR 42501: must be owner of connection a.c
      DETAIL: It belongs to role "alice"; the current role is "bob".
      HINT: Act as its owner (SET ROLE alice;) or ask for membership: GRANT alice TO ...;",
        "ERROR 42501: must be owner of connection a.c
      DETAIL: It belongs to role "alice"; the current role is "bob".
      HINT: Act as its owner (SET ROLE alice;) or ask for membership: GRANT alice TO ...;",
        "ERROR 42501: must be owner of secret a.pw
      DETAIL: It belongs to role "alice"; the current role is "bob".
      HINT: Act as its owner (SET ROLE alice;) or ask for membership: GRANT alice TO ...;",
        "ERROR 42501: must be owner of connection a.c
      DETAIL: It belongs to role "alice"; the current role is "bob".
      HINT: Act as its owner (SET ROLE alice;) or ask for membership: GRANT alice TO ...;",
        "ERROR 42501: must be owner of secret a.pw
      DETAIL: It belongs to role "alice"; the current role is "bob".
      HINT: Act as its owner (SET ROLE alice;) or ask for membership: GRANT alice TO ...;",
        "ERROR 42501: must be owner of connection a.c
      DETAIL: It belongs to role "alice"; the current role is "bob".
      HINT: Act as its owner (SET ROLE alice;) or ask for membership: GRANT alice TO ...;",
        "ERROR 42501: permission denied for schema a",
        "ERROR 42501: permission denied for schema v1",
        "ERROR 42501: permission denied for schema v1",
        "ERROR 42501: must be owner of schema v1
      DETAIL: It belongs to role "alice"; the current role is "bob".
      HINT: Act as its owner (SET ROLE alice;) or ask for membership: GRANT alice TO ...;",
        "ERROR 42501: must be owner of schema a
      DETAIL: It belongs to role "alice"; the current role is "bob".
      HINT: Act as its owner (SET ROLE alice;) or ask for membership: GRANT alice TO ...;",
        "ERROR 42501: must be owner of schema a
      DETAIL: It belongs to role "alice"; the current role is "bob".
      HINT: Act as its owner (SET ROLE alice;) or ask for membership: GRANT alice TO ...;",
        "ERROR 42501: must be owner of schema a
      DETAIL: It belongs to role "alice"; the current role is "bob".
      HINT: Act as its owner (SET ROLE alice;) or ask for membership: GRANT alice TO ...;",
        "ERROR 42501: permission denied for schema v1",
        "ERROR 42501: permission denied for schema a
      HINT: Its owner can grant it: GRANT CREATE ON SCHEMA a TO ...;",
        "ERROR 42501 at <v1>: permission denied for schema v1",
      ]
    `);
  });

  it('reads what it is granted, and builds on it', async () => {
    await alice.query('GRANT USAGE ON SCHEMA v1, a TO bob; GRANT SELECT ON v1.t TO bob');
    expect(await bob.rows('SELECT count(*)::int FROM v1.t')).toEqual([[2]]);
    expect(await bob.failure('SELECT * FROM v1.m')).toMatchInlineSnapshot(`"ERROR 42501: permission denied for view m"`);
    expect(await bob.failure('CREATE MATERIALIZED VIEW b.m AS SELECT t.a FROM v1.t, v1.m')).toMatchInlineSnapshot(
      `"ERROR 42501: permission denied for view m"`,
    );
    await bob.query('CREATE MATERIALIZED VIEW b.m AS SELECT max(a) AS a FROM v1.t');
    expect(await bob.rows('SELECT * FROM b.m')).toEqual([[11]]);
    expect(await alice.failure('SELECT * FROM b.m')).toContain('permission denied for schema b');
    await alice.query('GRANT SELECT ON a.s TO bob');
    await bob.query('CREATE TABLE b.t FROM SOURCE a.s (REFERENCE public.t)');
    expect(await bob.rows('SELECT count(*)::int FROM b.t')).toEqual([[2]]);
  });

  it('takes with it what others hung on it', async () => {
    expect(await alice.failure('DROP TABLE v1.t')).toMatchInlineSnapshot(`
      "ERROR 2BP01: cannot drop table "v1.t" because other objects depend on it
      DETAIL: materialized view v1.m depends on table v1.t
      materialized view b.m depends on table v1.t
      HINT: Use DROP ... CASCADE to drop the dependent objects too."
    `);
    alice.takeNotices();
    await alice.query('BEGIN; DROP TABLE v1.t CASCADE');
    expect(alice.takeNotices()).toMatchInlineSnapshot(`
      [
        "drop cascades to 2 other objects
      drop cascades to materialized view v1.m
      drop cascades to materialized view b.m",
      ]
    `);
    expect(await alice.rows("SELECT count(*)::int FROM millrace.relations WHERE schema = 'b'")).toEqual([[1]]);
    await alice.query('ROLLBACK');
    expect(await bob.rows('SELECT * FROM b.m')).toEqual([[11]]);
  });
});

describe('a live relation given away', () => {
  it('is read by its new owner, and keeps no rights of the old one', async () => {
    await alice.query(
      'CREATE TABLE v1.given FROM SOURCE a.s (REFERENCE public.t); CREATE MATERIALIZED VIEW v1.too AS SELECT a FROM v1.given',
    );
    await admin.query('ALTER VIEW v1.given OWNER TO bob; ALTER VIEW v1.too OWNER TO bob');
    await eventually(bob, 'SELECT count(*)::int FROM v1.given JOIN v1.too USING (a)', [[2]]);
    expect(await alice.failure('SELECT * FROM v1.given')).toContain('permission denied for view given');
    expect(await bob.rows("SELECT count(*)::int FROM millrace.relations WHERE name = 'given' AND owner = 'bob'")).toEqual([[1]]);
    await bob.query('DROP TABLE v1.given CASCADE');
  });

  it('lets its role be dropped', async () => {
    await admin.query(
      'CREATE ROLE leaver LOGIN; CREATE SCHEMA l AUTHORIZATION leaver; GRANT USAGE ON SCHEMA a TO leaver; GRANT SELECT ON a.s TO leaver',
    );
    const leaver = await stage.connect('leaver');
    await leaver.query('CREATE TABLE l.t FROM SOURCE a.s (REFERENCE public.t)');
    await leaver.end();
    await admin.query('REASSIGN OWNED BY leaver TO alice; DROP OWNED BY leaver; DROP ROLE leaver');
    await eventually(alice, 'SELECT count(*)::int FROM l.t', [[2]]);
    await admin.query('DROP SCHEMA l CASCADE');
  });
});

describe('what is kept', () => {
  it('is not for reading', async () => {
    const answers: string[] = [];
    for (const sql of [
      'TABLE millrace.secret',
      'TABLE millrace.connection',
      'TABLE millrace.service_key',
      'TABLE millrace.source',
      'TABLE millrace.relation',
      "UPDATE millrace.relation SET state = 'ready'",
      "SELECT millrace.perform(ARRAY['SELECT 1'], '{}', 'x')",
      "SELECT millrace.perform(ARRAY['SELECT 1'], NULL, NULL)",
      'SELECT millrace.leadership_lost()',
      "SELECT millrace.hmac_sha256('', '')",
      'CREATE TABLE millrace.x (a int)',
      'CREATE TABLE millrace_data.x (a int)',
    ]) {
      answers.push((await bob.failure(sql)).split('\n')[0] ?? '');
    }
    expect(answers).toMatchInlineSnapshot(`
      [
        "ERROR 42501: permission denied for table secret",
        "ERROR 42501: permission denied for table connection",
        "ERROR 42501: permission denied for table service_key",
        "ERROR 42501: permission denied for table source",
        "ERROR 42501: permission denied for table relation",
        "ERROR 42501: permission denied for table relation",
        "ERROR 42501: permission denied for function millrace.perform",
        "ERROR 42501: permission denied for function millrace.perform",
        "ERROR 42501: permission denied for function leadership_lost",
        "ERROR 42501: permission denied for function hmac_sha256",
        "ERROR 42501 at <millrace>: permission denied for schema millrace",
        "ERROR 42501 at <millrace_data>: permission denied for schema millrace_data",
      ]
    `);
    const storage = await admin.rows(
      "SELECT oid::regclass::text FROM pg_class WHERE relnamespace = 'millrace_data'::regnamespace AND relkind IN ('r', 'v')",
    );
    for (const [name] of storage) {
      const [may] = await bob.rows("SELECT has_table_privilege($1, 'SELECT') OR has_any_column_privilege($1, 'SELECT')", [name]);
      const mine = await bob.rows(
        "SELECT 1 FROM pg_class c JOIN pg_views v ON v.schemaname = 'b' AND v.definition LIKE '%' || c.relname || '%' WHERE c.oid = $1::regclass",
        [name],
      );
      expect([name, may?.[0]]).toEqual([name, mine.length > 0]);
    }
    const dump = JSON.stringify(await admin.rows('SELECT s::text FROM millrace.secret s'));
    expect(dump).not.toContain('geheim');
  });

  it('cannot be changed through operators and functions of a role', async () => {
    await admin.query('CREATE SCHEMA evil AUTHORIZATION bob');
    await bob.query(`
      CREATE FUNCTION evil.same(name, name) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT true';
      CREATE OPERATOR evil.= (FUNCTION = evil.same, LEFTARG = name, RIGHTARG = name);
      SET search_path = evil, pg_catalog`);
    expect(await bob.failure("ALTER SECRET a.pw AS 'mine'")).toContain('must be owner of secret a.pw');
    await bob.query('RESET search_path');
    await bob.query(`
      CREATE FUNCTION evil.code(int, int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 1';
      CREATE FUNCTION evil."Odd.Name ("(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 1';
      CREATE OPERATOR evil.### (FUNCTION = evil.code, LEFTARG = int, RIGHTARG = int);
      CREATE AGGREGATE evil.agg(int) (SFUNC = evil.code, STYPE = int);
      CREATE FUNCTION evil.ok(int) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT true';
      CREATE DOMAIN evil.d AS int CHECK (evil.ok(VALUE));
      CREATE VIEW evil.v AS SELECT a OPERATOR(evil.###) a AS a FROM v1.t`);
    const answers: string[] = [];
    for (const query of [
      'SELECT evil.code(a, a) FROM v1.t',
      'SELECT evil."Odd.Name ("(a) FROM v1.t',
      'SELECT a OPERATOR(evil.###) a FROM v1.t',
      'SELECT evil.agg(a) FROM v1.t',
      'SELECT a::evil.d FROM v1.t',
      'SELECT a FROM evil.v',
      "SELECT a, table_to_xml('v1.t', true, false, '') FROM v1.t",
      "SELECT a, has_table_privilege('v1.t', 'SELECT') FROM v1.t",
      'SELECT a, s.setting FROM v1.t, pg_settings s',
      'SELECT a, pid FROM v1.t, pg_stat_get_activity(NULL)',
    ]) {
      answers.push((await bob.failure(`CREATE MATERIALIZED VIEW b.n AS ${query}`)).split('\n')[0] ?? '');
    }
    expect(answers).toMatchInlineSnapshot(`
      [
        "ERROR 42501: function evil.code(integer,integer) cannot be used in a live materialized view",
        "ERROR 42501: function evil."Odd.Name ("(integer) cannot be used in a live materialized view",
        "ERROR 42501: function evil.code(integer,integer) cannot be used in a live materialized view",
        "ERROR 42501: function evil.agg(integer) cannot be used in a live materialized view",
        "ERROR 42501: function evil.ok(integer) cannot be used in a live materialized view",
        "ERROR 42501: function evil.code(integer,integer) cannot be used in a live materialized view",
        "ERROR 0A000: cannot materialize call to table_to_xml()",
        "ERROR 0A000: cannot materialize call to has_table_privilege()",
        "ERROR 0A000: cannot materialize call to pg_show_all_settings()",
        "ERROR 0A000: cannot materialize call to pg_stat_get_activity()",
      ]
    `);
    await admin.query('ALTER FUNCTION evil.code(int, int) OWNER TO postgres; ALTER FUNCTION evil.same(name, name) OWNER TO postgres');
    await bob.query('CREATE MATERIALIZED VIEW b.n AS SELECT a OPERATOR(evil.###) a AS q, pg_typeof(a)::text AS t FROM v1.t');
    expect(await bob.rows('SELECT * FROM b.n')).toEqual([
      [1, 'integer'],
      [1, 'integer'],
    ]);
    await bob.query('DROP MATERIALIZED VIEW b.n');
  });
});

describe('SET ROLE', () => {
  it('decides who owns and who may', async () => {
    await admin.query(
      'CREATE SCHEMA teams AUTHORIZATION team; GRANT team TO alice; GRANT SELECT ON a.s TO team; GRANT USAGE ON SCHEMA a TO team',
    );
    await alice.query('SET ROLE team');
    await alice.query("CREATE SECRET teams.x AS 'x'");
    await alice.query('CREATE TABLE teams.t FROM SOURCE a.s (REFERENCE public.t)');
    await alice.query('CREATE MATERIALIZED VIEW teams.v AS SELECT a FROM teams.t');
    expect(await alice.failure("ALTER SECRET a.pw AS 'x'")).toContain('must be owner of secret a.pw');
    await alice.query('RESET ROLE');
    expect(await alice.rows("SELECT name, owner FROM millrace.relations WHERE schema = 'teams' ORDER BY 1")).toEqual([
      ['t', 'team'],
      ['v', 'team'],
    ]);
    expect(await alice.rows("SELECT owner FROM millrace.secrets WHERE schema = 'teams'")).toEqual([['team']]);
    await admin.query('SET ROLE bob');
    expect(await admin.failure('DROP TABLE teams.t CASCADE')).toContain('permission denied for schema teams');
    await admin.query('RESET ROLE');
  });

  it('undoes a CREATE that failed as the role that made it', async () => {
    await alice.query('SET ROLE team');
    expect(await alice.failure('CREATE MATERIALIZED VIEW teams.f AS SELECT 1 / (a - 10) FROM teams.t')).toContain('22012');
    await alice.query('RESET ROLE');
    expect(await admin.rows("SELECT to_regclass('teams.f')")).toEqual([[null]]);
  });
});
