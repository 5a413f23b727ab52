/**
 * Durable subscriptions whose readers, engines and whole Millrace are killed at random, under writes. A reader that comes is given exactly what was not
 * acknowledged: nothing of it missing, nothing besides it, under the timestamps of before. What is kept in the transaction of its acknowledgement is there
 * once. MILLRACE_SOAK_SECONDS sets how long.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { Reader } from '../integration/subscribe/stage.ts';
import { startMillrace, type TestMillrace } from '../support/millrace.ts';
import { startPostgres, type TestPostgres } from '../support/postgres.ts';

const seconds = Number(process.env['MILLRACE_SOAK_SECONDS'] ?? 12);

let upstream: TestPostgres;
let origin: TestPostgres;
let millrace: TestMillrace;
let shop: pg.Client;
/** Around Millrace: what is kept. */
let store: pg.Client;

const opened = async (connectionString: string): Promise<pg.Client> => {
  const client = new pg.Client({ connectionString });
  client.on('error', () => undefined);
  await client.connect();
  return client;
};

beforeAll(async () => {
  [origin, upstream] = await Promise.all([startPostgres({ settings: { wal_level: 'logical' } }), startPostgres()]);
  [shop, store] = await Promise.all([opened(origin.url), opened(upstream.url)]);
  await shop.query(`
    CREATE TABLE ledger (id integer PRIMARY KEY, n integer NOT NULL, amount integer NOT NULL);
    CREATE TABLE done (n integer PRIMARY KEY, rows text NOT NULL);
    INSERT INTO ledger SELECT g, 0, g FROM generate_series(1, 20) g;
    CREATE PUBLICATION p FOR TABLE ledger`);
  await store.query(`
    CREATE TABLE kept (ts bigint, diff integer, id integer, n integer, amount integer);
    CREATE TABLE reached (up_to bigint); INSERT INTO reached VALUES (NULL)`);
  millrace = await startMillrace({ upstream: upstream.address });
  const client = await opened(millrace.url());
  for (const sql of [
    `CREATE CONNECTION origin TO POSTGRES (HOST '${origin.host}', PORT ${origin.port}, USER postgres, DATABASE postgres)`,
    "CREATE SOURCE s FROM POSTGRES CONNECTION origin (PUBLICATION 'p')",
    'CREATE TABLE ledger FROM SOURCE s (REFERENCE ledger)',
    'CREATE DURABLE SUBSCRIPTION d FOR ledger',
  ])
    await client.query(sql);
  await client.end();
}, 180_000);

afterAll(async () => {
  await shop?.end();
  await store?.end();
  await millrace?.stop();
  await Promise.all([origin?.stop(), upstream?.stop()]);
});

interface Change {
  readonly ts: number;
  readonly diff: number;
  readonly id: number;
  readonly n: number;
  readonly amount: number;
}

/** Every change that any reader was given whole, by timestamp: no other may be given another. */
const history = new Map<number, string>();
let again = 0;

const reachedUpTo = async (): Promise<number | null> => {
  const { rows } = await store.query<{ up_to: string | null }>('SELECT up_to FROM reached FOR UPDATE');
  const upTo = rows[0]?.up_to ?? null;
  return upTo === null ? null : Number(upTo);
};

const sever = (client: pg.Client): void => {
  (client as unknown as { connection: { stream: { destroy(): void } } }).connection.stream.destroy();
};

