// Ten tables under load while an eleventh gets its first copy: how fresh the ten stay, how long the copy takes, what the origin has to keep for it.
//   npm run bench snapshot      MILLRACE_BENCH_ROWS=1000000 (of the eleventh)  MILLRACE_BENCH_WRITES=2000 (a second)  MILLRACE_BENCH_COPY_WRITES=0 (of them, of 10, to it)
//                               MILLRACE_BENCH_QUIET=10 (seconds measured before the copy)  MILLRACE_COPY_SESSIONS, MILLRACE_COPY_CHUNK_MB as for `millrace serve`
// Freshness: every 20 ms a row of one of the ten is updated by a session of its own; the time until the new value is read from the target.
import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath, pathToFileURL } from 'node:url';
import pg from 'pg';
import { startEmbeddedPostgres } from '../dist/server/embedded-postgres.js';
import { freePort } from '../dist/server/free-port.js';

const rows = Number(process.env.MILLRACE_BENCH_ROWS ?? 1_000_000);
const writes = Number(process.env.MILLRACE_BENCH_WRITES ?? 2000);
const toCopied = Number(process.env.MILLRACE_BENCH_COPY_WRITES ?? 0);
const quietMs = Number(process.env.MILLRACE_BENCH_QUIET ?? 10) * 1000;
const tables = 10;
const smallRows = 10_000;
const settings = { fsync: 'off', full_page_writes: 'off', shared_buffers: '256MB', max_wal_size: '8GB', wal_level: 'logical' };

async function connect(port, database) {
  const client = new pg.Client({ host: '127.0.0.1', port, user: 'postgres', database });
  client.on('error', () => undefined);
  await client.connect();
  return client;
}

async function startMillrace(target, home) {
  const [listen, http] = [await freePort('127.0.0.1'), await freePort('127.0.0.1')];
  const main = fileURLToPath(new URL('../dist/main.js', import.meta.url));
  const upstream = `postgres://postgres@127.0.0.1:${target.port}/bench`;
  const flags = [
    '--upstream',
    upstream,
    '--listen',
    `127.0.0.1:${listen}`,
    '--http',
    `127.0.0.1:${http}`,
    '--data-dir',
    join(home, 'millrace'),
  ];
  const child = spawn(process.execPath, [main, 'serve', ...flags], { stdio: ['ignore', 'ignore', 'ignore'] });
  const ended = new Promise((resolve) => child.once('exit', resolve));
  for (const end = Date.now() + 60_000; ; await sleep(100)) {
    const isHealthy = await fetch(`http://127.0.0.1:${http}/healthz`).then(
      ({ ok }) => ok,
      () => false,
    );
    if (isHealthy) break;
    if (child.exitCode !== null || Date.now() > end) throw new Error('millrace did not start');
  }
  return {
    listen,
    stop: async () => {
      child.kill('SIGTERM');
      await ended;
    },
  };
}

/** So many writes a second, in transactions of one row, from 8 sessions. */
async function startLoad(port) {
  const clients = await Promise.all(Array.from({ length: 8 }, () => connect(port, 'bench')));
  let isGoing = true;
  let done = 0;
  const begin = performance.now();
  const work = Promise.all(
    clients.map(async (client) => {
      while (isGoing) {
        if (done > ((performance.now() - begin) * writes) / 1000) {
          await sleep(1);
          continue;
        }
        done++;
        const isCopied = done % 10 < toCopied;
        const text = isCopied ? 'UPDATE big SET a = a + 1 WHERE id = $1' : `UPDATE t${done % tables} SET a = a + 1 WHERE id = $1`;
        await client.query({
          name: isCopied ? 'big' : `u${done % tables}`,
          text,
          values: [2 + Math.floor(Math.random() * ((isCopied ? rows : smallRows) - 2))],
        });
      }
    }),
  );
  return {
    rate: () => (done * 1000) / (performance.now() - begin),
    stop: async () => {
      isGoing = false;
      await work;
      await Promise.all(clients.map((client) => client.end()));
    },
  };
}

/** Probes until told to stop: ms from COMMIT to being read. */
function startProbes(writer, reader) {
  let isGoing = true;
  const times = [];
  const work = (async () => {
    for (let i = 1; isGoing; i++) {
      const table = `t${i % tables}`;
      const value = -Math.floor(performance.now() * 1000) % 2_000_000_000;
      await writer.query({ name: `w${table}`, text: `UPDATE ${table} SET a = $1 WHERE id = 1`, values: [value] });
      const begin = performance.now();
      while (
        (await reader.query({ name: `r${table}`, text: `SELECT FROM ${table} WHERE id = 1 AND a = $1`, values: [value] })).rowCount === 0
      )
        await sleep(0.5);
      times.push(performance.now() - begin);
      await sleep(20);
    }
  })();
  return async () => {
    isGoing = false;
    await work;
    return times.sort((a, b) => a - b);
  };
}

