/** Sinks into webhooks: what a request holds, in which order they come, and what happens to those that are not accepted. */
import { createHmac } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest';
import { webhookTarget } from '../../../src/sinks/webhook/target.ts';
import { startWebhookReceiver, type WebhookReceiver, type WebhookRequest } from '../../support/webhook-receiver.ts';
import { rowLine } from '../../unit/sinks/lines.ts';
import { eventually, type Stage, simpleSource, startStage, type TestClient } from '../statements/stage.ts';

const secret = `whsec_${Buffer.from('water under the wheel').toString('base64')}`;
let stage: Stage;
let client: TestClient;
let origin: TestClient;
let receiver: WebhookReceiver;

beforeAll(async () => {
  stage = await startStage();
  client = await stage.connect();
  origin = await simpleSource(stage, client);
  await client.query(
    `CREATE SECRET signing AS '${secret}'; CREATE SECRET plain AS 'not in base64'; CREATE TABLE t FROM SOURCE s (REFERENCE public.t)`,
  );
}, 180_000);
afterAll(() => stage?.stop());

beforeEach(async () => {
  receiver = await startWebhookReceiver();
  await origin.query("TRUNCATE t; INSERT INTO t VALUES (1, 'one'), (2, 'two')");
  await eventually(client, 'SELECT a FROM t ORDER BY a', [[1], [2]]);
  return async () => {
    await client.query('DROP SINK IF EXISTS hook');
    await receiver.stop();
  };
});

const create = (rest = 'KEY (a)', options = `URL '${receiver.url}'`): Promise<unknown> =>
  client.query(`CREATE SINK hook FROM t INTO WEBHOOK (${options}) ${rest}`);
/** Without waiting for it to run. */
const createUnseen = async (): Promise<void> => {
  await client.query('SET millrace.wait = off');
  await create();
  await client.query('RESET millrace.wait');
};
const accepted = (): WebhookRequest[] => receiver.requests.filter(({ status }) => status >= 200 && status < 300);
const count = (): number => accepted().reduce((sum, { changes }) => sum + changes.length, 0);
const comes = (changes: number): Promise<void> =>
  vi.waitFor(() => expect(count()).toBeGreaterThanOrEqual(changes), { timeout: 20_000, interval: 20 });
const status = async (): Promise<unknown[]> => (await client.rows("SELECT status, error FROM millrace.sinks WHERE name = 'hook'"))[0] ?? [];
const stalls = (error: RegExp): Promise<void> =>
  vi.waitFor(async () => expect(await status()).toEqual(['stalled', expect.stringMatching(error)]), { timeout: 20_000, interval: 20 });
const runs = (): Promise<void> =>
  vi.waitFor(async () => expect(await status()).toEqual(['running', null]), { timeout: 20_000, interval: 20 });

/** What a receiver has when it keeps the newest row of each key, whatever came twice. */
function table(requests: readonly WebhookRequest[]): Record<string, unknown> {
  const rows: Record<string, unknown> = {};
  const seen = new Set<string>();
  for (const { changes, headers } of requests) {
    const id = String(headers['webhook-id']);
    if (seen.has(id)) continue;
    seen.add(id);
    for (const { before, after } of changes) {
      if (before !== null) {
        // In order: what goes is what was there.
        expect(rows[String(before['a'])]).toEqual(before['b']);
        delete rows[String(before['a'])];
      }
      if (after !== null) rows[String(after['a'])] = after['b'];
    }
  }
  return rows;
}

const signature = (key: Buffer, { headers, body }: WebhookRequest): string =>
  `v1,${createHmac('sha256', key).update(`${headers['webhook-id']}.${headers['webhook-timestamp']}.${body}`).digest('base64')}`;

