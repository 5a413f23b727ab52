/** What storages must hold and find: keys of any length, values that are equal but look different, several versions of a row in one epoch. */
import type pg from 'pg';
import { beforeEach, describe, expect, test } from 'vitest';
import { rebuildSql } from '../../../src/ivm/view-plan.ts';
import { LiveDatabase } from './live-database.ts';
import { versions, withServer } from './server.ts';

describe.each(versions)('storages on PostgreSQL %i', (version) => {
  let client: pg.Client;
  let database: LiveDatabase;

  withServer(version, (connected) => {
    client = connected;
  });
  beforeEach(async () => {
    database = new LiveDatabase(client);
    await database.reset();
  });

  /** One epoch for each text of statements, compared with the queries after each; then nothing is left to repair. */
  async function epochs(...statements: string[]): Promise<void> {
    for (const statement of statements) {
      await database.epoch(async () => {
        await client.query(statement);
      });
      await database.verify();
    }
    for (const view of database.views) {
      if (!view.exact) continue;
      let written = 0;
      for (const statement of rebuildSql(view.plan, view.id))
        if (!statement.startsWith('DO')) written += (await client.query(statement)).rowCount ?? 0;
      expect(written, view.query).toBe(0);
    }
  }

  const plan = (name: string) => database.views.find((view) => view.name === name)?.plan;
  const columns = (types: Record<string, string>) => Object.entries(types).map(([name, type]) => ({ name, type }));

  test('keys of 10,000 characters, NULL and short ones', async () => {
    await database.createTable('t', columns({ id: 'int', k: 'text', n: 'numeric', v: 'varchar(2000)', s: 'varchar(20)', x: 'int' }), [0]);
    await database.createView('ranked', 'SELECT id, k, rank() OVER (PARTITION BY k ORDER BY x) AS r FROM t');
    await database.createView('by_number', 'SELECT id, sum(x) OVER (PARTITION BY n, k) AS r FROM t', false);
    await database.createView('by_short', 'SELECT x, count(*) OVER (PARTITION BY s, x % 3) AS r FROM t');
    await database.createView('by_wide', 'SELECT x, count(*) OVER (PARTITION BY v) AS r FROM t');
    await database.createView('first', 'SELECT DISTINCT ON (k) k, x, id FROM t ORDER BY k, x, id');
    await database.createView('gathered', 'SELECT k, array_agg(x ORDER BY x, id) AS xs FROM t GROUP BY k');
    await database.createView('distinct', 'SELECT DISTINCT k FROM t');
    const short = ['ranked', 'by_number', 'by_short', 'by_wide', 'first'].map((name) => {
      const body = plan(name)?.body;
      return body?.kind === 'keyed' && body.short;
    });
    expect(short).toEqual([false, false, true, false, false]);
    const long = `(SELECT string_agg(md5((j * 7 + i % 3)::text), '') FROM generate_series(1, 313) j)`;
    const digits = `repeat('123456789', 2000 + i % 3)::numeric`;
    await epochs(
      `INSERT INTO millrace_data.s1 SELECT i, ${long}, ${digits}, left(${long}, 2000), 'k' || i % 4, i % 5 FROM generate_series(1, 30) i`,
      `INSERT INTO millrace_data.s1 SELECT 100 + i, NULL, NULL, NULL, NULL, i FROM generate_series(1, 5) i; INSERT INTO millrace_data.s1 VALUES (200, 'short', 1.0, '', '', 1)`,
      'UPDATE millrace_data.s1 SET c6 = c6 + 1 WHERE c1 % 2 = 0',
      'UPDATE millrace_data.s1 SET c2 = NULL, c3 = NULL, c4 = NULL WHERE c1 < 5',
      `UPDATE millrace_data.s1 SET c2 = c2 || 'x', c3 = c3 + 1, c5 = NULL WHERE c1 BETWEEN 5 AND 25`,
      'DELETE FROM millrace_data.s1 WHERE c1 % 3 = 0',
      'UPDATE millrace_data.s1 SET c6 = c6',
      'DELETE FROM millrace_data.s1',
    );
  });

  test('values that are equal but look different are different', async () => {
    await client.query(`CREATE COLLATION public.loose (provider = icu, locale = 'und-u-ks-level2', deterministic = false)`);
    await database.createTable('t', columns({ id: 'int', n: 'numeric', f: 'float8', s: 'text COLLATE public.loose', g: 'int' }), [0]);
    await database.createTable('d', columns({ g: 'int', name: 'text COLLATE public.loose', n: 'numeric' }), [0]);
    await database.createView('one', 'SELECT id, n, f, s FROM t WHERE g < 5');
    await database.createView('joined', 'SELECT t.n, t.f, d.name, d.n AS m FROM t JOIN d USING (g)');
    await database.createView('partitions', 'SELECT n, f, s, row_number() OVER (PARTITION BY g ORDER BY id) AS r FROM t');
    await database.createView('all', 'SELECT n, f, s, row_number() OVER (ORDER BY id) AS r FROM t');
    await database.createView('bag', 'SELECT n, f, s FROM t UNION ALL SELECT n, 0, name FROM d');
    await database.createView(
      'gathered',
      'SELECT g, array_agg(n ORDER BY id) AS ns, string_agg(s, $$|$$ ORDER BY id) AS ss FROM t GROUP BY g',
    );
    const kinds = database.views.map((view) => view.plan.body.kind);
    expect(kinds).toEqual(['rows', 'rows', 'keyed', 'whole', 'bag', 'groups']);
    await epochs(
      `INSERT INTO millrace_data.s1 SELECT i, 1.0, 0, 'abc', i % 3 FROM generate_series(1, 9) i; INSERT INTO millrace_data.s2 SELECT i, 'x', 1 FROM generate_series(0, 5) i`,
      'UPDATE millrace_data.s1 SET c2 = 1.00',
      `UPDATE millrace_data.s1 SET c3 = '-0' WHERE c1 < 5`,
      `UPDATE millrace_data.s1 SET c4 = 'ABC' WHERE c1 % 2 = 0; UPDATE millrace_data.s2 SET c2 = 'X', c3 = 1.000 WHERE c1 < 2`,
      `UPDATE millrace_data.s1 SET c2 = 'NaN', c3 = 'NaN', c4 = NULL WHERE c1 > 4`,
      'UPDATE millrace_data.s1 SET c2 = c2, c3 = c3',
      'UPDATE millrace_data.s1 SET c1 = c1 + 100',
    );
    await client.query('DROP COLLATION public.loose CASCADE');
  });

  test('rows of one relation: the last of several versions within an epoch', async () => {
    await database.createTable('t', columns({ id: 'numeric', x: 'int', j: 'json' }), [0]);
    await database.createView('v', 'SELECT x, j FROM t WHERE x > 0');
    await database.createView('over', 'SELECT sum(x) AS s, count(*) AS n FROM v');
    expect(plan('v')?.body.kind).toBe('rows');
    const table = 'millrace_data.s1';
    await epochs(
      `INSERT INTO ${table} SELECT i, i, '{}' FROM generate_series(1, 9) i`,
      // Changed twice, and back again; out of sight and back; into sight.
      `UPDATE ${table} SET c2 = 50 WHERE c1 = 1; UPDATE ${table} SET c2 = 60 WHERE c1 = 1;
       UPDATE ${table} SET c2 = 50 WHERE c1 = 2; UPDATE ${table} SET c2 = 2 WHERE c1 = 2;
       UPDATE ${table} SET c2 = -3 WHERE c1 = 3; UPDATE ${table} SET c2 = 33 WHERE c1 = 3;
       UPDATE ${table} SET c2 = -4 WHERE c1 = 4; UPDATE ${table} SET c2 = -5 WHERE c1 = 4`,
      `UPDATE ${table} SET c2 = 4 WHERE c1 = 4; UPDATE ${table} SET c2 = 5 WHERE c1 = 4; UPDATE ${table} SET c2 = 4 WHERE c1 = 4`,
      // Came and went; went and came, the same or another; went for good after changes.
      `INSERT INTO ${table} VALUES (20, 1, '[]'), (21, 1, '[]'); UPDATE ${table} SET c2 = 2 WHERE c1 = 21; DELETE FROM ${table} WHERE c1 IN (20, 21)`,
      `DELETE FROM ${table} WHERE c1 IN (5, 6); INSERT INTO ${table} VALUES (5, 5, '{}'), (6, 66, '{}')`,
      `UPDATE ${table} SET c2 = 70 WHERE c1 = 7; UPDATE ${table} SET c2 = 71 WHERE c1 = 7; DELETE FROM ${table} WHERE c1 = 7`,
      `UPDATE ${table} SET c1 = 1.00 WHERE c1 = 1; UPDATE ${table} SET c3 = '{ }' WHERE c1 = 2; UPDATE ${table} SET c1 = c1 + 100 WHERE c1 > 5`,
      `DELETE FROM ${table}; INSERT INTO ${table} SELECT i, i, '{}' FROM generate_series(5, 15) i; UPDATE ${table} SET c2 = -c2; UPDATE ${table} SET c2 = -c2 WHERE c1 > 7`,
    );
  });

  test('partitions whose rows change places know them by their new places', async () => {
    await database.createTable('t', columns({ id: 'int', g: 'int', x: 'int' }), [0]);
    await database.createView('v', 'SELECT g, x, count(*) OVER (PARTITION BY g) AS n FROM t');
    await epochs(
      'INSERT INTO millrace_data.s1 VALUES (1, 1, 1), (2, 2, 1), (3, 1, 5), (4, 2, 5)',
      'UPDATE millrace_data.s1 SET c2 = 3 - c2',
      'DELETE FROM millrace_data.s1 WHERE c1 = 1',
      'UPDATE millrace_data.s1 SET c2 = 1',
    );
  });

  test('a view that another reads finds its rows by their numbers', async () => {
    await database.createTable('t', columns({ id: 'int', g: 'int', x: 'int' }), [0]);
    await database.createView('groups', 'SELECT g, array_agg(x ORDER BY id) AS xs FROM t GROUP BY g');
    await database.createView('over', 'SELECT xs FROM groups WHERE g > 0');
    const indexes = await client.query(
      `SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid WHERE i.indrelid = 'millrace_data.s2'::regclass ORDER BY 1`,
    );
    expect(indexes.rows.map((row) => String(row.relname))).toContain('s2_rid');
    await epochs(
      'INSERT INTO millrace_data.s1 SELECT i, i % 4, i FROM generate_series(1, 20) i',
      'UPDATE millrace_data.s1 SET c2 = 0 WHERE c2 = 1; UPDATE millrace_data.s1 SET c3 = 0 WHERE c1 > 18',
      'DELETE FROM millrace_data.s1',
    );
  });

  test('most rows of a large storage change, some, none; duplicates and NULLs among them', async () => {
    await database.createTable('t', columns({ id: 'int', g: 'int', x: 'int' }), [0]);
    await database.createView('ranked', 'SELECT id, g, row_number() OVER (PARTITION BY g ORDER BY x, id) AS r FROM t');
    await database.createView('bounds', 'SELECT g, x, max(x) OVER (PARTITION BY g) AS most FROM t');
    await database.createView('overall', 'SELECT g, x % 7 AS x, max(x) OVER () AS most FROM t');
    await database.createView('bag', 'SELECT g, x FROM t UNION ALL SELECT x % 5, g FROM t');
    await epochs(
      'INSERT INTO millrace_data.s1 SELECT i, nullif(i % 3, 0), i % 1000 FROM generate_series(1, 20000) i',
      'INSERT INTO millrace_data.s1 VALUES (-1, 1, -1), (-2, NULL, -1), (-3, NULL, 5000)',
      'UPDATE millrace_data.s1 SET c3 = -c3',
      'UPDATE millrace_data.s1 SET c3 = c3',
      'DELETE FROM millrace_data.s1 WHERE c2 IS NULL',
      'UPDATE millrace_data.s1 SET c2 = 2 WHERE c1 = 7',
    );
  });
});
