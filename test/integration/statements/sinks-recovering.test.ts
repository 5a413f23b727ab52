/** Sinks whose relations go wrong: what they say, and the way out of it. */
import { afterAll, beforeAll, beforeEach, expect, it, vi } from 'vitest';
import { startWebhookReceiver, type WebhookReceiver } from '../../support/webhook-receiver.ts';
import { eventually, type Stage, simpleSource, startStage, type TestClient } from './stage.ts';

let stage: Stage;
let client: TestClient;
let origin: TestClient;
let receiver: WebhookReceiver;

beforeAll(async () => {
  stage = await startStage();
  receiver = await startWebhookReceiver();
  client = await stage.connect();
  origin = await simpleSource(stage, client);
  await client.query('CREATE TABLE t FROM SOURCE s (REFERENCE public.t)');
}, 180_000);
afterAll(async () => {
  await stage?.stop();
  await receiver?.stop();
});
beforeEach(async () => {
  await client.query('DROP SINK IF EXISTS hook; DROP MATERIALIZED VIEW IF EXISTS good, better, bad CASCADE');
  await client.query(
    'CREATE MATERIALIZED VIEW good AS SELECT a, b FROM t; CREATE MATERIALIZED VIEW better AS SELECT a, b AS better FROM t',
  );
  await client.query(`CREATE SINK hook FROM good INTO WEBHOOK (URL '${receiver.url}') KEY (a)`);
  receiver.requests.length = 0;
});

const shown = 'SELECT relation, next_relation, version, status, error FROM millrace.sinks';
const reading = (relation: string, version: number): unknown[] => [`public.${relation}`, null, version, 'running', null];
let last = 100;
/** A row that is written now arrives in this shape. */
async function delivers(row: (a: number) => Record<string, unknown>): Promise<void> {
  await origin.query(`INSERT INTO t VALUES (${++last}, 'new')`);
  await vi.waitFor(() => expect(receiver.requests.flatMap(({ changes }) => changes.map(({ after }) => after))).toContainEqual(row(last)), {
    timeout: 15_000,
    interval: 25,
  });
}
/** A cutover to a view that ends in error. */
async function toBad(): Promise<void> {
  await client.query('SET millrace.wait = off');
  await client.query('BEGIN; CREATE MATERIALIZED VIEW bad AS SELECT a, 1 / (a - 1) AS b FROM t; ALTER SINK hook SET FROM bad; COMMIT');
  await client.query('RESET millrace.wait');
  await eventually(client, "SELECT state FROM millrace.relation r WHERE millrace.qualified_name(r.facade) = 'public.bad'", [['error']]);
}

it('a cutover to a relation in error is undone by SET FROM the present one', async () => {
  await toBad();
  expect(await client.rows(shown)).toEqual([['public.good', 'public.bad', 1, 'running', null]]);
  expect(await client.failure('DROP MATERIALIZED VIEW good CASCADE')).toMatch(/still reads materialized view/);
  await delivers((a) => ({ a, b: 'new' }));
  client.takeNotices();
  await client.query('ALTER SINK hook SET FROM good');
  expect(client.takeNotices()).toEqual(['sink "hook" goes on reading good: the cutover to public.bad is given up']);
  expect(await client.rows(shown)).toEqual([reading('good', 1)]);
  await delivers((a) => ({ a, b: 'new' }));
  await client.query('DROP MATERIALIZED VIEW bad');
});

it('and by a cutover to another one', async () => {
  await toBad();
  await client.query('ALTER SINK hook SET FROM better');
  expect(await client.rows(shown)).toEqual([reading('better', 2)]);
  await delivers((a) => ({ a, better: 'new' }));
});

it('a transaction that undoes it and does not end holds back no epoch', async () => {
  await toBad();
  const other = await stage.connect();
  await other.query('BEGIN; ALTER SINK hook SET FROM good');
  // The relation is mended while the other transaction is open.
  await origin.query('DELETE FROM t WHERE a = 1');
  await delivers((a) => ({ a, b: 'new' }));
  await other.query('ROLLBACK');
  await other.end();
  await origin.query("INSERT INTO t VALUES (1, 'one')");
});

it('a statement that waits for the cutover hears that the relation ended in error; once that is gone, the sink is as before', async () => {
  client.takeNotices();
  await client.query('BEGIN; CREATE MATERIALIZED VIEW bad AS SELECT a, 1 / (a - 1) AS b FROM t; ALTER SINK hook SET FROM bad; COMMIT');
  expect(client.takeNotices()).toContain('sink "hook" does not read bad yet\nbad is in error, or was dropped.');
  // What CREATE made is taken away where it cannot be filled.
  await eventually(client, 'SELECT count(*)::int FROM millrace.sink_version', [[1]]);
  expect(await client.rows(shown)).toEqual([reading('good', 1)]);
  await delivers((a) => ({ a, b: 'new' }));
});

it('a relation that was dropped around Millrace: the sink says so, and can be given another', async () => {
  const direct = await stage.direct(stage.upstream);
  await origin.query("UPDATE t SET b = 'last words' WHERE a = 2");
  await eventually(client, 'SELECT b FROM good WHERE a = 2', [['last words']]);
  await direct.query('DROP VIEW good');
  await eventually(client, shown, [[null, null, 1, 'stalled', 'the relation it reads was dropped']]);
  expect(await client.rows('SELECT hint FROM millrace.sinks')).toEqual([
    ['Type: ALTER SINK public.hook SET FROM <another relation>; or DROP SINK public.hook;'],
  ]);
  // What it showed last is out.
  expect(receiver.requests.flatMap(({ changes }) => changes.map(({ after }) => after))).toContainEqual({ a: 2, b: 'last words' });
  expect(await client.failure('ALTER SINK hook SET FROM better WITH (BACKFILL = diff)')).toMatchInlineSnapshot(`
    "ERROR 55000: sink "hook" cannot read its present relation
    DETAIL: It has been dropped: there is nothing to compare with.
    HINT: Take BACKFILL = snapshot."
  `);
  await client.query('ALTER SINK hook SET FROM better WITH (BACKFILL = snapshot)');
  await eventually(client, shown, [reading('better', 2)]);
  await delivers((a) => ({ a, better: 'new' }));
});
