/**
 * What PostgreSQL's own suites need, on a Debian machine: the server, pg_regress, the headers and a compiler from apt, the tests from
 * `apt-get source`. Nothing is installed that is there already, and no installed PostgreSQL is moved to another version.
 * Invariant: what prepare() returns works together; whatever is missing for good is said in one line (Missing).
 */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const major = 15;
const lib = `/usr/lib/postgresql/${major}`;
const modules = `${lib}/lib/pgxs/src/test`;

/** Downloads, builds and runs: all of it may be deleted at any time. */
export const cacheDir = fileURLToPath(new URL('../../.cache/regress', import.meta.url));

/** The suites cannot run on this machine; the message says why. */
export class Missing extends Error {}

/** Each file that is needed, and the package that brings it. */
const needed = [
  [`${lib}/bin/postgres`, `postgresql-${major}`],
  [`${lib}/bin/psql`, `postgresql-client-${major}`],
  [`${modules}/regress/pg_regress`, `postgresql-client-${major}`],
  [`${modules}/isolation/pg_isolation_regress`, `postgresql-client-${major}`],
  [`/usr/include/postgresql/${major}/server/postgres.h`, `postgresql-server-dev-${major}`],
  [`${lib}/lib/libpgport.a`, `postgresql-server-dev-${major}`],
  ['/usr/include/postgresql/libpq-fe.h', 'libpq-dev'],
  ['/usr/bin/gcc', 'gcc'],
  ['/usr/include/stdlib.h', 'libc6-dev'],
  ['/usr/bin/bzip2', 'bzip2'],
  ['/usr/bin/make', 'make'],
];

/**
 * Installs, downloads and builds what is not there yet.
 * @returns {Promise<{version: string, bin: string, pgRegress: string, pgIsolationRegress: string, source: string, sourceVersion: string, built: string}>}
 */
export async function prepare() {
  if (process.platform !== 'linux') throw new Missing('PostgreSQL’s suites are taken from Debian packages, and this is not Linux');
  install();
  const version = installedVersion(`postgresql-${major}`) ?? '';
  const { source, sourceVersion } = findSource(version);
  return {
    version,
    bin: `${lib}/bin`,
    pgRegress: `${modules}/regress/pg_regress`,
    pgIsolationRegress: `${modules}/isolation/pg_isolation_regress`,
    source,
    sourceVersion,
    built: build(source, `${version}-${sourceVersion}`),
  };
}

function install() {
  const absent = needed.filter(([file]) => !existsSync(file));
  if (absent.length === 0) return;
  const packages = [...new Set(absent.map(([, name]) => name))];
  if (output('apt-get', ['--version']) === undefined)
    throw new Missing(`${packages.join(', ')} not installed, and there is no apt-get here`);
  if (process.getuid?.() !== 0) throw new Missing(`${packages.join(', ')} not installed: apt-get install ${packages.join(' ')}`);
  console.log(`installing ${packages.join(', ')}`);
  apt(['update', '-qq'], 120);
  // The version that is there already stays: an unpinned package of the family would upgrade all of it.
  const present = ['postgresql', 'postgresql-client'].map((name) => installedVersion(`${name}-${major}`)).find((one) => one !== undefined);
  const pinned = packages.map((name) => (present !== undefined && name.startsWith('postgresql') ? `${name}=${present}` : name));
  const noCluster = '/etc/postgresql-common/createcluster.d/millrace-regress.conf';
  if (packages.includes(`postgresql-${major}`)) {
    // Debian would start a server of its own on port 5432 otherwise.
    mkdirSync('/etc/postgresql-common/createcluster.d', { recursive: true });
    writeFileSync(noCluster, 'create_main_cluster = false\n');
  }
  const flags = ['install', '-y', '-qq', '--no-install-recommends'];
  const error = apt([...flags, ...pinned], 300) && apt([...flags, ...packages], 300);
  rmSync(noCluster, { force: true });
  const still = needed.filter(([file]) => !existsSync(file));
  if (still.length > 0)
    throw new Missing(
      `${[...new Set(still.map(([, name]) => name))].join(', ')} cannot be installed: ${error || `${still[0][0]} is missing`}`,
    );
}

/** Tests of the installed version, or of the nearest one that the mirrors still have: then some may fail, directly as well. */
function findSource(version) {
  const kept = (one) => join(cacheDir, `source-${one}`);
  if (existsSync(kept(version))) return { source: kept(version), sourceVersion: version };
  mkdirSync(cacheDir, { recursive: true });
  const lists = sourceLists();
  const published = (output('apt-cache', [...lists, 'showsrc', `postgresql-${major}`]) ?? '')
    .split('\n')
    .filter((line) => line.startsWith('Version: '))
    .map((line) => line.slice('Version: '.length));
  const others = published.filter((one) => one !== version).reverse();
  const reasons = [];
  for (const one of [version, ...others]) {
    if (existsSync(kept(one))) return { source: kept(one), sourceVersion: one };
    const error = download(one, kept(one), lists);
    if (error === '') return { source: kept(one), sourceVersion: one };
    reasons.push(`${one}: ${error}`);
  }
  throw new Missing(`apt-get source postgresql-${major} does not work here: ${reasons.join('; ')}`);
}

