/** Stream tables through Millrace: names, rights, transactions, DDL of users, and what is refused. */
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { startMillrace } from '../../support/millrace.ts';
import { eventually, leadsTo, type Stage, startStage, type TestClient } from './stage.ts';

let stage: Stage;
let client: TestClient;

beforeAll(async () => {
  stage = await startStage({ upstream: { settings: { wal_level: 'logical' } } });
  client = await stage.connect();
  await client.query('CREATE TABLE t (id int PRIMARY KEY, k text, v numeric(10, 2))');
  await client.query("INSERT INTO t VALUES (1, 'a', 1.5), (2, 'b', 2), (3, 'a', 3)");
}, 120_000);
afterAll(() => stage?.stop());

const create = (name: string, query: string, rest = ''): string => `SELECT pgtrickle.create_stream_table('${name}', $q$${query}$q$${rest})`;
const statusOf = (name: string): Promise<unknown[][]> =>
  client.rows(`SELECT status FROM pgtrickle.pgt_stream_tables WHERE pgt_name = '${name}'`);

describe('a stream table', () => {
  test('has the columns of its query and no others, with their types', async () => {
    await client.query(create('shape', 'SELECT k::varchar(7) AS "K", sum(v) AS v, \'x\' COLLATE "C" AS c FROM t GROUP BY 1'));
    expect(
      await client.rows(
        `SELECT attname, format_type(atttypid, atttypmod), attcollation::regcollation::text FROM pg_attribute WHERE attrelid = 'shape'::regclass AND attnum > 0`,
      ),
    ).toEqual([
      ['K', 'character varying(7)', '"default"'],
      ['v', 'numeric', '-'],
      ['c', 'text', '"C"'],
    ]);
  });

  test('follows writes by its schedule, and at once when asked', async () => {
    await client.query(create('totals', 'SELECT k, count(*) AS n FROM t GROUP BY k', ", schedule => '1h'"));
    await client.query("INSERT INTO t VALUES (4, 'c', 4)");
    await client.query("SELECT pgtrickle.refresh_stream_table('totals')");
    expect(await client.rows('SELECT * FROM totals ORDER BY 1')).toEqual([
      ['a', '2'],
      ['b', '1'],
      ['c', '1'],
    ]);
    await client.query("SELECT pgtrickle.alter_stream_table('totals', schedule => '1s')");
    await client.query('DELETE FROM t WHERE id = 4');
    await expect.poll(() => client.rows('SELECT * FROM totals ORDER BY 1'), { timeout: 10_000 }).toHaveLength(2);
  });

  test('write_and_refresh shows the write when it returns; refresh_if_stale says whether it refreshed', async () => {
    await client.query("SELECT pgtrickle.write_and_refresh('UPDATE t SET v = 10 WHERE id = 2', 'shape')");
    expect(await client.rows(`SELECT v FROM shape WHERE "K" = 'b'`)).toEqual([['10.00']]);
    expect(await client.rows("SELECT pgtrickle.refresh_if_stale('shape')")).toEqual([[false]]);
    expect(await client.rows("SELECT pgtrickle.refresh_if_stale('shape', p_max_age => '0')")).toEqual([[true]]);
  });

  test('is known by what it is, not by its name', async () => {
    await client.query('CREATE SCHEMA other');
    await client.query(create('named', 'SELECT id FROM t'));
    await client.query('ALTER VIEW named RENAME TO "Re named"');
    await client.query('ALTER VIEW "Re named" SET SCHEMA other');
    await client.query(`SELECT pgtrickle.refresh_stream_table('other."Re named"')`);
    expect(await statusOf('Re named')).toEqual([['ACTIVE']]);
    await client.query('SET search_path = other, public');
    await client.query(`SELECT pgtrickle.pause_stream_table('"Re named"')`);
    await client.query('RESET search_path');
    expect(await statusOf('Re named')).toEqual([['SUSPENDED']]);
    await client.query('DROP VIEW other."Re named"');
    expect(await statusOf('Re named')).toEqual([]);
  });

  test('given another query is read as before until the new rows are there, and stays who it was', async () => {
    await client.query('CREATE TABLE altered AS SELECT g AS id, g % 7 AS k FROM generate_series(1, 50000) g');
    await client.query(create('changing', 'SELECT k, count(*) AS n FROM altered GROUP BY k'));
    const before = await client.rows("SELECT pgt_id, pgt_relid FROM pgtrickle.pgt_stream_tables WHERE pgt_name = 'changing'");
    const reader = await stage.direct(stage.upstream);
    await reader.query('CREATE VIEW over_changing AS SELECT sum(n)::int AS s FROM changing');
    await reader.query('BEGIN');
    expect(await reader.rows('SELECT * FROM over_changing')).toEqual([[50000]]);
    const alter = (query: string, rest = ''): Promise<unknown> =>
      client.query(`SELECT pgtrickle.alter_stream_table('changing', query => $q$${query}$q$${rest})`);
    const altered = alter('SELECT k, 10 * count(*) AS n FROM altered WHERE k <> 3 GROUP BY k');
    const other = await stage.direct(stage.upstream);
    for (let i = 0; i < 20; i++) expect(await other.rows('SELECT * FROM over_changing')).toEqual([[50000]]);
    await reader.query('COMMIT');
    await altered;
    expect(await other.rows('SELECT * FROM over_changing')).toEqual([[428570]]);
    await client.query("INSERT INTO altered VALUES (0, 4); SELECT pgtrickle.refresh_stream_table('changing')");
    expect(await other.rows('SELECT * FROM over_changing')).toEqual([[428580]]);
    await alter('SELECT k, count(*) AS n FROM altered GROUP BY k', ", refresh_mode => 'IMMEDIATE'");
    expect(await other.rows('SELECT * FROM over_changing')).toEqual([[50001]]);
    await expect(alter('SELECT k, count(*) AS n FROM altered WHERE 1 / (k - k) = 1 GROUP BY k')).rejects.toThrow('division by zero');
    await other.query('DELETE FROM altered WHERE id = 0');
    expect(await other.rows('SELECT * FROM over_changing')).toEqual([[50000]]);
    await expect(alter('SELECT k, id AS n, count(*) AS m FROM altered GROUP BY 1, 2')).rejects.toThrow('other objects depend on it');
    await other.query('DROP VIEW over_changing');
    await alter('SELECT k, count(*) AS m FROM altered GROUP BY k', ", refresh_mode => 'AUTO'");
    expect(await client.rows("SELECT pgt_id FROM pgtrickle.pgt_stream_tables WHERE pgt_name = 'changing'")).toEqual([[before[0]?.[0]]]);
    expect(await client.rows("SELECT bool_and(status = 'COMPLETED'), count(*) > 2 FROM pgtrickle.get_refresh_history('changing')")).toEqual(
      [[true, true]],
    );
    expect(await client.rows('SELECT count(*)::int FROM pgtrickle.pgt_dependencies WHERE pgt_id = $1', [before[0]?.[0]])).toEqual([[1]]);
    await client.query("SELECT pgtrickle.drop_stream_table('changing')");
    await eventually(client, `SELECT count(*)::int FROM pg_trigger WHERE tgrelid = 'altered'::regclass`, [[0]]);
  });

  test('a gate holds refreshes back until it is opened; what is asked for is done', async () => {
    await client.query(create('gated', 'SELECT count(*)::int AS n FROM t'));
    const [before] = await client.rows('SELECT n FROM gated');
    await client.query("SELECT pgtrickle.gate_source('t')");
    await client.query("INSERT INTO t VALUES (900, 'g', 1)");
    expect(await client.rows('SELECT source_table, gated FROM pgtrickle.source_gates()')).toEqual([['t', true]]);
    // Another one that reads nothing gated is refreshed meanwhile, so it would have been, too.
    await client.query('CREATE TABLE ungated (id int); INSERT INTO ungated VALUES (1)');
    await client.query(create('open_st', 'SELECT count(*)::int AS n FROM ungated'));
    await client.query('INSERT INTO ungated VALUES (2)');
    await eventually(client, 'SELECT n FROM open_st', [[2]]);
    expect(await client.rows('SELECT n FROM gated')).toEqual([before]);
    await client.query("SELECT pgtrickle.refresh_stream_table('gated')");
    expect(await client.rows('SELECT n FROM gated')).toEqual([[Number(before?.[0]) + 1]]);
    await client.query("DELETE FROM t WHERE id = 900; SELECT pgtrickle.ungate_source('t')");
    await eventually(client, 'SELECT n FROM gated', [[Number(before?.[0])]]);
    await client.query("SELECT pgtrickle.bulk_drop_stream_tables('{gated,open_st}')");
  });

  test('a snapshot is a table of the rows there are; what is not there says why', async () => {
    await client.query(create('pictured', 'SELECT k, count(*) AS n FROM t GROUP BY k'));
    expect(await client.rows("SELECT pgtrickle.snapshot_stream_table('pictured', 'public.picture')")).toEqual([['public.picture']]);
    expect(await client.rows('SELECT * FROM pictured EXCEPT ALL SELECT * FROM picture')).toEqual([]);
    const [count] = await client.rows('SELECT count(*)::int FROM pictured');
    expect(await client.rows("SELECT snapshot_table, row_count::int FROM pgtrickle.list_snapshots('pictured')")).toEqual([
      ['public.picture', count?.[0]],
    ]);
    expect(await client.failure("SELECT pgtrickle.snapshot_stream_table('pictured', 'picture')")).toContain(
      '42710: snapshot already exists: picture',
    );
    expect(await client.failure("SELECT pgtrickle.drop_snapshot('t')")).toContain('42P01: snapshot source not found: t');
    await client.query("SELECT pgtrickle.drop_snapshot('picture')");
    expect(await client.failure("SELECT pgtrickle.reset_fuse('pictured')")).toContain(
      'fuse is not blown for public.pictured (current state: armed)',
    );
    expect(await client.failure("SELECT pgtrickle.create_watermark_group(group_name => 'g', sources => '{t}')")).toBe(
      'ERROR 0A000: pgtrickle.create_watermark_group() is not supported\nDETAIL: Every refresh reads all its tables at one snapshot.\nHINT: pgtrickle.gate_source() holds refreshes back while a table is loaded.',
    );
    expect(await client.failure('SELECT * FROM pgtrickle.list_subscriptions()')).toContain('0A000');
    await client.query("SELECT pgtrickle.drop_stream_table('pictured')");
  });

  test('explain_st says how each stage of it is kept', async () => {
    await client.query(create('staged', 'SELECT x.n, count(*) AS c FROM (SELECT k, count(*) AS n FROM t GROUP BY k) x GROUP BY x.n'));
    const rows = await client.rows(
      "SELECT property, value FROM pgtrickle.explain_st('staged') WHERE property IN ('operator_tree', 'stage 1', 'result')",
    );
    expect(rows).toEqual([
      ['operator_tree', expect.stringMatching(/^\w+ -> \w+$/)],
      ['stage 1', expect.stringMatching(/^\w+, \w+: /)],
      ['result', expect.stringMatching(/^\w+, \w+: /)],
    ]);
    const [text] = await client.rows("SELECT pgtrickle.explain_stream_table('staged'), pgtrickle.explain_diff_sql('staged')");
    expect(text?.[0]).toContain(`stage 1: ${String(rows[1]?.[1])}`);
    expect(text?.[1]).toContain(`-- result: ${String(rows[2]?.[1])}`);
    await client.query("SELECT pgtrickle.drop_stream_table('staged')");
  });

  test('made in a transaction is there at COMMIT, and not after ROLLBACK', async () => {
    await client.query('BEGIN');
    await client.query(create('undone', 'SELECT id FROM t'));
    await client.query('ROLLBACK');
    expect(await statusOf('undone')).toEqual([]);
    await client.query('BEGIN');
    await client.query(create('done', 'SELECT id FROM t'));
    await client.query('COMMIT');
    expect(await client.rows('SELECT count(*)::int FROM done')).toEqual([[3]]);
  });

  test('over a stream table, a plain view and a table without a key', async () => {
    await client.query('CREATE TABLE keyless (k text, n int)');
    await client.query("INSERT INTO keyless VALUES ('a', 1), ('a', 1), ('b', 2)");
    await client.query('CREATE VIEW plain AS SELECT k, n FROM keyless');
    await client.query(create('first', 'SELECT k, sum(n) AS n FROM plain GROUP BY k'));
    await client.query(create('second', 'SELECT f.k, f.n, t.id FROM first f JOIN t USING (k)'));
    expect(await client.rows('SELECT * FROM second ORDER BY id')).toEqual([
      ['a', '2', 1],
      ['b', '2', 2],
      ['a', '2', 3],
    ]);
    expect(await client.failure("SELECT pgtrickle.drop_stream_table('first')")).toBe(
      'ERROR 22023: invalid argument: stream table public.first has dependent stream tables: public.second. Use cascade => true to drop them automatically.',
    );
    await client.query(create('rows', 'SELECT k, n FROM keyless'));
    await client.query("DELETE FROM keyless WHERE ctid = (SELECT min(ctid) FROM keyless WHERE k = 'a')");
    await client.query("SELECT pgtrickle.refresh_stream_table('rows')");
    expect(await client.rows('SELECT * FROM rows ORDER BY 1')).toEqual([
      ['a', 1],
      ['b', 2],
    ]);
    await client.query("SELECT pgtrickle.drop_stream_table('rows')");
    await client.query("INSERT INTO keyless VALUES ('a', 1), ('b', 5)");
    await client.query("SELECT pgtrickle.refresh_stream_table('first')");
    await client.query("SELECT pgtrickle.refresh_stream_table('second')");
    expect(await client.rows('SELECT n FROM second WHERE id = 2')).toEqual([['7']]);
    expect((await client.rows('SELECT node FROM pgtrickle.dependency_tree()')).flat()).toEqual(
      expect.arrayContaining(['public.keyless', 'public.first', 'public.second']),
    );
    await client.query("SELECT pgtrickle.drop_stream_table('first', cascade => true)");
    expect(await statusOf('second')).toEqual([]);
  });

  test('refuses writes', async () => {
    expect(await client.failure('DELETE FROM done')).toContain(
      'ERROR 25006: Direct DML on stream table public.done is not allowed. Stream tables are maintained automatically by pg_trickle.',
    );
  });

  test('is replaced by create_or_replace, and left alone when nothing is new', async () => {
    const orReplace = (query: string): Promise<unknown> =>
      client.query(`SELECT pgtrickle.create_or_replace_stream_table('replaced', $q$${query}$q$, schedule => '5m')`);
    await orReplace('SELECT id FROM t');
    const [before] = await client.rows("SELECT pgt_id, pgt_relid FROM pgtrickle.pgt_stream_tables WHERE pgt_name = 'replaced'");
    await orReplace('SELECT  id\nFROM t');
    expect(await client.rows("SELECT pgt_id, pgt_relid FROM pgtrickle.pgt_stream_tables WHERE pgt_name = 'replaced'")).toEqual([before]);
    await client.query('CREATE VIEW over_replaced AS SELECT * FROM replaced');
    await orReplace('SELECT id FROM t WHERE id > 1');
    expect(await client.rows('SELECT * FROM over_replaced ORDER BY 1')).toEqual([[2], [3]]);
    expect(await client.failure("SELECT pgtrickle.alter_stream_table('replaced', query => 'SELECT k FROM t')")).toContain('2BP01');
    await client.query('DROP VIEW over_replaced');
    await client.query("SELECT pgtrickle.alter_stream_table('replaced', query => 'SELECT k FROM t')");
    expect(await client.rows('SELECT * FROM replaced ORDER BY 1')).toEqual([['a'], ['a'], ['b']]);
  });

  test('can be made again from export_definition', async () => {
    const [[definition] = []] = await client.rows("SELECT pgtrickle.export_definition('replaced')");
    await client.query('DROP VIEW replaced');
    await client.query(String(definition));
    expect(await client.rows('SELECT count(*)::int FROM replaced')).toEqual([[3]]);
  });
});