describe('requests', () => {
  it('hold the changes of a timestamp, before and after', async () => {
    await create();
    await comes(2);
    await origin.query("BEGIN; UPDATE t SET b = 'zwei' WHERE a = 2; DELETE FROM t WHERE a = 1; INSERT INTO t VALUES (3, NULL); COMMIT");
    await comes(5);
    const [snapshot, change] = accepted();
    expect(snapshot?.headers['content-type']).toBe('application/json');
    expect(snapshot?.changes.toSorted((x, y) => Number(x.after?.['a']) - Number(y.after?.['a']))).toEqual([
      { before: null, after: { a: 1, b: 'one' } },
      { before: null, after: { a: 2, b: 'two' } },
    ]);
    expect(change?.changes).toEqual([
      { before: { a: 1, b: 'one' }, after: null },
      { before: { a: 2, b: 'two' }, after: { a: 2, b: 'zwei' } },
      { before: null, after: { a: 3, b: null } },
    ]);
    expect(change?.timestamp).toBeGreaterThan(snapshot?.timestamp ?? 0);
    expect(new Set(accepted().map(({ headers }) => headers['webhook-id'])).size).toBe(2);
  });

  it('are signed as Standard Webhooks has it', async () => {
    await create('KEY (a)', `URL '${receiver.url}', SECRET signing`);
    await comes(2);
    const [request] = accepted();
    expect(request?.headers['webhook-signature']).toBe(signature(Buffer.from('water under the wheel'), request as WebhookRequest));
    expect(Math.abs(Number(request?.headers['webhook-timestamp']) - Date.now() / 1000)).toBeLessThan(30);
    await client.query('DROP SINK hook');
    receiver.requests.length = 0;
    await create('KEY (a)', `URL '${receiver.url}', SECRET plain`);
    await comes(2);
    expect(accepted()[0]?.headers['webhook-signature']).toBe(signature(Buffer.from('not in base64'), accepted()[0] as WebhookRequest));
  });

  it('hold 500 changes at most, and come one after the other in the order of each key', async () => {
    await create('KEY (a)');
    await comes(2);
    receiver.answer = async () => {
      await sleep(5);
      return 204;
    };
    await origin.query("INSERT INTO t SELECT g, 'x' FROM generate_series(10, 1509) g");
    for (let round = 0; round < 20; round++) await origin.query(`UPDATE t SET b = 'r${round}' WHERE a % 100 = 7 OR a < 3`);
    const rows = await origin.rows('SELECT a, b FROM t');
    const wanted = Object.fromEntries(rows.map(([a, b]) => [String(a), b]));
    await vi.waitFor(() => expect(table(accepted())).toEqual(wanted), { timeout: 20_000, interval: 100 });
    expect(Math.max(...accepted().map(({ changes }) => changes.length))).toBe(500);
  });
});

describe('a request that is not accepted', () => {
  it('is sent again, the same, with growing pauses; the sink says why', async () => {
    receiver.answer = ({ nth }) => (nth < 4 ? 503 : 204);
    await createUnseen();
    await stalls(/^the webhook answers 503 Service Unavailable$/);
    await comes(2);
    await runs();
    const { requests } = receiver;
    expect(requests.map((request) => request.status)).toEqual([503, 503, 503, 503, 204]);
    expect(new Set(requests.map(({ headers, body }) => `${headers['webhook-id']} ${body}`)).size).toBe(1);
    const pauses = requests.slice(1).map(({ at }, index) => at - (requests[index]?.at ?? 0));
    [250, 500, 1000, 2000].forEach((wanted, index) => {
      expect(pauses[index]).toBeGreaterThan(wanted * 0.9);
    });
  });

  it.each([400, 401, 404, 410, 429])('is sent again also after %s', async (code) => {
    receiver.answer = ({ nth }) => (nth < 1 ? code : 204);
    await createUnseen();
    await comes(2);
    expect(receiver.requests.map((request) => request.status)).toEqual([code, 204]);
    await runs();
  });

  it('is sent again to whoever is not there, or goes away in the middle', async () => {
    await receiver.stop();
    await createUnseen();
    await stalls(/^the webhook cannot be reached: connect ECONNREFUSED 127\.0\.0\.1/);
    receiver = await startWebhookReceiver(receiver.port);
    receiver.answer = ({ nth }) => (nth === 0 ? 0 : nth === 1 ? -1 : 204);
    await comes(2);
    // The second was taken, and nobody could know.
    expect(table(accepted())).toEqual({ 1: 'one', 2: 'two' });
    await runs();
  });

  it('is not followed elsewhere', async () => {
    receiver.answer = ({ nth }) => (nth < 1 ? 307 : 204);
    await createUnseen();
    await stalls(/redirect/);
    await comes(2);
  });

  it('does not make those before it be sent again', async () => {
    await create();
    await comes(2);
    await client.query('ALTER SINK hook PAUSE');
    for (let round = 0; round < 12; round++) await origin.query(`UPDATE t SET b = '${round}' WHERE a = 1`);
    await eventually(client, 'SELECT b FROM t WHERE a = 1', [['11']]);
    receiver.requests.length = 0;
    receiver.answer = ({ nth }) => (nth % 4 === 3 ? 500 : 204);
    await client.query('ALTER SINK hook RESUME');
    await vi.waitFor(() => expect(table([...snapshot(), ...accepted()])['1']).toBe('11'), { timeout: 30_000, interval: 50 });
    expect(new Set(accepted().map(({ headers }) => headers['webhook-id'])).size).toBe(accepted().length);
  });
  const snapshot = (): WebhookRequest[] => [
    {
      headers: {},
      body: '',
      timestamp: 0,
      at: 0,
      status: 204,
      changes: [
        { before: null, after: { a: 1, b: 'one' } },
        { before: null, after: { a: 2, b: 'two' } },
      ],
    },
  ];

  it('holds nothing else back, however long the answer takes', async () => {
    let release = (): void => undefined;
    const held = new Promise<void>((resolve) => {
      release = resolve;
    });
    const other = await startWebhookReceiver();
    await create();
    receiver.requests.length = 0;
    receiver.answer = async () => {
      await held;
      return 204;
    };
    await client.query(`CREATE SINK quick FROM t INTO WEBHOOK (URL '${other.url}') KEY (a)`);
    await origin.query("INSERT INTO t VALUES (3, 'three')");
    await eventually(client, 'SELECT count(*)::int FROM t', [[3]]);
    await vi.waitFor(() => expect(table(other.requests)).toEqual({ 1: 'one', 2: 'two', 3: 'three' }), { timeout: 10_000 });
    expect(receiver.requests).toEqual([]);
    expect((await client.rows("SELECT lag_ms > 0 FROM millrace.sinks WHERE name = 'hook'"))[0]).toEqual([true]);
    release();
    await comes(1);
    await client.query('DROP SINK quick');
    await other.stop();
  });
});

