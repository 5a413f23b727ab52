/** Columns that get wider types at the origin: everything that shows them follows, in the order of the stream, or says why it cannot. */
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type ExtendedClient, startEngine, type TestEngine, texts } from '../../support/engine.ts';
import { type OriginPair, startOriginPair } from '../../support/origin-pair.ts';
import type { PostgresMajor, TestPostgres } from '../../support/postgres.ts';

let pair: OriginPair;
let upstream: TestPostgres;
let admin: pg.Client;
let extended: ExtendedClient;
let engine: TestEngine;

const stage = async (role: string, version: PostgresMajor = 18): Promise<void> => {
  pair = await startOriginPair(
    `CREATE ROLE reader LOGIN REPLICATION IN ROLE pg_read_all_data; CREATE PUBLICATION p FOR ALL TABLES`,
    role,
    version,
  );
  ({ upstream, admin, extended } = pair);
  engine = startEngine(upstream.address);
  await extended.run("CREATE SOURCE s FROM POSTGRES CONNECTION c (PUBLICATION 'p'); CREATE SCHEMA v1");
};
const clear = async (): Promise<void> => {
  await pair?.stop(engine);
};

const rows = (sql: string): Promise<string[]> => texts(extended.client, sql).then((found) => found.map((row) => row.join('|')));
const shows = (sql: string, wanted: readonly string[]): Promise<void> =>
  expect.poll(() => rows(sql).catch((error: Error) => [error.message]), { timeout: 15_000 }).toEqual(wanted);
const typesOf = (relation: string): string =>
  `SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = to_regclass('${relation}') AND attnum > 0 ORDER BY attnum`;

