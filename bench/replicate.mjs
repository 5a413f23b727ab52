// Replication of one table: Millrace against PostgreSQL's own logical replication (CREATE SUBSCRIPTION), between the same two servers.
// Rounds are interleaved, only one contender replicates at a time, and after each round the contents are compared with the origin's.
//   npm run bench replicate            MILLRACE_BENCH_ROUNDS=3  MILLRACE_BENCH_SCALE=1 (of the row counts)  MILLRACE_BENCH_ONLY=native|millrace
import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath, pathToFileURL } from 'node:url';
import pg from 'pg';
import { startEmbeddedPostgres } from '../dist/server/embedded-postgres.js';
import { freePort } from '../dist/server/free-port.js';

const rounds = Number(process.env.MILLRACE_BENCH_ROUNDS ?? 3);
const scale = Number(process.env.MILLRACE_BENCH_SCALE ?? 1);
const rows = (count) => Math.max(8, Math.round(count * scale));
const sizes = {
  copy: rows(1_000_000),
  inserts: rows(300_000),
  updates: rows(200_000),
  small: rows(20_000),
  probes: Math.min(200, rows(20_000)),
};
const deadlineMs = 300_000;

const columns = 'id bigint PRIMARY KEY, a int, b text, c numeric';
const values = (from, to) => `SELECT i, i % 1000, md5(i::text), i / 7.0 FROM generate_series(${from}, ${to}) i`;
const digest = (table) => `SELECT count(*)::text AS rows, sum(hashtextextended(t::text, 0))::text AS digest FROM ${table} t`;

/** Servers differ from what `millrace serve` starts: they wait for no disk, and nothing runs in the background. */
const settings = {
  fsync: 'off',
  full_page_writes: 'off',
  autovacuum: 'off',
  shared_buffers: '256MB',
  max_wal_size: '8GB',
  wal_level: 'logical',
};

async function connect(port, database = 'postgres') {
  const client = new pg.Client({ host: '127.0.0.1', port, user: 'postgres', database });
  // A server that is stopped ends its sessions; what matters fails where it is awaited.
  client.on('error', () => undefined);
  await client.connect();
  return client;
}

/** Asks once a millisecond until the answer has a row. */
async function until(client, sql) {
  for (const end = Date.now() + deadlineMs; ; ) {
    if ((await client.query(sql)).rowCount > 0) return;
    if (Date.now() > end) throw new Error(`waited ${deadlineMs / 1000} s in vain for: ${sql}`);
    await sleep(1);
  }
}

const clock = async (work) => {
  const begin = performance.now();
  await work();
  return performance.now() - begin;
};

/** CREATE SUBSCRIPTION. */
async function nativeContender(origin, target) {
  const admin = await connect(target.port);
  await admin.query('CREATE DATABASE native');
  await admin.end();
  const client = await connect(target.port, 'native');
  return {
    name: 'native',
    reader: client,
    async begin() {
      await client.query(`CREATE TABLE t (${columns})`);
      await client.query(
        `CREATE SUBSCRIPTION s CONNECTION 'host=127.0.0.1 port=${origin.port} user=postgres dbname=postgres' PUBLICATION p`,
      );
      await until(client, "SELECT FROM pg_subscription_rel WHERE srsubstate = 'r'");
    },
    async end() {
      await client.query('DROP SUBSCRIPTION s');
      await client.query('DROP TABLE t');
    },
    stop: () => client.end(),
  };
}

