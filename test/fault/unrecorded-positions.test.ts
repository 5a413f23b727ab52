/**
 * Positions that the stream reached without a change for any storage, and that nothing has recorded when the engine is killed: what lies before them
 * comes once more, to storages that have it by their copy.
 */
import pg from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { startEngine, type TestEngine, texts } from '../support/engine.ts';
import { type OriginPair, startOriginPair } from '../support/origin-pair.ts';

let pair: OriginPair;
let engine: TestEngine;
let upstream: pg.Client;

beforeAll(async () => {
  // A role that may not create event triggers: where DDL is told of, telling moves the position too.
  pair = await startOriginPair(
    `CREATE ROLE reader LOGIN REPLICATION IN ROLE pg_read_all_data;
     GRANT CREATE ON DATABASE postgres TO reader;
     CREATE TABLE keyed (id integer PRIMARY KEY, n integer);
     CREATE TABLE keyless (n integer); ALTER TABLE keyless REPLICA IDENTITY FULL;
     CREATE TABLE again (id integer PRIMARY KEY, n integer);
     CREATE PUBLICATION p FOR ALL TABLES`,
    'reader',
  );
  engine = startEngine(pair.upstream.address);
  await pair.extended.run("CREATE SOURCE s FROM POSTGRES CONNECTION c (PUBLICATION 'p')");
  upstream = new pg.Client({ connectionString: pair.upstream.url });
  await upstream.connect();
  await upstream.query(`CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not now'; END $$`);
}, 120_000);

afterAll(async () => {
  await upstream?.end();
  await pair?.stop(engine);
});

/** Does something while the engine cannot write down a position but by an epoch, and kills it then. */
async function withoutRecord(work: () => Promise<void>): Promise<void> {
  await upstream.query(
    'CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON millrace.source_position FOR EACH ROW EXECUTE FUNCTION public.refuse()',
  );
  await work();
  const dead = engine.pid();
  engine.kill();
  await expect.poll(() => engine.pid(), { timeout: 20_000 }).not.toBe(dead);
  await upstream.query('DROP TRIGGER refuse ON millrace.source_position');
}

/** Everything that the origin has said is in storage: a row written last is. */
async function settled(table: string, n: number): Promise<void> {
  await pair.admin.query(`INSERT INTO ${table} VALUES (${table === 'keyless' ? '' : `${n}, `}${n})`);
  await expect
    .poll(() => texts(pair.extended.client, `SELECT n FROM ${table} ORDER BY n`).catch((error: Error) => error.message), {
      timeout: 20_000,
    })
    .toEqual(await texts(pair.admin, `SELECT n FROM ${table} ORDER BY n`));
}

test.each(['keyed', 'keyless'])('rows from before the copy of a %s table do not come twice', async (table) => {
  await withoutRecord(async () => {
    await pair.admin.query(`INSERT INTO ${table} SELECT ${table === 'keyless' ? '' : 'g, '}g FROM generate_series(1, 5) g`);
    await pair.extended.run(`CREATE TABLE ${table} FROM SOURCE s (REFERENCE public.${table})`);
    expect(await texts(pair.extended.client, `SELECT count(*) FROM ${table}`)).toEqual([['5']]);
  });
  await settled(table, 100);
});

test('rows from before a resynchronisation do not come twice', async () => {
  const again = (): Promise<unknown> => texts(pair.extended.client, 'SELECT n FROM again').catch((error: Error) => error.message);
  await pair.extended.run('CREATE TABLE again FROM SOURCE s (REFERENCE public.again)');
  await pair.admin.query('DROP TABLE again');
  await expect.poll(again, { timeout: 20_000 }).toMatch(/source table/);
  await withoutRecord(async () => {
    await pair.admin.query('CREATE TABLE again (id integer PRIMARY KEY, n integer); INSERT INTO again VALUES (1, 1)');
    await pair.extended.run('ALTER SOURCE s RESYNC');
    await expect.poll(again, { timeout: 20_000 }).toEqual([['1']]);
  });
  await settled('again', 100);
});