describe.each<PostgresMajor>([15, 18])('an origin that tells of its DDL, PostgreSQL %i', (version) => {
  beforeAll(() => stage('postgres', version), 120_000);
  afterAll(clear);

  test('integer to bigint, around rows of one transaction: the table, a live view and a plain view with all that belongs to it', async () => {
    await admin.query('CREATE TABLE t (id integer PRIMARY KEY, a integer, b text); INSERT INTO t VALUES (1, 1, $$x$$), (2, 2, $$y$$)');
    await extended.run(`CREATE ROLE auditor; CREATE ROLE clerk;
      CREATE TABLE v1.t FROM SOURCE s (REFERENCE t); CREATE TABLE v1.narrow FROM SOURCE s (REFERENCE t) WITH (EXCLUDE COLUMNS (a));
      CREATE MATERIALIZED VIEW v1.sums AS SELECT b, sum(a) AS total, count(*) AS n FROM v1.t GROUP BY b;
      CREATE MATERIALIZED VIEW v1.over AS SELECT max(total) AS most FROM v1.sums;
      CREATE MATERIALIZED VIEW v1.apart AS SELECT count(*) AS n FROM v1.t WHERE b <> '';
      GRANT USAGE ON SCHEMA v1 TO auditor, clerk; GRANT CREATE ON SCHEMA v1 TO clerk; GRANT SELECT ON v1.t TO clerk`);
    await extended.client.query(`SET ROLE clerk; CREATE VIEW v1.plain WITH (security_barrier = true) AS SELECT a + 1 AS more, t.id FROM v1.t; RESET ROLE;
      CREATE VIEW v1.both AS SELECT p.more, s.total FROM v1.plain p JOIN v1.t USING (id) JOIN v1.sums s USING (b);
      GRANT SELECT ON v1.plain TO auditor WITH GRANT OPTION; GRANT SELECT (total) ON v1.both TO auditor; GRANT SELECT ON v1.sums TO auditor;
      COMMENT ON VIEW v1.plain IS 'the clerk''s'; COMMENT ON COLUMN v1.plain.more IS 'one more'; COMMENT ON VIEW v1.t IS 'the table';
      ALTER VIEW v1.plain ALTER COLUMN more SET DEFAULT 7;
      CREATE RULE silent AS ON INSERT TO v1.both DO INSTEAD NOTHING`);
    const belongings = `SELECT c.relname, pg_get_userbyid(c.relowner), c.relacl, c.reloptions, obj_description(c.oid), col_description(c.oid, 1),
        (SELECT array_agg(attacl::text) FROM pg_attribute WHERE attrelid = c.oid), (SELECT array_agg(pg_get_expr(adbin, adrelid)) FROM pg_attrdef WHERE adrelid = c.oid),
        (SELECT array_agg(tgname ORDER BY tgname) FROM pg_trigger WHERE tgrelid = c.oid), (SELECT array_agg(rulename ORDER BY rulename) FROM pg_rewrite WHERE ev_class = c.oid)
      FROM pg_class c WHERE relnamespace = 'v1'::regnamespace ORDER BY 1`;
    const before = await rows(belongings);
    await admin.query(`BEGIN; INSERT INTO t VALUES (3, 3, 'x'); ALTER TABLE t ALTER a TYPE bigint;
      INSERT INTO t VALUES (4, 4000000000, 'y'); UPDATE t SET a = 5000000000 WHERE id = 1; COMMIT`);
    await shows('SELECT * FROM v1.t ORDER BY id', ['1|5000000000|x', '2|2|y', '3|3|x', '4|4000000000|y']);
    await shows('SELECT * FROM v1.sums ORDER BY b', ['x|5000000003|2', 'y|4000000002|2']);
    await shows('SELECT * FROM v1.over', ['5000000003']);
    await shows('SELECT * FROM v1.apart', ['4']);
    await shows('SELECT * FROM v1.plain ORDER BY id', ['5000000001|1', '3|2', '4|3', '4000000001|4']);
    await shows('SELECT count(*) FROM v1.both', ['4']);
    expect(await rows(typesOf('v1.t'))).toEqual(['id|integer', 'a|bigint', 'b|text']);
    expect(await rows(typesOf('v1.sums'))).toEqual(['b|text', 'total|numeric', 'n|bigint']);
    expect(await rows(typesOf('v1.plain'))).toEqual(['more|bigint', 'id|integer']);
    expect(await rows(belongings)).toEqual(before);
    await expect(extended.client.query('DELETE FROM v1.t')).rejects.toThrow('cannot write to table');
    await admin.query("UPDATE t SET a = a + 1; INSERT INTO t VALUES (5, 9000000000, '')");
    await shows('SELECT * FROM v1.sums ORDER BY b', ['|9000000000|1', 'x|5000000005|2', 'y|4000000004|2']);
    await shows('SELECT * FROM v1.over', ['9000000000']);
    await shows('SELECT count(*) FROM v1.narrow', ['5']);
  });

  test('longer text and more digits cost no copy of the rows; without a key rows are still found', async () => {
    await admin.query(`CREATE TABLE bag (c character varying(10), n numeric(6,2), w numeric(6,2), s character(3)); ALTER TABLE bag REPLICA IDENTITY FULL;
      INSERT INTO bag VALUES ('one', 1.50, 1.50, 'a'), ('two', 2, 2, 'b'), ('two', 2, 2, 'b')`);
    await extended.run(
      'CREATE TABLE v1.bag FROM SOURCE s (REFERENCE bag); CREATE MATERIALIZED VIEW v1.texts AS SELECT c, w::text AS w, n FROM v1.bag',
    );
    await admin.query(`ALTER TABLE bag ALTER c TYPE character varying(20), ALTER n TYPE numeric(10,2); INSERT INTO bag VALUES ('longer than ten', 12345678.90, 0, 'c');
      ALTER TABLE bag ALTER c TYPE text; ALTER TABLE bag ALTER w TYPE numeric(12,4), ALTER s TYPE character(5); DELETE FROM bag WHERE c = 'one';
      DELETE FROM bag WHERE ctid IN (SELECT ctid FROM bag WHERE c = 'two' LIMIT 1); INSERT INTO bag VALUES (repeat('x', 30), 1, 0.0001, 'abcde')`);
    const there = (sql: string): Promise<string[]> => texts(admin, sql).then((found) => found.map((row) => row.join('|')));
    await shows('SELECT * FROM v1.bag ORDER BY c', await there('SELECT * FROM bag ORDER BY c'));
    await shows('SELECT * FROM v1.texts ORDER BY c', await there('SELECT c, w::text, n FROM bag ORDER BY c'));
    await engine.restart();
    await admin.query("DELETE FROM bag WHERE c = 'two'; UPDATE bag SET n = 3");
    await shows('SELECT * FROM v1.bag ORDER BY c', await there('SELECT * FROM bag ORDER BY c'));
    await extended.run('ALTER SOURCE s RESYNC');
    await admin.query("DELETE FROM bag WHERE c LIKE 'xx%'");
    await shows('SELECT * FROM v1.bag ORDER BY c', await there('SELECT * FROM bag ORDER BY c'));
    await shows('SELECT * FROM v1.texts ORDER BY c', await there('SELECT c, w::text, n FROM bag ORDER BY c'));
  });

  test('what cannot be put up again is named; the other versions follow', async () => {
    await admin.query('CREATE TABLE held (id integer PRIMARY KEY, a integer); INSERT INTO held VALUES (1, 1)');
    await extended.run('CREATE TABLE v1.held FROM SOURCE s (REFERENCE held); CREATE TABLE v1.free FROM SOURCE s (REFERENCE held)');
    await extended.run('CREATE MATERIALIZED VIEW v1.held_sum AS SELECT sum(a) FROM v1.held');
    await extended.client.query('CREATE FUNCTION v1.first_held() RETURNS integer BEGIN ATOMIC SELECT a FROM v1.held LIMIT 1; END');
    await admin.query('ALTER TABLE held ALTER a TYPE bigint; INSERT INTO held VALUES (2, 6000000000)');
    await shows('SELECT * FROM v1.free ORDER BY id', ['1|1', '2|6000000000']);
    const problem =
      'source table schema has been altered: column "a" of public.held changed from type integer to bigint, which this table cannot follow: function v1.first_held() depends on it';
    await shows('SELECT * FROM v1.held', [problem]);
    await shows('SELECT * FROM v1.held_sum', [problem]);
    await extended.run('ALTER SOURCE s RESYNC');
    await shows('SELECT * FROM v1.held', [problem]);
    await extended.client.query('DROP FUNCTION v1.first_held()');
    await extended.run('DROP TABLE v1.held CASCADE; CREATE TABLE v1.held FROM SOURCE s (REFERENCE held)');
    await shows('SELECT * FROM v1.held ORDER BY id', ['1|1', '2|6000000000']);
  });

  test('values written anew by USING are never shown as the old ones: the versions say so, and RESYNC mends them', async () => {
    await admin.query('CREATE TABLE u (id integer PRIMARY KEY, a integer, b integer, c integer); INSERT INTO u VALUES (1, 1, 1, 1)');
    await extended.run(`CREATE TABLE v1.u FROM SOURCE s (REFERENCE u); CREATE TABLE v1.u_b FROM SOURCE s (REFERENCE u) WITH (EXCLUDE COLUMNS (a));
      CREATE MATERIALIZED VIEW v1.u_sum AS SELECT sum(a) AS s FROM v1.u`);
    await admin.query(
      'ALTER TABLE u ALTER a TYPE bigint USING a * 100, ALTER c TYPE bigint; INSERT INTO u VALUES (2, 7000000000, 2, 8000000000)',
    );
    await shows('SELECT * FROM v1.u_b ORDER BY id', ['1|1|1', '2|2|8000000000']);
    await shows('SELECT * FROM v1.u', ['source table schema has been altered: column "a" of public.u was written anew as bigint']);
    await extended.run('ALTER SOURCE s RESYNC');
    await shows('SELECT * FROM v1.u ORDER BY id', ['1|100|1|1', '2|7000000000|2|8000000000']);
    await shows('SELECT * FROM v1.u_sum', ['7000000100']);
    // The type stays, the values do not.
    await admin.query('DO $$BEGIN ALTER TABLE u ALTER b TYPE integer USING b + 5; END$$');
    await shows('SELECT * FROM v1.u_b', ['source table schema has been altered: column "id" of public.u was written anew']);
    await extended.run('ALTER SOURCE s RESYNC');
    await shows('SELECT * FROM v1.u_b ORDER BY id', ['1|6|1', '2|7|8000000000']);
    await admin.query('VACUUM FULL u');
    await admin.query('ALTER TABLE u ADD COLUMN d timestamptz DEFAULT clock_timestamp(); INSERT INTO u VALUES (3, 3, 3, 3)');
    await shows('SELECT * FROM v1.u_b ORDER BY id', ['1|6|1', '2|7|8000000000', '3|3|3']);
  });

  test('a table that is being copied is copied again; partitions and children follow their parents', async () => {
    await admin.query(`CREATE TABLE big (id integer PRIMARY KEY, a integer); INSERT INTO big SELECT g, g FROM generate_series(1, 60000) g;
      CREATE TABLE parent (id integer PRIMARY KEY, x smallint); CREATE TABLE child (PRIMARY KEY (id)) INHERITS (parent); INSERT INTO child VALUES (1, 1);
      CREATE TABLE parts (id integer PRIMARY KEY, x smallint) PARTITION BY RANGE (id); CREATE TABLE part PARTITION OF parts FOR VALUES FROM (0) TO (9); INSERT INTO parts VALUES (1, 1)`);
    const made = extended.run('CREATE TABLE v1.big FROM SOURCE s (REFERENCE big)');
    await admin.query('ALTER TABLE big ALTER a TYPE bigint; UPDATE big SET a = 4000000000 WHERE id = 7');
    await made;
    await shows('SELECT count(*), max(a) FROM v1.big', ['60000|4000000000']);
    await extended.run('CREATE TABLE v1.child FROM SOURCE s (REFERENCE child); CREATE TABLE v1.part FROM SOURCE s (REFERENCE part)');
    await admin.query(
      'ALTER TABLE parent ALTER x TYPE integer; INSERT INTO child VALUES (2, 70000); ALTER TABLE parts ALTER x TYPE bigint; INSERT INTO parts VALUES (2, 70000)',
    );
    await shows('SELECT * FROM v1.child ORDER BY id', ['1|1', '2|70000']);
    await shows('SELECT * FROM v1.part ORDER BY id', ['1|1', '2|70000']);
  });

  test('kill -9 again and again: nobody ever reads what the origin has not had', async () => {
    await admin.query('CREATE TABLE k (id integer PRIMARY KEY, a smallint); INSERT INTO k SELECT g, g FROM generate_series(1, 1000) g');
    await extended.run(
      'CREATE TABLE v1.k FROM SOURCE s (REFERENCE k); CREATE MATERIALIZED VIEW v1.k_sum AS SELECT count(*) AS n, sum(a) AS s FROM v1.k',
    );
    let going = true;
    const reading = (async () => {
      const own = new pg.Client({ connectionString: upstream.url });
      await own.connect();
      const wrong: string[] = [];
      while (going) {
        const found = await texts(
          own,
          'SELECT t.n = v.n, t.s = v.s FROM (SELECT count(*) AS n, sum(a) AS s FROM v1.k) t, v1.k_sum v',
        ).catch((error: Error) => error.message);
        const isFine =
          typeof found === 'string' ? /is not ready|deadlock|cache lookup|could not open/.test(found) : String(found) === 't,t';
        if (!isFine) wrong.push(String(found));
      }
      await own.end();
      return wrong;
    })();
    for (const type of ['integer', 'bigint', 'numeric']) {
      await admin.query(`UPDATE k SET a = a + 1; ALTER TABLE k ALTER a TYPE ${type}; UPDATE k SET a = a + 30000 WHERE id = 1`);
      for (let i = 0; i < 3; i++) {
        await new Promise((resolve) => setTimeout(resolve, 150 * i));
        engine.kill();
      }
      await shows(
        'SELECT n, s FROM v1.k_sum',
        (await texts(admin, 'SELECT count(*), sum(a) FROM k')).map((row) => row.join('|')),
      );
    }
    going = false;
    expect(await reading).toEqual([]);
    expect(await rows(typesOf('v1.k'))).toEqual(['id|integer', 'a|numeric']);
  });
});