/** Millrace as it is run: its own processes, the target as upstream, driven by SQL through the proxy. Reads go to the target directly. */
async function millraceContender(origin, target, home) {
  const admin = await connect(target.port);
  // Not "millrace": that is the console.
  await admin.query('CREATE DATABASE copy');
  await admin.end();
  const [listen, http] = [await freePort('127.0.0.1'), await freePort('127.0.0.1')];
  const main = fileURLToPath(new URL('../dist/main.js', import.meta.url));
  const upstream = `postgres://postgres@127.0.0.1:${target.port}/copy`;
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
  let output = '';
  const child = spawn(process.execPath, [main, 'serve', ...flags], { stdio: ['ignore', 'pipe', 'pipe'] });
  for (const stream of [child.stdout, child.stderr]) {
    stream.on('data', (chunk) => {
      output = (output + chunk).slice(-8000);
    });
  }
  const ended = new Promise((resolve) => {
    child.once('exit', resolve);
  });
  for (const end = Date.now() + 60_000; ; await sleep(100)) {
    const healthy = await fetch(`http://127.0.0.1:${http}/healthz`).then(
      (response) => response.ok,
      () => false,
    );
    if (healthy) break;
    if (child.exitCode !== null || Date.now() > end) throw new Error(`millrace did not start:\n${output}`);
  }
  const client = await connect(listen, 'copy');
  const reader = await connect(target.port, 'copy');
  await client.query(
    `CREATE CONNECTION origin TO POSTGRES (HOST '127.0.0.1', PORT ${origin.port}, USER 'postgres', DATABASE 'postgres', SSL MODE 'disable')`,
  );
  return {
    name: 'millrace',
    reader,
    async begin() {
      await client.query("CREATE SOURCE s FROM POSTGRES CONNECTION origin (PUBLICATION 'p')");
      await client.query('CREATE TABLE t FROM SOURCE s (REFERENCE public.t)');
    },
    async end() {
      await client.query('BEGIN');
      await client.query('DROP TABLE t');
      await client.query('DROP SOURCE s');
      await client.query('COMMIT');
    },
    async stop() {
      await client.end();
      await reader.end();
      child.kill('SIGTERM');
      await ended;
    },
    output: () => output,
  };
}

/** One round of one contender: workload name -> ms. */
async function round(contender, origin, originClient) {
  const { reader } = contender;
  const times = {};
  await originClient.query('DROP TABLE IF EXISTS t');
  await originClient.query(`CREATE TABLE t (${columns})`);
  await originClient.query(`INSERT INTO t ${values(1, sizes.copy)}`);
  await originClient.query('VACUUM (FREEZE, ANALYZE) t');
  await originClient.query('CHECKPOINT');

  times.copy = await clock(() => contender.begin());
  await until(reader, `SELECT FROM t WHERE id = ${sizes.copy}`);

  // From the COMMIT on the origin to the data being visible on the target: a transaction becomes visible as a whole, so one row tells.
  const last = sizes.copy + sizes.inserts;
  await originClient.query(`INSERT INTO t ${values(sizes.copy + 1, last)}`);
  times.inserts = await clock(() => until(reader, `SELECT FROM t WHERE id = ${last}`));

  await originClient.query(`UPDATE t SET a = -1 WHERE id <= ${sizes.updates}`);
  times.updates = await clock(() => until(reader, `SELECT FROM t WHERE id = ${sizes.updates} AND a = -1`));

  times.small = await clock(() => smallTransactions(origin, reader));
  times.probe = await probes(originClient, reader);

  const [expected, found] = [await originClient.query(digest('t')), await reader.query(digest('t'))];
  if (JSON.stringify(expected.rows) !== JSON.stringify(found.rows)) {
    throw new Error(`${contender.name}: contents differ: origin ${JSON.stringify(expected.rows)}, target ${JSON.stringify(found.rows)}`);
  }
  await contender.end();
  return times;
}

/** Single-row updates from 8 sessions, live: from the first to the last one being visible. */
async function smallTransactions(origin, reader) {
  const sessions = await Promise.all(Array.from({ length: 8 }, () => connect(origin.port)));
  const each = Math.ceil(sizes.small / sessions.length);
  await Promise.all(
    sessions.map(async (session, which) => {
      for (let i = 0; i < each; i++) {
        const id = ((i * sessions.length + which) % sizes.copy) + 1;
        await session.query({ name: 'u', text: 'UPDATE t SET a = a + 1, b = $2 WHERE id = $1', values: [id, `small ${i}`] });
      }
    }),
  );
  await sessions[0].query("UPDATE t SET b = 'the end' WHERE id = 1");
  await until(reader, "SELECT FROM t WHERE id = 1 AND b = 'the end'");
  await Promise.all(sessions.map((session) => session.end()));
}

