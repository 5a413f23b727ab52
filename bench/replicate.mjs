// Replication of one table: Millrace against PostgreSQL's own logical replication (CREATE SUBSCRIPTION), between the same two servers.
// Rounds are interleaved, only one contender replicates at a time, and after each round the contents are compared with the origin's.
// The third contender is Millrace with an aggregate view over the table, kept in the same transactions.
//   npm run bench replicate            MILLRACE_BENCH_ROUNDS=3  MILLRACE_BENCH_SCALE=1 (of the row counts)  MILLRACE_BENCH_ONLY=native,millrace,view
//                                      MILLRACE_BENCH_WORK=inserts,small (default: all)
import { spawn } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
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
  deletes: rows(100_000),
  small: rows(20_000),
  large: rows(1_000_000),
  /** A table without key: its rows, and how many of them are updated. */
  keyless: rows(20_000),
  keylessUpdates: rows(5_000),
  /** With a tenth of that the p99 was that of five of them, and another in every round. */
  probes: Math.min(4_000, rows(20_000)),
  /** Before those that count, in the first round and in each later one: V8 compiles for the first 10,000, up to 25 ms a function. */
  firstWarmUp: Math.min(15_000, rows(20_000)),
  warmUp: Math.min(2_000, rows(20_000)),
};
const works = process.env.MILLRACE_BENCH_WORK?.split(',');
const deadlineMs = 300_000;

const columns = 'id bigint PRIMARY KEY, a int, b text, c numeric';
const values = (from, to) => `SELECT i, i % 1000, md5(i::text), i / 7.0 FROM generate_series(${from}, ${to}) i`;
const keylessColumns = 'a int, b text, c numeric';
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

/** Processes whose command line has this in it, among the children of a process and theirs. */
function descendants(ancestor, text) {
  const parents = new Map();
  for (const pid of readdirSync('/proc').filter((name) => /^\d+$/.test(name))) {
    try {
      const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
      parents.set(Number(pid), Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[1]));
    } catch {
      // It has just ended.
    }
  }
  const isBelow = (pid) => pid === ancestor || (parents.has(pid) && isBelow(parents.get(pid)));
  return [...parents.keys()].filter(
    (pid) => pid !== ancestor && isBelow(pid) && readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes(text),
  );
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
    async beginKeyless() {
      await client.query(`CREATE TABLE u (${keylessColumns})`);
      await client.query('ALTER SUBSCRIPTION s REFRESH PUBLICATION');
      await until(client, "SELECT FROM pg_subscription_rel HAVING count(*) = 2 AND bool_and(srsubstate = 'r')");
    },
    async end() {
      await client.query('DROP SUBSCRIPTION s');
      await client.query('DROP TABLE IF EXISTS t, u');
    },
    /** The process that applies what comes. */
    applier: async () => (await client.query("SELECT pid FROM pg_stat_subscription WHERE subname = 's' AND relid IS NULL")).rows[0].pid,
    peakMemory: () => undefined,
    stop: () => client.end(),
  };
}

