/** Another query for a stream table that other stream tables read. */
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type Stage, startStage, type TestClient } from './stage.ts';

let stage: Stage;
let client: TestClient;

beforeAll(async () => {
  stage = await startStage({ upstream: { settings: { wal_level: 'logical' } } });
  client = await stage.connect();
  await client.query('CREATE TABLE sale (id int PRIMARY KEY, shop text NOT NULL, amount int NOT NULL)');
  await client.query("INSERT INTO sale SELECT g, 'shop ' || g % 7, g FROM generate_series(1, 20000) g");
}, 120_000);
afterAll(() => stage?.stop());

const create = (name: string, query: string, rest = ''): Promise<unknown> =>
  client.query(`SELECT pgtrickle.create_stream_table('${name}', $q$${query}$q$${rest})`);
const alter = (name: string, query: string, rest = ''): Promise<unknown> =>
  client.query(`SELECT pgtrickle.alter_stream_table('${name}', query => $q$${query}$q$${rest})`);
const drop = (...names: string[]): Promise<unknown> => client.query(`SELECT pgtrickle.bulk_drop_stream_tables('{${names.join(',')}}')`);

const byShop = 'SELECT shop, sum(amount) AS total FROM sale GROUP BY shop';
const large = 'SELECT shop, total FROM by_shop WHERE total > 28560000';
const counted = 'SELECT count(*) AS n FROM large';

async function createThree(): Promise<void> {
  await create('by_shop', byShop);
  await create('large', large);
  await create('counted', counted);
}

test('those that read it follow, whatever they read each other by, and go on being who they were', async () => {
  await createThree();
  await client.query('CREATE VIEW seen AS SELECT shop FROM large');
  await create('through', 'SELECT l.shop, s.total FROM seen l JOIN by_shop s USING (shop)');
  const before = await client.rows('SELECT pgt_id, pgt_relid, pgt_name, original_query FROM pgtrickle.pgt_stream_tables ORDER BY 1');
  await alter('by_shop', "SELECT shop, sum(10 * amount) AS total FROM sale WHERE shop <> 'shop 3' GROUP BY shop");
  const after = await client.rows('SELECT pgt_id, pgt_relid, pgt_name, original_query FROM pgtrickle.pgt_stream_tables ORDER BY 1');
  expect(after.slice(1)).toEqual(before.slice(1));
  expect(after[0]?.slice(0, 3)).toEqual(before[0]?.slice(0, 3));
  const agree = async (): Promise<void> => {
    expect(await client.rows('SELECT n FROM counted')).toEqual(await client.rows('SELECT count(*) FROM large'));
    expect(await client.rows('TABLE large EXCEPT SELECT * FROM by_shop WHERE total > 28560000')).toEqual([]);
    expect(await client.rows('SELECT count(*) FROM through JOIN by_shop USING (shop, total)')).toEqual(await client.rows('TABLE counted'));
  };
  await agree();
  expect(await client.rows('SELECT n FROM counted')).toEqual([['6']]);
  await client.query("INSERT INTO sale VALUES (0, 'new shop', 28560001)");
  await expect.poll(() => client.rows('TABLE counted'), { timeout: 20_000 }).toEqual([['7']]);
  await agree();
  expect(await client.rows("SELECT name FROM pgtrickle.pgt_status() WHERE status <> 'ACTIVE'")).toEqual([]);
  // Nothing is left of the former ones.
  await expect
    .poll(
      () => client.rows("SELECT count(*)::int FROM pg_class WHERE relnamespace = 'millrace_data'::regnamespace AND relname ~ '^r\\d+$'"),
      {
        timeout: 20_000,
      },
    )
    .toEqual([[4]]);
  await client.query('DELETE FROM sale WHERE id = 0');
  await drop('through');
  await client.query('DROP VIEW seen');
  await drop('counted', 'large', 'by_shop');
});