/** Longest that one snapshot was seen to stand, and the oldest xid that a session of Millrace held back, until told to stop. */
function watchSnapshots(client) {
  let isGoing = true;
  let [age, seconds] = [0, 0];
  const work = (async () => {
    while (isGoing) {
      const { rows: seen } = await client.query(
        `SELECT coalesce(max(age(backend_xmin)), 0) AS age, coalesce(max(extract(epoch FROM clock_timestamp() - xact_start)), 0)::float AS seconds
           FROM pg_stat_activity WHERE application_name = 'millrace copy' AND backend_xmin IS NOT NULL`,
      );
      age = Math.max(age, Number(seen[0].age));
      seconds = Math.max(seconds, Number(seen[0].seconds));
      await sleep(50);
    }
  })();
  return async () => {
    isGoing = false;
    await work;
    return { age, seconds };
  };
}

const at = (times, part) => times[Math.min(times.length - 1, Math.floor(times.length * part))] ?? Number.NaN;

/** Runs the benchmark, prints the table and returns it. */
export async function run() {
  const home = mkdtempSync(join(tmpdir(), 'millrace-bench-'));
  const cleanup = [];
  try {
    const start = (name) => startEmbeddedPostgres({ dataDir: join(home, name, 'data'), settings, sync: false });
    const origin = await start('origin');
    cleanup.push(() => origin.stop('immediate'));
    const target = await start('target');
    cleanup.push(() => target.stop('immediate'));
    for (const { port } of [origin, target]) {
      const admin = await connect(port, 'postgres');
      await admin.query('CREATE DATABASE bench');
      await admin.end();
    }
    const writer = await connect(origin.port, 'bench');
    const create = (name, count) =>
      writer.query(
        `CREATE TABLE ${name} (id bigint PRIMARY KEY, a int, b text, c numeric);
         INSERT INTO ${name} SELECT i, i % 1000, md5(i::text), i / 7.0 FROM generate_series(1, ${count}) i`,
      );
    for (let i = 0; i < tables; i++) await create(`t${i}`, smallRows);
    await create('big', rows);
    await writer.query('VACUUM (FREEZE, ANALYZE)');
    await writer.query('CREATE PUBLICATION p FOR ALL TABLES');
    const millrace = await startMillrace(target, home);
    cleanup.push(() => millrace.stop());
    const client = await connect(millrace.listen, 'bench');
    await client.query(
      `CREATE CONNECTION origin TO POSTGRES (HOST '127.0.0.1', PORT ${origin.port}, USER 'postgres', DATABASE 'bench', SSL MODE 'disable')`,
    );
    await client.query("CREATE SOURCE s FROM POSTGRES CONNECTION origin (PUBLICATION 'p')");
    for (let i = 0; i < tables; i++) await client.query(`CREATE TABLE t${i} FROM SOURCE s (REFERENCE public.t${i})`);
    const reader = await connect(target.port, 'bench');
    const watcher = await connect(origin.port, 'bench');
    const load = await startLoad(origin.port);
    await sleep(2000);

    const quiet = startProbes(writer, reader);
    await sleep(quietMs);
    const before = await quiet();
    const copying = startProbes(writer, reader);
    const watching = watchSnapshots(watcher);
    const begin = performance.now();
    await client.query('CREATE TABLE big FROM SOURCE s (REFERENCE public.big)');
    const copyMs = performance.now() - begin;
    const during = await copying();
    const { age, seconds } = await watching();
    const rate = load.rate();
    await load.stop();

    const chunks = (
      await reader.query(
        'SELECT count(*)::int AS n FROM millrace.copy_chunk WHERE rows > 0 AND storage_id = (SELECT max(storage_id) FROM millrace.copy_chunk)',
      )
    ).rows[0].n;
    const digest = 'SELECT count(*)::text AS rows, sum(hashtextextended(t::text, 0))::text AS digest FROM big t';
    const wanted = JSON.stringify((await writer.query(digest)).rows);
    for (const end = Date.now() + 60_000; JSON.stringify((await reader.query(digest)).rows) !== wanted; await sleep(200))
      if (Date.now() > end) throw new Error('contents differ');
    console.log(
      `First copy of ${rows.toLocaleString('en')} rows beside ${tables} tables under ${Math.round(rate).toLocaleString('en')} writes/s (asked: ${writes.toLocaleString('en')}; ${toCopied * 10} % of them to the table being copied), PostgreSQL ${origin.version}, fsync off; contents equal`,
    );
    console.log(
      `copy: ${(copyMs / 1000).toFixed(1)} s, ${Math.round((rows * 1000) / copyMs).toLocaleString('en')} rows/s, ${chunks} pieces`,
    );
    console.log(`freshness of the ten, ms      probes    p50    p99    max`);
    for (const [name, times] of [
      ['before', before],
      ['during', during],
    ])
      console.log(
        `  ${name.padEnd(26)}${String(times.length).padStart(8)}${[0.5, 0.99, 1].map((part) => at(times, part).toFixed(1).padStart(7)).join('')}`,
      );
    console.log(`  p99 during / before: ${(at(during, 0.99) / at(before, 0.99)).toFixed(2)}`);
    console.log(`origin: longest snapshot ${seconds.toFixed(1)} s, oldest xmin ${age} transactions behind`);
    for (const session of [client, reader, watcher, writer]) await session.end();
    return { before, during, copyMs, age, seconds };
  } finally {
    for (const undo of cleanup.reverse()) await undo().catch((error) => console.error(error.message));
    rmSync(home, { recursive: true, force: true });
  }
}

if (process.argv[1] !== undefined && import.meta.url === pathToFileURL(process.argv[1]).href) await run();
