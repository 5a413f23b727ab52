/** Extended statements over the client's own session: simple, several in one text, blocks, prepared, pipelined. */

import pg from 'pg';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { bind, close, describe as describeMessage, execute, flush, message, parse, query, sync } from '../../../src/wire/encode.ts';
import { startPostgres, type TestPostgres } from '../../support/postgres.ts';
import { fakeRunner, startProxy, type TestProxy } from './proxy.ts';
import { RawClient, shown } from './raw-client.ts';

let postgres: TestPostgres;
let proxy: TestProxy;
let direct: pg.Client;
const open: RawClient[] = [];

beforeAll(async () => {
  postgres = await startPostgres();
  proxy = await startProxy(postgres.address, fakeRunner());
  direct = new pg.Client(postgres.url);
  await direct.connect();
});
afterAll(async () => {
  await direct?.end();
  await proxy?.stop(0);
  await postgres?.stop();
});
afterEach(async () => {
  for (const client of open.splice(0)) client.destroy();
  await direct.query('DROP TABLE IF EXISTS t, live_t, plain_t');
});

async function client(parameters: Record<string, string> = {}): Promise<RawClient> {
  const one = await RawClient.open(proxy.port, parameters);
  open.push(one);
  return one;
}

/** Sends one simple Query. */
async function ask(one: RawClient, sql: string): Promise<string[]> {
  one.write(query(sql, 'utf8'));
  return shown(await one.until('Z'));
}

async function count(table: string): Promise<number> {
  return Number((await direct.query(`SELECT count(*) FROM ${table}`)).rows[0].count);
}

const secret = (sql: string): string => `CREATE SECRET s AS '${sql.replaceAll("'", "''")}'`;
const p = (name: string, sql: string): Buffer => parse(name, sql, 'utf8');
const b = (portal: string, name: string): Buffer => bind(portal, name, [], 'utf8');
const d = (kind: 'S' | 'P', name: string): Buffer => describeMessage(kind, name, 'utf8');
const e = (portal: string): Buffer => execute(portal, 'utf8');
const noticeOutside = 'N NOTICE 00000 made in no block';
const noticeInside = 'N NOTICE 00000 made in a block';

