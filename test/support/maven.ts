/**
 * Files from Maven Central for tests, kept in a cache of the user.
 * Invariant: a file in the cache is complete and has the checksum asked for, however many test runs fetch it at once.
 */
import { createHash, randomBytes } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { dirname, join } from 'node:path';

export interface MavenFile {
  /** Path in the repository, as in `org/slf4j/slf4j-api/1.7.36/slf4j-api-1.7.36.jar`. */
  readonly path: string;
  readonly sha1: string;
}

/** Where tests keep what they fetch; `MILLRACE_TEST_CACHE` names another directory. */
export function testCache(): string {
  return process.env['MILLRACE_TEST_CACHE'] ?? join(homedir(), '.cache', 'millrace-test');
}

/** The local paths of files, fetched when they are not there yet. */
export async function mavenFiles(files: readonly MavenFile[]): Promise<readonly string[]> {
  const found: string[] = [];
  const waiting = files.map((file, index) => ({ file, index }));
  const worker = async (): Promise<void> => {
    for (let next = waiting.shift(); next !== undefined; next = waiting.shift()) found[next.index] = await mavenFile(next.file);
  };
  await Promise.all(Array.from({ length: 8 }, worker));
  return found;
}

async function mavenFile(file: MavenFile): Promise<string> {
  const cached = join(testCache(), 'maven', file.path);
  if (existsSync(cached)) return cached;
  const ofMaven = join(homedir(), '.m2', 'repository', file.path);
  if (existsSync(ofMaven) && sha1(readFileSync(ofMaven)) === file.sha1) return ofMaven;
  const url = `${repositoryUrl()}/${file.path}`;
  const response = await fetch(url, { signal: AbortSignal.timeout(120_000) }).catch((error: unknown) => {
    throw new Error(`${url} cannot be fetched: ${cause(error)}`, { cause: error });
  });
  if (!response.ok) throw new Error(`${url} cannot be fetched: HTTP ${response.status}`);
  const bytes = Buffer.from(await response.arrayBuffer());
  if (sha1(bytes) !== file.sha1) throw new Error(`${url} has another checksum than expected`);
  mkdirSync(dirname(cached), { recursive: true });
  const draft = `${cached}.${randomBytes(6).toString('hex')}`;
  try {
    writeFileSync(draft, bytes);
    renameSync(draft, cached);
  } finally {
    rmSync(draft, { force: true });
  }
  return cached;
}

/** `MAVEN_MIRROR`, else the mirror of Maven Central in Maven's own settings, else Maven Central. */
function repositoryUrl(): string {
  const url = process.env['MAVEN_MIRROR'] ?? mirrorInSettings() ?? 'https://repo.maven.apache.org/maven2';
  return url.replace(/\/+$/, '');
}

function mirrorInSettings(): string | undefined {
  const file = join(homedir(), '.m2', 'settings.xml');
  if (!existsSync(file)) return undefined;
  const mirrors = readFileSync(file, 'utf8').matchAll(/<mirror>([\s\S]*?)<\/mirror>/g);
  for (const [, mirror = ''] of mirrors) {
    const of = /<mirrorOf>\s*([^<]*?)\s*<\/mirrorOf>/.exec(mirror)?.[1]?.split(',') ?? [];
    if (of.some((one) => ['*', 'external:*', 'central'].includes(one.trim()))) return /<url>\s*([^<]*?)\s*<\/url>/.exec(mirror)?.[1];
  }
  return undefined;
}

function sha1(bytes: Buffer): string {
  return createHash('sha1').update(bytes).digest('hex');
}

function cause(error: unknown): string {
  const inner = error instanceof Error && error.cause instanceof Error ? error.cause : error;
  return inner instanceof Error ? inner.message : String(inner);
}
