/** An origin and an upstream, each a server of its own, with a client to either: what tests of the engine begin with. */
import pg from 'pg';
import { type ExtendedClient, extendedClient, type TestEngine } from './engine.ts';
import { type PostgresMajor, startPostgres, type TestPostgres } from './postgres.ts';

export interface OriginPair {
  readonly origin: TestPostgres;
  readonly upstream: TestPostgres;
  /** At the origin. */
  readonly admin: pg.Client;
  /** At the upstream; has connection `c` to the origin. */
  readonly extended: ExtendedClient;
  /** Ends all of it, and first the engine that ran on it. */
  stop(engine: TestEngine | undefined): Promise<void>;
}

/** Starts them, both of one version; `schema` is run at the origin before anything connects to it as `role`. */
export async function startOriginPair(schema: string, role = 'postgres', version: PostgresMajor = 18): Promise<OriginPair> {
  const origin = await startPostgres({ version, settings: { wal_level: 'logical' } });
  const upstream = await startPostgres({ version });
  const admin = new pg.Client({ connectionString: origin.url });
  await admin.connect();
  await admin.query(schema);
  const extended = await extendedClient(upstream.address);
  await extended.run(`CREATE CONNECTION c TO POSTGRES (HOST '${origin.host}', PORT ${origin.port}, USER ${role}, DATABASE postgres)`);
  return {
    origin,
    upstream,
    admin,
    extended,
    stop: async (engine) => {
      await engine?.stop();
      await extended.end();
      await admin.end();
      await Promise.all([origin.stop(), upstream.stop()]);
    },
  };
}
