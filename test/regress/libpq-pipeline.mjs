/**
 * libpq's own test of pipeline mode: one program, many cases, some of which also record every message that goes over the wire.
 */
import { existsSync, mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { difference, plainEnvironment, run } from './processes.mjs';
import { emptyDirectory, host, newCluster, reached, user } from './servers.mjs';
import { cacheDir } from './tools.mjs';

const rows = '700';

/** Runs every case both ways. The recorded messages must be those that PostgreSQL expects, and the same both ways. */
export async function comparePipeline(tools) {
  const program = join(tools.built, 'libpq_pipeline');
  const listed = await run(program, ['tests'], { env: plainEnvironment() });
  const cases = listed.stdout.split(/\s+/).filter((name) => name !== '');
  if (cases.length === 0) throw new Error(`libpq_pipeline lists no tests: ${listed.stderr}`);
  const direct = await runCases(tools, 'directly', program, cases);
  const through = await runCases(tools, 'through', program, cases);
  const differences = [];
  const failing = [];
  let recorded = 0;
  for (const name of cases) {
    const [before, after] = [direct.get(name), through.get(name)];
    if (existsSync(before.expected)) recorded += 1;
    if (before.said === after.said && (before.traced ?? '') === (after.traced ?? '')) {
      if (before.said !== 'ok') failing.push(name);
      continue;
    }
    const detail = before.traced === after.traced ? after.output : difference(before.trace, after.trace);
    differences.push({ test: name, said: `${before.said} directly, ${after.said} through Millrace`, detail });
  }
  const notes = [`${recorded} of ${cases.length} with the recorded messages compared`];
  if (failing.length > 0) notes.push(`fail both ways: ${failing.join(', ')}`);
  return { total: cases.length, differences, notes };
}

async function runCases(tools, way, program, cases) {
  const home = join(cacheDir, 'run', `libpq_pipeline-${way}`);
  await newCluster(tools, join(home, 'data'));
  const traces = emptyDirectory(tools, join(home, 'traces'));
  mkdirSync(traces, { recursive: true });
  const results = new Map();
  await reached(tools, way, join(home, 'data'), async (port) => {
    for (const name of cases) {
      const expected = join(tools.source, 'src/test/modules/libpq_pipeline/traces', `${name}.trace`);
      const trace = join(traces, `${name}.trace`);
      const flags = existsSync(expected) ? ['-t', trace] : [];
      const target = `host=${host} port=${port} user=${user} dbname=postgres`;
      const { status, stdout, stderr } = await run(program, ['-r', rows, ...flags, name, target], {
        env: plainEnvironment(),
        timeout: 60_000,
      });
      const traced = existsSync(trace) ? readFileSync(trace, 'utf8') : undefined;
      const asExpected = traced === undefined || traced === readFileSync(expected, 'utf8');
      const said = status !== 0 ? `status ${status}` : asExpected ? 'ok' : 'other messages than expected';
      results.set(name, { said, traced, trace, expected, output: stdout + stderr });
    }
  });
  return results;
}