/** One reader, from when it connects until it is cut off. */
async function read(use: (own: pg.Client) => void): Promise<void> {
  const [own, acknowledger] = await Promise.all([opened(millrace.url()), opened(millrace.url())]);
  use(own);
  // What is acknowledged moves with what is kept: an acknowledgement whose outcome was never heard is told by that.
  const from = await reachedUpTo();
  const reader = new Reader(own, 'SUBSCRIBE USING DURABLE SUBSCRIPTION d WITH (PROGRESS)');
  let open: Change[] = [];
  let isOver = false;
  const over = reader.done.then(() => {
    isOver = true;
  });
  const given = new Map<number, string>();
  let acknowledged = from ?? 0;
  /** Everything before `ts` has been given. */
  const closed = async (ts: number): Promise<void> => {
    const complete = open.filter((change) => change.ts < ts);
    open = open.filter((change) => change.ts >= ts);
    for (const at of new Set(complete.map((change) => change.ts))) {
      const changes = complete.filter((change) => change.ts === at);
      if (from !== null && at < from) throw new Error(`${at} was acknowledged, up to ${from}`);
      const image = JSON.stringify(changes.map(({ diff, id, n, amount }) => [diff, id, n, amount]).sort());
      given.set(at, image);
      // The rows there are to begin with are of the time of the reader, not of a change.
      if (from === null) continue;
      const before = history.get(at);
      if (before !== undefined) again++;
      if (before !== undefined && before !== image) throw new Error(`at ${at}: ${image}, before ${before}`);
      history.set(at, image);
    }
    if (from !== null) {
      for (const at of history.keys())
        if (at >= from && at < ts && !given.has(at)) throw new Error(`${at} was not given again after ${from}`);
    }
    // Some are read, and not acknowledged: they are to come again.
    if (![...given.keys()].some((at) => at >= acknowledged) || Math.random() < 0.5) return;
    await acknowledger.query('BEGIN');
    const upTo = await acknowledger.query<{ up_to: string | null }>('SELECT up_to FROM reached FOR UPDATE');
    const kept = upTo.rows[0]?.up_to ?? null;
    const mine = [...given].filter(([at]) => at < ts && (kept === null || at >= Number(kept)));
    for (const [at, image] of mine) {
      await acknowledger.query(
        `INSERT INTO kept SELECT $1, (j ->> 0)::int, (j ->> 1)::int, (j ->> 2)::int, (j ->> 3)::int FROM json_array_elements($2::json) j`,
        [at, image],
      );
    }
    await acknowledger.query('UPDATE reached SET up_to = $1', [ts]);
    await acknowledger.query(`ACKNOWLEDGE DURABLE SUBSCRIPTION d UP TO ${ts}`);
    const commits = Math.random() < 0.8;
    await acknowledger.query(commits ? 'COMMIT' : 'ROLLBACK');
    if (commits) acknowledged = ts;
  };
  try {
    while (!isOver || reader.rows.length > 0) {
      if (reader.rows.length === 0) await Promise.race([over, sleep(5)]);
      for (const row of reader.rows.splice(0)) {
        const ts = Number(row['mz_timestamp']);
        if (row['mz_progressed'] === 't') await closed(ts);
        else open.push({ ts, diff: Number(row['mz_diff']), id: Number(row['id']), n: Number(row['n']), amount: Number(row['amount']) });
      }
    }
  } finally {
    sever(own);
    sever(acknowledger);
  }
  const ended = await reader.done;
  // Cut off, or told that Millrace or its engine goes; anything else is wrong.
  const code = ended instanceof Error && 'code' in ended ? String(ended.code) : '';
  if (ended instanceof Error && /^\d/.test(code) && !/^(57P|08)/.test(code)) throw ended;
}

/** What an attempt may meet while Millrace is away. */
const isAway = (error: unknown): boolean =>
  error instanceof Error &&
  (/ECONNREFUSED|ECONNRESET|EPIPE|Connection terminated|not queryable|socket|starting up|closed/i.test(error.message) ||
    /^(57P|08)/.test('code' in error ? String(error.code) : ''));

