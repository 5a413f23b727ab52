/**
 * A real PostgreSQL server as a child of this process.
 * Invariant: it ends when this process ends, in whatever way, and a data directory has one server at a time.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { chownSync, existsSync, mkdirSync, statSync } from 'node:fs';
import { rmdir } from 'node:fs/promises';
import { tmpdir, totalmem } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { clusterMajor, configureCluster, createCluster, lastPort, takeOwnership } from './cluster-files.ts';
import { freePort } from './free-port.ts';
import { findPostgresBinaries, type PostgresBinaries } from './postgres-binaries.ts';
import { clearLeftover, readPostmasterFile, supervisedMark } from './postmaster-file.ts';
import { chooseRunAs, type RunAs } from './unprivileged.ts';

export interface EmbeddedOptions {
  /** PostgreSQL's own data directory; made when missing. */
  readonly dataDir: string;
  /** npm package the programs come from. */
  readonly packageName?: string;
  /** Override the settings Millrace chooses. */
  readonly settings?: Readonly<Record<string, string>>;
  /** Removed by the guard when this process dies without stopping the server: for tests. */
  readonly removeAfterDeath?: string;
  /** false: initdb does not wait for the disk. */
  readonly sync?: boolean;
}

export interface EmbeddedPostgres {
  readonly version: string;
  readonly pid: number;
  /** TCP on 127.0.0.1. */
  readonly port: number;
  /** Directory of the Unix socket, undefined where the platform has none. */
  readonly socketDir: string | undefined;
  readonly dataDir: string;
  /** Settles when the server has ended, for whatever reason. */
  readonly ended: Promise<void>;
  /** The last lines the server wrote to stderr. */
  recentOutput(): string;
  /** Ends the server: `fast` closes sessions and writes a checkpoint, `immediate` leaves recovery to the next start. */
  stop(mode?: 'fast' | 'immediate'): Promise<void>;
}

/** Longest socket path is 107 bytes on Linux, 103 on macOS, with "/.s.PGSQL.65535" in it. */
const longestSocketDir = 85;

/**
 * Starts PostgreSQL on a data directory, which is made when it does not exist, and waits until it takes connections.
 * Rejects with an error of one line that says what to do.
 */
export async function startEmbeddedPostgres(options: EmbeddedOptions): Promise<EmbeddedPostgres> {
  const binaries = findPostgresBinaries(options.packageName);
  const dataDir = resolve(options.dataDir);
  mkdirSync(dirname(dataDir), { recursive: true });
  const major = clusterMajor(dataDir);
  if (major !== undefined && major !== binaries.major) {
    throw new Error(
      `data directory ${dataDir} was initialised by PostgreSQL ${major}, this Millrace runs ${binaries.major}: move the data with pg_upgrade or pg_dump, or choose another --data-dir`,
    );
  }
  const runAs = chooseRunAs(binaries.postgres, dirname(dataDir), existsSync(dataDir) ? statSync(dataDir).uid : undefined);
  if (major === undefined) await createCluster(binaries, dataDir, runAs, { sync: options.sync ?? true });
  await clearLeftover(dataDir);
  takeOwnership(dataDir, runAs);
  const socketDir = process.platform === 'win32' ? undefined : prepareSocketDir(dataDir, runAs);

  let port = await freePort('127.0.0.1', lastPort(dataDir));
  for (let attempt = 1; ; attempt++) {
    configureCluster(dataDir, { ...defaultSettings(), ...options.settings, port: String(port) }, runAs);
    try {
      return await launch(binaries, { dataDir, port, socketDir, runAs, removeAfterDeath: options.removeAfterDeath });
    } catch (error) {
      const reason = error instanceof Error ? error.message : '';
      // Backends of a server that was killed notice within moments; a port can be lost between the look and the bind.
      if (attempt >= 20 || !/shared memory block|could not create any TCP\/IP sockets|could not bind/.test(reason)) throw error;
      if (!reason.includes('shared memory block')) port = await freePort('127.0.0.1');
      await sleep(250);
    }
  }
}

function defaultSettings(): Record<string, string> {
  const megabytes = Math.round(Math.min(1024, Math.max(128, totalmem() / 8 / 2 ** 20)));
  return {
    wal_level: 'logical',
    max_replication_slots: '50',
    max_wal_senders: '50',
    max_connections: '200',
    shared_buffers: `${megabytes}MB`,
    // The server's own words (English, UTC) are read by people and by Millrace.
    lc_messages: 'C',
  };
}

function prepareSocketDir(dataDir: string, runAs: RunAs): string {
  if (Buffer.byteLength(dataDir) <= longestSocketDir) return dataDir;
  const name = createHash('sha256').update(dataDir).digest('hex').slice(0, 16);
  const directory = join(tmpdir(), `millrace-${name}`);
  mkdirSync(directory, { recursive: true, mode: 0o700 });
  const info = statSync(directory);
  const mine = process.getuid?.();
  // Somebody else's directory of this name could hand our clients to their server.
  if (mine !== 0 && info.uid !== mine)
    throw new Error(`${directory} belongs to another user: remove it, or choose a --data-dir with a shorter path`);
  if (runAs.owner !== undefined) chownSync(directory, runAs.owner.uid, runAs.owner.gid);
  return directory;
}

