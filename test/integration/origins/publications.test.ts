/** Tables that go and come back, and publications that show less or more of them: noticed, said, and mended by RESYNC. */
import type pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type ExtendedClient, startEngine, type TestEngine, texts } from '../../support/engine.ts';
import { type OriginPair, startOriginPair } from '../../support/origin-pair.ts';
import type { TestPostgres } from '../../support/postgres.ts';

describe.each([
  ['that tells of its DDL', 'postgres'],
  ['that does not tell', 'reader'],
] as const)('an origin %s', (_, role) => {
  const tells = role === 'postgres';
  let pair: OriginPair;
  let upstream: TestPostgres;
  let admin: pg.Client;
  let extended: ExtendedClient;
  let engine: TestEngine;

  beforeAll(async () => {
    pair = await startOriginPair(
      `CREATE ROLE reader LOGIN REPLICATION IN ROLE pg_read_all_data;
      CREATE TABLE t (id integer PRIMARY KEY, a text); INSERT INTO t VALUES (1, 'one'), (2, 'two');
      CREATE TABLE other (id integer PRIMARY KEY); INSERT INTO other VALUES (1);
      CREATE TABLE cols (id integer PRIMARY KEY, a integer, b integer); INSERT INTO cols VALUES (1, 1, 1);
      CREATE TABLE filtered (id integer PRIMARY KEY, a integer); INSERT INTO filtered SELECT g, g FROM generate_series(1, 5) g;
      CREATE TABLE parent (id integer PRIMARY KEY); CREATE TABLE child (PRIMARY KEY (id)) INHERITS (parent); INSERT INTO parent VALUES (1); INSERT INTO child VALUES (2);
      CREATE TABLE parts (id integer PRIMARY KEY, a text) PARTITION BY RANGE (id);
      CREATE TABLE part0 PARTITION OF parts FOR VALUES FROM (0) TO (10); CREATE TABLE part1 PARTITION OF parts FOR VALUES FROM (10) TO (20);
      INSERT INTO parts VALUES (1, 'x'), (11, 'y');
      CREATE TABLE far (id integer PRIMARY KEY, a integer, big text); ALTER TABLE far ALTER big SET STORAGE EXTERNAL; INSERT INTO far SELECT g, g, repeat('x', 3000) FROM generate_series(1, 4) g;
      CREATE TABLE near (LIKE far INCLUDING ALL); INSERT INTO near SELECT * FROM far;
      CREATE TABLE behind (id integer PRIMARY KEY, a text); CREATE TABLE loose (id integer, a text); ALTER TABLE loose REPLICA IDENTITY FULL;
      INSERT INTO behind VALUES (1, 'one'); INSERT INTO loose VALUES (1, 'one'); CREATE PUBLICATION g FOR TABLE behind, loose;
      CREATE SCHEMA app; CREATE SCHEMA away; CREATE TABLE app.moving (id integer PRIMARY KEY);
      CREATE PUBLICATION p FOR TABLE t, other, cols, filtered WHERE (id > 2), parent, child, parts WITH (publish_via_partition_root = true);
      CREATE PUBLICATION q FOR TABLES IN SCHEMA app; CREATE PUBLICATION f FOR TABLE far WHERE (id > 2), near WHERE (id > 2)`,
      role,
    );
    ({ upstream, admin, extended } = pair);
    engine = startEngine(upstream.address);
    await extended.run(
      "CREATE SOURCE s FROM POSTGRES CONNECTION c (PUBLICATION 'p'); CREATE SOURCE s2 FROM POSTGRES CONNECTION c (PUBLICATION 'q'); CREATE SCHEMA v1",
    );
    for (const name of ['t', 'other', 'cols', 'filtered', 'parent', 'child', 'parts'])
      await extended.run(`CREATE TABLE v1.${name} FROM SOURCE s (REFERENCE ${name})`);
    await extended.run(`CREATE TABLE v1.moving FROM SOURCE s2 (REFERENCE app.moving); CREATE TABLE v1.cols_a FROM SOURCE s (REFERENCE cols) WITH (EXCLUDE COLUMNS (b));
      CREATE MATERIALIZED VIEW v1.names AS SELECT a, count(*) AS n FROM v1.t GROUP BY a`);
  }, 120_000);
  afterAll(async () => {
    await pair?.stop(engine);
  });

  const rows = (sql: string): Promise<string[]> => texts(extended.client, sql).then((found) => found.map((row) => row.join('|')));
  const shows = (sql: string, wanted: readonly string[]): Promise<void> =>
    expect.poll(() => rows(sql).catch((error: Error) => [error.message]), { timeout: 15_000 }).toEqual(wanted);
  const hintOf = (sql: string): Promise<string | undefined> =>
    extended.client.query(sql).then(
      () => undefined,
      (error: pg.DatabaseError) => error.hint,
    );
  const stated = (name: string): Promise<string[]> =>
    rows(`SELECT status, error FROM mz_internal.mz_source_statuses WHERE type = 'table' AND name = '${name}'`);

  test('dropped and made again at once: RESYNC takes the new one; while it is away the others go on, also through a RESYNC', async () => {
    await admin.query('DROP TABLE t; CREATE TABLE t (id integer PRIMARY KEY, a integer); INSERT INTO t VALUES (7, 7)');
    await shows('SELECT * FROM v1.t', ['source table schema has been altered: table public.t was dropped']);
    expect(await stated('t')).toEqual(['ceased|source table schema has been altered: table public.t was dropped']);
    expect(await hintOf('SELECT * FROM v1.t')).toBe(
      'When public.t has it again: ALTER SOURCE public.s RESYNC; else: DROP TABLE v1.t CASCADE;',
    );
    await extended.run('ALTER SOURCE s RESYNC');
    await shows('SELECT * FROM v1.t', ['source table schema has been altered: table public.t was dropped']);
    await admin.query('ALTER PUBLICATION p ADD TABLE t; INSERT INTO other VALUES (2)');
    await shows('SELECT * FROM v1.other ORDER BY 1', ['1', '2']);
    await extended.run('ALTER SOURCE s RESYNC');
    // Another type than it had: not what the storage was made for.
    await shows('SELECT * FROM v1.t', ['source table schema has been altered: table public.t was dropped']);
    await admin.query(
      "DROP TABLE t; CREATE TABLE t (id integer PRIMARY KEY, a text); INSERT INTO t VALUES (7, 'seven'); ALTER PUBLICATION p ADD TABLE t",
    );
    await extended.run('ALTER SOURCE s RESYNC');
    await shows('SELECT * FROM v1.t', ['7|seven']);
    await shows('SELECT * FROM v1.names', ['seven|1']);
    await admin.query("INSERT INTO t VALUES (8, 'eight'); DELETE FROM t WHERE id = 7; INSERT INTO other VALUES (3)");
    await shows('SELECT * FROM v1.t', ['8|eight']);
    await shows('SELECT * FROM v1.names', ['eight|1']);
    await shows('SELECT * FROM v1.other ORDER BY 1', ['1', '2', '3']);
  });

  test('with AUTO RESYNC nobody has to ask', async () => {
    await extended.run('ALTER SOURCE s SET (AUTO RESYNC)');
    await admin.query("DROP TABLE t; CREATE TABLE t (id integer PRIMARY KEY, a text); INSERT INTO t VALUES (9, 'nine')");
    await shows('SELECT * FROM v1.t', ['source table schema has been altered: table public.t was dropped']);
    await admin.query('ALTER PUBLICATION p ADD TABLE t');
    await shows('SELECT * FROM v1.t', ['9|nine']);
    await extended.run('ALTER SOURCE s SET (AUTO RESYNC = false)');
  });

  test('a column list that leaves a column out ends the versions that show it; once it is back, RESYNC mends them', async () => {
    await admin.query(`ALTER PUBLICATION p DROP TABLE cols; ALTER PUBLICATION p ADD TABLE cols (id, a); INSERT INTO cols VALUES (2, 2, 2)`);
    // Both are true of it.
    await expect
      .poll(() => rows('SELECT * FROM v1.cols').catch((error: Error) => error.message), { timeout: 15_000 })
      .toMatch(/column "b" of public.cols is no longer published|public.cols is no longer in publication "p"/);
    await extended.run('ALTER SOURCE s RESYNC');
    await shows('SELECT * FROM v1.cols_a ORDER BY id', ['1|1', '2|2']);
    await admin.query('INSERT INTO cols VALUES (3, 3, 3)');
    await shows('SELECT * FROM v1.cols_a ORDER BY id', ['1|1', '2|2', '3|3']);
    await admin.query(
      'ALTER PUBLICATION p SET TABLE t, other, cols, filtered WHERE (id > 2), parent, child, parts; INSERT INTO cols VALUES (4, 4, 4)',
    );
    await shows('SELECT * FROM v1.cols_a ORDER BY id', ['1|1', '2|2', '3|3', '4|4']);
    await extended.run('ALTER SOURCE s RESYNC');
    await shows('SELECT * FROM v1.cols ORDER BY id', ['1|1|1', '2|2|2', '3|3|3', '4|4|4']);
    await admin.query(
      'ALTER PUBLICATION p SET TABLE t, other, cols (id, a), filtered WHERE (id > 2), parent, child, parts; INSERT INTO cols VALUES (5, 5, 5)',
    );
    await shows('SELECT * FROM v1.cols', ['source table schema has been altered: column "b" of public.cols is no longer published']);
    await shows('SELECT count(*) FROM v1.cols_a', ['5']);
  });

  test('a row filter holds for the copy, too; when it changes, rows that it let through were shown as they had been then, and for good', async () => {
    await shows('SELECT id FROM v1.filtered ORDER BY id', ['3', '4', '5']);
    await admin.query('UPDATE filtered SET id = -3 WHERE id = 3; UPDATE filtered SET id = 10 WHERE id = 1');
    await shows('SELECT id FROM v1.filtered ORDER BY id', ['4', '5', '10']);
    await admin.query(
      'ALTER PUBLICATION p SET TABLE t, other, cols, filtered WHERE (id > 4), parent, child, parts; UPDATE filtered SET a = 0; INSERT INTO filtered VALUES (3, 3), (21, 21)',
    );
    await shows('SELECT id FROM v1.filtered', ['source table public.filtered has another row filter in publication "p"']);
    await extended.run('CREATE TABLE v1.filtered_new FROM SOURCE s (REFERENCE filtered)');
    await shows('SELECT id, a FROM v1.filtered_new ORDER BY id', ['5|0', '10|0', '21|21']);
    await extended.run('ALTER SOURCE s RESYNC');
    await shows('SELECT id, a FROM v1.filtered ORDER BY id', ['5|0', '10|0', '21|21']);
    // The same filter, by another name of the column, or said again.
    await admin.query('ALTER TABLE filtered RENAME id TO number; INSERT INTO filtered VALUES (22, 22)');
    await shows('SELECT id FROM v1.filtered ORDER BY id', ['5', '10', '21', '22']);
    await admin.query(
      'ALTER PUBLICATION p SET TABLE t, other, cols, filtered WHERE ((number) > 4), parent, child, parts; INSERT INTO filtered VALUES (23, 23)',
    );
    await shows('SELECT id FROM v1.filtered ORDER BY id', ['5', '10', '21', '22', '23']);
    await admin.query('ALTER TABLE filtered RENAME number TO id');
  });

  test('a publication that leaves out deletions for a while; one that does from the beginning is what was asked for', async () => {
    await admin.query(
      'CREATE TABLE log (id integer PRIMARY KEY, a text); INSERT INTO log VALUES (1, $$one$$), (2, $$two$$); CREATE PUBLICATION o FOR TABLE log',
    );
    await extended.run(`CREATE SOURCE s6 FROM POSTGRES CONNECTION c (PUBLICATION 'o'); CREATE TABLE v1.log FROM SOURCE s6 (REFERENCE log)`);
    await shows('SELECT * FROM v1.log ORDER BY id', ['1|one', '2|two']);
    const left = "ALTER PUBLICATION o SET (publish = 'insert, update')";
    const whole = "ALTER PUBLICATION o SET (publish = 'insert, update, delete, truncate')";
    await admin.query(`${left}; DELETE FROM log WHERE id = 1`);
    await shows('SELECT * FROM v1.log', ['source table public.log is published with other operations by publication "o": insert, update']);
    await admin.query(whole);
    await extended.run('ALTER SOURCE s6 RESYNC');
    await shows('SELECT * FROM v1.log', ['2|two']);
    if (tells) {
      await admin.query(`${left}; DELETE FROM log; ${whole}`);
      await shows('SELECT * FROM v1.log', [
        'source table public.log is published with other operations by publication "o": insert, update',
      ]);
    }
    await admin.query("INSERT INTO log VALUES (3, 'three'); ALTER PUBLICATION o SET (publish = 'insert')");
    await extended.run('ALTER SOURCE s6 RESYNC');
    await extended.run('CREATE TABLE v1.log_new FROM SOURCE s6 (REFERENCE log)');
    await admin.query("DELETE FROM log; INSERT INTO log VALUES (4, 'four')");
    for (const name of ['log', 'log_new']) await shows(`SELECT id FROM v1.${name} WHERE id > 2 ORDER BY id`, ['3', '4']);
  });

  test('a row that an update brings into the filter without its large values: what shows them says so, and RESYNC brings them', async () => {
    await extended.run(`CREATE SOURCE s3 FROM POSTGRES CONNECTION c (PUBLICATION 'f'); CREATE TABLE v1.far FROM SOURCE s3 (REFERENCE far);
      CREATE TABLE v1.far_a FROM SOURCE s3 (REFERENCE far) WITH (EXCLUDE COLUMNS (big)); CREATE MATERIALIZED VIEW v1.far_lengths AS SELECT id, length(big) AS n FROM v1.far`);
    await shows('SELECT * FROM v1.far_lengths ORDER BY id', ['3|3000', '4|3000']);
    await admin.query('UPDATE far SET id = 10 WHERE id = 1');
    const lacks = 'source table public.far has sent a row without its value of column "big"';
    await shows('SELECT * FROM v1.far', [lacks]);
    await shows('SELECT * FROM v1.far_lengths', [lacks]);
    await shows('SELECT * FROM v1.far_a ORDER BY id', ['3|3', '4|4', '10|1']);
    expect(await hintOf('SELECT * FROM v1.far')).toBe(
      'ALTER SOURCE public.s3 RESYNC; and before it on the origin, so that this does not come again: ALTER TABLE public.far REPLICA IDENTITY FULL;',
    );
    await admin.query('ALTER TABLE far REPLICA IDENTITY FULL');
    await extended.run('ALTER SOURCE s3 RESYNC');
    await shows('SELECT * FROM v1.far_lengths ORDER BY id', ['3|3000', '4|3000', '10|3000']);
    await admin.query('UPDATE far SET id = 20 WHERE id = 2');
    await shows('SELECT * FROM v1.far_lengths ORDER BY id', ['3|3000', '4|3000', '10|3000', '20|3000']);
    await shows('SELECT * FROM v1.far_a ORDER BY id', ['3|3', '4|4', '10|1', '20|2']);
  });

  test('a row without its large values while no version showed them: a version made later had NULL for them', async () => {
    await extended.run(`CREATE SOURCE s4 FROM POSTGRES CONNECTION c (PUBLICATION 'f'); CREATE TABLE v1.near FROM SOURCE s4 (REFERENCE near);
      CREATE TABLE v1.near_a FROM SOURCE s4 (REFERENCE near) WITH (EXCLUDE COLUMNS (big))`);
    const lengths = (name: string): string => `SELECT id, length(big) FROM v1.${name} ORDER BY id`;
    await shows(lengths('near'), ['3|3000', '4|3000']);
    await extended.run('DROP TABLE v1.near');
    await admin.query('UPDATE near SET id = 10 WHERE id = 1');
    await shows('SELECT * FROM v1.near_a ORDER BY id', ['3|3', '4|4', '10|1']);
    await extended.run('CREATE TABLE v1.near FROM SOURCE s4 (REFERENCE near)');
    await shows(lengths('near'), ['3|3000', '4|3000', '10|3000']);
    // One that is made while another has already said that it lacks a value.
    await admin.query('UPDATE near SET id = 20 WHERE id = 2');
    await shows('SELECT * FROM v1.near', ['source table public.near has sent a row without its value of column "big"']);
    await extended.run('CREATE TABLE v1.near_again FROM SOURCE s4 (REFERENCE near)');
    await shows(lengths('near_again'), ['3|3000', '4|3000', '10|3000', '20|3000']);
    await extended.run('ALTER SOURCE s4 RESYNC');
    await shows(lengths('near'), ['3|3000', '4|3000', '10|3000', '20|3000']);
    // What the storage has is shown at once again.
    await extended.run('CREATE TABLE v1.near_third FROM SOURCE s4 (REFERENCE near)');
    expect(await rows(lengths('near_third'))).toEqual(['3|3000', '4|3000', '10|3000', '20|3000']);
    await admin.query("UPDATE near SET a = 0, big = 'y' WHERE id = 20");
    for (const name of ['near', 'near_again', 'near_third']) await shows(lengths(name), ['3|3000', '4|3000', '10|3000', '20|1']);
  });

  test('a version made while others wait for RESYNC lacked the rows that they lack, and did not say so', async () => {
    await extended.run(`CREATE SOURCE s5 FROM POSTGRES CONNECTION c (PUBLICATION 'g'); CREATE TABLE v1.behind FROM SOURCE s5 (REFERENCE behind);
      CREATE TABLE v1.loose FROM SOURCE s5 (REFERENCE loose)`);
    for (const name of ['behind', 'loose']) {
      await shows(`SELECT * FROM v1.${name}`, ['1|one']);
      await admin.query(`ALTER PUBLICATION g DROP TABLE ${name}`);
      await shows(`SELECT * FROM v1.${name}`, [`source table public.${name} is no longer in publication "g"`]);
      await admin.query(`INSERT INTO ${name} VALUES (2, 'two'); ALTER PUBLICATION g ADD TABLE ${name}`);
      await extended.run(`CREATE TABLE v1.${name}_new FROM SOURCE s5 (REFERENCE ${name})`);
      await shows(`SELECT * FROM v1.${name}_new ORDER BY id`, ['1|one', '2|two']);
      // Made again, as the others were: not from what is left of it.
      await extended.run(`DROP TABLE v1.${name}; CREATE TABLE v1.${name} FROM SOURCE s5 (REFERENCE ${name})`);
      await shows(`SELECT * FROM v1.${name} ORDER BY id`, ['1|one', '2|two']);
    }
    await extended.run('ALTER SOURCE s5 RESYNC');
    await admin.query("INSERT INTO behind VALUES (3, 'three'); INSERT INTO loose VALUES (3, 'three'); DELETE FROM loose WHERE id = 1");
    for (const name of ['behind', 'behind_new']) await shows(`SELECT * FROM v1.${name} ORDER BY id`, ['1|one', '2|two', '3|three']);
    for (const name of ['loose', 'loose_new']) await shows(`SELECT * FROM v1.${name} ORDER BY id`, ['2|two', '3|three']);
  });

  test('a table that others inherit from has its own rows', async () => {
    await shows('SELECT id FROM v1.parent', ['1']);
    await admin.query('INSERT INTO parent VALUES (3); INSERT INTO child VALUES (4)');
    await shows('SELECT id FROM v1.parent ORDER BY id', ['1', '3']);
    await shows('SELECT id FROM v1.child ORDER BY id', ['2', '4']);
  });

  test('partitions: new ones are empty; rows that go with one are missed, and said to be', async () => {
    await admin.query("CREATE TABLE part2 PARTITION OF parts FOR VALUES FROM (20) TO (30); INSERT INTO parts VALUES (21, 'z')");
    await shows('SELECT * FROM v1.parts ORDER BY id', ['1|x', '11|y', '21|z']);
    await admin.query("ALTER TABLE parts DETACH PARTITION part0; INSERT INTO parts VALUES (22, 'w')");
    await shows('SELECT * FROM v1.parts', ['source table public.parts has lost a partition']);
    await extended.run('ALTER SOURCE s RESYNC');
    await shows('SELECT * FROM v1.parts ORDER BY id', ['11|y', '21|z', '22|w']);
    await admin.query('DROP TABLE part1');
    await shows('SELECT * FROM v1.parts', ['source table public.parts has lost a partition']);
    await extended.run('ALTER SOURCE s RESYNC');
    await shows('SELECT * FROM v1.parts ORDER BY id', ['21|z', '22|w']);
    if (!tells) return;
    await admin.query('ALTER TABLE parts ATTACH PARTITION part0 FOR VALUES FROM (0) TO (10)');
    await shows('SELECT * FROM v1.parts', ['source table public.parts has got a partition with rows']);
    await extended.run('ALTER SOURCE s RESYNC');
    await shows('SELECT * FROM v1.parts ORDER BY id', ['1|x', '21|z', '22|w']);
    await admin.query(
      "CREATE TABLE part3 (id integer PRIMARY KEY, a text); ALTER TABLE parts ATTACH PARTITION part3 FOR VALUES FROM (30) TO (40); INSERT INTO parts VALUES (31, 'v')",
    );
    await shows('SELECT * FROM v1.parts ORDER BY id', ['1|x', '21|z', '22|w', '31|v']);
    await admin.query('ALTER PUBLICATION p SET (publish_via_partition_root = false)');
    await shows('SELECT * FROM v1.parts', ['source table public.parts is no longer in publication "p"']);
  });

  test.runIf(tells)('moved out of a published schema and back, with rows in between', async () => {
    await admin.query(
      `ALTER TABLE app.moving SET SCHEMA away; INSERT INTO away.moving VALUES (1); ALTER TABLE away.moving SET SCHEMA app; INSERT INTO app.moving VALUES (2)`,
    );
    await shows('SELECT * FROM v1.moving', ['source table app.moving is no longer in publication "q"']);
    await extended.run('ALTER SOURCE s2 RESYNC');
    await shows('SELECT * FROM v1.moving ORDER BY 1', ['1', '2']);
  });
});