/** Package lists of sources, kept apart from the machine's own, which name binaries only. Returns the options that select them. */
function sourceLists() {
  const root = join(cacheDir, 'apt');
  mkdirSync(join(root, 'lists', 'partial'), { recursive: true });
  mkdirSync(join(root, 'cache', 'archives', 'partial'), { recursive: true });
  const options = ['sourcelist=sources.list', 'sourceparts=/dev/null'].map(
    (one) => `Dir::Etc::${one.replace('=sources', `=${root}/sources`)}`,
  );
  options.push(`Dir::State::lists=${root}/lists`, `Dir::Cache=${root}/cache`, 'APT::Sandbox::User=root');
  const places =
    output('apt-get', ['indextargets', '--format', '$(LABEL)|$(SIGNED_BY)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)', 'Created-By: Packages']) ??
    '';
  const keyring = '/usr/share/keyrings/debian-archive-keyring.gpg';
  const signed = existsSync(keyring) ? `[signed-by=${keyring}] ` : '';
  const lines = places
    .split('\n')
    .map((line) => line.split('|'))
    .filter(([label, , , , component]) => /^Debian/.test(label) && component === 'main')
    .map(([, , uri, release, component]) => `deb-src ${signed}${uri} ${release} ${component}`);
  writeFileSync(join(root, 'sources.list'), `${[...new Set(lines)].join('\n')}\n`);
  const flags = options.flatMap((one) => ['-o', one]);
  apt([...flags, 'update', '-qq'], 180);
  return flags;
}

/** Fetches and unpacks the tests of one version. Returns what went wrong, '' when nothing did. */
function download(version, target, lists) {
  const draft = `${target}.new`;
  rmSync(draft, { recursive: true, force: true });
  mkdirSync(draft, { recursive: true });
  console.log(`fetching the sources of postgresql-${major} ${version}`);
  const error = apt([...lists, 'source', '-qq', '--download-only', `postgresql-${major}=${version}`], 300, draft);
  const archive = readdirSync(draft).find((name) => /\.orig\.tar\.\w+$/.test(name));
  if (error !== '' || archive === undefined) {
    rmSync(draft, { recursive: true, force: true });
    return error || 'no archive';
  }
  const only = ['*/src/test/regress', '*/src/test/isolation', '*/src/test/modules/libpq_pipeline', '*/src/pl/plpgsql/src', '*/contrib'];
  const unpacked = spawnSync('tar', ['-xf', archive, '--strip-components=1', '--no-same-owner', '--wildcards', ...only], {
    cwd: draft,
    encoding: 'utf8',
  });
  if (unpacked.status !== 0) return unpacked.stderr.trim() || 'tar failed';
  for (const name of readdirSync(draft)) if (name.startsWith('postgresql-')) rmSync(join(draft, name));
  renameSync(draft, target);
  return '';
}

/** The C functions that the tests load into the server, and the client program of libpq_pipeline. */
function build(source, version) {
  const target = join(cacheDir, `build-${version}`);
  if (existsSync(target)) return target;
  const draft = `${target}.new`;
  rmSync(draft, { recursive: true, force: true });
  mkdirSync(draft, { recursive: true });
  const server = ['-O2', '-w', '-fPIC', '-shared', `-I/usr/include/postgresql/${major}/server`];
  const spi = `-I${source}/contrib/spi`;
  compile([...server, '-o', `${draft}/regress.so`, `${source}/src/test/regress/regress.c`]);
  // As the suite's makefile does: the expected output has refint's notices.
  for (const name of ['refint', 'autoinc'])
    compile([...server, spi, '-DREFINT_VERBOSE', '-o', `${draft}/${name}.so`, `${source}/contrib/spi/${name}.c`]);
  compile([
    '-O2',
    '-w',
    `-I/usr/include/postgresql/${major}/server`,
    '-I/usr/include/postgresql',
    '-o',
    `${draft}/libpq_pipeline`,
    `${source}/src/test/modules/libpq_pipeline/libpq_pipeline.c`,
    `-L${lib}/lib`,
    '-lpq',
    '-lpgcommon',
    '-lpgport',
    '-lm',
  ]);
  renameSync(draft, target);
  return target;
}

function compile(args) {
  const { status, stderr, error } = spawnSync('gcc', args, { encoding: 'utf8' });
  if (status !== 0) throw new Missing(`gcc cannot compile the C parts of the suites: ${error?.message ?? stderr.trim().split('\n')[0]}`);
}

/** Runs apt-get. Returns its first error, '' when it did what was asked. */
function apt(args, seconds, cwd = '/') {
  const network = ['-o', 'Acquire::http::Timeout=20', '-o', 'Acquire::Retries=1'];
  const { status, stderr, error } = spawnSync('apt-get', [...network, ...args], {
    cwd,
    encoding: 'utf8',
    stdio: ['ignore', 'ignore', 'pipe'],
    timeout: seconds * 1000,
    env: { ...process.env, DEBIAN_FRONTEND: 'noninteractive', LC_ALL: 'C' },
  });
  if (status === 0) return '';
  const said = (stderr ?? '').split('\n').find((line) => line.startsWith('E: '));
  return said?.slice(3).trim() || error?.message || `apt-get ${args.find((arg) => /^[a-z]/.test(arg))} failed`;
}

function installedVersion(name) {
  const said = output('dpkg-query', ['--status', name]) ?? '';
  return /^Status: .* installed$/m.test(said) ? /^Version: (.*)$/m.exec(said)?.[1] : undefined;
}

function output(command, args) {
  const { status, stdout } = spawnSync(command, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] });
  return status === 0 ? stdout.trim() : undefined;
}
