/**
 * Views over the time equal their queries at the clock's time: random rows with times, random changes, the clock set on by random steps; and where the
 * expiry says that nothing turns before an instant, nothing does.
 * MILLRACE_IVM_CASES, MILLRACE_IVM_SEED, MILLRACE_IVM_POSTGRES: as of the views.
 */
import type pg from 'pg';
import { describe, expect, test } from 'vitest';
import { uncaptured } from '../../../src/ivm/capture.ts';
import { instantSql } from '../../../src/ivm/expiry.ts';
import { casesOr, tryCases, type Ways, waysOf } from './cases.ts';
import { LiveDatabase } from './live-database.ts';
import { type Random, seeded } from './random.ts';
import { versions, withServer } from './server.ts';

const cases = casesOr(15);
const steps = 10;

/** From `first` to `last`, both included. */
const between = (random: Random, first: number, last: number): number => first + random.int(last - first + 1);

/** A comparison with the time, of columns of one alias. */
function comparison(random: Random, t: string): string {
  const operator = random.pick(['<', '<=', '>', '>=']);
  const interval = `interval '${between(random, 0, 90)} minutes'`;
  return random.pick([
    `${t}.at ${operator} now() - ${interval}`,
    `now() ${operator} ${t}.at + ${interval}`,
    `now() - ${t}.at ${operator} ${interval}`,
    `${t}.until ${operator} CURRENT_TIMESTAMP`,
    `${t}.at + ${t}.k * ${interval} ${operator} now()`,
    `${t}.day ${operator} CURRENT_DATE - ${between(random, 0, 2)}`,
    `${t}.local ${operator} LOCALTIMESTAMP + ${interval}`,
    `coalesce(${t}.until, '2026-03-01 11:30+00') ${operator} now()`,
    `${t}.ms ${operator} millrace.mz_now(${t}.ms)`,
    `millrace.mz_now(${t}.until) ${operator} ${t}.until`,
    `(now() ${operator} ${t}.at OR ${t}.k = 1)`,
    `now() BETWEEN ${t}.at AND ${t}.until`,
  ]);
}

