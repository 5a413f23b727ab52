/**
 * First copies in many small pieces, while rows change their values and keys, come and go, and the engine is killed: what comes out equals the origin,
 * and pieces that were in are not copied again, unless the table has changed so that they are of no use.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type pg from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type ExtendedClient, extendedClient, startEngine, type TestEngine, texts } from '../support/engine.ts';
import { patientClient, startHardWrites } from '../support/hard-writes.ts';
import { startPostgres, type TestPostgres } from '../support/postgres.ts';

const rounds = Number(process.env['MILLRACE_COPY_ROUNDS'] ?? 2);
const rows = Number(process.env['MILLRACE_COPY_ROWS'] ?? 16_000);

let origin: TestPostgres;
let upstream: TestPostgres;
let admin: pg.Client;
let extended: ExtendedClient;
let engine: TestEngine;

beforeAll(async () => {
  origin = await startPostgres({ settings: { wal_level: 'logical' } });
  upstream = await startPostgres({});
  admin = await patientClient(origin.url);
  await admin.query("CREATE COLLATION backwards (provider = icu, locale = 'en-u-kf-upper'); CREATE PUBLICATION p FOR ALL TABLES");
  extended = await extendedClient(upstream.address);
  await extended.run(`CREATE CONNECTION c TO POSTGRES (HOST '${origin.host}', PORT ${origin.port}, USER postgres, DATABASE postgres)`);
  engine = startEngine(upstream.address, { sessions: 3, chunkBytes: 8192 });
  await extended.run("CREATE SOURCE s FROM POSTGRES CONNECTION c (PUBLICATION 'p')");
  await extended.run('SET millrace.wait = off');
}, 120_000);

afterAll(async () => {
  await engine?.stop();
  await extended?.end();
  await admin?.end();
  await Promise.all([origin?.stop(), upstream?.stop()]);
});

const startWriters = (table: string, count: number): ReturnType<typeof startHardWrites> =>
  startHardWrites({ url: origin.url, table, rows }, count);

/** A key of text, in an order that the upstream does not know, and of a number; now and then a value that is stored apart and left out of updates. */
async function makeTable(name: string): Promise<void> {
  await admin.query(`
    CREATE TABLE ${name} (k text COLLATE backwards, i integer, n integer NOT NULL, big text, tags text[], PRIMARY KEY (k, i));
    ALTER TABLE ${name} ALTER big SET STORAGE EXTERNAL;
    INSERT INTO ${name} SELECT (ARRAY['a', 'B', 'b', 'Ä', 'é', 'Z', '~', ''])[1 + g % 8] || g / 8 % 300, g, 0,
           CASE WHEN g % 10 = 0 THEN repeat(md5(g::text), 70) END, ARRAY[g::text] FROM generate_series(1, ${rows}) g;
    ANALYZE ${name}`);
}

const digest = (table: string): string =>
  `SELECT count(*), sum(hashtextextended(ROW(k COLLATE "C", i, n, big, tags)::text, 0)) FROM ${table}`;

const chunks = (): Promise<(string | null)[][]> =>
  texts(
    extended.client,
    'SELECT storage_id, chunk, after_key, up_to_key, snapshot, rows, copied_at FROM millrace.copy_chunk WHERE copied_at IS NOT NULL ORDER BY storage_id, chunk',
  );
const stateOf = async (table: string): Promise<string | null | undefined> =>
  (await texts(extended.client, `SELECT state FROM millrace.relations WHERE name = '${table}'`))[0]?.[0];

test('pieces that were in when the engine died stay, and all of it equals the origin', async () => {
  for (let round = 0; round < rounds; round++) {
    const table = `t${round}`;
    await makeTable(table);
    const writers = startWriters(table, 3);
    await extended.run(`CREATE TABLE ${table} FROM SOURCE s (REFERENCE public.${table})`);
    let kept = 0;
    for (let kill = 0; kill < 5; kill++) {
      const more = 1 + Math.floor(Math.random() * 50);
      // Some pieces later; the last time perhaps amid what comes after them.
      const begin = (await chunks()).length;
      await expect
        .poll(async () => (await stateOf(table)) === 'ready' || (await chunks()).length >= begin + more, { timeout: 60_000, interval: 10 })
        .toBe(true);
      await sleep(Math.random() * 50);
      const before = await chunks();
      await engine.restart();
      kept = Math.max(kept, before.length);
      const after = new Set((await chunks()).map((chunk) => chunk.join('|')));
      expect(before.filter((chunk) => !after.has(chunk.join('|')))).toEqual([]);
    }
    await expect.poll(() => stateOf(table), { timeout: 60_000, interval: 100 }).toBe('ready');
    await sleep(500);
    expect(await writers.stop()).toBeGreaterThan(100);
    expect(kept).toBeGreaterThan(0);
    const wanted = await texts(admin, digest(table));
    await expect.poll(() => texts(extended.client, digest(table)), { timeout: 30_000, interval: 200 }).toEqual(wanted);
    await extended.run(`DROP TABLE ${table}`);
    await admin.query(`DROP TABLE ${table}`);
  }
}, 300_000);

