/**
 * SUBSCRIBE against a model: random transactions at the origin, engines and readers killed at random. At every timestamp that is declared
 * complete, what a subscriber has put together from its rows is what the relation was after some transaction, in their order.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import fc from 'fast-check';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { eventually, type Stage, simpleSource, startStage, type TestClient } from '../../integration/statements/stage.ts';
import { Reader, type Row } from '../../integration/subscribe/stage.ts';
import { type Dress, follows, type State, Subscriber } from './model.ts';

let stage: Stage;
let client: TestClient;
let origin: TestClient;

beforeAll(async () => {
  stage = await startStage({ upstream: { settings: { wal_level: 'logical' } } });
  client = await stage.connect();
  origin = await simpleSource(stage, client);
  await origin.query('CREATE TABLE r (a int PRIMARY KEY, b text, c int)');
  await client.query(`CREATE TABLE r FROM SOURCE s (REFERENCE public.r);
    CREATE MATERIALIZED VIEW bag AS SELECT b, c FROM r;
    CREATE MATERIALIZED VIEW sums AS SELECT b, sum(c) AS total FROM r GROUP BY b`);
}, 180_000);
afterAll(() => stage?.stop());

const key = fc.integer({ min: 1, max: 8 });
const text = fc.constantFrom("'x'", "'y'", "E'a\\nb'", "''", 'NULL');
const write = fc.oneof(
  {
    weight: 6,
    arbitrary: fc
      .tuple(key, text, fc.integer({ min: 0, max: 3 }))
      .map(([a, b, c]) => `INSERT INTO r VALUES (${a}, ${b}, ${c}) ON CONFLICT (a) DO UPDATE SET b = excluded.b, c = excluded.c`),
  },
  { weight: 3, arbitrary: key.map((a) => `DELETE FROM r WHERE a = ${a}`) },
  { weight: 2, arbitrary: key.map((a) => `UPDATE r SET c = c + 1 WHERE a > ${a}`) },
  {
    weight: 2,
    arbitrary: fc.tuple(key, key).map(([a, z]) => `UPDATE r SET a = ${z} WHERE a = ${a} AND NOT EXISTS (SELECT FROM r WHERE a = ${z})`),
  },
  { weight: 1, arbitrary: fc.constant('TRUNCATE r') },
);
const step = fc.record({
  writes: fc.array(write, { minLength: 1, maxLength: 5 }),
  pauseMs: fc.constantFrom(0, 0, 0, 5, 40),
  kill: fc.constantFrom('nobody', 'nobody', 'nobody', 'nobody', 'nobody', 'nobody', 'engine', 'reader', 'reader'),
});

/** Who reads what, and what of the table that shows. */
const readers: readonly { readonly name: string; readonly sql: string; readonly dress: Dress; readonly shows: string }[] = [
  { name: 'plain', sql: 'SUBSCRIBE r WITH (PROGRESS)', dress: 'plain', shows: 'SELECT a, b, c FROM r' },
  { name: 'upsert', sql: 'SUBSCRIBE r ENVELOPE UPSERT (KEY (a)) WITH (PROGRESS)', dress: 'upsert', shows: 'SELECT a, b, c FROM r' },
  { name: 'debezium', sql: 'SUBSCRIBE r ENVELOPE DEBEZIUM (KEY (a)) WITH (PROGRESS)', dress: 'debezium', shows: 'SELECT a, b, c FROM r' },
  { name: 'bag', sql: 'SUBSCRIBE bag WITHIN TIMESTAMP ORDER BY b, c WITH (PROGRESS)', dress: 'plain', shows: 'SELECT b, c FROM r' },
  {
    name: 'sums',
    sql: 'SUBSCRIBE sums ENVELOPE DEBEZIUM (KEY (b)) WITH (PROGRESS)',
    dress: 'debezium',
    shows: 'SELECT b, sum(c) AS total FROM r GROUP BY b',
  },
  {
    name: 'query',
    sql: 'SUBSCRIBE (SELECT c, count(*) AS n FROM r GROUP BY c) ENVELOPE UPSERT (KEY (c)) WITH (PROGRESS)',
    dress: 'upsert',
    shows: 'SELECT c, count(*) AS n FROM r GROUP BY c',
  },
];

async function stateOf(shows: string): Promise<string[]> {
  const { rows } = await origin.query({ text: shows, types: { getTypeParser: () => (value: string) => value } });
  return (rows as Row[]).map((row) => JSON.stringify(row)).sort();
}