interface Launch {
  readonly dataDir: string;
  readonly port: number;
  readonly socketDir: string | undefined;
  readonly runAs: RunAs;
  readonly removeAfterDeath: string | undefined;
}

async function launch(
  binaries: PostgresBinaries,
  { dataDir, port, socketDir, runAs, removeAfterDeath }: Launch,
): Promise<EmbeddedPostgres> {
  const fixed = { port: String(port), listen_addresses: '127.0.0.1', unix_socket_directories: socketDir ?? '' };
  const parameters = Object.entries(fixed).flatMap(([name, value]) => ['-c', `${name}=${value}`]);
  const [command = binaries.postgres, ...args] = [...runAs.prefix, binaries.postgres, '-D', dataDir, ...parameters, '-c', supervisedMark];
  const child = spawn(command, args, {
    cwd: '/',
    // Its own session: Ctrl-C at the terminal is for Millrace, which ends the server after its clients.
    detached: true,
    stdio: ['ignore', 'ignore', 'pipe'],
    env: { ...process.env, LC_ALL: 'C' },
    ...runAs.identity,
  });
  const output: string[] = [];
  child.stderr?.setEncoding('utf8').on('data', (text: string) => {
    output.push(...text.split('\n').filter((line) => line !== ''));
    if (output.length > 2_000) output.splice(0, output.length - 1_000);
  });
  const ended = new Promise<void>((done) => {
    child.once('close', () => done());
    child.once('error', (error) => {
      output.push(`FATAL:  ${error.message}`);
      done();
    });
  });
  const state = { over: false };
  void ended.then(() => {
    state.over = true;
  });
  const { pid } = child;
  const guard = pid === undefined ? undefined : spawnGuard(pid, dataDir, removeAfterDeath);
  // Killed, not released: after an end that was asked for, the files stay.
  void ended.then(() => guard?.kill('SIGKILL'));
  if (socketDir !== undefined && socketDir !== dataDir) void ended.then(() => rmdir(socketDir).catch(() => undefined));

  while (!state.over) {
    const file = readPostmasterFile(dataDir);
    if (file?.pid === pid && file?.status === 'ready') break;
    await Promise.race([sleep(15), ended]);
  }
  if (state.over || pid === undefined) {
    const fatal = output
      .filter((line) => /\b(FATAL|PANIC|ERROR|could not)\b/.test(line))
      .map((line) => line.replace(/^.*?(FATAL|PANIC|ERROR|LOG|WARNING): +/, ''));
    throw new Error(`the embedded PostgreSQL did not start: ${fatal.join('; ') || output.at(-1) || 'it said nothing'}`);
  }
  return {
    version: binaries.version,
    pid,
    port,
    socketDir,
    dataDir,
    ended,
    recentOutput: () => output.join('\n'),
    stop: (mode = 'fast') => stop(child, ended, mode),
  };
}

async function stop(child: ChildProcess, ended: Promise<void>, mode: 'fast' | 'immediate'): Promise<void> {
  for (const [signal, patience] of mode === 'fast'
    ? ([
        ['SIGINT', 30_000],
        ['SIGQUIT', 10_000],
      ] as const)
    : ([['SIGQUIT', 10_000]] as const)) {
    child.kill(signal);
    const timer = new AbortController();
    const late = sleep(patience, true, { signal: timer.signal }).catch(() => false);
    const over = await Promise.race([ended.then(() => true), late.then(() => false)]);
    timer.abort();
    if (over) return;
  }
  child.kill('SIGKILL');
  await ended;
}

/**
 * A shell that waits for this process to die, which closes its stdin, and then ends the server.
 * Signals and exit handlers do not cover kill -9; this does, on every Unix.
 */
function spawnGuard(pid: number, dataDir: string, remove: string | undefined): ChildProcess | undefined {
  if (process.platform === 'win32') return undefined;
  const script = `read -r _
first=; { read -r first < "$2/postmaster.pid"; } 2>/dev/null
if [ "$first" = "$1" ]; then
  kill -"$4" "$1" 2>/dev/null
  i=0; while kill -0 "$1" 2>/dev/null && [ $i -lt 300 ]; do sleep 0.1; i=$((i+1)); done
fi
[ -z "$3" ] || rm -rf "$3"`;
  const guard = spawn(
    '/bin/sh',
    ['-c', script, 'millrace-guard', String(pid), dataDir, remove ?? '', remove === undefined ? 'INT' : 'QUIT'],
    {
      cwd: '/',
      detached: true,
      stdio: ['pipe', 'ignore', 'ignore'],
    },
  );
  guard.once('error', () => {});
  guard.stdin?.once('error', () => {});
  guard.unref();
  (guard.stdin as unknown as { unref?(): void } | null)?.unref?.();
  return guard;
}
