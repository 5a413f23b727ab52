/** Servers on which the compiler is tried. MILLRACE_IVM_POSTGRES: 15..18, separated by commas (default: 15 and 18). */
import pg from 'pg';
import { afterAll, beforeAll } from 'vitest';
import { loadViewParser } from '../../../src/ivm/source-text.ts';
import { type PostgresMajor, startPostgres, type TestPostgres } from '../../support/postgres.ts';

export const versions = (process.env['MILLRACE_IVM_POSTGRES']?.split(',').map(Number) ?? [15, 18]) as PostgresMajor[];

/** A server for the tests of this block, and the view parser; `use` gets a client of it before the first. */
export function withServer(version: PostgresMajor, use: (client: pg.Client) => void): void {
  let server: TestPostgres;
  let client: pg.Client;
  beforeAll(async () => {
    await loadViewParser();
    server = await startPostgres({ version });
    client = new pg.Client({ connectionString: server.url });
    await client.connect();
    use(client);
  });
  afterAll(async () => {
    await client?.end();
    await server?.stop();
  });
}
