/** The admin console's side of the protocol, message by message, on a worker of its own. */
import { readFileSync, writeFileSync } from 'node:fs';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { bind, close, describe as describeMessage, execute, message, parse, query, sync } from '../../../src/wire/encode.ts';
import { startPostgres, type TestPostgres } from '../../support/postgres.ts';
import { startProxy, type TestProxy } from './proxy.ts';
import { RawClient, shown, startupPacket } from './raw-client.ts';

let postgres: TestPostgres;
let worker: TestProxy;

beforeAll(async () => {
  postgres = await startPostgres();
  const direct = new pg.Client({ connectionString: postgres.url });
  await direct.connect();
  await direct.query("CREATE ROLE careful LOGIN PASSWORD 'x'");
  const hba = (await direct.query<{ hba_file: string }>('SHOW hba_file')).rows[0]?.hba_file ?? '';
  writeFileSync(hba, `host all careful all scram-sha-256\n${readFileSync(hba, 'utf8')}`);
  await direct.query('SELECT pg_reload_conf()');
  await direct.end();
  worker = await startProxy(postgres.address);
});
afterAll(async () => {
  await worker?.stop(0);
  await postgres?.stop();
});

const open = (parameters: Readonly<Record<string, string>> = {}): Promise<RawClient> =>
  RawClient.open(worker.port, { database: 'millrace', ...parameters });
const tags = (messages: readonly { tag: string }[]): string => messages.map(({ tag }) => tag).join('');

async function ended(client: RawClient): Promise<void> {
  await client.until('none');
  expect(client.ended).toBe(true);
}

describe('the login', () => {
  it('says nothing of success before the upstream has let the client in', async () => {
    const c = await RawClient.connect(worker.port);
    c.write(startupPacket({ user: 'nobody', database: 'millrace' }));
    const said = await c.until('E');
    expect(tags(said)).toBe('E');
    expect(shown(said)).toEqual(['E FATAL 28000 role "nobody" does not exist']);
    await ended(c);
  });

  it('takes nothing but answers before, and no more than 64 kB of them', async () => {
    for (const bytes of [query('SHOW POOLS', 'utf8'), Buffer.from([0x70, 0, 2, 0, 0])]) {
      const c = await RawClient.connect(worker.port);
      c.write(startupPacket({ user: 'careful', database: 'millrace' }));
      await c.until('R');
      c.write(bytes);
      expect(shown(await c.until('E'))).toEqual(['E FATAL 08P01 expected a password response']);
      await ended(c);
    }
  });

  it('greets as a server does, and leaves no connection at the upstream', async () => {
    const c = await RawClient.connect(worker.port);
    c.write(startupPacket({ user: 'postgres', database: 'millrace', application_name: 'me', options: '-c nonsense=1' }));
    expect(tags(await c.until('Z'))).toMatch(/^RS+KZ$/);
    c.write(query('SHOW VERSION', 'utf8'));
    expect(tags(await c.until('Z'))).toBe('TDCZ');
    const direct = new pg.Client({ connectionString: postgres.url });
    await direct.connect();
    const { rows } = await direct.query("SELECT count(*)::int AS n FROM pg_stat_activity WHERE application_name = 'millrace console'");
    await direct.end();
    expect(rows).toEqual([{ n: 0 }]);
    c.end();
  });
});

describe('the extended protocol', () => {
  it('describes, limits rows, and skips to Sync after an error', async () => {
    const c = await open();
    const limited = message(0x45, [Buffer.from([0x70, 0, 0, 0, 0, 5])]);
    c.write(
      parse('s', 'SHOW LISTS', 'utf8'),
      describeMessage('S', 's', 'utf8'),
      bind('p', 's', [], 'utf8'),
      describeMessage('P', 'p', 'utf8'),
      limited,
      limited,
      limited,
      close('S', 's', 'utf8'),
      sync,
    );
    expect(tags(await c.until('Z'))).toBe('1tT2TDDDDDsDDDDDsDDDC3Z');
    c.write(parse('', 'nope', 'utf8'), bind('', '', [], 'utf8'), execute('', 'utf8'), sync, bind('', 'gone', [], 'utf8'), sync);
    expect(shown(await c.until('Z'))).toEqual(['E ERROR 42601 invalid command "nope"', 'Z I']);
    expect(shown(await c.until('Z'))).toEqual(['E ERROR 26000 prepared statement "gone" does not exist', 'Z I']);
    c.write(parse('', '', 'utf8'), bind('', '', [], 'utf8'), describeMessage('P', '', 'utf8'), execute('', 'utf8'), sync);
    expect(tags(await c.until('Z'))).toBe('12nIZ');
    c.end();
  });

  it('does not depend on how TCP cuts it', async () => {
    const c = await open();
    for (const byte of Buffer.concat([
      query('SHOW STATE; SHOW HELP', 'utf8'),
      parse('', 'BEGIN', 'utf8'),
      bind('', '', [], 'utf8'),
      execute('', 'utf8'),
      sync,
    ])) {
      c.write(Buffer.from([byte]));
      await new Promise((resolve) => setImmediate(resolve));
    }
    expect(tags(await c.until('Z'))).toBe('TDDDCNCZ');
    const block = await c.until('Z');
    expect(tags(block)).toBe('12CZ');
    expect(block.at(-1)?.body.toString()).toBe('T');
    c.end();
  });

  it('hangs up on what is no message, and on what is too long', async () => {
    for (const bytes of [Buffer.from([0x51, 0, 0, 0, 1]), Buffer.from([0x51, 0x7f, 0, 0, 0]), message(0x7e, [])]) {
      const c = await open();
      c.write(bytes);
      expect(shown(await c.until('E'))[0]).toMatch(/^E FATAL 08P01 invalid/);
      await ended(c);
    }
  });
});
