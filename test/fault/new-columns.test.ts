/**
 * Columns that a storage gets later, while rows change their values and keys, come and go, and the engine is killed wherever that matters: the version
 * that is there can be read all the time, and in the end both are what the origin has.
 */
import { readFileSync } from 'node:fs';
import type pg from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type ExtendedClient, extendedClient, startEngine, type TestEngine, texts } from '../support/engine.ts';
import { patientClient, startHardWrites } from '../support/hard-writes.ts';
import { startPostgres, type TestPostgres } from '../support/postgres.ts';

const rounds = Number(process.env['MILLRACE_COPY_ROUNDS'] ?? 1);
const rows = 24_000;

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
  engine = startEngine(upstream.address, copies);
  await extended.run("CREATE SOURCE s FROM POSTGRES CONNECTION c (PUBLICATION 'p'); CREATE SCHEMA v1; CREATE SCHEMA v2");
}, 120_000);

afterAll(async () => {
  await engine?.stop();
  await extended?.end();
  await admin?.end();
  await Promise.all([origin?.stop(), upstream?.stop()]);
});

const copies = { sessions: 3, chunkBytes: 64 * 1024 };
const digest = (table: string, columns: string): string => `SELECT count(*), sum(hashtextextended(ROW(${columns})::text, 0)) FROM ${table}`;
const equals = async (version: string, table: string, columns: string): Promise<void> => {
  const wanted = await texts(admin, digest(table, columns));
  await expect.poll(() => texts(extended.client, digest(version, columns)), { timeout: 60_000, interval: 200 }).toEqual(wanted);
};
const stateOf = async (schema: string): Promise<string | null | undefined> =>
  (await texts(extended.client, `SELECT state FROM millrace.relations WHERE schema = '${schema}'`))[0]?.[0];

/** As SIGSTOP leaves a process. */
const isStopped = (pid: number | undefined): boolean => / T \d/.test(readFileSync(`/proc/${pid}/stat`, 'utf8'));

/** Where the engines of a round die, one after the other. */
const deaths: readonly (readonly string[])[] = [
  [
    'copy.piece-committed:4',
    'copy.finished',
    'column.joined',
    'column.piece-merged:2',
    'column.piece-merged:3',
    'column.merged',
    'column.shown',
  ],
  ['copy.rows-in:9', 'copy.spool-applied', 'column.piece-merged:1', 'column.piece-merged:8', 'small.epoch-committed:200'],
];

test('killed at every step of it, under the hardest writes', async () => {
  for (let round = 0; round < rounds; round++) {
    const table = `t${round}`;
    await admin.query(`CREATE TABLE ${table} (k text COLLATE backwards, i integer, n integer NOT NULL, PRIMARY KEY (k, i));
      INSERT INTO ${table} SELECT (ARRAY['a', 'B', 'b', 'Ä', 'é', 'Z', '~', ''])[1 + g % 8] || g / 8 % 300, g, 0 FROM generate_series(1, ${rows}) g; ANALYZE ${table}`);
    await extended.run(`SET millrace.wait = on; CREATE TABLE v1.${table} FROM SOURCE s (REFERENCE public.${table});
      CREATE MATERIALIZED VIEW v1.kept AS SELECT n, count(*) AS c FROM v1.${table} GROUP BY n`);
    const storage = `SELECT pg_relation_filenode('millrace_data.s' || storage_id) FROM millrace.relations WHERE schema = 'v1' AND name = '${table}'`;
    const file = await texts(extended.client, storage);
    // Half of the values that are stored apart are never written again: all that moves them has to carry them along.
    await admin.query(`ALTER TABLE ${table} ADD COLUMN big text, ADD COLUMN tags text[]; ALTER TABLE ${table} ALTER big SET STORAGE EXTERNAL;
      UPDATE ${table} SET big = repeat(md5(i::text), 70) WHERE i % 2 = 0; ANALYZE ${table}`);
    await engine.stop();
    engine = startEngine(upstream.address, copies, deaths[round % deaths.length]);
    const writers = startHardWrites({ url: origin.url, table, rows }, 3);
    await extended.run(`SET millrace.wait = off; CREATE TABLE v2.${table} FROM SOURCE s (REFERENCE public.${table})`);
    const died = new Set<number | undefined>();
    for (const end = Date.now() + 120_000; (await stateOf('v2')) !== 'ready' && Date.now() < end; ) {
      expect((await texts(extended.client, `SELECT count(*) > 1000 FROM v1.${table}`))[0]).toEqual(['t']);
      died.add(engine.pid());
    }
    expect(await stateOf('v2')).toBe('ready');
    expect(died.size).toBeGreaterThan(3);
    expect(await writers.stop()).toBeGreaterThan(100);
    await equals(`v2.${table}`, table, 'k COLLATE "C", i, n, big, tags');
    await equals(`v1.${table}`, table, 'k COLLATE "C", i, n');
    const counted = `SELECT count(*), sum(c), sum(n * c) FROM`;
    const wanted = await texts(admin, `${counted} (SELECT n, count(*) AS c FROM ${table} GROUP BY n) x`);
    await expect.poll(() => texts(extended.client, `${counted} v1.kept`), { timeout: 10_000 }).toEqual(wanted);
    expect(await texts(extended.client, storage)).toEqual(file);
    await extended.run(`DROP TABLE v1.${table} CASCADE; DROP TABLE v2.${table}`);
    await admin.query(`DROP TABLE ${table}`);
  }
}, 400_000);

