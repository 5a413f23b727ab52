import pg from 'pg';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import type { ServerAddress } from '../../../src/config.ts';
import { RowBuffer, unchangedMask } from '../../../src/replication/copy-rows.ts';
import { type ChangeHandler, PgoutputDecoder } from '../../../src/replication/pgoutput.ts';
import { connectRaw, type RawConnection } from '../../../src/replication/raw-connection.ts';
import { pinnedSettings } from '../../../src/replication/settings.ts';
import { createSlot, dropSlot } from '../../../src/replication/slots.ts';
import { type OriginReader, openReader, type TakenSnapshot } from '../../../src/replication/snapshot.ts';
import { isVisible } from '../../../src/replication/snapshot-visibility.ts';
import { startStream } from '../../../src/replication/stream.ts';
import { startPostgres, type TestPostgres } from '../../support/postgres.ts';

let origin: TestPostgres;
let target: TestPostgres;
let client: pg.Client;
let upstream: RawConnection;

beforeAll(async () => {
  origin = await startPostgres({ settings: { wal_level: 'logical' } });
  target = await startPostgres();
  client = new pg.Client(origin.url);
  await client.connect();
  await client.query('CREATE PUBLICATION p FOR ALL TABLES');
});
afterAll(async () => {
  await client?.end();
  await origin?.stop();
  await target?.stop();
});

const opened: OriginReader[] = [];
async function open(address: ServerAddress): Promise<OriginReader & TakenSnapshot> {
  const reader = await openReader(address);
  opened.push(reader);
  return { ...reader, ...(await reader.begin()) };
}

beforeEach(async () => {
  await client.query('DROP SCHEMA public CASCADE; CREATE SCHEMA public');
  upstream = await connectRaw(target.address, { settings: pinnedSettings });
  await upstream.query('DROP SCHEMA public CASCADE; CREATE SCHEMA public');
  return async () => {
    // A snapshot left open by a failed test would block the next one's DROP SCHEMA.
    for (const snapshot of opened.splice(0)) await snapshot.close();
    await upstream.close();
  };
});

const one = async (sql: string): Promise<(string | null)[]> => [...((await upstream.query(sql))[0]?.rows[0] ?? [])];

const nastyTable = `CREATE TABLE t (id int PRIMARY KEY, t text, b bytea, f float8, at timestamptz, n numeric);
  INSERT INTO t SELECT i, CASE i % 7 WHEN 0 THEN NULL WHEN 1 THEN '' WHEN 2 THEN E'a\\tb\\nc\\\\d\\r\\b\\f\\v' WHEN 3 THEN repeat('é', i % 300) WHEN 4 THEN '\\N'
    WHEN 5 THEN repeat(E'\\n', 70) ELSE i::text END, decode(md5(i::text), 'hex'), i / 3.0, timestamptz '2026-01-01' + i * interval '1 hour', i / 7.0
  FROM generate_series(1, 20000) i`;

