/** Tables whose key becomes another one: rows are never taken for others, and what cannot be kept says so. */
import type pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type ExtendedClient, startEngine, type TestEngine, texts } from '../../support/engine.ts';
import { type OriginPair, startOriginPair } from '../../support/origin-pair.ts';

describe.each([
  ['that tells of its DDL', 'postgres'],
  ['that does not tell', 'reader'],
] as const)('an origin %s', (_, role) => {
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

  const shows = (sql: string, wanted: readonly string[]): Promise<void> => {
    const rows = (): Promise<string[]> =>
      texts(extended.client, sql).then(
        (found) => found.map((row) => row.join('|')),
        (error: Error) => [error.message],
      );
    return expect.poll(rows, { timeout: 15_000 }).toEqual(wanted);
  };
  const table = async (name: string, definition: string, values: string, identity = 'DEFAULT'): Promise<void> => {
    await admin.query(
      `CREATE TABLE ${name} (${definition}); ALTER TABLE ${name} REPLICA IDENTITY ${identity}; INSERT INTO ${name} VALUES ${values}; ALTER PUBLICATION p ADD TABLE ${name}`,
    );
    await extended.run(`CREATE TABLE v1.${name} FROM SOURCE s (REFERENCE ${name})`);
  };
  const altered = (name: string, was: string, is: string): string =>
    `source table schema has been altered: the key of public.${name} was ${was}, and is ${is}`;

  test('another column: an update that moved a row left it at both keys, and a deletion was lost', async () => {
    await table('a', 'id integer PRIMARY KEY, n integer NOT NULL, t text', "(1, 10, 'one'), (2, 20, 'two')");
    await shows('SELECT * FROM v1.a ORDER BY id', ['1|10|one', '2|20|two']);
    await admin.query('ALTER TABLE a DROP CONSTRAINT a_pkey, ADD PRIMARY KEY (n)');
    await admin.query('UPDATE a SET id = 3 WHERE n = 10; DELETE FROM a WHERE n = 20');
    await shows('SELECT * FROM v1.a', [altered('a', '(id)', '(n)')]);
    await extended.run('CREATE TABLE v2.a FROM SOURCE s (REFERENCE a)');
    await shows('SELECT * FROM v2.a', ['3|10|one']);
    await admin.query('UPDATE a SET n = 11, id = 4');
    await shows('SELECT * FROM v2.a', ['4|11|one']);
    await extended.run('ALTER SOURCE s RESYNC');
    await shows('SELECT * FROM v1.a', [altered('a', '(id)', '(n)')]);
    // As it was: what came meanwhile is brought.
    await admin.query('ALTER TABLE a DROP CONSTRAINT a_pkey, ADD PRIMARY KEY (id)');
    await admin.query("INSERT INTO a VALUES (5, 50, 'five')");
    await shows('SELECT * FROM v2.a', [altered('a', '(n)', '(id)')]);
    await extended.run('ALTER SOURCE s RESYNC');
    await shows('SELECT * FROM v1.a ORDER BY id', ['4|11|one', '5|50|five']);
    await admin.query('UPDATE a SET id = 6 WHERE id = 5; DELETE FROM a WHERE id = 4');
    await shows('SELECT * FROM v1.a', ['6|50|five']);
  });

  test('none any more, and whole old rows in its place: two rows of one key were one', async () => {
    await table('b', 'id integer PRIMARY KEY, t text', "(1, 'one')");
    await admin.query("ALTER TABLE b DROP CONSTRAINT b_pkey, REPLICA IDENTITY FULL; INSERT INTO b VALUES (1, 'another')");
    await shows('SELECT * FROM v1.b', [altered('b', '(id)', 'none')]);
    await extended.run('CREATE TABLE v2.b FROM SOURCE s (REFERENCE b)');
    await shows('SELECT * FROM v2.b ORDER BY t', ['1|another', '1|one']);
  });

  test('one where there was none: old rows come with their key only', async () => {
    await table('c', 'id integer NOT NULL, t text', "(1, 'one'), (2, 'two')", 'FULL');
    await admin.query('ALTER TABLE c ADD PRIMARY KEY (id); UPDATE c SET t = $$zwei$$ WHERE id = 2');
    // Whole old rows go on coming.
    await shows('SELECT * FROM v1.c ORDER BY id', ['1|one', '2|zwei']);
    await admin.query('DELETE FROM c WHERE id = 1');
    await shows('SELECT * FROM v1.c ORDER BY id', ['2|zwei']);
    await admin.query('ALTER TABLE c REPLICA IDENTITY DEFAULT; DELETE FROM c WHERE id = 2');
    await shows('SELECT * FROM v1.c', [altered('c', 'none', '(id)')]);
  });

  test('the same one, made anew or told of in other words', async () => {
    await table('d', 'x integer, y integer, t text, PRIMARY KEY (x, y)', "(1, 1, 'one')");
    await admin.query(
      "BEGIN; ALTER TABLE d DROP CONSTRAINT d_pkey; ALTER TABLE d ADD PRIMARY KEY (y, x); UPDATE d SET t = 'uno'; COMMIT; ALTER TABLE d REPLICA IDENTITY FULL; UPDATE d SET x = 2",
    );
    await shows('SELECT * FROM v1.d', ['2|1|uno']);
    await table('e', 'id integer PRIMARY KEY DEFERRABLE, t text', "(1, 'one')");
    await admin.query("INSERT INTO e VALUES (2, 'two')");
    await shows('SELECT * FROM v1.e ORDER BY id', ['1|one', '2|two']);
  });
});
