/**
 * What PostgreSQL leaves in its data directory about the server that runs, or ran, there.
 * Invariant: nothing here ends a server that Millrace did not start.
 */
import { readFileSync, readlinkSync, realpathSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

/** Put on the command line of every server Millrace starts, so that it knows its own again. */
export const supervisedMark = 'millrace.supervised=on';

export interface PostmasterFile {
  readonly pid: number;
  /** "ready", "starting", "stopping", or empty while the server has not got so far. */
  readonly status: string;
}

/** The contents of postmaster.pid, undefined when there is none. */
export function readPostmasterFile(dataDir: string): PostmasterFile | undefined {
  const lines = read(join(dataDir, 'postmaster.pid'))?.split('\n');
  const pid = Number(lines?.[0]);
  if (lines === undefined || !Number.isInteger(pid) || pid <= 0) return undefined;
  return { pid, status: lines[7]?.trim() ?? '' };
}

/**
 * Makes a data directory free for a new server: ends one that an earlier Millrace left behind, and disarms the file of one that is gone.
 * Throws an error of one line when somebody else's server runs there.
 */
export async function clearLeftover(dataDir: string): Promise<void> {
  const file = readPostmasterFile(dataDir);
  if (file === undefined || !isAlive(file.pid)) return;
  if (!servesDirectory(file.pid, dataDir)) {
    // The process id went to another program, which PostgreSQL would take for a rival; our own id it does not.
    // The file stays: it also names the shared memory by which surviving backends are noticed.
    const path = join(dataDir, 'postmaster.pid');
    writeFileSync(path, readFileSync(path, 'utf8').replace(/^\d+/, String(process.pid)));
    return;
  }
  if (!read(join(dataDir, 'postmaster.opts'))?.includes(supervisedMark)) {
    throw new Error(
      `data directory ${dataDir} is in use by a PostgreSQL server that Millrace did not start (PID ${file.pid}): stop that server, or choose another --data-dir`,
    );
  }
  for (const [signal, patience] of [
    ['SIGINT', 30_000],
    ['SIGQUIT', 10_000],
    ['SIGKILL', 10_000],
  ] as const) {
    signalProcess(file.pid, signal);
    if (await waitForEnd(file.pid, patience)) return;
  }
  throw new Error(`the PostgreSQL server that an earlier start left in ${dataDir} (PID ${file.pid}) does not end`);
}

/** Whether a process exists and has not ended: one that waits to be collected by its parent counts as ended. */
export function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
  const stat = read(`/proc/${pid}/stat`);
  return stat === undefined || !/^\d+ \(.*\) [ZX]/s.test(stat);
}

/** Sends a signal; false when the process is gone. */
export function signalProcess(pid: number, signal: NodeJS.Signals): boolean {
  try {
    return process.kill(pid, signal);
  } catch {
    return false;
  }
}

async function waitForEnd(pid: number, patience: number): Promise<boolean> {
  for (const end = Date.now() + patience; Date.now() < end; ) {
    if (!isAlive(pid)) return true;
    await sleep(25);
  }
  return false;
}

/** A postmaster's working directory is its data directory. Where that cannot be read, the process is believed to be one. */
function servesDirectory(pid: number, dataDir: string): boolean {
  try {
    return readlinkSync(`/proc/${pid}/cwd`) === realpathSync(dataDir);
  } catch {
    return true;
  }
}

function read(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return undefined;
  }
}
