/** SUBSCRIBE where server connections are shared, and where readers fall behind or lose the upstream. */
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { bind, message, parse, query, sync } from '../../../src/wire/encode.ts';
import { Request } from '../../../src/wire/tags.ts';
import { eventually, type Stage, simpleSource, startStage, type TestClient } from '../statements/stage.ts';
import { shown as messagesShown, RawClient } from '../wire/raw-client.ts';
import { cancel, Reader, shown } from './stage.ts';

let stage: Stage;
let client: TestClient;
let origin: TestClient;

beforeAll(async () => {
  stage = await startStage({
    upstream: { settings: { wal_level: 'logical' } },
    args: ['--pool-mode', 'transaction', '--auth-type', 'trust'],
    env: { MILLRACE_OUTBOX_LIMIT: '3000000' },
  });
  client = await stage.connect();
  origin = await simpleSource(stage, client);
  await client.query('CREATE TABLE t FROM SOURCE s (REFERENCE public.t)');
}, 180_000);
afterAll(() => stage?.stop());

const cursorsLeft = 'SELECT count(*)::int FROM pg_cursors';

describe('in transaction pooling', () => {
  it('a subscription keeps its server connection, hears a cancel, and leaves nothing on it', async () => {
    const own = await stage.connect();
    const reader = new Reader(own, 'SUBSCRIBE t');
    await reader.take(2);
    await origin.query("INSERT INTO t VALUES (3, 'x')");
    expect((await reader.take(1)).map(shown)).toEqual(['1 3 x']);
    await cancel(own);
    expect(await reader.done).toMatchObject({ code: '57014' });
    expect(await own.rows(cursorsLeft)).toEqual([[0]]);
    await own.end();
  });

  it('a cursor lives in its transaction', async () => {
    const own = await stage.connect();
    await own.query('BEGIN');
    await own.query('DECLARE c CURSOR FOR SUBSCRIBE t WITHIN TIMESTAMP ORDER BY a');
    expect((await own.rows('FETCH 2 c')).map((row) => row[2])).toEqual([1, 2]);
    await own.query('COMMIT');
    expect(await own.failure('BEGIN; FETCH c')).toContain('cursor "c" does not exist');
    await own.query('ROLLBACK');
    await own.end();
  });

  it('a portal left in the middle leaves no cursor to the next client', async () => {
    const raw = await RawClient.open(stage.millrace.port);
    raw.write(parse('', 'SUBSCRIBE t', 'utf8'), bind('', '', [], 'utf8'), message(Request.execute, [Buffer.from([0, 0, 0, 0, 1])]), sync);
    expect(messagesShown(await raw.until('Z')).slice(-2)).toEqual(['s', 'Z I']);
    raw.write(query(cursorsLeft, 'utf8'));
    expect(messagesShown(await raw.until('Z'))).toContain('D 0');
    raw.destroy();
  });
});

describe('a reader that stays away', () => {
  it('loses its place when its changes take too much, and is told the way out', async () => {
    await client.query('CREATE DURABLE SUBSCRIPTION d FOR t');
    await eventually(client, "SELECT status FROM millrace.subscriptions WHERE name = 'd'", [['waiting']]);
    await origin.query("INSERT INTO t SELECT n, repeat('x', 1000) FROM generate_series(10, 6000) n");
    await eventually(client, "SELECT status FROM millrace.subscriptions WHERE name = 'd'", [['overrun']]);
    expect(await client.failure('SUBSCRIBE USING DURABLE SUBSCRIPTION d')).toMatchInlineSnapshot(`
      "ERROR 55000: subscription to public.t has fallen too far behind
      DETAIL: The changes it has still to read had grown to the limit and were thrown away.
      HINT: Type DROP DURABLE SUBSCRIPTION and CREATE DURABLE SUBSCRIPTION, and begin with its snapshot."
    `);
    await client.query('DROP DURABLE SUBSCRIPTION d; CREATE DURABLE SUBSCRIPTION d FOR t');
    const own = await stage.connect();
    expect((await new Reader(own, 'SUBSCRIBE USING DURABLE SUBSCRIPTION d').take(5900)).length).toBe(5900);
    await own.end();
    await client.query('DROP DURABLE SUBSCRIPTION d');
  });
});

describe('what nobody asks for any more', () => {
  it('outboxes go a minute after their last reader', async () => {
    const direct = await stage.direct(stage.upstream);
    await direct.query("UPDATE millrace.subscription SET ended_at = now() - interval '2 minutes' WHERE ended_at IS NOT NULL");
    await eventually(direct, 'SELECT count(*)::int FROM millrace.subscription', [[0]]);
    await eventually(
      direct,
      "SELECT count(*)::int, (SELECT count(*)::int FROM millrace.outbox) FROM pg_class WHERE relnamespace = 'millrace_data'::regnamespace AND relname ~ '^o[0-9]+$'",
      [[0, 0]],
    );
  });
});

describe('when the upstream ends the session', () => {
  it('the client hears it, and can subscribe again', async () => {
    const own = await stage.connect();
    const reader = new Reader(own, 'SUBSCRIBE t UP TO millrace.now() + 60000');
    await reader.take(100);
    const direct = await stage.direct(stage.upstream);
    await direct.query('SELECT pg_terminate_backend(pid) FROM millrace.subscription WHERE pid IS NOT NULL');
    expect(await reader.done).toBeInstanceOf(Error);
    await sleep(200);
    const again = await stage.connect();
    expect((await new Reader(again, 'SUBSCRIBE t').take(100)).length).toBe(100);
    await again.end();
  });
});
