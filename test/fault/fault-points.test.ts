/**
 * The engine is killed at each of its fault points in turn, while writes go on, tables are copied, views filled, a source is resynchronised and
 * the origin's schema changes: what is read is right at every instant, and in the end nothing is missing and nothing there twice.
 * MILLRACE_FAULT_ROUNDS: how often all points are gone through; from the second time on each at a random pass.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type FaultPoint, faultPoints } from '../../src/engine/fault-points.ts';
import { type ExtendedClient, extendedClient, startEngine, type TestEngine, texts } from '../support/engine.ts';
import {
  largeTransaction,
  ledgerDifferences,
  ledgerLines,
  ledgerProblems,
  ledgerSchema,
  ledgerStatements,
  startLedgerLoad,
} from '../support/ledger.ts';
import { startPostgres, type TestPostgres } from '../support/postgres.ts';
import { createStream, followsQuery, installCatalog, streamReady } from '../support/streams.ts';

const rounds = Number(process.env['MILLRACE_FAULT_ROUNDS'] ?? 1);
/** How long one point may take to be reached. */
const patienceMs = 30_000;

type Area = FaultPoint extends infer Point ? (Point extends `${infer Before}.${string}` ? Before : never) : never;
const areaOf = (point: string): Area => point.replace(/\..*/, '') as Area;

let origin: TestPostgres;
let upstream: TestPostgres;
let admin: pg.Client;
let reader: pg.Client;
let extended: ExtendedClient;
let engine: TestEngine;

const ownQuery = 'SELECT count(*) AS n, sum(balance) AS total FROM own';

beforeAll(async () => {
  origin = await startPostgres({ settings: { wal_level: 'logical' } });
  upstream = await startPostgres({ settings: { wal_level: 'logical' } });
  admin = new pg.Client({ connectionString: origin.url });
  await admin.connect();
  await admin.query(`${ledgerSchema}; CREATE PUBLICATION p FOR ALL TABLES`);
  reader = new pg.Client({ connectionString: upstream.url });
  await reader.connect();
  await installCatalog(reader);
  await reader.query(
    'CREATE TABLE own (id integer PRIMARY KEY, balance bigint NOT NULL); INSERT INTO own SELECT g, 0 FROM generate_series(1, 50) g',
  );
  extended = await extendedClient(upstream.address);
}, 120_000);

afterAll(async () => {
  await engine?.stop();
  await extended?.end();
  await reader?.end();
  await admin?.end();
  await Promise.all([origin?.stop(), upstream?.stop()]);
});

/** All that has to be done for the points of an area to be reached, once; whichever engines do it. */
const stimuli: Readonly<Record<Area, () => Promise<unknown>>> = {
  // The writers that run all the time.
  leader: () => sleep(50),
  small: () => sleep(50),
  acknowledge: () => sleep(50),
  position: () => sleep(50),
  refresh: () => sleep(50),
  large: () => admin.query(largeTransaction).then(() => sleep(300)),
  steps: () => admin.query(largeTransaction).then(() => sleep(300)),
  slot: async () => {
    await extended.run("CREATE SOURCE other FROM POSTGRES CONNECTION ledger (PUBLICATION 'p')");
    await extended.run('DROP SOURCE other');
  },
  copy: async () => {
    await extended.run('CREATE TABLE live.pair FROM SOURCE ledger (REFERENCE public.pair)');
    // Every transaction counts in it and has one line in the ledger.
    expect(await texts(reader, 'SELECT (SELECT sum(n) FROM live.pair) - (SELECT count(*) FROM live.ledger)')).toEqual([['0']]);
    await extended.run('DROP TABLE live.pair');
  },
  column: async () => {
    await extended.run('CREATE TABLE live.narrow FROM SOURCE ledger (REFERENCE public.pair) WITH (EXCLUDE COLUMNS (n))');
    await extended.run('CREATE TABLE live.pair FROM SOURCE ledger (REFERENCE public.pair)');
    expect(await texts(reader, 'SELECT (SELECT sum(n) FROM live.pair) - (SELECT count(*) FROM live.ledger)')).toEqual([['0']]);
    await extended.run('DROP TABLE live.narrow; DROP TABLE live.pair');
  },
  fill: async () => {
    const query = 'SELECT giver, sum(amount) AS given, max(n) AS last FROM live.ledger GROUP BY giver';
    await extended.run(`CREATE MATERIALIZED VIEW live.given AS ${query}`);
    expect(await texts(reader, `TABLE live.given EXCEPT ALL (${query})`)).toEqual([]);
    expect(await texts(reader, `(${query}) EXCEPT ALL TABLE live.given`)).toEqual([]);
    await extended.run('DROP MATERIALIZED VIEW live.given');
  },
  resync: async () => {
    for (let dropped = 0; dropped === 0; ) {
      const named = "slot_name = (SELECT slot_name FROM pg_replication_slots WHERE slot_name ~ '^millrace' ORDER BY slot_name LIMIT 1)";
      await admin.query(`SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active AND ${named}`);
      const gone = await admin.query(`SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active AND ${named}`);
      dropped = gone.rowCount ?? 0;
    }
    await extended.run('ALTER SOURCE ledger RESYNC');
    const left =
      "SELECT FROM millrace.storage WHERE stale OR resyncs IS NOT NULL UNION ALL SELECT FROM millrace.source WHERE resync_requested OR status <> 'running'";
    await expect.poll(() => texts(reader, left), { timeout: patienceMs, interval: 50 }).toEqual([]);
  },
  ddl: async () => {
    await extended.run('CREATE TABLE live.wide FROM SOURCE ledger (REFERENCE public.wide)');
    await admin.query('ALTER TABLE wide DROP COLUMN b; INSERT INTO wide SELECT max(id) + 1, 7 FROM wide');
    // No row that came after the change is ever read as one of before.
    const rows = (): Promise<string> =>
      texts(reader, 'SELECT count(*) FILTER (WHERE b IS NULL) FROM live.wide').then(
        ([row]) => row?.[0] ?? '',
        () => 'error',
      );
    for (const end = Date.now() + patienceMs; ; await sleep(20)) {
      const found = await rows();
      if (found === 'error') break;
      expect(found).toBe('0');
      if (Date.now() > end) throw new Error('a version that shows a dropped column can still be read');
    }
    await extended.run('DROP TABLE live.wide');
    await admin.query('ALTER TABLE wide ADD COLUMN b integer NOT NULL DEFAULT 1');
  },
};

