// PgBouncer and Millrace in front of one server, pgbench, and what their processes cost: what the proxy benchmarks share.
import { spawn, spawnSync } from 'node:child_process';
import { chmodSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import pg from 'pg';
import { startEmbeddedPostgres } from '../../dist/server/embedded-postgres.js';
import { freePort } from '../../dist/server/free-port.js';

export const median = (values) => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)] ?? Number.NaN;
export const show = (value, digits = 0) => (value === undefined || Number.isNaN(value) ? '–' : value.toFixed(digits));

const there = (command, ...args) => spawnSync(command, args, { stdio: 'ignore' }).status === 0;

/** Started processes and folders, ended in reverse order. */
const cleanups = [];

export async function cleanUp() {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
}

/** A folder for the time of the benchmark. */
export function folder(name) {
  const path = mkdtempSync(join(tmpdir(), `millrace-bench-${name}-`));
  chmodSync(path, 0o711);
  cleanups.push(() => rmSync(path, { recursive: true, force: true }));
  return path;
}

/** Whether this machine can run the benchmark at all; says what is missing. Installs PgBouncer where it may. */
export function ready(name) {
  if (process.platform !== 'linux' || !there('pgbench', '--version')) {
    console.log(`${name}: SKIPPED, needs Linux and pgbench`);
    return false;
  }
  if (!there('pgbouncer', '--version') && process.getuid?.() === 0) {
    spawnSync('apt-get', ['install', '-y', '-qq', 'pgbouncer'], { stdio: 'ignore' });
  }
  if (!there('pgbouncer', '--version')) console.log('PgBouncer: SKIPPED, not installed (Debian package pgbouncer)');
  return true;
}

/** An empty server. The role postgres has the password "bench", for those who ask for one. */
export async function startPostgres(settings = {}) {
  const server = await startEmbeddedPostgres({
    dataDir: join(folder('pg'), 'data'),
    settings: { fsync: 'off', shared_buffers: '256MB', max_connections: '300', ...settings },
  });
  cleanups.push(() => server.stop());
  const client = new pg.Client({ host: '127.0.0.1', port: server.port, user: 'postgres', database: 'postgres' });
  await client.connect();
  await client.query("ALTER ROLE postgres PASSWORD 'bench'");
  await client.end();
  return server;
}

/** A server with pgbench's tables. */
export async function startServer(settings = {}) {
  const server = await startPostgres(settings);
  const address = ['-h', '127.0.0.1', '-p', String(server.port), '-U', 'postgres', 'postgres'];
  spawnSync('pgbench', ['-i', '-q', '-s', '10', ...address], { stdio: 'ignore' });
  return server;
}

