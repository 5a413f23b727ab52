/**
 * Transactions far larger than what an engine may hold: they arrive whole, in bounded memory, and readers go on meanwhile.
 * MILLRACE_LARGE_ROWS: how many rows are inserted in one.
 */
import { readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { startMillrace, type TestMillrace } from '../support/millrace.ts';
import { startPostgres, type TestPostgres } from '../support/postgres.ts';

const inserted = Number(process.env['MILLRACE_LARGE_ROWS'] ?? 500_000);
const updated = Math.round(inserted * 0.4);

let origin: TestPostgres;
let upstream: TestPostgres;
let millrace: TestMillrace;
let admin: pg.Client;
let client: pg.Client;

beforeAll(async () => {
  origin = await startPostgres({ settings: { wal_level: 'logical' } });
  upstream = await startPostgres({ settings: { max_wal_size: '4GB' } });
  admin = new pg.Client({ connectionString: origin.url });
  await admin.connect();
  await admin.query(`CREATE TABLE big (id bigint PRIMARY KEY, grp integer, a integer, note text);
    INSERT INTO big VALUES (0, 0, 0, 'first'); CREATE PUBLICATION p FOR ALL TABLES`);
  millrace = await startMillrace({ upstream: upstream.address });
  client = new pg.Client({ connectionString: millrace.url() });
  await client.connect();
  for (const statement of [
    `CREATE CONNECTION c TO POSTGRES (HOST '${origin.host}', PORT ${origin.port}, USER postgres, DATABASE postgres)`,
    "CREATE SOURCE s FROM POSTGRES CONNECTION c (PUBLICATION 'p')",
    'CREATE SCHEMA live',
    'CREATE TABLE live.big FROM SOURCE s (REFERENCE big)',
    'CREATE MATERIALIZED VIEW live.sums AS SELECT grp, count(*) AS n, sum(a) AS total FROM live.big GROUP BY grp',
  ])
    await client.query(statement);
}, 120_000);

afterAll(async () => {
  await client?.end();
  await admin?.end();
  await millrace?.stop();
  await Promise.all([origin?.stop(), upstream?.stop()]);
});

/** Highest resident memory of the engine so far, in MB; undefined where the system does not tell. */
function peakMemory(): number | undefined {
  const [pid] = millrace.enginePids();
  try {
    return Number(/VmHWM:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]) / 1024;
  } catch {
    return undefined;
  }
}

/** Makes a transaction at the origin and reads until it is there: all of it or nothing. Answers how long it and the slowest read took, in ms. */
async function follow(sql: string, seen: string, before: string, after: string): Promise<{ lag: number; slowest: number; reads: number }> {
  let written = 0;
  const writing = admin.query(sql).then(() => {
    written = performance.now();
  });
  let slowest = 0;
  for (let reads = 1; ; reads++) {
    const begun = performance.now();
    const found = await client.query<{ seen: string }>(seen);
    const ended = performance.now();
    slowest = Math.max(slowest, ended - begun);
    const now = found.rows[0]?.seen ?? '';
    if (now === after) {
      await writing;
      return { lag: ended - written, slowest, reads };
    }
    expect(now).toBe(before);
    await sleep(5);
  }
}

test(
  `${inserted} inserts, then ${updated} updates, each in one transaction`,
  async () => {
    const idle = peakMemory();
    const total = `SELECT count(*) || ' ' || sum(a) || ' ' || (SELECT sum(n) || ' ' || sum(total) FROM live.sums) AS seen FROM live.big WHERE id IN (0, 1, ${updated}, ${inserted})`;
    const sum = (inserted * (inserted + 1)) / 2;
    const inserts = await follow(
      `INSERT INTO big SELECT g, g % 100, g, md5(g::text) FROM generate_series(1, ${inserted}) g`,
      total,
      '1 0 1 0',
      `4 ${1 + updated + inserted} ${inserted + 1} ${sum}`,
    );
    const peakInserts = peakMemory();
    const updates = await follow(
      `UPDATE big SET a = a + 1 WHERE id BETWEEN 1 AND ${updated}`,
      total,
      `4 ${1 + updated + inserted} ${inserted + 1} ${sum}`,
      `4 ${1 + updated + inserted + 2} ${inserted + 1} ${sum + updated}`,
    );
    const peak = peakMemory();
    const text = ({ lag, slowest, reads }: typeof inserts): string =>
      `visible ${lag.toFixed(0)} ms after the commit, ${reads} reads, slowest ${slowest.toFixed(0)} ms`;
    console.log(
      `inserts: ${text(inserts)}; updates: ${text(updates)}; engine memory ${[idle, peakInserts, peak].map((mb) => mb?.toFixed(0)).join(' / ')} MB`,
    );
    if (peak !== undefined) expect(peak).toBeLessThan(400);
    expect(Math.max(inserts.slowest, updates.slowest)).toBeLessThan(3000);
  },
  120_000 + inserted / 10,
);

test('a table without key whose rows were all updated in one transaction took the square of their number', async () => {
  const rows = Math.round(inserted / 10);
  await admin.query(`CREATE TABLE bag (g integer, a integer); ALTER TABLE bag REPLICA IDENTITY FULL;
    INSERT INTO bag SELECT g, CASE WHEN g % 2 = 0 THEN g ELSE g % 5 END FROM generate_series(1, ${rows}) g`);
  await client.query('CREATE TABLE live.bag FROM SOURCE s (REFERENCE bag)');
  const seen = "SELECT count(*) || ' ' || sum(a) || ' ' || sum(g) AS seen FROM live.bag";
  const before = (await admin.query<{ seen: string }>(seen.replace('live.', ''))).rows[0]?.seen ?? '';
  await expect.poll(async () => (await client.query<{ seen: string }>(seen)).rows[0]?.seen, { timeout: 20_000 }).toBe(before);
  const [count = 0, a = 0, g = 0] = before.split(' ').map(Number);
  const { lag } = await follow(
    'BEGIN; UPDATE bag SET a = a + 1; UPDATE bag SET a = a + 1; COMMIT',
    seen,
    before,
    `${count} ${a + 2 * count} ${g}`,
  );
  console.log(`without key, ${rows} rows updated twice: visible ${lag.toFixed(0)} ms after the commit`);
}, 60_000);
