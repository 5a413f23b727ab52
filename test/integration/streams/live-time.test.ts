/** Live materialized views that compare with the time: rows leave and enter by themselves, and whoever reads them sees one time. */
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { atClock } from '../../property/ivm/live-database.ts';
import { eventually, leadsTo, type Stage, startStage, type TestClient } from '../statements/stage.ts';

let stage: Stage;
let client: TestClient;
let origin: TestClient;
let upstream: TestClient;

const views = {
  recent: "SELECT id, kind FROM event WHERE at > now() - interval '2 seconds'",
  sums: "SELECT kind, count(*) AS n, sum(id) AS s FROM event WHERE at > CURRENT_TIMESTAMP - interval '3 seconds' GROUP BY kind",
  live: "SELECT id FROM event WHERE mz_now() >= at AND mz_now() < at + interval '2500 milliseconds'",
  valid: 'SELECT e.id, k.weight FROM event e JOIN kind k ON k.name = e.kind AND k.until > now() WHERE mz_now() <= e.ms',
  marked: "SELECT id, CASE WHEN at > now() - interval '1500 milliseconds' THEN 'new' ELSE 'old' END AS age FROM event",
  last: "SELECT kind, max(at) AS at FROM event GROUP BY kind HAVING max(at) > now() - interval '2 seconds'",
  days: 'SELECT count(*) AS n FROM event WHERE day >= CURRENT_DATE',
};
const over = { over_recent: 'SELECT kind, count(*) AS n FROM recent GROUP BY kind' };

/** What Postgres itself reads for mz_now(). */
const plain = (query: string): string =>
  query
    .replace('mz_now() <= e.ms', 'millrace.mz_now(e.ms) <= e.ms')
    .replace('mz_now() >= at', 'millrace.mz_now(e.at) >= e.at')
    .replace('mz_now() < at', 'millrace.mz_now(e.at) < e.at')
    .replace('FROM event WHERE millrace', 'FROM event e WHERE millrace');

beforeAll(async () => {
  stage = await startStage();
  [client, origin, upstream] = [await stage.connect(), await stage.direct(stage.origin), await stage.direct(stage.upstream)];
  await upstream.query("SET timezone = 'UTC'");
  await origin.query(`
    CREATE TABLE event (id integer PRIMARY KEY, kind text, at timestamptz, ms bigint, day date);
    CREATE TABLE kind (name text PRIMARY KEY, weight integer, until timestamptz);
    INSERT INTO kind VALUES ('a', 1, 'infinity'), ('b', 2, now() + interval '5 seconds'), ('c', 3, now() + interval '1 hour');
    CREATE PUBLICATION mz_source FOR ALL TABLES`);
  await client.query(`CREATE CONNECTION c TO POSTGRES (${leadsTo(stage.origin)})`);
  await client.query("CREATE SOURCE s FROM POSTGRES CONNECTION c (PUBLICATION 'mz_source')");
  await client.query('CREATE TABLE event FROM SOURCE s (REFERENCE public.event)');
  await client.query('CREATE TABLE kind FROM SOURCE s (REFERENCE public.kind)');
  for (const [name, query] of Object.entries({ ...views, ...over })) await client.query(`CREATE MATERIALIZED VIEW ${name} AS ${query}`);
}, 180_000);

afterAll(async () => await stage?.stop());

/** Names of the views that are not their query at the clock's time, in one snapshot. */
async function wrong(): Promise<string[]> {
  const found: string[] = [];
  await upstream.query('BEGIN ISOLATION LEVEL REPEATABLE READ');
  for (const [name, query] of Object.entries({ ...views, ...over })) {
    const [row] = await upstream.rows(`
      SELECT count(*)::int FROM ((SELECT x::text FROM (${atClock(plain(query))}) x EXCEPT ALL SELECT x::text FROM ${name} x)
        UNION ALL (SELECT x::text FROM ${name} x EXCEPT ALL SELECT x::text FROM (${atClock(plain(query))}) x)) d`);
    if (row?.[0] !== 0) found.push(name);
  }
  await upstream.query('COMMIT');
  return found;
}

