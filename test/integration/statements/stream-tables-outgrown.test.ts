/** Stream tables whose sources are no longer what they were planned for: suspended with the reason, and planned again when that is asked for. */
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type Stage, simpleSource, startStage, type TestClient } from './stage.ts';

let stage: Stage;
let client: TestClient;
let origin: TestClient;

beforeAll(async () => {
  stage = await startStage({ upstream: { settings: { wal_level: 'logical' } } });
  client = await stage.connect();
  origin = await simpleSource(stage, client);
}, 120_000);
afterAll(() => stage?.stop());

const create = (name: string, query: string, rest = ''): Promise<unknown> =>
  client.query(`SELECT pgtrickle.create_stream_table('${name}', $q$${query}$q$${rest})`);
const statusOf = async (name: string): Promise<unknown> =>
  (await client.rows("SELECT status FROM pgtrickle.pgt_stream_tables WHERE pgt_name = $1 AND pgt_schema = 'public'", [name]))[0]?.[0];
const becomes = async (name: string, status: string): Promise<void> => expect.poll(() => statusOf(name), { timeout: 20_000 }).toBe(status);
const typesOf = async (name: string): Promise<unknown> =>
  (
    await client.rows(
      `SELECT string_agg(format_type(atttypid, atttypmod), ', ' ORDER BY attnum) FROM pg_attribute WHERE attrelid = '${name}'::regclass AND attnum > 0`,
    )
  )[0]?.[0];

test('a column of another type: planned again with it, and what reads the stream table follows', async () => {
  await client.query(
    "CREATE TABLE sale (id int PRIMARY KEY, shop text, amount int); INSERT INTO sale SELECT g, 'shop ' || g % 3, g FROM generate_series(1, 30) g",
  );
  await create('amounts', 'SELECT id, shop, amount FROM sale WHERE amount > 5', ', pooler_compatibility_mode => true');
  await create('most', 'SELECT shop, max(amount) AS most FROM amounts GROUP BY shop');
  const before = await client.rows("SELECT pgt_id FROM pgtrickle.pgt_stream_tables WHERE pgt_name = 'amounts'");
  await client.query('ALTER TABLE sale ALTER COLUMN amount TYPE bigint');
  await becomes('amounts', 'ERROR');
  expect(await client.failure('SELECT * FROM amounts')).toMatchInlineSnapshot(`
    "ERROR 42703: stream table is suspended: column "amount" of public.sale changed from type integer to bigint
    DETAIL: What it holds was computed for the table as it was; other stream tables over the same table go on.
    HINT: SELECT pgtrickle.reinitialize_stream_table('public.amounts'); if the query can be run on the table as it is now, else SELECT pgtrickle.alter_stream_table('public.amounts', query => $$SELECT ...$$); with one that can, or SELECT pgtrickle.drop_stream_table('public.amounts');"
  `);
  await client.query('INSERT INTO sale VALUES (100, $$shop 1$$, 5000000000)');
  expect(await client.rows("SELECT pgtrickle.reinitialize_stream_table('amounts')")).toEqual([
    ['stream table public.amounts is planned and filled again for its sources as they are now'],
  ]);
  expect(await typesOf('amounts')).toBe('integer, text, bigint');
  expect(await client.rows('SELECT count(*)::int, max(amount) FROM amounts')).toEqual([[26, '5000000000']]);
  await becomes('most', 'ACTIVE');
  await client.query('UPDATE sale SET amount = 6000000000 WHERE id = 100');
  await expect.poll(() => client.rows("SELECT most FROM most WHERE shop = 'shop 1'"), { timeout: 20_000 }).toEqual([['6000000000']]);
  expect(await client.rows("SELECT pgt_id, pooler_compatibility_mode FROM pgtrickle.pgt_stream_tables WHERE pgt_name = 'amounts'")).toEqual(
    [[before[0]?.[0], true]],
  );
});

test('a query that cannot be run on the table any more is refused as Postgres refuses it; one for the table as it is now takes its place', async () => {
  await client.query('CREATE TABLE tool (id int PRIMARY KEY, name text, price int); INSERT INTO tool VALUES (1, $$saw$$, 5)');
  await create('prices', 'SELECT id, price FROM tool');
  await client.query('ALTER TABLE tool DROP COLUMN price');
  await becomes('prices', 'ERROR');
  expect(await client.failure("SELECT pgtrickle.reinitialize_stream_table('prices')")).toMatch(
    /^ERROR 42703: column .*price.* does not exist/,
  );
  expect(await statusOf('prices')).toBe('ERROR');
  await client.query("SELECT pgtrickle.alter_stream_table('prices', query => 'SELECT id, name FROM tool')");
  expect(await client.rows('SELECT * FROM prices')).toEqual([[1, 'saw']]);
});

