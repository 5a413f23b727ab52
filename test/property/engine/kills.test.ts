/**
 * Random writes at an origin, an engine killed at random points: afterwards every table and view equals the origin's own answer,
 * and at every instant a view equals its query over the tables beside it.
 */
import fc from 'fast-check';
import pg from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type ExtendedClient, extendedClient, startEngine, type TestEngine, texts } from '../../support/engine.ts';
import { startPostgres, type TestPostgres } from '../../support/postgres.ts';

const rounds = Number(process.env['MILLRACE_KILL_ROUNDS'] ?? 12);
const seed = Number(process.env['MILLRACE_SEED'] ?? Date.now() % 1_000_000);

let origin: TestPostgres;
let upstream: TestPostgres;
let writer: pg.Client;
let extended: ExtendedClient;
let engine: TestEngine;

/** View name -> its query; `{s}` is the schema of the tables, so that the origin can be asked the same. */
const views: Record<string, string> = {
  filtered: 'SELECT id, v, note FROM {s}.acct WHERE v > 50',
  sums: 'SELECT grp, count(*) AS n, count(v) AS filled, sum(v) AS total, avg(v) AS mean FROM {s}.acct GROUP BY grp',
  extremes: 'SELECT grp, min(v) AS low, max(note) AS high FROM {s}.acct GROUP BY grp',
  joined: 'SELECT a.id, l.n, a.note FROM {s}.acct a JOIN {s}.log l ON l.grp = a.grp WHERE l.n < 40',
  joined_sums: 'SELECT a.grp, sum(l.n) AS n, count(*) AS pairs FROM {s}.acct a, {s}.log l WHERE a.grp = l.grp GROUP BY a.grp',
  pairs: 'SELECT a.id AS left_id, b.id AS right_id FROM {s}.acct a JOIN {s}.acct b ON a.grp = b.grp AND a.id < b.id',
  overall: 'SELECT count(*) AS n, sum(v) AS total FROM {s}.acct',
  outer_joined: 'SELECT a.id, l.n FROM {s}.acct a LEFT JOIN {s}.log l ON l.grp = a.grp AND l.n > 80',
  distinct_groups: 'SELECT DISTINCT grp FROM {s}.log',
};

beforeAll(async () => {
  origin = await startPostgres({ settings: { wal_level: 'logical' } });
  upstream = await startPostgres({});
  writer = new pg.Client({ connectionString: origin.url });
  await writer.connect();
  await writer.query(`
    CREATE TABLE acct (id integer PRIMARY KEY, grp integer, v numeric(10,2), note text, big text);
    ALTER TABLE acct ALTER big SET STORAGE EXTERNAL;
    CREATE TABLE log (grp integer, n integer);
    ALTER TABLE log REPLICA IDENTITY FULL;
    CREATE PUBLICATION p FOR ALL TABLES`);
  extended = await extendedClient(upstream.address);
  await extended.run(
    `CREATE SECRET pw AS 'unused'; CREATE CONNECTION c TO POSTGRES (HOST '${origin.host}', PORT ${origin.port}, USER postgres, DATABASE postgres)`,
  );
  engine = startEngine(upstream.address);
  await extended.run("CREATE SOURCE s FROM POSTGRES CONNECTION c (PUBLICATION 'p')");
  await extended.run(
    'CREATE SCHEMA live; CREATE TABLE live.acct FROM SOURCE s (REFERENCE public.acct); CREATE TABLE live.log FROM SOURCE s (REFERENCE public.log)',
  );
  for (const [name, query] of Object.entries(views))
    await extended.run(`CREATE MATERIALIZED VIEW live.${name} AS ${query.replaceAll('{s}', 'live')}`);
  await extended.run('CREATE MATERIALIZED VIEW live.over_view AS SELECT n, count(*) AS groups FROM live.sums GROUP BY n');
}, 120_000);

afterAll(async () => {
  await engine?.stop();
  await extended?.end();
  await writer?.end();
  await Promise.all([origin?.stop(), upstream?.stop()]);
});

const id = fc.integer({ min: 1, max: 60 });
const grp = fc.option(fc.integer({ min: 1, max: 6 }), { nil: null, freq: 8 });
const value = fc.oneof(
  fc.integer({ min: -100, max: 20000 }).map((cents) => (cents / 100).toFixed(2)),
  fc.constantFrom(null, 'NaN'),
);
const literal = (text: string | number | null): string => (text === null ? 'NULL' : `'${String(text).replaceAll("'", "''")}'`);
const note = fc.constantFrom('a', 'b', "o'brien", 'tab\there', 'back\\slash', 'line\nbreak', 'é😊', '', null);

