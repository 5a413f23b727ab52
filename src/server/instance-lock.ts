/**
 * One Millrace a data directory.
 * Invariant: a lock is held by a living process; one whose process is gone counts for nothing, also when its number was given out again.
 */
import { execFileSync } from 'node:child_process';
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { reason } from '../config-loading.ts';
import { isAlive } from './postmaster-file.ts';

/** Takes the lock and returns what releases it. Throws an error of one line when another Millrace has it. */
export function lockDataDir(dataDir: string): () => void {
  const path = join(dataDir, 'millrace.lock');
  const mine = `${process.pid} ${startOf(process.pid)}\n`;
  for (let attempt = 0; attempt < 5; attempt++) {
    try {
      mkdirSync(dataDir, { recursive: true });
      writeFileSync(path, mine, { flag: 'wx' });
      return () => {
        if (read(path) === mine) rmSync(path, { force: true });
      };
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') {
        throw new Error(`cannot write to the data directory ${dataDir}: ${reason(error)}`, { cause: error });
      }
    }
    const held = read(path);
    const [pid = 0, start = ''] = [Number.parseInt(held, 10), held.slice(held.indexOf(' ') + 1).trim()];
    if (pid > 0 && pid !== process.pid && isAlive(pid) && startOf(pid) === start) {
      throw new Error(`data directory ${dataDir} is in use by another Millrace (PID ${pid}): stop that one, or choose another --data-dir`);
    }
    rmSync(path, { force: true });
  }
  throw new Error(`cannot lock the data directory ${dataDir}: ${path} keeps coming back`);
}

function read(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return '';
  }
}

/** When a process started: with its number, its identity. */
function startOf(pid: number): string {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    // Field 22; the second is the name in parentheses, which may contain anything.
    return stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19] ?? '';
  } catch {
    try {
      return execFileSync('ps', ['-o', 'lstart=', '-p', String(pid)], { encoding: 'utf8' }).trim();
    } catch {
      return '';
    }
  }
}
