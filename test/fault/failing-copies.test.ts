/** Copies that fail, are dropped, or wait: what that means for them, and that it means nothing for others. */
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type ExtendedClient, startEngine, type TestEngine, texts } from '../support/engine.ts';
import { type OriginPair, startOriginPair } from '../support/origin-pair.ts';
import type { TestPostgres } from '../support/postgres.ts';

let pair: OriginPair;
let upstream: TestPostgres;
let admin: pg.Client;
let extended: ExtendedClient;
let engine: TestEngine;

beforeAll(async () => {
  pair = await startOriginPair(
    `
    CREATE ROLE reader LOGIN REPLICATION;
    CREATE TABLE large (id integer PRIMARY KEY, filler text);
    INSERT INTO large SELECT g, repeat('x', 100) FROM generate_series(1, 200000) g;
    CREATE TABLE small (id integer PRIMARY KEY, n integer);
    INSERT INTO small SELECT g, g FROM generate_series(1, 10) g;
    GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader;
    GRANT CREATE ON DATABASE postgres TO reader;
    ANALYZE;
    CREATE PUBLICATION p FOR ALL TABLES`,
    'reader',
  );
  ({ upstream, admin, extended } = pair);
  engine = startEngine(upstream.address, { sessions: 2, chunkBytes: 64 * 1024 });
  await extended.run("CREATE SOURCE s FROM POSTGRES CONNECTION c (PUBLICATION 'p')");
  await extended.run('SET millrace.wait = off');
}, 120_000);

afterAll(async () => {
  await pair?.stop(engine);
});

const progress = (name: string, columns: string): Promise<(string | null)[][]> =>
  texts(extended.client, `SELECT ${columns} FROM millrace.snapshot_progress WHERE name = '${name}'`);
const copySessions = async (): Promise<number> =>
  Number((await texts(admin, "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'millrace copy'"))[0]?.[0]);
/** Until some pieces are in, with more to come. */
const piecesAreIn = (name: string): Promise<void> =>
  expect.poll(async () => Number((await progress(name, 'chunks_copied'))[0]?.[0]), { timeout: 30_000, interval: 2 }).toBeGreaterThan(1);
const becomes = async (name: string, state: string): Promise<void> =>
  expect.poll(() => progress(name, 'state'), { timeout: 30_000, interval: 50 }).toEqual([[state]]);

test('pieces are read several at a time, and progress says how many are in', async () => {
  await extended.run('CREATE TABLE large FROM SOURCE s (REFERENCE public.large)');
  let most = 0;
  while ((await progress('large', 'state'))[0]?.[0] !== 'live') {
    const [[active] = []] = await texts(
      admin,
      "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'millrace copy' AND backend_xmin IS NOT NULL AND query LIKE 'COPY%'",
    );
    most = Math.max(most, Number(active));
  }
  expect(most).toBe(2);
  const [[rows, bytes, copied, chunks, percent] = []] = await progress(
    'large',
    'rows_copied, bytes_copied, chunks_copied, chunks, percent',
  );
  expect([rows, percent]).toEqual(['200000', '100.0']);
  expect(Number(bytes)).toBeGreaterThan(6_000_000);
  expect(Number(chunks)).toBeGreaterThan(50);
  expect(copied).toBe(chunks);
  expect(await texts(extended.client, 'SELECT count(*), min(id), max(id) FROM large')).toEqual([['200000', '1', '200000']]);
  await extended.run('DROP TABLE large');
});

test('a table dropped while it is copied leaves nothing behind, here or at the origin', async () => {
  await extended.run('CREATE TABLE large FROM SOURCE s (REFERENCE public.large)');
  await piecesAreIn('large');
  const [[id] = []] = await texts(extended.client, "SELECT storage_id FROM millrace.relations WHERE name = 'large'");
  await extended.run('DROP TABLE large');
  const left = (): Promise<(string | null)[][]> =>
    texts(
      extended.client,
      `SELECT (SELECT count(*) FROM pg_class WHERE relnamespace = 'millrace_data'::regnamespace AND relname ~ '^[sip]${id}$'),
              (SELECT count(*) FROM millrace.storage WHERE id = ${id}), (SELECT count(*) FROM millrace.copy_chunk WHERE storage_id = ${id})`,
    );
  await expect.poll(left, { timeout: 20_000, interval: 100 }).toEqual([['0', '0', '0']]);
  await expect.poll(copySessions, { timeout: 10_000 }).toBe(0);
});

test('a copy that the origin refuses errs that table only, and heals once it may', async () => {
  await extended.run('CREATE TABLE small FROM SOURCE s (REFERENCE public.small)');
  await becomes('small', 'live');
  await extended.run('CREATE TABLE large FROM SOURCE s (REFERENCE public.large)');
  await piecesAreIn('large');
  await admin.query('REVOKE SELECT ON large FROM reader');
  await becomes('large', 'failed');
  const [[attempts, error, isLater] = []] = await progress('large', 'failed_attempts, error, retry_at > now()');
  expect([attempts, error, isLater]).toEqual(['1', 'initial copy failed: permission denied for table large', 't']);
  await expect(texts(extended.client, 'SELECT FROM large')).rejects.toThrow('initial copy failed: permission denied for table large');
  // A change of the other table comes through meanwhile.
  await admin.query('UPDATE small SET n = -1 WHERE id = 3');
  await expect.poll(() => texts(extended.client, 'SELECT n FROM small WHERE id = 3'), { timeout: 30_000 }).toEqual([['-1']]);
  expect((await progress('large', 'state'))[0]).toEqual(['failed']);
  await admin.query('GRANT SELECT ON large TO reader');
  await becomes('large', 'live');
  expect(await texts(extended.client, 'SELECT count(*) FROM large')).toEqual([['200000']]);
  await extended.run('DROP TABLE large');
});

test('a table that somebody locks at the origin while it is copied holds up no other', async () => {
  const holder = new pg.Client({ connectionString: pair.origin.url });
  holder.on('error', () => undefined);
  await holder.connect();
  await extended.run('CREATE TABLE large FROM SOURCE s (REFERENCE public.large)');
  await piecesAreIn('large');
  await holder.query('BEGIN; LOCK TABLE large IN ACCESS EXCLUSIVE MODE');
  await admin.query('UPDATE small SET n = -2 WHERE id = 4');
  await expect.poll(() => texts(extended.client, 'SELECT n FROM small WHERE id = 4'), { timeout: 30_000 }).toEqual([['-2']]);
  expect(await progress('large', 'state')).toEqual([['copying']]);
  await holder.query('COMMIT');
  await becomes('large', 'live');
  await holder.end();
});

test('a column renamed, and the table too, between two pieces', async () => {
  await admin.query(`
    CREATE TABLE renamed (id integer PRIMARY KEY, a text);
    INSERT INTO renamed SELECT g, 'x' || g FROM generate_series(1, 200000) g;
    GRANT SELECT ON renamed TO reader; ANALYZE renamed`);
  await extended.run('CREATE TABLE renamed FROM SOURCE s (REFERENCE public.renamed)');
  await piecesAreIn('renamed');
  await admin.query('ALTER TABLE renamed RENAME a TO b');
  await sleep(20);
  await admin.query('ALTER TABLE renamed RENAME TO again');
  await becomes('renamed', 'live');
  expect(await texts(extended.client, 'SELECT count(DISTINCT a), max(id) FROM renamed')).toEqual([['200000', '200000']]);
});
