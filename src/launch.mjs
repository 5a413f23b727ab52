#!/usr/bin/env node
// The one entry behind every npm script: brings node_modules, the generated parser and dist/ up to date, then does the job.
// Plain JavaScript without dependencies, because on a fresh clone nothing is installed or compiled yet.
import { spawnSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, utimesSync, writeFileSync } from 'node:fs';
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

/** Newest modification time below a folder, in ms. Folders count themselves, so a file that vanished is noticed. */
function newest(path) {
  const info = statSync(path);
  if (!info.isDirectory()) return info.mtimeMs;
  return Math.max(info.mtimeMs, ...readdirSync(path).map((entry) => newest(join(path, entry))));
}

/** Two starts at once must not install or build over each other: the second waits, and then finds the work done. */
function alone(work) {
  const lock = join(root, '.cache', 'launch.lock');
  mkdirSync(dirname(lock), { recursive: true });
  for (let told = false; ; ) {
    try {
      writeFileSync(lock, String(process.pid), { flag: 'wx' });
      break;
    } catch (error) {
      if (error.code !== 'EEXIST') throw error;
    }
    if (!holderLives(lock)) {
      rmSync(lock, { force: true });
      continue;
    }
    if (!told) process.stderr.write('millrace: waiting for another start to install and build\n');
    told = true;
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 200);
  }
  const release = () => rmSync(lock, { force: true });
  process.once('exit', release);
  work();
  process.off('exit', release);
  release();
}

function holderLives(lock) {
  try {
    const pid = Number(readFileSync(lock, 'utf8'));
    // An empty file is one that is just being written, unless it stays so.
    if (!(pid > 0)) return Date.now() - statSync(lock).mtimeMs < 2_000;
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return error.code === 'EPERM';
  }
}

/** node_modules as package-lock.json says. Compared by content: times tell nothing after a checkout or a copy. */
function install() {
  if (isInstalled(root)) return;
  process.stderr.write('millrace: installing packages (first start only)\n');
  if (!npmCi(root)) fail('npm ci failed, see above');
}

function npmCi(folder, ...flags) {
  // Output goes to stderr so that a script reading stdout sees Millrace alone. A shell, because npm is npm.cmd on Windows.
  const options = { cwd: folder, stdio: ['ignore', 2, 2], shell: process.platform === 'win32', env: { ...process.env, NODE_ENV: '' } };
  return run('npm', ['ci', '--include=dev', '--no-audit', '--no-fund', '--no-progress', '--loglevel=error', ...flags], options) === 0;
}

function isInstalled(folder) {
  try {
    const read = (...path) => JSON.parse(readFileSync(join(folder, ...path), 'utf8')).packages;
    const installed = read('node_modules', '.package-lock.json');
    return Object.entries(read('package-lock.json')).every(([path, { version, optional, peer }]) => {
      if (path === '') return true;
      // Packages for other platforms are listed in the lock file and not installed.
      if (installed[path] === undefined) return optional === true || peer === true;
      return installed[path].version === version;
    });
  } catch {
    return false;
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
  alone(() => {
    install();
    generateParser();
    const dist = join(root, 'dist');
    const stamp = join(dist, '.built');
    const sources = Math.max(newest(join(root, 'src')), newest(join(root, 'tsconfig.build.json')), newest(join(root, 'tsconfig.json')));
    if (existsSync(stamp) && statSync(stamp).mtimeMs > sources) return;
    const begun = new Date();
    if (run(bin('tsc'), ['-p', 'tsconfig.build.json'], { stdio: ['ignore', 2, 2] }) !== 0) fail('the sources do not compile');
    copyAssets(join(root, 'src'), dist);
    removeOrphans(dist, join(root, 'src'));
    writeFileSync(stamp, '');
    // A source saved while the compiler ran is newer than this.
    utimesSync(stamp, begun, begun);
  });
}

/** Removes what an earlier build left of sources that are gone: a file that still exists in dist/ would still be imported. */
function removeOrphans(dist, src) {
  for (const entry of readdirSync(dist, { withFileTypes: true })) {
    const path = join(dist, entry.name);
    const source = join(src, entry.name);
    if (entry.isDirectory()) {
      if (existsSync(source)) removeOrphans(path, source);
      else rmSync(path, { recursive: true, force: true });
      continue;
    }
    const origins = [source, source.replace(/\.js(\.map)?$/, '.ts')];
    if (entry.name !== '.built' && !origins.some((origin) => existsSync(origin))) rmSync(path, { force: true });
  }
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

/** The packages of test/clients. Without scripts: theirs only download engines that are not used. */
function installClients(folder) {
  if (isInstalled(folder) || npmCi(folder, '--ignore-scripts')) return;
  const registry = spawnSync('npm', ['ping', '--fetch-retries=0', '--fetch-timeout=10000'], {
    stdio: 'ignore',
    shell: process.platform === 'win32',
  });
  if (registry.status === 0) fail('npm ci failed in test/clients, see above');
  process.stderr.write('SKIPPED: test/clients: their packages are not installed and the registry cannot be reached\n');
  process.exit(0);
}

/** npm that is killed cannot pass anything on: without this, Millrace would go on unseen. */
function endWithNpm() {
  if (process.env.npm_lifecycle_event === undefined) return;
  const npm = process.ppid;
  const timer = setInterval(() => {
    if (process.ppid === npm) return;
    clearInterval(timer);
    process.kill(process.pid, 'SIGTERM');
  }, 500);
  timer.unref();
}

const [major = 0, minor = 0] = process.versions.node.split('.').map(Number);
if (major < 20 || (major === 20 && minor < 19)) fail(`Node.js 20.19 or later is needed, this is ${process.versions.node}`);

const [job, ...args] = process.argv.slice(2);
switch (job) {
  case 'build':
    build();
    break;
  case 'serve':
  case 'check': {
    build();
    endWithNpm();
    process.argv.splice(1, process.argv.length - 1, join(root, 'dist', 'main.js'), job, ...args);
    await import(pathToFileURL(join(root, 'dist', 'main.js')).href);
    break;
  }
  case 'test':
    build();
    process.exit(run(bin('vitest'), ['run', ...args]));
    break;
  case 'clients': {
    build();
    const clients = join(root, 'test', 'clients');
    alone(() => installClients(clients));
    // Prisma's client is generated code, which the type check below needs.
    if (run(process.execPath, [join(clients, 'prisma', 'generate.mjs')]) !== 0) fail('the Prisma client cannot be generated');
    const types = run(bin('tsc'), ['-p', join(clients, 'tsconfig.json')]);
    process.exit(run(bin('vitest'), ['run', '--config', join(clients, 'vitest.config.ts'), ...args]) || types);
    break;
  }
  case 'bench':
    build();
    process.exit(run(process.execPath, [join(root, 'bench', 'run.mjs'), ...args]));
    break;
  case 'regress':
    build();
    process.exit(run(process.execPath, [join(root, 'test', 'regress', 'run.mjs'), ...args]));
    break;
  case 'check-code': {
    alone(() => {
      install();
      generateParser();
    });
    const types = run(bin('tsc'), ['-p', 'tsconfig.json']);
    const lint = run(bin('biome'), ['check', '--error-on-warnings', ...args]);
    process.exit(types || lint);
    break;
  }
  default:
    fail(`unknown job "${job}"`);
}