describe('simple queries', () => {
  it('answers rows and commands', async () => {
    const c = await client();
    expect(await ask(c, 'SHOW SOURCES')).toEqual(['T name|size', 'D ü1|1', 'D ü2|2', 'D ü3|3', 'C SHOW', 'Z I']);
    expect(await ask(c, secret('CREATE TABLE t (a int)'))).toEqual([noticeOutside, 'C CREATE SECRET', 'Z I']);
    expect(await count('t')).toBe(0);
  });

  it('rolls back what a failing statement did, and relays the error', async () => {
    const c = await client();
    expect(await ask(c, secret('CREATE TABLE t (a int); SELECT 1/0'))).toEqual(['E ERROR 22012 division by zero', 'Z I']);
    expect((await direct.query("SELECT to_regclass('t') AS r")).rows[0].r).toBeNull();
  });

  it('is part of an explicit block', async () => {
    const c = await client();
    expect(await ask(c, 'BEGIN')).toEqual(['C BEGIN', 'Z T']);
    expect(await ask(c, secret('CREATE TABLE t (a int)'))).toEqual([noticeInside, 'C CREATE SECRET', 'Z T']);
    expect(await ask(c, 'ROLLBACK')).toEqual(['C ROLLBACK', 'Z I']);
    expect((await direct.query("SELECT to_regclass('t') AS r")).rows[0].r).toBeNull();
    await ask(c, 'BEGIN');
    expect(await ask(c, secret('SELECT 1/0'))).toEqual(['E ERROR 22012 division by zero', 'Z E']);
    expect(await ask(c, 'SHOW SOURCES')).toEqual([
      'E ERROR 25P02 current transaction is aborted, commands ignored until end of transaction block',
      'Z E',
    ]);
    expect((await ask(c, 'DROP TABLE live_t'))[0]).toMatch(/25P02/);
    expect(await ask(c, 'ROLLBACK')).toEqual(['C ROLLBACK', 'Z I']);
  });

  it('reports syntax errors with their position, and fails the block they are in', async () => {
    const c = await client();
    const [first, last] = await ask(c, 'CREATE SOURCE s FROM 1');
    expect(first).toMatch(/^E ERROR 42601 .* @\d+$/);
    expect(last).toBe('Z I');
    await ask(c, 'BEGIN');
    expect((await ask(c, 'CREATE SOURCE s FROM 1')).at(-1)).toBe('Z E');
  });

  it('asks about candidates, and forwards those that are not claimed', async () => {
    const c = await client();
    await direct.query('CREATE TABLE live_t (a int); CREATE TABLE plain_t (a int)');
    expect(await ask(c, 'DROP TABLE plain_t')).toEqual(['C DROP TABLE', 'Z I']);
    expect(await ask(c, 'DROP TABLE live_t')).toEqual(['C DROP LIVE', 'Z I']);
    expect((await ask(c, 'DROP TABLE none_t'))[0]).toMatch(/42P01/);
  });

  it('takes over in the middle of pipelined requests', async () => {
    const c = await client();
    c.write(query('SELECT 1', 'utf8'), p('', 'SELECT 2'), b('', ''), e(''), sync, query('SHOW SOURCES', 'utf8'), query('SELECT 3', 'utf8'));
    expect(shown(await c.until('Z', 4)).filter((line) => !/^[T123]/.test(line))).toEqual([
      ...['D 1', 'C SELECT 1', 'Z I', 'D 2', 'C SELECT 1', 'Z I'],
      ...['D ü1|1', 'D ü2|2', 'D ü3|3', 'C SHOW', 'Z I', 'D 3', 'C SELECT 1', 'Z I'],
    ]);
  });

  it('speaks the encoding of the client', async () => {
    const c = await client({ client_encoding: 'LATIN1' });
    c.write(query("CREATE SECRET s AS 'CREATE TABLE t AS SELECT ''\xe4'' AS a'", 'latin1'));
    expect(shown(await c.until('Z')).slice(1)).toEqual(['C CREATE SECRET', 'Z I']);
    expect((await direct.query('SELECT a FROM t')).rows).toEqual([{ a: 'ä' }]);
  });

  it('survives any cut of the stream', async () => {
    const c = await client();
    const bytes = Buffer.concat([query('SELECT 1', 'utf8'), query('SHOW SOURCES', 'utf8'), query('SELECT 2', 'utf8')]);
    for (let cut = 1; cut < bytes.length; cut += 3) {
      c.write(bytes.subarray(0, cut));
      await new Promise((resolve) => setTimeout(resolve, 2));
      c.write(bytes.subarray(cut));
      expect(shown(await c.until('Z', 3)).filter((line) => line.startsWith('C'))).toEqual(['C SELECT 1', 'C SHOW', 'C SELECT 1']);
    }
  });
});