describe('statements', () => {
  test('several calls in one statement, arguments that are expressions, parameters and texts of other calls', async () => {
    expect(
      await client.rows(
        `SELECT pgtrickle.create_stream_table($1, query => 'SELECT id ' || $2, refresh_mode => lower($3)),
                pgtrickle.create_stream_table('copy', pgtrickle.stream_table_definition('done'))`,
        ['made', 'FROM t', 'FULL'],
      ),
    ).toEqual([['', '']]);
    expect(
      await client.rows("SELECT pgt_name, refresh_mode FROM pgtrickle.pgt_stream_tables WHERE pgt_name IN ('made', 'copy') ORDER BY 1"),
    ).toEqual([
      ['copy', 'DIFFERENTIAL'],
      ['made', 'FULL'],
    ]);
  });

  test('answers stand in larger queries', async () => {
    const sql = `SELECT count(*)::int FROM pgtrickle.explain_st('done') e JOIN pgtrickle.pgt_stream_tables s ON s.pgt_name = 'done' WHERE e.property = 'reason'`;
    expect(await client.rows(sql)).toEqual([[1]]);
    expect(await client.rows('SELECT v.result FROM pgtrickle.validate_query($1) v', ['SELECT random() FROM t'])).toEqual([
      ['not_eligible'],
    ]);
    expect(await client.rows("SELECT result, detail FROM pgtrickle.validate_query('SELECT nothing')")).toEqual([
      ['not_eligible', 'The query does not run: column "nothing" does not exist'],
    ]);
  });

  test('a statement that creates can be prepared and run again', async () => {
    const prepared = (name: string): Promise<unknown> =>
      client.query({ name: 'creates', text: "SELECT pgtrickle.create_stream_table_if_not_exists($1, 'SELECT id FROM t')", values: [name] });
    await prepared('p1');
    await prepared('p2');
    await prepared('p1');
    expect(client.takeNotices()).toContain('stream table "public.p1" already exists, skipping');
    expect(await client.rows("SELECT count(*)::int FROM pgtrickle.pgt_stream_tables WHERE pgt_name IN ('p1', 'p2')")).toEqual([[2]]);
  });

  test('bulk_create makes all or none', async () => {
    const one = { name: 'b1', query: 'SELECT id FROM t' };
    await client.failure('SELECT pgtrickle.bulk_create($1)', [JSON.stringify([one, { name: 'b2', query: 'SELECT nothing' }])]);
    expect(await statusOf('b1')).toEqual([]);
    const [[made] = []] = await client.rows('SELECT pgtrickle.bulk_create($1)', [JSON.stringify([one, { ...one, name: 'b2' }])]);
    expect(made).toEqual([
      { name: 'b1', status: 'created', pgt_id: expect.any(Number) },
      { name: 'b2', status: 'created', pgt_id: expect.any(Number) },
    ]);
    expect(await client.rows("SELECT pgtrickle.bulk_drop_stream_tables('{b1,b2,nothing}')")).toEqual([[2]]);
  });

  test('a refresh asked for in a block, or by plpgsql, is waited for behind the commit', async () => {
    await client.query("INSERT INTO t VALUES (5, 'e', 5)");
    await client.query("DO $$BEGIN PERFORM pgtrickle.refresh_stream_table('done'); END$$");
    expect(await client.rows('SELECT count(*)::int FROM done')).toEqual([[4]]);
    await client.query('BEGIN');
    await client.query('DELETE FROM t WHERE id = 5');
    await client.query("SELECT pgtrickle.refresh_stream_table('done')");
    await client.query('COMMIT');
    expect(await client.rows('SELECT count(*)::int FROM done')).toEqual([[3]]);
  });

  test('an error in a query points into the query', async () => {
    const error: pg.DatabaseError = await client.query(create('x', 'SELECT id,\n       nothing FROM t')).then(
      () => Promise.reject(new Error('no error')),
      (reason) => reason,
    );
    expect(error.code).toBe('42703');
    expect(error.internalQuery?.slice(Number(error.internalPosition) - 1)).toBe('nothing FROM t');
  });

  test('bulk_alter_stream_tables and exec_stream_ddl', async () => {
    expect(await client.rows('SELECT pgtrickle.bulk_alter_stream_tables(\'{p1,p2}\', \'{"schedule": "7m"}\')')).toEqual([[2]]);
    expect(await client.rows("SELECT DISTINCT schedule FROM pgtrickle.pgt_stream_tables WHERE pgt_name IN ('p1', 'p2')")).toEqual([['7m']]);
    expect(await client.rows("SELECT pgtrickle.exec_stream_ddl('CREATE STREAM TABLE ddl AS SELECT id FROM t')")).toEqual([[true]]);
    expect(await statusOf('ddl')).toEqual([['ACTIVE']]);
    expect(await client.rows("SELECT pgtrickle.exec_stream_ddl('DROP STREAM TABLE ddl')")).toEqual([[true]]);
    expect(await statusOf('ddl')).toEqual([]);
  });

  test('without initialize it waits for the first refresh', async () => {
    await client.query(create('later', 'SELECT id FROM t', ', initialize => false'));
    expect(await statusOf('later')).toEqual([['INITIALIZING']]);
    await client.query("SELECT pgtrickle.refresh_stream_table('later')");
    expect(await client.rows('SELECT count(*)::int FROM later')).toEqual([[3]]);
  });

  test('on a direct connection what needs no compiler works, and the rest says where to go', async () => {
    const direct = await stage.direct(stage.upstream);
    await direct.query("SELECT pgtrickle.pause_stream_table('done')");
    await direct.query("SELECT pgtrickle.resume_stream_table('done')");
    expect(await direct.failure(create('x', 'SELECT 1'))).toMatchInlineSnapshot(`
      "ERROR 55000: pgtrickle.create_stream_table() is carried out by Millrace
      DETAIL: The call came over a direct connection to the server, or from where Millrace does not see it (a function, a larger query).
      HINT: Connect through Millrace and call it in a statement of its own: SELECT pgtrickle.create_stream_table(...);"
    `);
  });
});

