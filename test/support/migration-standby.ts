/** A physical standby of a test's server. Invariant: it and its files are gone when the test is over, as with the server itself. */
import { execFileSync } from 'node:child_process';
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import pg from 'pg';
import { startEmbeddedPostgres } from '../../src/server/embedded-postgres.ts';
import { testRoot } from './cluster-template.ts';
import type { TestPostgres } from './postgres.ts';

export interface TestStandby {
  /** On the standby itself. */
  query(sql: string): Promise<unknown>;
  stop(): Promise<void>;
}

/** Copies a running server as pg_basebackup would, and starts the copy in recovery. `name`: its application_name. */
export async function startStandby(primary: TestPostgres, name: string): Promise<TestStandby> {
  const home = mkdtempSync(join(testRoot(), 'standby-'));
  chmodSync(home, 0o711);
  const dataDir = join(home, 'data');
  const control = new pg.Client({ host: primary.host, port: primary.port, user: primary.user, database: primary.database });
  await control.connect();
  await control.query("SELECT pg_backup_start('standby', true)");
  // Files of a running server come and go: what is gone is in the WAL.
  execFileSync('sh', ['-c', 'cp -a "$0" "$1" 2>/dev/null || test -f "$1/global/pg_control"', primary.dataDir, dataDir]);
  const { rows } = await control.query<{ labelfile: string }>('SELECT labelfile FROM pg_backup_stop(false)');
  await control.end();
  writeFileSync(join(dataDir, 'backup_label'), rows[0]?.labelfile ?? '');
  writeFileSync(join(dataDir, 'standby.signal'), '');
  rmSync(join(dataDir, 'postmaster.pid'), { force: true });
  rmSync(join(dataDir, 'pg_replslot'), { recursive: true, force: true });
  execFileSync('sh', ['-c', 'mkdir "$0" && chmod 700 "$0" && chown -R --reference="$1" "$1"', join(dataDir, 'pg_replslot'), dataDir]);
  const server = await startEmbeddedPostgres({
    dataDir,
    packageName: primary.version === 18 ? 'embedded-postgres' : `postgres${primary.version}`,
    removeAfterDeath: home,
    settings: {
      fsync: 'off',
      shared_buffers: '32MB',
      max_connections: '100',
      wal_receiver_status_interval: '1s',
      primary_conninfo: `host=${primary.host} port=${primary.port} user=${primary.user} application_name=${name}`,
    },
  });
  const client = new pg.Client({ host: '127.0.0.1', port: server.port, user: primary.user, database: primary.database });
  client.on('error', () => undefined);
  await client.connect();
  return {
    query: (sql) => client.query(sql),
    async stop() {
      await client.end();
      await server.stop('immediate');
      rmSync(home, { recursive: true, force: true });
    },
  };
}