test('a reader sees all of the old or all of the new', async () => {
  await createThree();
  const other = await stage.direct(stage.upstream);
  const seen = new Set<string>();
  let done = false;
  const looking = (async () => {
    while (!done) {
      const [row] = await other.rows(
        'SELECT (SELECT sum(total) FROM by_shop)::text, (SELECT n FROM counted), (SELECT count(*) FROM large)',
      );
      seen.add(JSON.stringify(row));
    }
  })();
  const slow = await stage.direct(stage.upstream);
  await slow.query('BEGIN; SELECT FROM large');
  await client.query('SET millrace.wait = off');
  await alter('by_shop', 'SELECT shop, sum(2 * amount) AS total FROM sale GROUP BY shop');
  // What is about to go cannot be read by another one.
  await expect(create('late', 'SELECT count(*) FROM large')).rejects.toThrow(
    'stream table public.large is being given another query: try again when that is done',
  );
  await client.query('RESET millrace.wait');
  await slow.query('COMMIT');
  await expect.poll(() => client.rows('SELECT sum(total)::text FROM by_shop'), { timeout: 30_000 }).toEqual([['400020000']]);
  done = true;
  await looking;
  const [now] = await other.rows('SELECT (SELECT sum(total) FROM by_shop)::text, (SELECT n FROM counted), (SELECT count(*) FROM large)');
  expect([...seen].filter((row) => row !== JSON.stringify(now))).toHaveLength(1);
  expect(now).toEqual(['400020000', '7', '7']);
  await drop('counted', 'large', 'by_shop');
});

test('with other columns those follow that do not use what is gone; else nothing happens, and it says who is in the way', async () => {
  await createThree();
  await alter('by_shop', 'SELECT shop, count(*) AS n, sum(amount) AS total FROM sale GROUP BY shop');
  expect(await client.rows('SELECT count(*)::int FROM by_shop WHERE n > 2000')).toEqual([[7]]);
  expect(await client.rows('TABLE counted')).toEqual(await client.rows('SELECT count(*) FROM large'));
  await expect(alter('by_shop', 'SELECT shop, count(*) AS n FROM sale GROUP BY shop')).rejects.toThrow(
    'stream table public.by_shop has dependent stream tables: public.large, which cannot be kept over the new query: column "total" does not exist',
  );
  await expect(alter('by_shop', 'SELECT shop, 1 AS n, 1::text AS total FROM sale')).rejects.toThrow('operator does not exist');
  await expect(alter('by_shop', 'SELECT shop, n, total FROM large JOIN counted ON true')).rejects.toThrow(
    'cycle detected in dependency graph: public.by_shop -> public.large -> public.by_shop',
  );
  await expect(alter('by_shop', byShop, ", refresh_mode => 'IMMEDIATE'")).rejects.toThrow('IMMEDIATE mode is not entered or left together');
  await client.query("SELECT pgtrickle.pause_stream_table('large')");
  await expect(alter('by_shop', byShop)).rejects.toThrow('public.large, which cannot be kept over the new query: it is paused');
  await client.query("SELECT pgtrickle.resume_stream_table('large')");
  expect(await client.rows('SELECT count(*)::int FROM by_shop WHERE n > 2000')).toEqual([[7]]);
  await drop('counted', 'large', 'by_shop');
});

test('when one of them cannot be filled nothing has changed', async () => {
  await createThree();
  await create('ratios', 'SELECT shop, 1000 / (total - 28571428) AS r FROM by_shop');
  const before = await client.rows('SELECT * FROM by_shop ORDER BY 1');
  await expect(alter('by_shop', 'SELECT shop, sum(amount) * 0 + 28571428 AS total FROM sale GROUP BY shop')).rejects.toThrow(
    'division by zero',
  );
  expect(await client.rows('SELECT * FROM by_shop ORDER BY 1')).toEqual(before);
  await client.query("UPDATE sale SET amount = amount + 1 WHERE shop = 'shop 1'");
  await expect.poll(() => client.rows(`TABLE by_shop EXCEPT ${byShop}`), { timeout: 20_000 }).toEqual([]);
  expect(await client.rows("SELECT count(*)::int FROM pgtrickle.pgt_stream_tables WHERE status = 'ACTIVE'")).toEqual([[4]]);
});
