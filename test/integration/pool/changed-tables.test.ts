/** Prepared statements in a pool over tables that a migration has changed: prepared anew where the client cannot be misled by it, and an error where it can. */
import { afterAll, afterEach, beforeAll, beforeEach, expect, it } from 'vitest';
import { bind, describe as describeMessage, execute, message, parse, sync } from '../../../src/wire/encode.ts';
import { Request } from '../../../src/wire/tags.ts';
import type { TestProxy } from '../wire/proxy.ts';
import type { RawClient } from '../wire/raw-client.ts';
import { lines, type PoolClient, type PoolStage, startPoolStage } from './stage.ts';

const charset = 'utf8';
let stage: PoolStage;
let proxy: TestProxy;
beforeAll(async () => {
  stage = await startPoolStage();
});
beforeEach(async () => {
  await stage.direct.query(
    'DROP TABLE IF EXISTS users, orders; CREATE TABLE users (id int, n int); INSERT INTO users VALUES (1, 10); CREATE TABLE orders (n int)',
  );
  proxy = await stage.proxy({ defaultPoolSize: 1 });
});
afterEach(() => stage.clear());
afterAll(() => stage.stop());

const cutOver = async (): Promise<void> => {
  await stage.direct.query('ALTER TABLE users ALTER n TYPE bigint');
  await proxy.command({ command: 'let_go', database: 'postgres', id: 'x', changed: ['users'] });
};
const cached = 'E ERROR 0A000 cached plan must not change result type';
const ask = { name: 'all', text: 'SELECT n, pg_typeof(n)::text AS type FROM users WHERE id = $1', values: [1] };

/** As drivers that keep what they were told of a statement: they say how values are sent, and may not ask for the columns again. */
const use = (id: Buffer, binary: boolean, describes: boolean): Buffer[] => {
  const parts = [
    Buffer.from('\0s\0'),
    Buffer.from([0, 1, 0, binary ? 1 : 0, 0, 1]),
    Buffer.from([0, 0, 0, id.length]),
    id,
    Buffer.from([0, 0]),
  ];
  return [message(Request.bind, parts), ...(describes ? [describeMessage('P', '', charset)] : []), execute('', charset), sync];
};
const say = async (client: RawClient, ...messages: readonly Buffer[]): Promise<string[]> => {
  client.write(...messages);
  return lines(await client.until('Z'));
};
const one = Buffer.from([0, 0, 0, 1]);
const text = Buffer.from('1');

it('a driver that asks for the columns each time does not hear of it, on any connection, within a transaction or not', async () => {
  const clients: PoolClient[] = [await stage.connect(proxy), await stage.connect(proxy), await stage.connect(proxy)];
  for (const client of clients) expect((await client.query(ask)).rows).toEqual([{ n: 10, type: 'integer' }]);
  await cutOver();
  for (const client of clients.slice(0, 2)) expect((await client.query(ask)).rows).toEqual([{ n: '10', type: 'bigint' }]);
  const [, , last] = clients;
  await last?.query('BEGIN');
  expect((await last?.query(ask))?.rows).toEqual([{ n: '10', type: 'bigint' }]);
  await last?.query('COMMIT');
  // And back.
  await stage.direct.query('ALTER TABLE users ALTER n TYPE int');
  await proxy.command({ command: 'let_go', database: 'postgres', id: 'x', changed: ['users'] });
  for (const client of clients) expect((await client.query(ask)).rows).toEqual([{ n: 10, type: 'integer' }]);
});

it('a transaction that began before goes on with the statement prepared anew', async () => {
  const client = await stage.connect(proxy);
  await client.query(ask);
  await client.query('BEGIN');
  await cutOver();
  expect((await client.query(ask)).rows).toEqual([{ n: '10', type: 'bigint' }]);
  await client.query('COMMIT');
});

it('who does not ask for the columns again is told by the server, once', async () => {
  const client = await stage.raw(proxy);
  expect(await say(client, parse('s', ask.text, charset), describeMessage('S', 's', charset), sync)).toEqual(['1', 't', 'T n|type', 'Z I']);
  expect(await say(client, ...use(text, false, false))).toEqual(['2', 'D 10|integer', 'C SELECT 1', 'Z I']);
  await cutOver();
  expect(await say(client, ...use(text, false, false))).toEqual([cached, 'Z I']);
  expect(await say(client, describeMessage('S', 's', charset), sync)).toEqual(['t', 'T n|type', 'Z I']);
  expect(await say(client, ...use(text, false, false))).toEqual(['2', 'D 10|bigint', 'C SELECT 1', 'Z I']);
});

it('binary values of a type that the server had told are not given to another type', async () => {
  const client = await stage.raw(proxy);
  expect(await say(client, parse('s', 'INSERT INTO users (n) VALUES ($1) RETURNING n', charset), sync)).toEqual(['1', 'Z I']);
  expect(await say(client, ...use(one, true, true))).toEqual(['2', 'T n', 'D 1', 'C INSERT 0 1', 'Z I']);
  await cutOver();
  expect(await say(client, ...use(one, true, true))).toEqual([cached, 'Z I']);
});

it('binary values whose type the client has named are', async () => {
  const client = await stage.raw(proxy);
  expect(await say(client, parse('s', 'INSERT INTO users (n) VALUES ($1) RETURNING n', charset, [23]), sync)).toEqual(['1', 'Z I']);
  expect(await say(client, ...use(one, true, true))).toEqual(['2', 'T n', 'D 1', 'C INSERT 0 1', 'Z I']);
  await cutOver();
  expect(await say(client, ...use(one, true, true))).toEqual(['2', 'T n', 'D 1', 'C INSERT 0 1', 'Z I']);
});

it('a statement without columns goes on as it was prepared', async () => {
  const client = await stage.raw(proxy);
  await say(client, parse('s', 'INSERT INTO users (n) VALUES ($1)', charset), sync);
  await cutOver();
  for (let n = 0; n < 3; n++) expect(await say(client, ...use(one, true, false))).toEqual(['2', 'C INSERT 0 1', 'Z I']);
});

it('statements over other tables stay as they are', async () => {
  const client = await stage.raw(proxy);
  const other = [bind('', 'o', [], charset), describeMessage('P', '', charset), execute('', charset), sync];
  await say(client, parse('o', 'SELECT n FROM orders', charset), sync);
  await cutOver();
  expect(await say(client, ...other)).toEqual(['2', 'T n', 'C SELECT 0', 'Z I']);
  const named = await (await stage.connect(proxy)).rows('SELECT name FROM pg_prepared_statements WHERE NOT from_sql ORDER BY 1');
  expect(named).toEqual([['o']]);
});

it('what is no longer used makes room, and names are closed on the server', async () => {
  const client = await stage.connect(proxy);
  await client.query(ask);
  for (let n = 0; n < 3; n++) {
    await proxy.command({ command: 'let_go', database: 'postgres', id: 'x', changed: ['users'] });
    await client.query(ask);
  }
  expect(await client.rows('SELECT name FROM pg_prepared_statements WHERE NOT from_sql ORDER BY 1')).toEqual([['all']]);
});