/** Median ms from one COMMIT on an idle system to its row being visible. */
async function probes(originClient, reader) {
  const times = [];
  for (let i = 0; i < sizes.probes; i++) {
    await originClient.query('UPDATE t SET a = $1 WHERE id = 2', [1_000_000 + i]);
    const begin = performance.now();
    while ((await reader.query({ name: 'probe', text: 'SELECT FROM t WHERE id = 2 AND a = $1', values: [1_000_000 + i] })).rowCount === 0);
    times.push(performance.now() - begin);
    await sleep(2);
  }
  return median(times);
}

function median(numbers) {
  const sorted = [...numbers].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

const workloads = [
  ['copy', `initial copy, ${sizes.copy.toLocaleString('en')} rows`],
  ['inserts', `${sizes.inserts.toLocaleString('en')} inserts, one transaction`],
  ['updates', `${sizes.updates.toLocaleString('en')} updates, one transaction`],
  ['small', `${sizes.small.toLocaleString('en')} one-row transactions, 8 sessions`],
  ['probe', 'one-row transaction, idle: commit to visible'],
];

function report(measured) {
  const show = (times) => {
    if (times.length === 0) return '-';
    const digits = Math.max(...times) < 20 ? 2 : 0;
    return `${median(times).toFixed(digits)} [${Math.min(...times).toFixed(digits)}-${Math.max(...times).toFixed(digits)}]`;
  };
  const table = [['ms, median [min-max]', 'native', 'millrace', 'ratio']];
  const results = [];
  for (const [key, title] of workloads) {
    const native = (measured.native ?? []).map((times) => times[key]);
    const millrace = (measured.millrace ?? []).map((times) => times[key]);
    const ratio = native.length > 0 && millrace.length > 0 ? median(millrace) / median(native) : undefined;
    results.push({ workload: title, native, millrace, ratio });
    table.push([title, show(native), show(millrace), ratio === undefined ? '-' : ratio.toFixed(2)]);
  }
  const widths = table[0].map((_, i) => Math.max(...table.map((line) => line[i].length)));
  for (const line of table) console.log(line.map((cell, i) => (i === 0 ? cell.padEnd(widths[i]) : cell.padStart(widths[i]))).join('  '));
  return results;
}

/** Runs the benchmark, prints the table and returns it. Ratio: Millrace / native, below 1 is faster. */
export async function run() {
  const home = mkdtempSync(join(tmpdir(), 'millrace-bench-'));
  const cleanup = [];
  try {
    const start = (name) => startEmbeddedPostgres({ dataDir: join(home, name, 'data'), settings, sync: false });
    const origin = await start('origin');
    cleanup.push(() => origin.stop('immediate'));
    const target = await start('target');
    cleanup.push(() => target.stop('immediate'));
    const originClient = await connect(origin.port);
    cleanup.push(() => originClient.end());
    await originClient.query('CREATE PUBLICATION p FOR ALL TABLES');
    const contenders = [];
    const only = process.env.MILLRACE_BENCH_ONLY;
    if (only !== 'millrace') contenders.push(await nativeContender(origin, target));
    if (only !== 'native') contenders.push(await millraceContender(origin, target, home));
    for (const contender of contenders) cleanup.push(() => contender.stop());
    const measured = Object.fromEntries(contenders.map(({ name }) => [name, []]));
    for (let i = 0; i < rounds; i++) {
      for (const contender of contenders) {
        try {
          measured[contender.name].push(await round(contender, origin, originClient));
        } catch (error) {
          if (contender.output !== undefined) console.error(contender.output());
          throw error;
        }
      }
    }
    console.log(
      `Replication, ${rounds} interleaved rounds, PostgreSQL ${origin.version} on both sides, fsync off; contents equal after every round`,
    );
    return report(measured);
  } finally {
    for (const undo of cleanup.reverse()) await undo().catch((error) => console.error(error.message));
    rmSync(home, { recursive: true, force: true });
  }
}

if (process.argv[1] !== undefined && import.meta.url === pathToFileURL(process.argv[1]).href) await run();
