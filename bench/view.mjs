/**
 * Keeping a live view against REFRESH MATERIALIZED VIEW of the same query on the same server: 100,000 rows, 1 % of them changed.
 * "maintain" is everything an epoch adds for the view: capture of the changes, the view's statements, emptying the delta tables.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import pg from 'pg';
import { analyzeView } from '../dist/ivm/analyze.js';
import { captureDdl } from '../dist/ivm/capture.js';
import { planView } from '../dist/ivm/plan-view.js';
import { loadViewParser } from '../dist/ivm/source-text.js';
import { boundedDelta, explainPlan, maintainSql, populateSql, storageDdl } from '../dist/ivm/view-plan.js';
import { startEmbeddedPostgres } from '../dist/server/embedded-postgres.js';

const rounds = Number(process.env.MILLRACE_BENCH_ROUNDS ?? 9);
const customers = 5000;
const orders = 100_000;

const tables = [
  { id: 1, name: 'customers', columns: ['id int', 'region int', 'name text'] },
  { id: 2, name: 'orders', columns: ['id int', 'customer int', 'product int', 'amount numeric(10,2)', 'note text'] },
];

const views = [
  {
    name: 'aggregate: count, sum, avg by product',
    query: 'SELECT product, count(*) AS n, sum(amount) AS total, avg(amount) AS mean FROM orders GROUP BY product',
  },
  {
    name: 'aggregate with min and max',
    query: 'SELECT product, min(amount) AS least, max(amount) AS most, count(*) AS n FROM orders GROUP BY product',
  },
  {
    name: 'aggregate over a join',
    query: 'SELECT c.region, count(*) AS n, sum(o.amount) AS total FROM orders o JOIN customers c ON c.id = o.customer GROUP BY c.region',
  },
  { name: 'join', query: 'SELECT o.id, o.amount, c.name, c.region FROM orders o JOIN customers c ON c.id = o.customer' },
  { name: 'filter', query: "SELECT id, customer, amount FROM orders WHERE amount > 900 AND note LIKE 'n%'" },
  { name: 'recomputed groups', query: 'SELECT customer, array_agg(amount ORDER BY id) AS amounts FROM orders GROUP BY customer' },
];

/** Runs the benchmark and prints a table. */
async function run() {
  await loadViewParser();
  const home = mkdtempSync(join(tmpdir(), 'millrace-bench-'));
  const server = await startEmbeddedPostgres({
    dataDir: join(home, 'data'),
    settings: { fsync: 'off', shared_buffers: '256MB', max_wal_size: '4GB', jit: 'off', autovacuum: 'off' },
    removeAfterDeath: home,
    sync: false,
  });
  const client = new pg.Client({ host: '127.0.0.1', port: server.port, user: 'postgres', database: 'postgres' });
  await client.connect();
  try {
    const results = [];
    for (const view of views) results.push(await measure(client, view));
    print(results);
    return results;
  } finally {
    await client.end();
    await server.stop('immediate');
    rmSync(home, { recursive: true, force: true });
  }
}

async function measure(client, view) {
  await createTables(client);
  const relations = new Map();
  for (const table of tables) {
    const columns = table.columns.map((column, i) => ({ name: column.split(' ')[0], expression: `s.c${i + 1}` }));
    relations.set(table.name, { kind: 'live', id: table.id, key: ['c1'], columns });
    const shown = columns.map((column) => `${column.expression} AS ${column.name}`).join(', ');
    await client.query(`CREATE VIEW public.${table.name} AS SELECT ${shown} FROM millrace_data.s${table.id} s`);
  }
  const plan = await makePlan(client, view.query, relations);
  for (const statement of storageDdl(plan, 9)) await client.query(statement);
  for (const statement of populateSql(plan, 9)) await client.query(statement);
  await client.query(`CREATE MATERIALIZED VIEW plain AS ${view.query}; ANALYZE`);

  const times = { writes: [], captured: [], maintain: [], refresh: [] };
  for (let round = -1; round < rounds; round++) {
    const writes = batch(round);
    // The same batch twice, rolled back the first time: without capture, then with it.
    await client.query('BEGIN; ALTER TABLE millrace_data.s2 DISABLE TRIGGER USER');
    const bare = await timed(client, writes);
    await client.query('ROLLBACK; BEGIN');
    const captured = await timed(client, writes);
    const statements = [...maintainSql(plan, 9, new Set([2])), 'DELETE FROM millrace_data.d2'];
    const maintain = await timed(client, statements);
    await client.query('COMMIT');
    const refresh = await timed(client, ['REFRESH MATERIALIZED VIEW plain']);
    for (const table of ['d2', 's2', 's9']) await client.query(`VACUUM millrace_data.${table}`);
    if (round < 0) continue;
    times.writes.push(bare);
    times.captured.push(captured);
    times.maintain.push(maintain + Math.max(captured - bare, 0));
    times.refresh.push(refresh);
  }
  const single = await oneRow(client, plan);
  const shown = plan.columns.map((column) => column.expression).join(', ');
  await client.query('REFRESH MATERIALIZED VIEW plain');
  const wrong = await client.query(`
    SELECT count(*) AS n FROM (
      (SELECT ${shown} FROM millrace_data.s9 s EXCEPT ALL SELECT * FROM plain) UNION ALL
      (SELECT * FROM plain EXCEPT ALL SELECT ${shown} FROM millrace_data.s9 s)
    ) x`);
  if (wrong.rows[0].n !== '0') throw new Error(`${view.name}: the view differs from its query in ${wrong.rows[0].n} rows`);
  const maintain = median(times.maintain);
  const refresh = median(times.refresh);
  return { view: view.name, way: explainPlan(plan).split(':')[0], maintain, refresh, ratio: refresh / maintain, single };
}

