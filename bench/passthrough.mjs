// What the proxy costs: pgbench -S through Millrace and through PgBouncer (both in session mode) against the same server, and directly.
// Rounds are interleaved; medians. CPU is that of the proxy's processes (utime + stime) per transaction.
//   npm run bench passthrough     MILLRACE_BENCH_ROUNDS=3  MILLRACE_BENCH_SECONDS=4  MILLRACE_BENCH_CLIENTS=1,8,32  MILLRACE_BENCH_WORKERS=1
// Needs pgbench and PgBouncer (Debian: postgresql-contrib's pgbench, pgbouncer); what is missing is skipped by name.
import { spawn, spawnSync } from 'node:child_process';
import { chmodSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import pg from 'pg';
import { startEmbeddedPostgres } from '../dist/server/embedded-postgres.js';
import { freePort } from '../dist/server/free-port.js';

const rounds = Number(process.env.MILLRACE_BENCH_ROUNDS ?? 3);
const seconds = Number(process.env.MILLRACE_BENCH_SECONDS ?? 4);
const clientCounts = (process.env.MILLRACE_BENCH_CLIENTS ?? '1,8,32').split(',').map(Number);
const workers = process.env.MILLRACE_BENCH_WORKERS === undefined ? [] : ['--workers', process.env.MILLRACE_BENCH_WORKERS];
const modes = ['simple', 'prepared'];

const there = (command, ...args) => spawnSync(command, args, { stdio: 'ignore' }).status === 0;
const median = (values) => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)] ?? Number.NaN;

/** Process ids of a process and all its descendants. */
function family(pid) {
  const parents = new Map();
  for (const entry of readdirSync('/proc')) {
    if (!/^\d+$/.test(entry)) continue;
    try {
      parents.set(Number(entry), Number(readFileSync(`/proc/${entry}/stat`, 'utf8').split(') ')[1].split(' ')[1]));
    } catch {}
  }
  const found = [pid];
  for (const id of found) for (const [child, parent] of parents) if (parent === id) found.push(child);
  return found;
}

/** utime + stime in microseconds (100 ticks a second), of the processes that `isProxy` accepts by command line. */
function cpu(pid) {
  let ticks = 0;
  for (const id of family(pid)) {
    try {
      const command = readFileSync(`/proc/${id}/cmdline`, 'utf8');
      if (!/node|pgbouncer/.test(command)) continue;
      const fields = readFileSync(`/proc/${id}/stat`, 'utf8').split(') ')[1].split(' ');
      ticks += Number(fields[11]) + Number(fields[12]);
    } catch {}
  }
  return ticks * 10_000;
}

function pgbench(port, mode, clients) {
  const args = [
    '-n',
    '-S',
    '-M',
    mode,
    '-c',
    String(clients),
    '-j',
    '1',
    '-T',
    String(seconds),
    '-h',
    '127.0.0.1',
    '-p',
    String(port),
    '-U',
    'postgres',
    'postgres',
  ];
  return new Promise((resolve, reject) => {
    const child = spawn('pgbench', args, { stdio: ['ignore', 'pipe', 'pipe'] });
    let out = '';
    let errors = '';
    child.stdout.on('data', (text) => (out += text));
    child.stderr.on('data', (text) => (errors += text));
    child.on('close', (code) => {
      const tps = Number(/tps = ([\d.]+)/.exec(out)?.[1]);
      const transactions = Number(/transactions actually processed: (\d+)/.exec(out)?.[1]);
      if (code !== 0 || !(tps > 0)) reject(new Error(`pgbench: ${errors}${out}`));
      else resolve({ tps, transactions });
    });
  });
}

/** Started processes and folders, ended in reverse order. */
const cleanups = [];

async function startMillrace(upstreamPort) {
  const port = await freePort();
  const dataDir = mkdtempSync(join(tmpdir(), 'millrace-bench-'));
  cleanups.push(() => rmSync(dataDir, { recursive: true, force: true }));
  const main = fileURLToPath(new URL('../dist/main.js', import.meta.url));
  const upstream = `postgres://postgres@127.0.0.1:${upstreamPort}/postgres?sslmode=disable`;
  const child = spawn(
    process.execPath,
    [main, 'serve', '--upstream', upstream, '--listen', `127.0.0.1:${port}`, '--http', '127.0.0.1:0', '--data-dir', dataDir, ...workers],
    {
      stdio: ['ignore', 'pipe', 'inherit'],
      env: { ...process.env, MILLRACE_LOG_LEVEL: 'error' },
    },
  );
  cleanups.push(async () => {
    child.kill('SIGTERM');
    await new Promise((resolve) => child.once('exit', resolve));
  });
  await new Promise((resolve, reject) => {
    child.stdout.on('data', (text) => String(text).includes('ready') && resolve());
    child.once('exit', () => reject(new Error('Millrace did not start')));
  });
  return { name: 'millrace', port, pid: child.pid };
}