describe("users' DDL", () => {
  test('a column and a table that stream tables use can be dropped', async () => {
    await client.query('CREATE TABLE gone (id int PRIMARY KEY, a int, b int)');
    await client.query('INSERT INTO gone VALUES (1, 2, 3)');
    await client.query(create('over_gone', 'SELECT id, a FROM gone'));
    await client.query('ALTER TABLE gone RENAME TO going');
    await client.query('ALTER TABLE going RENAME COLUMN a TO aa');
    await client.query('ALTER TABLE going DROP COLUMN b');
    await client.query('INSERT INTO going VALUES (2, 20)');
    await client.query("SELECT pgtrickle.refresh_stream_table('over_gone')");
    expect(await client.rows('SELECT * FROM over_gone ORDER BY id')).toEqual([
      [1, 2],
      [2, 20],
    ]);
    await client.query('DROP TABLE going');
    expect(await client.failure("SELECT pgtrickle.refresh_stream_table('over_gone')")).toMatchInlineSnapshot(`
      "ERROR 42703: refresh of stream table public.over_gone failed: stream table is suspended: a table it reads was dropped (its columns were id, aa)
      HINT: SELECT * FROM pgtrickle.diagnose_errors('public.over_gone'); says more."
    `);
    await expect.poll(() => statusOf('over_gone'), { timeout: 20_000 }).not.toEqual([['ACTIVE']]);
    expect(await client.failure('SELECT * FROM over_gone')).toContain('a table it reads was dropped');
    await client.query("SELECT pgtrickle.alter_stream_table('over_gone', query => 'SELECT id, 1 AS a FROM t')");
    expect(await client.rows('SELECT count(*)::int FROM over_gone')).toEqual([[3]]);
    await client.query("SELECT pgtrickle.drop_stream_table('over_gone')");
  });

  test('a materialized view over a stream table is an ordinary one', async () => {
    await client.query('CREATE MATERIALIZED VIEW ordinary AS SELECT count(*)::int AS n FROM done');
    expect(await client.rows("SELECT relkind FROM pg_class WHERE relname = 'ordinary'")).toEqual([['m']]);
    expect(await client.failure("SELECT pgtrickle.drop_stream_table('done')")).toContain('materialized view ordinary depends on view done');
    await client.query("SELECT pgtrickle.drop_stream_table('done', cascade => true)");
    expect(await client.rows("SELECT to_regclass('ordinary')")).toEqual([[null]]);
  });
});

