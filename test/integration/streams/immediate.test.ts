/** Stream tables in IMMEDIATE mode: kept within the statements that write to what they read, by any client. */
import pg from 'pg';
import { describe, expect, test } from 'vitest';
import type { TestMillrace } from '../../support/millrace.ts';
import type { TestPostgres } from '../../support/postgres.ts';
import { sortedRows } from '../../support/streams.ts';
import { withDirect } from './with-direct.ts';

describe.each([15, 18] as const)('on PostgreSQL %i', (version) => {
  let upstream: TestPostgres;
  let millrace: TestMillrace;
  /** Through Millrace, and around it. */
  let client: pg.Client;
  let direct: pg.Client;

  withDirect(version, (stage) => {
    ({ upstream, millrace, client, direct } = stage);
  });

  const create = (name: string, query: string): Promise<unknown> =>
    client.query(`SELECT pgtrickle.create_stream_table('${name}', $q$${query}$q$, NULL, 'IMMEDIATE')`);
  const same = async (name: string, query: string, who = direct): Promise<void> => {
    expect(await sortedRows(who, `SELECT * FROM ${name}`)).toEqual(await sortedRows(who, query));
  };

  test('the writer itself sees its change, before it commits, and nobody after it rolled back', async () => {
    await direct.query(
      "CREATE TABLE o (id integer PRIMARY KEY, region text, amount numeric); INSERT INTO o VALUES (1, 'n', 1), (2, 's', 2)",
    );
    const query = 'SELECT region, count(*) AS n, sum(amount) AS total, max(amount) AS most FROM o GROUP BY region';
    await create('sums', query);
    await same('sums', query);
    await direct.query("BEGIN; INSERT INTO o VALUES (3, 'w', 3), (4, 'n', 7)");
    await same('sums', query);
    await direct.query('SAVEPOINT a');
    await direct.query('UPDATE o SET amount = amount + 1');
    await same('sums', query);
    await direct.query('ROLLBACK TO a');
    await same('sums', query);
    await direct.query("DELETE FROM o WHERE region = 'n'");
    await same('sums', query);
    await direct.query('ROLLBACK');
    await same('sums', query);
    await direct.query("INSERT INTO o SELECT g, 'x' || g % 5, g FROM generate_series(10, 500) g");
    await same('sums', query);
    await direct.query('TRUNCATE o');
    await same('sums', query);
    expect((await direct.query('SELECT * FROM sums')).rows).toEqual([]);
  });

  test('several tables changed by one statement, and statements within statements, are taken in once and whole', async () => {
    await direct.query(`
      CREATE TABLE p (id integer PRIMARY KEY, name text, bonus integer NOT NULL DEFAULT 0);
      CREATE TABLE c (id integer PRIMARY KEY, p integer REFERENCES p ON DELETE CASCADE ON UPDATE CASCADE, n integer);
      INSERT INTO p SELECT g, 'p' || g FROM generate_series(1, 10) g;
      INSERT INTO c SELECT g, g % 10 + 1, g FROM generate_series(1, 100) g`);
    const queries = {
      joined: 'SELECT c.id, p.name, c.n + p.bonus AS n FROM c JOIN p ON p.id = c.p WHERE c.n % 3 <> 0',
      grouped: 'SELECT p.name, count(c.id) AS n, sum(c.n) AS s, min(c.n) AS least FROM p LEFT JOIN c ON c.p = p.id GROUP BY p.name',
      ranked: 'SELECT p.name, c.n, rank() OVER (PARTITION BY p.id ORDER BY c.n DESC) AS r FROM p JOIN c ON c.p = p.id',
      orphans: 'SELECT p.id, p.name FROM p WHERE NOT EXISTS (SELECT FROM c WHERE c.p = p.id)',
      united: 'SELECT name FROM p UNION SELECT n::text FROM c',
    };
    for (const [name, query] of Object.entries(queries)) await create(name, query);
    const check = async (): Promise<void> => {
      for (const [name, query] of Object.entries(queries)) await same(name, query);
    };
    await check();
    const statements = [
      "WITH a AS (INSERT INTO p VALUES (11, 'new') RETURNING id), b AS (UPDATE p SET bonus = bonus + 1 WHERE id < 4) INSERT INTO c SELECT 1000 + id, id, id FROM a",
      'WITH a AS (DELETE FROM c WHERE n > 95 RETURNING p) UPDATE p SET bonus = 5 WHERE id IN (SELECT p FROM a)',
      'DELETE FROM p WHERE id IN (2, 3)',
      'UPDATE p SET id = id + 100 WHERE id BETWEEN 4 AND 6',
      'INSERT INTO c VALUES (1, 1, 7), (2000, 1, 8) ON CONFLICT (id) DO UPDATE SET n = excluded.n',
      'MERGE INTO c USING (VALUES (5, 50), (6, 60), (3000, 70)) v(id, n) ON c.id = v.id WHEN MATCHED AND v.id = 5 THEN DELETE WHEN MATCHED THEN UPDATE SET n = v.n WHEN NOT MATCHED THEN INSERT VALUES (v.id, 1, v.n)',
      'UPDATE c SET n = n',
      'UPDATE c SET n = -n',
      'DO $$ BEGIN UPDATE c SET n = 1 WHERE id = 10; BEGIN UPDATE p SET bonus = 9; PERFORM 1 / 0; EXCEPTION WHEN division_by_zero THEN NULL; END; UPDATE c SET n = 2 WHERE id = 11; END $$',
      "BEGIN; SAVEPOINT s; DELETE FROM p WHERE id = 1; ROLLBACK TO s; UPDATE c SET n = 3 WHERE id = 12; SAVEPOINT t; INSERT INTO p VALUES (50, 'fifty'); RELEASE t; COMMIT",
      'TRUNCATE p, c',
      "INSERT INTO p SELECT g, 'p' || g FROM generate_series(1, 5) g; INSERT INTO c SELECT g, g % 5 + 1, g FROM generate_series(1, 20) g",
      'TRUNCATE p CASCADE',
    ];
    for (const sql of statements) {
      await direct.query(sql);
      await check();
    }
    // Triggers of users that write to the same tables, before and after Millrace's own.
    await direct.query(`
      CREATE FUNCTION follow() RETURNS trigger LANGUAGE plpgsql AS $f$
      BEGIN
        IF pg_trigger_depth() < 3 THEN
          INSERT INTO p SELECT max(id) + 1, 'by trigger' FROM p;
          BEGIN UPDATE c SET n = n / (n - n); EXCEPTION WHEN division_by_zero THEN NULL; END;
        END IF;
        RETURN NULL;
      END $f$;
      INSERT INTO p VALUES (1, 'one'); INSERT INTO c VALUES (1, 1, 1);
      CREATE TRIGGER a_first AFTER INSERT ON c FOR EACH ROW EXECUTE FUNCTION follow();
      CREATE TRIGGER zz_last AFTER UPDATE ON c FOR EACH STATEMENT EXECUTE FUNCTION follow();
      CREATE TRIGGER b_before BEFORE DELETE ON p FOR EACH STATEMENT EXECUTE FUNCTION follow()`);
    for (const sql of ['INSERT INTO c VALUES (2, 1, 2), (3, 1, 3)', 'UPDATE c SET n = n + 1', 'DELETE FROM p WHERE id = 1']) {
      await direct.query(sql);
      await check();
    }
  });

  test('names of tables and columns may change, also with each other', async () => {
    await direct.query(
      "CREATE TABLE named (id integer PRIMARY KEY, a integer, b integer, \"it's\" text); INSERT INTO named VALUES (1, 1, 10, 'x'), (2, 2, 20, 'y')",
    );
    await create('by_name', 'SELECT a, sum(b) AS s, max("it\'s") AS m FROM named GROUP BY a');
    await direct.query("INSERT INTO named VALUES (3, 1, 5, 'z')");
    await direct.query(
      'ALTER TABLE named RENAME a TO x; ALTER TABLE named RENAME b TO a; ALTER TABLE named RENAME x TO b; ALTER TABLE named RENAME "it\'s" TO "$mr it""s"',
    );
    await direct.query('INSERT INTO named (id, a, b) VALUES (4, 100, 1); UPDATE named SET a = a + 1 WHERE id = 1');
    await same('by_name', 'SELECT b, sum(a), max("$mr it""s") FROM named GROUP BY b');
    await direct.query(
      'ALTER TABLE named RENAME TO renamed; CREATE SCHEMA elsewhere; ALTER TABLE renamed SET SCHEMA elsewhere; ALTER TABLE elsewhere.renamed ADD COLUMN more text',
    );
    await direct.query('INSERT INTO elsewhere.renamed (id, a, b) VALUES (5, 100, 2); DELETE FROM elsewhere.renamed WHERE id = 2');
    await same('by_name', 'SELECT b, sum(a), max("$mr it""s") FROM elsewhere.renamed GROUP BY b');
  });

  test('a dropped column or table suspends it, with the reason, and writes go on', async () => {
    await direct.query(
      'CREATE TABLE wide (id integer PRIMARY KEY, a integer, b integer); INSERT INTO wide VALUES (1, 1, 1); CREATE TABLE beside (id integer PRIMARY KEY)',
    );
    await create('of_b', 'SELECT wide.id, b FROM wide JOIN beside USING (id)');
    await create('of_a', 'SELECT id, a FROM wide');
    await direct.query('ALTER TABLE wide DROP COLUMN b');
    await direct.query('INSERT INTO wide VALUES (2, 2); INSERT INTO beside VALUES (2)');
    await same('of_a', 'SELECT id, a FROM wide');
    const status = async (name: string): Promise<unknown> =>
      (await direct.query('SELECT status, status_reason FROM pgtrickle.pgt_stream_tables WHERE pgt_name = $1', [name])).rows[0];
    await expect
      .poll(() => status('of_b'), { timeout: 10_000 })
      .toMatchObject({ status_reason: 'stream table is suspended: column "b" of public.wide was dropped' });
    await expect(direct.query('SELECT * FROM of_b')).rejects.toThrow('column "b" of public.wide was dropped');
    const triggers = async (): Promise<unknown> =>
      (await direct.query("SELECT count(*)::int AS n FROM pg_trigger WHERE tgrelid = 'beside'::regclass")).rows[0];
    await expect.poll(triggers, { timeout: 10_000 }).toEqual({ n: 0 });
    await direct.query('DROP TABLE wide');
    await expect.poll(() => status('of_a'), { timeout: 10_000 }).toMatchObject({ status_reason: expect.stringContaining('was dropped') });
  });

  test('a change that its query fails on is refused with the name of the stream table, and others go on', async () => {
    await direct.query('CREATE TABLE divided (id integer PRIMARY KEY, d integer); INSERT INTO divided VALUES (1, 1)');
    await create('quotients', 'SELECT id, 100 / d AS q FROM divided');
    await expect(direct.query('INSERT INTO divided VALUES (2, 0)')).rejects.toMatchObject({
      code: '22012',
      message: 'stream table public.quotients cannot take this change: division by zero',
    });
    await direct.query('INSERT INTO divided VALUES (2, 5)');
    await same('quotients', 'SELECT id, 100 / d AS q FROM divided');
    await client.query("SELECT pgtrickle.pause_stream_table('quotients')");
    await direct.query('INSERT INTO divided VALUES (3, 0)');
    await direct.query('DELETE FROM divided WHERE id = 3; INSERT INTO divided VALUES (4, 4)');
    expect((await direct.query('SELECT count(*)::int AS n FROM quotients')).rows).toEqual([{ n: 2 }]);
    await client.query("SELECT pgtrickle.resume_stream_table('quotients')");
    await expect.poll(() => sortedRows(direct, 'SELECT * FROM quotients'), { timeout: 10_000 }).toHaveLength(3);
    await direct.query('INSERT INTO divided VALUES (6, 6)');
    await same('quotients', 'SELECT id, 100 / d AS q FROM divided');
  });

  test('a transaction whose snapshot is older than another one that was taken in fails, and succeeds when tried again', async () => {
    await direct.query('CREATE TABLE serial (id integer PRIMARY KEY, n integer)');
    await create('total', 'SELECT sum(n) AS s, count(*) AS n FROM serial');
    const other = new pg.Client({ connectionString: upstream.url });
    await other.connect();
    for (const level of ['REPEATABLE READ', 'SERIALIZABLE']) {
      await other.query(`BEGIN ISOLATION LEVEL ${level}; SELECT count(*) FROM serial`);
      await direct.query('INSERT INTO serial SELECT coalesce(max(id), 0) + 1, 1 FROM serial');
      await expect(other.query('INSERT INTO serial VALUES (1000, 5)')).rejects.toMatchObject({ code: '40001' });
      await other.query('ROLLBACK');
      await other.query(
        `BEGIN ISOLATION LEVEL ${level}; INSERT INTO serial SELECT max(id) + 1, 2 FROM serial; UPDATE serial SET n = n + 1; COMMIT`,
      );
      await same('total', 'SELECT sum(n) AS s, count(*) AS n FROM serial');
    }
    await other.end();
  });

  test('refresh computes it anew; altered to another mode and back, dropped, it leaves nothing on the tables', async () => {
    await direct.query("CREATE TABLE kept (id integer PRIMARY KEY, k text); INSERT INTO kept VALUES (1, 'a'), (2, 'b')");
    const query = 'SELECT k, count(*) AS n FROM kept GROUP BY k';
    await create('keeps', query);
    expect(
      (
        await client.query(
          "SELECT refresh_mode, status, schedule, data_timestamp >= now() AS fresh FROM pgtrickle.pgt_stream_tables WHERE pgt_name = 'keeps'",
        )
      ).rows,
    ).toEqual([{ refresh_mode: 'IMMEDIATE', status: 'ACTIVE', schedule: null, fresh: true }]);
    const id = (await client.query("SELECT pgt_id FROM pgtrickle.pgt_stream_tables WHERE pgt_name = 'keeps'")).rows[0]?.pgt_id;
    await direct.query(`UPDATE millrace_data.s${id} SET n = n + 7`);
    await client.query("SELECT pgtrickle.refresh_stream_table('keeps')");
    await same('keeps', query);
    await client.query("SELECT pgtrickle.repair_stream_table('keeps')");
    await same('keeps', query);
    const triggers = async (): Promise<number> =>
      (await direct.query("SELECT count(*)::int AS n FROM pg_trigger WHERE tgrelid = 'kept'::regclass")).rows[0]?.n;
    expect(await triggers()).toBe(8);
    await client.query("SELECT pgtrickle.alter_stream_table('keeps', refresh_mode => 'DIFFERENTIAL', schedule => '1s')");
    await direct.query("INSERT INTO kept VALUES (3, 'c')");
    await expect.poll(() => sortedRows(direct, 'SELECT * FROM keeps'), { timeout: 10_000 }).toHaveLength(3);
    await expect.poll(triggers, { timeout: 10_000 }).toBe(0);
    await client.query("SELECT pgtrickle.alter_stream_table('keeps', refresh_mode => 'IMMEDIATE')");
    await direct.query("INSERT INTO kept VALUES (4, 'd')");
    await same('keeps', query);
    await client.query("SELECT pgtrickle.drop_stream_table('keeps')");
    await direct.query("INSERT INTO kept VALUES (5, 'e')");
    await expect.poll(triggers, { timeout: 10_000 }).toBe(0);
    const left =
      "SELECT relname FROM pg_class WHERE relnamespace = 'millrace_data'::regnamespace AND relname ~ ('^[lxw]' || $1 || '(_|$)')";
    expect((await direct.query(left, [String(id)])).rows).toEqual([]);
  });

  test('filled while others write, nothing is lost', async () => {
    await direct.query(
      'CREATE TABLE busy (id integer PRIMARY KEY, n integer); INSERT INTO busy SELECT g, g % 100 FROM generate_series(1, 100000) g',
    );
    const writers = await Promise.all(
      [0, 1].map(async () => {
        const writer = new pg.Client({ connectionString: upstream.url });
        await writer.connect();
        return writer;
      }),
    );
    let stop = false;
    const writing = writers.map(async (writer, w) => {
      for (let i = 0; !stop; i++)
        await writer.query(
          `INSERT INTO busy VALUES (${1_000_000 * (w + 1) + i}, ${i % 100}); UPDATE busy SET n = n + 1 WHERE id = ${i * 7 + w}`,
        );
    });
    const query = 'SELECT n, count(*) AS c, sum(id) AS s FROM busy GROUP BY n';
    await create('busily', query);
    await same('busily', query).catch(() => undefined);
    await new Promise((resolve) => setTimeout(resolve, 300));
    stop = true;
    await Promise.all(writing);
    for (const writer of writers) await writer.end();
    await same('busily', query);
  });

  test('an engine that is killed while it fills one begins anew, and nothing is lost', async () => {
    await direct.query(
      'CREATE TABLE large (id integer PRIMARY KEY, n integer); INSERT INTO large SELECT g, g % 1000 FROM generate_series(1, 200000) g',
    );
    const writer = new pg.Client({ connectionString: upstream.url });
    await writer.connect();
    let stop = false;
    const writing = (async (): Promise<void> => {
      for (let i = 0; !stop; i++)
        await writer.query(`INSERT INTO large VALUES (${1_000_000 + i}, ${i % 1000}); DELETE FROM large WHERE id = ${i * 3}`);
    })();
    const query = 'SELECT n, count(*) AS c, sum(id) AS s FROM large GROUP BY n';
    await client.query('SET millrace.wait = off');
    await create('largest', query);
    await client.query('RESET millrace.wait');
    const mode = async (): Promise<unknown> =>
      (
        await direct.query(
          "SELECT i.mode FROM millrace.immediate i JOIN pgtrickle.pgt_stream_tables t ON t.pgt_id = i.relation_id WHERE t.pgt_name = 'largest'",
        )
      ).rows[0]?.mode;
    await expect.poll(mode, { timeout: 10_000, interval: 5 }).toBe('collect');
    for (const pid of millrace.enginePids()) process.kill(pid, 'SIGKILL');
    await expect.poll(mode, { timeout: 20_000 }).toBe('on');
    stop = true;
    await writing;
    await writer.end();
    await same('largest', query);
  });

  test('who may write to the table need not know of it', async () => {
    await direct.query(
      'CREATE TABLE open (id integer PRIMARY KEY, k integer); CREATE ROLE writer LOGIN; GRANT INSERT, UPDATE, DELETE, SELECT ON open TO writer',
    );
    await create('opened', 'SELECT k, count(*) AS n FROM open GROUP BY k');
    const writer = new pg.Client({ connectionString: upstream.url.replace(/\/\/[^:@]*/, '//writer') });
    await writer.connect();
    await writer.query(
      "SET search_path = ''; SET DateStyle = 'German, DMY'; INSERT INTO public.open VALUES (1, 1), (2, 1); UPDATE public.open SET k = 2 WHERE id = 1",
    );
    await same('opened', 'SELECT k, count(*) AS n FROM open GROUP BY k');
    await expect(writer.query('SELECT * FROM public.opened')).rejects.toMatchObject({ code: '42501' });
    await expect(writer.query('SELECT millrace.immediate_rebuild(1)')).rejects.toMatchObject({ code: '42501' });
    await writer.end();
  });

  test('what it cannot be is refused with the reason', async () => {
    await direct.query(
      'CREATE TABLE plain (id integer PRIMARY KEY, at timestamptz); CREATE TABLE parts (id integer PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE part_of_it PARTITION OF parts DEFAULT',
    );
    await client.query("SELECT pgtrickle.create_stream_table('base_st', 'SELECT id FROM plain')");
    const refusals: [string, RegExp][] = [
      ['SELECT id FROM part_of_it', /is part of public.parts/],
      ["SELECT id FROM plain WHERE at > now() - interval '1 hour'", /changes with the time/],
      ['SELECT id, random() AS r FROM plain', /volatile/],
      ['SELECT id FROM base_st', /kept by Millrace itself/],
    ];
    for (const [query, reason] of refusals) {
      const failed = await create('refused', query).then(
        () => null,
        (error: pg.DatabaseError) => error,
      );
      expect({ query, code: failed?.code, message: failed?.message }).toEqual({
        query,
        code: '0A000',
        message: expect.stringMatching(reason),
      });
    }
  });

  test('one over another is kept by the same statement; what goes wrong in it names it, and pauses are made up for', async () => {
    await direct.query(
      'CREATE TABLE visit (id integer PRIMARY KEY, page integer, ms integer); INSERT INTO visit SELECT g, g % 4, g FROM generate_series(1, 40) g',
    );
    const pages = 'SELECT page, sum(ms) AS ms, count(*) AS n FROM visit GROUP BY page';
    const speeds = 'SELECT page, 1000 / ms AS speed FROM pages';
    const fastest = 'SELECT max(speed) AS speed FROM speeds';
    await create('pages', pages);
    await create('speeds', speeds);
    await create('fastest', fastest);
    const all = async (who = direct): Promise<void> => {
      for (const [name, query] of Object.entries({ pages, speeds, fastest })) await same(name, query, who);
    };
    await direct.query('BEGIN; UPDATE visit SET ms = ms + 3 WHERE page = 1; DELETE FROM visit WHERE id = 8');
    await all();
    await direct.query('COMMIT');
    await direct.query('TRUNCATE visit; INSERT INTO visit VALUES (1, 1, 10), (2, 2, 20)');
    await all();
    await expect(direct.query('INSERT INTO visit VALUES (3, 2, -20)')).rejects.toMatchObject({
      code: '22012',
      message: 'stream table public.speeds cannot take this change: division by zero',
    });
    await all();
    await client.query("SELECT pgtrickle.pause_stream_table('pages')");
    await direct.query('INSERT INTO visit VALUES (3, 3, 5)');
    expect((await direct.query('SELECT * FROM pages WHERE page = 3')).rows).toEqual([]);
    await client.query("SELECT pgtrickle.resume_stream_table('pages')");
    const shown = async (): Promise<unknown> => (await direct.query('SELECT speed::int FROM fastest')).rows;
    await expect.poll(shown, { timeout: 20_000 }).toEqual([{ speed: 200 }]);
    await all();
    // Asked for while somebody writes: it waits, and tries again.
    const writer = new pg.Client({ connectionString: upstream.url });
    await writer.connect();
    await writer.query('BEGIN; INSERT INTO visit VALUES (4, 4, 2)');
    const asked = client.query("SELECT pgtrickle.refresh_stream_table('pages')");
    await direct.query('SELECT pg_sleep(0.3)');
    await writer.query('COMMIT');
    await asked;
    await writer.end();
    await all();
    await expect(client.query("SELECT pgtrickle.drop_stream_table('pages')")).rejects.toMatchObject({ code: '22023' });
    await client.query("SELECT pgtrickle.drop_stream_table('pages', cascade => true)");
    await direct.query('DELETE FROM visit');
    const triggers = "SELECT count(*)::int AS n FROM pg_trigger WHERE tgrelid = 'visit'::regclass";
    await expect.poll(async () => (await direct.query(triggers)).rows, { timeout: 20_000 }).toEqual([{ n: 0 }]);
  });

  test('others read it like a table: what its writers commit late is neither lost nor taken twice', async () => {
    await direct.query(
      'CREATE TABLE sale (id integer PRIMARY KEY, shop integer, n integer); INSERT INTO sale SELECT g, g % 5, g FROM generate_series(1, 50) g',
    );
    await create('by_shop', "SELECT shop, sum(n) AS total, count(*) AS sales, 's.n' || max(n) AS label FROM sale GROUP BY shop");
    const queries = {
      over_immediate: 'SELECT sales % 3 AS r, sum(total) AS t, max(label) AS l FROM by_shop GROUP BY sales % 3',
      diamond: 'SELECT s.id, b.total FROM sale s JOIN by_shop b ON b.shop = s.shop WHERE b.total > 100',
    };
    for (const [name, query] of Object.entries(queries)) {
      await client.query(`SELECT pgtrickle.create_stream_table('${name}', $q$${query}$q$, refresh_mode => 'DIFFERENTIAL')`);
    }
    expect(
      (
        await direct.query(
          "SELECT source_stable_name, source_type FROM pgtrickle.pgt_dependencies d JOIN pgtrickle.pgt_stream_tables t USING (pgt_id) WHERE t.pgt_name = 'over_immediate'",
        )
      ).rows,
    ).toEqual([{ source_stable_name: 'public.by_shop', source_type: 'STREAM_TABLE' }]);
    const other = new pg.Client({ connectionString: upstream.url });
    await other.connect();
    for (let i = 0; i < 30; i++) {
      await other.query(`BEGIN; INSERT INTO sale VALUES (${1000 + i}, ${i % 7}, ${i})`);
      const waiting = direct.query(`UPDATE sale SET n = n + 1 WHERE id = ${i}; DELETE FROM sale WHERE id = ${i + 20}`);
      await other.query(i % 4 === 0 ? 'ROLLBACK' : 'SAVEPOINT a; UPDATE sale SET shop = shop + 1 WHERE id % 10 = 1; COMMIT');
      await waiting;
    }
    await other.end();
    for (const [name, query] of Object.entries(queries)) {
      await expect.poll(() => sortedRows(direct, `SELECT * FROM ${name}`), { timeout: 15_000 }).toEqual(await sortedRows(direct, query));
    }
    expect(
      (
        await direct.query(
          "SELECT action FROM pgtrickle.pgt_refresh_history h JOIN pgtrickle.pgt_stream_tables t USING (pgt_id) WHERE t.pgt_name = 'diamond' AND action = 'DIFFERENTIAL' LIMIT 1",
        )
      ).rows,
    ).toHaveLength(1);
    await expect(client.query("SELECT pgtrickle.drop_stream_table('by_shop')")).rejects.toThrow('has dependent stream tables');
    await direct.query('ALTER TABLE sale DROP COLUMN n');
    await expect
      .poll(() => direct.query('SELECT * FROM over_immediate').catch(({ message }) => message), { timeout: 10_000 })
      .toContain('was dropped');
    await client.query("SELECT pgtrickle.drop_stream_table('by_shop', true)");
  });
});
