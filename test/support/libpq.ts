/** The libpq that the embedded PostgreSQL 18 brings along, under the psql of this machine: it knows what an older one does not. */
import { spawnSync } from 'node:child_process';
import { dirname, join } from 'node:path';
import { findPostgresBinaries } from '../../src/server/postgres-binaries.ts';

/** For the environment of psql(). Null where this libpq does not run here, or psql does not. */
export const libpq18: Readonly<Record<string, string>> | null = find();

function find(): Readonly<Record<string, string>> | null {
  let native: string;
  try {
    native = join(dirname(findPostgresBinaries().initdb), '..');
  } catch {
    return null;
  }
  const env = { LD_PRELOAD: join(native, 'lib', 'libpq.so.5') };
  // An older one has another word for an option that it does not know.
  const { stderr } = spawnSync('psql', ['max_protocol_version=nonsense'], { env: { ...process.env, ...env }, encoding: 'utf8' });
  return /^psql: error: invalid max_protocol_version value/m.test(stderr ?? '') ? env : null;
}