describe('over tables from sources', () => {
  test('a stream table joins one with an ordinary table, and keeps it from being dropped', async () => {
    const origin = await stage.direct(stage.origin);
    await origin.query(
      "CREATE TABLE far (id int PRIMARY KEY, name text); INSERT INTO far VALUES (1, 'one'), (2, 'two'); CREATE PUBLICATION p FOR ALL TABLES",
    );
    await client.query(`CREATE CONNECTION c TO POSTGRES (${leadsTo(stage.origin)})`);
    await client.query("CREATE SOURCE s FROM POSTGRES CONNECTION c (PUBLICATION 'p')");
    await client.query('CREATE TABLE far FROM SOURCE s (REFERENCE public.far)');
    await client.query(create('near_and_far', 'SELECT t.id, far.name FROM t JOIN far USING (id)'));
    expect(await client.rows('SELECT * FROM near_and_far ORDER BY 1')).toEqual([
      [1, 'one'],
      [2, 'two'],
    ]);
    await origin.query("INSERT INTO far VALUES (3, 'three')");
    await eventually(client, 'SELECT * FROM near_and_far WHERE id = 3', [[3, 'three']]);
    expect(await client.failure('DROP TABLE far')).toContain('depends on table');
    await client.query('DROP TABLE far CASCADE');
    expect(await statusOf('near_and_far')).toEqual([]);
  });
});

