/** Targets that do not answer: what the sink says of it, how it goes on, and that nothing else waits for them. */
import { createServer, type Server } from 'node:net';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest';
import type { TestPostgres } from '../../support/postgres.ts';
import { type Relay, startRelay } from '../../support/relay.ts';
import { startWebhookReceiver } from '../../support/webhook-receiver.ts';
import { eventually, type Stage, type TestClient } from '../statements/stage.ts';
import { startTargetStage } from './target-stage.ts';

let stage: Stage;
let client: TestClient;
let origin: TestClient;
let server: TestPostgres;
let relay: Relay;
let target: TestClient;
let other: TestClient;
let isStopped = false;

beforeAll(async () => {
  ({ stage, server, client, origin, target } = await startTargetStage({ settings: { max_prepared_transactions: '2' } }));
  relay = await startRelay(server);
  other = await stage.direct(server);
  await origin.query('CREATE TABLE lines (item text, qty int); ALTER TABLE lines REPLICA IDENTITY FULL');
  await client.query(`
    CREATE CONNECTION faraway TO POSTGRES (HOST '127.0.0.1', PORT ${relay.port}, USER postgres, DATABASE postgres);
    CREATE TABLE lines FROM SOURCE s (REFERENCE public.lines);
    CREATE TABLE t FROM SOURCE s (REFERENCE public.t)`);
}, 180_000);
afterAll(async () => {
  await stage?.stop();
  await relay?.stop();
  await server?.stop();
});
beforeEach(() => origin.query("TRUNCATE lines; INSERT INTO lines SELECT 'a', g FROM generate_series(1, 5) g"));
afterEach(async () => {
  relay.heal();
  await other.query('ROLLBACK');
  if (!isStopped) await client.query('DROP SINK IF EXISTS copy');
  await target.query('DROP TABLE IF EXISTS copy');
});

const create = (connection = 'warehouse'): Promise<unknown> =>
  client.query(`CREATE SINK copy FROM lines INTO POSTGRES CONNECTION ${connection} (TABLE 'copy')`);
const changed = (n: number): Promise<unknown> =>
  origin.query(
    `BEGIN; INSERT INTO lines SELECT 'b', ${n} FROM generate_series(1, 3); DELETE FROM lines WHERE ctid = (SELECT min(ctid) FROM lines); COMMIT`,
  );
const status = async (): Promise<unknown[]> =>
  (await client.rows("SELECT status, error, hint FROM millrace.sinks WHERE name = 'copy'"))[0] ?? [];
const stalls = async (error: RegExp): Promise<string> => {
  await vi.waitFor(async () => expect(await status()).toEqual(['stalled', expect.stringMatching(error), expect.anything()]), {
    timeout: 25_000,
    interval: 100,
  });
  return String((await status())[2]);
};
const runs = (): Promise<void> =>
  vi.waitFor(async () => expect(await status()).toEqual(['running', null, null]), { timeout: 40_000, interval: 50 });

/** Each row as often as at the origin: there is no key that would make a second delivery go unseen. */
async function isTheSame(timeout = 20_000): Promise<void> {
  const sql = (table: string): string => `SELECT item, qty, count(*)::int FROM ${table} GROUP BY 1, 2 ORDER BY 1, 2`;
  await vi.waitFor(async () => expect(await target.rows(sql('copy'))).toEqual(await origin.rows(sql('lines'))), { timeout, interval: 50 });
}

describe('a target that is blocked', { timeout: 90_000 }, () => {
  it('by a lock of its table: who blocks is told, and when that ends, it goes on', async () => {
    await create();
    await isTheSame();
    await other.query("SET application_name = 'nightly'; BEGIN; LOCK TABLE copy");
    const [[pid] = []] = await other.rows('SELECT pg_backend_pid()');
    await changed(1);
    const hint = await stalls(
      new RegExp(
        `^the target does not answer: process \\d+ waits for a lock of process ${pid} \\(nightly, role postgres, idle in transaction\\): SELECT pg_backend_pid\\(\\)$`,
      ),
    );
    expect(hint).toBe(`That transaction has to end. To end it, type at the target: SELECT pg_terminate_backend(${pid});`);
    expect(await client.rows("SELECT status, error ~ 'waits for a lock' FROM mz_internal.mz_sink_statuses WHERE name = 'copy'")).toEqual([
      ['stalled', true],
    ]);
    // Longer than a batch waits: what comes before the next one waits on.
    await vi.waitFor(
      async () => {
        const waiting = await target.rows(
          "SELECT query ~ 'EXPLAIN' FROM pg_stat_activity WHERE application_name = 'millrace sink' AND wait_event_type = 'Lock'",
        );
        expect(waiting).toEqual([[true]]);
      },
      { timeout: 25_000, interval: 50 },
    );
    await changed(2);
    await other.query('COMMIT');
    await isTheSame(3000);
    await runs();
  });

  it('by a row that somebody has changed: the batch is begun anew', async () => {
    await create();
    await isTheSame();
    await other.query("BEGIN; UPDATE copy SET qty = qty WHERE item = 'a'");
    await origin.query('DELETE FROM lines WHERE qty = 3');
    await stalls(/waits for a lock of process \d+ .*: BEGIN; UPDATE copy SET qty/);
    await changed(3);
    await other.query('ROLLBACK');
    await isTheSame(40_000);
    await runs();
  });

  it('by a prepared transaction', async () => {
    await create();
    await isTheSame();
    await other.query("BEGIN; LOCK TABLE copy; PREPARE TRANSACTION 'forgotten'");
    await changed(4);
    expect(await stalls(/waits for a lock of a prepared transaction$/)).toContain('ROLLBACK PREPARED');
    await other.query("COMMIT PREPARED 'forgotten'");
    await isTheSame(40_000);
  });

  it('when it is created: the statement says who blocks, and leaves nothing behind', async () => {
    await target.query('CREATE TABLE copy (item text, qty int)');
    await other.query('BEGIN; LOCK TABLE copy');
    expect(await client.failure("CREATE SINK copy FROM lines INTO POSTGRES CONNECTION warehouse (TABLE 'copy')")).toMatch(
      /waits for a lock of process \d+ .*: BEGIN; LOCK TABLE copy\. The sink was taken away again\.\nHINT: That transaction has to end\./s,
    );
    expect(await status()).toEqual([]);
  });

  it('holds up no statement about it', async () => {
    await create();
    await isTheSame();
    await other.query('BEGIN; LOCK TABLE copy');
    await changed(5);
    await stalls(/waits for a lock/);
    const started = performance.now();
    await client.query('ALTER SINK copy PAUSE');
    expect((await status())[0]).toBe('paused');
    await client.query('ALTER SINK copy RESUME');
    await client.query("ALTER SINK copy SET FROM lines WITH (BACKFILL = diff, TIMEOUT = '1s')");
    await client.query('DROP SINK copy');
    expect(performance.now() - started).toBeLessThan(8000);
    expect(await status()).toEqual([]);
    // The next is delivered by a thread that is not held up either.
    await client.query("CREATE SINK second FROM lines INTO POSTGRES CONNECTION warehouse (TABLE 'second')");
    await eventually(target, 'SELECT count(*) > 0 FROM second', [[true]]);
    await client.query('DROP SINK second');
    await other.query('ROLLBACK');
    await vi.waitFor(
      async () => expect(await target.rows("SELECT pid FROM pg_stat_activity WHERE application_name = 'millrace sink'")).toEqual([]),
      { timeout: 15_000, interval: 100 },
    );
  });
});

