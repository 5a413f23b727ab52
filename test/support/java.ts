/**
 * Java, as tests find it, and servers in it.
 * Invariant: a server and its files are gone when the test is over, also when the test process was killed.
 */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';

/** The program `java` of at least this version: in JAVA_HOME, else in PATH. Otherwise why there is none. */
export function findJava(atLeast: number): { readonly java: string } | { readonly missing: string } {
  const home = process.env['JAVA_HOME'];
  const java = home !== undefined && existsSync(join(home, 'bin', 'java')) ? join(home, 'bin', 'java') : 'java';
  const answer = spawnSync(java, ['-version'], { encoding: 'utf8' });
  if (answer.error !== undefined || answer.status !== 0) return { missing: `no Java ${atLeast} or newer on this machine` };
  const version = /version "(\d+)/.exec(answer.stderr + answer.stdout)?.[1];
  if (version === undefined || Number(version) < atLeast) return { missing: `Java is ${version ?? 'unknown'}, not ${atLeast} or newer` };
  return { java };
}

/**
 * Kills the process whose id was written to its input last, and removes the files, as soon as this process is gone: its input ends then.
 * Only a process whose command line names `home`.
 */
export function startWatcher(home: string): ChildProcess {
  const script =
    'while read -r pid; do last=$pid; done; [ -n "$last" ] && grep -qs "$0" /proc/$last/cmdline && kill -9 "$last"; rm -rf "$0"';
  const watcher = spawn('sh', ['-c', script, home], { detached: true, stdio: ['pipe', 'ignore', 'ignore'] });
  watcher.unref();
  return watcher;
}

/** Ports of the loopback interface that nobody listens on. */
export async function freePorts(count: number): Promise<readonly number[]> {
  const servers = await Promise.all(
    Array.from({ length: count }, async () => {
      const server = createServer();
      await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
      return server;
    }),
  );
  return servers.map((server) => {
    const address = server.address();
    server.close();
    return typeof address === 'object' && address !== null ? address.port : 0;
  });
}
