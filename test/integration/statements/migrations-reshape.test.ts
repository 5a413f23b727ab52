/** A table takes another shape while it is in use: what hangs on it goes along, both shapes are read and written, and there is a way back. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { changesOf, expectRows, factsOf, leftBehind, type MigrationStage, startMigrationStage } from './migrations-stage.ts';
import type { TestClient } from './stage.ts';

const shop = (schema: string): string => `
CREATE SCHEMA ${schema} AUTHORIZATION shopkeeper;
GRANT USAGE ON SCHEMA ${schema} TO clerk;
SET ROLE shopkeeper;
SET search_path = ${schema};
CREATE TABLE customers (id int PRIMARY KEY, name text);
INSERT INTO customers VALUES (1, 'Ann'), (2, 'Bob');
CREATE SEQUENCE tickets;
CREATE TABLE orders (
    note        text,
    id          serial CONSTRAINT orders_key PRIMARY KEY,
    gone        int,
    customer_id int NOT NULL,
    code        text COLLATE "C" CONSTRAINT orders_code_once UNIQUE,
    price       numeric(10, 2) NOT NULL DEFAULT 1 CONSTRAINT price_positive CHECK (price > 0),
    ticket      bigint NOT NULL DEFAULT nextval('tickets'),
    state       text NOT NULL DEFAULT 'new',
    parent      int,
    doubled     numeric GENERATED ALWAYS AS (price * 2) STORED,
    updated_at  timestamptz,
    CONSTRAINT orders_customer FOREIGN KEY (customer_id) REFERENCES customers ON DELETE CASCADE
) WITH (fillfactor = 70, autovacuum_enabled = false, toast.autovacuum_enabled = false);
ALTER TABLE orders DROP COLUMN gone;
ALTER TABLE orders ADD CONSTRAINT orders_parent FOREIGN KEY (parent) REFERENCES orders (id) DEFERRABLE INITIALLY DEFERRED;
CREATE INDEX b_price ON orders (price DESC NULLS LAST) INCLUDE (code);
CREATE INDEX a_open ON orders (customer_id) WHERE state = 'new';
CREATE UNIQUE INDEX orders_by_lower ON orders (lower(code), id);
CREATE UNIQUE INDEX orders_identity ON orders (id, state);
CREATE INDEX z_by_id ON orders (id, price);
ALTER TABLE orders CLUSTER ON b_price;
ALTER TABLE orders ALTER state SET STATISTICS 500, ALTER customer_id SET (n_distinct = 2), ALTER note SET STORAGE EXTERNAL;
CREATE STATISTICS price_by_state (dependencies, ndistinct) ON price, state FROM orders;
ALTER STATISTICS price_by_state SET STATISTICS 300;
CREATE STATISTICS by_id (mcv) ON id, state FROM orders;
COMMENT ON TABLE orders IS 'what they want';
COMMENT ON COLUMN orders.id IS 'its number';
COMMENT ON COLUMN orders.state IS 'how far';
COMMENT ON INDEX b_price IS 'for the dear ones';
COMMENT ON CONSTRAINT price_positive ON orders IS 'nothing is free';
COMMENT ON CONSTRAINT orders_customer ON orders IS 'who';
COMMENT ON STATISTICS price_by_state IS 'they go together';
CREATE TABLE order_items (order_id int NOT NULL REFERENCES orders ON DELETE CASCADE, what text, PRIMARY KEY (order_id, what));
COMMENT ON CONSTRAINT order_items_order_id_fkey ON order_items IS 'of which';
CREATE TABLE audit (entry bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, order_id bigint, state text);
CREATE FUNCTION note_it() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO ${schema}.audit (order_id, state) VALUES (NEW.id, NEW.state); RETURN NULL; END';
CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.updated_at := ''2020-01-01Z''; RETURN NEW; END';
CREATE TRIGGER noted AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION note_it();
CREATE TRIGGER stamped BEFORE UPDATE OF state, price ON orders FOR EACH ROW WHEN (OLD.state <> '') EXECUTE FUNCTION stamp();
CREATE TRIGGER asleep BEFORE DELETE ON orders FOR EACH ROW EXECUTE FUNCTION stamp();
ALTER TABLE orders DISABLE TRIGGER asleep;
COMMENT ON TRIGGER stamped ON orders IS 'when';
INSERT INTO orders (customer_id, code, price) SELECT 1 + i % 2, 'c' || i, i FROM generate_series(1, 20) i;
UPDATE orders SET parent = 1 WHERE id = 2;
SET CONSTRAINTS ALL IMMEDIATE;
INSERT INTO order_items VALUES (1, 'pen'), (2, 'ink');
CREATE VIEW open_orders WITH (security_barrier = true) AS SELECT code, price, state FROM orders WHERE state = 'new';
GRANT SELECT ON open_orders TO clerk;
GRANT SELECT, INSERT, DELETE ON orders TO clerk;
GRANT UPDATE (state, price) ON orders TO clerk WITH GRANT OPTION;
GRANT USAGE ON SEQUENCE orders_id_seq, tickets TO clerk;
GRANT SELECT, INSERT ON audit TO clerk;
GRANT SELECT ON customers TO clerk;
RESET ROLE;
ALTER TABLE orders REPLICA IDENTITY USING INDEX orders_identity;
CREATE PUBLICATION ${schema}_pub FOR TABLE orders (id, state) WHERE (state <> 'secret'), customers;
RESET search_path;
ANALYZE ${schema}.orders;
`;

const rest = `note, code, price, ticket, state, parent::bigint, doubled, updated_at`;

for (const version of [18, 15] as const) {
  describe(`ALTER COLUMN .. TYPE on ${version}`, () => {
    let on: MigrationStage;
    let client: TestClient;
    let upstream: TestClient;
    let clerk: TestClient;

    beforeAll(async () => {
      on = await startMigrationStage(version);
      ({ client, upstream, clerk } = on);
      await upstream.query(
        "CREATE ROLE shopkeeper LOGIN PASSWORD 'secret'; GRANT CREATE ON DATABASE postgres TO shopkeeper; CREATE TABLE warm_up (a int)",
      );
    }, 180_000);
    afterAll(() => on?.stage.stop());

    const state: MigrationStage['state'] = (name, columns) => on.state(name, columns);
    const alter: MigrationStage['alter'] = (name, ...steps) => on.alter(name, ...steps);
    const create = (schema: string, options = ''): Promise<unknown> =>
      client.query(`CREATE MIGRATION ${schema} ALTER TABLE ${schema}.orders ALTER COLUMN id TYPE bigint WITH (CUTOVER = MANUAL${options})`);

    test('takes along whatever hangs on the table, and back', { timeout: 120_000 }, async () => {
      await upstream.query(shop('shop'));
      const before = await factsOf(upstream, 'shop');
      await create('shop');
      expect(await state('shop')).toEqual(['ready', null]);
      expect(changesOf(before, await factsOf(upstream, 'shop'))).toEqual({ gone: [], come: [] });
      const wanted = `SELECT id::bigint, customer_id, ${rest} FROM shop.orders`;
      await upstream.query(`CREATE TABLE expected AS ${wanted}`);

      await alter('shop', 'CUTOVER');
      expect(await state('shop')).toEqual(['cut_over', null]);
      const after = await factsOf(upstream, 'shop');
      const widened = (line: string): string =>
        line
          .replace('sequence orders_id_seq integer 1..2147483647', 'sequence orders_id_seq bigint 1..9223372036854775807')
          .replace('column orders.id integer', 'column orders.id bigint');
      expect(changesOf(before.map(widened), after)).toEqual({ gone: [], come: [] });

      // Writers go on by the name they know, and old ones see what they know.
      await clerk.query('SET search_path = shop; PREPARE add AS INSERT INTO orders (customer_id, code) VALUES (1, $1) RETURNING id');
      expect(await clerk.rows("EXECUTE add ('by name')")).toEqual([['21']]);
      await clerk.query('SET search_path = shop_old, shop');
      expect(await clerk.rows("SELECT pg_typeof(id)::text, id FROM orders WHERE code = 'by name'")).toEqual([['integer', 21]]);
      expect(
        await clerk.rows("INSERT INTO orders (customer_id, code, price) VALUES (2, 'old', 5) RETURNING id, state, doubled, ticket"),
      ).toEqual([[22, 'new', '10.00', '22']]);
      expect((await clerk.query("UPDATE orders SET state = 'paid', price = price + 1 WHERE id IN (1, 22)")).rowCount).toBe(2);
      expect(await clerk.rows('DELETE FROM orders WHERE id = 3 RETURNING id, code')).toEqual([[3, 'c3']]);
      expect(await clerk.failure("UPDATE orders SET code = 'x' WHERE id = 1")).toMatch(/42501/);
      expect(await clerk.failure("INSERT INTO orders (customer_id, code) VALUES (1, 'old')")).toMatch(/23505.*orders_code_once/s);
      expect(await clerk.failure('INSERT INTO orders (customer_id, price) VALUES (1, -1)')).toMatch(/23514.*price_positive/s);
      expect(await clerk.failure('INSERT INTO orders (customer_id) VALUES (77)')).toMatch(/23503.*orders_customer/s);
      await upstream.query('DELETE FROM shop.orders WHERE id = 2');
      expect(await upstream.rows('SELECT order_id FROM shop.order_items')).toEqual([[1]]);
      expect(await upstream.rows('SELECT order_id, state FROM shop.audit WHERE order_id > 20')).toEqual([
        ['21', 'new'],
        ['22', 'new'],
      ]);
      expect(await clerk.rows("SELECT code FROM shop.open_orders WHERE code IN ('old', 'by name')")).toEqual([['by name']]);
      await upstream.query(`DELETE FROM expected WHERE id IN (2, 3); UPDATE expected SET state = 'paid', price = price + 1, doubled = (price + 1) * 2, updated_at = '2020-01-01Z' WHERE id = 1;
        INSERT INTO expected SELECT 21, 1, NULL, 'by name', 1, t.ticket, 'new', NULL, 2, NULL FROM shop.orders t WHERE id = 21;
        INSERT INTO expected SELECT 22, 2, NULL, 'old', 6, 22, 'paid', NULL, 12, '2020-01-01Z'`);
      const compare = (relation: string) => expectSame(upstream, wanted.replace('shop.orders', relation), 'SELECT * FROM expected');
      await compare('shop.orders');
      await compare('shop_old.orders');
      await alter('shop', 'VERIFY');
      expect(await upstream.rows("SELECT differences, repaired FROM millrace.migrations WHERE name = 'shop'")).toEqual([['0', '0']]);

      await alter('shop', 'REVERT');
      await alter('shop', 'VERIFY');
      expect(changesOf(before, await factsOf(upstream, 'shop'))).toEqual({ gone: [], come: [] });
      await compare('shop.orders');
      await clerk.query('SET search_path = shop_new, shop');
      expect(await clerk.rows("INSERT INTO orders (customer_id, code) VALUES (1, 'new') RETURNING id > 22, pg_typeof(id)::text")).toEqual([
        [true, 'bigint'],
      ]);
      await upstream.query(
        "INSERT INTO expected SELECT id, 1, NULL, 'new', 1, ticket, 'new', NULL, 2, NULL FROM shop.orders WHERE code = 'new'",
      );
      await compare('shop.orders');

      // What the user changes meanwhile goes along, too.
      await upstream.query('GRANT REFERENCES ON shop.orders TO clerk; REVOKE DELETE ON shop.orders FROM clerk');
      const changed = await factsOf(upstream, 'shop');
      await alter('shop', 'CUTOVER');
      expect(changesOf(changed.map(widened), await factsOf(upstream, 'shop'))).toEqual({ gone: [], come: [] });
      await alter('shop', 'FINALIZE');
      expect(await state('shop')).toEqual(['finished', null]);
      expect(changesOf(changed.map(widened), await factsOf(upstream, 'shop'))).toEqual({ gone: [], come: [] });
      expect(await leftBehind(upstream)).toEqual([]);
      await compare('shop.orders');
      expect(await upstream.rows("INSERT INTO shop.orders (customer_id, code) VALUES (1, 'last') RETURNING id > 23")).toEqual([[true]]);
    });

    test('leaves no trace when it is cancelled', { timeout: 60_000 }, async () => {
      await upstream.query(shop('gone'));
      const before = await factsOf(upstream, 'gone');
      await create('gone');
      await alter('gone', 'CANCEL');
      expect(await state('gone')).toEqual(['cancelled', null]);
      expect(changesOf(before, await factsOf(upstream, 'gone'))).toEqual({ gone: [], come: [] });
      expect(await leftBehind(upstream)).toEqual([]);
    });

    test('an identity column keeps its sequence by name, rights and value', { timeout: 60_000 }, async () => {
      await upstream.query(`CREATE SCHEMA ids; CREATE TABLE ids.t (id int GENERATED ALWAYS AS IDENTITY (START 5 INCREMENT 5) PRIMARY KEY, a text); INSERT INTO ids.t (a) VALUES ('a'), ('b');
        GRANT ALL ON ids.t TO clerk; GRANT USAGE ON SEQUENCE ids.t_id_seq TO clerk; GRANT USAGE ON SCHEMA ids TO clerk`);
      const before = await factsOf(upstream, 'ids');
      await client.query('CREATE MIGRATION ids ALTER TABLE ids.t ALTER COLUMN id TYPE bigint WITH (CUTOVER = MANUAL)');
      await alter('ids', 'CUTOVER');
      const widened = (line: string): string =>
        line
          .replace('sequence t_id_seq integer 1..2147483647', 'sequence t_id_seq bigint 1..9223372036854775807')
          .replace('t.id integer', 't.id bigint');
      expect(changesOf(before.map(widened), await factsOf(upstream, 'ids'))).toEqual({ gone: [], come: [] });
      expect(await clerk.rows("INSERT INTO ids.t (a) VALUES ('c') RETURNING id")).toEqual([['15']]);
      expect(await clerk.rows("INSERT INTO ids_old.t (a) VALUES ('d') RETURNING id")).toEqual([[20]]);
      await alter('ids', 'REVERT');
      expect(changesOf(before, await factsOf(upstream, 'ids'))).toEqual({ gone: [], come: [] });
      expect(await clerk.rows("INSERT INTO ids.t (a) VALUES ('e') RETURNING id")).toEqual([[25]]);
      expect(await clerk.rows("INSERT INTO ids_new.t (a) VALUES ('f') RETURNING id")).toEqual([['30']]);
      await alter('ids', 'VERIFY');
      await alter('ids', 'CUTOVER');
      await alter('ids', 'FINALIZE');
      expect(changesOf(before.map(widened), await factsOf(upstream, 'ids'))).toEqual({ gone: [], come: [] });
      expect(await leftBehind(upstream)).toEqual([]);
      await expectRows(upstream, 'SELECT id, a FROM ids.t', "(5, 'a'), (10, 'b'), (15, 'c'), (20, 'd'), (25, 'e'), (30, 'f')");
    });

    test('two tables of one name in two schemas at once', { timeout: 60_000 }, async () => {
      for (const schema of ['one', 'two']) {
        await upstream.query(
          `CREATE SCHEMA ${schema}; CREATE TABLE ${schema}.t (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, a text UNIQUE); INSERT INTO ${schema}.t (a) VALUES ('${schema}')`,
        );
        await client.query(`CREATE MIGRATION ${schema} ALTER TABLE ${schema}.t ALTER COLUMN id TYPE bigint WITH (CUTOVER = MANUAL)`);
      }
      for (const what of ['CUTOVER', 'REVERT', 'VERIFY', 'CUTOVER', 'FINALIZE']) {
        for (const schema of ['one', 'two']) await alter(schema, what);
      }
      await expectRows(upstream, 'SELECT * FROM one.t UNION ALL SELECT * FROM two.t', "(1::bigint, 'one'), (1, 'two')");
      expect(await leftBehind(upstream)).toEqual([]);
    });

    test('SPLIT COLUMN: both shapes are read and written, before and after', { timeout: 120_000 }, async () => {
      await upstream.query(`CREATE SCHEMA people AUTHORIZATION shopkeeper; GRANT USAGE ON SCHEMA people TO clerk; SET ROLE shopkeeper; SET search_path = people;
        CREATE TABLE users (id serial PRIMARY KEY, name text, age int NOT NULL DEFAULT 18, mail text CONSTRAINT one_mail UNIQUE, born int GENERATED ALWAYS AS (2020 - age) STORED, k1 int, cur int);
        COMMENT ON TABLE users IS 'people';
        CREATE TABLE posts (user_id int REFERENCES users ON DELETE CASCADE, what text);
        INSERT INTO users (name) SELECT 'First' || i || ' Last' || i FROM generate_series(1, 5) i; INSERT INTO posts VALUES (1, 'p'), (2, 'q');
        CREATE VIEW ages AS SELECT id, age FROM users; CREATE INDEX by_age ON users (age);
        GRANT SELECT, INSERT, UPDATE, DELETE ON users TO clerk; GRANT USAGE ON SEQUENCE users_id_seq TO clerk; RESET ROLE; RESET search_path`);
      const before = await factsOf(upstream, 'people');
      await client.query(`CREATE MIGRATION people SPLIT COLUMN people.users.name INTO (first_name text AS split_part(name, ' ', 1), last_name text AS split_part(name, ' ', 2))
        DOWN (first_name || ' ' || last_name) WITH (CUTOVER = MANUAL)`);
      const oldOne = await on.stage.connect('clerk');
      const newOne = await on.stage.connect('clerk');
      await oldOne.query('SET search_path = people');
      await newOne.query('SET search_path = people_new, people');
      await upstream.query('CREATE TABLE expected_people AS SELECT id, name, age, born FROM people.users');
      let next = 5;
      const workload = async (): Promise<void> => {
        const id = ++next;
        expect(await oldOne.rows(`INSERT INTO users (name) VALUES ('Old ${id}') RETURNING id, name, age, born`)).toEqual([
          [id, `Old ${id}`, 18, 2002],
        ]);
        const other = ++next;
        expect(
          await newOne.rows(
            `INSERT INTO users (first_name, last_name, age) VALUES ('New', '${other}', 20) RETURNING id, first_name, last_name, born`,
          ),
        ).toEqual([[other, 'New', String(other), 2000]]);
        expect(await newOne.rows(`UPDATE users SET last_name = 'Changed' WHERE id = ${id} RETURNING first_name, last_name`)).toEqual([
          ['Old', 'Changed'],
        ]);
        expect(await oldOne.rows(`UPDATE users SET name = 'Whole Name' WHERE id = ${other} RETURNING name, age`)).toEqual([
          ['Whole Name', 20],
        ]);
        expect((await oldOne.query(`UPDATE users SET age = age + 1 WHERE id = ${other}`)).rowCount).toBe(1);
        expect((await newOne.query(`UPDATE users SET age = age + 1, cur = 3, k1 = 4 WHERE id = ${other}`)).rowCount).toBe(1);
        expect(await newOne.rows(`SELECT first_name, last_name, age, cur, k1 FROM users WHERE id = ${other}`)).toEqual([
          ['Whole', 'Name', 22, 3, 4],
        ]);
        const both = `(${++next}, 'To Delete'), (${++next}, 'To Delete')`;
        await oldOne.query(`INSERT INTO users (id, name) VALUES ${both}`);
        await oldOne.query("SELECT nextval('users_id_seq'), nextval('users_id_seq')");
        expect((await newOne.query(`DELETE FROM users WHERE id = ${next}`)).rowCount).toBe(1);
        expect(await oldOne.rows(`DELETE FROM users WHERE id = ${next - 1} RETURNING name`)).toEqual([['To Delete']]);
        expect(await oldOne.failure(`INSERT INTO users (id, name) VALUES (${id}, 'again')`)).toMatch(/23505.*users_pkey/s);
        expect(await upstream.rows(`SELECT * FROM people.ages WHERE id = ${other}`)).toEqual([[other, 22]]);
        await upstream.query(`INSERT INTO expected_people VALUES (${id}, 'Old Changed', 18, 2002), (${other}, 'Whole Name', 22, 1998)`);
        await expectSame(upstream, 'SELECT id, name, age, born FROM people.users', 'SELECT * FROM expected_people');
        await expectSame(
          upstream,
          "SELECT id, first_name || ' ' || last_name, age, born FROM people_new.users",
          'SELECT * FROM expected_people',
        );
      };
      await workload();
      await alter('people', 'CUTOVER');
      expect(await state('people')).toEqual(['cut_over', null]);
      await workload();
      await alter('people', 'VERIFY');
      expect(await upstream.rows("SELECT differences, repaired FROM millrace.migrations WHERE name = 'people'")).toEqual([['0', '0']]);
      await alter('people', 'REVERT');
      expect(changesOf(before, await factsOf(upstream, 'people'))).toEqual({ gone: [], come: [] });
      await workload();
      await alter('people', 'VERIFY');
      await alter('people', 'CUTOVER');
      await workload();
      await alter('people', 'FINALIZE');
      expect(await state('people')).toEqual(['finished', null]);
      expect(await leftBehind(upstream)).toEqual([]);
      expect(changesOf(before, await factsOf(upstream, 'people'))).toEqual({
        gone: [expect.stringContaining('column users.name text')],
        come: [expect.stringContaining('column users.first_name text'), expect.stringContaining('column users.last_name text')],
      });
      await expectSame(upstream, "SELECT id, first_name || ' ' || last_name, age, born FROM people.users", 'SELECT * FROM expected_people');
      expect((await clerk.query("INSERT INTO people.users (first_name) VALUES ('End')")).rowCount).toBe(1);
    });
  });
}

async function expectSame(client: TestClient, query: string, wanted: string): Promise<void> {
  const sides = [`missing`, wanted, query, 'not wanted', query, wanted] as const;
  const different = await client.rows(
    `SELECT '${sides[0]}', x::text FROM (${sides[1]} EXCEPT ALL ${sides[2]}) x UNION ALL SELECT '${sides[3]}', x::text FROM (${sides[4]} EXCEPT ALL ${sides[5]}) x`,
  );
  expect(different).toEqual([]);
}