describe('a network that passes nothing on', { timeout: 120_000 }, () => {
  it('for a while: it goes on where it was', async () => {
    await create('faraway');
    await isTheSame();
    relay.hang();
    await changed(6);
    await stallsWithoutHint(/^the target does not answer: nor can be asked over another session why \(/);
    await changed(7);
    relay.heal();
    await isTheSame(40_000);
    await runs();
  });

  it('and forgets the connection: the session of before is ended over there, and what it had begun is begun anew', async () => {
    await create('faraway');
    await isTheSame();
    relay.forget();
    await changed(8);
    await stallsWithoutHint(/waits for the sink: what was sent has not arrived$/);
    await isTheSame(60_000);
    await runs();
    expect(await target.rows("SELECT count(*)::int FROM pg_stat_activity WHERE application_name = 'millrace sink'")).toEqual([[1]]);
  });

  const stallsWithoutHint = (error: RegExp): Promise<void> =>
    vi.waitFor(async () => expect(await status()).toEqual(['stalled', expect.stringMatching(error), null]), {
      timeout: 25_000,
      interval: 100,
    });
});

it('a server that takes the connection and says nothing, from the beginning', { timeout: 60_000 }, async () => {
  const mute: Server = createServer((socket) => socket.on('error', () => undefined));
  await new Promise<void>((resolve) => mute.listen(0, '127.0.0.1', resolve));
  const { port } = mute.address() as { port: number };
  await client.query(
    `CREATE CONNECTION mute TO POSTGRES (HOST '127.0.0.1', PORT ${port}, USER postgres, DATABASE postgres) WITH (VALIDATE = false)`,
  );
  expect(await client.failure("CREATE SINK copy FROM lines INTO POSTGRES CONNECTION mute (TABLE 'copy')")).toMatch(
    /cannot be reached: no answer within 10 s\. The sink was taken away again/,
  );
  // Also while it is being connected to.
  await client.query(
    "SET millrace.wait = off; CREATE SINK copy FROM lines INTO POSTGRES CONNECTION mute (TABLE 'copy'); RESET millrace.wait",
  );
  await vi.waitFor(async () => expect((await status())[0]).toBe('stalled'), { timeout: 25_000, interval: 100 });
  await client.query('DROP SINK copy');
  await client.query('DROP CONNECTION mute');
  mute.close();
});

it('a webhook that takes the request and does not answer is told, and waited for', { timeout: 60_000 }, async () => {
  const receiver = await startWebhookReceiver();
  await client.query(`CREATE SINK copy FROM t INTO WEBHOOK (URL '${receiver.url}') KEY (a)`);
  let release = (): void => undefined;
  const held = new Promise<void>((resolve) => {
    release = resolve;
  });
  receiver.answer = () => held.then(() => 204);
  await origin.query("UPDATE t SET b = 'late' WHERE a = 1");
  await vi.waitFor(async () => expect(await status()).toEqual(['stalled', 'the webhook has not answered within 10 s', null]), {
    timeout: 20_000,
    interval: 50,
  });
  release();
  await runs();
  expect(receiver.requests.at(-1)?.changes).toMatchObject([{ after: { a: 1, b: 'late' } }]);
  expect(new Set(receiver.requests.map(({ headers }) => headers['webhook-id'])).size).toBe(receiver.requests.length);
  await client.query('DROP SINK copy');
  await receiver.stop();
});

it('Millrace stops while a target hangs', { timeout: 60_000 }, async () => {
  await create();
  await isTheSame();
  await other.query('BEGIN; LOCK TABLE copy');
  await changed(9);
  await stalls(/waits for a lock/);
  const started = performance.now();
  isStopped = true;
  await stage.millrace.stop();
  expect(performance.now() - started).toBeLessThan(15_000);
  await other.query('ROLLBACK');
});
