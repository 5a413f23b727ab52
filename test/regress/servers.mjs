/**
 * The PostgreSQL that the suites run against, and Millrace before it.
 * Each run gets a copy of one cluster as initdb left it, so that both ways start from the same bytes (OIDs included).
 */
import { spawnSync } from 'node:child_process';
import { appendFileSync, chmodSync, existsSync, mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { createCluster } from '../../dist/server/cluster-files.js';
import { freePort } from '../../dist/server/free-port.js';
import { chooseRunAs } from '../../dist/server/unprivileged.js';
import { plainEnvironment, printed, startServer } from './processes.mjs';
import { cacheDir } from './tools.mjs';

export const host = '127.0.0.1';
export const user = 'postgres';

/** As pg_regress configures a server that it makes itself; logical, because Millrace replicates from it; four slots for test_decoding, which fills them. */
const settings = `
wal_level = logical
max_prepared_transactions = 2
max_replication_slots = 4
max_connections = 100
log_autovacuum_min_duration = 0
log_checkpoints = on
log_lock_waits = on
log_temp_files = 128kB
log_line_prefix = '%m %b[%p] %q%a '
fsync = off
shared_buffers = 256MB
unix_socket_directories = ''
`;

/** A directory that the server's user can write, empty. The server itself writes some of the suites' files. */
export function emptyDirectory(tools, path) {
  rmSync(path, { recursive: true, force: true });
  mkdirSync(path, { recursive: true });
  const { owner } = runAs(tools);
  if (owner !== undefined) spawnSync('chown', [`${owner.uid}:${owner.gid}`, path]);
  chmodSync(path, 0o711);
  return path;
}

function runAs(tools) {
  mkdirSync(cacheDir, { recursive: true });
  return chooseRunAs(join(tools.bin, 'postgres'), cacheDir);
}

/** A new data directory. */
export async function newCluster(tools, path) {
  const as = runAs(tools);
  const template = join(cacheDir, `cluster-${tools.version}`);
  if (!existsSync(template)) {
    await createCluster(
      { initdb: join(tools.bin, 'initdb'), postgres: join(tools.bin, 'postgres'), version: tools.version, major: 15 },
      template,
      as,
      {
        sync: false,
      },
    );
  }
  rmSync(path, { recursive: true, force: true });
  mkdirSync(join(path, '..'), { recursive: true });
  const copied = spawnSync('cp', ['-a', template, path], { encoding: 'utf8' });
  if (copied.status !== 0) throw new Error(`cannot copy a cluster: ${copied.stderr}`);
  appendFileSync(join(path, 'postgresql.conf'), settings);
  return path;
}

/** @returns {Promise<{port: number, log(): string, stop(): Promise<void>}>} */
async function startPostgres(tools, dataDir) {
  const as = runAs(tools);
  const port = await freePort(host);
  const [command, ...args] = [
    ...as.prefix,
    join(tools.bin, 'postgres'),
    '-D',
    dataDir,
    '-c',
    `port=${port}`,
    '-c',
    `listen_addresses=${host}`,
  ];
  // Some modules' scripts have the server connect to itself.
  const env = plainEnvironment({ PGHOST: host, PGUSER: user });
  const server = startServer(command, args, { lastSignal: 'SIGQUIT', cwd: '/', env, ...as.identity });
  await printed(server, /database system is ready to accept connections/);
  return {
    port,
    log: server.output,
    async stop() {
      server.child.kill('SIGINT');
      await server.ended;
    },
  };
}

/** Millrace as `npm start` runs it. In a pooled mode all clients share the connections of one worker. Stopping it is a check of its own: it must end well. */
async function startMillrace(upstreamPort, poolMode) {
  const dataDir = join(cacheDir, 'run', 'millrace');
  rmSync(dataDir, { recursive: true, force: true });
  mkdirSync(dataDir, { recursive: true });
  const main = fileURLToPath(new URL('../../dist/main.js', import.meta.url));
  const upstream = `postgres://${user}@${host}:${upstreamPort}/postgres?sslmode=disable`;
  const args = ['serve', '--upstream', upstream, '--listen', `${host}:0`, '--http', `${host}:0`, '--data-dir', dataDir];
  if (poolMode !== 'session') args.push('--pool-mode', poolMode, '--auth-type', 'trust', '--workers', '1', '--default-pool-size', '40');
  const server = startServer(process.execPath, [main, ...args], { lastSignal: 'SIGKILL', env: plainEnvironment() });
  const [, port] = await printed(server, /Millrace is ready.*-h \S+ -p (\d+)/);
  const [, httpPort] = await printed(server, /"http":"[^"]*:(\d+)"/);
  return {
    port: Number(port),
    log: server.output,
    /** How many connections came through, and how many statements Millrace took for its own. */
    async carried() {
      // Workers report every second.
      await new Promise((resolve) => setTimeout(resolve, 2500));
      const text = await (await fetch(`http://${host}:${httpPort}/metrics`)).text();
      // One sample for each worker.
      const value = (name) =>
        [...text.matchAll(new RegExp(`^${name}(?:{.*})? (\\d+)`, 'gm'))].reduce((sum, [, one]) => sum + Number(one), 0);
      return { connections: value('millrace_client_connections_total'), extended: value('millrace_extended_statements_total') };
    },
    async stop() {
      server.child.kill('SIGTERM');
      const status = await server.ended;
      if (status !== 0) throw new Error(`Millrace ended with status ${status}:\n${server.output().slice(-4000)}`);
    },
  };
}

/**
 * Runs `work(port, directPort)` on a server, reached directly or through Millrace, and returns its result.
 * Ordinary SQL is all that `work` may send: a statement that Millrace takes for its own is an error, and so is a run that went past it.
 * @param {'directly' | 'through'} way
 */
export async function reached(tools, way, dataDir, work) {
  const postgres = await startPostgres(tools, dataDir);
  try {
    if (way === 'directly') return await work(postgres.port, postgres.port);
    const millrace = await startMillrace(postgres.port, tools.poolMode);
    try {
      const result = await work(millrace.port, postgres.port);
      const { connections, extended } = await millrace.carried().catch((error) => {
        throw new Error(`Millrace does not answer: ${error.message}\n${millrace.log().slice(-4000)}`);
      });
      if (!(connections > 0)) throw new Error('nothing went through Millrace');
      if (extended !== 0) throw new Error(`Millrace took ${extended} ordinary statements for extended ones`);
      console.log(`${connections} connections through Millrace`);
      return result;
    } finally {
      writeFileSync(join(cacheDir, 'run', 'millrace.log'), millrace.log());
      await millrace.stop();
    }
  } finally {
    await postgres.stop();
  }
}