function query(random: Random): string {
  const when = (t: string): string => comparison(random, t);
  return random.pick([
    () => `SELECT e.id, e.k, e.at FROM e WHERE ${when('e')}`,
    () => `SELECT e.id, e.k FROM e WHERE ${when('e')} AND ${when('e')}`,
    () => `SELECT e.k, count(*) AS n, sum(e.id) AS s, max(e.at) AS last FROM e WHERE ${when('e')} GROUP BY e.k`,
    () => `SELECT count(*) AS n, sum(e.k) AS s FROM e WHERE ${when('e')}`,
    () => `SELECT DISTINCT e.k FROM e WHERE ${when('e')}`,
    () => `SELECT e.id, f.id AS other FROM e JOIN f ON f.k = e.k AND ${when('f')} WHERE ${when('e')}`,
    () => `SELECT e.id, f.id AS other FROM e LEFT JOIN f ON f.k = e.k AND ${when('f')}`,
    () => `SELECT e.id, f.at FROM e LEFT JOIN f ON f.id = e.id WHERE ${when('f')}`,
    () => `SELECT e.k, count(f.id) AS n FROM e LEFT JOIN f ON f.k = e.k WHERE ${when('e')} GROUP BY e.k`,
    () => `SELECT e.id, CASE WHEN ${when('e')} THEN 'a' ELSE 'b' END AS age FROM e`,
    () =>
      `SELECT CASE WHEN e.at < now() THEN 'a' ELSE 'b' END AS age, count(*) AS n FROM e GROUP BY CASE WHEN e.at < now() THEN 'a' ELSE 'b' END`,
    () => `SELECT e.k, count(*) FILTER (WHERE ${when('e')}) AS n FROM e GROUP BY e.k`,
    () => `SELECT e.k, max(e.at) AS last FROM e GROUP BY e.k HAVING max(e.at) > now() - interval '30 minutes'`,
    () => `SELECT e.k, count(*) AS n FROM e GROUP BY e.k HAVING min(e.until) <= now() AND count(*) > 1`,
    () => `SELECT e.id FROM e WHERE EXISTS (SELECT FROM f WHERE f.k = e.k AND ${when('f')})`,
    () => `SELECT e.id FROM e WHERE e.k NOT IN (SELECT f.k FROM f WHERE ${when('f')} AND f.k IS NOT NULL)`,
    () => `SELECT e.id, (SELECT count(*) FROM f WHERE f.k = e.k AND ${when('f')}) AS n FROM e`,
    () => `SELECT e.id FROM e WHERE ${when('e')} UNION ALL SELECT f.id FROM f WHERE ${when('f')}`,
    () => `SELECT e.k FROM e WHERE ${when('e')} EXCEPT SELECT f.k FROM f WHERE ${when('f')}`,
    () => `SELECT e.id, rank() OVER (PARTITION BY e.k ORDER BY e.at, e.id) AS r FROM e WHERE ${when('e')}`,
    () => `SELECT DISTINCT ON (e.k) e.k, e.id FROM e WHERE ${when('e')} ORDER BY e.k, e.at DESC, e.id`,
    () =>
      `WITH x AS (SELECT e.k, count(*) AS n FROM e WHERE ${when('e')} GROUP BY e.k) SELECT f.id, x.n FROM f JOIN x ON x.k = f.k WHERE ${when('f')}`,
    () => `SELECT p.id, p.k FROM plain p JOIN e ON e.id = p.id WHERE ${when('e')}`,
    () =>
      `SELECT e.id, l.id AS newest FROM e, LATERAL (SELECT f.id FROM f WHERE f.k = e.k AND ${when('f')} ORDER BY f.at DESC NULLS LAST, f.id LIMIT 1) l`,
  ])();
}

const columns = [
  { name: 'id', type: 'integer' },
  { name: 'k', type: 'integer' },
  { name: 'at', type: 'timestamptz' },
  { name: 'until', type: 'timestamptz' },
  { name: 'day', type: 'date' },
  { name: 'local', type: 'timestamp' },
  { name: 'ms', type: 'numeric' },
];

function instant(random: Random, clock: number): string {
  // Near the clock more often than not, and now and then at it to the microsecond.
  const ms =
    clock +
    random.pick([0, 1, -1, between(random, -10, 10), between(random, -7_200_000, 7_200_000), between(random, -200_000_000, 200_000_000)]);
  return new Date(ms).toISOString();
}

function row(random: Random, id: number, clock: number): string {
  const at = instant(random, clock);
  const until = between(random, 0, 4) === 0 ? 'NULL' : `'${instant(random, clock)}'`;
  const ms = Date.parse(instant(random, clock)) + random.pick([0, 0, 0.5]);
  const local = instant(random, clock).replace('Z', '');
  return `(${id}, ${between(random, 0, 3)}, '${at}', ${until}, '${instant(random, clock).slice(0, 10)}', '${local}', ${ms})`;
}

async function write(random: Random, client: pg.Client, clock: number): Promise<void> {
  for (let i = between(random, 1, 4); i > 0; i--) {
    const table = `millrace_data.s${between(random, 1, 2)}`;
    const id = between(random, 1, 30);
    const sql = random.pick([
      `INSERT INTO ${table} VALUES ${row(random, id, clock)} ON CONFLICT (c1) DO UPDATE SET c3 = excluded.c3, c4 = excluded.c4, c2 = excluded.c2`,
      `INSERT INTO ${table} VALUES ${row(random, id, clock)} ON CONFLICT (c1) DO NOTHING`,
      `UPDATE ${table} SET c3 = c3 + interval '20 minutes' WHERE c2 = ${between(random, 0, 3)}`,
      `DELETE FROM ${table} WHERE c1 % 7 = ${between(random, 0, 6)}`,
    ]);
    await client.query(sql);
  }
}

