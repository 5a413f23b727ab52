/** Runs once before all tests: makes dist/ current, because several suites start the built program. */
import { spawnSync } from 'node:child_process';
import { readdirSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { testRoot } from './cluster-template.ts';

export default function setup(): void {
  removeLeftovers();
  // `npm test` has just built it; the launcher sees that and returns at once. This is for a bare `npx vitest`.
  const launcher = fileURLToPath(new URL('../../src/launch.mjs', import.meta.url));
  const built = spawnSync(process.execPath, [launcher, 'build'], { encoding: 'utf8' });
  if (built.status === 0) return;
  const output = `${built.stdout}${built.stderr}`;
  // One engineer's half-written file must not stop the unit tests of another: suites that start dist/ will say what is missing.
  process.stderr.write(`dist/ is not up to date, the build failed:\n${output.split('\n').slice(0, 20).join('\n')}\n`);
}

/** Test runs that were killed may leave directories; after half a day nobody uses them any more. */
function removeLeftovers(): void {
  for (const name of readdirSync(testRoot())) {
    const path = join(testRoot(), name);
    const age = Date.now() - (statSync(path, { throwIfNoEntry: false })?.mtimeMs ?? Date.now());
    if (!name.startsWith('template-') && age > 12 * 3_600_000) rmSync(path, { recursive: true, force: true });
  }
}
