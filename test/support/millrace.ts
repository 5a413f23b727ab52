/**
 * The built program as a child process, as a user runs it.
 * Invariant: it ends with the test process, and so does all it started.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { chmodSync, existsSync, mkdtempSync, rmSync } from 'node:fs';
import type { Socket } from 'node:net';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import type { ServerAddress } from '../../src/config.ts';
import { testRoot } from './cluster-template.ts';
import { commandLine, descendantsOf, isAlive } from './processes.ts';

/** The program under test: dist/ of this tree, or another build that TEST_MILLRACE_MAIN names. */
export const mainFile: string = process.env['TEST_MILLRACE_MAIN'] ?? fileURLToPath(new URL('../../dist/main.js', import.meta.url));

export interface MillraceOptions {
  /** undefined: the embedded PostgreSQL. */
  readonly upstream: ServerAddress | undefined;
  /** Default: a new one, removed by stop(). */
  readonly dataDir?: string;
  readonly env?: Readonly<Record<string, string>>;
  /** Further flags of `serve`. */
  readonly args?: readonly string[];
  /** Default: a port the system picks. Give the one of an earlier start to come back at the same place. */
  readonly port?: number;
}

export interface TestMillrace {
  readonly host: string;
  readonly port: number;
  readonly httpPort: number;
  readonly pid: number;
  readonly dataDir: string;
  /** A connection URL through the proxy, as the role of the upstream address. */
  url(database?: string): string;
  /** The proxy as an address, e.g. for psql(). */
  address(database?: string): ServerAddress;
  /** SIGKILL to the main process; resolves when everything it started is gone. Data stays. */
  kill9(): Promise<void>;
  /** SIGTERM; resolves with the exit status. Removes a data directory that was made here. */
  stop(): Promise<number>;
  /** SIGTERM as stop(), but the data stays for another start. */
  halt(): Promise<number>;
  /** Process ids of the engines that run now. */
  enginePids(): readonly number[];
  workerPids(): readonly number[];
  /** /readyz says that every engine runs. */
  waitReady(timeoutMs?: number): Promise<void>;
  /** stdout and stderr so far. */
  log(): string;
}

