/**
 * pg_dump and its restoration through Millrace, on the database that the core suite leaves: some 1,000 objects of nearly every kind.
 */
import { createHash } from 'node:crypto';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { places, runSuite } from './pg-regress.mjs';
import { difference, plainEnvironment, run } from './processes.mjs';
import { emptyDirectory, host, reached, user } from './servers.mjs';
import { cacheDir } from './tools.mjs';

/** Dumps and restores both ways, and compares the bytes. */
export async function compareDumps(tools) {
  const { data } = places('core', 'through');
  if (!existsSync(join(data, 'PG_VERSION'))) await runSuite(tools, 'core', 'through');
  const out = emptyDirectory(tools, join(cacheDir, 'run', 'dump'));
  return await reached(tools, 'through', data, async (through, direct) => {
    const differences = [];
    let total = 0;
    const same = (test, one, other) => {
      total += 1;
      if (!readFileSync(one).equals(readFileSync(other)))
        differences.push({ test, said: 'other bytes through Millrace', detail: difference(one, other) });
    };
    const dump = async (port, database, name, flags = []) => {
      const file = join(out, name);
      const args = [...target(port), ...(await fixedKey(tools)), ...flags, `--file=${file}`, database];
      const { status, stderr } = await run(join(tools.bin, 'pg_dump'), args, { env: plainEnvironment() });
      if (status !== 0) throw new Error(`pg_dump of ${database} ended with status ${status}: ${stderr}`);
      return file;
    };
    const restore = async (port, file, database) => {
      for (const sql of [`DROP DATABASE IF EXISTS ${database}`, `CREATE DATABASE ${database} TEMPLATE template0`])
        await psql(tools, port, 'postgres', ['-c', sql]);
      const { stdout, stderr } = await psql(tools, port, database, ['-f', file]);
      const said = join(out, `${database}.log`);
      writeFileSync(said, (stdout + stderr).replaceAll(database, 'restored'));
      return said;
    };
    const text = await dump(direct, 'regression', 'regression-directly.sql');
    same('pg_dump', text, await dump(through, 'regression', 'regression-through.sql'));
    const inserts = ['--inserts', '--rows-per-insert=50'];
    same(
      'pg_dump --inserts',
      await dump(direct, 'regression', 'inserts-directly.sql', inserts),
      await dump(through, 'regression', 'inserts-through.sql', inserts),
    );
    same('psql, its messages', await restore(direct, text, 'restored_directly'), await restore(through, text, 'restored_through'));
    const again = await dump(direct, 'restored_directly', 'restored-directly.sql');
    same('restored through Millrace', again, await dump(direct, 'restored_through', 'restored-through.sql'));
    same('restored and dumped through Millrace', again, await dump(through, 'restored_through', 'restored-through-through.sql'));
    const bytes = readFileSync(text);
    const hash = createHash('sha256').update(bytes).digest('hex').slice(0, 16);
    return { total, differences, notes: [`${bytes.length} bytes, sha256 ${hash}...`] };
  });
}

const target = (port) => ['-h', host, '-p', String(port), '-U', user];

async function psql(tools, port, database, args) {
  const result = await run(join(tools.bin, 'psql'), ['-X', '-q', ...target(port), ...args, database], { env: plainEnvironment() });
  if (result.status !== 0) throw new Error(`psql ${args.join(' ')} ended with status ${result.status}: ${result.stderr}`);
  return result;
}

/** Later pg_dumps put a random key into each dump, unless told one. */
async function fixedKey(tools) {
  const { stdout } = await run(join(tools.bin, 'pg_dump'), ['--help'], { env: plainEnvironment() });
  return stdout.includes('--restrict-key') ? ['--restrict-key=millrace'] : [];
}