const statement = fc.oneof(
  {
    weight: 20,
    arbitrary: fc
      .tuple(id, grp, value, note)
      .map(
        ([i, g, v, n]) =>
          `INSERT INTO acct VALUES (${i}, ${literal(g)}, ${literal(v)}, ${literal(n)}, repeat('x', ${i * 100})) ON CONFLICT (id) DO UPDATE SET v = excluded.v, note = excluded.note`,
      ),
  },
  { weight: 12, arbitrary: fc.tuple(id, value).map(([i, v]) => `UPDATE acct SET v = ${literal(v)} WHERE id <= ${i} AND id > ${i - 5}`) },
  { weight: 1, arbitrary: fc.tuple(id, grp).map(([i, g]) => `UPDATE acct SET grp = ${literal(g)} WHERE id = ${i}`) },
  {
    weight: 1,
    arbitrary: fc
      .tuple(id, id)
      .map(([a, b]) => `UPDATE acct SET id = ${b + 100} WHERE id = ${a} AND NOT EXISTS (SELECT FROM acct WHERE id = ${b + 100})`),
  },
  { weight: 8, arbitrary: id.map((i) => `DELETE FROM acct WHERE id % 60 = ${i}`) },
  { weight: 1, arbitrary: fc.constant('UPDATE acct SET note = note') },
  {
    weight: 16,
    arbitrary: fc
      .tuple(grp, fc.integer({ min: 0, max: 100 }))
      .map(([g, n]) => `INSERT INTO log SELECT ${literal(g)}::integer, ${n} FROM generate_series(1, 1 + ${n} % 3)`),
  },
  {
    weight: 8,
    arbitrary: fc.integer({ min: 0, max: 100 }).map((n) => `DELETE FROM log WHERE ctid IN (SELECT ctid FROM log WHERE n = ${n} LIMIT 1)`),
  },
  {
    weight: 1,
    arbitrary: fc
      .tuple(grp, fc.integer({ min: 0, max: 100 }))
      .map(([g, n]) => `UPDATE log SET n = n + 1 WHERE grp = ${literal(g)} AND n < ${n}`),
  },
  { weight: 1, arbitrary: fc.constantFrom('TRUNCATE log', 'TRUNCATE acct') },
);
const transactions = fc.array(fc.array(statement, { minLength: 1, maxLength: 6 }), { minLength: 3, maxLength: 25 });

async function sorted(client: pg.Client, sql: string): Promise<string[]> {
  return (await texts(client, sql)).map((row) => JSON.stringify(row)).sort();
}

/** In one snapshot of the upstream each view equals its query over the tables as they are there. */
async function viewsAgree(): Promise<void> {
  await extended.client.query('BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY');
  try {
    for (const [name, query] of Object.entries(views)) {
      expect(await sorted(extended.client, `SELECT * FROM live.${name}`), `view ${name} against its query, seed ${seed}`).toEqual(
        await sorted(extended.client, query.replaceAll('{s}', 'live')),
      );
    }
    expect(await sorted(extended.client, 'SELECT * FROM live.over_view'), `view over view, seed ${seed}`).toEqual(
      await sorted(extended.client, 'SELECT n, count(*) FROM live.sums GROUP BY n'),
    );
  } finally {
    await extended.client.query('ROLLBACK');
  }
}

async function caughtUp(): Promise<void> {
  const wanted = { acct: await sorted(writer, 'SELECT * FROM acct'), log: await sorted(writer, 'SELECT * FROM log') };
  await expect
    .poll(
      async () => ({
        acct: await sorted(extended.client, 'SELECT * FROM live.acct'),
        log: await sorted(extended.client, 'SELECT * FROM live.log'),
      }),
      {
        timeout: 20_000,
        interval: 50,
        message: `tables equal the origin's, seed ${seed}`,
      },
    )
    .toEqual(wanted);
  for (const [name, query] of Object.entries(views)) {
    expect(await sorted(extended.client, `SELECT * FROM live.${name}`), `view ${name} against the origin, seed ${seed}`).toEqual(
      await sorted(writer, query.replaceAll('{s}', 'public')),
    );
  }
}

test(`tables and views survive kills of the engine (${rounds} rounds, seed ${seed})`, async () => {
  const plans = fc.sample(fc.tuple(transactions, fc.integer({ min: 0, max: 400 }), fc.boolean()), { numRuns: rounds, seed });
  for (const [work, killAfterMs, kills] of plans) {
    const writing = (async () => {
      for (const statements of work) await writer.query(`BEGIN; ${statements.join('; ')}; COMMIT`);
    })();
    if (kills) {
      await new Promise((resolve) => setTimeout(resolve, killAfterMs));
      await engine.restart();
    }
    await viewsAgree();
    await writing;
    await caughtUp();
    await viewsAgree();
  }
}, 240_000);