/** Starts `millrace serve` and waits for its ready line. Rejects with its output when it ends instead. */
export async function startMillrace(options: MillraceOptions, tries = 3): Promise<TestMillrace> {
  const { upstream } = options;
  const own = options.dataDir === undefined ? newDataDir() : undefined;
  const dataDir = options.dataDir ?? own ?? '';
  const started = runMillrace(
    [
      'serve',
      '--listen',
      `127.0.0.1:${options.port ?? 0}`,
      '--http',
      '127.0.0.1:0',
      '--data-dir',
      dataDir,
      ...(upstream === undefined ? [] : ['--upstream', upstreamUrl(upstream)]),
      ...(options.args ?? []),
    ],
    { ...(upstream?.password === undefined ? {} : { PGPASSWORD: upstream.password }), ...options.env },
  );
  const { child, output, ended } = started;
  const cleanUp = (): void => {
    if (own !== undefined) rmSync(own, { recursive: true, force: true });
  };
  const port = await waitFor(started, /Millrace is ready.*-h \S+ -p (\d+)/);
  const httpPort = await waitFor(started, /"http":"[^"]*:(\d+)"/);
  if (port === undefined || httpPort === undefined) {
    cleanUp();
    // Another program has taken the port that was free a moment ago.
    if (options.port === undefined && tries > 1 && /the port is in use/.test(output())) {
      await ended;
      return await startMillrace(options, tries - 1);
    }
    throw new Error(`Millrace did not start:\n${output()}`);
  }
  const pid = child.pid ?? 0;
  const address = (database?: string): ServerAddress => ({
    host: '127.0.0.1',
    port,
    user: upstream?.user ?? 'postgres',
    ...(upstream?.password === undefined ? {} : { password: upstream.password }),
    database: database ?? upstream?.database ?? 'postgres',
    ssl: { mode: 'disable' },
  });
  const halt = async (): Promise<number> => {
    child.kill('SIGTERM');
    return await ended;
  };
  return {
    host: '127.0.0.1',
    port,
    httpPort,
    pid,
    dataDir,
    address,
    url: (database) => upstreamUrl(address(database), true),
    async kill9() {
      const all = descendantsOf(pid);
      child.kill('SIGKILL');
      await ended;
      for (const end = Date.now() + 20_000; all.some(isAlive); await sleep(20)) {
        if (Date.now() > end) throw new Error(`processes outlive the main process: ${all.filter(isAlive).join(', ')}`);
      }
    },
    async stop() {
      const status = await halt();
      cleanUp();
      // A crash; those that a test has killed end by a signal. Clients that connect again would hide it.
      const crash = /[^{}]*\{[^{}]*worker \d+ ended unexpectedly \(exit code[^{}]*\}/.exec(output());
      if (crash !== null) throw new Error(`a worker has crashed: ${crash[0]}`);
      return status;
    },
    halt,
    enginePids: () => childrenRunning(pid, 'engine-entry'),
    workerPids: () => childrenRunning(pid, 'worker-entry'),
    async waitReady(timeoutMs = 30_000) {
      let last = '';
      for (const end = Date.now() + timeoutMs; Date.now() < end; await sleep(50)) {
        const answer = await fetch(`http://127.0.0.1:${httpPort}/readyz`).catch(() => undefined);
        if (answer?.status === 200) return;
        last = (await answer?.text()) ?? '';
      }
      throw new Error(`Millrace is not ready after ${timeoutMs} ms: ${last}\n${output()}`);
    },
    log: output,
  };
}

export interface MillraceRun {
  readonly child: ChildProcess;
  /** stdout and stderr so far. */
  output(): string;
  /** Resolves with the exit status, -1 when a signal ended it. */
  readonly ended: Promise<number>;
}

/** Runs the program with these arguments and waits for nothing. */
export function runMillrace(args: readonly string[], env: Readonly<Record<string, string>> = {}): MillraceRun {
  if (!existsSync(mainFile)) throw new Error('dist/main.js is missing: npm run build');
  // Settings of the person who runs the tests must not change what they test.
  const inherited = Object.fromEntries(Object.entries(process.env).filter(([name]) => !/^(MILLRACE_|PG|NODE_OPTIONS$|VITEST)/.test(name)));
  const child = spawn(process.execPath, [mainFile, ...args], { stdio: ['ignore', 'pipe', 'pipe'], env: { ...inherited, ...env } });
  let text = '';
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8').on('data', (chunk: string) => {
      text += chunk;
    });
  }
  // Ends the program when the test process is killed: its stdin is closed then.
  const guard = spawn('/bin/sh', ['-c', 'read -r _; kill -KILL "$1"', 'guard', String(child.pid)], {
    detached: true,
    stdio: ['pipe', 'ignore', 'ignore'],
  });
  guard.unref();
  (guard.stdin as Socket).unref();
  const ended = new Promise<number>((resolve, reject) => {
    child.once('error', reject);
    child.once('close', (code) => {
      guard.kill('SIGKILL');
      resolve(code ?? -1);
    });
  });
  return { child, output: () => text, ended };
}

/** A directory for a data directory, which the user that runs PostgreSQL can pass through. */
export function newDataDir(): string {
  const directory = mkdtempSync(join(testRoot(), 'data-'));
  chmodSync(directory, 0o711);
  return directory;
}

/** The URL of a server for --upstream, without its password unless asked. */
export function upstreamUrl(address: ServerAddress, withPassword = false): string {
  const password = withPassword && address.password !== undefined ? `:${encodeURIComponent(address.password)}` : '';
  const credentials = `${encodeURIComponent(address.user)}${password}`;
  return `postgres://${credentials}@${encodeURIComponent(address.host)}:${address.port}/${encodeURIComponent(address.database)}?sslmode=${address.ssl.mode}`;
}

/** The number that `pattern` finds in the output, undefined when the program ends without it. */
async function waitFor({ output, ended }: MillraceRun, pattern: RegExp): Promise<number | undefined> {
  let over = false;
  const end = ended.then(() => {
    over = true;
  });
  for (;;) {
    const match = pattern.exec(output());
    if (match !== null) return Number(match[1]);
    if (over) return undefined;
    await Promise.race([sleep(10), end]);
  }
}

function childrenRunning(parent: number, entry: string): readonly number[] {
  return descendantsOf(parent).filter((pid) => commandLine(pid).includes(entry));
}
