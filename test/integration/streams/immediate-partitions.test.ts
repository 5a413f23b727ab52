/** Stream tables in IMMEDIATE mode over partitioned tables: right in every transaction, whichever table of the tree a statement names. */
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import { describe, expect, test } from 'vitest';
import type { TestPostgres } from '../../support/postgres.ts';
import { sortedRows } from '../../support/streams.ts';
import { withDirect } from './with-direct.ts';

const queries = {
  sums: 'SELECT k, count(*) AS n, sum(v) AS v, max(id) AS last FROM part GROUP BY k',
  joined: 'SELECT p.id, p.v, o.name FROM part p JOIN owner o ON o.id = p.k WHERE p.v > 2',
  bag: 'SELECT v, k FROM part',
  outer_joined: 'SELECT o.id, count(p.id) AS n FROM owner o LEFT JOIN part p ON p.k = o.id GROUP BY o.id',
};

describe.each([15, 18] as const)('on PostgreSQL %i', (version) => {
  let upstream: TestPostgres;
  let client: pg.Client;
  let direct: pg.Client;

  withDirect(version, async (stage) => {
    ({ upstream, client, direct } = stage);
    // Partitions whose columns stand otherwise, one that has partitions itself, and a default one.
    await direct.query(`
      CREATE TABLE owner (id integer PRIMARY KEY, name text);
      INSERT INTO owner SELECT g, 'o' || g FROM generate_series(0, 5) g;
      CREATE TABLE part (gone text, id integer, k integer REFERENCES owner ON DELETE CASCADE ON UPDATE CASCADE, v integer, PRIMARY KEY (id)) PARTITION BY RANGE (id);
      ALTER TABLE part DROP COLUMN gone;
      CREATE TABLE part_a PARTITION OF part FOR VALUES FROM (0) TO (100);
      CREATE TABLE part_b (v integer, other text, id integer NOT NULL, k integer); ALTER TABLE part_b DROP COLUMN other;
      ALTER TABLE part ATTACH PARTITION part_b FOR VALUES FROM (100) TO (200);
      CREATE TABLE part_c PARTITION OF part FOR VALUES FROM (200) TO (300) PARTITION BY LIST (id);
      CREATE TABLE part_c1 PARTITION OF part_c DEFAULT;
      CREATE TABLE part_d PARTITION OF part DEFAULT;
      INSERT INTO part SELECT g * 7, g % 5, g % 9 FROM generate_series(1, 50) g`);
    for (const [name, query] of Object.entries(queries))
      await client.query(`SELECT pgtrickle.create_stream_table('${name}', $q$${query}$q$, NULL, 'IMMEDIATE')`);
  });

  const check = async (after: string, who = direct): Promise<void> => {
    for (const [name, query] of Object.entries(queries))
      expect({ after, name, rows: await sortedRows(who, `SELECT * FROM ${name}`) }).toEqual({
        after,
        name,
        rows: await sortedRows(who, query),
      });
  };

  test('statements of every kind, whichever table they name', async () => {
    await check('the start');
    const statements = [
      'INSERT INTO part VALUES (1, 1, 5), (101, 2, 6), (201, 3, 7), (901, 4, 8)',
      'INSERT INTO part_b (id, k, v) VALUES (102, 1, 9)',
      'INSERT INTO part_c VALUES (202, 1, 9)',
      'INSERT INTO part_c1 VALUES (204, 1, 9)',
      'UPDATE part SET v = v + 1 WHERE k = 1',
      'UPDATE part_b SET v = v + 1',
      'UPDATE part SET id = id + 1500 WHERE id IN (1, 101)',
      'UPDATE part_c SET k = 2 WHERE id = 202',
      'DELETE FROM part_c1 WHERE v = 9',
      'DELETE FROM part WHERE v = 3',
      'INSERT INTO part VALUES (102, 3, 1), (103, 3, 1) ON CONFLICT (id) DO UPDATE SET v = part.v + 100',
      'INSERT INTO part_b (id, k, v) VALUES (104, 3, 1), (103, 3, 1) ON CONFLICT (id) DO UPDATE SET v = 77',
      'MERGE INTO part p USING (VALUES (5, 1), (104, 2), (777, 3)) x(id, k) ON x.id = p.id WHEN MATCHED THEN UPDATE SET id = p.id + 500 WHEN NOT MATCHED THEN INSERT VALUES (x.id, x.k, 4)',
      'DELETE FROM owner WHERE id = 2',
      'UPDATE owner SET id = 20 WHERE id = 3',
      'WITH x AS (DELETE FROM part_a WHERE k = 1 RETURNING k, v) INSERT INTO part SELECT 5000 + row_number() OVER (), k, v FROM x',
      'TRUNCATE part_b',
      'INSERT INTO part SELECT 100 + g, g % 2, g FROM generate_series(1, 60) g',
      'TRUNCATE part_c',
      'TRUNCATE part',
      'INSERT INTO part SELECT g * 3, g % 2, g % 7 FROM generate_series(1, 200) g',
    ];
    for (const statement of statements) {
      await direct.query(`BEGIN; ${statement}`);
      await check(statement);
      await direct.query('ROLLBACK');
      await check(`${statement}, rolled back`);
      await direct.query(statement);
      await check(statement);
    }
  });

  test('partitions come, go, are made and dropped, with what is in them', async () => {
    await direct.query('CREATE TABLE owner_of_none (id integer)');
    const commands = [
      'CREATE TABLE part_e PARTITION OF part FOR VALUES FROM (1000) TO (1100)',
      'INSERT INTO part_e VALUES (1001, 1, 5), (1002, 0, 6)',
      'ALTER TABLE part DETACH PARTITION part_e',
      'INSERT INTO part_e VALUES (1003, 1, 5)',
      'UPDATE part_e SET v = 50',
      'ALTER TABLE part ATTACH PARTITION part_e FOR VALUES FROM (1000) TO (1100)',
      'UPDATE part_e SET v = 51',
      'DELETE FROM part WHERE id = 1003',
      'ALTER TABLE part_e RENAME TO part_f',
      'INSERT INTO part_f VALUES (1004, 1, 5)',
      'CREATE TABLE part_c2 PARTITION OF part_c FOR VALUES IN (299)',
      'INSERT INTO part_c2 VALUES (299, 1, 6)',
      'ALTER TABLE part RENAME COLUMN v TO w; ALTER TABLE part RENAME COLUMN w TO v',
      'ALTER TABLE part DETACH PARTITION part_c',
      'ALTER TABLE part ATTACH PARTITION part_c FOR VALUES FROM (200) TO (300)',
      'UPDATE part_c2 SET v = 8',
      'DROP TABLE part_f',
      'CREATE SCHEMA later CREATE TABLE x (id integer NOT NULL, k integer, v integer)',
      'INSERT INTO later.x VALUES (2001, 1, 1)',
      'ALTER TABLE part ATTACH PARTITION later.x FOR VALUES FROM (2000) TO (2100)',
      'INSERT INTO later.x VALUES (2002, 1, 1)',
      'DROP SCHEMA later CASCADE',
    ];
    for (const command of commands) {
      if (!command.includes(';')) {
        await direct.query(`BEGIN; ${command}`);
        await check(command);
        await direct.query('ROLLBACK');
        await check(`${command}, rolled back`);
      }
      await direct.query(command);
      await check(command);
    }
  });

  test('where the event trigger was off, it is made good within seconds, and partitions have their triggers again', async () => {
    await direct.query('ALTER EVENT TRIGGER millrace_partitions DISABLE');
    await direct.query('CREATE TABLE part_g (id integer NOT NULL, k integer, v integer); INSERT INTO part_g VALUES (3001, 1, 1)');
    await direct.query('ALTER TABLE part ATTACH PARTITION part_g FOR VALUES FROM (3000) TO (3100)');
    await expect
      .poll(async () => JSON.stringify(await sortedRows(direct, 'SELECT * FROM bag')), { timeout: 15_000 })
      .toBe(JSON.stringify(await sortedRows(direct, queries.bag)));
    await expect
      .poll(
        async () =>
          (await direct.query("SELECT count(*)::int AS n FROM pg_trigger WHERE tgrelid = 'part_g'::regclass AND tgname LIKE 'millrace%'"))
            .rows[0]?.n,
        { timeout: 15_000 },
      )
      .toBe(32);
    await direct.query('INSERT INTO part_g VALUES (3002, 1, 1)');
    await check('a partition that came unseen');
    await direct.query('ALTER EVENT TRIGGER millrace_partitions ENABLE ALWAYS');
  });

  test('what cannot be followed is refused; a table that becomes a partition suspends', async () => {
    await direct.query('CREATE UNLOGGED TABLE part_u (id integer NOT NULL, k integer, v integer)');
    await expect(direct.query('ALTER TABLE part ATTACH PARTITION part_u FOR VALUES FROM (4000) TO (4100)')).rejects.toMatchObject({
      code: '0A000',
      message: expect.stringContaining('its partition public.part_u is unlogged'),
    });
    await check('a refused partition');
    const leaf = client.query("SELECT pgtrickle.create_stream_table('leaf', 'SELECT id FROM part_a', NULL, 'IMMEDIATE')");
    await expect(leaf).rejects.toMatchObject({ code: '0A000', message: expect.stringContaining('is part of public.part') });
    await direct.query('CREATE TABLE alone (id integer NOT NULL, k integer, v integer); INSERT INTO alone VALUES (6001, 1, 1)');
    await client.query("SELECT pgtrickle.create_stream_table('over_alone', 'SELECT id FROM alone', NULL, 'IMMEDIATE')");
    await direct.query('ALTER TABLE part ATTACH PARTITION alone FOR VALUES FROM (6000) TO (6100)');
    await check('one that others read');
    await expect
      .poll(
        () =>
          direct.query('SELECT * FROM over_alone').then(
            () => 'read',
            (error: Error) => error.message,
          ),
        { timeout: 15_000 },
      )
      .toMatch(/part of/);
  });

  test('two writers and one who attaches take turns', async () => {
    await direct.query('CREATE TABLE part_h (id integer NOT NULL, k integer, v integer); INSERT INTO part_h VALUES (5001, 1, 1)');
    const writer = new pg.Client({ connectionString: upstream.url });
    await writer.connect();
    await writer.query('BEGIN; INSERT INTO part VALUES (9001, 1, 3)');
    const attaching = direct.query('ALTER TABLE part ATTACH PARTITION part_h FOR VALUES FROM (5000) TO (5100)').then(
      () => 'done',
      (error: pg.DatabaseError) => error.code,
    );
    await sleep(300);
    await writer.query('INSERT INTO part VALUES (9002, 1, 3); COMMIT');
    expect(await attaching).toBe('done');
    await check('both');
    await writer.end();
  });

  test('dropped, nothing of it is left', async () => {
    for (const name of Object.keys(queries)) await client.query(`SELECT pgtrickle.drop_stream_table('${name}')`);
    await client.query("SELECT pgtrickle.drop_stream_table('over_alone')");
    const left = async (): Promise<unknown> =>
      (
        await direct.query(
          "SELECT (SELECT count(*)::int FROM pg_trigger WHERE tgname LIKE 'millrace_immediate%') AS triggers, (SELECT count(*)::int FROM pg_event_trigger WHERE evtname LIKE 'millrace%') AS events",
        )
      ).rows[0];
    await expect.poll(left, { timeout: 15_000 }).toEqual({ triggers: 0, events: 0 });
  });

  test('a partition that is detached concurrently goes with its rows', async () => {
    await direct.query(`
      CREATE TABLE lone (id integer PRIMARY KEY, k integer) PARTITION BY RANGE (id);
      CREATE TABLE lone_a PARTITION OF lone FOR VALUES FROM (0) TO (100);
      CREATE TABLE lone_b PARTITION OF lone FOR VALUES FROM (100) TO (200);
      INSERT INTO lone SELECT g, g % 3 FROM generate_series(1, 199) g`);
    const query = 'SELECT k, count(*) AS n, sum(id) AS s FROM lone GROUP BY k';
    await client.query(`SELECT pgtrickle.create_stream_table('lone_sums', $q$${query}$q$, NULL, 'IMMEDIATE')`);
    const same = async (): Promise<void> => {
      expect(await sortedRows(direct, 'SELECT * FROM lone_sums')).toEqual(await sortedRows(direct, query));
    };
    await direct.query('ALTER TABLE lone DETACH PARTITION lone_b CONCURRENTLY');
    await same();
    await direct.query('INSERT INTO lone VALUES (0, 1); UPDATE lone_b SET k = 7; DELETE FROM lone_a WHERE id = 5');
    await same();
    await direct.query('ALTER TABLE lone ATTACH PARTITION lone_b FOR VALUES FROM (100) TO (200); UPDATE lone_b SET k = 8 WHERE id < 150');
    await same();
    // Of another session: a transaction that was reading the table makes it wait half-way.
    const reader = new pg.Client({ connectionString: upstream.url });
    await reader.connect();
    await reader.query('BEGIN; SELECT count(*) FROM lone');
    const detached = direct.query('ALTER TABLE lone DETACH PARTITION lone_b CONCURRENTLY');
    await sleep(300);
    const writer = new pg.Client({ connectionString: upstream.url });
    await writer.connect();
    await writer.query('INSERT INTO lone_b VALUES (300, 9)').catch(() => undefined);
    await writer.query('UPDATE lone SET k = k + 1 WHERE id % 4 = 0');
    await reader.query('COMMIT');
    await detached;
    await same();
    await writer.query('UPDATE lone_b SET k = 10; UPDATE lone SET k = 11 WHERE id = 8');
    await same();
    await Promise.all([reader.end(), writer.end()]);
  });
});
