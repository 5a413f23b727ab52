/**
 * The upstream of this Millrace: a server that was given, or one of its own that is kept running.
 * Invariant: the address stays true while Millrace runs: an embedded server that ends by itself comes back at the same place.
 */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { ServerAddress } from '../config.ts';
import { reason } from '../config-loading.ts';
import type { Logger } from '../log.ts';
import { type EmbeddedPostgres, startEmbeddedPostgres } from './embedded-postgres.ts';
import { lockDataDir } from './instance-lock.ts';
import { limited, readUpstreamFacts, unusable } from './upstream-facts.ts';

export interface Upstream {
  readonly address: ServerAddress;
  readonly embedded: boolean;
  readonly version: string;
  isRunning(): boolean;
  stop(mode?: 'fast' | 'immediate'): Promise<void>;
}

/** Checks a server that was given. Rejects with an error of one line when Millrace cannot work with it. */
export async function useUpstream(address: ServerAddress, log: Logger): Promise<Upstream> {
  const facts = await readUpstreamFacts(address);
  const problem = unusable(address, facts);
  if (problem !== undefined) throw new Error(problem);
  const warning = limited(address, facts);
  if (warning !== undefined) log.warn(warning);
  return { address, embedded: false, version: facts.version, isRunning: () => true, stop: async () => {} };
}

/** Starts the embedded PostgreSQL below `dataDir` and keeps it running. `lost` is called when it cannot be brought back. */
export async function embedUpstream(dataDir: string, log: Logger, lost: (message: string) => void): Promise<Upstream> {
  try {
    mkdirSync(dataDir, { recursive: true, mode: 0o755 });
  } catch (error) {
    throw new Error(`cannot make the data directory ${dataDir}: ${reason(error)}`, { cause: error });
  }
  const unlock = lockDataDir(dataDir);
  const start = (): Promise<EmbeddedPostgres> =>
    startEmbeddedPostgres({
      dataDir: join(dataDir, 'postgres'),
      // A week of logs in files of the server's own: its words neither pass through Millrace nor fill the disk.
      settings: {
        logging_collector: 'on',
        log_directory: 'log',
        log_filename: 'postgresql-%a.log',
        log_rotation_age: '1d',
        log_truncate_on_rotation: 'on',
      },
    });
  let server: EmbeddedPostgres | undefined;
  try {
    server = await start();
  } catch (error) {
    unlock();
    throw error;
  }
  const { port, socketDir, version } = server;
  const address: ServerAddress = { host: socketDir ?? '127.0.0.1', port, user: 'postgres', database: 'postgres', ssl: { mode: 'disable' } };
  let stopping = false;

  const keep = async (first: EmbeddedPostgres): Promise<void> => {
    let running = first;
    for (let wait = 200; ; ) {
      const born = Date.now();
      await running.ended;
      server = undefined;
      if (stopping) return;
      wait = Date.now() - born > 30_000 ? 200 : Math.min(5_000, wait * 2);
      log.error({ restartInMs: wait }, `the embedded PostgreSQL ended unexpectedly, see ${join(dataDir, 'postgres', 'log')}`);
      await sleep(wait);
      if (stopping) return;
      running = await start();
      if (running.port !== port) throw new Error(`port ${port} of the embedded PostgreSQL was taken by another program`);
      if (stopping) await running.stop();
      server = running;
      log.info('the embedded PostgreSQL runs again');
    }
  };
  void keep(server).catch((error: unknown) => lost(error instanceof Error ? error.message : String(error)));

  return {
    address,
    embedded: true,
    version,
    isRunning: () => server !== undefined,
    async stop(mode = 'fast') {
      stopping = true;
      await server?.stop(mode);
      unlock();
    },
  };
}