describe('CREATE SINK', () => {
  const refused = (cause: string): string =>
    `ERROR 55000: sink "hook" could not be started\nDETAIL: ${cause}. The sink was taken away again.`;
  const sql = (rest = ''): string => `CREATE SINK hook FROM t INTO WEBHOOK (URL '${receiver.url}') KEY (a) ${rest}`;

  // It answered now this, now that: the sink was said to run before the first request was sent.
  it.each([301, 400, 401, 403, 404, 410, 500, 503])('is refused whenever the endpoint answers %s', async (code) => {
    receiver.answer = () => code;
    for (let round = 0; round < 5; round++) {
      const said = await client.failure(sql());
      if (code === 301) expect(said).toMatch(/the webhook cannot be reached: unexpected redirect/);
      else expect(said).toContain(refused(`the webhook answers ${code}`).replace(/\..*$/, ''));
      expect(await status()).toEqual([]);
    }
  });

  it('is refused whenever nobody listens, also when there is nothing to deliver', async () => {
    await receiver.stop();
    for (let round = 0; round < 10; round++) {
      expect(await client.failure(sql(round % 2 === 0 ? '' : 'WITH (SNAPSHOT = false)'))).toMatch(
        /could not be started\nDETAIL: the webhook cannot be reached: connect ECONNREFUSED 127\.0\.0\.1:\d+\. The sink was taken away again\.$/,
      );
      expect(await status()).toEqual([]);
    }
    receiver = await startWebhookReceiver();
  });

  it.each([401, 404, 500])('with nothing to deliver asks the endpoint with an empty request, and is refused with its %s', async (code) => {
    receiver.answer = () => code;
    for (let round = 0; round < 5; round++) {
      expect(await client.failure(sql('WITH (SNAPSHOT = false)'))).toContain(`the webhook answers ${code}`);
    }
    expect(receiver.requests.every(({ changes }) => changes.length === 0)).toBe(true);
    expect(receiver.requests.length).toBeGreaterThanOrEqual(5);
  });

  it('with nothing to deliver sends one empty request, signed; an endpoint that has read it and wants none is there, too', async () => {
    for (const code of [204, 400, 422]) {
      receiver.requests.length = 0;
      receiver.answer = ({ nth }) => (nth === 0 || code === 204 ? code : 204);
      await client.query(sql('WITH (SNAPSHOT = false)').replace(/'\) KEY/, "', SECRET signing) KEY"));
      expect(await status()).toEqual(['running', null]);
      const [request] = receiver.requests;
      expect(receiver.requests.map(({ changes }) => changes)).toEqual([[]]);
      expect(request?.headers['webhook-signature']).toBe(signature(Buffer.from('water under the wheel'), request as WebhookRequest));
      await client.query('DROP SINK hook');
      await receiver.stop();
      receiver = await startWebhookReceiver();
    }
  });

  it('returns when the first rows are accepted, and sends no empty request then', async () => {
    await create();
    expect(count()).toBe(2);
    expect(receiver.requests.every(({ changes }) => changes.length > 0)).toBe(true);
  });
});

it('a webhook that does not answer is given up after a while', async () => {
  receiver.answer = async () => {
    await sleep(3000);
    return 204;
  };
  const target = webhookTarget({
    name: 'n',
    url: receiver.url,
    secret: null,
    key: ['a'],
    json: () => (row) => JSON.stringify(row),
    clock: Date.now,
    accepted: new Set(),
    waits: () => undefined,
    patienceMs: 200,
  });
  await target.describe([]);
  await target.begin();
  await target.write([{ ts: 1, before: null, after: rowLine(['1']), partition: null }]);
  await expect(target.commit({ version: 1, ts: 1, backfillSeq: null })).rejects.toMatchObject({
    kind: 'retriable',
    message: 'the webhook has not answered within 0.2 s',
  });
});
