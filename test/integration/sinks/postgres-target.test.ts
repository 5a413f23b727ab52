/** Sinks into another Postgres: what is in the table, whatever happens to it, and how it follows the columns of the relation. */
import { afterAll, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest';
import { startPostgres, type TestPostgres } from '../../support/postgres.ts';
import { eventually, leadsTo, type Stage, simpleSource, startStage, type TestClient } from '../statements/stage.ts';

let stage: Stage;
let client: TestClient;
let origin: TestClient;
let server: TestPostgres;
/** At the target. */
let target: TestClient;

beforeAll(async () => {
  [stage, server] = await Promise.all([startStage(), startPostgres()]);
  client = await stage.connect();
  origin = await simpleSource(stage, client);
  target = await stage.direct(server);
  await origin.query(`
    CREATE TYPE mood AS ENUM ('good', 'bad');
    CREATE TABLE orders (id int PRIMARY KEY, item text, qty int);
    CREATE TABLE lines (item text, qty int); ALTER TABLE lines REPLICA IDENTITY FULL;
    CREATE TABLE typed (id int PRIMARY KEY, n numeric(10,2), at timestamptz, j jsonb, a text[], m mood, b bytea)`);
  await client.query(`
    CREATE TYPE mood AS ENUM ('good', 'bad');
    CREATE CONNECTION warehouse TO POSTGRES (${leadsTo(server)});
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
    await target.query(
      'GRANT CREATE ON DATABASE postgres TO clerk; GRANT ALL ON SCHEMA millrace_sink TO clerk; GRANT ALL ON ALL TABLES IN SCHEMA millrace_sink TO clerk',
    );
    said['as a role that may not write'] = await client.failure(sink('as_clerk', 'orders'));
    said['as a role that may not create'] = await client.failure(sink('as_clerk', 'fresh'));
    said['unknown connection'] = await client.failure(sink('nothing', 'orders'));
    said['another kind of name'] = await client.failure(sink('warehouse', 'a.b.c'));
    said['no name'] = await client.failure(sink('warehouse', ''));
    expect(said).toMatchInlineSnapshot();
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
    await stalls('locked', /lock timeout/);
    await target.query('COMMIT');
    await becomes('locked', 'orders');
    await client.query('DROP SINK locked');
  });
});
