/** TLS at a test's Postgres. */
import { chownSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type pg from 'pg';
import type { Certificate } from './certificates.ts';
import type { TestPostgres } from './postgres.ts';

/** Turns TLS on with this certificate, and puts `hba` in front of what pg_hba.conf has. `client`: a superuser's session. */
export async function serveTls(postgres: TestPostgres, client: pg.Client, certificate: Certificate, hba: readonly string[]): Promise<void> {
  const owner = statSync(postgres.dataDir);
  for (const [name, text] of [
    ['server.key', certificate.key],
    ['server.crt', certificate.cert],
  ] as const) {
    const path = join(postgres.dataDir, name);
    writeFileSync(path, text, { mode: 0o600 });
    chownSync(path, owner.uid, owner.gid);
  }
  const rules = join(postgres.dataDir, 'pg_hba.conf');
  writeFileSync(rules, `${hba.join('\n')}\n${readFileSync(rules, 'utf8')}`);
  await client.query('ALTER SYSTEM SET ssl = on');
  await client.query('SELECT pg_reload_conf()');
}