/** Every point `rounds` times, noted as it is given to an engine. */
function* faults(): Generator<string> {
  for (let round = 0; round < rounds; round++)
    for (const point of faultPoints) yield round === 0 ? point : `${point}:${1 + Math.floor(Math.random() * 4)}`;
}

test(
  'killed at every point: what is read is right, and in the end all of it is there, once',
  async () => {
    engine = startEngine(upstream.address);
    for (const statement of ledgerStatements(origin)) await extended.run(statement);
    await streamReady(reader, await createStream(reader, 'own_total', ownQuery));
    await engine.stop();

    const load = startLedgerLoad(origin, 100);
    let going = true;
    const ownWriter = (async () => {
      const own = new pg.Client({ connectionString: upstream.url });
      await own.connect();
      for (; going; await sleep(20)) {
        const [from, to] = [1 + Math.floor(Math.random() * 25), 26 + Math.floor(Math.random() * 25)];
        await own.query(
          `BEGIN; UPDATE own SET balance = balance - 1 WHERE id = ${from}; UPDATE own SET balance = balance + 1 WHERE id = ${to}; COMMIT`,
        );
      }
      await own.end();
    })();
    engine = startEngine(upstream.address, undefined, faults());
    let reads = 0;
    const watching = (async () => {
      const checker = new pg.Client({ connectionString: upstream.url });
      await checker.connect();
      for (let lines = 0; going; await sleep(100)) {
        const at = engine.faultPoint();
        const found = await ledgerProblems(checker);
        if ((await texts(checker, 'SELECT FROM own_total WHERE n = 50 AND total = 0')).length !== 1) found.push('own_total is wrong');
        const now = await ledgerLines(checker);
        if (now < lines) found.push(`${now} lines after ${lines}`);
        expect(found.map((problem) => `${at}: ${problem}`)).toEqual([]);
        lines = now;
        reads++;
      }
      await checker.end();
    })();
    let broken: unknown = null;
    watching.catch((error: unknown) => {
      broken ??= error;
    });

    const reached = new Set<string>();
    let pid: number | undefined;
    let since = Date.now();
    for (;;) {
      const point = engine.faultPoint();
      if (broken !== null) throw broken;
      if (point === null) break;
      if (pid !== engine.pid()) {
        pid = engine.pid();
        since = Date.now();
        reached.add(point);
      } else if (Date.now() - since > patienceMs) throw new Error(`fault point ${point} is not reached`);
      await stimuli[areaOf(point)]();
    }
    going = false;
    await watching;
    await ownWriter;
    const written = await load.stop();
    await expect.poll(() => ledgerDifferences(reader, admin), { timeout: 60_000, interval: 200 }).toEqual([]);
    expect(await ledgerProblems(reader)).toEqual([]);
    expect(await ledgerLines(reader)).toBe(written.reduce((sum, n) => sum + n, 0));
    await followsQuery(reader, 'own_total', ownQuery, 30_000);
    expect(reads).toBeGreaterThan(20);
  },
  120_000 + rounds * 180_000,
);
