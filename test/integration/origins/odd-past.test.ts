/** Versions made from tables with a past: what a storage has missed is not shown by them, whoever showed it when it was missed. */
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type ExtendedClient, startEngine, type TestEngine, texts } from '../../support/engine.ts';
import { type OriginPair, startOriginPair } from '../../support/origin-pair.ts';

/** Names for tables, and their keys. */
const keyedAndNot = [
  ['keyed', 'PRIMARY KEY'],
  ['loose', ''],
] as const;

describe.each([
  ['that tells of its DDL', 'postgres'],
  ['that does not tell', 'reader'],
] as const)('an origin %s', (_, role) => {
  const tells = role === 'postgres';
  let pair: OriginPair;
  let admin: pg.Client;
  let extended: ExtendedClient;
  let engine: TestEngine;

  beforeAll(async () => {
    pair = await startOriginPair('CREATE ROLE reader LOGIN REPLICATION IN ROLE pg_read_all_data; CREATE PUBLICATION p', role);
    ({ admin, extended } = pair);
    engine = startEngine(pair.upstream.address);
    await extended.run("CREATE SOURCE s FROM POSTGRES CONNECTION c (PUBLICATION 'p'); CREATE SCHEMA v1; CREATE SCHEMA v2");
  }, 120_000);
  afterAll(async () => {
    await pair?.stop(engine);
  });

  const rows = (sql: string): Promise<string[]> => texts(extended.client, sql).then((found) => found.map((row) => row.join('|')));
  const shows = (sql: string, wanted: readonly string[]): Promise<void> =>
    expect.poll(() => rows(sql).catch((error: Error) => [error.message]), { timeout: 15_000 }).toEqual(wanted);
  const says = (sql: string, what: RegExp): Promise<void> => {
    const said = (): Promise<string> =>
      rows(sql).then(
        () => 'rows',
        (error: Error) => error.message,
      );
    return expect.poll(said, { timeout: 15_000 }).toMatch(what);
  };
  /** A table at the origin, published. */
  const table = (name: string, definition: string, values: string): Promise<unknown> =>
    admin.query(
      `CREATE TABLE ${name} (${definition}); ALTER TABLE ${name} REPLICA IDENTITY FULL; INSERT INTO ${name} VALUES ${values}; ALTER PUBLICATION p ADD TABLE ${name}`,
    );
  const version = (name: string, excluded?: string): Promise<unknown> => {
    const [, reference] = name.split('.');
    return extended.run(
      `CREATE TABLE ${name} FROM SOURCE s (REFERENCE ${reference})${excluded === undefined ? '' : ` WITH (EXCLUDE COLUMNS (${excluded}))`}`,
    );
  };
  /** Takes a table out of the publication and puts it back when that has been noticed; `missed` is run in between. */
  const unpublishedFor = async (name: string, missed: string, client = extended.client): Promise<void> => {
    await admin.query(`ALTER PUBLICATION p DROP TABLE ${name}; ${missed}`);
    if (!tells) {
      const unaware = `SELECT count(*) FROM millrace.storage WHERE origin_name = '${name}' AND missed IS NULL`;
      await expect.poll(() => texts(client, unaware), { timeout: 15_000 }).toEqual([['0']]);
    }
    await admin.query(`ALTER PUBLICATION p ADD TABLE ${name}`);
  };
  /** Publishes these columns of a table. */
  const publish = async (name: string, columns: string): Promise<void> => {
    const others = await texts(admin, `SELECT tablename FROM pg_publication_tables WHERE pubname = 'p' AND tablename <> '${name}'`);
    await admin.query(`ALTER PUBLICATION p SET TABLE ${[`${name}${columns}`, ...others.map(([other]) => other)].join(', ')}`);
  };

  test.each(keyedAndNot)('%s: out of the publication while its only version erred already', async (name, key) => {
    const a = `a_${name}`;
    await table(a, `id integer ${key}, a text, b integer`, "(1, 'one', 1)");
    await version(`v1.${a}`);
    await shows(`SELECT * FROM v1.${a}`, ['1|one|1']);
    await admin.query(`ALTER TABLE ${a} DROP COLUMN b`);
    await says(`SELECT * FROM v1.${a}`, /"b" of public.a_.* was dropped/);
    await unpublishedFor(a, `INSERT INTO ${a} VALUES (2, 'two')`);
    await admin.query(`INSERT INTO ${a} VALUES (3, 'three')`);
    await version(`v2.${a}`);
    await shows(`SELECT * FROM v2.${a} ORDER BY id`, ['1|one', '2|two', '3|three']);
  });

  test.each(keyedAndNot)('%s: made in a transaction that stayed open while rows were lost', async (name, key) => {
    const b = `b_${name}`;
    await table(b, `id integer ${key}, a text`, "(1, 'one')");
    await version(`v1.${b}`);
    await shows(`SELECT * FROM v1.${b}`, ['1|one']);
    const commit = await extended.open(`CREATE TABLE v2.${b} FROM SOURCE s (REFERENCE ${b})`);
    const other = new pg.Client({ connectionString: pair.upstream.url });
    await other.connect();
    await unpublishedFor(b, `INSERT INTO ${b} VALUES (2, 'two')`, other);
    await admin.query(`INSERT INTO ${b} VALUES (3, 'three')`);
    await expect.poll(() => texts(other, `SELECT count(*) FROM v1.${b}`).catch(() => 'gone'), { timeout: 15_000 }).toBe('gone');
    await other.end();
    await commit();
    await says(`SELECT * FROM v2.${b}`, /public.b_.* is no longer in publication "p"/);
    await extended.run('ALTER SOURCE s RESYNC');
    for (const schema of ['v1', 'v2']) await shows(`SELECT * FROM ${schema}.${b} ORDER BY id`, ['1|one', '2|two', '3|three']);
  });

  test.each(keyedAndNot)(
    '%s: out of the publication while it is copied',
    async (name, key) => {
      const c = `c_${name}`;
      await table(c, `id integer ${key}, a text`, '(1)');
      await admin.query(`INSERT INTO ${c} SELECT g, repeat('x', 300) FROM generate_series(2, 200000) g`);
      const commit = await extended.open(`CREATE TABLE v1.${c} FROM SOURCE s (REFERENCE ${c})`);
      const copied = commit().then(
        () => 'copied',
        (error: Error) => error.message,
      );
      const other = new pg.Client({ connectionString: pair.upstream.url });
      await other.connect();
      const state = `SELECT state FROM millrace.storage WHERE origin_name = '${c}'`;
      await expect.poll(() => texts(other, state), { interval: 5, timeout: 15_000 }).toEqual([['copying']]);
      await unpublishedFor(c, `INSERT INTO ${c} VALUES (0, 'zero')`, other);
      await other.end();
      await admin.query(`INSERT INTO ${c} VALUES (-1, 'minus one')`);
      // Who tells is believed: the copy has begun again, unless the table was just looked at while it was out.
      const said = await copied;
      if (!tells || said !== 'copied') {
        expect(said).toBe(`source table public.${c} is no longer in publication "p"`);
        await version(`v1.${c}`);
      }
      await shows(`SELECT count(*), min(id) FROM v1.${c}`, ['200002|-1']);
    },
    60_000,
  );

  test('a column that nobody shows, unpublished for a while', async () => {
    await table('d', 'id integer PRIMARY KEY, a text, b integer', "(1, 'one', 1), (2, 'two', 2)");
    await admin.query('ALTER TABLE d REPLICA IDENTITY DEFAULT');
    await version('v1.d');
    await version('v2.d', 'b');
    await shows('SELECT * FROM v1.d ORDER BY id', ['1|one|1', '2|two|2']);
    await extended.run('DROP TABLE v1.d');
    await publish('d', ' (id, a)');
    await admin.query("UPDATE d SET b = 7, a = 'uno' WHERE id = 1; INSERT INTO d VALUES (3, 'three', 3)");
    await shows('SELECT * FROM v2.d ORDER BY id', ['1|uno', '2|two', '3|three']);
    await publish('d', '');
    await admin.query("INSERT INTO d VALUES (4, 'four', 4)");
    await shows('SELECT count(*) FROM v2.d', ['4']);
    await version('v1.d');
    await shows('SELECT * FROM v1.d ORDER BY id', ['1|uno|7', '2|two|2', '3|three|3', '4|four|4']);
  });

  test('without key, a column that was unpublished for a while could not be had back', async () => {
    await admin.query("CREATE TABLE e (id integer, a text); INSERT INTO e VALUES (1, 'one'); ALTER PUBLICATION p ADD TABLE e");
    await version('v1.e');
    await version('v2.e', 'a');
    await shows('SELECT * FROM v1.e', ['1|one']);
    await publish('e', ' (id)');
    await admin.query("INSERT INTO e VALUES (2, 'two')");
    await shows('SELECT * FROM v2.e ORDER BY id', ['1', '2']);
    await says('SELECT * FROM v1.e', /"a" of public.e is no longer published/);
    await publish('e', '');
    await admin.query("INSERT INTO e VALUES (3, 'three')");
    await extended.run('ALTER SOURCE s RESYNC');
    await shows('SELECT * FROM v1.e ORDER BY id', ['1|one', '2|two', '3|three']);
    await shows('SELECT * FROM v2.e ORDER BY id', ['1', '2', '3']);
    await admin.query("INSERT INTO e VALUES (4, 'four')");
    await shows('SELECT * FROM v1.e ORDER BY id', ['1|one', '2|two', '3|three', '4|four']);
  });

  test.each(keyedAndNot)('%s: a column that nobody shows, written anew', async (name, key) => {
    const f = `f_${name}`;
    await table(f, `id integer ${key}, a text, b integer`, "(1, 'one', 1), (2, 'two', 2)");
    await version(`v1.${f}`);
    await version(`v2.${f}`, 'b');
    await shows(`SELECT * FROM v1.${f} ORDER BY id`, ['1|one|1', '2|two|2']);
    await extended.run(`DROP TABLE v1.${f}`);
    await admin.query(`ALTER TABLE ${f} ALTER b TYPE bigint USING b + 10; INSERT INTO ${f} VALUES (3, 'three', 3)`);
    await shows(`SELECT * FROM v2.${f} ORDER BY id`, ['1|one', '2|two', '3|three']);
    await admin.query(`DELETE FROM ${f} WHERE id = 2`);
    await shows(`SELECT * FROM v2.${f} ORDER BY id`, ['1|one', '3|three']);
    await version(`v1.${f}`);
    await shows(`SELECT * FROM v1.${f} ORDER BY id`, ['1|one|11', '3|three|3']);
  });

  test.each(keyedAndNot)('%s: a column that was of another type for a while', async (name, key) => {
    const g = `g_${name}`;
    await table(g, `id integer ${key}, a text, b text`, "(1, 'one', '01'), (2, 'two', '2')");
    await version(`v1.${g}`);
    await version(`v2.${g}`, 'b');
    await shows(`SELECT * FROM v1.${g} ORDER BY id`, ['1|one|01', '2|two|2']);
    await admin.query(`ALTER TABLE ${g} ALTER b TYPE integer USING b::integer; UPDATE ${g} SET b = 5 WHERE id = 2`);
    await says(`SELECT * FROM v1.${g}`, /"b" of public.g_.* changed from type text to integer/);
    await admin.query(`ALTER TABLE ${g} ALTER b TYPE text; INSERT INTO ${g} VALUES (3, 'three', '3')`);
    await shows(`SELECT * FROM v2.${g} ORDER BY id`, ['1|one', '2|two', '3|three']);
    await extended.run(`DROP TABLE v1.${g}`);
    await version(`v1.${g}`);
    await shows(`SELECT * FROM v1.${g} ORDER BY id`, ['1|one|1', '2|two|5', '3|three|3']);
    await admin.query(`DELETE FROM ${g} WHERE id = 2`);
    for (const schema of ['v1', 'v2']) await shows(`SELECT id FROM ${schema}.${g} ORDER BY id`, ['1', '3']);
  });

  test('rows without key, and a column that is written anew: who did not show it went on with rows that were deleted', async () => {
    await table('h', 'id integer, a text, b integer', "(1, 'one', 1), (2, 'two', 2)");
    await version('v1.h');
    await version('v2.h', 'b');
    await extended.run(
      'CREATE MATERIALIZED VIEW v1.h_sum AS SELECT sum(b) AS s FROM v1.h; CREATE MATERIALIZED VIEW v2.h_n AS SELECT count(*) AS n FROM v2.h',
    );
    await shows('SELECT * FROM v1.h_sum', ['3']);
    // Who does not tell does not say either what was made of values that kept their type.
    const wide = tells ? 'integer' : 'bigint';
    await admin.query(`ALTER TABLE h ALTER b TYPE ${wide} USING b + 10; DELETE FROM h WHERE id = 2; INSERT INTO h VALUES (3, 'three', 3)`);
    await shows('SELECT * FROM v2.h ORDER BY id', ['1|one', '3|three']);
    await shows('SELECT * FROM v2.h_n', ['2']);
    await says('SELECT * FROM v1.h', /column "b" of public.h was written anew/);
    if (tells) {
      await extended.run('ALTER SOURCE s RESYNC');
      await shows('SELECT * FROM v1.h ORDER BY id', ['1|one|11', '3|three|3']);
      await shows('SELECT * FROM v1.h_sum', ['14']);
    }
    await admin.query("DELETE FROM h WHERE id = 1; INSERT INTO h VALUES (4, 'four', 4)");
    await shows('SELECT * FROM v2.h ORDER BY id', ['3|three', '4|four']);
    await shows('SELECT * FROM v2.h_n', ['2']);
    if (tells) await shows('SELECT * FROM v1.h_sum', ['7']);
  });

  test.runIf(tells)('a key that is written anew: also who does not show it says so', async () => {
    await table('i', 'id integer PRIMARY KEY, a text', "(1, 'one'), (2, 'two')");
    await version('v1.i', 'id');
    await shows('SELECT * FROM v1.i ORDER BY a', ['one', 'two']);
    await admin.query("ALTER TABLE i ALTER id TYPE integer USING id + 1; UPDATE i SET a = 'zwei' WHERE id = 3; DELETE FROM i WHERE id = 2");
    await says('SELECT * FROM v1.i', /"id" of public.i was written anew/);
    await version('v2.i');
    await shows('SELECT * FROM v2.i', ['3|zwei']);
    await extended.run('ALTER SOURCE s RESYNC');
    await shows('SELECT * FROM v1.i', ['zwei']);
  });

  test('a column taken as text went on showing what its former type wrote', async () => {
    await table('k', 'id integer PRIMARY KEY, n numeric(6,2), m integer', '(1, 1.5, 1)');
    await extended.run('CREATE TABLE v1.k FROM SOURCE s (REFERENCE k) WITH (TEXT COLUMNS (n, m))');
    await shows('SELECT * FROM v1.k', ['1|1.50|1']);
    if (tells) {
      await admin.query('ALTER TABLE k ALTER m TYPE bigint; INSERT INTO k VALUES (2, 2.5, 20000000000)');
      await shows('SELECT * FROM v1.k ORDER BY id', ['1|1.50|1', '2|2.50|20000000000']);
    }
    await admin.query('ALTER TABLE k ALTER n TYPE numeric(9,3); INSERT INTO k VALUES (3, 3.5, 3)');
    await says('SELECT * FROM v1.k', /"n" of public.k was written anew as numeric\(9,3\)/);
    await extended.run('ALTER SOURCE s RESYNC');
    await shows('SELECT n FROM v1.k WHERE id IN (1, 3) ORDER BY id', ['1.500', '3.500']);
  });
});
