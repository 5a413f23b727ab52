/** `millrace serve` as a user runs it, on the embedded PostgreSQL. */
import { rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import { afterEach, describe, expect, it } from 'vitest';
import { newDataDir, runMillrace, startMillrace, type TestMillrace } from '../../support/millrace.ts';
import { descendantsOf, isAlive } from '../../support/processes.ts';

const running: TestMillrace[] = [];
const directories: string[] = [];
afterEach(async () => {
  await Promise.all(running.splice(0).map((one) => one.stop().catch(() => undefined)));
  for (const directory of directories.splice(0)) rmSync(directory, { recursive: true, force: true });
});

async function start(options: Partial<Parameters<typeof startMillrace>[0]> = {}): Promise<TestMillrace> {
  const millrace = await startMillrace({ upstream: undefined, ...options });
  running.push(millrace);
  return millrace;
}

function dataDir(): string {
  const directory = newDataDir();
  directories.push(directory);
  return directory;
}

async function ask(url: string, sql: string, connectionTimeoutMillis = 3_000): Promise<unknown> {
  const client = new pg.Client({ connectionString: url, connectionTimeoutMillis });
  client.on('error', () => {});
  await client.connect();
  try {
    return (await client.query({ text: sql, rowMode: 'array' })).rows[0]?.[0];
  } finally {
    await client.end();
  }
}

async function fetchText(millrace: TestMillrace, path: string, init?: RequestInit): Promise<{ status: number; text: string }> {
  const response = await fetch(`http://127.0.0.1:${millrace.httpPort}${path}`, init);
  return { status: response.status, text: await response.text() };
}

/** The one line `serve` ends with when it cannot start. */
async function refusal(args: readonly string[], env: Record<string, string> = {}): Promise<string> {
  const run = runMillrace(['serve', '--listen', '127.0.0.1:0', '--http', '127.0.0.1:0', ...args], env);
  expect(await run.ended).toBe(1);
  const lines = run.output().trimEnd().split('\n');
  expect(lines).toHaveLength(1);
  return lines[0] ?? '';
}

describe('millrace serve', () => {
  it('serves, stops cleanly on SIGTERM and SIGINT, and continues where it stopped', async () => {
    const directory = dataDir();
    const first = await start({ dataDir: directory });
    await ask(first.url(), 'CREATE TABLE kept AS SELECT 42 AS a');
    const processes = descendantsOf(first.pid);
    expect(processes.length).toBeGreaterThanOrEqual(3);
    expect(await first.halt()).toBe(0);
    expect(processes.filter(isAlive)).toEqual([]);

    const second = await start({ dataDir: directory });
    expect(await ask(second.url(), 'SELECT a FROM kept')).toBe(42);
    process.kill(second.pid, 'SIGINT');
    // As npm and a terminal do: the same Ctrl-C twice.
    process.kill(second.pid, 'SIGINT');
    expect(await second.halt()).toBe(0);
  });

  it('starts again after kill -9 with nothing of the first left', async () => {
    const directory = dataDir();
    const first = await start({ dataDir: directory });
    await ask(first.url(), 'CREATE TABLE kept AS SELECT 1 AS a');
    const held = new pg.Client(first.url());
    held.on('error', () => {});
    await held.connect();
    const gone = first.kill9();
    // At once, while the old server may still be on its way out.
    const second = await start({ dataDir: directory });
    await gone;
    expect(await ask(second.url(), 'SELECT a FROM kept')).toBe(1);
  });

  it('restarts workers and the embedded server that die, on the same port', async () => {
    const millrace = await start();
    for (const pid of millrace.workerPids()) process.kill(pid, 'SIGKILL');
    await expect.poll(() => ask(millrace.url(), 'SELECT 1').catch(() => 'down'), { timeout: 20_000 }).toBe(1);
    const metrics = await fetchText(millrace, '/metrics');
    expect(metrics.text).toMatch(/millrace_restarts_total\{worker="1"\} 1/);
    const postmaster = await ask(millrace.url(), "SELECT split_part(pg_read_file('postmaster.pid'), E'\\n', 1)::int");
    process.kill(Number(postmaster), 'SIGKILL');
    await expect.poll(() => ask(millrace.url(), 'SELECT 1').catch(() => 'down'), { timeout: 20_000 }).toBe(1);
    expect(await ask(millrace.url(), "SELECT split_part(pg_read_file('postmaster.pid'), E'\\n', 1)::int")).not.toBe(postmaster);
  });

  it('leaves no client waiting for ever whose worker is killed while it takes it over', async () => {
    const millrace = await start();
    for (const pid of millrace.workerPids()) process.kill(pid, 'SIGSTOP');
    const outcomes = Array.from({ length: 12 }, () => ask(millrace.url(), 'SELECT 1', 0).catch(() => 'ended'));
    await sleep(200);
    for (const pid of millrace.workerPids()) process.kill(pid, 'SIGKILL');
    const all = await Promise.all(outcomes);
    // Each worker had one of them; the others were waiting, and are served once a worker is there again.
    expect(all.filter((outcome) => outcome === 1).length).toBeGreaterThanOrEqual(all.length - millrace.workerPids().length);
  });

  it('answers /healthz, /readyz and /metrics, and nothing else', async () => {
    const millrace = await start();
    await millrace.waitReady();
    expect(await fetchText(millrace, '/healthz')).toEqual({ status: 200, text: 'ok\n' });
    expect(await fetchText(millrace, '/readyz?verbose')).toEqual({ status: 200, text: '{"ready":true,"missing":[]}\n' });
    expect((await fetchText(millrace, '/healthz', { method: 'POST', body: 'x' })).status).toBe(405);
    expect((await fetchText(millrace, '/healthz', { method: 'HEAD' })).text).toBe('');
    for (const path of ['/', '/healthz/x', '/constructor', '/..%2f']) expect((await fetchText(millrace, path)).status).toBe(404);
    const { text } = await fetchText(millrace, '/metrics');
    expect(text).toContain('process_cpu_seconds_total');
    expect(text).toMatch(/^millrace_up\{worker="1"\} 1$/m);
  });

  it('refuses a second start on the same data directory', async () => {
    const millrace = await start();
    expect(await refusal(['--data-dir', millrace.dataDir])).toBe(
      `millrace: data directory ${millrace.dataDir} is in use by another Millrace (PID ${millrace.pid}): stop that one, or choose another --data-dir`,
    );
    expect(await ask(millrace.url(), 'SELECT 1')).toBe(1);
  });

  it('says in one line that a port is in use', async () => {
    const taken = createServer();
    await new Promise<void>((resolve) => taken.listen(0, '127.0.0.1', resolve));
    const { port } = taken.address() as { port: number };
    const directory = dataDir();
    try {
      expect(await refusal(['--data-dir', directory, '--listen', `127.0.0.1:${port}`])).toMatch(
        `millrace: cannot listen on 127.0.0.1:${port}: the port is in use (another Millrace? choose another with --listen HOST:PORT)`,
      );
      expect(await refusal(['--data-dir', directory, '--http', `127.0.0.1:${port}`])).toContain('choose another with --http');
    } finally {
      taken.close();
    }
  });

  it('says in one line that the data is of another PostgreSQL', async () => {
    const directory = dataDir();
    const millrace = await start({ dataDir: directory });
    await millrace.halt();
    writeFileSync(join(directory, 'postgres', 'PG_VERSION'), '17\n');
    expect(await refusal(['--data-dir', directory])).toContain(
      `data directory ${join(directory, 'postgres')} was initialised by PostgreSQL 17, this Millrace runs 18: `,
    );
  });

  it('says in one line what is wrong with a flag', async () => {
    expect(await refusal(['--workers', 'many'])).toBe('millrace: --workers: "many" is not a number from 1 to 64');
    const run = runMillrace(['serve'], { MILLRACE_HTTP: 'nowhere' });
    expect([await run.ended, run.output()]).toEqual([1, 'millrace: --http: "nowhere" is not HOST:PORT\n']);
    expect(await refusal(['--data-dir', dataDir()], { MILLRACE_SECRET_KEY: 'short' })).toContain('MILLRACE_SECRET_KEY does not hold');
  });
});