describe('texts of several statements', () => {
  it('are one transaction', async () => {
    const c = await client();
    const text = `CREATE TABLE t (a int); ${secret('INSERT INTO t VALUES (1)')}; INSERT INTO t VALUES (2), (3)`;
    expect(await ask(c, text)).toEqual(['C CREATE TABLE', noticeOutside, 'C CREATE SECRET', 'C INSERT 0 2', 'Z I']);
    expect(await count('t')).toBe(3);
    expect(await ask(c, `INSERT INTO t VALUES (4); ${secret('SELECT 1')}; SELECT 1/0; SELECT 2`)).toEqual([
      ...['C INSERT 0 1', noticeOutside, 'C CREATE SECRET', 'E ERROR 22012 division by zero', 'Z I'],
    ]);
    expect(await count('t')).toBe(3);
  });

  it('show rows and errors as a simple query does', async () => {
    const c = await client();
    expect(await ask(c, 'SELECT 1 AS a; SHOW SOURCES; SELECT x')).toEqual([
      ...['T a', 'D 1', 'C SELECT 1', 'T name|size', 'D ü1|1', 'D ü2|2', 'D ü3|3', 'C SHOW'],
      ...['E ERROR 42703 column "x" does not exist @37', 'Z I'],
    ]);
    expect(await ask(c, ' ; ; SHOW SOURCES ; ')).toHaveLength(6);
  });

  it('may hold their own BEGIN and COMMIT', async () => {
    const c = await client();
    await direct.query('CREATE TABLE t (a int)');
    const insert = secret('INSERT INTO t VALUES (1)');
    expect(await ask(c, `BEGIN; ${insert}; COMMIT; SELECT 1`)).toEqual([
      ...['C BEGIN', noticeInside, 'C CREATE SECRET', 'C COMMIT', 'T ?column?', 'D 1', 'C SELECT 1', 'Z I'],
    ]);
    expect(await count('t')).toBe(1);
    expect(await ask(c, `BEGIN; ${insert}; ROLLBACK; ${insert}`)).toEqual([
      ...['C BEGIN', noticeInside, 'C CREATE SECRET', 'C ROLLBACK', noticeOutside, 'C CREATE SECRET', 'Z I'],
    ]);
    expect(await count('t')).toBe(2);
    expect((await ask(c, `BEGIN; ${insert}`)).at(-1)).toBe('Z T');
    expect((await ask(c, `${insert}; SELECT 1/0`)).at(-1)).toBe('Z E');
    expect((await ask(c, `ROLLBACK; ${insert}`)).slice(-2)).toEqual(['C CREATE SECRET', 'Z I']);
    expect(await count('t')).toBe(3);
  });

  it('abort when the last of them fails at commit', async () => {
    const c = await client();
    await direct.query('CREATE TABLE t (a int UNIQUE DEFERRABLE INITIALLY DEFERRED)');
    const text = `${secret('INSERT INTO t VALUES (1)')}; INSERT INTO t VALUES (1)`;
    expect(await ask(c, text)).toEqual([
      ...[noticeOutside, 'C CREATE SECRET', 'E ERROR 23505 duplicate key value violates unique constraint "t_a_key"', 'Z I'],
    ]);
  });

  it('relay COPY both ways', async () => {
    const c = await client();
    await direct.query('CREATE TABLE t (a int)');
    c.write(query(`${secret('SELECT 1')}; COPY t FROM STDIN; COPY t TO STDOUT`, 'utf8'));
    expect(shown(await c.until('G'))).toEqual([noticeOutside, 'C CREATE SECRET', 'G']);
    c.write(message(0x64, [Buffer.from('1\n2\n')]), message(0x53, []), message(0x64, [Buffer.from('3\n')]), message(0x63, []));
    expect(shown(await c.until('Z'))).toEqual(['C COPY 3', 'H', 'd', 'd', 'd', 'c', 'C COPY 3', 'Z I']);
    c.write(query(`${secret('SELECT 1')}; COPY t FROM STDIN; SELECT 1`, 'utf8'));
    await c.until('G');
    c.write(message(0x64, [Buffer.from('x\n')]), message(0x64, [Buffer.from('3\n')]), message(0x63, []), query('SELECT 5', 'utf8'));
    const after = shown(await c.until('Z', 2));
    expect(after[0]).toMatch(/^E ERROR 22P02/);
    expect(after.slice(1)).toEqual(['Z I', 'T ?column?', 'D 5', 'C SELECT 1', 'Z I']);
    expect(await count('t')).toBe(3);
    c.write(query(`${secret('SELECT 1')}; COPY t FROM STDIN`, 'utf8'));
    await c.until('G');
    c.write(message(0x66, [Buffer.from('no\0')]));
    expect((await c.until('Z')).map((one) => one.tag)).toEqual(['E', 'Z']);
  });
});

