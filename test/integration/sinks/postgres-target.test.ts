/** Sinks into another Postgres: what is in the table, whatever happens to it, and how it follows the columns of the relation. */
import { afterAll, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest';
import type { TestPostgres } from '../../support/postgres.ts';
import { eventually, leadsTo, type Stage, type TestClient } from '../statements/stage.ts';
import { startTargetStage } from './target-stage.ts';

let stage: Stage;
let client: TestClient;
let origin: TestClient;
let server: TestPostgres;
/** At the target. */
let target: TestClient;

beforeAll(async () => {
  ({ stage, server, client, origin, target } = await startTargetStage());
  await origin.query(`
    CREATE TYPE mood AS ENUM ('good', 'bad');
    CREATE TABLE orders (id int PRIMARY KEY, item text, qty int);
    CREATE TABLE lines (item text, qty int); ALTER TABLE lines REPLICA IDENTITY FULL;
    CREATE TABLE typed (id int PRIMARY KEY, n numeric(10,2), at timestamptz, j jsonb, a text[], m mood, b bytea)`);
  await client.query(`
    CREATE TYPE mood AS ENUM ('good', 'bad');
    CREATE TABLE orders FROM SOURCE s (REFERENCE public.orders);
    CREATE TABLE lines FROM SOURCE s (REFERENCE public.lines);
    CREATE TABLE typed FROM SOURCE s (REFERENCE public.typed);
    CREATE MATERIALIZED VIEW by_item AS SELECT item, sum(qty) AS qty FROM orders GROUP BY item;
    CREATE MATERIALIZED VIEW items AS SELECT item, qty FROM orders`);
}, 180_000);
afterAll(async () => {
  await stage?.stop();
  await server?.stop();
});

beforeEach(async () => {
  await origin.query("TRUNCATE orders; TRUNCATE lines; INSERT INTO orders VALUES (1, 'a', 1), (2, 'b', 2), (3, NULL, 3)");
  await eventually(client, 'SELECT count(*)::int FROM orders', [[3]]);
});

const into = (table: string, from: string, rest = 'KEY (id)'): string =>
  `CREATE SINK ${table} FROM ${from} INTO POSTGRES CONNECTION warehouse (TABLE '${table}') ${rest}`;

/** The rows of a table at the target are those of a relation, each as often. */
async function becomes(table: string, relation: string): Promise<void> {
  const sql = (name: string): string => `SELECT t::text FROM ${name} t ORDER BY t::text COLLATE "C"`;
  await vi.waitFor(
    async () => {
      // The relation may still be on its way, too: both are looked at again.
      const wanted = await client.rows(sql(relation));
      expect(await target.rows(sql(table))).toEqual(wanted);
    },
    { timeout: 20_000, interval: 50 },
  );
}

/** A transaction at the origin that is in the relation when this returns. */
let marks = 0;
async function changed(sql: string): Promise<void> {
  marks++;
  await origin.query(`BEGIN; ${sql}; INSERT INTO t VALUES (${1000 + marks}, 'mark'); COMMIT`);
  await eventually(stageT, `SELECT count(*)::int FROM marks_t WHERE a = ${1000 + marks}`, [[1]]);
}
let stageT: TestClient;
beforeAll(async () => {
  stageT = await stage.connect();
  await client.query('CREATE TABLE marks_t FROM SOURCE s (REFERENCE public.t)');
}, 60_000);

const statusOf = async (sink: string): Promise<{ status: unknown; error: unknown; hint: unknown }> => {
  const [row] = await client.rows('SELECT status, error, hint FROM millrace.sinks WHERE name = $1', [sink]);
  return { status: row?.[0], error: row?.[1], hint: row?.[2] };
};

const stalls = async (sink: string, error: RegExp): Promise<void> => {
  await vi.waitFor(async () => expect(await statusOf(sink)).toMatchObject({ status: 'stalled', error: expect.stringMatching(error) }), {
    timeout: 30_000,
    interval: 100,
  });
};

describe('a table of another Postgres', () => {
  it('is made with what the relation has, and follows it', async () => {
    await client.query(into('orders', 'orders'));
    await becomes('orders', 'orders');
    expect(await target.rows("SELECT pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid = 'orders'::regclass")).toEqual([
      ['CREATE UNIQUE INDEX orders_pkey ON public.orders USING btree (id)'],
    ]);
    await changed("INSERT INTO orders SELECT g, 'i' || g % 7, g FROM generate_series(10, 2000) g");
    await changed(
      'UPDATE orders SET qty = qty + 1 WHERE id % 3 = 0; DELETE FROM orders WHERE id = 1; UPDATE orders SET id = 5000 WHERE id = 2',
    );
    await becomes('orders', 'orders');
    await changed(
      'UPDATE orders SET id = CASE id WHEN 10 THEN -11 ELSE -10 END WHERE id IN (10, 11); UPDATE orders SET id = -id WHERE id < 0',
    );
    await becomes('orders', 'orders');
    await changed('TRUNCATE orders');
    await becomes('orders', 'orders');
    expect(await target.rows('SELECT count(*)::int FROM orders')).toEqual([[0]]);
    await client.query('DROP SINK orders');
    expect(await target.rows("SELECT to_regclass('orders') IS NOT NULL")).toEqual([[true]]);
  });

  it('has every copy of a row that the relation has when there is no key', async () => {
    await origin.query("INSERT INTO lines VALUES ('a', 1), ('a', 1), (NULL, NULL), (NULL, NULL), ('b', 2)");
    await client.query(into('lines', 'lines', ''));
    await becomes('lines', 'lines');
    await changed("DELETE FROM lines WHERE ctid = (SELECT min(ctid) FROM lines WHERE item = 'a')");
    await changed(
      "DELETE FROM lines WHERE ctid = (SELECT min(ctid) FROM lines WHERE item IS NULL); UPDATE lines SET qty = 9 WHERE item = 'b'",
    );
    await becomes('lines', 'lines');
    await client.query('DROP SINK lines');
  });

  it('has no row that came and went in two epochs of one batch', async () => {
    await client.query(into('lines2', 'lines', ''));
    await client.query('ALTER SINK lines2 PAUSE');
    await changed("INSERT INTO lines VALUES ('x', 1), ('y', 1), ('y', 1)");
    await changed("DELETE FROM lines WHERE item = 'x'; DELETE FROM lines WHERE ctid = (SELECT min(ctid) FROM lines WHERE item = 'y')");
    await changed("INSERT INTO lines VALUES ('x', 2); DELETE FROM lines WHERE item = 'y'");
    await client.query('ALTER SINK lines2 RESUME');
    await becomes('lines2', 'lines');
    expect(await target.rows('SELECT * FROM lines2')).toEqual([['x', 2]]);
    await client.query('DROP SINK lines2');
  });

  it('may have nulls in its key', async () => {
    await client.query(into('by_item', 'by_item', 'KEY (item)'));
    await becomes('by_item', 'by_item');
    await changed("UPDATE orders SET qty = 30 WHERE item IS NULL; UPDATE orders SET qty = 10 WHERE item = 'a'");
    await becomes('by_item', 'by_item');
    await changed('DELETE FROM orders WHERE item IS NULL');
    await becomes('by_item', 'by_item');
    await client.query('DROP SINK by_item');
  });

  it('keeps values of all types', async () => {
    await origin.query(
      `INSERT INTO typed VALUES (1, 1.5, '2024-01-02 03:04:05.678901+02', '{"a": [1, null]}', '{"x,y",NULL,"\\"q\\""}', 'good', '\\x00ff'); INSERT INTO typed VALUES (2)`,
    );
    await eventually(client, 'SELECT count(*)::int FROM typed', [[2]]);
    await client.query(into('typed', 'typed'));
    await becomes('typed', 'typed');
    // It has no type mood.
    expect(
      await target.rows(
        "SELECT string_agg(format_type(atttypid, atttypmod), ', ' ORDER BY attnum) FROM pg_attribute WHERE attrelid = 'typed'::regclass AND attnum > 0",
      ),
    ).toEqual([['integer, numeric(10,2), timestamp with time zone, jsonb, text[], text, bytea']]);
    await client.query('DROP SINK typed');
  });
});

describe('a table that is there', () => {
  it('is written to when it can hold the columns and tells rows apart by the key', async () => {
    await target.query("CREATE TABLE there (note text DEFAULT 'mine', qty numeric, item varchar(20), id bigint UNIQUE)");
    await client.query(into('there', 'orders'));
    await becomes('(SELECT id, item, qty FROM there)', 'orders');
    await changed("UPDATE orders SET qty = 7 WHERE id = 1; DELETE FROM orders WHERE id = 2; INSERT INTO orders VALUES (4, 'd', 4)");
    await becomes('(SELECT id, item, qty FROM there)', 'orders');
    expect(await target.rows('SELECT DISTINCT note FROM there')).toEqual([['mine']]);
    await client.query('DROP SINK there');
  });

  it('is refused with the reason when it cannot, and so is one that cannot be made; nothing is left', async () => {
    await target.query(`
      CREATE TABLE no_key (id int, item text, qty int);
      CREATE TABLE no_column (id int PRIMARY KEY, item text);
      CREATE TABLE other_type (id int PRIMARY KEY, item text, qty date);
      CREATE VIEW no_table AS SELECT * FROM no_key;
      CREATE ROLE clerk LOGIN`);
    await client.query(`CREATE CONNECTION as_clerk TO POSTGRES (${leadsTo(server, 'clerk')})`);
    const said: Record<string, string> = {};
    const sink = (connection: string, table: string): string =>
      `CREATE SINK bad FROM orders INTO POSTGRES CONNECTION ${connection} (TABLE '${table}') KEY (id)`;
    for (const table of ['no_key', 'no_column', 'other_type', 'no_table', 'nowhere.orders'])
      said[table] = await client.failure(sink('warehouse', table));
    said['as a role without rights'] = await client.failure(sink('as_clerk', 'no_key'));
    await target.query('GRANT USAGE ON SCHEMA millrace_sink TO clerk; GRANT SELECT, INSERT, UPDATE ON millrace_sink.progress TO clerk');
    said['as a role that may not write'] = await client.failure(sink('as_clerk', 'orders'));
    said['as a role that may not create'] = await client.failure(sink('as_clerk', 'fresh'));
    said['unknown connection'] = await client.failure(sink('nothing', 'orders'));
    said['another kind of name'] = await client.failure(sink('warehouse', 'a.b.c'));
    said['no name'] = await client.failure(sink('warehouse', ''));
    expect(said).toMatchInlineSnapshot(`
      {
        "another kind of name": "ERROR 22023: invalid TABLE: "a.b.c"
      HINT: Give it as 'schema.table'.",
        "as a role that may not create": "ERROR 55000: sink "bad" could not be started
      DETAIL: the target says: permission denied for schema public. The sink was taken away again.",
        "as a role that may not write": "ERROR 55000: sink "bad" could not be started
      DETAIL: the target says: permission denied for table orders. The sink was taken away again.",
        "as a role without rights": "ERROR 55000: sink "bad" could not be started
      DETAIL: the target says: permission denied for schema millrace_sink. The sink was taken away again.
      HINT: Sinks keep their positions in schema millrace_sink there: the role of the connection needs CREATE on the database, or USAGE on that schema with SELECT, INSERT and UPDATE on its table "progress".",
        "no name": "ERROR 22023: string is not a valid identifier: """,
        "no_column": "ERROR 55000: sink "bad" could not be started
      DETAIL: the target says: column "qty" of relation "no_column" does not exist. The sink was taken away again.",
        "no_key": "ERROR 55000: sink "bad" could not be started
      DETAIL: table public.no_key of the target does not tell rows apart by the key (id). The sink was taken away again.
      HINT: CREATE UNIQUE INDEX ON public.no_key (id);",
        "no_table": "ERROR 55000: sink "bad" could not be started
      DETAIL: table public.no_table of the target does not tell rows apart by the key (id). The sink was taken away again.
      HINT: CREATE UNIQUE INDEX ON public.no_table (id);",
        "nowhere.orders": "ERROR 55000: sink "bad" could not be started
      DETAIL: the target says: schema "nowhere" does not exist. The sink was taken away again.",
        "other_type": "ERROR 55000: sink "bad" could not be started
      DETAIL: the target says: column "qty" is of type date but expression is of type integer. The sink was taken away again.
      HINT: You will need to rewrite or cast the expression.",
        "unknown connection": "ERROR 42704 at <nothing>: connection "nothing" does not exist
      HINT: SHOW CONNECTIONS; lists what there is.",
      }
    `);
    expect(await client.rows('SELECT name FROM millrace.sinks')).toEqual([]);
    expect(await target.rows("SELECT to_regclass('fresh') IS NOT NULL, (SELECT count(*)::int FROM no_key)")).toEqual([[false, 0]]);
  });
});

describe('when something happens to the target', () => {
  it('a server that is down for a while: the sink says so, the rest goes on, and it catches up', async () => {
    await client.query(into('down', 'orders'));
    await becomes('down', 'orders');
    await target.end();
    await server.kill9();
    await changed('UPDATE orders SET qty = qty + 100');
    await stalls('down', /ECONNREFUSED|terminat|ended|closed|reset/i);
    await changed("INSERT INTO orders VALUES (6, 'meanwhile', 6); DELETE FROM orders WHERE id = 2");
    await server.restart();
    target = await stage.direct(server);
    await becomes('down', 'orders');
    await vi.waitFor(async () => expect(await statusOf('down')).toEqual({ status: 'running', error: null, hint: null }), {
      timeout: 10_000,
    });
    await client.query('DROP SINK down');
  });

  it('a table that was dropped: made again, and filled by a cutover with a snapshot', async () => {
    await client.query(into('lost', 'orders'));
    await becomes('lost', 'orders');
    await target.query('DROP TABLE lost');
    await changed('UPDATE orders SET qty = qty + 1 WHERE id = 1');
    await stalls('lost', /table public\.lost of the target is gone/);
    expect((await statusOf('lost')).hint).toMatch(/BACKFILL = snapshot/);
    await target.query('CREATE TABLE lost (id int PRIMARY KEY, item text, qty int)');
    await client.query("ALTER SINK lost SET FROM orders WITH (BACKFILL = snapshot, TIMEOUT = '20s')");
    await becomes('lost', 'orders');
    await client.query('DROP SINK lost');
  });

  it('a right that was revoked: it goes on when it is granted again', async () => {
    await target.query('CREATE TABLE rights (id int PRIMARY KEY, item text, qty int); ALTER TABLE rights OWNER TO clerk');
    await client.query("CREATE SINK rights FROM orders INTO POSTGRES CONNECTION as_clerk (TABLE 'rights') KEY (id)");
    await becomes('rights', 'orders');
    await target.query('REVOKE UPDATE ON rights FROM clerk');
    await changed('UPDATE orders SET qty = qty + 1');
    await stalls('rights', /permission denied for table rights/);
    await target.query('GRANT UPDATE ON rights TO clerk');
    await becomes('rights', 'orders');
    await client.query('DROP SINK rights');
  });

  it('a table that somebody holds locked: nothing is lost', async () => {
    await client.query(into('locked', 'orders'));
    await becomes('locked', 'orders');
    await target.query('BEGIN; LOCK TABLE locked');
    await changed('UPDATE orders SET qty = qty + 1');
    await stalls('locked', /waits for a lock of process \d+/);
    await target.query('COMMIT');
    await becomes('locked', 'orders');
    await client.query('DROP SINK locked');
  });
});

describe('the columns of the target', () => {
  /** Another version of the origin's table: `sql` alters the table there, and the relation is made again as it is then. */
  const altered = async (version: string, sql: string): Promise<void> => {
    await origin.query(sql);
    await client.query(`CREATE TABLE ${version} FROM SOURCE s (REFERENCE public.parts)`);
  };
  const columnsOf = async (table: string): Promise<unknown> =>
    (
      await target.rows(
        "SELECT string_agg(attname || ' ' || format_type(atttypid, atttypmod), ', ' ORDER BY attnum) FROM pg_attribute WHERE attrelid = $1::regclass AND attnum > 0 AND NOT attisdropped",
        [table],
      )
    )[0]?.[0];
  const parts = (relation: string, columns: string): string => `(SELECT ${columns} FROM ${relation})`;

  it('follow those of the relation by what they are: added, dropped, renamed, swapped, a name used again', {
    timeout: 120_000,
  }, async () => {
    await origin.query(
      "CREATE TABLE parts (id int PRIMARY KEY, a text, b text, c int); INSERT INTO parts VALUES (1, 'a1', 'b1', 1), (2, 'a2', 'b2', 2)",
    );
    await client.query('CREATE TABLE parts_1 FROM SOURCE s (REFERENCE public.parts)');
    await client.query("CREATE SINK parts FROM parts_1 INTO POSTGRES CONNECTION warehouse (TABLE 'parts') KEY (id)");
    await becomes('parts', 'parts_1');
    // What only the target has shows that columns are kept, not made again.
    await target.query(
      "COMMENT ON COLUMN parts.a IS 'was a'; COMMENT ON COLUMN parts.b IS 'was b'; CREATE VIEW readers AS SELECT id, a FROM parts",
    );

    await altered('parts_2', 'ALTER TABLE parts ADD COLUMN d numeric(6,2) DEFAULT 1.5');
    await client.query('ALTER SINK parts SET FROM parts_2 WITH (BACKFILL = diff)');
    await becomes('parts', 'parts_2');
    expect(await columnsOf('parts')).toBe('id integer, a text, b text, c integer, d numeric(6,2)');

    await altered('parts_3', 'ALTER TABLE parts DROP COLUMN c; ALTER TABLE parts RENAME COLUMN d TO e');
    await client.query('ALTER SINK parts SET FROM parts_3');
    await changed("INSERT INTO parts VALUES (3, 'a3', 'b3', 3)");
    await becomes('parts', 'parts_3');
    expect(await columnsOf('parts')).toBe('id integer, a text, b text, e numeric(6,2)');

    // Without a backfill: the values are there because the columns are the same.
    await altered(
      'parts_4',
      'ALTER TABLE parts RENAME COLUMN a TO x; ALTER TABLE parts RENAME COLUMN b TO a; ALTER TABLE parts RENAME COLUMN x TO b',
    );
    await client.query('ALTER SINK parts SET FROM parts_4');
    await changed("INSERT INTO parts (id, a, b) VALUES (4, 'now in a', 'now in b')");
    await becomes(parts('parts', 'id, a, b, e'), parts('parts_4', 'id, a, b, e'));
    expect(await target.rows("SELECT col_description('parts'::regclass, 2), col_description('parts'::regclass, 3)")).toEqual([
      ['was a', 'was b'],
    ]);
    expect(await columnsOf('parts')).toBe('id integer, b text, a text, e numeric(6,2)');
    expect(await target.rows('SELECT a FROM readers WHERE id = 1')).toEqual([['a1']]);

    // The name is used again for something else: nothing of the old one is left under it.
    await altered('parts_5', 'ALTER TABLE parts DROP COLUMN e; ALTER TABLE parts ADD COLUMN e boolean');
    await client.query('ALTER SINK parts SET FROM parts_5');
    await changed('INSERT INTO parts (id, e) VALUES (5, true)');
    await becomes(parts('parts', 'id, a, b, e'), parts('parts_5', 'id, a, b, e'));
    expect(await columnsOf('parts')).toBe('id integer, b text, a text, e boolean');

    // All at once, while the sink has changes of the old columns still to deliver.
    await client.query('ALTER SINK parts PAUSE');
    await changed("UPDATE parts SET a = a || '!', e = false");
    await altered(
      'parts_6',
      'ALTER TABLE parts RENAME COLUMN e TO f; ALTER TABLE parts RENAME COLUMN b TO e; ALTER TABLE parts DROP COLUMN a; ALTER TABLE parts ADD COLUMN a int DEFAULT 7',
    );
    await client.query('SET millrace.wait = off; ALTER SINK parts SET FROM parts_6 WITH (BACKFILL = diff); RESET millrace.wait');
    await client.query('ALTER SINK parts RESUME');
    await target.query('DROP VIEW readers');
    await changed('INSERT INTO parts (id, a, f) VALUES (6, 6, true)');
    await becomes(parts('parts', 'id, a, e, f'), parts('parts_6', 'id, a, e, f'));
    await client.query('DROP SINK parts');
  });

  it('that the target cannot give up: the sink says so, and goes on when it can', async () => {
    await origin.query("CREATE TABLE held (id int PRIMARY KEY, a text); INSERT INTO held VALUES (1, 'one')");
    await client.query('CREATE TABLE held_1 FROM SOURCE s (REFERENCE public.held)');
    await client.query("CREATE SINK held FROM held_1 INTO POSTGRES CONNECTION warehouse (TABLE 'held') KEY (id)");
    await becomes('held', 'held_1');
    await target.query('CREATE VIEW reads_a AS SELECT a FROM held');
    await origin.query('ALTER TABLE held DROP COLUMN a');
    await client.query('CREATE TABLE held_2 FROM SOURCE s (REFERENCE public.held)');
    await client.query('ALTER SINK held SET FROM held_2');
    await changed('INSERT INTO held VALUES (2)');
    await stalls('held', /cannot drop column a of table public\.held because other objects depend on it/);
    await target.query('DROP VIEW reads_a');
    await becomes('held', 'held_2');
    await client.query('DROP SINK held');
  });

  it('get wider when those of the origin do, under the sink', async () => {
    await origin.query('CREATE TABLE meters (id int PRIMARY KEY, n int, s varchar(3)); INSERT INTO meters VALUES (1, 1, $$abc$$)');
    await client.query('CREATE TABLE meters FROM SOURCE s (REFERENCE public.meters)');
    await client.query('CREATE MATERIALIZED VIEW sums AS SELECT s, max(n) AS n FROM meters GROUP BY s');
    await client.query(into('meters', 'meters'));
    await client.query(into('sums', 'sums', 'KEY (s)'));
    await client.query("CREATE SINK keyless_meters FROM meters INTO POSTGRES CONNECTION warehouse (TABLE 'keyless_meters')");
    await becomes('meters', 'meters');
    await changed('INSERT INTO meters VALUES (2, 2, NULL)');
    await changed(
      `ALTER TABLE meters ALTER COLUMN n TYPE bigint, ALTER COLUMN s TYPE text; INSERT INTO meters VALUES (3, 5000000000, 'longer than three'); UPDATE meters SET n = 6000000000 WHERE id = 1`,
    );
    await becomes('meters', 'meters');
    await becomes('keyless_meters', 'meters');
    expect(await columnsOf('meters')).toBe('id integer, n bigint, s text');
    // The view was made anew: what it was before, nobody knows.
    await stalls('sums', /filled anew with other types/);
    await client.query('ALTER SINK sums SET FROM sums WITH (BACKFILL = snapshot)');
    await becomes('sums', 'sums');
    await client.query('DROP SINK meters; DROP SINK sums; DROP SINK keyless_meters');
  });
});