async function startPgBouncer(upstreamPort) {
  const port = await freePort();
  const folder = mkdtempSync(join(tmpdir(), 'millrace-bench-pgbouncer-'));
  chmodSync(folder, 0o755);
  cleanups.push(() => rmSync(folder, { recursive: true, force: true }));
  writeFileSync(join(folder, 'users.txt'), '"postgres" ""\n');
  writeFileSync(
    join(folder, 'pgbouncer.ini'),
    `[databases]\n* = host=127.0.0.1 port=${upstreamPort}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = ${port}\nunix_socket_dir =\nauth_type = trust\nauth_file = ${folder}/users.txt\npool_mode = session\ndefault_pool_size = 100\nmax_client_conn = 500\nlogfile = /dev/null\n`,
  );
  const asUser = process.getuid?.() === 0 ? ['-u', 'nobody'] : [];
  const child = spawn('pgbouncer', [...asUser, join(folder, 'pgbouncer.ini')], { stdio: 'ignore' });
  cleanups.push(() => child.kill('SIGKILL'));
  for (let tries = 0; ; tries++) {
    const client = new pg.Client({ host: '127.0.0.1', port, user: 'postgres', database: 'postgres' });
    try {
      await client.connect();
      await client.end();
      break;
    } catch (error) {
      if (tries > 50) throw error;
      await sleep(100);
    }
  }
  return { name: 'pgbouncer', port, pid: child.pid };
}

async function main() {
  if (process.platform !== 'linux' || !there('pgbench', '--version')) {
    console.log('passthrough: SKIPPED, needs Linux and pgbench');
    return;
  }
  if (!there('pgbouncer', '--version') && process.getuid?.() === 0) {
    spawnSync('apt-get', ['install', '-y', '-qq', 'pgbouncer'], { stdio: 'ignore' });
  }
  const dataDir = mkdtempSync(join(tmpdir(), 'millrace-bench-pg-'));
  chmodSync(dataDir, 0o711);
  cleanups.push(() => rmSync(dataDir, { recursive: true, force: true }));
  const server = await startEmbeddedPostgres({
    dataDir: join(dataDir, 'data'),
    settings: { fsync: 'off', shared_buffers: '256MB', max_connections: '300' },
  });
  cleanups.push(() => server.stop());
  spawnSync('pgbench', ['-i', '-q', '-s', '10', '-h', '127.0.0.1', '-p', String(server.port), '-U', 'postgres', 'postgres'], {
    stdio: 'ignore',
  });
  const contenders = [{ name: 'direct', port: server.port, pid: null }];
  if (there('pgbouncer', '--version')) contenders.push(await startPgBouncer(server.port));
  else console.log('PgBouncer: SKIPPED, not installed (Debian package pgbouncer)');
  contenders.push(await startMillrace(server.port));
  if (contenders.some(({ name }) => name === 'pgbouncer')) {
    const version = spawnSync('pgbouncer', ['--version'], { encoding: 'utf8' }).stdout.split('\n')[0];
    console.log(`${version}, session mode; ${rounds} rounds of ${seconds} s, medians`);
  }
  console.log(
    '\n| protocol | clients | direct tps | PgBouncer tps | Millrace tps | Millrace / PgBouncer | CPU µs per transaction, PgBouncer | Millrace |',
  );
  console.log('|---|--:|--:|--:|--:|--:|--:|--:|');
  for (const mode of modes) {
    for (const clients of clientCounts) {
      const seen = new Map(contenders.map(({ name }) => [name, { tps: [], cpu: [] }]));
      for (let round = 0; round < rounds; round++) {
        for (const { name, port, pid } of contenders) {
          const before = pid === null ? 0 : cpu(pid);
          const { tps, transactions } = await pgbench(port, mode, clients);
          seen.get(name).tps.push(tps);
          seen.get(name).cpu.push(pid === null ? 0 : (cpu(pid) - before) / transactions);
        }
      }
      const of = (name, what) => median(seen.get(name)?.[what] ?? []);
      const show = (value, digits = 0) => (Number.isNaN(value) ? '–' : value.toFixed(digits));
      console.log(
        `| ${mode} | ${clients} | ${show(of('direct', 'tps'))} | ${show(of('pgbouncer', 'tps'))} | ${show(of('millrace', 'tps'))} | ${show(of('millrace', 'tps') / of('pgbouncer', 'tps'), 2)} | ${show(of('pgbouncer', 'cpu'), 1)} | ${show(of('millrace', 'cpu'), 1)} |`,
      );
    }
  }
}

try {
  await main();
} finally {
  for (const cleanup of cleanups.reverse()) await cleanup();
}
