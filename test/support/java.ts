/** Java, as tests find it. */
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
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