test('what another stream table has noted of the new type does not make the old plan fit', async () => {
  await client.query('CREATE TABLE fee (id int PRIMARY KEY, cents int, note text); INSERT INTO fee VALUES (1, 10, $$a$$)');
  await create('cents', 'SELECT id, cents FROM fee');
  await create('notes_of', 'SELECT id, note FROM fee');
  await client.query('ALTER TABLE fee ALTER COLUMN cents TYPE bigint');
  await becomes('cents', 'ERROR');
  await client.query("INSERT INTO fee VALUES (2, 5000000000, 'b')");
  await expect.poll(() => client.rows('SELECT count(*)::int FROM notes_of'), { timeout: 20_000 }).toEqual([[2]]);
  // It goes on only to find the same again.
  await client.query("SELECT pgtrickle.resume_stream_table('cents')");
  await becomes('cents', 'ERROR');
  expect(await client.failure('SELECT * FROM cents')).toMatch(/changed from type integer to bigint/);
  await client.query("SELECT pgtrickle.reinitialize_stream_table('cents')");
  expect(await client.rows('SELECT max(cents) FROM cents')).toEqual([['5000000000']]);
});

test('a table dropped and made again', async () => {
  await client.query('CREATE TABLE note (id int PRIMARY KEY, n int); INSERT INTO note VALUES (1, 1)');
  await create('notes', 'SELECT count(*) AS n FROM note');
  await client.query('DROP TABLE note; CREATE TABLE note (id int PRIMARY KEY, n int); INSERT INTO note VALUES (1, 1), (2, 2)');
  await becomes('notes', 'ERROR');
  await client.query("SELECT pgtrickle.alter_stream_table('notes', query => 'SELECT count(*) AS n FROM note')");
  expect(await client.rows('SELECT * FROM notes')).toEqual([['2']]);
  await client.query('DROP TABLE note; CREATE TABLE note (id int PRIMARY KEY, n int)');
  await becomes('notes', 'ERROR');
  await client.query("SELECT pgtrickle.reinitialize_stream_table('notes')");
  expect(await client.rows('SELECT * FROM notes')).toEqual([['0']]);
});

test('a column that has got a wider type at the origin', async () => {
  await origin.query('CREATE TABLE wide (a int PRIMARY KEY, n int); INSERT INTO wide VALUES (1, 1), (2, 2)');
  await client.query('CREATE TABLE wide FROM SOURCE s (REFERENCE public.wide)');
  await create('sums', 'SELECT sum(n) AS total, max(n) AS most FROM wide');
  await origin.query('ALTER TABLE wide ALTER COLUMN n TYPE bigint; INSERT INTO wide VALUES (3, 5000000000)');
  await becomes('sums', 'ERROR');
  expect(await client.failure('SELECT * FROM sums')).toMatchInlineSnapshot(`
    "ERROR 42804: stream table is suspended: a column that it uses has changed at the origin
    DETAIL: A type has become wider, or a value of an enum has got another name; what it holds was made before.
    HINT: SELECT pgtrickle.reinitialize_stream_table('public.sums'); plans and fills it again for the column as it is now."
  `);
  await client.query("SELECT pgtrickle.reinitialize_stream_table('sums')");
  expect(await client.rows('SELECT * FROM sums')).toEqual([['5000000003', '5000000000']]);
  expect(await typesOf('sums')).toBe('numeric, bigint');
});

test('one that is kept within the writing statements', async () => {
  await client.query('CREATE TABLE hit (id int PRIMARY KEY, page text, n int); INSERT INTO hit VALUES (1, $$a$$, 1), (2, $$b$$, 2)');
  await create('hits', 'SELECT page, sum(n) AS n FROM hit GROUP BY page', ", refresh_mode => 'IMMEDIATE'");
  await client.query('ALTER TABLE hit ALTER COLUMN n TYPE bigint; INSERT INTO hit VALUES (3, $$a$$, 5000000000)');
  await becomes('hits', 'ERROR');
  await client.query("SELECT pgtrickle.reinitialize_stream_table('hits')");
  await client.query("BEGIN; INSERT INTO hit VALUES (4, 'b', 5000000000)");
  expect(await client.rows('SELECT * FROM hits ORDER BY page')).toEqual([
    ['a', '5000000001'],
    ['b', '5000000002'],
  ]);
  await client.query('COMMIT');
  await client.query('ALTER TABLE hit ADD COLUMN seconds int DEFAULT 3');
  await create('seconds', 'SELECT sum(seconds) AS n FROM hit', ", refresh_mode => 'IMMEDIATE'");
  await client.query("INSERT INTO hit VALUES (5, 'c', 1, 10)");
  expect(await client.rows('SELECT * FROM seconds')).toEqual([['22']]);
});

test('another role cannot', async () => {
  await client.query('CREATE ROLE other LOGIN');
  const other = await stage.connect('other');
  expect(await other.failure("SELECT pgtrickle.reinitialize_stream_table('sums')")).toMatch(/^ERROR 42501/);
});