test(`for ${seconds} s`, { timeout: (seconds + 200) * 1000 }, async () => {
  const end = Date.now() + seconds * 1000;
  let written = 0;
  const writing = (async () => {
    while (Date.now() < end) {
      const n = ++written;
      await shop.query(`BEGIN;
        UPDATE ledger SET n = ${n}, amount = amount + 1 WHERE id % 5 = ${n % 5};
        DELETE FROM ledger WHERE id = ${1 + ((n * 7) % 20)};
        INSERT INTO ledger VALUES (${1 + ((n * 3) % 20)}, ${n}, 0) ON CONFLICT (id) DO UPDATE SET n = excluded.n;
        INSERT INTO done SELECT ${n}, coalesce(json_agg(json_build_array(id, n, amount) ORDER BY id)::text, '[]') FROM ledger; COMMIT`);
      await sleep(Math.random() * 30);
    }
  })();
  const kills = { reader: 0, engine: 0, millrace: 0 };
  let current: pg.Client | null = null;
  let going = true;
  let readers = 0;
  const reading = (async () => {
    while (going) {
      try {
        readers++;
        await read((own) => {
          current = own;
        });
      } catch (error) {
        if (!isAway(error)) throw error;
        await sleep(50);
      }
    }
  })();
  // A reader that fails is heard of at the end; until then it must not be unheard.
  reading.catch(() => undefined);
  let turn = 0;
  while (Date.now() < end) {
    await sleep(300 + Math.random() * 1200);
    turn++;
    if (turn % 6 === 0) {
      kills.millrace++;
      const { dataDir, port } = millrace;
      await millrace.kill9();
      millrace = await startMillrace({ upstream: upstream.address, dataDir, port });
    } else if (turn % 3 === 0) {
      for (const pid of millrace.enginePids()) process.kill(pid, 'SIGKILL');
      kills.engine++;
    } else if (current !== null) {
      kills.reader++;
      sever(current);
    }
  }
  await writing;
  /** The rows that the kept changes add up to, and what they were after each timestamp. */
  const kept = async (): Promise<{ readonly rows: string; readonly states: readonly string[] }> => {
    const { rows } = await store.query<Change & { ts: string }>('SELECT ts::text, diff, id, n, amount FROM kept ORDER BY kept.ts, diff');
    const table = new Map<number, string>();
    const states: string[] = [];
    const shown = (): string => `[${[...table].sort(([a], [b]) => a - b).map(([, row]) => row)}]`;
    for (const [at, { ts, diff, id, n, amount }] of rows.entries()) {
      const row = JSON.stringify([id, n, amount]);
      if (diff < 0 && table.get(id) !== row) throw new Error(`${row} goes at ${ts}, there is ${table.get(id)}`);
      if (diff > 0 && table.has(id)) throw new Error(`${row} comes at ${ts}, there is ${table.get(id)}`);
      if (diff < 0) table.delete(id);
      else table.set(id, row);
      if (rows[at + 1]?.ts !== ts) states.push(shown());
    }
    return { rows: shown(), states };
  };
  const { rows: done } = await shop.query<{ n: number; rows: string }>('SELECT n, rows FROM done ORDER BY n');
  const wanted = done.map(({ rows }) => rows.replaceAll(' ', ''));
  await Promise.race([reading, expect.poll(async () => (await kept()).rows, { timeout: 90_000, interval: 200 }).toBe(wanted.at(-1))]);
  going = false;
  // One that is just being opened is cut when it is.
  let isRead = false;
  const ended = reading.finally(() => {
    isRead = true;
  });
  for (; !isRead; await Promise.race([ended, sleep(100)])) if (current !== null) sever(current);
  await ended;
  // Several transactions may share an epoch; what was kept after each is what there was after some transaction, in their order.
  const { states } = await kept();
  let at = 0;
  for (const state of states.slice(1)) {
    const found = wanted.indexOf(state, at);
    if (found === -1) throw new Error(`never there, or too late: ${state}`);
    at = found;
  }
  console.log(
    `${seconds} s: ${written} transactions, ${history.size} timestamps, ${again} of them given again, ${readers} readers, kills: ${JSON.stringify(kills)}`,
  );
  expect(kills.reader).toBeGreaterThan(2);
  expect(kills.millrace).toBeGreaterThan(0);
  expect(again).toBeGreaterThan(0);
});