/** Names of the views that are not their query at this time. */
async function late(): Promise<string[]> {
  const found: string[] = [];
  for (const [name, query] of Object.entries(views)) {
    const [row] = await upstream.rows(`
      SELECT count(*)::int FROM ((SELECT x::text FROM (${plain(query)}) x EXCEPT ALL SELECT x::text FROM ${name} x)
        UNION ALL (SELECT x::text FROM ${name} x EXCEPT ALL SELECT x::text FROM (${plain(query)}) x)) d`);
    if (row?.[0] !== 0) found.push(name);
  }
  return found;
}

const write = (from: number, count: number): Promise<unknown> =>
  origin.query(`
    INSERT INTO event
    SELECT g, 'abc'::char(3) , now() + make_interval(secs => random() * 4 - 2), floor(extract(epoch FROM now()) * 1000) + random() * 3000, current_date
      FROM generate_series(${from}, ${from + count - 1}) g`);

test('they are made, and told what they are', async () => {
  const rows = await client.rows("SELECT name::text, strategy FROM millrace.relations WHERE type = 'materialized view' ORDER BY 1");
  expect(Object.fromEntries(rows as [string, string][])).toEqual({
    days: 'algebraic',
    last: 'keyed',
    live: 'algebraic',
    marked: 'algebraic',
    over_recent: 'algebraic',
    recent: 'algebraic',
    sums: 'algebraic',
    valid: 'algebraic',
  });
});

test('while rows come and go, every snapshot shows all of them at one time, and that is about now', { timeout: 60_000 }, async () => {
  const states = new Set<string>();
  let next = 1;
  for (const end = Date.now() + 10_000; Date.now() < end; ) {
    if (Math.random() < 0.3) {
      const count = 1 + Math.floor(Math.random() * 5);
      await origin.query('BEGIN');
      await write(next, count);
      await origin.query(
        `UPDATE event SET kind = chr(97 + (random() * 2)::int), at = at + interval '100 milliseconds' WHERE id > ${next - 4}`,
      );
      if (Math.random() < 0.2) await origin.query(`DELETE FROM event WHERE id % 5 = ${next % 5}`);
      await origin.query('COMMIT');
      next += count;
    }
    expect(await wrong()).toEqual([]);
    states.add(JSON.stringify(await upstream.rows('SELECT * FROM recent ORDER BY 1')));
    const [behind] = await upstream.rows('SELECT greatest(0, extract(epoch FROM clock_timestamp() - c2))::float8 FROM millrace_data.s0');
    expect(Number(behind?.[0])).toBeLessThan(5);
  }
  expect(states.size).toBeGreaterThan(10);
  await expect.poll(late, { timeout: 10_000 }).toEqual([]);
});

test('with nothing written rows leave within about a second of their time', { timeout: 60_000 }, async () => {
  await origin.query('DELETE FROM event');
  await eventually(client, 'SELECT count(*)::int FROM marked', [[0]]);
  await origin.query(
    "INSERT INTO event SELECT g, 'a', now() + g * interval '700 milliseconds', 0, current_date FROM generate_series(1, 4) g",
  );
  await eventually(client, 'SELECT count(*)::int FROM marked', [[4]]);
  const lags: number[] = [];
  for (let id = 1; id <= 4; id++) {
    await eventually(client, `SELECT count(*)::int FROM recent WHERE id = ${id}`, [[0]]);
    const [row] = await upstream.rows(
      `SELECT extract(epoch FROM clock_timestamp() - at - interval '2 seconds')::float8 FROM event WHERE id = ${id}`,
    );
    lags.push(Number(row?.[0]));
  }
  expect(Math.min(...lags)).toBeGreaterThan(0);
  expect(Math.max(...lags)).toBeLessThan(5);
  console.log(`rows left after ${lags.map((lag) => lag.toFixed(2)).join(', ')} s`);
  // Then it rests: no epoch without need.
  await sleep(1500);
  const epoch = async (): Promise<unknown> => (await upstream.rows('SELECT epoch::int FROM millrace.epoch'))[0]?.[0];
  const before = await epoch();
  await sleep(1500);
  expect(await epoch()).toBe(before);
});