/** Reads a durable subscription, over and over: keeps what it knew at the last acknowledged timestamp, and begins again from there when cut off. */
class DurableReader {
  readonly states: State[] = [];
  #kept: State | null = null;
  #own: TestClient | null = null;
  #stopped = false;
  readonly ended: Promise<void>;

  constructor() {
    this.ended = this.#run();
  }

  cut(): void {
    (this.#own as unknown as { connection: { stream: { destroy(): void } } } | null)?.connection.stream.destroy();
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    this.cut();
    await this.ended;
  }

  async #run(): Promise<void> {
    while (!this.#stopped) {
      const own = await stage.connect();
      this.#own = own;
      const subscriber = new Subscriber('plain', 'a', this.#kept?.rows ?? []);
      const reader = new Reader(own, 'SUBSCRIBE USING DURABLE SUBSCRIPTION d WITH (PROGRESS)');
      let isOver = false;
      const over = reader.done.then(() => {
        isOver = true;
      });
      let progressed = 0;
      while (!isOver || reader.rows.length > 0) {
        if (reader.rows.length === 0) await Promise.race([over, sleep(5)]);
        for (const row of reader.rows.splice(0)) subscriber.take(row);
        // The first says where it begins.
        for (const state of subscriber.states.splice(0)) {
          if (progressed++ === 0 && this.#kept === null) continue;
          this.states.push(state);
          await client.query(`ACKNOWLEDGE DURABLE SUBSCRIPTION d UP TO ${state.ts}`);
          this.#kept = state;
        }
      }
      const ended = await reader.done;
      if (ended instanceof Error && 'code' in ended && typeof ended.code === 'string' && ended.code.length === 5) throw ended;
      await own.end().catch(() => undefined);
    }
  }
}

it('what subscribers put together is what there was', async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(step, { minLength: 4, maxLength: 14 }), async (steps) => {
      await origin.query("TRUNCATE r; INSERT INTO r VALUES (1, 'x', 1), (2, 'y', 2), (3, 'x', 1)");
      await eventually(client, 'SELECT count(*)::int, sum(total)::int FROM r, (SELECT sum(total) AS total FROM sums) x GROUP BY total', [
        [3, 12],
      ]);
      await client.query('CREATE DURABLE SUBSCRIPTION d FOR r');
      const history = readers.map((): string[][] => []);
      const remember = async (): Promise<void> => {
        for (const [index, { shows }] of readers.entries()) history[index]?.push(await stateOf(shows));
      };
      await remember();
      const clients = await Promise.all(readers.map(() => stage.connect()));
      const open = readers.map(({ sql }, index) => new Reader(clients[index] as TestClient, sql));
      const durable = new DurableReader();
      try {
        await Promise.all(open.map((reader) => expect.poll(() => reader.rows.length, { timeout: 20_000 }).toBeGreaterThan(0)));
        for (const { writes, pauseMs, kill } of steps) {
          await origin.query(`BEGIN; ${writes.join('; ')}; COMMIT`);
          await remember();
          if (kill === 'engine') for (const pid of stage.millrace.enginePids()) process.kill(pid, 'SIGKILL');
          if (kill === 'reader') durable.cut();
          if (pauseMs > 0) await sleep(pauseMs);
        }
        const subscribers = readers.map(({ dress, shows }) => new Subscriber(dress, /SELECT (\w+)/.exec(shows)?.[1] ?? ''));
        const check = (): boolean[] => [
          ...readers.map(({ name }, index) => {
            for (const row of open[index]?.rows.splice(0) ?? []) subscribers[index]?.take(row);
            // At the first timestamp nothing was given yet.
            return follows(name, subscribers[index]?.states.slice(1) ?? [], history[index] ?? []);
          }),
          follows('durable', durable.states, history[0] ?? []),
        ];
        const deadline = performance.now() + 40_000;
        while (!check().every(Boolean)) {
          if (performance.now() > deadline)
            throw new Error(`not there yet: ${check().join(', ')} (${[...readers.map(({ name }) => name), 'durable'].join(', ')})`);
          await Promise.race([sleep(50), durable.ended]);
        }
      } finally {
        await durable.stop();
        for (const one of clients) (one as unknown as { connection: { stream: { destroy(): void } } }).connection.stream.destroy();
        await client.query('DROP DURABLE SUBSCRIPTION d');
      }
    }),
    { numRuns: Number(process.env['SUBSCRIBE_RUNS'] ?? 5), endOnFailure: true },
  );
}, 600_000);
