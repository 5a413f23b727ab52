/**
 * The core and the isolation suite: pg_regress runs a schedule of scripts and compares what psql (or isolationtester) prints with what is expected.
 */
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { difference, plainEnvironment, run } from './processes.mjs';
import { emptyDirectory, host, newCluster, reached, user } from './servers.mjs';
import { cacheDir } from './tools.mjs';

const suites = {
  core: {
    program: (tools) => tools.pgRegress,
    folder: 'src/test/regress',
    schedule: 'parallel_schedule',
    // As the suite's own makefile runs it.
    flags: (tools) => [`--dlpath=${tools.built}`, '--max-concurrent-tests=20'],
  },
  isolation: {
    program: (tools) => tools.pgIsolationRegress,
    folder: 'src/test/isolation',
    schedule: 'isolation_schedule',
    flags: () => [],
    // Not in the schedule, because they need max_prepared_transactions.
    extra: ['prepared-transactions', 'prepared-transactions-cic'],
  },
};

/** Where a run leaves the server's files and its results. */
export const places = (suite, way) => ({
  data: join(cacheDir, 'run', `${suite}-${way}`, 'data'),
  out: join(cacheDir, 'run', `${suite}-${way}`, 'out'),
});

/** Runs a suite one way. Its results stay in `places(suite, way)`. */
export async function runSuite(tools, name, way) {
  const suite = suites[name];
  const { data, out } = places(name, way);
  await newCluster(tools, data);
  emptyDirectory(tools, out);
  for (const folder of ['results', 'sql', 'expected', 'testtablespace']) emptyDirectory(tools, join(out, folder));
  const folder = join(tools.source, suite.folder);
  const statuses = new Map();
  const began = Date.now();
  const { status, stdout, stderr } = await reached(tools, way, data, (port) =>
    run(
      suite.program(tools),
      [
        `--inputdir=${folder}`,
        `--outputdir=${out}`,
        `--bindir=${tools.bin}`,
        `--schedule=${join(folder, suite.schedule)}`,
        `--host=${host}`,
        `--port=${port}`,
        `--user=${user}`,
        ...suite.flags(tools),
        ...(suite.extra ?? []),
      ],
      { cwd: out, env: plainEnvironment() },
    ),
  );
  writeFileSync(join(out, 'pg_regress.log'), stdout + stderr);
  for (const [, test, said] of stdout.matchAll(/^(?:test| {4,})\s*(\S+)\s+\.\.\. (ok|FAILED|failed \(ignored\))/gm))
    statuses.set(test, said);
  const seconds = Math.round((Date.now() - began) / 1000);
  if (status > 1 || status < 0 || statuses.size === 0)
    throw new Error(`${suite.program(tools)} could not run ${way}:\n${(stdout + stderr).slice(-3000)}`);
  return { statuses, seconds, results: join(out, 'results') };
}

/** Runs a suite both ways. A test is as directly when it passes both ways, or fails both ways with the same output. */
export async function compareSuite(tools, name) {
  const direct = await runSuite(tools, name, 'directly');
  console.log(`${name}: directly ${count(direct)} in ${direct.seconds} s`);
  const through = await runSuite(tools, name, 'through');
  console.log(`${name}: through Millrace ${count(through)} in ${through.seconds} s`);
  const differences = [];
  const failing = [];
  let identical = 0;
  for (const [test, before] of direct.statuses) {
    const [one, other] = [direct, through].map(({ results }) => join(results, `${test}.out`));
    const same = existsSync(one) && existsSync(other) && readFileSync(one).equals(readFileSync(other));
    if (same) identical += 1;
    const after = through.statuses.get(test) ?? 'not run';
    if (before === 'ok' ? after === 'ok' : after !== 'ok' && same) {
      if (before !== 'ok') failing.push(test);
      continue;
    }
    differences.push({
      test,
      said: `${before} directly, ${after} through Millrace`,
      detail: existsSync(other) ? difference(one, other) : '',
    });
  }
  const notes = [`${identical} of ${direct.statuses.size} outputs byte for byte the same`];
  if (failing.length > 0) notes.push(`fail both ways, with the same output: ${failing.join(', ')}`);
  return { total: direct.statuses.size, differences, notes };
}

function count({ statuses }) {
  const passed = [...statuses.values()].filter((one) => one === 'ok').length;
  return `${passed} of ${statuses.size} pass`;
}
