/**
 * One PostgreSQL and one Millrace before it per pool mode, shared by all files of a run; each file has databases of its own there.
 * MILLRACE_TEST_POOL_MODES names the modes: `session,transaction` if nothing else is said.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import pg from 'pg';
import type { TestProject } from 'vitest/node';
import makeDistCurrent from '../../support/global-setup.ts';
import { startMillrace } from '../../support/millrace.ts';
import { startPostgres } from '../../support/postgres.ts';
import { type Place, role } from './place.ts';

export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  makeDistCurrent();
  const modes = (process.env['MILLRACE_TEST_POOL_MODES'] ?? 'session,transaction').split(',').filter((mode) => mode !== '');
  const stops: (() => Promise<unknown>)[] = [];
  const stop = async (): Promise<void> => {
    for (const one of stops.reverse()) await one();
  };
  const places: Place[] = [];
  try {
    for (const mode of modes) {
      const postgres = await startPostgres({
        settings: { wal_level: 'logical', max_connections: '200', max_replication_slots: '40', max_wal_senders: '40' },
      });
      stops.push(() => postgres.stop());
      await makeRole(postgres.url, postgres.dataDir);
      const millrace = await startMillrace({ upstream: postgres.address, args: flags(mode) });
      stops.push(() => millrace.stop());
      places.push({ mode, host: '127.0.0.1', upstreamPort: postgres.port, millracePort: millrace.port });
    }
  } catch (error) {
    await stop();
    throw error;
  }
  project.provide('places', places);
  return stop;
}

/** A pool has fewer server connections than it has clients, so that these share them; all clients are in one worker's pool. */
function flags(mode: string): readonly string[] {
  return mode === 'session' ? [] : ['--pool-mode', mode, '--workers', '1', '--default-pool-size', '3'];
}

/** Clients come as a role that is no superuser and must prove its password; Millrace itself comes as postgres, which is trusted. */
async function makeRole(url: string, dataDir: string): Promise<void> {
  const client = new pg.Client({ connectionString: url });
  await client.connect();
  await client.query(`SET password_encryption = 'scram-sha-256'`);
  await client.query(`CREATE ROLE ${role.user} LOGIN CREATEDB REPLICATION PASSWORD '${role.password}'`);
  const hba = join(dataDir, 'pg_hba.conf');
  writeFileSync(hba, `host all ${role.user} 127.0.0.1/32 scram-sha-256\n${readFileSync(hba, 'utf8')}`);
  await client.query('SELECT pg_reload_conf()');
  await client.end();
}
