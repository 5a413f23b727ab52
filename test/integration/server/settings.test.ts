/** Settings of the proxy as `millrace serve` is given them. */
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { type AddressInfo, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { runMillrace, startMillrace } from '../../support/millrace.ts';
import { startPostgres, type TestPostgres } from '../../support/postgres.ts';

const directory = mkdtempSync(join(tmpdir(), 'millrace-flags-'));
const file = join(directory, 'pgbouncer.ini');
let postgres: TestPostgres;

beforeAll(async () => {
  postgres = await startPostgres();
});
afterAll(async () => {
  await postgres?.stop();
  rmSync(directory, { recursive: true, force: true });
});

async function refusal(args: readonly string[], env: Record<string, string> = {}): Promise<string> {
  const run = runMillrace(['serve', '--http', '127.0.0.1:0', '--data-dir', join(directory, 'data'), ...args], env);
  expect(await run.ended).toBe(1);
  return run.output().trimEnd();
}

describe('settings', () => {
  it('that are wrong are one line, and nothing is started', async () => {
    expect(await refusal(['--pool-mode', 'sesion'])).toBe(
      'millrace: --pool-mode: pool_mode = "sesion": allowed are session, transaction, statement',
    );
    expect(await refusal([], { MILLRACE_MAX_CLIENT_CONN: 'many' })).toBe(
      'millrace: --max-client-conn: max_client_conn = "many": allowed is a whole number from 1',
    );
    expect(await refusal(['--config', '/none.ini'])).toBe('millrace: --config: cannot read "/none.ini": no such file or directory');
    writeFileSync(file, '[pgbouncer]\npool_size = 3\n');
    expect(await refusal([], { MILLRACE_CONFIG: file })).toBe(
      `millrace: ${file}:2: there is no setting "pool_size" (docs/configuration.md lists them)`,
    );
  });

  it('come from a file of PgBouncer, environment and flags, the last of them first', async () => {
    writeFileSync(
      file,
      '[pgbouncer]\nlogfile = /x\nmax_client_conn = 11\ndefault_pool_size = 12\nmin_pool_size = 1\nadmin_database = pgbouncer\n',
    );
    const millrace = await startMillrace({
      upstream: postgres.address,
      args: ['--max-client-conn', '33', '--workers', '1'],
      env: { MILLRACE_CONFIG: file, MILLRACE_MAX_CLIENT_CONN: '22', MILLRACE_DEFAULT_POOL_SIZE: '23' },
    });
    try {
      const console = new pg.Client({ host: millrace.host, port: millrace.port, user: 'postgres', database: 'pgbouncer' });
      await console.connect();
      const { rows } = await console.query<{ key: string; value: string }>('SHOW CONFIG');
      await console.end();
      const value = (key: string): string | undefined => rows.find((row) => row.key === key)?.value;
      expect(['max_client_conn', 'default_pool_size', 'min_pool_size', 'conffile', 'workers'].map(value)).toEqual([
        '33',
        '23',
        '1',
        file,
        '1',
      ]);
      expect(millrace.log()).toContain(`${file}:2: logfile is a setting of PgBouncer that has no meaning here`);
      // The name of the console by default is a database like any other now.
      const client = new pg.Client({ host: millrace.host, port: millrace.port, user: 'postgres', database: 'millrace' });
      await expect(client.connect()).rejects.toMatchObject({ code: '3D000' });
    } finally {
      expect(await millrace.stop()).toBe(0);
    }
  });

  it('of the address are used when no flag says otherwise', async () => {
    // A port that is taken shows that it is asked for.
    const taken = createServer().listen(0, '127.0.0.1');
    await once(taken, 'listening');
    const { port } = taken.address() as AddressInfo;
    writeFileSync(file, `[millrace]\nlisten_addr = 127.0.0.1\nlisten_port = ${port}\n`);
    const refused = `millrace: cannot listen on 127.0.0.1:${port}: the port is in use (another Millrace? choose another with --listen HOST:PORT)`;
    expect(await refusal(['--config', file])).toBe(refused);
    writeFileSync(file, '[millrace]\nlisten_port = 0\n');
    expect(await refusal(['--config', file, '--listen', `127.0.0.1:${port}`])).toBe(refused);
    taken.close();
    writeFileSync(file, '[millrace]\nlisten_addr = 127.0.0.1\nlisten_port = 99999\n');
    expect(await refusal(['--config', file])).toBe(`millrace: ${file}:3: listen_port = "99999": allowed is a port from 0 to 65535`);
  });
});