/** `settings` as in pgbouncer.ini, for both. */
export async function startMillrace(upstreamPort, settings = {}) {
  const port = await freePort();
  const home = folder('millrace');
  const config = join(home, 'millrace.ini');
  writeFileSync(config, ini(settings, home));
  const main = fileURLToPath(new URL('../../dist/main.js', import.meta.url));
  const upstream = `postgres://postgres:bench@127.0.0.1:${upstreamPort}/postgres?sslmode=disable`;
  const workers = process.env.MILLRACE_BENCH_WORKERS === undefined ? [] : ['--workers', process.env.MILLRACE_BENCH_WORKERS];
  const child = spawn(
    process.execPath,
    [
      ...[main, 'serve', '--upstream', upstream, '--listen', `127.0.0.1:${port}`, '--http', '127.0.0.1:0'],
      ...['--data-dir', join(home, 'data'), '--config', config, ...workers],
    ],
    { stdio: ['ignore', 'pipe', 'inherit'], env: { MILLRACE_LOG_LEVEL: 'error', ...process.env } },
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

/** Null when it is not installed. */
export async function startPgBouncer(upstreamPort, settings = {}) {
  if (!there('pgbouncer', '--version')) return null;
  const port = await freePort();
  const home = folder('pgbouncer');
  chmodSync(home, 0o755);
  const file = join(home, 'pgbouncer.ini');
  const own = { listen_addr: '127.0.0.1', listen_port: port, unix_socket_dir: '', logfile: '/dev/null', ...settings };
  writeFileSync(file, `[databases]\n* = host=127.0.0.1 port=${upstreamPort} user=postgres password=bench\n${ini(own, home)}`);
  const asUser = process.getuid?.() === 0 ? ['-u', 'nobody'] : [];
  const child = spawn('sh', ['-c', 'ulimit -n 20000; exec pgbouncer "$@"', 'sh', ...asUser, file], { stdio: 'ignore' });
  cleanups.push(() => child.kill('SIGKILL'));
  for (let tries = 0; ; tries++) {
    const client = new pg.Client({ host: '127.0.0.1', port, user: 'postgres', password: 'bench', database: 'postgres' });
    try {
      await client.connect();
      await client.end();
      return { name: 'pgbouncer', port, pid: child.pid };
    } catch (error) {
      if (tries > 50) throw error;
      await sleep(100);
    }
  }
}

export function pgBouncerVersion() {
  return spawnSync('pgbouncer', ['--version'], { encoding: 'utf8' }).stdout?.split('\n')[0] ?? 'PgBouncer';
}

function ini(settings, home) {
  const users = join(home, 'users.txt');
  writeFileSync(users, '"postgres" "bench"\n');
  chmodSync(users, 0o644);
  const lines = Object.entries({ auth_file: users, ...settings }).map(([name, value]) => `${name} = ${value}`);
  return `[pgbouncer]\n${lines.join('\n')}\n`;
}

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
  return found.filter((id) => {
    try {
      return /node|pgbouncer/.test(readFileSync(`/proc/${id}/cmdline`, 'utf8'));
    } catch {
      return false;
    }
  });
}

/** utime + stime in microseconds (100 ticks a second) of a proxy's processes; the embedded server's are none of them. */
export function cpu(pid) {
  let ticks = 0;
  for (const id of family(pid)) {
    try {
      const fields = readFileSync(`/proc/${id}/stat`, 'utf8').split(') ')[1].split(' ');
      ticks += Number(fields[11]) + Number(fields[12]);
    } catch {}
  }
  return ticks * 10_000;
}

/** Resident memory of a proxy's processes in MB: of each, and of all together with pages that they share (Node's own code) counted once. */
export function memory(pid) {
  const kilobytes = (file, name) => Number(new RegExp(`^${name}:\\s+(\\d+)`, 'm').exec(readFileSync(file, 'utf8'))?.[1] ?? 0);
  const processes = family(pid).flatMap((id) => {
    try {
      return [{ own: kilobytes(`/proc/${id}/status`, 'VmRSS') / 1024, share: kilobytes(`/proc/${id}/smaps_rollup`, 'Pss') / 1024 }];
    } catch {
      return [];
    }
  });
  return { each: processes.map(({ own }) => own), all: processes.reduce((sum, { share }) => sum + share, 0) };
}

/** Runs pgbench; answers tps, the number of transactions and, with `latencies`, the 99th percentile in ms. */
export async function pgbench(port, { mode = 'simple', clients, seconds, args = ['-S'], latencies = false }) {
  const home = latencies ? folder('log') : null;
  const log = home === null ? [] : ['--log', `--log-prefix=${join(home, 'log')}`];
  const child = spawn(
    'pgbench',
    [
      ...['-n', '-M', mode, '-c', String(clients), '-j', '1', '-T', String(seconds), ...args, ...log],
      ...['-h', '127.0.0.1', '-p', String(port), '-U', 'postgres', 'postgres'],
    ],
    { stdio: ['ignore', 'pipe', 'pipe'], env: { ...process.env, PGPASSWORD: 'bench' } },
  );
  let out = '';
  let errors = '';
  child.stdout.on('data', (text) => (out += text));
  child.stderr.on('data', (text) => (errors += text));
  const code = await new Promise((resolve) => child.on('close', resolve));
  const tps = Number(/tps = ([\d.]+)/.exec(out)?.[1]);
  const transactions = Number(/transactions actually processed: (\d+)/.exec(out)?.[1]);
  if (code !== 0 || !(tps > 0)) throw new Error(`pgbench: ${errors}${out}`);
  return { tps, transactions, p99: home === null ? Number.NaN : percentile(home) };
}

function percentile(home) {
  const times = readdirSync(home)
    .flatMap((file) => readFileSync(join(home, file), 'utf8').split('\n'))
    .flatMap((line) => (line === '' ? [] : [Number(line.split(' ')[2])]))
    .sort((a, b) => a - b);
  rmSync(home, { recursive: true, force: true });
  return (times[Math.floor(times.length * 0.99)] ?? Number.NaN) / 1000;
}

/** Runs each contender in turn, `rounds` times; medians by name. */
export async function interleaved(contenders, rounds, options) {
  const seen = new Map(contenders.map(({ name }) => [name, { tps: [], p99: [], cpu: [] }]));
  for (let round = 0; round < rounds; round++) {
    for (const { name, port, pid } of contenders) {
      const before = pid === null ? 0 : cpu(pid);
      const { tps, transactions, p99 } = await pgbench(port, options);
      const of = seen.get(name);
      of.tps.push(tps);
      of.p99.push(p99);
      of.cpu.push(pid === null ? Number.NaN : (cpu(pid) - before) / transactions);
    }
  }
  const medians = (name) => {
    const of = seen.get(name);
    return of === undefined
      ? { tps: Number.NaN, p99: Number.NaN, cpu: Number.NaN }
      : { tps: median(of.tps), p99: median(of.p99), cpu: median(of.cpu) };
  };
  return { direct: medians('direct'), pgbouncer: medians('pgbouncer'), millrace: medians('millrace') };
}

export const tableHead =
  '\n| work | clients | direct tps | PgBouncer tps | Millrace tps | Millrace / PgBouncer | p99 ms PgBouncer | p99 ms Millrace | CPU µs PgBouncer | CPU µs Millrace |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|';

export function tableRow(work, clients, { direct, pgbouncer, millrace }, digits = 0) {
  const cells = [
    ...[work, clients, show(direct.tps, digits), show(pgbouncer.tps, digits), show(millrace.tps, digits)],
    ...[show(millrace.tps / pgbouncer.tps, 2), show(pgbouncer.p99, 2), show(millrace.p99, 2)],
    ...[show(pgbouncer.cpu, 1), show(millrace.cpu, 1)],
  ];
  return `| ${cells.join(' | ')} |`;
}
