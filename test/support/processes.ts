/** Processes of this machine, as tests look at them. */
import { execFileSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';

/** Direct children of a process. */
export function childrenOf(parent: number): readonly number[] {
  return processTable()
    .filter((one) => one.parent === parent)
    .map((one) => one.pid);
}

/** Every descendant of a process, nearest first. */
export function descendantsOf(ancestor: number): readonly number[] {
  const table = processTable();
  const found = [ancestor];
  for (const pid of found) found.push(...table.filter((one) => one.parent === pid).map((one) => one.pid));
  return found.slice(1);
}

function processTable(): readonly { pid: number; parent: number }[] {
  try {
    return readdirSync('/proc')
      .filter((name) => /^\d+$/.test(name))
      .flatMap((name) => {
        try {
          const stat = readFileSync(`/proc/${name}/stat`, 'utf8');
          const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
          return fields[0] === 'Z' ? [] : [{ pid: Number(name), parent: Number(fields[1]) }];
        } catch {
          return [];
        }
      });
  } catch {
    return execFileSync('ps', ['-A', '-o', 'pid=,ppid='], { encoding: 'utf8' })
      .trim()
      .split('\n')
      .map((line) => line.trim().split(/\s+/).map(Number))
      .map(([pid = 0, parent = 0]) => ({ pid, parent }));
  }
}

/** Whether a process exists and is not merely waiting to be collected by its parent. */
export function isAlive(pid: number): boolean {
  return processTable().some((one) => one.pid === pid);
}

/** Command and arguments of a process, empty when it is gone. */
export function commandLine(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8').replaceAll('\0', ' ');
  } catch {
    try {
      return execFileSync('ps', ['-o', 'args=', '-p', String(pid)], { encoding: 'utf8' });
    } catch {
      return '';
    }
  }
}
