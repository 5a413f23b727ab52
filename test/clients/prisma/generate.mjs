// Generates the Prisma client. The command wants the schema engine's binary to be there although it does not run it: any file will do.
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';

const folder = join(import.meta.dirname, '..');
const prisma = join(folder, 'node_modules', 'prisma', 'build', 'index.js');
const done = spawnSync(process.execPath, [prisma, 'generate', '--config', join(folder, 'prisma', 'prisma.config.ts')], {
  cwd: folder,
  encoding: 'utf8',
  env: { ...process.env, PRISMA_SCHEMA_ENGINE_BINARY: process.execPath, CHECKPOINT_DISABLE: '1', PRISMA_HIDE_UPDATE_MESSAGE: '1' },
});
if (done.status !== 0) process.stderr.write(`${done.stdout}${done.stderr}\n`);
process.exit(done.status ?? 1);