const setTo = (clock: number, micros: number): string =>
  `UPDATE millrace_data.s0 SET c2 = x.t FROM (SELECT '${new Date(clock).toISOString()}'::timestamptz + interval '${micros} microseconds' AS t) x WHERE c2 < x.t`;

async function tryCase(seed: number, database: LiveDatabase): Promise<Ways> {
  const random = seeded(seed);
  const { client } = database;
  await database.reset();
  let clock = Date.parse('2026-03-01T12:00:00Z') + between(random, 0, 86_400_000);
  await database.createClock(new Date(clock).toISOString());
  for (const name of ['e', 'f']) await database.createTable(name, columns, [0]);
  for (const id of [1, 2]) {
    for (let i = 1; i <= 20; i++) await client.query(`INSERT INTO millrace_data.s${id} VALUES ${row(random, i, clock)}`);
    await client.query(`DELETE FROM millrace_data.d${id}`);
  }
  await client.query('DELETE FROM millrace_data.d0');
  await database.createPlainView('plain', `SELECT f.id, f.k FROM f WHERE f.at > now() - interval '1 hour'`);
  for (let i = 1; i <= 8; i++) {
    const sql = query(random);
    const view = await database.createView(`v${i}`, sql).catch((error: unknown) => {
      throw new Error(`${String(error)}\n${sql}`, { cause: error });
    });
    expect(view.plan.inputs, sql).toContain(0);
    expect(view.plan.expiry, sql).not.toBeNull();
  }
  await database.createView('over', 'SELECT count(*) AS n FROM v1');
  await database.verify();
  for (let step = 0; step < steps; step++) {
    const later = clock + random.pick([1, between(random, 0, 1000), between(random, 0, 3_600_000), between(random, 0, 40_000_000)]);
    const moves = random.int(5);
    await database.epoch(async () => {
      if (moves > 0) await client.query(setTo(later, random.pick([0, 0, 1, 999])));
      // As changes that were set aside come: several at once.
      if (moves === 3) await client.query(setTo(later + 60_000, 0));
      if (moves !== 1) await write(random, client, clock);
    });
    if (moves > 0) clock = later + (moves === 3 ? 60_000 : 0);
    await database.verify();
    await passQuietly(random, database);
    clock = Number((await client.query('SELECT ceil(extract(epoch FROM c2) * 1000) AS ms FROM millrace_data.s0')).rows[0]?.ms);
  }
  return waysOf(database);
}

/** Until the first instant the clock may be set without a word. */
async function passQuietly(random: Random, database: LiveDatabase): Promise<void> {
  const since = '(SELECT c2 FROM millrace_data.s0)';
  const instants = database.views.flatMap(({ plan }) =>
    plan.expiry == null ? [] : [instantSql(plan.expiry, (id) => `millrace_data.s${id}`, since)],
  );
  const part = random.pick([0.2, 0.999, 0.999999]);
  await database.client.query(`BEGIN; ${uncaptured};
    UPDATE millrace_data.s0 SET c2 = least(c2 + (x.t - c2) * ${part}, x.t - interval '1 microsecond') FROM (SELECT least(${instants.join(', ')}) AS t) x WHERE x.t > c2; COMMIT`);
  await database.verify();
}

describe.each(versions)('views over the time on PostgreSQL %i', (version) => {
  let client: pg.Client;
  withServer(version, (connected) => {
    client = connected;
  });

  test(`equal their queries at the clock's time (${cases} cases)`, { timeout: 60_000 + cases * 60_000 }, async () => {
    const database = new LiveDatabase(client);
    const ways = await tryCases({ client, version }, cases, (seed) => tryCase(seed, database));
    console.log(`PostgreSQL ${version}: views by way: ${JSON.stringify(Object.fromEntries(ways))}`);
  });
});