/** Millrace as it is run: its own processes, the target as upstream, driven by SQL through the proxy. Reads go to the target directly. */
async function millraceContenders(origin, target, home) {
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
  // Also when this one ends by an error: what is left of a run disturbs the next.
  process.once('exit', () => child.kill('SIGTERM'));
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
  const engine = () => descendants(child.pid, 'engine-entry')[0];
  const millrace = {
    name: 'millrace',
    reader,
    applier: async () => engine(),
    peakMemory: () => Number(/VmHWM:\s+(\d+) kB/.exec(readFileSync(`/proc/${engine()}/status`, 'utf8'))?.[1]) / 1024,
    async begin() {
      await client.query("CREATE SOURCE s FROM POSTGRES CONNECTION origin (PUBLICATION 'p')");
      await client.query('CREATE TABLE t FROM SOURCE s (REFERENCE public.t)');
    },
    async beginKeyless() {
      await client.query('CREATE TABLE u FROM SOURCE s (REFERENCE public.u)');
    },
    async end() {
      await client.query('BEGIN');
      await client.query('DROP TABLE IF EXISTS u');
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
  const view = {
    ...millrace,
    name: 'view',
    async ready() {
      await client.query('CREATE MATERIALIZED VIEW v AS SELECT a % 100 AS a, count(*) AS n, sum(a) AS total FROM t GROUP BY 1');
    },
    async end() {
      const wanted = 'SELECT a % 100 AS a, count(*) AS n, sum(a) AS total FROM t GROUP BY 1';
      const wrong = await reader.query(`(TABLE v EXCEPT ALL (${wanted})) UNION ALL ((${wanted}) EXCEPT ALL TABLE v)`);
      if (wrong.rowCount > 0) throw new Error(`the view is not its query: ${JSON.stringify(wrong.rows.slice(0, 3))}`);
      await client.query('DROP MATERIALIZED VIEW v');
      await millrace.end();
    },
    stop: async () => undefined,
  };
  return [millrace, view];
}

/** One round of one contender: workload name -> ms. */
async function round(contender, origin, originClient, isFirst) {
  const { reader } = contender;
  const times = {};
  await originClient.query('DROP TABLE IF EXISTS t, u');
  await originClient.query(`CREATE TABLE t (${columns})`);
  await originClient.query(`INSERT INTO t ${values(1, sizes.copy)}`);
  await originClient.query('VACUUM (FREEZE, ANALYZE) t');
  await originClient.query('CHECKPOINT');

  times.copy = await clock(() => contender.begin());
  await until(reader, `SELECT FROM t WHERE id = ${sizes.copy}`);

  await contender.ready?.();

  const same = async (table) => {
    const [expected, found] = [await originClient.query(digest(table)), await reader.query(digest(table))];
    if (JSON.stringify(expected.rows) !== JSON.stringify(found.rows)) {
      throw new Error(
        `${contender.name}: contents of ${table} differ: origin ${JSON.stringify(expected.rows)}, target ${JSON.stringify(found.rows)}`,
      );
    }
  };
  // From the COMMIT on the origin to the data being visible on the target: a transaction becomes visible as a whole, so one row tells.
  let last = sizes.copy;
  const measure = {
    async inserts() {
      last += sizes.inserts;
      await originClient.query(`INSERT INTO t ${values(last - sizes.inserts + 1, last)}`);
      times.inserts = await clock(() => until(reader, `SELECT FROM t WHERE id = ${last}`));
    },
    async updates() {
      await originClient.query(`UPDATE t SET a = -1 WHERE id <= ${sizes.updates}`);
      times.updates = await clock(() => until(reader, `SELECT FROM t WHERE id = ${sizes.updates} AND a = -1`));
    },
    async deletes() {
      const [from, to] = [sizes.updates + 1, sizes.updates + sizes.deletes];
      await originClient.query(`DELETE FROM t WHERE id BETWEEN ${from} AND ${to}`);
      times.deletes = await clock(() => until(reader, `SELECT WHERE NOT EXISTS (SELECT FROM t WHERE id = ${to})`));
    },
    async small() {
      times.small = await clock(async () => {
        await smallTransactions(origin);
        await until(reader, "SELECT FROM t WHERE id = 1 AND b = 'the end'");
      });
    },
    async backlog() {
      await originClient.query("UPDATE t SET b = 'begun' WHERE id = 1");
      await until(reader, "SELECT FROM t WHERE id = 1 AND b = 'begun'");
      const pid = await contender.applier();
      process.kill(pid, 'SIGSTOP');
      try {
        await smallTransactions(origin);
      } finally {
        process.kill(pid, 'SIGCONT');
      }
      times.backlog = await clock(() => until(reader, "SELECT FROM t WHERE id = 1 AND b = 'the end'"));
    },
    async probe() {
      await probes(originClient, reader, isFirst ? sizes.firstWarmUp : sizes.warmUp);
      const found = await probes(originClient, reader, sizes.probes);
      times.probe = percentile(found, 0.5);
      times.probe99 = percentile(found, 0.99);
    },
    async keyless() {
      await originClient.query(`CREATE TABLE u (${keylessColumns})`);
      await originClient.query('ALTER TABLE u REPLICA IDENTITY FULL');
      await originClient.query(`INSERT INTO u SELECT i, md5(i::text), i / 7.0 FROM generate_series(1, ${sizes.keyless}) i`);
      await contender.beginKeyless();
      await until(reader, `SELECT FROM u WHERE a = ${sizes.keyless}`);
      await originClient.query(`UPDATE u SET a = -1 WHERE a <= ${sizes.keylessUpdates}`);
      times.keyless = await clock(() => until(reader, 'SELECT FROM u WHERE a = -1 LIMIT 1'));
      await same('u');
    },
    async large() {
      await originClient.query(`UPDATE t SET a = a + 1, b = 'large' WHERE id > 0 AND id <= ${sizes.large}`);
      times.large = await clock(() => until(reader, "SELECT FROM t WHERE id = 2 AND b = 'large'"));
      times.memory = contender.peakMemory();
    },
  };
  for (const [name, work] of Object.entries(measure)) if (works === undefined || works.includes(name)) await work();

  await same('t');
  await contender.end();
  return times;
}

/** Single-row updates from 8 sessions. */
async function smallTransactions(origin) {
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
  await Promise.all(sessions.map((session) => session.end()));
}

/** ms from one COMMIT on an idle system to its row being visible. */
async function probes(originClient, reader, count) {
  const times = [];
  for (let i = 0; i < count; i++) {
    await originClient.query('UPDATE t SET a = $1 WHERE id = 2', [1_000_000 + i]);
    const begin = performance.now();
    while ((await reader.query({ name: 'probe', text: 'SELECT FROM t WHERE id = 2 AND a = $1', values: [1_000_000 + i] })).rowCount === 0);
    times.push(performance.now() - begin);
    await sleep(2);
  }
  return times;
}

function percentile(numbers, share) {
  const sorted = [...numbers].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))];
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
  ['deletes', `${sizes.deletes.toLocaleString('en')} deletes, one transaction`],
  ['small', `${sizes.small.toLocaleString('en')} one-row transactions, 8 sessions, live`],
  ['backlog', `${sizes.small.toLocaleString('en')} one-row transactions that were waiting`],
  ['probe', 'one-row transaction, idle: commit to visible, p50'],
  ['probe99', 'the same, p99'],
  ['large', `${sizes.large.toLocaleString('en')} updates, one transaction`],
  [
    'keyless',
    `${sizes.keylessUpdates.toLocaleString('en')} updates of a table of ${sizes.keyless.toLocaleString('en')} without key, one transaction`,
  ],
];