describe('rights', () => {
  let other: TestClient;
  beforeAll(async () => {
    await client.query('CREATE ROLE someone LOGIN');
    await client.query('GRANT CREATE ON SCHEMA public TO someone');
    other = await stage.connect('someone');
  });

  test('the caller has to be allowed to read', async () => {
    expect(await other.failure(create('mine', 'SELECT id FROM t'))).toBe('ERROR 42501: permission denied for table t');
    await client.query('GRANT SELECT ON t TO someone');
    await other.query(create('mine', 'SELECT id FROM t'));
    expect(await other.rows('SELECT count(*)::int FROM mine')).toEqual([[3]]);
  });

  test('only the owner changes it', async () => {
    for (const call of ["pause_stream_table('totals')", "refresh_stream_table('totals')", "drop_stream_table('totals')"]) {
      expect(await other.failure(`SELECT pgtrickle.${call}`)).toContain(
        'ERROR 42501: permission denied: must be owner of stream table totals',
      );
    }
    expect(await other.failure("SELECT pgtrickle.alter_stream_table('totals', schedule => '1m')")).toContain('ERROR 42501');
    await other.query('SELECT pgtrickle.pause_all()');
    expect(await statusOf('mine')).toEqual([['SUSPENDED']]);
    expect(await statusOf('totals')).toEqual([['ACTIVE']]);
    await other.query("SELECT pgtrickle.resume_stream_table('mine')");
  });

  test('row-level security is not gone around', async () => {
    await client.query('CREATE TABLE guarded (id int PRIMARY KEY, who text)');
    await client.query('ALTER TABLE guarded ENABLE ROW LEVEL SECURITY');
    await client.query('CREATE POLICY own ON guarded USING (who = current_user)');
    await client.query('GRANT SELECT ON guarded TO someone');
    expect(await other.failure(create('peek', 'SELECT * FROM guarded'))).toMatchInlineSnapshot(`
      "ERROR 0A000: row-level security of table public.guarded applies here, so it cannot be a source of a stream table
      DETAIL: A stream table keeps one set of rows for all its readers.
      HINT: Create the stream table as a role that the policies do not apply to, and put what a reader may see into views over it."
    `);
    await client.query(create('all_of_it', 'SELECT * FROM guarded'));
    await client.query('DROP VIEW all_of_it');
  });

  test("somebody's functions do not run with Millrace's rights", async () => {
    await other.query('CREATE FUNCTION evil(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$BEGIN RETURN 1; END$$');
    expect(await other.failure(create('evil', 'SELECT evil(id) FROM t', ", refresh_mode => 'FULL'"))).toContain('ERROR 42501');
    expect(await other.failure(create('evil', "SELECT pg_ls_dir('.') FROM t", ", refresh_mode => 'FULL'"))).toMatch(/ERROR (42501|0A000)/);
  });
});

