/**
 * What a client has prepared and set follows it from one server connection to the next, and nothing it leaves reaches another client.
 * `scatter` makes every transaction of a client meet another server connection than the one before.
 */
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { bind, describe as describeMessage, execute, message, parse, query, sync } from '../../../src/wire/encode.ts';
import type { TestProxy } from '../wire/proxy.ts';
import { eventually, lines, type PoolClient, type PoolStage, startPoolStage } from './stage.ts';

const charset = 'utf8';

for (const version of [18, 15] as const) {
  describe(`with PostgreSQL ${version}`, () => {
    let stage: PoolStage;
    beforeAll(async () => {
      stage = await startPoolStage({ version });
      await stage.direct.query(
        'CREATE TABLE t (a int); CREATE SCHEMA other; CREATE TABLE other.place (name text); CREATE TABLE place (name text)',
      );
      await stage.direct.query("INSERT INTO place VALUES ('public'); INSERT INTO other.place VALUES ('other')");
    });
    afterEach(() => stage.clear());
    afterAll(() => stage?.stop());

    /**
     * Runs `work` so often that it has been on every one of `size` server connections: the others are held by transactions meanwhile.
     * Returns the results, and checks that they came from different backends.
     */
    async function onEach<T>(proxy: TestProxy, client: PoolClient, size: number, work: () => Promise<T>): Promise<T[]> {
      const results: T[] = [];
      const pids = new Set<unknown>();
      const holders: PoolClient[] = [];
      for (let n = 0; n < size; n++) {
        pids.add(await client.value('SELECT pg_backend_pid()'));
        results.push(await work());
        const holder = await stage.connect(proxy);
        await holder.query('BEGIN');
        holders.push(holder);
      }
      for (const holder of holders) await holder.query('COMMIT');
      expect(pids.size).toBe(size);
      return results;
    }

    it('a statement prepared by name is there on every server', async () => {
      const proxy = await stage.proxy({ defaultPoolSize: 3 });
      const client = await stage.connect(proxy);
      const run = async (): Promise<unknown> =>
        (await client.query({ name: 'double', text: 'SELECT $1::int * 2 AS n', values: [21] })).rows[0]?.n;
      expect(await onEach(proxy, client, 3, run)).toEqual([42, 42, 42]);
    });

    it('two clients use one name for different statements', async () => {
      const proxy = await stage.proxy({ defaultPoolSize: 1 });
      const [one, two] = [await stage.connect(proxy), await stage.connect(proxy)];
      const ask = async (client: PoolClient, text: string): Promise<unknown> =>
        (await client.query({ name: 'same', text, values: ['x'] })).rows[0];
      for (let n = 0; n < 3; n++) {
        expect(await ask(one, 'SELECT $1::text AS a')).toEqual({ a: 'x' });
        expect(await ask(two, 'SELECT $1::text || $1 AS b')).toEqual({ b: 'xx' });
      }
    });

    it('a server keeps max_prepared_statements, and what was dropped for that is prepared again', async () => {
      const proxy = await stage.proxy({ defaultPoolSize: 1, maxPreparedStatements: 3 });
      const client = await stage.connect(proxy);
      for (let round = 0; round < 2; round++) {
        for (let n = 0; n < 8; n++) {
          const { rows } = await client.query({ name: `s${n}`, text: `SELECT ${n} + $1::int AS n`, values: [100] });
          expect(rows).toEqual([{ n: 100 + n }]);
        }
      }
      expect(await client.value('SELECT count(*)::int FROM pg_prepared_statements')).toBe(3);
    });

    it('the unnamed statement is still there behind a Sync, on another server too', async () => {
      const proxy = await stage.proxy({ defaultPoolSize: 2 });
      const client = await stage.raw(proxy);
      client.write(parse('', 'SELECT $1::int + 1', charset), sync);
      await client.until('Z');
      const holder = await stage.connect(proxy);
      await holder.query('BEGIN');
      client.write(describeMessage('S', '', charset), bind('', '', ['41'], charset), execute('', charset), sync);
      expect(lines(await client.until('Z'))).toEqual(['t', 'T ?column?', '2', 'D 42', 'C SELECT 1', 'Z I']);
    });

    it('DEALLOCATE, DEALLOCATE ALL and DISCARD ALL forget statements wherever they were prepared', async () => {
      const proxy = await stage.proxy({ defaultPoolSize: 2 });
      const client = await stage.raw(proxy);
      const holder = await stage.connect(proxy);
      for (const forget of ['DEALLOCATE one', 'DEALLOCATE ALL', 'DISCARD ALL']) {
        client.write(parse('one', 'SELECT 1', charset), sync);
        expect(lines(await client.until('Z'))).toEqual(['1', 'Z I']);
        await holder.query('BEGIN');
        client.write(query(forget, charset));
        expect(lines(await client.until('Z'))).toEqual([
          `C ${forget.startsWith('DEALLOCATE ALL') ? 'DEALLOCATE ALL' : forget.split(' one')[0]}`,
          'Z I',
        ]);
        await holder.query('COMMIT');
        client.write(bind('', 'one', [], charset), execute('', charset), sync);
        expect(lines(await client.until('Z'))).toEqual(['E ERROR 26000 prepared statement "one" does not exist', 'Z I']);
      }
    });

    it.each(['DEALLOCATE ALL', 'DISCARD ALL'])('what is prepared right behind %s, before that is answered, stays', async (forget) => {
      const proxy = await stage.proxy({ defaultPoolSize: 1 });
      const client = await stage.raw(proxy);
      client.write(parse('old', 'SELECT 1', charset), sync);
      client.write(query(forget, charset), parse('new', 'SELECT 2', charset), sync);
      await client.until('Z', 3);
      client.write(bind('', 'new', [], charset), execute('', charset), sync, bind('', 'old', [], charset), sync);
      expect(lines(await client.until('Z', 2))).toEqual([
        '2',
        'D 2',
        'C SELECT 1',
        'Z I',
        'E ERROR 26000 prepared statement "old" does not exist',
        'Z I',
      ]);
      const other = await stage.raw(proxy);
      other.write(parse('new', 'SELECT 3', charset), bind('', 'new', [], charset), execute('', charset), sync);
      expect(lines(await other.until('Z'))).toContain('D 3');
    });

    it('an error leaves a statement that was being prepared unknown, as Postgres does', async () => {
      const proxy = await stage.proxy({ defaultPoolSize: 1 });
      const client = await stage.raw(proxy);
      client.write(parse('bad', 'SELECT nothing_there', charset), sync);
      expect(lines(await client.until('Z'))[0]).toMatch(/^E ERROR 42703/);
      client.write(parse('bad', 'SELECT 1', charset), bind('', 'bad', [], charset), execute('', charset), sync);
      expect(lines(await client.until('Z'))).toEqual(['1', '2', 'D 1', 'C SELECT 1', 'Z I']);
    });

    it('a statement whose tables have changed is planned again', async () => {
      const proxy = await stage.proxy({ defaultPoolSize: 1 });
      const client = await stage.connect(proxy);
      await stage.direct.query('DROP TABLE IF EXISTS changing; CREATE TABLE changing (a int); INSERT INTO changing VALUES (1)');
      const ask = { name: 'all', text: 'SELECT * FROM changing' };
      expect((await client.query(ask)).rows).toEqual([{ a: 1 }]);
      await stage.direct.query('ALTER TABLE changing ADD b int DEFAULT 2');
      // Postgres says so once to a client with a connection of its own, each time; here the next server connection knows better.
      expect(await client.failure(ask)).toMatch(/cached plan must not change result type/);
      expect((await client.query(ask)).rows).toEqual([{ a: 1, b: 2 }]);
    });

    it('parameters that the server reports follow the client', async () => {
      const proxy = await stage.proxy({ defaultPoolSize: 2 });
      const client = await stage.connect(proxy, { application_name: 'from the start' });
      const other = await stage.connect(proxy);
      await client.query("SET DateStyle = 'SQL, DMY'; SET TimeZone = 'Asia/Tokyo'; SET IntervalStyle = 'iso_8601'");
      await client.query("SET standard_conforming_strings = off; SET client_encoding = 'LATIN1'");
      const now = `SELECT array[current_setting('application_name'), current_setting('DateStyle'), current_setting('TimeZone'),
        current_setting('IntervalStyle'), current_setting('standard_conforming_strings'), current_setting('client_encoding')]::text`;
      const mine = await onEach(proxy, client, 2, () => client.value(now));
      expect(new Set(mine)).toEqual(new Set(['{"from the start","SQL, DMY",Asia/Tokyo,iso_8601,off,LATIN1}']));
      const theirs = await onEach(proxy, other, 2, () => other.value(now));
      expect(new Set(theirs)).toEqual(
        new Set(['{"","ISO, MDY",UTC,postgres,on,UTF8}'.replace('UTC', String(await stage.direct.value('SHOW TimeZone')))]),
      );
      await client.query("SET application_name = 'later'; RESET TimeZone");
      await onEach(proxy, client, 2, async () => expect(await client.value("SELECT current_setting('application_name')")).toBe('later'));
    });

    it('text in the encoding of each client arrives in it', async () => {
      const proxy = await stage.proxy({ defaultPoolSize: 1 });
      const latin = await stage.raw(proxy, { client_encoding: 'LATIN1' });
      const utf = await stage.raw(proxy, { client_encoding: 'UTF8' });
      for (let n = 0; n < 2; n++) {
        latin.write(query("SELECT 'ü' = U&'\\00fc'", 'latin1'));
        expect(lines(await latin.until('Z'))).toContain('D t');
        utf.write(query("SELECT 'ü' = U&'\\00fc'", 'utf8'));
        expect(lines(await utf.until('Z'))).toContain('D t');
      }
    });

    it('SET that is rolled back, or LOCAL, does not stay', async () => {
      const proxy = await stage.proxy({ defaultPoolSize: 2 });
      const client = await stage.connect(proxy, { application_name: 'mine' });
      await client.query('BEGIN');
      await client.query("SET application_name = 'not for long'");
      await client.query('ROLLBACK');
      await client.query("BEGIN; SET LOCAL application_name = 'local'; SET LOCAL statement_timeout = 12345; COMMIT");
      const both = "SELECT current_setting('application_name') || current_setting('statement_timeout')";
      expect(await onEach(proxy, client, 2, () => client.value(both))).toEqual(['mine0', 'mine0']);
    });

    it('search_path follows the client, or the client keeps its server where that is not reported', async () => {
      const proxy = await stage.proxy({ defaultPoolSize: 2 });
      const client = await stage.connect(proxy);
      const other = await stage.connect(proxy);
      await client.query('SET search_path = other, public');
      for (let n = 0; n < 3; n++) {
        expect(await client.value('SELECT name FROM place')).toBe('other');
        expect(await other.value('SELECT name FROM place')).toBe('public');
      }
      const row = proxy.report().clients.find((one) => one.pinned !== '');
      expect(row?.pinned).toBe(version === 18 ? undefined : 'SET search_path');
      await client.end();
      for (let n = 0; n < 3; n++) expect(await other.value('SELECT name FROM place')).toBe('public');
    });

    const pins: readonly { readonly reason: string; readonly sql: string; readonly left: string; readonly clean: unknown }[] = [
      { reason: 'LISTEN', sql: 'LISTEN channel', left: 'SELECT count(*)::int FROM pg_listening_channels()', clean: 0 },
      {
        reason: 'temporary object',
        sql: 'CREATE TEMP TABLE mine (a int)',
        left: "SELECT count(*)::int FROM pg_class WHERE relname = 'mine' AND pg_table_is_visible(oid)",
        clean: 0,
      },
      {
        reason: 'advisory lock',
        sql: 'SELECT pg_advisory_lock(42)',
        left: "SELECT count(*)::int FROM pg_locks WHERE locktype = 'advisory'",
        clean: 0,
      },
      {
        reason: 'cursor with hold',
        sql: 'DECLARE c CURSOR WITH HOLD FOR SELECT 1',
        left: "SELECT count(*)::int FROM pg_cursors WHERE name = 'c'",
        clean: 0,
      },
      {
        reason: 'PREPARE',
        sql: 'PREPARE by_sql AS SELECT 1',
        left: "SELECT count(*)::int FROM pg_prepared_statements WHERE name = 'by_sql'",
        clean: 0,
      },
      { reason: 'SET work_mem', sql: "SET work_mem = '9MB'", left: "SELECT current_setting('work_mem')", clean: '4MB' },
      { reason: 'SET role', sql: 'SET ROLE pg_read_all_data', left: 'SELECT current_user::text', clean: 'postgres' },
      {
        reason: 'set_config',
        sql: "SELECT set_config('my.setting', 'x', false)",
        left: "SELECT coalesce(current_setting('my.setting', true), '')",
        clean: '',
      },
    ];

    it.each(pins)('$reason keeps the server for its client, and nothing of it reaches the next', async ({ reason, sql, left, clean }) => {
      const proxy = await stage.proxy({ defaultPoolSize: 1 });
      const client = await stage.connect(proxy);
      const pid = await client.value('SELECT pg_backend_pid()');
      await client.query(sql);
      expect(proxy.report().clients.map((one) => one.pinned)).toEqual([reason]);
      expect(await client.value(left)).not.toBe(clean);
      // The pool's only connection is taken: another client has to wait until this one leaves.
      const next = await stage.connect(proxy);
      const waiting = next.value(left);
      await eventually(() => proxy.report().clients.some((one) => one.state === 'waiting'), 'the other one waits');
      await client.end();
      expect(await waiting).toBe(clean);
      expect(await next.value('SELECT pg_backend_pid()')).toBe(pid);
      expect(proxy.report().clients.map((one) => one.pinned)).toEqual(['']);
    });

    it('DISCARD ALL ends a pin', async () => {
      const proxy = await stage.proxy({ defaultPoolSize: 1 });
      const client = await stage.connect(proxy);
      await client.query("CREATE TEMP TABLE mine (a int); LISTEN channel; SET work_mem = '9MB'");
      await client.query('DISCARD ALL');
      expect(proxy.report().clients.map((one) => one.pinned)).toEqual(['']);
      const next = await stage.connect(proxy);
      expect(await next.value("SELECT current_setting('work_mem')")).toBe('4MB');
      expect(await next.value('SELECT count(*)::int FROM pg_listening_channels()')).toBe(0);
    });

    it('what is sent right behind DISCARD ALL, before that is answered, pins again', async () => {
      const proxy = await stage.proxy({ defaultPoolSize: 1 });
      const client = await stage.raw(proxy);
      client.write(query('LISTEN one', charset), query('DISCARD ALL', charset), query('LISTEN two', charset));
      await client.until('Z', 3);
      expect(proxy.report().clients.map((one) => one.pinned)).toEqual(['LISTEN']);
      const next = await stage.connect(proxy);
      const waiting = next.value('SELECT count(*)::int FROM pg_listening_channels()');
      client.destroy();
      expect(await waiting).toBe(0);
    });

    it('a transaction-level advisory lock, DECLARE without HOLD and NOTIFY pin nobody', async () => {
      const proxy = await stage.proxy({ defaultPoolSize: 1 });
      const client = await stage.connect(proxy);
      await client.query('BEGIN; SELECT pg_advisory_xact_lock(1); DECLARE c CURSOR FOR SELECT 1; FETCH c; COMMIT; NOTIFY channel');
      expect(proxy.report().clients.map((one) => one.pinned)).toEqual(['']);
    });

    it('LISTEN through the pool is told at once', async () => {
      const proxy = await stage.proxy({ defaultPoolSize: 2 });
      const client = await stage.connect(proxy);
      const heard: unknown[] = [];
      client.on('notification', (one) => heard.push(one.payload));
      await client.query('LISTEN news');
      await stage.direct.query("NOTIFY news, 'first'");
      await eventually(() => heard.length === 1, 'the notification is there');
      const other = await stage.connect(proxy);
      await other.query("NOTIFY news, 'second'");
      await eventually(() => heard.length === 2, 'the notification is there');
    });

    it('a batch without a Sync keeps its server until the Sync', async () => {
      const proxy = await stage.proxy({ defaultPoolSize: 1 });
      const client = await stage.raw(proxy);
      const other = await stage.raw(proxy);
      client.write(parse('', 'SELECT 1', charset), bind('', '', [], charset), execute('', charset), message(0x48, []));
      expect(lines(await client.until('C'))).toEqual(['1', '2', 'D 1', 'C SELECT 1']);
      other.write(query('SELECT 2', charset));
      await eventually(() => proxy.report().clients.some((one) => one.state === 'waiting'), 'the other one waits');
      client.write(sync);
      expect(lines(await client.until('Z'))).toEqual(['Z I']);
      expect(lines(await other.until('Z'))).toContain('D 2');
    });
  });
}
