/** RESET and DISCARD ALL bring back what the client asked for in its startup packet, as a session of its own would. */
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { bind, execute, parse, query, sync } from '../../../src/wire/encode.ts';
import { defaultProxySettings } from '../../../src/wire/pool/settings.ts';
import { startPostgres, type TestPostgres } from '../../support/postgres.ts';
import { fakeRunner, startProxy, type TestProxy } from '../wire/proxy.ts';
import { RawClient, type RawMessage, shown } from '../wire/raw-client.ts';

let postgres: TestPostgres;
let proxy: TestProxy;
const open: RawClient[] = [];

beforeAll(async () => {
  postgres = await startPostgres();
  const settings = { ...defaultProxySettings, poolMode: 'transaction', authType: 'trust', defaultPoolSize: 1 } as const;
  proxy = await startProxy(postgres.address, fakeRunner(), {}, settings);
});
afterAll(async () => {
  await proxy?.stop(0);
  await postgres?.stop();
});
afterEach(() => {
  for (const client of open.splice(0)) client.destroy();
});

const q = (sql: string): Buffer => query(sql, 'utf8');
const byParse = (sql: string): Buffer => Buffer.concat([parse('', sql, 'utf8'), bind('', '', [], 'utf8'), execute('', 'utf8'), sync]);
const startup = { DateStyle: 'German, DMY', TimeZone: 'Asia/Kolkata', application_name: 'ours', IntervalStyle: 'iso_8601' };

/** What a client learns from its answers: rows and ends, and which values it was told of last (being told one again says nothing new). */
async function conversation(port: number, steps: readonly Buffer[]): Promise<unknown> {
  const client = await RawClient.open(port, startup);
  open.push(client);
  const told = new Map<string, string>(Object.entries(startup));
  const heard: string[] = [];
  const take = (messages: readonly RawMessage[]): void => {
    for (const { tag, body } of messages) {
      if (tag !== 'S') continue;
      const [name = '', value = ''] = body.toString('utf8').split('\0');
      told.set(name, value);
    }
    heard.push(...shown(messages.filter(({ tag }) => tag !== 'S')), [...told].sort().join('; '));
  };
  for (const step of steps) {
    client.write(step);
    take(await client.until('Z'));
    const values = Object.keys(startup).map((name) => `current_setting('${name}')`);
    client.write(q(`SELECT ${values.join(', ')}, date '2001-02-03'`));
    take(await client.until('Z'));
  }
  client.destroy();
  return heard;
}

describe('settings of the startup packet', () => {
  it.each<readonly [string, readonly Buffer[]]>([
    ['one is set and reset', [q("SET DateStyle = 'SQL'"), q('RESET DateStyle')]],
    ['one is reset that was never set', [q('RESET TimeZone')]],
    ['all are reset', [q("SET DateStyle = 'SQL'; SET TimeZone = 'UTC'; SET work_mem = '7MB'"), q('RESET ALL'), q('SHOW work_mem')]],
    ['all is discarded', [q("SET TimeZone = 'UTC'"), q('DISCARD ALL'), q('SELECT 1')]],
    ['by DEFAULT', [q("SET TimeZone = 'UTC'"), q('SET TIME ZONE DEFAULT'), q('SET IntervalStyle TO DEFAULT')]],
    ['set, reset and set in one text', [q("RESET TimeZone; SET TimeZone = 'UTC'"), q("SET DateStyle = 'ISO'; RESET DateStyle")]],
    ['in a transaction', [q('BEGIN'), q("SET DateStyle = 'SQL'"), q('RESET DateStyle'), q('COMMIT')]],
    ['in a transaction that is rolled back', [q("SET TimeZone = 'UTC'"), q('BEGIN'), q('RESET TimeZone'), q('ROLLBACK')]],
    ['in a transaction that fails', [q('BEGIN'), q('RESET DateStyle'), q('SELECT 1/0'), q('ROLLBACK')]],
    ['by a client that keeps its server', [q("SET work_mem = '7MB'"), q("SET DateStyle = 'SQL'"), q('RESET DateStyle'), q('RESET ALL')]],
    ['by the extended protocol', [byParse("SET DateStyle = 'SQL'"), byParse('RESET DateStyle'), byParse('RESET ALL')]],
  ])('%s', async (_, steps) => {
    expect(await conversation(proxy.port, steps)).toEqual(await conversation(postgres.port, steps));
  });
});
