/**
 * A PostgreSQL data directory made by Millrace: its creation, its configuration, its owner.
 * Invariant: a directory that carries PG_VERSION is complete; one made half way is never mistaken for a cluster.
 */
import { execFile } from 'node:child_process';
import {
  chmodSync,
  chownSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import type { PostgresBinaries } from './postgres-binaries.ts';
import type { RunAs } from './unprivileged.ts';

const execute = promisify(execFile);

/** The major version a data directory was made by, undefined when it holds no cluster. */
export function clusterMajor(dataDir: string): number | undefined {
  const file = join(dataDir, 'PG_VERSION');
  return existsSync(file) ? Number.parseInt(readFileSync(file, 'utf8'), 10) : undefined;
}

/** Runs initdb. The directory appears at once and complete, or not at all. */
export async function createCluster(
  binaries: PostgresBinaries,
  dataDir: string,
  runAs: RunAs,
  options: { readonly sync: boolean },
): Promise<void> {
  const draft = `${dataDir}.new`;
  rmSync(draft, { recursive: true, force: true });
  mkdirSync(draft, { mode: 0o700 });
  if (runAs.owner !== undefined) chownSync(draft, runAs.owner.uid, runAs.owner.gid);
  // C.UTF-8 by the built-in provider sorts by code point on every machine and still knows upper and lower case beyond ASCII.
  const locale = binaries.major >= 17 ? ['--locale-provider=builtin', '--builtin-locale=C.UTF-8', '--locale=C'] : ['--locale=C'];
  const args = [
    `--pgdata=${draft}`,
    '--username=postgres',
    '--encoding=UTF8',
    '--auth=trust',
    ...locale,
    ...(options.sync ? [] : ['--no-sync']),
  ];
  const [command = binaries.initdb, ...rest] = [...runAs.prefix, binaries.initdb, ...args];
  try {
    await execute(command, rest, { cwd: '/', env: { ...process.env, LC_ALL: 'C' }, ...runAs.identity });
  } catch (error) {
    rmSync(draft, { recursive: true, force: true });
    const said = (error as { stderr?: string }).stderr?.split('\n').find((line) => line.includes('error:')) ?? String(error);
    throw new Error(`cannot create a PostgreSQL data directory in ${dataDir}: ${said.replace(/^initdb: error: /, '').trim()}`, {
      cause: error,
    });
  }
  rmSync(dataDir, { recursive: true, force: true });
  renameSync(draft, dataDir);
}

/** Writes the settings Millrace gives its server. ALTER SYSTEM overrides them; postgresql.conf beyond the include is the user's. */
export function configureCluster(dataDir: string, settings: Readonly<Record<string, string>>, runAs: RunAs): void {
  const main = join(dataDir, 'postgresql.conf');
  const include = "include_if_exists = 'millrace.conf'";
  const text = readFileSync(main, 'utf8');
  if (!text.includes(include)) writeFileSync(main, `${text}\n${include}\n`);
  const lines = Object.entries(settings).map(([name, value]) => `${name} = '${value.replaceAll("'", "''")}'`);
  const file = join(dataDir, 'millrace.conf');
  writeFileSync(file, `# Written by Millrace at every start: change settings with ALTER SYSTEM.\n${lines.join('\n')}\n`);
  if (runAs.owner !== undefined) {
    chownSync(file, runAs.owner.uid, runAs.owner.gid);
    chownSync(main, runAs.owner.uid, runAs.owner.gid);
  }
}

/** The port of the last start, undefined before the first. */
export function lastPort(dataDir: string): number | undefined {
  try {
    const port = Number(/^port = '(\d+)'$/m.exec(readFileSync(join(dataDir, 'millrace.conf'), 'utf8'))?.[1]);
    return Number.isInteger(port) ? port : undefined;
  } catch {
    return undefined;
  }
}

/** Gives a data directory to the user that will run the server on it, where an earlier start ran it as another. */
export function takeOwnership(dataDir: string, runAs: RunAs): void {
  if (runAs.owner === undefined) return;
  const { uid, gid } = runAs.owner;
  if (statSync(dataDir).uid !== uid || statSync(join(dataDir, 'PG_VERSION')).uid !== uid) chownTree(dataDir, uid, gid);
  chmodSync(dataDir, 0o700);
}

function chownTree(path: string, uid: number, gid: number): void {
  const info = lstatSync(path);
  // Links lead to tablespaces the user made elsewhere: those are not Millrace's to give away.
  if (info.isSymbolicLink()) return;
  chownSync(path, uid, gid);
  if (info.isDirectory()) for (const entry of readdirSync(path)) chownTree(join(path, entry), uid, gid);
}