test('what becomes of the table amid its pieces: wider types, rows written anew, more rows of a child', async () => {
  await makeTable('changing');
  await admin.query("CREATE TABLE child () INHERITS (changing); INSERT INTO child VALUES ('child', 1, 0, '', '{}')");
  const writers = startWriters('ONLY changing', 2);
  await extended.run('CREATE TABLE changing FROM SOURCE s (REFERENCE public.changing)');
  const begun = async (seen: ReadonlySet<string>): Promise<string[]> => {
    const fresh = async (): Promise<string[]> => (await chunks()).map((chunk) => chunk.join('|')).filter((chunk) => !seen.has(chunk));
    await expect.poll(async () => (await fresh()).length, { timeout: 60_000, interval: 10 }).toBeGreaterThan(5);
    return await fresh();
  };
  const seen = new Set((await chunks()).map((chunk) => chunk.join('|')));
  const outdated: string[] = [];
  for (const change of ['n TYPE bigint', 'n TYPE bigint USING n + 5000000000', 'big TYPE text USING upper(big)']) {
    for (const chunk of await begun(seen)) {
      seen.add(chunk);
      outdated.push(chunk);
    }
    await admin.query(`ALTER TABLE changing ALTER ${change}`);
  }
  await expect.poll(() => stateOf('changing'), { timeout: 60_000, interval: 100 }).toBe('ready');
  await writers.stop();
  const left = new Set((await chunks()).map((chunk) => chunk.join('|')));
  expect(outdated.filter((chunk) => left.has(chunk))).toEqual([]);
  const wanted = await texts(admin, digest('ONLY changing'));
  await expect.poll(() => texts(extended.client, digest('changing')), { timeout: 30_000, interval: 200 }).toEqual(wanted);
  expect(await texts(extended.client, 'SELECT DISTINCT pg_typeof(n) FROM changing')).toEqual([['bigint']]);
  await extended.run('DROP TABLE changing');
  await admin.query('DROP TABLE changing CASCADE');
}, 180_000);

test('of a publication with a row filter the pieces have what it publishes', async () => {
  await makeTable('part');
  // An update by which a row comes into the filter is sent as an insert, without the values stored apart that it has not changed.
  // Where a row is long, even a short value may be, unless its column keeps it in the row.
  await admin.query('ALTER TABLE part ALTER big SET STORAGE MAIN, ALTER tags SET STORAGE MAIN; UPDATE part SET big = NULL; ANALYZE part');
  await admin.query('CREATE PUBLICATION filtered FOR TABLE part WHERE (i % 3 <> 0)');
  await extended.run("CREATE SOURCE f FROM POSTGRES CONNECTION c (PUBLICATION 'filtered')");
  const writers = startWriters('part', 2);
  await extended.run('CREATE TABLE part FROM SOURCE f (REFERENCE public.part)');
  await expect.poll(() => stateOf('part'), { timeout: 60_000, interval: 100 }).toBe('ready');
  await writers.stop();
  const wanted = await texts(admin, digest('(SELECT * FROM part WHERE i % 3 <> 0) x'));
  await expect.poll(() => texts(extended.client, digest('part')), { timeout: 30_000, interval: 200 }).toEqual(wanted);
  await extended.run('DROP TABLE part');
}, 180_000);

/** Has a table copied; resolves when it is amid the pieces. */
async function beginCopy(table: string, source: string): Promise<void> {
  const begun = (await chunks()).length;
  await extended.run(`CREATE TABLE ${table} FROM SOURCE ${source} (REFERENCE public.${table})`);
  await expect.poll(async () => (await chunks()).length, { timeout: 60_000, interval: 5 }).toBeGreaterThan(begun + 3);
}

/** The copy is done, and the query has the origin's answer. */
async function endsEqual(table: string, query: string): Promise<void> {
  await expect.poll(() => stateOf(table), { timeout: 60_000, interval: 100 }).toBe('ready');
  const wanted = await texts(admin, query);
  await expect.poll(() => texts(extended.client, query), { timeout: 30_000, interval: 200 }).toEqual(wanted);
}

test('a row that comes into the row filter amid the pieces, without its large value, is copied with it', async () => {
  await admin.query(`CREATE TABLE brought (i integer PRIMARY KEY, big text); ALTER TABLE brought ALTER big SET STORAGE EXTERNAL;
    INSERT INTO brought SELECT g, 'short' FROM generate_series(1, 60000) g WHERE g <> 5; INSERT INTO brought VALUES (-5, repeat('long', 1000)); ANALYZE brought;
    CREATE PUBLICATION bringing FOR TABLE brought WHERE (i > 0)`);
  await extended.run("CREATE SOURCE b FROM POSTGRES CONNECTION c (PUBLICATION 'bringing')");
  await beginCopy('brought', 'b');
  await admin.query('UPDATE brought SET i = 5 WHERE i = -5');
  await endsEqual('brought', 'SELECT count(*), sum(i), sum(length(big)) FROM brought WHERE i > 0');
  await extended.run('DROP TABLE brought');
}, 120_000);

test('the type of a column gets another name amid the pieces, and once more before it is seen that it had', async () => {
  await extended.client.query("CREATE TYPE mood AS ENUM ('good', 'bad')");
  await admin.query(`CREATE TYPE mood AS ENUM ('good', 'bad'); CREATE TABLE felt (i integer PRIMARY KEY, m mood);
    INSERT INTO felt SELECT g, (ARRAY['good', 'bad'])[1 + g % 2]::mood FROM generate_series(1, 100000) g; ANALYZE felt`);
  await beginCopy('felt', 's');
  await admin.query("ALTER TYPE mood RENAME TO temper; INSERT INTO felt VALUES (0, 'bad')");
  await expect
    .poll(() => texts(extended.client, "SELECT columns -> 1 ->> 'originType' FROM millrace.storage WHERE origin_name = 'felt'"), {
      timeout: 30_000,
    })
    .toEqual([['public.temper']]);
  await engine.restart();
  await admin.query("ALTER TYPE temper RENAME TO humour; INSERT INTO felt VALUES (-1, 'good')");
  await endsEqual('felt', 'SELECT m, count(*), sum(i) FROM felt GROUP BY m ORDER BY m');
  await extended.run('DROP TABLE felt');
}, 120_000);