function report(measured) {
  const show = (times) => {
    if (times.length === 0) return '-';
    const digits = Math.max(...times) < 20 ? 2 : 0;
    return `${median(times).toFixed(digits)} [${Math.min(...times).toFixed(digits)}-${Math.max(...times).toFixed(digits)}]`;
  };
  const table = [['ms, median [min-max]', 'native', 'millrace', 'with a view', 'native / millrace', 'view / millrace']];
  const results = [];
  const ratio = (one, other) => (one.length > 0 && other.length > 0 ? median(one) / median(other) : undefined);
  const shown = (number) => (number === undefined ? '-' : number.toFixed(2));
  for (const [key, title] of workloads) {
    const [native, millrace, view] = ['native', 'millrace', 'view'].map((name) =>
      (measured[name] ?? []).map((times) => times[key]).filter((time) => time !== undefined),
    );
    const [throughput, cost] = [ratio(native, millrace), ratio(view, millrace)];
    results.push({ workload: title, native, millrace, view, throughput, cost });
    table.push([title, show(native), show(millrace), show(view), shown(throughput), shown(cost)]);
  }
  const widths = table[0].map((_, i) => Math.max(...table.map((line) => line[i].length)));
  for (const line of table) console.log(line.map((cell, i) => (i === 0 ? cell.padEnd(widths[i]) : cell.padStart(widths[i]))).join('  '));
  const memory = ['millrace', 'view']
    .flatMap((name) => (measured[name] ?? []).map((times) => times.memory))
    .filter((mb) => mb !== undefined);
  if (memory.length > 0) console.log(`peak memory of the engine: ${Math.max(...memory).toFixed(0)} MB`);
  return results;
}

/** Runs the benchmark, prints the table and returns it. native / millrace: throughput in native's, above 1 is faster. */
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
    const only = process.env.MILLRACE_BENCH_ONLY?.split(',') ?? ['native', 'millrace', 'view'];
    if (only.includes('native')) contenders.push(await nativeContender(origin, target));
    if (only.some((name) => name !== 'native'))
      contenders.push(...(await millraceContenders(origin, target, home)).filter(({ name }) => only.includes(name)));
    for (const contender of contenders) cleanup.push(() => contender.stop());
    const measured = Object.fromEntries(contenders.map(({ name }) => [name, []]));
    for (let i = 0; i < rounds; i++) {
      for (const contender of contenders) {
        try {
          measured[contender.name].push(await round(contender, origin, originClient, i === 0));
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