describe('copy', () => {
  it('moves a table unchanged, and tells how far it is', async () => {
    await client.query(nastyTable);
    await upstream.query('CREATE TABLE t (id int, t text, b bytea, f float8, at timestamptz, n numeric)');
    const snapshot = await open(origin.address);
    const progress: number[] = [];
    const done = await snapshot.copy({
      upstream,
      sourceSql: 'COPY public.t TO STDOUT',
      targetSql: 'COPY public.t FROM STDIN',
      onProgress: (rows) => progress.push(rows),
    });
    await snapshot.close();
    expect(done.rows).toBe(20_000);
    expect(progress.length).toBeGreaterThan(1);
    expect(progress.at(-1)).toBe(20_000);
    const sum = 'SELECT count(*), md5(string_agg(t::text, chr(10) ORDER BY id)) FROM public.t t';
    const expected = await connectRaw(origin.address, { settings: pinnedSettings });
    expect(await one(sum)).toEqual((await expected.query(sum))[0]?.rows[0]);
    await expected.close();
  });

  it('prefixes the hash that the stream gives the same row', async () => {
    await client.query('CREATE TABLE t (a text, b int, c bytea); ALTER TABLE t REPLICA IDENTITY FULL');
    await dropSlot(client, 'hashes', { terminate: true });
    await createSlot(origin.address, 'hashes');
    await client.query(
      "INSERT INTO t SELECT CASE i % 3 WHEN 0 THEN NULL WHEN 1 THEN E'x\\t\\\\' || i ELSE repeat('y', i) END, i, decode(md5(i::text), 'hex') FROM generate_series(1, 1000) i",
    );
    await upstream.query('CREATE TABLE copied (h int, a text, b int, c bytea); CREATE TABLE streamed (LIKE copied)');
    const snapshot = await open(origin.address);
    await snapshot.copy({ upstream, sourceSql: 'COPY public.t TO STDOUT', targetSql: 'COPY public.copied FROM STDIN', withRowHash: true });
    await snapshot.close();

    const rows = new RowBuffer();
    let done = (): void => {};
    const committed = new Promise<void>((resolve) => {
      done = resolve;
    });
    const decoder = new PgoutputDecoder({
      begin: () => {},
      commit: () => done(),
      relation: () => {},
      insert: (_oid, row) => {
        expect(unchangedMask(row, [0, 1, 2])).toBe('');
        rows.appendHashedLine('', row, [0, 1, 2]);
      },
    } as Partial<ChangeHandler> as ChangeHandler);
    const stream = await startStream({
      address: origin.address,
      slot: 'hashes',
      publication: 'p',
      startLsn: 0n,
      onMessage: (lsn, buffer, start, end) => decoder.decode(lsn, buffer, start, end),
    });
    await committed;
    await stream.close();
    await dropSlot(client, 'hashes', { terminate: true });
    const copy = upstream.copyIn('COPY public.streamed FROM STDIN');
    for (const frames of rows.take()) copy.writeFrames(frames);
    expect(await copy.finish()).toBe('COPY 1000');
    expect(await one('SELECT count(*), count(DISTINCT h) FROM (TABLE copied INTERSECT ALL TABLE streamed) x')).toEqual(['1000', '1000']);
  });

  it('copies several tables as of one moment, and knows which transactions they have', async () => {
    await client.query('CREATE TABLE a (i int); CREATE TABLE b (i int); INSERT INTO a VALUES (1)');
    const running = new pg.Client(origin.url);
    await running.connect();
    const xid = async (one: pg.Client): Promise<number> =>
      Number(BigInt((await one.query('SELECT pg_current_xact_id()::text AS x')).rows[0].x) & 0xffffffffn);
    await client.query('BEGIN; INSERT INTO a VALUES (2)');
    const before = await xid(client);
    await client.query('COMMIT');
    await running.query('BEGIN; INSERT INTO a VALUES (3)');
    const during = await xid(running);
    const snapshot = await open(origin.address);
    await running.query('COMMIT');
    await running.query('BEGIN; INSERT INTO b VALUES (1)');
    const after = await xid(running);
    await running.query('COMMIT');
    await running.end();
    await upstream.query('CREATE TABLE a (i int); CREATE TABLE b (i int)');
    for (const table of ['a', 'b']) {
      await snapshot.copy({ upstream, sourceSql: `COPY public.${table} TO STDOUT`, targetSql: `COPY public.${table} FROM STDIN` });
    }
    await snapshot.close();
    expect(await one('SELECT (SELECT count(*) FROM a), (SELECT count(*) FROM b)')).toEqual(['2', '0']);
    expect([before, during, after].map((id) => isVisible(snapshot.snapshot, id))).toEqual([true, false, false]);
    const { rows } = await client.query("SELECT (pg_current_wal_insert_lsn() - '0/0')::text AS now");
    expect(snapshot.lsn).toBeLessThan(BigInt(rows[0].now));
    expect(snapshot.lsn).toBeGreaterThan(0n);
  });

  it('keeps memory bounded when the target is slow', async () => {
    await client.query("CREATE TABLE t (i int, filler text); INSERT INTO t SELECT i, repeat('x', 2000) FROM generate_series(1, 100000) i");
    // A trigger makes each row cost what ten would.
    await upstream.query(`CREATE TABLE t (i int, filler text);
      CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM md5(repeat(NEW.filler, 5)); RETURN NEW; END $$;
      CREATE TRIGGER slow BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION slow()`);
    const before = process.memoryUsage().rss;
    let peak = 0;
    const snapshot = await open(origin.address);
    const { rows, bytes } = await snapshot.copy({
      upstream,
      sourceSql: 'COPY public.t TO STDOUT',
      targetSql: 'COPY public.t FROM STDIN',
      onProgress: () => {
        peak = Math.max(peak, process.memoryUsage().rss - before);
      },
    });
    await snapshot.close();
    expect(rows).toBe(100_000);
    expect(bytes).toBeGreaterThan(200_000_000);
    expect(peak / 1024 / 1024).toBeLessThan(100);
  });

  it('gives up when told to, and both sessions end clean', async () => {
    await client.query("CREATE TABLE t (i int, filler text); INSERT INTO t SELECT i, repeat('x', 1000) FROM generate_series(1, 50000) i");
    await upstream.query('CREATE TABLE t (i int, filler text)');
    const snapshot = await open(origin.address);
    const abort = new AbortController();
    const reason = new Error('no longer wanted');
    const copy = snapshot.copy({
      upstream,
      sourceSql: 'COPY public.t TO STDOUT',
      targetSql: 'COPY public.t FROM STDIN',
      onProgress: () => abort.abort(reason),
      signal: abort.signal,
    });
    await expect(copy).rejects.toBe(reason);
    expect(await one('SELECT count(*) FROM t')).toEqual(['0']);
  });

  it('reports the side that failed', async () => {
    await client.query(
      "CREATE TABLE t (a text); INSERT INTO t SELECT repeat('x', 500) FROM generate_series(1, 20000); CREATE VIEW broken AS SELECT a, 1 / (i - 15000) AS q FROM t, generate_series(1, 1) i",
    );
    await upstream.query('CREATE TABLE t (a int)');
    const first = await open(origin.address);
    await expect(
      first.copy({ upstream, sourceSql: 'COPY public.t TO STDOUT', targetSql: 'COPY public.t FROM STDIN' }),
    ).rejects.toMatchObject({ name: 'PostgresError', code: '22P02' });
    const second = await open(origin.address);
    await expect(
      second.copy({
        upstream,
        sourceSql: 'COPY (SELECT 1 / (15000 - i) FROM generate_series(1, 20000) i) TO STDOUT',
        targetSql: 'COPY public.t FROM STDIN',
      }),
    ).rejects.toMatchObject({ name: 'PostgresError', code: '22012' });
    await second.close();
    const third = await open(origin.address);
    await expect(
      third.copy({ upstream, sourceSql: 'COPY public.missing TO STDOUT', targetSql: 'COPY public.t FROM STDIN' }),
    ).rejects.toMatchObject({ code: '42P01' });
    await third.close();
    expect(await one('SELECT count(*) FROM t')).toEqual(['0']);
  });

  it('refuses to copy what row security hides, rather than a part', async () => {
    await client.query(`CREATE ROLE reader LOGIN; CREATE TABLE t (i int); INSERT INTO t VALUES (1), (2); ALTER TABLE t ENABLE ROW LEVEL SECURITY;
      CREATE POLICY odd ON t USING (i % 2 = 1); GRANT USAGE ON SCHEMA public TO reader; GRANT SELECT ON t TO reader`);
    await upstream.query('CREATE TABLE t (i int)');
    const snapshot = await open({ ...origin.address, user: 'reader' });
    await expect(
      snapshot.copy({ upstream, sourceSql: 'COPY public.t TO STDOUT', targetSql: 'COPY public.t FROM STDIN' }),
    ).rejects.toMatchObject({ code: '42501', message: expect.stringContaining('row-level security') });
    await snapshot.close();
  });

  it('moves rows larger than a read', async () => {
    await client.query(
      "CREATE TABLE t (i int, filler text); INSERT INTO t SELECT i, repeat('é', i * 1000000) FROM generate_series(1, 5) i",
    );
    await upstream.query('CREATE TABLE t (h int, i int, filler text)');
    const snapshot = await open(origin.address);
    await snapshot.copy({ upstream, sourceSql: 'COPY public.t TO STDOUT', targetSql: 'COPY public.t FROM STDIN', withRowHash: true });
    await snapshot.close();
    expect(await one("SELECT count(*) FROM t WHERE filler = repeat('é', i * 1000000)")).toEqual(['5']);
  });
});
