/** A cancel request ends what its client has under way, and nothing of anybody else. */
import { connect } from 'node:net';
import { afterAll, afterEach, beforeAll, expect, it } from 'vitest';
import { cancelPacket, query } from '../../../src/wire/encode.ts';
import type { TestProxy } from '../wire/proxy.ts';
import { RawClient, type RawMessage } from '../wire/raw-client.ts';
import { eventually, hello, lines, type PoolStage, startPoolStage } from './stage.ts';

let stage: PoolStage;
beforeAll(async () => {
  stage = await startPoolStage();
});
afterEach(() => stage.clear());
afterAll(() => stage?.stop());

interface Cancellable {
  readonly client: RawClient;
  readonly key: Buffer;
  /** Sends the request; resolves when the connection it came on is closed. */
  cancel(): Promise<void>;
}

async function open(proxy: TestProxy, protocol = 0x30000): Promise<Cancellable> {
  const client = await RawClient.connect(proxy.port);
  client.write(hello({}, protocol));
  const welcome: readonly RawMessage[] = await client.until('Z');
  const key = welcome.find(({ tag }) => tag === 'K')?.body ?? Buffer.alloc(0);
  return { client, key, cancel: () => sendCancel(proxy, key) };
}

function sendCancel(proxy: TestProxy, key: Buffer): Promise<void> {
  return new Promise((resolve, reject) => {
    const socket = connect(proxy.port, '127.0.0.1', () => socket.write(cancelPacket(key.readInt32BE(0), key.subarray(4))));
    socket.on('error', reject).on('close', () => resolve());
    socket.resume();
  });
}

const canceled = 'E ERROR 57014 canceling statement due to user request';

it('ends the query of its client, wherever that runs', async () => {
  const proxy = await stage.proxy({ defaultPoolSize: 3 });
  const [one, two] = [await open(proxy), await open(proxy)];
  for (let n = 0; n < 3; n++) {
    one.client.write(query('SELECT pg_sleep(60)', 'utf8'));
    two.client.write(query("SELECT 'two' FROM pg_sleep(0.2)", 'utf8'));
    await eventually(async () => (await stage.backends("state = 'active'")) === 2, 'both run');
    await one.cancel();
    expect(lines(await one.client.until('Z'))).toContain(canceled);
    expect(lines(await two.client.until('Z'))).toContain('D two');
  }
  one.client.destroy();
  two.client.destroy();
});

it('with the long key of protocol 3.2, and with nothing less', async () => {
  const proxy = await stage.proxy();
  const one = await open(proxy, 0x30002);
  expect(one.key).toHaveLength(36);
  one.client.write(query('SELECT pg_sleep(0.5)', 'utf8'));
  await eventually(async () => (await stage.backends("state = 'active'")) === 1, 'it runs');
  await sendCancel(proxy, one.key.subarray(0, 8));
  await sendCancel(proxy, Buffer.concat([one.key.subarray(0, 35), Buffer.of((one.key[35] ?? 0) ^ 1)]));
  expect(lines(await one.client.until('Z'))).not.toContain(canceled);
  one.client.write(query('SELECT pg_sleep(60)', 'utf8'));
  await eventually(async () => (await stage.backends("state = 'active'")) === 1, 'it runs');
  await one.cancel();
  expect(lines(await one.client.until('Z'))).toContain(canceled);
  one.client.destroy();
});

it('of a client that waits for a server ends its waiting', async () => {
  const proxy = await stage.proxy({ defaultPoolSize: 1 });
  const holder = await stage.connect(proxy);
  await holder.query('BEGIN');
  const one = await open(proxy);
  one.client.write(query('SELECT 1', 'utf8'));
  await eventually(() => proxy.report().clients.some(({ state }) => state === 'waiting'), 'it waits');
  await one.cancel();
  expect(lines(await one.client.until('Z'))).toEqual(['E FATAL 57014 canceling statement due to user request']);
  await holder.query('COMMIT');
});

it('of a client that has nothing under way does nothing, in a transaction neither', async () => {
  const proxy = await stage.proxy({ defaultPoolSize: 1 });
  const one = await open(proxy);
  await one.cancel();
  one.client.write(query('BEGIN', 'utf8'));
  await one.client.until('Z');
  await one.cancel();
  one.client.write(query('SELECT 1', 'utf8'));
  expect(lines(await one.client.until('Z'))).toContain('D 1');
  one.client.destroy();
});

it('a hundred at once, that come too late as a rule, never end a query of somebody else', async () => {
  const proxy = await stage.proxy({ defaultPoolSize: 4 });
  const innocents = await Promise.all(Array.from({ length: 4 }, () => stage.connect(proxy)));
  const victims = await Promise.all(Array.from({ length: 10 }, () => open(proxy)));
  let going = true;
  const work = innocents.map(async (client) => {
    let served = 0;
    for (; going; served++) await client.query('SELECT pg_sleep(0.001)');
    return served;
  });
  let answered = 0;
  await Promise.all(
    victims.map(async ({ client, cancel }) => {
      for (let n = 0; n < 10; n++) {
        client.write(query('SELECT 1', 'utf8'));
        const [answer] = await Promise.all([client.until('Z'), cancel()]);
        if (lines(answer).some((line) => line === 'D 1' || line.includes('57014'))) answered++;
        // One that was cancelled while it waited has been sent away.
        if (client.ended) break;
      }
    }),
  );
  going = false;
  // Any of them would have rejected.
  for (const served of await Promise.all(work)) expect(served).toBeGreaterThan(0);
  expect(answered).toBeGreaterThanOrEqual(10);
  for (const { client } of victims) client.destroy();
});