/** Epochs that change one row: what the view adds, median. */
async function oneRow(client, plan) {
  const times = [];
  for (let i = 0; i < 60; i++) {
    await client.query('BEGIN');
    await client.query(`UPDATE millrace_data.s2 SET c4 = c4 + 1 WHERE c1 = ${50_000 + i}`);
    times.push(
      await timed(client, [
        ...maintainSql(plan, 9, new Set([2]), (id) => boundedDelta(`millrace_data.d${id}`, 2)),
        'DELETE FROM millrace_data.d2',
      ]),
    );
    await client.query('COMMIT');
  }
  return median(times);
}

async function createTables(client) {
  await client.query(`
    DROP SCHEMA IF EXISTS millrace_data CASCADE; DROP SCHEMA public CASCADE; CREATE SCHEMA public; CREATE SCHEMA millrace_data;
    CREATE TABLE millrace_data.s1 (c1 int PRIMARY KEY, c2 int, c3 text) WITH (fillfactor = 80);
    CREATE TABLE millrace_data.s2 (c1 int PRIMARY KEY, c2 int, c3 int, c4 numeric(10,2), c5 text) WITH (fillfactor = 80);
    INSERT INTO millrace_data.s1 SELECT i, i % 50, 'customer ' || i FROM generate_series(1, ${customers}) i;
    INSERT INTO millrace_data.s2
      SELECT i, 1 + hashint4(i) % ${customers / 2} + ${customers / 2}, abs(hashint4(i + 7)) % 500, (abs(hashint4(i + 3)) % 100000) / 100.0, 'note ' || i
      FROM generate_series(1, ${orders}) i;
    CREATE INDEX ON millrace_data.s2 (c2); CREATE INDEX ON millrace_data.s2 (c3)`);
  for (const table of tables) for (const statement of captureDdl(table.id)) await client.query(statement);
}

/** 1 % of the rows: half updated, a quarter deleted, a quarter new. */
function batch(round) {
  const part = orders / 100;
  const from = (round + 2) * part;
  return [
    `UPDATE millrace_data.s2 SET c4 = c4 + 1, c3 = (c3 + 1) % 500 WHERE c1 BETWEEN ${from} AND ${from + part / 2 - 1}`,
    `DELETE FROM millrace_data.s2 WHERE c1 BETWEEN ${from + part / 2} AND ${from + (part * 3) / 4 - 1}`,
    `INSERT INTO millrace_data.s2 SELECT ${orders} + ${from} + i, 1 + i, i % 500, i, 'new' FROM generate_series(1, ${part / 4}) i`,
  ];
}

async function makePlan(client, query, relations) {
  await client.query(`CREATE OR REPLACE VIEW definition AS ${query}`);
  const { rows } = await client.query("SELECT pg_get_viewdef('definition'::regclass) AS text");
  await client.query('DROP VIEW definition');
  const functions = { array_agg: { aggregate: true, setReturning: false } };
  const analysis = analyzeView(rows[0].text, (_, name) => relations.get(name), undefined, functions);
  const probe = analysis.probeSql === null ? [] : (await client.query(analysis.probeSql)).fields;
  const columns = probe.map((field) => ({ typeOid: field.dataTypeID, typeModifier: field.dataTypeModifier }));
  return planView(analysis, { columns, functions, groupsHashable: analysis.hashableSql.map(() => true) });
}

async function timed(client, statements) {
  const start = process.hrtime.bigint();
  for (const statement of statements) await client.query(statement);
  return Number(process.hrtime.bigint() - start) / 1e6;
}

function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)] ?? Number.NaN;
}

function print(results) {
  const width = Math.max(...results.map(({ view }) => view.length));
  console.log(`${'view'.padEnd(width)}  way        maintain ms  REFRESH ms  REFRESH / maintain  one row ms`);
  for (const { view, way, maintain, refresh, ratio, single } of results) {
    const numbers = [
      maintain.toFixed(1).padStart(11),
      refresh.toFixed(1).padStart(10),
      `${ratio.toFixed(1)}x`.padStart(18),
      single.toFixed(2).padStart(10),
    ];
    console.log(`${view.padEnd(width)}  ${way.padEnd(9)}  ${numbers.join('  ')}`);
  }
}

await run();
