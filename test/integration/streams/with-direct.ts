/** Millrace before a server with logical decoding, for the tests of a block: one client through it, one around it. */
import pg from 'pg';
import { afterAll, beforeAll } from 'vitest';
import { startMillrace, type TestMillrace } from '../../support/millrace.ts';
import { startPostgres, type TestPostgres } from '../../support/postgres.ts';

export interface WithDirect {
  readonly upstream: TestPostgres;
  readonly millrace: TestMillrace;
  readonly client: pg.Client;
  readonly direct: pg.Client;
}

/** Starts it before the block, hands it to `started`, which may prepare it, and stops it behind the block. */
export function withDirect(version: 15 | 16 | 17 | 18, started: (stage: WithDirect) => unknown): void {
  let stage: WithDirect | undefined;
  beforeAll(async () => {
    const upstream = await startPostgres({ version, settings: { wal_level: 'logical' } });
    const millrace = await startMillrace({ upstream: upstream.address });
    const client = new pg.Client({ connectionString: millrace.url() });
    const direct = new pg.Client({ connectionString: upstream.url });
    stage = { upstream, millrace, client, direct };
    await client.connect();
    await direct.connect();
    await started(stage);
  }, 120_000);
  afterAll(async () => {
    await stage?.client.end();
    await stage?.direct.end();
    await stage?.millrace.stop();
    await stage?.upstream.stop();
  });
}