describe('AUTO falls back to FULL, and says why', () => {
  const falls = async (name: string, query: string): Promise<unknown> => {
    client.takeNotices();
    await client.query(create(name, query));
    expect(client.takeNotices().join()).toContain('Falling back to FULL refresh: ');
    const [[mode, reason] = []] = await client.rows(
      `SELECT effective_mode, downgrade_reason FROM pgtrickle.explain_refresh_mode('${name}')`,
    );
    expect(mode).toBe('FULL');
    await client.query(`SELECT pgtrickle.refresh_stream_table('${name}')`);
    await client.query(`SELECT pgtrickle.drop_stream_table('${name}')`);
    return reason;
  };

  test('with what cannot be had from the WAL', async () => {
    await client.query(`CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY);
      CREATE MATERIALIZED VIEW matview AS SELECT id FROM t;
      CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE child () INHERITS (parent); INSERT INTO child VALUES (1);
      CREATE TABLE parts (id int) PARTITION BY LIST (id); CREATE TABLE part1 PARTITION OF parts FOR VALUES IN (1);
      CREATE TABLE virtual (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 2))`);
    const reasons = [];
    for (const relation of ['unlogged', 'matview', 'parent', 'parts', 'virtual'])
      reasons.push(await falls('fallen', `SELECT id FROM ${relation}`));
    reasons.push(await falls('fallen', 'SELECT id, now() AS at FROM t'));
    expect(reasons).toMatchInlineSnapshot(`
      [
        "Table 'public.unlogged' is unlogged: its changes are not in the WAL; ALTER TABLE public.unlogged SET LOGGED;",
        "Materialized view 'public.matview' cannot be used as a source in DIFFERENTIAL mode: REFRESH tells of no changes",
        "Table 'public.parent' has inheritance children, whose rows come and go without it",
        "Table 'public.parts' is partitioned and has no primary key",
        "Column twice of 'public.virtual' is a virtual generated column; make it STORED",
        "The result of now() changes although no row changes",
      ]
    `);
  });

  test('a partitioned table with a key, and a generated column, are kept by changes', async () => {
    await client.query(`CREATE TABLE keyed (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 2) STORED) PARTITION BY RANGE (id);
      CREATE TABLE keyed1 PARTITION OF keyed FOR VALUES FROM (0) TO (10); INSERT INTO keyed VALUES (1)`);
    await client.query(create('over_keyed', 'SELECT id, twice FROM keyed', ", refresh_mode => 'DIFFERENTIAL'"));
    await client.query('INSERT INTO keyed VALUES (2)');
    await client.query("SELECT pgtrickle.refresh_stream_table('over_keyed')");
    expect(await client.rows('SELECT * FROM over_keyed ORDER BY 1')).toEqual([
      [1, 2],
      [2, 4],
    ]);
  });
});

