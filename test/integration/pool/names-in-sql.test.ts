/** Names of prepared statements in SQL: in a pool they mean the client's own statements, wherever these are, and nobody else's. */
import pg from 'pg';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { bind, execute, parse, query, sync } from '../../../src/wire/encode.ts';
import { defaultProxySettings } from '../../../src/wire/pool/settings.ts';
import { startPostgres, type TestPostgres } from '../../support/postgres.ts';
import { fakeRunner, startProxy, type TestProxy } from '../wire/proxy.ts';
import { RawClient, shown } from '../wire/raw-client.ts';

let postgres: TestPostgres;
let proxy: TestProxy;
const open: RawClient[] = [];

beforeAll(async () => {
  // A server that does not report search_path: whoever sets it keeps its connection.
  postgres = await startPostgres({ version: 15 });
  const settings = { ...defaultProxySettings, poolMode: 'transaction', authType: 'trust', defaultPoolSize: 2 } as const;
  proxy = await startProxy(postgres.address, fakeRunner(), {}, settings);
});
afterAll(async () => {
  await proxy?.stop(0);
  await postgres?.stop();
});
afterEach(() => {
  for (const client of open.splice(0)) client.destroy();
});

async function client(port = proxy.port): Promise<RawClient> {
  const one = await RawClient.open(port);
  open.push(one);
  return one;
}

async function ask(one: RawClient, ...messages: readonly Buffer[]): Promise<string[]> {
  one.write(...messages);
  return shown(await one.until('Z'));
}

const q = (sql: string): Buffer => query(sql, 'utf8');
const prepare = (name: string, sql: string): Buffer[] => [parse(name, sql, 'utf8'), sync];
const use = (name: string): Buffer[] => [bind('', name, [], 'utf8'), execute('', 'utf8'), sync];
const byParse = (sql: string): Buffer[] => [parse('', sql, 'utf8'), ...use('')];

/** Two clients that have prepared different things as `s`; both statements are on the same server connection. */
async function namesakes(): Promise<readonly [RawClient, RawClient]> {
  const [a, b] = [await client(), await client()];
  expect(await ask(a, ...prepare('s', "SELECT 'a'"))).toEqual(['1', 'Z I']);
  expect(await ask(b, ...prepare('s', "SELECT 'b'"))).toEqual(['1', 'Z I']);
  return [a, b];
}

const nobody = 'E ERROR 26000 prepared statement "s" does not exist';

for (const [protocol, text] of [
  ['a simple Query', (sql: string) => [q(sql)]],
  ['the extended protocol', byParse],
] as const) {
  const behind = protocol === 'a simple Query' ? [] : ['1', '2'];
  describe(`by ${protocol}`, () => {
    it('EXECUTE runs the client’s own', async () => {
      const [a, b] = await namesakes();
      for (const [one, answer] of [
        [a, 'a'],
        [b, 'b'],
        [a, 'a'],
      ] as const)
        expect((await ask(one, ...text('EXECUTE s'))).filter((line) => line.startsWith('D'))).toEqual([`D ${answer}`]);
    });

    it('DEALLOCATE takes the client’s own away and leaves that of another', async () => {
      const [a, b] = await namesakes();
      expect(await ask(a, ...text('DEALLOCATE s'))).toEqual([...behind, 'C DEALLOCATE', 'Z I']);
      expect(await ask(a, ...use('s'))).toEqual([nobody, 'Z I']);
      expect(await ask(b, ...use('s'))).toEqual(['2', 'D b', 'C SELECT 1', 'Z I']);
      expect(await ask(a, ...prepare('s', "SELECT 'new'"))).toEqual(['1', 'Z I']);
      expect(await ask(a, ...use('s'))).toEqual(['2', 'D new', 'C SELECT 1', 'Z I']);
    });

    it('a stranger’s statement is none', async () => {
      const [a] = await namesakes();
      const c = await client();
      for (const sql of ['EXECUTE s', 'DEALLOCATE s']) expect((await ask(c, ...text(sql))).slice(-2)).toEqual([nobody, 'Z I']);
      expect(await ask(c, ...text("PREPARE s AS SELECT 'c'"))).toEqual([...behind, 'C PREPARE', 'Z I']);
      expect(await ask(a, ...use('s'))).toEqual(['2', 'D a', 'C SELECT 1', 'Z I']);
    });
  });
}

it('a DEALLOCATE that fails leaves the statement, and the server its place in the pool', async () => {
  const [a, b] = await namesakes();
  for (const one of [a, b]) {
    await ask(one, q('BEGIN'));
    await ask(one, q('SELECT 1/0'));
    expect(await ask(one, q('DEALLOCATE s'))).toEqual([expect.stringMatching(/^E ERROR 25P02/), 'Z E']);
    expect(await ask(one, q('ROLLBACK'))).toEqual(['C ROLLBACK', 'Z I']);
  }
  expect(await ask(a, ...use('s'))).toEqual(['2', 'D a', 'C SELECT 1', 'Z I']);
  expect(await ask(b, ...use('s'))).toEqual(['2', 'D b', 'C SELECT 1', 'Z I']);
});

it('an EXECUTE whose statement cannot be prepared on this server any more is answered once', async () => {
  const [a, b] = await namesakes();
  await ask(b, q('CREATE TABLE gone ()'));
  await ask(b, ...prepare('t', 'SELECT * FROM gone'));
  await ask(a, ...prepare('t', 'SELECT 1'));
  await ask(b, q('DROP TABLE gone'));
  expect(await ask(a, q('EXECUTE t'))).toEqual(['T ?column?', 'D 1', 'C SELECT 1', 'Z I']);
  expect(await ask(b, q('EXECUTE t'))).toEqual([expect.stringMatching(/^E ERROR (26000|42P01)/), 'Z I']);
  expect(await ask(b, q('SELECT 2'))).toEqual(['T ?column?', 'D 2', 'C SELECT 1', 'Z I']);
});

it.each([
  ["SET work_mem = '77MB'; SET TimeZone = 'UTC'"],
  ["/* of our app */ SET work_mem = '77MB'"],
  ["-- of our app\nSET work_mem = '77MB'"],
])('no setting reaches the next client: %s', async (sql) => {
  const [a, b] = [await client(), await client()];
  await ask(a, q(sql));
  expect(await ask(b, q('SHOW work_mem'))).toContain('D 4MB');
  expect(await ask(a, q('SHOW work_mem'))).toContain('D 77MB');
});

it('says what Postgres says', async () => {
  const direct = new pg.Client(postgres.url);
  await direct.connect();
  await expect(direct.query('DEALLOCATE s')).rejects.toMatchObject({ code: '26000', message: 'prepared statement "s" does not exist' });
  await direct.end();
});
