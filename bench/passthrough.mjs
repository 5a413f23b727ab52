// What the proxy costs in session mode: pgbench through Millrace and through PgBouncer against the same server, and directly.
// Rounds are interleaved; medians. CPU is that of the proxy's processes (utime + stime) per transaction, p99 from pgbench's own log.
//   npm run bench passthrough     MILLRACE_BENCH_ROUNDS=5  MILLRACE_BENCH_SECONDS=3  MILLRACE_BENCH_CLIENTS=1,8,32,128  MILLRACE_BENCH_WORKERS=2
// Needs pgbench and PgBouncer (Debian: postgresql-contrib's pgbench, pgbouncer); what is missing is skipped by name.
import { mkdtempSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as peers from './support/peers.mjs';

const rounds = Number(process.env.MILLRACE_BENCH_ROUNDS ?? 5);
const seconds = Number(process.env.MILLRACE_BENCH_SECONDS ?? 3);
const clientCounts = (process.env.MILLRACE_BENCH_CLIENTS ?? '1,8,32,128').split(',').map(Number);
const only = process.env.MILLRACE_BENCH_ONLY?.split(',');
const wanted = (work) => only === undefined || only.includes(work);

async function main() {
  if (!peers.ready('passthrough')) return;
  const server = await peers.startServer();
  const contenders = [{ name: 'direct', port: server.port, pid: null }];
  const pgbouncer = await peers.startPgBouncer(server.port, {
    auth_type: 'trust',
    pool_mode: 'session',
    default_pool_size: 200,
    max_client_conn: 500,
  });
  if (pgbouncer !== null) contenders.push(pgbouncer);
  contenders.push(await peers.startMillrace(server.port));
  console.log(`${peers.pgBouncerVersion()}, session mode; ${rounds} rounds of ${seconds} s, medians${peers.tableHead}`);
  for (const mode of ['simple', 'prepared'].filter(wanted)) {
    for (const clients of clientCounts) {
      const medians = await peers.interleaved(contenders, rounds, { mode, clients, seconds, latencies: true });
      console.log(peers.tableRow(`-S ${mode}`, clients, medians));
    }
  }
  if (wanted('rows')) {
    const script = join(mkdtempSync(join(tmpdir(), 'millrace-bench-')), 'rows.sql');
    writeFileSync(script, 'SELECT * FROM pgbench_accounts WHERE aid <= 20000;\n');
    for (const clients of [1, 8]) {
      const medians = await peers.interleaved(contenders, rounds, { clients, seconds, args: ['-f', script] });
      console.log(peers.tableRow('20,000 rows', clients, medians, 1));
    }
  }
  if (wanted('connect')) {
    const medians = await peers.interleaved(contenders, rounds, { clients: 8, seconds, args: ['-S', '-C'] });
    console.log(peers.tableRow('-S -C (a server connection each)', 8, medians));
    await peers.cleanUp();
    await pooledSessions();
  }
}

/** Both authenticate clients and use server connections again for others, behind DISCARD ALL. */
async function pooledSessions() {
  const server = await peers.startServer();
  const settings = { auth_type: 'scram-sha-256', pool_mode: 'session', default_pool_size: 20, server_reset_query: 'DISCARD ALL' };
  const contenders = [{ name: 'direct', port: server.port, pid: null }];
  const pgbouncer = await peers.startPgBouncer(server.port, settings);
  if (pgbouncer !== null) contenders.push(pgbouncer);
  contenders.push(await peers.startMillrace(server.port, settings));
  const medians = await peers.interleaved(contenders, rounds, { clients: 8, seconds, args: ['-S', '-C'] });
  console.log(peers.tableRow('-S -C (pooled sessions)', 8, medians));
}

try {
  await main();
} finally {
  await peers.cleanUp();
}