describe('refused', () => {
  const cases: readonly (readonly [string, string])[] = [
    ['schedule null', create('x', 'SELECT id FROM t', ', schedule => NULL')],
    ['schedule too short', create('x', 'SELECT id FROM t', ", schedule => '0s'")],
    ['schedule without unit', create('x', 'SELECT id FROM t', ", schedule => '1h3'")],
    ['cron', create('x', 'SELECT id FROM t', ", schedule => '* * *'")],
    ['mode', create('x', 'SELECT id FROM t', ", refresh_mode => 'LATER'")],
    ['immediate', create('x', 'SELECT id FROM t', ", refresh_mode => 'IMMEDIATE', cdc_mode => 'wal'")],
    ['immediate, scheduled', create('x', 'SELECT id FROM t', ", '5s', 'IMMEDIATE'")],
    ['partition_by', create('x', 'SELECT id FROM t', ", partition_by => 'id'")],
    ['cdc_mode', create('x', 'SELECT id FROM t', ", cdc_mode => 'trigger'")],
    ['cdc_mode unknown', create('x', 'SELECT id FROM t', ", cdc_mode => 'magic'")],
    ['tier', "SELECT pgtrickle.alter_stream_table('totals', tier => 'cold')"],
    ['status', "SELECT pgtrickle.alter_stream_table('totals', status => 'GONE')"],
    ['volatile', create('x', 'SELECT random() FROM t', ", refresh_mode => 'DIFFERENTIAL'")],
    ['LIMIT', create('x', 'SELECT id FROM t LIMIT 1')],
    ['a temporary table', 'CREATE TEMP TABLE tmp (id int)'],
    ['a temporary table', create('x', 'SELECT id FROM tmp')],
    ['a system catalog', create('x', 'SELECT relname FROM pg_class')],
    ['a row type', create('x', 'SELECT t AS whole FROM t')],
    ['row types in an array', create('x', 'SELECT k, array_agg(t) AS rows FROM t GROUP BY k')],
    ['ONLY of a parent', create('x', 'SELECT id FROM ONLY parent')],
    ['syntax', create('x', 'SELECT FROM WHERE')],
    ['taken', create('totals', 'SELECT 1')],
    ['taken by a table', create('t', 'SELECT 1')],
    ['no such schema', create('nowhere.x', 'SELECT 1')],
    ['too many names', create('a.b.c', 'SELECT 1')],
    ['itself', "SELECT pgtrickle.alter_stream_table('totals', query => 'SELECT k, n FROM totals')"],
    ['no such stream table', "SELECT pgtrickle.drop_stream_table('nothing')"],
    ['an ordinary table', "SELECT pgtrickle.refresh_stream_table('t')"],
    ['paused already', "SELECT pgtrickle.pause_stream_table('p1'), pgtrickle.pause_stream_table('p1')"],
    ['not paused', "SELECT pgtrickle.resume_stream_table('totals')"],
    ['REFRESH MATERIALIZED VIEW', 'REFRESH MATERIALIZED VIEW totals'],
    ['exec_stream_ddl', "SELECT pgtrickle.exec_stream_ddl('ALTER STREAM TABLE x')"],
    ['read-only', `BEGIN READ ONLY; ${create('x', 'SELECT 1')}`],
  ];
  test('with the reason', async () => {
    const told: string[] = [];
    for (const [name, sql] of cases) {
      const said = await client.failure(sql).catch((error: Error) => error.message.split('\n')[0] ?? '');
      await client.query('ROLLBACK');
      told.push(`${name}: ${said}`);
    }
    expect(told).toMatchInlineSnapshot(`
      [
        "schedule null: ERROR 22023: invalid argument: use 'calculated' instead of NULL to set CALCULATED schedule",
        "schedule too short: ERROR 22023: invalid argument: schedule must be at least 1s, got 0s",
        "schedule without unit: ERROR 22023: invalid argument: trailing digits '3' without a unit in duration '1h3'. Use units s, m, h, d or w.",
        "cron: ERROR 22023: invalid argument: invalid cron expression '* * *': expected 5 or 6 fields, got 3",
        "mode: ERROR 22023: invalid argument: invalid refresh_mode value: 'LATER' (expected 'AUTO', 'FULL', 'DIFFERENTIAL', or 'IMMEDIATE')",
        "immediate: ERROR 22023: invalid argument: refresh_mode = 'IMMEDIATE' is incompatible with cdc_mode = 'wal'. Changes are taken in by triggers, within the statements.",
        "immediate, scheduled: ERROR 22023: invalid argument: refresh_mode = 'IMMEDIATE' is incompatible with a schedule: it is never behind",
        "partition_by: ERROR 0A000: parameter partition_by => 'id' is not supported
      DETAIL: The rows are kept in one table of Millrace.
      HINT: Leave it out.",
        "cdc_mode: ERROR 0A000: parameter cdc_mode => 'trigger' is not supported
      DETAIL: Changes are taken from the WAL; triggers are for servers that do not stream it.
      HINT: Leave it out.",
        "cdc_mode unknown: ERROR 22023: invalid argument: invalid cdc_mode value: 'magic' (expected 'auto', 'trigger', or 'wal')",
        "tier: ERROR 0A000: parameter tier => 'cold' is not supported
      DETAIL: The schedule says how often it is refreshed; nothing multiplies it.
      HINT: Leave it out.",
        "status: ERROR 22023: invalid argument: invalid status value: 'GONE' (expected 'ACTIVE' or 'SUSPENDED')",
        "volatile: ERROR 0A000: unsupported operator for DIFFERENTIAL mode: Defining query contains volatile expressions (e.g., random()), whose result no change tells of
      HINT: Use refresh_mode => 'FULL', or 'AUTO' to let Millrace choose.",
        "LIMIT: ERROR 0A000: LIMIT without ORDER BY in a live view: which rows it keeps is not defined; add an ORDER BY",
        "a temporary table: was expected to fail: CREATE TEMP TABLE tmp (id int)",
        "a temporary table: ERROR 0A000: temporary table tmp cannot be a source of a stream table: one session only sees it",
        "a system catalog: ERROR 0A000: system catalog pg_catalog.pg_class cannot be a source of a stream table",
        "a row type: ERROR 0A000: column whole of the stream table would have the row type of table t: name its columns instead",
        "row types in an array: ERROR 0A000: column rows of the stream table would have the row type of table t: name its columns instead",
        "ONLY of a parent: ERROR 0A000: ONLY public.parent in a stream table: it is read with the tables below it",
        "syntax: ERROR 42601: syntax error at or near "WHERE"",
        "taken: ERROR 42P07: stream table already exists: public.totals
      HINT: Use pgtrickle.alter_stream_table() to change it, or pgtrickle.drop_stream_table() first.",
        "taken by a table: ERROR 42P07: relation "t" already exists
      HINT: Choose another name or schema, or type CREATE ... IF NOT EXISTS.",
        "no such schema: ERROR 3F000: schema "nowhere" does not exist
      HINT: Type: CREATE SCHEMA nowhere;",
        "too many names: ERROR 22023: invalid argument: improper qualified name (too many dotted names): a.b.c",
        "itself: ERROR 3F000: cycle detected in dependency graph: public.totals -> public.totals",
        "no such stream table: ERROR 42P01: stream table not found: nothing
      HINT: SELECT * FROM pgtrickle.pgt_status(); lists what there is.",
        "an ordinary table: ERROR 42P01: stream table not found: t
      HINT: SELECT * FROM pgtrickle.pgt_status(); lists what there is.",
        "paused already: ERROR 22023: invalid argument: stream table public.p1 is already suspended or in error state (current status: SUSPENDED)",
        "not paused: ERROR 22023: invalid argument: stream table public.totals is not suspended or in error state (current status: ACTIVE)",
        "REFRESH MATERIALIZED VIEW: ERROR 42809 at <totals>: "totals" is not a materialized view",
        "exec_stream_ddl: ERROR 42601: exec_stream_ddl: unrecognised syntax. Expected CREATE [OR REPLACE] STREAM TABLE name AS SELECT ... or DROP STREAM TABLE name",
        "read-only: ERROR 25006: cannot execute pgtrickle.create_stream_table() in a read-only transaction",
      ]
    `);
  });
});

