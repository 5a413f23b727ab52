// Transaction pooling: pgbench through Millrace and through PgBouncer over the same number of server connections.
// Then the same with a connection for each transaction, and 5,000 idle clients over 20 server connections with their memory.
// Rounds are interleaved; medians. CPU is that of the proxy's processes (utime + stime) per transaction.
//   npm run bench pool     MILLRACE_BENCH_ROUNDS=5  MILLRACE_BENCH_SECONDS=3  MILLRACE_BENCH_CLIENTS=1,8,32,128  MILLRACE_BENCH_WORKERS=2
// Needs pgbench and PgBouncer (Debian: postgresql-contrib's pgbench, pgbouncer); what is missing is skipped by name.
import pg from 'pg';
import * as peers from './support/peers.mjs';

const rounds = Number(process.env.MILLRACE_BENCH_ROUNDS ?? 5);
const seconds = Number(process.env.MILLRACE_BENCH_SECONDS ?? 3);
const clientCounts = (process.env.MILLRACE_BENCH_CLIENTS ?? '1,8,32,128').split(',').map(Number);
const idleClients = Number(process.env.MILLRACE_BENCH_IDLE ?? 5_000);
const only = process.env.MILLRACE_BENCH_ONLY?.split(',');
const wanted = (work) => only === undefined || only.includes(work);

const settings = { pool_mode: 'transaction', default_pool_size: 20, max_client_conn: 10_000, max_prepared_statements: 200 };

async function main() {
  if (!peers.ready('pool')) return;
  const server = await peers.startServer();
  const contenders = [{ name: 'direct', port: server.port, pid: null }];
  // Before 1.21 PgBouncer has no prepared statements in transaction mode.
  const preparedPeer = Number(/1\.(\d+)/.exec(peers.pgBouncerVersion())?.[1] ?? 0) >= 21;
  const { max_prepared_statements: statements, ...older } = settings;
  const pgbouncer = await peers.startPgBouncer(server.port, {
    auth_type: 'scram-sha-256',
    ...older,
    ...(preparedPeer ? { max_prepared_statements: statements } : {}),
  });
  if (pgbouncer !== null) contenders.push(pgbouncer);
  const millrace = await peers.startMillrace(server.port, { auth_type: 'scram-sha-256', ...settings });
  contenders.push(millrace);
  console.log(`${peers.pgBouncerVersion()}, transaction mode; ${rounds} rounds of ${seconds} s, medians${peers.tableHead}`);
  for (const mode of ['simple', 'extended', 'prepared'].filter(wanted)) {
    const runs = mode === 'prepared' && !preparedPeer ? contenders.filter(({ name }) => name !== 'pgbouncer') : contenders;
    for (const clients of clientCounts) {
      console.log(
        peers.tableRow(`-S ${mode}`, clients, await peers.interleaved(runs, rounds, { mode, clients, seconds, latencies: true })),
      );
    }
  }
  if (wanted('connect')) {
    const medians = await peers.interleaved(contenders, rounds, { clients: 8, seconds, args: ['-S', '-C'] });
    console.log(peers.tableRow('-S -C (a connection each)', 8, medians));
  }
  if (!wanted('idle')) return;
  console.log(`\n${idleClients} idle clients, each of which has asked once, over 20 server connections\n`);
  console.log(
    '| proxy | connected and answered | seconds | resident MB in all, shared pages once | of each process |\n|---|--:|--:|--:|---|',
  );
  for (const proxy of [pgbouncer, millrace]) {
    if (proxy === null) continue;
    const before = performance.now();
    const clients = await connectAll(proxy.port);
    const time = (performance.now() - before) / 1000;
    const { each, all } = peers.memory(proxy.pid);
    console.log(
      `| ${proxy.name} | ${clients.length} | ${peers.show(time, 1)} | ${peers.show(all)} | ${each.map((one) => one.toFixed(0)).join(', ')} |`,
    );
    await Promise.all(clients.map((client) => client.end()));
  }
}

/** Opens the idle clients, 50 at a time, and lets each ask once. */
async function connectAll(port) {
  const clients = [];
  const connectSome = async () => {
    while (clients.length < idleClients) {
      const client = new pg.Client({ host: '127.0.0.1', port, user: 'postgres', password: 'bench', database: 'postgres' });
      clients.push(client);
      await client.connect();
      await client.query('SELECT 1');
    }
  };
  await Promise.all(Array.from({ length: 50 }, connectSome));
  return clients;
}

try {
  await main();
} finally {
  await peers.cleanUp();
}
