/** Runs once before all tests: makes dist/ current, because several suites start the built program. */
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';

export default function setup(): void {
  // `npm test` has just built it; the launcher sees that and returns at once. This is for a bare `npx vitest`.
  const launcher = fileURLToPath(new URL('../../src/launch.mjs', import.meta.url));
  const built = spawnSync(process.execPath, [launcher, 'build'], { encoding: 'utf8' });
  if (built.status === 0) return;
  const output = `${built.stdout}${built.stderr}`;
  // One engineer's half-written file must not stop the unit tests of another: suites that start dist/ will say what is missing.
  process.stderr.write(`dist/ is not up to date, the build failed:\n${output.split('\n').slice(0, 20).join('\n')}\n`);
}