test("in transaction pooling, stream tables are made, refreshed and dropped as in a session of one's own", async () => {
  const pooled = await startMillrace({ upstream: stage.upstream.address, args: ['--pool-mode', 'transaction'] });
  await client.query("CREATE ROLE pooler LOGIN SUPERUSER PASSWORD 'secret'");
  const one = new pg.Client({ host: pooled.host, port: pooled.port, user: 'pooler', password: 'secret', database: 'postgres' });
  await one.connect();
  try {
    const made = { name: 'make', text: 'SELECT pgtrickle.create_stream_table($1, $2)' };
    await one.query({ ...made, values: ['pooled', 'SELECT id FROM t'] });
    expect((await one.query('SELECT count(*)::int AS n FROM pooled')).rows).toEqual([{ n: 3 }]);
    await one.query({ ...made, values: ['pooled2', 'SELECT id FROM t WHERE id > 1'] });
    await one.query("INSERT INTO t VALUES (9, 'z', 9)");
    await one.query("SELECT pgtrickle.refresh_stream_table('pooled2')");
    expect((await one.query('SELECT count(*)::int AS n FROM pooled2')).rows).toEqual([{ n: 3 }]);
    await one.query('DELETE FROM t WHERE id = 9');
    await one.query("SELECT pgtrickle.drop_stream_table('pooled'), pgtrickle.drop_stream_table('pooled2')");
  } finally {
    await one.end();
    await pooled.stop();
  }
});

test('status views answer', async () => {
  const names = [
    'pgt_status()',
    'st_refresh_stats()',
    'health_check()',
    'health_summary()',
    'quick_health',
    'pg_stat_stream_tables',
    'change_buffer_sizes()',
    'check_cdc_health()',
    'slot_health()',
    'pgt_cdc_status',
    'refresh_timeline()',
    'stream_tables_info',
    'pgt_refresh_history',
    "list_sources('totals')",
    "diagnose_errors('totals')",
    "explain_refresh_mode('totals')",
    "get_refresh_history('totals')",
  ];
  for (const name of names) await client.query(`SELECT * FROM pgtrickle.${name}`);
  expect(await client.rows("SELECT severity FROM pgtrickle.health_check() WHERE check_name = 'scheduler_running'")).toEqual([['OK']]);
  expect(
    await client.rows("SELECT configured_mode, effective_mode, downgrade_reason FROM pgtrickle.explain_refresh_mode('totals')"),
  ).toEqual([['AUTO', 'DIFFERENTIAL', null]]);
  expect(await client.rows('SELECT alert FROM pgtrickle.check_cdc_health() WHERE alert IS NOT NULL')).toEqual([]);
});