describe('tasks after the commit', () => {
  const later = (now: string, then: string): string => secret(`${now}||${then}`);

  it('run before ReadyForQuery, and their error is the statement’s', async () => {
    const c = await client();
    await direct.query('CREATE TABLE t (a int)');
    expect(await ask(c, later('INSERT INTO t VALUES (1)', 'INSERT INTO t SELECT count(*) + 10 FROM t'))).toEqual([
      noticeOutside,
      'C CREATE SECRET',
      'Z I',
    ]);
    expect((await direct.query('SELECT a FROM t ORDER BY 1')).rows).toEqual([{ a: 1 }, { a: 11 }]);
    expect(await ask(c, later('INSERT INTO t VALUES (2)', 'SELECT 1/0'))).toEqual([noticeOutside, 'E ERROR 22012 division by zero', 'Z I']);
    expect(await count('t')).toBe(3);
  });

  it('wait for COMMIT, and become warnings there', async () => {
    const c = await client();
    await direct.query('CREATE TABLE t (a int)');
    await ask(c, 'BEGIN');
    await ask(c, later('', 'INSERT INTO t VALUES (1)'));
    await ask(c, later('', 'SELECT 1/0'));
    expect(await ask(c, 'SELECT count(*) FROM t')).toEqual(['T count', 'D 0', 'C SELECT 1', 'Z T']);
    c.write(query('COMMIT', 'utf8'), query('SELECT count(*) FROM t', 'utf8'));
    expect(shown(await c.until('Z', 2))).toEqual([
      ...['C COMMIT', 'N WARNING 22012 division by zero', 'Z I', 'T count', 'D 1', 'C SELECT 1', 'Z I'],
    ]);
  });

  it('are dropped by ROLLBACK, and survive ROLLBACK TO', async () => {
    const c = await client();
    await direct.query('CREATE TABLE t (a int)');
    await ask(c, 'BEGIN');
    await ask(c, later('', 'INSERT INTO t VALUES (1)'));
    await ask(c, 'ROLLBACK');
    expect(await count('t')).toBe(0);
    await ask(c, 'BEGIN');
    await ask(c, later('', 'INSERT INTO t VALUES (1)'));
    await ask(c, 'SAVEPOINT x');
    await ask(c, 'SELECT 1/0');
    await ask(c, 'ROLLBACK TO x');
    await ask(c, 'COMMIT');
    expect(await count('t')).toBe(1);
    await ask(c, 'BEGIN');
    await ask(c, later('', 'INSERT INTO t VALUES (1)'));
    await ask(c, 'SELECT 1/0');
    expect(await ask(c, 'COMMIT')).toEqual(['C ROLLBACK', 'Z I']);
    expect(await count('t')).toBe(1);
  });

  it('run at a COMMIT inside a text, and let COPY go on while they wait', async () => {
    const c = await client();
    await direct.query('CREATE TABLE t (a int)');
    expect(await ask(c, `BEGIN; ${later('', 'INSERT INTO t VALUES (1)')}; COMMIT; SELECT count(*) FROM t`)).toContain('D 1');
    await ask(c, 'BEGIN');
    await ask(c, later('', 'INSERT INTO t VALUES (1)'));
    c.write(query('COPY t FROM STDIN', 'utf8'));
    await c.until('G');
    c.write(message(0x64, [Buffer.from('7\n')]), message(0x63, []));
    expect(shown(await c.until('Z'))).toEqual(['C COPY 1', 'Z T']);
    await ask(c, 'COMMIT');
    expect(await count('t')).toBe(3);
  });
});

