/**
 * Which databases of the upstream have a catalog, and their engines.
 * Invariant: a database with a catalog has one engine process here, and a database that is gone has none.
 */

import { hasCatalog } from '../catalog/install.ts';
import type { ServerAddress } from '../config.ts';
import type { Logger } from '../log.ts';
import { connectPg } from '../replication/server-address.ts';
import type { Supervised } from './supervise.ts';

export interface DatabaseWatch {
  /** Engines by database. */
  readonly engines: ReadonlyMap<string, Supervised>;
  /** Whether the upstream's databases have been looked through once. */
  scanned(): boolean;
  /** A catalog has just been installed in this database. */
  installed(database: string): void;
  stop(patience: number): Promise<void>;
  kill(): void;
}

const interval = 15_000;
/** After a look that failed. */
const retryAfter = 1_000;
/** Databases without a catalog that are looked at again in one round: an upstream may have thousands. */
const probesPerRound = 20;

/** Looks through the databases now and every 15 s, and starts and stops engines accordingly. */
export function watchDatabases(upstream: ServerAddress, startEngine: (database: string) => Supervised, log: Logger): DatabaseWatch {
  const engines = new Map<string, Supervised>();
  let complete = false;
  let over = false;
  let timer: NodeJS.Timeout | undefined;
  let turn = 0;

  const start = (database: string): void => {
    if (over || engines.has(database)) return;
    log.info(`engine starts for database "${database}"`);
    engines.set(database, startEngine(database));
  };

  const scan = async (): Promise<void> => {
    const databases = await listDatabases(upstream);
    for (const [database, engine] of engines) {
      if (databases.includes(database)) continue;
      log.info(`database "${database}" is gone, its engine ends`);
      engines.delete(database);
      void engine.stop(5_000);
    }
    const others = databases.filter((database) => !engines.has(database));
    const due = complete
      ? Array.from({ length: Math.min(probesPerRound, others.length) }, (_, i) => others[(turn + i) % others.length] ?? '')
      : others;
    turn += probesPerRound;
    for (const database of due) {
      // One database that cannot be entered must not hide the others.
      if (!over && (await probe(upstream, database, log))) start(database);
    }
  };

  const round = (): void => {
    scan()
      .then(() => {
        complete = true;
        return interval;
      })
      .catch((error: unknown) => {
        log.warn(`cannot look through the databases of the upstream: ${error instanceof Error ? error.message : String(error)}`);
        return retryAfter;
      })
      .then((wait) => {
        if (over) return;
        timer = setTimeout(round, wait);
      });
  };
  round();

  return {
    engines,
    scanned: () => complete,
    installed: start,
    async stop(patience) {
      over = true;
      clearTimeout(timer);
      await Promise.all([...engines.values()].map((engine) => engine.stop(patience)));
    },
    kill() {
      over = true;
      clearTimeout(timer);
      for (const engine of engines.values()) engine.kill();
    },
  };
}

async function listDatabases(upstream: ServerAddress): Promise<readonly string[]> {
  const client = await connectPg(upstream, { applicationName: 'millrace' });
  try {
    const { rows } = await client.query<{ datname: string }>(`
      SELECT datname FROM pg_catalog.pg_database
      WHERE datallowconn AND NOT datistemplate AND datconnlimit <> -2 AND pg_catalog.has_database_privilege(oid, 'CONNECT')
      ORDER BY datname`);
    return rows.map(({ datname }) => datname);
  } finally {
    await client.end().catch(() => undefined);
  }
}

async function probe(upstream: ServerAddress, database: string, log: Logger): Promise<boolean> {
  try {
    const client = await connectPg(upstream, { database, applicationName: 'millrace' });
    try {
      return await hasCatalog(client);
    } finally {
      await client.end().catch(() => undefined);
    }
  } catch (error) {
    log.debug(`cannot look into database "${database}": ${error instanceof Error ? error.message : String(error)}`);
    return false;
  }
}
