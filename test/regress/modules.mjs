/**
 * The tests of contrib's modules and of PL/pgSQL, as their own makefiles list them.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';

const extensions = '/usr/share/postgresql/15/extension';

/** Their makefile says that they need a server configured for them: this one is, or a session can be. */
const fitsAnyway = new Map([['test_decoding', { PGOPTIONS: '-c logical_decoding_work_mem=64kB' }]]);

/**
 * What pg_regress has to run for each module, and which modules are left out.
 * @returns {{parts: {label: string, isolation: boolean, folder: string, args: string[], env: object}[], left: string[]}}
 */
export function listModules(tools) {
  const contrib = join(tools.source, 'contrib');
  const folders = readdirSync(contrib)
    .filter((name) => ['sql', 'specs'].some((one) => existsSync(join(contrib, name, one))))
    .map((name) => ({ name, folder: join(contrib, name) }));
  const found = { parts: [], left: [] };
  for (const { name, folder } of [...folders, { name: 'plpgsql', folder: join(tools.source, 'src/pl/plpgsql/src') }]) {
    const { regress, options, isolation, isolationOptions, extension, alone } = variables(tools, folder);
    if (alone && !fitsAnyway.has(name)) found.left.push(`${name} (needs a server configured for it)`);
    else if (extension.some((one) => !existsSync(join(extensions, `${one}.control`))))
      found.left.push(`${name} (not in Debian’s postgresql-15)`);
    else {
      const database = name === 'plpgsql' ? 'pl_regression' : 'contrib_regression';
      const env = fitsAnyway.get(name) ?? {};
      const args = [`--dbname=${database}`, `--dlpath=${tools.built}`, ...options, ...regress];
      if (regress.length > 0) found.parts.push({ label: name, isolation: false, folder, args, env });
      if (isolation.length > 0)
        found.parts.push({ label: `${name}-isolation`, isolation: true, folder, args: [...isolationOptions, ...isolation], env });
    }
  }
  return found;
}

function variables(tools, folder) {
  const names = ['REGRESS', 'REGRESS_OPTS', 'ISOLATION', 'ISOLATION_OPTS', 'EXTENSION', 'NO_INSTALLCHECK'];
  const show = `millrace-show: ; @printf '%s\\n' ${names.map((name) => `'$(${name})'`).join(' ')}`;
  // PL/pgSQL's makefile knows no PGXS: the two variables are read as they stand there.
  const pgxs = [
    'USE_PGXS=1',
    `PG_CONFIG=${tools.bin}/pg_config`,
    'top_builddir=/usr/lib/postgresql/15/lib/pgxs',
    'top_srcdir=/usr/lib/postgresql/15/lib/pgxs',
  ];
  const { stdout } = spawnSync('make', ['-s', '-C', folder, ...pgxs, '--eval', show, 'millrace-show'], { encoding: 'utf8' });
  const words = stdout.split('\n').map((line) => line.split(/\s+/).filter((word) => word !== ''));
  const [regress = [], options = [], isolation = [], isolationOptions = [], extension = [], alone = []] = words;
  const loads = (all) => all.filter((one) => one.startsWith('--load-extension='));
  return { regress, options: loads(options), isolation, isolationOptions: loads(isolationOptions), extension, alone: alone.length > 0 };
}