describe('the extended protocol', () => {
  it('prepares, describes and executes', async () => {
    const c = await client();
    c.write(p('s', 'SHOW SOURCES'), d('S', 's'), b('', 's'), d('P', ''), e(''), sync);
    expect(shown(await c.until('Z'))).toEqual([
      ...['1', 't', 'T name|size', '2', 'T name|size', 'D ü1|1', 'D ü2|2', 'D ü3|3', 'C SHOW', 'Z I'],
    ]);
    c.write(
      b('q', 's'),
      message(0x45, [Buffer.from('q\0\0\0\0\x02', 'latin1')]),
      message(0x45, [Buffer.from('q\0\0\0\0\x02', 'latin1')]),
      sync,
    );
    expect(shown(await c.until('Z'))).toEqual(['2', 'D ü1|1', 'D ü2|2', 's', 'D ü3|3', 'C SHOW', 'Z I']);
    c.write(close('S', 's', 'utf8'), b('', 's'), sync);
    expect(shown(await c.until('Z'))).toEqual(['3', 'E ERROR 26000 prepared statement "s" does not exist', 'Z I']);
  });

  it('gives binary results where asked', async () => {
    const c = await client();
    const binary = message(0x42, [Buffer.from([0, 0, 0, 0, 0, 0, 0, 1, 0, 1])]);
    c.write(p('', 'SHOW SOURCES'), binary, d('P', ''), e(''), sync);
    const messages = await c.until('Z');
    expect(shown(messages)[2]).toBe('T name:binary|size:binary');
    expect(messages[3]?.body.subarray(-4)).toEqual(Buffer.from([0, 0, 0, 1]));
  });

  it('keeps order in pipelines, and one transaction up to Sync', async () => {
    const c = await client();
    await direct.query('CREATE TABLE t (a int)');
    c.write(p('', 'INSERT INTO t VALUES (1)'), b('', ''), e(''));
    c.write(p('x', secret('INSERT INTO t VALUES (2)')), b('', 'x'), e(''));
    c.write(p('', 'INSERT INTO t VALUES (3)'), b('', ''), e(''), sync);
    expect(shown(await c.until('Z'))).toEqual([
      ...['1', '2', 'C INSERT 0 1', '1', '2', noticeOutside, 'C CREATE SECRET', '1', '2', 'C INSERT 0 1', 'Z I'],
    ]);
    expect(await count('t')).toBe(3);
    c.write(b('', 'x'), e(''), p('', 'SELECT 1/0'), b('', ''), e(''), b('', 'x'), e(''), sync, b('', 'x'), e(''), sync);
    expect(shown(await c.until('Z', 2))).toEqual([
      ...['2', noticeOutside, 'C CREATE SECRET', '1', 'E ERROR 22012 division by zero', 'Z I'],
      ...['2', noticeOutside, 'C CREATE SECRET', 'Z I'],
    ]);
    expect(await count('t')).toBe(4);
  });

  it('skips to Sync after an error of ours, and undoes the batch', async () => {
    const c = await client();
    await direct.query('CREATE TABLE t (a int)');
    c.write(p('', 'INSERT INTO t VALUES (1)'), b('', ''), e(''), p('', 'CREATE SOURCE x FROM 1'), b('', ''), e(''), sync);
    const batch = shown(await c.until('Z'));
    expect(batch.slice(0, 3)).toEqual(['1', '2', 'C INSERT 0 1']);
    expect(batch[3]).toMatch(/^E ERROR 42601/);
    expect(batch.slice(4)).toEqual(['Z I']);
    c.write(p('', 'INSERT INTO t VALUES (1)'), b('', ''), e(''), p('', secret('SELECT 1/0')), b('', ''), e(''), e(''), sync);
    expect(shown(await c.until('Z')).slice(3)).toEqual(['1', '2', 'E ERROR 22012 division by zero', 'Z I']);
    expect(await count('t')).toBe(0);
    expect(await ask(c, 'SELECT 1')).toEqual(['T ?column?', 'D 1', 'C SELECT 1', 'Z I']);
    c.write(p('', 'BEGIN'), b('', ''), e(''), sync, p('', 'CREATE SOURCE x FROM 1'), sync, p('', 'SHOW SOURCES'), sync);
    expect(shown(await c.until('Z', 3)).filter((line) => /^[EZ]/.test(line))).toEqual([
      ...['Z T', expect.stringMatching(/42601/), 'Z E', expect.stringMatching(/25P02/), 'Z E'],
    ]);
  });

  it('lets names be replaced both ways', async () => {
    const c = await client();
    c.write(p('', 'SHOW SOURCES'), sync, p('', 'SELECT 7'), b('', ''), e(''), sync);
    expect(shown(await c.until('Z', 2))).toEqual(['1', 'Z I', '1', '2', 'D 7', 'C SELECT 1', 'Z I']);
    c.write(p('n', 'SELECT 1'), p('n', 'SHOW SOURCES'), sync);
    expect(shown(await c.until('Z'))).toEqual(['1', 'E ERROR 42P05 prepared statement "n" already exists', 'Z I']);
    c.write(p('m', 'SHOW SOURCES'), sync, query('DEALLOCATE ALL', 'utf8'), b('', 'm'), sync);
    expect(shown(await c.until('Z', 3)).at(-2)).toMatch(/26000/);
    c.write(p('', 'SHOW SOURCES'), sync, query('SELECT 1', 'utf8'), b('', ''), sync);
    expect(shown(await c.until('Z', 3)).at(-2)).toMatch(/26000/);
  });

  it('says so when EXECUTE in SQL names one of them', async () => {
    const c = await client();
    c.write(p('x', secret('SELECT 1')), sync);
    await c.until('Z');
    expect(await ask(c, 'EXECUTE x')).toEqual([
      ...['E ERROR 0A000 a prepared statement that Millrace carries out cannot be run by EXECUTE', 'Z I'],
    ]);
  });

  it('works up to Flush, without touching what the client has unnamed', async () => {
    const c = await client();
    c.write(p('', 'SELECT 8'), p('x', secret('SELECT 1')), b('y', 'x'), e('y'), flush);
    expect(shown(await c.until('C'))).toEqual(['1', '1', '2', noticeOutside, 'C CREATE SECRET']);
    c.write(b('', ''), e(''), sync);
    expect(shown(await c.until('Z'))).toEqual(['2', 'D 8', 'C SELECT 1', 'Z I']);
    expect(await ask(c, 'SELECT name FROM pg_prepared_statements')).toEqual(['T name', 'D x', 'C SELECT 1', 'Z I']);
  });

  it('runs tasks at Sync', async () => {
    const c = await client();
    await direct.query('CREATE TABLE t (a int)');
    c.write(p('', secret('INSERT INTO t VALUES (1)||SELECT 1/0')), b('', ''), e(''), sync, query('SELECT count(*) FROM t', 'utf8'));
    expect(shown(await c.until('Z', 2))).toEqual([
      ...['1', '2', noticeOutside, 'C CREATE SECRET', 'E ERROR 22012 division by zero', 'Z I', 'T count', 'D 1', 'C SELECT 1', 'Z I'],
    ]);
    expect(await ask(c, 'SELECT count(*) FROM pg_prepared_statements')).toContain('D 0');
  });

  it('drops tasks of a batch that fails, and keeps those of a COMMIT in a batch', async () => {
    const c = await client();
    await direct.query('CREATE TABLE t (a int)');
    const task = secret('||INSERT INTO t VALUES (1)');
    for (const failing of ['SELECT 1/0', 'CREATE SOURCE x FROM 1', secret('SELECT 1/0')]) {
      c.write(p('', task), b('', ''), e(''), p('', failing), b('', ''), e(''), sync);
      expect(shown(await c.until('Z')).at(-2)).toMatch(/^E/);
    }
    expect(await count('t')).toBe(0);
    c.write(p('', 'BEGIN'), b('', ''), e(''), sync, p('', task), b('', ''), e(''), sync);
    c.write(p('', 'COMMIT'), b('', ''), e(''), p('', 'SHOW SOURCES'), sync);
    expect(shown(await c.until('Z', 3)).at(-1)).toBe('Z I');
    expect(await count('t')).toBe(1);
  });

  it('leaves nothing unnamed behind a simple query', async () => {
    const c = await client();
    c.write(p('', 'SELECT 1'), sync, query('SHOW SOURCES', 'utf8'), b('', ''), sync);
    expect(shown(await c.until('Z', 3)).at(-2)).toBe('E ERROR 26000 unnamed prepared statement does not exist');
  });

  it('asks about candidates inside the pipeline', async () => {
    const c = await client();
    await direct.query('CREATE TABLE live_t (a int); CREATE TABLE plain_t (a int)');
    c.write(
      p('', 'SELECT 1'),
      b('', ''),
      e(''),
      p('', 'DROP TABLE plain_t'),
      b('', ''),
      e(''),
      p('', 'DROP TABLE live_t'),
      b('', ''),
      e(''),
      sync,
    );
    expect(shown(await c.until('Z'))).toEqual([
      ...['1', '2', 'D 1', 'C SELECT 1', '1', '2', 'C DROP TABLE', '1', '2', 'C DROP LIVE', 'Z I'],
    ]);
  });

  it('serves node-postgres', async () => {
    const one = new pg.Client({ host: '127.0.0.1', port: proxy.port, user: 'postgres', database: 'postgres' });
    await one.connect();
    for (let i = 0; i < 2; i++) {
      expect((await one.query({ name: 'list', text: 'SHOW SOURCES', values: [] })).rows[1]).toEqual({ name: 'ü2', size: 2 });
    }
    await expect(one.query({ text: 'SHOW SOURCES', values: [1] })).rejects.toMatchObject({ code: '08P01' });
    await one.end();
  });

  it('knows a COPY whose Sync the server has swallowed', async () => {
    const c = await client();
    await direct.query('CREATE TABLE t (a int)');
    c.write(p('', 'COPY t FROM STDIN'), b('', ''), e(''), sync);
    await c.until('G');
    c.write(message(0x64, [Buffer.from('1\n')]), message(0x63, []), sync, query('SHOW SOURCES', 'utf8'));
    expect(shown(await c.until('Z', 2))).toEqual(['C COPY 1', 'Z I', 'T name|size', 'D ü1|1', 'D ü2|2', 'D ü3|3', 'C SHOW', 'Z I']);
  });
});