describe('an origin where the role may not create event triggers', () => {
  beforeAll(() => stage('reader'), 120_000);
  afterAll(clear);

  test('what needs no rewriting is followed; what was written anew may be anything, and RESYNC mends it', async () => {
    await admin.query("CREATE TABLE t (id integer PRIMARY KEY, a integer, b character varying(3)); INSERT INTO t VALUES (1, 1, 'abc')");
    await extended.run(
      'CREATE TABLE v1.t FROM SOURCE s (REFERENCE t); CREATE TABLE v1.t_b FROM SOURCE s (REFERENCE t) WITH (EXCLUDE COLUMNS (a))',
    );
    await admin.query("ALTER TABLE t ALTER b TYPE text; INSERT INTO t VALUES (2, 2, 'abcdef')");
    await shows('SELECT * FROM v1.t ORDER BY id', ['1|1|abc', '2|2|abcdef']);
    await admin.query('ALTER TABLE t ALTER a TYPE bigint');
    await shows('SELECT * FROM v1.t', ['source table schema has been altered: column "a" of public.t was written anew as bigint']);
    await admin.query("INSERT INTO t VALUES (3, 3000000000, '')");
    await shows('SELECT * FROM v1.t_b ORDER BY id', ['1|abc', '2|abcdef', '3|']);
    await extended.run('ALTER SOURCE s RESYNC');
    await shows('SELECT * FROM v1.t ORDER BY id', ['1|1|abc', '2|2|abcdef', '3|3000000000|']);
    // With no row after it.
    await admin.query('ALTER TABLE t ALTER b TYPE character varying');
    await shows(typesOf('v1.t'), ['id|integer', 'a|bigint', 'b|character varying']);
  });
});