test('a subscription is told of rows that leave', { timeout: 60_000 }, async () => {
  await origin.query('DELETE FROM event');
  await eventually(client, 'SELECT count(*)::int FROM recent', [[0]]);
  await origin.query("INSERT INTO event VALUES (900, 'a', now(), 0, current_date)");
  await eventually(client, 'SELECT count(*)::int FROM recent', [[1]]);
  const reader = await stage.connect();
  await reader.query('BEGIN');
  await reader.query('DECLARE x CURSOR FOR SUBSCRIBE over_recent');
  const told: unknown[][] = [];
  for (const end = Date.now() + 15_000; Date.now() < end && told.length < 2; )
    told.push(...(await reader.rows("FETCH ALL x WITH (TIMEOUT = '1s')")).map((row) => row.slice(1)));
  expect(told.map((row) => row.map(String))).toEqual([
    ['1', 'a', '1'],
    ['-1', 'a', '1'],
  ]);
  await reader.query('ROLLBACK');
});

test('what comes due while no Millrace runs, or its engine is killed, is taken in afterwards', { timeout: 90_000 }, async () => {
  await origin.query('DELETE FROM event');
  await origin.query("INSERT INTO event SELECT g, 'a', now() + g * interval '1 second', 0, current_date FROM generate_series(1, 6) g");
  await eventually(client, 'SELECT count(*)::int FROM recent', [[6]]);
  for (const pid of stage.millrace.enginePids()) process.kill(pid, 'SIGKILL');
  await origin.query(
    "INSERT INTO event VALUES (50, 'b', now() - interval '1 hour', 0, current_date), (51, 'b', now() + interval '1 hour', 0, current_date)",
  );
  await sleep(2000);
  await stage.millrace.waitReady(30_000);
  await expect.poll(late, { timeout: 20_000 }).toEqual([]);
  expect(await wrong()).toEqual([]);
  for (const pid of stage.millrace.enginePids()) process.kill(pid, 'SIGKILL');
  await stage.millrace.waitReady(30_000);
  await eventually(upstream, 'SELECT id FROM recent ORDER BY 1', [[51]]);
  expect(await wrong()).toEqual([]);
});

test('what does more with the time is refused', async () => {
  const refused = (query: string): Promise<string> => client.failure(`CREATE MATERIALIZED VIEW no AS ${query}`);
  expect(await refused('SELECT id, now() - at AS age FROM event')).toBe(
    `ERROR 0A000: cannot materialize call to now() but in a comparison
DETAIL: Rows come and go at known instants only where the time is compared with columns of one relation by <, <=, > or >=.
HINT: Compare it, as in WHERE at > now() - interval '1 hour' or mz_now() <= at + interval '1 hour', or leave it out and apply it where the view is read.`,
  );
  expect(await refused('SELECT id, mz_now() FROM event')).toContain('cannot materialize call to mz_now() but in a comparison');
  expect(await refused("SELECT id FROM event WHERE at > date_trunc('hour', now())")).toContain('now() but in a comparison');
  expect(await refused('SELECT id FROM event WHERE at = CURRENT_TIMESTAMP')).toContain('current_timestamp() but in a comparison');
  expect(await refused('SELECT id FROM event WHERE at > clock_timestamp()')).toContain('cannot materialize call to clock_timestamp()');
  expect(await refused('SELECT id FROM event WHERE mz_now() < kind')).toMatch(/42883|does not exist/);
  await client.query(
    "CREATE MATERIALIZED VIEW cast_too AS SELECT id FROM event WHERE mz_now() BETWEEN at::mz_timestamp AND '18446744073709551615'::mz_timestamp",
  );
  expect(await client.rows('SELECT id FROM cast_too ORDER BY 1')).toContainEqual([50]);
});
