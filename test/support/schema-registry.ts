/**
 * A real schema registry for tests: Apicurio Registry, in memory, which speaks Confluent's REST interface.
 * Invariant: it is gone when the test is over, also when the test process was killed.
 */
import { execFileSync, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { existsSync, mkdirSync, mkdtempSync, openSync, readFileSync, renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { testRoot } from './cluster-template.ts';
import { findJava, freePorts, startWatcher } from './java.ts';
import { mavenFiles, testCache } from './maven.ts';

export interface TestSchemaRegistry {
  /** The root of Confluent's interface. */
  readonly url: string;
  stop(): Promise<void>;
}

const VERSION = '3.0.9';
const ARCHIVE = {
  path: `io/apicurio/apicurio-registry-app/${VERSION}/apicurio-registry-app-${VERSION}-all.tar.gz`,
  sha1: '4deac01752711c32da5662e7b778b61c5e904746',
};

/** Starts a registry, or says why it cannot. SCHEMA_REGISTRY_URL names one to be used instead. It takes any schema until it is told otherwise. */
export async function startSchemaRegistry(): Promise<TestSchemaRegistry | { readonly skipped: string }> {
  const given = process.env['SCHEMA_REGISTRY_URL'];
  if (given !== undefined && given !== '') return { url: given, stop: async () => undefined };
  const java = findJava(17);
  if ('missing' in java) return { skipped: `the schema registry needs Java: ${java.missing}` };
  let program: string;
  try {
    program = await unpacked();
  } catch (error) {
    return { skipped: `the schema registry is not here: ${error instanceof Error ? error.message : String(error)}` };
  }
  const home = mkdtempSync(join(testRoot(), 'registry-'));
  const watcher = startWatcher(home);
  const [port = 0] = await freePorts(1);
  const logFile = join(home, 'registry.log');
  const out = openSync(logFile, 'a');
  const jvm = ['-Xmx256m', '-XX:+UseSerialGC', '-XX:TieredStopAtLevel=1', `-Djava.io.tmpdir=${home}`];
  const server = spawn(java.java, [...jvm, '-jar', join(program, `apicurio-registry-app-${VERSION}-runner.jar`)], {
    cwd: home,
    env: { ...process.env, QUARKUS_HTTP_HOST: '127.0.0.1', QUARKUS_HTTP_PORT: String(port) },
    detached: true,
    stdio: ['ignore', out, out],
  });
  watcher.stdin?.write(`${server.pid}\n`);
  const ended = new Promise<void>((resolve) => server.once('exit', () => resolve()));
  const stop = async (): Promise<void> => {
    server.kill('SIGKILL');
    await ended;
    watcher.stdin?.end();
    rmSync(home, { recursive: true, force: true });
  };
  const url = `http://127.0.0.1:${port}/apis/ccompat/v7`;
  for (const deadline = Date.now() + 60_000; ; await delay(100)) {
    const there = await fetch(`${url}/subjects`).then(
      (response) => response.ok,
      () => false,
    );
    if (there) return { url, stop };
    if (server.exitCode !== null || Date.now() > deadline) {
      const log = readFileSync(logFile, 'utf8').slice(-5000);
      await stop();
      throw new Error(`the schema registry did not start:\n${log}`);
    }
  }
}

async function unpacked(): Promise<string> {
  const folder = join(testCache(), `apicurio-registry-${VERSION}`);
  if (existsSync(folder)) return folder;
  const [archive = ''] = await mavenFiles([ARCHIVE]);
  const draft = `${folder}.${randomBytes(6).toString('hex')}`;
  mkdirSync(draft, { recursive: true });
  try {
    execFileSync('tar', ['xzf', archive, '-C', draft]);
    renameSync(draft, folder);
  } catch (error) {
    rmSync(draft, { recursive: true, force: true });
    // Another test process was first.
    if (!existsSync(folder)) throw error;
  }
  return folder;
}
