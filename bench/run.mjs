// npm run bench [name ...]: runs the benchmarks of this folder one after the other, all of them when none is named.
// Each is a file of its own that prints a table; they share a machine, so never two at a time.
import { spawnSync } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const folder = dirname(fileURLToPath(import.meta.url));
const known = readdirSync(folder, { withFileTypes: true })
  .filter((entry) => entry.isFile() && /^[a-z].*\.mjs$/.test(entry.name) && entry.name !== 'run.mjs')
  .map((entry) => entry.name.replace(/\.mjs$/, ''))
  .sort();

// `npm run bench pgbench -- --clients 8`: names first, then flags, which every named benchmark gets.
const args = process.argv.slice(2);
const firstFlag = args.findIndex((arg) => arg.startsWith('-'));
const named = firstFlag < 0 ? args : args.slice(0, firstFlag);
const flags = firstFlag < 0 ? [] : args.slice(firstFlag);

const unknown = named.filter((name) => !known.includes(name));
if (unknown.length > 0) {
  process.stderr.write(`millrace: no benchmark "${unknown.join('", "')}": there are ${known.join(', ')}\n`);
  process.exit(1);
}

const failed = [];
for (const name of named.length > 0 ? named : known) {
  process.stdout.write(`\n=== ${name}\n`);
  const { status } = spawnSync(process.execPath, [join(folder, `${name}.mjs`), ...flags], { stdio: 'inherit' });
  if (status !== 0) failed.push(name);
}
if (failed.length > 0) {
  process.stderr.write(`\nmillrace: failed: ${failed.join(', ')}\n`);
  process.exit(1);
}
