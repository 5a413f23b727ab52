// npm run regress [core|isolation|contrib|libpq_pipeline|dump|all ...] [-- --pool-mode MODE]: PostgreSQL's own suites directly and through
// Millrace, in session mode unless another is named.
// The verdict is the same outcome both ways, test by test. Ends with 0 when that holds, or when this machine cannot run them (said by name).
import { compareDumps } from './dump.mjs';
import { comparePipeline } from './libpq-pipeline.mjs';
import { compareSuite } from './pg-regress.mjs';
import { Missing, prepare } from './tools.mjs';

const suites = {
  core: (tools) => compareSuite(tools, 'core'),
  isolation: (tools) => compareSuite(tools, 'isolation'),
  contrib: (tools) => compareSuite(tools, 'contrib'),
  libpq_pipeline: comparePipeline,
  // After core, whose database it dumps.
  dump: compareDumps,
};

const asked = process.argv.slice(2);
const modeAt = asked.indexOf('--pool-mode');
const poolMode = modeAt === -1 ? 'session' : (asked.splice(modeAt, 2)[1] ?? '');
if (!['session', 'transaction'].includes(poolMode)) {
  process.stderr.write(`millrace: no suite is run in pool mode "${poolMode}": session or transaction\n`);
  process.exit(1);
}
const unknown = asked.filter((name) => name !== 'all' && !(name in suites));
if (unknown.length > 0) {
  process.stderr.write(`millrace: no suite "${unknown.join('", "')}": there are ${Object.keys(suites).join(', ')}, all\n`);
  process.exit(1);
}
const chosen = Object.keys(suites).filter((name) => asked.length === 0 || asked.includes('all') || asked.includes(name));

let tools;
try {
  tools = { ...(await prepare()), poolMode };
} catch (error) {
  if (!(error instanceof Missing)) throw error;
  for (const name of chosen) console.log(`${name}: SKIPPED, ${error.message}`);
  process.exit(0);
}
console.log(`PostgreSQL ${tools.version}, tests of ${tools.sourceVersion}${poolMode === 'session' ? '' : `, pool mode ${poolMode}`}`);

const summary = [];
let failed = false;
for (const name of chosen) {
  try {
    const { total, differences, notes } = await suites[name](tools);
    for (const { test, said, detail } of differences) console.log(`\n--- ${name}/${test}: ${said}\n${detail}`);
    for (const note of notes) summary.push(`${name}: ${note}`);
    summary.push(`${name}: ${total - differences.length} of ${total} as directly`);
    failed ||= differences.length > 0;
  } catch (error) {
    summary.push(`${name}: FAILED, ${error instanceof Error ? error.message : error}`);
    failed = true;
  }
}
console.log(`\n${summary.join('\n')}`);
process.exit(failed ? 1 : 0);
