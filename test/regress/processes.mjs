/**
 * Child processes of the suites.
 * Invariant: each ends with this process, however that ends.
 */
import { spawn, spawnSync } from 'node:child_process';

const running = new Map();

for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) {
  process.once(signal, () => {
    for (const [child, end] of running) child.kill(end);
    process.exit(1);
  });
}

/** Starts a server. `lastSignal` ends it at once when there is no time for more. */
export function startServer(command, args, { lastSignal, ...options }) {
  const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'], ...options });
  running.set(child, lastSignal);
  // A signal handler does not cover kill -9: this shell's stdin is closed then.
  const guard = spawn('/bin/sh', ['-c', 'read -r _; kill -"$2" "$1"', 'guard', String(child.pid), lastSignal.slice(3)], {
    cwd: '/',
    detached: true,
    stdio: ['pipe', 'ignore', 'ignore'],
  });
  guard.unref();
  guard.stdin.unref();
  let text = '';
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8').on('data', (chunk) => {
      // The beginning says how it started, the end how it went.
      text = text.length > 400_000 ? text.slice(0, 50_000) + text.slice(-200_000) + chunk : text + chunk;
    });
  }
  const ended = new Promise((resolve) => {
    child.once('error', (error) => {
      text += error.message;
    });
    child.once('close', (code) => {
      running.delete(child);
      guard.kill('SIGKILL');
      resolve(code ?? -1);
    });
  });
  return { child, ended, output: () => text };
}

/** Resolves with the match once the server has printed it; rejects with its output when it ends before. */
export async function printed({ ended, output }, pattern) {
  let over = false;
  void ended.then(() => {
    over = true;
  });
  for (;;) {
    const match = pattern.exec(output());
    if (match !== null) return match;
    if (over) throw new Error(`a server ended before it was ready:\n${output().slice(-2000)}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** Runs a program to its end. Output is text; nothing is thrown. */
export async function run(command, args, { input, onLine, ...options } = {}) {
  const child = spawn(command, args, { stdio: [input === undefined ? 'ignore' : 'pipe', 'pipe', 'pipe'], ...options });
  running.set(child, 'SIGKILL');
  const text = { stdout: '', stderr: '' };
  let line = '';
  child.stdout.setEncoding('utf8').on('data', (chunk) => {
    text.stdout += chunk;
    if (onLine === undefined) return;
    const lines = (line + chunk).split('\n');
    line = lines.pop();
    for (const one of lines) onLine(one);
  });
  child.stderr.setEncoding('utf8').on('data', (chunk) => {
    text.stderr += chunk;
  });
  if (input !== undefined) {
    // A program that ends early leaves the rest unread.
    child.stdin.on('error', () => {});
    child.stdin.end(input);
  }
  const status = await new Promise((resolve) => {
    child.once('error', (error) => {
      text.stderr += error.message;
      resolve(-1);
    });
    child.once('close', (code) => resolve(code ?? -1));
  });
  running.delete(child);
  return { status, ...text };
}

/** How two files differ, as `diff -u` says it, at most `most` lines. */
export function difference(before, after, most = 120) {
  const lines = spawnSync('diff', ['-U3', before, after], { encoding: 'utf8', maxBuffer: 2 ** 28 }).stdout.split('\n');
  return lines.length > most ? [...lines.slice(0, most), `... ${lines.length - most} more lines`].join('\n') : lines.join('\n');
}

/** The environment without anything that changes what PostgreSQL's programs or Millrace do. */
export function plainEnvironment(more = {}) {
  const kept = Object.entries(process.env).filter(([name]) => !/^(PG|MILLRACE_|LC_|LANG|TZ$|NODE_OPTIONS$|npm_)/.test(name));
  return { ...Object.fromEntries(kept), LC_ALL: 'C', ...more };
}