test('rows that move, with values that are not sent, to where the values have been brought already', async () => {
  await engine.stop();
  await admin.query(`CREATE TABLE far (i integer PRIMARY KEY, n integer); INSERT INTO far SELECT g, g FROM generate_series(1, 60000) g`);
  engine = startEngine(upstream.address, copies);
  await extended.run('SET millrace.wait = on; CREATE TABLE v1.far FROM SOURCE s (REFERENCE public.far)');
  await admin.query(`ALTER TABLE far ADD COLUMN big text; ALTER TABLE far ALTER big SET STORAGE EXTERNAL;
    UPDATE far SET big = repeat(md5(i::text), 70) WHERE i > 59000`);
  await engine.stop();
  // It stands still amid the second piece of thirty.
  engine = startEngine(upstream.address, copies, ['column.piece-merged:2:stop']);
  await extended.run('SET millrace.wait = off; CREATE TABLE v2.far FROM SOURCE s (REFERENCE public.far)');
  await expect.poll(async () => isStopped(engine.pid()), { timeout: 60_000, interval: 20 }).toBe(true);
  await admin.query(`UPDATE far SET i = -i WHERE i > 59500; UPDATE far SET i = i - 100000 WHERE i < -59800; UPDATE far SET n = 0 WHERE i < 0;
    UPDATE far SET i = 59999 WHERE i = 59000 + 400; UPDATE far SET big = 'sent', i = -1 WHERE i = -159900; DELETE FROM far WHERE i = -159901`);
  process.kill(engine.pid() ?? 0, 'SIGCONT');
  await expect.poll(() => stateOf('v2'), { timeout: 60_000, interval: 50 }).toBe('ready');
  await equals('v2.far', 'far', 'i, n, big');
  await equals('v1.far', 'far', 'i, n');
}, 120_000);

test('versions made in the very moment in which what they need is there', async () => {
  await admin.query(
    'CREATE TABLE late (i integer PRIMARY KEY, n integer); INSERT INTO late VALUES (1, 1); ALTER TABLE late ADD COLUMN m integer DEFAULT 2',
  );
  for (const point of ['copy.gates-open', 'column.merged']) {
    await engine.stop();
    engine = startEngine(upstream.address, copies, [`${point}:1:stop`]);
    const excluded = point === 'copy.gates-open' ? 'WITH (EXCLUDE COLUMNS (m))' : '';
    const of = (name: string): string => `CREATE TABLE v2.${name} FROM SOURCE s (REFERENCE public.late) ${excluded}`;
    await extended.run(`SET millrace.wait = off; ${of(`first_${excluded.length}`)}`);
    await expect.poll(async () => isStopped(engine.pid()), { timeout: 60_000, interval: 20 }).toBe(true);
    await extended.run(of(`second_${excluded.length}`));
    process.kill(engine.pid() ?? 0, 'SIGCONT');
    for (const name of ['first', 'second'])
      await expect
        .poll(() => texts(extended.client, `SELECT * FROM v2.${name}_${excluded.length}`).catch(String), { timeout: 30_000 })
        .toEqual([['1', '1', ...(excluded === '' ? ['2'] : [])]]);
  }
}, 120_000);
