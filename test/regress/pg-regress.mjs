/**
 * The suites that pg_regress drives: it runs scripts through psql (or isolationtester) and compares what they print with what is expected.
 */
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { listModules } from './modules.mjs';
import { difference, plainEnvironment, run } from './processes.mjs';
import { emptyDirectory, host, newCluster, reached, user } from './servers.mjs';
import { cacheDir } from './tools.mjs';

/** The calls of pg_regress that make up a suite. Each has files and results of its own. */
const suites = {
  core: ({ source, built }) => {
    const folder = join(source, 'src/test/regress');
    // As the suite's own makefile runs it.
    const args = [`--schedule=${folder}/parallel_schedule`, `--dlpath=${built}`, '--max-concurrent-tests=20'];
    return { parts: [{ label: 'core', isolation: false, folder, args }], left: [] };
  },
  isolation: ({ source }) => {
    const folder = join(source, 'src/test/isolation');
    // Two are not in the schedule, because they need max_prepared_transactions.
    const args = [`--schedule=${folder}/isolation_schedule`, 'prepared-transactions', 'prepared-transactions-cic'];
    return { parts: [{ label: 'isolation', isolation: true, folder, args }], left: [] };
  },
  contrib: listModules,
};

/** Where a run leaves the server's files and its results. */
export const places = (suite, way) => ({
  data: join(cacheDir, 'run', `${suite}-${way}`, 'data'),
  out: join(cacheDir, 'run', `${suite}-${way}`, 'out'),
});

/** Runs a suite one way. Results: test -> how it ended, and the file with its output. */
export async function runSuite(tools, name, way) {
  const { data, out } = places(name, way);
  const { parts } = suites[name](tools);
  await newCluster(tools, data);
  emptyDirectory(tools, out);
  const results = new Map();
  const began = Date.now();
  await reached(tools, way, data, async (port) => {
    for (const part of parts) {
      for (const [test, said] of await runPart(tools, part, join(out, part.label), port)) {
        const label = parts.length > 1 ? `${part.label}/${test}` : test;
        results.set(label, { said, file: join(out, part.label, 'results', `${test}.out`) });
      }
    }
  });
  return { results, seconds: Math.round((Date.now() - began) / 1000) };
}

async function runPart(tools, { label, isolation, folder, args, env = {} }, out, port) {
  for (const one of ['.', 'results', 'sql', 'expected', 'testtablespace']) emptyDirectory(tools, join(out, one));
  const program = isolation ? tools.pgIsolationRegress : tools.pgRegress;
  const where = [`--inputdir=${folder}`, `--outputdir=${out}`, `--bindir=${tools.bin}`];
  const { status, stdout, stderr } = await run(program, [...where, `--host=${host}`, `--port=${port}`, `--user=${user}`, ...args], {
    // Some scripts name their data relative to their makefile.
    cwd: folder,
    env: plainEnvironment(env),
  });
  writeFileSync(join(out, 'pg_regress.log'), stdout + stderr);
  const lines = [...stdout.matchAll(/^(?:test| {4,})\s*(\S+)\s+\.\.\. (ok|FAILED|failed \(ignored\))/gm)];
  if (status > 1 || status < 0 || lines.length === 0) throw new Error(`${label} could not run:\n${(stdout + stderr).slice(-3000)}`);
  return lines.map(([, test, said]) => [test, said]);
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
  for (const [test, before] of direct.results) {
    const after = through.results.get(test) ?? { said: 'not run', file: '' };
    const both = existsSync(before.file) && existsSync(after.file);
    const same = both && readFileSync(before.file).equals(readFileSync(after.file));
    if (same) identical += 1;
    if (before.said === 'ok' ? after.said === 'ok' : after.said !== 'ok' && same) {
      if (before.said !== 'ok') failing.push(test);
      continue;
    }
    const said = `${before.said} directly, ${after.said} through Millrace`;
    differences.push({ test, said, detail: both ? difference(before.file, after.file) : '' });
  }
  const notes = [`${identical} of ${direct.results.size} outputs byte for byte the same`];
  if (failing.length > 0) notes.push(`fail both ways, with the same output: ${failing.join(', ')}`);
  const { left } = suites[name](tools);
  if (left.length > 0) notes.push(`left out: ${left.join(', ')}`);
  return { total: direct.results.size, differences, notes };
}

function count({ results }) {
  const passed = [...results.values()].filter(({ said }) => said === 'ok').length;
  return `${passed} of ${results.size} pass`;
}
